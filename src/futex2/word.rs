//! The sizes of a futex.

use crate::sync::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use core::fmt;

/// The sizes of a futex: `u8`, `u16`, `u32`, `u64`.
///
/// The operations are those of the atomic of the same size; [`Futex`](super::Futex) has them as
/// methods.
pub trait Word: sealed::Sealed + Copy + Eq + fmt::Debug + Send + Sync + 'static {
    /// The atomic of this size.
    #[doc(hidden)]
    type Atomic;
    #[doc(hidden)]
    fn load(atomic: &Self::Atomic, order: Ordering) -> Self;
    #[doc(hidden)]
    fn store(atomic: &Self::Atomic, value: Self, order: Ordering);
    #[doc(hidden)]
    fn swap(atomic: &Self::Atomic, value: Self, order: Ordering) -> Self;
    #[doc(hidden)]
    fn compare_exchange(
        atomic: &Self::Atomic,
        current: Self,
        new: Self,
        success: Ordering,
        failure: Ordering,
    ) -> core::result::Result<Self, Self>;
    #[doc(hidden)]
    fn compare_exchange_weak(
        atomic: &Self::Atomic,
        current: Self,
        new: Self,
        success: Ordering,
        failure: Ordering,
    ) -> core::result::Result<Self, Self>;
    #[doc(hidden)]
    fn fetch_add(atomic: &Self::Atomic, n: Self, order: Ordering) -> Self;
    #[doc(hidden)]
    fn fetch_sub(atomic: &Self::Atomic, n: Self, order: Ordering) -> Self;
    #[doc(hidden)]
    fn fetch_and(atomic: &Self::Atomic, bits: Self, order: Ordering) -> Self;
    #[doc(hidden)]
    fn fetch_or(atomic: &Self::Atomic, bits: Self, order: Ordering) -> Self;
    #[doc(hidden)]
    fn fetch_xor(atomic: &Self::Atomic, bits: Self, order: Ordering) -> Self;
    /// Zero-extended.
    #[doc(hidden)]
    fn widen(self) -> u64;
}

mod sealed {
    pub trait Sealed {}
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
            fn store(atomic: &$atomic, value: Self, order: Ordering) {
                atomic.store(value, order);
            }
            #[inline]
            fn swap(atomic: &$atomic, value: Self, order: Ordering) -> Self {
                atomic.swap(value, order)
            }
            #[inline]
            fn compare_exchange(
                atomic: &$atomic,
                current: Self,
                new: Self,
                success: Ordering,
                failure: Ordering,
            ) -> core::result::Result<Self, Self> {
                atomic.compare_exchange(current, new, success, failure)
            }
            #[inline]
            fn compare_exchange_weak(
                atomic: &$atomic,
                current: Self,
                new: Self,
                success: Ordering,
                failure: Ordering,
            ) -> core::result::Result<Self, Self> {
                atomic.compare_exchange_weak(current, new, success, failure)
            }
            #[inline]
            fn fetch_add(atomic: &$atomic, n: Self, order: Ordering) -> Self {
                atomic.fetch_add(n, order)
            }
            #[inline]
            fn fetch_sub(atomic: &$atomic, n: Self, order: Ordering) -> Self {
                atomic.fetch_sub(n, order)
            }
            #[inline]
            fn fetch_and(atomic: &$atomic, bits: Self, order: Ordering) -> Self {
                atomic.fetch_and(bits, order)
            }
            #[inline]
            fn fetch_or(atomic: &$atomic, bits: Self, order: Ordering) -> Self {
                atomic.fetch_or(bits, order)
            }
            #[inline]
            fn fetch_xor(atomic: &$atomic, bits: Self, order: Ordering) -> Self {
                atomic.fetch_xor(bits, order)
            }
            #[inline]
            fn widen(self) -> u64 {
                self.into()
            }
        }
    };
}

word!(u8, AtomicU8);
word!(u16, AtomicU16);
word!(u32, AtomicU32);
word!(u64, AtomicU64);
