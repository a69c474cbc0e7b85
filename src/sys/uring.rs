//! io_uring: whether there is one, and what it waits on.

use super::errno;
use crate::abi::uring::{
    OP_FUTEX_WAIT, OP_FUTEX_WAITV, OP_SUPPORTED, PARAMS_BYTES, PROBE_OPS, Probe, ProbeOp,
    REGISTER_PROBE, SYS_IO_URING_REGISTER, SYS_IO_URING_SETUP,
};
use core::ffi::c_long;
use rustix::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use rustix::io::{Errno, Result};

/// A ring with room for one entry, which nobody maps.
fn smallest() -> Result<OwnedFd> {
    let mut params = [0_u64; PARAMS_BYTES / 8];
    // SAFETY: the kernel fills the parameters, which are as long as it expects.
    let ring = unsafe { libc::syscall(SYS_IO_URING_SETUP, 1_u32, params.as_mut_ptr()) };
    let ring = errno::count(ring)?;
    let ring = RawFd::try_from(ring).map_err(|_| Errno::BADF)?;
    // SAFETY: a descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(ring) })
}

/// Do rings wait for futexes here (since Linux 6.7)? Asks a ring that is opened for this.
///
/// # Errors
///
/// EPERM or EACCES where rings are switched off (`kernel.io_uring_disabled`) or a policy refuses
/// them, ENOSYS where a filter does, or without them in the kernel; ENOMEM, EMFILE.
pub fn has_futex_wait() -> Result<bool> {
    let ring = smallest()?;
    let mut probe = Probe {
        last_op: 0,
        ops_len: 0,
        reserved: 0,
        reserved2: [0; 3],
        ops: [ProbeOp::default(); PROBE_OPS],
    };
    let (ring, room) = (ring.as_raw_fd(), PROBE_OPS as c_long);
    // SAFETY: the kernel fills the probe, at most as many operations as it has room for.
    errno::zero(unsafe {
        libc::syscall(SYS_IO_URING_REGISTER, ring, REGISTER_PROBE, &raw mut probe, room)
    })?;
    let has = |op: u8| probe.ops[usize::from(op)].flags & OP_SUPPORTED != 0;
    Ok(has(OP_FUTEX_WAIT) && has(OP_FUTEX_WAITV))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_answer_or_a_reason() {
        match has_futex_wait() {
            // They came with the futex2 calls, and may be refused beside them.
            Ok(has) => assert!(!has || super::super::futex::has_waitv()),
            Err(errno) => assert!(errno.raw_os_error() > 0),
        }
    }
}
