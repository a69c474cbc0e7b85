//! The task_shared rows of publishing, of reading one thread, and of the sampler.

use crate::harness::{Options, Row, Target, each, pinned};
use crate::peer::Peer;
use crate::task_shared::{SLEEPERS, THREADS};
use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::sync::Barrier;
use std::time::{Duration, Instant};
use unmerged::task_shared::{self, Monitor, Sampler};

pub(crate) fn rows(options: &Options) {
    pinned(0, || {
        if options.wants("task_shared/publish") {
            publish(options);
        }
        if options.wants("task_shared/read-own") {
            read(options, "task_shared/read-own", std::process::id());
        }
        if options.wants("task_shared/read-remote") {
            let peer = Peer::start(SLEEPERS);
            read(options, "task_shared/read-remote", peer.pid());
        }
        if options.wants("task_shared/sampler-1000") {
            sampler(options);
        }
    });
}

/// All fields of the calling thread, against calls that tell some of them.
fn publish(options: &Options) {
    if task_shared::current().and_then(|slot| slot.publish()).is_err() {
        return; // a kernel without schedstat
    }
    let ours = each(|| {
        // The slot is this thread's: each arm runs on the one that made the row.
        let _ = black_box(task_shared::current().and_then(|slot| slot.publish()));
    });
    let usage = each(|| {
        let mut usage = std::mem::MaybeUninit::<libc::rusage>::uninit();
        // SAFETY: room for a rusage.
        black_box(unsafe { libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()) });
    });
    let clock = each(|| {
        black_box(rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime));
    });
    let file = File::open("/proc/thread-self/schedstat").expect("it was opened before");
    Row::new("task_shared/publish", ours)
        .peer("getrusage", Target::None, usage)
        .peer("thread-cputime", Target::None, clock)
        .peer("schedstat-fd", Target::None, each(move || read_at(&file)))
        .run(options);
}

fn read_at(file: &File) {
    let mut text = [0; 64];
    let _ = black_box(file.read_at(&mut text, 0));
}

/// The numbers of one thread of a process, this one or another.
fn read(options: &Options, name: &'static str, pid: u32) {
    let _ = task_shared::current().and_then(|slot| slot.publish());
    let monitor = Monitor::open(pid).expect("it has slots");
    let mut thread = monitor.threads().next().expect("a thread has a slot");
    let path = format!("/proc/{pid}/task/{}/schedstat", thread.tid());
    let Ok(file) = File::open(&path) else { return };
    let ours = Box::new(move |n| {
        let begin = Instant::now();
        for _ in 0..n {
            black_box((thread.refresh(), thread.stats()));
        }
        begin.elapsed().as_nanos() as f64
    });
    Row::new(name, ours)
        .peer("schedstat-fd", Target::None, each(move || read_at(&file)))
        .peer(
            "open-read-close",
            Target::None,
            each(move || {
                let _ = black_box(std::fs::read(&path));
            }),
        )
        .run(options);
}

/// Nanoseconds of CPU of one round of a sampler over 1000 threads, ten times in a second: at
/// most 1 % of one CPU is a millisecond for each.
fn sampler(options: &Options) {
    let (ready, end) = (Barrier::new(THREADS + 1), Barrier::new(THREADS + 1));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let _slot = task_shared::current().expect("a slot is free");
                ready.wait();
                end.wait();
            });
        }
        ready.wait();
        if let Ok(sampler) = Sampler::builder().rate(10.0).budget(0.5).start() {
            let rounds = if options.is_measured() { 3 } else { 1 };
            let ours = Box::new(|n: u64| {
                let begin = sampler.stats();
                while sampler.stats().rounds < begin.rounds + rounds {
                    std::thread::sleep(Duration::from_millis(5));
                }
                let now = sampler.stats();
                let each = (now.cpu_time - begin.cpu_time) / (now.rounds - begin.rounds);
                (each * n) as f64
            });
            Row::new("task_shared/sampler-1000", ours).limit(1e6).run(options);
        }
        end.wait();
    });
}
