//! What an area is to be like, and where it is made.

use super::area::Area;
use super::block;
use super::geometry::{Geometry, Index};
use super::mapped_area::{MappedArea, SEALS};
use super::stripes::stripes;
use super::{Implementation, STRIDE};
use crate::error::{Context, Error, Result};
use crate::sys::cpus::MAX_IDS;
use crate::sys::map::{Access, Mapping, Place};
use crate::sys::{memfd, numa, rseq};
use core::ptr::NonNull;
use rustix::fd::OwnedFd;
use rustix::io::Errno;

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
