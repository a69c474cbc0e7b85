//! The rseq windows. `window!` builds each of them; `arch/mod.rs` states what each does.

use super::thread::{STRIPED_CPU, load_block};
use crate::abi::rseq::{CPU_ID, RSEQ_CS, SIGNATURE};
use crate::arch::{NOT_STRIPED, Outcome};
use core::arch::asm;

/// One rseq window.
///
/// `before` runs outside, when `{s}` already holds the descriptor's address, which it must
/// leave alone; `inside` is the window: it may jump to `4f` to abort, and its last line is the
/// commit. `area` is the offset of the rseq area; inside, `{s}` is a scratch register. An abort makes the function return [`Outcome::Aborted`], by a jump: a status
/// register that is tested after the window costs two more instructions, 6 % of an addition
/// to counters in turn. (A sequence that returns a value needs one all the same: stable Rust
/// has no `label` beside an output.)
///
/// Rules that the macro keeps, so that no sequence can break them:
/// - the window starts at the very instruction behind the store of `rseq_cs`: between the
///   two the thread would run unprotected;
/// - the abort label lies outside, in a section of its own, right behind the signature,
///   which is the displacement of a trapping `ud1`;
/// - inputs are never written (`in`), scratch registers are never shared with them (`out`,
///   not `lateout`), the stack is not used, flags are clobbered: a retry finds what it needs;
/// - labels are numeric, because a block may be inlined many times. Each copy has its
///   own descriptor.
macro_rules! window {
    (
        area: $area:expr,
        before: [$($before:expr),* $(,)?],
        inside: [$($inside:expr),+ $(,)?],
        $($operand:tt)*
    ) => {{
        asm!(
            ".pushsection __rseq_cs, \"aw\", @progbits",
            ".balign 32",
            "9:",
            ".long 0, 0",                // version, flags
            ".quad 2f, 3f - 2f, 4f",     // start_ip, post_commit_offset, abort_ip
            ".popsection",
            "lea {s}, [rip + 9b]",       // s = &descriptor
            $($before,)*
            "mov qword ptr fs:[{area} + {rseq_cs}], {s}", // area.rseq_cs = &descriptor
            "2:",
            $($inside,)+
            "3:",
            ".pushsection __rseq_failure, \"ax\", @progbits",
            ".byte 0x0f, 0xb9, 0x3d",    // ud1 edi, [rip + signature]
            ".long {signature}",
            "4:",
            "jmp {aborted}",
            ".popsection",
            s = out(reg) _,
            aborted = label { return Outcome::Aborted },
            area = in(reg) $area,
            rseq_cs = const RSEQ_CS,
            cpu_id = const CPU_ID,
            signature = const SIGNATURE,
            $($operand)*
            options(nostack)
        );
        Outcome::Done
    }};
}

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
            offset = in(reg) offset,
            v = in(reg) v,
            t = out(reg) _,
        }
    }
}

/// `gs_restripe`; see [`crate::arch`].
///
/// # Safety
///
/// - FSGSBASE must be on, and nobody else in this thread may rely on its GS base.
/// - `area` must be the offset of this thread's registered rseq area, or of one whose
///   `cpu_id` is no CPU.
/// - `base + c * stride` must be canonical for each `c < cpus`.
#[inline(never)]
pub unsafe fn gs_restripe(area: isize, base: usize, stride: usize, cpus: u32) -> Outcome {
    // SAFETY: the caller vouches for area, base and %gs; the rest is the shape of `window!`.
    unsafe {
        window! {
            area: area,
            before: [
                load_block!(), // block = offset of our thread-local block
            ],
            inside: [
                "mov dword ptr fs:[{block} + {striped_cpu}], {not_striped}", // striped_cpu = none
                "mov {s:e}, dword ptr fs:[{area} + {cpu_id}]", // c = area.cpu_id
                "cmp {s:e}, {cpus:e}",                         // c >= cpus?
                "jae 4f",                                           // yes: abort
                "mov {t}, {s}",                                // t = c
                "imul {t}, {stride}",                               // t = c * stride
                "add {t}, {base}",                                  // t = base + c * stride
                "wrgsbase {t}",                                     // gsbase = t
                "mov dword ptr fs:[{block} + {striped_cpu}], {s:e}", // striped_cpu = c
            ],
            block = out(reg) _,
            striped_cpu = const STRIPED_CPU,
            not_striped = const NOT_STRIPED.cast_signed(),
            base = in(reg) base,
            stride = in(reg) stride,
            cpus = in(reg) cpus,
            t = out(reg) _,
        }
    }
}
