//! The log of a region: its layout, replicated by every participant.
//!
//! The log keeps what the last operation left, twice: one copy is the current one, the other
//! is being written or is the one before. So it never has to be compacted, and a participant
//! that slept through ten operations follows in one step.
//!
//! # Protocol
//!
//! | word | content | written |
//! |---|---|---|
//! | `generation` | number of operations; its lowest bit tells which copy is the current one | by whoever has the lock, one more each time, by a release store: the commit |
//! | `copies[n]` | number of words, then the words | by whoever has the lock, only the copy that is not current |
//!
//! | a writer dies | what is left | the next writer |
//! |---|---|---|
//! | before the store of `generation` | the layout of before; the other copy is rubbish that nobody reads | writes the other copy anew |
//! | after it | the layout of after | goes on |
//!
//! So every operation is done or undone by one store, and there is nothing to repair.
//!
//! A reader copies the current one and looks whether `generation` is still the same. The copy
//! that it reads is only written again after the next commit. So a reader that saw a word of the
//! next but one operation sees at least the next commit, by the fence of the writer (between
//! the commit before and its words) and that of the reader (between the words and its second
//! look), and begins anew.

use super::layout::{SEGMENTS, WORDS};
use crate::sync::{AtomicU64, Ordering, fence, spin_loop};

/// Words of one copy.
pub(super) const COPY: usize = 1 + SEGMENTS * WORDS;

/// The algorithm, over borrowed words.
#[derive(Debug, Clone, Copy)]
pub(super) struct Log<'a> {
    pub(super) generation: &'a AtomicU64,
    pub(super) copies: [&'a [AtomicU64]; 2],
}

/// How often a reader that was overtaken begins anew.
const TRIES: u32 = 1000;

impl Log<'_> {
    /// The number of the last operation.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The words of the last operation, and its number. The words are not checked; `None` if
    /// there are more than fit, or if writers overtake us all the time.
    pub(super) fn snapshot(&self) -> Option<(u64, Vec<u64>)> {
        for _ in 0..TRIES {
            let generation = self.generation.load(Ordering::Acquire);
            let words = self.copy(generation);
            fence(Ordering::Acquire);
            if self.generation.load(Ordering::Relaxed) == generation {
                return words.map(|words| (generation, words));
            }
            spin_loop();
        }
        None
    }

    fn copy(&self, generation: u64) -> Option<Vec<u64>> {
        let copy = self.copies[(generation & 1) as usize];
        let len = usize::try_from(copy[0].load(Ordering::Relaxed)).ok()?;
        let words = copy[1..].get(..len)?;
        Some(words.iter().map(|word| word.load(Ordering::Relaxed)).collect())
    }

    /// Publishes `words`, of which there are no more than fit, as the next operation, and
    /// answers its number. The caller has the lock.
    pub(super) fn commit(&self, words: &[u64]) -> u64 {
        let generation = self.generation.load(Ordering::Relaxed).wrapping_add(1);
        let copy = self.copies[(generation & 1) as usize];
        fence(Ordering::Release);
        copy[0].store(words.len() as u64, Ordering::Relaxed);
        for (word, &value) in copy[1..].iter().zip(words) {
            word.store(value, Ordering::Relaxed);
        }
        self.generation.store(generation, Ordering::Release);
        generation
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn words(count: usize) -> Vec<AtomicU64> {
        (0..count).map(|_| AtomicU64::new(0)).collect()
    }

    #[test]
    fn the_last_commit_and_rubbish_beside_it() {
        let (generation, copies) = (AtomicU64::new(0), [words(8), words(8)]);
        let log = Log { generation: &generation, copies: [&copies[0], &copies[1]] };
        assert_eq!(log.snapshot(), Some((0, vec![])));
        assert_eq!(log.commit(&[1, 2, 3]), 1);
        assert_eq!(log.commit(&[4, 5]), 2);
        // A writer that died before its commit.
        for word in &copies[1] {
            word.store(u64::MAX, Ordering::Relaxed);
        }
        assert_eq!(log.snapshot(), Some((2, vec![4, 5])));
        assert_eq!(log.commit(&[6]), 3);
        assert_eq!(log.snapshot(), Some((3, vec![6])));
        // More words than there are.
        for lie in [8, u64::MAX] {
            copies[1][0].store(lie, Ordering::Relaxed);
            assert_eq!(log.snapshot(), None);
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
        generation: AtomicU64,
        copies: [[AtomicU64; 3]; 2],
    }

    impl Shared {
        fn log(&self) -> Log<'_> {
            Log { generation: &self.generation, copies: [&self.copies[0], &self.copies[1]] }
        }
    }

    /// Who sees the number of an operation sees its words. Fails when the release of `commit` or
    /// the acquire of `snapshot` is relaxed.
    #[test]
    fn a_commit_brings_its_words() {
        model(|| {
            let word = || AtomicU64::new(0).ready();
            let copy = || core::array::from_fn(|_| word());
            let shared = Arc::new(Shared { generation: word(), copies: [copy(), copy()] });
            let reader = thread::spawn({
                let shared = shared.clone();
                move || {
                    let (generation, words) = shared.log().snapshot().unwrap();
                    assert_eq!(words, vec![1; 2 * generation as usize]);
                }
            });
            shared.log().commit(&[1, 1]);
            reader.join().unwrap();
        });
    }

    /// What is read is one operation, whole: two words that are the same, and its number.
    /// Fails without the fence of `commit` or that of `snapshot`.
    #[test]
    fn a_snapshot_is_of_one_operation() {
        model(|| {
            let word = || AtomicU64::new(0).ready();
            let copy = || core::array::from_fn(|_| word());
            let shared = Arc::new(Shared { generation: word(), copies: [copy(), copy()] });
            shared.log().commit(&[1, 1]);
            let writer = thread::spawn({
                let shared = shared.clone();
                move || {
                    shared.log().commit(&[2, 2]);
                    shared.log().commit(&[3, 3]);
                }
            });
            let (generation, words) = shared.log().snapshot().unwrap();
            assert_eq!(words, [generation, generation]);
            writer.join().unwrap();
        });
    }
}
