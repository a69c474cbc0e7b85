//! Reading slots, waiting for threads, and the sampler: `task_shared` from outside.

mod common;
#[path = "common/hostile.rs"]
mod hostile;
#[path = "common/slots.rs"]
mod slots;

use common::{Player, SetAtEnd, say, wait_for_nudge};
use hostile::{Hostile, SEALS, SLOTS};
use proptest::prelude::*;
use rustix::fs::{MemfdFlags, SealFlags, ftruncate};
use slots::{alone, gettid, own, raw_exit};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use unmerged::futex2::Deadline;
use unmerged::task_shared::{self, Handle, Monitor, Sampler, SamplerBuilder};

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

fn start(part: &str) -> Player {
    let mut player = Player::start(common::child("child", part));
    player.wait_for("ready");
    player
}

/// Started, or a visible skip.
fn sampler(builder: SamplerBuilder) -> Option<Sampler> {
    match builder.start() {
        Err(error) if error.is_unsupported() => {
            common::missing("schedstat", "a sampler was checked to say that it is unsupported");
            None
        }
        sampler => Some(sampler.unwrap()),
    }
}

/// A thread that does nothing until it is let go, and its id.
struct Idler {
    tid: u32,
    thread: thread::JoinHandle<()>,
    go: mpsc::Sender<()>,
}

impl Idler {
    fn start(name: &str, with_slot: bool) -> Self {
        let (tell, told) = mpsc::channel();
        let (go, wait) = mpsc::channel();
        let body = move || {
            if with_slot {
                task_shared::current().unwrap();
            }
            tell.send(gettid()).unwrap();
            let _ = wait.recv();
        };
        let thread = thread::Builder::new().name(name.into()).spawn(body).unwrap();
        Self { tid: told.recv().unwrap(), thread, go }
    }

    fn end(self) {
        drop(self.go);
        self.thread.join().unwrap();
    }
}

/// Not a test: the other process of those below.
#[test]
fn child() {
    let Some(part) = common::role() else { return };
    task_shared::current().unwrap().set_user(7).unwrap();
    let ready = Barrier::new(2);
    thread::scope(|scope| {
        scope.spawn(|| {
            let me = task_shared::current().unwrap();
            me.set_user(8).unwrap();
            ready.wait();
            loop {
                if part == "busy" {
                    let _ = me.publish_words(1, &[1, 2, 3]);
                } else {
                    thread::park();
                }
            }
        });
        ready.wait();
        match part.as_str() {
            // SAFETY: a flag of this process.
            "not dumpable" => unsafe { assert_eq!(libc::prctl(libc::PR_SET_DUMPABLE, 0), 0) },
            "busy" | "waits" | "exec" => {}
            other => panic!("part {other}"),
        }
        say("ready");
        wait_for_nudge();
        if part == "exec" {
            panic!("{}", std::process::Command::new("/proc/self/exe").arg("--list").exec());
        }
        std::process::exit(0);
    });
}

#[test]
fn a_handle_is_of_one_thread() {
    if !alone("a_handle_is_of_one_thread") {
        return;
    }
    task_shared::current().unwrap();
    let monitor = own();
    let idler = Idler::start("first", true);
    let find = |tid| monitor.threads().find(|thread| thread.tid() == tid).unwrap().handle();
    let handle = find(idler.tid);
    assert_eq!(monitor.thread(handle).unwrap().name(), "first");
    idler.end();
    let gone = || {
        let error = monitor.thread(handle).map(drop).unwrap_err();
        assert_eq!(error.raw_os_error(), libc::ESTALE, "{error}");
    };
    gone();
    // The next threads get the slot in the end, and are not taken for it.
    for _ in 0..3 {
        let next = Idler::start("next", true);
        gone();
        assert!(monitor.thread(find(next.tid)).unwrap().is_alive());
        next.end();
    }
}

