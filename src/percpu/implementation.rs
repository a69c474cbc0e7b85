//! Which of the three implementations this process uses.

use super::stripes;
use crate::sys::features::Features;
use crate::sys::{gs, rseq};
use core::fmt;

/// How an update reaches its stripe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Implementation {
    /// `%gs`-relative rseq windows.
    Gs,
    /// rseq windows on an address indexed by CPU.
    Rseq,
    /// Atomics on stripes of their own.
    Portable,
}

/// The environment variable that forces one.
const VARIABLE: &str = "UNMERGED_PERCPU";

impl Implementation {
    /// The name that `UNMERGED_PERCPU` takes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gs => "gs",
            Self::Rseq => "rseq",
            Self::Portable => "portable",
        }
    }

    /// The best one that `features` allow, no better than `wanted`.
    pub(super) fn choose(features: &Features, wanted: Option<&str>) -> Self {
        let all = [Self::Gs, Self::Rseq, Self::Portable];
        let best = all.iter().position(|one| wanted == Some(one.name())).unwrap_or(0);
        let works = |one: &&Self| match one {
            Self::Gs => features.rseq != rseq::Owner::Nobody && features.gs == gs::Claim::Free,
            Self::Rseq => features.rseq != rseq::Owner::Nobody,
            Self::Portable => true,
        };
        all[best..].iter().find(works).copied().unwrap_or(Self::Portable)
    }

    /// What the environment asks for.
    pub(super) fn wanted() -> Option<String> {
        std::env::var(VARIABLE).ok()
    }
}

impl fmt::Display for Implementation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The implementation of this process, decided at the first use: the best that works, or
/// the one that the environment variable `UNMERGED_PERCPU` names (`gs`, `rseq`,
/// `portable`) if it works, or the next one after it. Another value is ignored.
///
/// Calling it early, outside of signal handlers, also makes the first use of the rest cheap.
pub fn implementation() -> Implementation {
    stripes::stripes().implementation
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sys::cpus::Ids;

    fn features(rseq: rseq::Owner, gs: gs::Claim) -> Features {
        Features {
            rseq,
            rseq_size: 20,
            rseq_kernel_size: 20,
            gs,
            fence: false,
            fence_rseq: false,
            fence_global: false,
            waitv: false,
            futex2: false,
            futex_numa: false,
            noexec: false,
            seal_future_write: false,
            pidfd: false,
            schedstat: false,
            huge_pages: 0,
            cpus: Ids::possible(),
        }
    }

    #[test]
    fn the_best_that_works_and_is_not_forbidden() {
        use Implementation::{Gs, Portable, Rseq};
        use gs::Claim::{Foreign, Free, NoFsgsbase, ReadBackFailed};
        use rseq::Owner::{Libc, Nobody, Own};
        for (owner, claim, wanted, chosen) in [
            (Libc, Free, None, Gs),
            (Own, Free, Some("gs"), Gs),
            (Libc, Free, Some("rseq"), Rseq),
            (Libc, Free, Some("portable"), Portable),
            (Libc, Free, Some("nonsense"), Gs),
            (Libc, NoFsgsbase, Some("gs"), Rseq),
            (Libc, ReadBackFailed, None, Rseq),
            (Own, Foreign { base: 4096 }, None, Rseq),
            (Nobody, Free, Some("gs"), Portable),
            (Nobody, NoFsgsbase, None, Portable),
        ] {
            let features = features(owner, claim);
            assert_eq!(
                Implementation::choose(&features, wanted),
                chosen,
                "{owner:?} {claim:?} {wanted:?}"
            );
        }
    }
}
