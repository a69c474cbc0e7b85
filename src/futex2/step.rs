//! Steps of the protocols in shared memory, so that a test can end the process at each. Without the
//! feature `planted-faults` nothing is left of them.

#[cfg(feature = "planted-faults")]
use crate::sync::{AtomicU32, Ordering};

/// Steps that are left, plus 1; 0: for ever.
#[cfg(feature = "planted-faults")]
static LEFT: AtomicU32 = AtomicU32::new(0);

/// Lets this process take `steps` more steps, and kills it at the next. For tests.
#[cfg(feature = "planted-faults")]
pub fn die_after(steps: u32) {
    LEFT.store(steps + 1, Ordering::Relaxed);
}

/// The steps that are left, so that a test can count them.
#[cfg(feature = "planted-faults")]
pub fn left() -> u32 {
    LEFT.load(Ordering::Relaxed).saturating_sub(1)
}

/// A step: whoever is killed here has done what stands above it, and nothing below.
#[inline(always)]
pub(super) fn step() {
    // A model ends where it likes.
    #[cfg(all(feature = "planted-faults", not(all(test, loom))))]
    if LEFT.load(Ordering::Relaxed) != 0 && LEFT.fetch_sub(1, Ordering::Relaxed) == 1 {
        let own = rustix::process::getpid();
        let _ = rustix::process::kill_process(own, rustix::process::Signal::KILL);
    }
}
