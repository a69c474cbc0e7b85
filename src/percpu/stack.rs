//! A stack with a list on every CPU.

use super::site::{Lazy, Site, window};
use super::turn::Turn;
use crate::arch::portable::Portable;
use crate::arch::{Answer, At, Structures};
use crate::error::{Error, Result};
use crate::sync::{AtomicU64, Ordering};
use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::ptr;
use rustix::io::Errno;

/// A value that a [`Stack`] can hold: the value, and one word for the stack's own use.
#[repr(C)]
pub struct Node<T> {
    /// The address of the next node while this one is in a list. Windows write it.
    next: AtomicU64,
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
    fn into_word(self: Box<Self>) -> usize {
        Box::into_raw(self).expose_provenance()
    }

    /// # Safety
    ///
    /// `word` came from [`into_word`](Self::into_word), and from a list to nobody else.
    unsafe fn from_word(word: usize) -> Box<Self> {
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

/// A stack with a list on every CPU: what is pushed on a CPU is popped on that CPU.
///
/// ```
/// use unmerged::percpu::{Node, Stack};
///
/// static SPARE: Stack<Vec<u8>> = Stack::new();
///
/// SPARE.push(Node::new(Vec::with_capacity(4096)));
/// // Later, perhaps on another CPU:
/// let mut buffer = SPARE.pop().unwrap_or_else(|| Node::new(Vec::with_capacity(4096)));
/// buffer.push(1);
/// ```
///
/// Neither operation allocates, frees, locks or waits, and both may be used in signal handlers once
/// the stack has been used outside of one. Where no window can run, or too many were aborted, or the
/// CPU is stopped by a [`drain`](Self::drain), the node goes to a second list of the CPU's, which
/// takes a `lock` prefix.
///
/// After a fork the child has its own copy of what was in the stack.
pub struct Stack<T> {
    cell: Lazy,
    /// A list and its turn, used while there is no memory for a cell.
    spare: [AtomicU64; 2],
    nodes: PhantomData<Box<Node<T>>>,
}

/// The head of a list; on an overflow stripe also the turn of those who take from it, because
/// a node that is taken could otherwise be pushed again under the eyes of another taker.
const BYTES: usize = 16;

// SAFETY: a node changes hands as a whole.
unsafe impl<T: Send> Send for Stack<T> {}
// SAFETY: as above; no reference to a value is handed out.
unsafe impl<T: Send> Sync for Stack<T> {}

impl<T> Stack<T> {
    /// An empty one.
    pub const fn new() -> Self {
        let spare = [AtomicU64::new(0), AtomicU64::new(0)];
        Self { cell: Lazy::new(), spare, nodes: PhantomData }
    }

    /// Puts `node` on top of this CPU's list.
    #[inline]
    pub fn push(&self, node: Box<Node<T>>) {
        let node = node.into_word();
        let pushed = window!(&self.cell, BYTES, |Shape, at| {
            // SAFETY: the cell's first word is the head of a list of nodes; this one is ours.
            unsafe { Shape::list_push(at, node) }
        });
        if !matches!(pushed, Ok(Some(Ok(())))) {
            self.push_slowly(node);
        }
    }

    /// Takes the node on top of this CPU's list; `None` if it is empty. What other CPUs have is
    /// left alone: see [`drain`](Self::drain).
    #[inline]
    pub fn pop(&self) -> Option<Box<Node<T>>> {
        let popped = window!(&self.cell, BYTES, |Shape, at| {
            // SAFETY: the cell's first word is the head of a list of nodes.
            unsafe { Shape::list_pop(at) }
        });
        let node = match popped {
            Ok(Some(Ok(node))) => node,
            _ => self.pop_slowly()?,
        };
        // SAFETY: popped from a list of ours, by this thread alone.
        Some(unsafe { Node::from_word(node) })
    }

    /// The lists that atomics update: the overflow lists of the cell, if there is one, that of
    /// this CPU first, then the spare one.
    fn overflow(&self) -> impl Iterator<Item = At> {
        let spare = self.spare.as_ptr().expose_provenance();
        let spare = At { area: 0, field: 0, cpu: 0, stop: 0, word: spare };
        let site = self.cell.known();
        let of_cell = site.into_iter().flat_map(|site| {
            let first = site.overflow_here().cpu;
            let cpus = site.geometry.cpus;
            (0..cpus).map(move |n| site.overflow((first + n) % cpus))
        });
        of_cell.chain([spare])
    }

    #[cold]
    #[inline(never)]
    fn push_slowly(&self, node: usize) {
        let Some(list) = self.overflow().next() else { return };
        // SAFETY: the head of a list that atomics update, and a node of ours.
        let _: Answer<()> = unsafe { Portable::list_push(list, node) };
    }

    /// The list of windows has nothing, or cannot be used: from this CPU's second list.
    #[cold]
    #[inline(never)]
    fn pop_slowly(&self) -> Option<usize> {
        let here = self.overflow().next()?;
        take_one(here).or_else(|| self.overflow().last().and_then(take_one))
    }

    /// Takes every node, from every CPU, the offline ones too, and hands it to `each`; how many
    /// there were. Each CPU is stopped for as long as its list is cut off; threads on it go on
    /// meanwhile, on their second list. `each` runs afterwards.
    ///
    /// One CPU costs a fence of 10 to 20 microseconds if it runs this process: it is for now and
    /// then.
    ///
    /// # Errors
    ///
    /// EPERM where a CPU cannot be fenced: the kernel has no membarrier (before Linux 5.10, or a
    /// filter) and this thread may not run on it. EDEADLK inside of another drain of this thread.
    /// What was taken up to then has been handed out.
    pub fn drain(&self, mut each: impl FnMut(Box<Node<T>>)) -> Result<usize> {
        let mut count = 0;
        let mut hand_out = |mut node: usize| {
            while node != 0 {
                // SAFETY: from a list that was cut off, by this thread alone.
                let taken = unsafe { Node::<T>::from_word(node) };
                node = taken.next.load(Ordering::Relaxed) as usize;
                count += 1;
                each(taken);
            }
        };
        if let Some(site) = self.cell.known() {
            for cpu in 0..site.geometry.cpus {
                if head_of(&site, cpu).load(Ordering::Relaxed) == 0 {
                    continue;
                }
                let list = site.exclusive("percpu::Stack::drain", cpu, |_| {
                    head_of(&site, cpu).swap(0, Ordering::Relaxed)
                })?;
                hand_out(list as usize);
            }
        }
        for list in self.overflow() {
            // SAFETY: the head of a list that atomics update.
            let head = unsafe { word(list.word) };
            if head.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let turn = Turn::wait_private(turn_of(list)).ok_or_else(|| {
                let why = "the list is this thread's already";
                Error::because("percpu::Stack::drain", Errno::DEADLK, why)
            })?;
            let list = head.swap(0, Ordering::Acquire);
            drop(turn);
            hand_out(list as usize);
        }
        Ok(count)
    }
}

/// A word of a list's.
///
/// # Safety
///
/// It must be one, mapped for as long as the reference is used.
unsafe fn word<'a>(address: usize) -> &'a AtomicU64 {
    // SAFETY: the caller vouches for it; aligned, and updated by windows and atomics.
    unsafe { &*ptr::with_exposed_provenance(address) }
}

/// The head of the list of windows of a CPU.
fn head_of(site: &Site, cpu: u32) -> &AtomicU64 {
    // SAFETY: a word of the cell, mapped for good.
    unsafe { word(site.on_stripe(cpu)) }
}

/// The turn of those who take from a list that atomics update: the word behind its head.
fn turn_of<'a>(list: At) -> &'a AtomicU64 {
    // SAFETY: in the same cell, or in the stack itself, which the caller borrows.
    unsafe { word(list.word + 8) }
}

/// Takes the first node of a list that atomics update. Without the turn, which another thread, or
/// the one that this handler interrupted, has: nothing.
fn take_one(list: At) -> Option<usize> {
    // SAFETY: the head of the list.
    if unsafe { word(list.word) }.load(Ordering::Relaxed) == 0 {
        return None;
    }
    let _turn = Turn::take_private(turn_of(list))?;
    // SAFETY: the head of a list that atomics update, and the turn to take from it.
    match unsafe { Portable::list_pop(list) } {
        Answer::Done(node) => Some(node),
        _ => None,
    }
}

impl<T> Default for Stack<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> fmt::Debug for Stack<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stack").finish_non_exhaustive()
    }
}

impl<T> Drop for Stack<T> {
    fn drop(&mut self) {
        if let Some(site) = self.cell.known() {
            // Nobody else uses it: no CPU has to be stopped.
            for cpu in 0..site.geometry.cpus {
                let mut node = head_of(&site, cpu).swap(0, Ordering::Relaxed) as usize;
                while node != 0 {
                    // SAFETY: from the list of a stack that is gone.
                    let taken = unsafe { Node::<T>::from_word(node) };
                    node = taken.next.load(Ordering::Relaxed) as usize;
                }
            }
        }
        let _ = self.drain(drop);
        // SAFETY: nobody uses the cell any more.
        unsafe { self.cell.release(BYTES) };
    }
}
