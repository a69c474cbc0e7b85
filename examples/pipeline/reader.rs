//! The reader process: fills free blocks with the text of the files, one after the other.

use crate::Result;
use crate::inputs::Text;
use crate::job::{FILLED, FREE, Job, state};
use core::sync::atomic::Ordering;
use unmerged::futex2::lock::select;
use unmerged::mshare::Region;

/// Reads for the job in the region of this name.
///
/// # Errors
///
/// There is no such job; a file cannot be read.
pub(crate) fn run(name: &str) -> Result<()> {
    let region = Region::open(name)?;
    let job = Job::open(&region)?;
    crate::parent::end_with(&job)?;
    let mut text = Text::new(job.paths()?.into_iter());
    let mut number = 0;
    loop {
        if select(&[job.end(), &job.free.receiving()], None)? == 0 {
            return Ok(());
        }
        let Ok([block, was]) = job.free.try_recv() else { continue };
        let Some(free) = job.block([block, was], FREE) else { continue };
        // SAFETY: free, and its number was in the channel once.
        let (room, _) = unsafe { job.room(free) }?;
        let len = text.read(room)?;
        if len == 0 {
            job.set_texts(number);
            return Ok(());
        }
        free.len.store(len as u32, Ordering::Relaxed);
        free.change(state(FREE, was), state(FILLED, number));
        job.work.send([block, number])?;
        number += 1;
    }
}
