//! What the protocols of the locks run on: an atomic word with a queue.
//!
//! In the library that is a [`Futex`]; in a model it is an atomic of loom's and a queue behind a
//! lock of loom's, so that a lost wake is a deadlock that loom reports.

use super::waiting::{BEAT, PASSED_OVER, Slept, sleep};
use crate::error::Result;
use crate::futex2::step::step;
use crate::futex2::{Deadline, Futex, Scope, Word};
use crate::sync::Ordering;
use core::time::Duration;

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
    /// Sleeps while the word holds `expected`, no longer than a nap. Without a nap, in shared memory
    /// for a beat at the most.
    ///
    /// # Errors
    ///
    /// ETIMEDOUT at the deadline, be the word what it may, unless a wake may have been spent on
    /// this waiter.
    fn nap(&self, expected: T, deadline: Option<Deadline>, nap: Option<Duration>) -> Result<Slept>;
    /// The same without a nap.
    fn wait(&self, expected: T, deadline: Option<Deadline>) -> Result<Slept> {
        self.nap(expected, deadline, None)
    }
    /// Wakes up to `n`; how many. Sleepers of other words may be among them, who were woken by
    /// mistake.
    fn wake(&self, n: u32) -> usize;
    /// The same; whether a sleeper of this word surely was. It may say no though one was.
    fn wake_own(&self, n: u32) -> bool;
    /// Whether a wait that began at the first call with this `since` has been a long one.
    fn is_long(&self, since: &mut Option<Deadline>) -> bool {
        since.get_or_insert_with(|| Deadline::after(PASSED_OVER)).has_passed()
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
    fn nap(&self, expected: T, deadline: Option<Deadline>, nap: Option<Duration>) -> Result<Slept> {
        let nap = if S::PRIVATE { nap } else { nap.or(Some(BEAT)) };
        sleep(deadline, nap, |until| Self::wait(self, expected, until))?.in_time(deadline)
    }
    fn wake(&self, n: u32) -> usize {
        step();
        let woken = Self::wake(self, n);
        step();
        woken
    }
    fn wake_own(&self, n: u32) -> bool {
        step();
        let woken = Self::wake_own(self, n);
        step();
        woken != 0
    }
}

#[cfg(all(test, loom))]
pub(super) mod model {
    use super::super::waiting::late;
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
        /// Every sleep is a nap, as in shared memory.
        shared: bool,
        /// What a wake answers, beside those that it has woken.
        counted: Counted,
    }

    /// How well wakes are counted.
    #[derive(Clone, Copy, PartialEq)]
    pub(in super::super) enum Counted {
        Exactly,
        /// With a sleeper of another word.
        WithOthers,
        /// It cannot be told whose sleepers they were.
        NotOwn,
    }

    #[derive(Default)]
    struct Queue {
        asleep: usize,
        wakes: usize,
        /// Naps that are over, of whoever takes one, and deadlines.
        naps: usize,
        deadlines: usize,
    }

    impl<A> Modelled<A> {
        pub(in super::super) fn impatient(self) -> Self {
            Self { impatient: true, ..self }
        }

        pub(in super::super) fn shared(self) -> Self {
            Self { shared: true, ..self }
        }

        pub(in super::super) fn counted(self, counted: Counted) -> Self {
            Self { counted, ..self }
        }

        /// The next `n` naps are over, be they begun or not.
        pub(in super::super) fn end_naps(&self, n: usize) {
            self.queue.lock().unwrap().naps += n;
            self.woken.notify_all();
        }

        /// The same of deadlines.
        pub(in super::super) fn end_deadlines(&self, n: usize) {
            self.queue.lock().unwrap().deadlines += n;
            self.woken.notify_all();
        }

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
                        shared: false,
                        counted: Counted::Exactly,
                    }
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
                fn nap(
                    &self,
                    expected: $value,
                    deadline: Option<Deadline>,
                    nap: Option<Duration>,
                ) -> Result<Slept> {
                    let mut queue = self.queue.lock().unwrap();
                    fence(Ordering::SeqCst);
                    if self.word.load(Ordering::Relaxed) != expected {
                        return Ok(Slept::Changed);
                    }
                    queue.asleep += 1;
                    loop {
                        if queue.wakes > 0 {
                            queue.wakes -= 1;
                            return Ok(Slept::Woken);
                        }
                        if deadline.is_some() && queue.deadlines > 0 {
                            queue.deadlines -= 1;
                            queue.asleep -= 1;
                            return Err(late("futex2::wait"));
                        }
                        if (nap.is_some() || self.shared) && queue.naps > 0 {
                            queue.naps -= 1;
                            queue.asleep -= 1;
                            return Ok(Slept::Beat);
                        }
                        queue = self.woken.wait(queue).unwrap();
                    }
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
                    woken + usize::from(self.counted == Counted::WithOthers)
                }
                fn wake_own(&self, n: u32) -> bool {
                    let others = usize::from(self.counted == Counted::WithOthers);
                    self.wake(n) > others && self.counted != Counted::NotOwn
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
        asleep: usize,
    }

    impl<'a, A> Hogged<'a, A> {
        pub(in super::super) fn new(word: A, turn: &'a dyn Fn(), seize: &'a dyn Fn()) -> Self {
            Self { word, turn, seize, turns: Plain::new(0), wakes: Plain::new(0), asleep: 1 }
        }

        /// Each wake finds nobody.
        pub(in super::super) fn nobody_sleeps(self) -> Self {
            Self { asleep: 0, ..self }
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
                fn nap(
                    &self,
                    expected: $value,
                    _: Option<Deadline>,
                    _: Option<Duration>,
                ) -> Result<Slept> {
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
                    self.asleep
                }
                fn wake_own(&self, n: u32) -> bool {
                    self.wake(n) != 0
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
