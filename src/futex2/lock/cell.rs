//! What the protocols of the locks run on: an atomic word with a queue.
//!
//! In the library that is a [`Futex`]; in a model it is an atomic of loom's and a queue behind a
//! lock of loom's, so that a lost wake is a deadlock that loom reports.

use crate::error::Result;
use crate::futex2::step::step;
use crate::futex2::{Deadline, Futex, Scope, Word};
use crate::sync::Ordering;
use crate::sys::futex::Clock;
use core::time::Duration;
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

/// How long a waiter in shared memory sleeps before it looks again. So the death of one that was
/// woken, or of one that was about to wake, delays the others by as much at the most.
pub(super) const BEAT: Duration = Duration::from_millis(50);

/// How long a waiter is passed over before the next unlock hands the lock to the longest sleeper.
///
/// A hand-over leaves the lock idle until the sleeper runs, for 5 to 50 µs. Between 30 µs and 1 ms
/// the throughput under contention was the same, and with 100 µs the shares were the most even.
const PATIENCE: Duration = Duration::from_micros(100);

/// How long a newcomer leaves a lock alone that was handed to a sleeper.
const RESPECT: Duration = Duration::from_millis(1);

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
}

/// An atomic word with a queue.
pub(super) trait Cell<T> {
    fn load(&self, order: Ordering) -> T;
    fn swap(&self, value: T, order: Ordering) -> T;
    fn compare_exchange(
        &self,
        current: T,
        new: T,
        success: Ordering,
        failure: Ordering,
    ) -> core::result::Result<T, T>;
    fn fetch_and(&self, bits: T, order: Ordering) -> T;
    fn fetch_add(&self, n: T, order: Ordering) -> T;
    /// Sleeps while the word holds `expected`; ETIMEDOUT at the deadline.
    fn wait(&self, expected: T, deadline: Option<Deadline>) -> Result<Slept>;
    /// Wakes up to `n`; how many, if they can be counted.
    fn wake(&self, n: u32) -> usize;
    /// Whether a wait that began at the first call with this `since` has been a long one.
    fn is_long(&self, since: &mut Option<Deadline>) -> bool {
        since.get_or_insert_with(|| Deadline::after(PATIENCE)).has_passed()
    }
    /// The deadline, or a moment from now if that is sooner.
    fn briefly(deadline: Option<Deadline>) -> Deadline {
        Deadline::or_sooner(deadline, RESPECT)
    }
}

impl<T: Word, S: Scope> Cell<T> for Futex<T, S> {
    #[inline]
    fn load(&self, order: Ordering) -> T {
        Self::load(self, order)
    }
    #[inline]
    fn swap(&self, value: T, order: Ordering) -> T {
        Self::swap(self, value, order)
    }
    #[inline]
    fn compare_exchange(
        &self,
        current: T,
        new: T,
        success: Ordering,
        failure: Ordering,
    ) -> core::result::Result<T, T> {
        Self::compare_exchange(self, current, new, success, failure)
    }
    #[inline]
    fn fetch_and(&self, bits: T, order: Ordering) -> T {
        Self::fetch_and(self, bits, order)
    }
    #[inline]
    fn fetch_add(&self, n: T, order: Ordering) -> T {
        Self::fetch_add(self, n, order)
    }
    fn wait(&self, expected: T, deadline: Option<Deadline>) -> Result<Slept> {
        sleep::<S>(deadline, |until| Self::wait(self, expected, until))
    }
    fn wake(&self, n: u32) -> usize {
        step();
        let woken = Self::wake(self, n);
        step();
        woken
    }
}

