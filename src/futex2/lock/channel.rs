//! A bounded channel, in this process or between several.

use super::channel_memory::{Control, Slot};
use super::claims::Claims;
use super::identity::me;
use super::items::SendError;
use super::ring::{Ring, Shape, Tried};
use super::waiting::Patience;
use crate::error::Result;
use crate::futex2::{Deadline, Private, Scope};
use crate::sync::Ordering::{Acquire, Release};
use crate::sync::{AtomicU64, fence_after_rmw};
use core::cell::UnsafeCell;
use core::fmt;
use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::panic::{RefUnwindSafe, UnwindSafe};
use core::ptr::NonNull;

/// A bounded channel with any number of senders and receivers.
///
/// [`bounded`](Self::bounded) makes one for the threads of this process;
/// [`attach`](Channel::attach) lays one over memory that processes share. Both ends are this one
/// type: lend it, or put it into an `Arc`. With [`channel`](super::channel()) the ends are apart, and
/// it closes when one of them is gone.
///
/// ```
/// use unmerged::futex2::lock::Channel;
///
/// let channel = Channel::<String>::bounded(4)?;
/// std::thread::scope(|scope| {
///     scope.spawn(|| {
///         ["hello", "world"].map(|word| channel.send(word.into()).unwrap());
///         channel.close();
///     });
///     assert_eq!(channel.iter().collect::<Vec<_>>(), ["hello", "world"]);
/// });
/// assert!(channel.recv().unwrap_err().is_closed());
/// # Ok::<(), unmerged::Error>(())
/// ```
///
/// No lock is in it, and no system call is made while nobody sleeps. Items of one sender are
/// received in the order in which it sent them.
///
/// # Deaths
///
/// In shared memory a process may die at any instruction of a send or a receive. No other is blocked
/// by it for longer than 50 milliseconds, and of the items:
///
/// - An item is *sent* by one store. If its sender dies before it, it was never sent; after it, it
///   is received once.
/// - An item is *received* by one store. If its receiver dies before it, the item stays first in
///   the channel for another one; after it, the item is gone with its receiver.
///
/// So each item that was sent is received exactly once, by a process that may die with it.
///
/// A sender that is *stopped* in the middle of a send, be it by a signal, holds up what was sent
/// after that. The processes have one namespace of process ids, and of time.
pub struct Channel<T, S: Scope = Private> {
    pub(super) control: NonNull<Control<S>>,
    pub(super) slots: NonNull<Slot<T>>,
    /// Ours, not read from memory that others write.
    pub(super) shape: Shape,
    pub(super) owned: bool,
    pub(super) items: PhantomData<T>,
}

// SAFETY: items move between threads; the words are atomics.
unsafe impl<T: Send, S: Scope> Send for Channel<T, S> {}
// SAFETY: as above.
unsafe impl<T: Send, S: Scope> Sync for Channel<T, S> {}

// As std's and crossbeam's channels: an item is in it whole or not at all, whatever panics.
impl<T, S: Scope> UnwindSafe for Channel<T, S> {}
impl<T, S: Scope> RefUnwindSafe for Channel<T, S> {}

const SEND: &str = "futex2::Channel::send";
const RECEIVE: &str = "futex2::Channel::recv";

impl<T, S: Scope> Channel<T, S> {
    #[inline]
    pub(super) fn control(&self) -> &Control<S> {
        // SAFETY: ours, or vouched for by who attached it; nothing but atomics.
        unsafe { self.control.as_ref() }
    }

    #[inline]
    fn slot(&self, index: usize) -> NonNull<Slot<T>> {
        debug_assert!(index < self.shape.capacity as usize);
        // SAFETY: below the capacity.
        unsafe { self.slots.add(index) }
    }

    #[inline]
    fn word(&self, index: usize) -> &AtomicU64 {
        let word = self.slot(index).as_ptr();
        // SAFETY: a slot, in memory that is ours or vouched for.
        let word = unsafe { &raw const (*word).word };
        // SAFETY: as above; it is an atomic.
        unsafe { &*word }
    }

