//! The protocol of a channel between threads, over borrowed words.
//!
//! A ring of slots, each with a stamp that says whose turn it is (D. Vyukov's bounded queue, with
//! the laps of crossbeam's, so that any capacity will do):
//!
//! | the stamp of a slot | in the lap `L` |
//! |---|---|
//! | `L` | free, for the sender whose position is in that lap |
//! | `L + 1` | it holds that sender's item |
//! | `L + lap` | received: free for the next lap |
//!
//! ```text
//! sender at tail                          receiver at head
//!   if stamp != L: full, or somebody is     if stamp != L + 1: empty, or somebody is
//!   tail: this -> next    # takes the turn  head: this -> next
//!   item = it                               it = item
//!   stamp = L + 1         # passes it on    stamp = L + lap
//! ```
//!
//! Between the two writes of one thread the others of its side go on with the next slots; only who
//! needs this very slot has to look again. A thread that ended there would stop the ring, so
//! this is for threads of one process; `claims.rs` is for several.
//!
//! The exchange of the position is also the fence of whoever rings a [bell](super::bell): a
//! sleeper sees by it that something is on its way, and does not sleep though the stamp is not
//! written yet.

use crate::sync::Ordering::{Acquire, Relaxed, Release};
use crate::sync::{AtomicU64, fence, fence_after_rmw, spin_loop};

/// In the tail: nothing can be sent any more.
const CLOSED: u64 = 1 << 63;

/// How often a try looks again at what others change at that moment.
pub(super) const LOOKS: u32 = if cfg!(all(test, loom)) { 2 } else { 100 };

/// How a look at a ring ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tried<T> {
    Done(T),
    /// It is full, or empty.
    Not,
    /// Others were in the way for as long as it looked.
    Busy,
    Closed,
}

/// How many slots, and how positions are numbered: those of one lap from 0 up, in the bits below
/// `lap`, a power of two; above them the laps.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) capacity: u32,
    pub(super) lap: u64,
}

impl Shape {
    pub(super) const fn new(capacity: u32) -> Self {
        // A stamp is one more than its lap, and must not be the next one.
        let lap = (capacity as u64).next_power_of_two();
        Self { capacity, lap: if lap < 2 { 2 } else { lap } }
    }

    /// The slot of a position, and its lap.
    #[inline]
    pub(super) fn split(&self, position: u64) -> (usize, u64) {
        ((position & (self.lap - 1)) as usize, position & !(self.lap - 1))
    }

    #[inline]
    pub(super) fn next(&self, position: u64) -> u64 {
        let (index, lap) = self.split(position);
        if index + 1 < self.capacity as usize { position + 1 } else { lap.wrapping_add(self.lap) }
    }

    /// Positions from one to another, which is not less.
    pub(super) fn distance(&self, from: u64, to: u64) -> u64 {
        let ((at, lap), (end, last)) = (self.split(from), self.split(to));
        let laps = last.wrapping_sub(lap) / self.lap;
        laps.wrapping_mul(self.capacity.into()).wrapping_add(end as u64).wrapping_sub(at as u64)
    }
}

/// The words of a ring; `stamp` has one for each slot.
pub(super) struct Ring<'a, F> {
    pub(super) tail: &'a AtomicU64,
    pub(super) head: &'a AtomicU64,
    pub(super) shape: Shape,
    pub(super) stamp: F,
}

