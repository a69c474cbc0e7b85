//! Waits that a ring of io_uring does, beside those of threads, on one word.
//!
//! The kernel's queues take both. Three things have to be done for it, and are done here:
//!
//! | | |
//! |---|---|
//! | a wake that nobody waits for is left out | a [`RingWait`] is counted, by the protocol of `counts.rs` |
//! | the size and the lane | address, value and mask are those of a wait of a thread |
//! | the pivot | a private word is waited on by its shared key |
//!
//! *The pivot*: since Linux 6.16 a process has a table of its own for private waits, from its
//! first thread on. Threads wait in it; what the process's ring has begun before stays in the table
//! of all, by the private key, and a private wake does not look there: the completion would never
//! come. The shared key of the same word is always in the table of all. So a wake of a private word
//! that finds a ring counted wakes by the shared key, too, for what is left of `n`.
//!
//! In shared scopes and in domains there is nothing more to it: all wakes are by the shared key.

use super::place::Place;
use super::seat::{Seat, Waiting};
use super::{Counted, Domain, Futex, Options, Scope, Word};
use crate::abi::futex2::{FutexWaitv, SIZE_U32};
use crate::error::{Error, Result};
use crate::sys::{futex, uring};
use rustix::io::Errno;

/// What an entry of the submission queue is made of.
///
/// With the crate `io-uring`:
///
/// ```
/// use io_uring::{opcode, squeue::Entry};
/// use unmerged::futex2::RingOperation;
///
/// fn entry(operation: RingOperation<'_>) -> Entry {
///     match operation {
///         RingOperation::Wait { address, value, mask, flags } => {
///             opcode::FutexWait::new(address, value, mask, flags).build()
///         }
///         RingOperation::WaitV(halves) => {
///             opcode::FutexWaitV::new(halves.as_ptr().cast(), halves.len() as u32).build()
///         }
///     }
/// }
/// ```
#[derive(Debug, Clone, Copy)]
pub enum RingOperation<'a> {
    /// `IORING_OP_FUTEX_WAIT`: words of 8, 16 and 32 bits.
    Wait {
        /// The 32 bits around the word, or the word.
        address: *const u32,
        /// What they are to hold.
        value: u64,
        /// Tells size and lane, and is the mask of [`Options`] in it.
        mask: u64,
        /// `FUTEX2_SIZE_U32`.
        flags: u32,
    },
    /// `IORING_OP_FUTEX_WAITV`: both halves of 64 bits. The array is where it is as long as the
    /// [`RingWait`] is kept, wherever that is moved.
    WaitV(&'a [FutexWaitv; 2]),
}

/// A wait that a ring of io_uring does: what to submit, and the count by which wakes know of it.
///
/// Keep it until the completion is there, and hand that to [`complete`](Self::complete).
///
/// ```
/// # use io_uring::{IoUring, opcode, squeue::Entry};
/// # use unmerged::futex2::{Futex, RingOperation, has_ring_waits};
/// # fn entry(operation: RingOperation<'_>) -> Entry {
/// #     match operation {
/// #         RingOperation::Wait { address, value, mask, flags } => {
/// #             opcode::FutexWait::new(address, value, mask, flags).build()
/// #         }
/// #         RingOperation::WaitV(halves) => opcode::FutexWaitV::new(halves.as_ptr().cast(), 2).build(),
/// #     }
/// # }
/// use std::sync::atomic::Ordering::Release;
///
/// # if !has_ring_waits() { return Ok(()) }
/// let word: Futex<u32> = Futex::new(0);
/// let mut ring = IoUring::new(8)?;
///
/// let wait = word.ring_wait(0)?;
/// // SAFETY: the word and the wait are kept until the completion.
/// unsafe { ring.submission().push(&entry(wait.operation())) }?; // `entry` as in RingOperation
/// ring.submit()?;
///
/// word.store(1, Release);
/// assert_eq!(word.wake(1), 1);
///
/// ring.submit_and_wait(1)?;
/// let completion = ring.completion().next().unwrap();
/// wait.complete(completion.result())?; // EAGAIN: load the word, and begin anew
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Submitting
///
/// The ring compares when it takes the entry: the count that this is comes before, so a store that the
/// ring does not see is followed by a wake that finds it. What is submitted later, or twice one
/// after the other, is as good as long as this is kept; two at a time are two waits and need two of
/// these.
///
/// | | |
/// |---|---|
/// | a wake | result 0 or more; also now and then for no reason |
/// | another value | EAGAIN |
/// | a neighbour in the same 32 bits as a word of 8 or 16 bits has changed since [`Futex::ring_wait`] | EAGAIN as well: the ring compares once, and there is no shadow to go to. Load, and begin anew |
/// | deadline | a `LINK_TIMEOUT` behind the entry: the wait ends with ECANCELED, the timeout itself with ETIME or, by some kernels, with 1 |
/// | an end by the caller | `ASYNC_CANCEL`: ECANCELED, or 0 if a wake was faster |
/// | Linux before 6.7 | EINVAL; see [`has_ring_waits`] |
/// | a sandbox without rings | there is none to submit to: [`Futex::wait`] in a thread |
///
/// # Order
///
/// Ring and threads wait in one queue, in the order in which they came; but for private words a wake
/// takes the threads first, and then the rings.
///
/// # Dropped before the completion
///
/// No memory is at stake: to the ring the word is a number. But the wait is not counted any more, so
/// wakes may be left out as if nobody waited, and the completion does not come. And it is still in the
/// queue, where it may take a wake from another waiter of the word. So cancel it first, and drop
/// this when the completion is there, or when the ring is closed. Of 64 bits, keep it at least until
/// the ring has taken the entry, for it reads the array then. What is leaked is counted for good:
/// wakes of the place ask the kernel.
///
/// A child of fork has a copy, which counts in the child; the wait is its parent's.
#[derive(Debug)]
#[must_use = "a wait of a ring that is not counted may be missed"]
pub struct RingWait<'a> {
    place: Place,
    around: u32,
    mask: u32,
    /// The halves of 64 bits, for the ring to read.
    halves: Option<Box<[FutexWaitv; 2]>>,
    by_shared_key: Option<ByShared<'a>>,
    _waiting: Waiting<'a>,
}

