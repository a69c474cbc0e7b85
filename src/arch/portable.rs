//! The contract of `arch/mod.rs` without asm.
//!
//! [`add_u64`] is what threads that cannot run a window do, on stripes of their own, never
//! on those that windows write. The rest is the other half of the conformance tests. Thread
//! words are thread-locals, a "window" runs to its end, and its commit is an atomic
//! addition, because nothing interrupts and retries it: so counts stay exact even where two
//! threads claim the same CPU.

pub mod ring;

use super::{NOT_STRIPED, Outcome};
use crate::abi::rseq::CPU_ID_UNINITIALIZED;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use core::cell::Cell;

thread_local! {
    static GS_BASE: Cell<usize> = const { Cell::new(0) };
    static STRIPED_CPU: Cell<u32> = const { Cell::new(NOT_STRIPED) };
    static CPU_ID: Cell<u32> = const { Cell::new(CPU_ID_UNINITIALIZED) };
}

/// Says on which CPU this thread claims to run; a test moves itself with it.
pub fn set_cpu_id(cpu: u32) {
    CPU_ID.set(cpu);
}

/// The pretended GS base.
///
/// # Safety
///
/// None here; the signature is the contract's.
pub unsafe fn gs_base() -> usize {
    GS_BASE.get()
}

/// Sets the pretended GS base.
///
/// # Safety
///
/// `base` must be such that the offsets used with it name valid words.
pub unsafe fn set_gs_base(base: usize) {
    GS_BASE.set(base);
}

/// `%gs:offset`, in one load.
///
/// # Safety
///
/// The pretended GS base plus `offset` must be a readable, aligned word.
pub unsafe fn gs_load_u64(offset: usize) -> u64 {
    let word = core::ptr::with_exposed_provenance_mut::<AtomicU64>(GS_BASE.get() + offset);
    // SAFETY: the caller vouches for the word, which stays valid for this call.
    unsafe { &*word }.load(Ordering::Relaxed)
}

/// An address that differs between threads, as a thread pointer does.
pub fn thread_pointer() -> usize {
    CPU_ID.with(|word| core::ptr::from_ref(word).addr())
}

/// There is no area; offset 0.
pub fn own_area_offset() -> isize {
    0
}

/// The CPU that the pretended GS base points at, or [`NOT_STRIPED`].
pub fn striped_cpu() -> u32 {
    STRIPED_CPU.get()
}

/// Writes `striped_cpu`.
///
/// # Safety
///
/// `cpu` must be [`NOT_STRIPED`], or the GS base must point at the stripe of `cpu`.
pub unsafe fn set_striped_cpu(cpu: u32) {
    STRIPED_CPU.set(cpu);
}

/// The pretended CPU.
///
/// # Safety
///
/// None here; the signature is the contract's.
pub unsafe fn cpu_id(_area: isize) -> u32 {
    CPU_ID.get()
}

/// `*word += v`, atomically: the commit of both adding sequences.
///
/// # Safety
///
/// `word` must be valid and aligned, and written by atomics only.
#[inline]
pub unsafe fn add_u64(word: *mut u64, v: u64) {
    // SAFETY: the caller vouches for the word, which stays valid for this call.
    let word = unsafe { &*word.cast::<AtomicU64>() };
    word.fetch_add(v, Ordering::Relaxed);
}

/// `load_add_store` on 64 bits; see [`crate::arch`].
///
/// # Safety
///
/// `word` must be valid and aligned, and written by this implementation only.
pub unsafe fn load_add_store_u64(area: isize, cpu: u32, word: *mut u64, v: u64) -> Outcome {
    // SAFETY: nothing is asked of the caller.
    if unsafe { cpu_id(area) } != cpu {
        return Outcome::Aborted;
    }
    // SAFETY: the caller vouches for the word.
    unsafe { add_u64(word, v) };
    Outcome::Done
}

/// `gs_load_add_store` on 64 bits; see [`crate::arch`].
///
/// # Safety
///
/// `offset` from the GS base of a striped thread must be a valid, aligned word that is
/// written by this implementation only.
pub unsafe fn gs_load_add_store_u64(area: isize, offset: usize, v: u64) -> Outcome {
    // SAFETY: nothing is asked of the caller.
    if unsafe { cpu_id(area) } != STRIPED_CPU.get() {
        return Outcome::Aborted;
    }
    let word = GS_BASE.get().wrapping_add(offset);
    // SAFETY: the caller vouches for base plus offset.
    unsafe { add_u64(core::ptr::with_exposed_provenance_mut(word), v) };
    Outcome::Done
}

/// `gs_restripe`; see [`crate::arch`].
///
/// # Safety
///
/// `base + c * stride` must be the stripe of CPU `c` for each `c < cpus`.
pub unsafe fn gs_restripe(_area: isize, base: usize, stride: usize, cpus: u32) -> Outcome {
    STRIPED_CPU.set(NOT_STRIPED);
    let cpu = CPU_ID.get();
    if cpu >= cpus {
        return Outcome::Aborted;
    }
    GS_BASE.set(base.wrapping_add(cpu as usize * stride));
    STRIPED_CPU.set(cpu);
    Outcome::Done
}

/// The aligned 32-bit word around `byte`, in one load.
///
/// # Safety
///
/// `byte` must be readable; its neighbours in the word are then readable too.
pub unsafe fn containing_u32(byte: *const u8) -> u32 {
    let word = byte.wrapping_sub(byte.addr() & 3).cast::<AtomicU32>();
    // SAFETY: the caller vouches for the byte; the aligned word lies in the same page.
    unsafe { &*word }.load(Ordering::Relaxed)
}
