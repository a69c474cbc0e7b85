//! Windows that are wrong in ways that no change of a single byte makes of the right ones.
//! Their descriptors are in a section of their own, where the walk does not look.

use std::arch::naked_asm;
use std::mem::offset_of;

use unmerged::abi::rseq::{CPU_ID, RSEQ_CS, SIGNATURE};
use unmerged::arch::NOT_STRIPED;

use crate::cases::{Answer, Case, Memory, Operands, RESTRIPE, STRIDE, Shape};

/// Where they work in the stripe.
const WORD: usize = 0x10;

/// A function that runs one window: `r8` is the rseq area, `esi` the CPU, `rcx` its stripe,
/// `rdi` the operands, and `rdx` the value that it answers.
macro_rules! planted {
    ($name:ident, before: [$($before:expr),*], inside: [$($inside:expr),+]) => {
        planted!($name, end: "3f", before: [$($before),*], inside: [$($inside),+]);
    };
    ($name:ident, end: $end:literal, before: [$($before:expr),*], inside: [$($inside:expr),+]) => {
        #[unsafe(naked)]
        unsafe extern "C" fn $name(_: &Operands) -> Answer {
            naked_asm!(
                ".pushsection .data.rel.ro.planted, \"aw\", @progbits",
                ".balign 32",
                "9:",
                ".long 0, 0",
                concat!(".quad 2f, ", $end, " - 2f, 4f"),
                ".popsection",
                "mov r8, [rdi + {area}]",
                "mov esi, [rdi + {cpu}]",
                "imul rcx, rsi, {stride}",
                "add rcx, [rdi + {stripes}]",
                "xor edx, edx",
                $($before,)*
                "lea rax, [rip + 9b]",
                "mov fs:[r8 + {rseq_cs}], rax",
                "2:",
                $($inside,)+
                "3:",
                "mov eax, 1",
                "5:",
                "ret",
                ".byte 0x0f, 0xb9, 0x3d",
                ".long {signature}",
                "4:",
                "xor eax, eax",
                "ret",
                "/* {cpu_id} {word} {striped_cpu} {cpus} {buffer} {not_striped} */",
                area = const offset_of!(Operands, area),
                striped_cpu = const offset_of!(Operands, striped_cpu),
                cpu = const offset_of!(Operands, cpu),
                cpus = const offset_of!(Operands, cpus),
                stripes = const offset_of!(Operands, stripes),
                buffer = const offset_of!(Operands, buffer),
                stride = const STRIDE,
                word = const WORD,
                rseq_cs = const RSEQ_CS,
                cpu_id = const CPU_ID,
                not_striped = const NOT_STRIPED,
                signature = const SIGNATURE,
            )
        }
    };
}

// The right form, to show that nothing else is amiss with the others.
planted!(sound, before: [], inside: [
    "cmp esi, fs:[r8 + {cpu_id}]",
    "jne 4f",
    "mov r9, [rcx + {word}]",
    "add r9, 7",
    "mov [rcx + {word}], r9"
]);

// Appends an item to an array, unless it is full: two ways through one window.
planted!(push, before: [], inside: [
    "cmp esi, fs:[r8 + {cpu_id}]",
    "jne 4f",
    "mov r9, [rcx + {word}]",
    "cmp r9, 4",
    "setae dl",
    "jae 3f",
    "mov r10, [rdi + {buffer}]",
    "mov r10, [r10]",
    "mov [rcx + r9 * 8 + {word} + 8], r10",
    "inc r9",
    "mov [rcx + {word}], r9"
]);

// Appends three items, in a loop.
planted!(append, before: [], inside: [
    "cmp esi, fs:[r8 + {cpu_id}]",
    "jne 4f",
    "mov r9, [rcx + {word}]",
    "lea r11, [rcx + r9 * 8 + {word} + 8]",
    "xor r9d, r9d",
    "6:",
    "mov r10, [rdi + {buffer}]",
    "mov r10, [r10 + r9 * 8]",
    "mov [r11 + r9 * 8], r10",
    "inc r9",
    "cmp r9, 3",
    "jb 6b",
    "add [rcx + {word}], r9"
]);

// The same, but counts an item before it is there.
planted!(counts_first, before: [], inside: [
    "cmp esi, fs:[r8 + {cpu_id}]",
    "jne 4f",
    "mov r9, [rcx + {word}]",
    "lea r11, [rcx + r9 * 8 + {word} + 8]",
    "xor r9d, r9d",
    "6:",
    "mov r10, [rdi + {buffer}]",
    "mov r10, [r10 + r9 * 8]",
    "add qword ptr [rcx + {word}], 1",
    "mov [r11 + r9 * 8], r10",
    "inc r9",
    "cmp r9, 3",
    "jb 6b"
]);

// A preemption between the compare and the window goes unseen.
planted!(compares_before_the_window, before: [
    "cmp esi, fs:[r8 + {cpu_id}]",
    "jne 4f"
], inside: [
    "mov r9, [rcx + {word}]",
    "add r9, 7",
    "mov [rcx + {word}], r9"
]);

// The value is that of before the window.
planted!(loads_before_the_window, before: [
    "mov r9, [rcx + {word}]"
], inside: [
    "cmp esi, fs:[r8 + {cpu_id}]",
    "jne 4f",
    "add r9, 7",
    "mov [rcx + {word}], r9"
]);

