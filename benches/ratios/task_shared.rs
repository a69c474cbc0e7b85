//! The task_shared rows.

use crate::harness::{Options, Row, Target, each, pinned};
use crate::peer::Peer;
use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::sync::Barrier;
use std::time::Instant;
use unmerged::task_shared::{self, Monitor};

/// The role of a process whose threads all have a slot and sleep.
pub(crate) const SLEEPERS: &str = "sleepers";
const THREADS: usize = 1000;

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
        if options.wants("task_shared/sweep-1000") {
            sweep(options);
        }
    });
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
