//! The channel of futex2: what users of a bounded channel expect, private and shared; a death at each
//! instruction of a send and of a receive; memory that holds anything.

mod common;
#[path = "common/hostile_channel.rs"]
mod hostile_channel;

use common::{child, map, missing, role, stress, succeed};
use proptest::prelude::*;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::thread::{scope, sleep, spawn, yield_now};
use std::time::{Duration, Instant};
use unmerged::futex2::lock::{Channel, Event, Mutex, Source, channel, select};
use unmerged::futex2::{Deadline, Private, Scope, Shared};

fn soon() -> Deadline {
    Deadline::after(Duration::from_millis(5))
}

fn memory(bytes: usize) -> NonNull<u8> {
    // SAFETY: a fresh descriptor.
    let file = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"test".as_ptr(), 0)) };
    // SAFETY: our own file.
    assert_eq!(unsafe { libc::ftruncate(file.as_raw_fd(), bytes as i64) }, 0);
    map(&file, bytes)
}

fn private(capacity: u32) -> Channel<u64, Private> {
    Channel::bounded(capacity).unwrap()
}

fn shared(capacity: u32) -> Channel<u64, Shared> {
    let bytes = Channel::<u64, Shared>::bytes(capacity);
    // SAFETY: a mapping of its own, for good.
    unsafe { Channel::attach(memory(bytes), bytes, capacity) }.unwrap()
}

