//! Runs that a slot keeps for its owner's next allocation, instead of giving their pages back: so
//! most runs are taken and freed without the lock.
//!
//! # Protocol
//!
//! A run is kept, taken and given back by one compare-exchange of its state, which names the slot.
//! The slot's ledger has its page before it is kept, and until after it is not any more.
//! Its owner takes it; anybody may give it back, so a heap that runs out loses nothing by what
//! the living and the dead keep. Who frees a run releases it, and who gives it back acquires.

use super::class::SMALL;
use super::member::Member;
use super::state::State;
use super::steps::step;
use crate::sync::{AtomicU64, Ordering};
use crate::sys::map::PAGE;

/// Runs that a slot can keep.
pub(super) const KEPT: usize = 8;
/// Pages of the longest run that is kept: what is larger costs more to fill than to take.
const LONGEST: usize = (256 << 10) / PAGE;

/// The algorithm, over the borrowed word of a run's first page.
#[derive(Debug, Clone, Copy)]
struct Run<'a> {
    state: &'a AtomicU64,
    pages: usize,
}

impl Run<'_> {
    fn change(&self, from: State, to: State, order: Ordering) -> bool {
        self.state.compare_exchange(from.word(), to.word(), order, Ordering::Relaxed).is_ok()
    }

    /// Frees it for the slot's next use; whether it was taken.
    fn keep(&self, slot: usize) -> bool {
        let Self { pages, .. } = *self;
        self.change(State::Run { pages }, State::Kept { pages, slot }, Ordering::Release)
    }

    /// Takes what this slot has kept, if it still does. Nobody else has used it since.
    fn take(&self, slot: usize) -> bool {
        let Self { pages, .. } = *self;
        self.change(State::Kept { pages, slot }, State::Run { pages }, Ordering::Relaxed)
    }

    /// Takes it away from the slot that keeps it, to give back its pages; whether it was kept.
    fn part(&self, slot: usize) -> bool {
        let Self { pages, .. } = *self;
        self.change(State::Kept { pages, slot }, State::Leaving { pages }, Ordering::Acquire)
    }
}

/// What the owner keeps, in its own memory: first page and pages of each, 0 pages for none. The
/// ledger is written for others, and never read back.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Kept {
    runs: [(usize, usize); KEPT],
    /// Which one makes room when there is none.
    next: usize,
}

impl Member {
    fn run(&self, (page, pages): (usize, usize)) -> Run<'_> {
        Run { state: self.space.state(page), pages }
    }

    /// All that a slot keeps is at most a part of the heap.
    fn is_kept(&self, pages: usize) -> bool {
        pages <= LONGEST.min(self.space.pages() / 32) && pages * PAGE > SMALL
    }

    /// Frees a run; whether there was one.
    pub(super) fn free_run(&self, page: usize, pages: usize, kept: &mut Kept) -> bool {
        if !self.is_kept(pages) {
            return self.give_run(page, pages);
        }
        let at = match kept.runs.iter().position(|&(_, pages)| pages == 0) {
            Some(at) => at,
            None => {
                kept.next = (kept.next + 1) % KEPT;
                self.unkeep(kept.next, kept);
                kept.next
            }
        };
        let ledger = self.space.kept(self.slot, at);
        ledger.store(page as u64 + 1, Ordering::Release);
        step();
        // The moment at which it is free.
        let was = self.run((page, pages)).keep(self.slot);
        step();
        if was {
            kept.runs[at] = (page, pages);
        } else {
            ledger.store(0, Ordering::Release);
        }
        was
    }

    /// A kept run of at least so many pages and not many more, aligned in memory.
    pub(super) fn take_kept(&self, pages: usize, align: usize, kept: &mut Kept) -> Option<usize> {
        let fits = pages..=pages + pages / 8;
        for at in 0..KEPT {
            let (page, has) = kept.runs[at];
            if !fits.contains(&has) || !(self.space.first() + page * PAGE).is_multiple_of(align) {
                continue;
            }
            kept.runs[at] = (0, 0);
            // The moment at which the run is the caller's.
            let is_ours = self.run((page, has)).take(self.slot);
            step();
            self.space.kept(self.slot, at).store(0, Ordering::Release);
            step();
            if is_ours {
                return Some(page);
            }
        }
        None
    }

    /// Gives back one of those that this thread keeps.
    fn unkeep(&self, at: usize, kept: &mut Kept) {
        let run = core::mem::take(&mut kept.runs[at]);
        if run.1 > 0 && self.run(run).part(self.slot) {
            step();
            self.give(run.0);
        }
        step();
        self.space.kept(self.slot, at).store(0, Ordering::Release);
    }

    /// Gives back all; whether there was one.
    pub(super) fn unkeep_all(&self, kept: &mut Kept) -> bool {
        let any = kept.runs.iter().any(|&(_, pages)| pages > 0);
        (0..KEPT).for_each(|at| self.unkeep(at, kept));
        any
    }

    /// Gives back a run that a slot keeps.
    pub(super) fn part(&self, page: usize, pages: usize, slot: usize) {
        if self.run((page, pages)).part(slot) {
            step();
            self.give(page);
        }
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::sync::model;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    struct Shared {
        state: AtomicU64,
        /// The memory of the run.
        memory: UnsafeCell<u32>,
    }
    // SAFETY: the memory is its owner's: loom checks.
    unsafe impl Sync for Shared {}

    /// The owner uses a run, keeps it and takes it again while another gives it back: one of them
    /// has it, and sees what was done with it. Fails when keeping is no release, giving back no
    /// acquire, or either is a load and a store.
    #[test]
    fn a_kept_run_is_taken_once() {
        model(|| {
            let run = State::Run { pages: 5 };
            let shared = Arc::new(Shared {
                state: AtomicU64::new(run.word()).ready(),
                memory: UnsafeCell::new(0),
            });
            let use_it = |shared: &Shared| shared.memory.with_mut(|it| unsafe { *it += 1 });
            let other = thread::spawn({
                let shared = shared.clone();
                move || {
                    let parts = Run { state: &shared.state, pages: 5 }.part(3);
                    if parts {
                        use_it(&shared);
                    }
                    parts
                }
            });
            let ours = Run { state: &shared.state, pages: 5 };
            use_it(&shared);
            assert!(ours.keep(3));
            let takes = ours.take(3);
            if takes {
                use_it(&shared);
            }
            assert!(takes != other.join().unwrap() || !takes && ours.part(3));
        });
    }
}
