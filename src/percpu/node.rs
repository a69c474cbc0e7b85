//! What a stack holds.

use crate::sync::AtomicU64;
use core::fmt;
use core::ops::{Deref, DerefMut};
use core::ptr;

/// A value that a [`Stack`](super::Stack) can hold: the value, and one word for the stack's own use.
#[repr(C)]
pub struct Node<T> {
    /// The address of the next node while this one is in a list. Windows write it.
    pub(super) next: AtomicU64,
    value: T,
}

impl<T> Node<T> {
    /// A node on the heap.
    pub fn new(value: T) -> Box<Self> {
        Box::new(Self { next: AtomicU64::new(0), value })
    }

    /// The value alone.
    pub fn into_inner(self) -> T {
        self.value
    }

    /// The address by which lists know it.
    pub(super) fn into_word(self: Box<Self>) -> usize {
        Box::into_raw(self).expose_provenance()
    }

    /// # Safety
    ///
    /// `word` came from [`into_word`](Self::into_word), and from a list to nobody else.
    pub(super) unsafe fn from_word(word: usize) -> Box<Self> {
        // SAFETY: forwarded.
        unsafe { Box::from_raw(ptr::with_exposed_provenance_mut(word)) }
    }
}

impl<T> Deref for Node<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Node<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T: fmt::Debug> fmt::Debug for Node<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Node").field(&self.value).finish()
    }
}
