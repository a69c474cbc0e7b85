//! A lock-free bitmap of free places, lowest first, with one summary level.
//!
//! # Protocol
//!
//! `words`: bit set = taken. `summary`: bit set = the word was full when somebody looked.
//! [`Bitmap::take`] sets the lowest clear bit it finds with acquire, [`Bitmap::release`]
//! clears it with release: whoever takes a place sees all that its last owner did to it.
//!
//! The summary is a hint that may be wrong in one direction only for a moment: a bit that
//! says "full" of a word with room would hide that room. So whoever sets it looks at the
//! word again and takes it back, and whoever releases looks at it afterwards and clears it.
//! Each of the two writes one word and then reads the other's, with a sequentially
//! consistent fence between: not both can miss.

use crate::sync::{AtomicU64, Ordering, fence};

/// Places of one word.
const BITS: usize = u64::BITS as usize;

/// The algorithm, over borrowed words.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bitmap<'a> {
    words: &'a [AtomicU64],
    summary: &'a [AtomicU64],
}

impl<'a> Bitmap<'a> {
    /// Over `words`, with one bit of `summary` for each of them.
    ///
    /// # Panics
    ///
    /// If the summary has too few bits.
    pub(crate) fn new(words: &'a [AtomicU64], summary: &'a [AtomicU64]) -> Self {
        assert!(summary.len() * BITS >= words.len(), "summary too small");
        Self { words, summary }
    }

    /// Takes the lowest free place below `limit`; `None` if there is none.
    pub(crate) fn take(&self, limit: usize) -> Option<usize> {
        let words = limit.div_ceil(BITS).min(self.words.len());
        for group in 0..words.div_ceil(BITS) {
            let mut hints = !self.summary[group].load(Ordering::Relaxed);
            while hints != 0 {
                let index = group * BITS + hints.trailing_zeros() as usize;
                if index >= words {
                    break;
                }
                if let Some(place) = self.take_in(index, limit) {
                    return Some(place);
                }
                hints &= hints - 1;
            }
        }
        None
    }

    /// Takes the lowest free place of one word.
    fn take_in(&self, index: usize, limit: usize) -> Option<usize> {
        let word = &self.words[index];
        let room = limit - index * BITS;
        let usable = if room >= BITS { u64::MAX } else { (1 << room) - 1 };
        let mut seen = word.load(Ordering::Relaxed);
        loop {
            let free = !seen & usable;
            if free == 0 {
                if seen == u64::MAX {
                    self.mark_full(index);
                }
                return None;
            }
            let bit = free & free.wrapping_neg();
            match word.compare_exchange_weak(seen, seen | bit, Ordering::Acquire, Ordering::Relaxed)
            {
                Ok(_) => return Some(index * BITS + bit.trailing_zeros() as usize),
                Err(now) => seen = now,
            }
        }
    }

    /// Sets the hint, then looks again: a release may have come between.
    fn mark_full(&self, index: usize) {
        let (hint, bit) = (&self.summary[index / BITS], 1 << (index % BITS));
        hint.fetch_or(bit, Ordering::Relaxed);
        // Pairs with the fence of `release`: not both may miss the other's write.
        fence(Ordering::SeqCst);
        if self.words[index].load(Ordering::Relaxed) != u64::MAX {
            hint.fetch_and(!bit, Ordering::Relaxed);
        }
    }

    /// Gives `place` back; whether it was taken.
    pub(crate) fn release(&self, place: usize) -> bool {
        let bit = 1 << (place % BITS);
        self.release_word(place / BITS, bit) & bit != 0
    }

    /// Gives the places of one word back whose bits are set; which of the word were taken.
    pub(crate) fn release_word(&self, index: usize, bits: u64) -> u64 {
        let before = self.words[index].fetch_and(!bits, Ordering::Release);
        // Pairs with the fence of `mark_full`.
        fence(Ordering::SeqCst);
        let (hint, full) = (&self.summary[index / BITS], 1 << (index % BITS));
        if hint.load(Ordering::Relaxed) & full != 0 {
            hint.fetch_and(!full, Ordering::Relaxed);
        }
        before
    }

