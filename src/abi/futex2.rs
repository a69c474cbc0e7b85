//! futex(2) as far as we use it, futex_waitv(2) and the futex2 calls
//! (`uapi/linux/futex.h`).

use core::mem::{align_of, offset_of, size_of};

/// Number of futex(2) on x86-64.
pub const SYS_FUTEX: i64 = 202;
/// Number of futex_waitv(2) (since Linux 5.16).
pub const SYS_FUTEX_WAITV: i64 = 449;
/// Number of futex_wake(2) (since Linux 6.7).
pub const SYS_FUTEX_WAKE: i64 = 454;
/// Number of futex_wait(2) (since Linux 6.7).
pub const SYS_FUTEX_WAIT: i64 = 455;
/// Number of futex_requeue(2) (since Linux 6.7).
pub const SYS_FUTEX_REQUEUE: i64 = 456;

/// `FUTEX_REQUEUE`: without a comparison.
pub const OP_REQUEUE: i32 = 3;
/// `FUTEX_CMP_REQUEUE`.
pub const OP_CMP_REQUEUE: i32 = 4;
/// `FUTEX_WAIT_BITSET`: absolute deadline, wake mask.
pub const OP_WAIT_BITSET: i32 = 9;
/// `FUTEX_WAKE_BITSET`.
pub const OP_WAKE_BITSET: i32 = 10;
/// `FUTEX_PRIVATE_FLAG` of futex(2).
pub const OP_PRIVATE: i32 = 128;
/// `FUTEX_CLOCK_REALTIME` of futex(2).
pub const OP_CLOCK_REALTIME: i32 = 256;
/// `FUTEX_BITSET_MATCH_ANY`.
pub const MATCH_ANY: u32 = u32::MAX;

/// `FUTEX2_SIZE_U8`: accepted by no kernel so far.
pub const SIZE_U8: u32 = 0;
/// `FUTEX2_SIZE_U16`: accepted by no kernel so far.
pub const SIZE_U16: u32 = 1;
/// `FUTEX2_SIZE_U32`: the one size that kernels accept.
pub const SIZE_U32: u32 = 2;
/// `FUTEX2_SIZE_U64`: accepted by no kernel so far.
pub const SIZE_U64: u32 = 3;
/// `FUTEX2_NUMA`: the word is followed by a node word (since Linux 6.16).
pub const NUMA: u32 = 4;
/// `FUTEX2_MPOL`: the node follows the memory policy (since Linux 6.16).
pub const MPOL: u32 = 8;
/// `FUTEX2_PRIVATE`.
pub const PRIVATE: u32 = 128;

/// `FUTEX_WAITV_MAX`: entries of one vector.
pub const WAITV_MAX: usize = 128;

/// `struct futex_waitv`: one entry of a vector.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct FutexWaitv {
    /// Expected value.
    pub val: u64,
    /// Address of the word.
    pub uaddr: u64,
    /// Size and scope flags.
    pub flags: u32,
    /// Must be 0.
    pub reserved: u32,
}

const _: () = {
    assert!(size_of::<FutexWaitv>() == 24 && align_of::<FutexWaitv>() == 8);
    assert!(offset_of!(FutexWaitv, val) == 0);
    assert!(offset_of!(FutexWaitv, uaddr) == 8);
    assert!(offset_of!(FutexWaitv, flags) == 16);
    assert!(offset_of!(FutexWaitv, reserved) == 20);
};
