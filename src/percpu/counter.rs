//! The counter.

use super::STRIDE;
use super::cell;
use super::stripes::{Stripes, stripes};
use crate::arch::{self, Outcome};
use crate::sync::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use crate::sys::rseq;
use core::fmt;
use core::marker::PhantomData;
use core::ptr::{self, NonNull};

/// A 64-bit counter with a word on every CPU. Arithmetic wraps, so a counter that also
/// goes down is read as `sum() as i64`.
///
/// An addition costs about as much as three plain instructions: no `lock` prefix, no shared
/// cache line. It is a single event: it is counted once, whatever interrupts it, on the CPU
/// on which it happened or on an overflow stripe.
///
/// A `static` counter is assigned its words at the first addition. One that is dropped
/// gives them back.
///
/// # Progress
///
/// An addition never waits. If 16 windows in a row are aborted (a debugger that steps, a
/// timer of a microsecond), it is made with an atomic on an overflow stripe. If the system
/// has no memory for the counter's words, it is made in the counter itself.
pub struct Counter<'a> {
    /// Distance of the cell from the GS base; 0: not assigned, or not the `gs` implementation.
    offset: AtomicUsize,
    /// Word of the cell on stripe 0; null: not assigned.
    cell: AtomicPtr<u64>,
    /// What was added when there was no memory for a cell.
    spill: AtomicU64,
    /// The cell is one of an [`Area`](super::Area): not ours to give back.
    shared: bool,
    area: PhantomData<&'a AtomicU64>,
}

impl Counter<'static> {
    /// A counter of this process, at 0.
    pub const fn new() -> Self {
        Self {
            offset: AtomicUsize::new(0),
            cell: AtomicPtr::new(ptr::null_mut()),
            spill: AtomicU64::new(0),
            shared: false,
            area: PhantomData,
        }
    }
}

impl Default for Counter<'static> {
    fn default() -> Self {
        Self::new()
    }
}

impl Counter<'_> {
    /// The counter in a cell of an area.
    pub(super) fn shared(cell: NonNull<u64>) -> Self {
        Self {
            offset: AtomicUsize::new(stripes().gs_offset(cell.as_ptr())),
            cell: AtomicPtr::new(cell.as_ptr()),
            spill: AtomicU64::new(0),
            shared: true,
            area: PhantomData,
        }
    }

    /// Adds `n`.
    #[inline]
    pub fn add(&self, n: u64) {
        let offset = self.offset.load(Ordering::Acquire);
        if offset != 0 {
            if cfg!(debug_assertions) {
                stripes().check_gs();
            }
            // SAFETY: an offset is there only in the `gs` implementation: the area is known, and
            // if the thread is striped, the offset leads to this cell's word of its stripe,
            // which only windows update.
            if unsafe { arch::gs_load_add_store_u64(rseq::area(), offset, n) } == Outcome::Done {
                return;
            }
        }
        self.add_elsewhere(n);
    }

    /// Subtracts `n`.
    #[inline]
    pub fn sub(&self, n: u64) {
        self.add(n.wrapping_neg());
    }

    /// The thread is not striped for this CPU, the cell is not assigned, or the
    /// implementation is not `gs`.
    #[inline(never)]
    fn add_elsewhere(&self, n: u64) {
        let stripes = stripes();
        let cell = self.cell.load(Ordering::Acquire);
        let cell = if cell.is_null() { self.assign(stripes) } else { cell };
        if cell.is_null() {
            self.spill.fetch_add(n, Ordering::Relaxed);
            return;
        }
        // SAFETY: the cell is this counter's, of the geometry of `stripes`.
        unsafe { stripes.add(cell, n) };
    }

    /// Assigns a cell; null if there is no memory.
    #[cold]
    fn assign(&self, stripes: &Stripes) -> *mut u64 {
        let give_back = |cell| cell::release(stripes, cell);
        let cell = assign_once(&self.cell, || cell::take(stripes).ok(), give_back);
        if !cell.is_null() {
            self.offset.store(stripes.gs_offset(cell), Ordering::Release);
        }
        cell
    }

    /// The words of the cell: `cpus` of windows, then `cpus` of atomics. Empty before the
    /// first addition.
    fn words(&self) -> impl Fn(u32) -> u64 {
        let cell = self.cell.load(Ordering::Acquire);
        move |stripe: u32| {
            if cell.is_null() {
                return 0;
            }
            // SAFETY: the cell has a word on each of its stripes.
            let word = unsafe { cell.byte_add(stripe as usize * STRIDE) };
            // SAFETY: valid and aligned for the life of the area; asm and atomics write it.
            unsafe { &*word.cast::<AtomicU64>() }.load(Ordering::Relaxed)
        }
    }

    /// The sum over all CPUs, the offline ones too.
    ///
    /// Additions that happened before the call are in it. Of those that happen meanwhile some
    /// may be and some may not: the sum of a counter that also goes down may be a value that
    /// it never had.
    pub fn sum(&self) -> u64 {
        let word = self.words();
        let words = (0..2 * stripes().cpus).map(word);
        words.fold(self.spill.load(Ordering::Relaxed), u64::wrapping_add)
    }

    /// The possible CPU ids, each with what was counted on it: the parts of
    /// [`sum`](Self::sum). What was added without a window is counted for the CPU on which
    /// that addition began.
    pub fn per_cpu(&self) -> impl Iterator<Item = (u32, u64)> {
        let (word, cpus) = (self.words(), stripes().cpus);
        let mut spill = self.spill.load(Ordering::Relaxed);
        let possible = crate::sys::features::features().cpus.iter();
        possible.map(move |cpu| {
            let spilled = core::mem::take(&mut spill);
            (cpu, word(cpu).wrapping_add(word(cpus + cpu)).wrapping_add(spilled))
        })
    }
}

