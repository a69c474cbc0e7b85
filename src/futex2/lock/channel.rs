//! A bounded channel, in this process or between several.

use super::RawMutex;
use super::cell::{Slept, late};
use super::raw_robust::{Patience, Taken};
use super::ring::{End, get, len, put};
use super::robust::RawRobust;
use super::select::{Announced, Ready, Source};
use crate::error::{Error, Result};
use crate::futex2::{Deadline, Futex, Private, Scope, Shared};
use crate::sync::AtomicU32;
use crate::sync::Ordering::{Acquire, Relaxed, SeqCst};
use core::fmt;
use core::marker::PhantomData;
use core::mem::{MaybeUninit, align_of, size_of};
use core::ptr::NonNull;
use crossbeam_utils::CachePadded;
use rustix::io::Errno;

/// What may go through a channel in shared memory: plain bytes.
///
/// # Safety
///
/// Any bytes are a value of the type, because another process may have written any: no `bool`, no
/// `char`, no enum, no reference. Its layout is the same in every program: `repr(C)`,
/// `repr(transparent)` or a primitive.
pub unsafe trait Plain: Copy + Send + 'static {}

macro_rules! plain {
    ($($name:ty),+) => { $(
        // SAFETY: any bytes are a number.
        unsafe impl Plain for $name {}
    )+ };
}

plain!((), u8, u16, u32, u64, u128, usize, i8, i16, i32, i64, i128, isize, f32, f64);

// SAFETY: the bytes of its elements and no others.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}
// SAFETY: any bytes, or none.
unsafe impl<T: Plain> Plain for MaybeUninit<T> {}

/// One side's words.
#[repr(C)]
struct Side<S: Scope> {
    /// Items that went through here.
    word: Futex<u32, S>,
    /// Those of the other side who sleep on it.
    sleepers: AtomicU32,
    lock: RawMutex<S>,
    robust: RawRobust<S>,
}

impl<S: Scope> Side<S> {
    const fn new() -> Self {
        Self {
            word: Futex::new(0),
            sleepers: AtomicU32::new(0),
            lock: RawMutex::new(),
            robust: RawRobust::new(),
        }
    }

    fn end(&self) -> End<'_, Futex<u32, S>> {
        End { word: &self.word, sleepers: &self.sleepers }
    }

    /// Excludes others of this side until the answer is dropped.
    #[inline]
    fn lock(&self, patience: Patience) -> Result<Turn<'_, S>> {
        if S::PRIVATE {
            match patience {
                Patience::Endless => self.lock.lock(),
                Patience::Until(deadline) => self.lock.try_lock_until(deadline)?,
                Patience::None => {
                    if !(0..LOOKS).any(|_| self.lock.try_lock()) {
                        return Err(Error::new("futex2::Channel", Errno::AGAIN));
                    }
                }
            }
        } else {
            match self.robust.lock(patience) {
                Ok(Taken::Clean) => {}
                // The ring is good at every instant.
                Ok(Taken::Orphaned) => self.robust.make_consistent(),
                // A handler that interrupts this very side.
                Err(error)
                    if error.raw_os_error() == libc::EDEADLK
                        && matches!(patience, Patience::None) =>
                {
                    return Err(Error::new("futex2::Channel", Errno::AGAIN));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Turn(self))
    }
}

/// How often a try looks at a lock that others hold for a few instructions.
const LOOKS: u32 = 100;

/// The lock of a side.
struct Turn<'a, S: Scope>(&'a Side<S>);

impl<S: Scope> Drop for Turn<'_, S> {
    #[inline]
    fn drop(&mut self) {
        if S::PRIVATE {
            // SAFETY: taken by `lock`.
            unsafe { self.0.lock.unlock() };
        } else {
            self.0.robust.unlock();
        }
    }
}

/// What lies before the slots. Zeros are an empty channel.
#[repr(C)]
struct Control<S: Scope> {
    sent: CachePadded<Side<S>>,
    received: CachePadded<Side<S>>,
    closed: CachePadded<AtomicU32>,
}

