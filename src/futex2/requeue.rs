//! Moving waiters from one word to another.
//!
//! The kernel moves waiters between two words of 32 bits, or two of 64, in one scope: both private,
//! both shared, or both counted in one domain. It knows no masks here and leaves each waiter its
//! own, so words of 8 and 16 bits, of different sizes and of different scopes are outside of
//! what it can do (since 2026 it refuses scopes that differ). There, as many waiters are woken as would have been
//! woken and moved: a wait may return for no reason, so they look at their words and wait
//! again, where the new word is.
//!
//! Before waiters are moved, the new word's place is pinned in the counts: `counts.rs`.

use super::place::Place;
use super::seat::Seat;
use super::{Options, vector};
use crate::error::{Error, Result};
use crate::sys::futex;
use rustix::io::Errno;

/// A word and where its waiters are counted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Side<'a> {
    pub(super) place: Place,
    pub(super) seat: Seat<'a>,
    /// All that wait on it count themselves.
    pub(super) skip: bool,
}

const OPERATION: &str = "futex2::requeue";

/// If the first word holds `expected`, wakes `wake` of its waiters and moves up to `requeue`
/// others to the second; how many of both.
///
/// # Safety
///
/// With an expectation, the address of the first must be valid, and aligned to the size.
pub(super) unsafe fn requeue(
    from: Side<'_>,
    expected: Option<u64>,
    to: Side<'_>,
    wake: u32,
    requeue: u32,
) -> Result<usize> {
    if let Some(expected) = expected {
        // SAFETY: forwarded.
        if unsafe { from.place.load() } != expected {
            return Err(Error::new(OPERATION, Errno::AGAIN));
        }
    }
    if from.skip && !from.seat.has_waiters() {
        return Ok(0);
    }
    let most = (wake as usize).saturating_add(requeue as usize);
    let counted = from.seat.enter();
    if !can_move(&from, &to) || !from.seat.pin(&to.seat) {
        drop(counted);
        let n = u32::try_from(most).unwrap_or(u32::MAX);
        return from.place.wake(from.seat, n, Options::new(), false);
    }
    // Pinned: ordered before what the kernel does, as a waiter's count is.
    let pinned = from.seat.enter();
    if !pinned.sure {
        let n = u32::try_from(most).unwrap_or(u32::MAX);
        return from.place.wake(from.seat, n, Options::new(), false);
    }
    let value = expected.map(|value| value as u32);
    let (source, target) = (from.place.word(), to.place.word());
    let moved = futex::cmp_requeue(source, from.place.private, wake, requeue, target, value)
        .map_err(|errno| Error::new(OPERATION, errno))?;
    let mut done = moved;
    // Those that sleep on something else cannot be moved.
    if done < most {
        let left = u32::try_from(most - done).unwrap_or(u32::MAX);
        done += from.place.wake_rings(from.seat, left, &Options::new());
    }
    if done < most {
        done += from.place.wake_in_shadow(from.seat, most - done, &Options::new());
    }
    drop(counted);
    Ok(done)
}

fn can_move(from: &Side<'_>, to: &Side<'_>) -> bool {
    let queued = from.place.bytes == 4 || (from.place.bytes == 8 && vector::queues());
    queued && from.place.bytes == to.place.bytes && from.place.private == to.place.private
}