/// Threads are born and die at full speed; no reading mixes two of them.
#[test]
fn storm_of_births() {
    if !alone("storm_of_births") {
        return;
    }
    task_shared::current().unwrap();
    let (monitor, done, born) = (own(), AtomicBool::new(false), AtomicU64::new(0));
    let end = Instant::now() + common::stress(Duration::from_millis(700));
    let mut seen: BTreeMap<Handle, u32> = BTreeMap::new();
    thread::scope(|scope| {
        let finish = SetAtEnd(&done);
        for _ in 0..3 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let born = &born;
                    let body = move || {
                        let me = task_shared::current().unwrap();
                        let tid = u64::from(gettid());
                        // Seven words of one moment, all of this thread.
                        me.publish_words(0, &[tid; 7]).unwrap();
                        born.fetch_add(1, Ordering::Relaxed);
                        me.publish_words(0, &[tid; 7]).unwrap();
                    };
                    thread::scope(|scope| scope.spawn(body).join().unwrap());
                }
            });
        }
        // A slow machine sees few.
        while Instant::now() < end || seen.len() < 2 {
            for mut thread in monitor.threads() {
                let (tid, handle) = (thread.tid(), thread.handle());
                assert_eq!(*seen.entry(handle).or_insert(tid), tid, "{thread:?}");
                for _ in 0..2 {
                    let mut words = [0; 7];
                    let of_one_moment = thread.copy_words(&mut words) == Some(true);
                    let mixed = words.iter().any(|&word| word != words[0]);
                    assert!(!of_one_moment || !mixed, "{words:?} {thread:?}");
                    if of_one_moment {
                        assert!(words[0] == 0 || words[0] == u64::from(tid), "{words:?}");
                    }
                    thread.refresh();
                    assert_eq!((thread.tid(), thread.handle()), (tid, handle));
                }
            }
        }
        drop(finish);
    });
    assert!(monitor.births() > born.load(Ordering::Relaxed));
    assert_eq!(monitor.births(), monitor.deaths() + 1);
    assert_eq!(monitor.threads().count(), 1);
    assert!(seen.len() > 1);
}

#[test]
fn news_of_births_and_deaths() {
    if !alone("news_of_births_and_deaths") {
        return;
    }
    task_shared::current().unwrap();
    let monitor = own();
    let nothing = monitor.wait(Deadline::after(Duration::ZERO)).unwrap_err();
    assert!(nothing.is_timed_out());
    // What came before the call.
    let idler = Idler::start("came", true);
    monitor.wait(soon()).unwrap();
    assert!(monitor.wait(Deadline::after(Duration::ZERO)).is_err());
    idler.end();
    monitor.wait(soon()).unwrap();
    // What comes while it sleeps.
    thread::scope(|scope| {
        for _ in 0..20 {
            let waiter = scope.spawn(|| monitor.wait(soon()));
            thread::sleep(Duration::from_micros(300));
            let idler = Idler::start("came", true);
            waiter.join().unwrap().unwrap();
            idler.end();
            monitor.wait(soon()).unwrap();
        }
    });
    // What nobody announces.
    extern "C" fn vanish(_: *mut libc::c_void) -> *mut libc::c_void {
        task_shared::current().unwrap();
        raw_exit()
    }
    let mut id = 0;
    let (attributes, argument) = (std::ptr::null(), std::ptr::null_mut());
    // SAFETY: a thread without an argument.
    assert_eq!(unsafe { libc::pthread_create(&raw mut id, attributes, vanish, argument) }, 0);
    while monitor.threads().filter(|thread| !thread.is_alive()).count() == 0 {
        let _ = monitor.wait(soon());
    }
    // SAFETY: created above, joined once.
    assert_eq!(unsafe { libc::pthread_join(id, std::ptr::null_mut()) }, 0);
}

