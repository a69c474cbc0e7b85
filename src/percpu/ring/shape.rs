//! The shape of a ring: what its one header word says, and where its stripes are.

use super::WhenFull;
use super::control::Control;
use super::stripe::Stripe;
use crate::arch::RING_DATA;
use crate::error::{Error, Result};
use crate::percpu::stripes::stripes;
use crate::sync::{AtomicU64, Ordering};
use crate::sys::map::PAGE;
use core::ptr::NonNull;
use rustix::io::Errno;

/// Upper half of a ring's header word: "uPR" and its version in ASCII. The lower half is its
/// shape: what to do when full in 8 bits, the logarithm of the capacity in 8, the number of
/// CPU ids in 16. One word, so that a ring is there whole or not at all.
const MAGIC: u32 = u32::from_be_bytes(*b"uPR1");

/// Bounds of the capacity of a stripe.
const LEAST: usize = 256;
const MOST: usize = 1 << 31;

/// Stripes of writers that run no window, at the least: of threads that are stopped or
/// interrupted in their turn each has one.
const OVERFLOW: u32 = 8;

/// Bytes in front of the first stripe: the header word and the [`Opened`] bits.
const HEADER: usize = PAGE;

/// Where the bits begin.
const BITS: usize = HEADER / 2;

/// Stripes that the bits have room for.
const STRIPES: usize = BITS * 8;

const _: () = assert!(STRIPES >= 2 * crate::sys::cpus::MAX_IDS as usize);

/// A checked shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    /// Bytes of data of a stripe, a power of two.
    pub(super) capacity: usize,
    pub(super) when_full: WhenFull,
    /// One past the last possible CPU id.
    pub(super) cpus: u32,
}

impl Shape {
    /// On this machine.
    pub(super) fn new(
        operation: &'static str,
        capacity: usize,
        when_full: WhenFull,
    ) -> Result<Self> {
        if !capacity.is_power_of_two() || !(LEAST..=MOST).contains(&capacity) {
            return Err(Error::with(
                operation,
                Errno::INVAL,
                format_args!("capacity {capacity} is no power of two from {LEAST} to {MOST}"),
            ));
        }
        Ok(Self { capacity, when_full, cpus: stripes().cpus })
    }

    /// Bytes from one stripe to the next.
    pub(super) const fn stride(&self) -> usize {
        (RING_DATA + self.capacity).next_multiple_of(PAGE)
    }

    /// Stripes of CPU ids, then those of writers without a window.
    pub(super) fn stripes(&self) -> u32 {
        self.cpus + self.overflow()
    }

    pub(super) fn overflow(&self) -> u32 {
        self.cpus.max(OVERFLOW)
    }

    /// Bytes of the whole.
    pub(super) fn size(&self) -> usize {
        HEADER + self.stripes() as usize * self.stride()
    }

    /// The largest record: with it, a record and the padding in front of it still fit.
    pub(super) const fn most(&self) -> usize {
        self.capacity / 2 - 8
    }

    fn word(&self) -> u64 {
        let full = match self.when_full {
            WhenFull::Refuse => 0,
            WhenFull::Overwrite => 1,
        };
        u64::from(MAGIC) << 32
            | full << 24
            | u64::from(self.capacity.ilog2()) << 16
            | u64::from(self.cpus)
    }

    /// The shape that a header word says, if a ring of this process can have it.
    fn of(operation: &'static str, word: u64) -> Result<Self> {
        let when_full = if word >> 24 & 1 == 0 { WhenFull::Refuse } else { WhenFull::Overwrite };
        let capacity = 1_usize.checked_shl((word >> 16) as u32 & 0xff).unwrap_or(0);
        Self::new(operation, capacity, when_full).ok().filter(|own| own.word() == word).ok_or_else(
            || {
                Error::with(
                    operation,
                    Errno::PROTO,
                    format_args!(
                        "found magic {:#x}, capacity {capacity}, {} CPUs; this process has \
                         {MAGIC:#x}, {LEAST} to {MOST}, {}",
                        word >> 32,
                        word & 0xffff,
                        stripes().cpus,
                    ),
                )
            },
        )
    }
}

/// A ring's memory: raw pointers, valid for as long as the ring.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) start: NonNull<u8>,
    pub(super) shape: Shape,
    /// First byte of stripe 0, and how far it is to the next.
    stripes: NonNull<u8>,
    stride: usize,
}

/// Which stripes were ever written: nobody looks at the others, so they stay uncommitted.
#[derive(Debug, Clone, Copy)]
struct Opened<'a>(&'a [AtomicU64]);

