//! A region, as a process holds it.

use super::UNLINK;
use super::attachment::Attachment;
use super::builder::Builder;
use super::directory::Directory;
use super::name::check_name;
use super::opener::Opener;
use super::rights::Rights;
use crate::error::{Error, Result};
use crate::shm::Resident;
use core::alloc::Layout;
use core::ptr::NonNull;
use rustix::io::Errno;
use std::path::Path;

/// One range of memory at the same address in every process that holds it.
///
/// Made by [`builder`](Self::builder), found by [`open`](Self::open). A process that opens
/// what it holds already gets a second handle on the same mapping. The mapping goes with the
/// last handle; pointers into it must not outlive that.
///
/// Threads share a `&Region`; what they do to the memory behind it is up to atomics of their
/// own in it.
#[derive(Debug)]
pub struct Region {
    name: String,
    pub(super) attachment: Attachment,
}

impl Region {
    /// Bytes of which the address of a region is a multiple.
    pub const ALIGNMENT: usize = super::window::ALIGN as usize;
    /// Most bytes of a region.
    pub const MAX_SIZE: usize = super::window::SIZE_MAX as usize;
    /// Most processes that have a region at a time.
    pub const MAX_PARTICIPANTS: usize = super::participants::PARTICIPANTS;
    /// Most parts of a region that are not plain memory: objects, protected ones, those that are
    /// advised to be otherwise, and nothing. See [`parts`](Self::parts).
    pub const MAX_PARTS: usize = super::layout::SEGMENTS;
    /// Most [names](Self::set_root) of a region.
    pub const MAX_ROOTS: usize = super::roots::ROOTS;

    pub(super) fn new(name: String, attachment: Attachment) -> Self {
        Self { name, attachment }
    }

    pub(super) fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    /// Begins to make a region of this name.
    pub fn builder(name: &str) -> Builder {
        Builder::new(name)
    }

    /// Attaches to the region of this name.
    ///
    /// # Errors
    ///
    /// - EINVAL: not a name.
    /// - ENOENT: nobody serves it, or whoever did has ended.
    /// - EACCES: the mode of the region does not let us.
    /// - EEXIST: something else is at its address in this process; nothing is replaced.
    /// - EPERM: the runtime directory is somebody else's or open to others; the server is
    ///   neither of our user, nor root, nor the owner of the directory; its files lack the
    ///   seals that keep their size.
    /// - EBADMSG: the server or the control page says what no region says, such as too few
    ///   descriptors or a size that its file has not. EPROTO: it is of another version.
    /// - EDQUOT: as many processes of this user have it as [may](Builder::processes_per_user);
    ///   EUSERS: no place is left for one more process.
    /// - ETIMEDOUT: the server does not answer for 10 s, for instance because it is stopped.
    /// - EUSERS: [1024 processes](Self::MAX_PARTICIPANTS) have it; or half as many, of which those
    ///   of other users than the owner and root are not more. EXDEV: it is of another pid or network
    ///   namespace.
    /// - ECONNRESET: it cuts off every connection. ENOMEM, EMFILE, ENFILE: a limit of the
    ///   system.
    pub fn open(name: &str) -> Result<Self> {
        Opener::new(name).open()
    }

    /// Begins to open the region of this name otherwise: with fewer rights, in another
    /// directory, without a thread.
    pub fn opener(name: &str) -> Opener {
        Opener::new(name)
    }

    /// Attaches to the region of this name in a directory other than the user's runtime
    /// directory; see [`Builder::directory`]. It may belong to another user, who is then
    /// trusted to serve.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open); EINVAL for a path that is not absolute.
    pub fn open_in(directory: impl AsRef<Path>, name: &str) -> Result<Self> {
        Opener::new(name).directory(directory).open()
    }

    /// First byte, at the same address in every process.
    pub fn base(&self) -> NonNull<u8> {
        self.attachment.base()
    }

    /// Bytes.
    pub fn size(&self) -> usize {
        self.attachment.shape().size as usize
    }

