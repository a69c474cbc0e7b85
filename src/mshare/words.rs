//! Futexes live in regions: the one thing of [`crate::futex2`] that this module knows.

#[cfg(not(all(test, loom)))]
use crate::futex2::{Futex, Shared, Word};
#[cfg(not(all(test, loom)))]
use crate::shm::Resident;

// A model's atomics are no memory words.
#[cfg(not(all(test, loom)))]
/// Every process that maps the word may wait on it. One that is private to a process may not
/// lie in a region: its wakes would not leave the process.
// SAFETY: an atomic word, of the size and the bits of a number, with no Drop; what the
// kernel keys a shared wait by is the memory, whichever process maps it.
unsafe impl<T: Word> Resident for Futex<T, Shared> {}
