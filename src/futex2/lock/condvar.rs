//! A condition variable: waiters that are moved, not woken all at once.
//!
//! # Protocol
//!
//! ```text
//! waiter, with the mutex                  notifier
//!   waiters += 1                            if waiters == 0: done
//!   s = sequence                            sequence += 1
//!   unlock                                  (all: broadcast = 1)
//!   sleep while sequence == s               wake one
//!   if broadcast was 1, now 0:
//!       move the other sleepers to the mutex's queue
//!   waiters -= 1
//!   lock, with the duty for its queue
//! ```
//!
//! A notifier has changed, or seen, under the mutex what the waiter looked at under it; so it sees
//! the waiter's count, or the waiter saw the change. Whoever finds `broadcast` comes after the new
//! sequence: those who do not sleep yet will not, and the others are moved. If the one that is
//! woken does not find it, another one has, after all of them slept.
//!
//! The one that is woken moves the others. It knows the mutex, which a notifier need not, and no
//! address has to be kept in memory that others write. The moved ones are woken one by one, by
//! the unlocks of the mutex: each sleeps with the mask of the mutex's byte.

use super::mutex::MutexGuard;
use super::raw_mutex::lock_contended;
use super::waiting::{BEAT, Slept, late, sleep, without_fail};
use crate::abi::futex2::MATCH_ANY;
use crate::error::{Error, Result};
use crate::futex2::place::Place;
use crate::futex2::seat::Seat;
use crate::futex2::step::step;
use crate::futex2::{Deadline, Options, Private, Scope};
use crate::sync::Ordering::{AcqRel, Acquire, Relaxed, Release};
use crate::sync::{AtomicU32, AtomicUsize, fence_after_rmw};
use crate::sys::futex;
use core::fmt;
use core::marker::PhantomData;
use core::ptr;

/// Waits for a change of what a [`Mutex`](super::Mutex) protects.
///
/// All that wait at one time use one mutex, as with std and parking_lot: who comes with another one
/// panics. One mutex after the other is right. In shared memory, where another process may have
/// written anything, it does not panic: waiters with two mutexes are woken all at once instead of
/// being moved, and may be woken late by 50 milliseconds.
///
/// In shared memory zeros are one that nobody waits on; it must lie in the same mapping as its
/// mutex for waiters to be moved.
///
/// ```
/// use unmerged::futex2::lock::{Condvar, Mutex};
///
/// static QUEUE: Mutex<Vec<u32>> = Mutex::new(Vec::new());
/// static FILLED: Condvar = Condvar::new();
///
/// std::thread::scope(|scope| {
///     scope.spawn(|| {
///         QUEUE.lock().push(1);
///         FILLED.notify_one();
///     });
///     let mut queue = QUEUE.lock();
///     while queue.is_empty() {
///         FILLED.wait(&mut queue);
///     }
/// });
/// ```
#[repr(C)]
pub struct Condvar<S: Scope = Private> {
    sequence: AtomicU32,
    waiters: AtomicU32,
    /// The waiter that wakes next moves the others.
    broadcast: AtomicU32,
    /// From here to the mutex of the waiters, 0 if there were none yet, [`MIXED`] for several. It is
    /// compared, never followed.
    way: AtomicUsize,
    scope: PhantomData<S>,
}

const MIXED: usize = 1;

impl<S: Scope> Condvar<S> {
    /// Nobody waits.
    pub const fn new() -> Self {
        Self {
            sequence: AtomicU32::new(0),
            waiters: AtomicU32::new(0),
            broadcast: AtomicU32::new(0),
            way: AtomicUsize::new(0),
            scope: PhantomData,
        }
    }

    /// Gives the mutex back, sleeps until a notification, and takes the mutex again. It may return
    /// for no reason.
    ///
    /// # Panics
    ///
    /// In a private scope, if others wait with another mutex. This one is still held then.
    pub fn wait<T: ?Sized>(&self, guard: &mut MutexGuard<'_, T, S>) {
        // Should the kernel refuse to wait after all, this returns for no reason.
        let _ = self.wait_for(guard, None);
    }

    /// The same, until the deadline at the most. The mutex is taken again in any case, however long
    /// another holder keeps it: the deadline ends the wait, not the lock.
    ///
    /// # Errors
    ///
    /// ETIMEDOUT at the deadline.
    ///
    /// # Panics
    ///
    /// As [`wait`](Self::wait).
    pub fn wait_until<T: ?Sized>(
        &self,
        guard: &mut MutexGuard<'_, T, S>,
        deadline: Deadline,
    ) -> Result<()> {
        self.wait_for(guard, Some(deadline))
    }

    /// Waits as long as `condition` holds.
    ///
    /// # Panics
    ///
    /// As [`wait`](Self::wait), and if `condition` does.
    pub fn wait_while<T: ?Sized>(
        &self,
        guard: &mut MutexGuard<'_, T, S>,
        mut condition: impl FnMut(&mut T) -> bool,
    ) {
        while condition(&mut *guard) {
            self.wait(guard);
        }
    }

    /// Wakes one waiter. If nobody waits this is a load.
    #[inline]
    pub fn notify_one(&self) {
        if self.waiters.load(Relaxed) != 0 {
            self.call(false);
        }
    }

    /// Wakes all waiters, one after the other, each when the mutex is free for it. If nobody waits
    /// this is a load.
    #[inline]
    pub fn notify_all(&self) {
        if self.waiters.load(Relaxed) != 0 {
            self.call(true);
        }
    }