impl<'a, F: Fn(usize) -> &'a AtomicU64> Ring<'a, F> {
    /// Sends what `write` puts into the slot that it is told.
    #[inline]
    pub(super) fn send(&self, write: impl FnOnce(usize)) -> Tried<()> {
        let mut tail = self.tail.load(Relaxed);
        for _ in 0..LOOKS {
            if tail & CLOSED != 0 {
                // What was done before the end is seen.
                fence(Acquire);
                return Tried::Closed;
            }
            let (index, lap) = self.shape.split(tail);
            let stamp = (self.stamp)(index);
            // The fence behind the exchange brings what its writer did before.
            let seen = stamp.load(Relaxed);
            if seen == lap {
                match self.tail.compare_exchange(tail, self.shape.next(tail), Relaxed, Relaxed) {
                    Ok(_) => {
                        fence_after_rmw();
                        write(index);
                        stamp.store(lap + 1, Release);
                        return Tried::Done(());
                    }
                    Err(now) => tail = now,
                }
                continue;
            }
            if seen == lap.wrapping_sub(self.shape.lap) + 1
                && self.head.load(Relaxed) == tail.wrapping_sub(self.shape.lap)
            {
                return Tried::Not;
            }
            spin_loop();
            tail = self.tail.load(Relaxed);
        }
        Tried::Busy
    }

    /// Receives what `read` takes from the slot that it is told.
    #[inline]
    pub(super) fn receive<T>(&self, read: impl FnOnce(usize) -> T) -> Tried<T> {
        let mut head = self.head.load(Relaxed);
        for _ in 0..LOOKS {
            let (index, lap) = self.shape.split(head);
            let stamp = (self.stamp)(index);
            // The fence behind the exchange brings what its writer did before.
            let seen = stamp.load(Relaxed);
            if seen == lap + 1 {
                match self.head.compare_exchange(head, self.shape.next(head), Relaxed, Relaxed) {
                    Ok(_) => {
                        fence_after_rmw();
                        let item = read(index);
                        stamp.store(lap + self.shape.lap, Release);
                        return Tried::Done(item);
                    }
                    Err(now) => head = now,
                }
                continue;
            }
            if seen == lap {
                let tail = self.tail.load(Acquire);
                if tail & !CLOSED == head {
                    return if tail == head { Tried::Not } else { Tried::Closed };
                }
            }
            spin_loop();
            head = self.head.load(Relaxed);
        }
        Tried::Busy
    }

    /// Lets nobody send any more; whether anybody could.
    pub(super) fn close(&self) -> bool {
        let before = self.tail.fetch_or(CLOSED, Release);
        fence_after_rmw();
        before & CLOSED == 0
    }

    pub(super) fn is_closed(&self) -> bool {
        self.tail.load(Acquire) & CLOSED != 0
    }

    pub(super) fn len(&self) -> u64 {
        loop {
            let tail = self.tail.load(Acquire);
            let head = self.head.load(Acquire);
            if self.tail.load(Relaxed) == tail {
                return self.shape.distance(head, tail & !CLOSED);
            }
        }
    }

    /// Whether the slot that would be received next holds its item; `None` if its sender has not
    /// written it yet.
    pub(super) fn has_item(&self) -> Option<bool> {
        let head = self.head.load(Relaxed);
        let (index, lap) = self.shape.split(head);
        match (self.stamp)(index).load(Acquire) {
            seen if seen != lap => Some(true),
            _ if self.tail.load(Relaxed) & !CLOSED == head => Some(false),
            _ => None,
        }
    }

    /// The same of room for another item, and its last receiver.
    pub(super) fn has_room(&self) -> Option<bool> {
        let tail = self.tail.load(Relaxed) & !CLOSED;
        let (index, lap) = self.shape.split(tail);
        match (self.stamp)(index).load(Acquire) {
            seen if seen == lap => Some(true),
            _ if self.head.load(Relaxed) == tail.wrapping_sub(self.shape.lap) => Some(false),
            _ => None,
        }
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::super::bell::Bell;
    use super::super::cell::Cell;
    use super::super::cell::model::Modelled;
    use super::*;
    use crate::sync::{AtomicU32, model, model_within};
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    struct Channel {
        tail: AtomicU64,
        head: AtomicU64,
        slots: Vec<(AtomicU64, UnsafeCell<u32>)>,
        sent: Bell<Modelled<AtomicU32>>,
        room: Bell<Modelled<AtomicU32>>,
    }

    impl Channel {
        fn new(capacity: u32) -> Arc<Self> {
            let slot = |_| (AtomicU64::new(0).ready(), UnsafeCell::new(0));
            Arc::new(Self {
                tail: AtomicU64::new(0).ready(),
                head: AtomicU64::new(0).ready(),
                slots: (0..capacity).map(slot).collect(),
                sent: Bell::new(Modelled::<AtomicU32>::new(0)).ready(),
                room: Bell::new(Modelled::<AtomicU32>::new(0)).ready(),
            })
        }

        fn ring<'a>(&'a self) -> Ring<'a, impl Fn(usize) -> &'a AtomicU64> {
            Ring {
                tail: &self.tail,
                head: &self.head,
                shape: Shape::new(self.slots.len() as u32),
                stamp: |index: usize| &self.slots[index].0,
            }
        }

        fn try_send(&self, item: u32) -> Tried<()> {
            // SAFETY: the slot is the sender's until its stamp says otherwise.
            let write = |index: usize| self.slots[index].1.with_mut(|slot| unsafe { *slot = item });
            let sent = self.ring().send(write);
            if sent == Tried::Done(()) {
                self.sent.ring();
            }
            sent
        }

        fn try_receive(&self) -> Tried<u32> {
            // SAFETY: the slot is the receiver's until its stamp says otherwise.
            let read = |index: usize| self.slots[index].1.with(|slot| unsafe { *slot });
            let got = self.ring().receive(read);
            if let Tried::Done(_) = got {
                self.room.ring();
            }
            got
        }

        fn persist<T>(
            &self,
            bell: &Bell<Modelled<AtomicU32>>,
            attempt: impl Fn() -> Tried<T>,
        ) -> Option<T> {
            loop {
                let (seen, listener) = bell.announce();
                match attempt() {
                    Tried::Done(answer) => {
                        drop(listener);
                        bell.ring();
                        return Some(answer);
                    }
                    Tried::Closed => return None,
                    Tried::Busy => spin_loop(),
                    Tried::Not => drop(bell.sequence().wait(seen, None).unwrap()),
                }
            }
        }

        fn send(&self, item: u32) {
            assert_eq!(self.persist(&self.room, || self.try_send(item)), Some(()));
        }

        fn receive(&self) -> Option<u32> {
            self.persist(&self.sent, || self.try_receive())
        }
    }

    /// One slot, two laps: in order, nothing torn, nobody left asleep.
    #[test]
    fn a_sender_and_a_receiver() {
        model(|| {
            let channel = Channel::new(1);
            let other = channel.clone();
            let sender = thread::spawn(move || (1..=2).for_each(|item| other.send(item)));
            assert_eq!((channel.receive(), channel.receive()), (Some(1), Some(2)));
            sender.join().unwrap();
        });
    }

    /// Two receive at once, while the slot of the one is filled anew: each item once.
    #[test]
    fn two_receivers() {
        model_within(3, || {
            let channel = Channel::new(1);
            assert_eq!(channel.try_send(1), Tried::Done(()));
            let other = channel.clone();
            let receiver = thread::spawn(move || other.try_receive());
            let first = channel.try_receive();
            let again = channel.try_send(2) == Tried::Done(());
            let got = [first, receiver.join().unwrap(), channel.try_receive()];
            let got = got.map(|got| if let Tried::Done(item) = got { item } else { 0 });
            assert_eq!(got.iter().sum::<u32>(), if again { 3 } else { 1 });
        });
    }

    /// Two send at once: both items are there.
    #[test]
    fn two_senders() {
        model_within(3, || {
            let channel = Channel::new(2);
            let other = channel.clone();
            let sender = thread::spawn(move || while other.try_send(1) != Tried::Done(()) {});
            while channel.try_send(2) != Tried::Done(()) {}
            let first = channel.receive();
            sender.join().unwrap();
            assert_eq!(first.unwrap() + channel.receive().unwrap(), 3);
        });
    }

    /// Who finds the end sees what was done before it, on both sides.
    #[test]
    fn an_end_brings_what_was_before() {
        model(|| {
            let channel = Channel::new(1);
            let (other, before) = (channel.clone(), Arc::new(UnsafeCell::new(0)));
            let done = before.clone();
            let closer = thread::spawn(move || {
                // SAFETY: nobody reads it before the end.
                before.with_mut(|done| unsafe { *done = 7 });
                other.ring().close();
            });
            // SAFETY: written before the end.
            let seen = || done.with(|done| unsafe { *done });
            if channel.ring().receive(|_| ()) == Tried::Closed {
                assert_eq!(seen(), 7);
            }
            if channel.ring().send(|_| ()) == Tried::Closed {
                assert_eq!(seen(), 7);
            }
            closer.join().unwrap();
        });
    }

    /// Once the end was told, nothing is sent.
    #[test]
    fn an_end_is_an_end() {
        model_within(3, || {
            let channel = Channel::new(2);
            let other = channel.clone();
            let sender = thread::spawn(move || other.try_send(7) == Tried::Done(()));
            let other = channel.clone();
            let closer = thread::spawn(move || {
                other.ring().close();
                other.sent.ring_all();
            });
            let mut got = 0;
            while channel.receive().is_some() {
                got += 1;
            }
            assert_eq!(got, usize::from(sender.join().unwrap()));
            closer.join().unwrap();
        });
    }
}
