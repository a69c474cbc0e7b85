//! The table of errors, keys, NUMA words, signals.

mod common;

use common::{asleep, child, handle_with, map, missing, refuse, role, succeed};
use std::collections::HashSet;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use unmerged::futex2::lock::{Event, select};
use unmerged::futex2::raw::{
    self, FutexWaitv, PRIVATE, SIZE_U8, SIZE_U16, SIZE_U32, SIZE_U64, Timespec,
};
use unmerged::futex2::{
    self, Deadline, Futex, Key, NumaFutex, Options, Private, Scope, Shared, Word, waitv_with,
};

const ANY: u64 = u32::MAX as u64;
const PAGE: usize = 4096;
const MONOTONIC: i32 = libc::CLOCK_MONOTONIC;
const PAST: Timespec = Timespec { tv_sec: 0, tv_nsec: 1 };

/// A page of memory, by mmap.
fn page(access: i32, flags: i32, fd: i32) -> usize {
    // SAFETY: a new mapping at an address of the kernel's choice.
    let at = unsafe { libc::mmap(ptr::null_mut(), PAGE, access, flags, fd, 0) };
    assert_ne!(at, libc::MAP_FAILED);
    at.expose_provenance()
}

const ANONYMOUS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
const WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

fn file(len: i64) -> OwnedFd {
    // SAFETY: a fresh descriptor.
    let file = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"test".as_ptr(), 0)) };
    // SAFETY: our own file.
    assert_eq!(unsafe { libc::ftruncate(file.as_raw_fd(), len) }, 0);
    file
}

/// 0, or the errno.
fn code<T>(result: unmerged::Result<T>) -> i32 {
    result.err().map_or(0, |error| error.raw_os_error())
}

fn wait(at: usize, value: u64, mask: u64, flags: u32, timeout: &Timespec, clock: i32) -> i32 {
    // SAFETY: what is mapped stays mapped.
    code(unsafe { raw::wait(at, value, mask, flags, timeout, clock) })
}