/// A bounded channel with any number of senders and receivers.
///
/// [`bounded`](Self::bounded) makes one for the threads of this process;
/// [`attach`](Channel::attach) lays one over memory that processes share. Both ends are this one
/// type: lend it, or put it into an `Arc`.
///
/// ```
/// use unmerged::futex2::lock::Channel;
///
/// let channel = Channel::<String>::bounded(4)?;
/// std::thread::scope(|scope| {
///     scope.spawn(|| channel.send("hello".into()).unwrap());
///     assert_eq!(channel.recv().unwrap(), "hello");
/// });
/// channel.close();
/// assert!(channel.recv().unwrap_err().is_closed());
/// # Ok::<(), unmerged::Error>(())
/// ```
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
pub struct Channel<T, S: Scope = Private> {
    control: NonNull<Control<S>>,
    slots: NonNull<MaybeUninit<T>>,
    /// A power of two; ours, not read from memory that others write.
    capacity: u32,
    owned: bool,
    items: PhantomData<T>,
}

// SAFETY: items move between threads; the words are atomics.
unsafe impl<T: Send, S: Scope> Send for Channel<T, S> {}
// SAFETY: as above.
unsafe impl<T: Send, S: Scope> Sync for Channel<T, S> {}

/// Why an item was not sent, with the item.
pub struct SendError<T> {
    /// What was to be sent.
    pub item: T,
    /// EPIPE if the channel is closed, EAGAIN if it is full (or, for an instant, in use), ETIMEDOUT
    /// at the deadline, EBADMSG if shared memory does not hold a channel.
    pub error: Error,
}

impl<T> fmt::Debug for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendError").field("error", &self.error).finish_non_exhaustive()
    }
}

impl<T> fmt::Display for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<T> core::error::Error for SendError<T> {}

impl<T: Send> Channel<T, Private> {
    /// A channel of this process with room for `capacity` items, a power of two.
    ///
    /// # Errors
    ///
    /// EINVAL if it is no power of two, or more than 2³⁰.
    pub fn bounded(capacity: u32) -> Result<Self> {
        check(capacity)?;
        let slots: Box<[MaybeUninit<T>]> = Box::new_uninit_slice(capacity as usize);
        let slots = NonNull::from(Box::leak(slots)).cast();
        let control = Control {
            sent: CachePadded::new(Side::new()),
            received: CachePadded::new(Side::new()),
            closed: CachePadded::new(AtomicU32::new(0)),
        };
        let control = NonNull::from(Box::leak(Box::new(control)));
        Ok(Self { control, slots, capacity, owned: true, items: PhantomData })
    }
}

impl<T: Plain> Channel<T, Shared> {
    /// Bytes that a channel of so many items needs.
    pub const fn bytes(capacity: u32) -> usize {
        let slots = size_of::<Control<Shared>>().next_multiple_of(align_of::<MaybeUninit<T>>());
        slots + capacity as usize * size_of::<T>()
    }

    /// The channel that lies at `base`, with room for `capacity` items, a power of two. Zeros are an
    /// empty one, and every process gives the same capacity.
    ///
    /// What others write there can give errors and wrong items, nothing worse; and a wait with a
    /// deadline ends.
    ///
    /// # Errors
    ///
    /// EINVAL if the capacity is no power of two or more than 2³⁰, if `len` bytes are too few, or
    /// `base` is not aligned to 128 bytes.
    ///
    /// # Safety
    ///
    /// `len` bytes from `base` on must be mapped, writable, as long as the channel is used, and
    /// nothing else may be in them.
    pub unsafe fn attach(base: NonNull<u8>, len: usize, capacity: u32) -> Result<Self> {
        check(capacity)?;
        let needs = Self::bytes(capacity);
        let align = align_of::<Control<Shared>>().max(align_of::<T>());
        if len < needs || !base.addr().get().is_multiple_of(align) {
            return Err(Error::with(
                "futex2::Channel::attach",
                Errno::INVAL,
                format_args!("{len} bytes at {base:p} of {needs}, aligned to {align}"),
            ));
        }
        // SAFETY: inside what the caller vouches for.
        let slots = unsafe { base.add(needs - capacity as usize * size_of::<T>()) };
        Ok(Self {
            control: base.cast(),
            slots: slots.cast(),
            capacity,
            owned: false,
            items: PhantomData,
        })
    }
}

