//! libc's mutex as an arm beside our locks, and what all of them do.

use crossbeam_utils::CachePadded;
use std::cell::UnsafeCell;
use std::hint::black_box;

/// What all locks do while they are held.
pub(crate) fn add_one(value: &mut u64) {
    *value = black_box(*value + 1);
}

/// libc's mutex and what it protects.
pub(crate) struct Pthread(UnsafeCell<(libc::pthread_mutex_t, u64)>);

// SAFETY: the value is reached by the mutex's owner.
unsafe impl Sync for Pthread {}
// SAFETY: as above; it is sent unlocked.
unsafe impl Send for Pthread {}

impl Pthread {
    pub(crate) fn new() -> CachePadded<Self> {
        CachePadded::new(Self(UnsafeCell::new((libc::PTHREAD_MUTEX_INITIALIZER, 0))))
    }

    pub(crate) fn add_one(&self) {
        let both = self.0.get();
        // SAFETY: an initialised mutex that stays where it is; the value is its owner's.
        unsafe {
            libc::pthread_mutex_lock(&raw mut (*both).0);
            add_one(&mut (*both).1);
            libc::pthread_mutex_unlock(&raw mut (*both).0);
        }
    }
}
