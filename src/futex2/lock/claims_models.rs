//! Models of the protocol between processes.

use super::super::bell::Bell;
use super::super::cell::Cell;
use super::super::cell::model::Modelled;
use super::*;
use crate::sync::{AtomicBool, Ordering::SeqCst, model, model_within};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

/// A channel of plain numbers, which are copied while others may write them.
struct Channel {
    tail: AtomicU64,
    seen: AtomicU64,
    head: AtomicU64,
    closed: AtomicU32,
    words: Vec<AtomicU64>,
    items: Vec<AtomicU32>,
    sent: Bell<Modelled<AtomicU32>>,
    room: Bell<Modelled<AtomicU32>>,
    dead: AtomicBool,
}

impl Channel {
    fn new(capacity: u32) -> Arc<Self> {
        Arc::new(Self {
            tail: AtomicU64::new(0).ready(),
            seen: AtomicU64::new(0).ready(),
            head: AtomicU64::new(0).ready(),
            closed: AtomicU32::new(0).ready(),
            words: (0..capacity).map(|_| AtomicU64::new(0).ready()).collect(),
            items: (0..capacity).map(|_| AtomicU32::new(0).ready()).collect(),
            sent: Bell::new(Modelled::<AtomicU32>::new(0)).ready(),
            room: Bell::new(Modelled::<AtomicU32>::new(0)).ready(),
            dead: AtomicBool::new(false).ready(),
        })
    }

    fn claims<'a>(&'a self) -> Claims<'a, impl Fn(usize) -> &'a AtomicU64> {
        Claims {
            tail: &self.tail,
            seen: &self.seen,
            head: &self.head,
            closed: &self.closed,
            shape: Shape::new(self.words.len() as u32),
            slot: |index: usize| &self.words[index],
        }
    }

    fn try_send(&self, me: u64, item: u32) -> Tried<()> {
        let write = |index: usize| self.items[index].store(item, Relaxed);
        let sent = self.claims().send(me, write).unwrap();
        if sent == Tried::Done(()) {
            self.sent.ring();
        }
        sent
    }

    fn try_receive(&self) -> Tried<u32> {
        let read = |index: usize| self.items[index].load(Relaxed);
        let got = self.claims().receive(read).unwrap();
        if let Tried::Done(_) = got {
            self.room.ring();
        }
        got
    }

    /// Thread 1 is the one that may be dead.
    fn is_dead(&self, id: u64) -> bool {
        id == 1 && self.dead.load(Acquire)
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
                    // A wake may have been spent on this one.
                    bell.ring();
                    return Some(answer);
                }
                Tried::Closed => return None,
                Tried::Busy => {
                    let _ = self.claims().clear(|id| self.is_dead(id));
                    spin_loop();
                }
                Tried::Not => drop(bell.sequence().wait(seen, None).unwrap()),
            }
        }
    }

    fn send(&self, me: u64, item: u32) {
        assert_eq!(self.persist(&self.room, || self.try_send(me, item)), Some(()));
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
        let sender = thread::spawn(move || (1..=2).for_each(|item| other.send(2, item)));
        assert_eq!((channel.receive(), channel.receive()), (Some(1), Some(2)));
        sender.join().unwrap();
    });
}

/// Two send at once.
#[test]
fn two_senders() {
    model_within(3, || {
        let channel = Channel::new(2);
        let senders = [2, 3].map(|me| {
            let channel = channel.clone();
            thread::spawn(move || assert_eq!(channel.try_send(me, me as u32), Tried::Done(())))
        });
        senders.map(|sender| sender.join().unwrap());
        let mut got = [channel.receive(), channel.receive()];
        got.sort_unstable();
        assert_eq!(got, [Some(2), Some(3)]);
    });
}