#[test]
fn news_of_the_end_of_a_process() {
    for part in ["waits", "exec"] {
        let mut player = start(part);
        let monitor = Monitor::open(player.pid()).unwrap();
        let file = format!("/proc/{}/fd", player.pid());
        let fd = std::fs::read_dir(file).unwrap().map(|entry| entry.unwrap().path()).find(|path| {
            let link = std::fs::read_link(path).unwrap_or_default();
            link.to_string_lossy().trim_end_matches(" (deleted)").ends_with(hostile::NAME)
        });
        let handed = Monitor::from_fd(File::open(fd.unwrap()).unwrap().into()).unwrap();
        assert_eq!(handed.pid(), player.pid());
        assert!(handed.is_running() && monitor.is_running());
        assert!(
            monitor.wait(Deadline::after(Duration::from_millis(1))).unwrap_err().is_timed_out()
        );
        if part == "exec" {
            player.nudge()
        } else {
            player.kill()
        }
        // An execve by another thread than the main one is not marked in that thread's slot;
        // who was handed the file cannot know.
        let watched = if part == "exec" { &[&monitor][..] } else { &[&monitor, &handed] };
        for monitor in watched {
            // The threads of a process do not all die at once.
            let end = loop {
                if let Err(error) = monitor.wait(soon()) {
                    break error;
                }
            };
            assert_eq!(end.raw_os_error(), libc::ESRCH, "{part}: {end}");
            assert!(!monitor.is_running());
        }
        assert!(monitor.threads().any(|thread| thread.user() == 8), "the last numbers stay");
    }
}

#[test]
fn a_process_that_is_stopped_is_read() {
    let mut player = start("busy");
    let monitor = Monitor::open(player.pid()).unwrap();
    let busy = monitor.threads().find(|thread| thread.user() == 8).unwrap();
    let pid = player.pid().cast_signed();
    for _ in 0..20 {
        // SAFETY: our own child.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGSTOP) }, 0);
        let mut words = [0; 4];
        // It may have been stopped in the middle: then we are told, and not kept waiting.
        let whole = busy.copy_words(&mut words).unwrap();
        assert!(!whole || words == [8, 1, 2, 3] || words == [8, 0, 0, 0], "{words:?}");
        assert!(busy.is_alive() && monitor.is_running());
        // SAFETY: our own child.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGCONT) }, 0);
    }
    player.kill();
    let mut words = [0; 4];
    assert!(busy.copy_words(&mut words).is_some() && !busy.is_alive() && words[0] == 8);
}

#[test]
fn who_may_not_look() {
    let player = start("not dumpable");
    if rustix::process::geteuid().is_root() {
        assert!(Monitor::open(player.pid()).is_ok());
    } else {
        let error = Monitor::open(player.pid()).unwrap_err();
        assert!(error.is_permission_denied(), "{error}");
        assert!(error.to_string().contains(&player.pid().to_string()), "{error}");
    }
}

/// The number of a dead process goes to another one: a monitor stays with the dead.
#[test]
fn a_process_id_that_comes_again() {
    const LAST: &str = "/proc/sys/kernel/ns_last_pid";
    let mut player = start("waits");
    let pid = player.pid();
    let monitor = Monitor::open(pid).unwrap();
    player.kill();
    let mut again = None;
    for _ in 0..50 {
        if std::fs::write(LAST, (pid - 1).to_string()).is_err() {
            return common::missing("ns-last-pid", "the end alone was checked, elsewhere");
        }
        let other = start("waits");
        if other.pid() == pid {
            again = Some(other);
            break;
        }
    }
    // Others on this machine may be faster every time.
    let Some(_again) = again else { return common::missing("pid-reuse", "ids were taken") };
    assert!(!monitor.is_running() && monitor.threads().all(|thread| !thread.is_alive()));
    let now = Monitor::open(pid).unwrap();
    assert!(now.is_running() && now.threads().any(|thread| thread.is_alive()));
}

