//! The counter.

use super::geometry::Geometry;
use super::site::{Site, on};
use super::stats::ABORTS;
use super::stripes::{Stripes, stripes};
use super::{Implementation, block};
use crate::arch::{self, Outcome, Words, portable};
use crate::sync::{AtomicU64, AtomicUsize, Ordering, assert_layout};
use crate::sys::features::features;
use crate::sys::rseq;
use core::fmt;
use core::marker::PhantomData;
use core::ptr;

/// A 64-bit counter with a word on every CPU. Arithmetic wraps, so a counter that also
/// goes down is read as `sum() as i64`.
///
/// It is 8 bytes large, wherever it is; its words are elsewhere, 8 bytes on each CPU. An
/// addition costs about as much as three plain instructions: no `lock` prefix, no shared
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
/// has no memory for the counter's words, it is made in the counter itself, which then wraps
/// at 61 bits.
#[repr(transparent)]
pub struct Counter<'a> {
    /// | bits | meaning |
    /// |---|---|
    /// | `1` | not assigned yet |
    /// | `…000` | distance of the cell from the GS base (implementation `gs`) |
    /// | `…001`, not `1` | address of the cell's word on stripe 0, plus 1 (the others) |
    /// | `…011` | no memory for a cell: the count itself, above these three bits |
    /// | `…101` | address of a [`Site`] of the counter's own, plus 5 (areas of another geometry) |
    ///
    /// It changes once, from "not assigned"; then only a count in it changes.
    word: AtomicUsize,
    area: PhantomData<&'a AtomicU64>,
}

assert_layout!(size_of::<Counter<'_>>() == 8);

const UNASSIGNED: usize = 1;
const SPILLED: usize = 3;
const ELSEWHERE: usize = 5;
const TAG: usize = 7;
const TAG_BITS: u32 = TAG.count_ones();

impl Counter<'static> {
    /// A counter of this process, at 0.
    pub const fn new() -> Self {
        Self { word: AtomicUsize::new(UNASSIGNED), area: PhantomData }
    }
}

impl Default for Counter<'static> {
    fn default() -> Self {
        Self::new()
    }
}

/// The word of a counter that has a cell of the default geometry, at this address.
fn assigned(stripes: &Stripes, cell: usize) -> usize {
    match stripes.implementation {
        Implementation::Gs => stripes.gs_offset(cell),
        _ => cell + 1,
    }
}

