//! The cases of `tests/task_shared-cases.md` that have no other place: children that share the
//! memory, ids of threads that come again, and the event word in the eyes of another process.

mod common;
#[path = "common/hostile.rs"]
mod hostile;
#[path = "common/slots.rs"]
mod slots;

use common::Player;
use rustix::io::Errno;
use slots::{alone, c_thread, fork, gettid, own, raw_exit, status_of};
use std::ffi::CStr;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use unmerged::task_shared::{self, Monitor};

/// Not a test: the other process of those below.
#[test]
fn child() {
    if common::role().as_deref() != Some("births") {
        return;
    }
    task_shared::current().unwrap();
    thread::spawn(|| {
        loop {
            thread::spawn(|| task_shared::current().map(drop).unwrap()).join().unwrap();
            thread::sleep(Duration::from_millis(2));
        }
    });
    common::say("ready");
    common::wait_for_nudge();
    std::process::exit(0);
}

/// A child by clone(2) around libc, which has the caller's memory and thread-locals, and a stack
/// of its own.
fn clone(flags: libc::c_int, body: extern "C" fn(*mut libc::c_void) -> libc::c_int) -> libc::pid_t {
    const STACK: usize = 64 << 10;
    let stack = Box::leak(Box::new([0_u128; STACK / 16]));
    let end = ptr::from_mut(stack).wrapping_add(1);
    // SAFETY: a stack that is never freed, and a body that makes system calls alone.
    let pid = unsafe { libc::clone(body, end.cast(), flags | libc::SIGCHLD, ptr::null_mut()) };
    assert!(pid > 0, "{}", std::io::Error::last_os_error());
    pid
}

/// What a reader and the owner say of the calling thread's slot.
fn what_is_said() -> (usize, u32, u64, u64, bool, bool) {
    let me = task_shared::current().unwrap();
    me.set_user(5).unwrap();
    let (address, generation) = (me.address(), me.generation().unwrap());
    let used = task_shared::stats().unwrap();
    let monitor = own();
    let seen = monitor.threads().find(|thread| thread.tid() == gettid()).unwrap();
    let whole = seen.user() == 5 && monitor.threads().count() == 1;
    (address, generation, used.births, used.deaths, seen.is_alive(), whole)
}

/// A child of vfork, which has its parent's memory and thread-locals until it executes another
/// program.
#[test]
fn vfork_and_execve_leave_the_parent_alone() {
    if !alone("vfork_and_execve_leave_the_parent_alone") {
        return;
    }
    extern "C" fn executes(_: *mut libc::c_void) -> libc::c_int {
        const PATH: &CStr = c"/proc/self/exe";
        let arguments = [PATH.as_ptr(), c"--list".as_ptr(), ptr::null()];
        // SAFETY: two lists of strings that end in null; nothing is allocated.
        unsafe {
            libc::close(1);
            libc::execve(PATH.as_ptr(), arguments.as_ptr(), [ptr::null()].as_ptr());
            libc::_exit(99)
        }
    }
    let before = what_is_said();
    for _ in 0..3 {
        let status = status_of(clone(libc::CLONE_VM | libc::CLONE_VFORK, executes));
        // It has no standard output, and may complain of it.
        assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) != 99, "{status:#x}");
        assert_eq!(what_is_said(), before);
    }
    assert!(before.4 && before.5, "{before:?}");
}

