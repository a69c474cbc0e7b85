//! The GS base of the thread, by the FSGSBASE instructions.

use core::arch::asm;

/// `rdgsbase` — the GS base of this thread.
///
/// # Safety
///
/// The kernel must have switched FSGSBASE on (HWCAP2 bit 1); otherwise SIGILL.
#[inline]
pub unsafe fn gs_base() -> usize {
    let base: usize;
    // SAFETY: the caller vouches for FSGSBASE; the instruction touches no memory.
    unsafe {
        asm!(
            "rdgsbase {base}", // base = gsbase
            base = out(reg) base,
            options(nostack, preserves_flags)
        );
    }
    base
}

/// `wrgsbase` — sets the GS base of this thread.
///
/// # Safety
///
/// - The kernel must have switched FSGSBASE on (HWCAP2 bit 1); otherwise SIGILL.
/// - `base` must be canonical; otherwise #GP.
/// - Nobody else in this thread may rely on its GS base.
#[inline]
pub unsafe fn set_gs_base(base: usize) {
    // SAFETY: the caller vouches for FSGSBASE, for the address, and for the owner of %gs.
    unsafe {
        asm!(
            "wrgsbase {base}", // gsbase = base
            base = in(reg) base,
            options(nostack, preserves_flags)
        );
    }
}

/// `%gs:offset`, in one load.
///
/// # Safety
///
/// GS base plus `offset` must be a readable, aligned word.
#[inline]
pub unsafe fn gs_load_u64(offset: usize) -> u64 {
    let value: u64;
    // SAFETY: the caller vouches for the word.
    unsafe {
        asm!(
            "mov {value}, qword ptr gs:[{offset}]", // value = %gs:offset
            value = out(reg) value,
            offset = in(reg) offset,
            options(nostack, preserves_flags)
        );
    }
    value
}
