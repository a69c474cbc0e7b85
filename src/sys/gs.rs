//! Is `%gs` ours to use?

use crate::abi::auxv::{AT_HWCAP2, HWCAP2_FSGSBASE};
use crate::arch;
use crate::sync::{AtomicU64, Ordering};

/// What stands in the way of `%gs`, or nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// FSGSBASE works, and this thread's GS base was 0.
    Free,
    /// The kernel or the processor has no FSGSBASE (before Linux 5.9, `nofsgsbase`).
    NoFsgsbase,
    /// HWCAP2 promises FSGSBASE, but a base that was written did not take effect
    /// (some sandboxes).
    ReadBackFailed,
    /// Somebody else in this process uses it (Wine, Wasm engines, DynamoRIO): the base
    /// was not 0.
    Foreign {
        /// The base that was found.
        base: usize,
    },
}

/// What the read-back looks at through `%gs`.
static MARK: AtomicU64 = AtomicU64::new(0x756e_6d65_7267_6564);

/// Looks whether `%gs` is free in the calling thread: HWCAP2, then the base, then a
/// base of our own written, read, and read through.
///
/// The thread's GS base is 0 again afterwards where it was 0 before.
pub fn claim() -> Claim {
    // SAFETY: getauxval reads the auxiliary vector of this process.
    let hwcap2 = unsafe { libc::getauxval(AT_HWCAP2) };
    if hwcap2 & HWCAP2_FSGSBASE == 0 {
        return Claim::NoFsgsbase;
    }
    // SAFETY: HWCAP2 says that the instruction works.
    let base = unsafe { arch::gs_base() };
    if base != 0 {
        return Claim::Foreign { base };
    }
    let mark = core::ptr::from_ref(&MARK).expose_provenance();
    // SAFETY: as above; the base was 0, so nobody in this thread relies on it.
    unsafe { arch::set_gs_base(mark) };
    // SAFETY: as above.
    let written = unsafe { arch::gs_base() };
    let seen = if written == mark {
        // SAFETY: the base is the address of MARK, a readable word.
        unsafe { arch::gs_load_u64(0) }
    } else {
        0
    };
    // SAFETY: as above; this restores what was there.
    unsafe { arch::set_gs_base(0) };
    if seen == MARK.load(Ordering::Relaxed) { Claim::Free } else { Claim::ReadBackFailed }
}
