//! An event that stays set until it is reset.
//!
//! | bits | mean |
//! |---|---|
//! | 0, `SET` | it is set |
//! | 1, `PARKED` | somebody may sleep |
//! | 2 to 31 | how often it was set |
//!
//! The number makes a waiter see that it was set, though it may be reset when the waiter wakes.

use super::cell::Cell;
use super::select::{Announced, Inside, Ready, Source};
use super::waiting::Spins;
use crate::error::Result;
use crate::futex2::{Deadline, Futex, Private, Scope};
use crate::sync::Ordering::{AcqRel, Acquire, Relaxed};
use core::fmt;

const SET: u32 = 1;
const PARKED: u32 = 2;
const TIME: u32 = 4;

/// An event that lets everybody through from [`set`](Self::set) to [`reset`](Self::reset): what
/// others call manual-reset. Whoever waits, or [selects](super::select()), when it is set is let
/// through, even if it is reset at once.
///
/// In shared memory zeros are one that is not set.
///
/// ```
/// use unmerged::futex2::lock::Event;
///
/// static READY: Event = Event::new(false);
/// std::thread::scope(|scope| {
///     scope.spawn(|| READY.wait());
///     READY.set();
/// });
/// ```
#[repr(C)]
pub struct Event<S: Scope = Private> {
    word: Futex<u32, S>,
}

impl<S: Scope> Event<S> {
    /// An event, set or not.
    pub const fn new(set: bool) -> Self {
        Self { word: Futex::new(set as u32) }
    }

    /// Sets it, and wakes all.
    pub fn set(&self) {
        set(&self.word);
    }

    /// Resets it; whether it was set.
    pub fn reset(&self) -> bool {
        self.word.fetch_and(!SET, AcqRel) & SET != 0
    }

    /// Whether it is set. What was done before it was, is seen. It may be used in signal handlers.
    #[inline]
    pub fn is_set(&self) -> bool {
        self.word.load(Acquire) & SET != 0
    }

    /// Waits until it is set.
    #[inline]
    pub fn wait(&self) {
        // Where the kernel refuses to let it sleep, it looks again and again.
        while !self.is_set() && wait(&self.word, None).is_err() {
            rustix::thread::sched_yield();
        }
    }

    /// Waits until it is set, or the deadline.
    ///
    /// # Errors
    ///
    /// ETIMEDOUT at the deadline.
    pub fn wait_until(&self, deadline: Deadline) -> Result<()> {
        if self.is_set() { Ok(()) } else { wait(&self.word, Some(deadline)) }
    }
}

impl<S: Scope> Default for Event<S> {
    /// Not set.
    fn default() -> Self {
        Self::new(false)
    }
}

impl<S: Scope> fmt::Debug for Event<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event").field("set", &self.is_set()).finish()
    }
}

impl<S: Scope> Source for Event<S> {
    fn ready(&self, _: Inside) -> Ready<'_> {
        match announce(&self.word) {
            Some(parked) => Ready::Not(self.word.waiter(parked), Announced::at(parked / TIME)),
            None => Ready::Now,
        }
    }

    fn pass_on(&self, _: Inside) {}
}

fn set<C: Cell<u32>>(word: &C) {
    let mut seen = word.load(Relaxed);
    loop {
        let next = if seen & SET == 0 { seen.wrapping_add(TIME) } else { seen };
        match word.compare_exchange(seen, (next | SET) & !PARKED, AcqRel, Relaxed) {
            Ok(_) => break,
            Err(now) => seen = now,
        }
    }
    if seen & PARKED != 0 {
        word.wake(u32::MAX);
    }
}

/// Says that somebody will sleep, and while which value; `None` if it is set. If another one
/// changes it meanwhile, that value is a past one, and nobody sleeps.
fn announce<C: Cell<u32>>(word: &C) -> Option<u32> {
    let seen = word.load(Acquire);
    let parked = seen | PARKED;
    if seen != parked && seen & SET == 0 {
        let _ = word.compare_exchange(seen, parked, Relaxed, Relaxed);
    }
    (seen & SET == 0).then_some(parked)
}

fn wait<C: Cell<u32>>(word: &C, deadline: Option<Deadline>) -> Result<()> {
    let mut spins = Spins::new();
    let first = word.load(Acquire);
    loop {
        if !spins.are_over() {
            let seen = word.load(Acquire);
            if seen & SET != 0 || seen / TIME != first / TIME {
                return Ok(());
            }
            continue;
        }
        let Some(parked) = announce(word) else { return Ok(()) };
        if parked / TIME != first / TIME {
            return Ok(());
        }
        if let Err(error) = word.wait(parked, deadline) {
            // Set at the last moment is set.
            let seen = word.load(Acquire);
            if seen & SET != 0 || seen / TIME != first / TIME {
                return Ok(());
            }
            return Err(error.within("futex2::Event::wait"));
        }
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::super::cell::model::Modelled;
    use super::*;
    use crate::sync::{AtomicU32, model};
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    /// The same for who selects, and looks anew each time.
    #[test]
    fn a_pulse_lets_a_selector_through() {
        model(|| {
            let shared = Arc::new((Modelled::<AtomicU32>::new(0), UnsafeCell::new(0)));
            let first = announce(&shared.0).unwrap();
            let other = shared.clone();
            let selector = thread::spawn(move || {
                let mut now = first;
                while now / TIME == first / TIME {
                    other.0.wait(now, None).unwrap();
                    let Some(parked) = announce(&other.0) else { break };
                    now = parked;
                }
                // SAFETY: written before the event was set.
                assert_eq!(other.1.with(|data| unsafe { *data }), 7);
            });
            // SAFETY: nobody reads it before the event is set.
            shared.1.with_mut(|data| unsafe { *data = 7 });
            set(&shared.0);
            shared.0.fetch_and(!SET, AcqRel);
            selector.join().unwrap();
        });
    }

    /// Set and reset at once: who waited is let through, and sees what was done before.
    #[test]
    fn a_pulse_lets_waiters_through() {
        model(|| {
            let shared = Arc::new((Modelled::<AtomicU32>::new(0), UnsafeCell::new(0)));
            let other = shared.clone();
            let waiter = thread::spawn(move || {
                wait(&other.0, None).unwrap();
                // SAFETY: written before the event was set.
                assert_eq!(other.1.with(|data| unsafe { *data }), 7);
            });
            // SAFETY: nobody reads it before the event is set.
            shared.1.with_mut(|data| unsafe { *data = 7 });
            set(&shared.0);
            waiter.join().unwrap();
        });
    }
}
