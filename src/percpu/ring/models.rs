//! The protocol of a stripe under loom, with the portable writer.
//!
//! A stripe of 8 units: records of 2 units with one word, or of 3 with two.

use super::control::Control;
use super::stripe::{RECORD, Room, Stripe, units};
use crate::arch::Publication;
use crate::sync::{AtomicU64, Ordering, model};
use loom::sync::Arc;
use loom::thread;
use std::io::IoSlice;

const UNITS: usize = 8;

struct Shared {
    control: Control,
    data: [AtomicU64; UNITS],
    /// What goes with the stripe and is no atomic.
    beside: loom::cell::UnsafeCell<u64>,
}

impl Shared {
    fn new(opened: u64) -> Self {
        Self {
            control: Control::ready(opened),
            data: core::array::from_fn(|_| AtomicU64::new(0).ready()),
            beside: loom::cell::UnsafeCell::new(0),
        }
    }

    /// With records of one word published: 1, 2 …
    fn with(records: u64) -> Arc<Self> {
        let shared = Self::new(UNITS as u64);
        for n in 1..=records {
            assert_eq!(shared.publish(&[n]), Publication::Done);
        }
        Arc::new(shared)
    }

    fn stripe(&self) -> Stripe<'_> {
        Stripe { control: &self.control, data: &self.data }
    }

    fn publish(&self, words: &[u64]) -> Publication {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.stripe().publish(RECORD + units(bytes.len()), &[IoSlice::new(&bytes)])
    }

    /// As a writer of a ring that overwrites.
    fn overwrite(&self, words: &[u64]) {
        while self.publish(words) != Publication::Done {
            match self.stripe().room(words.len() as u64 + 1) {
                Room::Pad { head, units } => self.stripe().pad(head, units),
                Room::Missing(units) => self.stripe().evict(units),
                Room::Fits | Room::Closed => {}
            }
        }
    }

    /// One batch: the words of its records, all of which have `each` of them.
    fn take(&self, each: usize) -> Vec<u64> {
        let mut buffer = Vec::new();
        let taken = self.stripe().take(self.stripe().head(), &mut buffer).unwrap();
        let records = taken.map_or(0, |batch| batch.records as usize);
        let batch = buffer.chunks(each + 1).take(records);
        batch
            .flat_map(|record| {
                self.stripe().count_taken();
                assert_eq!(record[0], 8 * each as u64);
                record[1..].iter().copied()
            })
            .collect()
    }
}

/// Runs both sides, each in a thread of its own: loom does not go back behind the first access
/// of the thread that a model begins in.
fn both<A: 'static, B: 'static>(
    shared: &Arc<Shared>,
    one: impl FnOnce(&Shared) -> A + 'static,
    other: impl FnOnce(&Shared) -> B + 'static,
) -> (A, B) {
    let (for_one, for_other) = (shared.clone(), shared.clone());
    let one = thread::spawn(move || one(&for_one));
    let other = thread::spawn(move || other(&for_other));
    (one.join().unwrap(), other.join().unwrap())
}

/// Fails when the store or the load of the head is relaxed.
#[test]
fn a_head_brings_its_record() {
    model(|| {
        let publish = |shared: &Shared| assert_eq!(shared.publish(&[7]), Publication::Done);
        let (taken, ()) = both(&Shared::with(0), |shared| shared.take(1), publish);
        assert!(taken.is_empty() || taken == [7]);
    });
}

/// Fails when the padding's store of the head is relaxed.
#[test]
fn padding_brings_the_records_before_it() {
    model(|| {
        let publish_and_pad = |shared: &Shared| {
            assert_eq!(shared.publish(&[7]), Publication::Done);
            shared.stripe().pad(2 * RECORD + 4, 4);
        };
        let shared = Shared::with(1);
        assert_eq!(shared.take(1), [1]);
        let (taken, ()) = both(&shared, |shared| shared.take(1), publish_and_pad);
        assert!(taken.is_empty() || taken == [7]);
    });
}

