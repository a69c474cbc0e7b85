//! mmap(2): an owned mapping, and the one range check.
//!
//! # Safety
//!
//! A [`Mapping`] hands out raw pointers only. What may be done through them depends on
//! who else writes the memory, and is argued where it is done.

use crate::error::Error;
use core::ffi::c_void;
use core::ptr::NonNull;
use rustix::fd::{AsFd, BorrowedFd};
use rustix::io::{Errno, Result};
use rustix::mm::{
    Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap, mmap_anonymous, mprotect, munmap,
};

/// Bytes of a page. Every kernel for x86-64 has this size.
pub const PAGE: usize = 4096;

/// What a mapping allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// `PROT_NONE`: address space and nothing else.
    None,
    /// `PROT_READ`.
    Read,
    /// `PROT_READ | PROT_WRITE`.
    Write,
}

impl Access {
    const fn mprotect(self) -> MprotectFlags {
        match self {
            Self::None => MprotectFlags::empty(),
            Self::Read => MprotectFlags::READ,
            Self::Write => MprotectFlags::READ.union(MprotectFlags::WRITE),
        }
    }

    const fn prot(self) -> ProtFlags {
        match self {
            Self::None => ProtFlags::empty(),
            Self::Read => ProtFlags::READ,
            Self::Write => ProtFlags::READ.union(ProtFlags::WRITE),
        }
    }
}

/// Where a mapping goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Where the kernel likes.
    Anywhere,
    /// At this address or not at all (`MAP_FIXED_NOREPLACE`): a clash is EEXIST.
    Exactly(usize),
}

/// The one range check: `offset + size <= len`, without overflow.
///
/// # Errors
///
/// EINVAL with the three numbers.
pub fn check_range(
    operation: &'static str,
    len: usize,
    offset: usize,
    size: usize,
) -> core::result::Result<(), Error> {
    match offset.checked_add(size) {
        Some(end) if end <= len => Ok(()),
        _ => Err(Error::with(
            operation,
            Errno::INVAL,
            format_args!("offset {offset} + size {size} is beyond {len} bytes"),
        )),
    }
}

