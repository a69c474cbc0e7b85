//! The pair of fences between a waiter that counts itself and a waker that looks at the count.
//!
//! Either both sides have an ordinary fence, or the waiter has one that reaches all threads of
//! the process, `membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED)` (since Linux 4.14), and the waker
//! only keeps the compiler from reordering. The second makes a wake that nobody waits for as
//! cheap as a load, and each wait dearer by 0.2 to 3 µs: for words that are woken a thousand
//! times for every wait.
//!
//! The choice is made once, by the first wait: a wake before it has its fence in any case.
//! Words in a [`Domain`](super::Domain) have ordinary fences always, for the other processes'
//! threads are not reached.

use crate::error::{Error, Result};
use crate::sync::{AtomicU32, Ordering, compiler_fence, fence};
use crate::sys::membarrier;
use core::fmt;
use rustix::io::Errno;

/// How waiters and wakers of this process see each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fences {
    /// An ordinary fence on both sides.
    Symmetric,
    /// membarrier(2) in the waiter, nothing in the waker.
    Membarrier,
}

impl fmt::Display for Fences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Symmetric => "symmetric",
            Self::Membarrier => "membarrier",
        })
    }
}

/// The environment variable that forces one.
const VARIABLE: &str = "UNMERGED_FUTEX2_FENCE";

const UNDECIDED: u32 = 0;
const SYMMETRIC: u32 = 1;
const MEMBARRIER: u32 = 2;
/// No fence at all, which loses wakes: a test shows that the fence is needed.
const BROKEN: u32 = 3;

static CHOICE: AtomicU32 = AtomicU32::new(UNDECIDED);

/// The fences of this process, decided by the first wait at the latest: `symmetric`, unless the
/// environment variable `UNMERGED_FUTEX2_FENCE` says `membarrier` and the kernel has it. Another
/// value is as none.
pub fn fences() -> Fences {
    match CHOICE.load(Ordering::Relaxed) {
        UNDECIDED => name(decide(None)),
        choice => name(choice),
    }
}

/// The fences of this process, if they were decided.
pub(crate) fn decided() -> Option<Fences> {
    let choice = CHOICE.load(Ordering::Relaxed);
    (choice != UNDECIDED).then(|| name(choice))
}

/// Chooses the fences of this process, once, before the first wait on a futex in it. What the
/// environment variable forces goes before.
///
/// [`Fences::Membarrier`] is `MEMBARRIER_CMD_PRIVATE_EXPEDITED` (since Linux 4.14).
///
/// # Errors
///
/// EBUSY if the other choice has been made; EOPNOTSUPP if the kernel, or a filter, does not
/// grant membarrier(2).
pub fn choose_fences(wanted: Fences) -> Result<()> {
    const OPERATION: &str = "futex2::choose_fences";
    let before = CHOICE.load(Ordering::Relaxed);
    let chosen = if before == UNDECIDED { decide(Some(wanted)) } else { before };
    if name(chosen) == wanted {
        Ok(())
    } else if before == UNDECIDED && wanted == Fences::Membarrier && !grants_membarrier() {
        Err(Error::because(OPERATION, Errno::OPNOTSUPP, "no membarrier"))
    } else {
        Err(Error::because(OPERATION, Errno::BUSY, "the other fences are in use"))
    }
}

const fn name(choice: u32) -> Fences {
    if choice == MEMBARRIER { Fences::Membarrier } else { Fences::Symmetric }
}

fn grants_membarrier() -> bool {
    let fence = membarrier::Fence::Private;
    membarrier::register(fence).is_ok() && membarrier::fence(fence).is_ok()
}

#[cold]
fn decide(wanted: Option<Fences>) -> u32 {
    let forced = std::env::var_os(VARIABLE);
    let wanted = match forced.as_ref().and_then(|value| value.to_str()) {
        Some("membarrier") => MEMBARRIER,
        Some("symmetric") => SYMMETRIC,
        Some("broken-for-tests") if cfg!(feature = "planted-faults") => BROKEN,
        _ if wanted == Some(Fences::Membarrier) => MEMBARRIER,
        _ => SYMMETRIC,
    };
    let ours = if wanted == MEMBARRIER && !grants_membarrier() { SYMMETRIC } else { wanted };
    // Whoever comes first decides; nobody has relied on a way yet.
    match CHOICE.compare_exchange(UNDECIDED, ours, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => ours,
        Err(theirs) => theirs,
    }
}

/// What was decided, or not yet.
#[cfg(not(all(test, loom)))]
#[inline]
fn choice() -> u32 {
    CHOICE.load(Ordering::Relaxed)
}

/// A model has no membarrier.
#[cfg(all(test, loom))]
fn choice() -> u32 {
    SYMMETRIC
}

/// The waiter's side, between its count and its look at the word; whether every waker that
/// stores from here on will find the count. If not, somebody has taken membarrier(2) away since
/// the choice: then the waiter may only nap.
pub(super) fn waiter() -> bool {
    fence(Ordering::SeqCst);
    let choice = choice();
    let choice = if choice == UNDECIDED { decide(None) } else { choice };
    choice != MEMBARRIER || {
        let reach = || membarrier::fence(membarrier::Fence::Private);
        // A child of vfork or of a raw clone may have lost the registration.
        reach().is_ok()
            || (membarrier::register(membarrier::Fence::Private).is_ok() && reach().is_ok())
    }
}

/// The waker's side, between its store and its look at the count.
#[inline]
pub(super) fn waker() {
    match choice() {
        MEMBARRIER => compiler_fence(Ordering::SeqCst),
        BROKEN if cfg!(feature = "planted-faults") => {}
        // Also before the choice: whatever the first waiter will choose, this is enough. A waker
        // does not choose, for it may be a signal handler.
        _ => fence(Ordering::SeqCst),
    }
}
