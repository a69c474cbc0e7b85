//! The protocols of `counts.rs` under loom.

use super::*;
use crate::sync::model;
use loom::sync::{Arc, Mutex};
use loom::thread;

pub(in super::super) fn table() -> Table {
    core::array::from_fn(|_| Entry {
        state: AtomicU64::new(0).ready(),
        shadowed: AtomicU32::new(0).ready(),
        sequence: AtomicU32::new(0).ready(),
        listed: AtomicU32::new(0).ready(),
        waking: AtomicU32::new(0).ready(),
        last: AtomicU64::new(0).ready(),
        rings: AtomicU32::new(0).ready(),
    })
}

/// The kernel's part: compares and queues under a lock, wakes under it.
#[derive(Default)]
struct Queue {
    asleep: bool,
    woken: bool,
}

struct Kernel(Mutex<Queue>);

impl Kernel {
    fn new() -> Self {
        Self(Mutex::new(Queue::default()))
    }
    fn wait(&self, word: &AtomicU32, expected: u32) {
        let mut queue = self.0.lock().unwrap();
        if word.load(Ordering::Relaxed) == expected {
            queue.asleep = true;
        }
    }
    fn wake(&self) {
        let mut queue = self.0.lock().unwrap();
        queue.woken |= queue.asleep;
    }
    fn assert_none_lost(&self) {
        let queue = self.0.lock().unwrap();
        assert!(!queue.asleep || queue.woken, "lost wake");
    }
}

struct Shared {
    table: Table,
    word: AtomicU32,
    list: AtomicU32,
    kernel: Kernel,
}

fn shared() -> Arc<Shared> {
    let word = AtomicU32::new(0).ready();
    let list = AtomicU32::new(0).ready();
    Arc::new(Shared { table: table(), word, list, kernel: Kernel::new() })
}

impl Shared {
    fn wake_listed(&self, entry: &Entry) {
        entry.wake_listed(0, || {
            self.list.fetch_add(1, Ordering::Release);
            self.kernel.wake();
            0
        });
    }
}

fn wake(shared: &Shared, spot: Spot<'_>) {
    if has_waiters(spot.entry()) {
        shared.kernel.wake();
        if spot.entry().is_shadowed() {
            spot.entry().advance(0);
            shared.kernel.wake();
        }
        if spot.entry().listed() != 0 {
            shared.wake_listed(spot.entry());
        }
    }
}

fn run(waiter: impl Fn(&Shared, Spot<'_>) + Send + Sync + 'static + Copy) {
    model(move || {
        let shared = shared();
        let sleeper = {
            let shared = shared.clone();
            // The counts stay: a waiter that sleeps does not leave.
            thread::spawn(move || waiter(&shared, Spot { table: &shared.table, index: 0 }))
        };
        shared.word.store(1, Ordering::Release);
        wake(&shared, Spot { table: &shared.table, index: 0 });
        sleeper.join().unwrap();
        shared.kernel.assert_none_lost();
    });
}

/// Fails when the fence of either side is taken out.
#[test]
fn no_wake_is_lost() {
    run(|shared, spot| {
        enter(spot);
        shared.kernel.wait(&shared.word, 0);
    });
}

/// Fails when the waker does not find the ring, or when it is counted after the fence.
#[test]
fn no_wake_of_a_ring_is_lost() {
    model(|| {
        let shared = shared();
        let sleeper = {
            let shared = shared.clone();
            thread::spawn(move || {
                let spot = Spot { table: &shared.table, index: 0 };
                spot.entry().add_ring();
                enter(spot);
                shared.kernel.wait(&shared.word, 0);
            })
        };
        shared.word.store(1, Ordering::Release);
        let entry = &shared.table[0];
        // By the private key the wake would not find it.
        if has_waiters(entry) && entry.has_rings() {
            shared.kernel.wake();
        }
        sleeper.join().unwrap();
        shared.kernel.assert_none_lost();
    });
}

/// Fails when the fence after `add_shadowed` is taken out, or when the waker does not find the
/// waiter.
#[test]
fn no_wake_is_lost_on_the_sequence() {
    run(|shared, spot| {
        enter(spot);
        spot.entry().add_shadowed();
        crate::futex2::fence::waiter();
        let seen = spot.entry().sequence().load(Ordering::Acquire);
        if shared.word.load(Ordering::Acquire) == 0 {
            shared.kernel.wait(spot.entry().sequence(), seen);
        }
    });
}

/// The same, on the word of the process.
#[test]
fn no_wake_is_lost_on_the_list() {
    run(|shared, spot| {
        enter(spot);
        spot.entry().add_listed();
        crate::futex2::fence::waiter();
        let list = shared.list.load(Ordering::Acquire);
        if shared.word.load(Ordering::Acquire) == 0 {
            shared.kernel.wait(&shared.list, list);
        }
    });
}

/// A wake that changes no word and that the kernel counts ends the wait: the waiter sees that the
/// sequence has changed, or has seen that a wake was on its way. Fails when `waking` is counted
/// after the sequence, or when the sequence does not publish it. (loom does not let a load run ahead:
/// that of `waking` and the line that ends it are stronger than this model asks.)
#[test]
fn a_listed_wake_that_is_counted_is_noticed() {
    model(|| {
        let shared = shared();
        let other = {
            let shared = shared.clone();
            thread::spawn(move || shared.wake_listed(&shared.table[0]))
        };
        let entry = &shared.table[0];
        let list = shared.list.load(Ordering::Acquire);
        let seen = entry.sequence().load(Ordering::Acquire);
        let waking = entry.is_waking();
        shared.kernel.wait(&shared.list, list);
        other.join().unwrap();
        let woken = shared.kernel.0.lock().unwrap().woken;
        let changed = entry.sequence().load(Ordering::Acquire) != seen;
        assert!(!woken || changed || waking, "a wake that nobody noticed");
    });
}

/// Two movers, and waiters that leave: as long as a moved waiter is there, its new place is
/// counted; when all have gone, nothing is.
#[test]
fn pins_last_as_long_as_what_was_moved() {
    model(|| {
        let table = Arc::new(table());
        // A waiter that was there before.
        table[0].add();
        let mover = |table: &Table| {
            let source = Spot { table, index: 0 };
            source.entry().add();
            // Each moves the waiter that it adds itself, which leaves before it does.
            source.entry().add();
            assert!(source.pin(1));
            assert!(table[1].is_waited_on(), "moved, and not counted");
            source.leave(1);
            assert!(table[1].is_waited_on(), "the pin of a mover that is at it is gone");
            source.leave(1);
        };
        let other = {
            let table = table.clone();
            thread::spawn(move || mover(&table))
        };
        let leaver = {
            let table = table.clone();
            thread::spawn(move || Spot { table: &table, index: 0 }.leave(1))
        };
        mover(&table);
        other.join().unwrap();
        leaver.join().unwrap();
        for entry in &table[..2] {
            assert_eq!(entry.state.load(Ordering::Relaxed), 0, "a count that is left over");
        }
    });
}
