//! Waiter counts: how a waker knows that nobody waits, without asking the kernel.
//!
//! # Protocol
//!
//! ```text
//! waiter                                   waker
//!   waiters += 1                             word = new
//!   fence                                    fence
//!   sleep while word == expected             if waiters == 0: done
//!   waiters -= 1                             wake
//! ```
//!
//! Each side writes one place and then reads the other's; with a sequentially consistent
//! fence between the two, not both can miss. Without the waker's fence its store may still
//! wait in the store buffer while it reads the count: on x86 too, and the wake is lost.
//! `fence.rs` has the two fences.
//!
//! Places of a table are shared by all words of one hash. So a count may be too high,
//! which costs a system call; it is never too low.
//!
//! A waiter that cannot sleep on its own word sleeps on the entry's `sequence`:
//!
//! ```text
//! waiter                                   waker (as above, and)
//!   waiters += 1; shadowed += 1
//!   fence
//!   s = sequence
//!   if word != expected: done                if shadowed != 0:
//!   sleep while sequence == s                    sequence += 1
//!   shadowed -= 1; waiters -= 1                  wake all that sleep on sequence
//! ```
//!
//! A waker that comes after the waiter's look at the word finds `shadowed`, by the same
//! fences, and advances the sequence, so the waiter does not sleep, or is woken.
//!
//! A waiter of a vector may be *listed*: it sleeps on a word of the process, with many others, and
//! the sequences of its entries tell whether a wake was for it.
//!
//! ```text
//! waiter                                   waker (as above, and)
//!   listed += 1                              if listed != 0:
//!   fence                                        waking += 1
//!   l = list; s = sequence; w = waking           sequence += 1
//!   if word != expected: done                    list += 1
//!   sleep while list == l                        wake all that sleep on list, and count
//!   woken: if sequence != s or w != 0: done      waking -= 1
//!   otherwise again: it was for others
//! ```
//!
//! A waiter that comes between the two additions and the wake is reached by that wake, and
//! counted, though nothing has changed since it looked: `waking` tells it that this may be so. If it
//! was 0, the wakes of all whose sequence it has seen were over before it slept.
//!
//! A ring of io_uring that waits for a private word does so by the word's shared key (`uring.rs`
//! says why), where a private wake does not look. `rings` tells that one does:
//!
//! ```text
//! waiter                                   waker (as above, and)
//!   waiters += 1; rings += 1                 if rings != 0: wake by the shared key
//!   fence
//!   the ring sleeps while word == expected
//!   rings -= 1; waiters -= 1
//! ```
//!
//! # Requeue
//!
//! A waiter that the kernel moves to another word does not learn of it: it stays counted where it
//! began, at S, while wakers look at T. So whoever moves pins T:
//!
//! ```text
//! mover                                    who leaves S
//!   S.waiters += 1                           S.waiters -= 1
//!   T.waiters += 1                           if S is now (0 waiters, moved to T):
//!   S.moved_to = T  (was none, else undo)        S = (0, none) by compare-exchange
//!   fence; requeue                               T.waiters -= 1
//!   S.waiters -= 1, as who leaves
//! ```
//!
//! All that were moved from S are counted at S until they leave. So when S has no waiters, none
//! of T's sleepers is S's, and the pin can go. Both are in one word, so a mover, which counts
//! itself, keeps the pin that it found. S names one T at a time; for another one, and for a T that
//! names a place itself, a mover wakes instead of moving, which a wait allows. Two movers that
//! pin each other's places in one instant leave a circle, and so two counts that are too high.

#[cfg(test)]
use super::fence;
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// One place of a table.
///
/// | bits of `state` | |
/// |---|---|
/// | 0 to 31 | waiters of all words of this place, and pins |
/// | 32 to 63 | the place that waiters were moved to, plus 1; 0: none were |
#[derive(Debug)]
#[repr(C, align(128))]
pub(super) struct Entry {
    state: AtomicU64,
    /// Those of the waiters that sleep on `sequence`.
    shadowed: AtomicU32,
    /// Advanced by each wake that finds one of them, or one of the next.
    sequence: AtomicU32,
    /// Those that sleep on the process's word for vectors.
    listed: AtomicU32,
    /// Wakers that are about to wake those.
    waking: AtomicU32,
    /// The number of the word whose wake has advanced the sequence: a hint, for the index of a
    /// vector that has several words of this place.
    last: AtomicU64,
    /// Those that a ring waits for by the shared key of a private word; in the table of this
    /// process alone.
    rings: AtomicU32,
}

