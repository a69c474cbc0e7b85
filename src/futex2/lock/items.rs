//! What goes through a channel, and comes back if it does not.

use crate::error::Error;
use core::fmt;
use core::mem::MaybeUninit;

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

/// Why an item was not sent, with the item.
pub struct SendError<T> {
    /// What was to be sent.
    pub item: T,
    /// EPIPE if the channel is closed, EAGAIN if it is full (or, for an instant, in use), ETIMEDOUT
    /// at the deadline, EBADMSG if shared memory does not hold a channel.
    pub error: Error,
}

impl<T> SendError<T> {
    /// What was to be sent.
    pub fn into_inner(self) -> T {
        self.item
    }
}

/// Without the item, which is dropped.
impl<T> From<SendError<T>> for Error {
    fn from(error: SendError<T>) -> Self {
        error.error
    }
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

// No source: what it displays is that of the error in it.
impl<T> core::error::Error for SendError<T> {}
