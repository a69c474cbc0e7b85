//! What is done when nothing is in hand: a slab, a run, what others have left.

use super::cache::Cache;
use super::class::{self, CLASSES};
use super::hand::Local;
use super::member::{Block, Refusal};
use crate::sys::map::PAGE;
use core::alloc::Layout;

/// Puts down what the thread has in hand.
pub(super) fn put_down(cache: &mut Cache) {
    for class in 0..CLASSES {
        if cache.locals[class].slab != 0 {
            cache.member.drop_local(class, &mut cache.locals[class]);
        }
    }
    cache.member.unkeep_all(&mut cache.kept);
}

/// Frees what begins at this address; whether there was something.
pub(super) fn free_anywhere(cache: &mut Cache, address: usize) -> bool {
    match Block::at(&cache.member.space, address) {
        Some(Block::Small { page, class, index }) => {
            cache.member.free(page, class, index, &mut cache.locals[class])
        }
        Some(Block::Run { page, pages }) => cache.member.free_run(page, pages, &mut cache.kept),
        None => false,
    }
}

/// A small block, when there is none in hand.
#[cold]
pub(super) fn small(
    cache: &mut Cache,
    class: usize,
    align: usize,
) -> core::result::Result<usize, Refusal> {
    let member = cache.member;
    let hand_out = |class, local: &mut Local| member.hand_out(class, local).ok_or(Refusal::Full);
    let local = &mut cache.locals[class];
    match member.fill(class, local) {
        Ok(()) => return hand_out(class, local),
        Err(Refusal::Locked) => return Err(Refusal::Locked),
        Err(Refusal::Full) => {}
    }
    reclaim(cache);
    let local = &mut cache.locals[class];
    match member.fill(class, local) {
        Ok(()) => return hand_out(class, local),
        Err(Refusal::Locked) => return Err(Refusal::Locked),
        Err(Refusal::Full) => {}
    }
    // A larger block does as well.
    for class in class + 1..CLASSES {
        let local = &mut cache.locals[class];
        if class::SIZES[class].is_multiple_of(align.min(PAGE))
            && member.fill_from_room(class, local)
        {
            return hand_out(class, local);
        }
    }
    Err(Refusal::Full)
}

/// A run of pages.
pub(super) fn run(cache: &mut Cache, layout: Layout) -> core::result::Result<usize, Refusal> {
    let member = cache.member;
    let pages = layout.size().div_ceil(PAGE);
    let align = layout.align().max(PAGE);
    if let Some(page) = member.take_kept(pages, align, &mut cache.kept) {
        return Ok(member.space.memory(page).addr().get());
    }
    let take = || member.pages().map(|lock| lock.take_run(pages, align));
    let page = match take()? {
        Some(page) => page,
        None => {
            reclaim(cache);
            take()?.ok_or(Refusal::Full)?
        }
    };
    Ok(member.space.memory(page).addr().get())
}

/// Makes free what can be.
fn reclaim(cache: &mut Cache) {
    put_down(cache);
    cache.member.recover_others();
    cache.member.sweep();
}
