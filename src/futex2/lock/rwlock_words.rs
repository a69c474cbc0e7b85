//! The words of a readers-writer lock.
//!
//! `state`:
//!
//! | bits | mean |
//! |---|---|
//! | 0 to 26 | readers, or all ones: a writer |
//! | 27, `LATE_WRITER` | a writer that sleeps has been passed over for long |
//! | 28, `LATE_READERS` | the same of readers |
//! | 29, `HANDED` | free, kept for those who have slept; or held by readers, and whoever has slept may join them |
//! | 30, `READERS` | readers may sleep, on `state` |
//! | 31, `WRITERS` | writers may sleep, on `turn` |
//!
//! `turn` counts how often a writer was called.
//!
//! The protocol is that of std's futex lock: while a writer may sleep, no new reader enters, so
//! readers cannot starve writers; the last one out calls one writer, and if none slept, all readers.
//! Three things are added. A writer that gives up at its deadline takes its bit away and wakes
//! whom it held up. A reader that has slept for a beat in shared memory takes a lock that
//! nobody holds, whatever the bits say: the writer that was called may be dead.
//!
//! And whoever is passed over for long says so; then the last one out hands the lock over: to
//! the readers if they are late, otherwise to a writer. Who has not slept leaves it alone, but
//! not for long, as with a mutex. A writer takes the bit away with the lock; readers leave
//! it, so that all that were woken come in, and the last one out takes it away.

use super::cell::Cell;
use super::waiting::{RESPECT, Slept, Spins, late};
use crate::error::Result;
use crate::futex2::Deadline;
use crate::futex2::step::step;
use crate::sync::Ordering::{Acquire, Relaxed, Release};

pub(super) const MASK: u32 = (1 << 27) - 1;
pub(super) const WRITER: u32 = MASK;
const MOST_READERS: u32 = MASK - 1;
const LATE_WRITER: u32 = 1 << 27;
const LATE_READERS: u32 = 1 << 28;
pub(super) const HANDED: u32 = 1 << 29;
const READERS: u32 = 1 << 30;
const WRITERS: u32 = 1 << 31;

const READ: &str = "futex2::RwLock::read";
const WRITE: &str = "futex2::RwLock::write";

/// The protocol over borrowed words.
pub(super) struct Words<'a, C> {
    pub(super) state: &'a C,
    pub(super) turn: &'a C,
}

/// Whether a reader may enter at once.
fn admits(state: u32) -> bool {
    state & (READERS | WRITERS) == 0 && state & MASK < MOST_READERS && !is_reserved(state)
}

/// Whether it is free, but kept for those who have slept.
fn is_reserved(state: u32) -> bool {
    state & (MASK | HANDED) == HANDED
}

