//! The contract of `arch/mod.rs` without asm.
//!
//! [`add_u64`] is what threads that cannot run a window do, on stripes of their own, never
//! on those that windows write. The rest is the other half of the conformance tests. Thread
//! words are thread-locals, a "window" runs to its end, and its commit is an atomic
//! addition, because nothing interrupts and retries it: so counts stay exact even where two
//! threads claim the same CPU.

mod librseq;
pub mod ring;

pub use librseq::{
    load_add_load_load_add_store, load_cbeq_store_add_load_store, load_cbne_load_cbne_store,
    load_cbne_memcpy_store, load_cbne_store, load_cbne_store_store,
};

use super::{Answer, At, NOT_STRIPED, Outcome, Structures, Words};
use crate::abi::rseq::CPU_ID_UNINITIALIZED;
use crate::sync::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
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

/// The sequences of [`Words`] and [`Structures`] on overflow stripes: without a check of the CPU,
/// which `at.cpu` only names, and without a stop word.
///
/// Those on one word, and [`list_push`](Structures::list_push), are atomic by themselves. The
/// others ask more: that no other thread takes from that list, or touches that array, meanwhile.
#[derive(Debug, Clone, Copy)]
pub enum Portable {}

macro_rules! words {
    ($int:ty, $word:ident) => {
        impl Words<$int> for Portable {
            unsafe fn load(at: At) -> Answer<(u32, $int)> {
                // SAFETY: the caller vouches for the word.
                let word = unsafe { <$word>::from_word(at.word) };
                Answer::Done((at.cpu, word.load(Ordering::Acquire)))
            }
            unsafe fn store(at: At, v: $int) -> Answer<(u32, $int)> {
                // SAFETY: as above.
                let word = unsafe { <$word>::from_word(at.word) };
                word.store(v, Ordering::Release);
                Answer::Done((at.cpu, v))
            }
            unsafe fn load_add_store(at: At, v: $int) -> Answer<(u32, $int)> {
                // SAFETY: as above.
                let word = unsafe { <$word>::from_word(at.word) };
                Answer::Done((at.cpu, word.fetch_add(v, Ordering::AcqRel)))
            }
            unsafe fn load_store(at: At, v: $int) -> Answer<(u32, $int)> {
                // SAFETY: as above.
                let word = unsafe { <$word>::from_word(at.word) };
                Answer::Done((at.cpu, word.swap(v, Ordering::AcqRel)))
            }
            unsafe fn load_cbne_store(at: At, expected: $int, v: $int) -> Answer<(u32, $int)> {
                // SAFETY: as above.
                let word = unsafe { <$word>::from_word(at.word) };
                match word.compare_exchange(expected, v, Ordering::AcqRel, Ordering::Acquire) {
                    Ok(old) => Answer::Done((at.cpu, old)),
                    Err(old) => Answer::Refused((at.cpu, old)),
                }
            }
            unsafe fn load_and_store(at: At, v: $int) -> Answer<(u32, $int)> {
                // SAFETY: as above.
                let word = unsafe { <$word>::from_word(at.word) };
                Answer::Done((at.cpu, word.fetch_and(v, Ordering::AcqRel)))
            }
            unsafe fn load_or_store(at: At, v: $int) -> Answer<(u32, $int)> {
                // SAFETY: as above.
                let word = unsafe { <$word>::from_word(at.word) };
                Answer::Done((at.cpu, word.fetch_or(v, Ordering::AcqRel)))
            }
        }
    };
}
words!(u8, AtomicU8);
words!(u16, AtomicU16);
words!(u32, AtomicU32);
words!(u64, AtomicU64);

/// An atomic at an address.
trait FromWord: Sized {
    /// # Safety
    ///
    /// The word must be valid and aligned for as long as the reference is used, and written by
    /// atomics only.
    unsafe fn from_word<'a>(word: usize) -> &'a Self {
        // SAFETY: the caller vouches for it.
        unsafe { &*core::ptr::with_exposed_provenance::<Self>(word) }
    }
}
impl FromWord for AtomicU8 {}
impl FromWord for AtomicU16 {}
impl FromWord for AtomicU32 {}
impl FromWord for AtomicU64 {}

