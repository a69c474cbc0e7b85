//! The semaphore, the events and the once of futex2 among the threads of one process.

mod common;
#[path = "common/locks.rs"]
mod locks;

use common::asleep;
use locks::{Plain, ROUNDS, past, soon, threads};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;
use unmerged::futex2::lock::{AutoEvent, Event, Once, Semaphore};
use unmerged::futex2::{Deadline, Private, Scope, Shared};

fn semaphore<S: Scope>() {
    const PERMITS: u32 = 2;
    let semaphore = Semaphore::<S>::new(PERMITS);
    let inside = AtomicU32::new(0);
    threads(5, |me| {
        for round in 0..ROUNDS / 5 {
            if (round + me) % 3 == 0 {
                if semaphore.acquire_until(Deadline::after(Duration::from_micros(20))).is_err() {
                    continue;
                }
            } else {
                semaphore.acquire();
            }
            assert!(inside.fetch_add(1, Ordering::SeqCst) < PERMITS);
            inside.fetch_sub(1, Ordering::SeqCst);
            semaphore.release(1).unwrap();
        }
    });
    assert_eq!(semaphore.available(), PERMITS);
    // Many at once reach as many.
    let semaphore = Semaphore::<S>::new(0);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| semaphore.acquire());
        }
        semaphore.release(2).unwrap();
        semaphore.release(4).unwrap();
    });
    assert!(!semaphore.try_acquire());
    assert!(semaphore.acquire_until(soon()).unwrap_err().is_timed_out());
    semaphore.release(Semaphore::<S>::MOST).unwrap();
    let error = semaphore.release(1).unwrap_err();
    assert_eq!((error.raw_os_error(), semaphore.try_acquire()), (libc::EOVERFLOW, true));
    assert!(error.to_string().contains("2147483647 + 1 of at most 2147483647"), "{error}");
}

#[test]
fn semaphore_private() {
    semaphore::<Private>();
}

#[test]
fn semaphore_shared() {
    semaphore::<Shared>();
}

#[test]
fn no_permits_wake_nobody_and_forget_nobody() {
    let semaphore = Semaphore::<Private>::new(0);
    std::thread::scope(|scope| {
        let sleeper = asleep(scope, || semaphore.acquire());
        semaphore.release(0).unwrap();
        semaphore.release(1).unwrap();
        sleeper.join().unwrap();
    });
}

/// Each error has the name of what was called, whoever noticed that it is late.
#[test]
fn errors_name_the_call() {
    let (permits, auto, event) = (
        Semaphore::<Private>::default(),
        AutoEvent::<Shared>::default(),
        Event::<Shared>::default(),
    );
    for deadline in [past(), soon()] {
        let error = permits.acquire_until(deadline).unwrap_err();
        assert_eq!(error.operation(), "futex2::Semaphore::acquire");
        assert_eq!(auto.wait_until(deadline).unwrap_err().operation(), "futex2::AutoEvent::wait");
        assert_eq!(event.wait_until(deadline).unwrap_err().operation(), "futex2::Event::wait");
    }
}

fn events<S: Scope>() {
    let event = Event::<S>::new(false);
    assert!(event.wait_until(past()).unwrap_err().is_timed_out());
    assert!(event.wait_until(soon()).unwrap_err().is_timed_out() && !event.reset());
    // A pulse reaches all that wait.
    let ready = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let waiters: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    ready.fetch_add(1, Ordering::SeqCst);
                    event.wait();
                })
            })
            .collect();
        while !waiters.iter().all(|waiter| waiter.is_finished()) {
            event.set();
            event.reset();
            std::thread::yield_now();
        }
    });
    event.set();
    event.set();
    event.wait();
    assert!(event.is_set() && event.reset() && !event.is_set());
    // One that resets itself lets one through each time.
    let auto = AutoEvent::<S>::new(false);
    auto.set();
    auto.set();
    assert!(auto.is_set() && auto.reset() && !auto.reset());
    assert!(auto.wait_until(soon()).unwrap_err().is_timed_out());
    let (turns, back) = (AtomicU32::new(0), AutoEvent::<S>::new(false));
    threads(2, |me| {
        for _ in 0..500 {
            if me == 0 {
                auto.set();
                back.wait();
            } else {
                auto.wait();
                turns.fetch_add(1, Ordering::SeqCst);
                back.set();
            }
        }
    });
    assert_eq!(turns.into_inner(), 500);
}

#[test]
fn events_private() {
    events::<Private>();
}

#[test]
fn events_shared() {
    events::<Shared>();
}

#[test]
fn once_and_panics() {
    fn run<S: Scope>() {
        let (once, plain) = (Once::<S>::new(), Plain::new());
        let failed = catch_unwind(AssertUnwindSafe(|| {
            once.call_once(|| std::panic::resume_unwind(Box::new(())));
        }));
        assert!(failed.is_err() && !once.is_done());
        threads(6, |_| {
            // SAFETY: run once.
            once.call_once(|| unsafe { plain.add_one() });
            assert_eq!(plain.check(), 1);
        });
        assert!(once.is_done());
        once.call_once_until(past(), || panic!("done already")).unwrap();
        let busy = Once::<S>::new();
        busy.call_once(|| {
            let error = busy.call_once_until(soon(), || panic!("begun already")).unwrap_err();
            assert!(error.is_timed_out());
        });
    }
    run::<Private>();
    run::<Shared>();
}
