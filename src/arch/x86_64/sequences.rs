//! The windows that bring values out, each written once and built in three shapes.

use super::thread::{CALLERS_CPU, STRIPED_CPU, load_block};
use super::window::answer;
use crate::abi::rseq::{CPU_ID, RSEQ_CS, SIGNATURE};
use crate::arch::{Answer, At, Structures, Words};
use core::arch::asm;

/// Windows on an address that was made for one CPU.
#[derive(Debug, Clone, Copy)]
pub enum Indexed {}
/// Windows on `%gs:offset`, in the stripes of this crate.
#[derive(Debug, Clone, Copy)]
pub enum Striped {}
/// Windows on `%gs:offset`, in the stripes of the caller.
#[derive(Debug, Clone, Copy)]
pub enum ByCaller {}

/// What the status register of `answer!` says.
#[inline(always)]
fn settle<D, R>(status: usize, done: D, refused: R) -> Answer<D, R> {
    match status {
        0 => Answer::Done(done),
        1 => Answer::Refused(refused),
        2 => Answer::Stopped,
        _ => Answer::Aborted,
    }
}

/// The segment that a shape's addresses are relative to.
macro_rules! segment {
    (indexed) => {
        ""
    };
    ($gs:ident) => {
        "gs:"
    };
}

/// Implements [`Words`] of one width. `$load` loads `{old}`, zero-extended; `$ptr` is the size
/// of the operand; `$part` names the part of a register that has it.
macro_rules! words {
    ($imp:ident, $shape:ident, $int:ty, $load:literal, $ptr:literal, $part:literal) => {
        impl Words<$int> for $imp {
            #[inline(always)]
            unsafe fn load(at: At) -> Answer<(u32, $int)> {
                let old: u64;
                // SAFETY: the caller vouches for `at`; the rest is the shape of `answer!`.
                let (status, cpu) = unsafe {
                    answer! {
                        $shape, at,
                        [
                            concat!($load, segment!($shape), "[{word}]"), // old = *word
                        ],
                        old = out(reg) old,
                    }
                };
                settle(status, (cpu, old as $int), (cpu, old as $int))
            }

            #[inline(always)]
            unsafe fn store(at: At, v: $int) -> Answer<(u32, $int)> {
                // SAFETY: as above.
                let (status, cpu) = unsafe {
                    answer! {
                        $shape, at,
                        [
                            // *word = v
                            concat!("mov ", $ptr, segment!($shape), "[{word}], {v:", $part, "}"),
                        ],
                        v = in(reg) u64::from(v),
                    }
                };
                settle(status, (cpu, v), (cpu, v))
            }

            #[inline(always)]
            unsafe fn load_add_store(at: At, v: $int) -> Answer<(u32, $int)> {
                let old: u64;
                // SAFETY: as above.
                let (status, cpu) = unsafe {
                    answer! {
                        $shape, at,
                        [
                            concat!($load, segment!($shape), "[{word}]"), // old = *word
                            "lea {t}, [{old} + {v}]",                      // t = old + v
                            // *word = t
                            concat!("mov ", $ptr, segment!($shape), "[{word}], {t:", $part, "}"),
                        ],
                        old = out(reg) old,
                        t = out(reg) _,
                        v = in(reg) u64::from(v),
                    }
                };
                settle(status, (cpu, old as $int), (cpu, old as $int))
            }

            #[inline(always)]
            unsafe fn load_store(at: At, v: $int) -> Answer<(u32, $int)> {
                let old: u64;
                // SAFETY: as above.
                let (status, cpu) = unsafe {
                    answer! {
                        $shape, at,
                        [
                            concat!($load, segment!($shape), "[{word}]"), // old = *word
                            // *word = v
                            concat!("mov ", $ptr, segment!($shape), "[{word}], {v:", $part, "}"),
                        ],
                        old = out(reg) old,
                        v = in(reg) u64::from(v),
                    }
                };
                settle(status, (cpu, old as $int), (cpu, old as $int))
            }

            #[inline(always)]
            unsafe fn load_cbne_store(at: At, expected: $int, v: $int) -> Answer<(u32, $int)> {
                let old: u64;
                // SAFETY: as above.
                let (status, cpu) = unsafe {
                    answer! {
                        $shape, at,
                        [
                            concat!($load, segment!($shape), "[{word}]"), // old = *word
                            "cmp {old}, {expected}",                       // old == expected?
                            "jne 5f",                                      // no: refuse
                            // *word = v
                            concat!("mov ", $ptr, segment!($shape), "[{word}], {v:", $part, "}"),
                        ],
                        old = out(reg) old,
                        expected = in(reg) u64::from(expected),
                        v = in(reg) u64::from(v),
                    }
                };
                settle(status, (cpu, old as $int), (cpu, old as $int))
            }

            #[inline(always)]
            unsafe fn load_and_store(at: At, v: $int) -> Answer<(u32, $int)> {
                let old: u64;
                // SAFETY: as above.
                let (status, cpu) = unsafe {
                    answer! {
                        $shape, at,
                        [
                            concat!($load, segment!($shape), "[{word}]"), // old = *word
                            "mov {t}, {old}",                              // t = old
                            "and {t}, {v}",                                // t = t & v
                            // *word = t
                            concat!("mov ", $ptr, segment!($shape), "[{word}], {t:", $part, "}"),
                        ],
                        old = out(reg) old,
                        t = out(reg) _,
                        v = in(reg) u64::from(v),
                    }
                };
                settle(status, (cpu, old as $int), (cpu, old as $int))
            }

            #[inline(always)]
            unsafe fn load_or_store(at: At, v: $int) -> Answer<(u32, $int)> {
                let old: u64;
                // SAFETY: as above.
                let (status, cpu) = unsafe {
                    answer! {
                        $shape, at,
                        [
                            concat!($load, segment!($shape), "[{word}]"), // old = *word
                            "mov {t}, {old}",                              // t = old
                            "or {t}, {v}",                                 // t = t | v
                            // *word = t
                            concat!("mov ", $ptr, segment!($shape), "[{word}], {t:", $part, "}"),
                        ],
                        old = out(reg) old,
                        t = out(reg) _,
                        v = in(reg) u64::from(v),
                    }
                };
                settle(status, (cpu, old as $int), (cpu, old as $int))
            }
        }
    };
}

