//! Waiter counts: how a waker knows that nobody waits, without asking the kernel.
//!
//! # Protocol
//!
//! ```text
//! waiter                                   waker
//!   waiters += 1                             word = new
//!   fence                                    fence
//!   sleep while word == expected             if waiters == 0: done
//!   waiters -= 1                             wake
//! ```
//!
//! Each side writes one place and then reads the other's; with a sequentially consistent
//! fence between the two, not both can miss. Without the waker's fence its store may still
//! wait in the store buffer while it reads the count: on x86 too, and the wake is lost.
//!
//! Places of the table are shared by all addresses of one hash. So a count may be too high,
//! which costs a system call; it is never too low.
//!
//! A waiter that cannot sleep on its own word sleeps on the entry's `sequence`:
//!
//! ```text
//! waiter                                   waker (as above, and)
//!   waiters += 1; shadowed += 1
//!   fence
//!   s = sequence
//!   if word != expected: done                if shadowed != 0:
//!   sleep while sequence == s                    sequence += 1
//!   shadowed -= 1; waiters -= 1                  wake all that sleep on sequence
//! ```
//!
//! A waker that comes after the waiter's look at the word finds `shadowed`, by the same
//! fences, and advances the sequence, so the waiter does not sleep, or is woken.

use crate::sync::{AtomicU32, Ordering, fence};
use crossbeam_utils::CachePadded;

/// One place of the table.
#[derive(Debug)]
pub(super) struct Entry {
    /// Waiters of all words of this place.
    waiters: AtomicU32,
    /// Those of them that sleep on `sequence`.
    shadowed: AtomicU32,
    /// Advanced by each wake that finds one of them.
    sequence: AtomicU32,
}

impl Entry {
    const fn new() -> Self {
        Self {
            waiters: AtomicU32::new(0),
            shadowed: AtomicU32::new(0),
            sequence: AtomicU32::new(0),
        }
    }

    /// Counts a waiter until the answer is dropped. What it reads of its word from here on is
    /// ordered against [`has_waiters`](Self::has_waiters).
    pub(super) fn enter(&self) -> Waiter<'_> {
        self.waiters.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        Waiter(self)
    }

    /// May somebody wait? For a waker that has written its word before.
    pub(super) fn has_waiters(&self) -> bool {
        fence(Ordering::SeqCst);
        self.waiters.load(Ordering::Relaxed) != 0
    }

    /// If somebody sleeps on the sequence, advances it and answers it: all its waiters must be
    /// woken then. For a waker that has called [`has_waiters`](Self::has_waiters).
    pub(super) fn advance(&self) -> Option<&AtomicU32> {
        if self.shadowed.load(Ordering::Relaxed) == 0 {
            return None;
        }
        self.sequence.fetch_add(1, Ordering::Relaxed);
        Some(&self.sequence)
    }
}

/// A waiter that is counted.
#[derive(Debug)]
pub(super) struct Waiter<'a>(&'a Entry);

impl<'a> Waiter<'a> {
    /// Counts it as one that sleeps on the sequence.
    pub(super) fn shadow(self) -> Shadowed<'a> {
        self.0.shadowed.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        Shadowed(self)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.waiters.fetch_sub(1, Ordering::Release);
    }
}

/// A waiter that sleeps on the sequence.
#[derive(Debug)]
pub(super) struct Shadowed<'a>(Waiter<'a>);

impl Shadowed<'_> {
    /// The sequence, to be read before the word.
    pub(super) fn sequence(&self) -> (&AtomicU32, u32) {
        let sequence = &self.0.0.sequence;
        (sequence, sequence.load(Ordering::Acquire))
    }
}

impl Drop for Shadowed<'_> {
    fn drop(&mut self) {
        self.0.0.shadowed.fetch_sub(1, Ordering::Release);
    }
}

/// Places of the table; a power of two.
const PLACES: usize = 256;