/// A reader is through with a place when a writer has it. Fails when the reader's exchange of
/// the limit or the writer's load is relaxed.
#[test]
fn room_comes_back_after_the_reading() {
    model(|| {
        let read = |shared: &Shared| {
            // Stands for the record at index 0, which only this reader takes away.
            shared.beside.with(|value| assert_eq!(unsafe { *value }, 0));
            assert_eq!(shared.take(1)[..3], [1, 2, 3]);
        };
        let write = |shared: &Shared| {
            // At index 6, then at index 0.
            if shared.publish(&[4]) == Publication::Done
                && shared.publish(&[5]) == Publication::Done
            {
                shared.beside.with_mut(|value| unsafe { *value = 5 });
            }
        };
        both(&Shared::with(3), read, write);
    });
}

/// Fails when the exchange of the limit is a load and a store.
#[test]
fn readers_share_the_records() {
    model(|| {
        let shared = Shared::with(2);
        let (mut all, others) = both(&shared, |shared| shared.take(1), |shared| shared.take(1));
        all.extend(others);
        assert_eq!(all, [1, 2]);
        let counts = shared.stripe().counts();
        assert_eq!((counts.published, counts.taken, counts.lost), (2, 2, 0));
    });
}

/// A record is delivered whole or lost, and counted as that. Fails when a reader does not look
/// whether its exchange succeeded.
#[test]
fn what_is_overwritten_is_not_delivered() {
    model(|| {
        let shared = Shared::with(0);
        shared.overwrite(&[1, 1]);
        shared.overwrite(&[2, 2]);
        let (taken, ()) =
            both(&shared, |shared| shared.take(2), |shared| shared.overwrite(&[3, 3]));
        assert!(taken.chunks(2).all(|words| words[0] == words[1]), "{taken:?}");
        let rest = shared.take(2);
        let counts = shared.stripe().counts();
        let delivered = (taken.len() + rest.len()) as u64 / 2;
        assert_eq!((counts.published, counts.taken), (3, delivered));
        assert_eq!(counts.lost, 3 - delivered);
    });
}

/// An evictor beside a reader never brings a record back. Fails when the load of the limit is
/// relaxed: the head may then be older than the tail.
#[test]
fn the_tail_goes_forward() {
    model(|| {
        let shared = Shared::with(0);
        let publish_and_read = |shared: &Shared| {
            assert_eq!(shared.publish(&[1]), Publication::Done);
            shared.take(1).len() as u64
        };
        let (taken, ()) = both(&shared, publish_and_read, |shared| shared.stripe().evict(1));
        let counts = shared.stripe().counts();
        assert_eq!((counts.published, counts.taken, counts.lost), (1, taken, 1 - taken));
    });
}

/// Fails when the count of what was taken is relaxed on either side.
#[test]
fn nothing_is_taken_before_it_is_passed() {
    model(|| {
        let (taken, counts) =
            both(&Shared::with(1), |shared| shared.take(1), |shared| shared.stripe().counts());
        assert_eq!(taken, [1]);
        assert!(counts.lost <= 1 && counts.taken <= 1, "{counts:?}");
    });
}

/// Whoever can publish knows that readers are told of the stripe. Fails when the exchange that
/// opens is relaxed.
#[test]
fn whoever_finds_it_open_finds_it_known() {
    model(|| {
        let told = Arc::new(AtomicU64::new(0).ready());
        let tell = told.clone();
        let open = move |shared: &Shared| {
            tell.store(1, Ordering::Relaxed);
            shared.stripe().open();
        };
        let publish = move |shared: &Shared| {
            if shared.publish(&[1]) == Publication::Done {
                assert_eq!(told.load(Ordering::Relaxed), 1);
            }
        };
        both(&Arc::new(Shared::new(0)), open, publish);
    });
}
