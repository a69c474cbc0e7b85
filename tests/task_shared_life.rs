//! The lives of slots: what every way to end, or to make a process, does to them. A row of the
//! table in the module's documentation each, in a process of its own.

mod common;
#[path = "common/slots.rs"]
mod slots;

use common::SetAtEnd;
use slots::{alone, c_thread, gettid, own, status_of};
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;
use unmerged::task_shared::{self, Config, Monitor, Word};

/// Takes a slot in this thread.
fn take() {
    task_shared::current().unwrap().set_user(1).unwrap();
}

#[test]
fn return_panic_and_c_threads_give_back() {
    if !alone("return_panic_and_c_threads_give_back") {
        return;
    }
    extern "C" fn returns(_: *mut libc::c_void) -> *mut libc::c_void {
        take();
        ptr::null_mut()
    }
    take();
    let deaths = || task_shared::stats().unwrap().deaths;
    thread::spawn(take).join().unwrap();
    assert_eq!(deaths(), 1);
    let panics = || {
        take();
        std::panic::resume_unwind(Box::new(()));
    };
    assert!(thread::spawn(panics).join().is_err());
    assert_eq!(deaths(), 2);
    c_thread(returns);
    assert_eq!(deaths(), 3);
    assert_eq!((own().threads().count(), task_shared::stats().unwrap().reclaimed), (1, 0));
}

unsafe extern "C-unwind" {
    fn pthread_exit(value: *mut libc::c_void) -> !;
}

#[test]
fn pthread_exit_gives_back() {
    if !alone("pthread_exit_gives_back") {
        return;
    }
    /// It unwinds the frame by force: nothing in it may have a destructor.
    extern "C-unwind" fn exits(_: *mut libc::c_void) -> *mut libc::c_void {
        take();
        // SAFETY: no frame of Rust's with a destructor is on this stack.
        unsafe { pthread_exit(ptr::null_mut()) }
    }
    take();
    let mut id = 0;
    let body = exits as extern "C-unwind" fn(*mut libc::c_void) -> *mut libc::c_void;
    // SAFETY: the same signature; a thread that is unwound from C.
    let body: extern "C" fn(*mut libc::c_void) -> *mut libc::c_void =
        unsafe { std::mem::transmute(body) };
    // SAFETY: a thread without an argument, joined once.
    unsafe {
        assert_eq!(libc::pthread_create(&raw mut id, ptr::null(), body, ptr::null_mut()), 0);
        assert_eq!(libc::pthread_join(id, ptr::null_mut()), 0);
    }
    let used = task_shared::stats().unwrap();
    assert_eq!((used.births, used.deaths, used.reclaimed), (2, 1, 0));
}

/// The destructor of a pthread key runs after those of thread-locals: the slot is gone then,
/// and no other is taken.
#[test]
fn a_late_destructor_of_a_c_thread() {
    if !alone("a_late_destructor_of_a_c_thread") {
        return;
    }
    static KEY: AtomicU32 = AtomicU32::new(0);
    static ERRNO: AtomicI32 = AtomicI32::new(0);
    extern "C" fn late(_: *mut libc::c_void) {
        let errno = task_shared::current().map_or_else(|error| error.raw_os_error(), |_| 0);
        ERRNO.store(errno, Ordering::Relaxed);
    }
    extern "C" fn body(_: *mut libc::c_void) -> *mut libc::c_void {
        let key = KEY.load(Ordering::Relaxed);
        // SAFETY: a key of ours, and a value that is not null.
        assert_eq!(unsafe { libc::pthread_setspecific(key, ptr::without_provenance(1)) }, 0);
        take();
        ptr::null_mut()
    }
    let mut key = 0;
    // SAFETY: a word for the key, and a destructor that may run in any thread.
    assert_eq!(unsafe { libc::pthread_key_create(&raw mut key, Some(late)) }, 0);
    KEY.store(key, Ordering::Relaxed);
    take();
    c_thread(body);
    assert_eq!(ERRNO.load(Ordering::Relaxed), libc::ESHUTDOWN);
    let used = task_shared::stats().unwrap();
    assert_eq!((used.births, used.deaths, used.held), (2, 1, 1), "{used:?}");
}

