//! A value that is made once, without a lock.

use super::{AtomicPtr, Ordering};
use core::ptr;

/// One `T` for the life of the process, made at the first use.
///
/// Unlike `OnceLock`, nobody waits for anybody: threads that come first together all make
/// one, and all but one throw theirs away. So a child that was forked while another thread
/// was in here is not left waiting for a thread that it does not have.
///
/// # Protocol
///
/// The value is published by an exchange with release, and read with acquire.
#[derive(Debug)]
pub(crate) struct Published<T: 'static>(AtomicPtr<T>);

impl<T: Send + Sync> Published<T> {
    pub(crate) const fn new() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    /// The value; `make` may be called by several threads, or by none.
    #[inline]
    pub(crate) fn get_or_make(&self, make: impl FnOnce() -> T) -> &'static T {
        let known = self.0.load(Ordering::Acquire);
        // SAFETY: what is published is a leaked box, never changed and never freed.
        unsafe { known.as_ref() }.unwrap_or_else(|| self.publish(make()))
    }

    #[cold]
    fn publish(&self, value: T) -> &'static T {
        let ours = Box::into_raw(Box::new(value));
        let none = ptr::null_mut();
        let first = self.0.compare_exchange(none, ours, Ordering::AcqRel, Ordering::Acquire);
        let theirs = match first {
            Ok(_) => ours,
            Err(theirs) => {
                // SAFETY: ours, and nobody has seen it.
                drop(unsafe { Box::from_raw(ours) });
                theirs
            }
        };
        // SAFETY: as in `get_or_make`.
        unsafe { &*theirs }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn one_value_for_all() {
        static VALUE: Published<u32> = Published::new();
        let threads: Vec<_> = (0..8)
            .map(|n| std::thread::spawn(move || ptr::from_ref(VALUE.get_or_make(|| n)).addr()))
            .collect();
        let first = ptr::from_ref(VALUE.get_or_make(|| 8)).addr();
        assert!(threads.into_iter().all(|thread| thread.join().unwrap() == first));
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::sync::model;
    use loom::sync::Arc;
    use loom::thread;

    type Value = loom::cell::UnsafeCell<u64>;

    /// What is read is whole, and the same for all. Fails when the exchange or the load of
    /// `get_or_make` is relaxed.
    #[test]
    fn all_see_one_whole_value() {
        model(|| {
            struct Whole(Value);
            // SAFETY: written before it is published, read after: loom checks.
            unsafe impl Sync for Whole {}
            let published = Arc::new(Published(AtomicPtr::new(ptr::null_mut()).ready()));
            let get = |published: &Published<Whole>, n: u64| {
                let whole = published.get_or_make(|| {
                    let value = Value::new(0);
                    value.with_mut(|value| unsafe { *value = n });
                    Whole(value)
                });
                whole.0.with(|value| unsafe { *value })
            };
            let other = thread::spawn({
                let published = published.clone();
                move || get(&published, 1)
            });
            let here = get(&published, 2);
            assert_eq!(other.join().unwrap(), here);
            drop(unsafe { Box::from_raw(published.0.load(Ordering::Acquire)) });
        });
    }
}
