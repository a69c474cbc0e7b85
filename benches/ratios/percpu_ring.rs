//! The rows of per-CPU rings.
//!
//! All arms keep the newest records and are never drained: once full, each publication
//! also makes room for itself, which is part of the figure of every arm.

use crate::harness::{Options, Row, Target, each, pinned, together};
use crossbeam_queue::ArrayQueue;
use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::Mutex;
use unmerged::percpu::{Ring, WhenFull};

pub(crate) fn rows(options: &Options) {
    pinned(0, || {
        ring::<16>(options, "percpu/ring-16", Target::Faster(4.0));
        ring::<64>(options, "percpu/ring-64", Target::None);
    });
    ring_threads(options, "percpu/ring-16-2t", 2);
    ring_threads(options, "percpu/ring-16-4t", 4);
    ring_threads(options, "percpu/ring-16-8t", 8);
}

/// Bytes of our ring; the others have as many records.
const CAPACITY: usize = 64 << 10;

fn ring<const N: usize>(options: &Options, name: &'static str, target: Target) {
    let records = CAPACITY / (N + 8);
    let record = black_box([7_u8; N]);

    let ring = Ring::private(CAPACITY, WhenFull::Overwrite).unwrap();
    let ours = each(|| {
        let record: &[u8; N] = black_box(&record);
        let _ = ring.publish(record);
    });

    let locked = Mutex::new(VecDeque::with_capacity(records));
    let mutex = each(|| {
        let mut queue = locked.lock().unwrap();
        if queue.len() == records {
            queue.pop_front();
        }
        queue.push_back(*black_box(&record));
    });

    let queue = ArrayQueue::new(records);
    let crossbeam = each(|| {
        queue.force_push(*black_box(&record));
    });

    Row::new(name, ours)
        .peer("mutex", target, mutex)
        .peer("crossbeam", target, crossbeam)
        .run(options);
}

/// Several threads, on the CPUs in turn; the figure is the time of all divided by the records of
/// all.
fn ring_threads(options: &Options, name: &'static str, threads: usize) {
    const N: usize = 16;
    let records = CAPACITY / (N + 8);
    let record = black_box([7_u8; N]);
    let ring = Ring::private(CAPACITY, WhenFull::Overwrite).unwrap();
    let ours = |n| {
        for _ in 0..n {
            let record: &[u8; N] = black_box(&record);
            let _ = ring.publish(record);
        }
    };
    let locked = Mutex::new(VecDeque::with_capacity(records));
    let mutex = |n| {
        for _ in 0..n {
            let mut queue = locked.lock().unwrap();
            if queue.len() == records {
                queue.pop_front();
            }
            queue.push_back(*black_box(&record));
        }
    };
    let queue = ArrayQueue::new(records);
    let crossbeam = |n| {
        for _ in 0..n {
            queue.force_push(*black_box(&record));
        }
    };
    Row::new(name, Box::new(|n| together(threads, n, &ours)))
        .peer("mutex", Target::None, Box::new(|n| together(threads, n, &mutex)))
        .peer("crossbeam", Target::None, Box::new(|n| together(threads, n, &crossbeam)))
        .run(options);
}
