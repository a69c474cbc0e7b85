//! The windows of librseq's menu, on addresses of the caller's: cpu-indexed, 64 bits, without a
//! stop word. `load_add_store` is among the counters' (`rseq.rs`).

use crate::arch::{Answer, Id};
use crate::unmerged_window as window;

/// `load_cbne_store` (librseq: `rseq_load_cbne_store__ptr`); see [`crate::arch`].
///
/// # Safety
///
/// The thread is registered with the area of `id`; `word` is a readable, writable, aligned word
/// that only windows of this CPU write.
#[inline(always)]
pub unsafe fn load_cbne_store(id: Id, word: *mut u64, expected: u64, v: u64) -> Answer<(), ()> {
    // SAFETY: the caller vouches for area and word; the rest is the shape of `window!`.
    unsafe {
        window! {
            id,
            [
                "cmp qword ptr [{word}], {expected}", // *word == expected?
                "jne 5f",                             // no: refuse
                "mov qword ptr [{word}], {v}",        // *word = v
            ],
            word = in(reg) word,
            expected = in(reg) expected,
            v = in(reg) v,
        }
    }
}

/// `load_cbeq_store_add_load_store` (librseq: `rseq_load_cbeq_store_add_load_store__ptr`, the pop
/// of a list); see [`crate::arch`].
///
/// # Safety
///
/// As for [`load_cbne_store`]; what `*word` is, unless it is `not`, plus `offset` must be a
/// readable word; `load` is a word of the caller's own.
#[inline(always)]
pub unsafe fn load_cbeq_store_add_load_store(
    id: Id,
    word: *mut u64,
    not: u64,
    offset: isize,
    load: *mut u64,
) -> Answer<(), ()> {
    // SAFETY: as above.
    unsafe {
        window! {
            id,
            [
                "mov {t}, qword ptr [{word}]", // t = *word
                "cmp {t}, {not}",              // t == not?
                "je 5f",                       // yes: refuse
                "mov qword ptr [{load}], {t}", // *load = t
                "mov {t}, qword ptr [{t} + {offset}]", // t = *(t + offset)
                "mov qword ptr [{word}], {t}", // *word = t
            ],
            word = in(reg) word,
            not = in(reg) not,
            offset = in(reg) offset,
            load = in(reg) load,
            t = out(reg) _,
        }
    }
}

/// `load_add_load_load_add_store` (librseq: `rseq_load_add_load_load_add_store__ptr`); see
/// [`crate::arch`].
///
/// # Safety
///
/// As for [`load_cbne_store`]; `*word + offset` must be a readable word that holds the address of
/// a word, which only windows of this CPU write.
#[inline(always)]
pub unsafe fn load_add_load_load_add_store(
    id: Id,
    word: *mut u64,
    offset: isize,
    v: u64,
) -> Answer<(), ()> {
    // SAFETY: as above.
    unsafe {
        window! {
            id,
            [
                "mov {t}, qword ptr [{word}]", // t = *word
                "mov {t}, qword ptr [{t} + {offset}]", // t = *(t + offset)
                "mov {x}, qword ptr [{t}]",    // x = *t
                "lea {x}, [{x} + {v}]",        // x = x + v
                "mov qword ptr [{t}], {x}",    // *t = x
            ],
            word = in(reg) word,
            offset = in(reg) offset,
            v = in(reg) v,
            t = out(reg) _,
            x = out(reg) _,
        }
    }
}

/// `load_cbne_store_store` (librseq: `rseq_load_cbne_store_store__ptr`, with or without release: on
/// x86-64 the last store is a release store anyway); see [`crate::arch`].
///
/// # Safety
///
/// As for [`load_cbne_store`]; `first` is a word that nobody looks at before `*word` has changed.
#[inline(always)]
pub unsafe fn load_cbne_store_store(
    id: Id,
    word: *mut u64,
    expected: u64,
    (first, early): (*mut u64, u64),
    v: u64,
) -> Answer<(), ()> {
    // SAFETY: as above.
    unsafe {
        window! {
            id,
            [
                "cmp qword ptr [{word}], {expected}", // *word == expected?
                "jne 5f",                             // no: refuse
                "mov qword ptr [{first}], {early}",   // *first = early
                "mov qword ptr [{word}], {v}",        // *word = v
            ],
            word = in(reg) word,
            expected = in(reg) expected,
            first = in(reg) first,
            early = in(reg) early,
            v = in(reg) v,
        }
    }
}

/// `load_cbne_load_cbne_store` (librseq: `rseq_load_cbne_load_cbne_store__ptr`); see
/// [`crate::arch`].
///
/// # Safety
///
/// As for [`load_cbne_store`]; `other` is a readable word.
#[inline(always)]
pub unsafe fn load_cbne_load_cbne_store(
    id: Id,
    word: *mut u64,
    expected: u64,
    (other, also): (*const u64, u64),
    v: u64,
) -> Answer<(), ()> {
    // SAFETY: as above.
    unsafe {
        window! {
            id,
            [
                "cmp qword ptr [{word}], {expected}", // *word == expected?
                "jne 5f",                             // no: refuse
                "cmp qword ptr [{other}], {also}",    // *other == also?
                "jne 5f",                             // no: refuse
                "mov qword ptr [{word}], {v}",        // *word = v
            ],
            word = in(reg) word,
            expected = in(reg) expected,
            other = in(reg) other,
            also = in(reg) also,
            v = in(reg) v,
        }
    }
}

/// `load_cbne_memcpy_store` (librseq: `rseq_load_cbne_memcpy_store__ptr`); see [`crate::arch`]. The
/// copy is `rep movsb`, not a loop over bytes.
///
/// # Safety
///
/// As for [`load_cbne_store`]; `from` and `to` are `len` bytes that do not overlap, and nobody
/// looks at those of `to` before `*word` has changed.
#[inline(always)]
pub unsafe fn load_cbne_memcpy_store(
    id: Id,
    word: *mut u64,
    expected: u64,
    (to, from, len): (*mut u8, *const u8, usize),
    v: u64,
) -> Answer<(), ()> {
    // SAFETY: as above; the direction flag is clear, as the ABI has it.
    unsafe {
        window! {
            id,
            [
                "cmp qword ptr [{word}], {expected}", // *word == expected?
                "jne 5f",                             // no: refuse
                "rep movsb",                          // to[..len] = from[..len]
                "mov qword ptr [{word}], {v}",        // *word = v
            ],
            word = in(reg) word,
            expected = in(reg) expected,
            v = in(reg) v,
            inout("rdi") to => _,
            inout("rsi") from => _,
            inout("rcx") len => _,
        }
    }
}