// SAFETY: the word that the address names is borrowed, and is one that all threads may use.
unsafe impl Send for RingWait<'_> {}
// SAFETY: as above.
unsafe impl Sync for RingWait<'_> {}

/// Tells wakes of a private word of a waiter by its shared key, until it is dropped.
#[derive(Debug)]
struct ByShared<'a>(Seat<'a>);

impl<'a> ByShared<'a> {
    /// A fence must follow.
    fn new(seat: Seat<'a>) -> Self {
        if let Some(spot) = seat.here {
            spot.entry().add_ring();
        }
        Self(seat)
    }
}

impl Drop for ByShared<'_> {
    fn drop(&mut self) {
        if let Some(spot) = self.0.here {
            spot.entry().remove_ring();
        }
    }
}

impl<'a> RingWait<'a> {
    const OPERATION: &'static str = "futex2::ring_wait";

    /// # Safety
    ///
    /// The address must be valid and aligned to the size, and stay so.
    unsafe fn new(place: Place, seat: Seat<'a>, expected: u64, options: &Options) -> Result<Self> {
        options.check(Self::OPERATION, place.bytes)?;
        let by_shared_key = place.private.then(|| ByShared::new(seat));
        let waiting = seat.enter();
        if !waiting.sure {
            let reason = "membarrier(2) is refused since it was chosen, and a ring cannot nap";
            return Err(Error::because(Self::OPERATION, Errno::OPNOTSUPP, reason));
        }
        let different = || Error::new(Self::OPERATION, Errno::AGAIN);
        let place = Place { private: false, ..place };
        let (mut around, mut halves) = (0, None);
        if place.bytes == 8 {
            // SAFETY: forwarded.
            if unsafe { place.load() } != expected {
                return Err(different());
            }
            halves = Some(Box::new(place.halves(expected)));
        } else {
            // SAFETY: forwarded.
            around = unsafe { place.around() };
            if place.lane_of(around) != expected {
                return Err(different());
            }
        }
        let mask = place.mask(options);
        Ok(Self { place, around, mask, halves, by_shared_key, _waiting: waiting })
    }