impl Counter<'_> {
    /// The counter in a cell of an area.
    pub(super) fn at(site: Site) -> Self {
        let word = if site.geometry == stripes().geometry() {
            assigned(stripes(), site.start)
        } else {
            Box::into_raw(Box::new(site)).expose_provenance() + ELSEWHERE
        };
        Self { word: AtomicUsize::new(word), area: PhantomData }
    }

    /// Adds `n`.
    #[inline]
    pub fn add(&self, n: u64) {
        let word = value(&self.word);
        if word & 1 == 0 {
            if cfg!(debug_assertions) {
                stripes().check_gs();
            }
            // SAFETY: an even word is there only in the `gs` implementation: the area is known, and
            // if the thread is striped, the offset leads to this cell's word of its stripe,
            // which only windows update.
            if unsafe { arch::gs_load_add_store_u64(rseq::area(), word, n) } == Outcome::Done {
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
    #[cold]
    #[inline(never)]
    fn add_elsewhere(&self, n: u64) {
        let stripes = stripes();
        let mut word = value(&self.word);
        if word == UNASSIGNED {
            let take = || block::take(stripes, 8).ok().map(|cell| assigned(stripes, cell));
            let give_back = |word| release(stripes, word);
            word = assign_once(&self.word, take, give_back);
        } else if word & 1 == 0 {
            ABORTS.count();
        }
        match Place::of(stripes, word) {
            // SAFETY: the cell is this counter's, of the geometry of `stripes`.
            Place::Here(cell) => unsafe { stripes.add(cell, n) },
            Place::Elsewhere(site) => add_at(site, n),
            Place::Nowhere => {
                self.word.fetch_add((n as usize) << TAG_BITS, Ordering::Relaxed);
            }
        }
    }

    /// What stripe `n` has, what is in no stripe, and how many CPU ids there are.
    fn words(&self) -> (impl Fn(u32) -> u64, u64, u32) {
        let word = value(&self.word);
        let (start, Geometry { stride, cpus, .. }) = match Place::of(stripes(), word) {
            Place::Here(cell) => (cell.addr(), stripes().geometry()),
            Place::Elsewhere(site) => (site.start, site.geometry),
            Place::Nowhere => (0, stripes().geometry()),
        };
        let of = move |stripe: u32| {
            if start == 0 {
                return 0;
            }
            let word = ptr::with_exposed_provenance::<AtomicU64>(start + stripe as usize * stride);
            // SAFETY: the cell has a word on each of its stripes, valid and aligned for the
            // life of the area; asm and atomics write it.
            unsafe { &*word }.load(Ordering::Relaxed)
        };
        let spilled = word & TAG == SPILLED;
        let rest = if spilled { word.cast_signed() >> TAG_BITS } else { 0 };
        (of, rest as u64, cpus)
    }

    /// The sum over all CPUs, the offline ones too.
    ///
    /// Additions that happened before the call are in it. Of those that happen meanwhile some
    /// may be and some may not: the sum of a counter that also goes down may be a value that
    /// it never had.
    pub fn sum(&self) -> u64 {
        let (word, rest, cpus) = self.words();
        (0..2 * cpus).map(word).fold(rest, u64::wrapping_add)
    }

    /// The possible CPU ids, each with what was counted on it: the parts of
    /// [`sum`](Self::sum). What was added without a window is counted for the CPU on which
    /// that addition began.
    pub fn per_cpu(&self) -> impl Iterator<Item = (u32, u64)> {
        let (word, mut rest, cpus) = self.words();
        let listed = &features().cpus;
        // An area may have more stripes than this machine has ids.
        let ids = listed.iter().chain(listed.end()..cpus);
        ids.map(move |cpu| {
            let rest = core::mem::take(&mut rest);
            (cpu, word(cpu).wrapping_add(word(cpus + cpu)).wrapping_add(rest))
        })
    }
}

impl Drop for Counter<'_> {
    fn drop(&mut self) {
        let word = self.word.load(Ordering::Relaxed);
        if word != UNASSIGNED {
            release(stripes(), word);
        }
    }
}

impl fmt::Debug for Counter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counter").field("sum", &self.sum()).finish_non_exhaustive()
    }
}

/// Where a counter counts.
enum Place<'a> {
    /// In a cell of the default geometry, here on stripe 0.
    Here(*mut u64),
    Elsewhere(&'a Site),
    /// It has no cell.
    Nowhere,
}

impl Place<'_> {
    /// Of a counter whose word this is.
    fn of(stripes: &Stripes, word: usize) -> Self {
        match word & TAG {
            0 => Self::Here(stripes.cell_at(word)),
            1 if word != UNASSIGNED => Self::Here(ptr::with_exposed_provenance_mut(word - 1)),
            ELSEWHERE => {
                let site = ptr::with_exposed_provenance::<Site>(word - ELSEWHERE);
                // SAFETY: a leaked box, freed when the counter is dropped.
                Self::Elsewhere(unsafe { &*site })
            }
            _ => Self::Nowhere,
        }
    }
}

/// Gives back what a counter had, whose word this was.
fn release(stripes: &Stripes, word: usize) {
    match Place::of(stripes, word) {
        Place::Here(cell) => block::release(stripes, cell.addr(), 8),
        Place::Elsewhere(site) => {
            // SAFETY: made by `Counter::at`, and the counter is gone.
            drop(unsafe { Box::from_raw(ptr::from_ref(site).cast_mut()) });
        }
        Place::Nowhere => {}
    }
}

