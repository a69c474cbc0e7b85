//! futex(2), futex_waitv(2) and the futex2 calls. Words are raw pointers: they may lie in
//! memory that other processes write, under types of other sizes.

use super::errno;
use crate::abi::futex2::{
    FutexWaitv, MATCH_ANY, MPOL, NUMA, OP_CLOCK_REALTIME, OP_CMP_REQUEUE, OP_PRIVATE, OP_REQUEUE,
    OP_WAIT_BITSET, OP_WAKE_BITSET, PRIVATE, SIZE_U8, SIZE_U32, SYS_FUTEX, SYS_FUTEX_WAIT,
    SYS_FUTEX_WAITV, SYS_FUTEX_WAKE,
};
use core::ffi::c_long;
use core::ptr;
use rustix::io::{Errno, Result};
use rustix::time::Timespec;

// The kernel takes a word's address as a key, and for a wait it reads the word itself,
// answering EFAULT where it cannot: so none of these calls can break memory, and addresses
// travel as numbers. The exception is FUTEX2_NUMA, with which the kernel writes the word
// behind the futex: these functions refuse it, and FUTEX2_MPOL.

/// EINVAL for flags with which the kernel would write.
fn check_flags(flags: u32) -> Result<()> {
    if flags & (NUMA | MPOL) == 0 { Ok(()) } else { Err(Errno::INVAL) }
}

/// The clock of an absolute deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Clock {
    /// `CLOCK_MONOTONIC`.
    Monotonic,
    /// `CLOCK_REALTIME`.
    Realtime,
}

impl Clock {
    const fn id(self) -> c_long {
        match self {
            Self::Monotonic => libc::CLOCK_MONOTONIC as c_long,
            Self::Realtime => libc::CLOCK_REALTIME as c_long,
        }
    }
}

fn timespec(deadline: Option<&Timespec>) -> *const Timespec {
    deadline.map_or(ptr::null(), ptr::from_ref)
}

/// `futex(word, FUTEX_WAIT_BITSET, expected, deadline, _, mask)` — sleeps while
/// `*word == expected`, until a wake whose mask meets this one.
///
/// # Errors
///
/// EAGAIN if the word differs, ETIMEDOUT at the deadline, EINTR after any handled signal
/// when there is a deadline, EINVAL for a bad timespec, alignment or an empty mask, EFAULT
/// for an address that is not mapped.
#[inline]
pub fn wait_bitset(
    word: *const u32,
    private: bool,
    expected: u32,
    clock: Clock,
    deadline: Option<&Timespec>,
    mask: u32,
) -> Result<()> {
    let mut op = OP_WAIT_BITSET;
    if private {
        op |= OP_PRIVATE;
    }
    if clock == Clock::Realtime {
        op |= OP_CLOCK_REALTIME;
    }
    let (word, deadline, none) = (word.expose_provenance(), timespec(deadline), 0_usize);
    // SAFETY: the kernel checks every address; the timespec outlives the call.
    errno::count(unsafe { libc::syscall(SYS_FUTEX, word, op, expected, deadline, none, mask) })?;
    Ok(())
}

/// `futex(word, FUTEX_WAKE_BITSET, n, _, _, mask)` — wakes up to `n` waiters whose mask
/// meets this one; answers how many. `n = 0` wakes **one**, as the kernel has it.
///
/// # Errors
///
/// EFAULT for an address that is not mapped (shared words), EINVAL for bad alignment or an
/// empty mask.
#[inline]
pub fn wake_bitset(word: *const u32, private: bool, n: u32, mask: u32) -> Result<usize> {
    let op = OP_WAKE_BITSET | if private { OP_PRIVATE } else { 0 };
    let n = n.min(i32::MAX as u32);
    let (word, deadline, none) = (word.expose_provenance(), 0_usize, 0_usize);
    // SAFETY: a wake reads no memory of ours; the address is a key.
    errno::count(unsafe { libc::syscall(SYS_FUTEX, word, op, n, deadline, none, mask) })
}

