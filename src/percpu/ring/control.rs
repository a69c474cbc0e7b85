//! The words in front of a stripe's data, as they lie in memory. `stripe.rs` says what they mean.

use crate::arch::{RING_DATA, RING_LIMIT};
use crate::sync::{AtomicU64, assert_layout};
use core::mem::offset_of;
use crossbeam_utils::CachePadded;

/// Places where an evictor may go without a walk.
pub(super) const MARKS: usize = 8;

/// The words in front of a stripe's data.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Control {
    pub(super) writer: CachePadded<Writer>,
    pub(super) reader: CachePadded<Reader>,
    pub(super) turn: CachePadded<AtomicU64>,
}

#[derive(Debug)]
#[repr(C)]
pub(super) struct Writer {
    pub(super) head: AtomicU64,
    /// Records that were refused.
    pub(super) refused: AtomicU64,
}

#[derive(Debug)]
#[repr(C)]
pub(super) struct Reader {
    pub(super) limit: AtomicU64,
    pub(super) taken: AtomicU64,
    /// Hints: units and records that the limit has passed, or a little less.
    pub(super) units: AtomicU64,
    pub(super) records: AtomicU64,
    /// Heads that were, by their eighth of the data: a mark that is inside is a record's begin.
    pub(super) marks: [AtomicU64; MARKS],
}

/// Where windows find the count of refused records.
pub(super) const REFUSED: usize = 8;

assert_layout!(
    offset_of!(Writer, refused) == REFUSED,
    size_of::<Control>() == RING_DATA,
    offset_of!(Control, writer) == 0,
    offset_of!(Writer, head) == 0,
    offset_of!(Control, reader) == RING_LIMIT,
    offset_of!(Reader, limit) == 0,
);

#[cfg(all(test, loom))]
impl Control {
    /// Of a stripe with `units`, opened, for a model.
    pub(super) fn ready(units: u64) -> Self {
        let word = |value| AtomicU64::new(value).ready();
        let writer = Writer { head: word(0), refused: word(0) };
        let reader = Reader {
            limit: word(units.saturating_sub(1)),
            taken: word(0),
            units: word(0),
            records: word(0),
            marks: core::array::from_fn(|_| word(0)),
        };
        Self {
            writer: CachePadded::new(writer),
            reader: CachePadded::new(reader),
            turn: CachePadded::new(word(0)),
        }
    }
}
