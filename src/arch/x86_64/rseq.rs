//! The windows whose only result is done or aborted: additions to counters, which must be as
//! short as can be, and the striping of `%gs`.

use super::thread::{CALLERS_CPU, STRIPED_CPU, load_block};
use super::window::window;
use crate::abi::rseq::{CPU_ID, RSEQ_CS, SIGNATURE};
use crate::arch::{NOT_STRIPED, Outcome};
use core::arch::asm;

/// `load_add_store` on 64 bits; see [`crate::arch`].
///
/// # Safety
///
/// - `area` must be the offset of this thread's registered rseq area, or of one whose
///   `cpu_id` is no CPU.
/// - `word` must be readable, writable and aligned.
/// - Nothing but windows of CPU `cpu` may write `*word` meanwhile.
#[inline(always)]
pub unsafe fn load_add_store_u64(area: isize, cpu: u32, word: *mut u64, v: u64) -> Outcome {
    // SAFETY: the caller vouches for area and word; the rest is the shape of `window!`.
    unsafe {
        window! {
            area: area,
            before: [],
            inside: [
                "cmp dword ptr fs:[{area} + {cpu_id}], {cpu:e}", // area.cpu_id == cpu?
                "jne 4f",                                        // no: abort
                "mov {t}, qword ptr [{word}]",                   // t = *word
                "lea {t}, [{t} + {v}]",                          // t = t + v
                "mov qword ptr [{word}], {t}",                   // *word = t
            ],
            cpu_id = const CPU_ID,
            cpu = in(reg) cpu,
            word = in(reg) word,
            v = in(reg) v,
            t = out(reg) _,
        }
    }
}

/// `gs_load_add_store` on 64 bits; see [`crate::arch`].
///
/// The addition is a `lea`: `add t, v` with `v` in a register keeps this core from renaming
/// the memory operand, and the whole takes 2.7 times as long. Addresses are `%fs`- and
/// `%gs`-relative throughout, though the core does two such accesses a cycle and five make
/// 2.5 cycles: with the thread pointer in a register, counters in turn gain 6 %, but one
/// counter again and again loses 20 %, because the store of `rseq_cs` then waits for an
/// address.
///
/// # Safety
///
/// - `area` must be the offset of this thread's registered rseq area, or of one whose
///   `cpu_id` is no CPU.
/// - `offset` from the GS base of a striped thread must be a readable, writable, aligned
///   word of its stripe.
/// - Nothing but windows of the stripe's CPU may write that word meanwhile.
#[inline(always)]
pub unsafe fn gs_load_add_store_u64(area: isize, offset: usize, v: u64) -> Outcome {
    // SAFETY: the caller vouches for area and offset; the rest is the shape of `window!`.
    unsafe {
        window! {
            area: area,
            before: [
                load_block!(), // block = offset of our thread-local block
            ],
            inside: [
                "mov {s:e}, dword ptr fs:[{block} + {striped_cpu}]", // c = striped_cpu
                "cmp {s:e}, dword ptr fs:[{area} + {cpu_id}]",      // c == area.cpu_id?
                "jne 4f",                                                // no: abort
                "mov {t}, qword ptr gs:[{offset}]",                      // t = %gs:offset
                "lea {t}, [{t} + {v}]",                                  // t = t + v
                "mov qword ptr gs:[{offset}], {t}",                      // %gs:offset = t
            ],
            block = out(reg) _,
            striped_cpu = const STRIPED_CPU,
            cpu_id = const CPU_ID,
            offset = in(reg) offset,
            v = in(reg) v,
            t = out(reg) _,
        }
    }
}

/// `gs_restripe`, once for each of the two words that say which CPU `%gs` points at.
macro_rules! restripe {
    ($(#[$doc:meta])* $name:ident, $word:expr) => {
        $(#[$doc])*
        ///
        /// # Safety
        ///
        /// - FSGSBASE must be on, and nobody else in this thread may rely on its GS base.
        /// - `area` must be the offset of this thread's registered rseq area, or of one whose
        ///   `cpu_id` is no CPU.
        /// - `base + c * stride` must be canonical for each `c < cpus`.
        #[inline(never)]
        pub unsafe fn $name(area: isize, base: usize, stride: usize, cpus: u32) -> Outcome {
            // SAFETY: the caller vouches for area, base and %gs; the rest is the shape of `window!`.
            unsafe {
                window! {
                    area: area,
                    before: [
                        load_block!(), // block = offset of our thread-local block
                    ],
                    inside: [
                        // striped_cpu = none, callers_cpu = none
                        "mov dword ptr fs:[{block} + {striped_cpu}], {not_striped}",
                        "mov dword ptr fs:[{block} + {callers_cpu}], {not_striped}",
                        "mov {s:e}, dword ptr fs:[{area} + {cpu_id}]", // c = area.cpu_id
                        "cmp {s:e}, {cpus:e}",                         // c >= cpus?
                        "jae 4f",                                      // yes: abort
                        "mov {t}, {s}",                                // t = c
                        "imul {t}, {stride}",                          // t = c * stride
                        "add {t}, {base}",                             // t = base + c * stride
                        "wrgsbase {t}",                                // gsbase = t
                        "mov dword ptr fs:[{block} + {word}], {s:e}",  // the one or the other = c
                    ],
                    block = out(reg) _,
                    word = const $word,
                    striped_cpu = const STRIPED_CPU,
                    callers_cpu = const CALLERS_CPU,
                    cpu_id = const CPU_ID,
                    not_striped = const NOT_STRIPED.cast_signed(),
                    base = in(reg) base,
                    stride = in(reg) stride,
                    cpus = in(reg) cpus,
                    t = out(reg) _,
                }
            }
        }
    };
}

restripe! {
    /// `gs_restripe` for the stripes of this crate, with `striped_cpu`; see [`crate::arch`].
    gs_restripe, STRIPED_CPU
}
restripe! {
    /// `gs_restripe` for stripes of the caller's, with `callers_cpu`; see [`crate::arch`].
    gs_restripe_callers, CALLERS_CPU
}
