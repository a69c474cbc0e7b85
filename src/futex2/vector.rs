//! Waiting on several words at once.
//!
//! Each entry sleeps on one of these, and the kernel on all of them by one futex_waitv(2):
//!
//! | entry | sleeps on |
//! |---|---|
//! | 32 bits | itself |
//! | 64 bits | its halves, the woken one first: two of the kernel's 128 |
//! | 8, 16 bits, private or counted in a domain | the sequence of its place in the table |
//! | 8, 16 bits, shared | the 32 bits around it |
//!
//! An entry of futex_waitv has no mask. So on the 32 bits around a byte it could take a wake that
//! is meant for a waiter of the next byte, which then sleeps on; hence the sequence, on which all
//! are woken. Where there is none, a wake of a shared byte first wakes all entries of vectors
//! on those 32 bits, by a mask that no other wait has, and then the waiters of the byte.
//!
//! Where futex_waitv is missing (Linux 5.10), or when there are more entries than it takes, private
//! entries are *listed*: their places in the table say so, and all sleep on one word of the
//! process. A waker that finds a listed entry advances the place's sequence, then that word,
//! and wakes all that sleep on it; they find out by the sequences whether it was for them, as
//! `counts.rs` has it. Shared entries that find no room with the kernel are looked at every 2 milliseconds.

use super::beds::{Bed, beds};
use super::implementation::is_refused;
use super::place::{Place, entry};
use super::seat::{Seat, Shadowed, Waiting};
use super::wait::{GLANCE, NAP, TRIES, until};
use super::{Deadline, Options, fence};
use crate::abi::futex2::{FutexWaitv, WAITV_MAX};
use crate::error::{Error, Result};
use crate::sync::{self, AtomicU32, Ordering};
use crate::sys::futex;
use core::marker::PhantomData;
use core::ptr;
use rustix::io::Errno;

/// The word that listed vectors of this process sleep on.
static LISTED: AtomicU32 = AtomicU32::new(0);

/// Wakes all of them; how many.
pub(super) fn wake_listed() -> usize {
    LISTED.fetch_add(1, Ordering::Release);
    futex::wake_bitset(ptr::from_ref(&LISTED).cast(), true, u32::MAX, u32::MAX).unwrap_or(0)
}

/// Whether the kernel has queues for vectors.
pub(super) fn queues() -> bool {
    super::implementation() == super::Implementation::Waitv
}

/// An entry of a vector: a word and the value that it is expected to hold. Made by
/// [`Futex::waiter`](super::Futex::waiter).
#[derive(Debug, Clone, Copy)]
pub struct Waiter<'a> {
    pub(super) place: Place,
    pub(super) seat: Seat<'a>,
    pub(super) expected: u64,
    pub(super) word: PhantomData<&'a ()>,
}

// SAFETY: the word that the address names is borrowed, and is one that all threads may use.
unsafe impl Send for Waiter<'_> {}
// SAFETY: as above.
unsafe impl Sync for Waiter<'_> {}

impl Waiter<'_> {
    /// Whether nobody outside of this process wakes it.
    pub(super) fn is_private(&self) -> bool {
        self.place.private
    }

    /// Wakes somebody else who waits on the word.
    pub(super) fn wake_another(&self) {
        // EFAULT: the memory behind a shared word is gone, and with it whoever waited.
        let _ = self.place.wake(self.seat, 1, Options::new(), false);
    }

    pub(super) fn holds(&self) -> bool {
        // SAFETY: the word is borrowed, and aligned.
        unsafe { self.place.load() == self.expected }
    }
}

