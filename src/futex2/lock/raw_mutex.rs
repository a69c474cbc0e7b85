//! The word of a mutex: one byte.
//!
//! | bit | name | set by | means |
//! |---|---|---|---|
//! | 0 | `LOCKED` | who takes it | somebody holds it |
//! | 1 | `PARKED` | who goes to sleep | somebody may sleep who is nobody's duty yet |
//! | 2 | `HANDED` | a fair unlock | it is free, for one who has slept |
//! | 3 | `STARVED` | a sleeper passed over for long | the next unlock is a fair one |
//!
//! # Protocol
//!
//! A thread sleeps while the word is `LOCKED|PARKED`, perhaps with `STARVED`. Who has not slept yet
//! also sleeps while it is `HANDED|PARKED`, but briefly: a wake may count a sleeper that is none
//! of this word's, and then nobody takes what was handed.
//!
//! An unlock that finds `PARKED` takes it away and wakes one. Whoever was woken has a *duty*: others
//! may sleep, and no bit says so. It takes the lock with `PARKED`, or sets `PARKED` before it
//! sleeps again or gives up. Until then unlocks wake nobody, and are as quick as if nobody slept:
//! the running threads pass the lock among themselves and one woken thread at a time competes
//! with them, which is where the throughput comes from.
//!
//! So at any time, if somebody sleeps, then `PARKED` is set, or a woken thread has the duty, or
//! an unlock is about to wake.

use super::cell::{Cell, Slept, Spins, late};
use crate::error::Result;
use crate::futex2::{Deadline, Futex, Private, Scope};
use crate::sync::Ordering::{Acquire, Relaxed, Release};
use core::fmt;

pub(super) const LOCKED: u8 = 1;
pub(super) const PARKED: u8 = 2;
pub(super) const HANDED: u8 = 4;
const STARVED: u8 = 8;

/// A mutex without data: one byte, 0 being unlocked. [`Mutex`](super::Mutex) is this with its
/// data; lock_api's mutex can be, by the feature `lock_api`.
pub struct RawMutex<S: Scope = Private> {
    word: Futex<u8, S>,
}

impl<S: Scope> RawMutex<S> {
    /// An unlocked mutex.
    pub const fn new() -> Self {
        Self { word: Futex::new(0) }
    }

    /// Takes it, sleeping while it is held.
    #[inline]
    pub fn lock(&self) {
        if !try_quick(&self.word) {
            lock_slowly(&self.word);
        }
    }

    /// Takes it if it is free.
    #[inline]
    pub fn try_lock(&self) -> bool {
        try_quick(&self.word) || try_slowly(&self.word)
    }

    /// Takes it, sleeping until the deadline at the most.
    ///
    /// # Errors
    ///
    /// ETIMEDOUT at the deadline.
    #[inline]
    pub fn try_lock_until(&self, deadline: Deadline) -> Result<()> {
        if try_quick(&self.word) {
            return Ok(());
        }
        lock_contended(&self.word, Some(deadline), false)
    }

    /// Whether somebody holds it, or has been handed it.
    pub fn is_locked(&self) -> bool {
        self.word.load(Relaxed) & (LOCKED | HANDED) != 0
    }

    /// Gives it back.
    ///
    /// # Safety
    ///
    /// The caller must hold it.
    #[inline]
    pub unsafe fn unlock(&self) {
        unlock(&self.word, false);
    }

    /// Gives it to the longest sleeper, if there is one.
    ///
    /// # Safety
    ///
    /// The caller must hold it.
    #[inline]
    pub unsafe fn unlock_fair(&self) {
        unlock(&self.word, true);
    }

    pub(super) fn word(&self) -> &Futex<u8, S> {
        &self.word
    }
}

impl<S: Scope> Default for RawMutex<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: Scope> fmt::Debug for RawMutex<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawMutex").field("locked", &self.is_locked()).finish()
    }
}

/// Takes it if nothing else is to be said about it.
#[inline]
fn try_quick<C: Cell<u8>>(word: &C) -> bool {
    word.compare_exchange(0, LOCKED, Acquire, Relaxed).is_ok()
}

#[cold]
pub(super) fn try_slowly<C: Cell<u8>>(word: &C) -> bool {
    let mut seen = word.load(Relaxed);
    while seen & LOCKED == 0 {
        match word.compare_exchange(seen, (seen | LOCKED) & !HANDED, Acquire, Relaxed) {
            Ok(_) => return true,
            Err(now) => seen = now,
        }
    }
    false
}

#[cold]
#[inline(never)]
fn lock_slowly<C: Cell<u8>>(word: &C) {
    // Without a deadline there is nothing that fails on a byte.
    let _ = lock_contended(word, None, false);
}

