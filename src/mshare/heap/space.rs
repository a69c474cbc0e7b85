//! Where everything of a heap lies.
//!
//! | part | bytes | content |
//! |---|---|---|
//! | head | one page | lock, journal, counters |
//! | owners | 8 a participant | who has the slot |
//! | slots | 1024 a participant | what it has in hand |
//! | pages | a bit a page | taken |
//! | room | 4.1 a page | for each class: slabs that have free blocks |
//! | states | 8 a page | what the page is part of |
//! | blocks | 32 a page | for each slab: blocks that are taken |
//! | memory | whole pages | |
//!
//! All of it follows from the heap's extent, which is looked at once and then kept in the process's
//! own memory: nothing that is written to the region later moves a part. What is not used
//! yet is zero, and has no memory.

use super::class::{self, CLASSES};
use super::extent::Extent;
use super::kept::KEPT;
use crate::error::{Error, Result};
use crate::sync::AtomicU64;
use crate::sys::map::PAGE;
use core::ptr::NonNull;
use rustix::io::Errno;

/// Smallest heap in bytes.
pub(super) const LEN_MIN: u64 = 256 << 10;
/// Bytes of a slot.
const SLOT: usize = 1024;
/// Words of a page's part of `blocks`.
const BLOCKS: usize = 4;

/// The parts of one heap, in this process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Space {
    /// First byte of the heap.
    start: NonNull<u8>,
    /// Address of the region: what handles name.
    region: usize,
    slots: usize,
    pages: usize,
    /// Offsets from `start`.
    bitmap: usize,
    room: usize,
    states: usize,
    blocks: usize,
    memory: usize,
}

// SAFETY: what it points at is mapped for every thread, and reached by atomics.
unsafe impl Send for Space {}
// SAFETY: as above.
unsafe impl Sync for Space {}

/// What a slot has in hand of one class.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hand<'a> {
    /// First page of the slab, plus 1; 0 for none.
    pub(super) slab: &'a AtomicU64,
    /// Which word of its bitmap the mask belongs to.
    pub(super) word: &'a AtomicU64,
    /// Blocks of that word that are taken in the bitmap, and nobody's.
    pub(super) mask: &'a AtomicU64,
}

impl Space {
    /// Of a heap that lies so in the region that is mapped at `base`.
    ///
    /// # Errors
    ///
    /// EINVAL if it is too small.
    ///
    /// # Safety
    ///
    /// The region is mapped there, as long as this or a copy is used.
    pub(super) unsafe fn new(
        operation: &'static str,
        base: NonNull<u8>,
        extent: Extent,
    ) -> Result<Self> {
        if extent.len < LEN_MIN {
            return Err(Error::with(
                operation,
                Errno::INVAL,
                format_args!("heap of {} bytes, at least {LEN_MIN}", extent.len),
            ));
        }
        // SAFETY: the extent lies in the region.
        let start = unsafe { base.add(extent.start as usize) };
        let len = extent.len as usize;
        let slots = (len / (256 * SLOT)).next_power_of_two().clamp(16, 1024);
        let mut space = Self {
            start,
            region: base.addr().get(),
            slots,
            // What each needs of all parts, rounded down.
            pages: len / (PAGE + 8 * BLOCKS + 8 + 5),
            bitmap: (PAGE + slots * (8 + SLOT)).next_multiple_of(PAGE),
            room: 0,
            states: 0,
            blocks: 0,
            memory: 0,
        };
        loop {
            let words = space.words();
            space.room = (space.bitmap + words * 8).next_multiple_of(PAGE);
            space.states = space.room + (CLASSES * space.room_words() * 8).next_multiple_of(PAGE);
            space.blocks = space.states + (space.pages * 8).next_multiple_of(PAGE);
            space.memory = space.blocks + (space.pages * 8 * BLOCKS).next_multiple_of(PAGE);
            let end = space.memory + space.pages * PAGE;
            match end.checked_sub(len) {
                None | Some(0) => return Ok(space),
                Some(excess) => space.pages -= excess.div_ceil(PAGE),
            }
        }
    }

    /// Address of the region.
    #[inline]
    pub(super) fn region(&self) -> usize {
        self.region
    }

    /// Pages that can be had.
    #[inline]
    pub(super) fn pages(&self) -> usize {
        self.pages
    }

    /// Participants at a time.
    pub(super) fn slots(&self) -> usize {
        self.slots
    }

    /// Words of a bitmap with a bit for each page.
    pub(super) fn words(&self) -> usize {
        self.pages.div_ceil(64)
    }

    /// Words of the bitmap of one class, and of its summary.
    fn room_words(&self) -> usize {
        (self.words() + self.words().div_ceil(64)).next_multiple_of(8)
    }

    /// `len` words at an offset.
    #[inline]
    fn at(&self, offset: usize, len: usize) -> &[AtomicU64] {
        debug_assert!(offset + len * 8 <= self.memory && offset.is_multiple_of(8));
        // SAFETY: in the heap, in front of its memory.
        let first = unsafe { self.start.add(offset) }.cast();
        // SAFETY: mapped, as `new` was promised; aligned; others change it by atomics.
        unsafe { NonNull::slice_from_raw_parts(first, len).as_ref() }
    }

