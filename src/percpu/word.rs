//! One word on every CPU, in four sizes, with all the operations that give a value back.

use super::cell::Cell;
use super::site::{Lazy, Site, on, window};
use crate::arch::portable::Portable;
use crate::arch::{Answer, At, ByCaller, Indexed, Striped, Words};
use crate::error::{Context, Error, Result};
use core::fmt;
use core::marker::PhantomData;
use rustix::io::Errno;

/// Types that a [`Word`] can be of: `u8`, `u16`, `u32`, `u64`.
pub trait Integer: sealed::Sealed {}

mod sealed {
    use super::{ByCaller, Indexed, Portable, Striped, Words};
    use core::fmt::Debug;

    /// What the operations need of the type.
    pub trait Sealed: Copy + Eq + Debug + 'static {
        #[doc(hidden)]
        type Indexed: Words<Self>;
        #[doc(hidden)]
        type Striped: Words<Self>;
        #[doc(hidden)]
        type ByCaller: Words<Self>;
        #[doc(hidden)]
        type Portable: Words<Self>;
        /// The low bits.
        #[doc(hidden)]
        fn from_u64(value: u64) -> Self;
    }

    macro_rules! integers {
        ($($int:ty),+) => {
            $(
                impl Sealed for $int {
                    type Indexed = Indexed;
                    type Striped = Striped;
                    type ByCaller = ByCaller;
                    type Portable = Portable;
                    fn from_u64(value: u64) -> Self {
                        value as Self
                    }
                }
                impl super::Integer for $int {}
            )+
        };
    }
    integers!(u8, u16, u32, u64);
}

/// One of the two words that a [`Word`] has for each CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Stripe {
    /// The CPU (or concurrency) id.
    pub cpu: u32,
    /// Whether it is the word that atomics update, for those who could not run a window.
    pub overflow: bool,
}

/// A value, and the stripe on which it was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct On<T> {
    /// The stripe that the operation was done on.
    pub stripe: Stripe,
    /// The value: the old one, where the operation writes.
    pub value: T,
}

/// A word of 8, 16, 32 or 64 bits on every CPU, with all operations that a per-CPU word has in
/// the kernel (`this_cpu_*`).
///
/// ```
/// use unmerged::percpu::Word;
///
/// static NEXT: Word<u64> = Word::new();
///
/// // Numbers that are unique in the process, without a lock prefix.
/// let on = NEXT.fetch_add(1)?;
/// let unique = (on.stripe, on.value);
/// # let _ = unique;
/// # Ok::<(), unmerged::Error>(())
/// ```
///
/// An operation is one window on the stripe of this CPU. Where no window can run, it is an atomic on
/// the CPU's *overflow* word; so a CPU has two values, and each operation tells whose it found. Code
/// that keeps a state in the word (not a sum) therefore keeps it per stripe.
///
/// Operations are ordered as far as one CPU sees itself: a thread that comes to the CPU later
/// sees all of them. Who reads from another CPU ([`values`](Self::values)) sees each word whole,
/// and words of different CPUs at different moments.
pub struct Word<'a, T> {
    home: Home,
    area: PhantomData<&'a T>,
}

#[derive(Debug)]
enum Home {
    Private(Lazy),
    Area(Site),
}

/// Bytes of a private word, whatever its type.
const BYTES: usize = 8;

