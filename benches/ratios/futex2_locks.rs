//! The rows of the locks and of the channel.

use crate::harness::{Options, Row, Target, by_all_on, each, pinned};
use crate::peer::Peer;
use crate::pthread::{Pthread, add_one};
use crossbeam_utils::CachePadded;
use ipc_channel::ipc::{self, IpcOneShotServer, IpcReceiver, IpcSender};
use std::cell::Cell;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, RwLock};
use std::time::{Duration, Instant};
use unmerged::futex2::lock::{self as ours, Channel};
use unmerged::futex2::{Private, Shared};

pub(crate) fn rows(options: &Options) {
    pinned(0, || {
        uncontended(options);
        idle_condvar(options);
        channel(options);
    });
    for (name, cpus, threads) in [
        ("futex2/mutex-2t", ALL, 2),
        ("futex2/mutex-4t", ALL, 4),
        ("futex2/mutex-8t", ALL, 8),
        ("futex2/mutex-16t", ALL, 16),
        ("futex2/mutex-one-cpu-2t", 1, 2),
        ("futex2/mutex-one-cpu-4t", 1, 4),
        ("futex2/mutex-one-cpu-16t", 1, 16),
    ] {
        contended(options, name, cpus, threads);
    }
    for (name, cpus, threads) in [
        ("futex2/rwlock-2t", ALL, 2),
        ("futex2/rwlock-8t", ALL, 8),
        ("futex2/rwlock-one-cpu-8t", 1, 8),
    ] {
        contended_rwlock(options, name, cpus, threads);
    }
    for (name, cpus) in [("futex2/channel-2t", [0, 1]), ("futex2/channel-one-cpu-2t", [0, 0])] {
        channel_2t(options, name, cpus);
    }
    for (name, cpus) in
        [("futex2/channel-processes", [0, 1]), ("futex2/channel-one-cpu-processes", [0, 0])]
    {
        channel_processes(options, name, cpus);
    }
}

fn uncontended(options: &Options) {
    let (ours, shared, robust) = (
        CachePadded::new(ours::Mutex::<u64>::new(0)),
        CachePadded::new(ours::Mutex::<u64, Shared>::new(0)),
        CachePadded::new(ours::RobustMutex::<u64>::new(0)),
    );
    let (std, parking_lot) =
        (CachePadded::new(Mutex::new(0)), CachePadded::new(parking_lot::Mutex::new(0)));
    let pthread = Pthread::new();
    let robustly = || match robust.lock().expect("it is free") {
        ours::Locked::Clean(mut guard) => add_one(&mut guard),
        ours::Locked::Orphaned(_) => unreachable!("nobody dies"),
    };
    Row::new("futex2/mutex", each(|| add_one(&mut ours.lock())))
        .peer("std", Target::Within(1.05), each(|| add_one(&mut std.lock().unwrap())))
        .peer("parking_lot", Target::Within(1.05), each(|| add_one(&mut parking_lot.lock())))
        .peer("pthread", Target::Within(1.05), each(|| pthread.add_one()))
        .peer("ours-shared", Target::None, each(|| add_one(&mut shared.lock())))
        .peer("ours-robust", Target::None, each(robustly))
        .run(options);
    let (ours, std, parking_lot) = (
        CachePadded::new(ours::RwLock::<u64>::new(0)),
        CachePadded::new(RwLock::new(0_u64)),
        CachePadded::new(parking_lot::RwLock::new(0_u64)),
    );
    let read = each(|| {
        black_box(*ours.read());
    });
    Row::new("futex2/rwlock-read", read)
        .peer(
            "std",
            Target::Within(1.05),
            each(|| {
                black_box(*std.read().unwrap());
            }),
        )
        .peer(
            "parking_lot",
            Target::Within(1.05),
            each(|| {
                black_box(*parking_lot.read());
            }),
        )
        .run(options);
    Row::new("futex2/rwlock-write", each(|| add_one(&mut ours.write())))
        .peer("std", Target::Within(1.05), each(|| add_one(&mut std.write().unwrap())))
        .peer("parking_lot", Target::Within(1.05), each(|| add_one(&mut parking_lot.write())))
        .run(options);
}