/// Every row of the table, on a wait of each size, a wake, a vector and a move.
#[test]
fn every_row_of_the_table() {
    use libc::{EAGAIN, EFAULT, EINVAL, ETIMEDOUT};
    let here = page(WRITE, ANONYMOUS, -1);
    // Where the kernel puts nothing by itself, so that no other thread's mapping gets there.
    let gone = 0x20_0000;
    let closed = page(libc::PROT_NONE, ANONYMOUS, -1);
    let read_only = page(libc::PROT_READ, ANONYMOUS, -1);
    let memory = file(PAGE as i64);
    let of_file = page(libc::PROT_READ, libc::MAP_SHARED, memory.as_raw_fd());
    let beyond = {
        let short = file(PAGE as i64);
        let at = page(WRITE, libc::MAP_SHARED, short.as_raw_fd());
        // SAFETY: our own file.
        assert_eq!(unsafe { libc::ftruncate(short.as_raw_fd(), 0) }, 0);
        at
    };
    let outside = 0xffff_8000_0000_0000;
    // Waits. The deadline has passed: a wait that is let in is ETIMEDOUT.
    for (size, bits) in [(SIZE_U8, 8), (SIZE_U16, 16), (SIZE_U32, 32), (SIZE_U64, 64)] {
        let all = u64::MAX >> (64 - bits);
        for scope in [PRIVATE, 0] {
            let flags = size | scope;
            let rows = [
                ("it waits", here, 0, all, flags, ETIMEDOUT),
                ("another value", here, 1, all, flags, EAGAIN),
                ("an unknown flag", here, 0, all, flags | 0x400, EINVAL),
                ("NUMA is another type", here, 0, all, flags | 4, EINVAL),
                ("mask of no bits", here, 0, 0, flags, EINVAL),
                ("outside of user space", outside, 0, all, flags, EFAULT),
                ("nothing mapped", gone, 0, all, flags, EFAULT),
                ("null", 0, 0, all, flags, EFAULT),
                ("PROT_NONE", closed, 0, all, flags, EFAULT),
                ("read-only mapping of a file", of_file, 0, all, flags, ETIMEDOUT),
                ("behind the end of the file", beyond, 0, all, flags, EFAULT),
            ];
            for (what, at, value, mask, flags, errno) in rows {
                assert_eq!(
                    wait(at, value, mask, flags, &PAST, MONOTONIC),
                    errno,
                    "{what}, {bits} bits"
                );
            }
            if bits > 8 {
                assert_eq!(wait(here + 1, 0, all, flags, &PAST, MONOTONIC), EINVAL, "alignment");
            }
            if bits < 64 {
                assert_eq!(wait(here, all + 1, all, flags, &PAST, MONOTONIC), EINVAL, "wide value");
                assert_eq!(wait(here, 0, all + 1, flags, &PAST, MONOTONIC), EINVAL, "wide mask");
            }
            let masked = if bits == 32 { ETIMEDOUT } else { EINVAL };
            assert_eq!(wait(here, 0, 0b101, flags, &PAST, MONOTONIC), masked, "a mask");
            // Clocks and times.
            for clock in [libc::CLOCK_REALTIME, MONOTONIC] {
                assert_eq!(wait(here, 0, all, flags, &PAST, clock), ETIMEDOUT);
            }
            assert_eq!(wait(here, 0, all, flags, &PAST, libc::CLOCK_TAI), EINVAL);
            for (tv_sec, tv_nsec) in [(-1, 0), (0, 1_000_000_000), (0, -1)] {
                let time = Timespec { tv_sec, tv_nsec };
                assert_eq!(wait(here, 0, all, flags, &time, MONOTONIC), EINVAL, "{time:?}");
            }
            let unreadable = ptr::with_exposed_provenance(gone);
            // SAFETY: what is mapped stays mapped.
            let answers = unsafe {
                [
                    code(raw::wait(here, 0, all, flags, unreadable, MONOTONIC)),
                    // Without a timeout the clock is not looked at.
                    code(raw::wait(here, 1, all, flags, ptr::null(), libc::CLOCK_TAI)),
                ]
            };
            assert_eq!(answers, [EFAULT, EAGAIN]);
            // Wakes.
            let wake = |at, mask, nr, flags| {
                raw::wake(at, mask, nr, flags)
                    .map_or_else(|error| -error.raw_os_error(), |n| n as i32)
            };
            let gone_is = if scope == PRIVATE { 0 } else { -EFAULT };
            for (what, at, mask, nr, flags, answer) in [
                ("nobody", here, all, 1, flags, 0),
                ("none", here, all, 0, flags, 0),
                ("less than none", here, all, -1, flags, 0),
                ("nothing mapped", gone, all, 1, flags, gone_is),
                ("null", 0, all, 1, flags, gone_is),
                ("PROT_NONE", closed, all, 1, flags, gone_is),
                ("no mask", here, 0, 1, flags, -EINVAL),
                ("an unknown flag", here, all, 1, flags | 16, -EINVAL),
                ("outside", outside, all, 1, flags, -EFAULT),
            ] {
                assert_eq!(wake(at, mask, nr, flags), answer, "wake: {what}, {bits} bits");
            }
            // Vectors and moves: the entry that is wrong is the last.
            let entry = |uaddr: usize, val, flags, reserved| FutexWaitv {
                val,
                uaddr: uaddr as u64,
                flags,
                reserved,
            };
            let good = entry(here, 0, flags, 0);
            for (what, bad, errno, moved) in [
                ("it waits", good, ETIMEDOUT, 0),
                ("another value", entry(here, 1, flags, 0), EAGAIN, 0),
                ("reserved", entry(here, 0, flags, 1), EINVAL, EINVAL),
                ("an unknown flag", entry(here, 0, flags | 0x400, 0), EINVAL, EINVAL),
                ("null", entry(0, 0, flags, 0), EFAULT, if scope == PRIVATE { 0 } else { EFAULT }),
                ("outside", entry(outside, 0, flags, 0), EFAULT, EFAULT),
            ] {
                let pair = [good, bad];
                // SAFETY: what is mapped stays mapped.
                let answers = unsafe {
                    [
                        code(raw::waitv(pair.as_ptr(), 2, 0, &PAST, MONOTONIC)),
                        code(raw::requeue(pair.as_ptr(), 0, 1, 1)),
                    ]
                };
                assert_eq!(answers, [errno, moved], "vector and move: {what}, {bits} bits");
                let swapped = [bad, good];
                // SAFETY: as above.
                let answer = code(unsafe { raw::requeue(swapped.as_ptr(), 0, 1, 1) });
                assert_eq!(answer, if errno == ETIMEDOUT { 0 } else { errno }, "from: {what}");
            }
            let many = vec![good; 129];
            let unreadable = ptr::with_exposed_provenance(gone);
            // SAFETY: as above.
            unsafe {
                for (array, n, call_flags, clock, errno) in [
                    (many.as_ptr(), 128, 0, MONOTONIC, ETIMEDOUT),
                    (many.as_ptr(), 129, 0, MONOTONIC, EINVAL),
                    (many.as_ptr(), 0, 0, MONOTONIC, EINVAL),
                    (ptr::null(), 1, 0, MONOTONIC, EINVAL),
                    (unreadable, 1, 0, MONOTONIC, EFAULT),
                    (many.as_ptr(), 1, 1, MONOTONIC, EINVAL),
                    (many.as_ptr(), 1, 0, libc::CLOCK_TAI, EINVAL),
                ] {
                    let answer = raw::waitv(array, n, call_flags, &PAST, clock);
                    assert_eq!(code(answer), errno, "{n} entries");
                }
                for (pair, call_flags, wake, requeue, errno) in [
                    (ptr::null(), 0, 1, 1, EINVAL),
                    (unreadable, 0, 1, 1, EFAULT),
                    (many.as_ptr(), 1, 1, 1, EINVAL),
                    (many.as_ptr(), 0, -1, 1, EINVAL),
                    (many.as_ptr(), 0, 1, -1, EINVAL),
                    (many.as_ptr(), 0, 0, 0, 0),
                ] {
                    assert_eq!(code(raw::requeue(pair, call_flags, wake, requeue)), errno);
                }
            }
        }
    }
    // Anonymous memory that cannot be written has no shared key.
    assert_eq!(wait(read_only, 0, ANY, SIZE_U32, &PAST, MONOTONIC), EFAULT);
    assert_eq!(wait(read_only, 0, ANY, SIZE_U32 | PRIVATE, &PAST, MONOTONIC), ETIMEDOUT);
}

