//! `task_shared` on the running kernel, by its public interface.
//!
//! Tests that need a process of their own run this very binary again: [`child`] is a test
//! that does nothing unless the environment names a part for it to play.

mod common;
#[path = "common/hostile.rs"]
mod hostile;
#[path = "common/slots.rs"]
mod slots;

use common::{Player, SetAtEnd, say, wait_for_nudge};
use hostile::{NAME, SEALS, SLOTS};
use rustix::fs::{SealFlags, ftruncate};
use slots::{alone, gettid, in_fork, own, raw_exit, wait_until};
use std::collections::BTreeSet;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use unmerged::task_shared::{self, Monitor, SchedStats};
use unmerged::{Error, Result};

/// What [`Slot::publish`](task_shared::Slot::publish) answers, or a visible skip.
fn publish() -> Option<SchedStats> {
    match task_shared::current().unwrap().publish() {
        Err(error) if error.is_unsupported() => {
            common::missing("schedstat", "publish was checked to say that it is unsupported");
            None
        }
        stats => Some(stats.unwrap()),
    }
}

/// Another process that plays a part of [`child`], once it is ready.
fn start(part: &str) -> Player {
    let mut player = Player::start(common::child("child", part));
    player.wait_for("ready");
    player
}

/// A table as the documentation describes it, of this process, with 32 slots.
fn table_bytes() -> Vec<u8> {
    let mut bytes = hostile::header(std::process::id(), 32);
    bytes.resize(SLOTS + 4096, 0);
    bytes
}

fn sealed_file(seals: SealFlags, bytes: &[u8]) -> OwnedFd {
    hostile::file(&[(0, bytes)], bytes.len(), seals)
}

/// Not a test: the other process of those below.
#[test]
fn child() {
    let Some(part) = common::role() else { return };
    match part.as_str() {
        "publisher" => {
            let ready = Barrier::new(4);
            thread::scope(|scope| {
                for n in 1..=3 {
                    let ready = &ready;
                    let named = thread::Builder::new().name(format!("worker {n}"));
                    let work = move || {
                        let me = task_shared::current().unwrap();
                        me.set_user(n).unwrap();
                        publish();
                        ready.wait();
                        loop {
                            thread::park();
                        }
                    };
                    named.spawn_scoped(scope, work).unwrap();
                }
                ready.wait();
                say("ready");
                wait_for_nudge();
                std::process::exit(0);
            });
        }
        "exec by a thread" => {
            task_shared::current().unwrap().set_user(7).unwrap();
            let other = thread::spawn(|| {
                task_shared::current().unwrap().set_user(8).unwrap();
                say("ready");
                loop {
                    thread::park();
                }
            });
            wait_for_nudge();
            assert!(!other.is_finished());
            panic!("{}", common::child("child", "without").exec());
        }
        "exec by the main thread" => {
            // The harness runs tests in threads; the main thread of a fork child is ours.
            in_fork(|| {
                task_shared::current().unwrap().set_user(7).unwrap();
                say(std::process::id());
                say("ready");
                wait_for_nudge();
                panic!("{}", common::child("child", "without").exec());
            });
        }
        "without" => {
            say("ready");
            wait_for_nudge();
            std::process::exit(0);
        }
        part => {
            let mut bytes = table_bytes();
            let mut put = |at: usize, value: u32| {
                bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
            };
            let mut seals = SEALS;
            match part {
                "magic" => put(0, 1),
                "version" => put(8, 1),
                "slot size" => put(16, 64),
                "owner" => put(20, 40),
                "count" => put(24, u32::MAX),
                "count beyond the file" => put(24, 64),
                "other pid" => put(12, 1),
                "no shrink seal" => seals = SealFlags::FUTURE_WRITE,
                "no write seal" => seals = SealFlags::SHRINK,
                "tiny" => bytes.truncate(16),
                "empty" => bytes.clear(),
                "random" => {
                    let mut random = std::fs::File::open("/dev/urandom").unwrap();
                    random.read_exact(&mut bytes).unwrap();
                }
                "random slots" => {
                    let mut random = std::fs::File::open("/dev/urandom").unwrap();
                    random.read_exact(&mut bytes[SLOTS..]).unwrap();
                }
                other => panic!("part {other}"),
            }
            let _file = sealed_file(seals, &bytes);
            say("ready");
            wait_for_nudge();
            std::process::exit(0);
        }
    }
}

