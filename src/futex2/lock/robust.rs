//! A mutex whose holder's death is told.

use super::identity::{ID, is_dead, me};
use super::raw_robust::{Taken, give_back, make_consistent, take, try_quick};
use super::waiting::Patience;
use crate::error::Result;
use crate::futex2::{Deadline, Futex, Scope, Shared};
use crate::sync::Ordering::Relaxed;
use core::cell::UnsafeCell;
use core::fmt;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ops::{Deref, DerefMut};

/// A lock without data that tells of its holder's death. Zeros are an unlocked one.
#[repr(C)]
pub(super) struct RawRobust<S: Scope> {
    word: Futex<u64, S>,
}

impl<S: Scope> RawRobust<S> {
    pub(super) const fn new() -> Self {
        Self { word: Futex::new(0) }
    }

    #[inline]
    pub(super) fn lock(&self, patience: Patience) -> Result<Taken> {
        let me = me();
        if try_quick(&self.word, me) {
            return Ok(Taken::Clean);
        }
        take(&self.word, me, patience, is_dead)
    }

    pub(super) fn is_locked(&self) -> bool {
        self.word.load(Relaxed) & ID != 0
    }

    pub(super) fn make_consistent(&self) {
        make_consistent(&self.word);
    }

    #[inline]
    pub(super) fn unlock(&self) {
        give_back(&self.word, me());
    }
}

/// A mutex around a `T` that survives the death of its holder, be it a thread or a process: the next
/// one is told (what POSIX calls EOWNERDEAD), finds the data as it was left, and
/// makes it good or gives it up.
///
/// It lies in memory that processes of one namespace of process ids, and of time, map; zeros are an
/// unlocked one. It has 8 bytes, no limit on how many are held, and needs no registration.
///
/// A death is noticed by the next one that locks. One that sleeps already looks every 50
/// milliseconds, and at its deadline. A process that was killed and that its parent has not waited for
/// is dead; that is seen at a look into `/proc`, within those times or by
/// [`try_lock`](Self::try_lock).
///
/// Without `/proc`, where it shows another namespace of process ids, or where this process has no
/// descriptor left to read it by, only a death that was waited for is seen.
///
/// What a dead holder left is reached by `unsafe` code: a thread may leak its guard, hand on
/// a reference to the data, and end.
///
/// Who comes at the right moment takes it before one who sleeps: nothing is handed over, so under
/// contention without end a sleeper may starve.
///
/// ```
/// use unmerged::futex2::lock::{Locked, RobustMutex};
///
/// static ACCOUNTS: RobustMutex<[i64; 2]> = RobustMutex::new([100, 0]);
///
/// let mut accounts = match ACCOUNTS.lock()? {
///     Locked::Clean(guard) => guard,
///     // SAFETY: no thread of this program leaks its guard.
///     Locked::Orphaned(mut orphan) => unsafe {
///         let accounts = orphan.data();
///         accounts[1] = 100 - accounts[0]; // whatever makes it good
///         orphan.make_consistent()
///     },
/// };
/// accounts[0] -= 30;
/// accounts[1] += 30;
/// # Ok::<(), unmerged::Error>(())
/// ```
#[repr(C)]
pub struct RobustMutex<T: ?Sized, S: Scope = Shared> {
    raw: RawRobust<S>,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached by the holder alone.
unsafe impl<T: ?Sized + Send, S: Scope> Send for RobustMutex<T, S> {}
// SAFETY: as above.
unsafe impl<T: ?Sized + Send, S: Scope> Sync for RobustMutex<T, S> {}

/// A robust mutex that was taken.
#[derive(Debug)]
#[must_use = "the lock is given back at once"]
pub enum Locked<'a, T: ?Sized, S: Scope = Shared> {
    /// Its last holder gave it back.
    Clean(RobustGuard<'a, T, S>),
    /// Its last holder died: EOWNERDEAD.
    Orphaned(Orphan<'a, T, S>),
}

impl<'a, T: ?Sized, S: Scope> Locked<'a, T, S> {
    /// The lock; if its last holder died, `repair` makes the data good first.
    ///
    /// # Panics
    ///
    /// If `repair` does; the mutex cannot be taken any more then.
    ///
    /// # Safety
    ///
    /// That of [`Orphan::data`].
    pub unsafe fn or_repair(self, repair: impl FnOnce(&mut T)) -> RobustGuard<'a, T, S> {
        match self {
            Self::Clean(guard) => guard,
            Self::Orphaned(mut orphan) => {
                // SAFETY: forwarded.
                repair(unsafe { orphan.data() });
                // SAFETY: as above.
                unsafe { orphan.make_consistent() }
            }
        }
    }

    /// Whether its last holder died.
    pub fn is_orphaned(&self) -> bool {
        matches!(self, Self::Orphaned(_))
    }
}

impl<T, S: Scope> RobustMutex<T, S> {
    /// An unlocked mutex around `value`.
    pub const fn new(value: T) -> Self {
        Self { raw: RawRobust::new(), value: UnsafeCell::new(value) }
    }