    /// What to submit.
    pub fn operation(&self) -> RingOperation<'_> {
        match &self.halves {
            Some(halves) => RingOperation::WaitV(halves),
            None => RingOperation::Wait {
                address: self.place.word(),
                value: self.around.into(),
                mask: self.mask.into(),
                flags: SIZE_U32,
            },
        }
    }

    /// Is the word private, and so waited on by its shared key?
    pub fn is_private(&self) -> bool {
        self.by_shared_key.is_some()
    }

    /// The end of the wait, with the result of its completion: `Ok` after a wake, or for no reason.
    ///
    /// # Errors
    ///
    /// The ring's: EAGAIN ([`is_would_block`](crate::Error::is_would_block)) if the word, or a
    /// neighbour of a smaller one in the same 32 bits, holds another value: load, and begin anew.
    /// ECANCELED if it was called off, by a linked timeout for instance; EINVAL from kernels before
    /// 6.7, which do not know the operation; EFAULT, ENOMEM.
    pub fn complete(self, result: i32) -> Result<()> {
        if result >= 0 {
            return Ok(());
        }
        let errno = Errno::from_raw_os_error(result.saturating_neg());
        if errno == Errno::INVAL {
            let reason = "this ring does not wait for futexes (since Linux 6.7)";
            return Err(Error::because(Self::OPERATION, errno, reason));
        }
        Err(Error::new(Self::OPERATION, errno))
    }
}

impl<T: Word, S: Scope> Futex<T, S> {
    /// A wait that a ring of io_uring is to do, counted from here on (since Linux 6.7).
    ///
    /// Wakes count it as any waiter, and threads may wait on the word beside it. A private word must not
    /// lie in memory where another process has a private word, too: rings of both would share wakes.
    ///
    /// # Errors
    ///
    /// EAGAIN ([`is_would_block`](crate::Error::is_would_block)) if the value is not `expected` now;
    /// EOPNOTSUPP where [`choose_fences`](super::choose_fences) has chosen membarrier(2) and a
    /// filter refuses it since.
    pub fn ring_wait(&self, expected: T) -> Result<RingWait<'_>> {
        self.ring_wait_with(expected, Options::new())
    }

    /// [`ring_wait`](Self::ring_wait) with options: a mask, overlapping sizes.
    ///
    /// # Errors
    ///
    /// As [`ring_wait`](Self::ring_wait); EINVAL for a mask that does not fit.
    pub fn ring_wait_with(&self, expected: T, options: Options) -> Result<RingWait<'_>> {
        let side = self.side();
        // SAFETY: the word is borrowed for as long as the wait, and aligned.
        unsafe { RingWait::new(side.place, side.seat, expected.widen(), &options) }
    }
}

impl<T: Word> Futex<T, Counted> {
    /// [`ring_wait`](Futex::ring_wait) on a word of a domain. If this process is killed, the count
    /// is taken back as that of any waiter.
    ///
    /// # Errors
    ///
    /// As [`ring_wait`](Futex::ring_wait); EINVAL if the word is not one of the domain.
    pub fn ring_wait_in<'a>(&'a self, domain: &'a Domain, expected: T) -> Result<RingWait<'a>> {
        self.ring_wait_in_with(domain, expected, Options::new())
    }

    /// [`ring_wait_in`](Self::ring_wait_in) with options.
    ///
    /// # Errors
    ///
    /// As [`ring_wait_in`](Self::ring_wait_in); EINVAL for a mask that does not fit.
    pub fn ring_wait_in_with<'a>(
        &'a self,
        domain: &'a Domain,
        expected: T,
        options: Options,
    ) -> Result<RingWait<'a>> {
        let seat = self.seat_in(domain)?;
        // SAFETY: the word is borrowed for as long as the wait, and aligned.
        unsafe { RingWait::new(self.place(), seat, expected.widen(), &options) }
    }
}

impl Place {
    /// Wakes up to `n`, not 0, of those that a ring waits for by the shared key of this private
    /// word; how many.
    pub(super) fn wake_rings(&self, seat: Seat<'_>, n: u32, options: &Options) -> usize {
        if !self.private || !seat.has_rings() {
            return 0;
        }
        // EFAULT: nothing is there, so nobody waits.
        let wake = |word, n| futex::wake_bitset(word, false, n, self.mask(options)).unwrap_or(0);
        let mut woken = wake(self.word(), n);
        if self.bytes == 8 && options.overlapping && woken < n as usize {
            woken += wake(self.word().wrapping_add(1), n - woken as u32);
        }
        woken
    }
}

/// Whether rings wait for futexes here (`IORING_OP_FUTEX_WAIT`, since Linux 6.7), and nothing
/// refuses rings to this process.
///
/// It opens a ring, asks it, and closes it, at each call. A sandbox that ends a process for
/// io_uring_setup(2) ends this one: there, ask a ring that you have (`IORING_REGISTER_PROBE`).
pub fn has_ring_waits() -> bool {
    uring::has_futex_wait().unwrap_or(false)
}
