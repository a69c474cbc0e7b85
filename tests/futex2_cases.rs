//! The cases of `tests/futex2-cases.md` that have no other place: memory of every kind under a word,
//! vectors over many objects, moves among forked waiters.

mod common;
#[path = "common/processes.rs"]
mod processes;

use common::{asleep, map, missing};
use processes::{alone, far, file, fork, is_asleep, shared, until, wait_for};
use std::io::{Seek, Write};
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use unmerged::futex2::raw::{self, FutexWaitv, SIZE_U32};
use unmerged::futex2::{
    self, Deadline, Futex, Implementation, Private, Scope, Shared, Word, implementation, waitv,
};

const PAGE: usize = 4096;

/// One waits, and one wake reaches exactly that one.
fn one<T: Word + Default, S: Scope>(word: &Futex<T, S>) {
    std::thread::scope(|scope| {
        let waiter = asleep(scope, || word.wait(T::default(), Some(far())));
        // A call of the waiter's may be another one than that on this word.
        let mut woken = 0;
        until("a waiter", || {
            woken = word.wake(1);
            woken != 0 || waiter.is_finished()
        });
        let counts = size_of::<T>() < 8 || implementation() == Implementation::Waitv;
        assert!(woken == 1 || (!counts && woken == 0), "{woken} woken");
        waiter.join().unwrap().unwrap();
    });
    assert_eq!(word.wake_all(), 0);
}

/// The same with words of all sizes in one page.
///
/// # Safety
///
/// The page is zeros, mapped for good, and nobody else's.
unsafe fn one_of_each_size<S: Scope>(page: *mut u8) {
    // SAFETY: vouched for by the caller; inside the page, and aligned.
    unsafe {
        one(&*page.add(3).cast::<Futex<u8, S>>());
        one(&*page.add(66).cast::<Futex<u16, S>>());
        one(&*page.add(128).cast::<Futex<u32, S>>());
        one(&*page.add(256).cast::<Futex<u64, S>>());
    }
}

fn page(access: i32, flags: i32, fd: i32) -> *mut u8 {
    // SAFETY: a new mapping, for good.
    let at = unsafe { libc::mmap(ptr::null_mut(), PAGE, access, flags, fd, 0) };
    assert_ne!(at, libc::MAP_FAILED);
    at.cast()
}

const WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;
const ANONYMOUS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;

/// Kernel `futex_wait`: private memory, a System V segment, a file on a disk.
#[test]
fn memory_of_every_kind() {
    // SAFETY: new pages.
    unsafe {
        one_of_each_size::<Private>(page(WRITE, ANONYMOUS, -1));
        one_of_each_size::<Shared>(page(WRITE, ANONYMOUS, -1));
    }
    let mut on_disk = tempfile::tempfile().unwrap();
    on_disk.write_all(&[0; PAGE]).unwrap();
    on_disk.rewind().unwrap();
    let mapped = page(WRITE, libc::MAP_SHARED, on_disk.as_raw_fd());
    // SAFETY: a new page.
    unsafe { one_of_each_size::<Shared>(mapped) };
    // SAFETY: a new segment.
    let id = unsafe { libc::shmget(libc::IPC_PRIVATE, PAGE, libc::IPC_CREAT | 0o600) };
    if id < 0 {
        return missing("sysv-shm", "memory files alone");
    }
    // SAFETY: attached for good; its id goes with the last one.
    unsafe {
        let at = libc::shmat(id, ptr::null(), 0);
        assert_eq!(libc::shmctl(id, libc::IPC_RMID, ptr::null_mut()), 0);
        assert_ne!(at, libc::MAP_FAILED);
        one_of_each_size::<Shared>(at.cast());
    }
}

/// Kernel `futex_wait_private_mapped_file`: a page of a file, which is copied while one waits on it.
#[test]
fn a_page_that_is_copied() {
    let page = page(WRITE, libc::MAP_PRIVATE, file(PAGE).as_raw_fd());
    // SAFETY: a new page, for good.
    let (word, beside) =
        unsafe { (&*page.cast::<Futex<u32>>(), &*page.add(64).cast::<AtomicU32>()) };
    std::thread::scope(|scope| {
        let waiter = asleep(scope, || word.wait(0, Some(far())));
        beside.store(1, SeqCst);
        until("a waiter", || word.wake(1) == 1);
        waiter.join().unwrap().unwrap();
    });
}