/// `futex_waitv(entries, nr, 0, deadline, clock)` — sleeps while every entry holds its
/// value; answers the index of one that was woken (since Linux 5.16).
///
/// Entries are compared and queued in array order.
///
/// # Errors
///
/// ENOSYS before Linux 5.16, EAGAIN if a word differs, ETIMEDOUT at the deadline, EINTR
/// after a signal without `SA_RESTART`, EINVAL for 0 or more than 128 entries, flags,
/// alignment or timespec, EFAULT for an address that is not mapped.
#[inline]
pub fn waitv(entries: &[FutexWaitv], clock: Clock, deadline: Option<&Timespec>) -> Result<usize> {
    entries.iter().try_for_each(|entry| check_flags(entry.flags))?;
    let (first, len) = (entries.as_ptr(), entries.len());
    let (deadline, clock) = (timespec(deadline), clock.id());
    // SAFETY: the entries outlive the call; the kernel checks the addresses in them.
    errno::count(unsafe { libc::syscall(SYS_FUTEX_WAITV, first, len, 0_u32, deadline, clock) })
}

/// `futex_wait(pair, expected, mask, flags, deadline, clock)` with `FUTEX2_NUMA` among the flags
/// (since Linux 6.16): behind the word there is one for the node, which the kernel writes if it
/// holds -1.
///
/// # Errors
///
/// As [`waitv`]; EINVAL for a pair that is not aligned to 8 or a node that is none.
///
/// # Safety
///
/// Both words are valid, and reached as atomics.
pub unsafe fn wait_numa(
    pair: *mut u32,
    expected: u64,
    mask: u64,
    flags: u32,
    clock: Clock,
    deadline: Option<&Timespec>,
) -> Result<()> {
    let (deadline, clock) = (timespec(deadline), clock.id());
    // SAFETY: the caller vouches for the pair; the timespec outlives the call.
    errno::count(unsafe {
        libc::syscall(SYS_FUTEX_WAIT, pair, expected, mask, flags, deadline, clock)
    })?;
    Ok(())
}

/// `futex_wake(pair, mask, n, flags)` with `FUTEX2_NUMA` among the flags (since Linux 6.16); answers
/// how many. `n = 0` wakes none.
///
/// # Errors
///
/// EINVAL for flags or mask, EFAULT (shared words); EINVAL for a pair that is not aligned to 8 or a node that is none.
///
/// # Safety
///
/// As [`wait_numa`].
pub unsafe fn wake_numa(pair: *mut u32, mask: u64, n: u32, flags: u32) -> Result<usize> {
    let n = n.min(i32::MAX as u32);
    // SAFETY: the caller vouches for the pair.
    errno::count(unsafe { libc::syscall(SYS_FUTEX_WAKE, pair, mask, n, flags) })
}

/// `futex(word, FUTEX_CMP_REQUEUE, wake, requeue, target, expected)` — if the word holds
/// `expected`, wakes `wake` of its waiters and moves up to `requeue` others to `target`; answers
/// how many of both. `FUTEX_REQUEUE`, without the comparison, if nothing is expected.
///
/// # Errors
///
/// EAGAIN if the word differs, EFAULT for an address that is not mapped (shared words; with an
/// expectation, private ones too), EINVAL for bad alignment.
#[inline]
pub fn cmp_requeue(
    word: *const u32,
    private: bool,
    wake: u32,
    requeue: u32,
    target: *const u32,
    expected: Option<u32>,
) -> Result<usize> {
    let op = if expected.is_some() { OP_CMP_REQUEUE } else { OP_REQUEUE };
    let op = op | if private { OP_PRIVATE } else { 0 };
    let [wake, requeue] = [wake, requeue].map(|n| n.min(i32::MAX as u32) as usize);
    let (word, target) = (word.expose_provenance(), target.expose_provenance());
    let expected = expected.unwrap_or(0);
    // SAFETY: the kernel checks both addresses, and writes to neither.
    errno::count(unsafe { libc::syscall(SYS_FUTEX, word, op, wake, requeue, target, expected) })
}

