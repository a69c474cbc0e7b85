//! Instructions: the contract of each, in pseudo code, stated here once.
//!
//! # Thread words
//!
//! Asm knows these words of each thread: the rseq area (libc's, or ours when libc has
//! none), found at a fixed offset `area` from the thread pointer; `striped_cpu`, the CPU that
//! this thread's `%gs` points at in the stripes of this crate, or [`NOT_STRIPED`]; and
//! `callers_cpu`, the same for stripes that the caller laid out. One of the two is always
//! `NOT_STRIPED`.
//!
//! # Windows
//!
//! A window is an rseq critical section: if the thread is preempted, migrated or
//! signalled inside it, it goes on at the abort label and nothing has happened. The last
//! line of each is its commit. The short ones answer an [`Outcome`], the others an [`Answer`].
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
//!         callers_cpu = NOT_STRIPED
//!         c = area.cpu_id
//!         if c >= cpus: abort
//!         gsbase = base + c * stride
//!         striped_cpu = c                      # gs_restripe_callers: callers_cpu = c
//!     }
//! ```
//!
//! `gs_restripe` writes `NOT_STRIPED` as the first lines *inside* its window. Written in
//! front of the window it would be lost: a signal handler between the two may stripe
//! the thread for CPU 1, the thread migrates, the window sets the base for CPU 2 and is
//! aborted, and word and base disagree. Inside, an abort always leaves `NOT_STRIPED`,
//! and a handler that runs after it stripes both anew. It writes both words, because a handler
//! may have laid `%gs` over the other stripes since the caller of the window looked.
//!
//! A word that windows update is updated by nothing else: a plain read-modify-write
//! beside an atomic one loses counts. The one exception is a word whose CPU somebody has
//! stopped (below).
//!
//! ## On one word
//!
//! The windows of [`Words`], for 8, 16, 32 and 64 bits, and of [`Structures`] are built in
//! three shapes: [`Indexed`], with addresses made for one CPU; [`Striped`] and [`ByCaller`], with
//! offsets from the GS base. All begin alike, and here `*` stands for the shape's access:
//!
//! ```text
//! here():
//!     if area.id != cpu: abort                 # Striped: area.cpu_id != striped_cpu
//!     if *stop != 0: stopped                   # somebody has taken this CPU's stripe
//!                                              # (ByCaller: no such line)
//!
//! load(word):                      window { here(); old = *word }
//! store(word, v):                  window { here(); *word = v }
//! load_add_store(word, v):         window { here(); old = *word; *word = old + v }
//! load_store(word, v):             window { here(); old = *word; *word = v }
//! load_cbne_store(word, e, v):     window { here(); old = *word; if old != e: refuse; *word = v }
//! load_and_store(word, v):         window { here(); old = *word; *word = old & v }
//! load_or_store(word, v):          window { here(); old = *word; *word = old | v }
//! ```
//!
//! Each answers `old` (`store`: `v`) and the CPU.
//!
//! ## On a list, and on an array
//!
//! A list is a word that holds the address of a node, or 0; the first word of a node is the next
//! one's. To take a whole list is `load_store(head, 0)`. An array is a count and, behind it, slots.
//!
//! ```text
//! list_push(head, node):           window { here(); t = *head; *node = t; *head = node }
//! list_pop(head):                  window { here(); node = *head; if node == 0: refuse
//!                                           t = *node; *head = t }
//! array_push(array, capacity, v):  window { here(); t = count; if t >= capacity: refuse
//!                                           slots[t] = v; count = t + 1 }
//! array_pop(array):                window { here(); t = count; if t == 0: refuse
//!                                           v = slots[t - 1]; count = t - 1 }
//! array_push_batch(array, capacity, from, n):
//!                                  window { here(); t = count; if t + n > capacity: refuse
//!                                           slots[t..t + n] = from[..n]; count = t + n }
//! array_pop_batch(array, to, n):   window { here(); t = count; if t == 0: refuse
//!                                           n = min(n, t); to[..n] = slots[t - n..t]
//!                                           count = t - n }
//! ```
//!
//! ## librseq's menu
//!
//! On addresses of the caller's, with its check of the CPU and without a stop word; `refuse` is
//! librseq's answer 1. `load_add_store` above is its `addv`.
//!
//! ```text
//! load_cbne_store(word, e, v):     window { if *word != e: refuse; *word = v }
//! load_cbeq_store_add_load_store(word, not, offset, load):
//!                                  window { t = *word; if t == not: refuse; *load = t
//!                                           t = *(t + offset); *word = t }
//! load_add_load_load_add_store(word, offset, v):
//!                                  window { t = *(*word + offset); x = *t; *t = x + v }
//! load_cbne_store_store(word, e, (first, early), v):
//!                                  window { if *word != e: refuse; *first = early; *word = v }
//! load_cbne_load_cbne_store(word, e, (other, also), v):
//!                                  window { if *word != e: refuse; if *other != also: refuse
//!                                           *word = v }
//! load_cbne_memcpy_store(word, e, (to, from, len), v):
//!                                  window { if *word != e: refuse; to[..len] = from[..len]
//!                                           *word = v }
//! ```
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
//! callers_cpu(), callers_striping()  # where the caller's thread words are
//! cpu_id(area)                  # one load; meaningful only as an argument of a window
//! containing_u32(byte)          # the aligned 32-bit word around a byte, as one load
//! fetch_add_alone(word, n)      # xadd without lock: whole for signal handlers, not for threads
//! ```
//!
//! `x86_64` implements this contract; [`portable`] is its twin without asm, which updates
//! the stripes of threads that cannot run a window, and what the conformance tests compare
//! with.