#[test]
fn a_file_that_is_no_table() {
    let open = |file: OwnedFd| Monitor::from_fd(file).map(drop).unwrap_err();
    let header = hostile::header(1, 32);
    let size = SLOTS + 32 * 128;
    let made = |header: &[u8], size, seals| hostile::file(&[(0, header)], size, seals);
    for (at, value, errno) in [
        (0, 1, libc::EBADMSG),
        (8, 1, libc::EPROTO),
        (8, 3, libc::EPROTO),
        (16, 64, libc::EBADMSG),
        (16, u32::MAX, libc::EBADMSG),
        (20, 40, libc::EBADMSG),
        (24, 33, libc::EBADMSG),
        (24, u32::MAX, libc::EBADMSG),
        (28, 0, libc::EBADMSG),
        (32, u32::MAX, libc::EBADMSG),
        (36, 64, libc::EBADMSG),
        (40, 8, libc::EBADMSG),
        (44, 100, libc::EBADMSG),
        (1024 + 48, 9, libc::EBADMSG),
        (1024 + 52, 7, libc::EBADMSG),
    ] {
        let mut header = header.clone();
        header[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        let error = open(made(&header, size, SEALS));
        assert_eq!(error.raw_os_error(), errno, "{at}: {error}");
    }
    let errno = |file| open(file).raw_os_error();
    assert_eq!(errno(made(&header, size, SealFlags::SHRINK)), libc::EPERM);
    assert_eq!(errno(made(&header, size, SealFlags::FUTURE_WRITE)), libc::EPERM);
    assert_eq!(errno(made(&[], size, SEALS)), libc::ENOENT, "not finished");
    assert_eq!(errno(made(&header[..100], 100, SEALS)), libc::EBADMSG);
    assert_eq!(errno(File::open("/proc/self/stat").unwrap().into()), libc::EPERM);
    hostile::walk(&Monitor::from_fd(made(&header, size, SEALS)).unwrap());
}

/// What the other side changes while it is read.
#[test]
fn a_table_that_changes_under_the_reader() {
    let header = hostile::header(1, 32);
    let seals = SealFlags::SHRINK;
    let file = hostile::file(&[(0, &header)], SLOTS + 32 * 128, seals);
    let page = common::map(&file, SLOTS + 64 * 128).as_ptr().expose_provenance();
    // The mapping stays writable; only new ones are refused.
    rustix::fs::fcntl_add_seals(&file, SealFlags::FUTURE_WRITE).unwrap();
    let monitor = Monitor::from_fd(file.try_clone().unwrap()).unwrap();
    let put = |at: usize, value: u32| {
        // SAFETY: inside the mapping, and inside the file by now.
        unsafe { std::ptr::with_exposed_provenance_mut::<u32>(page + at).write_volatile(value) };
    };
    // More slots than the file has room for, and then a file that is no whole number of slots.
    put(24, u32::MAX);
    put(SLOTS + 128 * 31, 1);
    assert_eq!(monitor.threads().count(), 1);
    ftruncate(&file, (SLOTS + 33 * 128 + 100) as u64).unwrap();
    put(SLOTS + 128 * 32, 5);
    assert_eq!(monitor.threads().count(), 2);
    // Of an event word that never rests comes no hang.
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let finish = SetAtEnd(&done);
        scope.spawn(|| {
            for n in 0.. {
                put(64, n);
                if done.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        let _ = monitor.wait(Deadline::after(Duration::from_millis(50)));
        drop(finish);
    });
}

fn any_hostile() -> impl Strategy<Value = Hostile> {
    let header = proptest::collection::vec((0..1200_u16, any::<u8>()), 0..3);
    let bytes = || proptest::collection::vec(any::<u8>(), 0..1024);
    (header, bytes(), bytes(), 0..200_u16, -200..2000_i16).prop_map(
        |(header, owners, slots, committed, size)| Hostile {
            header,
            owners,
            slots,
            committed,
            size,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the file says: an error, or a walk to the end.
    #[test]
    fn any_bytes(hostile in any_hostile()) {
        hostile::read(&hostile);
    }
}

/// A process of no rights can have a lease on a file: who opens it for writing waits for the
/// process to give it up, 45 seconds unless it does.
#[test]
fn a_lease_on_the_flag_keeps_nobody_waiting() {
    const FLAG: &str = "unmerged.task_shared.waiting";
    /// Two of `linux/fcntl.h`.
    const F_SETLEASE: i32 = 1024;
    const F_RDLCK: i32 = 0;
    if !alone("a_lease_on_the_flag_keeps_nobody_waiting") {
        return;
    }
    // SAFETY: ignores a signal, by which the kernel asks for the lease.
    unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
    let writable = rustix::fs::memfd_create(FLAG, MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&writable, 4096).unwrap();
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&writable, seals).unwrap();
    let flag = File::open(format!("/proc/self/fd/{}", writable.as_raw_fd())).unwrap();
    drop(writable);
    // SAFETY: a descriptor of ours.
    assert_eq!(unsafe { libc::fcntl(flag.as_raw_fd(), F_SETLEASE, F_RDLCK) }, 0);
    let mut header = hostile::header(std::process::id(), 32);
    header[48..52].copy_from_slice(&(flag.as_raw_fd() as u32 + 1).to_ne_bytes());
    header[56..64].copy_from_slice(&flag.metadata().unwrap().ino().to_ne_bytes());
    let _table = hostile::file(&[(0, &header)], SLOTS + 32 * 128, SEALS);
    let begin = Instant::now();
    let monitor = own();
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
    hostile::walk(&monitor);
}

#[test]
fn random_slots() {
    let mut bytes = vec![0; 64 * 128];
    File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    for slot in bytes.chunks_mut(128) {
        slot[0] |= 1;
    }
    let (owners, slots) = (bytes.clone(), bytes);
    hostile::read(&Hostile { owners, slots, committed: 64, ..Hostile::default() });
}

#[test]
fn a_sampler_publishes_for_others() {
    if !alone("a_sampler_publishes_for_others") {
        return;
    }
    let with = Idler::start("with a slot", true);
    let without = Idler::start("without", false);
    let unwanted = Idler::start("unwanted", true);
    let builder = Sampler::builder().rate(200.0).budget(1.0).all_threads(true);
    let Some(sampler) = sampler(builder.only(|_, name| name != "unwanted")) else { return };
    let second = Sampler::builder().start().unwrap_err();
    assert_eq!(second.raw_os_error(), libc::EBUSY);
    sampler.wait_for_round(Duration::from_secs(60)).unwrap();
    let monitor = own();
    let find = |tid| monitor.threads().find(|thread| thread.tid() == tid);
    let (seen, proxy) = (find(with.tid).unwrap(), find(without.tid).unwrap());
    for thread in [&seen, &proxy] {
        assert!(thread.is_alive() && thread.updated() > 0, "{thread:?}");
        assert!(thread.stats().sum_exec_runtime > 0 && thread.stats().pcount > 0, "{thread:?}");
    }
    assert!(!seen.is_sampled() && proxy.is_sampled());
    assert_eq!(proxy.name(), "without");
    assert_eq!(find(unwanted.tid).unwrap().updated(), 0);
    // They sleep: only the time off the CPU goes on.
    let (before, off) = (seen.stats(), seen.stats().off_cpu);
    thread::sleep(Duration::from_millis(30));
    sampler.wait_for_round(Duration::from_secs(60)).unwrap();
    let now = find(with.tid).unwrap();
    assert_eq!(now.stats().pcount, before.pcount);
    assert!(now.stats().off_cpu >= off + 30_000_000, "{before:?} {now:?}");
    let (least, most) = now.off_cpu_at(now.updated() + 1000).into_inner();
    assert_eq!((least, most), (now.stats().off_cpu, least + 1000));
    // The ends of both are seen.
    let handles = [seen.handle(), proxy.handle()];
    with.end();
    without.end();
    sampler.wait_for_round(Duration::from_secs(60)).unwrap();
    assert!(handles.iter().all(|&handle| monitor.thread(handle).is_err()));
    let stats = sampler.stats();
    assert!(stats.rounds >= 3 && stats.threads >= 1 && stats.failed == 0, "{stats:?}");
    sampler.stop();
    assert!(monitor.threads().all(|thread| !thread.is_sampled()), "its slots are given back");
    unwanted.end();
}

/// The sampler has descriptors of its own, and the table grows from there all the same.
#[test]
fn a_sampler_of_more_threads_than_there_are_slots() {
    if !alone("a_sampler_of_more_threads_than_there_are_slots") {
        return;
    }
    let idlers: Vec<_> = (0..200).map(|_| Idler::start("without", false)).collect();
    let builder = Sampler::builder().rate(200.0).budget(1.0).all_threads(true);
    let Some(sampler) = sampler(builder) else { return };
    sampler.wait_for_round(Duration::from_secs(60)).unwrap();
    let stats = sampler.stats();
    assert!(stats.threads >= 200 && stats.failed == 0, "{stats:?}");
    let monitor = own();
    let seen: BTreeSet<_> = monitor.threads().map(|thread| thread.tid()).collect();
    assert!(idlers.iter().all(|idler| seen.contains(&idler.tid)));
    idlers.into_iter().for_each(Idler::end);
}

#[test]
fn a_filter_that_panics_fails_for_that_thread_alone() {
    if !alone("a_filter_that_panics_fails_for_that_thread_alone") {
        return;
    }
    let (bad, good) = (Idler::start("bad", true), Idler::start("good", true));
    let poor = Idler::start("bad", false);
    let builder = Sampler::builder().rate(200.0).budget(1.0).all_threads(true);
    let builder = builder.only(|_, name| name != "bad" || std::panic::resume_unwind(Box::new(())));
    let Some(sampler) = sampler(builder) else { return };
    for _ in 0..3 {
        sampler.wait_for_round(Duration::from_secs(60)).unwrap();
        let stats = sampler.stats();
        assert!(stats.failed >= 1 && stats.threads >= 1, "{stats:?}");
    }
    let monitor = own();
    let updated = |tid| {
        let seen = monitor.threads().find(|thread| thread.tid() == tid);
        seen.is_some_and(|thread| thread.updated() > 0)
    };
    assert_eq!([&bad, &good, &poor].map(|idler| updated(idler.tid)), [false, true, false]);
    sampler.stop();
    [bad, good, poor].into_iter().for_each(Idler::end);
}

/// Threads that die without a destructor leave a descriptor open, which whoever has the slot
/// next closes; the sampler could not, in its own table of descriptors.
#[test]
fn a_sampler_loses_no_descriptor_of_the_dead() {
    if !alone("a_sampler_loses_no_descriptor_of_the_dead") {
        return;
    }
    extern "C" fn vanish(_: *mut libc::c_void) -> *mut libc::c_void {
        let published = task_shared::current().unwrap().publish();
        assert!(published.is_ok() || published.is_err_and(|error| error.is_unsupported()));
        raw_exit()
    }
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    for _ in 0..5 {
        (0..60).for_each(|_| slots::c_thread(vanish));
        // No slot is free, and its first round needs some.
        let idlers: Vec<_> = (0..10).map(|_| Idler::start("without", false)).collect();
        let builder = Sampler::builder().rate(200.0).budget(1.0).all_threads(true);
        let Some(sampler) = sampler(builder) else { return };
        sampler.wait_for_round(Duration::from_secs(60)).unwrap();
        assert!(sampler.stats().threads >= 10, "{:?}", sampler.stats());
        sampler.stop();
        idlers.into_iter().for_each(Idler::end);
    }
    let used = task_shared::stats().unwrap();
    assert!(open() <= before + used.slots, "{before}, {} {used:?}", open());
    assert!(used.slots <= 160 && used.reclaimed > 60, "{used:?}");
}

#[test]
fn a_sampled_thread_that_takes_a_slot_is_there_once() {
    if !alone("a_sampled_thread_that_takes_a_slot_is_there_once") {
        return;
    }
    let builder = Sampler::builder().rate(200.0).budget(1.0).all_threads(true);
    let (tell, told) = mpsc::channel();
    let (go, wait) = mpsc::channel::<()>();
    let worker = thread::spawn(move || {
        tell.send(gettid()).unwrap();
        wait.recv().unwrap();
        task_shared::current().unwrap();
        tell.send(0).unwrap();
        let _ = wait.recv();
    });
    let tid = told.recv().unwrap();
    let Some(sampler) = sampler(builder) else { return };
    sampler.wait_for_round(Duration::from_secs(60)).unwrap();
    let monitor = own();
    let seen = || -> Vec<bool> {
        let threads = monitor.threads().filter(|thread| thread.tid() == tid);
        threads.map(|thread| thread.is_sampled()).collect()
    };
    assert_eq!(seen(), [true]);
    go.send(()).unwrap();
    told.recv().unwrap();
    sampler.wait_for_round(Duration::from_secs(60)).unwrap();
    assert_eq!(seen(), [false]);
    drop(go);
    worker.join().unwrap();
}

/// Owners publish as fast as they can, threads come and go, and the sampler writes between
/// them. Numbers never go back, and no life gets those of another.
#[test]
fn storm_of_two_writers() {
    if !alone("storm_of_two_writers") {
        return;
    }
    let builder = Sampler::builder().rate(1000.0).budget(1.0).all_threads(true);
    let Some(sampler) = sampler(builder) else { return };
    let (monitor, done) = (own(), AtomicBool::new(false));
    let end = Instant::now() + common::stress(Duration::from_millis(700));
    thread::scope(|scope| {
        let finish = SetAtEnd(&done);
        scope.spawn(|| {
            let me = task_shared::current().unwrap();
            while !done.load(Ordering::Relaxed) {
                let published = me.publish().unwrap();
                let shown = me.stats().unwrap();
                assert!(shown.sum_exec_runtime >= published.sum_exec_runtime);
                thread::sleep(Duration::from_micros(900));
            }
        });
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let body = || {
                    let me = task_shared::current().unwrap();
                    // Nothing of the life before: this thread is young.
                    assert!(me.stats().unwrap().sum_exec_runtime < 1_000_000_000);
                    me.publish().unwrap();
                    thread::sleep(Duration::from_micros(500));
                    me.publish().unwrap();
                };
                thread::spawn(body).join().unwrap();
            }
        });
        let mut last: BTreeMap<Handle, _> = BTreeMap::new();
        while Instant::now() < end {
            for thread in monitor.threads().filter(|thread| thread.is_consistent()) {
                let now = (thread.stats(), thread.updated());
                if let Some((stats, updated)) = last.insert(thread.handle(), now) {
                    let (now, then) = (thread.stats(), stats);
                    assert!(now.sum_exec_runtime >= then.sum_exec_runtime, "{then:?} {now:?}");
                    assert!(now.run_delay >= then.run_delay && now.pcount >= then.pcount);
                    assert!(now.off_cpu >= then.off_cpu && thread.updated() >= updated);
                }
            }
        }
        drop(finish);
    });
    assert!(sampler.stats().rounds > 10);
}

