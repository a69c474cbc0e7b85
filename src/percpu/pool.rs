//! A pool of objects with an array on every CPU.

use super::depot::{Batch, Depot};
use super::limits::PoolLimits;
use super::pooled::Pooled;
use super::site::{Lazy, Site, on, quickly, slowly};
use crate::sync::{AtomicU64, Ordering};
use crate::{arch::Structures, sys::cpus};
use core::fmt;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ptr;

/// A pool of reusable objects with an array of them on every CPU, and a global list.
///
/// ```
/// use unmerged::percpu::Pool;
///
/// static BUFFERS: Pool<Vec<u8>> = Pool::new(|| Vec::with_capacity(4096));
///
/// let mut buffer = BUFFERS.get();
/// buffer.clear(); // It is as its last user left it.
/// buffer.extend_from_slice(b"recycled when dropped");
/// ```
///
/// An object is taken from the array of this CPU and put back into it by one window each. When an
/// array is empty it is refilled with a batch from the global list; when it is full a batch of it
/// goes there. So what is made on one CPU and given back on another comes round, and at most
/// `shared + (per_cpu + batch) * CPUs` objects are kept, see [`PoolLimits`]: beyond that they are
/// dropped.
///
/// # Guarantees
///
/// | event | what holds |
/// |---|---|
/// | any operation but [`drain`](Self::drain) | never locks or waits; the pool itself calls no allocator: it maps memory for the global list when it first has something for it |
/// | signal handler | [`try_get`](Self::try_get) and [`try_put`](Self::try_put) may be used, also on a pool that they interrupt, once the pool has been used outside of a handler; [`get`](Self::get) and [`put`](Self::put) may call `make` or drop an object, which commonly calls the allocator |
/// | fork, at any moment | the child has its own copy of what was in the pool. What another thread was just moving, a batch or what it drained, is lost to it |
/// | no memory | nothing is kept for which there is no room, and no operation fails |
///
/// Where no window can run, or too many were aborted, or the CPU is stopped by a drain, the CPU has
/// one batch instead of its array, which costs two instructions with a `lock` prefix each way.
/// A handler or a thread that comes while another one has that batch in its hands goes on to the
/// global list, which is lock-free.
///
/// A pool of what lives long takes nothing that lives less long:
///
/// ```compile_fail,E0716
/// use unmerged::percpu::Pool;
///
/// fn put<'a>(pool: &Pool<&'a str>, text: &'a str) {
///     pool.put(Box::new(text));
/// }
/// let pool: Pool<&'static str> = Pool::new(|| "");
/// put(&pool, &String::from("short"));
/// ```
pub struct Pool<T, F = fn() -> T> {
    pub(super) cell: Lazy,
    limits: PoolLimits,
    pub(super) depot: Depot,
    /// What an overflow stripe has, used while there is no memory for a cell.
    pub(super) spare: AtomicU64,
    make: F,
    /// Objects go in and come out: a pool of `T` is no pool of a supertype or subtype of it.
    objects: PhantomData<fn(T) -> T>,
}

// SAFETY: an object changes hands as a whole.
unsafe impl<T: Send, F: Send> Send for Pool<T, F> {}
// SAFETY: as above; no reference to an object is handed out.
unsafe impl<T: Send, F: Sync> Sync for Pool<T, F> {}

/// Runs a window on the cell of a site, whichever shape it takes.
macro_rules! attempt {
    ($site:expr, |$Shape:ident, $at:ident| $call:expr) => {
        $site.attempt(|place| on!(place, |$Shape, $at| $call))
    };
}

/// The address by which arrays know an object.
fn into_word<T>(object: Box<T>) -> usize {
    Box::into_raw(object).expose_provenance()
}

/// # Safety
///
/// `word` came from [`into_word`], and from the pool to nobody else.
pub(super) unsafe fn from_word<T>(word: usize) -> Box<T> {
    // SAFETY: forwarded.
    unsafe { Box::from_raw(ptr::with_exposed_provenance_mut(word)) }
}

impl<T, F> Pool<T, F> {
    /// An empty one; `make` makes what it cannot give. Nothing is allocated until it is used.
    pub const fn new(make: F) -> Self {
        Self::with_limits(make, PoolLimits::new())
    }

    /// The same with other limits.
    ///
    /// # Panics
    ///
    /// If there would be more than 50000 batches in the global list; in a constant this is an error
    /// of the compiler.
    pub const fn with_limits(make: F, limits: PoolLimits) -> Self {
        let depot = Depot::new(limits.batch, limits.kept());
        let spare = AtomicU64::new(0);
        Self { cell: Lazy::new(), limits, depot, spare, make, objects: PhantomData }
    }

    /// Bytes of a cell: on a window stripe the count and the slots of an array, on an overflow
    /// stripe the batch of the CPU in the first word.
    pub(super) const fn bytes(&self) -> usize {
        8 * (1 + self.limits.per_cpu)
    }

