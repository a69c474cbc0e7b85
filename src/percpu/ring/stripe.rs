//! The stripe of a ring: who writes which word, and the ways to move them.
//!
//! # Positions
//!
//! A *position* counts all that was ever written on a stripe: records in its upper half,
//! units of 8 bytes in its lower half, carries and all. So the difference of two positions less
//! than a ring apart has both counts exactly, one store publishes a record and its number, and
//! no position comes twice.
//!
//! A record is a unit with its length, then its bytes, in one piece. Where it does not fit in
//! front of the end of the data, a unit [`RING_PAD`] stands there and the record is at index 0;
//! the padding adds units and no record. One unit always stays free.
//!
//! # Protocol
//!
//! | word | written by |
//! |---|---|
//! | `head`, where the next record goes | the one writer of the stripe: windows of its CPU, or who has its turn |
//! | `limit`, the tail (oldest record) plus all units but one | readers and evictors, by exchange |
//! | free units, from `head` to `limit` | the writer |
//!
//! A zeroed stripe is full: head and limit are 0, which they never are again. The first
//! writer [opens](Stripe::open) it.
//!
//! A reader copies records, checks the copy, and moves the limit past them by an exchange
//! from the value that it began with. If that succeeds, nobody moved it meanwhile, so no
//! writer had that room: the copy is whole, and the reader's alone. The exchange
//! releases: the reads before it are over when a writer, which acquires the limit, writes there. An
//! evictor does the same without the copy.
//!
//! # Counts
//!
//! What the limit has passed was taken by a reader or is lost. `taken` is counted when a record
//! is handed out, so lost = passed − taken holds whoever dies where. The 64-bit counts
//! behind a position are found by two hints, which are brought up to date long before they
//! are half a lap of 32 bits behind.

use super::control::{Control, MARKS};
use crate::arch::portable::ring::{self, Words};
use crate::arch::{Publication, RING_PAD};
use crate::sync::{AtomicU64, Ordering};
use std::io::IoSlice;

/// A position that is one record further.
pub(super) const RECORD: u64 = 1 << 32;

/// Exchanges that may fail before a reader or evictor lets others have it. Each failure is
/// somebody's success, unless another process scribbles.
const ATTEMPTS: usize = 1000;

/// Units that a reader copies at a time, if one record is not more.
const BATCH: usize = 512;

/// Units of a record of `len` bytes: its length and at least one word.
pub(super) const fn units(len: usize) -> u64 {
    let words = len.div_ceil(8);
    (if words == 0 { 1 } else { words }) as u64 + 1
}

/// Records and units from one position to a later one.
#[derive(Debug, Clone, Copy)]
struct Span {
    records: u64,
    units: u64,
}

impl Span {
    const fn between(from: u64, to: u64) -> Self {
        let apart = to.wrapping_sub(from);
        Self { records: apart >> 32, units: apart & (RECORD - 1) }
    }
}

/// What is to be done so that a record fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// Nothing: try again.
    Fits,
    /// The stripe was never opened.
    Closed,
    /// Pad `units` from position `head`, which ends the data.
    Pad { head: u64, units: u64 },
    /// Units that are missing.
    Missing(u64),
}

/// Records that a reader has taken out of a stripe, in its buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Batch {
    /// The number of the first of them, from 0 since the stripe was opened.
    pub(super) sequence: u64,
    pub(super) records: u64,
}

/// Why nothing could be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Lengths and positions do not fit together: so many records, as far as that can be told,
    /// were skipped.
    Corrupt(u64),
    /// No memory for the copy.
    Memory,
}

/// The numbers of one stripe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Counts {
    pub(super) published: u64,
    pub(super) taken: u64,
    pub(super) lost: u64,
    pub(super) refused: u64,
}

/// One stripe, by its words.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stripe<'a> {
    pub(super) control: &'a Control,
    /// A power of two of units.
    pub(super) data: &'a [AtomicU64],
}

