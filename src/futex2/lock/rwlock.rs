//! A readers-writer lock with its data.

use super::RawRwLock;
use crate::error::Result;
use crate::futex2::{Deadline, Private, Scope};
use core::cell::UnsafeCell;
use core::fmt;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ops::{Deref, DerefMut};

/// Many readers or one writer, around a `T`. A writer that waits keeps new readers out.
///
/// `RwLock<T, Shared>` works in memory that several processes map; zeros are an unlocked one. A
/// reader or writer that [dies](super#deaths) holds it for ever.
///
/// A thread that reads must not read again: if somebody has begun to wait in between, it waits for
/// that one, and that one for it. [`try_read`](Self::try_read) fails then. More than 2²⁷ - 2 readers
/// at once, forgotten guards among them, are not let in.
///
/// ```
/// use unmerged::futex2::lock::RwLock;
///
/// static LIMIT: RwLock<u32> = RwLock::new(1);
/// *LIMIT.write() += 1;
/// assert_eq!((*LIMIT.read(), LIMIT.try_read().is_some()), (2, true));
/// ```
#[repr(C)]
pub struct RwLock<T: ?Sized, S: Scope = Private> {
    raw: RawRwLock<S>,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached by one writer, or by readers.
unsafe impl<T: ?Sized + Send, S: Scope> Send for RwLock<T, S> {}
// SAFETY: as above.
unsafe impl<T: ?Sized + Send + Sync, S: Scope> Sync for RwLock<T, S> {}

impl<T, S: Scope> RwLock<T, S> {
    /// An unlocked lock around `value`.
    pub const fn new(value: T) -> Self {
        Self { raw: RawRwLock::new(), value: UnsafeCell::new(value) }
    }

    /// The value, of a lock that nobody else has.
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

impl<T: ?Sized, S: Scope> RwLock<T, S> {
    /// Takes the lock for reading.
    #[inline]
    pub fn read(&self) -> RwLockReadGuard<'_, T, S> {
        self.raw.read();
        self.reading()
    }

    /// Takes the lock for reading if nobody holds it, or readers do and nobody waits. It may be used
    /// in signal handlers.
    #[inline]
    pub fn try_read(&self) -> Option<RwLockReadGuard<'_, T, S>> {
        self.raw.try_read().then(|| self.reading())
    }

    /// Takes the lock for reading, sleeping until the deadline at the most.
    ///
    /// # Errors
    ///
    /// ETIMEDOUT ([`is_timed_out`](crate::Error::is_timed_out)) at the deadline.
    pub fn try_read_until(&self, deadline: Deadline) -> Result<RwLockReadGuard<'_, T, S>> {
        self.raw.try_read_until(deadline)?;
        Ok(self.reading())
    }

    /// Takes the lock for writing.
    #[inline]
    pub fn write(&self) -> RwLockWriteGuard<'_, T, S> {
        self.raw.write();
        self.writing()
    }

    /// Takes the lock for writing if nobody holds it. It may be used in signal handlers.
    #[inline]
    pub fn try_write(&self) -> Option<RwLockWriteGuard<'_, T, S>> {
        self.raw.try_write().then(|| self.writing())
    }

    /// Takes the lock for writing, sleeping until the deadline at the most.
    ///
    /// # Errors
    ///
    /// ETIMEDOUT ([`is_timed_out`](crate::Error::is_timed_out)) at the deadline.
    pub fn try_write_until(&self, deadline: Deadline) -> Result<RwLockWriteGuard<'_, T, S>> {
        self.raw.try_write_until(deadline)?;
        Ok(self.writing())
    }

    /// Whether anybody holds it; stale at once.
    pub fn is_locked(&self) -> bool {
        self.raw.is_locked()
    }

    /// The value, of a lock that nobody else can reach.
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }

    #[inline]
    fn reading(&self) -> RwLockReadGuard<'_, T, S> {
        RwLockReadGuard { lock: self, thread: PhantomData }
    }

    #[inline]
    fn writing(&self) -> RwLockWriteGuard<'_, T, S> {
        RwLockWriteGuard { lock: self, thread: PhantomData }
    }
}

impl<T, S: Scope> From<T> for RwLock<T, S> {
    fn from(value: T) -> Self {
        Self::new(value)
    }
}

impl<T: Default, S: Scope> Default for RwLock<T, S> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T: ?Sized + fmt::Debug, S: Scope> fmt::Debug for RwLock<T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.try_read() {
            Some(guard) => f.debug_struct("RwLock").field("value", &&*guard).finish(),
            None => f.debug_struct("RwLock").field("value", &format_args!("<locked>")).finish(),
        }
    }
}

/// The lock, held for reading until this is dropped.
#[must_use = "the lock is given back at once"]
pub struct RwLockReadGuard<'a, T: ?Sized, S: Scope = Private> {
    lock: &'a RwLock<T, S>,
    thread: PhantomData<*const ()>,
}

// SAFETY: a shared guard gives shared access to the value.
unsafe impl<T: ?Sized + Sync, S: Scope> Sync for RwLockReadGuard<'_, T, S> {}

impl<T: ?Sized, S: Scope> Deref for RwLockReadGuard<'_, T, S> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: held for reading.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T: ?Sized, S: Scope> Drop for RwLockReadGuard<'_, T, S> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: held for reading.
        unsafe { self.lock.raw.unlock_read() };
    }
}

impl<T: ?Sized + fmt::Display, S: Scope> fmt::Display for RwLockReadGuard<'_, T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized + fmt::Debug, S: Scope> fmt::Debug for RwLockReadGuard<'_, T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// The lock, held for writing until this is dropped.
#[must_use = "the lock is given back at once"]
pub struct RwLockWriteGuard<'a, T: ?Sized, S: Scope = Private> {
    lock: &'a RwLock<T, S>,
    thread: PhantomData<*const ()>,
}

// SAFETY: a shared guard gives shared access to the value.
unsafe impl<T: ?Sized + Sync, S: Scope> Sync for RwLockWriteGuard<'_, T, S> {}

impl<'a, T: ?Sized, S: Scope> RwLockWriteGuard<'a, T, S> {
    /// Goes on as a reader; no other writer comes between. An associated function, so that it does
    /// not hide a method of `T`.
    pub fn downgrade(this: Self) -> RwLockReadGuard<'a, T, S> {
        let this = ManuallyDrop::new(this);
        // SAFETY: held for writing; the guard is not dropped.
        unsafe { this.lock.raw.downgrade() };
        this.lock.reading()
    }
}

impl<T: ?Sized, S: Scope> Deref for RwLockWriteGuard<'_, T, S> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: held for writing.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T: ?Sized, S: Scope> DerefMut for RwLockWriteGuard<'_, T, S> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: held for writing, and the guard borrowed for as long.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T: ?Sized, S: Scope> Drop for RwLockWriteGuard<'_, T, S> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: held for writing.
        unsafe { self.lock.raw.unlock_write() };
    }
}

impl<T: ?Sized + fmt::Display, S: Scope> fmt::Display for RwLockWriteGuard<'_, T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized + fmt::Debug, S: Scope> fmt::Debug for RwLockWriteGuard<'_, T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
