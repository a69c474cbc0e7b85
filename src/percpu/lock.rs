//! A lock with a value on every CPU.

use super::asymmetric;
use super::door::Door;
use super::locked::{Guard, Held, Stripe, this_thread};
use super::site::{Lazy, Site, on, window};
use crate::arch::{Answer, Words};
use crate::error::Result;
use crate::sync::Ordering;
use crate::sys::tag::tag;
use core::fmt;
use core::marker::PhantomData;
use core::ptr::{self, NonNull};

/// How often a thread lets others run before it sleeps: the holder is likely one that was
/// preempted on this very CPU.
const YIELDS: u32 = 2;

/// A lock with a `T` on every CPU: [`lock`](Self::lock) takes that of the CPU that the thread is
/// on. Threads on different CPUs do not meet, so neither a locked instruction nor a fence is
/// needed, and no cache line moves.
///
/// ```
/// use unmerged::percpu::Lock;
///
/// static NAMES: Lock<Vec<String>> = Lock::new(Vec::new);
///
/// NAMES.lock().push("here".into()); // on this CPU
/// let mut all = Vec::new();
/// NAMES.for_each(|_cpu, names| all.append(names))?; // from all of them
/// assert_eq!(all, ["here"]);
/// # Ok::<(), unmerged::Error>(())
/// ```
///
/// A holder may be preempted, may sleep, and may go on on another CPU: it still has the `T` that
/// it took, and gives that one back. Whoever wants the same one sleeps meanwhile.
///
/// A CPU has two `T`: where no window can run, or too many were aborted, or the CPU is stopped
/// by a [`for_each`](Self::for_each), a second one is locked in its place, with an ordinary locked
/// instruction. So `T` is a part of something that is put together by `for_each`, never the truth
/// about a CPU.
///
/// The first lock of a process registers with membarrier(2), which may take milliseconds. A `T` is
/// made at the first lock of its place, by the function that [`new`](Self::new) is given,
/// and dropped with the lock. It has at most 1984 bytes and an alignment of at most 64.
///
/// # Panics
///
/// A holder that panics gives the lock back, and the `T` is as it was left: there is no poison. A
/// panic in the function that makes a `T` gives the lock back too; the next one tries again.
///
/// # Deadlock
///
/// A thread that locks again what it holds waits for itself if it is still on the same CPU; a
/// debug build panics instead. So does a signal handler that locks: use
/// [`try_lock`](Self::try_lock) there.
///
/// # Fork
///
/// A forked child has its own copy of every `T`. A `T` that another thread of the parent held at
/// that moment may be half changed in the copy: the child leaves it as it is, and makes a new one
/// in its stead when it locks there. So nothing in the child waits for a thread that it does not
/// have. A guard that the forking thread itself held stays good in both; but in the child the `T`
/// that it gives back is only found again if nobody locked there in the meantime.
pub struct Lock<T> {
    cell: Lazy,
    init: fn() -> T,
    /// Locked while there is no memory for a cell.
    spare: Stripe<T>,
}

// SAFETY: a `T` is reached by one thread at a time.
unsafe impl<T: Send> Send for Lock<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Lock<T> {}

/// A stripe, and whose it is.
struct Here<'a, T> {
    stripe: &'a Stripe<T>,
    cpu: u32,
}

/// The stripe that is held already, and the word that says so.
struct Refused<'a, T> {
    here: Here<'a, T>,
    seen: u32,
}

impl<T> Lock<T> {
    const BYTES: usize = size_of::<Stripe<T>>();

    /// What lies in half a stripe is aligned to its size.
    const FITS: () =
        assert!(Self::BYTES <= 2048 && align_of::<T>() <= 64, "T is too large for a stripe");

    /// A lock whose values `init` makes.
    ///
    /// A `T` that is too large, or aligned to more than 64, does not compile:
    ///
    /// ```compile_fail
    /// static LOCK: unmerged::percpu::Lock<[u8; 4096]> = unmerged::percpu::Lock::new(|| [0; 4096]);
    /// ```
    pub const fn new(init: fn() -> T) -> Self {
        const { Self::FITS };
        Self { cell: Lazy::new(), init, spare: Stripe::spare() }
    }

