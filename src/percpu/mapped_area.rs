//! An area with the memory that it is in.

use super::area::Area;
use super::geometry::Geometry;
use crate::error::{Context, Error, Result};
use crate::sys::map::{Access, Mapping, Place};
use crate::sys::memfd;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::SealFlags;
use rustix::io::Errno;

/// What every file of an area is sealed with: no reader of it can meet a SIGBUS.
pub(super) const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);

/// An area and the memory that it is in.
#[derive(Debug)]
pub struct MappedArea {
    pub(super) mapping: Mapping,
    pub(super) file: Option<OwnedFd>,
    pub(super) geometry: Geometry,
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
