//! The word of a mutex: one byte.
//!
//! | bit | name | set by | means |
//! |---|---|---|---|
//! | 0 | `LOCKED` | who takes it | somebody holds it |
//! | 1 | `PARKED` | who goes to sleep | somebody may sleep who is nobody's duty yet |
//! | 2 | `HANDED` | a fair unlock | it is free, kept for those who have slept |
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

use super::cell::Cell;
use super::waiting::{RESPECT, Spins, without_fail};
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
#[repr(transparent)]
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

    /// Whether somebody holds it, or it is kept for one who has slept.
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

    /// Gives it back for those who sleep, if there are any: one of them is woken, and it is kept for
    /// those who have slept. Newcomers wait for that, but for no longer than 1 ms;
    /// [`try_lock`](Self::try_lock) may still take it.
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
    without_fail(|| lock_contended(word, None, false));
}

const OPERATION: &str = "futex2::Mutex::lock";

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
        let nap = (next & HANDED != 0).then_some(RESPECT);
        let slept = word.nap(next, deadline, nap).map_err(|error| error.within(OPERATION))?;
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
    let next = loop {
        let fair = fair || seen & STARVED != 0;
        let next = if fair && seen & PARKED != 0 { HANDED } else { 0 };
        match word.compare_exchange(seen, next, Release, Relaxed) {
            Ok(_) => break next,
            Err(now) => seen = now,
        }
    };
    // From here on the next holder may have freed the word: an ordinary unlock does not write to it.
    if seen & PARKED != 0 && word.wake(1) == 0 && next == HANDED {
        withdraw(word);
    }
}

/// What was handed over is for all, as nobody slept: whoever was about to has seen the word change,
/// and may sleep since because of that.
fn withdraw<C: Cell<u8>>(word: &C) {
    let mut seen = HANDED;
    while seen & (LOCKED | HANDED) == HANDED {
        match word.compare_exchange(seen, seen & !HANDED, Relaxed, Relaxed) {
            Ok(_) => {
                if seen & PARKED != 0 {
                    word.wake(1);
                }
                return;
            }
            Err(now) => seen = now,
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

    /// Whoever takes the lock that was given back may free it: from then on it is left alone.
    #[test]
    fn an_unlock_is_the_last_write() {
        for seen in [LOCKED, LOCKED | PARKED, LOCKED | PARKED | STARVED] {
            let cell = core::cell::OnceCell::<&Hogged<'_, AtomicU8>>::new();
            let seize = || {
                let word = &cell.get().unwrap().word;
                if word.load(Relaxed) & LOCKED == 0 {
                    // What somebody else keeps there.
                    word.store(u8::MAX, Relaxed);
                }
            };
            let hogged = Hogged::new(AtomicU8::new(seen), &|| {}, &seize).nobody_sleeps();
            assert!(cell.set(&hogged).is_ok());
            unlock(&hogged, false);
            assert_eq!(hogged.word.load(Relaxed), u8::MAX, "{seen:#x}");
        }
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::super::cell::model::{Counted, Modelled};
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
        run_with(|| Modelled::<AtomicU8>::new(0), threads, fair);
    }

    fn run_with(word: fn() -> Modelled<AtomicU8>, threads: u32, fair: bool) {
        model(move || {
            let shared = Arc::new(Shared { word: word(), data: UnsafeCell::new(0) });
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

    /// A hand-over wakes a sleeper that is none of this word's, and nobody takes what was handed: who
    /// left it alone has it after a moment.
    #[test]
    fn handed_to_nobody() {
        let word = || {
            let word = Modelled::<AtomicU8>::new(0).counted(Counted::WithOthers);
            word.end_naps(2);
            word
        };
        run_with(word, 2, true);
    }

    /// Whoever is passed over asks for a hand-over, among three.
    #[test]
    fn passed_over() {
        run_with(|| Modelled::<AtomicU8>::new(0).impatient(), 3, false);
    }

    /// Of two that sleep one leaves at its deadline, or has the lock: the other one has it, too.
    #[test]
    fn one_gives_up() {
        for fair in [false, true] {
            model(move || {
                let word = Arc::new(Modelled::<AtomicU8>::new(LOCKED));
                let other = word.clone();
                let patient = thread::spawn(move || {
                    lock(&other);
                    unlock(&*other, fair);
                });
                let other = word.clone();
                let late = thread::spawn(move || {
                    let far = Deadline::monotonic(core::time::Duration::MAX);
                    if lock_contended(&*other, Some(far), false).is_ok() {
                        unlock(&*other, fair);
                    }
                });
                word.end_deadlines(1);
                unlock(&*word, fair);
                patient.join().unwrap();
                late.join().unwrap();
                assert_eq!(word.load(Relaxed) & (LOCKED | HANDED), 0);
            });
        }
    }
}