/// Adds `n` in an area of another geometry.
pub(super) fn add_at(site: &Site, n: u64) {
    let done = site.attempt(|place| {
        on!(place, |Shape, at| {
            // SAFETY: the site's words are this counter's, which windows and this function update.
            unsafe { <Shape as Words<u64>>::load_add_store(at, n) }
        })
    });
    if done.is_none() {
        let word = ptr::with_exposed_provenance_mut(site.overflow_here().word);
        // SAFETY: on an overflow stripe, which only atomics update.
        unsafe { portable::add_u64(word, n) };
    }
}

/// The value of a counter's word. Pairs with [`assign_once`]: whoever sees the cell sees its
/// zeroes.
#[inline]
fn value(word: &AtomicUsize) -> usize {
    word.load(Ordering::Acquire)
}

/// Gives `word` its one value for good, whoever comes first: `take` brings a candidate, and
/// a loser's is given back. Without a candidate the count is kept in the word.
fn assign_once(
    word: &AtomicUsize,
    take: impl FnOnce() -> Option<usize>,
    give_back: impl FnOnce(usize),
) -> usize {
    let candidate = take();
    let value = candidate.unwrap_or(SPILLED);
    match word.compare_exchange(UNASSIGNED, value, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => value,
        Err(winner) => {
            candidate.map(give_back);
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
        assert_eq!(assign_once(&counter.word, || None, |_| unreachable!()), SPILLED);
        counter.add(3);
        counter.sub(5);
        assert_eq!(counter.sum().cast_signed(), -2);
        counter.add(9);
        assert_eq!(counter.per_cpu().map(|(_, n)| n).sum::<u64>(), 7);
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::sync::model;
    use loom::sync::Arc;
    use loom::thread;

    type Cell = loom::cell::UnsafeCell<u64>;

    struct Shared {
        word: AtomicUsize,
        /// How many candidates were given back.
        returned: AtomicU64,
    }

    /// A cell that was written without atomics, as a word.
    fn cell(n: u64) -> usize {
        let cell = Box::new(Cell::new(0));
        cell.with_mut(|value| unsafe { *value = n });
        Box::into_raw(cell).expose_provenance()
    }

    fn read(word: usize) -> u64 {
        let cell = ptr::with_exposed_provenance::<Cell>(word);
        unsafe { &*cell }.with(|value| unsafe { *value })
    }

    fn free(word: usize) {
        drop(unsafe { Box::from_raw(ptr::with_exposed_provenance_mut::<Cell>(word)) });
    }

    /// Two threads assign at once, a third only looks; all see the same, initialised cell,
    /// and the loser's candidate is given back. Fails when the exchange or the load
    /// is relaxed.
    #[test]
    fn one_cell_seen_initialised_by_all() {
        model(|| {
            let shared = Arc::new(Shared {
                word: AtomicUsize::new(UNASSIGNED).ready(),
                returned: AtomicU64::new(0).ready(),
            });
            let assign = |shared: &Shared, n: u64| {
                let give_back = |word| {
                    shared.returned.fetch_add(1, Ordering::Relaxed);
                    free(word);
                };
                read(assign_once(&shared.word, || Some(cell(n)), give_back))
            };
            let other = thread::spawn({
                let shared = shared.clone();
                move || assign(&shared, 1)
            });
            let looker = thread::spawn({
                let shared = shared.clone();
                move || {
                    let word = value(&shared.word);
                    (word != UNASSIGNED).then(|| read(word))
                }
            });
            let here = assign(&shared, 2);
            let there = other.join().unwrap();
            let looked = looker.join().unwrap();
            assert_eq!(here, there);
            assert!(looked.is_none() || looked == Some(here));
            assert_eq!(shared.returned.load(Ordering::Relaxed), 1);
            free(value(&shared.word));
        });
    }
}
