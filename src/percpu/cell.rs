//! Private cells: 8 bytes on every stripe, taken from blocks of address space.
//!
//! Nothing here locks or calls an allocator: a block is one mmap(2) that carries its own
//! bookkeeping in front of its stripes, and blocks are chained by compare-exchange. So a
//! counter can be assigned its cell anywhere, and a fork at any moment leaves it usable.

use super::STRIDE;
use super::stripes::Stripes;
use crate::shm::Bitmap;
use crate::sync::{AtomicPtr, AtomicU64, Ordering, assert_layout};
use crate::sys::map::{Access, Mapping};
use core::ptr;
use rustix::io::Result;
use rustix::mm::Advice;

/// Cells of a block: as many words as a stripe has.
pub(super) const CELLS: usize = STRIDE / 8;

/// The page in front of a block's stripes.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Block {
    taken: [AtomicU64; CELLS / 64],
    full: [AtomicU64; 1],
    next: AtomicPtr<Block>,
}

assert_layout!(size_of::<Block>() <= STRIDE);

/// The first block; blocks are never unmapped.
static FIRST: AtomicPtr<Block> = AtomicPtr::new(ptr::null_mut());

impl Block {
    /// Maps a block: header, `cpus` stripes for windows, `cpus` for atomics. All zero, and
    /// nothing is committed but the header.
    fn map(cpus: u32) -> Result<&'static Self> {
        let len = (1 + 2 * cpus as usize) * STRIDE;
        let mapping = Mapping::anonymous(len, Access::Write)?;
        // A huge page would commit the stripes of 512 CPUs at once, on one node. A kernel
        // without huge pages refuses the advice, which is as good.
        // SAFETY: the advice takes no contents away.
        let _ = unsafe { mapping.advise(Advice::LinuxNoHugepage) };
        // Cells are reached by address, through the provenance of the whole mapping.
        let _ = mapping.address();
        let header = mapping.leak().cast::<Self>();
        // SAFETY: page-aligned, zero (a valid value of every field), mapped for good, and
        // changed through atomics only.
        Ok(unsafe { header.as_ref() })
    }

    /// The block that `%gs` is relative to: the address of its stripe 0.
    pub(super) fn first(cpus: u32) -> Result<usize> {
        let block = Self::map(cpus)?;
        block.chain();
        Ok(block.cell(0).expose_provenance())
    }

    fn bitmap(&self) -> Bitmap<'_> {
        Bitmap::new(&self.taken, &self.full)
    }

    /// Address of the word of cell `index` on stripe 0.
    fn cell(&self, index: usize) -> *mut u64 {
        let word = ptr::from_ref(self).addr() + STRIDE + index * 8;
        ptr::with_exposed_provenance_mut(word)
    }

    /// Puts the block in front of the chain.
    fn chain(&'static self) {
        let this = ptr::from_ref(self).cast_mut();
        let mut head = FIRST.load(Ordering::Relaxed);
        loop {
            self.next.store(head, Ordering::Relaxed);
            match FIRST.compare_exchange_weak(head, this, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// All blocks that are chained now.
    fn all() -> impl Iterator<Item = &'static Self> {
        // SAFETY: a chained block is mapped for good, and its header is changed through
        // atomics only.
        let at = |block: *mut Self| unsafe { block.as_ref() };
        let first = at(FIRST.load(Ordering::Acquire));
        core::iter::successors(first, move |block| at(block.next.load(Ordering::Relaxed)))
    }
}

/// Takes a cell, all of whose words are 0; the address of its word on stripe 0.
///
/// # Errors
///
/// ENOMEM if there is no address space for another block.
pub(super) fn take(stripes: &Stripes) -> Result<*mut u64> {
    let known = Block::all().find_map(|block| Some(block.cell(block.bitmap().take(CELLS)?)));
    if let Some(cell) = known {
        return Ok(cell);
    }
    let block = Block::map(stripes.cpus)?;
    let index = block.bitmap().take(CELLS).unwrap_or(0);
    block.chain();
    Ok(block.cell(index))
}

/// Gives back a cell that nobody updates any more; its words are zeroed first. A cell of no
/// block (an area's, or none) is left alone.
pub(super) fn release(stripes: &Stripes, cell: *mut u64) {
    let address = cell.addr();
    let index = |block: &Block| address.wrapping_sub(block.cell(0).addr()) / 8;
    let Some(block) = Block::all().find(|block| index(block) < CELLS) else {
        return;
    };
    for stripe in 0..2 * stripes.cpus as usize {
        // SAFETY: the cell has a word on each stripe.
        let word = unsafe { cell.byte_add(stripe * STRIDE) };
        // SAFETY: valid and aligned for the life of the process, reached by atomics.
        let word = unsafe { &*word.cast::<AtomicU64>() };
        // A word that was never touched stays uncommitted.
        if word.load(Ordering::Relaxed) != 0 {
            word.store(0, Ordering::Relaxed);
        }
    }
    block.bitmap().release(index(block));
}
