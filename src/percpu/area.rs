//! An area: stripes of the caller's own, private or shared with other processes.

use super::STRIDE;
use super::area_builder::AreaBuilder;
use super::block;
use super::cell::Cell;
use super::counter::Counter;
use super::geometry::{Geometry, Index};
use super::site::Site;
use super::stripes::stripes;
use crate::error::{Error, Result};
use crate::sync::{AtomicU64, Ordering};
use core::marker::PhantomData;
use core::ptr::NonNull;
use rustix::io::Errno;

/// Stripes in one piece of memory, from which cells are taken: a header, then one stripe per
/// possible CPU id for windows, then as many for atomics.
///
/// Two processes on one CPU can only alternate by a context switch, and a context switch
/// aborts a window. So processes update the same words with the same plain instructions as
/// threads do, and no count is lost. A process that uses another implementation than its
/// peers (no rseq, `UNMERGED_PERCPU`) uses the overflow stripes, which are the area's too.
///
/// An [`AreaBuilder`] makes areas of any stride: in private memory, in a memory file, or in memory
/// that the caller maps (a file in tmpfs, an mshare region). In a region that memory is
/// `region.alloc(Layout::from_size_align(builder.size()?, 4096)?)`, and a root tells the others
/// where. [`create`](Self::create) is short for one of the default stride.
///
/// Stripes cost memory where they are touched. Pages of a memory file are committed by reads too:
/// a [`sum`](Counter::sum) commits the stripes of all CPUs, at the node of whoever reads first.
///
/// ```
/// use unmerged::percpu::AreaBuilder;
///
/// let shared = AreaBuilder::new().memory_file("requests")?;
/// let cell = shared.area().alloc(8)?;
/// cell.counter()?.add(3);
/// let (file, offset) = (shared.file().unwrap(), cell.offset());
///
/// // In another process, which was sent the descriptor and the offset:
/// use unmerged::percpu::MappedArea;
/// let shared = MappedArea::open(file)?;
/// assert_eq!(shared.area().cell(offset, 8)?.counter()?.sum(), 3);
/// # Ok::<(), unmerged::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Area<'a> {
    header: NonNull<u8>,
    pub(super) geometry: Geometry,
    /// Other processes may have the memory.
    shared: bool,
    memory: PhantomData<&'a [AtomicU64]>,
}

// SAFETY: the memory is reached by windows and atomics only.
unsafe impl Send for Area<'_> {}
// SAFETY: as above.
unsafe impl Sync for Area<'_> {}

impl<'a> Area<'a> {
    /// Bytes of an area of the default stride on this machine: 4096 for the header and twice 4096
    /// for each possible CPU id. They cost memory where they are touched.
    pub fn size() -> usize {
        stripes().geometry().size()
    }