/// Keys, beside what wakes say: words meet if their keys are equal.
#[test]
fn keys() {
    let memory = file(2 * PAGE as i64);
    let (one, two) = (map(&memory, 2 * PAGE), map(&memory, 2 * PAGE));
    let at = |map: ptr::NonNull<u8>, offset| map.as_ptr().expose_provenance() + offset;
    let key = |address| Key::shared(address).unwrap();
    assert_eq!(key(at(one, 5000)), key(at(two, 5000)));
    assert_eq!((key(at(one, 5000)).page(), key(at(one, 5000)).offset()), (1, 904));
    assert!(key(at(one, 0)).file().is_some() && !key(at(one, 0)).is_private());
    // Another place, another file, another scope: another key.
    let other = map(&file(PAGE as i64), PAGE);
    let anonymous = page(WRITE, ANONYMOUS, -1);
    let shared_anonymous = page(WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1);
    let all = [
        key(at(one, 0)),
        key(at(one, 4)),
        key(at(one, PAGE)),
        key(at(other, 0)),
        key(anonymous),
        Key::private(anonymous),
        Key::private(at(one, 0)),
        Key::private(at(two, 0)),
        key(shared_anonymous),
    ];
    assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len(), "{all:?}");
    assert_eq!((key(anonymous).file(), key(shared_anonymous).file().is_some()), (None, true));
    // A private mapping: the file's page until it is copied.
    let copied = page(WRITE, libc::MAP_PRIVATE, memory.as_raw_fd());
    let uncopied = page(libc::PROT_READ, libc::MAP_PRIVATE, memory.as_raw_fd());
    assert_eq!(key(copied).file(), None);
    assert_eq!(key(uncopied), key(at(one, 0)));
    // Nothing to know it by.
    let unmapped = page(libc::PROT_NONE, ANONYMOUS, -1);
    let read_only = page(libc::PROT_READ, ANONYMOUS, -1);
    for address in [0, unmapped, read_only] {
        assert_eq!(Key::shared(address).unwrap_err().raw_os_error(), libc::EFAULT);
    }
    // What the kernel says of the same addresses.
    let meets = |waiter: usize, waker: usize, flags: u32| {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let sleeper = asleep(scope, || {
                // SAFETY: mapped for good.
                let answer = unsafe { raw::wait(waiter, 0, ANY, SIZE_U32, ptr::null(), 0) };
                done.store(true, Ordering::SeqCst);
                answer
            });
            let met = raw::wake(waker, ANY, 1, flags).unwrap() == 1;
            while !done.load(Ordering::SeqCst) {
                let _ = raw::wake(waiter, ANY, 1, SIZE_U32);
            }
            sleeper.join().unwrap().unwrap();
            met
        })
    };
    for (waiter, waker) in [
        (at(one, 5000), at(two, 5000)),
        (at(one, 0), at(one, 4)),
        (at(one, 0), uncopied),
        (at(one, 0), copied),
        (anonymous, anonymous),
    ] {
        assert_eq!(meets(waiter, waker, SIZE_U32), key(waiter) == key(waker));
    }
    assert!(!meets(anonymous, anonymous, SIZE_U32 | PRIVATE));
    let futex = Futex::<u64, Shared>::new(0);
    assert_eq!(Key::of(&futex).unwrap(), key(ptr::from_ref(&futex).expose_provenance()));
}