    /// Takes the `T` of this CPU; waits while another thread holds it.
    #[inline]
    pub fn lock(&self) -> Guard<'_, T> {
        let tag = tag();
        match self.attempt_at_once(tag) {
            Some(here) => self.enter(here, tag),
            None => self.lock_slowly(tag),
        }
    }

    #[cold]
    #[inline(never)]
    fn lock_slowly(&self, tag: u32) -> Guard<'_, T> {
        match self.attempt(tag) {
            Ok(here) => self.enter(here, tag),
            Err(refused) => self.wait_for(refused, tag),
        }
    }

    /// Takes the `T` of this CPU; `None` if a thread, be it this one, holds it. It never waits.
    ///
    /// It may be used in signal handlers once the lock has been used outside of one, if the
    /// function that makes a `T` may be.
    #[inline]
    pub fn try_lock(&self) -> Option<Guard<'_, T>> {
        let tag = tag();
        match self.attempt_at_once(tag) {
            Some(here) => Some(self.enter(here, tag)),
            None => self.try_lock_slowly(tag),
        }
    }

    #[cold]
    #[inline(never)]
    fn try_lock_slowly(&self, tag: u32) -> Option<Guard<'_, T>> {
        match self.attempt(tag) {
            Ok(here) => Some(self.enter(here, tag)),
            Err(refused) => self.succeed(refused, tag).ok(),
        }
    }

    /// Takes the stripe of this CPU, if all is as it was last time and it is free.
    #[inline]
    fn attempt_at_once(&self, tag: u32) -> Option<Here<'_, T>> {
        let taken = on!(self.cell.place()?, |Shape, at| {
            // SAFETY: as in `attempt`.
            unsafe { <Shape as Words<u32>>::load_cbne_store(at, 0, tag) }
        });
        match taken {
            Answer::Done((cpu, _)) => Some(self.of_windows(cpu)),
            _ => None,
        }
    }

    /// Takes the stripe that belongs to this thread now, if it is free.
    fn attempt(&self, tag: u32) -> core::result::Result<Here<'_, T>, Refused<'_, T>> {
        let taken = window!(&self.cell, Self::BYTES, |Shape, at| {
            // SAFETY: the cell begins with the word of a door, which windows take from 0 alone;
            // while it is not 0 they leave it to the holder.
            unsafe { <Shape as Words<u32>>::load_cbne_store(at, 0, tag) }
        });
        match taken {
            Ok(Some(Ok((cpu, _)))) => Ok(self.of_windows(cpu)),
            Ok(Some(Err((cpu, seen)))) => Err(Refused { here: self.of_windows(cpu), seen }),
            Ok(None) | Err(_) => self.attempt_without(tag),
        }
    }

    /// The same where no window runs.
    #[cold]
    #[inline(never)]
    fn attempt_without(&self, tag: u32) -> core::result::Result<Here<'_, T>, Refused<'_, T>> {
        let here = match self.cell.known() {
            Some(site) => {
                let cpu = site.overflow_here().cpu;
                Here { stripe: self.stripe(&site, site.geometry.cpus + cpu), cpu }
            }
            None => Here { stripe: &self.spare, cpu: 0 },
        };
        match here.stripe.door.take(tag) {
            Ok(()) => Ok(here),
            Err(seen) => Err(Refused { here, seen }),
        }
    }

    /// The stripe that windows of `cpu` take.
    #[inline]
    fn of_windows(&self, cpu: u32) -> Here<'_, T> {
        // There is a cell: a window has run on it.
        let stripe = self.cell.on_stripe(cpu).map_or(&self.spare, |start| self.stripe_at(start));
        Here { stripe, cpu }
    }

    fn stripe(&self, site: &Site, n: u32) -> &Stripe<T> {
        self.stripe_at(site.on_stripe(n))
    }

    /// The stripe at an address that [`Site::on_stripe`] gives.
    #[inline]
    fn stripe_at(&self, start: usize) -> &Stripe<T> {
        let stripe = ptr::with_exposed_provenance(start);
        // SAFETY: the cell has the size of a `Stripe`, and, being no longer than half of one of
        // the area's, an alignment of that size; zeros are one; it is mapped as long as `self` is.
        unsafe { &*stripe }
    }

    /// The lock of `here` was taken.
    #[inline]
    fn enter<'a>(&'a self, here: Here<'a, T>, tag: u32) -> Guard<'a, T> {
        let held = Held { stripe: here.stripe, tag };
        if cfg!(debug_assertions) {
            held.stripe.holder.store(this_thread(tag), Ordering::Relaxed);
        }
        let value = NonNull::new(held.stripe.value.load(Ordering::Relaxed));
        let value = value.unwrap_or_else(|| self.make(held.stripe, tag));
        Guard { value, _held: held, cpu: here.cpu, value_of: PhantomData }
    }

    /// Makes the `T` of a stripe whose lock is held.
    #[cold]
    #[inline(never)]
    fn make(&self, stripe: &Stripe<T>, by: u32) -> NonNull<T> {
        // Before anybody leaves this stripe, in this process or its ancestors.
        asymmetric::decide();
        let value = (self.init)();
        if tag() != by {
            // Forked in there: another `T` may have been made here in the child.
            // SAFETY: the address of a box.
            return unsafe { NonNull::new_unchecked(Box::into_raw(Box::new(value))) };
        }
        let value = if stripe.boxed.load(Ordering::Relaxed) == 0 {
            let place = stripe.place.get().cast::<T>();
            // SAFETY: aligned, of this size, and the holder's.
            unsafe { place.write(value) };
            place
        } else {
            Box::into_raw(Box::new(value))
        };
        stripe.value.store(value, Ordering::Release);
        // SAFETY: the address of a place or of a box.
        unsafe { NonNull::new_unchecked(value) }
    }

    /// Takes over what a thread of another process holds, from which this one was forked.
    #[cold]
    #[inline(never)]
    fn succeed<'a>(
        &'a self,
        refused: Refused<'a, T>,
        tag: u32,
    ) -> core::result::Result<Guard<'a, T>, Refused<'a, T>> {
        let stripe = refused.here.stripe;
        if refused.seen == tag || !stripe.door.succeed(refused.seen, tag) {
            return Err(refused);
        }
        // The old value may be half changed, and its holder may be the thread that forked.
        stripe.boxed.store(1, Ordering::Relaxed);
        stripe.value.store(ptr::null_mut(), Ordering::Relaxed);
        Ok(self.enter(refused.here, tag))
    }

    #[cold]
    #[inline(never)]
    fn wait_for<'a>(&'a self, mut refused: Refused<'a, T>, tag: u32) -> Guard<'a, T> {
        let mut yields = 0;
        loop {
            refused = match self.succeed(refused, tag) {
                Ok(guard) => return guard,
                Err(refused) => refused,
            };
            let slept_at = (yields == YIELDS).then_some(refused.here.stripe);
            if let Some(stripe) = slept_at {
                stripe.wait(refused.seen);
            } else {
                std::thread::yield_now();
                yields += 1;
            }
            let attempt = self.attempt(tag);
            let here = match &attempt {
                Ok(here) => here,
                Err(refused) => &refused.here,
            };
            // The wake was for one who takes that stripe.
            if let Some(left) = slept_at.filter(|stripe| !ptr::eq(*stripe, here.stripe)) {
                left.pass_on();
            }
            match attempt {
                Ok(here) => return self.enter(here, tag),
                Err(again) => refused = again,
            }
        }
    }

    /// Locks each `T` in turn, from every CPU, the offline ones too, and hands it to `each` with
    /// the id of its CPU. A place that was never locked has no `T` and is passed over; a CPU that
    /// has two is there twice.
    ///
    /// To lock that of another CPU stops this CPU for a moment; threads there go on meanwhile, with
    /// their second `T`. That costs a fence of 10 to 20 microseconds: it is for now and then.
    /// `each` runs afterwards, with that one `T` locked.
    ///
    /// # Errors
    ///
    /// EPERM where a CPU cannot be fenced: the kernel has no membarrier (before Linux 5.10, or a
    /// filter) and this thread may not run on it. EDEADLK where this thread has stopped a
    /// CPU already: in a signal handler that interrupted another one of these, or in the closure of
    /// a [`with_exclusive`](super::Word::with_exclusive). `each` has had what came before.
    pub fn for_each(&self, mut each: impl FnMut(u32, &mut T)) -> Result<()> {
        const OPERATION: &str = "percpu::Lock::for_each";
        let tag = tag();
        if let Some(site) = self.cell.known() {
            let cpus = site.geometry.cpus;
            for cpu in 0..cpus {
                let here = Here { stripe: self.stripe(&site, cpu), cpu };
                let stopped = |door: &Door| site.exclusive(OPERATION, cpu, |_| door.take(tag));
                self.visit(here, tag, stopped, &mut each)?;
                let here = Here { stripe: self.stripe(&site, cpus + cpu), cpu };
                self.visit(here, tag, |door| Ok(door.take(tag)), &mut each)?;
            }
        }
        let spare = Here { stripe: &self.spare, cpu: 0 };
        self.visit(spare, tag, |door| Ok(door.take(tag)), &mut each)
    }

    /// Locks one place by `take`, however long that takes, and hands its `T` to `each`.
    fn visit<'a>(
        &'a self,
        mut here: Here<'a, T>,
        tag: u32,
        mut take: impl FnMut(&Door) -> Result<core::result::Result<(), u32>>,
        each: &mut impl FnMut(u32, &mut T),
    ) -> Result<()> {
        let stripe = here.stripe;
        if stripe.value.load(Ordering::Relaxed).is_null() {
            return Ok(());
        }
        let mut guard = loop {
            // A look first: a CPU is not stopped for a lock that is held.
            let seen = match stripe.door.word.load(Ordering::Relaxed) {
                0 => match take(&stripe.door) {
                    Ok(Ok(())) => break self.enter(here, tag),
                    Ok(Err(seen)) => seen,
                    Err(error) => {
                        // A wake may have been for this thread.
                        stripe.pass_on();
                        return Err(error);
                    }
                },
                seen => seen,
            };
            here = match self.succeed(Refused { here, seen }, tag) {
                Ok(guard) => break guard,
                Err(refused) => refused.here,
            };
            if seen == tag {
                stripe.wait(seen);
            }
        };
        each(Guard::cpu(&guard), &mut guard);
        Ok(())
    }
}

