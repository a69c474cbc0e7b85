//! Which blocks of a heap are handed out, for who wants to free what nobody knows any more.

use super::class::{self, CLASSES};
use super::member::{Member, slab};
use super::pages::figures;
use super::state::State;
use super::{Heap, Refusal};
use crate::error::Result;
use crate::sync::Ordering;
use crate::sys::map::PAGE;
use core::alloc::Layout;
use core::ptr::NonNull;
use std::collections::HashMap;

impl Heap {
    /// All blocks that are handed out: address, and bytes rounded up as they are, in the order of
    /// addresses.
    ///
    /// A process that is killed after it has been given a block, and before it has stored the
    /// address somewhere, leaves a block that nobody knows. Who knows of all others finds it here,
    /// while nobody else allocates, and [frees](Self::free) it; for the size of its layout any will
    /// do that is not over the block's.
    ///
    /// # Errors
    ///
    /// ENXIO, EAGAIN, ETIMEDOUT as for [`alloc`](Self::alloc).
    pub fn blocks(&self) -> Result<Vec<(NonNull<u8>, usize)>> {
        let found = self.with("mshare::Heap::blocks", |cache| {
            // No page changes hands meanwhile.
            let _pages = cache.member.pages()?;
            Ok(look(&cache.member))
        })?;
        let found = found.map_err(|refusal: Refusal| self.refused(Layout::new::<()>(), refusal))?;
        Ok(found.into_iter().map(|(address, size)| (self.pointer(address), size)).collect())
    }
}

fn look(member: &Member) -> Vec<(usize, usize)> {
    let space = &member.space;
    let in_hand = in_hand(member);
    let [.., highest] = figures(space);
    let mut found = Vec::new();
    let mut page = 0;
    while page < highest {
        let len = match State::of(space.state(page).load(Ordering::Acquire)) {
            State::Idle { class } | State::Held { class, .. } | State::Emptied { class, .. } => {
                let Some(slab) = slab(space, page, class) else { break };
                let first = space.memory(page).addr().get();
                for (word, bits) in slab.bits.iter().enumerate() {
                    let hand = in_hand.get(&(page, word)).copied().unwrap_or(0);
                    let taken = bits.load(Ordering::Acquire) & class::valid(class, word) & !hand;
                    let indices = (0..64).filter(|bit| taken >> bit & 1 == 1);
                    let size = class::SIZES[class];
                    found.extend(indices.map(|bit| (first + (word * 64 + bit) * size, size)));
                }
                class::pages(class)
            }
            State::Run { pages } if pages <= space.pages() - page => {
                found.push((space.memory(page).addr().get(), pages * PAGE));
                pages
            }
            _ => 1,
        };
        page += len;
    }
    found
}

/// Blocks that slots have taken and not handed out, by first page of the slab and word.
fn in_hand(member: &Member) -> HashMap<(usize, usize), u64> {
    let space = &member.space;
    let mut found = HashMap::new();
    for slot in 0..space.slots() {
        for class in 0..CLASSES {
            let hand = space.hand(slot, class);
            let page = hand.slab.load(Ordering::Acquire).checked_sub(1);
            if let (mask @ 1.., Some(page)) = (hand.mask.load(Ordering::Acquire), page) {
                let word = hand.word.load(Ordering::Acquire);
                *found.entry((page as usize, word as usize)).or_insert(0) |= mask;
            }
        }
    }
    found
}
