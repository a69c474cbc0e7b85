//! What a thread has in hand of a class: up to 64 blocks of its slab, which are handed out and taken
//! back by plain stores.

use super::class;
use super::member::{Member, Refusal, slab};
use super::steps::step;
use crate::sync::{AtomicU64, Ordering};
use core::ptr::NonNull;

/// What the owner has in hand of one class, in its own memory: the words in the slot are written
/// for others, and never read back.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Local {
    /// Blocks that can be handed out.
    pub(super) mask: u64,
    /// Address of the block of bit 0.
    pub(super) first: usize,
    /// Bytes of all blocks that have a bit.
    len: usize,
    /// The word of the slot that says the same as `mask`.
    says: Option<NonNull<AtomicU64>>,
    /// First page of the slab, plus 1; 0 for none.
    pub(super) slab: usize,
}

// SAFETY: the pointer is to an atomic of the region, which stays mapped as long as the thread that
// has this uses the heap.
unsafe impl Send for Local {}

impl Local {
    /// Tells in the slot what is in hand.
    #[inline]
    fn say(&self) {
        if let Some(word) = self.says {
            // SAFETY: a word of the slot, mapped as long as the heap is used.
            unsafe { word.as_ref() }.store(self.mask, Ordering::Release);
        }
    }
}

impl Member {
    /// Gives back what this thread has in hand of a class.
    pub(super) fn drop_local(&self, class: usize, local: &mut Local) {
        *local = Local::default();
        self.put_down(class);
    }

    /// Takes all free blocks of one word of the slab in hand; whether there is one.
    fn reserve(&self, class: usize, page: usize, local: &mut Local) -> bool {
        let Some(slab) = slab(&self.space, page, class) else { return false };
        let Some((word, free)) = (0..slab.bits.len())
            .map(|word| (word, slab.free_of(word)))
            .find(|&(_, free)| free != 0)
        else {
            return false;
        };
        let hand = self.space.hand(self.slot, class);
        // The mask is 0, so the word says nothing.
        hand.word.store(word as u64, Ordering::Release);
        step();
        hand.mask.store(free, Ordering::Release);
        step();
        slab.take(word, free);
        step();
        let size = class::SIZES[class];
        let first = self.space.memory(page).addr().get() + word * 64 * size;
        let len = (class::blocks(class) - word * 64).min(64) * size;
        let says = Some(NonNull::from(hand.mask));
        *local = Local { mask: free, first, len, says, slab: page + 1 };
        true
    }

    /// Takes a marked slab in hand and reserves from it; whether there is one.
    pub(super) fn fill_from_room(&self, class: usize, local: &mut Local) -> bool {
        let hand = self.space.hand(self.slot, class);
        let room = self.room(class);
        let mut from = 0;
        while let Some(page) = room.next(from).filter(|&page| page < self.space.pages()) {
            from = page + 1;
            hand.slab.store(page as u64 + 1, Ordering::Release);
            step();
            let Some(slab) = slab(&self.space, page, class) else { continue };
            let is_held = slab.hold(self.slot);
            step();
            room.clear(page, || !is_held && slab.is_idle() && slab.has_room());
            step();
            if is_held {
                if self.reserve(class, page, local) {
                    return true;
                }
                self.drop_local(class, local);
            }
        }
        hand.slab.store(0, Ordering::Release);
        false
    }

    /// Something to hand out of this class.
    pub(super) fn fill(&self, class: usize, local: &mut Local) -> Result<(), Refusal> {
        if let Some(page) = local.slab.checked_sub(1) {
            if self.reserve(class, page, local) {
                return Ok(());
            }
            self.drop_local(class, local);
        }
        if self.fill_from_room(class, local) {
            return Ok(());
        }
        let page = self.pages()?.take_slab(class, self.slot).ok_or(Refusal::Full)?;
        if self.reserve(class, page, local) { Ok(()) } else { Err(Refusal::Full) }
    }

    /// Hands out one of the blocks in hand.
    #[inline]
    pub(super) fn hand_out(&self, class: usize, local: &mut Local) -> Option<usize> {
        if local.mask == 0 {
            return None;
        }
        let block = local.mask.trailing_zeros() as usize;
        local.mask &= local.mask - 1;
        step();
        // The moment at which the block is the caller's.
        local.say();
        step();
        Some(local.first + block * class::SIZES[class])
    }

    /// Frees a block that begins at this address, if it is of those that `local` has a bit for;
    /// whether it was taken. Nothing of what others can write is looked at.
    #[inline]
    pub(super) fn free_local(
        &self,
        address: usize,
        class: usize,
        local: &mut Local,
    ) -> Option<bool> {
        let offset = address.wrapping_sub(local.first);
        if offset >= local.len {
            return None;
        }
        let bit = 1 << class::index(class, offset)?;
        if local.mask & bit != 0 {
            return Some(false);
        }
        local.mask |= bit;
        step();
        // The moment at which it is the slot's again.
        local.say();
        step();
        Some(true)
    }

    /// Frees a small block; whether there was one.
    #[inline]
    pub(super) fn free(&self, page: usize, class: usize, index: usize, local: &mut Local) -> bool {
        let size = class::SIZES[class];
        let address = self.space.memory(page).addr().get() + index * size;
        match self.free_local(address, class, local) {
            Some(freed) => freed,
            None => self.free_elsewhere(page, class, index),
        }
    }
}