/// Each of these in both scopes.
macro_rules! in_both {
    ($($test:ident),+ $(,)?) => {
        mod in_private { $(#[test] fn $test() { super::$test(super::private); })+ }
        mod in_shared { $(#[test] fn $test() { super::$test(super::shared); })+ }
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
    two_are_fair,
    nothing_after_the_end,
    a_selection_of_both_ends,
);

type Make<S> = fn(u32) -> Channel<u64, S>;

fn smoke<S: Scope>(make: Make<S>) {
    let channel = make(1);
    channel.send(7).unwrap();
    assert_eq!(channel.try_recv().unwrap(), 7);
    channel.send(8).unwrap();
    assert_eq!(channel.recv().unwrap(), 8);
    assert!(channel.try_recv().unwrap_err().is_would_block());
    assert!(channel.recv_deadline(soon()).unwrap_err().is_timed_out());
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
    let channel = make(100);
    scope(|scope| {
        scope.spawn(|| {
            assert!(channel.recv_deadline(soon()).unwrap_err().is_timed_out());
            let late = Deadline::after(Duration::from_secs(20));
            assert_eq!(channel.recv_deadline(late).unwrap(), 7);
            assert!(channel.recv_deadline(late).unwrap_err().is_closed());
        });
        sleep(Duration::from_millis(10));
        channel.send(7).unwrap();
        sleep(Duration::from_millis(5));
        channel.close();
    });
    // What is there is received, also when the deadline has passed.
    let channel = make(1);
    let past = Deadline::monotonic(Duration::ZERO);
    channel.send_deadline(1, past).unwrap();
    assert_eq!(channel.recv_deadline(past).unwrap(), 1);
    assert!(channel.recv_deadline(past).unwrap_err().is_timed_out());
}

fn send_waits<S: Scope>(make: Make<S>) {
    let channel = make(2);
    scope(|scope| {
        scope.spawn(|| (1..=4).for_each(|item| channel.send(item).unwrap()));
        sleep(Duration::from_millis(5));
        assert!(channel.is_full());
        (1..=4).for_each(|item| assert_eq!(channel.recv().unwrap(), item));
    });
}

fn send_until<S: Scope>(make: Make<S>) {
    let channel = make(1);
    channel.send(1).unwrap();
    let error = channel.send_deadline(2, soon()).unwrap_err();
    assert!(error.error.is_timed_out() && error.item == 2);
    scope(|scope| {
        scope.spawn(|| {
            channel.send_deadline(3, Deadline::after(Duration::from_secs(20))).unwrap();
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
        channel.send_deadline(3, soon()).unwrap_err(),
    ] {
        assert!(error.error.is_closed() && error.item == 3);
    }
    assert_eq!((channel.recv().unwrap(), channel.try_recv().unwrap()), (1, 2));
    for _ in 0..2 {
        assert!(channel.recv().unwrap_err().is_closed());
        assert!(channel.try_recv().unwrap_err().is_closed());
        assert!(channel.recv_deadline(soon()).unwrap_err().is_closed());
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
                while channel.send_deadline(item, short()).is_err() {}
            }
        });
        for item in 0..100 {
            if item % 2 == 1 {
                sleep(Duration::from_micros(500));
            }
            let got = loop {
                if let Ok(got) = channel.recv_deadline(short()) {
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

/// Of two receivers that select in turn, none is left out.
fn two_are_fair<S: Scope>(make: Make<S>) {
    let (a, b) = (make(1000), make(1000));
    for item in 0..1000 {
        a.send(item).unwrap();
        b.send(item).unwrap();
    }
    let (mut from_a, mut from_b) = (0, 0);
    for round in 0..1000 {
        let sources: [&dyn Source; 2] = [&a.receiving(), &b.receiving()];
        // The first one is preferred, so that who wants turns has to take them.
        let turn = if round % 2 == 0 { [sources[0], sources[1]] } else { [sources[1], sources[0]] };
        match (select(&turn, None).unwrap() + round) % 2 {
            0 => from_a += a.try_recv().map(|_| 1).unwrap(),
            _ => from_b += b.try_recv().map(|_| 1).unwrap(),
        }
    }
    assert_eq!((from_a, from_b), (500, 500));
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

/// The ends apart: the last one of a side closes, and what nobody will have is dropped.
#[test]
fn ends() {
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

/// What the child of a stepped test does between its two stops.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Act {
    Send,
    Receive,
}

type Pairs = Channel<[u64; 2], Shared>;

/// Lets a child of fork do it, up to this instruction, and kills it; how many instructions it made,
/// and whether it was over. `None`: it cannot be traced.
fn die_at(channel: &Pairs, spare: &Pairs, act: Act, step: usize) -> Option<(usize, bool)> {
    // SAFETY: the child does plain calls, and is killed.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // So that this thread's number is known.
        spare.try_send([0, 0]).unwrap();
        spare.try_recv().unwrap();
        // SAFETY: asks to be traced by the parent, and to end with it.
        let traced = unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0)
        };
        if traced != 0 {
            // SAFETY: ends the child.
            unsafe { libc::_exit(77) };
        }
        // SAFETY: stops for the parent, which steps from here on.
        unsafe { libc::raise(libc::SIGSTOP) };
        match act {
            Act::Send => drop(channel.try_send([9, 9])),
            Act::Receive => drop(channel.try_recv()),
        }
        // SAFETY: tells that it is over.
        unsafe { libc::raise(libc::SIGUSR2) };
        // SAFETY: ends the child, should it come to that.
        unsafe { libc::_exit(0) };
    }
    let wait = || {
        let mut status = 0;
        // SAFETY: our own child.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        status
    };
    let status = wait();
    if libc::WIFEXITED(status) {
        assert_eq!(libc::WEXITSTATUS(status), 77);
        return None;
    }
    let (mut steps, mut over) = (0, false);
    while steps < step && !over {
        // SAFETY: a stopped child of ours.
        unsafe { libc::ptrace(libc::PTRACE_SINGLESTEP, pid, 0, 0) };
        let status = wait();
        assert!(libc::WIFSTOPPED(status), "{status:#x}");
        over = libc::WSTOPSIG(status) == libc::SIGUSR2;
        steps += 1;
    }
    // SAFETY: our own child.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    while libc::WIFSTOPPED(wait()) {}
    Some((steps, over))
}

/// A sender, or a receiver, ends at any of its instructions: an item that was sent is there once, or
/// gone with its receiver; one that was not sent is not there; and the others go on at once.
fn a_death_at_each_instruction(test: &str, act: Act) {
    if role().is_none() {
        return succeed(child(test, "alone"));
    }
    let bytes = Pairs::bytes(2).next_multiple_of(128);
    let base = memory(2 * bytes);
    // SAFETY: two halves of a mapping that stays.
    let [channel, spare] =
        [0, bytes].map(|at| unsafe { Pairs::attach(base.add(at), bytes, 2) }.unwrap());
    let held: &[u64] = if act == Act::Send { &[1] } else { &[1, 2] };
    let mut outcomes = [0; 2];
    let mut round = |step| {
        held.iter().for_each(|&item| channel.try_send([item, item]).unwrap());
        let (steps, over) = die_at(&channel, &spare, act, step)?;
        let left: Vec<[u64; 2]> = channel.try_iter().collect();
        let at = match (act, &left[..]) {
            (Act::Send, [[1, 1]]) | (Act::Receive, [[1, 1], [2, 2]]) => 0,
            (Act::Send, [[1, 1], [9, 9]]) | (Act::Receive, [[2, 2]]) => 1,
            _ => panic!("{act:?} to instruction {step}: {left:?}"),
        };
        outcomes[at] += 1;
        assert!(!over || at == 1);
        // All of its room is there, and it has an order.
        for item in [5, 6] {
            channel.try_send([item, item]).unwrap();
        }
        assert!(channel.try_send([7, 7]).unwrap_err().error.is_would_block());
        assert_eq!(channel.try_iter().collect::<Vec<_>>(), [[5, 5], [6, 6]]);
        Some(steps)
    };
    let Some(all) = round(usize::MAX) else {
        return missing("ptrace", "nobody dies at an instruction");
    };
    // Each of them, in an order that has them all over the place from the beginning on.
    let mut stride = (all * 5 / 8) | 1;
    while (2..=stride).any(|n| stride % n == 0 && all % n == 0) {
        stride += 2;
    }
    let end = Instant::now() + stress(Duration::from_millis(1000));
    let (mut rounds, mut step) = (0, 0);
    while rounds < all && Instant::now() < end {
        round(step);
        step = (step + stride) % all;
        rounds += 1;
    }
    assert!(outcomes.iter().all(|&n| n > 0), "{outcomes:?}");
    eprintln!("{act:?}: deaths at {rounds} of {all} instructions: {outcomes:?}");
}

#[test]
fn a_sender_dies_at_each_instruction() {
    a_death_at_each_instruction("a_sender_dies_at_each_instruction", Act::Send);
}

#[test]
fn a_receiver_dies_at_each_instruction() {
    a_death_at_each_instruction("a_receiver_dies_at_each_instruction", Act::Receive);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

    /// Any bytes in the words, before and between: errors or wrong items, no crash and no hang.
    #[test]
    fn hostile_words(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        hostile_channel::run(&bytes);
    }
}
