//! The futex: an atomic word that can be waited on.

use super::Deadline;
use super::scope::{Private, Scope};
use super::wait::Place;
use crate::error::Result;
use crate::sync::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, assert_layout};
use core::fmt;
use core::marker::PhantomData;

/// The sizes of a futex: `u8`, `u16`, `u32`, `u64`.
pub trait Word: sealed::Sealed + Copy + Eq + fmt::Debug + 'static {
    /// The atomic of this size.
    #[doc(hidden)]
    type Atomic: fmt::Debug + Send + Sync;

    /// Loads it.
    #[doc(hidden)]
    fn load(atomic: &Self::Atomic, order: Ordering) -> Self;

    /// Zero-extended.
    #[doc(hidden)]
    fn widen(self) -> u64;
}

mod sealed {
    pub trait Sealed {}
}

/// An atomic word that threads, or processes, wait on.
///
/// It has the size and the alignment of `T` and no other contents, so it may be laid over
/// shared memory. It owns its word: nobody may wait on the same memory by other means, or a
/// wake may not reach them.
///
/// `Futex<u32, Shared>` is shared by every process that maps it; without a scope it is
/// private to this one.
///
/// ```
/// use unmerged::futex2::{Deadline, Futex, Shared};
/// use core::time::Duration;
///
/// let word: Futex<u64, Shared> = Futex::new(1 << 40);
/// let error = word.wait(0, None).unwrap_err();
/// assert!(error.is_would_block()); // it does not hold 0
/// let soon = Deadline::after(Duration::from_millis(1));
/// assert!(word.wait(1 << 40, Some(soon)).unwrap_err().is_timed_out());
/// ```
#[repr(transparent)]
pub struct Futex<T: Word, S: Scope = Private> {
    value: T::Atomic,
    scope: PhantomData<S>,
}

assert_layout!(
    size_of::<Futex<u8>>() == 1,
    size_of::<Futex<u16>>() == 2,
    size_of::<Futex<u32>>() == 4,
    size_of::<Futex<u64>>() == 8,
    align_of::<Futex<u64>>() == 8,
);

impl<T: Word, S: Scope> Futex<T, S> {
    fn place(&self) -> Place {
        let address = core::ptr::from_ref(&self.value).cast();
        Place { address, bytes: size_of::<T>(), private: S::PRIVATE }
    }

    /// Loads the value.
    #[inline]
    pub fn load(&self, order: Ordering) -> T {
        T::load(&self.value, order)
    }

    /// Sleeps while the value is `expected`, until a wake or the deadline.
    ///
    /// It may return `Ok` for no reason: look at the value and wait again, or use
    /// [`wait_while`](Self::wait_while).
    ///
    /// # Errors
    ///
    /// EAGAIN ([`is_would_block`](crate::Error::is_would_block)) if the value is another one;
    /// ETIMEDOUT ([`is_timed_out`](crate::Error::is_timed_out)) at the deadline; ENOMEM if
    /// the kernel has none (64 bits).
    pub fn wait(&self, expected: T, deadline: Option<Deadline>) -> Result<()> {
        // SAFETY: the word is borrowed for the time of the wait, and aligned.
        unsafe { self.place().wait(expected.widen(), deadline) }
    }

    /// Sleeps as long as the value is `expected`; answers the value that it has then, loaded
    /// with acquire.
    ///
    /// # Errors
    ///
    /// ETIMEDOUT ([`is_timed_out`](crate::Error::is_timed_out)) at the deadline; ENOMEM if
    /// the kernel has none (64 bits).
    pub fn wait_while(&self, expected: T, deadline: Option<Deadline>) -> Result<T> {
        loop {
            let value = self.load(Ordering::Acquire);
            if value != expected {
                return Ok(value);
            }
            match self.wait(expected, deadline) {
                Err(error) if !error.is_would_block() => return Err(error),
                _ => {}
            }
        }
    }

    /// Wakes up to `n` waiters; answers how many. `n = 0` wakes none.
    ///
    /// Store the new value before. In a private scope, if nobody waits, this is a fence and a
    /// load.
    #[inline]
    pub fn wake(&self, n: u32) -> usize {
        self.place().wake(n)
    }

    /// Wakes all waiters; answers how many.
    #[inline]
    pub fn wake_all(&self) -> usize {
        self.wake(u32::MAX)
    }
}

impl<T: Word, S: Scope> fmt::Debug for Futex<T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Futex").field(&self.load(Ordering::Relaxed)).finish()
    }
}

macro_rules! word {
    ($value:ty, $atomic:ident) => {
        impl sealed::Sealed for $value {}

        impl Word for $value {
            type Atomic = $atomic;

            #[inline]
            fn load(atomic: &$atomic, order: Ordering) -> Self {
                atomic.load(order)
            }

            #[inline]
            fn widen(self) -> u64 {
                self.into()
            }
        }

        impl<S: Scope> Futex<$value, S> {
            /// A futex that holds `value`.
            pub const fn new(value: $value) -> Self {
                Self { value: $atomic::new(value), scope: PhantomData }
            }

            /// Stores `value`. It wakes nobody.
            #[inline]
            pub fn store(&self, value: $value, order: Ordering) {
                self.value.store(value, order);
            }

            /// Stores `value`; answers the one before.
            #[inline]
            pub fn swap(&self, value: $value, order: Ordering) -> $value {
                self.value.swap(value, order)
            }

            /// Stores `new` if the value is `current`; answers the value before.
            ///
            /// # Errors
            ///
            /// The value, if it is another one.
            #[inline]
            pub fn compare_exchange(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> core::result::Result<$value, $value> {
                self.value.compare_exchange(current, new, success, failure)
            }

            /// Adds `n`, wrapping; answers the value before.
            #[inline]
            pub fn fetch_add(&self, n: $value, order: Ordering) -> $value {
                self.value.fetch_add(n, order)
            }

            /// Subtracts `n`, wrapping; answers the value before.
            #[inline]
            pub fn fetch_sub(&self, n: $value, order: Ordering) -> $value {
                self.value.fetch_sub(n, order)
            }

            /// Clears the bits that are not in `bits`; answers the value before.
            #[inline]
            pub fn fetch_and(&self, bits: $value, order: Ordering) -> $value {
                self.value.fetch_and(bits, order)
            }

            /// Sets `bits`; answers the value before.
            #[inline]
            pub fn fetch_or(&self, bits: $value, order: Ordering) -> $value {
                self.value.fetch_or(bits, order)
            }
        }

        impl<S: Scope> Default for Futex<$value, S> {
            fn default() -> Self {
                Self::new(0)
            }
        }
    };
}

word!(u8, AtomicU8);
word!(u16, AtomicU16);
word!(u32, AtomicU32);
word!(u64, AtomicU64);