fn idle_condvar(options: &Options) {
    let (ours, std, parking_lot) =
        (ours::Condvar::<Private>::new(), Condvar::new(), parking_lot::Condvar::new());
    Row::new("futex2/notify-idle", each(|| black_box(&ours).notify_one()))
        .peer("std", Target::None, each(|| black_box(&std).notify_one()))
        .peer(
            "parking_lot",
            Target::None,
            each(|| {
                black_box(&parking_lot).notify_one();
            }),
        )
        .run(options);
}

/// As many CPUs as there are.
const ALL: usize = usize::MAX;

/// Several threads, one lock, as little as possible inside and outside.
fn contended(options: &Options, name: &'static str, cpus: usize, threads: usize) {
    let (ours, std, parking_lot, pthread) = (
        CachePadded::new(ours::Mutex::<u64>::new(0)),
        CachePadded::new(Mutex::new(0)),
        CachePadded::new(parking_lot::Mutex::new(0)),
        Pthread::new(),
    );
    let ours = || add_one(&mut ours.lock());
    let std = || add_one(&mut std.lock().unwrap());
    let parking_lot = || add_one(&mut parking_lot.lock());
    let pthread = || pthread.add_one();
    Row::new(name, by_all_on(cpus, threads, ours))
        .peer("std", Target::Within(1.0), by_all_on(cpus, threads, std))
        .peer("parking_lot", Target::Within(1.0), by_all_on(cpus, threads, parking_lot))
        .peer("pthread", Target::Within(1.0), by_all_on(cpus, threads, pthread))
        .run(options);
    fairness(
        options,
        name,
        cpus,
        threads,
        &[("ours", &ours), ("std", &std), ("parking_lot", &parking_lot), ("pthread", &pthread)],
    );
}

