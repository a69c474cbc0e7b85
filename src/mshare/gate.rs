//! A lock between the threads of one process that a forked child does not inherit.
//!
//! # Protocol
//!
//! | word | meaning |
//! |---|---|
//! | 0 | free |
//! | process id | a thread of that process is inside |
//! | the same with the highest bit | and others may sleep |
//!
//! A child that was forked while a thread of its parent was inside finds its parent's process id.
//! That thread is not in the child, and what it left half done is no value: the child replaces
//! it without a look at it.

use crate::sync::{AtomicU32, Ordering};
use crate::sys::futex::{Clock, wait_bitset, wake_bitset};
use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};

const SLEEPERS: u32 = 1 << 31;

/// What came of an attempt to take the word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempt {
    Taken,
    /// It was a forefather's.
    Inherited,
    /// One of us is inside; sleep while the word is this.
    Busy(u32),
}

/// One attempt to set the word to `mine`, which is `pid`, perhaps with [`SLEEPERS`].
fn attempt(word: &AtomicU32, pid: u32, mine: u32) -> Attempt {
    let (acquire, relaxed) = (Ordering::Acquire, Ordering::Relaxed);
    let mut seen = word.load(relaxed);
    loop {
        let (wanted, outcome) = match seen & !SLEEPERS {
            0 => (mine, Attempt::Taken),
            holder if holder != pid => (mine, Attempt::Inherited),
            _ => (seen | SLEEPERS, Attempt::Busy(seen | SLEEPERS)),
        };
        if seen == wanted {
            return outcome;
        }
        match word.compare_exchange(seen, wanted, acquire, relaxed) {
            Ok(_) => return outcome,
            Err(now) => seen = now,
        }
    }
}

/// Gives it back; whether somebody may sleep.
fn give_back(word: &AtomicU32) -> bool {
    word.swap(0, Ordering::Release) & SLEEPERS != 0
}

/// A value for one thread at a time.
#[derive(Debug)]
pub(super) struct Gate<T> {
    word: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: the word lets one thread in at a time.
unsafe impl<T: Send> Send for Gate<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Gate<T> {}

impl<T> Gate<T> {
    pub(super) const fn new(value: T) -> Self {
        Self { word: AtomicU32::new(0), value: UnsafeCell::new(value) }
    }

    /// Waits until no other thread of this process is inside. `anew` makes the value of a forked
    /// child that cannot have its parent's.
    pub(super) fn enter(&self, anew: impl FnOnce() -> T) -> Inside<'_, T> {
        let pid = std::process::id();
        let mut mine = pid;
        loop {
            match attempt(&self.word, pid, mine) {
                Attempt::Taken => break,
                Attempt::Inherited => {
                    // SAFETY: ours alone now; what was there is not looked at.
                    unsafe { self.value.get().write(anew()) };
                    break;
                }
                Attempt::Busy(seen) => {
                    // Who slept does not know whether others still do.
                    mine = pid | SLEEPERS;
                    let word = core::ptr::from_ref(&self.word).cast();
                    let _ = wait_bitset(word, true, seen, Clock::Monotonic, None, u32::MAX);
                }
            }
        }
        Inside { gate: self }
    }
}

impl<T> Gate<T> {
    /// The same, if nobody is inside.
    pub(super) fn try_enter(&self, anew: impl FnOnce() -> T) -> Option<Inside<'_, T>> {
        let pid = std::process::id();
        match self.word.load(Ordering::Relaxed) & !SLEEPERS {
            holder if holder == pid => None,
            // A race that is lost here costs a short sleep.
            _ => Some(self.enter(anew)),
        }
    }
}

/// Inside, until this is dropped.
#[derive(Debug)]
pub(super) struct Inside<'a, T> {
    gate: &'a Gate<T>,
}

impl<T> Deref for Inside<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: we are the one inside.
        unsafe { &*self.gate.value.get() }
    }
}

impl<T> DerefMut for Inside<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: we are the one inside.
        unsafe { &mut *self.gate.value.get() }
    }
}

impl<T> Drop for Inside<'_, T> {
    fn drop(&mut self) {
        if give_back(&self.gate.word) {
            let word = core::ptr::from_ref(&self.gate.word).cast();
            let _ = wake_bitset(word, true, 1, u32::MAX);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time() {
        let gate = Gate::new(0_u64);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        let mut inside = gate.enter(|| unreachable!());
                        let seen = *inside;
                        core::hint::spin_loop();
                        *inside = seen + 1;
                    }
                });
            }
        });
        assert_eq!(*gate.enter(|| unreachable!()), 8000);
    }

    #[test]
    fn a_forefathers_is_replaced() {
        let gate = Gate::new(String::from("half"));
        gate.word.store(1 | SLEEPERS, Ordering::Relaxed);
        assert_eq!(*gate.enter(|| "anew".into()), "anew");
        assert_eq!(*gate.enter(|| unreachable!()), "anew");
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::sync::model;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    /// One inside, and each sees what the one before did. Fails when the acquire of `attempt`
    /// or the release of `give_back` is relaxed.
    #[test]
    fn one_inside() {
        model(|| {
            let shared = Arc::new((AtomicU32::new(0).ready(), UnsafeCell::new(0)));
            let enter = |shared: &(AtomicU32, UnsafeCell<u64>)| {
                if attempt(&shared.0, 7, 7) == Attempt::Taken {
                    shared.1.with_mut(|value| unsafe { *value += 1 });
                    give_back(&shared.0);
                }
            };
            let other = thread::spawn({
                let shared = shared.clone();
                move || enter(&shared)
            });
            enter(&shared);
            other.join().unwrap();
        });
    }

    /// Who found it busy is told of by whoever leaves. Fails when `attempt` does not say that
    /// it sleeps.
    #[test]
    fn sleepers_are_known() {
        model(|| {
            let word = Arc::new(AtomicU32::new(0).ready());
            assert_eq!(attempt(&word, 7, 7), Attempt::Taken);
            let other = thread::spawn({
                let word = word.clone();
                move || attempt(&word, 7, 7)
            });
            let told = give_back(&word);
            let outcome = other.join().unwrap();
            assert_eq!(told, matches!(outcome, Attempt::Busy(_)));
        });
    }
}