/// A child that has its parent's memory for good, and uses no slot: neither its life nor its end
/// are taken for those of the parent.
#[test]
fn clone_with_our_memory_leaves_the_parent_alone() {
    if !alone("clone_with_our_memory_leaves_the_parent_alone") {
        return;
    }
    static GO: AtomicU32 = AtomicU32::new(0);
    extern "C" fn waits(_: *mut libc::c_void) -> libc::c_int {
        while GO.load(Ordering::Acquire) == 0 {
            // SAFETY: lets others run.
            unsafe { libc::syscall(libc::SYS_sched_yield) };
        }
        // SAFETY: ends the child, and none of the parent's threads.
        unsafe { libc::syscall(libc::SYS_exit_group, 7) };
        unreachable!()
    }
    let before = what_is_said();
    let pid = clone(libc::CLONE_VM, waits);
    assert_eq!(what_is_said(), before);
    GO.store(1, Ordering::Release);
    assert_eq!(libc::WEXITSTATUS(status_of(pid)), 7);
    assert_eq!(what_is_said(), before);
    let killed = clone(libc::CLONE_VM, {
        GO.store(0, Ordering::Release);
        waits
    });
    // SAFETY: our own child.
    assert_eq!(unsafe { libc::kill(killed, libc::SIGKILL) }, 0);
    assert!(libc::WIFSIGNALED(status_of(killed)));
    assert_eq!(what_is_said(), before);
    assert!(before.4 && before.5, "{before:?}");
}

/// In a namespace of process ids that is ours, once `prepare` has succeeded there; whether there
/// may be one, and it has.
fn in_a_namespace(prepare: fn() -> bool, body: impl FnOnce()) -> bool {
    const NONE: i32 = 77;
    let outer = fork(|| {
        // SAFETY: this process has one thread, whose rights and whose children's ids change.
        let done = unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWPID) };
        let mut ended = NONE << 8;
        if done == 0 {
            ended = status_of(fork(|| if prepare() { body() } else { std::process::exit(NONE) }));
        }
        // SAFETY: ends the child, as its own ended.
        unsafe { libc::_exit(if libc::WIFEXITED(ended) { libc::WEXITSTATUS(ended) } else { 1 }) };
    });
    let status = status_of(outer);
    assert!(status == 0 || status == NONE << 8, "{status:#x}");
    status == 0
}

/// Has the kernel give this id to the next thread.
fn next_id(id: u32) -> bool {
    std::fs::write("/proc/sys/kernel/ns_last_pid", (id - 1).to_string()).is_ok()
}

/// A thread dies and leaves its slot, and its id goes to another: which is not taken for it,
/// not even while it searches for the slots of the dead.
#[test]
fn a_thread_id_that_comes_again() {
    static DEAD: AtomicU32 = AtomicU32::new(0);
    extern "C" fn dies(_: *mut libc::c_void) -> *mut libc::c_void {
        task_shared::current().unwrap().set_user(77).unwrap();
        DEAD.store(gettid(), Ordering::Relaxed);
        raw_exit()
    }
    let body = || {
        task_shared::current().unwrap();
        c_thread(dies);
        let tid = DEAD.load(Ordering::Relaxed);
        // As the rest of the system numbers it, which /proc is for.
        let outside = std::fs::read_link("/proc/self").unwrap();
        let monitor = Monitor::open(outside.to_str().unwrap().parse().unwrap()).unwrap();
        let dead = monitor.threads().find(|thread| thread.tid() == tid).unwrap();
        let gone = || {
            assert!(!dead.is_alive() && dead.user() == 77);
            assert!(monitor.thread(dead.handle()).is_err());
        };
        gone();
        let (tell, told) = mpsc::channel();
        let take = || {
            let (tell, (go, wait)) = (tell.clone(), mpsc::channel::<()>());
            let thread = thread::spawn(move || {
                tell.send((gettid(), task_shared::current().unwrap().address())).unwrap();
                let _ = wait.recv();
            });
            (go, thread)
        };
        // Its id, while other slots are free.
        assert!(next_id(tid));
        let (go, second) = take();
        assert_eq!(told.recv().unwrap().0, tid);
        gone();
        drop(go);
        second.join().unwrap();
        // The others take all that is left, and one of its id has to look for the dead.
        let others: Vec<_> = (0..30).map(|_| take()).collect();
        others.iter().for_each(|_| assert_ne!(told.recv().unwrap().0, tid));
        assert_eq!(task_shared::stats().unwrap().slots, 32);
        assert!(next_id(tid));
        let (go, third) = take();
        assert_eq!(told.recv().unwrap().0, tid);
        gone();
        let again = monitor.threads().filter(|thread| thread.tid() == tid && thread.is_alive());
        assert_eq!(again.count(), 1);
        let used = task_shared::stats().unwrap();
        assert_eq!((used.slots, used.reclaimed), (64, 0), "its own id is not its own death");
        for (go, thread) in others.into_iter().chain([(go, third)]) {
            drop(go);
            thread.join().unwrap();
        }
        gone();
    };
    if !in_a_namespace(|| next_id(100), body) {
        common::missing("ns-last-pid", "that a slot's generation tells lives apart was checked");
    }
}

