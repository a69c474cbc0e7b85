//! The global list of a pool: batches of objects that no CPU has.
//!
//! A batch is a count and slots in memory of the pool's own. It is owned by whoever took it off a
//! list, or out of the word of a CPU where it was parked; nobody else looks at its slots. So
//! nothing here locks, waits, or calls an allocator, and a handler finds less than there is, but
//! never something half done. A process that is forked while threads have batches in their
//! hands has as many fewer of them.

use super::list::{List, MASK, put_into, take_from};
use super::stripes::stripes;
use crate::sync::{AtomicU32, AtomicU64, AtomicUsize, Ordering, assert_layout};
use crate::sys::cpus;
use crate::sys::map::{Access, Mapping};
use core::ptr;

/// Batches that a depot can have, beside one for each CPU.
pub(super) const MOST: usize = 50_000;
const _: () = assert!(MOST as u64 + cpus::MAX_IDS as u64 <= MASK);

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