    /// Is `place` taken? A moment's answer.
    pub(crate) fn is_taken(&self, place: usize) -> bool {
        self.words[place / BITS].load(Ordering::Relaxed) & (1 << (place % BITS)) != 0
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn words(n: usize) -> Vec<AtomicU64> {
        (0..n).map(|_| AtomicU64::new(0)).collect()
    }

    proptest! {
        /// Against a set: the lowest free place below the limit, or none.
        #[test]
        fn agrees_with_a_set(steps in prop::collection::vec((any::<bool>(), 0..200_usize), 1..400)) {
            let (bits, summary) = (words(3), words(1));
            let bitmap = Bitmap::new(&bits, &summary);
            let mut model = BTreeSet::new();
            for (take, n) in steps {
                if take {
                    let expected = (0..n.min(192)).find(|place| !model.contains(place));
                    prop_assert_eq!(bitmap.take(n), expected);
                    model.extend(expected);
                } else if n < 192 {
                    prop_assert_eq!(bitmap.release(n), model.remove(&n));
                    prop_assert!(!bitmap.is_taken(n));
                }
            }
        }
    }

    #[test]
    fn threads_never_share_a_place() {
        let (bits, summary) = (words(2), words(1));
        let bitmap = Bitmap::new(&bits, &summary);
        let owners: Vec<_> = (0..128).map(|_| AtomicU64::new(0)).collect();
        std::thread::scope(|scope| {
            for me in 1..=4 {
                let owners = &owners;
                scope.spawn(move || {
                    for _ in 0..20_000 {
                        let held: Vec<_> = (0..40).filter_map(|_| bitmap.take(128)).collect();
                        for &place in &held {
                            assert_eq!(owners[place].swap(me, Ordering::Relaxed), 0);
                        }
                        for place in held {
                            assert_eq!(owners[place].swap(0, Ordering::Relaxed), me);
                            assert!(bitmap.release(place));
                        }
                    }
                });
            }
        });
        assert_eq!((0..129).map_while(|_| bitmap.take(128)).count(), 128);
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::sync::model;
    use loom::sync::Arc;
    use loom::thread;

    struct Shared {
        words: [AtomicU64; 1],
        summary: [AtomicU64; 1],
        /// What the owner of place 63 does without atomics.
        place: loom::cell::UnsafeCell<u64>,
    }

    /// All but the last place are taken.
    fn shared() -> Arc<Shared> {
        Arc::new(Shared {
            words: [AtomicU64::new(u64::MAX >> 1).ready()],
            summary: [AtomicU64::new(0).ready()],
            place: loom::cell::UnsafeCell::new(0),
        })
    }

    /// Two threads want the one free place; each owner writes it without atomics. Fails
    /// when the take's acquire or the release's release is relaxed.
    #[test]
    fn one_owner_at_a_time() {
        model(|| {
            let shared = shared();
            let work = |shared: Arc<Shared>| {
                move || {
                    let bitmap = Bitmap::new(&shared.words, &shared.summary);
                    if let Some(place) = bitmap.take(64) {
                        shared.place.with_mut(|value| unsafe { *value += 1 });
                        assert!(bitmap.release(place));
                    }
                }
            };
            let other = thread::spawn(work(shared.clone()));
            work(shared.clone())();
            other.join().unwrap();
        });
    }

    /// A place that was released is found by whoever looks afterwards, whatever the hint
    /// said meanwhile. Fails when either fence is taken out.
    #[test]
    fn no_room_is_hidden() {
        model(|| {
            let shared = shared();
            let place = Bitmap::new(&shared.words, &shared.summary).take(64).unwrap();
            let looker = {
                let shared = shared.clone();
                thread::spawn(move || Bitmap::new(&shared.words, &shared.summary).take(64))
            };
            Bitmap::new(&shared.words, &shared.summary).release(place);
            let taken = looker.join().unwrap();
            let bitmap = Bitmap::new(&shared.words, &shared.summary);
            assert!(taken.is_some() || bitmap.take(64).is_some());
        });
    }
}
