//! The words of a readers-writer lock.
//!
//! `state`:
//!
//! | bits | mean |
//! |---|---|
//! | 0 to 29 | readers, or all ones: a writer |
//! | 30, `READERS` | readers may sleep, on `state` |
//! | 31, `WRITERS` | writers may sleep, on `turn` |
//!
//! `turn` counts how often a writer was called.
//!
//! The protocol is that of std's futex lock: while a writer may sleep, no new reader enters, so
//! readers cannot starve writers; the last one out calls one writer, and if none slept, all readers.
//! Two things are added. A writer that gives up at its deadline takes its bit away and wakes
//! whom it held up. And a reader that has slept for a beat in shared memory takes a lock that
//! nobody holds, whatever the bits say: the writer that was called may be dead.

use super::cell::{Cell, Slept, Spins, late};
use crate::error::Result;
use crate::futex2::{Deadline, Futex, Private, Scope};
use crate::sync::Ordering::{Acquire, Relaxed, Release};
use core::fmt;

const MASK: u32 = (1 << 30) - 1;
const WRITER: u32 = MASK;
const MOST_READERS: u32 = MASK - 1;
const READERS: u32 = 1 << 30;
const WRITERS: u32 = 1 << 31;

/// A readers-writer lock without data: 8 bytes, zeros being unlocked. [`RwLock`](super::RwLock)
/// is this with its data.
#[repr(C)]
pub struct RawRwLock<S: Scope = Private> {
    state: Futex<u32, S>,
    turn: Futex<u32, S>,
}

impl<S: Scope> RawRwLock<S> {
    /// An unlocked lock.
    pub const fn new() -> Self {
        Self { state: Futex::new(0), turn: Futex::new(0) }
    }

    fn words(&self) -> Words<'_, Futex<u32, S>> {
        Words { state: &self.state, turn: &self.turn }
    }

    /// Takes it for reading, sleeping while a writer holds it or waits.
    #[inline]
    pub fn read(&self) {
        if !self.words().try_read() {
            // Without a deadline nothing fails on 32 bits.
            let _ = self.words().read_slowly(None);
        }
    }

    /// Takes it for reading if that can be done at once.
    #[inline]
    pub fn try_read(&self) -> bool {
        self.words().try_read()
    }

    /// Takes it for reading, sleeping until the deadline at the most.
    ///
    /// # Errors
    ///
    /// ETIMEDOUT at the deadline.
    #[inline]
    pub fn try_read_until(&self, deadline: Deadline) -> Result<()> {
        if self.words().try_read() { Ok(()) } else { self.words().read_slowly(Some(deadline)) }
    }

    /// Takes it for writing, sleeping while anybody holds it.
    #[inline]
    pub fn write(&self) {
        if !self.words().try_write() {
            let _ = self.words().write_slowly(None);
        }
    }

    /// Takes it for writing if nobody holds it.
    #[inline]
    pub fn try_write(&self) -> bool {
        self.words().try_write()
    }

    /// Takes it for writing, sleeping until the deadline at the most.
    ///
    /// # Errors
    ///
    /// ETIMEDOUT at the deadline.
    #[inline]
    pub fn try_write_until(&self, deadline: Deadline) -> Result<()> {
        if self.words().try_write() { Ok(()) } else { self.words().write_slowly(Some(deadline)) }
    }

    /// Gives back what was taken for reading.
    ///
    /// # Safety
    ///
    /// The caller must hold it for reading.
    #[inline]
    pub unsafe fn unlock_read(&self) {
        self.words().unlock_read();
    }

    /// Gives back what was taken for writing.
    ///
    /// # Safety
    ///
    /// The caller must hold it for writing.
    #[inline]
    pub unsafe fn unlock_write(&self) {
        self.words().unlock_write();
    }

    /// Turns a writer into a reader; no other writer comes between.
    ///
    /// # Safety
    ///
    /// The caller must hold it for writing.
    #[inline]
    pub unsafe fn downgrade(&self) {
        self.words().downgrade();
    }

    /// Whether anybody holds it; stale at once.
    pub fn is_locked(&self) -> bool {
        self.state.load(Relaxed) & MASK != 0
    }

    /// Whether a writer holds it; stale at once.
    pub fn is_write_locked(&self) -> bool {
        self.state.load(Relaxed) & MASK == WRITER
    }
}