/// abort, _exit and SIGKILL of a child that has a table of its own: its parent reads it.
#[test]
fn every_end_of_a_process_is_seen() {
    if !alone("every_end_of_a_process_is_seen") {
        return;
    }
    let ends: [(fn() -> !, bool); 3] = [
        (|| std::process::abort(), true),
        // SAFETY: ends the child.
        (|| unsafe { libc::_exit(0) }, false),
        (
            || {
                // SAFETY: ends the child.
                unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
                unreachable!()
            },
            true,
        ),
    ];
    for (end, by_signal) in ends {
        let (mut gate, mut ready) = ([0; 2], [0; 2]);
        // SAFETY: two pairs of descriptors on this stack.
        unsafe {
            assert_eq!(libc::pipe(gate.as_mut_ptr()), 0);
            assert_eq!(libc::pipe(ready.as_mut_ptr()), 0);
        }
        let mut byte = 0_u8;
        // SAFETY: the child runs on with its own thread and memory, and ends as it is told.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            take();
            // SAFETY: a byte each, of this stack.
            unsafe {
                libc::write(ready[1], (&raw const byte).cast(), 1);
                libc::read(gate[0], (&raw mut byte).cast(), 1);
            }
            end();
        }
        // SAFETY: a byte of this stack.
        assert_eq!(unsafe { libc::read(ready[0], (&raw mut byte).cast(), 1) }, 1);
        let monitor = Monitor::open(pid.cast_unsigned()).unwrap();
        let seen = monitor.threads().next().unwrap();
        assert!(seen.is_alive());
        // SAFETY: a byte of this stack.
        assert_eq!(unsafe { libc::write(gate[1], (&raw const byte).cast(), 1) }, 1);
        assert_eq!(libc::WIFSIGNALED(status_of(pid)), by_signal);
        assert!(!seen.is_alive() && seen.user() == 1 && !monitor.is_running());
    }
}

/// Children that the parent waits for: by posix_spawn, which has its parent's memory, and by
/// clone with `CLONE_VFORK` alone, which has its own.
#[test]
fn vfork_and_spawn_leave_the_parent_alone() {
    if !alone("vfork_and_spawn_leave_the_parent_alone") {
        return;
    }
    take();
    let me = task_shared::current().unwrap();
    let before = (me.address(), me.generation().unwrap(), task_shared::stats().unwrap().births);
    assert!(std::process::Command::new("/proc/self/exe").arg("--list").output().is_ok());
    // It has memory of its own, and its parent waits for it.
    assert_eq!(status_of(slots::raw_clone(libc::CLONE_VFORK, || ())), 0);
    let now = (me.address(), me.generation().unwrap(), task_shared::stats().unwrap().births);
    assert_eq!(before, now);
    assert!(own().threads().next().unwrap().is_alive());
}

/// A fork while other threads take and give back slots, and hold the process's lock: the
/// child has a table of its own at once, and does not hang.
#[test]
fn fork_in_a_storm() {
    if !alone("fork_in_a_storm") {
        return;
    }
    take();
    let done = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        let finish = SetAtEnd(&done);
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    thread::spawn(take).join().unwrap();
                }
            });
        }
        let begin = std::time::Instant::now();
        let span = common::stress(Duration::from_millis(300));
        while begin.elapsed() < span {
            // SAFETY: the child uses what is promised to work in one, and ends by _exit.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                let mine = task_shared::current();
                let good = mine.is_ok_and(|me| me.user().is_ok_and(|user| user == 0));
                // SAFETY: ends the child.
                unsafe { libc::_exit(i32::from(!good)) };
            }
            assert_eq!(status_of(pid), 0);
        }
        drop(finish);
    });
    let used = task_shared::stats().unwrap();
    assert_eq!((used.held, used.births - used.deaths), (1, 1), "{used:?}");
}

