//! Waiting for threads to come and go.
//!
//! Whoever takes or gives back a slot advances the event word of the header, and wakes those
//! who said in the flag file that they sleep on it (`event.rs`). Nobody announces a death by
//! raw exit(2), SIGKILL or execve(2): so a sleeper wakes up now and then and looks for
//! itself, which costs two system calls and a look at each slot.

use super::event::Event;
use super::header;
use super::liveness::is_held;
use super::monitor::Monitor;
use crate::abi::futex2::MATCH_ANY;
use crate::error::{Error, Result};
use crate::futex2::{Clock, Deadline};
use crate::sync::{Ordering, fence};
use crate::sys::{futex, thread};
use core::ptr;
use core::time::Duration;
use rustix::io::Errno;
use rustix::time::Timespec;

const OP: &str = "task_shared::Monitor::wait";
/// How long a death that nobody announces goes unnoticed.
const GLANCE: Duration = Duration::from_millis(100);
/// The same for all news, where this reader cannot say that it waits.
const OFTEN: Duration = Duration::from_millis(10);
/// Wakes in a row for nothing before a wait takes the process for one that plays with us.
const IN_VAIN: u32 = 16;

impl Monitor {
    /// Sleeps until a thread has taken or given back a slot, or died: since the last call, or
    /// since the monitor was opened. What comes between two calls ends the second at once.
    ///
    /// Births and ordinary ends of threads wake it. Ends that nobody announces, by raw
    /// exit(2), SIGKILL or execve(2), are found within 100 milliseconds. Where the
    /// reader may not write the file in which it says that it waits, or was made by
    /// [`from_fd`](Self::from_fd), all is found within 10 milliseconds.
    ///
    /// It is for one thread at a time: of two that wait at the same monitor, news may reach but one.
    ///
    /// # Errors
    ///
    /// ETIMEDOUT at the deadline, ESRCH if the process has ended or runs another program, and
    /// that was told before.
    ///
    /// # Examples
    ///
    /// ```
    /// use core::time::Duration;
    /// use unmerged::futex2::Deadline;
    /// use unmerged::task_shared::{self, Monitor};
    ///
    /// task_shared::current()?;
    /// let monitor = Monitor::open(std::process::id())?;
    /// std::thread::spawn(|| task_shared::current().map(drop));
    /// monitor.wait(Deadline::after(Duration::from_secs(10)))?; // it came
    /// # Ok::<(), unmerged::Error>(())
    /// ```
    pub fn wait(&self, deadline: Deadline) -> Result<()> {
        let mut in_vain = 0;
        loop {
            let word = header::event(self.view())?;
            let seen = word.load(Ordering::Relaxed);
            // Pairs with the release of an announcement: what was announced is seen below.
            fence(Ordering::Acquire);
            let now = self.fingerprint();
            if self.last.swap(now, Ordering::Relaxed) != now {
                return Ok(());
            }
            if deadline.has_passed() {
                return Err(Error::new(OP, Errno::TIMEDOUT));
            }
            if !self.is_running() {
                let message = format_args!("process {} has ended", self.pid());
                return Err(Error::with(OP, Errno::SRCH, message));
            }
            let glance = if let Some(flag) = self.flag() {
                Event { word, flag }.watch();
                GLANCE
            } else {
                OFTEN
            };
            let woken = futex::wait_bitset(
                ptr::from_ref(word).cast(),
                false,
                seen,
                Clock::Monotonic,
                Some(&sooner(deadline, glance)),
                MATCH_ANY,
            );
            // A word that never rests must not make us burn a CPU.
            in_vain = if woken == Err(Errno::TIMEDOUT) { 0 } else { in_vain + 1 };
            if in_vain > IN_VAIN {
                thread::sleep_us(1000);
            }
        }
    }

    /// A number for who lives in which slot: it changes with every birth and death.
    pub(super) fn fingerprint(&self) -> u64 {
        let mut sum = u64::from(self.is_mapped());
        for place in 0..self.slots() {
            let record = self.record(place);
            let generation = record.generation.load(Ordering::Relaxed);
            let life = if generation & 1 == 0 {
                0
            } else {
                let (owner, mark) = (record.owner_tid(), self.mark(place));
                u64::from(is_held(mark, &record.generation, owner, generation))
            };
            // The multiplication of FxHash: fast, and enough against chance.
            sum = (sum.rotate_left(5) ^ (u64::from(generation) << 1 | life))
                .wrapping_mul(0x517c_c1b7_2722_0a95);
        }
        sum
    }
}

/// The deadline, or `span` from now if that is earlier, on CLOCK_MONOTONIC.
fn sooner(deadline: Deadline, span: Duration) -> Timespec {
    let now = Duration::from_nanos(thread::monotonic());
    let at = now.saturating_add(deadline.left().min(span));
    Timespec { tv_sec: at.as_secs().cast_signed(), tv_nsec: at.subsec_nanos().into() }
}
