//! The table: one row for each operation of `arch` that is a window, or for each way through
//! it. The emulator and the tracer both work from it.
//!
//! A row calls its operation in a function of its own, so that this function's copy of the
//! window is the one under test, and says in plain Rust what the operation does. An
//! operation with branches or a loop has several rows, `name/way`; together they must pass
//! every instruction of its window.

mod librseq;
mod ring;
mod structures;
mod words;

use std::sync::LazyLock;
use unmerged::abi::rseq::CPU_ID;
use unmerged::arch::{self, At, Id, Outcome, Publication};

/// Bytes of a stripe, and of the memory that belongs to the caller of an operation.
pub(crate) const STRIDE: usize = 1024;

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

    /// Address `offset` bytes into the caller's own memory.
    #[inline(always)]
    fn own<T>(&self, offset: usize) -> *mut T {
        std::ptr::with_exposed_provenance_mut(self.buffer.wrapping_add(offset))
    }

    /// The caller's CPU, as librseq's windows want it.
    #[inline(always)]
    fn id(&self) -> Id {
        Id { area: self.area, field: self.area + CPU_ID as isize, cpu: self.cpu }
    }

    /// [`WORD`] of the stripe in the shape `Indexed`; the stop word is the first of the stripe.
    #[inline(always)]
    fn indexed(&self) -> At {
        let Id { area, field, cpu } = self.id();
        let address = |offset| self.on_stripe::<u8>(offset).addr();
        At { area, field, cpu, stop: address(0), word: address(WORD) }
    }

    /// The same in the shape `Striped`.
    #[inline(always)]
    fn striped(&self) -> At {
        At { area: self.area, field: 0, cpu: 0, stop: 0, word: WORD }
    }
}

/// What a call answers: in two registers, so that the tracer and the emulator can read it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Answer {
    /// 0 if the window was aborted, else 1: done, refused or stopped.
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

/// The value of a window that was refused without one.
const REFUSED: u64 = 0x0bad;
/// The value of a window that found its CPU stopped.
const STOPPED: u64 = 0x57_0b;

/// What a window brings out, as a number.
trait Value {
    fn value(self) -> u64;
}
impl Value for () {
    #[inline(always)]
    fn value(self) -> u64 {
        REFUSED
    }
}
impl Value for usize {
    #[inline(always)]
    fn value(self) -> u64 {
        self as u64
    }
}
impl<T: Into<u64>> Value for (u32, T) {
    #[inline(always)]
    fn value(self) -> u64 {
        self.1.into()
    }
}

impl<D: Value, R: Value> From<arch::Answer<D, R>> for Answer {
    #[inline(always)]
    fn from(answer: arch::Answer<D, R>) -> Self {
        match answer {
            arch::Answer::Done(value) => Self { done: 1, value: value.value() },
            arch::Answer::Refused(value) => Self { done: 1, value: value.value() },
            arch::Answer::Stopped => Self { done: 1, value: STOPPED },
            arch::Answer::Aborted => Self { done: 0, value: 0 },
        }
    }
}

impl From<Publication> for Answer {
    #[inline(always)]
    fn from(publication: Publication) -> Self {
        match publication {
            Publication::Done => Self { done: 1, value: 0 },
            Publication::Full => Self { done: 1, value: REFUSED },
            Publication::Aborted => Self { done: 0, value: 0 },
        }
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
        unsafe extern "C" fn call($operands: &crate::cases::Operands) -> crate::cases::Answer {
            // SAFETY: the operands name memory of the size that the operation needs, on the
            // stripe that the shape leads to, and the thread's own words.
            crate::cases::Answer::from(unsafe { $attempt })
        }
        call
    }};
}

use call;

/// Where the operations work in the stripe. Not at its beginning, so that an offset that is
/// forgotten shows.
const WORD: usize = 0x48;

/// Every window of `arch`.
pub(crate) static CASES: LazyLock<Vec<Case>> = LazyLock::new(|| {
    [COUNTERS, &words::cases(), structures::CASES, librseq::CASES, ring::CASES].concat()
});

/// The windows whose only result is done or aborted.
const COUNTERS: &[Case] = &[
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
