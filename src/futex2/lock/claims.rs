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
use crate::sync::{AtomicU32, AtomicU64, fence, fence_after_rmw, spin_loop};

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

/// How many slots one try goes past: more are for the next one, which begins where this one
/// ended. Without lies there are few, but an old tail may be a whole ring behind.
const WALK: u64 = 4096;

/// What others wrote cannot be a channel's. A signal handler may meet it, so it does not allocate.
#[cold]
fn lies(head: u64, tail: u64) -> Error {
    Error::bad_words(
        "futex2::Channel",
        "received and sent to positions that cannot be",
        [head, tail],
    )
}

impl<'a, F: Fn(usize) -> &'a AtomicU64> Claims<'a, F> {
    #[inline]
    fn word(&self, index: usize, head: u64, tail: u64) -> Result<&'a AtomicU64> {
        if index < self.shape.capacity as usize {
            return Ok((self.slot)(index));
        }
        Err(lies(head, tail))
    }

    /// Sends what `write` puts into the slot that it is told, as thread `me`.
    #[inline]
    pub(super) fn send(&self, me: u64, write: impl FnOnce(usize)) -> Result<Tried<()>> {
        let mut at = self.tail.load(Acquire);
        let mut room = self.seen.load(Acquire);
        for _ in 0..u64::from(LOOKS) + WALK.min(self.shape.capacity.into()) {
            if at.wrapping_sub(room) >= self.shape.lap {
                room = self.head.load(Acquire);
                // Behind, because those died who should have moved it.
                at = at.max(room);
                if at - room >= self.shape.lap {
                    if at - room > self.shape.lap {
                        return Err(lies(room, at));
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
                SEALED => {
                    fence(Acquire);
                    return Ok(Tried::Closed);
                }
                // This lap's: the last lap's is received.
                CLAIMED => at = self.shape.next(at),
                _ if seen & REST == lap => {
                    if self.closed.load(Acquire) != 0 {
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
                _ => return Err(lies(room, at)),
            }
        }
        self.advance(at);
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
                // Passes on what was done before the end.
                let _ = word.compare_exchange(seen, SEALED, Release, Relaxed);
            }
            VOID if seen & REST == lap.wrapping_add(self.shape.lap) & REST => self.pass(head),
            // Others have received it.
            _ if self.head.load(Acquire) != head => {}
            _ => return Some(Err(lies(head, seen))),
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
#[path = "claims_models.rs"]
mod models;