#[test]
fn the_same_slot_at_every_call() {
    let me = task_shared::current().unwrap();
    for _ in 0..3 {
        let again = task_shared::current().unwrap();
        assert_eq!((again, again.address()), (me, me.address()));
    }
    assert_eq!(me.address() % 128, 0);
    assert_eq!(me.tid().unwrap(), gettid());
    assert_eq!(me.generation().unwrap() % 2, 1);
}

#[test]
fn threads_have_slots_of_their_own() {
    let barrier = Barrier::new(8);
    let addresses: BTreeSet<_> = thread::scope(|scope| {
        let work = || {
            let me = task_shared::current().unwrap();
            barrier.wait();
            me.address()
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(addresses.len(), 8);
}

#[test]
fn a_slot_is_reused_when_nothing_else_is_free_lowest_first_with_a_new_generation() {
    in_fork(|| {
        let one = || {
            thread::spawn(|| {
                let me = task_shared::current().unwrap();
                let fresh = (me.user().unwrap(), me.stats().unwrap());
                assert_eq!(fresh, (0, SchedStats::default()));
                me.set_user(5).unwrap();
                (me.address(), me.generation().unwrap())
            })
        };
        let first = task_shared::current().unwrap().address();
        let (lowest, generation) = one().join().unwrap();
        assert_eq!(lowest, first + 128);
        // The others of the first 32 go first.
        for place in 2..32 {
            assert_eq!(one().join().unwrap(), (first + 128 * place, generation));
        }
        assert_eq!(one().join().unwrap(), (lowest, generation + 4));
        assert_eq!(task_shared::stats().unwrap().slots, 32);
    });
}

#[test]
fn numbers_grow_and_agree_with_getrusage() {
    let me = task_shared::current().unwrap();
    let Some(first) = publish() else { return };
    assert_eq!(me.stats().unwrap(), first);
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(20) {
        std::hint::black_box(0);
    }
    thread::sleep(Duration::from_millis(20));
    let second = me.publish().unwrap();
    assert!(second.sum_exec_runtime > first.sum_exec_runtime);
    assert!(second.run_delay >= first.run_delay && second.pcount > first.pcount);
    assert!(second.off_cpu >= first.off_cpu + 20_000_000, "{first:?} {second:?}");

    // SAFETY: all zeros are a rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: room for a rusage on this stack.
    assert_eq!(unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) }, 0);
    let ns = |time: libc::timeval| time.tv_sec as u64 * 1_000_000_000 + time.tv_usec as u64 * 1000;
    let used = ns(usage.ru_utime) + ns(usage.ru_stime);
    // It was asked later, in whole microseconds for each of its two parts.
    assert!(used + 2000 >= second.sum_exec_runtime, "{used} {second:?}");
    assert!(me.publish().unwrap().sum_exec_runtime + 2000 >= used);

    let monitor = own();
    let seen = monitor.threads().find(|thread| thread.tid() == gettid()).unwrap();
    assert_eq!(seen.stats(), me.stats().unwrap());
    assert!(seen.updated() > 0 && seen.is_consistent());
}

#[test]
fn a_thread_in_the_eyes_of_a_reader() {
    let (tell, told) = mpsc::channel();
    let (go, wait) = mpsc::channel::<()>();
    let worker = thread::Builder::new().name("observed".into());
    let worker = worker.spawn(move || {
        let me = task_shared::current().unwrap();
        me.set_user(1).unwrap();
        tell.send((gettid(), me.generation().unwrap())).unwrap();
        wait.recv().unwrap();
        me.set_user(2).unwrap();
        tell.send((0, 0)).unwrap();
        wait.recv().unwrap();
    });
    let (tid, generation) = told.recv().unwrap();
    let monitor = own();
    let mut seen = monitor.threads().find(|thread| thread.tid() == tid).unwrap();
    assert!(seen.is_alive());
    assert_eq!((seen.name().as_ref(), seen.user()), ("observed", 1));
    assert_eq!(seen.generation(), generation);
    go.send(()).unwrap();
    told.recv().unwrap();
    assert_eq!(seen.user(), 1, "a snapshot");
    assert!(seen.refresh());
    assert_eq!(seen.user(), 2);
    go.send(()).unwrap();
    worker.unwrap().join().unwrap();
    assert!(!seen.is_alive() && !seen.refresh());
    assert_eq!((seen.tid(), seen.user()), (tid, 2), "its last numbers stay its own");
}

#[test]
fn raw_exit_is_seen_and_the_slot_comes_back() {
    in_fork(|| {
        task_shared::current().unwrap();
        static TID: AtomicU32 = AtomicU32::new(0);
        extern "C" fn body(_: *mut libc::c_void) -> *mut libc::c_void {
            task_shared::current().unwrap().set_user(77).unwrap();
            publish();
            TID.store(gettid(), Ordering::Release);
            raw_exit()
        }
        let die = || slots::c_thread(body);
        die();
        let monitor = own();
        let mut dead =
            monitor.threads().find(|thread| thread.tid() == TID.load(Ordering::Acquire)).unwrap();
        assert!(!dead.is_alive());
        assert_eq!(dead.user(), 77);
        let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        for _ in 0..40 {
            die();
        }
        // One page of slots was enough for 42 threads: the dead were reclaimed, and with
        // them the descriptors that they had kept.
        assert!(monitor.threads().count() <= 32);
        assert!(open() < 32 + 16, "{} descriptors", open());
        assert!(!dead.is_alive() && !dead.refresh());
        assert_eq!(dead.user(), 77);
    });
}

#[test]
fn another_process_and_its_death() {
    let mut player = start("publisher");
    let monitor = Monitor::open(player.pid()).unwrap();
    let mut seen: Vec<_> = monitor.threads().filter(|thread| thread.user() != 0).collect();
    seen.sort_by_key(|thread| thread.user());
    assert_eq!(seen.len(), 3);
    for (n, thread) in (1..).zip(&seen) {
        assert!(thread.is_alive() && thread.is_consistent());
        assert_eq!((thread.user(), thread.name().into_owned()), (n, format!("worker {n}")));
        let path = format!("/proc/{}/task/{}/comm", player.pid(), thread.tid());
        assert_eq!(std::fs::read_to_string(path).unwrap().trim(), thread.name());
        let counts = thread.stats().pcount > 0 && thread.stats().sum_exec_runtime > 0;
        assert!(counts || thread.updated() == 0);
    }
    player.kill();
    assert!(monitor.threads().count() >= 3, "the last numbers stay");
    assert!(monitor.threads().all(|thread| !thread.is_alive()) && !monitor.is_running());
    assert!(seen.iter().all(|thread| !thread.is_alive()));
    assert_eq!(Monitor::open(player.pid()).unwrap_err().raw_os_error(), libc::ESRCH);
}

#[test]
fn exec_by_the_main_thread_ends_the_slots() {
    let mut player = Player::start(common::child("child", "exec by the main thread"));
    let pid = player.line().parse().unwrap();
    player.wait_for("ready");
    let monitor = Monitor::open(pid).unwrap();
    let seen = monitor.threads().find(|thread| thread.user() == 7).unwrap();
    assert!(seen.is_alive() && monitor.is_running());
    player.nudge();
    player.wait_for("ready");
    assert!(!seen.is_alive() && !monitor.is_running());
    assert_eq!(Monitor::open(pid).unwrap_err().raw_os_error(), libc::ENOENT);
}

#[test]
fn exec_by_another_thread_ends_the_others_and_the_program() {
    let mut player = start("exec by a thread");
    let monitor = Monitor::open(player.pid()).unwrap();
    let other = monitor.threads().find(|thread| thread.user() == 8).unwrap();
    assert!(other.is_alive() && monitor.is_running());
    player.nudge();
    player.wait_for("ready");
    assert!(!other.is_alive() && !monitor.is_running());
    assert_eq!(Monitor::open(player.pid()).unwrap_err().raw_os_error(), libc::ENOENT);
}

/// In a child that inherited `parent`'s slot: a table of its own, numbers of its own.
fn check_child(parent: task_shared::Slot) {
    let stale = |error: Error| assert_eq!(error.raw_os_error(), libc::ESTALE, "{error}");
    stale(parent.publish().unwrap_err());
    stale(parent.set_user(9).unwrap_err());
    stale(parent.user().unwrap_err());
    let files = || {
        let links = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| {
            std::fs::read_link(entry.ok()?.path()).ok()?.into_os_string().into_string().ok()
        });
        let links: Vec<_> = links.collect();
        let count = |word: &str| links.iter().filter(|link| link.contains(word)).count();
        (count(NAME), count("/schedstat"))
    };
    assert_eq!(Monitor::open(std::process::id()).unwrap_err().raw_os_error(), libc::ENOENT);
    let me = task_shared::current().unwrap();
    // The table, and the file in which readers say that they wait.
    assert_eq!(files(), (2, 0), "the inherited descriptors are closed");
    assert_eq!(me.tid().unwrap(), gettid());
    assert_eq!((me.user().unwrap(), me.generation().unwrap()), (0, 5));
    me.set_user(2).unwrap();
    publish();
    stale(parent.set_user(9).unwrap_err());
    let monitor = own();
    let threads: Vec<_> = monitor.threads().collect();
    assert_eq!(threads.len(), 1);
    assert!(threads[0].is_alive() && threads[0].tid() == gettid() && threads[0].user() == 2);
    // The robust list is whole: a second lock on it, and a thread.
    let other = thread::spawn(|| task_shared::current().unwrap().address());
    assert_eq!(other.join().unwrap(), me.address() + 128);
}