/// Takes it. With a duty, see the head of the file.
pub(super) fn lock_contended<C: Cell<u8>>(
    word: &C,
    deadline: Option<Deadline>,
    mut duty: bool,
) -> Result<()> {
    let mut spins = Spins::new();
    let (mut since, mut has_slept) = (None, duty);
    loop {
        let seen = word.load(Relaxed);
        if seen & LOCKED == 0 && (seen & HANDED == 0 || has_slept) {
            let mut next = (seen | LOCKED) & !HANDED;
            if duty {
                next |= PARKED;
            }
            if word.compare_exchange(seen, next, Acquire, Relaxed).is_ok() {
                return Ok(());
            }
            continue;
        }
        if !spins.are_over() {
            continue;
        }
        let mut next = seen | PARKED;
        if has_slept && word.is_long(&mut since) {
            next |= STARVED;
        }
        if next != seen && word.compare_exchange(seen, next, Relaxed, Relaxed).is_err() {
            continue;
        }
        // The duty is the holder's now.
        duty = false;
        let until = if next & HANDED == 0 { deadline } else { Some(C::briefly(deadline)) };
        let slept = match word.wait(next, until) {
            Ok(slept) => slept,
            Err(_) if until != deadline && !deadline.is_some_and(|end| end.has_passed()) => {
                Slept::Beat
            }
            Err(error) => return Err(error),
        };
        // A word that never rests ends no wait that has a deadline.
        if slept == Slept::Changed && deadline.is_some_and(|deadline| deadline.has_passed()) {
            return Err(late("futex2::lock"));
        }
        duty |= slept.owes();
        has_slept |= duty;
        // It looks once and sleeps again: in rounds it would give its share of the CPU to those who
        // have the lock all the time.
    }
}

#[inline]
pub(super) fn unlock<C: Cell<u8>>(word: &C, fair: bool) {
    if word.compare_exchange(LOCKED, 0, Release, Relaxed).is_err() {
        unlock_slowly(word, fair);
    }
}

#[cold]
#[inline(never)]
fn unlock_slowly<C: Cell<u8>>(word: &C, fair: bool) {
    let mut seen = word.load(Relaxed);
    loop {
        let fair = fair || seen & STARVED != 0;
        let next = if fair && seen & PARKED != 0 { HANDED } else { 0 };
        match word.compare_exchange(seen, next, Release, Relaxed) {
            Ok(_) => break,
            Err(now) => seen = now,
        }
    }
    if seen & PARKED != 0 && word.wake(1) == 0 {
        // Nobody slept: whoever was about to has seen the word change, and may sleep since.
        if word.fetch_and(!HANDED, Relaxed) & (PARKED | LOCKED) == PARKED {
            word.wake(1);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::cell::hogged::Hogged;
    use super::*;
    use crate::sync::AtomicU8;

    /// However quickly the lock is taken again: the one who was woken in vain says so, and the next
    /// unlock is a hand-over.
    #[test]
    fn hogs_have_two_turns() {
        let cell = core::cell::OnceCell::<&Hogged<'_, AtomicU8>>::new();
        let seize = || {
            let word = &cell.get().unwrap().word;
            let seen = word.load(Relaxed);
            if seen & (LOCKED | HANDED) == 0 {
                word.store(seen | LOCKED, Relaxed);
            }
        };
        let again = || unlock(*cell.get().unwrap(), false);
        let hogged = Hogged::new(AtomicU8::new(LOCKED), &again, &seize);
        assert!(cell.set(&hogged).is_ok());
        lock_contended(&hogged, None, false).unwrap();
        assert_eq!(hogged.turns(), 2);
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::super::cell::model::Modelled;
    use super::*;
    use crate::sync::{AtomicU8, model};
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    struct Shared {
        word: Modelled<AtomicU8>,
        data: UnsafeCell<u32>,
    }

    fn lock(word: &Modelled<AtomicU8>) {
        if !try_quick(word) {
            lock_slowly(word);
        }
    }

    fn run(threads: u32, fair: bool) {
        model(move || {
            let shared =
                Arc::new(Shared { word: Modelled::<AtomicU8>::new(0), data: UnsafeCell::new(0) });
            let body = move |shared: &Shared| {
                lock(&shared.word);
                // SAFETY: the lock is held.
                shared.data.with_mut(|data| unsafe { *data += 1 });
                unlock(&shared.word, fair);
            };
            let others: Vec<_> = (1..threads)
                .map(|_| {
                    let shared = shared.clone();
                    thread::spawn(move || body(&shared))
                })
                .collect();
            body(&shared);
            others.into_iter().for_each(|other| other.join().unwrap());
            lock(&shared.word);
            // SAFETY: the lock is held.
            assert_eq!(shared.data.with(|data| unsafe { *data }), threads);
        });
    }

    /// Two threads exclude each other, and no sleeper stays behind.
    #[test]
    fn one_holder_at_a_time() {
        run(2, false);
    }

    /// Three: the duty of a woken thread is passed on.
    #[test]
    fn nobody_is_left_asleep() {
        run(3, false);
    }

    /// The same with hand-overs.
    #[test]
    fn hand_over() {
        run(3, true);
    }
}
