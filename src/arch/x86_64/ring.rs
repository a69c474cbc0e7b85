//! The windows of a ring; `arch/mod.rs` states what each does.

use crate::abi::rseq::{CPU_ID, RSEQ_CS, SIGNATURE};
use crate::arch::{Publication, RING_DATA, RING_LIMIT, RING_PAD};
use core::arch::asm;
use std::io::IoSlice;

/// One window of a ring: made of the same parts, by the same rules, as the other sequences
/// (`window.rs`). What differs is the second way out: a sequence may jump to `5f`, full.
macro_rules! window {
    (
        area: $area:expr,
        cpu: $cpu:expr,
        inside: [$($inside:expr),+ $(,)?],
        $($operand:tt)*
    ) => {{
        asm!(
            $crate::__window!(descriptor),
            $crate::__window!(begin),
            "cmp dword ptr fs:[{area} + {cpu_id}], {cpu:e}", // area.cpu_id == cpu?
            "jne 4f",                    // no: abort
            $($inside,)+
            "3:",
            $crate::__window!(abort),
            "jmp {aborted}",
            "5:",
            "jmp {full}",
            ".popsection",
            s = out(reg) _,
            aborted = label { return Publication::Aborted },
            full = label { return Publication::Full },
            area = in(reg) $area,
            cpu = in(reg) $cpu,
            rseq_cs = const RSEQ_CS,
            cpu_id = const CPU_ID,
            signature = const SIGNATURE,
            $($operand)*
            options(nostack)
        );
        Publication::Done
    }};
}

/// A window that publishes one record: `payload` stores it behind the length, at `{p} + 8`.
/// `{s}` is free for it, `{h}` and the inputs are not.
macro_rules! publish {
    (
        area: $area:expr,
        cpu: $cpu:expr,
        stripe: $stripe:expr,
        mask: $mask:expr,
        step: $step:expr,
        len: $len:expr,
        payload: [$($payload:expr),+ $(,)?],
        $($operand:tt)*
    ) => {
        window! {
            area: $area,
            cpu: $cpu,
            inside: [
                "mov {h}, qword ptr [{stripe}]",                  // h = stripe.head
                "mov {s:e}, dword ptr [{stripe} + {ring_limit}]", // s = low(stripe.limit)
                "sub {s:e}, {h:e}",                               // s = low(limit - h)
                "cmp {s:e}, {step:e}",                            // s < low(step)?
                "jb 5f",                                          // yes: full
                "mov {p}, {h}",
                "and {p}, {mask}",                                // p = i = h & mask
                "lea {s:e}, [{p} + {step} - 1]",                  // s = i + low(step) - 1
                "cmp {s:e}, {mask:e}",                            // s > mask?
                "ja 5f",                                          // yes: full
                "lea {p}, [{stripe} + {p} * 8 + {ring_data}]",    // p = &stripe.data[i]
                "mov qword ptr [{p}], {len}",                     // data[i] = len
                $($payload,)+
                "add {h}, {step}",                                // h = h + step
                "mov qword ptr [{stripe}], {h}",                  // stripe.head = h
            ],
            stripe = in(reg) $stripe,
            mask = in(reg) $mask,
            step = in(reg) $step,
            len = in(reg) $len,
            h = out(reg) _,
            ring_limit = const RING_LIMIT,
            ring_data = const RING_DATA,
            $($operand)*
        }
    };
}

/// `ring_publish` of up to 16 bytes, in two words: `first` is stored at the beginning of the
/// payload, `last` at `end - 8` bytes into it. They may overlap.
///
/// # Safety
///
/// - `area` must be the offset of this thread's registered rseq area, or of one whose
///   `cpu_id` is no CPU.
/// - `stripe` must be a stripe of `mask + 1` units, `mask + 1` a power of two, that is
///   readable and writable; nothing but windows of CPU `cpu` may write its head and the units
///   that are free.
/// - `step` must be `1 << 32` and the units of the record in one word, at most `mask`;
///   `end` from 8 to the bytes behind its length.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "each is a register")]
pub unsafe fn ring_publish_words(
    area: isize,
    cpu: u32,
    stripe: *mut u8,
    mask: u64,
    step: u64,
    len: u64,
    end: usize,
    [first, last]: [u64; 2],
) -> Publication {
    // SAFETY: the caller vouches for area, stripe and sizes; the rest is the shape of `window!`.
    unsafe {
        publish! {
            area: area,
            cpu: cpu,
            stripe: stripe,
            mask: mask,
            step: step,
            len: len,
            payload: [
                "mov qword ptr [{p} + 8], {first}",
                "mov qword ptr [{p} + {end}], {last}",
            ],
            first = in(reg) first,
            last = in(reg) last,
            end = in(reg) end,
            p = out(reg) _,
        }
    }
}