impl Stripe<'_> {
    const fn mask(&self) -> u64 {
        self.data.len() as u64 - 1
    }

    fn index(&self, position: u64) -> usize {
        (position & self.mask()) as usize
    }

    fn words(&self) -> Words<'_> {
        let (writer, reader) = (&self.control.writer, &self.control.reader);
        Words { head: &writer.head, limit: &reader.limit, data: self.data }
    }

    /// The head; with it, what was published in front of it.
    pub(super) fn head(&self) -> u64 {
        self.control.writer.head.load(Ordering::Acquire)
    }

    /// The limit. Acquired, so that a head that is read after it is not behind its tail.
    fn limit(&self) -> u64 {
        self.control.reader.limit.load(Ordering::Acquire)
    }

    fn tail_of(&self, limit: u64) -> u64 {
        limit.wrapping_sub(self.mask())
    }

    /// Moves the limit, if it still is `limit`, so that the tail is `tail`.
    fn move_tail(&self, limit: u64, tail: u64) -> bool {
        let next = tail.wrapping_add(self.mask());
        let word = &self.control.reader.limit;
        // Pairs with the loads of the limit: the reads before are over when it is written there.
        let moved = word.compare_exchange(limit, next, Ordering::Release, Ordering::Relaxed);
        if moved.is_ok() {
            self.passed(tail);
        }
        moved.is_ok()
    }

    /// The unit at `index`. A stale one is found out by the exchange that follows.
    fn unit(&self, index: usize) -> u64 {
        self.data[index].load(Ordering::Relaxed)
    }

    /// Units of the record whose length is `len`, if a record can have it.
    fn units_of(&self, len: u64) -> Option<usize> {
        let most = self.data.len() / 2;
        let units = units(usize::try_from(len).ok()?) as usize;
        (units <= most).then_some(units)
    }

    /// Records that the tail at `tail` has passed since the stripe was opened.
    fn passed(&self, tail: u64) -> u64 {
        let reader = &self.control.reader;
        let units = extended(&reader.units, tail as u32);
        extended(&reader.records, ((tail >> 32) as u32).wrapping_sub((units >> 32) as u32))
    }

    /// Lets writers in, if nobody has yet. They see what the caller did before.
    pub(super) fn open(&self) {
        let word = &self.control.reader.limit;
        let _ = word.compare_exchange(0, self.mask(), Ordering::Release, Ordering::Relaxed);
    }

    /// What a record of `units` needs.
    pub(super) fn room(&self, units: u64) -> Room {
        let (head, limit) = (self.head(), self.limit());
        if head == 0 && limit == 0 {
            return Room::Closed;
        }
        let free = limit.wrapping_sub(head) & (RECORD - 1);
        let to_end = self.data.len() as u64 - (head & self.mask());
        let padding = if units > to_end { to_end } else { 0 };
        match (units + padding).checked_sub(free) {
            None | Some(0) if padding == 0 => Room::Fits,
            None | Some(0) => Room::Pad { head, units: padding },
            Some(missing) => Room::Missing(missing),
        }
    }

    /// Publishes in the portable way; the turn must be the caller's.
    pub(super) fn publish(&self, step: u64, parts: &[IoSlice<'_>]) -> Publication {
        ring::publish(self.words(), step, parts)
    }

    /// Pads in the portable way; the turn must be the caller's.
    pub(super) fn pad(&self, head: u64, units: u64) {
        ring::pad(self.words(), head, units);
    }

    /// Gives up the oldest records until at least `missing` more units are free: an eighth of
    /// the ring at a time, so that its cost is shared by many records.
    pub(super) fn evict(&self, missing: u64) {
        let limit = self.limit();
        let (tail, head) = (self.tail_of(limit), self.head());
        let inside = Span::between(tail, head);
        let wanted = missing.max(self.data.len() as u64 / MARKS as u64);
        let next = self.marked(tail, inside, wanted).or_else(|| self.walk(tail, inside, wanted));
        let eighth = self.index(head) / (self.data.len() / MARKS);
        self.control.reader.marks[eighth].store(head, Ordering::Relaxed);
        // If it fails, somebody else has made room.
        self.move_tail(limit, next.unwrap_or(head));
    }

    /// The first known begin of a record that is `wanted` units behind the tail.
    fn marked(&self, tail: u64, inside: Span, wanted: u64) -> Option<u64> {
        let first = self.index(tail) / (self.data.len() / MARKS);
        (1..=MARKS).find_map(|eighth| {
            let word = &self.control.reader.marks[(first + eighth) % MARKS];
            let mark = word.load(Ordering::Relaxed);
            let span = Span::between(tail, mark);
            let is_inside = span.units <= inside.units && span.records <= inside.records;
            if !is_inside && mark != 0 {
                word.store(0, Ordering::Relaxed); // of a lap that is over
            }
            (is_inside && mark != 0 && span.units >= wanted).then_some(mark)
        })
    }

    /// The same, found from record to record; `None` if there is none, or if what is there
    /// is no record.
    fn walk(&self, tail: u64, inside: Span, wanted: u64) -> Option<u64> {
        let (mut index, mut passed) = (self.index(tail), Span { records: 0, units: 0 });
        while passed.units < wanted {
            if passed.records == inside.records {
                return None;
            }
            let len = self.unit(index);
            if len == RING_PAD && index != 0 {
                passed.units += (self.data.len() - index) as u64;
                index = 0;
                continue;
            }
            let units = self.units_of(len)?;
            passed.units += units as u64;
            passed.records += 1;
            index = (index + units) & (self.data.len() - 1);
            if passed.units > inside.units {
                return None;
            }
        }
        Some(tail.wrapping_add(passed.records * RECORD + passed.units))
    }

    /// Takes the oldest records in front of the position `until`, as many as one batch holds.
    /// `None` if there are none, or if others take them faster.
    pub(super) fn take(&self, until: u64, to: &mut Vec<u64>) -> Result<Option<Batch>, Fault> {
        for _ in 0..ATTEMPTS {
            let limit = self.limit();
            let tail = self.tail_of(limit);
            let inside = Span::between(tail, until);
            let is_behind = until.wrapping_sub(tail).cast_signed() < 0;
            if is_behind || inside.records == 0 {
                return Ok(None);
            }
            match self.copy(tail, inside, to)? {
                Some((records, units)) => {
                    let next = tail.wrapping_add(records * RECORD + units);
                    if self.move_tail(limit, next) {
                        return Ok(Some(Batch { sequence: self.passed(tail), records }));
                    }
                }
                // No record: because it was overwritten meanwhile, or it never was one.
                None if self.move_tail(limit, until) => {
                    return Err(Fault::Corrupt(inside.records));
                }
                None => {}
            }
        }
        Ok(None)
    }

    /// Copies whole records from `tail` on; how many, and how many units with the padding in
    /// front. What is copied is only looked at in the copy.
    fn copy(
        &self,
        tail: u64,
        inside: Span,
        to: &mut Vec<u64>,
    ) -> Result<Option<(u64, u64)>, Fault> {
        let (mut index, mut padding) = (self.index(tail), 0);
        if inside.units > self.mask() || inside.records > inside.units {
            return Ok(None);
        }
        let mut first = self.unit(index);
        if first == RING_PAD && index != 0 {
            padding = (self.data.len() - index) as u64;
            index = 0;
            first = self.unit(0);
        }
        let Some(room) = inside.units.checked_sub(padding) else { return Ok(None) };
        let room = (room as usize).min(self.data.len() - index);
        let Some(least) = self.units_of(first).filter(|&units| units <= room) else {
            return Ok(None);
        };
        let len = least.max(BATCH.min(room));
        to.clear();
        to.try_reserve(len).map_err(|_| Fault::Memory)?;
        to.extend(self.data[index..index + len].iter().map(|unit| unit.load(Ordering::Relaxed)));
        let (mut at, mut records) = (0, 0);
        while records < inside.records
            && let Some(units) = to.get(at).and_then(|&len| self.units_of(len))
            && at + units <= len
        {
            at += units;
            records += 1;
        }
        Ok((records > 0).then_some((records, padding + at as u64)))
    }

    /// Counts a record that is handed out.
    pub(super) fn count_taken(&self) {
        // Pairs with the load in `counts`: what is counted was passed.
        self.control.reader.taken.fetch_add(1, Ordering::Release);
    }

    /// The word of refused records.
    pub(super) fn refused(&self) -> &AtomicU64 {
        &self.control.writer.refused
    }

    /// The numbers now.
    pub(super) fn counts(&self) -> Counts {
        let taken = self.control.reader.taken.load(Ordering::Acquire);
        let tail = self.tail_of(self.limit());
        let passed = self.passed(tail);
        let inside = self.head().wrapping_sub(tail).cast_signed().max(0).cast_unsigned();
        Counts {
            published: passed.wrapping_add(inside >> 32),
            taken,
            lost: passed.wrapping_sub(taken),
            refused: self.refused().load(Ordering::Relaxed),
        }
    }
}

/// The 64-bit number whose lower half is `low` and that is nearest to `hint`, which is brought
/// up to date when it is an eighth of a lap behind.
fn extended(hint: &AtomicU64, low: u32) -> u64 {
    let known = hint.load(Ordering::Relaxed);
    let ahead = low.wrapping_sub(known as u32).cast_signed();
    let now = known.wrapping_add_signed(ahead.into());
    if ahead >= 1 << 29 {
        // If it fails, somebody else has done it.
        let _ = hint.compare_exchange(known, now, Ordering::Relaxed, Ordering::Relaxed);
    }
    now
}