/// Kernel `futex_wait_uninitialized_heap`: a page that nobody has touched holds zeros.
#[test]
fn an_untouched_page() {
    // SAFETY: a new page, for good.
    let word = || unsafe { &*page(WRITE, ANONYMOUS, -1).cast::<Futex<u64>>() };
    assert!(word().wait(1, None).unwrap_err().is_would_block());
    // SAFETY: as above.
    let shared = unsafe { &*page(WRITE, ANONYMOUS, -1).cast::<Futex<u32, Shared>>() };
    assert!(shared.wait(1, None).unwrap_err().is_would_block());
    let entries = [word().waiter(0), word().waiter(1)];
    assert!(waitv(&entries, None).unwrap_err().is_would_block());
}

/// Proposal and kernel `futex_waitv`, LTP `futex_waitv03`: each entry in an object of its own, and as
/// many as there may be; the last one is woken, the answer is its index.
#[test]
fn a_vector_over_many_objects() {
    if implementation() != Implementation::Waitv {
        return missing("futex-waitv", "a wake without a change is seen by private words only");
    }
    for n in [1, 30, 128] {
        // SAFETY: new mappings, for good.
        let words: Vec<&Futex<u32, Shared>> =
            (0..n).map(|_| unsafe { map(&file(PAGE), PAGE).cast().as_ref() }).collect();
        std::thread::scope(|scope| {
            let waiter = asleep(scope, || {
                let entries: Vec<_> = words.iter().map(|word| word.waiter(0)).collect();
                waitv(&entries, Some(far()))
            });
            assert_eq!(words[n - 1].wake(1), 1);
            assert_eq!(waiter.join().unwrap().unwrap(), n - 1);
        });
    }
}

/// Kernel `futex_wait_timeout`: a vector ends at a deadline of either clock.
#[test]
fn vectors_end_on_both_clocks() {
    let (word, long) = (Futex::<u16>::new(0), Futex::<u64, Shared>::new(0));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let soon = Duration::from_millis(3);
    for deadline in [Deadline::after(soon), Deadline::realtime(now + soon)] {
        let error = waitv(&[word.waiter(0), long.waiter(0)], Some(deadline)).unwrap_err();
        assert!(error.is_timed_out() && deadline.has_passed());
    }
}

/// The proposal's `futex2_requeue` between sizes, which the kernel has no more: from 16 to 32 bits,
/// and back.
#[test]
fn moves_between_16_and_32_bits() {
    fn run<T: Word + Default, U: Word + Default>() {
        let (from, to) = (Futex::<T>::default(), Futex::<U>::default());
        std::thread::scope(|scope| {
            for _ in 0..10 {
                asleep(scope, || from.wait(T::default(), Some(far())).unwrap());
            }
            assert_eq!(from.cmp_requeue(T::default(), &to, 3, 7).unwrap(), 10);
            // Between sizes those that are moved are woken.
            assert_eq!((to.wake_all(), from.wake_all()), (0, 0));
        });
    }
    run::<u16, u32>();
    run::<u32, u16>();
}

/// LTP `futex_cmp_requeue03`: either word where nothing is mapped, or nothing may be touched.
#[test]
fn moves_where_nothing_is() {
    // Other tests would map something there.
    if !alone("moves_where_nothing_is") {
        return;
    }
    let closed = page(libc::PROT_NONE, ANONYMOUS, -1);
    let (here, gone) = (page(WRITE, ANONYMOUS, -1), page(WRITE, ANONYMOUS, -1));
    // SAFETY: our own page, which nobody uses.
    unsafe { libc::munmap(gone.cast(), PAGE) };
    let entry = |at: *mut u8| FutexWaitv {
        val: 0,
        uaddr: at.expose_provenance() as u64,
        flags: SIZE_U32,
        reserved: 0,
    };
    let good = entry(here);
    for bad in [entry(closed), entry(gone)] {
        for pair in [[good, bad], [bad, good]] {
            // SAFETY: nobody waits, and what is not mapped stays so.
            let error = unsafe { raw::requeue(pair.as_ptr(), 0, 1, 1) }.unwrap_err();
            assert_eq!(error.raw_os_error(), libc::EFAULT);
        }
    }
}

