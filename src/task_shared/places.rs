//! Which slots are taken: a bitmap, lowest free first, and a cool-down before reuse.
//!
//! # Cool-down
//!
//! A place that is given back is not free at once: it *cools*, in a bitmap of its own, until
//! nothing else is free. Then all that cools is thawed, before the dead are looked for and
//! before the table grows. So a slot is reused as late as that is possible without more memory,
//! and a reader that comes by finds the last numbers of a thread that has just ended.
//!
//! It goes by use and not by time: there is no clock to read, and a burst of short threads does
//! not make the table grow, as waiting for a deadline would. It is a courtesy to readers: what
//! keeps them from taking one thread for another is the generation.
//!
//! # Lowest first, and what it costs
//!
//! The lowest free place goes first, so that those in use stay together and a reader passes few
//! others. All threads that take one at the same moment therefore want the same word: one thread
//! takes and gives back in 49 ns, each of two at once in 100 (`cargo bench --bench ratios --
//! task_shared/alloc`, the rows with `-2t`). A hint for each thread where to begin would keep
//! them apart, and would scatter places over the table; a thread takes one place in its life,
//! and being started costs it two hundred times as much.
//!
//! # Protocol
//!
//! ```text
//! take:        taken: lowest clear bit -> set (acquire)
//! give back:   cooling: set the bit (release)          it stays set in taken
//! thaw:        cooling: swap with 0 (acquire); taken: clear those bits (release)
//! ```
//!
//! A bit is set in `cooling` by its owner alone, once, and whoever swaps it out is the only
//! one to clear it in `taken`: two that thaw at once find it in one of their two hands.

use super::layout::MAX_SLOTS;
use crate::shm::Bitmap;
use crate::sync::{AtomicU64, Ordering};

/// Places of one word.
const BITS: usize = u64::BITS as usize;
/// Words of the bitmap.
#[cfg(not(all(test, loom)))]
const WORDS: usize = MAX_SLOTS / BITS;
#[cfg(all(test, loom))]
const WORDS: usize = 1;

/// The places of a table.
#[derive(Debug)]
pub struct Places {
    taken: Box<[AtomicU64]>,
    summary: Box<[AtomicU64]>,
    cooling: Box<[AtomicU64]>,
}

impl Default for Places {
    fn default() -> Self {
        Self::new()
    }
}

impl Places {
    /// All of them free.
    pub fn new() -> Self {
        let words = |n| (0..n).map(|_| AtomicU64::new(0)).collect();
        Self { taken: words(WORDS), summary: words(WORDS.div_ceil(BITS)), cooling: words(WORDS) }
    }

