//! Waiting for the first of several: channels, locks, events.

mod common;
#[path = "common/ends.rs"]
mod ends;
#[path = "common/processes.rs"]
mod processes;

use common::asleep;
use ends::{Make, private, shared, soon};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread::{scope, sleep, yield_now};
use std::time::Duration;
use unmerged::futex2::lock::{Event, Mutex, Semaphore, Source, select};
use unmerged::futex2::{Deadline, Futex, Private, Scope, Shared, Word};

#[test]
fn both_ends_of_private_channels() {
    a_selection_of_both_ends(private);
}

#[test]
fn both_ends_of_shared_channels() {
    a_selection_of_both_ends(shared);
}

fn a_selection_of_both_ends<S: Scope>(make: Make<S>) {
    const ITEMS: u64 = 1000;
    let (to, from) = (make(1), make(2));
    scope(|scope| {
        scope.spawn(|| {
            for item in to.iter() {
                from.send(item + 1).unwrap();
            }
            from.close();
        });
        let (mut sent, mut received) = (0, 0);
        while received < ITEMS {
            let (sending, receiving) = (to.sending(), from.receiving());
            let sources: &[&dyn Source] =
                if sent < ITEMS { &[&receiving, &sending] } else { &[&receiving] };
            if select(sources, None).unwrap() == 0 {
                if let Ok(item) = from.try_recv() {
                    received += 1;
                    assert_eq!(item, received);
                }
            } else if to.try_send(sent).is_ok() {
                sent += 1;
            }
        }
        to.close();
    });
    assert!(from.recv().unwrap_err().is_closed());
}

fn waiting_for_one_of_two_locks<S: Scope>() {
    let locks: [Mutex<u64, S>; 2] = [Mutex::new(0), Mutex::new(0)];
    let stop = Event::<S>::new(false);
    let [one, two] = [locks[0].lock(), locks[1].lock()];
    let late = select(&[&locks[0], &locks[1], &stop], Some(soon())).unwrap_err();
    assert!(late.is_timed_out());
    scope(|scope| {
        let waiter = scope.spawn(|| select(&[&locks[0], &locks[1]], None).unwrap());
        sleep(Duration::from_millis(5));
        drop(two);
        assert_eq!(waiter.join().unwrap(), 1);
    });
    drop(one);
    assert_eq!(select(&[&stop, &locks[0]], None).unwrap(), 1);
    // Many of them beside such as wait for one lock alone: nobody stays asleep.
    let done = AtomicU64::new(0);
    scope(|scope| {
        for n in 0..3 {
            let (locks, stop, done) = (&locks, &stop, &done);
            scope.spawn(move || {
                for round in 0..200 {
                    let got = select(&[stop, &locks[(n + round) % 2], &locks[n % 2]], None);
                    let at = [2, (n + round) % 2, n % 2][got.unwrap()];
                    // It may be another one's by now, or not be wanted: the wake is passed on.
                    if round % 3 != 0
                        && let Some(mut value) = locks[at].try_lock()
                    {
                        *value += 1;
                        done.fetch_add(1, SeqCst);
                    }
                }
            });
            scope.spawn(move || {
                for round in 0..200 {
                    let mut value = locks[(n + round) % 2].lock();
                    *value += 1;
                    done.fetch_add(1, SeqCst);
                    if round % 16 == 0 {
                        yield_now();
                    }
                    if round % 5 == 0 {
                        unmerged::futex2::lock::MutexGuard::unlock_fair(value);
                    }
                }
            });
        }
    });
    assert_eq!(*locks[0].lock() + *locks[1].lock(), done.into_inner());
}

#[test]
fn one_of_two_private_locks() {
    waiting_for_one_of_two_locks::<Private>();
}

#[test]
fn one_of_two_shared_locks() {
    waiting_for_one_of_two_locks::<Shared>();
}