fn numa<S: Scope>(word: &NumaFutex<S>) {
    let past = Some(Deadline::monotonic(Duration::ZERO));
    assert_eq!(word.node(), None);
    assert_eq!(word.wait(8, past).unwrap_err().raw_os_error(), libc::EAGAIN);
    let node = word.node().unwrap();
    assert_eq!(word.wait(7, past).unwrap_err().raw_os_error(), libc::ETIMEDOUT);
    let soon = Deadline::after(Duration::from_millis(2));
    assert_eq!(word.wait(7, Some(soon)).unwrap_err().raw_os_error(), libc::ETIMEDOUT);
    assert_eq!((word.wake(0).unwrap(), word.wake(1).unwrap(), word.node()), (0, 0, Some(node)));
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| word.wait(7, Some(Deadline::after(Duration::from_secs(60)))));
        let mut woken = 0;
        while woken == 0 && !waiter.is_finished() {
            woken = word.wake(9).unwrap();
        }
        assert!(woken <= 1);
        waiter.join().unwrap().unwrap();
    });
    std::thread::scope(|scope| {
        let waiters = [(); 2].map(|()| scope.spawn(|| word.wait_while(7, None).unwrap()));
        word.store(8, Ordering::Release);
        word.wake_all().unwrap();
        assert_eq!(waiters.map(|waiter| waiter.join().unwrap()), [8, 8]);
        word.store(7, Ordering::Relaxed);
    });
    assert!(word.wait_while(7, past).unwrap_err().is_timed_out());
    // A node that no machine has.
    word.set_node(Some(5000));
    assert!(word.wait(7, past).unwrap_err().is_invalid() && word.wake(1).unwrap_err().is_invalid());
    word.set_node(None);
    match word.choose_by_policy() {
        Ok(chosen) => assert_eq!(word.node(), Some(chosen)),
        Err(error) => assert!(error.is_unsupported()),
    }
    assert_eq!((word.load(Ordering::Relaxed), word.value().load(Ordering::Relaxed)), (7, 7));
}