    /// Takes an object that was put back; `None` if this CPU has none and the global list is empty.
    /// What other CPUs have is left alone.
    #[inline]
    pub fn try_get(&self) -> Option<Box<T>> {
        let popped = quickly!(&self.cell, |Shape, at| {
            // SAFETY: the cell is an array of objects.
            unsafe { Shape::array_pop(at) }
        });
        let object = match popped {
            Some(object) => object,
            None => self.get_slowly()?,
        };
        // SAFETY: taken from the pool, by this thread alone.
        Some(unsafe { from_word(object) })
    }

    /// Puts an object back; returns it if there is no room for it.
    ///
    /// # Errors
    ///
    /// The object, if the array of this CPU and the global list are full.
    #[inline]
    pub fn try_put(&self, object: Box<T>) -> core::result::Result<(), Box<T>> {
        let (object, capacity) = (into_word(object), self.limits.per_cpu);
        let pushed = quickly!(&self.cell, |Shape, at| {
            // SAFETY: the cell is an array with room for so many objects; this one is ours.
            unsafe { Shape::array_push(at, capacity, object) }
        });
        if pushed.is_some() || self.put_slowly(object) {
            return Ok(());
        }
        // SAFETY: it came from a box above, and nobody else got it.
        Err(unsafe { from_word(object) })
    }

    /// Puts an object back, also one that was made elsewhere; drops it if there is no room for it.
    #[inline]
    pub fn put(&self, object: Box<T>) {
        drop(self.try_put(object));
    }

    /// Takes an object, or makes one.
    #[inline]
    pub fn get(&self) -> Pooled<'_, T, F>
    where
        F: Fn() -> T,
    {
        let object = self.try_get().unwrap_or_else(|| self.make());
        Pooled { object: ManuallyDrop::new(object), pool: self }
    }

    #[cold]
    #[inline(never)]
    fn make(&self) -> Box<T>
    where
        F: Fn() -> T,
    {
        Box::new((self.make)())
    }

    /// The word where the batch of this CPU is, where windows do not run.
    fn parking(&self) -> &AtomicU64 {
        match self.cell.known() {
            Some(site) => parking_of(site, cpus::current()),
            None => &self.spare,
        }
    }

    #[cold]
    #[inline(never)]
    fn get_slowly(&self) -> Option<usize> {
        let popped = slowly!(&self.cell, self.bytes(), |Shape, at| {
            // SAFETY: as in `try_get`.
            unsafe { Shape::array_pop(at) }
        });
        match popped {
            Some(Ok(object)) => Some(object),
            Some(Err(())) => self.refill(true),
            None => self.refill(false),
        }
    }

    /// Whether there was room.
    #[cold]
    #[inline(never)]
    fn put_slowly(&self, object: usize) -> bool {
        let capacity = self.limits.per_cpu;
        let pushed = slowly!(&self.cell, self.bytes(), |Shape, at| {
            // SAFETY: as in `try_put`.
            unsafe { Shape::array_push(at, capacity, object) }
        });
        match pushed {
            Some(Ok(())) => true,
            Some(Err(())) => self.flush(object, true),
            None => self.flush(object, false),
        }
    }

    /// An object for a CPU whose array is empty (`windows_run`), or cannot be used.
    fn refill(&self, windows_run: bool) -> Option<usize> {
        let word = self.parking();
        if !ptr::eq(word, &raw const self.spare) {
            // What was put back before there was a cell.
            let left = self.depot.unpark(&self.spare);
            left.into_iter().for_each(|left| self.depot.release(left));
        }
        let mut batch = self.depot.unpark(word);
        if batch.as_ref().is_none_or(|batch| batch.len() == 0) {
            let empty = batch.take();
            batch = self.depot.take_full();
            // Put away after that: it could not be had by somebody who flushes meanwhile, but the
            // full one could by nobody else.
            empty.into_iter().for_each(|empty| self.depot.release(empty));
        }
        let mut batch = batch?;
        let object = batch.pop();
        if windows_run {
            self.unload(&mut batch);
            self.depot.release(batch);
        } else {
            self.depot.park(word, batch);
        }
        object
    }

    /// Moves a batch into the array of this CPU, if it has room.
    fn unload(&self, batch: &mut Batch<'_>) {
        let (from, n, capacity) = (batch.slots(), batch.len(), self.limits.per_cpu);
        let Some(site) = self.cell.known().filter(|_| n > 0) else { return };
        let moved = attempt!(site, |Shape, at| {
            // SAFETY: the cell is an array with room for so many objects, the batch has n.
            unsafe { Shape::array_push_batch(at, capacity, from, n) }
        });
        if moved == Some(Ok(())) {
            batch.set_len(0);
        }
    }

