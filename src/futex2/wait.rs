//! Sleeping and waking, by size.

use super::Deadline;
use super::counts::{Shadowed, Waiter, entry};
use super::implementation::{Implementation, implementation};
use crate::abi::futex2::{FutexWaitv, PRIVATE, SIZE_U32};
use crate::arch;
use crate::error::{Error, Result};
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::sys::futex::{self, Clock};
use core::ptr;
use core::time::Duration;
use rustix::io::Errno;

/// Tries at sleeping on the 32 bits around a smaller word, each of which failed because a
/// neighbour changed, before the shadow takes over.
const TRIES: u32 = 64;

/// How long a shared wait sleeps before it looks at its word again, where there is nothing
/// that every waker would wake.
const GLANCE: Duration = Duration::from_millis(2);

/// A word as the kernel sees it: where, how wide, for whom.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Address of the word itself.
    pub(super) address: *const u8,
    /// 1, 2, 4 or 8.
    pub(super) bytes: usize,
    /// Threads of this process alone.
    pub(super) private: bool,
}

impl Place {
    /// The aligned 32 bits that the kernel compares and keys by. Of a 64-bit word it is the
    /// half at the lower address: the one that is woken.
    fn word(&self) -> *const u32 {
        self.address.wrapping_sub(self.address.addr() & 3).cast()
    }

    /// Bits that say size and lane: a wake reaches the waiters of this very word.
    /// 8 bits: 0 to 3; 16 bits: 4 and 5; 32 bits: 6. A vector waits with all of them.
    fn mask(&self) -> u32 {
        let lane = (self.address.addr() & 3) as u32;
        match self.bytes {
            1 => 1 << lane,
            2 => 1 << (4 + lane / 2),
            4 => 1 << 6,
            _ => crate::abi::futex2::MATCH_ANY,
        }
    }

    /// The value of this word inside `word`, the 32 bits around it.
    fn lane_of(&self, word: u32) -> u64 {
        let bytes = word.to_ne_bytes();
        let lane = self.address.addr() & 3;
        match self.bytes {
            1 => u64::from(bytes[lane]),
            2 => u64::from(u16::from_ne_bytes([bytes[lane], bytes[lane + 1]])),
            _ => u64::from(word),
        }
    }

    /// What the word holds now.
    ///
    /// # Safety
    ///
    /// The address must be valid, and aligned to the size.
    unsafe fn load(&self) -> u64 {
        if self.bytes == 8 {
            // SAFETY: the caller vouches for it; a 64-bit word is reached by 64-bit atomics.
            return unsafe { &*self.address.cast::<AtomicU64>() }.load(Ordering::Acquire);
        }
        // SAFETY: the caller vouches for the address. On x86 the load has acquire semantics.
        self.lane_of(unsafe { arch::containing_u32(self.address) })
    }

