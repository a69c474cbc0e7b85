//! How this process waits on 64 bits.

use crate::sync::{AtomicU32, Ordering};
use crate::sys::features::features;
use core::fmt;
use rustix::io::Errno;

/// What a wait on 64 bits sleeps on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Implementation {
    /// Both halves, by futex_waitv(2) (since Linux 5.16).
    Waitv,
    /// A shadow word, or a glance now and then; see the [module](crate::futex2).
    Shadow,
}

/// The environment variable that forces one.
const VARIABLE: &str = "UNMERGED_FUTEX2";

const UNKNOWN: u32 = 0;
const WAITV: u32 = 1;
const SHADOW: u32 = 2;
/// The halves in the wrong order, which loses wakes: a test shows that the order is needed.
const EXCHANGED: u32 = 3;

impl fmt::Display for Implementation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Waitv => "waitv",
            Self::Shadow => "shadow",
        })
    }
}

static CHOICE: AtomicU32 = AtomicU32::new(UNKNOWN);

/// Whether this answer of futex_waitv(2) is none of the kernel's to a vector without a fault: a
/// filter, which was set up after the choice was made, refuses the call. Then from here on the
/// process goes the other way.
#[cold]
pub(super) fn is_refused(errno: Errno) -> bool {
    use Errno as E;
    let own = [E::AGAIN, E::TIMEDOUT, E::INTR, E::NOMEM, E::FAULT].contains(&errno);
    if !own {
        CHOICE.store(SHADOW, Ordering::Relaxed);
    }
    !own
}

/// The implementation of this process, decided at the first use: `waitv` where the kernel
/// has it, unless the environment variable `UNMERGED_FUTEX2` says `shadow` (another value is as none).
/// A filter that refuses the call later on changes it, when a wait finds out: for all threads of the
/// process, though filters are per thread, and for good.
///
/// It concerns waits on 64 bits alone; the other sizes are the same on every kernel.
#[inline]
pub fn implementation() -> Implementation {
    match CHOICE.load(Ordering::Relaxed) {
        WAITV | EXCHANGED => Implementation::Waitv,
        SHADOW => Implementation::Shadow,
        _ => {
            let forced = std::env::var_os(VARIABLE);
            let is = |name: &str| forced.as_ref().is_some_and(|forced| forced == name);
            let (choice, implementation) = if !features().waitv || is("shadow") {
                (SHADOW, Implementation::Shadow)
            } else {
                let exchanged = cfg!(feature = "planted-faults") && is("exchanged-for-tests");
                let choice = if exchanged { EXCHANGED } else { WAITV };
                (choice, Implementation::Waitv)
            };
            CHOICE.store(choice, Ordering::Relaxed);
            implementation
        }
    }
}

/// For a test: see [`EXCHANGED`].
pub(super) fn are_halves_exchanged() -> bool {
    CHOICE.load(Ordering::Relaxed) == EXCHANGED
}

/// Who keeps the node of a [`NumaFutex`](super::NumaFutex).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Numa {
    /// The kernel, by `FUTEX2_NUMA`.
    Kernel,
    /// We: it is a word, and the queue is where it is.
    Here,
}

static NUMA_CHOICE: AtomicU32 = AtomicU32::new(UNKNOWN);

const KERNEL: u32 = 1;
const HERE: u32 = 2;

/// As [`is_refused`], of futex_wait(2) and futex_wake(2) with a node.
#[cold]
pub(super) fn is_numa_refused(errno: Errno) -> bool {
    use Errno as E;
    let own = [E::AGAIN, E::TIMEDOUT, E::INTR, E::NOMEM, E::FAULT, E::INVAL].contains(&errno);
    if !own {
        NUMA_CHOICE.store(HERE, Ordering::Relaxed);
    }
    !own
}

/// As [`implementation()`]; `UNMERGED_FUTEX2_NUMA=here` forces the second.
pub(super) fn numa() -> Numa {
    match NUMA_CHOICE.load(Ordering::Relaxed) {
        KERNEL => Numa::Kernel,
        HERE => Numa::Here,
        _ => {
            let forced = std::env::var_os("UNMERGED_FUTEX2_NUMA").is_some_and(|way| way == "here");
            let (choice, numa) = if features().futex_numa && !forced {
                (KERNEL, Numa::Kernel)
            } else {
                (HERE, Numa::Here)
            };
            NUMA_CHOICE.store(choice, Ordering::Relaxed);
            numa
        }
    }
}
