//! The two ends of a channel as types: it closes when the last of one side is dropped.

use super::channel::{Channel, Items};
use super::channel_select::{Receiving, Sending};
use super::items::SendError;
use crate::error::Result;
use crate::futex2::{Deadline, Private};
use crate::sync::AtomicUsize;
use crate::sync::Ordering::{AcqRel, Relaxed};
use core::fmt;
use std::sync::Arc;

/// A channel of this process whose ends are apart.
struct Both<T> {
    channel: Channel<T>,
    senders: AtomicUsize,
    receivers: AtomicUsize,
}

/// A bounded channel of this process as its two ends, each of which can be cloned.
///
/// When the last [`Sender`] is dropped, receivers get what is left and then EPIPE; when the last
/// [`Receiver`] is dropped, what is left is dropped and senders get EPIPE.
///
/// In shared memory a process that dies drops nothing, so there the ends are one
/// [`Channel`], which somebody [closes](Channel::close).
///
/// ```
/// let (sender, receiver) = unmerged::futex2::lock::channel(2)?;
/// std::thread::spawn(move || (0..5).for_each(|item| sender.send(item).unwrap()));
/// assert_eq!(receiver.iter().sum::<u32>(), 10);
/// # Ok::<(), unmerged::Error>(())
/// ```
///
/// # Errors
///
/// EINVAL for a capacity of 0, or of more than 2³⁰; ENOMEM.
pub fn channel<T: Send>(capacity: u32) -> Result<(Sender<T>, Receiver<T>)> {
    let channel = Channel::bounded(capacity)?;
    let (senders, receivers) = (AtomicUsize::new(1), AtomicUsize::new(1));
    let both = Arc::new(Both { channel, senders, receivers });
    Ok((Sender(both.clone()), Receiver(both)))
}

/// The sending end of a [`channel`].
pub struct Sender<T>(Arc<Both<T>>);

/// The receiving end of a [`channel`].
pub struct Receiver<T>(Arc<Both<T>>);

macro_rules! end {
    ($end:ident, $count:ident) => {
        impl<T> $end<T> {
            /// How many items the channel has room for.
            pub fn capacity(&self) -> u32 {
                self.0.channel.capacity()
            }

            /// Items in it now; stale at once.
            pub fn len(&self) -> u32 {
                self.0.channel.len()
            }

            /// Whether there is no item in it; stale at once.
            pub fn is_empty(&self) -> bool {
                self.0.channel.is_empty()
            }

            /// Whether there is no room in it; stale at once.
            pub fn is_full(&self) -> bool {
                self.0.channel.is_full()
            }

            /// Whether one side is gone.
            pub fn is_closed(&self) -> bool {
                self.0.channel.is_closed()
            }
        }

        impl<T> Clone for $end<T> {
            fn clone(&self) -> Self {
                self.0.$count.fetch_add(1, Relaxed);
                Self(self.0.clone())
            }
        }

        impl<T> fmt::Debug for $end<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_tuple(stringify!($end)).field(&self.0.channel).finish()
            }
        }
    };
}

end!(Sender, senders);
end!(Receiver, receivers);

type Sent<T> = core::result::Result<(), SendError<T>>;

impl<T> Sender<T> {
    /// Sends an item, sleeping while there is no room.
    ///
    /// # Errors
    ///
    /// EPIPE if no receiver is left.
    #[inline]
    pub fn send(&self, item: T) -> Sent<T> {
        self.0.channel.send(item)
    }

    /// Sends an item if there is room.
    ///
    /// # Errors
    ///
    /// EAGAIN if there is none; EPIPE.
    #[inline]
    pub fn try_send(&self, item: T) -> Sent<T> {
        self.0.channel.try_send(item)
    }

    /// Sends an item, sleeping until the deadline at the most.
    ///
    /// # Errors
    ///
    /// ETIMEDOUT at the deadline; EPIPE.
    pub fn send_until(&self, item: T, deadline: Deadline) -> Sent<T> {
        self.0.channel.send_until(item, deadline)
    }

    /// This end for [`select`](super::select()).
    pub fn sending(&self) -> Sending<'_, T, Private> {
        self.0.channel.sending()
    }
}

impl<T> Receiver<T> {
    /// Receives an item, sleeping while there is none.
    ///
    /// # Errors
    ///
    /// EPIPE if there is none and no sender is left.
    #[inline]
    pub fn recv(&self) -> Result<T> {
        self.0.channel.recv()
    }

    /// Receives an item if there is one.
    ///
    /// # Errors
    ///
    /// EAGAIN if there is none; EPIPE.
    #[inline]
    pub fn try_recv(&self) -> Result<T> {
        self.0.channel.try_recv()
    }

    /// Receives an item, sleeping until the deadline at the most.
    ///
    /// # Errors
    ///
    /// ETIMEDOUT at the deadline; EPIPE.
    pub fn recv_until(&self, deadline: Deadline) -> Result<T> {
        self.0.channel.recv_until(deadline)
    }

    /// The items as they come, until no sender is left.
    pub fn iter(&self) -> Items<'_, T, Private> {
        self.0.channel.iter()
    }

    /// The items that are in it, without a wait.
    pub fn try_iter(&self) -> impl Iterator<Item = T> + '_ {
        self.0.channel.try_iter()
    }

    /// This end for [`select`](super::select()).
    pub fn receiving(&self) -> Receiving<'_, T, Private> {
        self.0.channel.receiving()
    }
}

impl<'a, T> IntoIterator for &'a Receiver<T> {
    type Item = T;
    type IntoIter = Items<'a, T, Private>;

    fn into_iter(self) -> Items<'a, T, Private> {
        self.iter()
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if self.0.senders.fetch_sub(1, AcqRel) == 1 {
            self.0.channel.close();
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        if self.0.receivers.fetch_sub(1, AcqRel) == 1 {
            self.0.channel.close();
            // Nobody will have these.
            while let Ok(item) = self.0.channel.recv() {
                drop(item);
            }
        }
    }
}
