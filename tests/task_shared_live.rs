//! The rseq area inside the slot: what readers see of it, and what must survive it.
//!
//! Each test runs in a process of its own, because a process is configured once.

mod common;
#[path = "common/slots.rs"]
mod slots;

use slots::{gettid, own, status_of, wait_until};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use unmerged::task_shared::{self, Config, Monitor, Thread, Whereabouts};

fn config() -> Config {
    Config::new().slot_size(256).rseq()
}

/// Executes the test again in a child; whether this is the child, and it should go on. Without
/// rseq there is nothing to go on with, but the error.
fn alone(test: &str) -> bool {
    if common::role().is_none() {
        common::succeed(common::child(test, "alone"));
        return false;
    }
    task_shared::configure(&config()).unwrap();
    let me = task_shared::current().unwrap();
    match me.register_rseq() {
        Err(error) if error.is_unsupported() => {
            common::missing("rseq", "register_rseq said that it is unsupported");
            false
        }
        registered => {
            registered.unwrap();
            me.unregister_rseq().unwrap();
            true
        }
    }
}

fn find(monitor: &Monitor, tid: u32) -> Thread<'_> {
    monitor.threads().find(|thread| thread.tid() == tid).unwrap()
}

fn getcpu() -> u32 {
    // SAFETY: asks for a number.
    unsafe { libc::sched_getcpu() }.cast_unsigned()
}

#[test]
fn readers_see_a_thread_move() {
    if !alone("readers_see_a_thread_move") {
        return;
    }
    let cpus = common::allowed();
    let (tell, told) = mpsc::channel();
    let (go, wait) = mpsc::channel::<u32>();
    let worker = thread::spawn(move || {
        let me = task_shared::current().unwrap();
        tell.send(gettid()).unwrap();
        wait.recv().unwrap();
        me.register_rseq().unwrap();
        me.register_rseq().unwrap();
        tell.send(0).unwrap();
        while let Ok(cpu) = wait.recv() {
            assert!(common::pin(cpu));
            assert_eq!(getcpu(), cpu, "libc asks the kernel");
            tell.send(cpu).unwrap();
        }
        me.unregister_rseq().unwrap();
        tell.send(getcpu()).unwrap();
    });
    let tid = told.recv().unwrap();
    let monitor = own();
    let seen = find(&monitor, tid);
    assert_eq!(seen.whereabouts(), None);
    go.send(0).unwrap();
    told.recv().unwrap();
    for &cpu in cpus.iter().cycle().take(20) {
        go.send(cpu).unwrap();
        assert_eq!(told.recv().unwrap(), cpu);
        let Whereabouts { cpu: here, node, concurrency_id, .. } = seen.whereabouts().unwrap();
        assert_eq!(here, cpu);
        assert!(node.is_none_or(|node| node < 1024));
        assert!(concurrency_id.is_none_or(|id| id < 8192));
    }
    drop(go);
    assert!(cpus.contains(&told.recv().unwrap()));
    assert_eq!(seen.whereabouts(), None);
    worker.join().unwrap();
}

/// A counter counts exactly in a thread whose registration is elsewhere, and before and after.
#[test]
fn percpu_counts_on() {
    if !alone("percpu_counts_on") {
        return;
    }
    static COUNTER: unmerged::percpu::Counter = unmerged::percpu::Counter::new();
    const N: u64 = 10_000;
    let count = || (0..N).for_each(|_| COUNTER.add(1));
    let work = || {
        count();
        let me = task_shared::current().unwrap();
        me.register_rseq().unwrap();
        count();
        me.unregister_rseq().unwrap();
        count();
    };
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(work);
        }
    });
    assert_eq!(COUNTER.sum(), 4 * 3 * N);
}

#[test]
fn a_fork_child_lives_and_its_parent_keeps_its_area() {
    if !alone("a_fork_child_lives_and_its_parent_keeps_its_area") {
        return;
    }
    let parent = || {
        let me = task_shared::current().unwrap();
        me.register_rseq().unwrap();
        let monitor = own();
        // SAFETY: the child runs on with its own thread and memory, and ends by _exit.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let body = || {
                assert!(me.register_rseq().is_err(), "the parent's slot");
                let mine = task_shared::current().unwrap();
                mine.register_rseq().unwrap();
                let monitor = own();
                let seen = find(&monitor, gettid());
                assert!(seen.whereabouts().is_some());
                for &cpu in &common::allowed() {
                    assert!(common::pin(cpu));
                    assert_eq!(seen.whereabouts().unwrap().cpu, cpu);
                }
                mine.unregister_rseq().unwrap();
                let _ = getcpu();
            };
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
            // SAFETY: ends the child.
            unsafe { libc::_exit(i32::from(outcome.is_err())) };
        }
        let seen = find(&monitor, gettid());
        assert!(seen.whereabouts().is_some(), "registered again");
        assert_eq!(status_of(pid), 0);
        // By vfork or posix_spawn, and by a fork of another thread.
        assert!(std::process::Command::new("/proc/self/exe").arg("--list").output().is_ok());
        let other = thread::spawn(|| {
            // SAFETY: ends at once.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                // SAFETY: ends the child.
                unsafe { libc::_exit(0) };
            }
            status_of(pid)
        });
        assert_eq!(other.join().unwrap(), 0);
        assert!(seen.whereabouts().is_some());
    };
    thread::spawn(parent).join().unwrap();
}

