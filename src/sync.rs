//! The shim between our protocols and loom: type aliases in an ordinary build,
//! loom's types behind a `const` constructor in a model.
//!
//! Everything that is shared between threads in `src/` is built from these aliases;
//! `tests/floors.rs` refuses a raw atomic elsewhere. So a protocol is written once, and
//! the model checks the very lines that ship. Two things are not the same in a model:
//! the types have another layout (layout assertions go through [`assert_layout!`]), and
//! they live on the heap of the model, never in a mapping.

#[cfg(not(all(test, loom)))]
mod imp {
    pub(crate) use core::sync::atomic::{Ordering, compiler_fence, fence};

    pub(crate) type AtomicBool = core::sync::atomic::AtomicBool;
    pub(crate) type AtomicU8 = core::sync::atomic::AtomicU8;
    pub(crate) type AtomicU16 = core::sync::atomic::AtomicU16;
    pub(crate) type AtomicU32 = core::sync::atomic::AtomicU32;
    pub(crate) type AtomicU64 = core::sync::atomic::AtomicU64;
    pub(crate) type AtomicUsize = core::sync::atomic::AtomicUsize;
    pub(crate) type AtomicIsize = core::sync::atomic::AtomicIsize;
    pub(crate) type AtomicPtr<T> = core::sync::atomic::AtomicPtr<T>;

    /// Pause between two looks at a word that another thread is about to change.
    #[inline]
    pub(crate) fn spin_loop() {
        core::hint::spin_loop();
    }

    /// A sequentially consistent fence right behind a read-modify-write of this thread: on x86-64
    /// that instruction is one already, so only the compiler has to be told.
    #[inline]
    pub(crate) fn fence_after_rmw() {
        if cfg!(target_arch = "x86_64") {
            compiler_fence(Ordering::SeqCst);
        } else {
            fence(Ordering::SeqCst);
        }
    }
}

#[cfg(all(test, loom))]
#[allow(unreachable_pub, reason = "associated types of public traits name them")]
mod imp {
    use core::fmt;
    pub(crate) use loom::sync::atomic::fence;
    use std::sync::OnceLock;
    pub(crate) use std::sync::atomic::{Ordering, compiler_fence};

    /// loom's atomics register with the running model when they are made, so they have
    /// no `const` constructor; these make theirs at the first use.
    macro_rules! atomic {
        ($name:ident $(<$p:ident>)?, $value:ty, { $($extra:tt)* }) => {
            pub struct $name $(<$p>)? {
                first: $value,
                word: OnceLock<loom::sync::atomic::$name $(<$p>)?>,
            }
            impl $(<$p>)? $name $(<$p>)? {
                pub(crate) const fn new(first: $value) -> Self {
                    Self { first, word: OnceLock::new() }
                }
                /// The same word, registered with the running model: before it is shared,
                /// or loom takes its making for a race.
                pub(crate) fn ready(self) -> Self {
                    let _ = self.word();
                    self
                }
                fn word(&self) -> &loom::sync::atomic::$name $(<$p>)? {
                    self.word.get_or_init(|| loom::sync::atomic::$name::new(self.first))
                }
                pub(crate) fn load(&self, order: Ordering) -> $value {
                    self.word().load(order)
                }
                pub(crate) fn store(&self, value: $value, order: Ordering) {
                    self.word().store(value, order);
                }
                pub(crate) fn swap(&self, value: $value, order: Ordering) -> $value {
                    self.word().swap(value, order)
                }
                pub(crate) fn compare_exchange(
                    &self, current: $value, new: $value, ok: Ordering, err: Ordering,
                ) -> Result<$value, $value> {
                    self.word().compare_exchange(current, new, ok, err)
                }
                pub(crate) fn compare_exchange_weak(
                    &self, current: $value, new: $value, ok: Ordering, err: Ordering,
                ) -> Result<$value, $value> {
                    self.word().compare_exchange_weak(current, new, ok, err)
                }
                $($extra)*
            }
            // SAFETY: the first value is only ever copied; loom's word is the atomic.
            unsafe impl $(<$p>)? Send for $name $(<$p>)? {}
            // SAFETY: as above.
            unsafe impl $(<$p>)? Sync for $name $(<$p>)? {}
            impl $(<$p>)? fmt::Debug for $name $(<$p>)? {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str(stringify!($name))
                }
            }
        };
        (integer $name:ident, $value:ty) => {
            atomic!($name, $value, {
                pub(crate) fn fetch_add(&self, value: $value, order: Ordering) -> $value {
                    self.word().fetch_add(value, order)
                }
                pub(crate) fn fetch_sub(&self, value: $value, order: Ordering) -> $value {
                    self.word().fetch_sub(value, order)
                }
                pub(crate) fn fetch_or(&self, value: $value, order: Ordering) -> $value {
                    self.word().fetch_or(value, order)
                }
                pub(crate) fn fetch_and(&self, value: $value, order: Ordering) -> $value {
                    self.word().fetch_and(value, order)
                }
                pub(crate) fn fetch_xor(&self, value: $value, order: Ordering) -> $value {
                    self.word().fetch_xor(value, order)
                }
            });
        };
    }
    atomic!(AtomicBool, bool, {});
    atomic!(AtomicPtr<T>, *mut T, {});
    atomic!(integer AtomicU8, u8);
    atomic!(integer AtomicU16, u16);
    atomic!(integer AtomicU32, u32);
    atomic!(integer AtomicU64, u64);
    atomic!(integer AtomicUsize, usize);
    atomic!(integer AtomicIsize, isize);

    pub(crate) fn spin_loop() {
        loom::thread::yield_now();
    }

    pub(crate) fn fence_after_rmw() {
        fence(Ordering::SeqCst);
    }
}

mod published;

pub(crate) use imp::*;
pub(crate) use published::Published;

/// A compile-time assertion about the layout of a type that a mapping or asm relies on.
/// It is absent from models, whose atomics have another layout.
macro_rules! assert_layout {
    ($($condition:expr),+ $(,)?) => {
        #[cfg(not(all(test, loom)))]
        const _: () = { $(assert!($condition);)+ };
    };
}
pub(crate) use assert_layout;

/// Runs a model under loom: every interleaving of its threads, up to the bound that
/// `ci/loom.sh` sets.
#[cfg(all(test, loom))]
pub(crate) fn model(body: impl Fn() + Sync + Send + 'static) {
    loom::model(body);
}

/// The same up to a bound of its own, for a model whose fault takes more preemptions than that.
#[cfg(all(test, loom))]
pub(crate) fn model_within(preemptions: usize, body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(body);
}
