//! A participant: one thread of one process, with a slot in the heap that tells what it has in
//! hand, so that it can be taken back when the thread is gone.
//!
//! # The ledger
//!
//! | word of the slot | says | if the owner is gone |
//! |---|---|---|
//! | hand: slab | the slab it takes from, or is about to hold or has just let go | if it is held by this slot: let go, and looked at; else looked at |
//! | hand: word, mask | blocks that are set in the bitmap, or will be, and not handed out | cleared |
//! | touched | the slab or run that it is giving something back to | looked at |
//! | kept | [runs](super::kept) for its next allocation | looked at |
//!
//! Each is written before what it tells about, so nothing is held that no word tells of. *To look
//! at* pages ([`Member::look_at`]) is to do what their state calls for: to mark room, to give
//! back what is empty or leaving. It may be done by several and any number of times.
//!
//! Settling a slot changes nothing that its ledger does not cover until it is done; so
//! whoever settles for the dead may die in it.

use super::class::{self, CLASSES};
use super::kept::KEPT;
use super::lock::Neighbours;
use super::owner::Owner;
use super::pages::Pages;
use super::room::Room;
use super::slab::{Freed, Slab};
use super::space::Space;
use super::state::State;
use super::steps::step;
use crate::sync::{AtomicU32, Ordering};
use crate::sys::futex::{self, Clock};
use crate::sys::map::PAGE;
use crate::sys::thread;
use core::ptr;
use rustix::time::Timespec;

/// The owner of a slot.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member {
    pub(super) space: Space,
    pub(super) slot: usize,
    me: Owner,
}

/// Why there is no memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Nothing is free that is large enough.
    Full,
    /// A living participant keeps the lock.
    Locked,
}

/// A block, by its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Block {
    Small { page: usize, class: usize, index: usize },
    Run { page: usize, pages: usize },
}

impl Block {
    /// What begins at this address; `None` for anything else.
    #[inline]
    pub(super) fn at(space: &Space, address: usize) -> Option<Self> {
        let offset = space.offset(address)?;
        let page = offset / PAGE;
        let (page, class) = match State::of(space.state(page).load(Ordering::Relaxed)) {
            State::Idle { class } | State::Held { class, .. } => (page, class),
            State::Inner { class, back } => (page.checked_sub(back)?, class),
            State::Run { pages } if offset.is_multiple_of(PAGE) => {
                return (page + pages <= space.pages()).then_some(Self::Run { page, pages });
            }
            _ => return None,
        };
        let index = class::index(class, offset - page * PAGE)?;
        Some(Self::Small { page, class, index })
    }

    /// Bytes that it has.
    pub(super) const fn capacity(self) -> usize {
        match self {
            Self::Small { class, .. } => class::SIZES[class],
            Self::Run { pages, .. } => pages * PAGE,
        }
    }
}

/// The first slab of `class` at `page`; `None` if none fits there.
#[inline]
pub(super) fn slab(space: &Space, page: usize, class: usize) -> Option<Slab<'_>> {
    if page >= space.pages() {
        return None;
    }
    let bits = space.blocks(page, class)?;
    Some(Slab { class, state: space.state(page), bits })
}

impl Neighbours for Member {
    fn is_dead(&self, slot: usize) -> bool {
        // A slot that is nobody's, or ours, holds no lock that anybody will release.
        let Some(owner) = self.space.owners().get(slot) else { return true };
        let owner = Owner(owner.load(Ordering::Acquire));
        let began = self.space.began(slot).load(Ordering::Acquire);
        owner == self.me || owner.is_gone(began, self.me)
    }

    fn sleep(&self, word: &AtomicU32, seen: u32) {
        let until = thread::monotonic() + super::lock::NAP_MS * 1_000_000;
        let until = Timespec {
            tv_sec: (until / 1_000_000_000) as i64,
            tv_nsec: (until % 1_000_000_000) as i64,
        };
        let word = ptr::from_ref(word).cast();
        // Woken, late or interrupted: the caller looks again.
        let _ = futex::wait_bitset(word, false, seen, Clock::Monotonic, Some(&until), u32::MAX);
    }

