//! The mutex of futex2 among the threads of one process.

mod common;
#[path = "common/locks.rs"]
mod locks;

use common::asleep;
use locks::{LONG, Plain, ROUNDS, WAITERS, WANTS, past, soon, threads, turns_of_hogs};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;
use unmerged::futex2::lock::{Mutex, MutexGuard};
use unmerged::futex2::{Deadline, Private, Scope, Shared};

fn mutex<S: Scope>() {
    let (mutex, plain) = (Mutex::<(), S>::new(()), Plain::new());
    threads(4, |me| {
        for round in 0..ROUNDS / 4 {
            let guard = match (round + me) % 5 {
                0 => mutex.try_lock_until(Deadline::after(LONG)).unwrap(),
                1 => loop {
                    match mutex.try_lock_until(Deadline::after(Duration::from_micros(20))) {
                        Ok(guard) => break guard,
                        Err(error) => assert!(error.is_timed_out()),
                    }
                },
                2 => mutex.try_lock().unwrap_or_else(|| mutex.lock()),
                _ => mutex.lock(),
            };
            // SAFETY: the lock is held.
            unsafe { plain.add_one() };
            if round % 7 == 0 {
                MutexGuard::unlock_fair(guard);
            }
        }
    });
    assert_eq!(plain.check(), ROUNDS as u64);
    assert!(!mutex.is_locked());
}

#[test]
fn mutex_private() {
    mutex::<Private>();
}

#[test]
fn mutex_shared() {
    mutex::<Shared>();
}

/// Of std's and parking_lot's suites: try_lock, into_inner, get_mut, a mutex in a mutex, unsized,
/// access while unwinding, Debug.
#[test]
fn mutex_smoke() {
    let mut mutex = Mutex::<_>::new(vec![1]);
    assert!(format!("{mutex:?}").contains("[1]"));
    let guard = mutex.lock();
    assert!(mutex.try_lock().is_none() && mutex.is_locked());
    assert!(mutex.try_lock_until(past()).unwrap_err().is_timed_out());
    assert!(mutex.try_lock_until(soon()).unwrap_err().is_timed_out());
    assert!(format!("{mutex:?}").contains("locked"));
    drop(guard);
    mutex.get_mut().push(2);
    assert_eq!(mutex.into_inner(), [1, 2]);
    let nested = Mutex::<_>::new(Mutex::<_>::new(1));
    *nested.lock().lock() += 1;
    let unsized_: &Mutex<[i32]> = &Mutex::new([1, 2, 3]);
    unsized_.lock()[0] = 4;
    assert_eq!(*unsized_.lock(), [4, 2, 3]);
    // No poison: a panic gives the lock back.
    let result = catch_unwind(AssertUnwindSafe(|| {
        let _guard = nested.lock();
        std::panic::resume_unwind(Box::new(()));
    }));
    assert!(result.is_err() && !nested.is_locked());
    assert_eq!(*nested.lock().lock(), 2);
}

/// A hand-over: from the unlock on the lock is the sleeper's, and looks locked until that one
/// has had it.
#[test]
fn a_fair_unlock_hands_over() {
    (0..20).for_each(|_| assert!(is_handed_over()));
}

fn is_handed_over() -> bool {
    let mutex = Mutex::<u32>::new(0);
    std::thread::scope(|scope| {
        let guard = mutex.lock();
        asleep(scope, || *mutex.lock() = 1);
        MutexGuard::unlock_fair(guard);
        // Who locks would wait for the sleeper as well, but not for long.
        while mutex.is_locked() {
            std::thread::yield_now();
        }
        *mutex.lock() == 1
    })
}

#[test]
fn hogs_of_a_mutex_starve_nobody() {
    fn run<S: Scope>() {
        let mutex = Mutex::<(), S>::new(());
        let turn = |held: &dyn Fn()| {
            if let Some(_guard) = mutex.try_lock() {
                held();
            }
        };
        let turns = turns_of_hogs(|| mutex.is_locked(), turn, || drop(mutex.lock()));
        eprintln!("{turns} turns of the hogs, {} of the others", WAITERS * WANTS);
    }
    run::<Private>();
    run::<Shared>();
}
