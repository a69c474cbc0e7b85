//! Where the waiters of a word are counted, and a waiter that is.

use super::counts::{Entry, Spot, here, place_of};
use super::domain::{Domain, Ledger};
use super::{fence, step};
use crate::sync::{self, AtomicU32, Ordering};
use crate::sys::fork;

/// The places that count a word's waiters.
///
/// A word in a domain is counted twice: there, for all processes, and in the table of this
/// process, so that whatever others write into the domain, a wake of this process finds the
/// waiters of this process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seat<'a> {
    pub(super) here: Option<Spot<'static>>,
    pub(super) domain: Option<(&'a Domain, Spot<'a>)>,
    /// The word's address, or its offset in the domain.
    number: usize,
}

impl<'a> Seat<'a> {
    /// A shared word outside of a domain: its waiters are not counted.
    pub(super) const NOWHERE: Self = Self { here: None, domain: None, number: 0 };

    /// A private word at this address.
    #[inline]
    pub(super) fn private(address: usize) -> Self {
        Self { here: Some(here(address)), domain: None, number: address }
    }

    /// A word at this offset of a domain.
    pub(super) fn in_domain(domain: &'a Domain, offset: usize) -> Self {
        let spot = Spot { table: domain.table(), index: place_of(offset) };
        Self { here: Some(here(offset)), domain: Some((domain, spot)), number: offset }
    }

    #[inline]
    fn entries(&self) -> impl Iterator<Item = &'a Entry> + use<'a> {
        let here = self.here.map(|spot| spot.entry());
        here.into_iter().chain(self.domain.map(|(_, spot)| spot.entry()))
    }

    #[inline]
    pub(super) fn counts(&self) -> bool {
        self.here.is_some()
    }

    /// May somebody wait? For a waker that has written its word before. Yes where nobody counts.
    #[inline]
    pub(super) fn has_waiters(&self) -> bool {
        let Some(here) = self.here else { return true };
        if self.domain.is_some() {
            sync::fence(Ordering::SeqCst);
        } else {
            fence::waker();
        }
        here.entry().is_waited_on()
            || self.domain.is_some_and(|(_, spot)| spot.entry().is_waited_on())
    }

    /// Counts a waiter without the fence that must follow.
    pub(super) fn add(self) -> Waiting<'a> {
        if let Some(spot) = self.here {
            spot.entry().add();
        }
        let owner = if self.domain.is_some() { fork::own() } else { 0 };
        let ledger = self.domain.and_then(|(domain, spot)| {
            step::step();
            spot.entry().add();
            step::step();
            let ledger = domain.ledger();
            if let Some(ledger) = &ledger {
                ledger.add(spot.index);
            }
            step::step();
            ledger
        });
        Waiting { seat: self, owner, ledger, sure: true }
    }

    /// Counts a waiter until the answer is dropped. What it reads of its word from here on is
    /// ordered against [`has_waiters`](Self::has_waiters).
    pub(super) fn enter(self) -> Waiting<'a> {
        let mut waiting = self.add();
        if self.counts() {
            waiting.sure = self.fence();
        }
        waiting
    }

    /// The waiter's fence; see [`fence::waiter`].
    fn fence(&self) -> bool {
        if self.domain.is_some() {
            sync::fence(Ordering::SeqCst);
            true
        } else {
            fence::waiter()
        }
    }

    /// Does somebody sleep on the sequence?
    pub(super) fn is_shadowed(&self) -> bool {
        self.entries().any(Entry::is_shadowed)
    }

    /// Does a ring of this process wait by the shared key?
    pub(super) fn has_rings(&self) -> bool {
        self.here.is_some_and(|spot| spot.entry().has_rings())
    }

    /// How many of this process sleep on its word for vectors.
    pub(super) fn listed(&self) -> u32 {
        self.here.map_or(0, |spot| spot.entry().listed())
    }

    /// Has the listed waiters of this process woken.
    pub(super) fn wake_listed(&self, wake: impl FnOnce() -> usize) -> usize {
        self.here.map_or(0, |spot| spot.entry().wake_listed(self.number, wake))
    }

    /// May such a wake reach a waiter that has seen the sequence already?
    pub(super) fn is_waking(&self) -> bool {
        self.here.is_some_and(|spot| spot.entry().is_waking())
    }

    pub(super) fn advance(&self) {
        self.entries().for_each(|entry| entry.advance(self.number));
    }

    /// Whether the last wake of one of its places was for this word.
    pub(super) fn was_last(&self) -> bool {
        self.entries().any(|entry| entry.last() == self.number)
    }

    /// The sequence to sleep on, and whether it is this process's own.
    pub(super) fn sequence(&self) -> Option<(&'a AtomicU32, bool)> {
        match self.domain {
            Some((_, spot)) => Some((spot.entry().sequence(), false)),
            None => self.here.map(|spot| (spot.entry().sequence(), true)),
        }
    }

    /// The sequences as they are now.
    pub(super) fn seen(&self) -> [u32; 2] {
        let mut seen = [0; 2];
        for (seen, entry) in seen.iter_mut().zip(self.entries()) {
            *seen = entry.sequence().load(Ordering::Acquire);
        }
        seen
    }

    /// Whether waiters of this word may be moved to `to`: see `counts.rs`. The caller is counted
    /// here until it has moved them.
    pub(super) fn pin(&self, to: &Self) -> bool {
        let same_kind = match (self.domain, to.domain) {
            (Some((from, spot)), Some((to, target))) => {
                core::ptr::eq(from, to) && spot.pin(target.index)
            }
            (None, None) => true,
            _ => false,
        };
        same_kind
            && match (self.here, to.here) {
                (Some(spot), Some(target)) => spot.pin(target.index),
                (None, None) => true,
                _ => false,
            }
    }
}