impl<S: Scope> Default for RawRwLock<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: Scope> fmt::Debug for RawRwLock<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.load(Relaxed);
        let name = match state & MASK {
            0 => "free",
            WRITER => "written",
            _ => "read",
        };
        f.debug_tuple("RawRwLock").field(&name).finish()
    }
}

/// The protocol over borrowed words.
struct Words<'a, C> {
    state: &'a C,
    turn: &'a C,
}

/// Whether a reader may enter at once.
fn admits(state: u32) -> bool {
    state & (READERS | WRITERS) == 0 && state & MASK < MOST_READERS
}

impl<C: Cell<u32>> Words<'_, C> {
    #[inline]
    fn try_read(&self) -> bool {
        let mut seen = self.state.load(Relaxed);
        while admits(seen) {
            match self.state.compare_exchange(seen, seen + 1, Acquire, Relaxed) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
        false
    }

    #[cold]
    #[inline(never)]
    fn read_slowly(&self, deadline: Option<Deadline>) -> Result<()> {
        let mut spins = Spins::new();
        let mut beaten = false;
        loop {
            let seen = self.state.load(Relaxed);
            if admits(seen) || (beaten && seen & MASK == 0) {
                if self.state.compare_exchange(seen, seen + 1, Acquire, Relaxed).is_ok() {
                    return Ok(());
                }
                continue;
            }
            if seen & (READERS | WRITERS) == 0 && !spins.are_over() {
                continue;
            }
            let parked = seen | READERS;
            if parked != seen
                && self.state.compare_exchange(seen, parked, Relaxed, Relaxed).is_err()
            {
                continue;
            }
            let slept = self.state.wait(parked, deadline)?;
            if slept == Slept::Changed && deadline.is_some_and(|deadline| deadline.has_passed()) {
                return Err(late("futex2::RwLock::read"));
            }
            beaten = slept == Slept::Beat;
            spins = Spins::new();
        }
    }

    #[inline]
    fn try_write(&self) -> bool {
        let mut seen = self.state.load(Relaxed);
        while seen & MASK == 0 {
            match self.state.compare_exchange(seen, seen | WRITER, Acquire, Relaxed) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
        false
    }

    #[cold]
    #[inline(never)]
    fn write_slowly(&self, deadline: Option<Deadline>) -> Result<()> {
        let mut spins = Spins::new();
        // Whoever has slept cannot know whether others do.
        let mut others = 0;
        loop {
            let seen = self.state.load(Relaxed);
            if seen & MASK == 0 {
                let next = seen | WRITER | others;
                if self.state.compare_exchange(seen, next, Acquire, Relaxed).is_ok() {
                    return Ok(());
                }
                continue;
            }
            if seen & WRITERS == 0 && !spins.are_over() {
                continue;
            }
            let parked = seen | WRITERS;
            if parked != seen
                && self.state.compare_exchange(seen, parked, Relaxed, Relaxed).is_err()
            {
                continue;
            }
            others = WRITERS;
            // A call that comes after the look at the state changes the turn.
            let turn = self.turn.load(Acquire);
            let seen = self.state.load(Relaxed);
            if seen & MASK == 0 || seen & WRITERS == 0 {
                if deadline.is_some_and(|deadline| deadline.has_passed()) && seen & MASK != 0 {
                    self.give_up();
                    return Err(late("futex2::RwLock::write"));
                }
                continue;
            }
            match self.turn.wait(turn, deadline) {
                Ok(Slept::Changed) if deadline.is_some_and(|deadline| deadline.has_passed()) => {
                    self.give_up();
                    return Err(late("futex2::RwLock::write"));
                }
                Ok(_) => spins = Spins::new(),
                Err(error) => {
                    self.give_up();
                    return Err(error);
                }
            }
        }
    }

    /// A writer leaves without the lock: those whom its bit held up look again, and announce
    /// themselves anew.
    fn give_up(&self) {
        let seen = self.state.fetch_and(!(READERS | WRITERS), Relaxed);
        if seen & WRITERS != 0 {
            self.call();
        }
        if seen & READERS != 0 {
            self.state.wake(u32::MAX);
        }
    }

    #[inline]
    fn unlock_read(&self) {
        let left = self.state.fetch_add(1_u32.wrapping_neg(), Release).wrapping_sub(1);
        if left & MASK == 0 && left != 0 {
            self.next(left);
        }
    }

    #[inline]
    fn unlock_write(&self) {
        let left = self.state.fetch_add(WRITER.wrapping_neg(), Release).wrapping_sub(WRITER);
        if left != 0 {
            self.next(left);
        }
    }

    fn downgrade(&self) {
        let now = self.state.fetch_add((WRITER - 1).wrapping_neg(), Release);
        let now = now.wrapping_sub(WRITER - 1);
        // With a writer in line readers stay where they are.
        if now & (READERS | WRITERS) == READERS {
            self.state.fetch_and(!READERS, Relaxed);
            self.state.wake(u32::MAX);
        }
    }

    /// Calls one writer; whether one slept.
    fn call(&self) -> bool {
        self.turn.fetch_add(1, Release);
        self.turn.wake(1) > 0
    }

    /// The lock is free, and somebody may sleep.
    #[cold]
    #[inline(never)]
    fn next(&self, mut state: u32) {
        if state == WRITERS {
            match self.state.compare_exchange(state, 0, Relaxed, Relaxed) {
                Ok(_) => {
                    self.call();
                    return;
                }
                Err(now) => state = now,
            }
        }
        if state == READERS | WRITERS {
            // Whoever has taken it since sees to them.
            if self.state.compare_exchange(state, READERS, Relaxed, Relaxed).is_err() {
                return;
            }
            if self.call() {
                return;
            }
            state = READERS;
        }
        if state == READERS && self.state.compare_exchange(state, 0, Relaxed, Relaxed).is_ok() {
            self.state.wake(u32::MAX);
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

    struct Shared {
        state: Modelled<AtomicU32>,
        turn: Modelled<AtomicU32>,
        data: UnsafeCell<u32>,
    }

    impl Shared {
        fn words(&self) -> Words<'_, Modelled<AtomicU32>> {
            Words { state: &self.state, turn: &self.turn }
        }
        fn read(&self) {
            if !self.words().try_read() {
                self.words().read_slowly(None).unwrap();
            }
            // SAFETY: held for reading.
            self.data.with(|data| unsafe { *data });
            self.words().unlock_read();
        }
        fn write(&self) {
            if !self.words().try_write() {
                self.words().write_slowly(None).unwrap();
            }
            // SAFETY: held for writing.
            self.data.with_mut(|data| unsafe { *data += 1 });
            self.words().unlock_write();
        }
        fn downgrade(&self) {
            if !self.words().try_write() {
                self.words().write_slowly(None).unwrap();
            }
            // SAFETY: held for writing.
            self.data.with_mut(|data| unsafe { *data += 1 });
            self.words().downgrade();
            // SAFETY: held for reading.
            self.data.with(|data| unsafe { *data });
            self.words().unlock_read();
        }
    }

    fn run(bodies: [fn(&Shared); 2], own: fn(&Shared)) {
        model(move || {
            let shared = Arc::new(Shared {
                state: Modelled::<AtomicU32>::new(0),
                turn: Modelled::<AtomicU32>::new(0),
                data: UnsafeCell::new(0),
            });
            let others = bodies.map(|body| {
                let shared = shared.clone();
                thread::spawn(move || body(&shared))
            });
            own(&shared);
            others.into_iter().for_each(|other| other.join().unwrap());
            assert!(shared.words().try_write());
        });
    }

    #[test]
    fn a_writer_and_readers() {
        run([Shared::read, Shared::write], Shared::read);
    }

    #[test]
    fn writers_and_a_reader() {
        run([Shared::write, Shared::read], Shared::write);
    }

    #[test]
    fn a_writer_turns_reader() {
        run([Shared::downgrade, Shared::read], Shared::write);
    }
}
