//! One file per kernel facility: typed in, `Result<_, Errno>` out, no policy, no retry.
//!
//! Whether a facility is there is the caller's question; [`features`] answers it once per
//! process.

pub mod cpus;
pub mod descriptors;
mod errno;
pub mod features;
pub mod fork;
pub mod futex;
pub mod gs;
pub mod map;
pub mod mappings;
pub mod membarrier;
pub mod memfd;
pub mod memory;
pub mod numa;
pub mod object;
pub mod pidfd;
pub mod process;
pub mod rseq;
pub mod rseq_elsewhere;
pub mod signals;
pub mod socket;
pub mod tag;
pub mod task;
pub mod thread;
pub mod uring;
