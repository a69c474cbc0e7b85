//! The words of a lock on one stripe, and how those who wait meet the one who leaves.
//!
//! # Protocol
//!
//! | word | meaning |
//! |---|---|
//! | 0 | free |
//! | a process's [tag](crate::sys::tag) | a thread of that process holds it |
//!
//! Taken from 0, by a window of the stripe's CPU, by an exchange on an overflow stripe, or by an
//! exchange on a window stripe whose CPU is [stopped](super::stop) (acquire each). Given back by
//! a plain store of 0 (release), from whatever CPU the holder is on by then: windows and exchanges
//! store only after they have found 0, so nobody's store is in its way.
//!
//! ```text
//! leave     word = 0; light fence; if waiters != 0: wake one
//! wait      waiters += 1; heavy fence; sleep if word is still what it was; waiters -= 1
//! ```
//!
//! Either the one who leaves sees the waiter's count, or the waiter sees the 0, or the word of a
//! later holder, who sees the count in turn. The fences are [asymmetric]: leaving is two
//! stores and two loads, waiting costs a system call more.
//!
//! One that was woken may find itself on another CPU and take that one's stripe. It then wakes
//! the next in its place, or the wake would be lost with it.
//!
//! The tag of another process is there after a fork: its holder's thread is not in this process.
//! It is replaced by an exchange, and its holder, if that is the very thread that forked, gives
//! back by an exchange too, which then fails.
//!
//! [asymmetric]: super::asymmetric

use crate::sync::{AtomicU32, Ordering};

/// The lock of one stripe. Zeros are a free one.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Door {
    pub(super) word: AtomicU32,
    waiters: AtomicU32,
}

impl Door {
    pub(super) const fn new() -> Self {
        Self { word: AtomicU32::new(0), waiters: AtomicU32::new(0) }
    }

    /// Takes it, where no window can come in between; what is there instead.
    pub(super) fn take(&self, tag: u32) -> Result<(), u32> {
        let taken = self.word.compare_exchange(0, tag, Ordering::Acquire, Ordering::Relaxed);
        taken.map(drop)
    }

    /// Takes it over from a holder of another process.
    pub(super) fn succeed(&self, gone: u32, tag: u32) -> bool {
        let (acquire, relaxed) = (Ordering::Acquire, Ordering::Relaxed);
        self.word.compare_exchange(gone, tag, acquire, relaxed).is_ok()
    }

    /// Gives it back; whether somebody is to be woken.
    #[inline]
    pub(super) fn leave(&self, light: impl FnOnce()) -> bool {
        self.word.store(0, Ordering::Release);
        light();
        self.has_waiters()
    }

    /// Gives it back, unless a thread of this process has succeeded the one that forked it.
    pub(super) fn leave_inherited(&self, tag: u32) {
        let _ = self.word.compare_exchange(tag, 0, Ordering::Release, Ordering::Relaxed);
    }

    /// Whether somebody waits, as far as this thread sees.
    #[inline]
    pub(super) fn has_waiters(&self) -> bool {
        self.waiters.load(Ordering::Relaxed) != 0
    }

    /// Counts this thread as a waiter, until what is answered is dropped. From here on it may look
    /// at the word and sleep.
    pub(super) fn announce(&self, heavy: impl FnOnce() -> bool) -> Waiting<'_> {
        self.waiters.fetch_add(1, Ordering::Relaxed);
        Waiting { door: self, is_seen: heavy() }
    }
}

/// A waiter.
#[derive(Debug)]
pub(super) struct Waiting<'a> {
    door: &'a Door,
    /// Whether everybody who leaves sees it, or the fence failed.
    pub(super) is_seen: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.door.waiters.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::sync::{fence, model};
    use loom::cell::UnsafeCell;
    use loom::sync::{Arc, Mutex};
    use loom::thread;

    struct Shared {
        door: Door,
        /// What the lock protects.
        value: UnsafeCell<u32>,
        /// The kernel's part: compares and queues under a lock, wakes under it.
        queue: Mutex<Queue>,
    }
    // SAFETY: the value is touched by the holder: loom checks.
    unsafe impl Sync for Shared {}

    #[derive(Default)]
    struct Queue {
        asleep: bool,
        woken: bool,
    }

    impl Shared {
        fn new() -> Arc<Self> {
            let door = Door { word: AtomicU32::new(0).ready(), waiters: AtomicU32::new(0).ready() };
            let (value, queue) = (UnsafeCell::new(0), Mutex::new(Queue::default()));
            Arc::new(Self { door, value, queue })
        }

        /// Takes the lock and leaves, or falls asleep for good.
        fn add_one(&self) -> u32 {
            if let Err(seen) = self.door.take(1) {
                // A fence on both sides is what membarrier amounts to.
                let waiting = self.door.announce(|| {
                    fence(Ordering::SeqCst);
                    true
                });
                let mut queue = self.queue.lock().unwrap();
                queue.asleep |= self.door.word.load(Ordering::Relaxed) == seen;
                // Who sleeps stays counted.
                core::mem::forget(waiting);
                return 0;
            }
            self.value.with_mut(|value| unsafe { *value += 1 });
            if self.door.leave(|| fence(Ordering::SeqCst)) {
                let mut queue = self.queue.lock().unwrap();
                queue.woken |= queue.asleep;
            }
            1
        }
    }

    /// Two threads want it; whoever sleeps is woken. Fails when taking or leaving is relaxed,
    /// without either fence, and when a waiter is not counted.
    #[test]
    fn no_wake_is_lost() {
        model(|| {
            let shared = Shared::new();
            let other = thread::spawn({
                let shared = shared.clone();
                move || shared.add_one()
            });
            let done = shared.add_one() + other.join().unwrap();
            assert_eq!(shared.value.with(|value| unsafe { *value }), done);
            let queue = shared.queue.lock().unwrap();
            assert!(!queue.asleep || queue.woken, "lost wake");
        });
    }

    /// In a child the thread that forked gives back what another one takes over: there is one
    /// holder at a time. Fails when either is no exchange.
    #[test]
    fn one_successor() {
        model(|| {
            let shared = Shared::new();
            shared.door.word.store(1, Ordering::Relaxed);
            let enter = |shared: &Shared| {
                let holds = match shared.door.take(2) {
                    Err(1) => shared.door.succeed(1, 2),
                    taken => taken.is_ok(),
                };
                if holds {
                    shared.value.with_mut(|value| unsafe { *value += 1 });
                    shared.door.leave(|| {});
                }
            };
            let thief = thread::spawn({
                let shared = shared.clone();
                move || enter(&shared)
            });
            let other = thread::spawn({
                let shared = shared.clone();
                move || enter(&shared)
            });
            shared.door.leave_inherited(1);
            thief.join().unwrap();
            other.join().unwrap();
        });
    }
}
