//! The condition variable of futex2 among the threads of one process.

mod common;
#[path = "common/locks.rs"]
mod locks;

use common::{own_tid, until_asleep};
use locks::{LONG, past, soon, threads};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use unmerged::futex2::lock::{Condvar, Mutex, MutexGuard};
use unmerged::futex2::{Private, Scope, Shared};

fn condvar<S: Scope>() {
    // std's: one tells, one is told; deadlines; all are told.
    let (mutex, condvar) = (Mutex::<u32, S>::new(0), Condvar::<S>::new());
    condvar.notify_one();
    condvar.notify_all();
    let mut guard = mutex.lock();
    for deadline in [past(), soon()] {
        while let Ok(()) = condvar.wait_until(&mut guard, deadline) {}
        assert!(deadline.has_passed());
    }
    drop(guard);
    threads(5, |me| {
        if me == 0 {
            for _ in 0..4 {
                *mutex.lock() += 1;
                condvar.notify_one();
            }
        } else {
            let mut guard = mutex.lock();
            condvar.wait_while(&mut guard, |n| *n == 0);
            *guard -= 1;
        }
    });
    assert_eq!(mutex.into_inner(), 0);
}

#[test]
fn condvar_private() {
    condvar::<Private>();
}

#[test]
fn condvar_shared() {
    condvar::<Shared>();
}

/// A queue of one place, several producers and consumers, one condition for all: each change tells
/// all. Nothing is lost, and nobody is left asleep.
#[test]
fn notify_all_reaches_all() {
    const ITEMS: u64 = 2000;
    fn run<S: Scope>() {
        let (queue, changed) = (Mutex::<Option<u64>, S>::new(None), Condvar::<S>::new());
        let sum = AtomicU64::new(0);
        threads(6, |me| {
            for item in 0..ITEMS / 3 {
                let mut queue = queue.lock();
                if me < 3 {
                    changed.wait_while(&mut queue, |queue| queue.is_some());
                    *queue = Some(item);
                } else {
                    changed.wait_while(&mut queue, |queue| queue.is_none());
                    sum.fetch_add(queue.take().unwrap(), Ordering::Relaxed);
                }
                drop(queue);
                changed.notify_all();
            }
        });
        assert_eq!(sum.into_inner(), 3 * (0..ITEMS / 3).sum::<u64>());
    }
    run::<Private>();
    run::<Shared>();
}

/// What a thread of ours sleeps on, if it is in futex(2).
fn sleeps_on(tid: i32) -> Option<usize> {
    let doing = std::fs::read_to_string(format!("/proc/self/task/{tid}/syscall")).unwrap();
    let mut words = doing.split(' ');
    (words.next()? == libc::SYS_futex.to_string()).then_some(())?;
    usize::from_str_radix(words.next()?.trim_start_matches("0x"), 16).ok()
}

/// `notify_all` under the mutex: one wakes, and finds the mutex held; the others are moved to it and
/// sleep on, each in the wait that it has begun. A herd would come to the mutex, too.
#[test]
fn waiters_are_moved_not_herded() {
    const WAITERS: usize = 12;
    let (mutex, condvar) = (Mutex::<bool>::new(false), Condvar::<Private>::new());
    let tids: Vec<_> = (0..WAITERS).map(|_| AtomicI32::new(0)).collect();
    std::thread::scope(|scope| {
        for tid in &tids {
            scope.spawn(|| {
                let mut guard = mutex.lock();
                tid.store(own_tid(), Ordering::SeqCst);
                condvar.wait_while(&mut guard, |told| !*told);
            });
        }
        let tids = || tids.iter().map(|tid| tid.load(Ordering::SeqCst));
        while tids().any(|tid| tid == 0) {
            std::thread::yield_now();
        }
        let mut guard = mutex.lock();
        tids().for_each(until_asleep);
        let of = |at: usize| tids().filter(|tid| sleeps_on(*tid) == Some(at)).count();
        let around = std::ptr::from_ref(&mutex).addr() & !3;
        let condition = std::ptr::from_ref(&condvar).addr();
        assert_eq!(of(condition), WAITERS);
        *guard = true;
        condvar.notify_all();
        let begin = std::time::Instant::now();
        while of(around) == 0 {
            assert!(begin.elapsed() < LONG, "nobody comes to the mutex");
            std::thread::yield_now();
        }
        assert_eq!((of(around), of(condition)), (1, WAITERS - 1));
        drop(guard);
    });
}

/// Two mutexes with one condition, one after the other, and a guard of an unsized value.
#[test]
fn one_mutex_after_the_other() {
    let condvar = Condvar::<Private>::new();
    let mutexes = [Mutex::<_>::new([1]), Mutex::<_>::new([2])];
    for mutex in &mutexes {
        let mutex: &Mutex<[i32]> = mutex;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                mutex.lock()[0] = 0;
                condvar.notify_all();
            });
            let mut guard: MutexGuard<'_, [i32]> = mutex.lock();
            condvar.wait_while(&mut guard, |value| value[0] != 0);
        });
    }
}

/// Two mutexes at one time: who comes second is told, still has its mutex, and disturbs nobody.
#[test]
fn two_mutexes_at_one_time() {
    let condvar = Condvar::<Private>::new();
    let (first, second) = (Mutex::<bool>::new(false), Mutex::<_>::new(()));
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let mut guard = first.lock();
            condvar.wait_while(&mut guard, |is_done| !*is_done);
        });
        // Counted, with its mutex given back.
        while format!("{condvar:?}") != "Condvar { waiters: 1 }" {
            std::thread::yield_now();
        }
        drop(first.lock());
        let wrong = scope.spawn(|| {
            let mut guard = second.lock();
            condvar.wait(&mut guard);
        });
        assert!(wrong.join().is_err());
        assert!(second.try_lock().is_some(), "given back as the panic went by");
        *first.lock() = true;
        condvar.notify_all();
        waiter.join().unwrap();
    });
    // With the other one, now that nobody waits.
    assert!(condvar.wait_until(&mut second.lock(), soon()).is_err());
}

/// The same in shared memory, where no panic may come of what others wrote.
#[test]
fn two_mutexes_of_shared_memory() {
    let condvar = Condvar::<Shared>::new();
    let mutexes = [Mutex::<bool, Shared>::new(false), Mutex::new(false)];
    std::thread::scope(|scope| {
        for mutex in &mutexes {
            scope.spawn(|| {
                let mut guard = mutex.lock();
                condvar.wait_while(&mut guard, |is_done| !*is_done);
            });
        }
        for mutex in &mutexes {
            *mutex.lock() = true;
        }
        condvar.notify_all();
    });
}
