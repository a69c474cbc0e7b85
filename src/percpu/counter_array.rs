//! Counters by number.

use super::cell::Cell;
use super::counter::add_at;
use super::geometry::Index;
use super::site::Site;
use super::stats::ABORTS;
use super::stripes::{Stripes, stripes};
use super::{Implementation, STRIDE, block};
use crate::arch::{self, Outcome};
use crate::error::{Context, Error, Result};
use crate::sync::{AtomicU64, Ordering};
use crate::sys::features::features;
use crate::sys::map::{Access, Mapping};
use crate::sys::rseq;
use core::fmt;
use core::marker::PhantomData;
use core::ptr;
use rustix::io::Errno;
use rustix::mm::Advice;

/// Words of a plane on one stripe.
const WORDS: usize = STRIDE / 8;

/// The largest array that shares its pages with other cells; a larger one has its own.
const SMALL: usize = WORDS / 2;

/// `n` counters of 64 bits, each with a word on every CPU. Arithmetic wraps.
///
/// An addition costs about as much as one to a [`Counter`](super::Counter), the check of the
/// index included, and has its guarantees: it is counted once, whatever interrupts it, it never
/// waits, and a signal handler may make it.
///
/// ```
/// use unmerged::percpu::CounterArray;
///
/// let by_status = CounterArray::new(600)?;
/// by_status.add(200, 1);
/// by_status.add(404, 1);
/// assert_eq!((by_status.sum(200), by_status.sum(500)), (1, 0));
/// assert!(by_status.get(600).is_none());
/// # Ok::<(), unmerged::Error>(())
/// ```
///
/// # Memory
///
/// `n` words a CPU, in pages that are committed when that CPU first counts in them, and as many
/// for the overflow stripes, which are rarely touched. Stripes are 4096 bytes apart, so what goes
/// beyond 512 words lies in further *planes*, one behind the other:
///
/// ```text
/// plane 0: words 0 to 511      of stripe 0, of stripe 1, …
/// plane 1: words 512 to 1023   of stripe 0, of stripe 1, …
/// ```
///
/// So the place of a word is arithmetic, and `%gs` reaches all of them.
///
/// After a fork the child's counters start at the parent's values and go their own way; those in
/// a [cell](Cell::counters) of shared memory are the same in both.
pub struct CounterArray<'a> {
    len: usize,
    /// How many of them `%gs` reaches: all (implementation `gs`, stripes of its geometry) or none.
    reached: usize,
    /// Distance from the GS base to word 0, if it reaches them.
    gs_offset: usize,
    /// Bytes from the last word of a plane's stripe to the first of the same stripe of the next.
    gap: usize,
    site: Site,
    memory: Memory,
    area: PhantomData<&'a AtomicU64>,
}

/// Whose memory it is.
enum Memory {
    /// A cell of private blocks, given back when the array is dropped.
    Cell,
    /// A mapping of the array's own.
    Planes { _mapping: Mapping },
    /// An area's.
    Area,
}

impl CounterArray<'static> {
    /// `n` counters of this process, at 0.
    ///
    /// # Errors
    ///
    /// EINVAL for 0 counters, or more than there are addresses; ENOMEM if there is no address
    /// space for them.
    pub fn new(n: usize) -> Result<Self> {
        const OPERATION: &str = "percpu::CounterArray::new";
        let stripes = stripes();
        let geometry = stripes.geometry();
        let plane = 2 * geometry.cpus as usize * STRIDE;
        let bytes = n.div_ceil(WORDS).checked_mul(plane).filter(|&bytes| bytes != 0);
        let Some(bytes) = bytes.filter(|&bytes| isize::try_from(bytes).is_ok()) else {
            let numbers = format_args!("{n} counters with {} words each", 2 * geometry.cpus);
            return Err(Error::with(OPERATION, Errno::INVAL, numbers));
        };
        if n <= SMALL {
            let start = block::take(stripes, n * 8).op_on(OPERATION, n * 8)?;
            let site = Site { start, offset: start % STRIDE, geometry, shared: false };
            return Ok(Self::at(n, 0, site, Memory::Cell));
        }
        let mapping = Mapping::anonymous(bytes, Access::Write).op_on(OPERATION, bytes)?;
        // As in a block: a huge page would commit the stripes of all CPUs at once, on one node.
        // SAFETY: the advice takes no contents away.
        let _ = unsafe { mapping.advise(Advice::LinuxNoHugepage) };
        let site = Site { start: mapping.address(), offset: 0, geometry, shared: false };
        Ok(Self::at(n, plane - STRIDE, site, Memory::Planes { _mapping: mapping }))
    }
}

impl<'a> Cell<'a> {
    /// Its words as counters, as many as it has: for processes that share them. A cell of a
    /// larger [stride](super::AreaBuilder::stride) holds more of them, which `%gs` does not reach.
    ///
    /// # Errors
    ///
    /// EINVAL if the cell has less than 8 bytes.
    pub fn counters(&self) -> Result<CounterArray<'a>> {
        let site = self.part("percpu::Cell::counters", 0, self.size().max(8))?;
        Ok(CounterArray::at(self.size() / 8, 0, site, Memory::Area))
    }
}

