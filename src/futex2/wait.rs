//! Sleeping and waking, by size.

use super::implementation::{Implementation, implementation, is_refused};
use super::place::{NOBODY, Place};
use super::seat::{Seat, Waiting};
use super::{Deadline, Options, vector};
use crate::error::{Error, Result};
use crate::sync::AtomicU32;
use crate::sys::futex::{self, Clock};
use core::ptr;
use core::time::Duration;
use rustix::io::Errno;
use rustix::time::Timespec;

/// Tries at sleeping on the 32 bits around a smaller word, one after the other, each of which failed
/// because a neighbour changed, before the shadow takes over.
pub(super) const TRIES: u32 = 64;

/// How long a wait sleeps before it looks at its word again, where there is nothing that every
/// waker would wake.
pub(super) const GLANCE: Duration = Duration::from_millis(2);

/// What such sleeps grow to where every honest waker would wake it.
pub(super) const NAP: Duration = Duration::from_millis(50);

/// How a sleep ended that the kernel calls a success, or an interruption that the wait survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slept {
    /// By a wake.
    Woken,
    /// The word has to be looked at again.
    Look,
}

/// Clock and time for the kernel.
pub(super) fn until(deadline: Option<Deadline>) -> (Clock, Option<Timespec>) {
    let clock = deadline.map_or(Clock::Monotonic, |deadline| deadline.clock());
    (clock, deadline.map(|deadline| deadline.timespec()))
}

/// A deadline for a wait that a signal is to end: with none, the kernel would resume it by
/// itself after a handler with `SA_RESTART`.
fn interruptible(deadline: Option<Deadline>, options: &Options) -> Option<Deadline> {
    let far = options.interruptible.then_some(Deadline::FAR);
    deadline.or(far)
}

impl Place {
    /// Sleeps while the word holds `expected`; see [`Futex::wait`](super::Futex::wait).
    ///
    /// # Safety
    ///
    /// The address must be valid and aligned to the size, and stay so.
    pub(super) unsafe fn wait(
        &self,
        seat: Seat<'_>,
        expected: u64,
        deadline: Option<Deadline>,
        options: Options,
    ) -> Result<()> {
        const OPERATION: &str = "futex2::wait";
        options.check(OPERATION, self.bytes)?;
        let mut waiting = seat.enter();
        let mut tries = 0;
        loop {
            // SAFETY: forwarded.
            if unsafe { self.load() } != expected {
                return Err(Error::new(OPERATION, Errno::AGAIN));
            }
            // The kernel would arm a timer first and find out later.
            if deadline.is_some_and(|deadline| deadline.has_passed()) {
                return Err(Error::new(OPERATION, Errno::TIMEDOUT));
            }
            let queued = tries < TRIES && self.has_a_queue(&options);
            let slept = if queued {
                // SAFETY: forwarded.
                unsafe { self.sleep(expected, deadline, &options, waiting.sure) }
            } else if seat.counts() {
                // SAFETY: forwarded.
                unsafe { self.sleep_in_shadow(&mut waiting, expected, deadline, &options) }
            } else {
                self.glance(expected, deadline)
            };
            match slept {
                Ok(Slept::Woken) => return Ok(()),
                // Maybe the neighbour rests by now: one more try.
                Ok(Slept::Look) => tries = tries.min(TRIES - 1),
                // A neighbour, or the other half, changed. The loop finds out whether the
                // word did.
                Err(Errno::AGAIN) => tries += 1,
                // It did sleep.
                Err(Errno::INTR) if !options.interruptible => tries = 0,
                Err(errno) if queued && self.bytes == 8 && is_refused(errno) => {}
                Err(errno) => return Err(Error::new(OPERATION, errno)),
            }
        }
    }

    /// Whether the kernel has a queue for this size. That of 64 bits is resumed after a
    /// signal whatever we say.
    fn has_a_queue(&self, options: &Options) -> bool {
        self.bytes != 8 || (implementation() == Implementation::Waitv && !options.interruptible)
    }

    /// Sleeps on the word itself; only for a moment if a waker may miss it.
    ///
    /// # Safety
    ///
    /// As [`wait`](Self::wait).
    unsafe fn sleep(
        &self,
        expected: u64,
        deadline: Option<Deadline>,
        options: &Options,
        sure: bool,
    ) -> rustix::io::Result<Slept> {
        let end = if sure {
            interruptible(deadline, options)
        } else {
            Some(Deadline::or_sooner(deadline, GLANCE))
        };
        let (clock, timespec) = until(end);
        let slept = if self.bytes == 8 {
            futex::waitv(&self.halves(expected), clock, timespec.as_ref()).map(drop)
        } else {
            // SAFETY: forwarded.
            let around = unsafe { self.around() };
            if self.lane_of(around) != expected {
                return Err(Errno::AGAIN);
            }
            let (word, mask) = (self.word(), self.mask(options));
            futex::wait_bitset(word, self.private, around, clock, timespec.as_ref(), mask)
        };
        match slept {
            Ok(()) => Ok(Slept::Woken),
            Err(Errno::TIMEDOUT) if !sure => Ok(Slept::Look),
            Err(errno) => Err(errno),
        }
    }

