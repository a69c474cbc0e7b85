//! The lock of a region's log, which the death of its holder does not keep.
//!
//! # Protocol
//!
//! | `holder` | meaning | next |
//! |---|---|---|
//! | 0 | free | a participant's token, by compare-exchange |
//! | a token ([`Token::word`](super::participants::Token::word)) | that process changes the log | 0, by its holder; or another token, by compare-exchange, from who saw that the holder is dead |
//!
//! Taking and stealing acquire, giving back releases. What a dead holder wrote is in memory
//! before its process can be seen dead, and half of an operation does no harm: see
//! [`log`](super::log).

use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// The algorithm, over borrowed words.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lock<'a> {
    pub(super) holder: &'a AtomicU64,
    /// A futex: moves when the lock is given back.
    pub(super) turns: &'a AtomicU32,
}

impl Lock<'_> {
    /// Takes it if nobody has it; else says who has.
    pub(super) fn try_take(&self, word: u64) -> Result<(), u64> {
        self.steal(0, word)
    }

    /// Takes it from a holder that is dead; else says who has it now.
    pub(super) fn steal(&self, holder: u64, word: u64) -> Result<(), u64> {
        let (acquire, relaxed) = (Ordering::Acquire, Ordering::Relaxed);
        self.holder.compare_exchange(holder, word, acquire, relaxed).map(drop)
    }

    /// Gives it back, if it is still ours: a process that was declared dead and is not finds it
    /// another's.
    pub(super) fn release(&self, word: u64) {
        let (release, relaxed) = (Ordering::Release, Ordering::Relaxed);
        let _ = self.holder.compare_exchange(word, 0, release, relaxed);
        self.turns.fetch_add(1, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn taken_stolen_and_given_back() {
        let (holder, turns) = (AtomicU64::new(0), AtomicU32::new(0));
        let lock = Lock { holder: &holder, turns: &turns };
        assert_eq!(lock.try_take(5), Ok(()));
        assert_eq!(lock.try_take(6), Err(5));
        assert_eq!(lock.steal(5, 6), Ok(()));
        // The one from whom it was stolen does not give it away.
        lock.release(5);
        assert_eq!(lock.try_take(7), Err(6));
        lock.release(6);
        assert_eq!(lock.try_take(7), Ok(()));
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::sync::model;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    struct Shared {
        holder: AtomicU64,
        turns: AtomicU32,
        /// What the lock protects, written without atomics.
        value: UnsafeCell<u64>,
    }

    impl Shared {
        fn lock(&self) -> Lock<'_> {
            Lock { holder: &self.holder, turns: &self.turns }
        }

        fn count(&self) {
            self.value.with_mut(|value| unsafe { *value += 1 });
        }
    }

    fn shared() -> Arc<Shared> {
        Arc::new(Shared {
            holder: AtomicU64::new(0).ready(),
            turns: AtomicU32::new(0).ready(),
            value: UnsafeCell::new(0),
        })
    }

    /// One at a time, and each sees what the one before did. Fails when the acquire of `steal`
    /// or the release of `release` is relaxed, or the compare-exchange is two steps.
    #[test]
    fn one_at_a_time() {
        model(|| {
            let shared = shared();
            let take = |shared: &Shared, word| {
                if shared.lock().try_take(word).is_ok() {
                    shared.count();
                    shared.lock().release(word);
                }
            };
            let other = thread::spawn({
                let shared = shared.clone();
                move || take(&shared, 1)
            });
            take(&shared, 2);
            other.join().unwrap();
        });
    }

    /// Its holder is dead: one of two that see it gets the lock. Fails when the
    /// compare-exchange is two steps.
    #[test]
    fn one_steals() {
        model(|| {
            let shared = shared();
            shared.lock().try_take(9).unwrap();
            let other = thread::spawn({
                let shared = shared.clone();
                move || shared.lock().steal(9, 1).map(|()| shared.count()).is_ok()
            });
            let here = shared.lock().steal(9, 2).map(|()| shared.count()).is_ok();
            assert_ne!(here, other.join().unwrap());
        });
    }
}
