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
