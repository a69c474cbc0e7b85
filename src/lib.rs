#![doc = include_str!("../README.md")]
#![deny(clippy::multiple_unsafe_ops_per_block, clippy::std_instead_of_core)]

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("unmerged is for Linux on x86-64");

// The floors, lowest first; tests/floors.rs keeps arrows pointing down. Those that are hidden
// are no API: the tests and benches of this project use them.
#[doc(hidden)]
pub mod abi;
mod error;
mod sync;

#[doc(hidden)]
pub mod arch;

#[doc(hidden)]
pub mod sys;

pub mod futex2;
mod shm;

pub mod mshare;
pub mod percpu;
pub mod task_shared;

mod probe;

pub use error::{Error, Result};
pub use probe::{Feature, Probe, probe};