/// Is there a word to wait on? A comparison that moves and wakes nobody: unlike a wait whose
/// deadline has passed it is in no queue for a moment, where it could take a wake from a waiter.
///
/// # Errors
///
/// EFAULT for an address that is not mapped or cannot be waited on, EINVAL for bad alignment.
pub fn look(word: *const u32, private: bool) -> Result<()> {
    match cmp_requeue(word, private, 0, 0, word, Some(0)) {
        Ok(_) | Err(Errno::AGAIN) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Does this kernel have futex_waitv(2), and does nothing refuse it to us?
///
/// A word that differs is EAGAIN where the call is there. A filter may answer anything else.
pub fn has_waitv() -> bool {
    let word = 0_u32;
    let uaddr = (&raw const word).expose_provenance() as u64;
    let entry = FutexWaitv { val: 1, uaddr, flags: SIZE_U32 | PRIVATE, reserved: 0 };
    waitv(&[entry], Clock::Monotonic, None) == Err(Errno::AGAIN)
}

/// Does this kernel have futex_wake(2), futex_wait(2) and futex_requeue(2), and does nothing
/// refuse them to us? Asked with a size that no kernel takes.
pub fn has_futex2() -> bool {
    let (nowhere, mask, n) = (0_usize, 0_u64, 0_u32);
    // SAFETY: a wake reads no memory of ours, and this one has no address.
    let answer = unsafe { libc::syscall(SYS_FUTEX_WAKE, nowhere, mask, n, SIZE_U8) };
    errno::count(answer) == Err(Errno::INVAL)
}

/// Does this kernel have `FUTEX2_NUMA`? Asked with a wake on a pair of ours, whose node
/// word is -1 and is written by the kernel.
pub fn has_numa() -> bool {
    #[repr(align(8))]
    struct Pair([u32; 2]);
    let mut pair = Pair([0, u32::MAX]);
    let (word, flags) = (pair.0.as_mut_ptr(), SIZE_U32 | PRIVATE | NUMA);
    // SAFETY: the kernel writes at most the second word of the pair.
    let answer = unsafe { libc::syscall(SYS_FUTEX_WAKE, word, MATCH_ANY, 1_u32, flags) };
    answer == 0
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn mismatch_then_expired_deadline() {
        let word = 7_u32;
        let past = Timespec { tv_sec: 0, tv_nsec: 1 };
        let wait = |expected, deadline| {
            wait_bitset(&raw const word, true, expected, Clock::Monotonic, deadline, 1)
        };
        assert_eq!(wait(8, Some(&past)), Err(Errno::AGAIN));
        assert_eq!(wait(7, Some(&past)), Err(Errno::TIMEDOUT));
        assert_eq!(wait(7, Some(&Timespec { tv_sec: -1, tv_nsec: 0 })), Err(Errno::INVAL));
        let nanos = Timespec { tv_sec: 0, tv_nsec: 1_000_000_000 };
        assert_eq!(wait(7, Some(&nanos)), Err(Errno::INVAL));
    }

    #[test]
    fn a_look_wakes_nobody() {
        let word = 0_u32;
        std::thread::scope(|scope| {
            let address = (&raw const word).expose_provenance();
            let end = Timespec { tv_sec: i64::MAX, tv_nsec: 0 };
            let waiter = scope.spawn(move || {
                let word = ptr::with_exposed_provenance(address);
                wait_bitset(word, true, 0, Clock::Monotonic, Some(&end), 1)
            });
            loop {
                for private in [true, false] {
                    assert_eq!(look(&raw const word, private), Ok(()));
                }
                if wake_bitset(&raw const word, true, 1, 1) == Ok(1) {
                    break;
                }
                std::thread::yield_now();
            }
            assert_eq!(waiter.join().unwrap(), Ok(()));
        });
        assert_eq!(look(ptr::without_provenance(8), true), Err(Errno::FAULT));
        assert_eq!(look(ptr::without_provenance(8), false), Err(Errno::FAULT));
        assert_eq!(look(ptr::without_provenance(9), true), Err(Errno::INVAL));
    }

    #[test]
    fn wake_of_nobody() {
        let word = 0_u32;
        assert_eq!(wake_bitset(&raw const word, true, 1, MATCH_ANY), Ok(0));
        assert_eq!(wake_bitset(&raw const word, false, 1, 0), Err(Errno::INVAL));
        let odd = (&raw const word).cast::<u8>().wrapping_add(1).cast::<u32>();
        assert_eq!(wake_bitset(odd, true, 1, MATCH_ANY), Err(Errno::INVAL));
    }

    #[test]
    fn vectors() {
        let word = 7_u32;
        let entry = |val| FutexWaitv {
            val,
            uaddr: (&raw const word).expose_provenance() as u64,
            flags: SIZE_U32 | PRIVATE,
            reserved: 0,
        };
        if has_waitv() {
            assert_eq!(waitv(&[], Clock::Monotonic, None), Err(Errno::INVAL));
            assert_eq!(waitv(&[entry(8)], Clock::Monotonic, None), Err(Errno::AGAIN));
            assert_eq!(waitv(&[entry(7); 129], Clock::Monotonic, None), Err(Errno::INVAL));
        }
    }
}
