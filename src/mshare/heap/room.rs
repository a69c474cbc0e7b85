//! Which slabs of a class have free blocks: a bitmap of hints with one summary level.
//!
//! # Protocol
//!
//! `words`: bit set = whoever looks at this page may find an idle slab with room. `summary`: bit
//! set = the word may not be 0. Both may say too much, and neither may say too little for
//! longer than the step between a slab's change and its mark: a slab that is not found is memory
//! that nobody uses.
//!
//! [`Room::set`] marks the word and then the summary. [`Room::clear`] goes the other way: it takes
//! a mark away and then looks at what the mark stood for, and if that is there after all,
//! marks it again. Each change is a read-modify-write with acquire and release on one word: the
//! clearer that comes after a setter sees what the setter saw, one that comes before loses to it.

use crate::sync::{AtomicU64, Ordering};

/// The algorithm, over borrowed words.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room<'a> {
    words: &'a [AtomicU64],
    summary: &'a [AtomicU64],
}

impl<'a> Room<'a> {
    /// One bit of `summary` for each of `words`.
    pub(super) fn new((words, summary): (&'a [AtomicU64], &'a [AtomicU64])) -> Self {
        debug_assert!(summary.len() * 64 >= words.len());
        Self { words, summary }
    }

    /// Marks a page.
    pub(super) fn set(&self, page: usize) {
        let word = page / 64;
        self.words[word].fetch_or(1 << (page % 64), Ordering::AcqRel);
        self.summary[word / 64].fetch_or(1 << (word % 64), Ordering::AcqRel);
    }

    /// Takes the mark of a page away, unless `is_there` says that it has to stay.
    pub(super) fn clear(&self, page: usize, is_there: impl FnOnce() -> bool) {
        let (word, bit) = (page / 64, 1_u64 << (page % 64));
        let before = self.words[word].fetch_and(!bit, Ordering::AcqRel);
        if is_there() {
            self.words[word].fetch_or(bit, Ordering::AcqRel);
        } else if before & !bit == 0 {
            let (summary, bit) = (&self.summary[word / 64], 1 << (word % 64));
            summary.fetch_and(!bit, Ordering::AcqRel);
            if self.words[word].load(Ordering::Relaxed) == 0 {
                return;
            }
            summary.fetch_or(bit, Ordering::AcqRel);
        }
    }

    /// Is the page marked, and its word?
    pub(super) fn has(&self, page: usize) -> bool {
        let word = page / 64;
        self.words[word].load(Ordering::Relaxed) & 1 << (page % 64) != 0
            && self.summary[word / 64].load(Ordering::Relaxed) & 1 << (word % 64) != 0
    }

    /// The first marked page from `page` on.
    pub(super) fn next(&self, page: usize) -> Option<usize> {
        let mut word = page / 64;
        let mut from = page % 64;
        while word < self.words.len() {
            let groups = self.summary[word / 64].load(Ordering::Relaxed) >> (word % 64);
            if groups == 0 {
                // Words behind the last of a group have no bit.
                (word, from) = ((word / 64 + 1) * 64, 0);
                continue;
            }
            if groups.trailing_zeros() != 0 {
                (word, from) = (word + groups.trailing_zeros() as usize, 0);
                continue;
            }
            let marks = self.words[word].load(Ordering::Relaxed) >> from;
            if marks != 0 {
                return Some(word * 64 + from + marks.trailing_zeros() as usize);
            }
            (word, from) = (word + 1, 0);
        }
        None
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn agrees_with_a_set(steps in prop::collection::vec((0..3_u8, 0..9000_usize), 1..200)) {
            let words: Vec<_> = (0..141).map(|_| AtomicU64::new(0)).collect();
            let summary: Vec<_> = (0..3).map(|_| AtomicU64::new(0)).collect();
            let room = Room::new((&words, &summary));
            let mut model = BTreeSet::new();
            for (step, page) in steps {
                match step {
                    0 => {
                        room.set(page);
                        model.insert(page);
                    }
                    1 => {
                        let stays = page % 7 == 0 && model.contains(&page);
                        room.clear(page, || stays);
                        if !stays {
                            model.remove(&page);
                        }
                    }
                    _ => prop_assert_eq!(room.next(page), model.range(page..).next().copied()),
                }
                prop_assert_eq!(room.has(page), model.contains(&page));
            }
        }
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
        /// Whether the slab of page 0 is there, as its state says.
        is_there: AtomicU64,
    }

    /// One marks a slab that has become idle while another, who found it held, takes the mark
    /// away: it is found afterwards. Fails when the orders of the word are relaxed, or when
    /// nobody looks again.
    #[test]
    fn no_room_is_hidden() {
        model(|| {
            let shared = Arc::new(Shared {
                words: [AtomicU64::new(1).ready()],
                summary: [AtomicU64::new(1).ready()],
                is_there: AtomicU64::new(0).ready(),
            });
            let room = |shared: &Shared, body: &dyn Fn(Room<'_>)| {
                body(Room::new((&shared.words, &shared.summary)));
            };
            let setter = thread::spawn({
                let shared = shared.clone();
                move || {
                    shared.is_there.store(1, Ordering::Relaxed);
                    room(&shared, &|room| room.set(0));
                }
            });
            room(&shared, &|room| {
                room.clear(0, || shared.is_there.load(Ordering::Relaxed) == 1);
            });
            setter.join().unwrap();
            room(&shared, &|room| assert!(room.has(0)));
        });
    }
    /// One takes the last mark of a word away, and so its summary's, while another marks a page
    /// of that word: it is found afterwards. Fails when the orders of the summary are relaxed, or
    /// when the word is not looked at again.
    #[test]
    fn the_summary_hides_no_word() {
        model(|| {
            let shared = Arc::new(Shared {
                words: [AtomicU64::new(1).ready()],
                summary: [AtomicU64::new(1).ready()],
                is_there: AtomicU64::new(0).ready(),
            });
            let setter = thread::spawn({
                let shared = shared.clone();
                move || Room::new((&shared.words, &shared.summary)).set(1)
            });
            Room::new((&shared.words, &shared.summary)).clear(0, || false);
            setter.join().unwrap();
            assert!(Room::new((&shared.words, &shared.summary)).has(1));
        });
    }
}
