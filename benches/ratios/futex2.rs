//! The futex2 rows.

use crate::harness::{Options, Row, Target, each, pin, pinned};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;
use unmerged::futex2::{Futex, Private};
use unmerged::sys::futex::{Clock, wait_bitset, wake_bitset};

pub(crate) fn rows(options: &Options) {
    pinned(0, || wake_idle(options));
    macro_rules! round_trip {
        ($name:literal, $value:ty, $within:literal) => {{
            let ours = |n| {
                let words: [Futex<$value, Private>; 2] = [const { Futex::new(0) }; 2];
                let give = |to: usize, turn: u64| {
                    words[to].store(turn as $value, Ordering::Release);
                    words[to].wake(1);
                };
                let take = |me: usize, turn: u64| {
                    let value = turn as $value;
                    while words[me].load(Ordering::Acquire) != value {
                        let _ = words[me].wait(value.wrapping_sub(1), None);
                    }
                };
                ping_pong(n, give, take)
            };
            Row::new($name, Box::new(ours))
                .peer("raw-futex", Target::Within($within), Box::new(raw_futex))
                .run(options);
        }};
    }
    round_trip!("futex2/round-trip-u8", u8, 1.05);
    round_trip!("futex2/round-trip-u16", u16, 1.05);
    round_trip!("futex2/round-trip-u32", u32, 1.05);
    round_trip!("futex2/round-trip-u64", u64, 1.2);
}

fn wake_idle(options: &Options) {
    let (word, raw) = (Futex::<u32>::new(0), AtomicU32::new(0));
    let ours = each(|| {
        word.store(1, Ordering::Release);
        word.wake(1);
    });
    let theirs = each(|| {
        raw.store(1, Ordering::Release);
        let _ = wake_bitset(raw.as_ptr(), true, 1, u32::MAX);
    });
    Row::new("futex2/wake-idle", ours)
        .peer("futex-wake", Target::Faster(12.0), theirs)
        .run(options);
}

/// `n` round trips between two threads on one CPU: `give(to, i)` hands the `i`-th turn to the
/// other, `take(me, i)` waits for it.
fn ping_pong(n: u64, give: impl Fn(usize, u64) + Sync, take: impl Fn(usize, u64) + Sync) -> f64 {
    let took = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pin(0);
            for turn in 1..=n {
                take(1, turn);
                give(0, turn);
            }
        });
        scope.spawn(|| {
            pin(0);
            let begin = Instant::now();
            for turn in 1..=n {
                give(1, turn);
                take(0, turn);
            }
            took.store(begin.elapsed().as_nanos() as u64, Ordering::Relaxed);
        });
    });
    took.into_inner() as f64
}

/// The same by futex(2) on 32 bits.
fn raw_futex(n: u64) -> f64 {
    let words = [const { AtomicU32::new(0) }; 2];
    let give = |to: usize, turn: u64| {
        words[to].store(turn as u32, Ordering::Release);
        let _ = wake_bitset(words[to].as_ptr(), true, 1, u32::MAX);
    };
    let take = |me: usize, turn: u64| {
        while words[me].load(Ordering::Acquire) != turn as u32 {
            let (word, before) = (words[me].as_ptr(), (turn as u32).wrapping_sub(1));
            let _ = wait_bitset(word, true, before, Clock::Monotonic, None, u32::MAX);
        }
    };
    ping_pong(n, give, take)
}