    /// Sleeps while the word holds `expected`; see [`Futex::wait`](super::Futex::wait).
    ///
    /// # Safety
    ///
    /// The address must be valid and aligned to the size, and stay so.
    pub(super) unsafe fn wait(&self, expected: u64, deadline: Option<Deadline>) -> Result<()> {
        const OPERATION: &str = "futex2::wait";
        // A shared word's waiters are not counted: its wakes always ask the kernel.
        let mut waiter = self.private.then(|| entry(self.address.addr()).enter());
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
            let slept = if tries >= TRIES || self.lacks_a_queue() {
                // SAFETY: forwarded.
                unsafe { self.sleep_in_shadow(waiter.take(), expected, deadline) }
            } else {
                // SAFETY: forwarded.
                unsafe { self.sleep(expected, deadline) }
            };
            match slept {
                Ok(true) => return Ok(()),
                // Glanced, or the shadow's waiter is gone: count it anew and look again.
                Ok(false) => {
                    if self.private && waiter.is_none() {
                        waiter = Some(entry(self.address.addr()).enter());
                    }
                }
                // A neighbour, or the other half, changed; or a signal was handled. The loop
                // finds out whether the word did.
                Err(Errno::AGAIN) => tries += 1,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::new(OPERATION, errno)),
            }
        }
    }

    /// Whether the kernel has no queue for this size.
    fn lacks_a_queue(&self) -> bool {
        self.bytes == 8 && implementation() == Implementation::Shadow
    }

    /// Sleeps on the word itself. `Ok(true)` after a wake.
    ///
    /// # Safety
    ///
    /// As [`wait`](Self::wait).
    unsafe fn sleep(&self, expected: u64, deadline: Option<Deadline>) -> rustix::io::Result<bool> {
        let clock = deadline.map_or(Clock::Monotonic, |deadline| deadline.clock());
        let timespec = deadline.map(|deadline| deadline.timespec());
        if self.bytes == 8 {
            return futex::waitv(&self.halves(expected), clock, timespec.as_ref()).map(|_| true);
        }
        // SAFETY: forwarded.
        let around = unsafe { arch::containing_u32(self.address) };
        if self.lane_of(around) != expected {
            return Err(Errno::AGAIN);
        }
        let (word, mask) = (self.word(), self.mask());
        futex::wait_bitset(word, self.private, around, clock, timespec.as_ref(), mask)?;
        Ok(true)
    }

    /// Both halves as a vector, the one that is woken first.
    ///
    /// The order is what makes it correct: the kernel compares and queues in array order. A
    /// store between the two compares is followed by a wake of the first half, on which the
    /// waiter is queued by then. With the halves exchanged such a wake would find nobody.
    fn halves(&self, expected: u64) -> [FutexWaitv; 2] {
        let bytes = expected.to_ne_bytes();
        let flags = SIZE_U32 | if self.private { PRIVATE } else { 0 };
        [0, 4].map(|at| {
            let half = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
            FutexWaitv {
                val: u64::from(u32::from_ne_bytes(half)),
                uaddr: (self.address.expose_provenance() + at) as u64,
                flags,
                reserved: 0,
            }
        })
    }

    /// Sleeps on something else: the sequence of the waiter's entry, or, for a shared word,
    /// the clock. `Ok(true)` after a wake, `Ok(false)` after a glance.
    ///
    /// # Safety
    ///
    /// As [`wait`](Self::wait).
    unsafe fn sleep_in_shadow(
        &self,
        waiter: Option<Waiter<'_>>,
        expected: u64,
        deadline: Option<Deadline>,
    ) -> rustix::io::Result<bool> {
        let Some(waiter) = waiter else {
            return self.glance(expected, deadline);
        };
        let shadowed: Shadowed<'_> = waiter.shadow();
        let (sequence, seen) = shadowed.sequence();
        // SAFETY: forwarded.
        if unsafe { self.load() } != expected {
            return Ok(false);
        }
        let clock = deadline.map_or(Clock::Monotonic, |deadline| deadline.clock());
        let timespec = deadline.map(|deadline| deadline.timespec());
        let word = ptr::from_ref::<AtomicU32>(sequence).cast();
        let slept = futex::wait_bitset(word, true, seen, clock, timespec.as_ref(), u32::MAX);
        match slept {
            Ok(()) => Ok(true),
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Sleeps for a moment at the most: on the lower half of 64 bits, whose change alone is
    /// not enough to miss, or on nothing.
    fn glance(&self, expected: u64, deadline: Option<Deadline>) -> rustix::io::Result<bool> {
        let until = Deadline::or_sooner(deadline, GLANCE).timespec();
        let half = self.halves(expected)[0].val as u32;
        let nothing = 0;
        let (word, value) =
            if self.bytes == 8 { (self.word(), half) } else { (&raw const nothing, nothing) };
        let slept =
            futex::wait_bitset(word, false, value, Clock::Monotonic, Some(&until), u32::MAX);
        match slept {
            Ok(()) => Ok(true),
            Err(Errno::AGAIN | Errno::INTR | Errno::TIMEDOUT) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Wakes up to `n` waiters; how many.
    pub(super) fn wake(&self, n: u32) -> usize {
        if n == 0 {
            return 0;
        }
        let entry = self.private.then(|| entry(self.address.addr()));
        if entry.is_some_and(|entry| !entry.has_waiters()) {
            return 0;
        }
        // EFAULT: the memory behind a shared word is gone, and with it whoever waited.
        let woken = futex::wake_bitset(self.word(), self.private, n, self.mask()).unwrap_or(0);
        let left = n as usize - woken.min(n as usize);
        match entry.and_then(|entry| entry.advance()) {
            Some(sequence) if left > 0 => {
                let word = ptr::from_ref::<AtomicU32>(sequence).cast();
                let shadowed = futex::wake_bitset(word, true, u32::MAX, u32::MAX).unwrap_or(0);
                woken + shadowed.min(left)
            }
            _ => woken,
        }
    }
}
