//! close_range(2): a table of descriptors of the calling thread's own.

use super::errno;
use rustix::io::Result;

/// Of `uapi/linux/close_range.h`.
const CLOSE_RANGE_UNSHARE: u32 = 2;

/// `close_range(first, ~0, CLOSE_RANGE_UNSHARE)` (since Linux 5.9) — from here on the calling
/// thread has a table of descriptors of its own, with a copy of those below `first`. The
/// table that it shared until now is as it was.
///
/// # Errors
///
/// ENOSYS before Linux 5.9, EPERM under a filter, ENOMEM.
pub fn unshare_from(first: u32) -> Result<()> {
    // SAFETY: closes copies that nobody knows; the table of the other threads is not touched.
    let done =
        unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOSE_RANGE_UNSHARE) };
    errno::zero(done)
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
        let is_open = move || {
            // SAFETY: asks about a number, and changes nothing.
            unsafe { libc::fcntl(number, libc::F_GETFD) >= 0 }
        };
        let other = std::thread::spawn(move || {
            let done = unshare_from(3);
            (done, is_open())
        });
        let (done, open_there) = other.join().unwrap();
        match done {
            Ok(()) => assert!(!open_there),
            Err(errno) => assert!(errno == Errno::NOSYS && open_there, "{errno}"),
        }
        assert!(is_open());
    }
}
