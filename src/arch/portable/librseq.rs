//! librseq's menu without asm: one thread at a time runs it on its words, as one thread at a time
//! runs on a CPU.

use crate::arch::portable::{FromWord, cpu_id};
use crate::arch::{Answer, Id};
use crate::sync::{AtomicU64, Ordering};

/// Whether the thread is on the CPU that `id` names.
fn is_here(id: Id) -> bool {
    // SAFETY: nothing is asked of the caller.
    unsafe { cpu_id(id.area) == id.cpu }
}

/// The word at an address that was found in a word.
///
/// # Safety
///
/// As for [`FromWord::from_word`].
unsafe fn at<'a>(address: u64, offset: isize) -> &'a AtomicU64 {
    // SAFETY: forwarded.
    unsafe { AtomicU64::from_word((address as usize).wrapping_add_signed(offset)) }
}

/// The word behind a pointer.
///
/// # Safety
///
/// As for [`FromWord::from_word`].
unsafe fn word<'a>(word: *const u64) -> &'a AtomicU64 {
    // SAFETY: forwarded.
    unsafe { AtomicU64::from_word(word.expose_provenance()) }
}

/// Runs `before`, the lines in front of the commit, if `*to` is `expected`, and commits `v`.
///
/// # Safety
///
/// `to` must be a word of the caller's CPU.
unsafe fn exchange(
    id: Id,
    to: *mut u64,
    expected: u64,
    v: u64,
    before: impl FnOnce() -> bool,
) -> Answer<(), ()> {
    if !is_here(id) {
        return Answer::Aborted;
    }
    // SAFETY: the caller vouches for the word.
    let to = unsafe { word(to) };
    if to.load(Ordering::Acquire) != expected || !before() {
        return Answer::Refused(());
    }
    to.store(v, Ordering::Release);
    Answer::Done(())
}

/// `load_cbne_store` of librseq's menu; see [`crate::arch`].
///
/// # Safety
///
/// As for its [native twin](crate::arch::load_cbne_store).
pub unsafe fn load_cbne_store(id: Id, word: *mut u64, expected: u64, v: u64) -> Answer<(), ()> {
    // SAFETY: forwarded.
    unsafe { exchange(id, word, expected, v, || true) }
}

/// `load_cbeq_store_add_load_store`; see [`crate::arch`].
///
/// # Safety
///
/// As for its [native twin](crate::arch::load_cbeq_store_add_load_store).
pub unsafe fn load_cbeq_store_add_load_store(
    id: Id,
    head: *mut u64,
    not: u64,
    offset: isize,
    load: *mut u64,
) -> Answer<(), ()> {
    if !is_here(id) {
        return Answer::Aborted;
    }
    // SAFETY: the caller vouches for the word.
    let head = unsafe { word(head) };
    let t = head.load(Ordering::Acquire);
    if t == not {
        return Answer::Refused(());
    }
    // SAFETY: the caller's own word.
    unsafe { word(load) }.store(t, Ordering::Relaxed);
    // SAFETY: what is not `not` leads to a word.
    let next = unsafe { at(t, offset) }.load(Ordering::Relaxed);
    head.store(next, Ordering::Release);
    Answer::Done(())
}

/// `load_add_load_load_add_store`; see [`crate::arch`].
///
/// # Safety
///
/// As for its [native twin](crate::arch::load_add_load_load_add_store).
pub unsafe fn load_add_load_load_add_store(
    id: Id,
    first: *mut u64,
    offset: isize,
    v: u64,
) -> Answer<(), ()> {
    if !is_here(id) {
        return Answer::Aborted;
    }
    // SAFETY: the caller vouches for the word.
    let t = unsafe { word(first) }.load(Ordering::Acquire);
    // SAFETY: it leads to a word.
    let t = unsafe { at(t, offset) }.load(Ordering::Acquire);
    // SAFETY: which is the address of one.
    unsafe { at(t, 0) }.fetch_add(v, Ordering::AcqRel);
    Answer::Done(())
}

/// `load_cbne_store_store`; see [`crate::arch`].
///
/// # Safety
///
/// As for its [native twin](crate::arch::load_cbne_store_store).
pub unsafe fn load_cbne_store_store(
    id: Id,
    to: *mut u64,
    expected: u64,
    (first, early): (*mut u64, u64),
    v: u64,
) -> Answer<(), ()> {
    let before = || {
        // SAFETY: the caller vouches for the word.
        unsafe { word(first) }.store(early, Ordering::Relaxed);
        true
    };
    // SAFETY: forwarded.
    unsafe { exchange(id, to, expected, v, before) }
}

/// `load_cbne_load_cbne_store`; see [`crate::arch`].
///
/// # Safety
///
/// As for its [native twin](crate::arch::load_cbne_load_cbne_store).
pub unsafe fn load_cbne_load_cbne_store(
    id: Id,
    to: *mut u64,
    expected: u64,
    (other, also): (*const u64, u64),
    v: u64,
) -> Answer<(), ()> {
    // SAFETY: the caller vouches for the word.
    let before = || unsafe { word(other) }.load(Ordering::Acquire) == also;
    // SAFETY: forwarded.
    unsafe { exchange(id, to, expected, v, before) }
}

/// `load_cbne_memcpy_store`; see [`crate::arch`].
///
/// # Safety
///
/// As for its [native twin](crate::arch::load_cbne_memcpy_store).
pub unsafe fn load_cbne_memcpy_store(
    id: Id,
    word: *mut u64,
    expected: u64,
    (to, from, len): (*mut u8, *const u8, usize),
    v: u64,
) -> Answer<(), ()> {
    let before = || {
        // SAFETY: so many bytes each, which do not overlap and which nobody looks at yet.
        unsafe { to.copy_from_nonoverlapping(from, len) };
        true
    };
    // SAFETY: forwarded.
    unsafe { exchange(id, word, expected, v, before) }
}