/// LTP `futex_cmp_requeue01`, `futex_wake02` and `03`: waiters are forked processes; so many are woken,
/// so many moved, and each of them is found once.
#[test]
fn forked_waiters() {
    #[repr(C)]
    struct Stage {
        from: Futex<u32, Shared>,
        to: Futex<u32, Shared>,
        came: AtomicU32,
    }
    if !alone("forked_waiters") {
        return;
    }
    let few = [(10, 3, 7), (10, 0, 10), (10, 2, 6), (100, 50, 50), (100, 0, 70), (20, 20, 0)];
    let many = [(1000, 100, 900), (1000, 300, 500)];
    let long = std::env::var("UNMERGED_STRESS_SECONDS").is_ok();
    for (waiters, wake, requeue) in few.into_iter().chain(many.into_iter().filter(|_| long)) {
        let stage: &'static Stage = shared();
        let children: Vec<_> = (0..waiters)
            .map(|_| {
                fork(|| {
                    stage.came.fetch_add(1, SeqCst);
                    stage.from.wait(0, Some(far())).is_ok()
                })
            })
            .collect();
        let all_sleep =
            || stage.came.load(SeqCst) == waiters && children.iter().all(|&child| is_asleep(child));
        until("forked waiters", all_sleep);
        let error = stage.from.cmp_requeue(1, &stage.to, wake, requeue).unwrap_err();
        assert!(error.is_would_block());
        let touched = stage.from.cmp_requeue(0, &stage.to, wake, requeue).unwrap();
        assert_eq!(touched, (wake + requeue) as usize);
        assert_eq!(stage.to.wake_all(), requeue as usize);
        assert_eq!(stage.from.wake_all(), waiters as usize - touched);
        children.into_iter().for_each(|child| assert_eq!(wait_for(child), 0));
    }
}

/// test262: a wake of 0, of 1, of 2, of more than wait and of all, on 32 and on 64 bits; at another word
/// of the same array nobody is woken.
#[test]
fn counts_of_wakes() {
    fn run<T: Word + Default>() {
        let words = [Futex::<T>::default(), Futex::<T>::default()];
        for (n, woken) in [(0, 0), (1, 1), (2, 2), (9, 3), (u32::MAX, 3)] {
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    asleep(scope, || words[0].wait(T::default(), Some(far())).unwrap());
                }
                assert_eq!(words[1].wake(u32::MAX), 0);
                assert_eq!(words[0].wake(n), woken);
                assert_eq!(words[0].wake_all(), 3 - woken);
            });
        }
    }
    run::<u32>();
    if implementation() == Implementation::Waitv {
        run::<u64>();
    } else {
        missing("futex-waitv", "64 bits wake all that sleep in a shadow");
    }
    assert_eq!(futex2::wake(&AtomicU32::new(0), Private, 1).unwrap(), 0);
}

/// The table of cases names tests that exist.
#[test]
fn the_table_of_cases_is_true() {
    let sources = [
        ("futex2", include_str!("futex2.rs")),
        ("futex2_cases", include_str!("futex2_cases.rs")),
        ("futex2_channel", include_str!("futex2_channel.rs")),
        ("futex2_channel_peers", include_str!("futex2_channel_peers.rs")),
        ("futex2_crowds", include_str!("futex2_crowds.rs")),
        ("futex2_domain", include_str!("futex2_domain.rs")),
        ("futex2_errors", include_str!("futex2_errors.rs")),
        ("futex2_fences", include_str!("futex2_fences.rs")),
        ("futex2_life", include_str!("futex2_life.rs")),
        ("futex2_locks_shared", include_str!("futex2_locks_shared.rs")),
        ("futex2_select", include_str!("futex2_select.rs")),
        ("futex2_steps", include_str!("futex2_steps.rs")),
        ("futex2_storms", include_str!("futex2_storms.rs")),
        ("futex2_uring", include_str!("futex2_uring.rs")),
        ("futex2_vector", include_str!("futex2_vector.rs")),
        ("counts_models.rs", include_str!("../src/futex2/counts_models.rs")),
        ("deadline.rs", include_str!("../src/futex2/deadline.rs")),
        ("event.rs", include_str!("../src/futex2/lock/event.rs")),
    ];
    let mut named = 0;
    for name in include_str!("futex2-cases.md").split('`') {
        let Some((file, test)) = name.split_once("::") else { continue };
        let source = match sources.iter().find(|(name, _)| *name == file) {
            Some((_, source)) => source,
            // The form itself.
            None if file == "file" || file == "file.rs" => continue,
            None => panic!("{file} is no file of tests"),
        };
        let there = [format!("fn {test}("), format!("fn {test}<")];
        assert!(there.iter().any(|there| source.contains(there)), "{name} does not exist");
        named += 1;
    }
    assert!(named > 100, "{named}");
}