/// 10,000 threads, 500 at once: each has a slot, nothing leaks, and the table has grown no
/// further than it had to. Ids of threads come around again meanwhile.
#[test]
fn ten_thousand_threads() {
    if !alone("ten_thousand_threads") {
        return;
    }
    take();
    let monitor = own();
    let wave = 500;
    let addresses = AtomicUsize::new(0);
    for _ in 0..10_000 / wave {
        let all = std::sync::Barrier::new(wave + 1);
        thread::scope(|scope| {
            let start = |_| {
                let work = || {
                    let me = task_shared::current().unwrap();
                    assert_eq!((me.user().unwrap(), me.tid().unwrap()), (0, gettid()));
                    me.set_user(u64::from(gettid())).unwrap();
                    addresses.fetch_add(1, Ordering::Relaxed);
                    all.wait();
                };
                let small = thread::Builder::new().stack_size(64 << 10);
                small.spawn_scoped(scope, work).unwrap()
            };
            let threads: Vec<_> = (0..wave).map(start).collect();
            assert!(monitor.threads().count() <= wave + 1);
            all.wait();
            // A scope does not wait for destructors of thread-locals, a join does.
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
    }
    let used = task_shared::stats().unwrap();
    assert_eq!((used.births, used.deaths, used.held, used.reclaimed), (10_001, 10_000, 1, 0));
    assert!(used.high_water > wave / 2 && used.high_water <= wave + 1, "{used:?}");
    assert!(used.slots <= 640, "{used:?}");
    let bytes = used.slots * used.bytes_per_thread() + 12 * 4096;
    assert!(used.bytes_resident <= bytes, "{used:?}");
    assert_eq!(monitor.threads().count(), 1);
}

const REQUESTS: Word<u64> = Word::new(0, "requests", "1");
const DELTA: Word<i64> = Word::new(1, "delta", "bytes");
const LOAD: Word<f64> = Word::new(20, "load", "ratio");
const BUSY: Word<bool> = Word::new(21, "busy", "");

#[test]
fn wider_slots_with_words_of_several_types() {
    if !alone("wider_slots_with_words_of_several_types") {
        return;
    }
    let config = Config::new().slot_size(256).word(REQUESTS).word(DELTA).word(LOAD).word(BUSY);
    task_shared::configure(&config).unwrap();
    let error = task_shared::configure(&Config::new()).unwrap_err();
    assert_eq!(error.raw_os_error(), libc::EBUSY, "{error}");
    let me = task_shared::current().unwrap();
    let error = task_shared::configure(&config).unwrap_err();
    assert_eq!(error.raw_os_error(), libc::EBUSY, "{error}");
    me.set(REQUESTS, 7).unwrap();
    me.set(DELTA, -7).unwrap();
    me.set(LOAD, 0.5).unwrap();
    me.set(BUSY, true).unwrap();
    assert_eq!((me.get(REQUESTS).unwrap(), me.get(DELTA).unwrap()), (7, -7));
    assert_eq!((me.get(LOAD).unwrap(), me.get(BUSY).unwrap()), (0.5, true));
    let error = me.set(Word::<u64>::new(23, "beyond", ""), 1).unwrap_err();
    assert!(error.is_invalid() && error.to_string().contains("have 23"), "{error}");
    me.publish_words(0, &[1; 23]).unwrap();
    for (first, count) in [(0, 24), (23, 1), (24, 0), (usize::MAX, 1)] {
        let error = me.publish_words(first, &vec![2; count]).unwrap_err();
        assert!(error.is_invalid(), "{error}");
    }
    assert_eq!(me.get(Word::<u64>::new(22, "last", "")).unwrap(), 1);
    let next = thread::spawn(|| task_shared::current().unwrap().address()).join().unwrap();
    assert_eq!(next, me.address() + 256);
    // A child of fork has the configuration, and may say another.
    for another in [false, true] {
        // SAFETY: the child runs on with its own thread and memory, and ends by _exit.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            if another {
                task_shared::configure(&Config::new()).unwrap();
            }
            let mine = task_shared::current().unwrap();
            let words = if mine.get(LOAD).is_ok() { 23 } else { 7 };
            // SAFETY: ends the child.
            unsafe { libc::_exit(words) };
        }
        assert_eq!(libc::WEXITSTATUS(status_of(pid)), if another { 7 } else { 23 });
    }
}

/// Words that are published together are seen together, also around a signal handler that
/// publishes in between.
#[test]
fn words_of_one_moment() {
    if !alone("words_of_one_moment") {
        return;
    }
    static INTERRUPTED: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn handler(_: libc::c_int) {
        let me = task_shared::current().unwrap();
        match me.publish_words(0, &[u64::MAX; 7]) {
            Ok(()) => {}
            Err(error) => {
                assert_eq!(error.raw_os_error(), libc::EBUSY);
                INTERRUPTED.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    // Before the reader looks: a word that is set alone is of no moment.
    task_shared::current().unwrap().publish_words(0, &[0; 7]).unwrap();
    let monitor = own();
    // SAFETY: it publishes, which is promised to work in handlers.
    unsafe { common::handle(&[libc::SIGALRM], handler) };
    let done = std::sync::atomic::AtomicBool::new(false);
    let tid = gettid();
    thread::scope(|scope| {
        let finish = SetAtEnd(&done);
        let reader = scope.spawn(|| {
            let seen = monitor.threads().find(|thread| thread.tid() == tid).unwrap();
            let (mut words, mut whole) = ([0; 7], 0);
            loop {
                // What is read after the last word was published is whole.
                let last = done.load(Ordering::Acquire);
                if seen.copy_words(&mut words) == Some(true) {
                    assert_eq!(words, [words[0]; 7]);
                    whole += 1;
                }
                if last {
                    break;
                }
            }
            assert!(whole > 0);
        });
        let me = task_shared::current().unwrap();
        for n in 0..300_000 {
            if n % 64 == 0 {
                common::alarm_again(50);
            }
            me.publish_words(0, &[n; 7]).unwrap();
        }
        drop(finish);
        reader.join().unwrap();
    });
}

/// The thin interface of the proposal, and its errors.
#[test]
fn getshared() {
    use unmerged::task_shared::{TASK_SCHEDSTAT, getshared};
    for (option, flags) in [(0, 0), (2, 0), (u32::MAX, 0), (TASK_SCHEDSTAT, 1)] {
        let error = getshared(option, flags).unwrap_err();
        assert_eq!(error.raw_os_error(), libc::EINVAL, "{error}");
    }
    match getshared(TASK_SCHEDSTAT, 0) {
        Ok(slot) => {
            assert_eq!(slot, getshared(TASK_SCHEDSTAT, 0).unwrap());
            assert_eq!(slot, task_shared::current().unwrap());
            assert!(slot.stats().unwrap().pcount > 0);
        }
        Err(error) => {
            assert_eq!(error.raw_os_error(), libc::EOPNOTSUPP, "{error}");
            common::missing("schedstat", "getshared said that it is unsupported");
        }
    }
}