/// The same with a readers-writer lock: each tenth turn of a thread is a writer's.
fn contended_rwlock(options: &Options, name: &'static str, cpus: usize, threads: usize) {
    thread_local!(static TURN: Cell<u32> = const { Cell::new(0) });
    let (ours, std, parking_lot) = (
        CachePadded::new(ours::RwLock::<u64>::new(0)),
        CachePadded::new(RwLock::new(0)),
        CachePadded::new(parking_lot::RwLock::new(0)),
    );
    let writes = || TURN.replace(TURN.get().wrapping_add(1)).is_multiple_of(10);
    let ours = || {
        if writes() {
            add_one(&mut ours.write());
        } else {
            black_box(*ours.read());
        }
    };
    let std = || {
        if writes() {
            add_one(&mut std.write().unwrap());
        } else {
            black_box(*std.read().unwrap());
        }
    };
    let parking_lot = || {
        if writes() {
            add_one(&mut parking_lot.write());
        } else {
            black_box(*parking_lot.read());
        }
    };
    Row::new(name, by_all_on(cpus, threads, ours))
        .peer("std", Target::Within(1.0), by_all_on(cpus, threads, std))
        .peer("parking_lot", Target::Within(1.0), by_all_on(cpus, threads, parking_lot))
        .run(options);
    let arms: [Named<'_>; 3] = [("ours", &ours), ("std", &std), ("parking_lot", &parking_lot)];
    fairness(options, name, cpus, threads, &arms);
}

/// An arm and its name.
type Named<'a> = (&'a str, &'a (dyn Fn() + Sync));

/// How many turns are timed together: a look at the clock takes as long as a turn.
const TIMED: u64 = 16;

/// How evenly an arm serves its threads.
#[derive(Clone, Copy)]
struct Shares {
    /// Jain's index: 1 is even.
    jain: f64,
    /// The largest share by the smallest.
    ratio: f64,
    /// The longest time that one of them had to wait for [`TIMED`] turns, in milliseconds; also if it
    /// did not get them until the end.
    longest: f64,
}

/// Prints how evenly each arm serves its threads: medians of a few runs.
fn fairness(options: &Options, name: &str, cpus: usize, threads: usize, arms: &[Named<'_>]) {
    if !options.wants(name) || !options.is_measured() {
        return;
    }
    let mut all = vec![vec![]; arms.len()];
    for _ in 0..5 {
        for ((_, op), runs) in arms.iter().zip(&mut all) {
            runs.push(shares(cpus, threads, *op));
        }
    }
    let median = |runs: &[Shares], of: fn(&Shares) -> f64| {
        let mut figures: Vec<f64> = runs.iter().map(of).collect();
        figures.sort_by(f64::total_cmp);
        figures[figures.len() / 2]
    };
    let mut json = serde_json::Map::new();
    for ((who, _), runs) in arms.iter().zip(all) {
        let jain = median(&runs, |run| run.jain);
        let ratio = median(&runs, |run| run.ratio);
        let longest = median(&runs, |run| run.longest);
        if options.is_json() {
            let figures =
                serde_json::json!({ "jain": jain, "max_min": ratio, "longest_ms": longest });
            json.insert((*who).to_owned(), figures);
        } else {
            println!(
                "    {who:<24} fairness {jain:.3} (Jain), max/min {ratio:.1}, \
                 longest {TIMED} turns {longest:.1} ms"
            );
        }
    }
    if options.is_json() {
        println!("{}", serde_json::json!({ "name": format!("{name}/fairness"), "arms": json }));
    }
}

/// `threads` threads take turns for a while.
fn shares(cpus: usize, threads: usize, op: &(dyn Fn() + Sync)) -> Shares {
    let stop = AtomicBool::new(false);
    let served: Vec<(f64, f64)> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads)
            .map(|me| {
                let stop = &stop;
                scope.spawn(move || {
                    crate::harness::pin(me % cpus);
                    let (mut n, mut longest) = (0_u64, Duration::ZERO);
                    let mut last = Instant::now();
                    while !stop.load(Ordering::Relaxed) {
                        op();
                        n += 1;
                        if n.is_multiple_of(TIMED) {
                            let now = Instant::now();
                            longest = longest.max(now - last);
                            last = now;
                        }
                    }
                    (n as f64, longest.max(last.elapsed()).as_secs_f64() * 1e3)
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(200));
        stop.store(true, Ordering::Relaxed);
        all.into_iter().map(|thread| thread.join().expect("no arm panics")).collect()
    });
    let n = served.len() as f64;
    let sum: f64 = served.iter().map(|one| one.0).sum();
    let squares: f64 = served.iter().map(|one| one.0 * one.0).sum();
    let most = served.iter().map(|one| one.0).fold(0.0, f64::max);
    let least = served.iter().map(|one| one.0).fold(f64::MAX, f64::min).max(1.0);
    Shares {
        jain: sum * sum / (n * squares),
        ratio: most / least,
        longest: served.iter().map(|one| one.1).fold(0.0, f64::max),
    }
}

const CAPACITY: u32 = 1024;

/// An item in and out again.
fn channel(options: &Options) {
    let ours = Channel::<u64>::bounded(CAPACITY).expect("a capacity");
    let (send, receive) = crossbeam_channel::bounded::<u64>(CAPACITY as usize);
    let pair = each(|| {
        let _ = ours.send(black_box(1));
        black_box(ours.recv().is_ok());
    });
    let theirs = each(|| {
        let _ = send.send(black_box(1));
        black_box(receive.recv().is_ok());
    });
    let shared = in_memory();
    let between = each(|| {
        let _ = shared.send(black_box(1));
        black_box(shared.recv().is_ok());
    });
    Row::new("futex2/channel", pair)
        .peer("crossbeam", Target::Faster(1.0), theirs)
        .peer("ours-shared", Target::None, between)
        .run(options);
}

/// A channel in shared memory, for good.
fn in_memory() -> Channel<u64, Shared> {
    // SAFETY: a fresh descriptor.
    let number = unsafe { libc::memfd_create(c"bench".as_ptr(), 0) };
    // SAFETY: our own file.
    assert_eq!(unsafe { libc::ftruncate(number, PAGES as i64) }, 0);
    let [channel, _] = at(number);
    channel
}

/// From one thread to another, each on its CPU.
fn channel_2t(options: &Options, name: &'static str, cpus: [usize; 2]) {
    let ours = Channel::<u64>::bounded(CAPACITY).expect("a capacity");
    let (send, receive) = crossbeam_channel::bounded::<u64>(CAPACITY as usize);
    let arm = |n, send: &(dyn Fn(u64) + Sync), receive: &(dyn Fn() + Sync)| {
        let took = AtomicU64::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                crate::harness::pin(cpus[0]);
                (0..n).for_each(send);
            });
            scope.spawn(|| {
                crate::harness::pin(cpus[1]);
                let begin = Instant::now();
                (0..n).for_each(|_| receive());
                took.store(begin.elapsed().as_nanos() as u64, Ordering::Relaxed);
            });
        });
        took.into_inner() as f64
    };
    let mine = |n| {
        arm(n, &|item| drop(ours.send(item)), &|| {
            black_box(ours.recv().is_ok());
        })
    };
    let theirs = |n| {
        arm(n, &|item| assert!(send.send(item).is_ok()), &|| {
            black_box(receive.recv().is_ok());
        })
    };
    let shared = in_memory();
    let between = |n| {
        arm(n, &|item| drop(shared.send(item)), &|| {
            black_box(shared.recv().is_ok());
        })
    };
    Row::new(name, Box::new(mine))
        .peer("crossbeam", Target::Faster(1.0), Box::new(theirs))
        .peer("ours-shared", Target::None, Box::new(between))
        .run(options);
}