#[test]
fn a_fork_child_has_a_table_of_its_own() {
    // A child has the descriptors of other tests' monitors too.
    if !alone("a_fork_child_has_a_table_of_its_own") {
        return;
    }
    // In a thread, so that the user word is nobody else's.
    let parent = || {
        let me = task_shared::current().unwrap();
        me.set_user(1).unwrap();
        publish();
        let address = me.address();
        in_fork(|| check_child(me));
        assert_eq!(me.user().unwrap(), 1);
        assert_eq!(task_shared::current().unwrap().address(), address);
    };
    thread::spawn(parent).join().unwrap();
}

/// A child that libc does not know about, whose parent has but one thread: the test's own
/// process is not such a one, a fork of it is.
#[test]
fn a_raw_clone_child_has_a_table_of_its_own_and_dies_visibly() {
    // A child has the descriptors of other tests' monitors too.
    if !alone("a_raw_clone_child_has_a_table_of_its_own_and_dies_visibly") {
        return;
    }
    in_fork(|| {
        let me = task_shared::current().unwrap();
        publish();
        let pid = slots::raw_clone(0, || {
            check_child(me);
            // Until the parent has seen it.
            loop {
                thread::sleep(Duration::from_secs(1));
            }
        });
        let child = pid.cast_unsigned();
        let mut found = None;
        wait_until("a slot of the child", || {
            let open = Monitor::open(child).ok();
            found = open.filter(|monitor| monitor.threads().any(|thread| thread.user() == 2));
            found.is_some()
        });
        let monitor = found.unwrap();
        let seen = monitor.threads().find(|thread| thread.user() == 2).unwrap();
        assert!(seen.tid() == child && seen.is_alive());
        // SAFETY: our own child.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
        let mut status = 0;
        // SAFETY: our own child, a word on this stack.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL);
        assert!(!seen.is_alive());
    });
}