    fn wake(&self, word: &AtomicU32) {
        let _ = futex::wake_bitset(ptr::from_ref(word).cast(), false, 1, u32::MAX);
    }
}

impl Member {
    /// Takes a slot for the calling thread, which has none; `None` if all are taken by the
    /// living.
    pub(super) fn join(space: Space) -> Option<Self> {
        let me = Owner::current();
        for _ in 0..2 {
            let owners = space.owners();
            // One of ours that we know nothing of: of a program that executed this one.
            let ours = owners.iter().position(|owner| owner.load(Ordering::Relaxed) == me.0);
            if let Some(slot) = ours {
                let member = Self { space, slot, me };
                space.began(slot).store(me.began(), Ordering::Release);
                member.settle();
                return Some(member);
            }
            let free = owners.iter().position(|owner| {
                owner.load(Ordering::Relaxed) == 0
                    && owner.compare_exchange(0, me.0, Ordering::Acquire, Ordering::Relaxed).is_ok()
            });
            step();
            if let Some(slot) = free {
                space.began(slot).store(me.began(), Ordering::Release);
                step();
                return Some(Self { space, slot, me });
            }
            Self::recover(space, me);
        }
        None
    }

    /// Gives everything back, and the slot.
    pub(super) fn leave(&self) {
        self.settle();
        step();
        self.space.owners()[self.slot].store(0, Ordering::Release);
    }

    /// Takes over the slots of the dead, settles them and frees them; how many there were.
    pub(super) fn recover(space: Space, me: Owner) -> usize {
        let mut recovered = 0;
        for slot in 0..space.slots() {
            let owner = &space.owners()[slot];
            let seen = owner.load(Ordering::Acquire);
            let began = space.began(slot).load(Ordering::Acquire);
            if seen == 0 || seen == me.0 || !Owner(seen).is_gone(began, me) {
                continue;
            }
            step();
            if owner.compare_exchange(seen, me.0, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                continue;
            }
            step();
            space.began(slot).store(me.began(), Ordering::Release);
            step();
            Self { space, slot, me }.leave();
            recovered += 1;
        }
        recovered
    }

    /// The same for this member's heap.
    pub(super) fn recover_others(&self) -> usize {
        Self::recover(self.space, self.me)
    }

    /// Settles and frees the slots of this process's other threads, which must not be used any more.
    pub(super) fn leave_for_all(&self) {
        for slot in 0..self.space.slots() {
            let owner = Owner(self.space.owners()[slot].load(Ordering::Acquire));
            if owner.0 != 0 && owner.is_neighbour(self.me) {
                Self { slot, ..*self }.leave();
            }
        }
    }