    #[inline]
    fn item(&self, index: usize) -> *mut MaybeUninit<T> {
        let item = self.slot(index).as_ptr();
        // SAFETY: a slot, in memory that is ours or vouched for.
        let item = unsafe { &raw const (*item).item };
        UnsafeCell::raw_get(item)
    }

    #[inline]
    fn ring<'a>(&'a self) -> Ring<'a, impl Fn(usize) -> &'a AtomicU64> {
        let Control { tail, head, .. } = self.control();
        Ring { tail: &tail.position, head, shape: self.shape, stamp: |index| self.word(index) }
    }

    #[inline]
    pub(super) fn claims<'a>(&'a self) -> Claims<'a, impl Fn(usize) -> &'a AtomicU64> {
        let Control { tail, head, bells } = self.control();
        Claims {
            tail: &tail.position,
            seen: &tail.seen,
            head,
            closed: &bells.closed,
            shape: self.shape,
            slot: |index| self.word(index),
        }
    }

    #[inline]
    fn try_put(&self, item: &MaybeUninit<T>) -> Result<Tried<()>> {
        if S::PRIVATE {
            // SAFETY: the slot is this sender's until its stamp says otherwise.
            Ok(self.ring().send(|index| unsafe {
                self.item(index).copy_from_nonoverlapping(item, 1);
            }))
        } else {
            // SAFETY: the item is read once: it is forgotten if it was sent.
            let copy = || unsafe { core::ptr::from_ref(item).read() };
            // SAFETY: the slot is claimed; volatile, as receivers may be copying from it.
            let write = |index| unsafe { self.item(index).write_volatile(copy()) };
            self.claims().send(me(), write)
        }
    }

    #[inline]
    fn try_get(&self) -> Result<Tried<MaybeUninit<T>>> {
        if S::PRIVATE {
            // SAFETY: the slot is this receiver's until its stamp says otherwise.
            Ok(self.ring().receive(|index| unsafe { self.item(index).read() }))
        } else {
            // SAFETY: plain bytes; volatile, as a sender may be writing to it.
            self.claims().receive(|index| unsafe { self.item(index).read_volatile() })
        }
    }

    /// How many items it has room for.
    pub fn capacity(&self) -> u32 {
        self.shape.capacity
    }

    /// Items in it now; stale at once. In memory that others filled with lies, 0.
    pub fn len(&self) -> u32 {
        // At most the capacity.
        (if S::PRIVATE { self.ring().len() } else { self.claims().len() }) as u32
    }

    /// Whether there is no item in it; stale at once.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether there is no room in it; stale at once.
    pub fn is_full(&self) -> bool {
        self.len() == self.capacity()
    }

    /// Nothing can be sent any more; what is in it can still be received. Whether it was open.
    ///
    /// A send that comes in between either fails or is received: nothing is sent after a receiver was
    /// told the end.
    pub fn close(&self) -> bool {
        let bells = &self.control().bells;
        let was_open =
            if S::PRIVATE { self.ring().close() } else { bells.closed.swap(1, Release) == 0 };
        fence_after_rmw();
        bells.items.ring_all();
        bells.room.ring_all();
        was_open
    }

    /// Whether it was closed.
    pub fn is_closed(&self) -> bool {
        if S::PRIVATE {
            self.ring().is_closed()
        } else {
            self.control().bells.closed.load(Acquire) != 0
        }
    }

    /// Sends an item, sleeping while there is no room.
    ///
    /// # Errors
    ///
    /// EPIPE if it is closed; EBADMSG.
    #[inline]
    pub fn send(&self, item: T) -> core::result::Result<(), SendError<T>> {
        self.send_with(item, Patience::Endless)
    }

    /// Sends an item if there is room. In a signal handler `T` should have no destructor, and, in
    /// shared memory, the thread must have used a channel before.
    ///
    /// # Errors
    ///
    /// EAGAIN if it is full, or others are in the way for the whole of a short while; EPIPE;
    /// EBADMSG.
    #[inline]
    pub fn try_send(&self, item: T) -> core::result::Result<(), SendError<T>> {
        self.send_with(item, Patience::None)
    }

    /// Sends an item, sleeping until the deadline at the most.
    ///
    /// # Errors
    ///
    /// ETIMEDOUT at the deadline; EPIPE; EBADMSG.
    pub fn send_until(
        &self,
        item: T,
        deadline: Deadline,
    ) -> core::result::Result<(), SendError<T>> {
        self.send_with(item, Patience::Until(deadline))
    }

    #[inline]
    fn send_with(&self, item: T, patience: Patience) -> core::result::Result<(), SendError<T>> {
        let item = MaybeUninit::new(item);
        let sent = match self.try_put(&item) {
            Ok(Tried::Done(())) => Ok(()),
            _ => self.persist(&self.control().bells.room, patience, SEND, || self.try_put(&item)),
        };
        match sent {
            Ok(()) => {
                self.control().bells.items.ring();
                Ok(())
            }
            // SAFETY: it was not sent.
            Err(error) => Err(SendError { item: unsafe { item.assume_init() }, error }),
        }
    }

    /// Receives an item, sleeping while there is none.
    ///
    /// # Errors
    ///
    /// EPIPE ([`is_closed`](crate::Error::is_closed)) if there is none and it is closed; EBADMSG.
    #[inline]
    pub fn recv(&self) -> Result<T> {
        self.get(Patience::Endless)
    }

    /// Receives an item if there is one. In a signal handler of shared memory's, the thread must have
    /// used a channel before.
    ///
    /// # Errors
    ///
    /// EAGAIN if it is empty, or others are in the way for the whole of a short while; EPIPE;
    /// EBADMSG.
    #[inline]
    pub fn try_recv(&self) -> Result<T> {
        self.get(Patience::None)
    }

    /// Receives an item, sleeping until the deadline at the most.
    ///
    /// # Errors
    ///
    /// ETIMEDOUT at the deadline; EPIPE; EBADMSG.
    pub fn recv_until(&self, deadline: Deadline) -> Result<T> {
        self.get(Patience::Until(deadline))
    }

    #[inline]
    fn get(&self, patience: Patience) -> Result<T> {
        let item = match self.try_get() {
            Ok(Tried::Done(item)) => item,
            _ => self.persist(&self.control().bells.items, patience, RECEIVE, || self.try_get())?,
        };
        self.control().bells.room.ring();
        // SAFETY: sent, and received once.
        Ok(unsafe { item.assume_init() })
    }

    /// The items as they come, until it is closed and empty (or, in shared memory, no channel).
    pub fn iter(&self) -> Items<'_, T, S> {
        Items(self)
    }

    /// The items that are in it, without a wait.
    pub fn try_iter(&self) -> impl Iterator<Item = T> + '_ {
        core::iter::from_fn(|| self.try_recv().ok())
    }

    pub(super) fn has_item(&self) -> Option<bool> {
        if S::PRIVATE { self.ring().has_item() } else { self.claims().has_item() }
    }

    pub(super) fn has_room(&self) -> Option<bool> {
        if S::PRIVATE { self.ring().has_room() } else { Some(self.claims().has_room()) }
    }
}

impl<'a, T, S: Scope> IntoIterator for &'a Channel<T, S> {
    type Item = T;
    type IntoIter = Items<'a, T, S>;

    fn into_iter(self) -> Items<'a, T, S> {
        Items(self)
    }
}

/// The items of a channel as they come, until it is closed and empty.
#[derive(Debug)]
pub struct Items<'a, T, S: Scope>(&'a Channel<T, S>);

impl<T, S: Scope> Iterator for Items<'_, T, S> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.0.recv().ok()
    }
}

impl<T, S: Scope> fmt::Debug for Channel<T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel")
            .field("len", &self.len())
            .field("capacity", &self.capacity())
            .finish()
    }
}
