//! Runs of pages: taken and given back under the lock, with a journal of one entry.
//!
//! # Protocol
//!
//! A bitmap says which pages are taken; so neighbours that are both free are one free run
//! without anybody joining them. Whoever has the lock writes into the journal what it is about to
//! do, does it, and clears the journal, which is the moment at which it is done. Who takes the
//! lock over from a dead holder finds the journal and undoes what takes pages, completes what gives
//! them back. Both can be done again from the start, so it may die as well.
//!
//! | entry | until it is cleared | then |
//! |---|---|---|
//! | take `start`, `len` | pages are marked, states written | undone: states cleared, pages free |
//! | give `start`, `len` | states cleared, pages unmarked | completed |
//! | grow `start`, `len` from `was` | pages behind are marked, the run's length written | undone |
//! | shrink `start`, `len` from `was` | the run's length written, pages behind unmarked | completed |

use super::class;
use super::lock::{Lock, Neighbours, Taken};
use super::space::Space;
use super::state::State;
use super::steps::step;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::sys::map;
use core::ptr::NonNull;

/// Words of the heap's first page; each part has lines of its own.
mod word {
    pub(super) const LOCK: usize = 0;
    pub(super) const OP: usize = 8;
    pub(super) const START: usize = 9;
    pub(super) const LEN: usize = 10;
    pub(super) const WAS: usize = 11;
    pub(super) const LOWEST: usize = 16;
    pub(super) const HIGHEST: usize = 17;
    pub(super) const TAKEN: usize = 18;
    pub(super) const MOST: usize = 19;
}

const TAKE: u64 = 1;
const GIVE: u64 = 2;
const GROW: u64 = 3;
const SHRINK: u64 = 4;

/// Pages looked at and given to the system in one go.
const PUNCH: usize = 1024;

/// Sets or clears the bits of a range.
fn mark(bitmap: &[AtomicU64], start: usize, len: usize, is_taken: bool) {
    let end = start + len;
    let words = bitmap.iter().enumerate().take(end.div_ceil(64)).skip(start / 64);
    for (index, word) in words {
        let first = start.max(index * 64) - index * 64;
        let last = end.min((index + 1) * 64) - index * 64;
        let mask = (u64::MAX >> (64 - (last - first))) << first;
        let seen = word.load(Ordering::Relaxed);
        let next = if is_taken { seen | mask } else { seen & !mask };
        word.store(next, Ordering::Relaxed);
    }
}

/// The first page from `from` on and below `end` whose bit is as asked; `end` if there is none.
fn find(bitmap: &[AtomicU64], from: usize, end: usize, is_taken: bool) -> usize {
    let mut at = from;
    while at < end {
        let word = bitmap[at / 64].load(Ordering::Relaxed);
        let word = if is_taken { word } else { !word } >> (at % 64);
        if word != 0 {
            return (at + word.trailing_zeros() as usize).min(end);
        }
        at = (at / 64 + 1) * 64;
    }
    end
}

/// The lock, held.
#[derive(Debug)]
pub(super) struct Pages<'a, N: Neighbours> {
    space: &'a Space,
    around: &'a N,
}

/// The lock's word.
pub(super) fn lock(space: &Space) -> Lock<'_> {
    let word = space.head(word::LOCK);
    // SAFETY: the lower half of a word that is never used whole; mapped as long as the word.
    Lock(unsafe { NonNull::from(word).cast::<AtomicU32>().as_ref() })
}

/// How many pages are taken, how many were at most, and which was the highest.
pub(super) fn figures(space: &Space) -> [usize; 3] {
    let most = |n| (space.head(n).load(Ordering::Relaxed) as usize).min(space.pages());
    [most(word::TAKEN), most(word::MOST), most(word::HIGHEST)]
}

impl<'a, N: Neighbours> Pages<'a, N> {
    /// Takes the lock for a slot of the caller's; `None` if a living holder does not let go.
    pub(super) fn lock(space: &'a Space, slot: usize, around: &'a N) -> Option<Self> {
        let taken = lock(space).take(slot, around)?;
        let pages = Self { space, around };
        step();
        if taken == Taken::Over {
            pages.repair();
        }
        Some(pages)
    }

    /// Takes the lock if the last owner of `dead`, now the caller's slot, had it.
    pub(super) fn inherit(space: &'a Space, dead: usize, around: &'a N) {
        if lock(space).inherit(dead, dead) {
            Self { space, around }.repair();
        }
    }