/// A process without its main thread, whose descriptors /proc shows no more under its own id.
#[test]
fn a_process_whose_main_thread_has_ended_is_read() {
    if !alone("a_process_whose_main_thread_has_ended_is_read") {
        return;
    }
    let pid = fork(|| {
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            task_shared::current().unwrap().set_user(6).unwrap();
            tell.send(()).unwrap();
            loop {
                thread::park();
            }
        });
        told.recv().unwrap();
        raw_exit();
    });
    let stat = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    slots::wait_until("the end of the main thread", || stat().contains(") Z "));
    let opened = Monitor::open(pid.cast_unsigned());
    let lives = |monitor: &Monitor| {
        let mut threads = monitor.threads();
        monitor.is_running() && threads.any(|thread| thread.user() == 6 && thread.is_alive())
    };
    let lived = opened.as_ref().is_ok_and(lives);
    // SAFETY: our own child.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
    assert!(libc::WIFSIGNALED(status_of(pid)));
    let monitor = opened.unwrap();
    assert!(lived && !lives(&monitor) && !monitor.is_running());
}

/// A process that has ended, and waits for its parent.
#[test]
fn a_zombie_has_ended() {
    let pid = fork(|| task_shared::current().unwrap().set_user(1).unwrap());
    let stat = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    slots::wait_until("the end", || stat().contains(") Z "));
    let error = Monitor::open(pid.cast_unsigned()).unwrap_err();
    assert_eq!(error.raw_os_error(), libc::ESRCH, "{error}");
    assert!(error.to_string().contains(&format!("process {pid} has ended")), "{error}");
    status_of(pid);
}

/// The ids in /proc are not those by which a process of an inner namespace knows its threads.
#[test]
fn a_sampler_under_the_proc_of_another_namespace() {
    if !alone("a_sampler_under_the_proc_of_another_namespace") {
        return;
    }
    let body = || {
        let error = task_shared::Sampler::builder().start().unwrap_err();
        assert!(error.is_unsupported(), "{error}");
        assert_eq!(error.operation(), "task_shared::Sampler::start", "{error}");
    };
    if !in_a_namespace(|| true, body) {
        common::missing("user-namespaces", "a sampler in its own namespace was checked elsewhere");
    }
}

/// An error names what was called, whatever it was made of.
#[test]
fn an_error_names_what_was_called() {
    if !alone("an_error_names_what_was_called") {
        return;
    }
    let error = Monitor::from_fd(std::fs::File::open("/proc/self/stat").unwrap().into());
    let error = error.map(drop).unwrap_err();
    assert_eq!(error.operation(), "task_shared::Monitor::from_fd", "{error}");
    assert!(!error.to_string().contains("named"), "{error}");
    let builder = || task_shared::Sampler::builder().rate(0.001);
    match builder().start() {
        Ok(sampler) => {
            let error = sampler.wait_for_round(Duration::ZERO).unwrap_err();
            assert_eq!(error.operation(), "task_shared::Sampler::wait_for_round", "{error}");
            assert!(error.is_timed_out(), "{error}");
        }
        Err(error) => {
            assert!(error.is_unsupported(), "{error}");
            common::missing("schedstat", "a sampler was checked to say that it is unsupported");
        }
    }
    // No descriptor is left.
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a limit of this process.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const none) }, 0);
    let error = builder().start().unwrap_err();
    assert_eq!(error.operation(), "task_shared::Sampler::start", "{error}");
    let error = task_shared::getshared(task_shared::TASK_SCHEDSTAT, 0).unwrap_err();
    assert_eq!(error.operation(), "task_shared::getshared", "{error}");
}

