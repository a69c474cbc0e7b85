//! Where a thread's numbers come from, with no privilege: its CPU clock, and the kernel's
//! `/proc/thread-self/schedstat` for what no clock tells.
//!
//! The clock goes first: asking it brings the scheduler's sums up to date, which between
//! ticks are up to one tick old.

use super::descriptor::Kept;
use crate::error::{Context, Error, Result};
use crate::sys::thread;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, pread};

const OP: &str = "task_shared::Slot::publish";
const PATH: &str = "/proc/thread-self/schedstat";

/// Two clocks of the calling thread, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Clocks {
    pub(super) monotonic: u64,
    pub(super) cpu: u64,
}

impl Clocks {
    /// Monotonic time first: a preemption between the two makes the time off the CPU look
    /// shorter, which the next look puts right, never longer.
    pub(super) fn now() -> Self {
        Self { monotonic: thread::monotonic(), cpu: thread::cpu_time() }
    }

    /// Time off the CPU since `start`, in nanoseconds. CLOCK_MONOTONIC may be slewed against
    /// the scheduler's clock; the difference is never taken for negative.
    pub(super) fn off_cpu_since(self, start: Self) -> u64 {
        let elapsed = self.monotonic.saturating_sub(start.monotonic);
        elapsed.saturating_sub(self.cpu.saturating_sub(start.cpu))
    }
}

/// What the kernel keeps of the waiting of the calling thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Schedstat {
    pub(super) run_delay: u64,
    pub(super) pcount: u64,
}

/// Opens the calling thread's file.
///
/// # Errors
///
/// EOPNOTSUPP if there is none: a kernel without CONFIG_SCHED_INFO, or no /proc. EMFILE,
/// ENFILE, EACCES.
pub(super) fn open_schedstat() -> Result<Kept> {
    match open(PATH, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::NOENT) => {
            Err(Error::because(OP, Errno::OPNOTSUPP, "there is no /proc/thread-self/schedstat"))
        }
        file => Kept::keep(file.op(OP)?).op(OP),
    }
}

/// Reads it.
///
/// # Errors
///
/// EOPNOTSUPP if the kernel does not count (it says so by three zeros), EBADF or EBADMSG if
/// somebody closed the descriptor or put another file in its place.
pub(super) fn read_schedstat(file: &Kept) -> Result<Schedstat> {
    let mut text = [0_u8; 64];
    // SAFETY: to read from another file that has the number by now does no harm; the text is
    // checked.
    let file = unsafe { file.file() };
    let len = match pread(file, &mut text, 0) {
        // A pipe or a socket has the number now.
        Err(Errno::SPIPE) => 0,
        len => len.op(OP)?,
    };
    let Some([_, run_delay, pcount]) = parse(&text[..len]) else {
        return Err(Error::because(OP, Errno::BADMSG, "the kept descriptor is no schedstat"));
    };
    // A thread that asks has been given a CPU.
    if pcount == 0 {
        return Err(Error::because(OP, Errno::OPNOTSUPP, "this kernel keeps no run delay"));
    }
    Ok(Schedstat { run_delay, pcount })
}

/// Three decimal numbers and a newline.
fn parse(text: &[u8]) -> Option<[u64; 3]> {
    let text = core::str::from_utf8(text).ok()?.strip_suffix('\n')?;
    let mut numbers = text.split(' ').map(|word| word.parse().ok());
    let three = [numbers.next()??, numbers.next()??, numbers.next()??];
    numbers.next().is_none().then_some(three)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn three_numbers_and_nothing_else() {
        assert_eq!(parse(b"1 2 3\n"), Some([1, 2, 3]));
        assert_eq!(parse(b"18446744073709551615 0 0\n"), Some([u64::MAX, 0, 0]));
        for text in ["", "\n", "1 2 3", "1 2\n", "1 2 3 4\n", "1  2 3\n", "-1 2 3\n", "1 2 x\n"] {
            assert_eq!(parse(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(parse(&[0xff; 64]), None);
    }

    #[test]
    fn time_off_the_cpu_is_never_negative() {
        let at = |monotonic, cpu| Clocks { monotonic, cpu };
        assert_eq!(at(100, 30).off_cpu_since(at(10, 10)), 70);
        assert_eq!(at(100, 200).off_cpu_since(at(10, 10)), 0);
        assert_eq!(at(5, 10).off_cpu_since(at(10, 20)), 0);
    }
}
