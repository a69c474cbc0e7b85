//! A pair of fences of which one side, the frequent one, costs nothing.
//!
//! Two threads that each store one word and then load the other's need a fence between the two,
//! or both may miss the other's store. `membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED)` (since Linux
//! 4.14) is a fence in every running thread of the process at once: whoever calls it spares the
//! others theirs, who then only keep the compiler from reordering.
//!
//! The way is decided once: [`decide`] comes before the first [`light`] on a word. Where the
//! kernel or a filter has no membarrier, both sides are an ordinary fence.

use crate::sync::{AtomicU32, Ordering, compiler_fence, fence};
use crate::sys::membarrier::{self, Fence};

/// 0: not decided; [`MEMBARRIER`]; [`ORDINARY`].
static KIND: AtomicU32 = AtomicU32::new(0);
const MEMBARRIER: u32 = 1;
const ORDINARY: u32 = 2;

/// Decides the way, if nobody has. `UNMERGED_PERCPU_FENCE=affinity` is for kernels without
/// membarrier, and so forbids it here too.
pub(super) fn decide() {
    if KIND.load(Ordering::Relaxed) == 0 {
        choose();
    }
    // A rare one that found nothing decided has relied on a fence of ours: this is one for all
    // that the caller does from here on.
    fence(Ordering::SeqCst);
}

fn choose() {
    let forbidden = std::env::var("UNMERGED_PERCPU_FENCE").is_ok_and(|way| way == "affinity");
    let works = !forbidden
        && membarrier::register(Fence::Private).is_ok()
        && membarrier::fence(Fence::Private).is_ok();
    let kind = if works { MEMBARRIER } else { ORDINARY };
    // Whoever comes first decides.
    let _ = KIND.compare_exchange(0, kind, Ordering::Relaxed, Ordering::Relaxed);
}

/// The side of the frequent one: its store above is seen by whoever has called [`heavy`] before
/// the load below.
#[inline]
pub(super) fn light() {
    if KIND.load(Ordering::Relaxed) == MEMBARRIER {
        compiler_fence(Ordering::SeqCst);
    } else {
        fence(Ordering::SeqCst);
    }
}

/// The side of the rare one; whether it worked. A filter that came later than the decision may
/// forbid it: then the other side may be missed, and has to be looked at again.
pub(super) fn heavy() -> bool {
    fence(Ordering::SeqCst);
    KIND.load(Ordering::Relaxed) != MEMBARRIER || {
        let fence = || membarrier::fence(Fence::Private);
        fence().or_else(|_| membarrier::register(Fence::Private).and_then(|()| fence())).is_ok()
    }
}