#[test]
fn after_the_slot_was_given_back() {
    struct Late(mpsc::Sender<(Result<u32>, Result<()>)>, Option<task_shared::Slot>);
    impl Drop for Late {
        fn drop(&mut self) {
            let again = task_shared::current().map(|me| me.address() as u32);
            let _ = self.0.send((again, self.1.unwrap().set_user(1)));
        }
    }
    thread_local! {
        static LATE: std::cell::RefCell<Option<Late>> = const { std::cell::RefCell::new(None) };
    }
    let (tell, told) = mpsc::channel();
    let worker = thread::spawn(move || {
        // Used first, so destroyed last.
        LATE.set(Some(Late(tell, None)));
        let me = task_shared::current().unwrap();
        LATE.with_borrow_mut(|late| late.as_mut().unwrap().1 = Some(me));
    });
    worker.join().unwrap();
    let (again, set) = told.recv().unwrap();
    assert_eq!(again.unwrap_err().raw_os_error(), libc::ESHUTDOWN);
    assert_eq!(set.unwrap_err().raw_os_error(), libc::ESTALE);
}

#[test]
fn growth_under_a_reader() {
    in_fork(|| {
        task_shared::current().unwrap();
        let monitor = own();
        let done = AtomicBool::new(false);
        let all = Barrier::new(301);
        thread::scope(|scope| {
            let finish = SetAtEnd(&done);
            let reader = scope.spawn(|| {
                let mut most = 0;
                while !done.load(Ordering::Relaxed) {
                    let mut count = 0;
                    for thread in monitor.threads() {
                        count += 1;
                        let tid = u64::from(thread.tid());
                        assert!(thread.user() == tid || thread.user() == 0, "{thread:?}");
                    }
                    most = most.max(count);
                }
                most
            });
            let work = || {
                let me = task_shared::current().unwrap();
                me.set_user(u64::from(gettid())).unwrap();
                all.wait();
                all.wait();
            };
            let threads: Vec<_> = (0..300).map(|_| scope.spawn(work)).collect();
            all.wait();
            let tids: BTreeSet<_> = monitor.threads().map(|thread| thread.tid()).collect();
            assert_eq!(tids.len(), 301);
            assert!(monitor.threads().all(|thread| thread.is_alive()));
            all.wait();
            for thread in threads {
                thread.join().unwrap();
            }
            drop(finish);
            assert!(reader.join().unwrap() <= 301);
        });
        assert_eq!(monitor.threads().count(), 1);
    });
}

