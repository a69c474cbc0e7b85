//! How all locks wait: how long they look before they sleep, how they sleep, and when they have
//! waited long enough.

use crate::error::{Error, Result};
use crate::futex2::Deadline;
use crate::futex2::step::step;
use core::time::Duration;
use rustix::io::Errno;

/// How long a waiter in shared memory sleeps before it looks again. So the death of one that was
/// woken, or of one that was about to wake, delays the others by as much at the most.
pub(super) const BEAT: Duration = Duration::from_millis(50);

/// How long a waiter is passed over before it asks for the lock to be handed over.
///
/// A hand-over leaves the lock idle until the sleeper runs, for 5 to 50 µs. Between 30 µs and 1 ms
/// the throughput under contention was the same, and with 100 µs the shares were the most even.
pub(super) const PASSED_OVER: Duration = Duration::from_micros(100);

/// How long a newcomer leaves a lock alone that was handed to a sleeper.
pub(super) const RESPECT: Duration = Duration::from_millis(1);

/// How long a caller waits.
#[derive(Debug, Clone, Copy)]
pub(super) enum Patience {
    None,
    Until(Deadline),
    Endless,
}

/// How a sleep ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slept {
    /// Woken, or for no reason.
    Woken,
    /// The word has another value.
    Changed,
    /// It is time to look again.
    Beat,
}

impl Slept {
    /// Whether a wake may have been spent on this waiter, who then has to see to the next one.
    pub(super) fn owes(self) -> bool {
        self != Self::Changed
    }

    /// The same, unless it is late: a word that never rests ends no wait that has a deadline.
    ///
    /// # Errors
    ///
    /// ETIMEDOUT if the word has changed, so that nothing is owed, and the deadline has passed.
    pub(super) fn in_time(self, deadline: Option<Deadline>) -> Result<Self> {
        if self == Self::Changed && deadline.is_some_and(|deadline| deadline.has_passed()) {
            return Err(late("futex2::wait"));
        }
        Ok(self)
    }
}

/// Sleeps by `wait` until the deadline, and no longer than a nap.
///
/// # Errors
///
/// ETIMEDOUT at the deadline, and what `wait` fails with; that the word has changed is no error.
pub(super) fn sleep(
    deadline: Option<Deadline>,
    nap: Option<Duration>,
    wait: impl FnOnce(Option<Deadline>) -> Result<()>,
) -> Result<Slept> {
    let until = match (nap, deadline) {
        (None, deadline) => deadline,
        (Some(nap), deadline) => Some(Deadline::or_sooner(deadline, nap)),
    };
    step();
    let slept = wait(until);
    step();
    match slept {
        Ok(()) => Ok(Slept::Woken),
        Err(error) if error.is_would_block() => Ok(Slept::Changed),
        Err(error)
            if error.is_timed_out() && !deadline.is_some_and(|deadline| deadline.has_passed()) =>
        {
            Ok(Slept::Beat)
        }
        Err(error) => Err(error),
    }
}

/// ETIMEDOUT.
#[cold]
pub(super) fn late(operation: &'static str) -> Error {
    Error::new(operation, Errno::TIMEDOUT)
}

/// Repeats a wait without a deadline until it succeeds.
///
/// The kernel has no reason to refuse one. But a filter of system calls may, or memory is gone;
/// and a lock that nobody has taken must not seem taken.
#[cold]
#[inline(never)]
pub(super) fn without_fail(mut wait: impl FnMut() -> Result<()>) {
    while wait().is_err() {
        std::thread::sleep(RESPECT);
    }
}

/// Rounds of looking before sleeping.
///
/// Each round gives the CPU to others, if only to enter the kernel and to come back: 0.1 to 0.3 µs
/// in which the word is left alone. A holder on another CPU gets some ten turns out of that, with
/// the line in its cache; one that waits for this CPU gets it at once. Pauses before (parking_lot
/// has 3 rounds of 2, 4 and 8, then 7 like these) look at the word more often and move the
/// line. The mutex under contention, 2 to 16 threads on 2 CPUs, time of a turn: with those
/// pauses 1.01 to 1.09 times as much, up to 1.4 times while others used the machine; std's mutex,
/// which has pauses alone, 1.4 to 2.4 times. 7 or 20 rounds were within 6 % of 10.
#[derive(Debug)]
pub(super) struct Spins(u32);

impl Spins {
    const MOST: u32 = if cfg!(all(test, loom)) { 0 } else { 10 };

    pub(super) fn new() -> Self {
        Self(0)
    }

    /// None: for those who do not wait.
    pub(super) fn none() -> Self {
        Self(Self::MOST)
    }

    /// Whether it is time to sleep; otherwise lets some time pass.
    pub(super) fn are_over(&mut self) -> bool {
        if self.0 >= Self::MOST {
            return true;
        }
        self.0 += 1;
        rustix::thread::sched_yield();
        false
    }
}
