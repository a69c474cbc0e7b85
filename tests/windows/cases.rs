//! The table: one row for each operation of `arch` that is a window, or for each way through
//! it. The emulator and the tracer both work from it.
//!
//! A row calls its operation in a function of its own, so that this function's copy of the
//! window is the one under test, and says in plain Rust what the operation does. An
//! operation with branches or a loop has several rows, `name/way`; together they must pass
//! every instruction of its window.

use unmerged::arch::{self, Outcome};

/// Bytes of a stripe, and of the memory that belongs to the caller of an operation.
pub(crate) const STRIDE: usize = 256;

/// What a call is given.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Operands {
    /// Offset of the rseq area from the thread pointer.
    pub(crate) area: isize,
    /// Offset of `striped_cpu` from the thread pointer; the operations know it themselves.
    pub(crate) striped_cpu: isize,
    /// The CPU that the caller took itself to be on.
    pub(crate) cpu: u32,
    /// How many stripes there are.
    pub(crate) cpus: u32,
    /// Address of stripe 0.
    pub(crate) stripes: usize,
    /// Address of the caller's own memory.
    pub(crate) buffer: usize,
}

impl Operands {
    /// Address `offset` bytes into the stripe of the caller's CPU.
    #[inline(always)]
    fn on_stripe<T>(&self, offset: usize) -> *mut T {
        let stripe = self.stripes.wrapping_add((self.cpu as usize).wrapping_mul(STRIDE));
        std::ptr::with_exposed_provenance_mut(stripe.wrapping_add(offset))
    }
}

/// What a call answers: in two registers, so that the tracer and the emulator can read it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Answer {
    /// 0 if the window was aborted, else 1.
    pub(crate) done: u64,
    /// The operation's value, if it has one.
    pub(crate) value: u64,
}

impl From<Outcome> for Answer {
    #[inline(always)]
    fn from(outcome: Outcome) -> Self {
        Self { done: u64::from(outcome as u8 == Outcome::Done as u8), value: 0 }
    }
}

/// A stripe, or the caller's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Memory {
    /// Where it is in the thread that is tested.
    pub(crate) address: usize,
    pub(crate) bytes: [u8; STRIDE],
}

impl Memory {
    pub(crate) fn zero(address: usize) -> Self {
        Self { address, bytes: [0; STRIDE] }
    }

    /// The integer of `width` bytes at `offset`.
    pub(crate) fn get(&self, offset: usize, width: usize) -> u64 {
        let mut word = [0; 8];
        word[..width].copy_from_slice(&self.bytes[offset..offset + width]);
        u64::from_le_bytes(word)
    }

    /// Writes the low `width` bytes of `value` at `offset`.
    pub(crate) fn put(&mut self, offset: usize, width: usize, value: u64) {
        self.bytes[offset..offset + width].copy_from_slice(&value.to_le_bytes()[..width]);
    }
}

/// How an operation finds its stripe, and what its caller does before another attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// By an address that was computed from the CPU: looks where it is.
    Cpu,
    /// By `%gs`: stripes the thread.
    Gs,
    /// It is what stripes the thread, and touches no stripe.
    Restripe,
}

/// One row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    /// The name in `arch`; ways through it follow a slash.
    pub(crate) name: &'static str,
    pub(crate) shape: Shape,
    /// Makes a zeroed stripe and the caller's zeroed memory what the operation expects.
    pub(crate) prepare: fn(stripe: &mut Memory, own: &mut Memory),
    /// Attempts it once; see [`call!`].
    pub(crate) call: unsafe extern "C" fn(&Operands) -> Answer,
    /// What it does to the stripe and the caller's memory, and its value.
    pub(crate) apply: fn(stripe: &mut Memory, own: &mut Memory) -> u64,
    /// Zeroes what lies in the stripe but is not published: an aborted attempt may have
    /// written there.
    pub(crate) forget: fn(stripe: &mut Memory),
}

impl Case {
    /// The name of the operation.
    pub(crate) fn operation(&self) -> &'static str {
        self.name.split('/').next().unwrap_or(self.name)
    }

    /// A row of an operation that hides nothing.
    const fn new(
        name: &'static str,
        shape: Shape,
        call: unsafe extern "C" fn(&Operands) -> Answer,
        prepare: fn(&mut Memory, &mut Memory),
        apply: fn(&mut Memory, &mut Memory) -> u64,
    ) -> Self {
        Self { name, shape, prepare, call, apply, forget: |_| {} }
    }
}

/// `call!(|o| expression)`: a function of its own that attempts the operation once. The
/// expression, which is unsafe, becomes an [`Answer`].
macro_rules! call {
    (|$operands:ident| $attempt:expr) => {{
        #[inline(never)]
        unsafe extern "C" fn call($operands: &Operands) -> Answer {
            // SAFETY: the operands name memory of the size that the operation needs, on the
            // stripe that the shape leads to, and the thread's own words.
            Answer::from(unsafe { $attempt })
        }
        call
    }};
}

/// Where the operations work in the stripe. Not at its beginning, so that an offset that is
/// forgotten shows.
const WORD: usize = 0x48;

/// Every window of `arch`.
pub(crate) const CASES: &[Case] = &[
    Case::new(
        "load_add_store_u64",
        Shape::Cpu,
        call!(|o| arch::load_add_store_u64(o.area, o.cpu, o.on_stripe(WORD), u64::MAX - 2)),
        |stripe, _| stripe.put(WORD, 8, 10),
        |stripe, _| {
            stripe.put(WORD, 8, stripe.get(WORD, 8).wrapping_sub(3));
            0
        },
    ),
    Case::new(
        "gs_load_add_store_u64",
        Shape::Gs,
        call!(|o| arch::gs_load_add_store_u64(o.area, WORD, 5)),
        |stripe, _| stripe.put(WORD, 8, u64::MAX - 1),
        |stripe, _| {
            stripe.put(WORD, 8, stripe.get(WORD, 8).wrapping_add(5));
            0
        },
    ),
    RESTRIPE,
];

/// What the caller of a `%gs` operation does between two attempts.
pub(crate) const RESTRIPE: Case = Case::new(
    "gs_restripe",
    Shape::Restripe,
    call!(|o| arch::gs_restripe(o.area, o.stripes, STRIDE, o.cpus)),
    |_, _| {},
    |_, _| 0,
);
