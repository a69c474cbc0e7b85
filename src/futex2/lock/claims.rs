//! The protocol of a channel between processes, each of which may die at any instruction, over
//! borrowed words.
//!
//! Positions and laps are those of `ring.rs`. Each slot has a word:
//!
//! | bits 62, 63 | the others | the slot |
//! |---|---|---|
//! | 0 | `L + lap` | holds the item of lap `L`, or is free again: `head` tells |
//! | 1, `VOID` | `L + lap` | the same without an item: its sender died with it |
//! | 2, `CLAIMED` | a thread, as `identity.rs` has it | that thread is writing its item |
//! | 3, `SEALED` | | the channel is closed and empty, and this is its end |
//!
//! ```text
//! sender                                   receiver
//!   p = first position with its slot         p = head
//!       not claimed in that lap              if slot[p] is not full: empty
//!   if p - head == capacity: full            item = it            # a copy
//!   slot[p]: lap before -> CLAIMED me        head: p -> p + 1     # commits
//!   tail = p + 1         # where to look     otherwise again: it was another one's
//!   item = it
//!   slot[p] = full       # commits
//! ```
//!
//! Each commits by one write. A receiver that dies has copied an item and nothing else, or has
//! received it. A sender that dies after its commit has sent; before it there is its claim. Whoever
//! comes to a claim whose thread is dead makes it `VOID`, which is passed over. `tail` is where
//! the next sender begins to look: if it is behind, that one goes on from slot to slot.
//!
//! Why a claim that is found can be told to belong to the position `p` of who found it: it could
//! only be made while `p`'s slot was free for its lap, and `head` passes no claim. So if `head`
//! is `p` after the claim was seen, it is none of a later lap. And a dead thread's claim, found
//! again after its death, is the same one: it makes no others.
//!
//! A receiver copies an item that, if another one is faster, is being overwritten meanwhile: then
//! the exchange fails and the copy is forgotten. Hence plain bytes only, and volatile copies.
//!
//! Closing: who finds the channel closed and empty seals the slot that would be next. A sender
//! that has not claimed it by then never will: so no item is sent into a channel whose end was told.
//!
//! What others write here is checked before use: a position outside of the ring is EBADMSG.

use super::ring::{LOOKS, Shape, Tried};
use crate::error::{Error, Result};
use crate::sync::Ordering::{Acquire, Relaxed, Release};
use crate::sync::{AtomicU32, AtomicU64, fence_after_rmw, spin_loop};
use rustix::io::Errno;

const VOID: u64 = 1 << 62;
const CLAIMED: u64 = 2 << 62;
const SEALED: u64 = 3 << 62;
/// The bits beside these.
const REST: u64 = VOID - 1;

/// The words of a ring; `slot` has one for each slot.
pub(super) struct Claims<'a, F> {
    pub(super) tail: &'a AtomicU64,
    /// A head that some sender has seen: so the others need not look at the receivers' line.
    pub(super) seen: &'a AtomicU64,
    pub(super) head: &'a AtomicU64,
    pub(super) closed: &'a AtomicU32,
    pub(super) shape: Shape,
    pub(super) slot: F,
}

/// What others wrote cannot be a channel's.
#[cold]
fn lies(head: u64, tail: u64, capacity: u32) -> Error {
    Error::with(
        "futex2::Channel",
        Errno::BADMSG,
        format_args!("sent to {tail:#x}, received to {head:#x}, of {capacity} at a time"),
    )
}