fn check(capacity: u32) -> Result<()> {
    if capacity.is_power_of_two() && capacity <= 1 << 30 {
        return Ok(());
    }
    Err(Error::with(
        "futex2::Channel",
        Errno::INVAL,
        format_args!("a capacity of {capacity}; a power of two up to {}", 1 << 30),
    ))
}

impl<T, S: Scope> Channel<T, S> {
    #[inline]
    fn control(&self) -> &Control<S> {
        // SAFETY: ours, or vouched for by who attached it; nothing but atomics.
        unsafe { self.control.as_ref() }
    }

    #[inline]
    fn slot(&self, index: usize) -> NonNull<MaybeUninit<T>> {
        debug_assert!(index < self.capacity as usize);
        // SAFETY: below the capacity.
        unsafe { self.slots.add(index) }
    }

    /// How many items it has room for.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Items in it now; stale at once. In memory that others filled with lies, 0.
    pub fn len(&self) -> u32 {
        let (head, tail) =
            (self.control().received.word.load(Acquire), self.control().sent.word.load(Acquire));
        len(head, tail, self.capacity).unwrap_or(0)
    }

    /// Whether there is no item in it; stale at once.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Nothing can be sent any more; what is in it can still be received.
    pub fn close(&self) {
        let control = self.control();
        control.closed.store(1, SeqCst);
        // Those who sleep see another word, or are woken. What was sent does not change.
        control.sent.word.wake_all();
        control.received.word.wake_all();
    }