/// Word `n` of an array, 0 being its count.
///
/// # Safety
///
/// The array must have it.
unsafe fn slot<'a>(at: At, n: usize) -> &'a AtomicU64 {
    // SAFETY: the caller vouches for it.
    unsafe { AtomicU64::from_word(at.word + n * 8) }
}

impl Structures for Portable {
    unsafe fn list_push(at: At, node: usize) -> Answer<()> {
        // SAFETY: the caller vouches for the head.
        let head = unsafe { slot(at, 0) };
        // SAFETY: the caller's own node.
        let next = unsafe { AtomicU64::from_word(node) };
        let mut first = head.load(Ordering::Relaxed);
        loop {
            next.store(first, Ordering::Relaxed);
            let put = (node as u64, Ordering::Release, Ordering::Relaxed);
            match head.compare_exchange_weak(first, put.0, put.1, put.2) {
                Ok(_) => return Answer::Done(()),
                Err(now) => first = now,
            }
        }
    }

    unsafe fn list_pop(at: At) -> Answer<usize, ()> {
        // SAFETY: as above.
        let head = unsafe { slot(at, 0) };
        let mut first = head.load(Ordering::Acquire);
        while first != 0 {
            // SAFETY: a node of the list, which nobody else takes.
            let next = unsafe { AtomicU64::from_word(first as usize) }.load(Ordering::Relaxed);
            match head.compare_exchange(first, next, Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => return Answer::Done(first as usize),
                Err(now) => first = now,
            }
        }
        Answer::Refused(())
    }

    unsafe fn array_push(at: At, capacity: usize, v: usize) -> Answer<(), ()> {
        // SAFETY: one word, the caller's.
        unsafe { Self::array_push_batch(at, capacity, &raw const v, 1) }
    }

    unsafe fn array_pop(at: At) -> Answer<usize, ()> {
        let mut v = 0;
        // SAFETY: room for one word.
        match unsafe { Self::array_pop_batch(at, &raw mut v, 1) } {
            Answer::Done(_) => Answer::Done(v),
            _ => Answer::Refused(()),
        }
    }

    unsafe fn array_push_batch(
        at: At,
        capacity: usize,
        from: *const usize,
        n: usize,
    ) -> Answer<(), ()> {
        // SAFETY: the caller vouches for the array.
        let count = unsafe { slot(at, 0) };
        let t = count.load(Ordering::Acquire) as usize;
        if t.saturating_add(n) > capacity {
            return Answer::Refused(());
        }
        for i in 0..n {
            // SAFETY: `from` has n words.
            let from = unsafe { from.add(i) };
            // SAFETY: as above.
            let v = unsafe { *from };
            // SAFETY: below the capacity.
            unsafe { slot(at, 1 + t + i) }.store(v as u64, Ordering::Relaxed);
        }
        count.store((t + n) as u64, Ordering::Release);
        Answer::Done(())
    }

    unsafe fn array_pop_batch(at: At, to: *mut usize, n: usize) -> Answer<usize, ()> {
        // SAFETY: the caller vouches for the array.
        let count = unsafe { slot(at, 0) };
        let t = count.load(Ordering::Acquire) as usize;
        let n = n.min(t);
        if n == 0 {
            return Answer::Refused(());
        }
        for i in 0..n {
            // SAFETY: below the count.
            let v = unsafe { slot(at, 1 + t - n + i) }.load(Ordering::Relaxed);
            // SAFETY: `to` has room for n words.
            let to = unsafe { to.add(i) };
            // SAFETY: as above.
            unsafe { *to = v as usize };
        }
        count.store((t - n) as u64, Ordering::Release);
        Answer::Done(n)
    }
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

/// `*word += n`; the value before.
///
/// # Safety
///
/// `word` is readable, writable and aligned.
pub unsafe fn fetch_add_alone(word: *mut u32, n: u32) -> u32 {
    // SAFETY: the caller vouches for the word, which stays valid for this call.
    unsafe { &*word.cast::<AtomicU32>() }.fetch_add(n, Ordering::Relaxed)
}