    /// Word `n` of the first page.
    pub(super) fn head(&self, n: usize) -> &AtomicU64 {
        assert!(n < PAGE / 8, "the head is a page");
        &self.at(n * 8, 1)[0]
    }

    /// Who has which slot.
    pub(super) fn owners(&self) -> &[AtomicU64] {
        self.at(PAGE, self.slots)
    }

    /// Word `n` of a slot.
    #[inline]
    fn slot(&self, slot: usize, n: usize) -> &AtomicU64 {
        assert!(slot < self.slots, "a slot of this heap");
        &self.at(PAGE + self.slots * 8 + slot * SLOT + n * 8, 1)[0]
    }

    /// The slab that the slot is about to give something back to: first page, plus 1.
    #[inline]
    pub(super) fn touched(&self, slot: usize) -> &AtomicU64 {
        self.slot(slot, 0)
    }

    /// When the owner of the slot began.
    pub(super) fn began(&self, slot: usize) -> &AtomicU64 {
        self.slot(slot, 1)
    }

    /// What the slot has in hand of a class.
    #[inline]
    pub(super) fn hand(&self, slot: usize, class: usize) -> Hand<'_> {
        assert!(class < CLASSES, "a class");
        Hand {
            slab: self.slot(slot, 8 + class * 3),
            word: self.slot(slot, 9 + class * 3),
            mask: self.slot(slot, 10 + class * 3),
        }
    }

    /// First page of a run that the slot keeps, plus 1; 0 for none.
    #[inline]
    pub(super) fn kept(&self, slot: usize, at: usize) -> &AtomicU64 {
        const FIRST: usize = 8 + CLASSES * 3;
        const { assert!((FIRST + KEPT) * 8 <= SLOT, "a slot has room") };
        assert!(at < KEPT, "one of those that are kept");
        self.slot(slot, FIRST + at)
    }

    /// Which pages are taken.
    pub(super) fn bitmap(&self) -> &[AtomicU64] {
        self.at(self.bitmap, self.words())
    }

    /// Slabs of a class with room: a bit a page, and a bit for each word of those.
    pub(super) fn room(&self, class: usize) -> (&[AtomicU64], &[AtomicU64]) {
        assert!(class < CLASSES, "a class");
        let first = self.room + class * self.room_words() * 8;
        let words = self.words();
        self.at(first, words + words.div_ceil(64)).split_at(words)
    }

    /// What a page is part of.
    #[inline]
    pub(super) fn state(&self, page: usize) -> &AtomicU64 {
        assert!(page < self.pages, "a page of this heap");
        &self.at(self.states + page * 8, 1)[0]
    }

    /// The bitmap of a slab; `None` if a slab of this class would not end in the heap.
    #[inline]
    pub(super) fn blocks(&self, page: usize, class: usize) -> Option<&[AtomicU64]> {
        if page + class::pages(class) > self.pages {
            return None;
        }
        Some(self.at(self.blocks + page * 8 * BLOCKS, class::words(class)))
    }

    /// First byte of a page.
    #[inline]
    pub(super) fn memory(&self, page: usize) -> NonNull<u8> {
        assert!(page < self.pages, "a page of this heap");
        // SAFETY: in the heap.
        unsafe { self.start.add(self.memory + page * PAGE) }
    }

    /// Offset in the memory of an address; `None` outside.
    #[inline]
    pub(super) fn offset(&self, address: usize) -> Option<usize> {
        let offset = address.wrapping_sub(self.start.addr().get() + self.memory);
        (offset < self.pages * PAGE).then_some(offset)
    }

    /// Address of the first byte of memory.
    pub(super) fn first(&self) -> usize {
        self.start.addr().get() + self.memory
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The parts do not overlap, end inside, and leave little unused.
        #[test]
        fn parts_fit(len in LEN_MIN / 4096..=(1_u64 << 33)) {
            let len = len * 4096;
            let base = NonNull::new(core::ptr::without_provenance_mut(1 << 45)).unwrap();
            // SAFETY: nothing is looked at.
            let space = unsafe { Space::new("test", base, Extent { start: 0, len }) }.unwrap();
            let parts = [
                PAGE + space.slots * (8 + SLOT), space.bitmap, space.bitmap + space.words() * 8,
                space.room, space.room + CLASSES * space.room_words() * 8,
                space.states, space.states + space.pages * 8,
                space.blocks, space.blocks + space.pages * 32, space.memory,
                space.memory + space.pages * PAGE, len as usize,
            ];
            prop_assert!(parts.is_sorted(), "{parts:?}");
            let overhead = len as usize - space.pages * PAGE;
            prop_assert!(overhead < len as usize / 80 + (160 << 10) + space.slots * 1100);
        }
    }
}
