//! The futex: an atomic word that can be waited on.

use super::place::Place;
use super::requeue::{Side, requeue};
use super::scope::{Private, Reach, Scope};
use super::seat::Seat;
use super::{Deadline, Options, Waiter, Word};
use crate::error::Result;
use crate::sync::{Ordering, assert_layout};
use core::cell::UnsafeCell;
use core::fmt;
use core::marker::PhantomData;
use core::mem::size_of;
use core::ptr;

/// An atomic word that threads, or processes, wait on.
///
/// It has the size and the alignment of `T` and no other contents, so it may be laid over
/// shared memory. It owns its word: nobody may wait on the same memory by other means, or a
/// wake may not reach them.
///
/// `Futex<u32, Shared>` is shared by every process that maps it; without a scope it is
/// private to this one.
///
/// ```
/// use unmerged::futex2::{Deadline, Futex, Shared};
/// use core::time::Duration;
///
/// let word: Futex<u64, Shared> = Futex::new(1 << 40);
/// let error = word.wait(0, None).unwrap_err();
/// assert!(error.is_would_block()); // it does not hold 0
/// let soon = Deadline::after(Duration::from_millis(1));
/// assert!(word.wait(1 << 40, Some(soon)).unwrap_err().is_timed_out());
/// ```
#[repr(C)]
pub struct Futex<T: Word, S: Reach = Private> {
    /// Reached as `T::Atomic` only; it is no such field, so that one `const` constructor
    /// serves all sizes.
    value: UnsafeCell<T>,
    /// The alignment of the atomic.
    align: [T::Atomic; 0],
    scope: PhantomData<S>,
}

// SAFETY: the value is reached as an atomic only.
unsafe impl<T: Word, S: Reach> Send for Futex<T, S> {}
// SAFETY: as above.
unsafe impl<T: Word, S: Reach> Sync for Futex<T, S> {}

// As core's atomics: a panic leaves no half of a value.
impl<T: Word, S: Reach> core::panic::RefUnwindSafe for Futex<T, S> {}

assert_layout!(
    size_of::<Futex<u8>>() == 1,
    size_of::<Futex<u16>>() == 2,
    size_of::<Futex<u32>>() == 4,
    size_of::<Futex<u64>>() == 8,
    core::mem::align_of::<Futex<u64>>() == 8,
);

impl<T: Word, S: Reach> Futex<T, S> {
    /// A futex that holds `value`.
    pub const fn new(value: T) -> Self {
        Self { value: UnsafeCell::new(value), align: [], scope: PhantomData }
    }

    /// The futex that this atomic is.
    #[inline]
    pub(super) fn of(atomic: &T::Atomic) -> &Self {
        // SAFETY: a futex has the layout of its atomic, and is reached as one only.
        unsafe { &*ptr::from_ref(atomic).cast() }
    }

    fn atomic(&self) -> &T::Atomic {
        // SAFETY: the atomic has the size of T, and the alignment that `align` gives; the value
        // is reached through it only.
        unsafe { &*self.value.get().cast() }
    }

    pub(super) fn place(&self) -> Place {
        let address = self.value.get().cast_const().cast();
        Place { address, bytes: size_of::<T>(), private: S::PRIVATE }
    }

    pub(super) fn until_changed(&self, expected: T, wait: impl Fn() -> Result<()>) -> Result<T> {
        loop {
            let value = self.load(Ordering::Acquire);
            if value != expected {
                return Ok(value);
            }
            match wait() {
                Err(error) if !error.is_would_block() => return Err(error),
                _ => {}
            }
        }
    }

    /// Loads the value.
    #[inline]
    pub fn load(&self, order: Ordering) -> T {
        T::load(self.atomic(), order)
    }

    /// Stores `value`. It wakes nobody.
    #[inline]
    pub fn store(&self, value: T, order: Ordering) {
        T::store(self.atomic(), value, order);
    }

    /// Stores `value`; answers the one before.
    #[inline]
    pub fn swap(&self, value: T, order: Ordering) -> T {
        T::swap(self.atomic(), value, order)
    }

    /// Stores `new` if the value is `current`; answers the value before.
    ///
    /// # Errors
    ///
    /// The value, if it is another one.
    #[inline]
    pub fn compare_exchange(
        &self,
        current: T,
        new: T,
        success: Ordering,
        failure: Ordering,
    ) -> core::result::Result<T, T> {
        T::compare_exchange(self.atomic(), current, new, success, failure)
    }