    /// Sleeps on the sequence of the waiter's entry.
    ///
    /// A sequence in a domain is written by others, maybe to what it was: so such a sleep is short
    /// at first, and the sequence of this process tells what its own wakers did.
    ///
    /// # Safety
    ///
    /// As [`wait`](Self::wait).
    unsafe fn sleep_in_shadow(
        &self,
        waiting: &mut Waiting<'_>,
        expected: u64,
        deadline: Option<Deadline>,
        options: &Options,
    ) -> rustix::io::Result<Slept> {
        let seat = waiting.seat();
        let Some((sequence, private)) = seat.sequence() else { return Ok(Slept::Look) };
        let shadowed = waiting.shadow();
        let seen = seat.seen();
        let sure = private && shadowed.is_sure();
        let mut nap = GLANCE;
        loop {
            // SAFETY: forwarded.
            if unsafe { self.load() } != expected {
                return Ok(Slept::Look);
            }
            let end = if sure {
                interruptible(deadline, options)
            } else {
                Some(Deadline::or_sooner(deadline, nap))
            };
            let (clock, timespec) = until(end);
            // The last one is the sequence to sleep on.
            let value = seen[usize::from(seat.domain.is_some())];
            let word = ptr::from_ref::<AtomicU32>(sequence).cast();
            let mask = self.mask_in_shadow(options);
            let slept = futex::wait_bitset(word, private, value, clock, timespec.as_ref(), mask);
            match slept {
                // Also before it slept: whom that wake has counted may have been another sleeper.
                Ok(()) | Err(Errno::AGAIN) => return Ok(Slept::Woken),
                Err(Errno::TIMEDOUT) if seat.seen() != seen => return Ok(Slept::Woken),
                Err(Errno::TIMEDOUT)
                    if !sure && deadline.is_none_or(|deadline| !deadline.has_passed()) =>
                {
                    nap = if shadowed.is_sure() { NAP.min(2 * nap) } else { GLANCE };
                }
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Sleeps for a moment at the most: on the lower half of 64 bits, whose change alone is
    /// not enough to miss, or on nothing.
    fn glance(&self, expected: u64, deadline: Option<Deadline>) -> rustix::io::Result<Slept> {
        let until = Deadline::or_sooner(deadline, GLANCE).timespec();
        let nothing = 0;
        let (word, value) =
            if self.bytes == 8 { (self.word(), expected as u32) } else { (&raw const nothing, 0) };
        let slept =
            futex::wait_bitset(word, self.private, value, Clock::Monotonic, Some(&until), u32::MAX);
        match slept {
            Ok(()) => Ok(Slept::Woken),
            Err(Errno::AGAIN | Errno::TIMEDOUT) => Ok(Slept::Look),
            Err(errno) => Err(errno),
        }
    }

    /// Wakes up to `n` waiters; how many. With `skip`, all waiters are known to count themselves.
    ///
    /// # Errors
    ///
    /// EFAULT: the memory behind a shared word is gone. Those of the options.
    #[inline]
    pub(super) fn wake(
        &self,
        seat: Seat<'_>,
        n: u32,
        options: Options,
        skip: bool,
    ) -> Result<usize> {
        options.check("futex2::wake", self.bytes)?;
        if n == 0 || (skip && !seat.has_waiters()) {
            return Ok(0);
        }
        match self.wake_waiters(seat, n, &options) {
            Ok((woken, _)) => Ok(woken),
            Err(errno) => Err(Error::new("futex2::wake", errno)),
        }
    }

    /// Wakes up to `n` waiters of 32 bits; how many slept on those, and not on what stands for all
    /// words of a place.
    pub(super) fn wake_own(&self, seat: Seat<'_>, n: u32) -> usize {
        if n == 0 || !seat.has_waiters() {
            return 0;
        }
        // EFAULT: the memory behind a shared word is gone, and with it whoever waited.
        self.wake_waiters(seat, n, &Options::new()).map_or(0, |(_, own)| own)
    }

    /// How many were woken, and how many of them for sure by the word.
    #[inline(never)]
    fn wake_waiters(
        &self,
        seat: Seat<'_>,
        n: u32,
        options: &Options,
    ) -> rustix::io::Result<(usize, usize)> {
        let wake = |word, n, mask| futex::wake_bitset(word, self.private, n, mask);
        let most = n as usize;
        let mut woken = 0;
        // Entries of vectors that wait on smaller words have no mask: one of another lane could
        // take the wake. So all of them are woken first, though this process may have no vectors
        // of the kernel's; see `vector.rs`.
        if self.bytes < 4 && !seat.counts() {
            woken += wake(self.word(), u32::MAX, NOBODY)?;
        }
        let own = wake(self.word(), n, self.mask(options))?;
        woken = most.min(woken + own);
        if self.bytes == 8 && options.overlapping && woken < most {
            woken += wake(self.word().wrapping_add(1), n - woken as u32, self.mask(options))?;
        }
        if woken < most {
            woken += self.wake_rings(seat, (most - woken) as u32, options);
        }
        if woken < most {
            woken += self.wake_in_shadow(seat, most - woken, options);
        }
        if let Some((domain, _)) = seat.domain {
            domain.noticed(woken);
        }
        Ok((woken, own))
    }

    /// Wakes those that sleep on something else; how many of `most`.
    pub(super) fn wake_in_shadow(&self, seat: Seat<'_>, most: usize, options: &Options) -> usize {
        let (shadowed, listed) = (seat.is_shadowed(), seat.listed() as usize);
        if !shadowed && listed == 0 {
            return 0;
        }
        seat.advance();
        let mut woken = 0;
        if let Some((sequence, private)) = seat.sequence().filter(|_| shadowed) {
            let word = ptr::from_ref::<AtomicU32>(sequence).cast();
            woken = futex::wake_bitset(word, private, u32::MAX, self.mask_in_shadow(options))
                .unwrap_or(0);
        }
        if listed != 0 {
            woken += seat.wake_listed(vector::wake_listed).min(listed);
        }
        woken.min(most)
    }
}
