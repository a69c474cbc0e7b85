//! How this process waits on 64 bits.

use crate::sync::{AtomicU32, Ordering};
use crate::sys::features::features;
use core::fmt;

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

impl fmt::Display for Implementation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Waitv => "waitv",
            Self::Shadow => "shadow",
        })
    }
}

/// The implementation of this process, decided at the first use: `waitv` where the kernel
/// has it, unless the environment variable `UNMERGED_FUTEX2` says `shadow`.
///
/// It concerns waits on 64 bits alone; the other sizes are the same on every kernel.
#[inline]
pub fn implementation() -> Implementation {
    static CHOICE: AtomicU32 = AtomicU32::new(UNKNOWN);
    match CHOICE.load(Ordering::Relaxed) {
        WAITV => Implementation::Waitv,
        SHADOW => Implementation::Shadow,
        _ => {
            let forced = std::env::var_os(VARIABLE).is_some_and(|wanted| wanted == "shadow");
            let (choice, implementation) = if features().waitv && !forced {
                (WAITV, Implementation::Waitv)
            } else {
                (SHADOW, Implementation::Shadow)
            };
            CHOICE.store(choice, Ordering::Relaxed);
            implementation
        }
    }
}

/// Who keeps the node of a [`NumaFutex`](super::NumaFutex).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Numa {
    /// The kernel, by `FUTEX2_NUMA`.
    Kernel,
    /// We: it is a word, and the queue is where it is.
    Here,
}

/// As [`implementation()`]; `UNMERGED_FUTEX2_NUMA=here` forces the second.
pub(super) fn numa() -> Numa {
    static CHOICE: AtomicU32 = AtomicU32::new(UNKNOWN);
    const KERNEL: u32 = 1;
    const HERE: u32 = 2;
    match CHOICE.load(Ordering::Relaxed) {
        KERNEL => Numa::Kernel,
        HERE => Numa::Here,
        _ => {
            let forced = std::env::var_os("UNMERGED_FUTEX2_NUMA").is_some_and(|way| way == "here");
            let (choice, numa) = if features().futex_numa && !forced {
                (KERNEL, Numa::Kernel)
            } else {
                (HERE, Numa::Here)
            };
            CHOICE.store(choice, Ordering::Relaxed);
            numa
        }
    }
}
