//! The futex2 rows.

use crate::harness::{Options, Row, Target, each, pin, pinned};
use std::process::Command;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;
use unmerged::futex2::{Domain, Fences, Futex, Private, Shared, choose_fences};
use unmerged::sys::futex::{Clock, wait_bitset, wake_bitset};

/// In a process that was asked for it: idle wakes with the other fences, and the end.
pub(crate) fn play() {
    if let Ok(n) = std::env::var(ASYMMETRIC) {
        choose_fences(Fences::Membarrier).expect("the kernel grants it");
        pinned(0, || println!("{}", wakes(n.parse().expect("a number"))));
        std::process::exit(0);
    }
}

pub(crate) fn rows(options: &Options) {
    pinned(0, || wake_idle(options));
    pinned(0, || wake_idle_domain(options));
    macro_rules! round_trip {
        ($name:literal, $value:ty, $cpus:expr, $target:expr) => {{
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
                ping_pong(n, $cpus, give, take)
            };
            Row::new($name, Box::new(ours))
                .peer("raw-futex", $target, Box::new(|n| raw_futex(n, $cpus)))
                .run(options);
        }};
    }
    let one = [0, 0];
    round_trip!("futex2/round-trip-u8", u8, one, Target::Within(1.05));
    round_trip!("futex2/round-trip-u16", u16, one, Target::Within(1.05));
    round_trip!("futex2/round-trip-u32", u32, one, Target::Within(1.05));
    round_trip!("futex2/round-trip-u64", u64, one, Target::Within(1.2));
    // Between two CPUs the time is that of waking the other one up.
    round_trip!("futex2/round-trip-2-cpus-u8", u8, [0, 1], Target::None);
    round_trip!("futex2/round-trip-2-cpus-u64", u64, [0, 1], Target::None);
    for (name, waiters) in [
        ("futex2/requeue-1", 1),
        ("futex2/requeue-10", 10),
        ("futex2/requeue-100", 100),
        ("futex2/requeue-1000", 1000),
    ] {
        if options.wants(name) {
            herd(name, waiters, options);
        }
    }
}

/// The environment variable by which this program is asked for so many idle wakes, in a process with
/// the other kind of fences.
const ASYMMETRIC: &str = "UNMERGED_BENCH_ASYMMETRIC";

/// Nanoseconds that `n` idle wakes take.
fn wakes(n: u64) -> f64 {
    let word = Futex::<u32>::new(0);
    // The first one registers the process with the kernel, which takes milliseconds.
    word.wake(1);
    each(move || {
        word.store(1, Ordering::Release);
        word.wake(1);
    })(n)
}

/// The same in a process in which the waiters have the fence.
fn asymmetric(n: u64) -> f64 {
    let program = std::env::current_exe().expect("this program has a path");
    let mut command = Command::new(program);
    command.env(ASYMMETRIC, n.to_string());
    let output = command.output().expect("this program can be executed");
    String::from_utf8_lossy(&output.stdout).trim().parse().expect("it says the time")
}

/// Gets `waiters` off a word: moves all of them to another one, and wakes one there; against waking
/// all at once. What is measured is the mover's time; the moved ones are woken outside of it.
fn herd(name: &'static str, waiters: usize, options: &Options) {
    let run = |moves: bool| {
        move |n: u64| {
            let (mut took, rounds) = (0.0, n.clamp(1, 10));
            for _ in 0..rounds {
                took += once(waiters, moves);
            }
            took * n as f64 / rounds as f64
        }
    };
    Row::new(name, Box::new(run(true)))
        .peer("wake-all", Target::None, Box::new(run(false)))
        .run(options);
}

fn once(waiters: usize, moves: bool) -> f64 {
    let (from, to) = (Futex::<u32>::new(0), Futex::<u32>::new(0));
    let up = Barrier::new(waiters + 1);
    let over = AtomicU32::new(0);
    let mut took = 0;
    std::thread::scope(|scope| {
        for _ in 0..waiters {
            let wait = || {
                up.wait();
                while over.load(Ordering::Acquire) == 0 {
                    let _ = from.wait(0, None);
                }
            };
            let small = std::thread::Builder::new().stack_size(64 << 10);
            small.spawn_scoped(scope, wait).expect("there can be so many threads");
        }
        up.wait();
        std::thread::sleep(std::time::Duration::from_millis(5 + waiters as u64 / 20));
        let begin = Instant::now();
        if moves {
            let _ = from.cmp_requeue(0, &to, 0, u32::MAX);
            to.wake(1);
        } else {
            from.wake_all();
        }
        took = begin.elapsed().as_nanos();
        over.store(1, Ordering::Release);
        from.store(1, Ordering::Release);
        from.wake_all();
        to.wake_all();
    });
    took as f64
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
    let theirs = each(|| {
        raw.store(1, Ordering::Release);
        let _ = wake_bitset(raw.as_ptr(), true, 1, u32::MAX);
    });
    Row::new("futex2/wake-idle-asym", Box::new(asymmetric))
        .peer("futex-wake", Target::Faster(50.0), theirs)
        .run(options);
}

/// A word that other processes see, in a domain; against the kernel's wake of a shared one.
fn wake_idle_domain(options: &Options) {
    let domain = Domain::create(4096).expect("a memory file");
    let word = domain.word::<u32>(0).expect("there is room");
    let plain = Futex::<u32, Shared>::new(0);
    let ours = each(|| {
        word.store(1, Ordering::Release);
        let _ = word.wake_in(&domain, 1);
    });
    let theirs = each(|| {
        plain.store(1, Ordering::Release);
        plain.wake(1);
    });
    Row::new("futex2/wake-idle-domain", ours).peer("shared", Target::None, theirs).run(options);
}

/// `n` round trips between two threads, each on its CPU: `give(to, i)` hands the `i`-th turn to the
/// other, `take(me, i)` waits for it.
fn ping_pong(
    n: u64,
    cpus: [usize; 2],
    give: impl Fn(usize, u64) + Sync,
    take: impl Fn(usize, u64) + Sync,
) -> f64 {
    let took = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pin(cpus[1]);
            for turn in 1..=n {
                take(1, turn);
                give(0, turn);
            }
        });
        scope.spawn(|| {
            pin(cpus[0]);
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
fn raw_futex(n: u64, cpus: [usize; 2]) -> f64 {
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
    ping_pong(n, cpus, give, take)
}