/// A mapping that is unmapped when this is dropped.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread; the pointers that it hands
// out are raw, and their users answer for what they do with them.
unsafe impl Send for Mapping {}
// SAFETY: as above; no method changes the value behind `&self`.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// `mmap(NULL, len, access, MAP_PRIVATE|MAP_ANONYMOUS|MAP_NORESERVE)`.
    ///
    /// # Errors
    ///
    /// EINVAL for a length of 0, ENOMEM.
    pub fn anonymous(len: usize, access: Access) -> Result<Self> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing.
        let start = unsafe { mmap_anonymous(core::ptr::null_mut(), len, access.prot(), flags) }?;
        Self::new(start, len, Place::Anywhere)
    }

    /// `mmap(place, len, access, MAP_SHARED|MAP_NORESERVE, file, 0)`.
    ///
    /// # Errors
    ///
    /// EEXIST if the place is taken, ENOMEM if it is above user space, EINVAL for a length of
    /// 0 or a place that is no page, EACCES or EPERM if the descriptor or a seal forbids the
    /// access.
    pub fn shared(file: impl AsFd, len: usize, access: Access, place: Place) -> Result<Self> {
        let (hint, fixed) = match place {
            Place::Anywhere => (core::ptr::null_mut(), MapFlags::empty()),
            Place::Exactly(address) => {
                (core::ptr::with_exposed_provenance_mut(address), MapFlags::FIXED_NOREPLACE)
            }
        };
        let flags = MapFlags::SHARED | MapFlags::NORESERVE | fixed;
        // SAFETY: a new mapping that replaces none touches no memory of anybody.
        let start = unsafe { mmap(hint, len, access.prot(), flags, file, 0) }?;
        Self::new(start, len, place)
    }

    fn new(start: *mut c_void, len: usize, place: Place) -> Result<Self> {
        let start = NonNull::new(start.cast::<u8>()).ok_or(Errno::NOMEM)?;
        let mapping = Self { start, len };
        // A kernel that does not know MAP_FIXED_NOREPLACE takes the address as a hint.
        match place {
            Place::Exactly(address) if mapping.address() != address => Err(Errno::EXIST),
            _ => Ok(mapping),
        }
    }

    /// First byte.
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Address of the first byte, exposed: other processes may hold it as a number.
    pub fn address(&self) -> usize {
        self.start.as_ptr().expose_provenance()
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: a mapping has at least one byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Pointer to `size` bytes at `offset`.
    ///
    /// # Errors
    ///
    /// EINVAL if they are not inside.
    pub fn at(&self, offset: usize, size: usize) -> core::result::Result<NonNull<u8>, Error> {
        check_range("mapping", self.len, offset, size)?;
        // SAFETY: the range lies inside the mapping.
        Ok(unsafe { self.start.add(offset) })
    }

    /// `madvise(start, len, advice)` on the whole.
    ///
    /// # Errors
    ///
    /// EINVAL where this kind of memory does not take the advice.
    ///
    /// # Safety
    ///
    /// The advice must not take away contents that somebody relies on.
    pub unsafe fn advise(&self, advice: Advice) -> Result<()> {
        // SAFETY: the mapping is ours; the caller vouches for the advice.
        unsafe { madvise(self.start.as_ptr().cast(), self.len, advice) }
    }

    /// `mprotect(start, len, access)` on the whole.
    ///
    /// # Errors
    ///
    /// EACCES if the descriptor or a seal forbids the access.
    ///
    /// # Safety
    ///
    /// Nobody may rely on an access that is taken away.
    pub unsafe fn protect(&self, access: Access) -> Result<()> {
        // SAFETY: the mapping is ours; the caller vouches for its users.
        unsafe { mprotect(self.start.as_ptr().cast(), self.len, access.mprotect()) }
    }

    /// `mmap(start + offset, len, access, MAP_SHARED|MAP_FIXED|MAP_NORESERVE, file, at)` — other
    /// memory in a part of the mapping; without a file, none (`PROT_NONE`).
    ///
    /// # Errors
    ///
    /// EINVAL if the part does not lie inside, or is not aligned to the pages of the file;
    /// EACCES or EPERM if the descriptor or a seal forbids the access; ENODEV for a file that
    /// cannot be mapped; ENOMEM at the limit of mappings.
    ///
    /// # Safety
    ///
    /// Nobody may rely on what lies there.
    pub unsafe fn lay(
        &self,
        offset: usize,
        len: usize,
        access: Access,
        file: Option<(BorrowedFd<'_>, u64)>,
    ) -> Result<()> {
        let start = self.at(offset, len).map_err(|_| Errno::INVAL)?.as_ptr().cast();
        let flags = MapFlags::FIXED | MapFlags::NORESERVE;
        let laid = match file {
            Some((file, at)) => {
                // SAFETY: the part is ours; the caller vouches for its users.
                unsafe { mmap(start, len, access.prot(), flags | MapFlags::SHARED, file, at) }
            }
            None => {
                let none = Access::None.prot();
                // SAFETY: as above.
                unsafe { mmap_anonymous(start, len, none, flags | MapFlags::PRIVATE) }
            }
        };
        laid.map(drop)
    }

    /// [`protect`](Self::protect) for a part.
    ///
    /// # Errors
    ///
    /// EINVAL if the part does not lie inside, EACCES if the descriptor or a seal forbids the
    /// access.
    ///
    /// # Safety
    ///
    /// Nobody may rely on an access that is taken away.
    pub unsafe fn protect_part(&self, offset: usize, len: usize, access: Access) -> Result<()> {
        let start = self.at(offset, len).map_err(|_| Errno::INVAL)?;
        // SAFETY: the part is ours; the caller vouches for its users.
        unsafe { mprotect(start.as_ptr().cast(), len, access.mprotect()) }
    }

    /// [`advise`](Self::advise) for a part, by number (`MADV_*`).
    ///
    /// # Errors
    ///
    /// EINVAL if the part does not lie inside, and where this memory or this kernel does not
    /// take the advice.
    ///
    /// # Safety
    ///
    /// The advice must not take away contents that somebody relies on.
    pub unsafe fn advise_part(&self, offset: usize, len: usize, advice: i32) -> Result<()> {
        let start = self.at(offset, len).map_err(|_| Errno::INVAL)?;
        // SAFETY: the part is ours; the caller vouches for the advice.
        super::errno::zero(unsafe { libc::madvise(start.as_ptr().cast(), len, advice) }.into())
    }

    /// `mincore(start, len)` — bytes of it that are in memory now, for this process (anonymous
    /// memory) or for anybody (a memory file). A page that was read and never written counts.
    ///
    /// # Errors
    ///
    /// EAGAIN if the kernel is short of memory.
    pub fn resident(&self) -> Result<usize> {
        resident(self.start.as_ptr(), self.len)
    }

    /// Keeps the mapping until the process ends.
    pub fn leak(self) -> NonNull<u8> {
        core::mem::ManuallyDrop::new(self).start
    }

    /// A mapping that was [leaked](Self::leak), to be unmapped after all.
    ///
    /// # Safety
    ///
    /// It must be one, given by the address and length that it had, and be reclaimed once.
    pub unsafe fn reclaim(address: usize, len: usize) -> Self {
        let start = core::ptr::with_exposed_provenance_mut(address);
        // SAFETY: the caller says that there is a mapping, and none is at 0.
        Self { start: unsafe { NonNull::new_unchecked(start) }, len }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and whoever was handed a pointer into it has promised
        // not to outlive it.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// `mincore(start, len)` — bytes of the pages in that range that are in memory.
///
/// # Errors
///
/// ENOMEM if a part of it is not mapped, EINVAL for a start that is no page.
pub fn resident(start: *const u8, len: usize) -> Result<usize> {
    let mut pages = [0_u8; 4096];
    let mut resident = 0;
    for offset in (0..len).step_by(pages.len() * PAGE) {
        let part = (len - offset).min(pages.len() * PAGE);
        let at = start.wrapping_add(offset).cast_mut().cast();
        // SAFETY: the kernel checks the range, and writes one byte for each of its pages.
        let answer = unsafe { libc::mincore(at, part, pages.as_mut_ptr()) };
        super::errno::zero(answer.into())?;
        let pages = &pages[..part.div_ceil(PAGE)];
        resident += pages.iter().filter(|&page| page & 1 != 0).count() * PAGE;
    }
    Ok(resident)
}

/// `madvise(start, len, MADV_REMOVE)` — gives the memory of a shared file mapping back, in every
/// process: it is zero when next looked at.
///
/// # Errors
///
/// EINVAL for what is no shared mapping of a file or no whole pages, EPERM or EACCES where a seal
/// or the access forbids writing, EOPNOTSUPP on a file system that cannot.
///
/// # Safety
///
/// Nobody may rely on the contents, in any process.
pub unsafe fn remove(start: *mut u8, len: usize) -> Result<()> {
    // SAFETY: the kernel checks the range; the caller vouches for the contents.
    super::errno::zero(unsafe { libc::madvise(start.cast(), len, libc::MADV_REMOVE) }.into())
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sys::memfd;

    #[test]
    fn ranges() {
        assert!(check_range("test", 10, 0, 10).is_ok());
        assert!(check_range("test", 10, 10, 0).is_ok());
        for (offset, size) in [(0, 11), (11, 0), (5, 6), (usize::MAX, 1), (1, usize::MAX)] {
            let error = check_range("test", 10, offset, size).unwrap_err();
            assert!(error.is_invalid());
            assert!(error.to_string().contains(&offset.to_string()), "{error}");
        }
    }

    #[test]
    fn a_clash_is_an_error_and_replaces_nothing() {
        let first = Mapping::anonymous(PAGE, Access::Write).unwrap();
        // SAFETY: our own page, nobody else's.
        unsafe { first.start().write(42) };
        let file = memfd::create("unmerged.test", PAGE as u64).unwrap();
        let place = Place::Exactly(first.address());
        let clash = Mapping::shared(&file, PAGE, Access::Write, place);
        assert_eq!(clash.unwrap_err(), Errno::EXIST);
        // SAFETY: as above.
        assert_eq!(unsafe { first.start().read() }, 42);
    }

    #[test]
    fn bad_lengths_and_places() {
        let file = memfd::create("unmerged.test", PAGE as u64).unwrap();
        let map = |len, place| Mapping::shared(&file, len, Access::Read, place).map(drop);
        assert_eq!(map(0, Place::Anywhere), Err(Errno::INVAL));
        assert_eq!(map(PAGE, Place::Exactly(4097)), Err(Errno::INVAL));
        assert_eq!(map(PAGE, Place::Exactly(1 << 60)), Err(Errno::NOMEM));
    }

    #[test]
    fn pages_in_memory() {
        let mapping = Mapping::anonymous(5000 * PAGE, Access::Write).unwrap();
        // SAFETY: the advice takes nothing away.
        let _ = unsafe { mapping.advise(Advice::LinuxNoHugepage) };
        assert_eq!(resident(mapping.start().as_ptr(), mapping.len()), Ok(0));
        for page in [0, 4095, 4096, 4999] {
            // SAFETY: our own pages.
            unsafe { mapping.at(page * PAGE, 1).unwrap().write(1) };
        }
        assert_eq!(resident(mapping.start().as_ptr(), mapping.len()), Ok(4 * PAGE));
        assert_eq!(resident(mapping.start().as_ptr().wrapping_add(1), PAGE), Err(Errno::INVAL));
    }

    #[test]
    fn two_mappings_of_one_file() {
        let file = memfd::create("unmerged.test", PAGE as u64).unwrap();
        let here = Mapping::shared(&file, PAGE, Access::Write, Place::Anywhere).unwrap();
        let there = Mapping::shared(&file, PAGE, Access::Read, Place::Anywhere).unwrap();
        // SAFETY: our own page.
        unsafe { here.at(100, 1).unwrap().write(7) };
        // SAFETY: the same page, written above.
        assert_eq!(unsafe { there.at(100, 1).unwrap().read() }, 7);
        assert!(here.at(PAGE, 1).is_err());
    }
}
