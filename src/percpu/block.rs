//! Private areas: blocks of address space from which private cells are taken.
//!
//! Nothing here locks or calls an allocator: a block is one mmap(2) that carries its own
//! bookkeeping in front of its stripes, and blocks are chained by compare-exchange. So a
//! cell can be taken anywhere, and a fork at any moment leaves the blocks usable.

use super::geometry::Geometry;
use super::stripes::Stripes;
use crate::sync::{AtomicPtr, AtomicU64, Ordering, assert_layout};
use crate::sys::map::{Access, Mapping};
use core::ptr;
use rustix::io::{Errno, Result};
use rustix::mm::Advice;

/// What stands in front of a block's bitmap.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Block {
    /// As in every area; not looked at.
    word: AtomicU64,
    next: AtomicPtr<Block>,
}

assert_layout!(size_of::<Block>() <= 64);

/// The first block; blocks are never unmapped.
static FIRST: AtomicPtr<Block> = AtomicPtr::new(ptr::null_mut());

/// Maps the memory of a private area. All zero, and nothing is committed.
pub(super) fn map(geometry: &Geometry) -> Result<Mapping> {
    let mapping = Mapping::anonymous(geometry.size(), Access::Write)?;
    // A huge page would commit the stripes of 512 CPUs at once, on one node. A kernel
    // without huge pages refuses the advice, which is as good.
    // SAFETY: the advice takes no contents away.
    let _ = unsafe { mapping.advise(Advice::LinuxNoHugepage) };
    // Cells are reached by address, through the provenance of the whole mapping.
    let _ = mapping.address();
    Ok(mapping)
}

impl Block {
    fn map(geometry: &Geometry) -> Result<&'static Self> {
        let header = map(geometry)?.leak().cast::<Self>();
        // SAFETY: page-aligned, zero (a valid value of every field), mapped for good, and
        // changed through atomics only.
        Ok(unsafe { header.as_ref() })
    }

    /// The block that `%gs` is relative to: the address of its stripe 0.
    pub(super) fn first(geometry: &Geometry) -> Result<usize> {
        let block = Self::map(geometry)?;
        block.chain();
        Ok(block.stripe0(geometry))
    }

    fn stripe0(&self, geometry: &Geometry) -> usize {
        ptr::from_ref(self).addr() + geometry.header()
    }

    /// Takes a cell of `len` words; the address of its word on stripe 0.
    fn take(&self, geometry: &Geometry, len: usize) -> Option<usize> {
        // SAFETY: the header of this block, mapped for good.
        let runs = unsafe { geometry.runs(ptr::from_ref(self).addr()) };
        Some(self.stripe0(geometry) + runs.take(len)? * 8)
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

/// Takes a cell of `bytes`, all zero on every stripe; its address on stripe 0.
///
/// # Errors
///
/// EINVAL for a size of 0 or one that a stripe cannot hold, ENOMEM if there is no address space
/// for another block.
pub(super) fn take(stripes: &Stripes, bytes: usize) -> Result<usize> {
    let geometry = stripes.geometry();
    if bytes == 0 || bytes > geometry.stride - 8 {
        return Err(Errno::INVAL);
    }
    let len = bytes.div_ceil(8);
    if let Some(cell) = Block::all().find_map(|block| block.take(&geometry, len)) {
        return Ok(cell);
    }
    let block = Block::map(&geometry)?;
    let cell = block.take(&geometry, len);
    block.chain();
    cell.ok_or(Errno::NOMEM)
}

/// Gives back a cell that nobody uses any more; its words are zeroed first. A cell of no
/// block (an area's) is left alone.
pub(super) fn release(stripes: &Stripes, cell: usize, bytes: usize) {
    let geometry = stripes.geometry();
    let inside = |block: &Block| cell.wrapping_sub(block.stripe0(&geometry));
    let Some(block) = Block::all().find(|block| inside(block) < geometry.stride) else {
        return;
    };
    zero(&geometry, cell, bytes);
    // SAFETY: the header of the block, mapped for good.
    let runs = unsafe { geometry.runs(ptr::from_ref(block).addr()) };
    runs.release(inside(block) / 8, bytes.div_ceil(8));
}

/// Zeroes a cell, given by its address on stripe 0, on every stripe. What was never touched stays
/// uncommitted in private memory.
pub(super) fn zero(geometry: &Geometry, cell: usize, bytes: usize) {
    for stripe in 0..2 * geometry.cpus as usize {
        for word in 0..bytes.div_ceil(8) {
            let address = cell + stripe * geometry.stride + word * 8;
            // SAFETY: the cell has this word on each stripe, for as long as the area is mapped;
            // it is reached by atomics and windows only.
            let word = unsafe { &*ptr::with_exposed_provenance::<AtomicU64>(address) };
            if word.load(Ordering::Relaxed) != 0 {
                word.store(0, Ordering::Relaxed);
            }
        }
    }
}
