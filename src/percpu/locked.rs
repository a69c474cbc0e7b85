//! One CPU's part of a [lock](super::Lock): the door, the value behind it, and who is in there.

use super::asymmetric;
use super::door::Door;
use crate::arch;
use crate::futex2::{Deadline, Futex};
use crate::sync::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use crate::sys::tag::tag;
use core::cell::UnsafeCell;
use core::fmt;
use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::ops::{Deref, DerefMut};
use core::ptr::{self, NonNull};
use core::time::Duration;

/// How long a sleep lasts where a leaving holder cannot be fenced, and may miss the sleeper.
const GLANCE: Duration = Duration::from_millis(2);

/// What is on one stripe. Zeros are a free lock without a `T`.
#[repr(C)]
pub(super) struct Stripe<T> {
    pub(super) door: Door,
    /// Where the `T` is: null if it is not made; else in here, or in a box. Written by holders.
    pub(super) value: AtomicPtr<T>,
    /// In debug builds [who](this_thread) holds it, from which a second lock is known.
    pub(super) holder: AtomicUsize,
    /// Not 0 if a `T` that is made goes into a box: the place below was left to a holder of another
    /// process, or this moves with the lock that it lies in.
    pub(super) boxed: AtomicU32,
    pub(super) place: UnsafeCell<MaybeUninit<T>>,
}

impl<T> Stripe<T> {
    /// One in the lock itself. It may be moved between two uses, and its `T` then stays where it is.
    pub(super) const fn spare() -> Self {
        Self {
            door: Door::new(),
            value: AtomicPtr::new(ptr::null_mut()),
            holder: AtomicUsize::new(0),
            boxed: AtomicU32::new(1),
            place: UnsafeCell::new(MaybeUninit::uninit()),
        }
    }

    /// The word, to sleep on.
    fn futex(&self) -> &Futex<u32> {
        let word = ptr::from_ref(&self.door.word).cast();
        // SAFETY: a futex is its word, which is reached as an atomic only; windows, which store
        // to it too, are one instruction.
        unsafe { &*word }
    }

    /// Sleeps while the word is `seen`, more or less.
    pub(super) fn wait(&self, seen: u32) {
        if cfg!(debug_assertions) {
            let holder = self.holder.load(Ordering::Relaxed);
            assert!(holder != this_thread(seen), "this thread holds the lock already");
        }
        let waiting = self.door.announce(asymmetric::heavy);
        let deadline = (!waiting.is_seen).then(|| Deadline::after(GLANCE));
        // Whatever it says, the word is looked at again.
        let _ = self.futex().wait(seen, deadline);
    }

    #[cold]
    #[inline(never)]
    fn wake(&self) {
        self.futex().wake(1);
    }

    /// Wakes the next one: this thread was woken, and does not take the lock.
    pub(super) fn pass_on(&self) {
        if self.door.has_waiters() {
            self.wake();
        }
    }

    /// Drops the `T`, unless it belongs to a holder of another process.
    ///
    /// # Safety
    ///
    /// Nobody else has the lock, or will.
    pub(super) unsafe fn clear(&self) {
        let word = self.door.word.load(Ordering::Relaxed);
        let value = self.value.swap(ptr::null_mut(), Ordering::Acquire);
        if value.is_null() || word != 0 && word != tag() {
            return;
        }
        if ptr::eq(value, self.place.get().cast()) {
            // SAFETY: made, and nobody else's; it is forgotten above.
            unsafe { value.drop_in_place() };
        } else {
            // SAFETY: as above, in a box.
            drop(unsafe { Box::from_raw(value) });
        }
    }
}

/// The calling thread, as one of the process with this tag: a thread of a child may have the
/// thread pointer that another one had in the parent.
pub(super) fn this_thread(tag: u32) -> usize {
    arch::thread_pointer() ^ (tag as usize) << 48
}

/// The lock of a stripe, until this is dropped.
pub(super) struct Held<'a, T> {
    pub(super) stripe: &'a Stripe<T>,
    /// The process that took it.
    pub(super) tag: u32,
}

impl<T> Drop for Held<'_, T> {
    #[inline]
    fn drop(&mut self) {
        if tag() != self.tag {
            // Taken by this thread before it forked.
            return self.stripe.door.leave_inherited(self.tag);
        }
        if cfg!(debug_assertions) {
            self.stripe.holder.store(0, Ordering::Relaxed);
        }
        if self.stripe.door.leave(asymmetric::light) {
            self.stripe.wake();
        }
    }
}

/// The `T` of one CPU, locked until this is dropped.
///
/// It stays with its thread.
pub struct Guard<'a, T> {
    pub(super) value: NonNull<T>,
    pub(super) _held: Held<'a, T>,
    pub(super) cpu: u32,
    /// A debug build knows holders by their thread.
    pub(super) value_of: PhantomData<*mut T>,
}

// SAFETY: through a shared guard there is a shared `T` and no more.
unsafe impl<T: Sync> Sync for Guard<'_, T> {}

impl<T> Guard<'_, T> {
    /// The CPU whose `T` it is, on which the thread need not be any more.
    pub fn cpu(guard: &Self) -> u32 {
        guard.cpu
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: made, and locked by this thread.
        unsafe { self.value.as_ref() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: made, and locked by this thread.
        unsafe { self.value.as_mut() }
    }
}

impl<T: fmt::Debug> fmt::Debug for Guard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("cpu", &self.cpu).field("value", &**self).finish()
    }
}
