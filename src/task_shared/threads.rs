//! What a reader sees of a thread: a copy of its slot, and a way back to it.

use super::live::Whereabouts;
use super::liveness::is_held;
use super::monitor::Monitor;
use super::record::{FLAG_RSEQ, Reading, Record, SchedStats};
use super::schema::{Datum, Field, Value, Word};
use crate::sync::Ordering;
use core::fmt;
use core::ops::RangeInclusive;
use std::borrow::Cow;

/// Iterator over the threads of a process that hold a slot; made by [`Monitor::threads`].
#[derive(Debug)]
pub struct Threads<'a> {
    monitor: &'a Monitor,
    slots: core::ops::Range<usize>,
}

impl<'a> Threads<'a> {
    pub(super) fn new(monitor: &'a Monitor, slots: usize) -> Self {
        Self { monitor, slots: 0..slots }
    }
}

impl<'a> Iterator for Threads<'a> {
    type Item = Thread<'a>;

    #[inline]
    fn next(&mut self) -> Option<Thread<'a>> {
        for place in self.slots.by_ref() {
            if let Some(thread) = Thread::at(self.monitor, place) {
                return Some(thread);
            }
        }
        None
    }
}

/// A thread that was seen in a slot, to look at it again by [`Monitor::thread`] of the same
/// monitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Handle {
    place: u32,
    generation: u32,
}

impl Handle {
    pub(super) fn place(self) -> usize {
        self.place as usize
    }

    pub(super) fn generation(self) -> u32 {
        self.generation
    }
}

/// One thread, as it was at the last look; [`is_alive`](Self::is_alive) looks again.
///
/// It is bound to the thread, not to the slot: it never shows the numbers of another thread
/// that got the slot later.
#[derive(Clone)]
pub struct Thread<'a> {
    monitor: &'a Monitor,
    place: usize,
    reading: Reading,
}

impl<'a> Thread<'a> {
    /// Who holds the slot at `place`, which the monitor has allowed.
    #[inline]
    pub(super) fn at(monitor: &'a Monitor, place: usize) -> Option<Self> {
        let reading = monitor.record(place).read()?;
        Some(Self { monitor, place, reading })
    }
}