    /// Whether it was closed.
    pub fn is_closed(&self) -> bool {
        self.control().closed.load(Acquire) != 0
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
    /// EAGAIN if it is full, or others are sending for the whole of a short while; EPIPE; EBADMSG.
    #[inline]
    pub fn try_send(&self, item: T) -> core::result::Result<(), SendError<T>> {
        self.send_with(item, Patience::None)
    }

    /// Sends an item, sleeping until the deadline at the most.
    ///
    /// # Errors
    ///
    /// ETIMEDOUT at the deadline; EPIPE; EBADMSG.
    pub fn send_deadline(
        &self,
        item: T,
        deadline: Deadline,
    ) -> core::result::Result<(), SendError<T>> {
        self.send_with(item, Patience::Until(deadline))
    }

    #[inline]
    fn send_with(&self, item: T, patience: Patience) -> core::result::Result<(), SendError<T>> {
        let mut item = MaybeUninit::new(item);
        self.put(&mut item, patience).map_err(|error| {
            // SAFETY: it was not sent.
            SendError { item: unsafe { item.assume_init_read() }, error }
        })
    }

    #[inline]
    fn put(&self, item: &mut MaybeUninit<T>, patience: Patience) -> Result<()> {
        let Control { sent, received, closed } = self.control();
        loop {
            if closed.load(Relaxed) != 0 {
                return Err(Error::new("futex2::Channel::send", Errno::PIPE));
            }
            let turn = sent.lock(patience)?;
            let put = put(&received.word, &sent.word, self.capacity, |index| {
                // SAFETY: the slot is ours until the tail is advanced; the item is forgotten then.
                unsafe { self.slot(index).copy_from_nonoverlapping(NonNull::from(&*item), 1) };
            });
            drop(turn);
            match put? {
                Ok(()) => {
                    sent.end().call();
                    return Ok(());
                }
                Err(head) => self.sleep(received, head, patience, "futex2::Channel::send")?,
            }
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
    /// EAGAIN if it is empty, or others are receiving for the whole of a short while; EPIPE;
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
    pub fn recv_deadline(&self, deadline: Deadline) -> Result<T> {
        self.get(Patience::Until(deadline))
    }

    #[inline]
    fn get(&self, patience: Patience) -> Result<T> {
        let Control { sent, received, closed } = self.control();
        loop {
            let was_closed = closed.load(Acquire) != 0;
            let turn = received.lock(patience)?;
            let got = get(&received.word, &sent.word, self.capacity, |index| {
                // SAFETY: the slot is ours until the head is advanced; in shared memory any bytes
                // are an item.
                unsafe { self.slot(index).read() }
            });
            drop(turn);
            match got? {
                Ok(item) => {
                    received.end().call();
                    // SAFETY: sent, and received once.
                    return Ok(unsafe { item.assume_init() });
                }
                Err(_) if was_closed => {
                    return Err(Error::new("futex2::Channel::recv", Errno::PIPE));
                }
                Err(tail) => self.sleep(sent, tail, patience, "futex2::Channel::recv")?,
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn sleep(
        &self,
        side: &Side<S>,
        seen: u32,
        patience: Patience,
        operation: &'static str,
    ) -> Result<()> {
        let deadline = match patience {
            Patience::None => return Err(Error::new(operation, Errno::AGAIN)),
            Patience::Until(deadline) => Some(deadline),
            Patience::Endless => None,
        };
        for _ in 0..LOOKS / 2 {
            if side.word.load(Relaxed) != seen {
                return Ok(());
            }
            crate::sync::spin_loop();
        }
        let announced = Announced::new(&side.sleepers);
        if self.control().closed.load(SeqCst) != 0 {
            return Ok(());
        }
        let slept = super::cell::Cell::wait(&side.word, seen, deadline);
        drop(announced);
        if slept? == Slept::Changed && deadline.is_some_and(|deadline| deadline.has_passed()) {
            return Err(late(operation));
        }
        Ok(())
    }

    /// This end for [`select`](super::select()): ready when there may be an item, or it is closed.
    pub fn receiving(&self) -> Receiving<'_, T, S> {
        Receiving(self)
    }

    /// This end for [`select`](super::select()): ready when there may be room, or it is closed.
    pub fn sending(&self) -> Sending<'_, T, S> {
        Sending(self)
    }

    /// Whether the side has something, as `is_ready` tells of both words.
    fn ready<'a>(&self, side: &'a Side<S>, is_ready: impl Fn(u32) -> bool) -> Ready<'a> {
        let announced = Announced::new(&side.sleepers);
        let seen = side.word.load(Acquire);
        if is_ready(seen) || self.control().closed.load(SeqCst) != 0 {
            return Ready::Now;
        }
        Ready::Not(side.word.waiter(seen), announced)
    }
}

impl<T, S: Scope> Drop for Channel<T, S> {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        while let Ok(item) = self.try_recv() {
            drop(item);
        }
        let slots = NonNull::slice_from_raw_parts(self.slots, self.capacity as usize);
        // SAFETY: leaked by `bounded`, and empty.
        drop(unsafe { Box::from_raw(slots.as_ptr()) });
        // SAFETY: leaked by `bounded`.
        drop(unsafe { Box::from_raw(self.control.as_ptr()) });
    }
}

impl<T, S: Scope> fmt::Debug for Channel<T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel")
            .field("len", &self.len())
            .field("capacity", &self.capacity)
            .finish()
    }
}

/// The receiving end of a channel, to be selected.
#[derive(Debug)]
pub struct Receiving<'a, T, S: Scope>(&'a Channel<T, S>);

/// The sending end of a channel, to be selected.
#[derive(Debug)]
pub struct Sending<'a, T, S: Scope>(&'a Channel<T, S>);

impl<T, S: Scope> Source for Receiving<'_, T, S> {
    fn ready(&self) -> Ready<'_> {
        let Control { sent, received, .. } = self.0.control();
        self.0.ready(sent, |tail| tail != received.word.load(Acquire))
    }

    fn pass_on(&self) {
        if !self.0.is_empty() {
            self.0.control().sent.end().call();
        }
    }
}

impl<T, S: Scope> Source for Sending<'_, T, S> {
    fn ready(&self) -> Ready<'_> {
        let Control { sent, received, .. } = self.0.control();
        let capacity = self.0.capacity;
        self.0.ready(received, |head| sent.word.load(Acquire).wrapping_sub(head) != capacity)
    }

    fn pass_on(&self) {
        if self.0.len() < self.0.capacity {
            self.0.control().received.end().call();
        }
    }
}
