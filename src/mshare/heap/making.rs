//! How a region gets its heap.

use super::extent::Extent;
use super::space::{self, Space};
use super::{Heap, cache};
use crate::error::{Error, Result};
use crate::mshare::layout::plain_until;
use crate::mshare::region::Region;
use crate::sync::Ordering;
use crate::sys::map::PAGE;
use core::ops::Range;
use core::ptr::NonNull;
use rustix::io::Errno;

const OPEN: &str = "mshare::Region::heap";

impl Region {
    /// The heap of this region: all of its memory that [`alloc`](Self::alloc) and arenas had not
    /// taken when the first process asked, up to the first part that is no plain memory: an object,
    /// or the [room](crate::mshare::Builder::room) for some. From then on they take from the heap, and
    /// nothing can be mapped, unmapped or protected there. Its memory is in huge pages if the region's
    /// [is](crate::mshare::Builder::huge_pages), or [becomes](crate::mshare::Builder::collapse) so
    /// while it is used.
    ///
    /// # Errors
    ///
    /// EINVAL if less than 256 KiB is left, EACCES for a participant that may not write, EPERM if
    /// there is no heap yet and this participant has not all rights, EBADMSG for a control page that
    /// names a heap outside of the region, ENFILE if this process uses 64 heaps, ETIMEDOUT if
    /// another process keeps the lock of the region.
    pub fn heap(&self) -> Result<Heap> {
        self.heap_of(usize::MAX)
    }

    /// The same, of at most so many bytes if there is none yet.
    ///
    /// # Errors
    ///
    /// As for [`heap`](Self::heap).
    pub fn heap_of(&self, bytes: usize) -> Result<Heap> {
        self.writable(OPEN)?;
        let extent = match self.extent(OPEN)? {
            Some(extent) => extent,
            None => self.make_heap(bytes as u64)?,
        };
        // SAFETY: mapped, and kept so by the attachment that goes with it.
        let space = unsafe { Space::new(OPEN, self.base(), extent) }?;
        cache::learn(OPEN, space, self.attachment())?;
        Ok(Heap { region: self.base().addr() })
    }

    /// The heap, if there is one.
    fn extent(&self, operation: &'static str) -> Result<Option<Extent>> {
        let (word, size) = (self.attachment().header().next(), self.size() as u64);
        let corrupt = |word| {
            let numbers = format_args!("heap of {word:#x} in a region of {size} bytes");
            Error::with(operation, Errno::BADMSG, numbers)
        };
        Extent::of(word.load(Ordering::Relaxed), size).map_err(corrupt)
    }

    /// Makes one, under the lock of the log: no mapping changes meanwhile, and whoever changes one
    /// later sees the heap.
    fn make_heap(&self, bytes: u64) -> Result<Extent> {
        let size = self.size() as u64;
        let word = self.attachment().header().next();
        // Also when memory lies there.
        let room = self.attachment().header().room(size);
        self.attachment().held().locked(OPEN, |layout| {
            let mut seen = word.load(Ordering::Relaxed);
            loop {
                if let Some(extent) = self.extent(OPEN)? {
                    return Ok(extent);
                }
                let end = plain_until(layout, seen.next_multiple_of(PAGE as u64), size).min(room);
                let extent = Extent::from(seen, bytes, end).unwrap_or(Extent { start: 0, len: 0 });
                if extent.len < space::LEN_MIN {
                    let numbers =
                        format_args!("{} bytes are left, at least {}", extent.len, space::LEN_MIN);
                    return Err(Error::with(OPEN, Errno::INVAL, numbers));
                }
                // Relaxed: there is nothing behind it but zeros.
                let relaxed = Ordering::Relaxed;
                // Before: as long as the two differ, there is no heap for who changes mappings.
                self.attachment().held().ledger().heap.store(extent.word(), relaxed);
                match word.compare_exchange(seen, extent.word(), relaxed, relaxed) {
                    Ok(_) => return Ok(extent),
                    Err(now) => seen = now,
                }
            }
        })
    }

    /// Does the bump pointer say that the rest is a heap of this region?
    pub(in crate::mshare) fn is_heap(&self, word: u64) -> bool {
        matches!(Extent::of(word, self.size() as u64), Ok(Some(_)))
    }
}

/// All that had the heap of this region have ended, whatever can be seen of them from here: what they
/// had is taken back by the next that looks. The region is mapped at `base`, by nobody else.
pub(in crate::mshare) fn abandon(operation: &'static str, word: u64, base: NonNull<u8>, size: u64) {
    /// An owner that is no thread: see [`owner`](super::owner).
    const NOBODY: u64 = 1;
    let Ok(Some(extent)) = Extent::of(word, size) else { return };
    // SAFETY: mapped, as the caller says.
    let Ok(space) = (unsafe { Space::new(operation, base, extent) }) else { return };
    for owner in space.owners() {
        if owner.load(Ordering::Relaxed) != 0 {
            owner.store(NOBODY, Ordering::Relaxed);
        }
    }
}

/// Which bytes of a region are its heap, by the word of its control page; none if it names
/// something outside.
pub(in crate::mshare) fn range(word: u64, size: u64) -> Option<Range<u64>> {
    let extent = Extent::of(word, size).ok().flatten()?;
    Some(extent.start..extent.start + extent.len)
}