    /// The value, of a mutex that nobody else has. Whether its last holder died is not asked.
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

impl<T: ?Sized, S: Scope> RobustMutex<T, S> {
    /// Takes the lock, sleeping while a living thread holds it.
    ///
    /// # Errors
    ///
    /// ENOTRECOVERABLE if the data of a dead holder was given up; EDEADLK if this thread holds
    /// it; ENOMEM if the kernel has none.
    #[inline]
    pub fn lock(&self) -> Result<Locked<'_, T, S>> {
        self.locked(Patience::Endless)
    }

    /// Takes the lock if no living thread holds it. It may be used in signal handlers once this
    /// thread has used a robust mutex outside of one.
    ///
    /// If it is held, this asks the kernel about the holder and, if there is such a thread, reads
    /// about it in `/proc`: some 10 µs. It does not wait.
    ///
    /// # Errors
    ///
    /// EAGAIN ([`is_would_block`](crate::Error::is_would_block)) if it is held; otherwise as
    /// [`lock`](Self::lock).
    #[inline]
    pub fn try_lock(&self) -> Result<Locked<'_, T, S>> {
        self.locked(Patience::None)
    }

    /// Takes the lock, sleeping until the deadline at the most.
    ///
    /// # Errors
    ///
    /// ETIMEDOUT at the deadline; otherwise as [`lock`](Self::lock).
    #[inline]
    pub fn try_lock_until(&self, deadline: Deadline) -> Result<Locked<'_, T, S>> {
        self.locked(Patience::Until(deadline))
    }

    /// Whether it is held, be it by one who is dead; stale at once.
    pub fn is_locked(&self) -> bool {
        self.raw.is_locked()
    }

    /// The value, of a mutex that nobody else can reach. Whether its last holder died is not asked.
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }

    #[inline]
    fn locked(&self, patience: Patience) -> Result<Locked<'_, T, S>> {
        let taken = self.raw.lock(patience)?;
        let guard = RobustGuard { mutex: self, thread: PhantomData };
        Ok(match taken {
            Taken::Clean => Locked::Clean(guard),
            Taken::Orphaned => Locked::Orphaned(Orphan { guard }),
        })
    }
}

impl<T, S: Scope> From<T> for RobustMutex<T, S> {
    fn from(value: T) -> Self {
        Self::new(value)
    }
}

impl<T: Default, S: Scope> Default for RobustMutex<T, S> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T: ?Sized, S: Scope> fmt::Debug for RobustMutex<T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RobustMutex").field("word", &self.raw.word).finish_non_exhaustive()
    }
}

/// The lock of a robust mutex, held until this is dropped.
#[must_use = "the lock is given back at once"]
pub struct RobustGuard<'a, T: ?Sized, S: Scope = Shared> {
    mutex: &'a RobustMutex<T, S>,
    thread: PhantomData<*const ()>,
}

// SAFETY: a shared guard gives shared access to the value.
unsafe impl<T: ?Sized + Sync, S: Scope> Sync for RobustGuard<'_, T, S> {}

impl<T: ?Sized, S: Scope> Deref for RobustGuard<'_, T, S> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the lock is held.
        unsafe { &*self.mutex.value.get() }
    }
}

impl<T: ?Sized, S: Scope> DerefMut for RobustGuard<'_, T, S> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the lock is held, and the guard borrowed for as long.
        unsafe { &mut *self.mutex.value.get() }
    }
}

impl<T: ?Sized, S: Scope> Drop for RobustGuard<'_, T, S> {
    #[inline]
    fn drop(&mut self) {
        self.mutex.raw.unlock();
    }
}

impl<T: ?Sized + fmt::Display, S: Scope> fmt::Display for RobustGuard<'_, T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized + fmt::Debug, S: Scope> fmt::Debug for RobustGuard<'_, T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// The lock of a robust mutex whose last holder died. Dropped as it is, it gives the data up: the
/// mutex is ENOTRECOVERABLE ([`is_unrecoverable`](crate::Error::is_unrecoverable)) from then on, for
/// everybody, until somebody who knows that nobody uses it writes zeros over its word.
///
/// ```compile_fail,E0133
/// use unmerged::futex2::lock::Orphan;
///
/// fn reset(orphan: &mut Orphan<'_, u32>) {
///     *orphan.data() = 0;
/// }
/// ```
#[must_use = "the data is given up at once"]
pub struct Orphan<'a, T: ?Sized, S: Scope = Shared> {
    guard: RobustGuard<'a, T, S>,
}

impl<'a, T: ?Sized, S: Scope> Orphan<'a, T, S> {
    /// The data as it was left.
    ///
    /// # Safety
    ///
    /// Nobody uses a reference that the dead holder's guard gave out. So it is where the holder's
    /// process is dead. A thread of a process that lives on must not have leaked its guard for the
    /// sake of such a reference (`Box::leak`); to forget a guard gives none out.
    pub unsafe fn data(&mut self) -> &mut T {
        &mut self.guard
    }

    /// The data is good again.
    ///
    /// # Safety
    ///
    /// That of [`data`](Self::data).
    pub unsafe fn make_consistent(self) -> RobustGuard<'a, T, S> {
        let this = ManuallyDrop::new(self);
        this.guard.mutex.raw.make_consistent();
        RobustGuard { mutex: this.guard.mutex, thread: PhantomData }
    }
}

impl<T: ?Sized, S: Scope> fmt::Debug for Orphan<'_, T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Orphan").finish_non_exhaustive()
    }
}