pub mod portable;
pub mod x86_64;

pub use x86_64::{
    ByCaller, Indexed, Striped, Striping, callers_cpu, callers_striping, containing_u32, cpu_id,
    fetch_add_alone, gs_base, gs_load_add_store_u64, gs_load_u64, gs_restripe, gs_restripe_callers,
    load_add_load_load_add_store, load_add_store_u64, load_cbeq_store_add_load_store,
    load_cbne_load_cbne_store, load_cbne_memcpy_store, load_cbne_store, load_cbne_store_store,
    own_area_offset, ring_pad, ring_publish_parts, ring_publish_vectors, ring_publish_words,
    set_gs_base, set_striped_cpu, striped_cpu, thread_pointer,
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

/// What became of a window that may bring values out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer<D, R = D> {
    /// The commit was executed, once.
    Done(D),
    /// The window left before its commit, because of what it found.
    Refused(R),
    /// Somebody has stopped this CPU.
    Stopped,
    /// Nothing happened: another CPU, a preemption or a signal.
    Aborted,
}

/// Where a window of [`Words`] or [`Structures`] works.
#[derive(Debug, Clone, Copy)]
pub struct At {
    /// Offset of the rseq area from the thread pointer.
    pub area: isize,
    /// Offset of the id that is compared, `cpu_id` or `mm_cid` ([`Indexed`] alone).
    pub field: isize,
    /// What it is compared with ([`Indexed`] alone).
    pub cpu: u32,
    /// The stop word: an address ([`Indexed`]), or an offset from the GS base ([`Striped`]).
    pub stop: usize,
    /// The word: likewise.
    pub word: usize,
}

/// Which CPU a window of librseq's menu works on.
#[derive(Debug, Clone, Copy)]
pub struct Id {
    /// Offset of the rseq area from the thread pointer.
    pub area: isize,
    /// Offset of the id that is compared: `cpu_id` or `mm_cid`.
    pub field: isize,
    /// What it is compared with.
    pub cpu: u32,
}

/// The windows on one word, in one shape. See the pseudo code in [`crate::arch`].
///
/// # Safety of all of them
///
/// - `at.area` is the offset of this thread's registered rseq area, or of one whose `cpu_id`
///   is no CPU.
/// - `at.word` and `at.stop` lead to readable, writable, aligned words of the stripe of the CPU
///   that the window checks.
/// - Nothing but windows of that CPU, and whoever has stopped it, writes the word meanwhile.
#[allow(clippy::missing_safety_doc, reason = "stated once for all")]
pub trait Words<T: Copy> {
    /// The value.
    unsafe fn load(at: At) -> Answer<(u32, T)>;
    /// Overwrites it.
    unsafe fn store(at: At, v: T) -> Answer<(u32, T)>;
    /// Adds, wrapping; the value before.
    unsafe fn load_add_store(at: At, v: T) -> Answer<(u32, T)>;
    /// Exchanges; the value before.
    unsafe fn load_store(at: At, v: T) -> Answer<(u32, T)>;
    /// Exchanges if the value is `expected`; the value before.
    unsafe fn load_cbne_store(at: At, expected: T, v: T) -> Answer<(u32, T)>;
    /// Keeps the bits that `v` has; the value before.
    unsafe fn load_and_store(at: At, v: T) -> Answer<(u32, T)>;
    /// Sets the bits that `v` has; the value before.
    unsafe fn load_or_store(at: At, v: T) -> Answer<(u32, T)>;
}

/// The windows on lists and arrays of words, in one shape. See the pseudo code in [`crate::arch`].
///
/// # Safety of all of them
///
/// As for [`Words`]. A node is the address of a word that is the caller's until it is pushed, and
/// again once it is popped. An array has its count at `at.word` and `capacity` words behind it.
/// Batches are of one word at least.
#[allow(clippy::missing_safety_doc, reason = "stated once for all")]
pub trait Structures: Words<u8> + Words<u16> + Words<u32> + Words<u64> {
    /// Puts `node` in front.
    unsafe fn list_push(at: At, node: usize) -> Answer<()>;
    /// Takes the first node; refused if there is none.
    unsafe fn list_pop(at: At) -> Answer<usize, ()>;
    /// Puts `v` on top; refused if the array is full.
    unsafe fn array_push(at: At, capacity: usize, v: usize) -> Answer<(), ()>;
    /// Takes the top; refused if there is none.
    unsafe fn array_pop(at: At) -> Answer<usize, ()>;
    /// Puts `n` words on top; refused if there is no room for all.
    unsafe fn array_push_batch(
        at: At,
        capacity: usize,
        from: *const usize,
        n: usize,
    ) -> Answer<(), ()>;
    /// Takes up to `n` words from the top, in the order in which they were put; refused if there
    /// is none.
    unsafe fn array_pop_batch(at: At, to: *mut usize, n: usize) -> Answer<usize, ()>;
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