    /// The name by which this handle was made.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Drawn at random when the region was created: two regions of one name have two.
    pub fn id(&self) -> [u8; 16] {
        self.attachment.shape().id
    }

    /// Does this process serve the region to others? The creator does first; when it ends,
    /// another participant takes over.
    pub fn is_server(&self) -> bool {
        self.attachment.held().is_serving()
    }

    /// What this process may do in the region.
    pub fn rights(&self) -> Rights {
        self.attachment.held().rights
    }

    /// EACCES for who may not write.
    pub(super) fn writable(&self, operation: &'static str) -> Result<()> {
        if self.rights().contains(Rights::WRITE) {
            return Ok(());
        }
        Err(Error::because(operation, Errno::ACCESS, "attached for reading alone"))
    }

    /// Takes memory that nobody had before: zero, until somebody writes it. It is never given
    /// back; see [`super::Arena`] for many small values.
    ///
    /// Lock-free, and safe to be killed in: what a dead process had taken stays taken, and
    /// that is all. A layout of no bytes takes none, and gets an aligned pointer to none.
    ///
    /// # Errors
    ///
    /// ENOMEM with the numbers if the region is full (smaller layouts may still fit), if nothing
    /// lies at the next bytes, or an object, or they are protected, or for an alignment over 1 GiB.
    pub fn alloc(&self, layout: Layout) -> Result<NonNull<u8>> {
        self.writable("mshare::Region::alloc")?;
        let size = self.attachment.shape().size;
        if layout.size() == 0 {
            return Ok(layout.dangling_ptr());
        }
        if layout.align() as u64 > super::window::ALIGN {
            // An offset could be aligned where the address is not.
            return Err(Error::with(
                "mshare::Region::alloc",
                Errno::NOMEM,
                format_args!("aligned to {}, at most {}", layout.align(), super::window::ALIGN),
            ));
        }
        self.check_memory(layout)?;
        match self.attachment.header().bump(size).take(layout) {
            // SAFETY: the offset is at most the size, so the pointer is inside or at the end.
            Ok(offset) => Ok(unsafe { self.base().add(offset as usize) }),
            Err(word) if self.is_heap(word) => self.heap()?.alloc_zeroed(layout),
            Err(taken) => Err(Error::with(
                "mshare::Region::alloc",
                Errno::NOMEM,
                format_args!(
                    "{} bytes aligned to {} do not fit: {taken} of {size} are taken",
                    layout.size(),
                    layout.align()
                ),
            )),
        }
    }

    /// ENOMEM where the next bytes are not memory of the region that can be written: nothing lies
    /// there, or an object, whose bytes are somebody's, or it is protected. What changes while this
    /// looks is not seen.
    fn check_memory(&self, layout: Layout) -> Result<()> {
        const OP: &str = "mshare::Region::alloc";
        let (held, size) = (self.attachment.held(), self.attachment.shape().size);
        let Some((start, end)) = held.header().bump(size).peek(layout) else { return Ok(()) };
        let (_, parts) = held.ledger().layout(OP, size)?;
        let lacks = |part: &&super::layout::Segment| {
            let is_ours = part.backing == super::backing::Backing::Memory;
            let writes = part.access == crate::sys::map::Access::Write;
            !(is_ours && writes) && part.offset < end && start < part.end()
        };
        match parts.iter().find(lacks) {
            None => Ok(()),
            Some(part) => Err(Error::with(
                OP,
                Errno::NOMEM,
                format_args!(
                    "{} bytes at {start:#x}: {:#x} to {:#x} is unmapped, protected or an object",
                    layout.size(),
                    part.offset,
                    part.end()
                ),
            )),
        }
    }

    /// Do all `size` bytes from `pointer` on lie in the region?
    pub fn contains<T>(&self, pointer: *const T, size: usize) -> bool {
        pointer
            .addr()
            .checked_sub(self.base().addr().get())
            .and_then(|offset| offset.checked_add(size))
            .is_some_and(|end| end <= self.size())
    }

