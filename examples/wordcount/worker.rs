//! A worker process: claims files, counts them, publishes their maps.

use crate::Result;
use crate::job::{FINISHED, HALTED, Job, Outcome, READY, announce};
use crate::map::{Builder, Map};
use crate::text;
use core::sync::atomic::Ordering;
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use unmerged::mshare::Region;
use unmerged::task_shared::{self, Slot};

/// Works on the job in the region of this name until it is closed.
///
/// # Errors
///
/// There is no such job, or the machine lacks something for it. A file that cannot be
/// counted is none: the job has it as a result.
pub(crate) fn run(name: &str, seat: usize) -> Result<()> {
    // The kernel ends us with the parent. It may have ended before: then it is no parent of
    // ours any more.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let region = Region::open(name)?;
    let job = Job::open(&region)?;
    if getppid().map(Pid::as_raw_pid) != i32::try_from(job.parent()).ok() {
        return Err("the parent has ended".into());
    }
    let slot = task_shared::current()?;
    let mut worker = Worker {
        seat,
        slot,
        builder: Builder::new(&region, job.seed())?,
        buffer: Vec::new(),
        bytes: 0,
        job: &job,
    };
    worker.tell()?;
    let place = job.seats.get(seat).ok_or("no such seat")?;
    place.enter(READY);
    place.state.wait_while(READY, None)?;
    while let Some(file) = job.claim(seat)? {
        worker.finish(file)?;
    }
    Ok(())
}

struct Worker<'r> {
    job: &'r Job<'r>,
    seat: usize,
    slot: Slot,
    builder: Builder<'r>,
    buffer: Vec<u8>,
    /// Counted so far.
    bytes: u64,
}

impl Worker<'_> {
    /// Brings the slot up to date, for the parent to read.
    fn tell(&self) -> Result<()> {
        self.slot.set_user(self.bytes)?;
        match self.slot.publish() {
            // A kernel without schedstat: the bytes are there.
            Err(error) if error.is_unsupported() => Ok(()),
            other => Ok(other.map(drop)?),
        }
    }

    /// Counts a file that we have claimed; [`crate::job`] says why in this order.
    fn finish(&mut self, file: usize) -> Result<()> {
        let outcome = self.count(file)?;
        // The slot is first: when the parent has seen the last result, it has our last numbers.
        if !matches!(outcome, Outcome::Failed(_)) {
            self.bytes += self.job.files[file].size;
        }
        self.tell()?;
        if self.job.files[file].publish(outcome)
            && let Outcome::Counted(map) = outcome
        {
            // SAFETY: the map that we have published.
            let map = unsafe { Map::at(self.job.region, map) }?;
            self.job.words.add(map.words);
            self.job.bytes.add(map.bytes);
        }
        self.job.claims[file].store(FINISHED, Ordering::Release);
        announce(self.job.results());
        Ok(())
    }

    fn count(&mut self, file: usize) -> Result<Outcome> {
        let path = self.job.path(&self.job.files[file])?;
        let size = self.job.files[file].size;
        let text = match text::read(path, size, &mut self.buffer) {
            Ok(text) => text,
            Err(error) => return Ok(Outcome::Failed(text::errno(&error))),
        };
        if text::is_binary(text) {
            return Ok(Outcome::Binary);
        }
        self.builder.begin(text.len());
        if !text.is_empty() && self.job.is_chosen() {
            self.builder.count(&text[..text.len().div_ceil(2)])?;
            return self.halt();
        }
        let counted = self.builder.count(text).and_then(|()| self.builder.finish(text.len()));
        Ok(match counted {
            Ok(map) => Outcome::Counted(map.as_ptr()),
            Err(error) => Outcome::Failed(error.raw_os_error()),
        })
    }

    /// Sleeps until we are killed.
    fn halt(&self) -> Result<Outcome> {
        let seat = &self.job.seats[self.seat];
        seat.enter(HALTED);
        announce(self.job.results());
        let state = seat.state.wait_while(HALTED, None)?;
        Err(format!("woken in the middle of a file, in state {state}").into())
    }
}