/// Kernel `futex_numa`: a value and a node, by the kernel and by us.
#[test]
fn numa_words() {
    let Some(wanted) = role() else {
        for wanted in ["kernel", "here"] {
            let mut command = child("numa_words", wanted);
            command.env("UNMERGED_FUTEX2_NUMA", wanted);
            succeed(command);
        }
        return;
    };
    if wanted == "kernel" && !unmerged::probe().has("futex-numa") {
        missing("futex-numa", "the node is a word of ours");
    }
    numa(&NumaFutex::<Private>::new(7));
    numa(&NumaFutex::<Shared>::new(7));
}

/// A filter that refuses the calls with a node after the first use: waits and wakes go on.
#[test]
fn numa_words_behind_a_filter() {
    if role().is_none() {
        return succeed(child("numa_words_behind_a_filter", "alone"));
    }
    numa(&NumaFutex::<Private>::new(7));
    let [wait, wake] = [455, 454];
    refuse(wait, libc::EPERM);
    refuse(wake, libc::ENOSYS);
    numa(&NumaFutex::<Private>::new(7));
    numa(&NumaFutex::<Shared>::new(7));
}

/// A file is cut under a waiter: it sleeps on, a wake is EFAULT; and when the page is there again a
/// wake finds it.
#[test]
fn a_file_cut_under_a_waiter() {
    let memory = file(PAGE as i64);
    let at = page(WRITE, libc::MAP_SHARED, memory.as_raw_fd());
    let cut = |len| {
        // SAFETY: our own file.
        assert_eq!(unsafe { libc::ftruncate(memory.as_raw_fd(), len) }, 0);
    };
    std::thread::scope(|scope| {
        let waiter = asleep(scope, || {
            // SAFETY: a page again when it is woken; the kernel answers EFAULT before.
            unsafe { raw::wait(at, 0, ANY, SIZE_U32, ptr::null(), MONOTONIC) }
        });
        cut(0);
        assert_eq!(code(raw::wake(at, ANY, 1, SIZE_U32)), libc::EFAULT);
        assert!(!waiter.is_finished());
        cut(PAGE as i64);
        assert_eq!(raw::wake(at, ANY, 1, SIZE_U32).unwrap(), 1);
        waiter.join().unwrap().unwrap();
    });
}

/// A wake of less than none wakes one, and a wake of none nobody, while two wait.
#[test]
fn a_wake_of_less_than_none() {
    let at = page(WRITE, ANONYMOUS, -1);
    for flags in [SIZE_U8, SIZE_U16, SIZE_U32, SIZE_U32 | PRIVATE] {
        let all = u64::from(u32::MAX >> (32 - (8 << (flags & 3))));
        std::thread::scope(|scope| {
            let waiters = [(); 2].map(|()| {
                asleep(scope, || {
                    // SAFETY: mapped for good.
                    unsafe { raw::wait(at, 0, all, flags, ptr::null(), MONOTONIC) }
                })
            });
            assert_eq!(raw::wake(at, all, 0, flags).unwrap(), 0);
            assert_eq!(raw::wake(at, all, -1, flags).unwrap(), 1);
            assert_eq!(raw::wake(at, all, i32::MIN, flags).unwrap(), 1);
            for waiter in waiters {
                waiter.join().unwrap().unwrap();
            }
        });
    }
}