impl Thread<'_> {
    fn record(&self) -> &Record {
        self.monitor.record(self.place)
    }

    /// The thread's id, in the process's own pid namespace.
    pub fn tid(&self) -> u32 {
        self.reading.values.tid
    }

    /// What finds this thread again, and no other, also after the borrow of the monitor.
    pub fn handle(&self) -> Handle {
        Handle { place: self.place as u32, generation: self.reading.generation }
    }

    /// Does the thread still live, and hold its slot? Looks now, with one load or two and no
    /// system call: the kernel marks the slot at the end of the thread, whatever ended it.
    /// Once `false`, it stays so.
    ///
    /// One end is not marked: a thread other than the main one that calls execve(2). The
    /// kernel gives it the main thread's id first, and then finds another owner in the word.
    /// All other threads of the process are marked, and [`Monitor::is_running`] knows.
    ///
    /// Of a thread that a [`Sampler`](super::Sampler) publishes in its name, the sampler sees
    /// the end in its next round.
    pub fn is_alive(&self) -> bool {
        let values = &self.reading.values;
        let owner = if values.keeper == 0 { values.tid } else { values.keeper };
        let mark = self.monitor.mark(self.place);
        is_held(mark, &self.record().generation, owner, self.reading.generation)
    }

    /// Is it a thread that never took a slot, and that a [`Sampler`](super::Sampler)
    /// publishes in a slot of its own?
    pub fn is_sampled(&self) -> bool {
        self.reading.values.keeper != 0
    }

    /// What was published of the thread last; zeros before the first publication.
    #[inline]
    pub fn stats(&self) -> SchedStats {
        self.reading.values.stats
    }

    /// The least and the most that `off_cpu` can be at `now`, in nanoseconds of
    /// CLOCK_MONOTONIC.
    ///
    /// When a thread publishes it is on a CPU, and [`SchedStats::off_cpu`] is exact: that is the
    /// least. Since then it may have been off the CPU all the time: that is the most, and
    /// right for a thread that is known to be blocked. Before the first publication the most is
    /// the time since it took the slot.
    pub fn off_cpu_at(&self, now: u64) -> RangeInclusive<u64> {
        let least = self.stats().off_cpu;
        let since = match self.updated() {
            0 => self.since(),
            updated => updated,
        };
        least..=least.saturating_add(now.saturating_sub(since))
    }

    /// The first of the words that the thread has set.
    #[inline]
    pub fn user(&self) -> u64 {
        self.reading.user[0]
    }

    /// The user's word `index`. The first seven were copied with the rest; those of larger
    /// slots are looked at now. `None` if there is no such word, or another thread has the slot.
    pub fn word(&self, index: usize) -> Option<u64> {
        if let Some(&word) = self.reading.user.get(index) {
            return (index < self.monitor.shape().words()).then_some(word);
        }
        let word = self.monitor.user(self.place).get(index)?.load(Ordering::Relaxed);
        self.is_here().then_some(word)
    }

    /// A word of the user's by its declaration; `None` as [`word`](Self::word).
    pub fn get<T: Datum>(&self, word: Word<T>) -> Option<T> {
        self.word(word.index()).map(T::from_bits)
    }

    /// A word of the user's as the process has declared it, see [`Monitor::fields`]; `None`
    /// as [`word`](Self::word).
    pub fn value(&self, field: &Field) -> Option<Value> {
        self.word(field.index).map(|bits| field.kind.value(bits))
    }

    /// Copies all of the user's words, as many as fit; answers whether they are of one moment,
    /// `None` if another thread has the slot. They are of one moment if the thread writes them
    /// by [`publish_words`](super::Slot::publish_words), and was not in the middle of it.
    pub fn copy_words(&self, into: &mut [u64]) -> Option<bool> {
        let words = self.monitor.user(self.place);
        let words = &words[..words.len().min(into.len())];
        let quiet = self.record().user_life(words).copy_into(&mut into[..words.len()]);
        self.is_here().then_some(quiet)
    }

    /// Is what was read before this still of this thread, who may have ended since?
    fn is_here(&self) -> bool {
        self.record().life().is_of(self.reading.generation)
    }

    /// The thread's name when it took its slot; at most 15 bytes, and what is not UTF-8 is
    /// replaced. Looks now: it is empty once another thread has the slot.
    pub fn name(&self) -> Cow<'_, str> {
        let name = self.monitor.owner(self.place).label().name;
        if !self.is_here() {
            return Cow::Borrowed("");
        }
        let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
        Cow::Owned(String::from_utf8_lossy(&name[..end]).into_owned())
    }

    /// When the thread took its slot, in nanoseconds of CLOCK_MONOTONIC. Looks now: it is 0
    /// once another thread has the slot.
    pub fn since(&self) -> u64 {
        let since = self.monitor.owner(self.place).label().since;
        if self.is_here() { since } else { 0 }
    }

    /// The CPU that the thread ran on when it published last itself, or took the slot;
    /// `u32::MAX` if it never did.
    pub fn cpu(&self) -> u32 {
        self.reading.values.cpu
    }

    /// The NUMA node of that CPU.
    pub fn node(&self) -> u32 {
        self.reading.values.node
    }

    /// Where the thread runs, or ran last, as the kernel has written it: looks now, with no
    /// publication of the thread. `None` unless it has called
    /// [`Slot::register_rseq`](super::Slot::register_rseq), and once it is gone.
    pub fn whereabouts(&self) -> Option<Whereabouts> {
        let registered = self.record().flags() & FLAG_RSEQ != 0;
        let area = self.monitor.rseq(self.place).filter(|_| registered);
        area.and_then(Whereabouts::of).filter(|_| self.is_alive())
    }

    /// When the numbers were published last, in nanoseconds of CLOCK_MONOTONIC; 0 before the
    /// first time.
    pub fn updated(&self) -> u64 {
        self.reading.values.updated
    }

    /// Generation of the slot: odd, and another one for each thread that gets the slot.
    pub fn generation(&self) -> u32 {
        self.reading.generation
    }

    /// Are the numbers of one moment? They are not if the thread died, or was stopped, or was
    /// writing again and again, while it published; they are this thread's all the same.
    pub fn is_consistent(&self) -> bool {
        self.reading.quiet
    }

    /// Looks again. `false`, and nothing changes, if the slot is not this thread's any more.
    #[inline]
    pub fn refresh(&mut self) -> bool {
        match self.record().read() {
            Some(now) if now.generation == self.reading.generation => {
                self.reading = now;
                true
            }
            _ => false,
        }
    }
}

impl fmt::Debug for Thread<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Thread")
            .field("tid", &self.tid())
            .field("name", &self.name())
            .field("is_alive", &self.is_alive())
            .field("stats", &self.stats())
            .field("user", &self.user())
            .finish_non_exhaustive()
    }
}
