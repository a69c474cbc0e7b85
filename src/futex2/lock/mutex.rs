//! A mutex with its data.

use super::RawMutex;
use crate::error::Result;
use crate::futex2::{Deadline, Private, Scope};
use core::cell::UnsafeCell;
use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};

/// A mutex around a `T`, with a lock of one byte.
///
/// `Mutex<T, Shared>` works in memory that several processes map, wherever they map it; zeros are
/// an unlocked one. What [dies](super#deaths) while holding it, holds it for ever.
///
/// ```
/// use unmerged::futex2::lock::Mutex;
///
/// static NAMES: Mutex<Vec<&str>> = Mutex::new(Vec::new());
/// NAMES.lock().push("one");
/// assert_eq!(*NAMES.lock(), ["one"]);
/// ```
#[repr(C)]
pub struct Mutex<T: ?Sized, S: Scope = Private> {
    raw: RawMutex<S>,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached by the holder alone.
unsafe impl<T: ?Sized + Send, S: Scope> Send for Mutex<T, S> {}
// SAFETY: as above.
unsafe impl<T: ?Sized + Send, S: Scope> Sync for Mutex<T, S> {}

impl<T, S: Scope> Mutex<T, S> {
    /// An unlocked mutex around `value`.
    pub const fn new(value: T) -> Self {
        Self { raw: RawMutex::new(), value: UnsafeCell::new(value) }
    }

    /// The value, of a mutex that nobody else has.
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

impl<T: ?Sized, S: Scope> Mutex<T, S> {
    /// Takes the lock, sleeping while it is held.
    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, T, S> {
        self.raw.lock();
        self.guard()
    }

    /// Takes the lock if it is free. It may be used in signal handlers.
    #[inline]
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T, S>> {
        self.raw.try_lock().then(|| self.guard())
    }

    /// Takes the lock, sleeping until the deadline at the most.
    ///
    /// # Errors
    ///
    /// ETIMEDOUT ([`is_timed_out`](crate::Error::is_timed_out)) at the deadline.
    #[inline]
    pub fn try_lock_until(&self, deadline: Deadline) -> Result<MutexGuard<'_, T, S>> {
        self.raw.try_lock_until(deadline)?;
        Ok(self.guard())
    }

    /// Whether somebody holds it; stale at once.
    pub fn is_locked(&self) -> bool {
        self.raw.is_locked()
    }

    /// The value, of a mutex that nobody else can reach.
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }

    /// The lock without the value.
    pub(super) fn raw(&self) -> &RawMutex<S> {
        &self.raw
    }

    #[inline]
    fn guard(&self) -> MutexGuard<'_, T, S> {
        MutexGuard { mutex: self, thread: PhantomData }
    }
}

impl<T, S: Scope> From<T> for Mutex<T, S> {
    fn from(value: T) -> Self {
        Self::new(value)
    }
}

impl<T: Default, S: Scope> Default for Mutex<T, S> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T: ?Sized + fmt::Debug, S: Scope> fmt::Debug for Mutex<T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.try_lock() {
            Some(guard) => f.debug_struct("Mutex").field("value", &&*guard).finish(),
            None => f.debug_struct("Mutex").field("value", &format_args!("<locked>")).finish(),
        }
    }
}

/// The lock, held until this is dropped.
#[must_use = "the lock is given back at once"]
pub struct MutexGuard<'a, T: ?Sized, S: Scope = Private> {
    mutex: &'a Mutex<T, S>,
    /// As std's guards, it stays with its thread.
    thread: PhantomData<*const ()>,
}

// SAFETY: a shared guard gives shared access to the value.
unsafe impl<T: ?Sized + Sync, S: Scope> Sync for MutexGuard<'_, T, S> {}

impl<'a, T: ?Sized, S: Scope> MutexGuard<'a, T, S> {
    /// Gives the lock back for those who sleep, if there are any: one of them is woken, and the lock is
    /// kept for those who have slept. A newcomer waits for that, but for no longer than 1 ms;
    /// [`try_lock`](Mutex::try_lock) may still take it. An associated function, so that it does
    /// not hide a method of `T`.
    pub fn unlock_fair(this: Self) {
        let this = core::mem::ManuallyDrop::new(this);
        // SAFETY: the guard holds the lock, and is not dropped.
        unsafe { this.mutex.raw.unlock_fair() };
    }

    pub(super) fn raw(&self) -> &'a RawMutex<S> {
        &self.mutex.raw
    }
}

impl<T: ?Sized, S: Scope> Deref for MutexGuard<'_, T, S> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the lock is held.
        unsafe { &*self.mutex.value.get() }
    }
}

impl<T: ?Sized, S: Scope> DerefMut for MutexGuard<'_, T, S> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the lock is held, and the guard borrowed for as long.
        unsafe { &mut *self.mutex.value.get() }
    }
}

impl<T: ?Sized, S: Scope> Drop for MutexGuard<'_, T, S> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the guard holds the lock.
        unsafe { self.mutex.raw.unlock() };
    }
}

impl<T: ?Sized + fmt::Display, S: Scope> fmt::Display for MutexGuard<'_, T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized + fmt::Debug, S: Scope> fmt::Debug for MutexGuard<'_, T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
