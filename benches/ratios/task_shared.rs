//! The task_shared rows.

use crate::harness::{Options, Row, Target, each, pinned, together};
use crate::peer::Peer;
use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::sync::{Barrier, Mutex};
use std::time::Instant;
use unmerged::task_shared::{self, Monitor, Places, Usage};

/// The role of a process whose threads all have a slot and sleep.
pub(crate) const SLEEPERS: &str = "sleepers";
pub(crate) const THREADS: usize = 1000;

pub(crate) fn sleepers(until_released: &dyn Fn()) {
    let published = Barrier::new(THREADS + 1);
    let end = Barrier::new(THREADS + 1);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let slot = task_shared::current().expect("a slot is free");
                let _ = slot.publish();
                published.wait();
                end.wait();
            });
        }
        published.wait();
        until_released();
        end.wait();
    });
}

pub(crate) fn rows(options: &Options) {
    pinned(0, || {
        if options.wants("task_shared/current") {
            let current = each(|| {
                black_box(task_shared::current().map_or(0, |slot| slot.address()));
            });
            Row::new("task_shared/current", current).limit(1.5).run(options);
        }
        if options.wants("task_shared/publish-words") {
            publish_words(options);
        }
        if options.wants("task_shared/sweep-1000") {
            sweep(options);
        }
    });
    for (name, taken) in ALLOC {
        for threads in [1, 2, 4, 8] {
            let name = if threads == 1 { name.to_owned() } else { format!("{name}-{threads}t") };
            if options.wants(&name) {
                alloc(options, name.leak(), taken, threads);
            }
        }
    }
}

/// Four words of this thread as one moment, without a clock.
fn publish_words(options: &Options) {
    // A slot stays in its thread, so the arm asks for it.
    let ours = Box::new(|n| {
        let me = task_shared::current().expect("a slot is free");
        let begin = Instant::now();
        for value in 0..n {
            me.publish_words(0, black_box(&[value, value, value, value])).expect("room for four");
        }
        begin.elapsed().as_nanos() as f64
    });
    Row::new("task_shared/publish-words", ours).limit(4.0).run(options);
}

/// Rows, and how many of the 65,536 places are taken before.
const ALLOC: [(&str, usize); 2] =
    [("task_shared/alloc-empty", 0), ("task_shared/alloc-99", 64_880)];
const PLACES: usize = Usage::MAX_SLOTS;

/// A place is taken and given back, by so many threads.
fn alloc(options: &Options, name: &'static str, taken: usize, threads: usize) {
    let places = Places::new();
    (0..taken).for_each(|_| assert!(places.take(PLACES).is_some()));
    let ours = move |n| {
        together(threads, n, &|n| {
            for _ in 0..n {
                let place = places.take(PLACES).or_else(|| {
                    places.thaw(PLACES);
                    places.take(PLACES)
                });
                places.give_back(black_box(place).expect("one is free"));
            }
        })
    };
    let words = Mutex::new([0_u64; PLACES / 64]);
    let take = |words: &mut [u64; PLACES / 64]| {
        let index = words.iter().position(|&word| word != u64::MAX).expect("one is free");
        let bit = words[index].trailing_ones() as usize;
        words[index] |= 1 << bit;
        index * 64 + bit
    };
    (0..taken).for_each(|n| assert_eq!(take(&mut words.lock().expect("no panic")), n));
    let mutex = move |n| {
        together(threads, n, &|n| {
            for _ in 0..n {
                let place = take(&mut words.lock().expect("no panic"));
                words.lock().expect("no panic")[black_box(place) / 64] &= !(1 << (place % 64));
            }
        })
    };
    let slab = sharded_slab::Slab::<u64>::new();
    (0..taken).for_each(|n| assert!(slab.insert(n as u64).is_some()));
    let sharded = move |n| {
        together(threads, n, &|n| {
            for _ in 0..n {
                let key = slab.insert(1).expect("room");
                slab.remove(black_box(key));
            }
        })
    };
    let row = Row::new(name, Box::new(ours));
    // With more threads it is the machine's cache lines that are measured.
    let row = if threads == 1 { row.limit(60.0) } else { row };
    row.peer("mutex-bitmap", Target::None, Box::new(mutex))
        .peer("sharded-slab", Target::None, Box::new(sharded))
        .run(options);
}

/// The numbers of 1000 threads of another process; the figure is of one sweep.
fn sweep(options: &Options) {
    let peer = Peer::start(SLEEPERS);
    let monitor = Monitor::open(peer.pid()).expect("the peer has slots");
    let tasks = std::fs::read_dir(format!("/proc/{}/task", peer.pid())).expect("it is alive");
    let files: Vec<File> =
        tasks.filter_map(|task| File::open(task.ok()?.path().join("schedstat")).ok()).collect();
    let ours = each(|| {
        let sum: u64 = monitor.threads().map(|thread| thread.stats().run_delay).sum();
        black_box(sum);
    });
    let theirs = Box::new(|n| {
        let begin = Instant::now();
        for _ in 0..n {
            let mut text = [0; 64];
            for file in &files {
                let _ = black_box(file.read_at(&mut text, 0));
            }
        }
        begin.elapsed().as_nanos() as f64
    });
    Row::new("task_shared/sweep-1000", ours)
        .peer("schedstat-fds", Target::Faster(60.0), theirs)
        .run(options);
}