/// Sleeps by `wait`, in a shared scope for a beat at the most.
pub(super) fn sleep<S: Scope>(
    deadline: Option<Deadline>,
    wait: impl FnOnce(Option<Deadline>) -> Result<()>,
) -> Result<Slept> {
    let until = if S::PRIVATE { deadline } else { Some(beat(deadline)) };
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

/// The deadline, or the next beat if that is sooner.
fn beat(deadline: Option<Deadline>) -> Deadline {
    let left = deadline.map_or(BEAT, |deadline| {
        let now = clock_gettime(match deadline.clock() {
            Clock::Monotonic => ClockId::Monotonic,
            Clock::Realtime => ClockId::Realtime,
        });
        deadline.at().saturating_sub(Duration::try_from(now).unwrap_or(Duration::ZERO))
    });
    Deadline::after(left.min(BEAT))
}

/// ETIMEDOUT.
#[cold]
pub(super) fn late(operation: &'static str) -> crate::Error {
    crate::Error::new(operation, Errno::TIMEDOUT)
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

#[cfg(all(test, loom))]
pub(super) mod model {
    use super::*;
    use crate::sync::{AtomicU8, AtomicU32, AtomicU64, fence};
    use loom::sync::{Condvar, Mutex};

    /// A word of a model, with what the kernel does: compares and queues under a lock, wakes
    /// under it, with a barrier before each.
    pub(in super::super) struct Modelled<A> {
        word: A,
        queue: Mutex<Queue>,
        woken: Condvar,
        /// Whoever has slept has been passed over for long.
        impatient: bool,
    }

    #[derive(Default)]
    struct Queue {
        asleep: usize,
        wakes: usize,
    }

    impl<A> Modelled<A> {
        /// Moves `n` sleepers of another word to this one's queue.
        pub(in super::super) fn adopt(&self, n: usize) {
            self.queue.lock().unwrap().asleep += n;
        }

        /// One that was moved goes on sleeping.
        pub(in super::super) fn sleep_adopted(&self) {
            let mut queue = self.queue.lock().unwrap();
            while queue.wakes == 0 {
                queue = self.woken.wait(queue).unwrap();
            }
            queue.wakes -= 1;
        }
    }

    macro_rules! modelled {
        ($words:ident, $value:ty) => {
            impl Modelled<$words> {
                pub(in super::super) fn new(value: $value) -> Self {
                    Self {
                        word: $words::new(value).ready(),
                        queue: Mutex::new(Queue::default()),
                        woken: Condvar::new(),
                        impatient: false,
                    }
                }

                #[allow(dead_code, reason = "not for all sizes")]
                pub(in super::super) fn impatient(value: $value) -> Self {
                    Self { impatient: true, ..Self::new(value) }
                }
            }

            impl Cell<$value> for Modelled<$words> {
                fn load(&self, order: Ordering) -> $value {
                    self.word.load(order)
                }
                fn swap(&self, value: $value, order: Ordering) -> $value {
                    self.word.swap(value, order)
                }
                fn compare_exchange(
                    &self,
                    current: $value,
                    new: $value,
                    success: Ordering,
                    failure: Ordering,
                ) -> core::result::Result<$value, $value> {
                    self.word.compare_exchange(current, new, success, failure)
                }
                fn fetch_and(&self, bits: $value, order: Ordering) -> $value {
                    self.word.fetch_and(bits, order)
                }
                fn fetch_add(&self, n: $value, order: Ordering) -> $value {
                    self.word.fetch_add(n, order)
                }
                fn wait(&self, expected: $value, _: Option<Deadline>) -> Result<Slept> {
                    let mut queue = self.queue.lock().unwrap();
                    fence(Ordering::SeqCst);
                    if self.word.load(Ordering::Relaxed) != expected {
                        return Ok(Slept::Changed);
                    }
                    queue.asleep += 1;
                    while queue.wakes == 0 {
                        queue = self.woken.wait(queue).unwrap();
                    }
                    queue.wakes -= 1;
                    Ok(Slept::Woken)
                }
                fn wake(&self, n: u32) -> usize {
                    fence(Ordering::SeqCst);
                    let mut queue = self.queue.lock().unwrap();
                    let woken = queue.asleep.min(n as usize);
                    queue.asleep -= woken;
                    queue.wakes += woken;
                    if woken > 0 {
                        self.woken.notify_all();
                    }
                    woken
                }
                fn briefly(_: Option<Deadline>) -> Deadline {
                    Deadline::monotonic(Duration::MAX)
                }
                fn is_long(&self, _: &mut Option<Deadline>) -> bool {
                    self.impatient
                }
            }
        };
    }
    modelled!(AtomicU8, u8);
    modelled!(AtomicU32, u32);
    modelled!(AtomicU64, u64);
}

/// A word without other threads, but with hogs: whoever waits on it sees turns of those who have
/// the lock until one of them wakes it. `turn` gives the lock back; `seize` comes after each change
/// of the word, and takes the lock if it is free, before anybody else can do anything.
#[cfg(all(test, not(loom)))]
pub(super) mod hogged {
    use super::*;
    use crate::sync::{AtomicU8, AtomicU32};
    use core::cell::Cell as Plain;

    pub(in super::super) struct Hogged<'a, A> {
        pub(in super::super) word: A,
        turn: &'a dyn Fn(),
        seize: &'a dyn Fn(),
        turns: Plain<u32>,
        wakes: Plain<u32>,
    }

    impl<'a, A> Hogged<'a, A> {
        pub(in super::super) fn new(word: A, turn: &'a dyn Fn(), seize: &'a dyn Fn()) -> Self {
            Self { word, turn, seize, turns: Plain::new(0), wakes: Plain::new(0) }
        }

        /// How many turns they had.
        pub(in super::super) fn turns(&self) -> u32 {
            self.turns.get()
        }
    }

    macro_rules! hogged {
        ($words:ident, $value:ty) => {
            impl Cell<$value> for Hogged<'_, $words> {
                fn load(&self, order: Ordering) -> $value {
                    self.word.load(order)
                }
                fn swap(&self, value: $value, order: Ordering) -> $value {
                    let before = self.word.swap(value, order);
                    (self.seize)();
                    before
                }
                fn compare_exchange(
                    &self,
                    current: $value,
                    new: $value,
                    success: Ordering,
                    failure: Ordering,
                ) -> core::result::Result<$value, $value> {
                    let before = self.word.compare_exchange(current, new, success, failure);
                    (self.seize)();
                    before
                }
                fn fetch_and(&self, bits: $value, order: Ordering) -> $value {
                    let before = self.word.fetch_and(bits, order);
                    (self.seize)();
                    before
                }
                fn fetch_add(&self, n: $value, order: Ordering) -> $value {
                    let before = self.word.fetch_add(n, order);
                    (self.seize)();
                    before
                }
                fn wait(&self, expected: $value, _: Option<Deadline>) -> Result<Slept> {
                    assert_eq!(self.word.load(Ordering::Relaxed), expected);
                    let wakes = self.wakes.get();
                    while self.wakes.get() == wakes {
                        self.turns.set(self.turns.get() + 1);
                        assert!(self.turns.get() < 10, "starved");
                        (self.turn)();
                    }
                    Ok(Slept::Woken)
                }
                fn wake(&self, _: u32) -> usize {
                    self.wakes.set(self.wakes.get() + 1);
                    1
                }
                fn is_long(&self, _: &mut Option<Deadline>) -> bool {
                    true
                }
            }
        };
    }
    hogged!(AtomicU8, u8);
    hogged!(AtomicU32, u32);
}