// An abort behind the store leaves an operation that will be done again.
planted!(ends_late, end: "5f", before: [], inside: [
    "cmp esi, fs:[r8 + {cpu_id}]",
    "jne 4f",
    "mov r9, [rcx + {word}]",
    "add r9, 7",
    "mov [rcx + {word}], r9"
]);

// A preemption in front of the store goes unseen.
planted!(ends_early, end: "6f", before: [], inside: [
    "cmp esi, fs:[r8 + {cpu_id}]",
    "jne 4f",
    "mov r9, [rcx + {word}]",
    "add r9, 7",
    "6:",
    "mov [rcx + {word}], r9"
]);

// An abort between the two stores leaves half of it.
planted!(publishes_twice, before: [], inside: [
    "cmp esi, fs:[r8 + {cpu_id}]",
    "jne 4f",
    "add qword ptr [rcx + {word}], 7",
    "add qword ptr [rcx + {word} + 8], 1"
]);

// The word is lost if a handler stripes the thread right behind it and the window is aborted
// after the GS base was set.
planted!(not_striped_in_front, before: [
    "mov r9, [rdi + {striped_cpu}]",
    "mov dword ptr fs:[r9], {not_striped}"
], inside: [
    "mov esi, fs:[r8 + {cpu_id}]",
    "cmp esi, [rdi + {cpus}]",
    "jae 4f",
    "imul rcx, rsi, {stride}",
    "add rcx, [rdi + {stripes}]",
    "wrgsbase rcx",
    "mov dword ptr fs:[r9], esi"
]);

// The same with the word inside.
planted!(not_striped_inside, before: [
    "mov r9, [rdi + {striped_cpu}]"
], inside: [
    "mov dword ptr fs:[r9], {not_striped}",
    "mov esi, fs:[r8 + {cpu_id}]",
    "cmp esi, [rdi + {cpus}]",
    "jae 4f",
    "imul rcx, rsi, {stride}",
    "add rcx, [rdi + {stripes}]",
    "wrgsbase rcx",
    "mov dword ptr fs:[r9], esi"
]);

const ADD: Case = Case {
    name: "sound",
    shape: Shape::Cpu,
    prepare: |stripe, _| stripe.put(WORD, 8, 100),
    call: sound,
    apply: |stripe, _| {
        stripe.put(WORD, 8, stripe.get(WORD, 8) + 7);
        0
    },
    forget: |_| {},
};

/// Items of an array: how many there are, then each.
fn items(stripe: &Memory) -> usize {
    stripe.get(WORD, 8) as usize
}

fn add_item(stripe: &mut Memory, item: u64) {
    let count = items(stripe);
    stripe.put(WORD + 8 + count * 8, 8, item);
    stripe.put(WORD, 8, count as u64 + 1);
}

const PUSH: Case = Case {
    name: "push",
    shape: Shape::Cpu,
    prepare: |stripe, own| {
        add_item(stripe, 1);
        // Each caller has an item of its own.
        own.put(0, 8, own.address as u64);
    },
    call: push,
    apply: |stripe, own| {
        let full = items(stripe) >= 4;
        if !full {
            add_item(stripe, own.get(0, 8));
        }
        u64::from(full)
    },
    // Behind the last item nobody looks.
    forget: |stripe| {
        let end = WORD + 8 + items(stripe) * 8;
        stripe.bytes[end..].fill(0);
    },
};

const APPEND: Case = Case {
    name: "append",
    prepare: |stripe, own| {
        add_item(stripe, 1);
        (0..3).for_each(|n| own.put(n * 8, 8, own.address as u64 + n as u64));
    },
    call: append,
    apply: |stripe, own| {
        (0..3).for_each(|n| add_item(stripe, own.get(n * 8, 8)));
        0
    },
    ..PUSH
};

/// What must be accepted. An operation with several ways through its window shows how such a
/// one is written down.
pub(crate) const RIGHT: &[Case] = &[
    ADD,
    PUSH,
    Case {
        name: "push/full",
        prepare: |stripe, _| (0..4).for_each(|n| add_item(stripe, n)),
        ..PUSH
    },
    APPEND,
    Case { name: "not_striped_inside", call: not_striped_inside, ..RESTRIPE },
];

/// What must be rejected.
pub(crate) const WRONG: &[Case] = &[
    Case { name: "counts_first", call: counts_first, ..APPEND },
    Case { name: "compares_before_the_window", call: compares_before_the_window, ..ADD },
    Case { name: "loads_before_the_window", call: loads_before_the_window, ..ADD },
    Case { name: "ends_late", call: ends_late, ..ADD },
    Case { name: "ends_early", call: ends_early, ..ADD },
    Case {
        name: "publishes_twice",
        call: publishes_twice,
        apply: |stripe, _| {
            stripe.put(WORD, 8, stripe.get(WORD, 8) + 7);
            stripe.put(WORD + 8, 8, stripe.get(WORD + 8, 8) + 1);
            0
        },
        ..ADD
    },
    Case { name: "not_striped_in_front", call: not_striped_in_front, ..RESTRIPE },
];