fn room_comes_back(capacity: u32) {
    model_within(2, move || {
        let channel = Channel::new(capacity);
        let senders = [2, 1].map(|items| {
            let channel = channel.clone();
            let send = move || channel.try_send(items, 1) == Tried::Done(());
            thread::spawn(move || (0..items).filter(|_| send()).count())
        });
        let take = |channel: &Channel| usize::from(channel.try_receive() == Tried::Done(1));
        let other = channel.clone();
        let receiver = thread::spawn(move || take(&other) + take(&other));
        let sent: usize = senders.map(|sender| sender.join().unwrap()).iter().sum();
        let mut got = receiver.join().unwrap();
        while take(&channel) == 1 {
            got += 1;
        }
        assert_eq!(got, sent);
    });
}

/// A slot is filled by one, emptied by another and filled by a third, who knows what the others
/// did.
#[test]
fn room_comes_back_for_one() {
    room_comes_back(1);
}

/// The same with two slots: who sends finds the first one that is free.
#[test]
fn room_comes_back_for_two() {
    room_comes_back(2);
}

/// Two receive at once, while the slot of the one is filled anew: each item once.
#[test]
fn two_receivers() {
    model_within(3, || {
        let channel = Channel::new(1);
        assert_eq!(channel.try_send(2, 1), Tried::Done(()));
        let other = channel.clone();
        let receiver = thread::spawn(move || other.try_receive());
        let first = channel.try_receive();
        let again = channel.try_send(2, 2) == Tried::Done(());
        let second = receiver.join().unwrap();
        let rest = channel.try_receive();
        let mut got: Vec<_> = [first, second, rest]
            .into_iter()
            .filter_map(|got| if let Tried::Done(item) = got { Some(item) } else { None })
            .collect();
        got.sort_unstable();
        assert_eq!(got, if again { vec![1, 2] } else { vec![1] });
    });
}

/// One died in the middle of a send; two clear its claim away while a third sends: what was
/// sent comes, once.
#[test]
fn a_dead_claim_is_passed_over() {
    model(|| {
        let channel = Channel::new(2);
        channel.words[0].store(CLAIMED | 1, Relaxed);
        channel.dead.store(true, Release);
        let other = channel.clone();
        let sender = thread::spawn(move || {
            other.send(2, 7);
            other.send(2, 8);
        });
        let got = channel.receive().unwrap();
        let other = channel.clone();
        let receiver = thread::spawn(move || other.receive().unwrap());
        sender.join().unwrap();
        assert_eq!((got, receiver.join().unwrap()), (7, 8));
        assert_eq!(channel.try_receive(), Tried::Not);
    });
}

/// Two clear one claim away, and one of them sends at once into the slot.
#[test]
fn two_clear_a_claim() {
    model_within(3, || {
        let channel = Channel::new(1);
        channel.words[0].store(CLAIMED | 1, Relaxed);
        channel.dead.store(true, Release);
        let other = channel.clone();
        let clear = |channel: &Channel| {
            channel.claims().clear(|id| channel.is_dead(id)).unwrap();
        };
        let clearer = thread::spawn(move || clear(&other));
        clear(&channel);
        let sent = channel.try_send(2, 7) == Tried::Done(());
        clearer.join().unwrap();
        assert_eq!(channel.try_receive() == Tried::Done(7), sent);
    });
}

/// Once the end was told, nothing is sent.
#[test]
fn an_end_is_an_end() {
    model_within(3, || {
        let channel = Channel::new(2);
        let other = channel.clone();
        let sender = thread::spawn(move || other.try_send(2, 7) == Tried::Done(()));
        let other = channel.clone();
        let done = Arc::new(UnsafeCell::new(0));
        let before = done.clone();
        let closer = thread::spawn(move || {
            // SAFETY: nobody reads it before the end.
            before.with_mut(|done| unsafe { *done = 7 });
            other.closed.store(1, Release);
            fence(SeqCst);
            other.sent.ring_all();
        });
        let mut got = 0;
        while channel.receive().is_some() {
            got += 1;
        }
        // SAFETY: written before the end.
        assert_eq!(done.with(|done| unsafe { *done }), 7);
        assert_eq!(got, usize::from(sender.join().unwrap()));
        closer.join().unwrap();
        assert_eq!(channel.try_receive(), Tried::Closed);
    });
}
