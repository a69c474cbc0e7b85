//! The rows of per-CPU locks, arrays and histograms.

use crate::harness::{Options, Row, Target, by_all, each, in_turn, pinned};
use crate::pthread::{Pthread, add_one};
use crossbeam_utils::CachePadded;
use std::array;
use std::cell::UnsafeCell;
use std::hint::{black_box, spin_loop};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use unmerged::percpu::{CounterArray, Histogram, Lock};

pub(crate) fn rows(options: &Options) {
    pinned(0, || {
        lock(options);
        array_64(options);
        histogram(options);
    });
    lock_threads(options, "percpu/lock-2t", 2);
    lock_threads(options, "percpu/lock-4t", 4);
    lock_threads(options, "percpu/lock-8t", 8);
}

static LOCK: Lock<u64> = Lock::new(|| 0);

fn ours() {
    add_one(&mut LOCK.lock());
}

/// A swap until it was free, a store to leave.
struct Spin(AtomicBool, UnsafeCell<u64>);

// SAFETY: the value is reached by the owner.
unsafe impl Sync for Spin {}

impl Spin {
    fn new() -> CachePadded<Self> {
        CachePadded::new(Self(AtomicBool::new(false), UnsafeCell::new(0)))
    }

    fn add_one(&self) {
        while self.0.swap(true, Ordering::Acquire) {
            spin_loop();
        }
        // SAFETY: the owner's.
        add_one(unsafe { &mut *self.1.get() });
        self.0.store(false, Ordering::Release);
    }
}

fn lock(options: &Options) {
    let (mutex, pthread, spin) = (Mutex::new(0), Pthread::new(), Spin::new());
    ours(); // the first one of a process costs more
    Row::new("percpu/lock", each(ours))
        .peer("mutex", Target::Faster(1.5), each(|| add_one(&mut mutex.lock().unwrap())))
        .peer("pthread", Target::Faster(1.5), each(|| pthread.add_one()))
        .peer("spin", Target::None, each(|| spin.add_one()))
        .run(options);
}

/// Several threads, and one lock.
fn lock_threads(options: &Options, name: &'static str, threads: usize) {
    let (mutex, pthread, spin) = (Mutex::new(0), Pthread::new(), Spin::new());
    // Spinning is hopeless where the holder waits for the CPU.
    let target = if threads == 2 { Target::Faster(5.0) } else { Target::None };
    Row::new(name, by_all(threads, ours))
        .peer("mutex", target, by_all(threads, || add_one(&mut mutex.lock().unwrap())))
        .peer("pthread", target, by_all(threads, || pthread.add_one()))
        .peer("spin", target, by_all(threads, || spin.add_one()))
        .run(options);
}

/// 64 counters of one array in turn, against rows of atomics, a row for each CPU.
fn array_64(options: &Options) {
    type Shard = CachePadded<[AtomicU64; 64]>;
    let indices: [usize; 64] = array::from_fn(black_box);
    let counters = CounterArray::new(64).unwrap();
    let shards: Vec<Shard> =
        (0..64).map(|_| CachePadded::new([const { AtomicU64::new(0) }; 64])).collect();
    let sharded = in_turn(&indices, |&index| {
        // SAFETY: asks for a number.
        let cpu = unsafe { libc::sched_getcpu() } as usize;
        shards[cpu % 64][index].fetch_add(1, Ordering::Relaxed);
    });
    Row::new("percpu/array", in_turn(&indices, |&index| counters.add(index, 1)))
        .peer("sharded", Target::Faster(4.0), sharded)
        .run(options);
}

/// Values of some magnitudes, into our buckets and into the same ones of shared atomics.
fn histogram(options: &Options) {
    const BITS: u32 = 7;
    let histogram = Histogram::new(BITS).unwrap();
    let shared: Vec<AtomicU64> = (0..(65 - BITS) << BITS).map(|_| AtomicU64::new(0)).collect();
    let values: [u64; 64] = array::from_fn(|n| black_box(1000 + 137 * n as u64));
    let atomic = in_turn(&values, |&value| {
        let shift = (value | 1 << BITS).ilog2() - BITS;
        let bucket = ((shift as usize) << BITS) + (value >> shift) as usize;
        shared[bucket].fetch_add(1, Ordering::Relaxed);
    });
    Row::new("percpu/histogram", in_turn(&values, |&value| histogram.record(value)))
        .peer("atomic", Target::Faster(2.0), atomic)
        .run(options);
}