pub(crate) const ECHO: &str = "futex2-echo";
const SERVER: &str = "UNMERGED_BENCH_IPC";
const FILE: &str = "UNMERGED_BENCH_FD";
const PAGES: usize = 16 * 4096;

fn at(fd: i32) -> [Channel<u64, Shared>; 2] {
    // SAFETY: a new mapping of our own file, for good.
    let base = unsafe {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        libc::mmap(std::ptr::null_mut(), PAGES, access, libc::MAP_SHARED, fd, 0)
    };
    assert_ne!(base, libc::MAP_FAILED);
    let base = std::ptr::NonNull::new(base.cast::<u8>()).expect("it is mapped");
    // SAFETY: two halves of the mapping, which holds nothing else.
    [0, PAGES / 2].map(|half| unsafe {
        Channel::attach(base.add(half), PAGES / 2, CAPACITY).expect("there is room")
    })
}

/// The other process: sends back what it gets, on both kinds of channel.
pub(crate) fn echo(ready: &dyn Fn()) {
    let number = std::env::var(FILE).expect("the bench gives it").parse().expect("a number");
    let name = std::env::var(SERVER).expect("the bench gives it");
    // What it starts from here on stays there, too.
    crate::harness::pin(crate::peer::word().parse().expect("a CPU"));
    std::thread::spawn(move || {
        let [there, back] = at(number);
        while let Ok(item) = there.recv() {
            let _ = back.send(item);
        }
    });
    let (to_us, from_bench) = ipc::channel::<u64>().expect("a channel");
    let (to_bench, from_us) = ipc::channel::<u64>().expect("a channel");
    let hello = IpcSender::connect(name).expect("the bench serves");
    hello.send((to_us, from_us)).expect("the bench listens");
    std::thread::spawn(move || {
        while let Ok(item) = from_bench.recv() {
            let _ = to_bench.send(item);
        }
    });
    ready();
}

/// There and back, to another process, each on its CPU.
fn channel_processes(options: &Options, name: &'static str, cpus: [usize; 2]) {
    if !options.wants(name) {
        return;
    }
    type Ends = (IpcSender<u64>, IpcReceiver<u64>);
    let (server, place) = IpcOneShotServer::<Ends>::new().expect("a server");
    // SAFETY: a fresh descriptor, which the peer inherits; no other thread is there.
    let number = unsafe {
        let number = libc::memfd_create(c"bench".as_ptr(), 0);
        assert_eq!(libc::ftruncate(number, PAGES as i64), 0);
        std::env::set_var(FILE, number.to_string());
        std::env::set_var(SERVER, place);
        number
    };
    let [there, back] = at(number);
    let peer = std::thread::spawn(move || Peer::start_with(ECHO, &cpus[1].to_string()));
    let (_, (send, receive)) = server.accept().expect("the peer connects");
    let peer = peer.join().expect("the peer starts");
    // It cannot be shared; the lock is a small part of a round trip.
    let receive = Mutex::new(receive);
    let mine = each(|| {
        let _ = there.send(black_box(1));
        black_box(back.recv().is_ok());
    });
    let theirs = each(|| {
        let _ = send.send(black_box(1));
        black_box(receive.lock().unwrap().recv().is_ok());
    });
    let row = Row::new(name, mine).peer("ipc-channel", Target::Faster(1.0), theirs);
    pinned(cpus[0], || row.run(options));
    drop(peer);
}