    fn bitmap(&self) -> Bitmap<'_> {
        Bitmap::new(&self.taken, &self.summary)
    }

    /// Takes the lowest free place below `limit`; `None` if there is none, though some may
    /// be cooling.
    pub fn take(&self, limit: usize) -> Option<usize> {
        self.bitmap().take(limit)
    }

    /// Gives a place back, to cool.
    pub fn give_back(&self, place: usize) {
        debug_assert!(self.is_taken(place), "place {place}");
        // Pairs with the swap of `thaw`: the next owner sees what this one did.
        self.cooling[place / BITS].fetch_or(1 << (place % BITS), Ordering::Release);
    }

    /// Frees all places below `limit` that cool; were there any?
    pub fn thaw(&self, limit: usize) -> bool {
        let mut any = false;
        for (index, word) in self.cooling[..limit.div_ceil(BITS)].iter().enumerate() {
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let cooled = word.swap(0, Ordering::Acquire);
            if cooled != 0 {
                self.bitmap().release_word(index, cooled);
                any = true;
            }
        }
        any
    }

    /// Frees a place at once, which the caller has taken and nobody has seen.
    pub fn untake(&self, place: usize) {
        self.bitmap().release(place);
    }

    /// Does `place` have an owner, dead or alive? A moment's answer.
    pub fn is_taken(&self, place: usize) -> bool {
        self.bitmap().is_taken(place) && !self.is_cooling(place)
    }

    /// Was `place` given back, and is not free yet? A moment's answer.
    pub fn is_cooling(&self, place: usize) -> bool {
        self.cooling[place / BITS].load(Ordering::Relaxed) & (1 << (place % BITS)) != 0
    }

    /// Places that have an owner, dead or alive. A moment's answer.
    pub fn count(&self) -> usize {
        let words = self.taken.iter().zip(&self.cooling);
        let taken = words.map(|(taken, cooling)| {
            taken.load(Ordering::Relaxed) & !cooling.load(Ordering::Relaxed)
        });
        taken.map(|word| word.count_ones() as usize).sum()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        /// Against three sets.
        #[test]
        fn agrees_with_sets(steps in prop::collection::vec((0..4_u8, 0..100_usize), 1..400)) {
            let places = Places::new();
            let (mut taken, mut cooling) = (BTreeSet::new(), BTreeSet::new());
            for (step, n) in steps {
                match step {
                    0 | 1 => {
                        let free = |place: &usize| !taken.contains(place) && !cooling.contains(place);
                        let expected = (0..n).find(free);
                        prop_assert_eq!(places.take(n), expected);
                        taken.extend(expected);
                    }
                    2 => if taken.remove(&n) {
                        places.give_back(n);
                        cooling.insert(n);
                    },
                    _ => {
                        // Whole words are thawed.
                        let end = n.div_ceil(64) * 64;
                        let thawed: Vec<_> = cooling.range(..end).copied().collect();
                        prop_assert_eq!(places.thaw(n), !thawed.is_empty());
                        thawed.iter().for_each(|place| { cooling.remove(place); });
                    }
                }
                prop_assert_eq!(places.is_taken(n), taken.contains(&n));
                prop_assert_eq!(places.is_cooling(n), cooling.contains(&n));
            }
            prop_assert_eq!(places.count(), taken.len());
        }
    }

    #[test]
    fn threads_never_share_a_place() {
        let places = Places::new();
        let owners: Vec<_> = (0..100).map(|_| AtomicU64::new(0)).collect();
        std::thread::scope(|scope| {
            for me in 1..=4 {
                let (places, owners) = (&places, &owners);
                scope.spawn(move || {
                    for _ in 0..5000 {
                        let one = || {
                            places.take(100).or_else(|| {
                                places.thaw(100);
                                places.take(100)
                            })
                        };
                        let held: Vec<_> = (0..20).filter_map(|_| one()).collect();
                        for &place in &held {
                            assert_eq!(owners[place].swap(me, Ordering::Relaxed), 0);
                        }
                        for place in held {
                            assert_eq!(owners[place].swap(0, Ordering::Relaxed), me);
                            places.give_back(place);
                        }
                    }
                });
            }
        });
        assert_eq!(places.count(), 0);
        places.thaw(100);
        assert_eq!((0..101).map_while(|_| places.take(100)).count(), 100);
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::super::life::Life;
    use super::*;
    use crate::sync::{AtomicU32, model};
    use loom::sync::Arc;
    use loom::thread;

    /// One slot: its place, its mutex, its life.
    struct Shared {
        places: Places,
        owner: AtomicU32,
        generation: AtomicU32,
        sequence: AtomicU32,
        words: [AtomicU64; 1],
        /// What an owner does without atomics.
        private: loom::cell::UnsafeCell<u32>,
    }

    impl Shared {
        fn new() -> Arc<Self> {
            let ready = || Box::from([AtomicU64::new(0).ready()]);
            Arc::new(Self {
                places: Places { taken: ready(), summary: ready(), cooling: ready() },
                owner: AtomicU32::new(0).ready(),
                generation: AtomicU32::new(0).ready(),
                sequence: AtomicU32::new(0).ready(),
                words: [AtomicU64::new(0).ready()],
                private: loom::cell::UnsafeCell::new(0),
            })
        }

        fn life(&self) -> Life<'_> {
            Life { generation: &self.generation, sequence: &self.sequence, words: &self.words }
        }

        fn take(&self) -> Option<usize> {
            self.places.take(1).or_else(|| {
                self.places.thaw(1);
                self.places.take(1)
            })
        }

        /// What the table does from the birth of a thread on.
        fn begin(&self, me: u32) {
            let (locked, busy) = (Ordering::Acquire, Ordering::Relaxed);
            // The place is ours, so its mutex is free.
            assert_eq!(self.owner.compare_exchange(0, me, locked, busy), Ok(0));
            self.private.with_mut(|value| unsafe { *value = me });
            self.life().begin(&[u64::from(me)], || {});
        }

        /// What it does at the exit.
        fn end(&self, place: usize) {
            self.life().end();
            self.owner.store(0, Ordering::Release); // the mutex
            self.places.give_back(place);
        }
    }

    /// One owner after the other does something without atomics; a third thread thaws. Fails
    /// when the release of `give_back` or the acquire of `thaw` is relaxed.
    #[test]
    fn the_next_owner_sees_what_the_last_did() {
        model(|| {
            let shared = Shared::new();
            let place = shared.places.take(1).unwrap();
            let thaw = {
                let shared = shared.clone();
                thread::spawn(move || shared.places.thaw(1))
            };
            let next = {
                let shared = shared.clone();
                thread::spawn(move || {
                    if shared.places.take(1).is_some() {
                        shared.private.with_mut(|value| unsafe { *value += 1 });
                    }
                })
            };
            shared.private.with_mut(|value| unsafe { *value += 1 });
            shared.places.give_back(place);
            thaw.join().unwrap();
            next.join().unwrap();
        });
    }

    /// One thread exits while another takes the slot and a third one reads: the mutex is free
    /// with the place, and the reader finds no mixture. Fails when the place is given back
    /// before the mutex.
    #[test]
    fn exit_and_reuse() {
        model(|| {
            let shared = Shared::new();
            let place = shared.take().unwrap();
            shared.begin(1);
            let next = {
                let shared = shared.clone();
                thread::spawn(move || {
                    if let Some(place) = shared.take() {
                        shared.begin(2);
                        shared.end(place);
                    }
                })
            };
            let reader = {
                let shared = shared.clone();
                thread::spawn(move || {
                    let life = shared.life();
                    match life.during(|| life.copy::<1>().0) {
                        Some((5, words)) => assert_eq!(words, [1]),
                        Some((9, words)) => assert_eq!(words, [2]),
                        Some(other) => panic!("{other:?}"),
                        None => {}
                    }
                })
            };
            shared.end(place);
            next.join().unwrap();
            reader.join().unwrap();
            assert!(shared.take().is_some(), "no place is lost");
        });
    }

    /// Two that thaw at once never give one place to two. Fails when the swap of `thaw` is a
    /// load and a store.
    #[test]
    fn thawed_once() {
        model(|| {
            let shared = Shared::new();
            let place = shared.take().unwrap();
            shared.places.give_back(place);
            let other = {
                let shared = shared.clone();
                thread::spawn(move || shared.take())
            };
            let both = [shared.take(), other.join().unwrap()];
            assert!(both.iter().flatten().count() <= 1, "{both:?}");
        });
    }
}