/// An event that is set and reset at once lets those through who select it, as it does those who
/// wait for it; whether it was set before they came does not count.
fn a_pulse<S: Scope>() {
    let (event, never) = (Event::<S>::new(false), Semaphore::<S>::new(0));
    event.set();
    assert!(event.reset());
    assert!(select(&[&event], Some(soon())).unwrap_err().is_timed_out());
    for round in 0..20 {
        scope(|scope| {
            let selector = asleep(scope, || select(&[&never, &event], None).unwrap());
            let waiter = asleep(scope, || event.wait());
            event.set();
            if round % 2 == 0 {
                event.reset();
                event.set();
            }
            event.reset();
            assert_eq!(selector.join().unwrap(), 1);
            waiter.join().unwrap();
        });
    }
    assert!(!event.is_set());
}

#[test]
fn a_pulse_of_a_private_event() {
    a_pulse::<Private>();
}

#[test]
fn a_pulse_of_a_shared_event() {
    a_pulse::<Shared>();
}

/// One channel is flooded, and one has an item now and then: who puts that one in front gets each
/// of its items at once, and all of the flood in between.
fn a_flood_behind<S: Scope>(make: Make<S>) {
    const FLOOD: u64 = 5000;
    let (rare, flood) = (make(4), make(64));
    scope(|scope| {
        scope.spawn(|| {
            (0..FLOOD).for_each(|item| flood.send(item).unwrap());
            flood.close();
        });
        let (mut next, mut round) = (0, 0_u64);
        while next < FLOOD {
            round += 1;
            let is_due = round.is_multiple_of(7);
            if is_due {
                rare.send(round).unwrap();
            }
            match select(&[&rare.receiving(), &flood.receiving()], None).unwrap() {
                0 => assert!(is_due && rare.try_recv().unwrap() == round),
                _ => {
                    assert!(!is_due);
                    if let Ok(item) = flood.try_recv() {
                        assert_eq!(item, next);
                        next += 1;
                    }
                }
            }
        }
    });
}

#[test]
fn a_flood_behind_a_private_channel() {
    a_flood_behind(private);
}

#[test]
fn a_flood_behind_a_shared_channel() {
    a_flood_behind(shared);
}

/// Too few and too many are told at once, whatever the sources have and the deadline says.
#[test]
fn no_sources_and_too_many() {
    let set = Event::<Private>::new(true);
    for n in [0, 129] {
        let sources: Vec<&dyn Source> = (0..n).map(|_| &set as &dyn Source).collect();
        for deadline in [None, Some(Deadline::monotonic(Duration::ZERO))] {
            let error = select(&sources, deadline).unwrap_err();
            assert!(error.is_invalid() && error.to_string().contains("select"), "{error}");
        }
    }
    let sources: Vec<&dyn Source> = (0..128).map(|_| &set as &dyn Source).collect();
    assert_eq!(select(&sources, None).unwrap(), 0);
}

/// A word among other sources: ready when it holds another value, and a wake that was spent on who takes
/// something else reaches the next one.
fn a_word<T: Word + From<u8>, S: Scope>() {
    let (word, stop) = (Futex::<T, S>::new(T::from(0)), Event::<S>::new(false));
    let waiter = word.waiter(T::from(0));
    assert!(select(&[&waiter, &stop], Some(soon())).unwrap_err().is_timed_out());
    scope(|scope| {
        let selector = scope.spawn(|| select(&[&stop, &waiter], None).unwrap());
        let other = scope.spawn(|| word.wait_while(T::from(0), None).unwrap());
        word.store(T::from(1), SeqCst);
        // Maybe too early for both; a select or a wait that begins now sees the value.
        word.wake(1);
        word.wake(1);
        assert_eq!(selector.join().unwrap(), 1);
        assert_eq!(other.join().unwrap(), T::from(1));
    });
    assert_eq!(select(&[&stop, &waiter], None).unwrap(), 1);
    stop.set();
    assert_eq!(select(&[&stop, &waiter], None).unwrap(), 0);
}

#[test]
fn a_word_as_a_source() {
    a_word::<u8, Private>();
    a_word::<u32, Private>();
    a_word::<u64, Private>();
    a_word::<u32, Shared>();
    a_word::<u64, Shared>();
}