    /// The same address as a pointer into this process's mapping, if a `T` there is inside
    /// and aligned. Whether there is a `T` is not looked at.
    ///
    /// # Errors
    ///
    /// EINVAL with the numbers.
    pub fn resolve<T: Resident>(&self, pointer: *const T) -> Result<NonNull<T>> {
        self.check("mshare::Region::resolve", pointer, 1, Errno::INVAL)
    }

    /// `len` of them, from `pointer` on.
    pub(super) fn check<T>(
        &self,
        operation: &'static str,
        pointer: *const T,
        len: usize,
        errno: Errno,
    ) -> Result<NonNull<T>> {
        let (address, base) = (pointer.addr(), self.base());
        let inside = len.checked_mul(size_of::<T>()).filter(|&size| self.contains(pointer, size));
        if inside.is_none() || !address.is_multiple_of(align_of::<T>()) {
            return Err(Error::with(
                operation,
                errno,
                format_args!(
                    "{len} times {} bytes aligned to {} at {address:#x}, in a region of {} bytes at \
                     {base:p}",
                    size_of::<T>(),
                    align_of::<T>(),
                    self.size(),
                ),
            ));
        }
        // SAFETY: inside the mapping, so the offset is no larger than it, and from its start.
        let pointer = unsafe { base.add(address - base.addr().get()) };
        Ok(pointer.cast())
    }

    /// A reference to the `T` at this address, checked as by [`resolve`](Self::resolve).
    ///
    /// # Errors
    ///
    /// EINVAL with the numbers.
    ///
    /// # Safety
    ///
    /// - A `T` was written there, and its writing happened before this call: its address
    ///   came from [`root`](Self::root), or by some other release and acquire.
    /// - As long as the reference lives, no process writes it other than by atomics, and none takes
    ///   it away: by [`unmap`](Self::unmap), [`protect`](Self::protect), [`map`](Self::map) over it,
    ///   [`Advice::Remove`](super::Advice::Remove), or by cutting the file that lies there. These are
    ///   safe to call; what they do to references is the word of who made the reference.
    pub unsafe fn get<T: Resident>(&self, pointer: *const T) -> Result<&T> {
        let pointer = self.check("mshare::Region::get", pointer, 1, Errno::INVAL)?;
        // SAFETY: inside, aligned, mapped as long as the region is borrowed; the rest is
        // the caller's word.
        Ok(unsafe { pointer.as_ref() })
    }

    /// The same for `len` values, one after the other: a length that was found in the region
    /// is checked with the address.
    ///
    /// # Errors
    ///
    /// EINVAL with the numbers.
    ///
    /// # Safety
    ///
    /// As for [`get`](Self::get), for each of them.
    pub unsafe fn get_slice<T: Resident>(&self, pointer: *const T, len: usize) -> Result<&[T]> {
        let pointer = self.check("mshare::Region::get_slice", pointer, len, Errno::INVAL)?;
        // SAFETY: all inside, aligned, mapped as long as the region is borrowed, and no longer
        // than an allocation may be, because the region is one; the rest is the caller's word.
        Ok(unsafe { NonNull::slice_from_raw_parts(pointer, len).as_ref() })
    }
}

/// Removes the name of a region, and nothing else: whoever holds the region keeps it, and
/// the name is free for another.
///
/// # Errors
///
/// EINVAL: not a name. ENOENT: nobody serves it; what a dead process left of it is removed.
/// EEXIST: something of this name is no region. EPERM: the runtime directory is not ours.
/// ETIMEDOUT: another process keeps its lock.
pub fn unlink(name: &str) -> Result<()> {
    check_name(UNLINK, name)?;
    Directory::own(UNLINK, None)?.unlink(name)
}

/// [`unlink`] in a directory other than the user's runtime directory; see
/// [`Builder::directory`].
///
/// # Errors
///
/// Those of [`unlink`]; EINVAL for a path that is not absolute.
pub fn unlink_in(directory: impl AsRef<Path>, name: &str) -> Result<()> {
    check_name(UNLINK, name)?;
    Directory::own(UNLINK, Some(directory.as_ref()))?.unlink(name)
}
