//! A counting semaphore, and the event that resets itself, which is one that counts to 1.
//!
//! | bits | mean |
//! |---|---|
//! | 0 to 30 | permits |
//! | 31, `PARKED` | somebody may sleep who is nobody's duty yet |
//!
//! A thread sleeps while the word is `PARKED` without a permit. A release clears the bit and wakes
//! as many as it brings permits. Whoever was woken takes its permit and sets the bit again,
//! because others may sleep; and if permits are left, it wakes one more.

use super::cell::{Cell, Slept, Spins, late};
use super::select::{Announced, Ready, Source};
use crate::error::{Error, Result};
use crate::futex2::{Deadline, Futex, Private, Scope};
use crate::sync::Ordering::{Acquire, Relaxed, Release};
use core::fmt;
use rustix::io::Errno;

const PARKED: u32 = 1 << 31;

/// A counting semaphore: permits that are taken and given back, by anybody.
///
/// In shared memory zeros are one without permits. The permits of a process that dies are gone.
///
/// ```
/// use unmerged::futex2::lock::Semaphore;
///
/// let slots: Semaphore = Semaphore::new(2);
/// slots.acquire();
/// slots.acquire();
/// assert!(!slots.try_acquire());
/// slots.release(1)?;
/// assert!(slots.try_acquire());
/// # Ok::<(), unmerged::Error>(())
/// ```
#[repr(C)]
pub struct Semaphore<S: Scope = Private> {
    word: Futex<u32, S>,
}

impl<S: Scope> Semaphore<S> {
    /// The most permits that there can be.
    pub const MOST: u32 = PARKED - 1;

    /// A semaphore with so many permits.
    ///
    /// # Panics
    ///
    /// If it is more than [`MOST`](Self::MOST).
    pub const fn new(permits: u32) -> Self {
        assert!(permits <= Self::MOST, "too many permits");
        Self { word: Futex::new(permits) }
    }

    /// Takes a permit, sleeping while there is none.
    #[inline]
    pub fn acquire(&self) {
        if !try_take(&self.word) {
            // Without a deadline nothing fails on 32 bits.
            let _ = take(&self.word, None);
        }
    }

    /// Takes a permit if there is one. It may be used in signal handlers.
    #[inline]
    pub fn try_acquire(&self) -> bool {
        try_take(&self.word)
    }

    /// Takes a permit, sleeping until the deadline at the most.
    ///
    /// # Errors
    ///
    /// ETIMEDOUT at the deadline.
    pub fn acquire_until(&self, deadline: Deadline) -> Result<()> {
        if try_take(&self.word) { Ok(()) } else { take(&self.word, Some(deadline)) }
    }

    /// Gives `n` permits.
    ///
    /// # Errors
    ///
    /// EOVERFLOW, and nothing is given, if there would be more than [`MOST`](Self::MOST).
    #[inline]
    pub fn release(&self, n: u32) -> Result<()> {
        give(&self.word, n, Self::MOST, false)
    }

    /// Permits now; stale at once.
    pub fn available(&self) -> u32 {
        self.word.load(Relaxed) & !PARKED
    }
}

impl<S: Scope> fmt::Debug for Semaphore<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Semaphore").field("available", &self.available()).finish()
    }
}

impl<S: Scope> Source for Semaphore<S> {
    fn ready(&self) -> Ready<'_> {
        ready(&self.word)
    }

    fn pass_on(&self) {
        pass_on(&self.word);
    }
}

/// An event that lets one waiter through and resets itself: what others call auto-reset.
///
/// In shared memory zeros are one that is not set.
#[repr(C)]
pub struct AutoEvent<S: Scope = Private> {
    word: Futex<u32, S>,
}

impl<S: Scope> AutoEvent<S> {
    /// An event, set or not.
    pub const fn new(set: bool) -> Self {
        Self { word: Futex::new(set as u32) }
    }

    /// Sets it, or lets a waiter through. Setting it twice is setting it once.
    pub fn set(&self) {
        // It is no error that it was set.
        let _ = give(&self.word, 1, 1, true);
    }

    /// Resets it; whether it was set. This is the wait that does not wait.
    pub fn reset(&self) -> bool {
        try_take(&self.word)
    }

    /// Waits until it is set, and resets it.
    pub fn wait(&self) {
        if !try_take(&self.word) {
            let _ = take(&self.word, None);
        }
    }

    /// The same, until the deadline at the most.
    ///
    /// # Errors
    ///
    /// ETIMEDOUT at the deadline.
    pub fn wait_until(&self, deadline: Deadline) -> Result<()> {
        if try_take(&self.word) { Ok(()) } else { take(&self.word, Some(deadline)) }
    }

    /// Whether it is set; stale at once.
    pub fn is_set(&self) -> bool {
        self.word.load(Relaxed) & !PARKED != 0
    }
}

impl<S: Scope> fmt::Debug for AutoEvent<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AutoEvent").field("set", &self.is_set()).finish()
    }
}