    /// Lock of the pages.
    pub(super) fn pages(&self) -> Result<Pages<'_, Self>, Refusal> {
        Pages::lock(&self.space, self.slot, self).ok_or(Refusal::Locked)
    }

    pub(super) fn room(&self, class: usize) -> Room<'_> {
        Room::new(self.space.room(class))
    }

    fn touch(&self, page: usize) {
        self.space.touched(self.slot).store(page as u64 + 1, Ordering::Release);
        step();
    }

    fn untouch(&self) {
        step();
        self.space.touched(self.slot).store(0, Ordering::Release);
    }

    /// Takes back what the ledger says.
    fn settle(&self) {
        Pages::inherit(&self.space, self.slot, self);
        // First what was touched, because what follows touches too.
        let touched = self.space.touched(self.slot).load(Ordering::Acquire);
        if let Some(page) = touched.checked_sub(1).filter(|&page| page < self.space.pages() as u64)
        {
            self.look_at(page as usize);
        }
        self.untouch();
        for at in 0..KEPT {
            let kept = self.space.kept(self.slot, at);
            let page = kept.load(Ordering::Acquire).checked_sub(1);
            if let Some(page) = page.filter(|&page| page < self.space.pages() as u64) {
                self.look_at(page as usize);
            }
            step();
            kept.store(0, Ordering::Release);
        }
        for class in 0..CLASSES {
            self.put_down(class);
        }
    }

    /// Gives back what the slot has in hand of a class.
    pub(super) fn put_down(&self, class: usize) {
        let hand = self.space.hand(self.slot, class);
        let page = hand.slab.load(Ordering::Acquire).checked_sub(1);
        if let Some(page) = page.filter(|&page| page < self.space.pages() as u64) {
            let page = page as usize;
            let held = State::Held { class, slot: self.slot }.word();
            let slab = slab(&self.space, page, class);
            if let Some(slab) = slab.filter(|slab| slab.state.load(Ordering::Acquire) == held) {
                let word = hand.word.load(Ordering::Acquire) as usize;
                slab.put_back(word, hand.mask.load(Ordering::Acquire));
                step();
                // Before another holder can have them.
                hand.mask.store(0, Ordering::Release);
                step();
                slab.let_go();
                step();
            }
            self.touch(page);
            self.look_at(page);
            self.untouch();
        }
        hand.mask.store(0, Ordering::Release);
        hand.slab.store(0, Ordering::Release);
    }

    /// Does what the state of a page that may begin a slab or run calls for.
    pub(super) fn look_at(&self, page: usize) {
        match State::of(self.space.state(page).load(Ordering::Acquire)) {
            State::Idle { class } => {
                let Some(slab) = slab(&self.space, page, class) else { return };
                if slab.is_empty() && slab.empty(self.slot) {
                    step();
                    self.retire(page, class, &slab);
                } else if slab.has_room() && !self.room(class).has(page) {
                    self.room(class).set(page);
                    step();
                }
            }
            State::Emptied { class, slot } if slot == self.slot => {
                if let Some(slab) = slab(&self.space, page, class) {
                    self.retire(page, class, &slab);
                }
            }
            State::Leaving { .. } => self.give(page),
            State::Kept { pages, slot } => self.part(page, pages, slot),
            _ => {}
        }
    }

    /// Gives back a slab that this slot has taken away because it was empty, if it still is.
    fn retire(&self, page: usize, class: usize, slab: &Slab<'_>) {
        if slab.is_empty() {
            self.room(class).clear(page, || false);
            step();
            let leaving = State::Leaving { pages: class::pages(class) };
            slab.state.store(leaving.word(), Ordering::Release);
            step();
            self.give(page);
        } else {
            slab.let_go();
            step();
            if slab.is_idle() && slab.has_room() {
                self.room(class).set(page);
            }
        }
    }

    /// Gives back pages that are leaving. If the lock is not to be had they stay so, until
    /// somebody [sweeps](Self::sweep).
    pub(super) fn give(&self, page: usize) {
        if let Ok(pages) = self.pages() {
            pages.give(page);
        }
    }

    /// Gives back all pages that were left leaving or are kept by anybody, and looks at all slabs.
    pub(super) fn sweep(&self) {
        let [.., highest] = super::pages::figures(&self.space);
        for page in 0..highest {
            if matches!(
                State::of(self.space.state(page).load(Ordering::Relaxed)),
                State::Leaving { .. } | State::Idle { .. } | State::Kept { .. }
            ) {
                self.touch(page);
                self.look_at(page);
                self.untouch();
            }
        }
    }

    pub(super) fn free_elsewhere(&self, page: usize, class: usize, index: usize) -> bool {
        let Some(slab) = slab(&self.space, page, class) else { return false };
        self.touch(page);
        let freed = slab.free(index);
        step();
        if freed == Freed::Edge {
            self.look_at(page);
        }
        self.untouch();
        freed != Freed::Twice
    }

    /// Frees a run and gives back its pages; whether there was one.
    pub(super) fn give_run(&self, page: usize, pages: usize) -> bool {
        let run = State::Run { pages }.word();
        let leaving = State::Leaving { pages }.word();
        self.touch(page);
        let state = self.space.state(page);
        // The moment at which it is free.
        let was = state.compare_exchange(run, leaving, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        step();
        if was {
            self.give(page);
        }
        self.untouch();
        was
    }
}