/// A descriptor of another process, by the name of its file.
fn descriptor(pid: u32, name: &str) -> PathBuf {
    let paths = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(|fd| fd.unwrap().path());
    let is_it = |path: &PathBuf| {
        let link = std::fs::read_link(path).unwrap_or_default();
        link.to_string_lossy().trim_end_matches(" (deleted)") == format!("/memfd:{name}")
    };
    paths.into_iter().find(is_it).unwrap()
}

/// The event word, as the documentation has it, in a mapping that can only be read: the kernel
/// lets another process sleep on it, and the wakes arrive.
#[test]
fn the_event_word_wakes_a_process_that_only_reads() {
    let mut player = Player::start(common::child("child", "births"));
    player.wait_for("ready");
    let path = descriptor(player.pid(), hostile::NAME);
    let file = File::open(&path).unwrap();
    let map = |file: &File, access| {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe {
            libc::mmap(ptr::null_mut(), 4096, access, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        if at == libc::MAP_FAILED {
            Err(Errno::from_io_error(&std::io::Error::last_os_error()))
        } else {
            Ok(at)
        }
    };
    // Nobody else maps the table writable, however it was opened.
    let open = |path| File::options().read(true).write(true).open(path).unwrap();
    let writable = open(path);
    let both = libc::PROT_READ | libc::PROT_WRITE;
    assert_eq!(map(&writable, both).unwrap_err(), Some(Errno::PERM));
    let page = map(&file, libc::PROT_READ).unwrap();
    // SAFETY: a new mapping of ours.
    assert_eq!(unsafe { libc::mprotect(page, 4096, both) }, -1);
    let flag = open(descriptor(player.pid(), "unmerged.task_shared.waiting"));
    let flag = map(&flag, both).unwrap();
    // SAFETY: mapped for good, and other processes use atomics, too.
    let flag = unsafe { &*flag.cast::<AtomicU32>() };
    // SAFETY: as above; the event word is at byte 64.
    let event = unsafe { &*page.cast::<AtomicU32>().add(16) };
    let (mut wakes, limit) = (0, libc::timespec { tv_sec: 60, tv_nsec: 0 });
    while wakes < 3 {
        let seen = event.load(Ordering::Relaxed);
        flag.swap(1, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        // SAFETY: waits on a word that stays mapped, for a span on this stack.
        let woken = unsafe {
            libc::syscall(libc::SYS_futex, event.as_ptr(), libc::FUTEX_WAIT, seen, &raw const limit)
        };
        match (woken, std::io::Error::last_os_error().raw_os_error()) {
            (0, _) => wakes += 1,
            // It had changed before.
            (_, Some(libc::EAGAIN)) => {}
            (_, errno) => panic!("{errno:?} after {wakes} wakes"),
        }
    }
    player.nudge();
}

/// The table of cases names tests that exist.
#[test]
fn the_table_of_cases_is_true() {
    let sources = [
        ("task_shared", include_str!("task_shared.rs")),
        ("task_shared_cases", include_str!("task_shared_cases.rs")),
        ("task_shared_life", include_str!("task_shared_life.rs")),
        ("task_shared_live", include_str!("task_shared_live.rs")),
        ("task_shared_read", include_str!("task_shared_read.rs")),
        ("top", include_str!("top.rs")),
    ];
    let table = include_str!("task_shared-cases.md");
    let mut named = 0;
    for name in table.split('`') {
        let Some((file, test)) = name.split_once("::") else { continue };
        let Some((_, source)) = sources.iter().find(|(name, _)| *name == file) else { continue };
        assert!(source.contains(&format!("fn {test}(")), "{name} does not exist");
        named += 1;
    }
    assert!(named > 50, "{named}");
    // The rows of the proposal are all there.
    for row in 1..=24 {
        assert!(table.contains(&format!("\n| {row} |")), "row {row}");
    }
}