/// Implements everything for one shape.
macro_rules! shape {
    ($imp:ident, $shape:ident) => {
        words!($imp, $shape, u8, "movzx {old:e}, byte ptr ", "byte ptr ", "l");
        words!($imp, $shape, u16, "movzx {old:e}, word ptr ", "word ptr ", "x");
        words!($imp, $shape, u32, "mov {old:e}, dword ptr ", "dword ptr ", "e");
        words!($imp, $shape, u64, "mov {old:r}, qword ptr ", "qword ptr ", "r");

        impl Structures for $imp {
            #[inline(always)]
            unsafe fn list_push(at: At, node: usize) -> Answer<()> {
                // SAFETY: the caller vouches for `at` and the node; the rest is the shape of
                // `answer!`. The node is not published before the commit.
                let (status, _) = unsafe {
                    answer! {
                        $shape, at,
                        [
                            concat!("mov {t}, qword ptr ", segment!($shape), "[{word}]"), // t = *word
                            "mov qword ptr [{node}], {t}",                                // *node = t
                            concat!("mov qword ptr ", segment!($shape), "[{word}], {node}"), // *word = node
                        ],
                        t = out(reg) _,
                        node = in(reg) node,
                    }
                };
                settle(status, (), ())
            }

            #[inline(always)]
            unsafe fn list_pop(at: At) -> Answer<usize, ()> {
                let node: usize;
                // SAFETY: as above; whatever the head names is a node, and nobody else takes it
                // from the list of this CPU meanwhile.
                let (status, _) = unsafe {
                    answer! {
                        $shape, at,
                        [
                            concat!("mov {node}, qword ptr ", segment!($shape), "[{word}]"), // node = *word
                            "test {node}, {node}",                                           // node == 0?
                            "jz 5f",                                                         // yes: refuse
                            "mov {t}, qword ptr [{node}]",                                   // t = *node
                            concat!("mov qword ptr ", segment!($shape), "[{word}], {t}"),    // *word = t
                        ],
                        t = out(reg) _,
                        node = out(reg) node,
                    }
                };
                settle(status, node, ())
            }

            #[inline(always)]
            unsafe fn array_push(at: At, capacity: usize, v: usize) -> Answer<(), ()> {
                // SAFETY: the caller vouches for `at`: a count and `capacity` words. The slot is
                // not published before the commit.
                let (status, _) = unsafe {
                    answer! {
                        $shape, at,
                        [
                            concat!("mov {t}, qword ptr ", segment!($shape), "[{word}]"), // t = count
                            "cmp {t}, {capacity}",                                        // t >= capacity?
                            "jae 5f",                                                     // yes: refuse
                            concat!("mov qword ptr ", segment!($shape), "[{word} + {t}*8 + 8], {v}"), // slots[t] = v
                            "lea {t}, [{t} + 1]",                                         // t = t + 1
                            concat!("mov qword ptr ", segment!($shape), "[{word}], {t}"), // count = t
                        ],
                        t = out(reg) _,
                        capacity = in(reg) capacity,
                        v = in(reg) v,
                    }
                };
                settle(status, (), ())
            }

            #[inline(always)]
            unsafe fn array_pop(at: At) -> Answer<usize, ()> {
                let v: usize;
                // SAFETY: as above.
                let (status, _) = unsafe {
                    answer! {
                        $shape, at,
                        [
                            concat!("mov {t}, qword ptr ", segment!($shape), "[{word}]"), // t = count
                            "test {t}, {t}",                                              // t == 0?
                            "jz 5f",                                                      // yes: refuse
                            concat!("mov {v}, qword ptr ", segment!($shape), "[{word} + {t}*8]"), // v = slots[t - 1]
                            "lea {t}, [{t} - 1]",                                         // t = t - 1
                            concat!("mov qword ptr ", segment!($shape), "[{word}], {t}"), // count = t
                        ],
                        t = out(reg) _,
                        v = out(reg) v,
                    }
                };
                settle(status, v, ())
            }

            #[inline(always)]
            unsafe fn array_push_batch(
                at: At,
                capacity: usize,
                from: *const usize,
                n: usize,
            ) -> Answer<(), ()> {
                // SAFETY: as above; `from` has n words. The slots are not published before
                // the commit.
                let (status, _) = unsafe {
                    answer! {
                        $shape, at,
                        [
                            concat!("mov {t}, qword ptr ", segment!($shape), "[{word}]"), // t = count
                            "lea {e}, [{t} + {n}]",                                       // e = t + n
                            "cmp {e}, {capacity}",                                        // e > capacity?
                            "ja 5f",                                                      // yes: refuse
                            "lea {t}, [{word} + {t}*8]",                                  // t = &slots[t - 1]
                            "mov {i}, {n}",                                               // i = n
                            "8:",
                            "mov {x}, qword ptr [{from} + {i}*8 - 8]",                    // t[i] = from[i - 1]
                            concat!("mov qword ptr ", segment!($shape), "[{t} + {i}*8], {x}"),
                            "dec {i}",                                                    // i = i - 1
                            "jnz 8b",                                                     // until 0
                            concat!("mov qword ptr ", segment!($shape), "[{word}], {e}"), // count = e
                        ],
                        t = out(reg) _,
                        e = out(reg) _,
                        i = out(reg) _,
                        x = out(reg) _,
                        capacity = in(reg) capacity,
                        from = in(reg) from,
                        n = in(reg) n,
                    }
                };
                settle(status, (), ())
            }

            #[inline(always)]
            unsafe fn array_pop_batch(at: At, to: *mut usize, n: usize) -> Answer<usize, ()> {
                let taken: usize;
                // SAFETY: as above; `to` has room for n words, and is nobody else's.
                let (status, _) = unsafe {
                    answer! {
                        $shape, at,
                        [
                            concat!("mov {t}, qword ptr ", segment!($shape), "[{word}]"), // t = count
                            "test {t}, {t}",                                              // t == 0?
                            "jz 5f",                                                      // yes: refuse
                            "cmp {t}, {n}",                                               // n = min(n, t)
                            "cmovb {n}, {t}",
                            "sub {t}, {n}",                                               // t = t - n
                            "lea {e}, [{word} + {t}*8]",                                  // e = &slots[t - 1]
                            "mov {i}, {n}",                                               // i = n
                            "8:",
                            concat!("mov {x}, qword ptr ", segment!($shape), "[{e} + {i}*8]"),
                            "mov qword ptr [{to} + {i}*8 - 8], {x}",                      // to[i - 1] = e[i]
                            "dec {i}",                                                    // i = i - 1
                            "jnz 8b",                                                     // until 0
                            concat!("mov qword ptr ", segment!($shape), "[{word}], {t}"), // count = t
                        ],
                        t = out(reg) _,
                        e = out(reg) _,
                        i = out(reg) _,
                        x = out(reg) _,
                        to = in(reg) to,
                        n = inout(reg) n => taken,
                    }
                };
                settle(status, taken, ())
            }
        }
    };
}

shape!(Indexed, indexed);
shape!(Striped, striped);
shape!(ByCaller, by_caller);
