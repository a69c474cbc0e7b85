//! close_range(2): a table of descriptors of the calling thread's own.

use super::errno;
use rustix::io::Result;

/// Of `uapi/linux/close_range.h`.
const CLOSE_RANGE_UNSHARE: u32 = 2;

fn close_range(first: u32, last: u32, flags: u32) -> Result<()> {
    // SAFETY: the one caller closes copies that nobody else knows.
    errno::zero(unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) })
}

/// `close_range(kept + 1, ~0, CLOSE_RANGE_UNSHARE)`, `close_range(0, kept - 1, 0)` (since Linux
/// 5.9) — from here on the calling thread has a table of descriptors of its own, with nothing in
/// it but `kept`, under the same number; with nothing at all if that is no descriptor. The
/// table that it shared until now is as it was.
///
/// # Errors
///
/// ENOSYS before Linux 5.9, EPERM under a filter, ENOMEM; nothing has changed then.
pub fn unshare_all_but(kept: u32) -> Result<()> {
    // The range must not be empty, and no descriptor has such a number.
    close_range(kept.saturating_add(1), u32::MAX, CLOSE_RANGE_UNSHARE)?;
    // The copies below, which were only made because a range has one end open.
    kept.checked_sub(1).map_or(Ok(()), |last| close_range(0, last, 0))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use rustix::fd::AsRawFd;
    use rustix::io::Errno;
    use std::fs::File;

    #[test]
    fn the_table_of_the_others_is_as_it_was() {
        let file = File::open("/proc/self/stat").unwrap();
        let number = file.as_raw_fd();
        let other = File::open("/proc/self/stat").unwrap();
        let kept = other.as_raw_fd();
        let are_open = move || {
            // SAFETY: asks about a number, and changes nothing.
            [number, kept, 2].map(|number| unsafe { libc::fcntl(number, libc::F_GETFD) >= 0 })
        };
        let before = are_open();
        let apart = std::thread::spawn(move || {
            let done = unshare_all_but(kept.cast_unsigned());
            (done, are_open(), unshare_all_but(u32::MAX), are_open())
        });
        let (done, open_there, _, at_last) = apart.join().unwrap();
        match done {
            Ok(()) => assert_eq!((open_there, at_last), ([false, true, false], [false; 3])),
            Err(errno) => assert!(errno == Errno::NOSYS && open_there == before, "{errno}"),
        }
        assert_eq!(are_open(), before);
    }
}
