//! An area: stripes in memory that the caller provides, for counters that several
//! processes share.

use super::STRIDE;
use super::cell::CELLS;
use super::counter::Counter;
use super::stripes::stripes;
use crate::error::{Error, Result};
use crate::sync::{AtomicU64, Ordering};
use core::marker::PhantomData;
use core::ptr::NonNull;
use rustix::io::Errno;

/// Upper half of an area's one header word: "uPC" and its version in ASCII. The lower half is
/// its geometry: the logarithm of the stride, then the number of stripes in 24 bits. One word,
/// so that an area is there whole or not at all.
const MAGIC: u32 = u32::from_be_bytes(*b"uPC1");

/// Stripes in shared memory: a header page, then one stripe per possible CPU id for windows,
/// then as many for atomics.
///
/// Two processes on one CPU can only alternate by a context switch, and a context switch
/// aborts a window. So processes update the same words with the same plain instructions as
/// threads do, and no count is lost. A process that uses another implementation than its
/// peers (no rseq, `UNMERGED_PERCPU`) adds to the overflow stripes, which are the area's too.
///
/// The memory is a shared mapping of a file (a memory file, tmpfs), page-aligned. In an mshare
/// region it is `region.alloc(Layout::from_size_align(Area::size(), 4096)?)`, and a root tells
/// the others where.
///
/// An area has 512 cells of 8 bytes. Which cell means what is agreed between the processes.
///
/// Pages of a memory file are committed by reads too: a [`sum`](Counter::sum) commits the
/// stripes of all CPUs, at the node of whoever reads first.
///
/// ```
/// use unmerged::percpu::Area;
/// # let bytes = vec![0_u64; Area::size() / 8 + 512];
/// # let start = bytes.as_ptr().map_addr(|a| a.next_multiple_of(4096)).cast_mut();
/// # let memory = std::ptr::NonNull::new(start).unwrap().cast();
/// // `memory` is zeroed, aligned to 4096, and mapped by several processes.
/// // SAFETY: valid for as long as the area is used, and nothing else writes it.
/// let area = unsafe { Area::create(memory, Area::size()) }?;
/// let words = area.counter(0)?;
/// words.add(3);
///
/// // In another process:
/// // SAFETY: as above.
/// let area = unsafe { Area::open(memory, Area::size()) }?;
/// assert_eq!(area.counter(0)?.sum(), 3);
/// # Ok::<(), unmerged::Error>(())
/// ```
#[derive(Debug)]
pub struct Area<'a> {
    stripe0: NonNull<u8>,
    memory: PhantomData<&'a [AtomicU64]>,
}

// SAFETY: the memory is reached by windows and atomics only.
unsafe impl Send for Area<'_> {}
// SAFETY: as above.
unsafe impl Sync for Area<'_> {}

impl<'a> Area<'a> {
    /// Bytes of an area on this machine: 4096 for the header and twice 4096 for each
    /// possible CPU id. They cost memory where they are touched.
    pub fn size() -> usize {
        (1 + 2 * stripes().cpus as usize) * STRIDE
    }

    /// Makes an area in zeroed memory.
    ///
    /// # Errors
    ///
    /// EINVAL if the memory is not aligned to 4096 or has less than [`size`](Self::size)
    /// bytes; EEXIST if there is an area in it already.
    ///
    /// # Safety
    ///
    /// `memory` must be readable and writable for `len` bytes and for `'a`, in every process
    /// that opens it, and be written by nothing but areas.
    pub unsafe fn create(memory: NonNull<u8>, len: usize) -> Result<Self> {
        const OPERATION: &str = "percpu::Area::create";
        // SAFETY: forwarded.
        let (area, header) = unsafe { Self::place(OPERATION, memory, len) }?;
        match header.compare_exchange(0, Self::word(), Ordering::Release, Ordering::Relaxed) {
            Ok(_) => Ok(area),
            Err(found) => Err(Error::with(
                OPERATION,
                Errno::EXIST,
                format_args!("the memory is not zero but begins with {found:#x}"),
            )),
        }
    }

    /// Opens an area that this or another process has made.
    ///
    /// # Errors
    ///
    /// EINVAL if the memory is not aligned to 4096 or has less than [`size`](Self::size)
    /// bytes; EPROTO if there is no area of this version, stride and number of CPUs in it.
    ///
    /// # Safety
    ///
    /// As for [`create`](Self::create).
    pub unsafe fn open(memory: NonNull<u8>, len: usize) -> Result<Self> {
        const OPERATION: &str = "percpu::Area::open";
        // SAFETY: forwarded.
        let (area, header) = unsafe { Self::place(OPERATION, memory, len) }?;
        let (found, own) = (header.load(Ordering::Acquire), Self::word());
        if found != own {
            let stripes = |word: u64| word & 0xff_ffff;
            let stride = |word: u64| 1_u64.checked_shl((word >> 24) as u32 & 0xff).unwrap_or(0);
            return Err(Error::with(
                OPERATION,
                Errno::PROTO,
                format_args!(
                    "found magic {:#x}, stride {}, {} CPUs; this process has {MAGIC:#x}, {}, {}",
                    found >> 32,
                    stride(found),
                    stripes(found),
                    stride(own),
                    stripes(own),
                ),
            ));
        }
        Ok(area)
    }

    /// The header word of this process.
    fn word() -> u64 {
        u64::from(MAGIC) << 32 | u64::from(STRIDE.ilog2()) << 24 | u64::from(stripes().cpus)
    }

    /// Checks the memory; the area in it and its header word.
    ///
    /// # Safety
    ///
    /// As for [`create`](Self::create).
    unsafe fn place(
        operation: &'static str,
        memory: NonNull<u8>,
        len: usize,
    ) -> Result<(Self, &'a AtomicU64)> {
        let (address, size) = (memory.addr().get(), Self::size());
        if !address.is_multiple_of(STRIDE) || len < size {
            return Err(Error::with(
                operation,
                Errno::INVAL,
                format_args!("{len} bytes at {address:#x}; needed: {size}, aligned to {STRIDE}"),
            ));
        }
        // Windows reach the stripes by address.
        let _ = memory.as_ptr().expose_provenance();
        // SAFETY: valid for `size` bytes, more than the header.
        let stripe0 = unsafe { memory.add(STRIDE) };
        // SAFETY: aligned, valid for 'a, written by atomics.
        let header = unsafe { memory.cast::<AtomicU64>().as_ref() };
        Ok((Self { stripe0, memory: PhantomData }, header))
    }

    /// The counter in cell `index`, from 0 to 511. Two counters of one cell, in one process
    /// or in two, are the same counter.
    ///
    /// # Errors
    ///
    /// EINVAL for an index over 511.
    pub fn counter(&self, index: usize) -> Result<Counter<'a>> {
        if index >= CELLS {
            return Err(Error::with(
                "percpu::Area::counter",
                Errno::INVAL,
                format_args!("cell {index} of {CELLS}"),
            ));
        }
        // SAFETY: inside stripe 0.
        let cell = unsafe { self.stripe0.cast::<u64>().add(index) };
        Ok(Counter::shared(cell))
    }
}
