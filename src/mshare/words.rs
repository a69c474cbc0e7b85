//! Futexes and the locks on them live in regions: all of [`crate::futex2`] that this module knows.

#[cfg(not(all(test, loom)))]
use crate::futex2::lock::{
    AutoEvent, Condvar, Event, Mutex, Once, RawMutex, RawRwLock, RobustMutex, RwLock, Semaphore,
};
#[cfg(not(all(test, loom)))]
use crate::futex2::{Counted, Futex, NumaFutex, Shared, Word};
#[cfg(not(all(test, loom)))]
use crate::shm::Resident;

// A model's atomics are no memory words.
#[cfg(not(all(test, loom)))]
/// Every process that maps the word may wait on it. One that is private to a process may not
/// lie in a region: its wakes would not leave the process.
// SAFETY: an atomic word, of the size and the bits of a number, with no Drop; what the
// kernel keys a shared wait by is the memory, whichever process maps it.
unsafe impl<T: Word> Resident for Futex<T, Shared> {}

#[cfg(not(all(test, loom)))]
/// Every process that has attached its domain may wait on the word: a [`Domain`] whose table lies in
/// the region, and which [covers](crate::futex2::Domain::covering) the word.
///
/// [`Domain`]: crate::futex2::Domain
// SAFETY: as above; that its waiters are counted elsewhere changes nothing in it.
unsafe impl<T: Word> Resident for Futex<T, Counted> {}

#[cfg(not(all(test, loom)))]
/// Every process that maps the word may wait on it; the node is one of the machine.
// SAFETY: `repr(C)`, two atomic words of the size and the bits of a number, with no Drop.
unsafe impl Resident for NumaFutex<Shared> {}

macro_rules! locks {
    ($($lock:ident),+) => { $(
        #[cfg(not(all(test, loom)))]
        /// Every process that maps it may use it.
        // SAFETY: `repr(C)` or transparent, shared words without an address in them, and no Drop.
        unsafe impl Resident for $lock<Shared> {}
    )+ };
}
macro_rules! locks_of {
    ($($lock:ident),+) => { $(
        #[cfg(not(all(test, loom)))]
        /// Every process that maps it may lock it, and reach the value as its holder.
        // SAFETY: `repr(C)`, a shared word and a resident, which is changed by the holder alone;
        // no Drop.
        unsafe impl<T: Resident> Resident for $lock<T, Shared> {}
    )+ };
}

locks!(AutoEvent, Condvar, Event, Once, RawMutex, RawRwLock, Semaphore);
locks_of!(Mutex, RobustMutex, RwLock);