impl Entry {
    const fn new() -> Self {
        Self {
            state: AtomicU64::new(0),
            shadowed: AtomicU32::new(0),
            sequence: AtomicU32::new(0),
            listed: AtomicU32::new(0),
            waking: AtomicU32::new(0),
            last: AtomicU64::new(0),
            rings: AtomicU32::new(0),
        }
    }

    /// Counts one; a fence must follow.
    pub(super) fn add(&self) {
        self.state.fetch_add(1, Ordering::Relaxed);
    }

    /// May somebody wait? A fence must be before.
    #[inline]
    pub(super) fn is_waited_on(&self) -> bool {
        self.state.load(Ordering::Relaxed) as u32 != 0
    }

    pub(super) fn waiters(&self) -> u32 {
        self.state.load(Ordering::Relaxed) as u32
    }

    /// Counts one that sleeps on the sequence; a fence must follow.
    pub(super) fn add_shadowed(&self) {
        self.shadowed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn remove_shadowed(&self, n: u32) {
        self.shadowed.fetch_sub(n, Ordering::Release);
    }

    pub(super) fn is_shadowed(&self) -> bool {
        self.shadowed.load(Ordering::Relaxed) != 0
    }

    /// Counts one that sleeps on the word for vectors; a fence must follow.
    pub(super) fn add_listed(&self) {
        self.listed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn remove_listed(&self) {
        self.listed.fetch_sub(1, Ordering::Release);
    }

    pub(super) fn listed(&self) -> u32 {
        self.listed.load(Ordering::Relaxed)
    }

    /// Advances the sequence for a word of this number, and then has the listed ones woken.
    pub(super) fn wake_listed(&self, number: usize, wake: impl FnOnce() -> usize) -> usize {
        // The sequence publishes it.
        self.waking.fetch_add(1, Ordering::Relaxed);
        self.advance(number);
        let woken = wake();
        self.waking.fetch_sub(1, Ordering::Release);
        woken
    }

    /// May a wake reach a listed one that has seen its sequence already? To be asked after that.
    pub(super) fn is_waking(&self) -> bool {
        self.waking.load(Ordering::Acquire) != 0
    }

    /// Counts one that a ring waits for by the shared key; a fence must follow.
    pub(super) fn add_ring(&self) {
        self.rings.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn remove_ring(&self) {
        self.rings.fetch_sub(1, Ordering::Release);
    }

    pub(super) fn has_rings(&self) -> bool {
        self.rings.load(Ordering::Relaxed) != 0
    }

    /// The sequence: to be read before the word.
    pub(super) fn sequence(&self) -> &AtomicU32 {
        &self.sequence
    }

    /// Advances the sequence, for a wake of the word of this number.
    pub(super) fn advance(&self, number: usize) {
        self.last.store(number as u64, Ordering::Relaxed);
        self.sequence.fetch_add(1, Ordering::Release);
    }

    /// The number of the word whose wake came last.
    pub(super) fn last(&self) -> usize {
        self.last.load(Ordering::Relaxed) as usize
    }
}

/// Places of a table; a power of two. A model needs few.
#[cfg(not(all(test, loom)))]
pub(super) const PLACES: usize = 256;
#[cfg(all(test, loom))]
pub(super) const PLACES: usize = 4;

/// A table: of this process, or of a domain.
pub(super) type Table = [Entry; PLACES];

/// The table of this process.
static HERE: Table = [const { Entry::new() }; PLACES];

/// One place and the table that it is in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spot<'a> {
    pub(super) table: &'a Table,
    pub(super) index: usize,
}

impl<'a> Spot<'a> {
    #[inline]
    pub(super) fn entry(&self) -> &'a Entry {
        &self.table[self.index % PLACES]
    }

    /// Takes `n` away. If nobody is left, what this place pinned is let go.
    pub(super) fn leave(&self, n: u32) {
        let (mut entry, mut n) = (self.entry(), n);
        // Each turn takes a pin away, so there is an end; in a table that somebody else writes,
        // this is it.
        for _ in 0..PLACES {
            let before = entry.state.fetch_sub(n.into(), Ordering::Release);
            let (waiters, moved_to) = (before as u32, before >> 32);
            if waiters != n || moved_to == 0 {
                return;
            }
            let alone = moved_to << 32;
            let taken = entry.state.compare_exchange(alone, 0, Ordering::AcqRel, Ordering::Relaxed);
            if taken.is_err() {
                return;
            }
            (entry, n) = (&self.table[(moved_to as usize - 1) % PLACES], 1);
        }
    }

    /// Pins `to`, of the same table, for waiters of this place that are about to be moved to it. The
    /// caller is counted here until it has moved them. No, if others were moved elsewhere.
    pub(super) fn pin(&self, to: usize) -> bool {
        if self.index == to {
            return true;
        }
        let moved_to = (to as u64 + 1) << 32;
        let target = Spot { table: self.table, index: to };
        let state = &self.entry().state;
        // A pin that is found there was made before: whoever relies on it has to see it.
        let mut seen = state.load(Ordering::Acquire);
        while seen >> 32 == 0 {
            // No pin to a place that has one itself: a circle of them would never go away, for
            // each is a waiter of the next.
            if target.entry().state.load(Ordering::Relaxed) >> 32 != 0 {
                return false;
            }
            target.entry().add();
            let new = seen | moved_to;
            match state.compare_exchange(seen, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(other) => seen = other,
            }
            target.leave(1);
        }
        seen & !u64::from(u32::MAX) == moved_to
    }
}

/// The place of what has this number: an address, or an offset. Words of all sizes that overlap
/// have one.
#[inline]
pub(super) const fn place_of(number: usize) -> usize {
    // Fibonacci hashing of the containing 64 bits: the top bits of the product.
    let product = ((number >> 3) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (product >> (u64::BITS - PLACES.trailing_zeros())) as usize
}

/// The place of `number` in the table of this process.
#[inline]
pub(super) fn here(number: usize) -> Spot<'static> {
    Spot { table: &HERE, index: place_of(number) }
}

/// Counts a waiter of one place until the answer is dropped. What it reads of its word from
/// here on is ordered against [`Entry::is_waited_on`].
#[cfg(test)]
pub(super) fn enter(spot: Spot<'_>) -> bool {
    spot.entry().add();
    fence::waiter()
}

/// May somebody wait there? For a waker that has written its word before.
#[cfg(test)]
pub(super) fn has_waiters(entry: &Entry) -> bool {
    fence::waker();
    entry.is_waited_on()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn table() -> Box<Table> {
        Box::new([const { Entry::new() }; PLACES])
    }

    #[test]
    fn counts_go_up_and_come_back() {
        let table = table();
        let spot = Spot { table: &table, index: 3 };
        assert!(!has_waiters(spot.entry()));
        assert!(enter(spot) && enter(spot));
        assert!(has_waiters(spot.entry()) && !spot.entry().is_shadowed());
        spot.leave(1);
        assert!(has_waiters(spot.entry()));
        spot.leave(1);
        assert!(!has_waiters(spot.entry()));
    }

    #[test]
    fn pins_last_until_the_last_one_leaves() {
        let table = table();
        let at = |index| Spot { table: &table, index };
        let (source, target, end) = (at(1), at(2), at(3));
        source.entry().add(); // a waiter, which is moved to the target, and then to the end
        source.entry().add(); // the mover
        assert!(source.pin(2) && source.pin(2) && !source.pin(3) && source.pin(1));
        source.leave(1);
        assert!(target.entry().is_waited_on());
        target.entry().add();
        assert!(target.pin(3));
        target.leave(1);
        assert!(end.entry().is_waited_on());
        source.leave(1);
        assert!(
            [source, target, end]
                .iter()
                .all(|spot| spot.entry().state.load(Ordering::Relaxed) == 0)
        );
    }

    #[test]
    fn a_circle_of_pins_has_an_end() {
        let table = table();
        for (at, to) in [(1, 2_u64), (2, 1)] {
            table[at].state.store((to + 1) << 32 | 1, Ordering::Relaxed);
        }
        Spot { table: &table, index: 1 }.leave(1);
        table[7].state.store(u64::MAX, Ordering::Relaxed);
        Spot { table: &table, index: 7 }.leave(u32::MAX);
    }

    #[test]
    fn neighbours_spread_and_halves_do_not() {
        let places: std::collections::BTreeSet<_> =
            (0..64).map(|n| place_of(0x7f00_0000 + 64 * n)).collect();
        assert!(places.len() > 40, "{} places for 64 cache lines", places.len());
        assert_eq!(place_of(0x1000), place_of(0x1007));
    }
}

#[cfg(all(test, loom))]
#[path = "counts_models.rs"]
pub(super) mod models;
