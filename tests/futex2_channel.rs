//! The channel of futex2: what users of a bounded channel expect, private and shared.

mod common;
#[path = "common/ends.rs"]
mod ends;
#[path = "common/processes.rs"]
mod processes;

use ends::{Make, soon};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::thread::{scope, sleep, spawn, yield_now};
use std::time::Duration;
use unmerged::futex2::lock::{Channel, channel};
use unmerged::futex2::{Deadline, Scope, Shared};

/// Each of these in both scopes.
macro_rules! in_both {
    ($($test:ident),+ $(,)?) => {
        mod in_private { $(#[test] fn $test() { super::$test(crate::ends::private); })+ }
        mod in_shared { $(#[test] fn $test() { super::$test(crate::ends::shared); })+ }
    };
}

in_both!(
    smoke,
    capacities,
    len_empty_full,
    receive_waits,
    receive_until,
    send_waits,
    send_until,
    after_the_end,
    the_end_wakes_senders,
    the_end_wakes_receivers,
    len_stays_in_bounds,
    one_to_one,
    many_to_many,
    timeouts_on_both_sides,
    iterators,
    an_item_at_a_time,
    linearizable,
    nothing_after_the_end,
);

fn smoke<S: Scope>(make: Make<S>) {
    let channel = make(1);
    channel.send(7).unwrap();
    assert_eq!(channel.try_recv().unwrap(), 7);
    channel.send(8).unwrap();
    assert_eq!(channel.recv().unwrap(), 8);
    assert!(channel.try_recv().unwrap_err().is_would_block());
    assert!(channel.recv_until(soon()).unwrap_err().is_timed_out());
}

/// Any number of slots, round after round: first in, first out.
fn capacities<S: Scope>(make: Make<S>) {
    for capacity in 1..=9 {
        let channel = make(capacity);
        assert_eq!(channel.capacity(), capacity);
        let (mut sent, mut received) = (0, 0);
        for round in 0..100_u32 {
            let n = u64::from(round % (capacity + 1));
            for _ in 0..n {
                channel.try_send(sent).unwrap();
                sent += 1;
            }
            assert_eq!(u64::from(channel.len()), n);
            if n == u64::from(capacity) {
                let error = channel.try_send(sent).unwrap_err();
                assert!(error.error.is_would_block() && error.item == sent);
            }
            for _ in 0..n {
                assert_eq!(channel.try_recv().unwrap(), received);
                received += 1;
            }
            assert!(channel.try_recv().unwrap_err().is_would_block());
        }
    }
}

fn len_empty_full<S: Scope>(make: Make<S>) {
    let channel = make(2);
    let state = |channel: &Channel<u64, S>| (channel.len(), channel.is_empty(), channel.is_full());
    assert_eq!(state(&channel), (0, true, false));
    channel.send(1).unwrap();
    assert_eq!(state(&channel), (1, false, false));
    channel.send(2).unwrap();
    assert_eq!(state(&channel), (2, false, true));
    channel.recv().unwrap();
    assert_eq!(state(&channel), (1, false, false));
}

fn receive_waits<S: Scope>(make: Make<S>) {
    let channel = make(100);
    scope(|scope| {
        scope.spawn(|| {
            (7..=9).for_each(|item| assert_eq!(channel.recv().unwrap(), item));
            assert!(channel.recv().unwrap_err().is_closed());
        });
        sleep(Duration::from_millis(5));
        (7..=9).for_each(|item| channel.send(item).unwrap());
        sleep(Duration::from_millis(5));
        channel.close();
    });
}

fn receive_until<S: Scope>(make: Make<S>) {
    let (channel, timed_out) = (make(100), AtomicUsize::new(0));
    scope(|scope| {
        scope.spawn(|| {
            assert!(channel.recv_until(soon()).unwrap_err().is_timed_out());
            timed_out.store(1, SeqCst);
            let late = Deadline::after(Duration::from_secs(20));
            assert_eq!(channel.recv_until(late).unwrap(), 7);
            assert!(channel.recv_until(late).unwrap_err().is_closed());
        });
        while timed_out.load(SeqCst) == 0 {
            yield_now();
        }
        channel.send(7).unwrap();
        sleep(Duration::from_millis(5));
        channel.close();
    });
    // What is there is received, also when the deadline has passed.
    let channel = make(1);
    let past = Deadline::monotonic(Duration::ZERO);
    channel.send_until(1, past).unwrap();
    assert_eq!(channel.recv_until(past).unwrap(), 1);
    assert!(channel.recv_until(past).unwrap_err().is_timed_out());
}

fn send_waits<S: Scope>(make: Make<S>) {
    let channel = make(2);
    scope(|scope| {
        scope.spawn(|| (1..=4).for_each(|item| channel.send(item).unwrap()));
        while !channel.is_full() {
            yield_now();
        }
        (1..=4).for_each(|item| assert_eq!(channel.recv().unwrap(), item));
    });
}

fn send_until<S: Scope>(make: Make<S>) {
    let channel = make(1);
    channel.send(1).unwrap();
    let error = channel.send_until(2, soon()).unwrap_err();
    assert!(error.error.is_timed_out() && error.item == 2);
    scope(|scope| {
        scope.spawn(|| {
            channel.send_until(3, Deadline::after(Duration::from_secs(20))).unwrap();
        });
        sleep(Duration::from_millis(5));
        assert_eq!((channel.recv().unwrap(), channel.recv().unwrap()), (1, 3));
    });
}

fn after_the_end<S: Scope>(make: Make<S>) {
    let channel = make(3);
    (1..=2).for_each(|item| channel.send(item).unwrap());
    assert!(channel.close() && !channel.close() && channel.is_closed());
    for error in [
        channel.send(3).unwrap_err(),
        channel.try_send(3).unwrap_err(),
        channel.send_until(3, soon()).unwrap_err(),
    ] {
        assert!(error.error.is_closed() && error.item == 3);
    }
    assert_eq!((channel.recv().unwrap(), channel.try_recv().unwrap()), (1, 2));
    for _ in 0..2 {
        assert!(channel.recv().unwrap_err().is_closed());
        assert!(channel.try_recv().unwrap_err().is_closed());
        assert!(channel.recv_until(soon()).unwrap_err().is_closed());
    }
    // One that was full.
    let channel = make(1);
    channel.send(1).unwrap();
    channel.close();
    assert!(channel.try_send(2).unwrap_err().error.is_closed());
    assert_eq!(channel.iter().collect::<Vec<_>>(), [1]);
}

fn the_end_wakes_senders<S: Scope>(make: Make<S>) {
    let channel = make(1);
    channel.send(0).unwrap();
    scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| assert!(channel.send(1).unwrap_err().error.is_closed()));
        }
        sleep(Duration::from_millis(5));
        channel.close();
    });
}