    /// Makes an area of the default stride, indexed by CPU, in zeroed memory.
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
        // SAFETY: forwarded.
        unsafe { AreaBuilder::new().create_in(memory, len) }
    }

    /// Opens an area that this or another process has made, of any stride.
    ///
    /// # Errors
    ///
    /// EINVAL if the memory is not aligned to 4096 or has less bytes than the area; EPROTO if
    /// there is no area of this version in it, or one of fewer CPU ids than this machine has, or
    /// one that is indexed by `mm_cid` and so belongs to one process.
    ///
    /// # Safety
    ///
    /// As for [`create`](Self::create).
    pub unsafe fn open(memory: NonNull<u8>, len: usize) -> Result<Self> {
        const OPERATION: &str = "percpu::Area::open";
        check(OPERATION, memory, len, STRIDE)?;
        // SAFETY: aligned, valid for 'a, written by atomics.
        let word = unsafe { memory.cast::<AtomicU64>().as_ref() }.load(Ordering::Acquire);
        let geometry = Geometry::from_word(OPERATION, word, stripes().cpus)?;
        if geometry.index != Index::CpuId {
            let why = "an area that is indexed by mm_cid belongs to the process that made it";
            return Err(Error::because(OPERATION, Errno::PROTO, why));
        }
        check(OPERATION, memory, len, geometry.size())?;
        Ok(Self::at(memory, geometry, true))
    }

    /// Makes an area of this geometry.
    ///
    /// # Safety
    ///
    /// As for [`create`](Self::create).
    pub(super) unsafe fn make(
        operation: &'static str,
        memory: NonNull<u8>,
        len: usize,
        geometry: Geometry,
        shared: bool,
    ) -> Result<Self> {
        check(operation, memory, len, geometry.size())?;
        // SAFETY: aligned, valid for 'a, written by atomics.
        let header = unsafe { memory.cast::<AtomicU64>().as_ref() };
        let (free, word) = ((0, Ordering::Relaxed), (geometry.word(), Ordering::Release));
        match header.compare_exchange(free.0, word.0, word.1, free.1) {
            Ok(_) => Ok(Self::at(memory, geometry, shared)),
            Err(found) => Err(Error::with(
                operation,
                Errno::EXIST,
                format_args!("the memory is not zero but begins with {found:#x}"),
            )),
        }
    }

    pub(super) fn at(memory: NonNull<u8>, geometry: Geometry, shared: bool) -> Self {
        // Windows reach the stripes by address.
        let _ = memory.as_ptr().expose_provenance();
        Self { header: memory, geometry, shared, memory: PhantomData }
    }

    /// Bytes from one stripe to the next.
    pub fn stride(&self) -> usize {
        self.geometry.stride
    }

    /// What chooses the stripe.
    pub fn index(&self) -> Index {
        self.geometry.index
    }

    fn runs(&self) -> super::runs::Runs<'a> {
        // SAFETY: the header is mapped for 'a, and written by atomics only.
        unsafe { self.geometry.runs(self.header.addr().get()) }
    }

    /// The words from `offset` on.
    fn site(&self, offset: usize) -> Site {
        let start = self.header.addr().get() + self.geometry.header() + offset;
        Site { start, offset, geometry: self.geometry, shared: self.shared }
    }

    /// Takes a cell of `bytes` on every stripe, all zero. It is aligned to 8, and to its size
    /// rounded up to a power of two unless it is larger than half of the stride.
    ///
    /// It stays taken until it is [freed](Self::free); if this process dies, it stays with the
    /// others.
    ///
    /// # Errors
    ///
    /// EINVAL for 0 bytes or more than the stride less 8; ENOSPC if there is no room.
    pub fn alloc(&self, bytes: usize) -> Result<Cell<'a>> {
        const OPERATION: &str = "percpu::Area::alloc";
        let (most, stride) = (self.geometry.stride - 8, self.geometry.stride);
        if bytes == 0 || bytes > most {
            let numbers = format_args!("{bytes} bytes; a cell has 1 to {most} (stride {stride})");
            return Err(Error::with(OPERATION, Errno::INVAL, numbers));
        }
        let taken = self.runs().take(bytes.div_ceil(8)).ok_or_else(|| {
            let numbers = format_args!("no room for {bytes} bytes on stripes of {stride}");
            Error::with(OPERATION, Errno::NOSPC, numbers)
        })?;
        Ok(Cell::new(self.site(taken * 8), bytes))
    }

    /// The cell that this or another process has taken, by its [`offset`](Cell::offset) and size.
    ///
    /// # Errors
    ///
    /// EINVAL for an offset that is no multiple of 8 or does not fit the stride with `bytes`;
    /// ENOENT if one of these words is not taken.
    pub fn cell(&self, offset: usize, bytes: usize) -> Result<Cell<'a>> {
        const OPERATION: &str = "percpu::Area::cell";
        let stride = self.geometry.stride;
        let fits = offset.checked_add(bytes).is_some_and(|end| end <= stride);
        if !offset.is_multiple_of(8) || offset == 0 || bytes == 0 || !fits {
            let numbers = format_args!("{bytes} bytes at {offset} on stripes of {stride}");
            return Err(Error::with(OPERATION, Errno::INVAL, numbers));
        }
        if !self.runs().is_taken(offset / 8, bytes.div_ceil(8)) {
            let numbers = format_args!("{bytes} bytes at {offset} are not taken");
            return Err(Error::with(OPERATION, Errno::NOENT, numbers));
        }
        Ok(Cell::new(self.site(offset), bytes))
    }

    /// Frees a cell: zeroes it on every stripe, and gives it back.
    ///
    /// # Safety
    ///
    /// Nobody, in any process, uses the cell or anything made from it any more.
    pub unsafe fn free(&self, cell: Cell<'a>) {
        let (site, bytes) = cell.parts();
        if site.start == self.site(site.offset).start {
            block::zero(&self.geometry, site.start, bytes);
            self.runs().release(site.offset / 8, bytes.div_ceil(8));
        }
    }

    /// The counter in word `index` of the stripes, from 0 on: for processes that agree on
    /// numbers. Whoever names it first takes the word. Two counters of one word, in one process or
    /// in two, are the same counter.
    ///
    /// # Errors
    ///
    /// EINVAL for an index that the stride does not have: 511 and more with the default.
    pub fn counter(&self, index: usize) -> Result<Counter<'a>> {
        let words = self.geometry.stride / 8 - 1;
        if index >= words {
            return Err(Error::with(
                "percpu::Area::counter",
                Errno::INVAL,
                format_args!("word {index} of {words}"),
            ));
        }
        self.runs().claim(index + 1, 1);
        Ok(Counter::at(self.site((index + 1) * 8)))
    }
}

/// Is there memory for `size` bytes?
fn check(operation: &'static str, memory: NonNull<u8>, len: usize, size: usize) -> Result<()> {
    let address = memory.addr().get();
    if address.is_multiple_of(STRIDE) && len >= size {
        return Ok(());
    }
    Err(Error::with(
        operation,
        Errno::INVAL,
        format_args!("{len} bytes at {address:#x}; needed: {size}, aligned to {STRIDE}"),
    ))
}
