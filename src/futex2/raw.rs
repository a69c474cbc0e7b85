//! The proposal's calls as they would be in C: addresses, flags, errno.
//!
//! For those who port code that has the flags already. [`Futex`](super::Futex) is the same with types,
//! which rule out most of these errors. The signatures are those of the kernel's calls (futex_waitv(2)
//! since Linux 5.16, the others since 6.7), which take 32 bits alone; these take all sizes from Linux
//! 5.10 on, as the proposal has it: see the [references](super#references).
//!
//! # Errors
//!
//! | condition | errno |
//! |---|---|
//! | unknown flag; call flags that are not 0 | EINVAL |
//! | address not aligned to the size | EINVAL |
//! | address outside of user space | EFAULT |
//! | nothing there to read; shared: also for a wake, and for both sides of a move | EFAULT |
//! | value or mask wider than the size; mask of no bits; mask that is not full on other sizes than 32 | EINVAL |
//! | a vector of none or more than 128; array null; reserved field not 0 | EINVAL |
//! | array or timespec that cannot be read | EFAULT |
//! | value differs, also if the deadline has passed | EAGAIN |
//! | clock that is neither, with a timeout; malformed timespec | EINVAL |
//! | deadline passed | ETIMEDOUT |
//! | a move of less than 0 | EINVAL |
//! | a wake of 0 | 0, nobody is woken |
//! | a wake of less than 0 | one is woken, as by the kernel |
//! | a flag for a NUMA node: [`NumaFutex`](super::NumaFutex) is a type of its own | EINVAL |
//! | no memory for a vector, or for 64 bits | ENOMEM |
//!
//! A wake of a private address where nothing is mapped is 0. None of these wakes is skipped.

use super::place::Place;
use super::requeue::Side;
use super::seat::Seat;
use super::vector::{Waiter, waitv_with};
use super::{Deadline, Options};
pub use crate::abi::futex2::{FutexWaitv, PRIVATE, SIZE_U8, SIZE_U16, SIZE_U32, SIZE_U64};
use crate::error::{Error, Result};
use crate::sys::futex;
use crate::sys::memory;
use core::marker::PhantomData;
use core::ptr;
use core::time::Duration;
use rustix::io::Errno;

/// The end of what user space can map.
const USER: usize = 0x7fff_ffff_f000;

/// A point on a clock, as in C (`struct __kernel_timespec`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Timespec {
    /// Seconds.
    pub tv_sec: i64,
    /// Nanoseconds, below 1,000,000,000.
    pub tv_nsec: i64,
}

/// A call that fails.
fn fail<T>(operation: &'static str, errno: Errno, reason: &'static str) -> Result<T> {
    Err(Error::because(operation, errno, reason))
}

/// The word that address and flags name, checked without a look at it.
fn place(operation: &'static str, address: usize, flags: u32) -> Result<Place> {
    if flags & !(PRIVATE | SIZE_U64) != 0 {
        return fail(operation, Errno::INVAL, "an unknown flag");
    }
    let bytes = 1_usize << (flags & SIZE_U64);
    if !address.is_multiple_of(bytes) {
        return fail(operation, Errno::INVAL, "the address is not aligned to the size");
    }
    if address > USER - bytes {
        return fail(operation, Errno::FAULT, "the address is outside of user space");
    }
    let private = flags & PRIVATE != 0;
    Ok(Place { address: ptr::with_exposed_provenance(address), bytes, private })
}

fn seat(place: &Place) -> Seat<'static> {
    if place.private { Seat::private(place.address.addr()) } else { Seat::NOWHERE }
}

/// All bits of a size.
fn full(place: &Place) -> u64 {
    u64::MAX >> (64 - 8 * place.bytes)
}

fn check_value(operation: &'static str, place: &Place, value: u64) -> Result<()> {
    if value & !full(place) == 0 {
        return Ok(());
    }
    fail(operation, Errno::INVAL, "the value is wider than the size")
}

fn masked(operation: &'static str, place: &Place, mask: u64) -> Result<Options> {
    if mask == full(place) {
        return Ok(Options::new());
    }
    match u32::try_from(mask) {
        Ok(mask) => {
            let options = Options::new().mask(mask);
            options.check(operation, place.bytes).map(|()| options)
        }
        Err(_) => fail(operation, Errno::INVAL, "the mask is wider than the size"),
    }
}

/// Asks the kernel whether there is a word.
fn probe(operation: &'static str, place: &Place) -> Result<()> {
    let words = if place.bytes == 8 { 2 } else { 1 };
    for n in 0..words {
        futex::look(place.word().wrapping_add(n), place.private)
            .map_err(|errno| Error::new(operation, errno))?;
    }
    Ok(())
}

/// # Safety
///
/// The pointer is null, or its memory is not written meanwhile.
unsafe fn deadline(
    operation: &'static str,
    timeout: *const Timespec,
    clock: i32,
) -> Result<Option<Deadline>> {
    if timeout.is_null() {
        return Ok(None);
    }
    let mut time = Timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: two numbers, which any bits are.
    unsafe { memory::copy(timeout, &raw mut time, 1) }
        .map_err(|errno| Error::new(operation, errno))?;
    let (sec, nsec) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec));
    let at = match (sec, nsec) {
        (Ok(sec), Ok(nsec)) if nsec < 1_000_000_000 => Duration::new(sec, nsec),
        _ => return fail(operation, Errno::INVAL, "no timespec"),
    };
    match clock {
        libc::CLOCK_MONOTONIC => Ok(Some(Deadline::monotonic(at))),
        libc::CLOCK_REALTIME => Ok(Some(Deadline::realtime(at))),
        _ => fail(operation, Errno::INVAL, "a clock that is neither monotonic nor realtime"),
    }
}