/// A waiter that is counted.
#[derive(Debug)]
pub(super) struct Waiting<'a> {
    seat: Seat<'a>,
    /// The process that is counted in a domain: see [`fork`].
    owner: u64,
    /// Of a word in a domain: the row that tells others to take the count back when this
    /// process is dead.
    ledger: Option<Ledger<'a>>,
    /// Every waker will find the count.
    pub(super) sure: bool,
}

impl<'a> Waiting<'a> {
    pub(super) fn seat(&self) -> Seat<'a> {
        self.seat
    }

    /// The place in the domain where this process is counted. A child that was forked by a handler
    /// during the wait goes on with it, and must not take away its parent's count.
    fn counted(&self) -> Option<Spot<'a>> {
        self.seat.domain.filter(|_| self.owner == fork::own()).map(|(_, spot)| spot)
    }

    /// Counts it as one that sleeps on the sequence, without the fence that must follow.
    pub(super) fn add_shadowed(&self) -> Shadowed<'_, 'a> {
        self.seat.entries().for_each(Entry::add_shadowed);
        if let (Some((_, spot)), Some(ledger)) = (self.seat.domain, &self.ledger) {
            step::step();
            ledger.add_shadowed(spot.index);
            step::step();
        }
        Shadowed(self)
    }

    /// The same, with it.
    pub(super) fn shadow(&mut self) -> Shadowed<'_, 'a> {
        let seat = self.seat;
        core::mem::forget(self.add_shadowed());
        self.sure &= seat.fence();
        Shadowed(self)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(spot) = self.counted() {
            if let Some(ledger) = &self.ledger {
                ledger.remove(spot.index);
            }
            step::step();
            spot.leave(1);
            step::step();
        }
        if let Some(spot) = self.seat.here {
            spot.leave(1);
        }
    }
}

/// A waiter that sleeps on the sequence.
#[derive(Debug)]
pub(super) struct Shadowed<'w, 'a>(&'w Waiting<'a>);

impl Shadowed<'_, '_> {
    /// Every waker will find the count.
    pub(super) fn is_sure(&self) -> bool {
        self.0.sure
    }
}

impl Drop for Shadowed<'_, '_> {
    fn drop(&mut self) {
        if let Some(spot) = self.0.counted() {
            if let Some(ledger) = &self.0.ledger {
                ledger.remove_shadowed(spot.index);
                step::step();
            }
            spot.entry().remove_shadowed(1);
        }
        if let Some(spot) = self.0.seat.here {
            spot.entry().remove_shadowed(1);
        }
    }
}
