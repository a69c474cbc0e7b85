//! The operations on plain atomics, on which others may wait too.
//!
//! A [`Futex`] owns its word, so a wake that nobody waits for can be skipped. Others (libc, the
//! standard library, a peer in C) may wait on a plain atomic without counting themselves: so
//! these wakes always ask the kernel. Waits of others have no mask and no size: any wake of
//! ours on their 32 bits may reach them, and any of theirs reaches ours.

use super::requeue::Side;
use super::{Deadline, Options, Scope, Waiter};
use super::{Futex, Word};
use crate::error::Result;
use crate::sync::{AtomicU8, AtomicU16, AtomicU32, AtomicU64};

/// The atomics that can be waited on: `AtomicU8`, `AtomicU16`, `AtomicU32`, `AtomicU64`.
pub trait Atomic: sealed::Sealed {
    /// The number in it.
    type Value: Word<Atomic = Self>;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! atomic {
    ($($atomic:ident: $value:ty),+) => { $(
        impl sealed::Sealed for $atomic {}
        impl Atomic for $atomic {
            type Value = $value;
        }
    )+ };
}

atomic!(AtomicU8: u8, AtomicU16: u16, AtomicU32: u32, AtomicU64: u64);

fn futex<A: Atomic, S: Scope>(word: &A, _: S) -> &Futex<A::Value, S> {
    Futex::of(word)
}

/// Sleeps while the word holds `expected`, until a wake or the deadline: [`Futex::wait`] on a plain
/// atomic.
///
/// ```
/// use core::sync::atomic::AtomicU16;
/// use unmerged::futex2::{self, Shared};
///
/// let word = AtomicU16::new(1);
/// assert!(futex2::wait(&word, Shared, 0, None).unwrap_err().is_would_block());
/// assert_eq!(futex2::wake(&word, Shared, 1)?, 0);
/// # Ok::<(), unmerged::Error>(())
/// ```
///
/// # Errors
///
/// As [`Futex::wait`].
pub fn wait<A: Atomic>(
    word: &A,
    scope: impl Scope,
    expected: A::Value,
    deadline: Option<Deadline>,
) -> Result<()> {
    futex(word, scope).wait(expected, deadline)
}

/// [`wait`] with options.
///
/// # Errors
///
/// As [`Futex::wait_with`].
pub fn wait_with<A: Atomic>(
    word: &A,
    scope: impl Scope,
    expected: A::Value,
    deadline: Option<Deadline>,
    options: Options,
) -> Result<()> {
    futex(word, scope).wait_with(expected, deadline, options)
}

/// Wakes up to `n` waiters, those that others put there included; answers how many.
///
/// # Errors
///
/// EFAULT if the memory behind a shared word is gone.
pub fn wake<A: Atomic>(word: &A, scope: impl Scope, n: u32) -> Result<usize> {
    wake_with(word, scope, n, Options::new())
}

/// [`wake`] with options.
///
/// # Errors
///
/// As [`Futex::wake_with`].
pub fn wake_with<A: Atomic>(
    word: &A,
    scope: impl Scope,
    n: u32,
    options: Options,
) -> Result<usize> {
    let Side { place, seat, .. } = futex(word, scope).side();
    place.wake(seat, n, options, false)
}

/// An entry for [`waitv`](super::waitv).
pub fn waiter<A: Atomic>(word: &A, scope: impl Scope, expected: A::Value) -> Waiter<'_> {
    futex(word, scope).waiter(expected)
}

/// Wakes up to `wake` waiters of `from` and lets up to `requeue` others wait on `to`: see
/// [`Futex::requeue`].
///
/// # Errors
///
/// EFAULT if the memory behind a shared word is gone.
pub fn requeue<A: Atomic, B: Atomic>(
    from: (&A, impl Scope),
    to: (&B, impl Scope),
    wake: u32,
    requeue: u32,
) -> Result<usize> {
    // SAFETY: nothing is expected.
    unsafe { super::requeue::requeue(side(from), None, side(to), wake, requeue) }
}

/// [`requeue`] if `from` holds `expected`.
///
/// # Errors
///
/// As [`Futex::cmp_requeue`].
pub fn cmp_requeue<A: Atomic, B: Atomic>(
    from: (&A, impl Scope),
    expected: A::Value,
    to: (&B, impl Scope),
    wake: u32,
    requeue: u32,
) -> Result<usize> {
    let expected = Some(expected.widen());
    // SAFETY: the word is borrowed, and aligned.
    unsafe { super::requeue::requeue(side(from), expected, side(to), wake, requeue) }
}

fn side<A: Atomic>((word, scope): (&A, impl Scope)) -> Side<'_> {
    Side { skip: false, ..futex(word, scope).side() }
}
