//! Copies out of memory that may not be there.

use super::errno;
use rustix::io::{Errno, Result};

/// `process_vm_readv(self)` — copies `n` values, or answers that they cannot be read.
///
/// # Errors
///
/// EFAULT if a part of them is not mapped or not readable; EPERM or ENOSYS under a filter.
///
/// # Safety
///
/// `to` has room for `n` values, and any bits are one.
pub unsafe fn copy<T: Copy>(from: *const T, to: *mut T, n: usize) -> Result<()> {
    let len = n * size_of::<T>();
    let local = libc::iovec { iov_base: to.cast(), iov_len: len };
    let remote = libc::iovec { iov_base: from.cast_mut().cast(), iov_len: len };
    let own = std::process::id().cast_signed();
    // SAFETY: the kernel checks what it reads; the caller vouches for the room.
    let copied =
        unsafe { libc::process_vm_readv(own, &raw const local, 1, &raw const remote, 1, 0) };
    let copied = errno::count(copied as _)?;
    if copied == len { Ok(()) } else { Err(Errno::FAULT) }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn there_or_not() {
        let (from, mut to) = ([1_u32, 2], [0; 2]);
        // SAFETY: room for two numbers.
        let mut copy = |from| unsafe { copy(from, to.as_mut_ptr(), 2) };
        assert_eq!(copy(core::ptr::without_provenance(4)), Err(Errno::FAULT));
        assert_eq!(copy(from.as_ptr()), Ok(()));
        assert_eq!(to, from);
    }
}
