//! The global list of a pool: batches of objects that no CPU has.
//!
//! A batch is a count and slots in memory of the pool's own. It is owned by whoever took it off a
//! list, or out of the word of a CPU where it was parked; nobody else looks at its slots. So
//! nothing here locks, waits, or calls an allocator, and a handler finds less than there is, but
//! never something half done. A process that is forked while threads have batches in their
//! hands has as many fewer of them.
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

use super::stripes::stripes;
use crate::sync::{AtomicU32, AtomicU64, AtomicUsize, Ordering, assert_layout};
use crate::sys::map::{Access, Mapping};
use core::ptr;

/// Bits of an index.
const INDEX: u32 = 16;
const MASK: u64 = (1 << INDEX) - 1;

/// Batches that a depot can have, beside one for each CPU.
pub(super) const MOST: usize = 50_000;

/// A list of batches.
#[derive(Debug)]
struct List {
    head: AtomicU64,
}

impl List {
    const fn new() -> Self {
        Self { head: AtomicU64::new(0) }
    }

    /// Puts the caller's batch in front, whose link is `next`.
    fn push(&self, index: u32, next: &AtomicU32) {
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
    fn pop<'a>(&self, next: impl Fn(u32) -> &'a AtomicU32) -> Option<u32> {
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

/// What is in front of the slots of a batch.
#[derive(Debug)]
#[repr(C)]
struct Header {
    /// The next batch of the list.
    next: AtomicU32,
    /// How many slots are used. Its owner writes it; for others it is an estimate.
    count: AtomicU32,
}

assert_layout!(size_of::<Header>() == 8);

/// A batch that is the caller's alone. One that is forgotten is lost to the pool.
#[derive(Debug)]
#[must_use]
pub(super) struct Batch<'a> {
    index: u32,
    header: &'a Header,
    slots: *mut usize,
}

impl Batch<'_> {
    /// Objects in it.
    pub(super) fn len(&self) -> usize {
        self.header.count.load(Ordering::Relaxed) as usize
    }

    /// Says how many of the slots are used.
    pub(super) fn set_len(&mut self, len: usize) {
        self.header.count.store(len as u32, Ordering::Relaxed);
    }

    /// Its slots, as many as the depot says.
    pub(super) fn slots(&self) -> *mut usize {
        self.slots
    }

    /// Takes the last one.
    pub(super) fn pop(&mut self) -> Option<usize> {
        let len = self.len().checked_sub(1)?;
        self.set_len(len);
        // SAFETY: a slot that was used.
        let slot = unsafe { self.slots.add(len) };
        // SAFETY: written by an owner before this one, who pushed the batch with release.
        Some(unsafe { slot.read() })
    }

    /// Adds one.
    ///
    /// # Safety
    ///
    /// There must be room.
    pub(super) unsafe fn push(&mut self, object: usize) {
        let len = self.len();
        // SAFETY: the caller says that there is room.
        let slot = unsafe { self.slots.add(len) };
        // SAFETY: a slot of a batch that is ours.
        unsafe { slot.write(object) };
        self.set_len(len + 1);
    }
}

/// All batches of a pool: those with objects, those without, and the memory of both.
#[derive(Debug)]
pub(super) struct Depot {
    full: List,
    empty: List,
    /// The address of the first batch; 0 while there is none. It changes once.
    memory: AtomicUsize,
    /// Batches that have been in use; the others are as they were mapped.
    used: AtomicU32,
    /// Slots of a batch.
    batch: usize,
    /// Batches, beside one for each CPU.
    kept: usize,
}

impl Depot {
    /// One that has no memory yet: for `kept` batches of `batch` objects, and one for each CPU.
    pub(super) const fn new(batch: usize, kept: usize) -> Self {
        assert!(kept <= MOST);
        Self {
            full: List::new(),
            empty: List::new(),
            memory: AtomicUsize::new(0),
            used: AtomicU32::new(0),
            batch,
            kept,
        }
    }

    /// Objects that a batch has room for.
    pub(super) fn batch(&self) -> usize {
        self.batch
    }

    /// Batches of this pool, at most.
    pub(super) fn batches(&self) -> usize {
        self.kept + stripes().cpus as usize
    }

    /// Bytes of a batch.
    const fn stride(&self) -> usize {
        size_of::<Header>() + self.batch * 8
    }

    fn size(&self) -> usize {
        self.batches() * self.stride()
    }

    /// The memory, mapped now if need be; `None` if there is none.
    fn memory(&self) -> Option<usize> {
        let known = self.memory.load(Ordering::Acquire);
        if known != 0 {
            return Some(known);
        }
        let mapping = Mapping::anonymous(self.size(), Access::Write).ok()?;
        let ours = mapping.address();
        match self.memory.compare_exchange(0, ours, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => {
                mapping.leak();
                Some(ours)
            }
            Err(winner) => Some(winner),
        }
    }

