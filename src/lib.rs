//! Four Linux interfaces that were proposed and never merged, in user space.

#![deny(clippy::multiple_unsafe_ops_per_block, clippy::std_instead_of_core)]

#[doc(hidden)]
pub mod abi;
#[doc(hidden)]
pub mod arch;
mod error;
pub mod futex2;
pub mod mshare;
pub mod percpu;
mod probe;
mod shm;
mod sync;
#[doc(hidden)]
pub mod sys;
pub mod task_shared;

pub use error::{Error, Result};
pub use probe::{Feature, Probe, probe};
