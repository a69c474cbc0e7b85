//! The robust list: words that the kernel marks when their owner dies
//! (`uapi/linux/futex.h`, `Documentation/locking/robust-futex-ABI.rst`).

use core::mem::{offset_of, size_of};

/// `FUTEX_OWNER_DIED`: set by the kernel in a word whose owner is gone.
pub const OWNER_DIED: u32 = 0x4000_0000;
/// `FUTEX_TID_MASK`: the owner's thread id, 0 for a free word.
pub const TID_MASK: u32 = 0x3fff_ffff;

/// `struct robust_list_head`: one per thread, owned by libc, walked by the kernel at the
/// thread's end.
#[derive(Debug)]
#[repr(C)]
pub struct RobustListHead {
    /// Address of the first entry, or of this head. Bit 0 marks priority inheritance.
    pub list: usize,
    /// From an entry to its word.
    pub futex_offset: isize,
    /// Address of an entry that is being added or taken out.
    pub pending: usize,
}

const _: () = assert!(size_of::<RobustListHead>() == 24);
const _: () = assert!(offset_of!(RobustListHead, futex_offset) == 8);