    /// The header of a batch that has been in use.
    fn header(&self, index: u32) -> &Header {
        let at = self.memory.load(Ordering::Acquire) + (index as usize - 1) * self.stride();
        // SAFETY: inside the memory, which is mapped as long as the depot is there; aligned, zero
        // at first, and changed through atomics.
        unsafe { &*ptr::with_exposed_provenance(at) }
    }

    fn at(&self, index: u32) -> Batch<'_> {
        let header = self.header(index);
        let slots = ptr::from_ref(header).addr() + size_of::<Header>();
        Batch { index, header, slots: ptr::with_exposed_provenance_mut(slots) }
    }

    /// Takes a batch that has objects.
    pub(super) fn take_full(&self) -> Option<Batch<'_>> {
        let index = self.full.pop(|index| &self.header(index).next)?;
        Some(self.at(index))
    }

    /// Takes a batch that has none; `None` if all are in use, or there is no memory.
    pub(super) fn take_empty(&self) -> Option<Batch<'_>> {
        if let Some(index) = self.empty.pop(|index| &self.header(index).next) {
            return Some(self.at(index));
        }
        let (batches, release, relaxed) =
            (self.batches() as u32, Ordering::Release, Ordering::Relaxed);
        let mut used = self.used.load(relaxed);
        while used < batches {
            self.memory()?;
            // Whoever sees the number sees the memory.
            match self.used.compare_exchange_weak(used, used + 1, release, relaxed) {
                Ok(_) => return Some(self.at(used + 1)),
                Err(now) => used = now,
            }
        }
        None
    }

    /// Puts a batch on the list where it belongs.
    pub(super) fn release(&self, batch: Batch<'_>) {
        let list = if batch.len() > 0 { &self.full } else { &self.empty };
        list.push(batch.index, &batch.header.next);
    }

    /// Leaves a batch in `word`; on its list if there is one already.
    pub(super) fn park(&self, word: &AtomicU64, batch: Batch<'_>) {
        if !put_into(word, batch.index) {
            self.release(batch);
        }
    }

    /// Takes the batch that was left in `word`.
    pub(super) fn unpark(&self, word: &AtomicU64) -> Option<Batch<'_>> {
        take_from(word).map(|index| self.at(index))
    }

    /// Objects in all batches: an estimate while others use them.
    pub(super) fn len(&self) -> usize {
        let count = |index| self.header(index).count.load(Ordering::Relaxed) as usize;
        (1..=self.used.load(Ordering::Acquire)).map(count).sum()
    }
}

impl Drop for Depot {
    fn drop(&mut self) {
        let memory = self.memory.load(Ordering::Acquire);
        if memory != 0 {
            // SAFETY: the mapping that `memory` leaked, which nobody uses any more.
            drop(unsafe { Mapping::reclaim(memory, self.size()) });
        }
    }
}

/// Leaves a batch in an empty word; whether it was empty.
fn put_into(word: &AtomicU64, index: u32) -> bool {
    word.compare_exchange(0, index.into(), Ordering::Release, Ordering::Relaxed).is_ok()
}

/// Takes the batch that is in a word.
fn take_from(word: &AtomicU64) -> Option<u32> {
    if word.load(Ordering::Relaxed) == 0 {
        return None;
    }
    let index = word.swap(0, Ordering::Acquire) as u32;
    (index != 0).then_some(index)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn as_many_batches_as_there_are() {
        let depot = Depot::new(3, 2);
        assert!(depot.take_full().is_none());
        assert_eq!(depot.memory.load(Ordering::Relaxed), 0);
        let mut taken: Vec<_> = core::iter::from_fn(|| depot.take_empty()).collect();
        assert_eq!(taken.len(), depot.batches());
        for (n, batch) in taken.iter_mut().enumerate() {
            // SAFETY: empty so far.
            unsafe { batch.push(n) };
        }
        assert_eq!(depot.len(), depot.batches());
        taken.into_iter().for_each(|batch| depot.release(batch));
        assert!(depot.take_empty().is_none());
        for n in (0..depot.batches()).rev() {
            let mut batch = depot.take_full().unwrap();
            assert_eq!((batch.pop(), batch.pop()), (Some(n), None));
            depot.release(batch);
        }
        assert!(depot.take_full().is_none());
        assert_eq!(depot.len(), 0);
    }

    #[test]
    fn parked_and_found_again() {
        let (depot, word) = (Depot::new(1, 8), AtomicU64::new(0));
        assert!(depot.unpark(&word).is_none());
        for n in [7, 8] {
            let mut batch = depot.take_empty().unwrap();
            // SAFETY: empty so far.
            unsafe { batch.push(n) };
            depot.park(&word, batch);
        }
        // The second one found the place taken.
        assert_eq!(depot.unpark(&word).unwrap().pop(), Some(7));
        assert_eq!(depot.take_full().unwrap().pop(), Some(8));
        assert!(depot.unpark(&word).is_none());
    }
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
