//! The macros that build every rseq window. `arch/mod.rs` states what each window does.
//!
//! `window!` answers done or aborted, by a jump; `answer!` also brings values out and knows two
//! more ways to leave; `unmerged_window!` is the one that users are given. All keep the rules that
//! no sequence can break then:
//!
//! - the window starts at the very instruction behind the store of `rseq_cs`: between the
//!   two the thread would run unprotected;
//! - the abort label lies outside, in a section of its own, right behind the signature,
//!   which is the displacement of a trapping `ud1`;
//! - inputs that a retry needs are not written, scratch registers are never shared with them
//!   (`out`, not `lateout`), the stack is not used, flags are clobbered;
//! - labels are numeric, because a block may be inlined many times. Each copy has its
//!   own descriptor.

/// What the asm of every window is made of. It is exported because the windows of users are made
/// of it too; nobody else may rely on it.
#[doc(hidden)]
#[macro_export]
macro_rules! __window {
    // The descriptor `9`, its address in `{s}`.
    (descriptor) => {
        concat!(
            ".pushsection __rseq_cs, \"aw\", @progbits\n",
            ".balign 32\n",
            "9:\n",
            ".long 0, 0\n",            // version, flags
            ".quad 2f, 3f - 2f, 4f\n", // start_ip, post_commit_offset, abort_ip
            ".popsection\n",
            "lea {s}, [rip + 9b]", // s = &descriptor
        )
    };
    // From the next instruction on, up to the label `3`, the window is under way.
    (begin) => {
        concat!(
            "mov qword ptr fs:[{area} + {rseq_cs}], {s}\n", // area.rseq_cs = &descriptor
            "2:",
        )
    };
    // Behind the window: another section, up to `.popsection`, which begins with the signature and
    // where an aborted window goes on.
    (abort) => {
        concat!(
            ".pushsection __rseq_failure, \"ax\", @progbits\n",
            ".byte 0x0f, 0xb9, 0x3d\n", // ud1 edi, [rip + signature]
            ".long {signature}\n",
            "4:",
        )
    };
}

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
            $crate::__window!(descriptor),
            $($before,)*
            $crate::__window!(begin),
            $($inside,)+
            "3:",
            $crate::__window!(abort),
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
/// made for, and the stop word of its stripe is 0, if it has one. `inside` follows them. It may
/// jump to `5f` to refuse; it must leave `{s}` alone, which holds the descriptor's address until
/// the commit and is then the status: stable Rust has no `label` beside an output, and a register
/// that is not 0 anyway costs one instruction less than one that is set.
macro_rules! answer {
    (@asm [$($before:expr),* $(,)?], [$($inside:expr),+ $(,)?], $($operand:tt)*) => {
        asm!(
            $crate::__window!(descriptor),
            $($before,)*
            $crate::__window!(begin),
            $($inside,)+
            "3:",
            "xor {s:e}, {s:e}",          // status: done
            $crate::__window!(abort),
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
    (@gs $striped:expr, [$($stop:expr),*], $at:expr, [$($inside:expr),+ $(,)?], $($operand:tt)*) => {{
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
                $($stop,)*
                $($inside,)+
            ],
            s = out(reg) status,
            block = out(reg) _,
            c = out(reg) cpu,
            striped = const $striped,
            cpu_id = const CPU_ID,
            area = in(reg) at.area,
            word = in(reg) at.word,
            $($operand)*
        );
        (status, cpu)
    }};
    (striped, $at:expr, [$($inside:expr),+ $(,)?], $($operand:tt)*) => {
        answer!(
            @gs STRIPED_CPU,
            [
                "cmp qword ptr gs:[{stop}], 0", // *stop == 0?
                "jne 6f"                        // no: stopped
            ],
            $at, [$($inside,)+], stop = in(reg) $at.stop, $($operand)*
        )
    };
    // The caller's stripes have no stop word.
    (by_caller, $($rest:tt)*) => { answer!(@gs CALLERS_CPU, [], $($rest)*) };
}
pub(super) use {answer, window};