    /// [`compare_exchange`](Self::compare_exchange) that may fail though the value is `current`.
    ///
    /// # Errors
    ///
    /// The value.
    #[inline]
    pub fn compare_exchange_weak(
        &self,
        current: T,
        new: T,
        success: Ordering,
        failure: Ordering,
    ) -> core::result::Result<T, T> {
        T::compare_exchange_weak(self.atomic(), current, new, success, failure)
    }

    /// Stores what `change` makes of the value, which may take several tries; answers the value
    /// before.
    ///
    /// # Errors
    ///
    /// The value for which `change` answered `None`.
    #[inline]
    pub fn fetch_update(
        &self,
        success: Ordering,
        failure: Ordering,
        mut change: impl FnMut(T) -> Option<T>,
    ) -> core::result::Result<T, T> {
        let mut value = self.load(failure);
        while let Some(new) = change(value) {
            match self.compare_exchange_weak(value, new, success, failure) {
                Err(now) => value = now,
                done => return done,
            }
        }
        Err(value)
    }

    /// Adds `n`, wrapping; answers the value before.
    #[inline]
    pub fn fetch_add(&self, n: T, order: Ordering) -> T {
        T::fetch_add(self.atomic(), n, order)
    }

    /// Subtracts `n`, wrapping; answers the value before.
    #[inline]
    pub fn fetch_sub(&self, n: T, order: Ordering) -> T {
        T::fetch_sub(self.atomic(), n, order)
    }

    /// Clears the bits that are not in `bits`; answers the value before.
    #[inline]
    pub fn fetch_and(&self, bits: T, order: Ordering) -> T {
        T::fetch_and(self.atomic(), bits, order)
    }

    /// Sets `bits`; answers the value before.
    #[inline]
    pub fn fetch_or(&self, bits: T, order: Ordering) -> T {
        T::fetch_or(self.atomic(), bits, order)
    }

    /// Turns `bits` over; answers the value before.
    #[inline]
    pub fn fetch_xor(&self, bits: T, order: Ordering) -> T {
        T::fetch_xor(self.atomic(), bits, order)
    }

    /// The value, of a futex that nobody else can reach.
    #[inline]
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }

    /// The value, of a futex that nobody else has.
    #[inline]
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }

    /// Where the value is. While others may use it, it is to be reached as an atomic.
    #[inline]
    pub const fn as_ptr(&self) -> *mut T {
        self.value.get()
    }
}

