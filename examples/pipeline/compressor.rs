//! A process that compresses blocks.

use crate::Result;
use crate::job::{DONE, FILLED, Job, TAKEN, state};
use core::sync::atomic::Ordering;
use flate2::Compression;
use flate2::write::GzEncoder;
use std::io::Write;
use unmerged::futex2::lock::select;
use unmerged::mshare::Region;

/// Works on the job in the region of this name until its end.
///
/// # Errors
///
/// There is no such job, or no such seat.
pub(crate) fn run(name: &str, seat: &str) -> Result<()> {
    let region = Region::open(name)?;
    let job = Job::open(&region)?;
    crate::parent::end_with(&job)?;
    let seat: u8 = seat.parse()?;
    while select(&[job.end(), &job.work.receiving()], None)? != 0 {
        let Ok(message) = job.work.try_recv() else { continue };
        let text = message[1];
        let taken = state(TAKEN + u64::from(seat), text);
        let Some(block) = job.block(message, FILLED) else { continue };
        if !block.change(state(FILLED, text), taken) {
            continue;
        }
        // SAFETY: taken by us.
        let (room, packed) = unsafe { job.room(block) }?;
        let len = (block.len.load(Ordering::Relaxed) as usize).min(room.len());
        let half = len.div_ceil(2);
        let mut encoder = GzEncoder::new(packed, Compression::default());
        encoder.write_all(&room[..half])?;
        job.halt_if_chosen(seat.into());
        encoder.write_all(&room[half..len])?;
        let left = encoder.finish()?.len();
        let most = crate::job::room_of(room.len());
        block.packed.store((most - left) as u32, Ordering::Relaxed);
        if block.change(taken, state(DONE, text)) {
            job.done.send(message)?;
        }
    }
    Ok(())
}

/// A block as a member of a gzip file.
///
/// # Errors
///
/// Those of the memory.
pub(crate) fn compress(text: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text)?;
    Ok(encoder.finish()?)
}
