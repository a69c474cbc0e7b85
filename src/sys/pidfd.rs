//! pidfd_open(2): a process as a descriptor, which cannot be confused with a later one
//! of the same number.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::{Errno, Result};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// `pidfd_open(pid, 0)` (since Linux 5.3).
///
/// # Errors
///
/// ESRCH if there is no such process, EINVAL for a pid that is none.
pub fn open(pid: u32) -> Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::INVAL)?;
    pidfd_open(pid, PidfdFlags::empty())
}

/// Has the process ended? Also true for a zombie that nobody has waited for.
///
/// # Errors
///
/// Those of poll(2).
pub fn has_ended(process: impl AsFd) -> Result<bool> {
    let mut fds = [PollFd::new(&process, PollFlags::IN)];
    loop {
        match poll(&mut fds, Some(&Timespec::default())) {
            Err(Errno::INTR) => {}
            ready => return Ok(ready? == 1),
        }
    }
}

/// `/proc/PID/stat` — when the process began, in clock ticks since boot: with it, a process is
/// told from a later one of the same number.
///
/// # Errors
///
/// ESRCH if there is none, or no /proc.
pub fn began(pid: u32) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).map_err(|_| Errno::SRCH)?;
    // The name is in parentheses and may contain anything.
    let fields = stat.rsplit(')').next().unwrap_or_default();
    fields.split_whitespace().nth(19).and_then(|ticks| ticks.parse().ok()).ok_or(Errno::SRCH)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn sees_a_zombie() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let process = open(child.id()).unwrap();
        assert_eq!(has_ended(&process), Ok(false));
        drop(child.stdin.take());
        // Blocks until the end without reaping it.
        let mut fds = [PollFd::new(&process, PollFlags::IN)];
        poll(&mut fds, None).unwrap();
        assert_eq!(has_ended(&process), Ok(true));
        child.wait().unwrap();
        assert_eq!(open(child.id()).err(), Some(Errno::SRCH));
    }

    #[test]
    fn when_it_began() {
        assert!(began(std::process::id()).unwrap() > 0);
        assert_eq!(began(u32::MAX), Err(Errno::SRCH));
    }

    #[test]
    fn no_such_pid() {
        assert_eq!(open(0).err(), Some(Errno::INVAL));
        assert_eq!(open(u32::MAX).err(), Some(Errno::INVAL));
    }
}
