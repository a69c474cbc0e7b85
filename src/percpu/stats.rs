//! How often the fast way was not the way.

use crate::sync::{AtomicU64, Ordering};

/// What this process has counted since it started; see [`stats`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Windows that did not reach their commit and were tried again: the thread was preempted,
    /// migrated or signalled inside, or came from another CPU, or met a fence.
    pub aborts: u64,
    /// Times that `%gs` was pointed at the stripe of another CPU.
    pub restripes: u64,
    /// Operations that were done on an overflow stripe: no window could run, too many were
    /// aborted, or the CPU was [stopped](super::Stack::drain).
    pub fallbacks: u64,
    /// Fences of one CPU, or of all, that drains have cost.
    pub fences: u64,
}

/// One of the numbers. It is counted where an operation has become slow already.
#[derive(Debug)]
pub(super) struct Event(AtomicU64);

impl Event {
    pub(super) fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

pub(super) static ABORTS: Event = Event(AtomicU64::new(0));
pub(super) static RESTRIPES: Event = Event(AtomicU64::new(0));
pub(super) static FALLBACKS: Event = Event(AtomicU64::new(0));
pub(super) static FENCES: Event = Event(AtomicU64::new(0));

/// How often the fast way was not the way, in this process, for all types of this module.
///
/// In the implementation `portable` every operation of every type is a fallback.
pub fn stats() -> Stats {
    let of = |event: &Event| event.0.load(Ordering::Relaxed);
    Stats {
        aborts: of(&ABORTS),
        restripes: of(&RESTRIPES),
        fallbacks: of(&FALLBACKS),
        fences: of(&FENCES),
    }
}