impl<S: Scope> Source for AutoEvent<S> {
    fn ready(&self) -> Ready<'_> {
        ready(&self.word)
    }

    fn pass_on(&self) {
        pass_on(&self.word);
    }
}

fn ready<S: Scope>(word: &Futex<u32, S>) -> Ready<'_> {
    match announce(word) {
        Some(expected) => Ready::Not(word.waiter(expected), Announced::NONE),
        None => Ready::Now,
    }
}

/// Says that somebody will sleep; `None` if there is a permit.
fn announce<C: Cell<u32>>(word: &C) -> Option<u32> {
    let seen = word.load(Relaxed);
    if seen & !PARKED != 0 {
        return None;
    }
    match word.compare_exchange(seen, PARKED, Relaxed, Relaxed) {
        Ok(_) => Some(PARKED),
        Err(now) => (now & !PARKED == 0).then_some(PARKED),
    }
}

/// One who was woken does not take its permit: the next one may.
fn pass_on<C: Cell<u32>>(word: &C) {
    if word.load(Relaxed) & !PARKED != 0 {
        word.wake(1);
    }
}

#[inline]
fn try_take<C: Cell<u32>>(word: &C) -> bool {
    let mut seen = word.load(Relaxed);
    while seen & !PARKED != 0 {
        match word.compare_exchange(seen, seen - 1, Acquire, Relaxed) {
            Ok(_) => return true,
            Err(now) => seen = now,
        }
    }
    false
}

#[cold]
#[inline(never)]
fn take<C: Cell<u32>>(word: &C, deadline: Option<Deadline>) -> Result<()> {
    let mut spins = Spins::new();
    let mut duty = false;
    loop {
        let seen = word.load(Relaxed);
        if seen & !PARKED != 0 {
            let next = (seen - 1) | if duty { PARKED } else { 0 };
            if word.compare_exchange(seen, next, Acquire, Relaxed).is_err() {
                continue;
            }
            if duty && next & !PARKED != 0 {
                word.wake(1);
            }
            return Ok(());
        }
        if !spins.are_over() {
            continue;
        }
        if seen != PARKED && word.compare_exchange(seen, PARKED, Relaxed, Relaxed).is_err() {
            continue;
        }
        duty = false;
        let slept = word.wait(PARKED, deadline)?;
        if slept == Slept::Changed && deadline.is_some_and(|deadline| deadline.has_passed()) {
            return Err(late("futex2::acquire"));
        }
        duty |= slept.owes();
    }
}

/// Gives `n` permits, of at most `most`; or as many as fit.
#[inline]
fn give<C: Cell<u32>>(word: &C, n: u32, most: u32, saturate: bool) -> Result<()> {
    // Who takes the mark of sleepers away has to wake one.
    if n == 0 {
        return Ok(());
    }
    let mut seen = word.load(Relaxed);
    loop {
        let now = seen & !PARKED;
        let next = match now.checked_add(n) {
            Some(next) if next <= most => next,
            _ if saturate => now.max(most),
            _ => {
                return Err(Error::with(
                    "futex2::Semaphore::release",
                    Errno::OVERFLOW,
                    format_args!("{now} + {n} permits of at most {most}"),
                ));
            }
        };
        match word.compare_exchange(seen, next, Release, Relaxed) {
            Ok(_) => break,
            Err(other) => seen = other,
        }
    }
    if seen & PARKED != 0 {
        word.wake(n);
    }
    Ok(())
}

#[cfg(all(test, loom))]
mod models {
    use super::super::cell::model::Modelled;
    use super::*;
    use crate::sync::{AtomicU32, model};
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    /// One permit is a lock.
    #[test]
    fn a_permit_brings_what_was_done_under_it() {
        model(|| {
            let shared = Arc::new((Modelled::<AtomicU32>::new(1), UnsafeCell::new(0)));
            let body = |(word, data): &(Modelled<AtomicU32>, UnsafeCell<u32>)| {
                if !try_take(word) {
                    take(word, None).unwrap();
                }
                // SAFETY: the permit is held.
                data.with_mut(|data| unsafe { *data += 1 });
                give(word, 1, 1, false).unwrap();
            };
            let other = shared.clone();
            let other = thread::spawn(move || body(&other));
            body(&shared);
            other.join().unwrap();
        });
    }

    /// Two that sleep, two permits given one by one: both get one.
    #[test]
    fn nobody_is_left_asleep() {
        model(|| {
            let word = Arc::new(Modelled::<AtomicU32>::new(0));
            let takers: Vec<_> = (0..2)
                .map(|_| {
                    let word = word.clone();
                    thread::spawn(move || take(&*word, None).unwrap())
                })
                .collect();
            give(&*word, 1, 9, false).unwrap();
            give(&*word, 1, 9, false).unwrap();
            takers.into_iter().for_each(|taker| taker.join().unwrap());
        });
    }
}
