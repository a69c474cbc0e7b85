//! Kernel layouts and numbers, alone at the bottom: structures, offsets, call
//! numbers and flags, exactly as the kernel's `uapi` headers state them.
//!
//! Nothing in here calls, decides or allocates. Sizes and offsets are asserted
//! at compile time, and the tests below compare them with `linux-raw-sys` and
//! `libc`.

pub mod auxv;
pub mod futex2;
pub mod robust;
pub mod rseq;
pub mod uring;

#[cfg(all(test, not(loom)))]
mod tests;