    #[cold]
    #[inline(never)]
    fn call(&self, all: bool) {
        self.notify_by(all, || self.wake(1));
    }

    /// What a notifier does that has found a waiter.
    fn notify_by(&self, all: bool, wake_one: impl FnOnce()) {
        self.sequence.fetch_add(1, Release);
        step();
        if all {
            self.broadcast.store(1, Release);
            step();
        }
        wake_one();
    }

    /// What a waiter does that has the mutex. `unlock` is told whether nobody else waits, `sleep` on
    /// which value of the sequence.
    fn wait_by(
        &self,
        unlock: impl FnOnce(bool),
        sleep: impl FnOnce(u32) -> Result<()>,
        take_along: impl FnOnce(),
        lock: impl FnOnce(),
    ) -> Result<()> {
        // Ordered after the moves of those who were here before.
        let alone = self.waiters.fetch_add(1, Acquire) == 0;
        let seen = self.sequence.load(Relaxed);
        unlock(alone);
        let slept = sleep(seen);
        if self.broadcast.load(Relaxed) != 0 && self.broadcast.swap(0, AcqRel) != 0 {
            step();
            take_along();
        }
        // Only now: whom this one may move must not have come with another mutex, alone.
        self.waiters.fetch_sub(1, Release);
        step();
        lock();
        slept
    }

    fn wake(&self, n: u32) {
        // EFAULT: the memory is gone, and with it whoever waited.
        let _ = futex::wake_bitset(self.word(), S::PRIVATE, n, MATCH_ANY);
    }

    fn word(&self) -> *const u32 {
        ptr::from_ref(&self.sequence).cast()
    }

    fn wait_for<T: ?Sized>(
        &self,
        guard: &mut MutexGuard<'_, T, S>,
        deadline: Option<Deadline>,
    ) -> Result<()> {
        let mutex = guard.raw();
        let address = ptr::from_ref(mutex).cast::<u8>();
        let way = address.addr().wrapping_sub(ptr::from_ref(self).addr());
        let place = Place { address, bytes: 1, private: S::PRIVATE };
        // Counted as a waiter of the mutex, to which it may be moved.
        let seat = if S::PRIVATE { Seat::private(address.addr()) } else { Seat::NOWHERE };
        let counted = seat.enter();
        self.wait_by(
            |alone| {
                if S::PRIVATE {
                    self.agree(alone, way);
                } else {
                    let known = self.way.load(Relaxed);
                    if known != way {
                        self.way.store(if alone || known == 0 { way } else { MIXED }, Relaxed);
                    }
                }
                // SAFETY: the guard holds it, and has it again before this returns.
                unsafe { mutex.unlock() };
            },
            |seen| {
                let slept = self.sleep(seen, place.mask(&Options::new()), counted.sure, deadline);
                drop(counted);
                slept
            },
            || self.take_along(way, &place),
            // A wake of the mutex may have been spent on this thread.
            || without_fail(|| lock_contended(mutex.word(), None, true)),
        )
    }

    fn sleep(&self, seen: u32, mask: u32, sure: bool, deadline: Option<Deadline>) -> Result<()> {
        const OPERATION: &str = "futex2::Condvar::wait";
        let word = self.word();
        loop {
            let wait = |until: Option<Deadline>| {
                let clock = until.map_or(futex::Clock::Monotonic, |until| until.clock());
                let timespec = until.map(|until| until.timespec());
                futex::wait_bitset(word, S::PRIVATE, seen, clock, timespec.as_ref(), mask)
                    .map_err(|errno| Error::new(OPERATION, errno))
            };
            // A notifier may miss the count.
            let beat = (!S::PRIVATE || !sure).then_some(BEAT);
            match sleep(deadline, beat, wait) {
                // Still not notified.
                Ok(Slept::Beat) if self.sequence.load(Relaxed) == seen => {}
                Ok(_) => return Ok(()),
                Err(error) if error.raw_os_error() == libc::EINTR => {
                    if deadline.is_some_and(|deadline| deadline.has_passed()) {
                        return Err(late(OPERATION));
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Sees that all who wait use the mutex at the end of this way.
    ///
    /// One who comes alone says which, then looks whether it still is; one who does not looks what was
    /// said, after it was counted. So of two who come together with two mutexes one notices.
    fn agree(&self, alone: bool, way: usize) {
        let is_agreed = if !alone {
            fence_after_rmw();
            self.way.load(Relaxed) == way
        } else if self.way.load(Relaxed) == way {
            true
        } else {
            self.way.swap(way, Relaxed);
            fence_after_rmw();
            self.waiters.load(Relaxed) == 1
        };
        if !is_agreed {
            self.waiters.fetch_sub(1, Release);
            panic!("a condition variable is waited on with two mutexes");
        }
    }

    /// Moves all sleepers to the mutex at `place`.
    fn take_along(&self, way: usize, place: &Place) {
        let moved = (self.way.load(Relaxed) == way)
            .then(|| futex::cmp_requeue(self.word(), S::PRIVATE, 0, u32::MAX, place.word(), None));
        if !matches!(moved, Some(Ok(_))) {
            self.wake(u32::MAX);
        }
    }
}

impl<S: Scope> Default for Condvar<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: Scope> fmt::Debug for Condvar<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waiters = self.waiters.load(Relaxed);
        f.debug_struct("Condvar").field("waiters", &waiters).finish()
    }
}

#[cfg(all(test, loom))]
#[path = "condvar_models.rs"]
mod models;