/// A window of one's own: several instructions that happen on one CPU, all or none of them.
///
/// It is made at compile time, of asm lines, and answers an
/// [`Answer<(), ()>`](crate::percpu::raw::Answer). The first argument is the
/// [`Id`](crate::percpu::raw::Id) of the CPU for which addresses were made; the macro checks it as
/// the first thing in the window. Then come the lines, then operands as in `asm!`.
///
/// ```
/// use unmerged::percpu::raw::{self, Answer};
///
/// /// Takes one of what is `left` on this CPU, if there is one and the CPU's `gate` is not 0.
/// fn take_one(id: raw::Id, left: *mut u64, gate: *const u64) -> Answer<(), ()> {
///     // SAFETY: both are words of the CPU of `id`; `left`, the one that is stored to, is written
///     // by windows of that CPU alone.
///     unsafe {
///         raw::window!(
///             id,
///             [
///                 "cmp qword ptr [{gate}], 0",    // *gate == 0?
///                 "je 5f",                        // yes: refuse
///                 "mov {t}, qword ptr [{left}]",  // t = *left
///                 "sub {t}, 1",                   // t = t - 1
///                 "jc 5f",                        // there was none: refuse
///                 "mov qword ptr [{left}], {t}",  // *left = t, the commit
///             ],
///             gate = in(reg) gate,
///             left = in(reg) left,
///             t = out(reg) _,
///         )
///     }
/// }
///
/// // Only this thread knows these two words: they are the CPU's that it is on.
/// let (mut left, gate) = (2_u64, 1_u64);
/// while let Some(id) = raw::this_cpu() {
///     if take_one(id, &raw mut left, &raw const gate) != Answer::Aborted {
///         assert_eq!(left, 1);
///         break;
///     }
/// }
/// ```
///
/// # Safety
///
/// - The last line is the commit: one store, the only one that others may see. Stores before
///   it go to memory that nobody looks at yet.
/// - `jmp 5f` refuses, `jmp 4f` aborts; every other jump stays inside. The numeric label `8` is
///   free for loops. No call, no system call, no stack.
/// - Operands are read-only inputs (`in`), scratch and outputs (`out`, `inout`), never `lateout`; `s`,
///   `area`, `field`, `cpu`, `rseq_cs` and `signature` are taken.
/// - The words are written by windows of that CPU alone.
/// - The thread is registered with the area of the id, as it is if the id came from
///   [`this_cpu`](crate::percpu::raw::this_cpu).
#[macro_export]
macro_rules! unmerged_window {
    ($id:expr, [$($inside:expr),+ $(,)?], $($operand:tt)*) => {{
        let id: $crate::arch::Id = $id;
        let status: usize;
        ::core::arch::asm!(
            $crate::__window!(descriptor),
            $crate::__window!(begin),
            "cmp dword ptr fs:[{field}], {cpu:e}", // area.id == cpu?
            "jne 4f",                    // no: abort
            $($inside,)+
            "3:",
            "xor {s:e}, {s:e}",          // status: done
            $crate::__window!(abort),
            "jmp 7f",                    // status: the descriptor, aborted
            "5:",
            "mov {s:e}, 1",              // status: refused
            "jmp 7f",
            ".popsection",
            "7:",
            s = out(reg) status,
            area = in(reg) id.area,
            field = in(reg) id.field,
            cpu = in(reg) id.cpu,
            rseq_cs = const $crate::abi::rseq::RSEQ_CS,
            signature = const $crate::abi::rseq::SIGNATURE,
            $($operand)*
            options(nostack)
        );
        match status {
            0 => $crate::arch::Answer::Done(()),
            1 => $crate::arch::Answer::Refused(()),
            _ => $crate::arch::Answer::Aborted,
        }
    }};
}