#[test]
fn reuse_storm_never_mixes_threads() {
    let done = AtomicBool::new(false);
    let monitor = {
        task_shared::current().unwrap();
        own()
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            let finish = SetAtEnd(&done);
            for _ in 0..2000 {
                let work = || {
                    let me = task_shared::current().unwrap();
                    me.set_user(u64::from(gettid()) << 32).unwrap();
                };
                thread::spawn(work).join().unwrap();
            }
            drop(finish);
        });
        while !done.load(Ordering::Relaxed) {
            for mut thread in monitor.threads() {
                let (tid, generation) = (thread.tid(), thread.generation());
                for _ in 0..2 {
                    let user = thread.user();
                    let own = user >> 32 == 0 || user == u64::from(tid) << 32;
                    assert!(own && thread.tid() == tid, "{thread:?}");
                    assert_eq!(thread.generation(), generation);
                    thread.refresh();
                }
            }
        }
    });
}

#[test]
fn nobody_to_read() {
    for pid in [0, i32::MAX as u32, u32::MAX] {
        let error = Monitor::open(pid).unwrap_err();
        assert_eq!(error.raw_os_error(), libc::ESRCH, "{error}");
        assert!(error.to_string().contains(&pid.to_string()), "{error}");
    }
    let player = start("without");
    let error = Monitor::open(player.pid()).unwrap_err();
    assert_eq!(error.raw_os_error(), libc::ENOENT, "{error}");
    if !rustix::process::geteuid().is_root() {
        let error = Monitor::open(1).unwrap_err();
        assert!(error.is_permission_denied(), "{error}");
    }
}

#[test]
fn hostile_files_give_typed_errors() {
    for (part, errno) in [
        ("magic", libc::EBADMSG),
        ("version", libc::EPROTO),
        ("slot size", libc::EBADMSG),
        ("owner", libc::EBADMSG),
        ("count", libc::EBADMSG),
        ("count beyond the file", libc::EBADMSG),
        ("other pid", libc::ENOENT),
        ("no shrink seal", libc::EPERM),
        ("no write seal", libc::EPERM),
        ("tiny", libc::EBADMSG),
        ("empty", libc::EBADMSG),
        ("random", libc::EBADMSG),
    ] {
        let player = start(part);
        let error = Monitor::open(player.pid()).unwrap_err();
        assert_eq!(error.raw_os_error(), errno, "{part}: {error}");
    }
}

/// The header is right but for the process's id, which only that process knows; so this
/// process plays the hostile one for itself, in a fork.
#[test]
fn hostile_slots_do_no_harm() {
    in_fork(|| {
        let mut bytes = table_bytes();
        std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut bytes[SLOTS..]).unwrap();
        // Odd generations, so that they are looked at; odd sequences among them.
        for slot in 0..32 {
            bytes[SLOTS + 128 * slot] |= 1;
        }
        let file = sealed_file(SEALS, &bytes);
        let monitor = own();
        let mut count = 0;
        for mut thread in monitor.threads() {
            count += 1;
            let _ = (thread.is_alive(), thread.name(), thread.stats(), format!("{thread:?}"));
            assert!(thread.refresh());
        }
        assert_eq!(count, 32);
        // It may still grow, and does, by what is no whole number of slots.
        ftruncate(&file, SLOTS as u64 + 4096 + 100).unwrap();
        assert_eq!(monitor.threads().count(), 32);
    });
}