impl<'a> CounterArray<'a> {
    fn at(len: usize, gap: usize, site: Site, memory: Memory) -> Self {
        let stripes = stripes();
        let gs = stripes.implementation == Implementation::Gs && is_default(&site);
        let (reached, gs_offset) = if gs { (len, stripes.gs_offset(site.start)) } else { (0, 0) };
        Self { len, reached, gs_offset, gap, site, memory, area: PhantomData }
    }

    /// How many counters there are.
    #[allow(clippy::len_without_is_empty, reason = "there is one at least")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The counter of this index; `None` if there is none.
    #[inline]
    pub fn get(&self, index: usize) -> Option<Element<'_>> {
        (index < self.len).then_some(Element { array: self, index })
    }

    /// Adds by `%gs`, if it reaches the counter, which it only does if there is one.
    #[inline(always)]
    fn add_at_once(&self, index: usize, n: u64) -> Outcome {
        if index >= self.reached {
            return Outcome::Aborted;
        }
        if cfg!(debug_assertions) {
            stripes().check_gs();
        }
        let word = self.gs_offset.wrapping_add(index * 8 + index / WORDS * self.gap);
        // SAFETY: the implementation is `gs`: the area is known, and if the thread is striped, the
        // offset leads to this counter's word of its stripe, which only windows update.
        unsafe { arch::gs_load_add_store_u64(rseq::area(), word, n) }
    }

    #[cold]
    #[inline(never)]
    #[track_caller]
    fn add_slowly(&self, index: usize, n: u64) {
        self.element(index).add_elsewhere(n);
    }

    #[inline]
    #[track_caller]
    fn element(&self, index: usize) -> Element<'_> {
        match self.get(index) {
            Some(element) => element,
            None => out_of_bounds(index, self.len),
        }
    }

    /// Adds `n` to the counter of this index.
    ///
    /// # Panics
    ///
    /// If there is no such counter, as indexing a slice does; [`get`](Self::get) does not.
    #[inline]
    #[track_caller]
    pub fn add(&self, index: usize, n: u64) {
        if self.add_at_once(index, n) != Outcome::Done {
            self.add_slowly(index, n);
        }
    }

    /// Subtracts `n` from the counter of this index.
    ///
    /// # Panics
    ///
    /// If there is no such counter.
    #[inline]
    #[track_caller]
    pub fn sub(&self, index: usize, n: u64) {
        self.add(index, n.wrapping_neg());
    }

    /// The sum of the counter of this index over all CPUs, the offline ones too, as
    /// [`Counter::sum`](super::Counter::sum).
    ///
    /// # Panics
    ///
    /// If there is no such counter.
    #[track_caller]
    pub fn sum(&self, index: usize) -> u64 {
        self.element(index).sum()
    }

    /// The sums of all counters, in order. Each of them misses no addition that happened before
    /// the call; together they are no snapshot.
    pub fn sums(&self) -> Vec<u64> {
        let mut sums = vec![0_u64; self.len];
        // Stripe by stripe, as the memory lies.
        for stripe in 0..2 * self.site.geometry.cpus {
            for (index, sum) in sums.iter_mut().enumerate() {
                *sum = sum.wrapping_add(self.element(index).on_stripe(stripe));
            }
        }
        sums
    }

    /// The possible CPU ids, each with what the counter of this index has of it: the parts of
    /// its [`sum`](Self::sum).
    ///
    /// # Panics
    ///
    /// If there is no such counter.
    #[track_caller]
    pub fn per_cpu(&self, index: usize) -> impl Iterator<Item = (u32, u64)> {
        self.element(index).per_cpu()
    }
}

/// Whether cells of that geometry are at the same distance from the GS base on every CPU.
fn is_default(site: &Site) -> bool {
    site.geometry.stride == STRIDE && site.geometry.index == Index::CpuId
}

#[cold]
#[inline(never)]
#[track_caller]
fn out_of_bounds(index: usize, len: usize) -> ! {
    panic!("index out of bounds: there are {len} counters but the index is {index}")
}

/// One counter of a [`CounterArray`].
#[derive(Clone, Copy)]
pub struct Element<'a> {
    array: &'a CounterArray<'a>,
    index: usize,
}

impl<'a> Element<'a> {
    /// Adds `n`.
    #[inline]
    pub fn add(self, n: u64) {
        if self.array.add_at_once(self.index, n) != Outcome::Done {
            self.add_elsewhere(n);
        }
    }

    /// Bytes from word 0 to its word, on every stripe.
    fn at(self) -> usize {
        self.index * 8 + self.index / WORDS * self.array.gap
    }

    /// Subtracts `n`.
    #[inline]
    pub fn sub(self, n: u64) {
        self.add(n.wrapping_neg());
    }