impl<T: Word, S: Scope> Futex<T, S> {
    #[inline]
    fn seat(&self) -> Seat<'static> {
        if S::PRIVATE { Seat::private(self.value.get().addr()) } else { Seat::NOWHERE }
    }

    pub(super) fn side(&self) -> Side<'_> {
        Side { place: self.place(), seat: self.seat(), skip: true }
    }

    /// Sleeps while the value is `expected`, until a wake or the deadline.
    ///
    /// It may return `Ok` for no reason: look at the value and wait again, or use
    /// [`wait_while`](Self::wait_while).
    ///
    /// By `FUTEX_WAIT_BITSET` up to 32 bits, futex_waitv(2) on 64 (since Linux 5.16; the
    /// [module](super#how) has what comes before).
    ///
    /// A shared word lies in memory that may vanish, when its file is cut. Who sleeps then sleeps on
    /// until the page is there again and woken, or the deadline. Who begins to wait gets SIGBUS, as
    /// with every look at such memory.
    ///
    /// # Errors
    ///
    /// EAGAIN ([`is_would_block`](crate::Error::is_would_block)) if the value is another one;
    /// ETIMEDOUT ([`is_timed_out`](crate::Error::is_timed_out)) at the deadline; ENOMEM if
    /// the kernel has none (64 bits).
    pub fn wait(&self, expected: T, deadline: Option<Deadline>) -> Result<()> {
        self.wait_with(expected, deadline, Options::new())
    }

    /// [`wait`](Self::wait) with options: a mask, overlapping sizes, an end by signals.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait); EINTR after a signal if asked for; EINVAL for a mask that does
    /// not fit.
    pub fn wait_with(
        &self,
        expected: T,
        deadline: Option<Deadline>,
        options: Options,
    ) -> Result<()> {
        // SAFETY: the word is borrowed for the time of the wait, and aligned.
        unsafe { self.place().wait(self.seat(), expected.widen(), deadline, options) }
    }

    /// Sleeps as long as the value is `expected`; answers the value that it has then, loaded
    /// with acquire.
    ///
    /// # Errors
    ///
    /// ETIMEDOUT ([`is_timed_out`](crate::Error::is_timed_out)) at the deadline; ENOMEM if
    /// the kernel has none (64 bits).
    pub fn wait_while(&self, expected: T, deadline: Option<Deadline>) -> Result<T> {
        self.until_changed(expected, || self.wait(expected, deadline))
    }

    /// Wakes up to `n` waiters; answers how many. `n = 0` wakes none.
    ///
    /// Store the new value before. In a private scope, if nobody waits, this is a fence and a
    /// load.
    ///
    /// By `FUTEX_WAKE_BITSET`. Where the memory behind a shared word is gone it answers 0;
    /// [`wake_with`](Self::wake_with) tells (EFAULT).
    #[inline]
    pub fn wake(&self, n: u32) -> usize {
        // EFAULT: the memory behind a shared word is gone, and with it whoever waited.
        self.wake_with(n, Options::new()).unwrap_or(0)
    }

    /// The same; how many slept on this very word, of which a few may be left out. [`wake`](Self::wake)
    /// may count waiters of other words.
    pub(super) fn wake_own(&self, n: u32) -> usize {
        self.place().wake_own(self.seat(), n)
    }

    /// [`wake`](Self::wake) with options: a mask, overlapping sizes.
    ///
    /// # Errors
    ///
    /// EINVAL for a mask that does not fit; EFAULT if the memory behind a shared word is gone.
    #[inline]
    pub fn wake_with(&self, n: u32, options: Options) -> Result<usize> {
        self.place().wake(self.seat(), n, options, true)
    }

    /// Wakes all waiters; answers how many.
    #[inline]
    pub fn wake_all(&self) -> usize {
        self.wake(u32::MAX)
    }

    /// An entry for [`waitv`](super::waitv) that expects `expected`.
    pub fn waiter(&self, expected: T) -> Waiter<'_> {
        Waiter {
            place: self.place(),
            seat: self.seat(),
            expected: expected.widen(),
            word: PhantomData,
        }
    }

    /// Wakes up to `wake` waiters and lets up to `requeue` others wait on `to` instead; answers how
    /// many of both.
    ///
    /// Between words of one size, 32 or 64 bits, and one scope waiters are moved. Otherwise, and
    /// when waiters of this word have been moved elsewhere a moment ago, as many are woken. A
    /// moved waiter keeps its mask.
    ///
    /// Move only from a word that is waited on in its own size alone. The kernel does not tell
    /// sizes apart here: waiters of other sizes at this address are moved too, and no wake of
    /// theirs finds them where they are then.
    ///
    /// By `FUTEX_REQUEUE`.
    ///
    /// # Errors
    ///
    /// EFAULT if the memory behind a shared word is gone.
    pub fn requeue<U: Word, R: Scope>(
        &self,
        to: &Futex<U, R>,
        wake: u32,
        requeue: u32,
    ) -> Result<usize> {
        // SAFETY: nothing is expected.
        unsafe { self::requeue(self.side(), None, to.side(), wake, requeue) }
    }

    /// [`requeue`](Self::requeue) if the value is `expected`, by `FUTEX_CMP_REQUEUE`.
    ///
    /// On 32 bits the kernel compares at the instant at which it moves. On the other sizes the
    /// comparison comes first, so a change in between is not noticed.
    ///
    /// # Errors
    ///
    /// EAGAIN ([`is_would_block`](crate::Error::is_would_block)) if the value is another one;
    /// EFAULT if the memory behind a shared word is gone.
    pub fn cmp_requeue<U: Word, R: Scope>(
        &self,
        expected: T,
        to: &Futex<U, R>,
        wake: u32,
        requeue: u32,
    ) -> Result<usize> {
        // SAFETY: the word is borrowed, and aligned.
        unsafe { self::requeue(self.side(), Some(expected.widen()), to.side(), wake, requeue) }
    }
}

impl<T: Word, S: Reach> fmt::Debug for Futex<T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Futex").field(&self.load(Ordering::Relaxed)).finish()
    }
}

impl<T: Word, S: Reach> From<T> for Futex<T, S> {
    fn from(value: T) -> Self {
        Self::new(value)
    }
}

impl<T: Word + Default, S: Reach> Default for Futex<T, S> {
    fn default() -> Self {
        Self::new(T::default())
    }
}