/// Around libc: no handler runs, and the child has inherited the registration.
#[test]
fn a_raw_clone_child_lives() {
    if !alone("a_raw_clone_child_lives") {
        return;
    }
    let me = task_shared::current().unwrap();
    me.register_rseq().unwrap();
    let pid = slots::raw_clone(0, || {
        for _ in 0..10 {
            thread::sleep(Duration::from_millis(1));
        }
        // From here on it writes to memory of its own.
        let mine = task_shared::current().unwrap();
        mine.register_rseq().unwrap();
        assert!(find(&own(), gettid()).whereabouts().is_some());
    });
    assert_eq!(status_of(pid), 0);
    let monitor = own();
    let seen = find(&monitor, gettid());
    for &cpu in &common::allowed() {
        assert!(common::pin(cpu));
        assert_eq!(seen.whereabouts().unwrap().cpu, cpu, "the parent has its word for itself");
    }
}

/// The area is taken back before the slot is given back: whoever gets the slot next has its
/// own words and no stranger's CPU in them.
#[test]
fn threads_end_registered() {
    if !alone("threads_end_registered") {
        return;
    }
    let monitor = own();
    for round in 0..200 {
        let work = move || {
            let me = task_shared::current().unwrap();
            me.set_user(u64::from(gettid())).unwrap();
            if round % 2 == 0 {
                me.register_rseq().unwrap();
            }
        };
        thread::spawn(work).join().unwrap();
    }
    let work = || {
        task_shared::current().unwrap().register_rseq().unwrap();
        // SAFETY: ends the thread with no destructor at all.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    };
    extern "C" fn raw(work: *mut libc::c_void) -> *mut libc::c_void {
        // SAFETY: the closure below, which lives until the join.
        let work = unsafe { &*work.cast::<fn()>() };
        work();
        std::ptr::null_mut()
    }
    let work: fn() = work;
    for _ in 0..40 {
        let mut id = 0;
        let argument = (&raw const work).cast_mut().cast();
        // SAFETY: the argument outlives the thread, which is joined.
        unsafe {
            assert_eq!(libc::pthread_create(&raw mut id, std::ptr::null(), raw, argument), 0);
            assert_eq!(libc::pthread_join(id, std::ptr::null_mut()), 0);
        }
    }
    assert!(monitor.threads().all(|thread| thread.tid() == gettid() || !thread.is_alive()));
    assert!(monitor.threads().all(|thread| thread.whereabouts().is_none()));
    // Slots of threads that died registered are taken again.
    let work = || {
        let me = task_shared::current().unwrap();
        me.register_rseq().unwrap();
        find(&own(), gettid()).whereabouts().unwrap();
    };
    (0..40).for_each(|_| thread::spawn(work).join().unwrap());
    let used = task_shared::stats().unwrap();
    assert!(used.reclaimed >= 30 && used.slots <= 64, "{used:?}");
}

#[test]
fn another_process_sees_it() {
    if common::role().is_none() {
        let mut player = common::Player::start(common::child("another_process_sees_it", "other"));
        if player.line() == "ready" {
            let monitor = Monitor::open(player.pid()).unwrap();
            let seen = monitor.threads().next().unwrap();
            let cpu = player.line().parse().unwrap();
            assert_eq!(seen.whereabouts().unwrap().cpu, cpu);
            player.nudge();
            let cpu = player.line().parse().unwrap();
            wait_until("the move", || seen.whereabouts().is_some_and(|now| now.cpu == cpu));
            player.kill();
            assert_eq!(seen.whereabouts(), None, "its last CPU is nowhere");
        }
        return;
    }
    if !alone("another_process_sees_it") {
        common::say("without rseq");
        return;
    }
    task_shared::current().unwrap().register_rseq().unwrap();
    let cpus = common::allowed();
    common::say("ready");
    for cpu in [cpus[0], *cpus.last().unwrap()] {
        common::pin(cpu);
        common::say(cpu);
        common::wait_for_nudge();
    }
}

#[test]
fn refused_without_room_or_without_rseq() {
    if common::role().is_none() {
        common::succeed(common::child("refused_without_room_or_without_rseq", "plain"));
        common::succeed(common::child("refused_without_room_or_without_rseq", "filtered"));
        return;
    }
    let me = if common::role().unwrap() == "plain" {
        task_shared::current().unwrap()
    } else {
        common::refuse(334, libc::ENOSYS);
        task_shared::configure(&config()).unwrap();
        task_shared::current().unwrap()
    };
    let error = me.register_rseq().unwrap_err();
    if common::role().unwrap() == "plain" {
        assert!(error.is_invalid(), "{error}");
    } else {
        // libc has registered before the filter came: it cannot be taken back.
        assert!(error.is_unsupported(), "{error}");
    }
    me.unregister_rseq().unwrap();
    me.set_user(1).unwrap();
}