/// `futex_wait(address, value, mask, flags, timeout, clock)` — sleeps while the word holds `value`.
///
/// # Errors
///
/// See the [module](self).
///
/// # Safety
///
/// What is mapped at the address at first stays mapped; the timespec is not written meanwhile.
pub unsafe fn wait(
    address: usize,
    value: u64,
    mask: u64,
    flags: u32,
    timeout: *const Timespec,
    clock: i32,
) -> Result<()> {
    const OPERATION: &str = "futex2::raw::wait";
    let place = place(OPERATION, address, flags)?;
    check_value(OPERATION, &place, value)?;
    let options = masked(OPERATION, &place, mask)?;
    // SAFETY: forwarded.
    let deadline = unsafe { deadline(OPERATION, timeout, clock) }?;
    probe(OPERATION, &place)?;
    // SAFETY: aligned, and there is memory, which stays.
    unsafe { place.wait(seat(&place), value, deadline, options) }
}

/// `futex_wake(address, mask, nr, flags)` — wakes up to `nr` waiters; answers how many.
///
/// # Errors
///
/// See the [module](self).
pub fn wake(address: usize, mask: u64, nr: i32, flags: u32) -> Result<usize> {
    const OPERATION: &str = "futex2::raw::wake";
    let place = place(OPERATION, address, flags)?;
    let options = masked(OPERATION, &place, mask)?;
    if !place.private {
        probe(OPERATION, &place)?;
    }
    let n = if nr < 0 { 1 } else { nr.unsigned_abs() };
    place.wake(seat(&place), n, options, false)
}

/// Reads an array of the caller's.
///
/// # Safety
///
/// Its memory is not written meanwhile.
unsafe fn entries(
    operation: &'static str,
    from: *const FutexWaitv,
    n: usize,
) -> Result<Vec<(Place, FutexWaitv)>> {
    if from.is_null() {
        return fail(operation, Errno::INVAL, "no array");
    }
    let mut entries = vec![FutexWaitv::default(); n];
    // SAFETY: numbers, which any bits are, and room for them.
    unsafe { memory::copy(from, entries.as_mut_ptr(), n) }
        .map_err(|errno| Error::new(operation, errno))?;
    let check = |entry: FutexWaitv| {
        if entry.reserved != 0 {
            return fail(operation, Errno::INVAL, "the reserved field is not 0");
        }
        let place = place(operation, entry.uaddr as usize, entry.flags)?;
        Ok((place, entry))
    };
    entries.into_iter().map(check).collect()
}

/// `futex_waitv(waiters, n, flags, timeout, clock)` — sleeps while every word holds its value;
/// answers the index of one that was woken.
///
/// # Errors
///
/// See the [module](self).
///
/// # Safety
///
/// What is mapped at the addresses at first stays mapped; array and timespec are not written
/// meanwhile.
pub unsafe fn waitv(
    waiters: *const FutexWaitv,
    n: u32,
    flags: u32,
    timeout: *const Timespec,
    clock: i32,
) -> Result<usize> {
    const OPERATION: &str = "futex2::raw::waitv";
    if flags != 0 {
        return fail(OPERATION, Errno::INVAL, "an unknown flag of the call");
    }
    if n == 0 || n as usize > crate::abi::futex2::WAITV_MAX {
        return fail(OPERATION, Errno::INVAL, "a vector has 1 to 128 entries");
    }
    // SAFETY: forwarded.
    let deadline = unsafe { deadline(OPERATION, timeout, clock) }?;
    // SAFETY: forwarded.
    let entries = unsafe { entries(OPERATION, waiters, n as usize) }?;
    let waiter = |(place, entry): (Place, FutexWaitv)| {
        check_value(OPERATION, &place, entry.val)?;
        probe(OPERATION, &place)?;
        let seat = seat(&place);
        Ok(Waiter { place, seat, expected: entry.val, word: PhantomData })
    };
    let waiters: Vec<Waiter<'_>> = entries.into_iter().map(waiter).collect::<Result<_>>()?;
    waitv_with(&waiters, deadline, Options::new())
}

/// `futex_requeue(pair, flags, wake, requeue)` — if the first word holds its value, wakes `wake` of its
/// waiters and lets up to `requeue` others wait on the second instead; answers how many of both.
/// The value of the second is not looked at. Sizes and scopes may differ.
///
/// # Errors
///
/// See the [module](self).
///
/// # Safety
///
/// What is mapped at the addresses at first stays mapped; the pair is not written meanwhile.
pub unsafe fn requeue(
    pair: *const FutexWaitv,
    flags: u32,
    wake: i32,
    requeue: i32,
) -> Result<usize> {
    const OPERATION: &str = "futex2::raw::requeue";
    if flags != 0 {
        return fail(OPERATION, Errno::INVAL, "an unknown flag of the call");
    }
    // SAFETY: forwarded.
    let entries = unsafe { entries(OPERATION, pair, 2) }?;
    let (Ok(wake), Ok(requeue)) = (u32::try_from(wake), u32::try_from(requeue)) else {
        return fail(OPERATION, Errno::INVAL, "a count is below 0");
    };
    let [(from, entry), (to, _)] = entries[..] else {
        return fail(OPERATION, Errno::INVAL, "no pair");
    };
    check_value(OPERATION, &from, entry.val)?;
    probe(OPERATION, &from)?;
    if !to.private {
        probe(OPERATION, &to)?;
    }
    let side = |place: Place| Side { place, seat: seat(&place), skip: false };
    // SAFETY: aligned, and there is memory, which stays.
    unsafe { super::requeue::requeue(side(from), Some(entry.val), side(to), wake, requeue) }
}