impl<C: Cell<u32>> Words<'_, C> {
    #[inline]
    pub(super) fn read_quickly(&self) -> bool {
        let mut seen = self.state.load(Relaxed);
        while admits(seen) {
            match self.state.compare_exchange(seen, seen + 1, Acquire, Relaxed) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
        false
    }

    /// Takes it if nobody has it, whoever sleeps: what was handed to one that died is not lost for
    /// those who only try.
    #[cold]
    pub(super) fn read_freed(&self) -> bool {
        let mut seen = self.state.load(Relaxed);
        while seen & MASK == 0 {
            match self.state.compare_exchange(seen, seen + 1, Acquire, Relaxed) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
        false
    }

    #[cold]
    #[inline(never)]
    pub(super) fn read_slowly(&self, deadline: Option<Deadline>) -> Result<()> {
        let mut spins = Spins::new();
        let (mut since, mut has_slept, mut beaten) = (None, false, false);
        loop {
            let seen = self.state.load(Relaxed);
            let handed = has_slept && seen & HANDED != 0 && seen & MASK < MOST_READERS;
            if admits(seen) || handed || (beaten && seen & MASK == 0) {
                if self.state.compare_exchange(seen, seen + 1, Acquire, Relaxed).is_ok() {
                    return Ok(());
                }
                continue;
            }
            if seen & (READERS | WRITERS) == 0 && !spins.are_over() {
                continue;
            }
            let mut parked = seen | READERS;
            if has_slept && self.state.is_long(&mut since) {
                parked |= LATE_READERS;
            }
            if parked != seen
                && self.state.compare_exchange(seen, parked, Relaxed, Relaxed).is_err()
            {
                continue;
            }
            let nap = is_reserved(seen).then_some(RESPECT);
            let slept =
                self.state.nap(parked, deadline, nap).map_err(|error| error.within(READ))?;
            beaten = slept == Slept::Beat;
            has_slept |= slept.owes();
            spins = Spins::new();
        }
    }

    /// Takes it if nobody has it and nobody sleeps. A look before would cost as much again.
    #[inline]
    pub(super) fn write_quickly(&self) -> bool {
        self.state.compare_exchange(0, WRITER, Acquire, Relaxed).is_ok()
    }

    #[inline]
    pub(super) fn try_write(&self) -> bool {
        let mut seen = self.state.load(Relaxed);
        while seen & MASK == 0 {
            let next = (seen | WRITER) & !HANDED;
            match self.state.compare_exchange(seen, next, Acquire, Relaxed) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
        false
    }

    #[cold]
    #[inline(never)]
    pub(super) fn write_slowly(&self, deadline: Option<Deadline>) -> Result<()> {
        let mut spins = Spins::new();
        // Whoever has slept cannot know whether others do.
        let mut others = 0;
        let (mut since, mut has_slept) = (None, false);
        loop {
            let seen = self.state.load(Relaxed);
            if seen & MASK == 0 && (has_slept || !is_reserved(seen)) {
                let next = (seen | WRITER | others) & !HANDED;
                if self.state.compare_exchange(seen, next, Acquire, Relaxed).is_ok() {
                    return Ok(());
                }
                continue;
            }
            if seen & WRITERS == 0 && !spins.are_over() {
                continue;
            }
            let mut parked = seen | WRITERS;
            if has_slept && self.state.is_long(&mut since) {
                parked |= LATE_WRITER;
            }
            if parked != seen
                && self.state.compare_exchange(seen, parked, Relaxed, Relaxed).is_err()
            {
                continue;
            }
            others = WRITERS;
            // A call that comes after the look at the state changes the turn.
            let turn = self.turn.load(Acquire);
            let seen = self.state.load(Relaxed);
            let reserved = is_reserved(seen) && !has_slept;
            if (seen & MASK == 0 && !reserved) || seen & WRITERS == 0 {
                if deadline.is_some_and(|deadline| deadline.has_passed()) && seen & MASK != 0 {
                    self.give_up();
                    return Err(late(WRITE));
                }
                continue;
            }
            match self.turn.nap(turn, deadline, reserved.then_some(RESPECT)) {
                Ok(slept) => has_slept |= slept.owes(),
                Err(error) => {
                    self.give_up();
                    return Err(error.within(WRITE));
                }
            }
            spins = Spins::new();
        }
    }

    /// A writer leaves without the lock: those whom its bit held up look again, and announce
    /// themselves anew.
    fn give_up(&self) {
        let seen = self.state.fetch_and(!(READERS | WRITERS | HANDED), Relaxed);
        step();
        if seen & WRITERS != 0 {
            self.call();
        }
        if seen & READERS != 0 {
            self.state.wake(u32::MAX);
        }
    }

    #[inline]
    pub(super) fn unlock_read(&self) {
        let left = self.state.fetch_add(1_u32.wrapping_neg(), Release).wrapping_sub(1);
        if left & MASK == 0 && left != 0 {
            self.next(left, 0);
        }
    }

    #[inline]
    pub(super) fn unlock_write(&self) {
        if let Err(seen) = self.state.compare_exchange(WRITER, 0, Release, Relaxed) {
            self.next(seen, WRITER);
        }
    }

    pub(super) fn downgrade(&self) {
        let now = self.state.fetch_add((WRITER - 1).wrapping_neg(), Release);
        let now = now.wrapping_sub(WRITER - 1);
        // With a writer in line readers stay where they are.
        if now & (READERS | WRITERS) == READERS {
            self.state.fetch_and(!(READERS | LATE_READERS), Relaxed);
            self.state.wake(u32::MAX);
        }
    }

    /// Calls one writer; whether one surely slept.
    fn call(&self) -> bool {
        step();
        self.turn.fetch_add(1, Release);
        self.turn.wake_own(1)
    }

    /// Gives back what is `held`, a writer's lock or nothing any more, and wakes who is next.
    ///
    /// A writer does both in one step, and so wakes somebody whoever takes the lock meanwhile. Were
    /// it free for an instant with the sleepers still to be called, another writer that looks at
    /// it without pause would take it each time, and the call, and with it the knowledge of who is
    /// late. After readers that cannot go on for long: such a writer gives it back as a writer.
    #[cold]
    #[inline(never)]
    fn next(&self, mut state: u32, mut held: u32) {
        // Who dies with the lock, holds it.
        if held == 0 {
            step();
        }
        // Whoever has taken it since sees to them.
        while state & MASK == held {
            let sleepers = state & (READERS | WRITERS);
            let is_late = sleepers != 0 && state & (LATE_READERS | LATE_WRITER) != 0;
            let handed = if is_late { HANDED } else { 0 };
            let readers =
                sleepers & READERS != 0 && (sleepers & WRITERS == 0 || state & LATE_READERS != 0);
            let called = if readers { READERS } else { WRITERS };
            let left = sleepers & !called;
            if let Err(now) = self.state.compare_exchange(state, left | handed, Release, Relaxed) {
                state = now;
                continue;
            }
            held = 0;
            step();
            // A sleeper of another word may be woken by mistake, and sees to nobody here.
            let is_woken = match sleepers {
                0 => true,
                _ if readers => self.state.wake_own(u32::MAX),
                _ => self.call(),
            };
            if is_woken {
                return;
            }
            // Nobody slept.
            state = if is_late { self.state.fetch_and(!HANDED, Relaxed) & !HANDED } else { left };
            if state & (READERS | WRITERS) == 0 {
                return;
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::cell::hogged::Hogged;
    use super::*;
    use crate::sync::AtomicU32;
    use core::cell::OnceCell;

    type Hog<'a> = Hogged<'a, AtomicU32>;

    /// How many turns hogs have until `want` has got it: writers that take it at the very instant
    /// at which it is free.
    fn turns_of_hogs(want: fn(&Words<'_, Hog<'_>>) -> Result<()>) -> u32 {
        let cells = OnceCell::<[&Hog<'_>; 2]>::new();
        let seize = || {
            let [state, _] = *cells.get().unwrap();
            let seen = state.word.load(Relaxed);
            if seen & (MASK | HANDED) == 0 {
                state.word.store(seen | WRITER, Relaxed);
            }
        };
        let again = || {
            let [state, turn] = *cells.get().unwrap();
            Words { state, turn }.unlock_write();
        };
        let cell = |value| Hogged::new(AtomicU32::new(value), &again, &seize);
        let (state, turn) = (cell(WRITER), cell(0));
        assert!(cells.set([&state, &turn]).is_ok());
        want(&Words { state: &state, turn: &turn }).unwrap();
        state.turns() + turn.turns()
    }

    /// The one who was woken in vain says so, and the next unlock is a hand-over.
    #[test]
    fn hogs_have_two_turns() {
        assert_eq!(turns_of_hogs(|words| words.read_slowly(None)), 2);
        assert_eq!(turns_of_hogs(|words| words.write_slowly(None)), 2);
    }
}

#[cfg(all(test, loom))]
#[path = "rwlock_words_models.rs"]
mod models;