/// `ring_publish` of 16 to 64 bytes, in four vectors of 16 bytes that may overlap: two from the
/// beginning, `apart` (0 or 16) bytes apart, and two as many apart up to the end.
///
/// # Safety
///
/// As [`ring_publish_words`]; `payload` must be readable for `len` bytes, at least 16, and at
/// least 32 if `apart` is 16; `step` must have room for them.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "each is a register")]
pub unsafe fn ring_publish_vectors(
    area: isize,
    cpu: u32,
    stripe: *mut u8,
    mask: u64,
    step: u64,
    len: u64,
    payload: *const u8,
    apart: usize,
) -> Publication {
    // SAFETY: the caller vouches for area, stripe and sizes; the rest is the shape of `window!`.
    unsafe {
        publish! {
            area: area,
            cpu: cpu,
            stripe: stripe,
            mask: mask,
            step: step,
            len: len,
            payload: [
                "movups {a}, xmmword ptr [{payload}]",           // a, b: the first bytes
                "movups {b}, xmmword ptr [{payload} + {apart}]",
                "lea {s}, [{payload} + {len}]",
                "movups {d}, xmmword ptr [{s} - 16]",            // c, d: the last
                "sub {s}, {apart}",
                "movups {c}, xmmword ptr [{s} - 16]",
                "movups xmmword ptr [{p} + 8], {a}",
                "movups xmmword ptr [{p} + {apart} + 8], {b}",
                "lea {s}, [{p} + {len}]",
                "movups xmmword ptr [{s} - 8], {d}",
                "sub {s}, {apart}",
                "movups xmmword ptr [{s} - 8], {c}",
            ],
            payload = in(reg) payload,
            apart = in(reg) apart,
            p = out(reg) _,
            a = out(xmm_reg) _,
            b = out(xmm_reg) _,
            c = out(xmm_reg) _,
            d = out(xmm_reg) _,
        }
    }
}

/// `ring_publish` of a list of parts.
///
/// # Safety
///
/// As [`ring_publish_words`]; the lengths of the parts must add up to `len`, and `step` have
/// room for them.
#[inline(never)]
pub unsafe fn ring_publish_parts(
    area: isize,
    cpu: u32,
    stripe: *mut u8,
    mask: u64,
    step: u64,
    len: u64,
    parts: &[IoSlice<'_>],
) -> Publication {
    let range = parts.as_ptr_range();
    let parts = [range.start, range.end]; // in memory: registers are few
    // SAFETY: the caller vouches for area, stripe and sizes; an IoSlice is an iovec; the rest is
    // the shape of `window!`.
    unsafe {
        publish! {
            area: area,
            cpu: cpu,
            stripe: stripe,
            mask: mask,
            step: step,
            len: len,
            payload: [
                "lea rdi, [{p} + 8]",               // rdi = &data[i + 1]
                "mov {s}, qword ptr [{parts}]",
                "8:",                               // for each part s:
                "cmp {s}, qword ptr [{parts} + 8]",
                "je 7f",
                "mov rsi, qword ptr [{s}]",         // rsi = part.base
                "mov rcx, qword ptr [{s} + 8]",     // rcx = part.len
                "add {s}, 16",
                "rep movsb",                        // copy
                "jmp 8b",
                "7:",
            ],
            parts = in(reg) parts.as_ptr(),
            p = out(reg) _,
            out("rdi") _,
            out("rsi") _,
            out("rcx") _,
        }
    }
}

/// `ring_pad`; see [`crate::arch`].
///
/// # Safety
///
/// As [`ring_publish_words`]; `at` must be the unit of `stripe` that `head` leads to, and
/// `units` of them be free from there on.
#[inline(never)]
pub unsafe fn ring_pad(
    area: isize,
    cpu: u32,
    stripe: *mut u8,
    head: u64,
    at: *mut u64,
    units: u64,
) -> Publication {
    // SAFETY: the caller vouches for area and stripe; the rest is the shape of `window!`.
    unsafe {
        window! {
            area: area,
            cpu: cpu,
            inside: [
                "cmp qword ptr [{stripe}], {head}",  // stripe.head == h?
                "jne 4f",                            // no: abort
                "mov qword ptr [{at}], {pad}",       // *at = RING_PAD
                "mov qword ptr [{stripe}], {next}",  // stripe.head = h + units
            ],
            stripe = in(reg) stripe,
            head = in(reg) head,
            at = in(reg) at,
            pad = const RING_PAD.cast_signed(),
            next = in(reg) head.wrapping_add(units),
        }
    }
}
