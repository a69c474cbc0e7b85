//! The rows of per-CPU locks, arrays and histograms.

use crate::harness::{Options, Row, Target, each, in_turn, pin, pinned};
use crossbeam_utils::CachePadded;
use std::array;
use std::cell::UnsafeCell;
use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Barrier, Mutex};
use std::time::Instant;
use unmerged::percpu::{CounterArray, Histogram, Lock};

pub(crate) fn rows(options: &Options) {
    pinned(0, || {
        lock(options);
        array_64(options);
        histogram(options);
    });
    lock_2t(options);
}

static LOCK: Lock<u64> = Lock::new(|| 0);

/// What all locks do while they are held.
fn add_one(value: &mut u64) {
    *value = black_box(*value + 1);
}

fn ours() {
    add_one(&mut LOCK.lock());
}

/// libc's mutex and what it protects.
struct Pthread(UnsafeCell<(libc::pthread_mutex_t, u64)>);

// SAFETY: the value is reached by the mutex's owner.
unsafe impl Sync for Pthread {}
// SAFETY: as above; it is sent unlocked.
unsafe impl Send for Pthread {}

impl Pthread {
    fn new() -> CachePadded<Self> {
        CachePadded::new(Self(UnsafeCell::new((libc::PTHREAD_MUTEX_INITIALIZER, 0))))
    }

    fn add_one(&self) {
        let both = self.0.get();
        // SAFETY: an initialised mutex that stays where it is; the value is its owner's.
        unsafe {
            libc::pthread_mutex_lock(&raw mut (*both).0);
            add_one(&mut (*both).1);
            libc::pthread_mutex_unlock(&raw mut (*both).0);
        }
    }
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

/// Two threads on two CPUs, and one lock; the figure is the time of one operation of both.
fn lock_2t(options: &Options) {
    let on_both = |op: &(dyn Fn() + Sync), n: u64| -> f64 {
        let (start, spans) = (Barrier::new(2), [const { AtomicU64::new(0) }; 2]);
        std::thread::scope(|scope| {
            for (me, span) in spans.iter().enumerate() {
                let start = &start;
                scope.spawn(move || {
                    pin(me);
                    (0..100).for_each(|_| op());
                    start.wait();
                    let begin = Instant::now();
                    (0..n).for_each(|_| op());
                    span.store(begin.elapsed().as_nanos() as u64, Ordering::Relaxed);
                });
            }
        });
        spans.iter().map(|span| span.load(Ordering::Relaxed)).max().unwrap_or(0) as f64 / 2.0
    };
    let (mutex, pthread, spin) = (Mutex::new(0), Pthread::new(), Spin::new());
    let mutex = || add_one(&mut mutex.lock().unwrap());
    let pthread = || pthread.add_one();
    let spin = || spin.add_one();
    Row::new("percpu/lock-2t", Box::new(|n| on_both(&ours, n)))
        .peer("mutex", Target::Faster(5.0), Box::new(|n| on_both(&mutex, n)))
        .peer("pthread", Target::Faster(5.0), Box::new(|n| on_both(&pthread, n)))
        .peer("spin", Target::Faster(5.0), Box::new(|n| on_both(&spin, n)))
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