/// The kernel has no memory for a vector: an error of whoever asked, and nothing else changes.
#[test]
fn no_memory_for_a_vector() {
    if role().is_none() {
        return succeed(child("no_memory_for_a_vector", "alone"));
    }
    if futex2::implementation() != futex2::Implementation::Waitv {
        return missing("futex-waitv", "nothing to refuse");
    }
    refuse(libc::SYS_futex_waitv, libc::ENOMEM);
    let (word, byte, wide) = (Futex::<u32>::new(0), Futex::<u8>::new(0), Futex::<u64>::new(0));
    let entries = [word.waiter(0), byte.waiter(0)];
    let event = Event::<Private>::new(false);
    for error in [
        wide.wait(0, None).unwrap_err(),
        futex2::waitv(&entries, None).unwrap_err(),
        select(&[&entries[0], &event], None).unwrap_err(),
    ] {
        assert!(error.is_exhausted() && error.raw_os_error() == libc::ENOMEM, "{error}");
    }
    assert_eq!(futex2::implementation(), futex2::Implementation::Waitv);
}

extern "C" fn ignore(_: libc::c_int) {}

/// A wait that asks for it ends with EINTR after a handled signal: every size and scope, with and
/// without `SA_RESTART`, with and without a deadline; and a vector.
#[test]
fn interruptible_waits() {
    if role().is_none() {
        for way in ["waitv", "shadow"] {
            let mut command = child("interruptible_waits", way);
            command.env("UNMERGED_FUTEX2", way);
            succeed(command);
        }
        return;
    }
    fn interrupted(wait: impl Fn() -> unmerged::Result<()> + Sync) {
        let thread = AtomicU64::new(0);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                // SAFETY: names this thread.
                thread.store(unsafe { libc::pthread_self() }, Ordering::SeqCst);
                let answer = wait();
                done.store(true, Ordering::SeqCst);
                answer
            });
            while !done.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_micros(200));
                let thread = thread.load(Ordering::SeqCst);
                if thread != 0 {
                    // SAFETY: the thread is not joined before the scope ends.
                    unsafe { libc::pthread_kill(thread, libc::SIGUSR1) };
                }
            }
            assert_eq!(waiter.join().unwrap().unwrap_err().raw_os_error(), libc::EINTR);
        });
    }
    fn each<T: Word + Default, S: Scope>(deadline: Option<Deadline>) {
        let word = Futex::<T, S>::default();
        let options = Options::new().interruptible();
        interrupted(|| word.wait_with(T::default(), deadline, options));
        if S::PRIVATE {
            let entries = || [word.waiter(T::default())];
            interrupted(|| waitv_with(&entries(), deadline, options).map(drop));
        }
    }
    for flags in [0, libc::SA_RESTART] {
        // SAFETY: a handler that does nothing.
        unsafe { handle_with(&[libc::SIGUSR1], flags, ignore) };
        for deadline in [None, Some(Deadline::after(Duration::from_secs(60)))] {
            each::<u8, Private>(deadline);
            each::<u16, Shared>(deadline);
            each::<u32, Private>(deadline);
            each::<u32, Shared>(deadline);
            each::<u64, Private>(deadline);
            each::<u64, Shared>(deadline);
        }
        // A vector that does not ask for it goes on.
        let (word, thread) = (Futex::<u32>::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                // SAFETY: names this thread.
                thread.store(unsafe { libc::pthread_self() }, Ordering::SeqCst);
                futex2::waitv(&[word.waiter(0)], None)
            });
            for _ in 0..20 {
                std::thread::sleep(Duration::from_micros(200));
                let thread = thread.load(Ordering::SeqCst);
                if thread != 0 {
                    // SAFETY: the thread is not joined before the scope ends.
                    unsafe { libc::pthread_kill(thread, libc::SIGUSR1) };
                }
            }
            while word.wake(1) == 0 && !waiter.is_finished() {
                std::thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(waiter.join().unwrap().unwrap(), 0);
        });
    }
}