#[test]
fn a_sampler_and_fork() {
    if !alone("a_sampler_and_fork") {
        return;
    }
    let Some(sampler) = sampler(Sampler::builder().rate(1000.0).budget(1.0)) else { return };
    task_shared::current().unwrap();
    for _ in 0..20 {
        // SAFETY: the child runs on with what fork leaves it, and ends by _exit.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let body = || {
                let error = sampler.wait_for_round(Duration::ZERO).unwrap_err();
                assert_eq!(error.raw_os_error(), libc::ESTALE);
                // Slots come and go, and a sampler of its own.
                task_shared::current().unwrap().publish().unwrap();
                let other = Sampler::builder().rate(1000.0).budget(1.0).start().unwrap();
                other.wait_for_round(Duration::from_secs(60)).unwrap();
                Idler::start("in the child", true).end();
                drop(other);
                // SAFETY: the handle that was inherited; the child has no other use of it.
                drop(unsafe { std::ptr::read(&raw const sampler) });
            };
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
            // SAFETY: ends the child without its parent's destructors.
            unsafe { libc::_exit(i32::from(outcome.is_err())) };
        }
        let mut status = 0;
        // SAFETY: our own child, a word on this stack.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        assert_eq!(status, 0);
    }
}

#[test]
fn a_sampler_keeps_to_its_budget_and_leaves_our_descriptors_alone() {
    if !alone("a_sampler_keeps_to_its_budget_and_leaves_our_descriptors_alone") {
        return;
    }
    let open = || -> BTreeSet<_> {
        let entries = std::fs::read_dir("/proc/self/fd").unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect()
    };
    let idlers: Vec<_> = (0..100).map(|_| Idler::start("idler", true)).collect();
    let before = open().len();
    let Some(sampler) = sampler(Sampler::builder().rate(1000.0).budget(0.02)) else { return };
    sampler.wait_for_round(Duration::from_secs(60)).unwrap();
    let stats = sampler.stats();
    assert!(stats.threads + stats.publishing >= 100 && stats.delayed > 0, "{stats:?}");
    assert_eq!(open().len(), before, "what it keeps open is in a table of its own");
    for idler in idlers {
        idler.end();
    }
    for (rate, budget) in [(0.0, 0.1), (f64::NAN, 0.1), (1e9, 0.1), (1.0, 0.0), (1.0, 1.5)] {
        let error = Sampler::builder().rate(rate).budget(budget).start().unwrap_err();
        assert!(error.is_invalid(), "{error}");
    }
}
