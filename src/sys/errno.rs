//! The errno of a call that libc made for us.

use core::ffi::c_long;
use rustix::io::{Errno, Result};

/// `errno` of this thread's last call that failed.
pub(super) fn last() -> Errno {
    let errno = std::io::Error::last_os_error().raw_os_error();
    errno.map_or(Errno::INVAL, Errno::from_raw_os_error)
}

/// `Ok(n)` of a call that answers with a count or an index, and with -1 for an error.
pub(super) fn count(returned: c_long) -> Result<usize> {
    usize::try_from(returned).map_err(|_| last())
}

/// `Ok` of a call that answers with 0.
pub(super) fn zero(returned: c_long) -> Result<()> {
    if returned == 0 { Ok(()) } else { Err(last()) }
}
