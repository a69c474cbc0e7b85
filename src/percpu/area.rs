//! An area: stripes of the caller's own, private or shared with other processes.

use super::block;
use super::cell::Cell;
use super::counter::Counter;
use super::geometry::{Geometry, Index};
use super::site::Site;
use super::stripes::stripes;
use super::{Implementation, STRIDE};
use crate::error::{Context, Error, Result};
use crate::sync::{AtomicU64, Ordering};
use crate::sys::cpus::MAX_IDS;
use crate::sys::map::{Access, Mapping, Place};
use crate::sys::{memfd, numa, rseq};
use core::marker::PhantomData;
use core::ptr::NonNull;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::SealFlags;
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
    geometry: Geometry,
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
    unsafe fn make(
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

    fn at(memory: NonNull<u8>, geometry: Geometry, shared: bool) -> Self {
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

/// What an area is to be like.
///
/// ```
/// use unmerged::percpu::{AreaBuilder, Index};
///
/// let mapped = AreaBuilder::new().stride(65536).private()?;
/// let histogram = mapped.area().alloc(32 * 1024)?;
/// assert_eq!(mapped.area().index(), Index::CpuId);
/// # drop(histogram);
/// # Ok::<(), unmerged::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct AreaBuilder {
    stride: usize,
    index: Index,
    numa: bool,
    cpu_ids: u32,
}

impl Default for AreaBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl AreaBuilder {
    /// The default: stride 4096, indexed by CPU, pages where they are first touched.
    pub const fn new() -> Self {
        Self { stride: STRIDE, index: Index::CpuId, numa: false, cpu_ids: 0 }
    }

    /// Bytes from one stripe to the next: a power of two from 4096 to 2^34. The default is the
    /// fastest: `%gs` reaches it.
    #[must_use]
    pub const fn stride(mut self, bytes: usize) -> Self {
        self.stride = bytes;
        self
    }

    /// What chooses the stripe.
    #[must_use]
    pub const fn index(mut self, index: Index) -> Self {
        self.index = index;
        self
    }

    /// Has each stripe placed on the NUMA node of its CPU by the kernel (`mbind(2)`), whoever
    /// touches it first. Without it a stripe is placed where its first user is, which for
    /// windows is that CPU. A machine without NUMA has nothing to place.
    #[must_use]
    pub const fn numa(mut self, numa: bool) -> Self {
        self.numa = numa;
        self
    }

    /// Stripes for at least so many CPU ids, up to 8192: for an area that a process on a larger
    /// machine will share after a migration, and to try how code fares there. Stripes of ids that
    /// this machine has not are address space and nothing else.
    #[must_use]
    pub const fn cpu_ids(mut self, least: u32) -> Self {
        self.cpu_ids = least;
        self
    }

    fn geometry(&self, operation: &'static str) -> Result<Geometry> {
        let stripes = stripes();
        let windows = stripes.implementation != Implementation::Portable;
        if self.index == Index::MmCid && windows && rseq::size() < 28 {
            let numbers = format_args!("rseq has {} bytes; mm_cid ends at 28", rseq::size());
            return Err(Error::with(operation, Errno::OPNOTSUPP, numbers));
        }
        if self.cpu_ids > MAX_IDS {
            let numbers = format_args!("{} CPU ids; Linux has {MAX_IDS} at most", self.cpu_ids);
            return Err(Error::with(operation, Errno::INVAL, numbers));
        }
        Geometry::new(operation, self.stride, stripes.cpus.max(self.cpu_ids), self.index)
    }

    /// The same, of an area that other processes may have.
    fn shared_geometry(&self, operation: &'static str) -> Result<Geometry> {
        if self.index != Index::CpuId {
            let why = "an area that is indexed by mm_cid cannot be shared";
            return Err(Error::because(operation, Errno::INVAL, why));
        }
        self.geometry(operation)
    }

    /// An area in memory of this process, which is unmapped when it is dropped.
    ///
    /// # Errors
    ///
    /// EINVAL for a stride that is no power of two from 4096 to 2^34 and for over 8192 CPU ids;
    /// EOVERFLOW if all stripes together exceed user space; EOPNOTSUPP for [`Index::MmCid`] where
    /// rseq has no `mm_cid` (before Linux 6.3, or refused); ENOMEM.
    pub fn private(&self) -> Result<MappedArea> {
        const OPERATION: &str = "percpu::AreaBuilder::private";
        let geometry = self.geometry(OPERATION)?;
        let mapping = block::map(&geometry).op_on(OPERATION, geometry.size())?;
        self.finish(OPERATION, mapping, None, geometry)
    }

    /// An area in a new memory file, for other processes to [open](MappedArea::open): the file is
    /// sealed against changes of its size, closed on exec and of mode 0600. `name` shows in
    /// `/proc/*/maps`.
    ///
    /// # Errors
    ///
    /// As [`private`](Self::private); EINVAL for [`Index::MmCid`], which belongs to one process, and
    /// for a name over 249 bytes or with a zero in it; EMFILE; EFBIG beyond `RLIMIT_FSIZE`.
    pub fn memory_file(&self, name: &str) -> Result<MappedArea> {
        const OPERATION: &str = "percpu::AreaBuilder::memory_file";
        let geometry = self.shared_geometry(OPERATION)?;
        let len = geometry.size();
        if name.len() > memfd::NAME {
            let numbers = format_args!("a name of {} bytes; at most {}", name.len(), memfd::NAME);
            return Err(Error::with(OPERATION, Errno::INVAL, numbers));
        }
        let file = memfd::create(name, len as u64).op_on(OPERATION, len)?;
        memfd::seal(&file, SEALS).op(OPERATION)?;
        let mapping = Mapping::shared(&file, len, Access::Write, Place::Anywhere);
        let mapping = mapping.op_on(OPERATION, len)?;
        self.finish(OPERATION, mapping, Some(file), geometry)
    }

    /// Bytes that [`create_in`](Self::create_in) needs: a header, and twice the stride for each CPU id.
    /// They cost memory where they are touched.
    ///
    /// # Errors
    ///
    /// As [`private`](Self::private), but for ENOMEM.
    pub fn size(&self) -> Result<usize> {
        Ok(self.geometry("percpu::AreaBuilder::size")?.size())
    }

    /// An area in zeroed memory of the caller's, which other processes may share and
    /// [open](Area::open) at whatever address they have it.
    ///
    /// ```
    /// use std::ptr::NonNull;
    /// use unmerged::percpu::{Area, AreaBuilder};
    ///
    /// let builder = AreaBuilder::new().stride(8192);
    /// let size = builder.size()?;
    /// # let base = unsafe {
    /// #     let (all, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    /// #     let flags = flags | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    /// #     libc::mmap(std::ptr::null_mut(), size, all, flags, -1, 0)
    /// # };
    /// // `base` is where the caller has mapped `size` bytes that its children will share.
    /// let base = NonNull::new(base.cast::<u8>()).unwrap();
    /// // SAFETY: mapped for good, zero, and reached through areas alone.
    /// let area: Area<'static> = unsafe { builder.create_in(base, size) }?;
    /// // SAFETY: as above; another process does this.
    /// let same: Area<'static> = unsafe { Area::open(base, size) }?;
    /// let cell = area.alloc(8000)?;
    /// cell.counter()?.add(1);
    /// assert_eq!(same.cell(cell.offset(), 8000)?.counter()?.sum(), 1);
    /// # Ok::<(), unmerged::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`size`](Self::size); EINVAL for [`Index::MmCid`], which belongs to one process, and if the
    /// memory is not aligned to 4096 or has less than [`size`](Self::size) bytes; EEXIST if there
    /// is something in it already.
    ///
    /// # Safety
    ///
    /// `memory` must be readable and writable for `len` bytes and for `'a`, in every process that
    /// opens it, and be written by nothing but areas.
    pub unsafe fn create_in<'a>(&self, memory: NonNull<u8>, len: usize) -> Result<Area<'a>> {
        const OPERATION: &str = "percpu::AreaBuilder::create_in";
        let geometry = self.shared_geometry(OPERATION)?;
        // SAFETY: forwarded.
        let area = unsafe { Area::make(OPERATION, memory, len, geometry, true) }?;
        if self.numa {
            place(memory.addr().get(), &geometry);
        }
        Ok(area)
    }

    fn finish(
        &self,
        operation: &'static str,
        mapping: Mapping,
        file: Option<OwnedFd>,
        geometry: Geometry,
    ) -> Result<MappedArea> {
        if self.numa {
            place(mapping.address(), &geometry);
        }
        let (start, len) = (mapping.start(), mapping.len());
        // SAFETY: the mapping lives in the value that hands areas out, and is new.
        let area = unsafe { Area::make(operation, start, len, geometry, file.is_some()) }?;
        let geometry = area.geometry;
        Ok(MappedArea { mapping, file, geometry })
    }
}

/// What every file of an area is sealed with: no reader of it can meet a SIGBUS.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);

/// Asks for the stripes of each node's CPUs on that node. Placement is a wish: a kernel that
/// refuses it leaves the pages where they are first touched.
fn place(header: usize, geometry: &Geometry) {
    let cpus = geometry.cpus;
    for (node, ids) in numa::nodes() {
        for cpu in ids.iter().filter(|&cpu| cpu < cpus) {
            for stripe in [cpu, cpus + cpu] {
                let offset = geometry.header() + stripe as usize * geometry.stride;
                // SAFETY: a stripe of the area that is being made.
                let _ = unsafe { numa::prefer(header + offset, geometry.stride, node) };
            }
        }
    }
}

/// An area and the memory that it is in.
#[derive(Debug)]
pub struct MappedArea {
    mapping: Mapping,
    file: Option<OwnedFd>,
    geometry: Geometry,
}

impl MappedArea {
    /// Maps the area in a memory file that another process has made.
    ///
    /// # Errors
    ///
    /// EPERM for a file that is not sealed against changes of its size, or not in ordinary pages;
    /// EINVAL for one that cannot be sealed or has less bytes than the area; EPROTO if there is no
    /// area of this version in it, or one of fewer CPU ids than this machine has; EACCES for a
    /// read-only descriptor; ENOMEM.
    pub fn open(file: impl AsFd) -> Result<Self> {
        const OPERATION: &str = "percpu::MappedArea::open";
        let file = file.as_fd().try_clone_to_owned().map_err(|error| {
            let errno = error.raw_os_error().map_or(Errno::BADF, Errno::from_raw_os_error);
            Error::new(OPERATION, errno)
        })?;
        let size = memfd::sealed_size(&file, SEALS).op_where(OPERATION, memfd::why_not_sealed)?;
        let len = usize::try_from(size).map_err(|_| Error::new(OPERATION, Errno::FBIG))?;
        let mapping = Mapping::shared(&file, len, Access::Write, Place::Anywhere);
        let mapping = mapping.op_on(OPERATION, len)?;
        // SAFETY: mapped for as long as the value lives; the file is an area's, or refused.
        let area = unsafe { Area::open(mapping.start(), len) }?;
        let geometry = area.geometry;
        Ok(Self { mapping, file: Some(file), geometry })
    }

    /// The area.
    pub fn area(&self) -> Area<'_> {
        Area::at(self.mapping.start(), self.geometry, self.file.is_some())
    }

    /// The memory file, to be sent to another process; `None` for private memory.
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }

    /// Bytes of address space: the header and twice the stride for each possible CPU id.
    pub fn reserved(&self) -> usize {
        self.mapping.len()
    }

    /// Bytes that are in memory now. A page that was read and never written counts in private
    /// memory too.
    ///
    /// # Errors
    ///
    /// EAGAIN if the kernel is short of memory.
    pub fn resident(&self) -> Result<usize> {
        self.mapping.resident().op("percpu::MappedArea::resident")
    }
}