impl Drop for Counter<'_> {
    fn drop(&mut self) {
        let cell = self.cell.load(Ordering::Relaxed);
        if !self.shared && !cell.is_null() {
            cell::release(stripes(), cell);
        }
    }
}

impl fmt::Debug for Counter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counter").field("sum", &self.sum()).finish_non_exhaustive()
    }
}

/// The word gets one value for good, whoever comes first: `take` brings a candidate, and a
/// loser's is given back.
///
/// Release on the exchange and acquire on every load: whoever sees the cell sees its zeroes.
fn assign_once<T>(
    word: &AtomicPtr<T>,
    take: impl FnOnce() -> Option<*mut T>,
    give_back: impl FnOnce(*mut T),
) -> *mut T {
    let Some(candidate) = take() else {
        return word.load(Ordering::Acquire);
    };
    let null = ptr::null_mut();
    match word.compare_exchange(null, candidate, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => candidate,
        Err(winner) => {
            give_back(candidate);
            winner
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn counts_and_wraps() {
        let counter = Counter::new();
        assert_eq!(counter.sum(), 0);
        counter.add(5);
        counter.sub(7);
        assert_eq!(counter.sum().cast_signed(), -2);
        let parts = counter.per_cpu().fold(0_u64, |sum, (_, n)| sum.wrapping_add(n));
        assert_eq!(parts, counter.sum());
        assert_eq!(format!("{counter:?}"), "Counter { sum: 18446744073709551614, .. }");
    }

    #[test]
    fn a_dropped_cell_comes_back_as_zero() {
        // More counters than one block has cells, twice.
        for _ in 0..2 {
            let counters: Vec<_> = (0..1200).map(|_| Counter::new()).collect();
            for (n, counter) in counters.iter().enumerate() {
                counter.add(n as u64);
                counter.add(1);
            }
            for (n, counter) in counters.iter().enumerate() {
                assert_eq!(counter.sum(), n as u64 + 1);
            }
        }
    }

    #[test]
    fn without_memory_nothing_is_lost() {
        let counter = Counter::new();
        let cell = assign_once(&counter.cell, || None, |_| unreachable!());
        assert!(cell.is_null());
        counter.spill.fetch_add(3, Ordering::Relaxed);
        counter.add(4);
        assert_eq!(counter.sum(), 7);
        assert_eq!(counter.per_cpu().map(|(_, n)| n).sum::<u64>(), 7);
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::sync::model;
    use loom::sync::Arc;
    use loom::thread;

    /// A cell whose zeroing is not atomic, and how often it was given back.
    struct Shared {
        word: AtomicPtr<loom::cell::UnsafeCell<u64>>,
        returned: AtomicU64,
    }

    /// Two threads assign at once, a third only looks; all see the same, initialised cell,
    /// and the loser's candidate is given back. Fails when the exchange's release or the
    /// reader's acquire is relaxed.
    #[test]
    fn one_cell_seen_initialised_by_all() {
        model(|| {
            let shared = Arc::new(Shared {
                word: AtomicPtr::new(ptr::null_mut()).ready(),
                returned: AtomicU64::new(0).ready(),
            });
            let assign = |shared: &Shared, n: u64| {
                let take = || {
                    let cell = Box::new(loom::cell::UnsafeCell::new(0));
                    cell.with_mut(|value| unsafe { *value = n });
                    Some(Box::into_raw(cell))
                };
                let give_back = |cell: *mut _| {
                    shared.returned.fetch_add(1, Ordering::Relaxed);
                    drop(unsafe { Box::from_raw(cell) });
                };
                assign_once(&shared.word, take, give_back)
            };
            let read = |cell: *mut loom::cell::UnsafeCell<u64>| {
                unsafe { &*cell }.with(|value| unsafe { *value })
            };
            let other = thread::spawn({
                let shared = shared.clone();
                move || read(assign(&shared, 1))
            });
            let looker = thread::spawn({
                let shared = shared.clone();
                move || {
                    let cell = shared.word.load(Ordering::Acquire);
                    (!cell.is_null()).then(|| read(cell))
                }
            });
            let here = read(assign(&shared, 2));
            let there = other.join().unwrap();
            let looked = looker.join().unwrap();
            assert_eq!(here, there);
            assert!(looked.is_none() || looked == Some(here));
            assert_eq!(shared.returned.load(Ordering::Relaxed), 1);
            drop(unsafe { Box::from_raw(shared.word.load(Ordering::Acquire)) });
        });
    }
}
