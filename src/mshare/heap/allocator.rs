//! The heap as an allocator of `allocator-api2`, which `hashbrown` and others take.

use super::Heap;
use allocator_api2::alloc::{AllocError, Allocator};
use core::alloc::Layout;
use core::ptr::NonNull;

// SAFETY: blocks stay valid until they are freed, because the region stays mapped; every copy of a
// handle is the same heap, in any process.
unsafe impl Allocator for Heap {
    #[inline]
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        let block = self.alloc(layout).map_err(|_| AllocError)?;
        Ok(NonNull::slice_from_raw_parts(block, layout.size()))
    }

    fn allocate_zeroed(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        let block = self.alloc_zeroed(layout).map_err(|_| AllocError)?;
        Ok(NonNull::slice_from_raw_parts(block, layout.size()))
    }

    #[inline]
    unsafe fn deallocate(&self, block: NonNull<u8>, layout: Layout) {
        // SAFETY: vouched for by the caller. A block that the heap does not know has been
        // written over by somebody, and is left as it is.
        let _ = unsafe { self.free(block, layout) };
    }

    unsafe fn grow(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: vouched for by the caller.
        unsafe { self.reallocate(block, old, new, false) }
    }

    unsafe fn grow_zeroed(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: vouched for by the caller.
        unsafe { self.reallocate(block, old, new, true) }
    }

    unsafe fn shrink(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: vouched for by the caller.
        unsafe { self.reallocate(block, old, new, false) }
    }
}

impl Heap {
    /// Where it is if that can be done, else elsewhere.
    ///
    /// # Safety
    ///
    /// Those of the allocator's `grow` and `shrink`.
    unsafe fn reallocate(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
        zeroed: bool,
    ) -> Result<NonNull<[u8]>, AllocError> {
        let (was, len) = (old.size(), new.size());
        let is_aligned = block.addr().get().is_multiple_of(new.align());
        // A block that shrinks to less than half may move to a smaller class, unless it cannot.
        let is_worth = len >= was / 2 || was > super::class::SMALL;
        // SAFETY: vouched for by the caller.
        if is_aligned && is_worth && unsafe { self.resize(block, old, len) }.is_ok_and(|done| done)
        {
            if zeroed && len > was {
                // SAFETY: in the block.
                let rest = unsafe { block.add(was) };
                // SAFETY: the block has so many bytes more.
                unsafe { rest.write_bytes(0, len - was) };
            }
            return Ok(NonNull::slice_from_raw_parts(block, len));
        }
        let moved = if zeroed { self.allocate_zeroed(new) } else { self.allocate(new) }?;
        // SAFETY: both have so many bytes, and they are two blocks; but a hostile participant can
        // make them overlap, which this copy allows.
        unsafe { moved.cast::<u8>().copy_from(block, was.min(len)) };
        // SAFETY: vouched for by the caller.
        unsafe { self.deallocate(block, old) };
        Ok(moved)
    }
}
