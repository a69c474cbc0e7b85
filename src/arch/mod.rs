//! Instructions: the contract of each, in pseudo code, stated here once.
//!
//! # Thread words
//!
//! Two words per thread are known to asm: the rseq area (libc's, or ours when libc has
//! none), found at a fixed offset `area` from the thread pointer, and `striped_cpu`,
//! the CPU that this thread's `%gs` points at, or [`NOT_STRIPED`].
//!
//! # Windows
//!
//! A window is an rseq critical section: if the thread is preempted, migrated or
//! signalled inside it, it goes on at the abort label and nothing has happened. The last
//! line of each is its commit. Every window answers an [`Outcome`].
//!
//! ```text
//! load_add_store(area, cpu, word, v):          # the classical shape, indexed by CPU
//!     window {
//!         if area.cpu_id != cpu: abort
//!         t = *word
//!         t = t + v
//!         *word = t
//!     }
//!
//! gs_load_add_store(area, offset, v):          # the address does not depend on the CPU
//!     window {
//!         if area.cpu_id != striped_cpu: abort
//!         t = %gs:offset
//!         t = t + v
//!         %gs:offset = t
//!     }
//!
//! gs_restripe(area, base, stride, cpus):       # point %gs at the stripe of this CPU
//!     window {
//!         striped_cpu = NOT_STRIPED
//!         c = area.cpu_id
//!         if c >= cpus: abort
//!         gsbase = base + c * stride
//!         striped_cpu = c
//!     }
//! ```
//!
//! `gs_restripe` writes `NOT_STRIPED` as the first line *inside* its window. Written in
//! front of the window it would be lost: a signal handler between the two may stripe
//! the thread for CPU 1, the thread migrates, the window sets the base for CPU 2 and is
//! aborted, and word and base disagree. Inside, an abort always leaves `NOT_STRIPED`,
//! and a handler that runs after it stripes both anew. (`tests/arch.rs`
//! walks every interruption of both forms.)
//!
//! A word that windows update is updated by nothing else: a plain read-modify-write
//! beside an atomic one loses counts.
//!
//! # Ring windows
//!
//! A stripe of a ring is `head`, `limit` ([`RING_LIMIT`] bytes behind) and, from
//! [`RING_DATA`] on, `data`: `mask + 1` units of 8 bytes, a power of two. `head` and `limit`
//! count units in their lower and records in their upper half; `step` is what a record adds to
//! `head`. Two ways out lie in front of the commit: *abort*, and *full*, for too little room
//! or none in one piece. Every one answers a [`Publication`].
//!
//! ```text
//! ring_publish(area, cpu, stripe, mask, step, len, payload):
//!     window {
//!         if area.cpu_id != cpu: abort
//!         h = stripe.head
//!         if low(stripe.limit - h) < low(step): full
//!         i = h & mask
//!         if i + low(step) - 1 > mask: full
//!         stripe.data[i] = len
//!         stripe.data[i + 1..] = payload         # a word or two, vectors, or a list of parts
//!         stripe.head = h + step
//!     }
//!
//! ring_pad(area, cpu, stripe, h, at, units):      # nothing more fits in front of the end
//!     window {
//!         if area.cpu_id != cpu: abort
//!         if stripe.head != h: abort
//!         *at = RING_PAD
//!         stripe.head = h + units
//!     }
//! ```
//!
//! The payload lies in the window: an aborted or killed writer has published nothing, and a
//! signal handler that publishes on the same stripe finds it as if nobody had begun. No value
//! found in the stripe can make a window write outside of `data`, given `low(step) <= mask`.
//!
//! # Other primitives
//!
//! ```text
//! gs_base() / set_gs_base(b)    # rdgsbase / wrgsbase; needs FSGSBASE
//! gs_load_u64(offset)           # %gs:offset, as one load
//! thread_pointer()              # %fs:0
//! own_area_offset()             # where our own rseq area is, from the thread pointer
//! striped_cpu() / set_striped_cpu(c)
//! cpu_id(area)                  # one load; meaningful only as an argument of a window
//! containing_u32(byte)          # the aligned 32-bit word around a byte, as one load
//! ```
//!
//! `x86_64` implements this contract; [`portable`] is its twin without asm, which updates
//! the stripes of threads that cannot run a window, and what the conformance tests compare
//! with.

pub mod portable;
pub mod x86_64;

pub use x86_64::{
    containing_u32, cpu_id, gs_base, gs_load_add_store_u64, gs_load_u64, gs_restripe,
    load_add_store_u64, own_area_offset, ring_pad, ring_publish_parts, ring_publish_vectors,
    ring_publish_words, set_gs_base, set_striped_cpu, striped_cpu, thread_pointer,
};

/// `striped_cpu` of a thread whose `%gs` points at no stripe. It differs from every
/// CPU id and from both negative values of `rseq.cpu_id`, so the compare of a window
/// fails on it.
pub const NOT_STRIPED: u32 = u32::MAX - 2;

/// What became of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The commit was executed, once.
    Done,
    /// Nothing happened: another CPU, a preemption or a signal, or a CPU out of range.
    Aborted,
}

/// Offset of `limit` in a stripe of a ring: far enough from `head` for lines that are
/// fetched in pairs.
pub const RING_LIMIT: usize = 128;

/// Offset of `data` in a stripe of a ring.
pub const RING_DATA: usize = 384;

/// In the place of a record's length: nothing more up to the end of the data.
pub const RING_PAD: u64 = u64::MAX;

/// What became of a ring's window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Publication {
    /// The commit was executed, once.
    Done,
    /// Nothing happened: too little room, or none in one piece.
    Full,
    /// Nothing happened: another CPU, a preemption or a signal.
    Aborted,
}