    /// Keeps an object of a CPU whose array is full (`windows_run`), or cannot be used; whether
    /// there was room.
    fn flush(&self, object: usize, windows_run: bool) -> bool {
        if let Some(site) = self.cell.known().filter(|_| windows_run) {
            let Some(mut batch) = self.depot.take_empty() else { return false };
            let (to, n, capacity) = (batch.slots(), self.depot.batch(), self.limits.per_cpu);
            let moved = attempt!(site, |Shape, at| {
                // SAFETY: the cell is an array of objects, the batch is empty and has n slots.
                unsafe { Shape::array_pop_batch(at, to, n) }
            });
            if let Some(Ok(moved)) = moved {
                batch.set_len(moved);
            }
            self.depot.release(batch);
            let pushed = attempt!(site, |Shape, at| {
                // SAFETY: as in `try_put`.
                unsafe { Shape::array_push(at, capacity, object) }
            });
            if pushed == Some(Ok(())) {
                return true;
            }
        }
        let word = self.parking();
        let mut batch = self.depot.unpark(word);
        if batch.as_ref().is_none_or(|batch| batch.len() >= self.depot.batch()) {
            batch.take().into_iter().for_each(|full| self.depot.release(full));
            batch = self.depot.take_empty();
        }
        let Some(mut batch) = batch else { return false };
        // SAFETY: seen to have room.
        unsafe { batch.push(object) };
        self.depot.park(word, batch);
        true
    }

    /// Objects that the pool keeps now: exact if nobody uses it meanwhile, else an estimate.
    pub fn len(&self) -> usize {
        self.stripes().map(|(site, cpu)| count_of(site, cpu)).sum::<usize>() + self.depot.len()
    }

    /// Whether the pool keeps no object, as [`len`](Self::len).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The window stripes.
    pub(super) fn stripes(&self) -> impl Iterator<Item = (Site, u32)> + use<T, F> {
        let site = self.cell.known();
        site.into_iter().flat_map(|site| (0..site.geometry.cpus).map(move |cpu| (site, cpu)))
    }
}

/// The number of objects in the array of a CPU.
pub(super) fn count_of(site: Site, cpu: u32) -> usize {
    // SAFETY: a word of the cell, as the site says.
    unsafe { word(site.on_stripe(cpu)) }.load(Ordering::Relaxed) as usize
}

/// The word on the overflow stripe of a CPU where its batch is.
pub(super) fn parking_of(site: Site, cpu: u32) -> &'static AtomicU64 {
    // SAFETY: a word of the cell, as the site says.
    unsafe { word(site.overflow(cpu).word) }
}

/// A word of a cell.
///
/// # Safety
///
/// It must be one; then it is mapped for good, and is written by windows and atomics.
pub(super) unsafe fn word(address: usize) -> &'static AtomicU64 {
    // SAFETY: the caller vouches for it; aligned.
    unsafe { &*ptr::with_exposed_provenance(address) }
}

impl<T, F> fmt::Debug for Pool<T, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("len", &self.len())
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn pool(limits: PoolLimits) -> Pool<usize> {
        Pool::with_limits(|| unreachable!(), limits)
    }

    /// What a thread does that cannot run windows, here also before there is a cell.
    #[test]
    fn without_windows() {
        let pool = pool(PoolLimits::new().per_cpu(3).batch(2).shared(6));
        let put = |value| pool.flush(into_word(Box::new(value)), false);
        // SAFETY: taken from the pool, by this thread alone.
        let get = || pool.refill(false).map(|object| *unsafe { from_word::<usize>(object) });
        assert_eq!(get(), None);
        assert!((1..=3).all(put));
        assert!(pool.cell.known().is_none() && pool.spare.load(Ordering::Relaxed) != 0);
        assert_eq!((pool.len(), get()), (3, Some(3)));
        let room = 2 * pool.depot.batches() - 2;
        assert!((0..room).all(put) && !put_and_free(&pool));
        assert_eq!(pool.len(), room + 2);
        assert_eq!(core::iter::from_fn(get).count(), room + 2);
        // With a cell: nothing is left behind in the old place.
        assert!(put(4));
        pool.cell.site_of(pool.bytes()).unwrap();
        assert!(put(5));
        let mut both = [get(), get()];
        both.sort_unstable();
        assert_eq!((both, get()), ([Some(4), Some(5)], None));
    }

    /// Whether there was room for one more.
    fn put_and_free(pool: &Pool<usize>) -> bool {
        let object = into_word(Box::new(0_usize));
        let put = pool.flush(object, false);
        if !put {
            // SAFETY: ours, as the pool has not taken it.
            drop(unsafe { from_word::<usize>(object) });
        }
        put
    }

    #[test]
    fn what_is_left_is_dropped() {
        use crate::sync::AtomicUsize;
        static LIVE: AtomicUsize = AtomicUsize::new(0);
        struct Counted;
        impl Drop for Counted {
            fn drop(&mut self) {
                LIVE.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let make = || {
            LIVE.fetch_add(1, Ordering::Relaxed);
            Counted
        };
        let pool = Pool::with_limits(make, PoolLimits::new().per_cpu(3).batch(2).shared(6));
        // Something before there is a cell, and something that windows do not see.
        assert!((0..3).all(|_| pool.flush(into_word(Box::new(make())), false)));
        let users: Vec<_> = (0..100).map(|_| pool.get()).collect();
        assert_eq!(LIVE.load(Ordering::Relaxed), 100);
        assert!(pool.flush(into_word(Box::new(make())), false));
        drop(users);
        assert_eq!(LIVE.load(Ordering::Relaxed), pool.len());
        drop(pool);
        assert_eq!(LIVE.load(Ordering::Relaxed), 0);
    }
}