    /// The thread is not striped for this CPU, or `%gs` does not reach the word.
    #[cold]
    #[inline(never)]
    fn add_elsewhere(self, n: u64) {
        let stripes: &Stripes = stripes();
        let site @ Site { start, offset, geometry, .. } = self.array.site;
        if self.array.reached != 0 {
            ABORTS.count();
        }
        // Those of an area with more CPU ids have their overflow stripes elsewhere.
        if geometry == stripes.geometry() {
            let word = ptr::with_exposed_provenance_mut(start + self.at());
            // SAFETY: this counter's word on stripe 0; the others are `STRIDE` apart.
            return unsafe { stripes.add(word, n) };
        }
        add_at(&Site { start: start + self.at(), offset: offset + self.at(), ..site }, n);
    }

    fn on_stripe(self, stripe: u32) -> u64 {
        let word = self.array.site.on_stripe(stripe) + self.at();
        let word = ptr::with_exposed_provenance::<AtomicU64>(word);
        // SAFETY: the counter has a word on each stripe, mapped as long as the array is; asm and
        // atomics write it.
        unsafe { &*word }.load(Ordering::Relaxed)
    }

    /// The sum over all CPUs.
    pub fn sum(self) -> u64 {
        let stripes = 0..2 * self.array.site.geometry.cpus;
        stripes.map(|stripe| self.on_stripe(stripe)).fold(0, u64::wrapping_add)
    }

    /// The possible CPU ids, each with what was counted on it.
    pub fn per_cpu(self) -> impl Iterator<Item = (u32, u64)> + use<'a> {
        let cpus = self.array.site.geometry.cpus;
        let both = move |cpu| self.on_stripe(cpu).wrapping_add(self.on_stripe(cpus + cpu));
        let listed = &features().cpus;
        // An area may have more stripes than this machine has ids.
        listed.iter().chain(listed.end()..cpus).map(move |cpu| (cpu, both(cpu)))
    }
}

impl fmt::Debug for Element<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Element").field("sum", &self.sum()).finish_non_exhaustive()
    }
}

impl fmt::Debug for CounterArray<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CounterArray").field(&self.sums()).finish()
    }
}

impl Drop for CounterArray<'_> {
    fn drop(&mut self) {
        if let Memory::Cell = self.memory {
            block::release(stripes(), self.site.start, self.len * 8);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn counts_in_every_plane() {
        for len in [1, 2, 256, 257, 511, 512, 513, 1024, 5000] {
            let array = CounterArray::new(len).unwrap();
            for index in 0..len {
                array.add(index, index as u64 + 1);
            }
            array.sub(len - 1, 3);
            let sums = array.sums();
            assert_eq!((sums.len(), array.len()), (len, len));
            for (index, &sum) in sums.iter().enumerate() {
                let less = if index == len - 1 { 3 } else { 0 };
                assert_eq!(sum, (index as u64 + 1).wrapping_sub(less), "{index} of {len}");
                assert_eq!(array.sum(index), sum);
            }
        }
    }

    #[test]
    fn what_cannot_be() {
        for len in [0, usize::MAX, usize::MAX / 8] {
            let error = CounterArray::new(len).unwrap_err();
            assert!(error.is_invalid() && error.to_string().contains(&len.to_string()), "{error}");
        }
        let error = CounterArray::new(1 << 50).unwrap_err();
        assert!(error.is_exhausted(), "{error}");
        let array = CounterArray::new(5).unwrap();
        assert!(array.get(4).is_some() && array.get(5).is_none());
        assert!(array.get(usize::MAX).is_none());
        let beyond = std::panic::catch_unwind(|| array.add(5, 1)).unwrap_err();
        let message = beyond.downcast_ref::<String>().unwrap();
        assert!(message.contains("5 counters but the index is 5"), "{message}");
        assert_eq!(format!("{array:?}"), "CounterArray([0, 0, 0, 0, 0])");
    }

    /// No window writes an overflow stripe, no atomic a window's: also where the area has stripes
    /// for more CPU ids than this machine.
    #[test]
    fn an_area_with_more_cpu_ids() {
        let here = stripes().cpus;
        let mapped = crate::percpu::AreaBuilder::new().cpu_ids(here + 3).private().unwrap();
        let array = mapped.area().alloc(16).unwrap().counters().unwrap();
        array.add(1, 5);
        let counted = |stripe| array.element(1).on_stripe(stripe);
        assert!((here..here + 3).all(|stripe| counted(stripe) == 0));
        assert_eq!((array.sum(1), array.per_cpu(1).map(|(_, sum)| sum).sum()), (5, 5_u64));
        let last = array.per_cpu(1).last().unwrap();
        assert_eq!(last, (here + 2, 0));
    }

    #[test]
    fn a_dropped_small_one_comes_back_as_zero() {
        for _ in 0..20 {
            let array = CounterArray::new(100).unwrap();
            assert!(array.sums().iter().all(|&sum| sum == 0));
            (0..100).for_each(|index| array.add(index, 1));
        }
    }
}