/// Runs `$operation` in a window, or on an overflow word.
macro_rules! operation {
    ($self:ident, $operation:ident($($argument:expr),*)) => {{
        let done = match &$self.home {
            Home::Private(cell) => window!(cell, BYTES, |Shape, at| {
                // SAFETY: the cell is this word's, which windows and whoever stops its CPU write.
                unsafe { <T as OnShape<Shape>>::Words::$operation(at $(, $argument)*) }
            })
            .op(concat!("percpu::Word::", stringify!($operation)))?,
            Home::Area(site) => site.attempt(|place| on!(place, |Shape, at| {
                // SAFETY: as above.
                unsafe { <T as OnShape<Shape>>::Words::$operation(at $(, $argument)*) }
            })),
        };
        let answer = |(cpu, value), overflow| On { stripe: Stripe { cpu, overflow }, value };
        match done {
            Some(Ok(done)) => Ok(answer(done, false)),
            Some(Err(refused)) => Err(answer(refused, false)),
            None => {
                let at = $self.overflow()?;
                // SAFETY: an overflow word, which atomics write.
                match unsafe { T::Portable::$operation(at $(, $argument)*) } {
                    Answer::Refused(refused) => Err(answer(refused, true)),
                    Answer::Done(done) => Ok(answer(done, true)),
                    Answer::Stopped | Answer::Aborted => Err(answer((at.cpu, T::from_u64(0)), true)),
                }
            }
        }
    }};
}

/// Finds the windows of a type in a shape.
trait OnShape<Shape> {
    type Words: Words<Self>
    where
        Self: Copy;
}
impl<T: Integer> OnShape<Indexed> for T {
    type Words = T::Indexed;
}
impl<T: Integer> OnShape<Striped> for T {
    type Words = T::Striped;
}

/// The value of an operation that never refuses.
fn always<T>(done: core::result::Result<On<T>, On<T>>) -> On<T> {
    match done {
        Ok(on) | Err(on) => on,
    }
}

impl<T: Integer> Word<'static, T> {
    /// A word of this process, 0 on every CPU. Its memory is taken at the first use.
    pub const fn new() -> Self {
        Self { home: Home::Private(Lazy::new()), area: PhantomData }
    }
}

impl<T: Integer> Default for Word<'static, T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> Cell<'a> {
    /// The word at byte `offset` of the cell.
    ///
    /// # Errors
    ///
    /// EINVAL if the cell does not have it, or the offset is no multiple of its size.
    pub fn word<T: Integer>(&self, offset: usize) -> Result<Word<'a, T>> {
        const OPERATION: &str = "percpu::Cell::word";
        let size = size_of::<T>();
        if !offset.is_multiple_of(size) {
            let numbers = format_args!("{size} bytes at {offset}");
            return Err(Error::with(OPERATION, Errno::INVAL, numbers));
        }
        let site = self.part(OPERATION, offset, size)?;
        Ok(Word { home: Home::Area(site), area: PhantomData })
    }
}

