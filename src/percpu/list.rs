//! How batches change hands: lists of them, and words in which one is parked.
//!
//! # Protocol
//!
//! A list is one word: the index of its first batch, from 1, and above it a number that every pop
//! changes, so that a head that went away and came back is not taken for the old one. With 48
//! bits that number does not come back while a thread sleeps.
//!
//! | word | meaning |
//! |---|---|
//! | `number << 16` | empty |
//! | `number << 16 \| index` | batch `index` is the first, its `next` is the second |
//!
//! To push is a release: it brings the slots. To look at a head is an acquire: the `next` of a
//! batch, which its later owners overwrite, is believed when the head is still the same.
//!
//! A parked batch is the index in a word of its own: put there by an exchange against 0 with
//! release, taken by a swap with acquire.

use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// Bits of an index.
const INDEX: u32 = 16;
/// The largest index.
pub(super) const MASK: u64 = (1 << INDEX) - 1;

/// A list of batches.
#[derive(Debug)]
pub(super) struct List {
    head: AtomicU64,
}

impl List {
    pub(super) const fn new() -> Self {
        Self { head: AtomicU64::new(0) }
    }

    /// Puts the caller's batch in front, whose link is `next`.
    pub(super) fn push(&self, index: u32, next: &AtomicU32) {
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            next.store((head & MASK) as u32, Ordering::Relaxed);
            let put = head & !MASK | u64::from(index);
            match self.head.compare_exchange_weak(head, put, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Takes the first one; `next` finds the link of a batch.
    pub(super) fn pop<'a>(&self, next: impl Fn(u32) -> &'a AtomicU32) -> Option<u32> {
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            let first = (head & MASK) as u32;
            if first == 0 {
                return None;
            }
            let second = u64::from(next(first).load(Ordering::Relaxed));
            let rest = (head & !MASK).wrapping_add(1 << INDEX) | second;
            match self.head.compare_exchange_weak(head, rest, Ordering::Relaxed, Ordering::Acquire)
            {
                Ok(_) => return Some(first),
                Err(now) => head = now,
            }
        }
    }
}

/// Leaves a batch in an empty word; whether it was empty.
pub(super) fn put_into(word: &AtomicU64, index: u32) -> bool {
    word.compare_exchange(0, index.into(), Ordering::Release, Ordering::Relaxed).is_ok()
}

/// Takes the batch that is in a word.
pub(super) fn take_from(word: &AtomicU64) -> Option<u32> {
    if word.load(Ordering::Relaxed) == 0 {
        return None;
    }
    let index = word.swap(0, Ordering::Acquire) as u32;
    (index != 0).then_some(index)
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::sync::model;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    /// Three batches, of which batch `n` has the value `n` in its slot.
    struct Shared {
        list: List,
        word: AtomicU64,
        next: [AtomicU32; 3],
        slots: [UnsafeCell<u32>; 3],
    }
    // SAFETY: a slot is touched by the owner of its batch: loom checks.
    unsafe impl Sync for Shared {}

    impl Shared {
        /// With the first `n` batches in the list, batch `n` in front.
        fn with(n: u32) -> Arc<Self> {
            let shared = Self {
                list: List { head: AtomicU64::new(0).ready() },
                word: AtomicU64::new(0).ready(),
                next: core::array::from_fn(|_| AtomicU32::new(0).ready()),
                slots: core::array::from_fn(|n| UnsafeCell::new(n as u32 + 1)),
            };
            (1..=n).for_each(|index| shared.push(index));
            Arc::new(shared)
        }

        /// Uses a slot as its owner alone may.
        fn work(&self, index: u32) {
            self.slots[index as usize - 1].with_mut(|slot| unsafe { *slot += 10 });
        }

        fn push(&self, index: u32) {
            self.work(index);
            self.list.push(index, &self.next[index as usize - 1]);
        }

        fn pop(&self) -> Option<u32> {
            let index = self.list.pop(|index| &self.next[index as usize - 1])?;
            self.work(index);
            Some(index)
        }

        /// What is left in the list.
        fn rest(&self) -> Vec<u32> {
            core::iter::from_fn(|| self.pop()).collect()
        }
    }

    /// One pushes two batches, two take them. Fails when the push or one of the looks at the head is
    /// relaxed.
    #[test]
    fn a_batch_brings_its_slots() {
        model(|| {
            let shared = Shared::with(0);
            let pusher = thread::spawn({
                let shared = shared.clone();
                move || (1..=2).for_each(|index| shared.push(index))
            });
            let popper = thread::spawn({
                let shared = shared.clone();
                move || shared.pop()
            });
            let here = shared.pop();
            let there = popper.join().unwrap();
            pusher.join().unwrap();
            let mut all = shared.rest();
            all.extend(here);
            all.extend(there);
            all.sort_unstable();
            assert_eq!(all, [1, 2]);
        });
    }

    /// While one is about to pop, another pops two and puts the first one back: the head is the
    /// same batch, with another one behind it. Fails when a pop does not change the number.
    #[test]
    fn a_head_that_came_back_is_another() {
        model(|| {
            let shared = Shared::with(3);
            let other = thread::spawn({
                let shared = shared.clone();
                move || {
                    let (first, second) = (shared.pop(), shared.pop());
                    if let Some(first) = first {
                        shared.push(first);
                    }
                    second
                }
            });
            let here = shared.pop();
            let there = other.join().unwrap();
            let mut all = shared.rest();
            all.extend(here);
            all.extend(there);
            all.sort_unstable();
            assert_eq!(all, [1, 2, 3]);
        });
    }

    /// Two use the batch that is parked in a word. Fails when parking it or taking it is relaxed.
    #[test]
    fn a_parked_batch_has_one_owner() {
        model(|| {
            let shared = Shared::with(0);
            assert!(put_into(&shared.word, 1));
            let turn = |shared: &Shared| {
                if let Some(index) = take_from(&shared.word) {
                    shared.work(index);
                    assert!(put_into(&shared.word, index));
                }
            };
            let other = thread::spawn({
                let shared = shared.clone();
                move || turn(&shared)
            });
            turn(&shared);
            other.join().unwrap();
            assert_eq!(take_from(&shared.word), Some(1));
        });
    }
}