impl<T: Default> Default for Lock<T> {
    fn default() -> Self {
        Self::new(T::default)
    }
}

impl<T> fmt::Debug for Lock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lock").finish_non_exhaustive()
    }
}

impl<T> Drop for Lock<T> {
    fn drop(&mut self) {
        if let Some(site) = self.cell.known() {
            for n in 0..2 * site.geometry.cpus {
                // SAFETY: the lock is gone, and with it all guards.
                unsafe { self.stripe(&site, n).clear() };
            }
        }
        // SAFETY: as above.
        unsafe { self.spare.clear() };
        // SAFETY: nobody uses the cell any more.
        unsafe { self.cell.release(Self::BYTES) };
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Without memory for a cell the value belongs to a lock that may be moved.
    #[test]
    fn a_lock_without_memory_can_be_moved() {
        let lock = Lock::new(|| String::from("made"));
        let take = |lock: &Lock<String>| {
            let tag = tag();
            let here = lock.attempt_without(tag).ok().unwrap();
            lock.enter(here, tag).push('!');
        };
        take(&lock);
        // It does not lie in what is about to move.
        assert_ne!(lock.spare.value.load(Ordering::Relaxed), lock.spare.place.get().cast());
        let moved = Box::new(lock);
        take(&moved);
        assert!(moved.cell.known().is_none());
        let mut seen = Vec::new();
        moved.for_each(|_, value| seen.push(value.clone())).unwrap();
        assert_eq!(seen, ["made!!"]);
    }
}
