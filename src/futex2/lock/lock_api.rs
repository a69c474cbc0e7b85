//! The traits of lock_api, so that what is generic over them runs on these locks.
//!
//! A readers-writer lock of ours has no `RawRwLockFair`, `RawRwLockRecursive` or
//! `RawRwLockUpgrade`.

use super::{RawMutex, RawRwLock};
use crate::futex2::{Deadline, Scope};
use core::time::Duration;
use lock_api::GuardNoSend;
use std::time::Instant;

// SAFETY: one holder at a time, and an unlock by it is seen by the next.
unsafe impl<S: Scope> lock_api::RawMutex for RawMutex<S> {
    #[allow(clippy::declare_interior_mutable_const, reason = "the trait has it so")]
    const INIT: Self = Self::new();
    type GuardMarker = GuardNoSend;

    #[inline]
    fn lock(&self) {
        Self::lock(self);
    }
    #[inline]
    fn try_lock(&self) -> bool {
        Self::try_lock(self)
    }
    #[inline]
    unsafe fn unlock(&self) {
        // SAFETY: forwarded.
        unsafe { Self::unlock(self) };
    }
    #[inline]
    fn is_locked(&self) -> bool {
        Self::is_locked(self)
    }
}

// SAFETY: as above.
unsafe impl<S: Scope> lock_api::RawMutexFair for RawMutex<S> {
    #[inline]
    unsafe fn unlock_fair(&self) {
        // SAFETY: forwarded.
        unsafe { Self::unlock_fair(self) };
    }
}

// SAFETY: as above.
unsafe impl<S: Scope> lock_api::RawMutexTimed for RawMutex<S> {
    type Duration = Duration;
    type Instant = Instant;

    fn try_lock_for(&self, timeout: Duration) -> bool {
        self.try_lock_until(Deadline::after(timeout)).is_ok()
    }
    fn try_lock_until(&self, timeout: Instant) -> bool {
        Self::try_lock_until(self, timeout.into()).is_ok()
    }
}

// SAFETY: one writer or any number of readers, and what one does is seen by the next.
unsafe impl<S: Scope> lock_api::RawRwLock for RawRwLock<S> {
    #[allow(clippy::declare_interior_mutable_const, reason = "the trait has it so")]
    const INIT: Self = Self::new();
    type GuardMarker = GuardNoSend;

    #[inline]
    fn lock_shared(&self) {
        self.read();
    }
    #[inline]
    fn try_lock_shared(&self) -> bool {
        self.try_read()
    }
    #[inline]
    unsafe fn unlock_shared(&self) {
        // SAFETY: forwarded.
        unsafe { self.unlock_read() };
    }
    #[inline]
    fn lock_exclusive(&self) {
        self.write();
    }
    #[inline]
    fn try_lock_exclusive(&self) -> bool {
        self.try_write()
    }
    #[inline]
    unsafe fn unlock_exclusive(&self) {
        // SAFETY: forwarded.
        unsafe { self.unlock_write() };
    }
    #[inline]
    fn is_locked(&self) -> bool {
        Self::is_locked(self)
    }
    #[inline]
    fn is_locked_exclusive(&self) -> bool {
        self.is_write_locked()
    }
}

// SAFETY: as above.
unsafe impl<S: Scope> lock_api::RawRwLockTimed for RawRwLock<S> {
    type Duration = Duration;
    type Instant = Instant;

    fn try_lock_shared_for(&self, timeout: Duration) -> bool {
        self.try_read_until(Deadline::after(timeout)).is_ok()
    }
    fn try_lock_shared_until(&self, timeout: Instant) -> bool {
        self.try_read_until(timeout.into()).is_ok()
    }
    fn try_lock_exclusive_for(&self, timeout: Duration) -> bool {
        self.try_write_until(Deadline::after(timeout)).is_ok()
    }
    fn try_lock_exclusive_until(&self, timeout: Instant) -> bool {
        self.try_write_until(timeout.into()).is_ok()
    }
}

// SAFETY: no writer comes between.
unsafe impl<S: Scope> lock_api::RawRwLockDowngrade for RawRwLock<S> {
    unsafe fn downgrade(&self) {
        // SAFETY: forwarded.
        unsafe { Self::downgrade(self) };
    }
}