fn the_end_wakes_receivers<S: Scope>(make: Make<S>) {
    let channel = make(1);
    scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| assert!(channel.recv().unwrap_err().is_closed()));
        }
        sleep(Duration::from_millis(5));
        channel.close();
    });
}

fn len_stays_in_bounds<S: Scope>(make: Make<S>) {
    let channel = make(10);
    let left = AtomicUsize::new(2);
    scope(|scope| {
        scope.spawn(|| {
            for item in 0..3000 {
                assert_eq!(channel.recv().unwrap(), item);
                assert!(channel.len() <= 10);
            }
            left.fetch_sub(1, SeqCst);
        });
        scope.spawn(|| {
            for item in 0..3000 {
                channel.send(item).unwrap();
                assert!(channel.len() <= 10);
            }
            left.fetch_sub(1, SeqCst);
        });
        while left.load(SeqCst) != 0 {
            assert!(channel.len() <= 10);
            yield_now();
        }
    });
    assert_eq!(channel.len(), 0);
}

fn one_to_one<S: Scope>(make: Make<S>) {
    let channel = make(3);
    scope(|scope| {
        scope.spawn(|| {
            (0..5000).for_each(|item| assert_eq!(channel.recv().unwrap(), item));
            assert!(channel.recv().unwrap_err().is_closed());
        });
        (0..5000).for_each(|item| channel.send(item).unwrap());
        channel.close();
    });
}

fn many_to_many<S: Scope>(make: Make<S>) {
    const ITEMS: u64 = 2000;
    let channel = make(3);
    let seen: Vec<AtomicUsize> = (0..ITEMS).map(|_| AtomicUsize::new(0)).collect();
    scope(|outer| {
        for _ in 0..4 {
            outer.spawn(|| {
                for item in &channel {
                    seen[item as usize].fetch_add(1, SeqCst);
                }
            });
        }
        scope(|senders| {
            for _ in 0..4 {
                senders.spawn(|| (0..ITEMS).for_each(|item| channel.send(item).unwrap()));
            }
        });
        channel.close();
    });
    assert!(seen.iter().all(|seen| seen.load(SeqCst) == 4));
}

fn timeouts_on_both_sides<S: Scope>(make: Make<S>) {
    let channel = make(2);
    let short = || Deadline::after(Duration::from_micros(300));
    scope(|scope| {
        scope.spawn(|| {
            for item in 0..100 {
                if item % 2 == 0 {
                    sleep(Duration::from_micros(500));
                }
                while channel.send_until(item, short()).is_err() {}
            }
        });
        for item in 0..100 {
            if item % 2 == 1 {
                sleep(Duration::from_micros(500));
            }
            let got = loop {
                if let Ok(got) = channel.recv_until(short()) {
                    break got;
                }
            };
            assert_eq!(got, item);
        }
    });
}

fn iterators<S: Scope>(make: Make<S>) {
    let channel = make(4);
    (0..4).for_each(|item| channel.send(item).unwrap());
    assert_eq!(channel.try_iter().collect::<Vec<_>>(), [0, 1, 2, 3]);
    scope(|scope| {
        scope.spawn(|| {
            (0..100).for_each(|item| channel.send(item).unwrap());
            channel.close();
        });
        assert!(channel.iter().eq(0..100));
    });
}