    fn word(&self, n: usize) -> &'a AtomicU64 {
        self.space.head(n)
    }

    /// Opens an entry of the journal.
    fn begin(&self, op: u64, start: usize, len: usize, was: usize) {
        self.word(word::START).store(start as u64, Ordering::Relaxed);
        self.word(word::LEN).store(len as u64, Ordering::Relaxed);
        self.word(word::WAS).store(was as u64, Ordering::Relaxed);
        step();
        // A dead holder's words are seen in the order in which it stored them.
        self.word(word::OP).store(op, Ordering::Release);
        step();
    }

    /// Closes it: done.
    fn done(&self) {
        step();
        self.word(word::OP).store(0, Ordering::Release);
        step();
    }

    fn mark(&self, start: usize, len: usize, is_taken: bool) {
        mark(self.space.bitmap(), start, len, is_taken);
        let taken = self.word(word::TAKEN).load(Ordering::Relaxed);
        if is_taken {
            let end = (start + len) as u64;
            self.word(word::HIGHEST).store(
                end.max(self.word(word::HIGHEST).load(Ordering::Relaxed)),
                Ordering::Relaxed,
            );
            let taken = taken.wrapping_add(len as u64);
            self.word(word::TAKEN).store(taken, Ordering::Relaxed);
            self.word(word::MOST)
                .store(taken.max(self.word(word::MOST).load(Ordering::Relaxed)), Ordering::Relaxed);
        } else {
            self.word(word::TAKEN).store(taken.saturating_sub(len as u64), Ordering::Relaxed);
            let lowest = self.word(word::LOWEST).load(Ordering::Relaxed);
            self.word(word::LOWEST).store(lowest.min(start as u64), Ordering::Relaxed);
        }
        step();
    }

    fn set(&self, page: usize, state: State) {
        self.space.state(page).store(state.word(), Ordering::Release);
    }

    /// Clears the states of pages that are no slab or run any more.
    fn clear(&self, start: usize, len: usize) {
        // Only slabs have states behind the first, and none is longer.
        let inner = len.min(class::pages(class::CLASSES - 1));
        for page in (start..start + inner).rev() {
            self.set(page, State::Free);
        }
        step();
    }

    /// Completes or undoes what a dead holder had begun. Any words are possible.
    fn repair(&self) {
        let [op, start, len, was] = [word::OP, word::START, word::LEN, word::WAS]
            .map(|n| self.word(n).load(Ordering::Acquire));
        let pages = self.space.pages() as u64;
        let is_range = |len: u64| len > 0 && start.checked_add(len).is_some_and(|end| end <= pages);
        if is_range(len) && (op == TAKE || op == GIVE) {
            self.clear(start as usize, len as usize);
            self.mark(start as usize, len as usize, false);
        } else if is_range(len) && is_range(was) && (op == GROW || op == SHRINK) {
            let (less, more) = (len.min(was) as usize, len.max(was) as usize);
            self.set(start as usize, State::Run { pages: less });
            self.mark(start as usize + less, more - less, false);
        }
        // What is kept for speed is made anew.
        let taken = self.space.bitmap().iter().enumerate().map(|(n, bits)| {
            let valid = match self.space.pages() - n * 64 {
                64.. => u64::MAX,
                rest => (1 << rest) - 1,
            };
            u64::from((bits.load(Ordering::Relaxed) & valid).count_ones())
        });
        // Pages that were never taken have no bit, and looking at all those words would give them
        // memory.
        let highest = self.word(word::HIGHEST).load(Ordering::Relaxed).min(pages);
        let taken = taken.take((highest as usize).div_ceil(64)).sum();
        self.word(word::TAKEN).store(taken, Ordering::Relaxed);
        self.word(word::LOWEST).store(0, Ordering::Relaxed);
        self.done();
    }

    /// The lowest free run of so many pages, aligned in memory to so many bytes.
    fn search(&self, len: usize, align: usize) -> Option<usize> {
        let (bitmap, pages) = (self.space.bitmap(), self.space.pages());
        let first = self.space.first();
        let aligned = |page: usize| {
            let at = (first + page * map::PAGE).checked_next_multiple_of(align)?;
            Some((at - first) / map::PAGE)
        };
        let lowest = self.word(word::LOWEST).load(Ordering::Relaxed).min(pages as u64) as usize;
        let lowest = find(bitmap, lowest, pages, false);
        self.word(word::LOWEST).store(lowest as u64, Ordering::Relaxed);
        let mut at = lowest;
        while at < pages {
            let start = aligned(find(bitmap, at, pages, false))?;
            let end = start.checked_add(len).filter(|&end| end <= pages)?;
            let taken = find(bitmap, start, end, true);
            if taken == end {
                return Some(start);
            }
            at = taken;
        }
        None
    }

    /// Takes pages as one block.
    pub(super) fn take_run(&self, len: usize, align: usize) -> Option<usize> {
        let start = self.search(len, align)?;
        self.begin(TAKE, start, len, 0);
        self.mark(start, len, true);
        self.set(start, State::Run { pages: len });
        self.done();
        Some(start)
    }

    /// Takes pages as a slab in the hand of `slot`, whose ledger has it then.
    pub(super) fn take_slab(&self, class: usize, slot: usize) -> Option<usize> {
        let len = class::pages(class);
        let start = self.search(len, map::PAGE)?;
        let bits = self.space.blocks(start, class)?;
        self.begin(TAKE, start, len, 0);
        self.mark(start, len, true);
        for word in bits {
            word.store(0, Ordering::Relaxed);
        }
        for back in 1..len {
            self.set(start + back, State::Inner { class, back });
        }
        step();
        self.set(start, State::Held { class, slot });
        step();
        self.space.hand(slot, class).slab.store(start as u64 + 1, Ordering::Release);
        self.done();
        Some(start)
    }

    /// Gives pages back that say [`State::Leaving`]; whether they still did.
    pub(super) fn give(&self, start: usize) -> bool {
        let State::Leaving { pages } = State::of(self.space.state(start).load(Ordering::Acquire))
        else {
            return false;
        };
        if start + pages > self.space.pages() {
            return false;
        }
        self.begin(GIVE, start, pages, 0);
        self.clear(start, pages);
        self.mark(start, pages, false);
        self.done();
        true
    }

    /// Changes the length of a run where it is; whether it could.
    pub(super) fn resize(&self, start: usize, was: usize, len: usize) -> bool {
        let (less, more) = (len.min(was), len.max(was));
        if State::of(self.space.state(start).load(Ordering::Acquire)) != (State::Run { pages: was })
            || less == 0
            || more > self.space.pages() - start
        {
            return false;
        }
        let grows = len > was;
        if grows && find(self.space.bitmap(), start + was, start + len, true) != start + len {
            return false;
        }
        self.begin(if grows { GROW } else { SHRINK }, start, len, was);
        if grows {
            self.mark(start + less, more - less, true);
        }
        self.set(start, State::Run { pages: len });
        step();
        if !grows {
            self.mark(start + less, more - less, false);
        }
        self.done();
        true
    }

    /// Gives the memory of free pages from `from` on to the system, some of them; the number of
    /// bytes, and where to go on.
    pub(super) fn punch(&self, from: usize) -> (usize, Option<usize>) {
        let (bitmap, [.., highest]) = (self.space.bitmap(), figures(self.space));
        let start = find(bitmap, from, highest, false);
        let end = find(bitmap, start, highest.min(start + PUNCH), true);
        if start >= end {
            return (0, None);
        }
        let (at, len) = (self.space.memory(start), (end - start) * map::PAGE);
        let resident = map::resident(at.as_ptr(), len).unwrap_or(len);
        // SAFETY: nobody has these pages, and nobody can take them before the lock is released.
        let punched = resident > 0 && unsafe { map::remove(at.as_ptr(), len) }.is_ok();
        (if punched { resident } else { 0 }, Some(end))
    }

    /// Pages of the longest free run.
    pub(super) fn longest(&self) -> usize {
        let (bitmap, [.., highest]) = (self.space.bitmap(), figures(self.space));
        let (mut at, mut longest) = (0, self.space.pages() - highest);
        while at < highest {
            let start = find(bitmap, at, highest, false);
            at = find(bitmap, start, highest, true);
            let more = if at == highest { self.space.pages() - highest } else { 0 };
            longest = longest.max(at - start + more);
        }
        longest
    }

    /// Is the page's bit set?
    pub(super) fn is_taken(&self, page: usize) -> bool {
        self.space.bitmap()[page / 64].load(Ordering::Relaxed) & 1 << (page % 64) != 0
    }
}

impl<N: Neighbours> Drop for Pages<'_, N> {
    fn drop(&mut self) {
        lock(self.space).release(self.around);
    }
}