impl<T: Integer> Word<'_, T> {
    /// Where to, when no window can run.
    fn overflow(&self) -> Result<At> {
        match &self.home {
            Home::Private(cell) => Ok(cell.site_of(BYTES).op("percpu::Word")?.overflow_here()),
            Home::Area(site) => Ok(site.overflow_here()),
        }
    }

    /// The value on this CPU.
    ///
    /// # Errors
    ///
    /// Here and below: ENOMEM if this is the first use and there is no memory for the word.
    #[inline]
    pub fn load(&self) -> Result<On<T>> {
        Ok(always(operation!(self, load())))
    }

    /// Overwrites the value on this CPU; the new one.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    #[inline]
    pub fn store(&self, value: T) -> Result<On<T>> {
        Ok(always(operation!(self, store(value))))
    }

    /// Adds, wrapping, on this CPU; the value before.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    #[inline]
    pub fn fetch_add(&self, value: T) -> Result<On<T>> {
        Ok(always(operation!(self, load_add_store(value))))
    }

    /// Exchanges the value on this CPU; the one before.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    #[inline]
    pub fn swap(&self, value: T) -> Result<On<T>> {
        Ok(always(operation!(self, load_store(value))))
    }

    /// Keeps on this CPU the bits that `value` has; the value before.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    #[inline]
    pub fn fetch_and(&self, value: T) -> Result<On<T>> {
        Ok(always(operation!(self, load_and_store(value))))
    }

    /// Sets on this CPU the bits that `value` has; the value before.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    #[inline]
    pub fn fetch_or(&self, value: T) -> Result<On<T>> {
        Ok(always(operation!(self, load_or_store(value))))
    }

    /// Exchanges the value on this CPU if it is `current`. `Ok(Ok(_))`: it was, and is `new` now;
    /// `Ok(Err(_))`: it was another, and nothing happened.
    ///
    /// The thread may have moved to another CPU since it read `current`; then it is compared with
    /// the word there.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    #[inline]
    pub fn compare_exchange(
        &self,
        current: T,
        new: T,
    ) -> Result<core::result::Result<On<T>, On<T>>> {
        Ok(operation!(self, load_cbne_store(current, new)))
    }

    fn site(&self) -> Option<Site> {
        match &self.home {
            Home::Private(cell) => cell.known(),
            Home::Area(site) => Some(*site),
        }
    }

    /// Every stripe with the value that it has at the moment, the offline CPUs' too. No snapshot:
    /// the values are read one after the other, while others write them.
    pub fn values(&self) -> impl Iterator<Item = On<T>> {
        let site = self.site();
        let cpus = site.map_or(0, |site| site.geometry.cpus);
        (0..2 * cpus).filter_map(move |n| {
            let word = site?.on_stripe(n);
            let at = At { area: 0, field: 0, cpu: n % cpus, stop: 0, word };
            // SAFETY: a word of the cell, which windows and atomics write; the load is one.
            match unsafe { T::Portable::load(at) } {
                Answer::Done((cpu, value)) => {
                    Some(On { stripe: Stripe { cpu, overflow: n >= cpus }, value })
                }
                _ => None,
            }
        })
    }

    /// Overwrites the value of one CPU from wherever this thread is, after `f` has seen it: the CPU
    /// is stopped meanwhile. Threads on it go on, on its overflow word, which is left alone. The
    /// value before.
    ///
    /// It costs a fence, 10 to 20 microseconds if the CPU runs this process. In an area that several
    /// processes share, the others' windows are not stopped: then nobody else may use the word. These
    /// processes must see each other's process ids, or one of them may end what another has begun.
    ///
    /// Additions of a [`Counter`](super::Counter) or array on the same cell are not kept out: one of
    /// them may be lost. `f` must not stop another CPU: two threads that do so
    /// in another order wait for each other for ever.
    ///
    /// In the memory that this process has to itself a CPU is stopped for all its words, stacks,
    /// pools and locks: `f` should be short, because whoever else stops this CPU waits for it, to
    /// drain a stack for instance. A process that `f` forks has the CPU running again, and what it
    /// does there before `f` returns in it is overwritten then.
    ///
    /// # Errors
    ///
    /// EINVAL for a CPU id out of range; EDEADLK if this thread has stopped it already; EBUSY if
    /// another process keeps it stopped for a second; EPERM where it cannot be fenced; ENOMEM as in
    /// [`load`](Self::load).
    pub fn with_exclusive(&self, cpu: u32, f: impl FnOnce(T) -> T) -> Result<T> {
        const OPERATION: &str = "percpu::Word::with_exclusive";
        let site = match &self.home {
            Home::Private(cell) => cell.site_of(BYTES).op(OPERATION)?,
            Home::Area(site) => *site,
        };
        site.exclusive(OPERATION, cpu, |word| {
            let at = At { area: 0, field: 0, cpu, stop: 0, word };
            // SAFETY: the word of a CPU that is stopped.
            let old = match unsafe { T::Portable::load(at) } {
                Answer::Done((_, old)) => old,
                _ => T::from_u64(0),
            };
            let new = f(old);
            // SAFETY: as above.
            let _ = unsafe { T::Portable::store(at, new) };
            old
        })
    }
}

impl<T: Integer> fmt::Debug for Word<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.values()).finish()
    }
}

impl<T> Drop for Word<'_, T> {
    fn drop(&mut self) {
        if let Home::Private(cell) = &mut self.home {
            // SAFETY: nobody uses it any more.
            unsafe { cell.release(BYTES) };
        }
    }
}