static TABLE: [CachePadded<Entry>; PLACES] = [const { CachePadded::new(Entry::new()) }; PLACES];

/// The place of the word at `address`.
#[inline]
pub(super) fn entry(address: usize) -> &'static Entry {
    // Fibonacci hashing of the containing 32 bits: the top bits of the product.
    let product = ((address >> 2) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    &TABLE[(product >> (u64::BITS - PLACES.trailing_zeros())) as usize]
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn counts_go_up_and_come_back() {
        let entry = Entry::new();
        assert!(!entry.has_waiters());
        let (one, two) = (entry.enter(), entry.enter());
        assert!(entry.has_waiters() && entry.advance().is_none());
        let two = two.shadow();
        assert_eq!(two.sequence().1, 0);
        assert!(entry.advance().is_some());
        assert_eq!(two.sequence().1, 1);
        drop((one, two));
        assert!(!entry.has_waiters() && entry.advance().is_none());
    }

    #[test]
    fn neighbours_spread() {
        let places: std::collections::BTreeSet<_> =
            (0..64).map(|n| core::ptr::from_ref(entry(0x7f00_0000 + 64 * n)).addr()).collect();
        assert!(places.len() > 40, "{} places for 64 cache lines", places.len());
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::sync::model;
    use loom::sync::{Arc, Mutex};
    use loom::thread;

    fn entry() -> Entry {
        Entry {
            waiters: AtomicU32::new(0).ready(),
            shadowed: AtomicU32::new(0).ready(),
            sequence: AtomicU32::new(0).ready(),
        }
    }

    /// The kernel's part: compares and queues under a lock, wakes under it.
    struct Kernel {
        queue: Mutex<Queue>,
    }

    #[derive(Default)]
    struct Queue {
        asleep: bool,
        woken: bool,
    }

    impl Kernel {
        fn wait(&self, word: &AtomicU32, expected: u32) {
            let mut queue = self.queue.lock().unwrap();
            if word.load(Ordering::Relaxed) == expected {
                queue.asleep = true;
            }
        }
        fn wake(&self) {
            let mut queue = self.queue.lock().unwrap();
            queue.woken |= queue.asleep;
        }
    }

    struct Shared {
        entry: Entry,
        word: AtomicU32,
        kernel: Kernel,
    }

    fn run(waiter: impl Fn(&Shared) + Send + Sync + 'static + Copy) {
        model(move || {
            let shared = Arc::new(Shared {
                entry: entry(),
                word: AtomicU32::new(0).ready(),
                kernel: Kernel { queue: Mutex::new(Queue::default()) },
            });
            let sleeper = {
                let shared = shared.clone();
                thread::spawn(move || {
                    waiter(&shared);
                })
            };
            shared.word.store(1, Ordering::Release);
            if shared.entry.has_waiters() {
                shared.kernel.wake();
                if shared.entry.advance().is_some() {
                    shared.kernel.wake();
                }
            }
            sleeper.join().unwrap();
            let queue = shared.kernel.queue.lock().unwrap();
            assert!(!queue.asleep || queue.woken, "lost wake");
        });
    }

    /// Fails when the fence of `enter` or of `has_waiters` is taken out.
    #[test]
    fn no_wake_is_lost() {
        run(|shared| {
            // The count stays: a waiter that sleeps does not leave.
            let waiter = shared.entry.enter();
            shared.kernel.wait(&shared.word, 0);
            core::mem::forget(waiter);
        });
    }

    /// Fails when the fence of `shadow` is taken out, or when `advance` does not find the
    /// waiter.
    #[test]
    fn no_wake_is_lost_on_the_sequence() {
        run(|shared| {
            let waiter = shared.entry.enter().shadow();
            let (sequence, seen) = waiter.sequence();
            if shared.word.load(Ordering::Acquire) == 0 {
                shared.kernel.wait(sequence, seen);
            }
            core::mem::forget(waiter);
        });
    }
}
