//! Models of the protocol, with a queue of the kernel's that can be moved to that of a mutex.

use super::super::cell::Cell;
use super::super::cell::model::Modelled;
use super::super::raw_mutex::{LOCKED, try_slowly, unlock};
use super::super::waiting::late;
use super::*;
use crate::sync::{AtomicU8, Ordering, fence, model};
use loom::cell::UnsafeCell;
use loom::sync::{Arc, Condvar as Bed, Mutex as Bucket};
use loom::thread;

#[derive(Default)]
struct Sleepers {
    asleep: usize,
    wakes: usize,
    moved: usize,
    /// Deadlines that have passed, of whoever has one.
    deadlines: usize,
}

/// A mutex with a number, and those who wait for a change of it.
struct Shared {
    condvar: Condvar,
    mutex: Modelled<AtomicU8>,
    number: UnsafeCell<u32>,
    /// The kernel's queue of the condition variable.
    bucket: Bucket<Sleepers>,
    bed: Bed,
}

impl Shared {
    fn new() -> Arc<Self> {
        let condvar = Condvar::<Private>::new();
        Arc::new(Self {
            condvar: Condvar {
                sequence: condvar.sequence.ready(),
                waiters: condvar.waiters.ready(),
                broadcast: condvar.broadcast.ready(),
                way: condvar.way.ready(),
                scope: PhantomData,
            },
            mutex: Modelled::<AtomicU8>::new(0),
            number: UnsafeCell::new(0),
            bucket: Bucket::new(Sleepers::default()),
            bed: Bed::new(),
        })
    }

    fn lock(&self) {
        if !try_slowly(&self.mutex) {
            lock_contended(&self.mutex, None, false).unwrap();
        }
    }

    fn unlock(&self) {
        unlock(&self.mutex, false);
    }

    fn sleep(&self, seen: u32, has_deadline: bool) -> Result<()> {
        let mut sleepers = self.bucket.lock().unwrap();
        fence(Ordering::SeqCst);
        if self.condvar.sequence.load(Relaxed) != seen {
            return Ok(());
        }
        sleepers.asleep += 1;
        loop {
            if sleepers.wakes > 0 {
                sleepers.wakes -= 1;
                return Ok(());
            }
            if sleepers.moved > 0 {
                sleepers.moved -= 1;
                break;
            }
            if has_deadline && sleepers.deadlines > 0 {
                sleepers.deadlines -= 1;
                sleepers.asleep -= 1;
                return Err(late("futex2::Condvar::wait"));
            }
            sleepers = self.bed.wait(sleepers).unwrap();
        }
        drop(sleepers);
        self.mutex.sleep_adopted();
        Ok(())
    }

    fn wake_one(&self) {
        fence(Ordering::SeqCst);
        let mut sleepers = self.bucket.lock().unwrap();
        if sleepers.asleep > 0 {
            sleepers.asleep -= 1;
            sleepers.wakes += 1;
            self.bed.notify_all();
        }
    }

    fn take_along(&self) {
        let mut sleepers = self.bucket.lock().unwrap();
        let moved = core::mem::take(&mut sleepers.asleep);
        sleepers.moved += moved;
        self.mutex.adopt(moved);
        self.bed.notify_all();
    }

    fn wait_for_a_number(&self, has_deadline: bool) {
        self.lock();
        // SAFETY: the lock is held.
        while self.number.with(|number| unsafe { *number }) == 0 {
            let slept = self.condvar.wait_by(
                |_| self.unlock(),
                |seen| self.sleep(seen, has_deadline),
                || self.take_along(),
                || lock_contended(&self.mutex, None, true).unwrap(),
            );
            if slept.is_err() {
                break;
            }
        }
        self.unlock();
    }

    fn notify(&self, all: bool) {
        if self.condvar.waiters.load(Relaxed) != 0 {
            self.condvar.notify_by(all, || self.wake_one());
        }
    }

    fn end_a_deadline(&self) {
        self.bucket.lock().unwrap().deadlines += 1;
        self.bed.notify_all();
    }

    fn set(&self) {
        self.lock();
        // SAFETY: the lock is held.
        self.number.with_mut(|number| unsafe { *number = 1 });
        self.unlock();
    }
}

#[test]
fn a_waiter_is_notified() {
    model(|| {
        let shared = Shared::new();
        let other = shared.clone();
        let waiter = thread::spawn(move || other.wait_for_a_number(false));
        shared.set();
        shared.notify(false);
        waiter.join().unwrap();
    });
}

/// Two wait: one is woken, and moves the other, or finds that it does not sleep yet.
#[test]
fn all_are_notified() {
    model(|| {
        let shared = Shared::new();
        let waiters = [(); 2].map(|()| {
            let shared = shared.clone();
            thread::spawn(move || shared.wait_for_a_number(false))
        });
        shared.set();
        shared.notify(true);
        waiters.into_iter().for_each(|waiter| waiter.join().unwrap());
        assert_eq!(shared.mutex.load(Relaxed) & LOCKED, 0);
    });
}

/// Two wait, and one of them leaves at its deadline, maybe with the notification for all: the
/// other one goes on.
#[test]
fn one_gives_up() {
    model(|| {
        let shared = Shared::new();
        let waiters = [false, true].map(|has_deadline| {
            let shared = shared.clone();
            thread::spawn(move || shared.wait_for_a_number(has_deadline))
        });
        shared.end_a_deadline();
        shared.set();
        shared.notify(true);
        waiters.into_iter().for_each(|waiter| waiter.join().unwrap());
        assert_eq!(shared.mutex.load(Relaxed) & LOCKED, 0);
    });
}