impl Place {
    /// # Safety
    ///
    /// The memory must have the size of the shape.
    const unsafe fn new(start: NonNull<u8>, shape: Shape) -> Self {
        // SAFETY: the stripes follow the header in the memory.
        let stripes = unsafe { start.add(HEADER) };
        Self { start, shape, stripes, stride: shape.stride() }
    }

    /// Makes a ring in zeroed memory.
    ///
    /// # Safety
    ///
    /// The memory must be as [`Ring::create`](super::Ring::create) asks.
    pub(super) unsafe fn create(
        operation: &'static str,
        start: NonNull<u8>,
        len: usize,
        shape: Shape,
    ) -> Result<Self> {
        check(operation, start, len, shape.size())?;
        // SAFETY: aligned, readable and writable, written by atomics.
        let header = unsafe { start.cast::<AtomicU64>().as_ref() };
        match header.compare_exchange(0, shape.word(), Ordering::Release, Ordering::Relaxed) {
            // SAFETY: checked above.
            Ok(_) => Ok(unsafe { Self::new(start, shape) }),
            Err(found) => Err(Error::with(
                operation,
                Errno::EXIST,
                format_args!("the memory is not zero but begins with {found:#x}"),
            )),
        }
    }

    /// Finds the ring that is there.
    ///
    /// # Safety
    ///
    /// As [`create`](Self::create).
    pub(super) unsafe fn open(
        operation: &'static str,
        start: NonNull<u8>,
        len: usize,
    ) -> Result<Self> {
        check(operation, start, len, HEADER)?;
        // SAFETY: aligned, readable and writable, written by atomics.
        let header = unsafe { start.cast::<AtomicU64>().as_ref() };
        let shape = Shape::of(operation, header.load(Ordering::Acquire))?;
        check(operation, start, len, shape.size())?;
        // SAFETY: checked above.
        Ok(unsafe { Self::new(start, shape) })
    }

    /// First byte of stripe `index`.
    #[inline]
    pub(super) fn address(&self, index: u32) -> *mut u8 {
        debug_assert!(index < self.shape.stripes());
        self.stripes.as_ptr().wrapping_add(index as usize * self.stride)
    }

    /// Stripe `index`.
    pub(super) fn stripe(&self, index: u32) -> Stripe<'_> {
        assert!(index < self.shape.stripes(), "stripe {index} of {}", self.shape.stripes());
        let address = self.address(index);
        // SAFETY: inside the memory, aligned to a page, zeroed once (a valid value of every
        // field), reached by windows and atomics only.
        let control = unsafe { &*address.cast::<Control>() };
        let data = address.wrapping_add(RING_DATA).cast::<AtomicU64>();
        // SAFETY: as above; `capacity` bytes of data follow.
        let data = unsafe { core::slice::from_raw_parts(data, self.shape.capacity / 8) };
        Stripe { control, data }
    }

    fn opened(&self) -> Opened<'_> {
        let bits = self.start.as_ptr().wrapping_add(BITS).cast::<AtomicU64>();
        // SAFETY: the second half of the header, reached by atomics only.
        Opened(unsafe { core::slice::from_raw_parts(bits, STRIPES / 64) })
    }

    /// Lets writers into stripe `index`, and readers know of it.
    pub(super) fn open_stripe(&self, index: u32) {
        let (word, bit) = (&self.opened().0[index as usize / 64], 1 << (index % 64));
        // First the bit: a writer that is killed in between has published nothing.
        if word.load(Ordering::Relaxed) & bit == 0 {
            word.fetch_or(bit, Ordering::Relaxed);
        }
        self.stripe(index).open();
    }

    /// The next stripe from `from` on that was ever written.
    pub(super) fn next_opened(&self, from: u32) -> Option<u32> {
        let Opened(words) = self.opened();
        let mut from = from;
        while from < self.shape.stripes() {
            let word = words[from as usize / 64].load(Ordering::Relaxed) >> (from % 64);
            if word != 0 {
                let found = from + word.trailing_zeros();
                return (found < self.shape.stripes()).then_some(found);
            }
            from = (from / 64 + 1) * 64;
        }
        None
    }
}

/// Whether memory can hold `size` bytes of a ring.
fn check(operation: &'static str, start: NonNull<u8>, len: usize, size: usize) -> Result<()> {
    let address = start.as_ptr().expose_provenance();
    if address.is_multiple_of(PAGE) && len >= size {
        return Ok(());
    }
    Err(Error::with(
        operation,
        Errno::INVAL,
        format_args!("{len} bytes at {address:#x}; needed: {size}, aligned to {PAGE}"),
    ))
}
