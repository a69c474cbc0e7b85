//! Where things lie in the memory file, layout version 2.
//!
//! ```text
//! 0            the header page
//! 4096         65,536 entries of 64 bytes: the owner of each slot
//! 4 MiB + 4096 the slots, as many as were needed so far, a chunk of 32 at a time
//! ```
//!
//! The places of all owners come first, so that nothing moves when the slots grow. The file
//! is sparse: an entry that nobody touched takes no memory.

use super::owner::Owner;
use super::record::Record;
use crate::sys::map::PAGE;
use core::mem::size_of;

/// The name of the memory file, which readers look for.
pub(super) const NAME: &str = "unmerged.task_shared";
/// The name of the file in which readers say that they wait.
pub(super) const FLAG_NAME: &str = "unmerged.task_shared.waiting";
/// Slots that the table grows by: one page of the smallest.
pub(super) const CHUNK: usize = PAGE / SMALLEST;
/// Slots of a process.
pub(super) const MAX_SLOTS: usize = 65_536;
/// Bytes of the smallest slot; every size is a multiple of it.
pub(super) const SMALLEST: usize = size_of::<Record>();
/// Bytes of the largest slot.
pub(super) const LARGEST: usize = 1024;
/// Byte of the first owner's entry.
pub(super) const OWNERS: usize = PAGE;
/// Byte of the first slot.
pub(super) const SLOTS: usize = OWNERS + MAX_SLOTS * size_of::<Owner>();
/// Byte of a slot where the user's words begin.
pub(super) const USER: usize = 72;
/// Bytes at the end of a slot for an rseq area.
pub(super) const RSEQ: usize = 64;

/// Is it a size that a slot can have?
pub(super) const fn is_size(bytes: usize) -> bool {
    bytes.is_multiple_of(SMALLEST) && bytes >= SMALLEST && bytes <= LARGEST
}

/// The shape of each slot of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    /// Bytes of a slot.
    pub(super) size: usize,
    /// Are its last 64 bytes an rseq area?
    pub(super) rseq: bool,
}

impl Shape {
    /// Words of the user in a slot.
    pub(super) const fn words(self) -> usize {
        let rseq = if self.rseq { RSEQ } else { 0 };
        (self.size - USER - rseq) / size_of::<u64>()
    }

    /// Byte of the rseq area in a slot, 0 without one.
    pub(super) const fn rseq_at(self) -> usize {
        if self.rseq { self.size - RSEQ } else { 0 }
    }

    /// Byte of a slot; of the end of the file, if there are so many.
    pub(super) const fn slot(self, place: usize) -> usize {
        SLOTS + place * self.size
    }

    /// Bytes of a file with as many slots as there can be.
    pub(super) const fn max_bytes(self) -> usize {
        self.slot(MAX_SLOTS)
    }

    /// Slots that a file of so many bytes has room for.
    pub(super) fn room(self, bytes: u64) -> usize {
        let slots = bytes.saturating_sub(SLOTS as u64) / self.size as u64;
        usize::try_from(slots).unwrap_or(MAX_SLOTS).min(MAX_SLOTS)
    }
}

/// Byte of the entry of a slot's owner.
pub(super) const fn owner(place: usize) -> usize {
    OWNERS + place * size_of::<Owner>()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_shape() {
        let words = |size, rseq| Shape { size, rseq }.words();
        assert_eq!([words(128, false), words(256, true), words(256, false)], [7, 15, 23]);
        assert_eq!(Shape { size: 256, rseq: true }.rseq_at(), 192);
        assert!(is_size(128) && is_size(384) && is_size(1024));
        assert!(!is_size(0) && !is_size(64) && !is_size(200) && !is_size(1152));
    }

    #[test]
    fn room_of_a_size() {
        let shape = Shape { size: 256, rseq: false };
        assert_eq!([0, SLOTS as u64, SLOTS as u64 + 255].map(|bytes| shape.room(bytes)), [0; 3]);
        assert_eq!(shape.room(shape.slot(32) as u64), 32);
        assert_eq!(shape.room(u64::MAX), MAX_SLOTS);
        assert_eq!((CHUNK * 128, shape.slot(0) % PAGE, owner(1)), (PAGE, 0, PAGE + 64));
    }
}
