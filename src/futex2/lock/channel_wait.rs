//! How a channel waits: it looks for a while, then sleeps on the bell that the other side rings.
//!
//! Who finds a claim of a dead sender in the way clears it and looks again. A peer that lies can put
//! such claims there without end, so after the deadline, and without a wait, only so many are cleared.

use super::bell::Bell;
use super::cell::Cell;
use super::channel::Channel;
use super::identity::{is_dead, me};
use super::ring::{LOOKS, Tried};
use super::waiting::{Patience, Slept, late};
use crate::error::{Error, Result};
use crate::futex2::{Deadline, Futex, Scope};
use core::time::Duration;
use rustix::io::Errno;

/// How long one waits for another one that is in the middle of a send or a receive, before it looks
/// again.
pub(super) const NAP: Duration = Duration::from_millis(1);

/// How a waiter looks before it sleeps: so often with pauses between, each twice as long as the one
/// before, for another one on another CPU; then so often while others run.
struct Looks {
    pauses: u32,
    yields: u32,
}

/// Between threads: those of crossbeam's.
const THREADS: Looks = Looks { pauses: 7, yields: 4 };
/// Between processes, where there mostly are too few CPUs for long pauses.
const PROCESSES: Looks = Looks { pauses: 3, yields: 7 };

/// How many claims of the dead are cleared where there is no time left.
const CLEARS: u32 = LOOKS;

impl<T, S: Scope> Channel<T, S> {
    /// Between processes: if one died in the middle of a send, takes it out of the way.
    #[cold]
    pub(super) fn clear(&self, thorough: bool) -> Result<bool> {
        if S::PRIVATE {
            return Ok(false);
        }
        let me = me();
        let cleared = self.claims().clear(|id| id != me && is_dead(id, thorough))?;
        if cleared {
            self.control().bells.room.ring();
        }
        Ok(cleared)
    }

    /// Tries until it is done, sleeping in between on the bell that the other side rings.
    #[cold]
    #[inline(never)]
    pub(super) fn persist<R>(
        &self,
        bell: &Bell<Futex<u32, S>>,
        patience: Patience,
        operation: &'static str,
        attempt: impl Fn() -> Result<Tried<R>>,
    ) -> Result<R> {
        let deadline = match patience {
            Patience::Until(deadline) => Some(deadline),
            _ => None,
        };
        let Looks { pauses, yields } = if S::PRIVATE { THREADS } else { PROCESSES };
        let (mut looks, mut slept) = (0, false);
        let mut clears = CLEARS.min(self.shape.capacity) + 1;
        let mut is_one_of_few = || {
            clears = clears.saturating_sub(1);
            clears > 0
        };
        let has_passed = || deadline.is_some_and(|deadline| deadline.has_passed());
        let mut thorough = matches!(patience, Patience::None);
        let done = |done: R, slept: bool| {
            if slept {
                self.pass_on(bell);
            }
            Ok(done)
        };
        loop {
            match attempt()? {
                Tried::Done(answer) => return done(answer, slept),
                Tried::Closed => {
                    return Err(Error::because(operation, Errno::PIPE, "the channel is closed"));
                }
                _ if matches!(patience, Patience::None) => {
                    if self.clear(thorough)? && is_one_of_few() {
                        continue;
                    }
                    return Err(Error::new(operation, Errno::AGAIN));
                }
                _ if looks < pauses + yields => {
                    if looks < pauses {
                        (0..1 << looks).for_each(|_| crate::sync::spin_loop());
                    } else {
                        rustix::thread::sched_yield();
                    }
                    looks += 1;
                    continue;
                }
                _ => {}
            }
            if self.clear(thorough)? && (is_one_of_few() || !has_passed()) {
                continue;
            }
            let (seen, listener) = bell.announce();
            let until = match attempt()? {
                Tried::Done(answer) => {
                    drop(listener);
                    return done(answer, true);
                }
                Tried::Closed => {
                    return Err(Error::because(operation, Errno::PIPE, "the channel is closed"));
                }
                Tried::Not => deadline,
                // Nobody rings for the end of that.
                Tried::Busy => Some(Deadline::or_sooner(deadline, NAP)),
            };
            if has_passed() {
                return Err(late(operation));
            }
            let slumber = Cell::wait(bell.sequence(), seen, until);
            drop(listener);
            slept = true;
            thorough = !matches!(slumber, Ok(Slept::Woken | Slept::Changed));
            match slumber {
                Err(error) if !error.is_timed_out() => return Err(error),
                _ => looks = 0,
            }
        }
    }

    /// A wake of this bell may have been spent on this thread: rings for what is left.
    pub(super) fn pass_on(&self, bell: &Bell<Futex<u32, S>>) {
        let is_items = core::ptr::eq(bell, &raw const self.control().bells.items);
        if (if is_items { self.has_item() } else { self.has_room() }) != Some(false) {
            bell.ring();
        }
    }
}
