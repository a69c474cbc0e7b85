//! The futex whose waiters a domain counts.

use super::requeue::{Side, requeue};
use super::seat::Seat;
use super::{Counted, Deadline, Domain, Futex, Options, Waiter, Word};
use crate::error::Result;
use core::marker::PhantomData;
use core::mem::size_of;

impl<T: Word> Futex<T, Counted> {
    pub(super) fn seat_in<'a>(&self, domain: &'a Domain) -> Result<Seat<'a>> {
        let offset = domain.offset_of(self.place().address.addr(), size_of::<T>())?;
        Ok(Seat::in_domain(domain, offset))
    }

    /// Sleeps while the value is `expected`, until a wake or the deadline: see
    /// [`wait`](Futex::wait).
    ///
    /// # Errors
    ///
    /// As [`wait`](Futex::wait); EINVAL if the word is not one of the domain.
    pub fn wait_in(&self, domain: &Domain, expected: T, deadline: Option<Deadline>) -> Result<()> {
        self.wait_in_with(domain, expected, deadline, Options::new())
    }

    /// [`wait_in`](Self::wait_in) with options.
    ///
    /// # Errors
    ///
    /// As [`wait_with`](Futex::wait_with); EINVAL if the word is not one of the domain.
    pub fn wait_in_with(
        &self,
        domain: &Domain,
        expected: T,
        deadline: Option<Deadline>,
        options: Options,
    ) -> Result<()> {
        let seat = self.seat_in(domain)?;
        // SAFETY: the word is borrowed for the time of the wait, and aligned.
        unsafe { self.place().wait(seat, expected.widen(), deadline, options) }
    }

    /// Sleeps as long as the value is `expected`; answers the value that it has then.
    ///
    /// # Errors
    ///
    /// As [`wait_while`](Futex::wait_while); EINVAL if the word is not one of the domain.
    pub fn wait_while_in(
        &self,
        domain: &Domain,
        expected: T,
        deadline: Option<Deadline>,
    ) -> Result<T> {
        self.until_changed(expected, || self.wait_in(domain, expected, deadline))
    }

    /// Wakes up to `n` waiters; answers how many. If nobody waits, in any process, this is a fence
    /// and two loads. Now and then it looks for the dead: see
    /// [the domain](Domain#what-a-wake-costs).
    ///
    /// # Errors
    ///
    /// EINVAL if the word is not one of the domain.
    #[inline]
    pub fn wake_in(&self, domain: &Domain, n: u32) -> Result<usize> {
        self.wake_in_with(domain, n, Options::new())
    }

    /// [`wake_in`](Self::wake_in) with options.
    ///
    /// # Errors
    ///
    /// EINVAL for a mask that does not fit, or if the word is not one of the domain.
    #[inline]
    pub fn wake_in_with(&self, domain: &Domain, n: u32, options: Options) -> Result<usize> {
        self.place().wake(self.seat_in(domain)?, n, options, true)
    }

    /// May somebody wait on this word, or on another one of its place in the table? A wake asks the
    /// kernel then.
    ///
    /// # Errors
    ///
    /// EINVAL if the word is not one of the domain.
    pub fn has_waiters_in(&self, domain: &Domain) -> Result<bool> {
        Ok(self.seat_in(domain)?.has_waiters())
    }

    /// An entry for [`waitv`](super::waitv) that expects `expected`.
    ///
    /// # Errors
    ///
    /// EINVAL if the word is not one of the domain.
    pub fn waiter_in<'a>(&'a self, domain: &'a Domain, expected: T) -> Result<Waiter<'a>> {
        let seat = self.seat_in(domain)?;
        let expected = expected.widen();
        Ok(Waiter { place: self.place(), seat, expected, word: PhantomData })
    }

    /// Wakes up to `wake` waiters and lets up to `requeue` others wait on `to` instead; answers how
    /// many of both: see [`requeue`](Futex::requeue). With an expectation, only if the value is
    /// that one.
    ///
    /// # Errors
    ///
    /// EAGAIN if the value is another one; EINVAL if a word is not one of the domain.
    pub fn requeue_in<U: Word>(
        &self,
        domain: &Domain,
        expected: Option<T>,
        to: &Futex<U, Counted>,
        wake: u32,
        requeue: u32,
    ) -> Result<usize> {
        let from = Side { place: self.place(), seat: self.seat_in(domain)?, skip: true };
        let to = Side { place: to.place(), seat: to.seat_in(domain)?, skip: true };
        // SAFETY: the word is borrowed, and aligned.
        unsafe { self::requeue(from, expected.map(Word::widen), to, wake, requeue) }
    }
}
