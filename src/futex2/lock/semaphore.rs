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

use super::cell::Cell;
use super::select::{Announced, Inside, Ready, Source};
use super::waiting::{Spins, without_fail};
use crate::error::{Error, Result};
use crate::futex2::{Deadline, Futex, Private, Scope};
use crate::sync::Ordering::{Acquire, Relaxed, Release};
use core::fmt;

const PARKED: u32 = 1 << 31;
const ACQUIRE: &str = "futex2::Semaphore::acquire";
const RELEASE: &str = "futex2::Semaphore::release";
const WAIT: &str = "futex2::AutoEvent::wait";

/// A counting semaphore: permits that are taken and given back, by anybody.
///
/// Who comes at the right moment takes a permit before one who sleeps: there is no queue, so
/// under contention without end a sleeper may starve.
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
        take_for_sure(&self.word, ACQUIRE);
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
        take_until(&self.word, deadline, ACQUIRE)
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

impl<S: Scope> Default for Semaphore<S> {
    /// Without permits.
    fn default() -> Self {
        Self::new(0)
    }
}

impl<S: Scope> fmt::Debug for Semaphore<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Semaphore").field("available", &self.available()).finish()
    }
}

impl<S: Scope> Source for Semaphore<S> {
    fn ready(&self, _: Inside) -> Ready<'_> {
        ready(&self.word)
    }

    fn pass_on(&self, _: Inside) {
        pass_on(&self.word);
    }
}

/// An event that lets one waiter through and resets itself: what others call auto-reset. Which one,
/// a sleeper or one that comes just then, is open.
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
        take_for_sure(&self.word, WAIT);
    }

    /// The same, until the deadline at the most.
    ///
    /// # Errors
    ///
    /// ETIMEDOUT at the deadline.
    pub fn wait_until(&self, deadline: Deadline) -> Result<()> {
        take_until(&self.word, deadline, WAIT)
    }

    /// Whether it is set; stale at once.
    pub fn is_set(&self) -> bool {
        self.word.load(Relaxed) & !PARKED != 0
    }
}

impl<S: Scope> Default for AutoEvent<S> {
    /// Not set.
    fn default() -> Self {
        Self::new(false)
    }
}

impl<S: Scope> fmt::Debug for AutoEvent<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AutoEvent").field("set", &self.is_set()).finish()
    }
}

impl<S: Scope> Source for AutoEvent<S> {
    fn ready(&self, _: Inside) -> Ready<'_> {
        ready(&self.word)
    }

    fn pass_on(&self, _: Inside) {
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

/// One who was woken takes nothing here: the next one may. If there is no permit any more, the next
/// release has to wake, and is told so.
fn pass_on<C: Cell<u32>>(word: &C) {
    let mut seen = word.load(Relaxed);
    while seen == 0 {
        match word.compare_exchange(0, PARKED, Relaxed, Relaxed) {
            Ok(_) => return,
            Err(now) => seen = now,
        }
    }
    if seen & !PARKED != 0 {
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

#[inline]
fn take_for_sure<C: Cell<u32>>(word: &C, operation: &'static str) {
    if !try_take(word) {
        without_fail(|| take(word, None, operation));
    }
}

#[inline]
fn take_until<C: Cell<u32>>(word: &C, deadline: Deadline, operation: &'static str) -> Result<()> {
    if try_take(word) { Ok(()) } else { take(word, Some(deadline), operation) }
}

#[cold]
#[inline(never)]
fn take<C: Cell<u32>>(word: &C, deadline: Option<Deadline>, operation: &'static str) -> Result<()> {
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
        let slept = word.wait(PARKED, deadline).map_err(|error| error.within(operation))?;
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
            _ => return Err(Error::too_many(RELEASE, now, n, most)),
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
    use super::super::waiting::BEAT;
    use super::*;
    use crate::sync::{AtomicBool, AtomicU32, model};
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
                    take(word, None, ACQUIRE).unwrap();
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
                    thread::spawn(move || take(&*word, None, ACQUIRE).unwrap())
                })
                .collect();
            give(&*word, 1, 9, false).unwrap();
            give(&*word, 1, 9, false).unwrap();
            takers.into_iter().for_each(|taker| taker.join().unwrap());
        });
    }

    /// Of two that sleep one leaves at its deadline, or has the permit: the other one has the next.
    #[test]
    fn one_gives_up() {
        model(|| {
            let word = Arc::new(Modelled::<AtomicU32>::new(0));
            let other = word.clone();
            let patient = thread::spawn(move || take(&*other, None, ACQUIRE).unwrap());
            let other = word.clone();
            let late = thread::spawn(move || {
                let far = Deadline::monotonic(core::time::Duration::MAX);
                take(&*other, Some(far), ACQUIRE).is_ok()
            });
            word.end_deadlines(1);
            give(&*word, 1, 9, false).unwrap();
            if late.join().unwrap() {
                give(&*word, 1, 9, false).unwrap();
            }
            patient.join().unwrap();
        });
    }

    /// A thread that selects is woken, a third one takes the permit, and it goes on with another
    /// source, without a look at this one: who sleeps here has the next permit.
    #[test]
    fn a_wake_is_passed_on() {
        model(|| {
            let shared = Arc::new((Modelled::<AtomicU32>::new(0), AtomicBool::new(false).ready()));
            let other = shared.clone();
            let taker = thread::spawn(move || take(&other.0, None, ACQUIRE).unwrap());
            let other = shared.clone();
            let selector = thread::spawn(move || {
                let (word, first) = &*other;
                let mut slept = false;
                // The first source is looked at first.
                while !first.load(Acquire)
                    && let Some(expected) = announce(word)
                {
                    word.nap(expected, None, Some(BEAT)).unwrap();
                    slept = true;
                }
                if slept {
                    pass_on(word);
                }
            });
            let (word, first) = &*shared;
            give(word, 1, 9, false).unwrap();
            let is_taken = try_take(word);
            first.store(true, Release);
            // The first source wakes it.
            word.end_naps(1);
            if is_taken {
                give(word, 1, 9, false).unwrap();
            }
            taker.join().unwrap();
            selector.join().unwrap();
        });
    }
}