impl<'a, F: Fn(usize) -> &'a AtomicU64> Claims<'a, F> {
    #[inline]
    fn word(&self, index: usize, head: u64, tail: u64) -> Result<&'a AtomicU64> {
        if index < self.shape.capacity as usize {
            return Ok((self.slot)(index));
        }
        Err(lies(head, tail, self.shape.capacity))
    }

    /// Sends what `write` puts into the slot that it is told, as thread `me`.
    #[inline]
    pub(super) fn send(&self, me: u64, write: impl FnOnce(usize)) -> Result<Tried<()>> {
        let mut at = self.tail.load(Acquire);
        let mut room = self.seen.load(Acquire);
        for _ in 0..u64::from(LOOKS) + u64::from(self.shape.capacity) {
            if at.wrapping_sub(room) >= self.shape.lap {
                room = self.head.load(Acquire);
                // Behind, because those died who should have moved it.
                at = at.max(room);
                if at - room >= self.shape.lap {
                    if at - room > self.shape.lap {
                        return Err(lies(room, at, self.shape.capacity));
                    }
                    // Left behind by one that died.
                    self.advance(at);
                    let closed = self.closed.load(Acquire) != 0;
                    return Ok(if closed { Tried::Closed } else { Tried::Not });
                }
                self.seen.store(room, Release);
            }
            let (index, lap) = self.shape.split(at);
            let word = self.word(index, room, at)?;
            let seen = word.load(Relaxed);
            match seen & SEALED {
                SEALED => return Ok(Tried::Closed),
                // This lap's: the last lap's is received.
                CLAIMED => at = self.shape.next(at),
                _ if seen & REST == lap => {
                    if self.closed.load(Relaxed) != 0 {
                        return Ok(Tried::Closed);
                    }
                    if word.compare_exchange(seen, CLAIMED | me, Relaxed, Relaxed).is_ok() {
                        fence_after_rmw();
                        self.advance(self.shape.next(at));
                        write(index);
                        word.store(lap.wrapping_add(self.shape.lap) & REST, Release);
                        return Ok(Tried::Done(()));
                    }
                }
                _ if seen & REST > lap => at = self.shape.next(at),
                _ => return Err(lies(room, at, self.shape.capacity)),
            }
        }
        Ok(Tried::Busy)
    }

    #[inline]
    fn advance(&self, tail: u64) {
        if self.tail.load(Relaxed) < tail {
            self.tail.store(tail, Release);
        }
    }

    /// Receives what `read` copies from the slot that it is told: maybe more than once, and what is
    /// not returned may be torn.
    #[inline]
    pub(super) fn receive<T>(&self, read: impl Fn(usize) -> T) -> Result<Tried<T>> {
        let mut head = self.head.load(Relaxed);
        for _ in 0..LOOKS {
            let (index, lap) = self.shape.split(head);
            let word = self.word(index, head, head)?;
            let seen = word.load(Acquire);
            let full = lap.wrapping_add(self.shape.lap) & REST;
            if seen == full {
                let item = read(index);
                let next = self.shape.next(head);
                match self.head.compare_exchange(head, next, Release, Relaxed) {
                    Ok(_) => {
                        fence_after_rmw();
                        return Ok(Tried::Done(item));
                    }
                    Err(now) => head = now,
                }
                continue;
            }
            match self.without_item(word, seen, head) {
                Some(answer) => return answer.map(|()| Tried::Not),
                None if seen & SEALED == SEALED => return Ok(Tried::Closed),
                None => head = self.head.load(Relaxed),
            }
        }
        Ok(Tried::Busy)
    }

    /// The slot at `head` holds no item: an answer, or `None` to look again.
    #[cold]
    fn without_item(&self, word: &AtomicU64, seen: u64, head: u64) -> Option<Result<()>> {
        let (_, lap) = self.shape.split(head);
        match seen & SEALED {
            SEALED => {}
            CLAIMED => spin_loop(),
            _ if seen & REST == lap => {
                if self.closed.load(Acquire) == 0 {
                    return Some(Ok(()));
                }
                let _ = word.compare_exchange(seen, SEALED, Relaxed, Relaxed);
            }
            VOID if seen & REST == lap.wrapping_add(self.shape.lap) & REST => self.pass(head),
            // Others have received it.
            _ if self.head.load(Acquire) != head => {}
            _ => return Some(Err(lies(head, seen, self.shape.capacity))),
        }
        None
    }

    /// Passes over a slot without an item.
    fn pass(&self, head: u64) {
        let _ = self.head.compare_exchange(head, self.shape.next(head), Release, Relaxed);
        fence_after_rmw();
    }

    /// If a dead sender's claim is first in the channel, takes it out of the way; whether it did.
    /// `is_dead` looks after a thread.
    #[cold]
    pub(super) fn clear(&self, is_dead: impl Fn(u64) -> bool) -> Result<bool> {
        let (index, _) = self.shape.split(self.head.load(Relaxed));
        let word = self.word(index, 0, 0)?;
        let seen = word.load(Acquire);
        if seen & SEALED != CLAIMED || !is_dead(seen & REST) {
            return Ok(false);
        }
        // After the death: see the head of the file.
        let head = self.head.load(Acquire);
        let (now, lap) = self.shape.split(head);
        let void = VOID | lap.wrapping_add(self.shape.lap) & REST;
        if now != index || word.compare_exchange(seen, void, Relaxed, Relaxed).is_err() {
            return Ok(false);
        }
        self.pass(head);
        Ok(true)
    }

    /// Items, those that are being written, and those of senders that died with them.
    pub(super) fn len(&self) -> u64 {
        let (head, tail) = (self.head.load(Acquire), self.tail.load(Acquire));
        let len = self.shape.distance(head, tail.max(head));
        if len <= self.shape.capacity.into() { len } else { 0 }
    }

    /// Whether the slot that would be received next holds its item, or lies; `None` if its sender
    /// has not written it yet.
    pub(super) fn has_item(&self) -> Option<bool> {
        let (index, lap) = self.shape.split(self.head.load(Relaxed));
        let Ok(word) = self.word(index, 0, 0) else { return Some(true) };
        match word.load(Acquire) {
            seen if seen & SEALED == CLAIMED => None,
            seen => Some(seen & REST != lap),
        }
    }

    /// Whether there is room for another item, or lies about it.
    pub(super) fn has_room(&self) -> bool {
        let (tail, head) = (self.tail.load(Acquire), self.head.load(Acquire));
        tail.wrapping_sub(head) != self.shape.lap
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::super::bell::Bell;
    use super::super::cell::Cell;
    use super::super::cell::model::Modelled;
    use super::*;
    use crate::sync::{AtomicBool, Ordering::SeqCst, fence, model, model_within};
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
            let closer = thread::spawn(move || {
                other.closed.store(1, Release);
                fence(SeqCst);
                other.sent.ring_all();
            });
            let mut got = 0;
            while channel.receive().is_some() {
                got += 1;
            }
            assert_eq!(got, usize::from(sender.join().unwrap()));
            closer.join().unwrap();
            assert_eq!(channel.try_receive(), Tried::Closed);
        });
    }
}
