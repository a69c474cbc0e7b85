//! A descriptor that is kept by number, and looked at before it is relied on.
//!
//! A process may close descriptors that it did not open (`close_range` in a daemon, or in
//! a fork child), and the number then names another file. So before a file is changed or a
//! number is closed, its device and inode are compared with those that were kept.

use rustix::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use rustix::fs::fstat;
use rustix::io::Result;

/// A descriptor number, and what it named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kept {
    fd: i32,
    /// Linux numbers devices in 32 bits.
    device: u32,
    inode: u64,
}

impl Kept {
    /// Keeps an open file by number.
    ///
    /// # Errors
    ///
    /// As fstat(2); the file is closed then.
    pub(super) fn keep(file: OwnedFd) -> Result<Self> {
        let stat = fstat(&file)?;
        let fd = file.as_raw_fd();
        let _ = file.into_raw_fd();
        Ok(Self { fd, device: stat.st_dev as u32, inode: stat.st_ino })
    }

    /// The number, and the inode that it names.
    pub(super) fn number_and_inode(&self) -> (u32, u64) {
        (self.fd.cast_unsigned(), self.inode)
    }

    /// The same as two words, of which the first is never 0.
    pub(super) fn to_words(self) -> [u64; 2] {
        [u64::from(self.device) << 32 | u64::from(self.fd.cast_unsigned() + 1), self.inode]
    }

    /// From such words; `None` if the first is 0.
    pub(super) fn from_words([first, inode]: [u64; 2]) -> Option<Self> {
        let fd = (first as u32).checked_sub(1)?.cast_signed();
        Some(Self { fd, device: (first >> 32) as u32, inode })
    }

    /// The file, without a look.
    ///
    /// # Safety
    ///
    /// Nobody may close the number while this is used, and it does no harm if it names
    /// another file already.
    pub(super) unsafe fn file(&self) -> BorrowedFd<'_> {
        // SAFETY: the caller vouches for it.
        unsafe { BorrowedFd::borrow_raw(self.fd) }
    }

    /// Does the number still name what was kept?
    pub(super) fn is_same(&self) -> bool {
        // SAFETY: fstat of any number does no harm.
        let file = unsafe { self.file() };
        fstat(file).is_ok_and(|stat| (stat.st_dev as u32, stat.st_ino) == (self.device, self.inode))
    }

    /// Closes it, if it is still what was kept; was it?
    pub(super) fn close(self) -> bool {
        let is_same = self.is_same();
        if is_same {
            // SAFETY: it was given to us to keep, and nobody uses it any more.
            unsafe { rustix::io::close(self.fd) };
        }
        is_same
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sys::memfd;
    use std::fs::File;

    #[test]
    fn kept_as_words() {
        let kept = Kept::keep(memfd::create("unmerged.test", 0).unwrap()).unwrap();
        assert_eq!(Kept::from_words(kept.to_words()), Some(kept));
        assert_eq!(Kept::from_words([0, 7]), None);
        kept.close();
        assert!(!kept.is_same());
    }

    #[test]
    fn a_number_that_names_another_file_is_left_alone() {
        let file = File::open("/proc/self/stat").unwrap();
        let [first, inode] = Kept::keep(file.try_clone().unwrap().into()).unwrap().to_words();
        let stale = Kept::from_words([first, inode + 1]).unwrap();
        stale.close();
        let kept = Kept::from_words([first, inode]).unwrap();
        assert!(!stale.is_same() && kept.is_same());
        kept.close();
    }
}
