//! Places at which a test can kill the process, between the steps of an operation.
//!
//! Compiled to nothing outside of this crate's unit tests.

#[cfg(not(all(test, not(loom))))]
#[inline(always)]
pub(super) fn step() {}

#[cfg(all(test, not(loom)))]
pub(super) use imp::*;

#[cfg(all(test, not(loom)))]
mod imp {
    use core::cell::Cell;

    thread_local! {
        /// Steps to go until the process is killed; 0 for none.
        static LEFT: Cell<u64> = const { Cell::new(0) };
    }

    /// The `n`-th step from here on is this process's last.
    pub(crate) fn die_at(n: u64) {
        LEFT.with(|left| left.set(n));
    }

    pub(crate) fn step() {
        let _ = LEFT.try_with(|left| match left.get() {
            0 => {}
            1 => {
                let process = std::process::id().cast_signed();
                // SAFETY: kills this process, and nobody else.
                unsafe { libc::kill(process, libc::SIGKILL) };
            }
            more => left.set(more - 1),
        });
    }
}
