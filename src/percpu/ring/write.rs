//! The writing side: where the first window did not do it.

use super::control::REFUSED;
use super::stripe::{RECORD, Room, units};
use super::{Ring, WhenFull};
use crate::arch::{self, Publication, RING_DATA};
use crate::error::{Error, Result};
use crate::percpu::site::ATTEMPTS;
use crate::percpu::stats::{ABORTS, FALLBACKS};
use crate::percpu::turn::{Owner, Turn};
use crate::sync::Ordering;
use crate::sys::{cpus, rseq};
use rustix::io::Errno;
use rustix::thread::sched_yield;
use std::io::IoSlice;

const OPERATION: &str = "percpu::Ring::publish";

/// How often room is made for one record. More is needed only if others fill it at once, each
/// time, or if another process scribbles.
const ROOMS: u32 = 64;

/// Passes over the overflow stripes, with a pause of the processor between two.
const PASSES: u32 = 16;

/// A record on its way.
#[derive(Clone, Copy)]
struct Parts<'p> {
    parts: &'p [IoSlice<'p>],
    len: usize,
    /// What the head gains.
    step: u64,
}

/// What to answer when a stripe is full.
enum Answer {
    Again,
    Refused,
}

impl Ring<'_> {
    /// Publishes what is in `parts`, on any stripe.
    #[cold]
    #[inline(never)]
    pub(super) fn publish_elsewhere(&self, parts: &[IoSlice<'_>]) -> Result<()> {
        let most = self.place.shape.most();
        let sum = parts.iter().try_fold(0_usize, |sum, part| sum.checked_add(part.len()));
        let len = sum.unwrap_or(usize::MAX);
        if len > most {
            return Err(Error::too_large(OPERATION, len, most));
        }
        let record = Parts { parts, len, step: RECORD + units(len) };
        if self.windows > 0
            && rseq::ensure_registered()
            && let Some(done) = self.publish_in_windows(record)
        {
            return done;
        }
        FALLBACKS.count();
        self.publish_on_overflow(record)
    }

    /// On the stripe of this CPU; `None` if windows are aborted again and again.
    fn publish_in_windows(&self, record: Parts<'_>) -> Option<Result<()>> {
        let (mut attempts, mut rooms) = (ATTEMPTS, ROOMS);
        let area = rseq::area();
        while attempts > 0 && rooms > 0 {
            // SAFETY: the area is known.
            let cpu = unsafe { arch::cpu_id(area) };
            if cpu >= self.windows {
                return None;
            }
            // SAFETY: `cpu` is in range; the length was checked and the step has room for it.
            match unsafe { self.window(area, cpu, record) } {
                Publication::Done => return Some(Ok(())),
                Publication::Aborted => {
                    ABORTS.count();
                    attempts -= 1;
                }
                Publication::Full => {
                    rooms -= 1;
                    let pad = |head, units| {
                        // SAFETY: as above; `room` says that the units are free and end the data.
                        unsafe { self.pad_in_window(area, cpu, head, units) };
                    };
                    if let Answer::Refused = self.make_room(cpu, record, pad) {
                        self.count_refused();
                        return Some(Err(full()));
                    }
                }
            }
        }
        None
    }

    /// One attempt.
    ///
    /// # Safety
    ///
    /// `cpu` must be in range of the windows, `area` this process's, and the record's length
    /// within bounds.
    unsafe fn window(&self, area: isize, cpu: u32, record: Parts<'_>) -> Publication {
        let (stripe, mask) = (self.place.address(cpu), self.mask);
        let Parts { parts, len, step } = record;
        // SAFETY: a stripe of this ring, whose head only windows of `cpu` write; the caller
        // vouches for the rest.
        unsafe { arch::ring_publish_parts(area, cpu, stripe, mask, step, len as u64, parts) }
    }

    /// One attempt to pad.
    ///
    /// # Safety
    ///
    /// As [`window`](Self::window); `units` must be those from `head` to the end of the data.
    unsafe fn pad_in_window(&self, area: isize, cpu: u32, head: u64, units: u64) {
        let (stripe, index) = (self.place.address(cpu), (head & self.mask) as usize);
        let at = stripe.wrapping_add(RING_DATA + index * 8).cast();
        // If it is aborted, the next look at the stripe finds out.
        // SAFETY: the unit that `head` leads to; the caller vouches for the rest.
        let _ = unsafe { arch::ring_pad(area, cpu, stripe, head, at, units) };
    }

    /// Does what a stripe needs so that the record fits.
    fn make_room(&self, index: u32, record: Parts<'_>, pad: impl FnOnce(u64, u64)) -> Answer {
        let stripe = self.place.stripe(index);
        match stripe.room(units(record.len)) {
            Room::Fits => {}
            Room::Closed => self.place.open_stripe(index),
            Room::Pad { head, units } => pad(head, units),
            Room::Missing(units) => match self.place.shape.when_full {
                WhenFull::Refuse => return Answer::Refused,
                WhenFull::Overwrite => stripe.evict(units),
            },
        }
        Answer::Again
    }

    /// On an overflow stripe, where writers take turns.
    fn publish_on_overflow(&self, record: Parts<'_>) -> Result<()> {
        let shape = self.place.shape;
        let me = Owner::this_thread();
        let first = cpus::current() % shape.overflow();
        for pass in 0..PASSES {
            if pass > 0 {
                sched_yield();
            }
            for n in 0..shape.overflow() {
                let index = shape.cpus + (first + n) % shape.overflow();
                let word = &self.place.stripe(index).control.turn;
                let is_gone = |owner| me.is_gone(owner, self.is_private);
                let Some(_turn) = Turn::take(word, me, is_gone) else { continue };
                return self.publish_in_turn(index, record);
            }
        }
        self.count_refused_on(shape.cpus + first);
        Err(Error::because(OPERATION, Errno::BUSY, "every overflow stripe is being written"))
    }

    fn publish_in_turn(&self, index: u32, record: Parts<'_>) -> Result<()> {
        let stripe = self.place.stripe(index);
        for _ in 0..ROOMS {
            if stripe.publish(record.step, record.parts) == Publication::Done {
                return Ok(());
            }
            let pad = |head, units| stripe.pad(head, units);
            if let Answer::Refused = self.make_room(index, record, pad) {
                break;
            }
        }
        self.count_refused_on(index);
        Err(full())
    }

    /// Counts a refusal, on whatever CPU this is.
    fn count_refused(&self) {
        let area = rseq::area();
        for _ in 0..ATTEMPTS {
            // SAFETY: the area is known.
            let cpu = unsafe { arch::cpu_id(area) };
            if cpu >= self.windows {
                break;
            }
            self.place.open_stripe(cpu);
            let word = self.place.address(cpu).wrapping_add(REFUSED).cast();
            // SAFETY: a word that only windows of `cpu` write.
            let counted = unsafe { arch::load_add_store_u64(area, cpu, word, 1) };
            if counted == arch::Outcome::Done {
                return;
            }
        }
        let overflow = self.place.shape.overflow();
        self.count_refused_on(self.place.shape.cpus + cpus::current() % overflow);
    }

    /// Counts a refusal on an overflow stripe.
    fn count_refused_on(&self, index: u32) {
        self.place.open_stripe(index);
        self.place.stripe(index).refused().fetch_add(1, Ordering::Relaxed);
    }
}

#[cold]
const fn full() -> Error {
    Error::because(OPERATION, Errno::NOSPC, "the ring is full")
}