fn an_item_at_a_time<S: Scope>(make: Make<S>) {
    for _ in 0..200 {
        let channel = make(1);
        scope(|scope| {
            scope.spawn(|| assert_eq!(channel.recv().unwrap(), 0));
            scope.spawn(|| channel.send(0).unwrap());
        });
    }
}

/// Each takes one out for each that it puts in: there always is one.
fn linearizable<S: Scope>(make: Make<S>) {
    let channel = make(4);
    scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..2000 {
                    channel.send(0).unwrap();
                    // Another one may be in the middle of what it does.
                    while let Err(error) = channel.try_recv() {
                        assert!(error.is_would_block());
                    }
                }
            });
        }
    });
}

/// A channel is closed while others send: what was sent is received by who hears of the end.
fn nothing_after_the_end<S: Scope>(make: Make<S>) {
    for _ in 0..100 {
        let channel = make(2);
        let sent = AtomicU64::new(0);
        scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while channel.send(1).is_ok() {
                        sent.fetch_add(1, SeqCst);
                    }
                });
            }
            let receiver = scope.spawn(|| channel.iter().sum::<u64>());
            yield_now();
            channel.close();
            let got = receiver.join().unwrap();
            assert!(channel.try_recv().unwrap_err().is_closed());
            // The senders have ended, or will, without another one.
            while sent.load(SeqCst) < got {
                yield_now();
            }
            assert_eq!(sent.load(SeqCst), got);
        });
    }
}

/// The ends apart: the last one of a side closes, and what nobody will have is dropped.
#[test]
fn the_ends_apart() {
    let counter = Arc::new(());
    let (sender, receiver) = channel(4).unwrap();
    let second = sender.clone();
    sender.send(counter.clone()).unwrap();
    drop(sender);
    assert!(!receiver.is_closed());
    second.send(counter.clone()).unwrap();
    drop(second);
    assert_eq!((receiver.is_closed(), receiver.iter().count()), (true, 2));
    let (sender, receiver) = channel(4).unwrap();
    let second = receiver.clone();
    sender.send(counter.clone()).unwrap();
    sender.send(counter.clone()).unwrap();
    drop((receiver, second));
    assert_eq!(Arc::strong_count(&counter), 1);
    assert!(sender.send(counter.clone()).unwrap_err().error.is_closed());
    assert_eq!((sender.len(), sender.capacity(), Arc::strong_count(&counter)), (0, 4, 1));
    // Through another channel; its own end in it is dropped with it.
    let (sender, receiver) = channel(1).unwrap();
    let (inner, far) = channel::<u32>(1).unwrap();
    spawn(move || sender.send(far).unwrap());
    inner.send(7).unwrap();
    assert_eq!(receiver.recv().unwrap().recv().unwrap(), 7);
    assert!(inner.send(8).unwrap_err().error.is_closed());
    // More than any machine has.
    assert!(channel::<[u64; 1 << 20]>(1 << 30).unwrap_err().is_exhausted());
}

/// Each item is dropped once, whether it was received or not.
#[test]
fn drops() {
    static DROPS: AtomicUsize = AtomicUsize::new(0);
    struct Item;
    impl Drop for Item {
        fn drop(&mut self) {
            DROPS.fetch_add(1, SeqCst);
        }
    }
    for round in 0..20 {
        DROPS.store(0, SeqCst);
        let (steps, more) = (round * 7, round % 5);
        let channel = Channel::<Item>::bounded(5).unwrap();
        scope(|scope| {
            scope.spawn(|| (0..steps).for_each(|_| drop(channel.recv().unwrap())));
            scope.spawn(|| (0..steps).for_each(|_| channel.send(Item).unwrap()));
        });
        (0..more).for_each(|_| channel.send(Item).unwrap());
        assert_eq!(DROPS.load(SeqCst), steps);
        drop(channel);
        assert_eq!(DROPS.load(SeqCst), steps + more);
    }
}

/// What a place for a channel must be is told, with the number that is wrong.
#[test]
fn places_for_channels() {
    type Shelf = Channel<[u64; 2], Shared>;
    let (mut memory, needs) = (vec![0_u8; Shelf::bytes(4) + 2 * Shelf::ALIGN], Shelf::bytes(4));
    let start = memory.as_mut_ptr();
    let base = NonNull::new(start.wrapping_add(start.align_offset(Shelf::ALIGN))).unwrap();
    // SAFETY: inside the memory, which outlives the channel.
    let attach = |at, len, capacity| unsafe { Shelf::attach(base.add(at), len, capacity) };
    for (at, len, number) in [(0, needs - 1, needs), (8, needs, Shelf::ALIGN)] {
        let error = attach(at, len, 4).unwrap_err();
        assert!(error.is_invalid() && error.to_string().contains(&number.to_string()), "{error}");
    }
    attach(0, needs, 4).unwrap().try_send([1, 2]).unwrap();
    // More than there can be.
    type Huge = Channel<[u8; 1 << 40], Shared>;
    assert_eq!(Huge::bytes(1 << 24), usize::MAX);
    // SAFETY: refused.
    assert!(unsafe { Huge::attach(base, needs, 1 << 24) }.unwrap_err().is_invalid());
}
