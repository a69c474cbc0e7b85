//! A mutex as a source of [`select`](super::select()): it is ready when it is free.
//!
//! A thread that selects announces itself as any sleeper does, by `PARKED`; so an unlock may
//! spend its wake on it, and with that it has the duty that `raw_mutex.rs` tells of: others may
//! sleep, and no bit says so. It need not take the lock. Before it goes on with anything it
//! therefore gives the duty away: to the holder, if there is one by now, or to the next sleeper,
//! whom it wakes.

use super::cell::Cell;
use super::raw_mutex::{HANDED, LOCKED, PARKED};
use super::select::{Announced, Inside, Ready, Source};
use super::{Mutex, RawMutex};
use crate::futex2::Scope;
use crate::sync::Ordering::Relaxed;

impl<S: Scope> Source for RawMutex<S> {
    fn ready(&self, _: Inside) -> Ready<'_> {
        match announce(self.word()) {
            Some(expected) => Ready::Not(self.word().waiter(expected), Announced::NONE),
            None => Ready::Now,
        }
    }

    fn pass_on(&self, _: Inside) {
        pass_on(self.word());
    }
}

impl<T: ?Sized, S: Scope> Source for Mutex<T, S> {
    fn ready(&self, inside: Inside) -> Ready<'_> {
        self.raw().ready(inside)
    }

    fn pass_on(&self, inside: Inside) {
        self.raw().pass_on(inside);
    }
}

/// Says that somebody will sleep; `None` if it is free.
fn announce<C: Cell<u8>>(word: &C) -> Option<u8> {
    let mut seen = word.load(Relaxed);
    while seen & LOCKED != 0 {
        let parked = seen | PARKED;
        if parked == seen {
            return Some(parked);
        }
        match word.compare_exchange(seen, parked, Relaxed, Relaxed) {
            Ok(_) => return Some(parked),
            Err(now) => seen = now,
        }
    }
    None
}

/// Gives a duty away.
fn pass_on<C: Cell<u8>>(word: &C) {
    let mut seen = word.load(Relaxed);
    loop {
        // What was handed to this thread is for all again.
        let next = if seen & LOCKED != 0 { seen | PARKED } else { seen & !HANDED };
        if next == seen {
            break;
        }
        match word.compare_exchange(seen, next, Relaxed, Relaxed) {
            Ok(_) => break,
            Err(now) => seen = now,
        }
    }
    if seen & LOCKED == 0 {
        word.wake(1);
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::super::cell::model::Modelled;
    use super::super::raw_mutex::{lock_contended, try_slowly, unlock};
    use super::*;
    use crate::sync::{AtomicU8, model};
    use loom::sync::Arc;
    use loom::thread;

    fn select(word: &Modelled<AtomicU8>) {
        let mut slept = false;
        while let Some(expected) = announce(word) {
            word.wait(expected, None).unwrap();
            slept = true;
        }
        if slept {
            pass_on(word);
        }
    }

    fn run(fair: bool, takes: bool) {
        model(move || {
            let word = Arc::new(Modelled::<AtomicU8>::new(LOCKED));
            let other = word.clone();
            let locker = thread::spawn(move || {
                lock_contended(&*other, None, false).unwrap();
                unlock(&*other, fair);
            });
            let other = word.clone();
            let selector = thread::spawn(move || {
                loop {
                    select(&other);
                    if !takes {
                        return;
                    }
                    if try_slowly(&*other) {
                        return unlock(&*other, false);
                    }
                }
            });
            unlock(&*word, fair);
            // A third one is faster.
            if try_slowly(&*word) {
                unlock(&*word, false);
            }
            locker.join().unwrap();
            selector.join().unwrap();
        });
    }

    /// A thread is woken and does something else: the sleeper gets the lock.
    #[test]
    fn a_wake_is_passed_on() {
        run(false, false);
    }

    /// The same with what was handed over.
    #[test]
    fn a_hand_over_is_passed_on() {
        run(true, false);
    }

    /// It takes the lock, without the bit that a woken thread sets: the sleeper gets it, too.
    #[test]
    fn a_lock_that_was_selected() {
        run(false, true);
    }
}
