//! The protocol of a channel's ring, over borrowed words.
//!
//! `tail` counts the items that were sent, `head` those that were received; both wrap, and the
//! difference is what lies in the ring. Senders exclude each other by a lock, receivers by
//! another one.
//!
//! ```text
//! sender, with the senders' lock          receiver, with the receivers' lock
//!   if tail - head == capacity: full        if tail == head: empty
//!   slot[tail] = item                       item = slot[head]
//!   tail += 1           # commits           head += 1           # commits
//! ```
//!
//! Each commits by one store. Whoever dies before it has done nothing; whoever dies after it has
//! done all. So the state is good at every instant, and the lock of one that died can be taken as
//! it is.
//!
//! Sleepers count themselves; the count and the word are ordered as in `counts.rs`: each side
//! writes one and then reads the other, with a fence between; the sleeper's is the kernel's.

use super::cell::Cell;
use crate::error::{Error, Result};
use crate::sync::Ordering::{Acquire, Relaxed, Release, SeqCst};
use crate::sync::{AtomicU32, fence};
use rustix::io::Errno;

/// A word that one side advances and the other side sleeps on.
pub(super) struct End<'a, C> {
    pub(super) word: &'a C,
    pub(super) sleepers: &'a AtomicU32,
}

impl<C: Cell<u32>> End<'_, C> {
    /// Wakes one sleeper if there is one. The word has been advanced before.
    #[inline]
    pub(super) fn call(&self) {
        fence(SeqCst);
        if self.sleepers.load(Relaxed) != 0 {
            self.word.wake(1);
        }
    }
}

/// Items in the ring.
///
/// # Errors
///
/// EBADMSG if the words cannot be those of a ring.
#[inline]
pub(super) fn len(head: u32, tail: u32, capacity: u32) -> Result<u32> {
    let len = tail.wrapping_sub(head);
    if len <= capacity {
        return Ok(len);
    }
    Err(Error::with(
        "futex2::Channel",
        Errno::BADMSG,
        format_args!("{tail} sent, {head} received, of {capacity} at a time"),
    ))
}

/// Puts an item where `write` is told to; `Err` with the head if it is full.
#[inline]
pub(super) fn put<C: Cell<u32>>(
    head: &C,
    tail: &C,
    capacity: u32,
    write: impl FnOnce(usize),
) -> Result<core::result::Result<(), u32>> {
    let (sent, received) = (tail.load(Relaxed), head.load(Acquire));
    if len(received, sent, capacity)? == capacity {
        return Ok(Err(received));
    }
    write((sent & (capacity - 1)) as usize);
    tail.store(sent.wrapping_add(1), Release);
    Ok(Ok(()))
}

/// Takes the item that `read` is told of; `Err` with the tail if there is none.
#[inline]
pub(super) fn get<C: Cell<u32>, T>(
    head: &C,
    tail: &C,
    capacity: u32,
    read: impl FnOnce(usize) -> T,
) -> Result<core::result::Result<T, u32>> {
    let (received, sent) = (head.load(Relaxed), tail.load(Acquire));
    if len(received, sent, capacity)? == 0 {
        return Ok(Err(sent));
    }
    let item = read((received & (capacity - 1)) as usize);
    head.store(received.wrapping_add(1), Release);
    Ok(Ok(item))
}

#[cfg(all(test, loom))]
mod models {
    use super::super::cell::model::Modelled;
    use super::super::select::Announced;
    use super::*;
    use crate::sync::model;
    use loom::cell::UnsafeCell;
    use loom::sync::{Arc, Mutex};
    use loom::thread;

    struct Channel {
        head: Modelled<AtomicU32>,
        tail: Modelled<AtomicU32>,
        senders: AtomicU32,
        receivers: AtomicU32,
        slot: UnsafeCell<u32>,
        /// Of the receivers.
        lock: Mutex<()>,
    }

    impl Channel {
        fn new() -> Arc<Self> {
            Arc::new(Self {
                // About to wrap.
                head: Modelled::<AtomicU32>::new(u32::MAX),
                tail: Modelled::<AtomicU32>::new(u32::MAX),
                senders: AtomicU32::new(0).ready(),
                receivers: AtomicU32::new(0).ready(),
                slot: UnsafeCell::new(0),
                lock: Mutex::new(()),
            })
        }
        fn send(&self, item: u32) {
            // SAFETY: the slot is the sender's until the tail says otherwise.
            let write = |_| self.slot.with_mut(|slot| unsafe { *slot = item });
            while let Err(head) = put(&self.head, &self.tail, 1, write).unwrap() {
                let announced = Announced::new(&self.senders);
                self.head.wait(head, None).unwrap();
                drop(announced);
            }
            End { word: &self.tail, sleepers: &self.receivers }.call();
        }
        fn receive(&self) -> u32 {
            loop {
                // SAFETY: the slot is the receiver's until the head says otherwise.
                let read = |_| self.slot.with(|slot| unsafe { *slot });
                let lock = self.lock.lock().unwrap();
                let got = get(&self.head, &self.tail, 1, read).unwrap();
                drop(lock);
                match got {
                    Ok(item) => {
                        End { word: &self.head, sleepers: &self.senders }.call();
                        return item;
                    }
                    Err(tail) => {
                        let announced = Announced::new(&self.receivers);
                        self.tail.wait(tail, None).unwrap();
                        drop(announced);
                    }
                }
            }
        }
    }

    /// A ring of one slot, a sender and a receiver: in order, nothing lost, nobody left asleep.
    #[test]
    fn a_sender_and_a_receiver() {
        model(|| {
            let channel = Channel::new();
            let other = channel.clone();
            let sender = thread::spawn(move || (1..=2).for_each(|item| other.send(item)));
            assert_eq!((channel.receive(), channel.receive()), (1, 2));
            sender.join().unwrap();
        });
    }

    /// Two receivers that sleep, two items: both get one.
    #[test]
    fn two_receivers() {
        model(|| {
            let channel = Channel::new();
            let receivers = [(); 2].map(|()| {
                let channel = channel.clone();
                thread::spawn(move || channel.receive())
            });
            (1..=2).for_each(|item| channel.send(item));
            let sum: u32 = receivers.map(|receiver| receiver.join().unwrap()).iter().sum();
            assert_eq!(sum, 3);
        });
    }
}