/// Sleeps while every word holds the value that its entry expects; answers the index of an
/// entry that was woken.
///
/// Sizes and scopes mix. If several were woken it is one of them, by preference the last. Like
/// [`Futex::wait`](super::Futex::wait) it may return `Ok` for no reason. An entry of 32 or 64
/// bits is woken by the wakes of both sizes at its address: the kernel's vectors have no masks.
///
/// On Linux 5.10 to 5.15, which lack futex_waitv(2), private words are waited on by a word of
/// the process, and shared ones, in a domain too, are looked at every 2 milliseconds: a wake that
/// changes nothing is not seen by those that no domain counts. The same goes on every kernel for the shared words of a vector
/// with more than 64 words of 64 bits, which are two entries each to the kernel.
///
/// There is no wait for *all* of several words. To take several at one instant needs the one
/// place that every change of them goes through: the kernel has it for the objects of
/// `/dev/ntsync` alone, and in user space a thread that takes some of them and finds the next
/// gone has to put them back, which others see.
///
/// # Errors
///
/// EINVAL for no entries, or more than 128; EAGAIN
/// ([`is_would_block`](crate::Error::is_would_block)) if a word holds another value; ETIMEDOUT
/// ([`is_timed_out`](crate::Error::is_timed_out)) at the deadline; ENOMEM.
pub fn waitv(waiters: &[Waiter<'_>], deadline: Option<Deadline>) -> Result<usize> {
    waitv_with(waiters, deadline, Options::new())
}

/// [`waitv`] with options: [`interruptible`](Options::interruptible), and
/// [`beyond_128`](Options::beyond_128).
///
/// Beyond 128 entries (64 of 64 bits), private ones share one place, however many they are.
/// Shared ones beyond that are looked at every 2 milliseconds.
///
/// A vector with shared words is interrupted by handlers without `SA_RESTART` only.
///
/// # Errors
///
/// As [`waitv`]; EINTR after a signal if asked for; EINVAL for a mask, which entries do not have.
pub fn waitv_with(
    waiters: &[Waiter<'_>],
    deadline: Option<Deadline>,
    options: Options,
) -> Result<usize> {
    const OPERATION: &str = "futex2::waitv";
    options.check(OPERATION, 0)?;
    let n = waiters.len();
    if n == 0 || (n > WAITV_MAX && !options.beyond) {
        let most = if options.beyond { usize::MAX } else { WAITV_MAX };
        return Err(Error::with(
            OPERATION,
            Errno::INVAL,
            format_args!("{n} of 1 to {most} entries"),
        ));
    }
    let wait = || Vector::new(waiters, &options).wait(deadline, &options);
    let queues = queues();
    let slept = match wait() {
        Err(errno) if queues && is_refused(errno) => wait(),
        slept => slept,
    };
    slept.map_err(|errno| Error::new(OPERATION, errno))
}

/// A vector that is counted and has its beds.
struct Vector<'v, 'a> {
    waiters: &'v [Waiter<'a>],
    beds: Vec<Bed>,
    waiting: Vec<Waiting<'a>>,
    /// Every waker will find all of them.
    sure: bool,
}

impl<'v, 'a> Vector<'v, 'a> {
    fn new(waiters: &'v [Waiter<'a>], options: &Options) -> Self {
        let all_private = waiters.iter().all(|waiter| waiter.place.private);
        // Only the word of the process lets go of a wait after every signal.
        let room = if !queues() || (options.interruptible && all_private) { 0 } else { WAITV_MAX };
        let waiting: Vec<_> = waiters.iter().map(|waiter| waiter.seat.add()).collect();
        let sure = fence_of(waiters);
        Self { waiters, beds: beds(waiters, room), waiting, sure }
    }

    fn wait(mut self, deadline: Option<Deadline>, options: &Options) -> rustix::io::Result<usize> {
        // Counted as what they are before the sequences, and before the words are looked at.
        let listed = Listing::new(self.waiters, &self.beds);
        let shadowed: Vec<Option<Shadowed<'_, '_>>> = self
            .waiting
            .iter()
            .zip(&self.beds)
            .map(|(waiting, bed)| {
                let apart = *bed == Bed::Sequence || waiting.seat().domain.is_some();
                (apart && *bed != Bed::Word).then(|| waiting.add_shadowed())
            })
            .collect();
        if listed.is_some() || shadowed.iter().any(Option::is_some) {
            self.sure &= fence_of(self.waiters);
        }
        let seen: Vec<_> = self.waiters.iter().map(|waiter| waiter.seat.seen()).collect();
        let mut slots = Vec::with_capacity(WAITV_MAX);
        let (mut tries, mut nap) = (0, GLANCE);
        loop {
            // Before the words, as any sequence.
            let list = LISTED.load(Ordering::Acquire);
            // The last one, as the kernel has it, of those that the wakes were for.
            let changed = || {
                let all = (0..self.waiters.len()).rev();
                all.filter(|&at| self.beds[at] != Bed::Word)
                    .filter(|&at| self.waiters[at].seat.seen() != seen[at])
            };
            let woken = changed().find(|&at| self.waiters[at].seat.was_last());
            // Also before it slept: whom that wake has counted may have been another sleeper.
            if let Some(woken) = woken.or_else(|| changed().next()) {
                return Ok(woken);
            }
            if !self.waiters.iter().all(Waiter::holds) {
                return Err(Errno::AGAIN);
            }
            if deadline.is_some_and(|deadline| deadline.has_passed()) {
                return Err(Errno::TIMEDOUT);
            }
            if tries == TRIES {
                // A neighbour in the 32 bits around a shared byte never rests.
                for (bed, waiter) in self.beds.iter_mut().zip(self.waiters) {
                    if *bed == Bed::Word && waiter.place.bytes < 4 {
                        *bed = Bed::Glance;
                    }
                }
            }
            // What others write in a domain may be a sequence that seems not to have changed.
            let apart =
                |(bed, waiter): (&Bed, &Waiter<'_>)| *bed == Bed::Sequence && !waiter.place.private;
            let glances = !self.sure || self.beds.contains(&Bed::Glance);
            // After the look at the sequences, which may have been a while ago.
            let waking = self.listed().any(|at| self.waiters[at].seat.is_waking());
            let naps = glances || self.beds.iter().zip(self.waiters).any(apart);
            let end = if naps { Some(Deadline::or_sooner(deadline, nap)) } else { deadline };
            match self.sleep(&mut slots, list, &seen, end, options) {
                Ok(Some(index)) => return Ok(self.of_one_place(index, &seen)),
                // Listed: the sequences tell, but for a wake that had advanced them before.
                Ok(None) if waking => return Ok(self.of_the_list(&seen)),
                Ok(None) => {}
                Err(Errno::AGAIN) => tries += 1,
                Err(Errno::INTR) if !options.interruptible => {}
                Err(Errno::TIMEDOUT) if naps => {
                    nap = if glances { GLANCE } else { NAP.min(2 * nap) }
                }
                Err(errno) => return Err(errno),
            }
        }
    }

    fn listed(&self) -> impl DoubleEndedIterator<Item = usize> {
        (0..self.beds.len()).filter(|&at| self.beds[at] == Bed::Listed)
    }

    /// The listed entry that a wake was for, if one of them can be told.
    fn of_the_list(&self, seen: &[[u32; 2]]) -> usize {
        let seat = |at: usize| &self.waiters[at].seat;
        let changed = self.listed().rev().find(|&at| seat(at).seen() != seen[at]);
        let waking = || self.listed().rev().find(|&at| seat(at).was_last());
        changed.or_else(waking).or_else(|| self.listed().next_back()).unwrap_or(0)
    }

    /// The entry that a wake was for: several may sleep on the sequence of one place, and the kernel
    /// names one of them.
    fn of_one_place(&self, index: usize, seen: &[[u32; 2]]) -> usize {
        if self.beds[index] != Bed::Sequence {
            return self.of_one_word(index);
        }
        let sequence =
            |at: usize| self.waiters[at].seat.sequence().map(|(word, _)| ptr::from_ref(word));
        let meant = |&at: &usize| {
            self.beds[at] == Bed::Sequence
                && sequence(at) == sequence(index)
                && self.waiters[at].seat.seen() != seen[at]
                && self.waiters[at].seat.was_last()
        };
        (0..self.waiters.len()).rev().find(meant).unwrap_or(index)
    }

    /// The same for shared bytes of one 32 bits, all of which a wake of one of them has woken: there it
    /// is the value that tells.
    fn of_one_word(&self, index: usize) -> usize {
        let word = |at: usize| self.waiters[at].place.word();
        let small = |at: usize| self.beds[at] == Bed::Word && self.waiters[at].place.bytes < 4;
        if !small(index) {
            return index;
        }
        let mut meant =
            (0..self.waiters.len()).rev().filter(|&at| small(at) && word(at) == word(index));
        meant.find(|&at| !self.waiters[at].holds()).unwrap_or(index)
    }

    /// Sleeps once; the index of a woken entry, or `None` if the listed ones were woken.
    fn sleep(
        &self,
        slots: &mut Vec<(FutexWaitv, Option<usize>)>,
        list: u32,
        seen: &[[u32; 2]],
        end: Option<Deadline>,
        options: &Options,
    ) -> rustix::io::Result<Option<usize>> {
        slots.clear();
        let word = ptr::from_ref(&LISTED).cast::<u32>();
        let is_listed = self.beds.contains(&Bed::Listed);
        let queued = |bed: &Bed| matches!(bed, Bed::Word | Bed::Sequence);
        if !self.beds.iter().any(queued) {
            // With a far deadline a signal is never resumed from; a nap has a near one.
            let far = options.interruptible.then_some(Deadline::FAR);
            let (clock, timespec) = until(end.or(far));
            let nothing = 0_u32;
            let (word, list) = if is_listed { (word, list) } else { (&raw const nothing, 0) };
            futex::wait_bitset(word, true, list, clock, timespec.as_ref(), u32::MAX)?;
            return Ok(None);
        }
        if is_listed {
            slots.push((entry(word, list, true), None));
        }
        for (at, (waiter, bed)) in self.waiters.iter().zip(&self.beds).enumerate() {
            match bed {
                Bed::Word if waiter.place.bytes == 8 => {
                    let halves = waiter.place.halves(waiter.expected);
                    slots.extend(halves.map(|half| (half, Some(at))));
                }
                Bed::Word => {
                    // SAFETY: the word is borrowed, and aligned.
                    let around = unsafe { waiter.place.around() };
                    if waiter.place.lane_of(around) != waiter.expected {
                        return Err(Errno::AGAIN);
                    }
                    slots.push((waiter.place.entry(waiter.place.word(), around), Some(at)));
                }
                Bed::Sequence => {
                    if let Some((sequence, private)) = waiter.seat.sequence() {
                        let value = seen[at][usize::from(waiter.seat.domain.is_some())];
                        slots.push((
                            entry(ptr::from_ref(sequence).cast(), value, private),
                            Some(at),
                        ));
                    }
                }
                Bed::Listed | Bed::Glance => {}
            }
        }
        let mut entries = [FutexWaitv::default(); WAITV_MAX];
        let len = slots.len().min(WAITV_MAX);
        for (entry, (slot, _)) in entries.iter_mut().zip(&*slots) {
            *entry = *slot;
        }
        let (clock, timespec) = until(end);
        let woken = futex::waitv(&entries[..len], clock, timespec.as_ref())?;
        Ok(slots.get(woken).and_then(|(_, at)| *at))
    }
}

/// The waiter's fence of all entries; whether every waker will find their counts. Where nothing is
/// counted there is none, and only words of the process are worth a membarrier(2).
fn fence_of(waiters: &[Waiter<'_>]) -> bool {
    if waiters.iter().any(Waiter::is_private) {
        return fence::waiter();
    }
    if waiters.iter().any(|waiter| waiter.seat.counts()) {
        sync::fence(Ordering::SeqCst);
    }
    true
}

/// The places of the listed entries, until it is dropped.
struct Listing<'v, 'a>(&'v [Waiter<'a>], Vec<usize>);

impl<'v, 'a> Listing<'v, 'a> {
    fn new(waiters: &'v [Waiter<'a>], beds: &[Bed]) -> Option<Self> {
        let listed: Vec<usize> = (0..waiters.len()).filter(|&at| beds[at] == Bed::Listed).collect();
        let listing = (!listed.is_empty()).then_some(Self(waiters, listed))?;
        listing.each(super::counts::Entry::add_listed);
        Some(listing)
    }

    fn each(&self, action: impl Fn(&super::counts::Entry)) {
        for &at in &self.1 {
            if let Some(spot) = self.0[at].seat.here {
                action(spot.entry());
            }
        }
    }
}

impl Drop for Listing<'_, '_> {
    fn drop(&mut self) {
        self.each(super::counts::Entry::remove_listed);
    }
}
