//! The two macros that build every rseq window. `arch/mod.rs` states what each window does.
//!
//! `window!` answers done or aborted, by a jump; `answer!` also brings values out and knows two
//! more ways to leave. Both keep the rules that no sequence can break then:
//!
//! - the window starts at the very instruction behind the store of `rseq_cs`: between the
//!   two the thread would run unprotected;
//! - the abort label lies outside, in a section of its own, right behind the signature,
//!   which is the displacement of a trapping `ud1`;
//! - inputs that a retry needs are not written, scratch registers are never shared with them
//!   (`out`, not `lateout`), the stack is not used, flags are clobbered;
//! - labels are numeric, because a block may be inlined many times. Each copy has its
//!   own descriptor.

/// A window without a result.
///
/// `before` runs outside, when `{s}` already holds the descriptor's address, which it must
/// leave alone; `inside` is the window: it may jump to `4f` to abort, and its last line is the
/// commit. `area` is the offset of the rseq area; inside, `{s}` is a scratch register. An abort
/// makes the function return [`Outcome::Aborted`](crate::arch::Outcome::Aborted), by a jump: a
/// status register that is tested after the window costs two more instructions, 6 % of an
/// addition to counters in turn.
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
            signature = const SIGNATURE,
            $($operand)*
            options(nostack)
        );
        Outcome::Done
    }};
}

/// A window that may bring values out; the `(status, cpu)` of [`settle`](super::sequences).
///
/// Every window of this kind begins with two checks: the CPU is the one that the address was
/// made for, and the stop word of its stripe is 0. `inside` follows them. It may jump to `5f` to
/// refuse; it must leave `{s}` alone, which holds the descriptor's address until the commit and is
/// then the status: stable Rust has no `label` beside an output, and a register that is not 0
/// anyway costs one instruction less than one that is set.
macro_rules! answer {
    (@asm [$($before:expr),* $(,)?], [$($inside:expr),+ $(,)?], $($operand:tt)*) => {
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
            "xor {s:e}, {s:e}",          // status: done
            ".pushsection __rseq_failure, \"ax\", @progbits",
            ".byte 0x0f, 0xb9, 0x3d",    // ud1 edi, [rip + signature]
            ".long {signature}",
            "4:",
            "jmp 7f",                    // status: the descriptor, aborted
            "5:",
            "mov {s:e}, 1",              // status: refused
            "jmp 7f",
            "6:",
            "mov {s:e}, 2",              // status: stopped
            "jmp 7f",
            ".popsection",
            "7:",
            rseq_cs = const RSEQ_CS,
            signature = const SIGNATURE,
            $($operand)*
            options(nostack)
        )
    };
    (indexed, $at:expr, [$($inside:expr),+ $(,)?], $($operand:tt)*) => {{
        let at: At = $at;
        let status: usize;
        answer!(
            @asm [],
            [
                "cmp dword ptr fs:[{field}], {cpu:e}", // area.id == cpu?
                "jne 4f",                              // no: abort
                "cmp qword ptr [{stop}], 0",           // *stop == 0?
                "jne 6f",                              // no: stopped
                $($inside,)+
            ],
            s = out(reg) status,
            area = in(reg) at.area,
            field = in(reg) at.field,
            cpu = in(reg) at.cpu,
            stop = in(reg) at.stop,
            word = in(reg) at.word,
            $($operand)*
        );
        (status, at.cpu)
    }};
    (@gs $striped:expr, $at:expr, [$($inside:expr),+ $(,)?], $($operand:tt)*) => {{
        let at: At = $at;
        let (status, cpu): (usize, u32);
        answer!(
            @asm [
                load_block!(), // block = offset of our thread-local block
            ],
            [
                "mov {c:e}, dword ptr fs:[{block} + {striped}]", // c = striped_cpu
                "cmp {c:e}, dword ptr fs:[{area} + {cpu_id}]",   // c == area.cpu_id?
                "jne 4f",                                        // no: abort
                "cmp qword ptr gs:[{stop}], 0",                  // *stop == 0?
                "jne 6f",                                        // no: stopped
                $($inside,)+
            ],
            s = out(reg) status,
            block = out(reg) _,
            c = out(reg) cpu,
            striped = const $striped,
            cpu_id = const CPU_ID,
            area = in(reg) at.area,
            stop = in(reg) at.stop,
            word = in(reg) at.word,
            $($operand)*
        );
        (status, cpu)
    }};
    (striped, $($rest:tt)*) => { answer!(@gs STRIPED_CPU, $($rest)*) };
    (by_caller, $($rest:tt)*) => { answer!(@gs CALLERS_CPU, $($rest)*) };
}
pub(super) use {answer, window};
