//! A stack with a list on every CPU.

use super::node::Node;
use super::site::{Lazy, Site, quickly, slowly};
use super::turn::Turn;
use crate::arch::portable::Portable;
use crate::arch::{Answer, At, Structures};
use crate::error::{Error, Result};
use crate::sync::{AtomicU64, Ordering};
use core::fmt;
use core::marker::PhantomData;
use core::ptr;
use rustix::io::Errno;

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
/// Nothing moves a node from one CPU to another: where one thread pushes and another pops, use a
/// [`Pool`](super::Pool), which also says how much is kept.
///
/// # Guarantees
///
/// | event | what holds |
/// |---|---|
/// | [`push`](Self::push), [`pop`](Self::pop) | never allocate, free, lock or wait |
/// | signal handler | both may be used, also on a stack that the handler interrupted, once the stack has been used outside of a handler |
/// | fork, at any moment | the child has its own copy of what was in the stack; what other threads had in their hands is lost to it, like all that is theirs |
/// | no memory | the first push of all maps memory; without, nodes go to a single list until there is some |
///
/// Where no window can run, or too many were aborted, or the CPU is stopped by a
/// [`drain`](Self::drain), the node goes to a second list of the CPU's. That takes a `lock` prefix
/// to push, and to pop a turn, with one system call: a thread or a handler that comes
/// while another one has the turn finds that list empty.
///
/// A stack of what lives long takes nothing that lives less long:
///
/// ```compile_fail,E0716
/// use unmerged::percpu::{Node, Stack};
///
/// fn push<'a>(stack: &Stack<&'a str>, text: &'a str) {
///     stack.push(Node::new(text));
/// }
/// let stack: Stack<&'static str> = Stack::new();
/// push(&stack, &String::from("short"));
/// ```
pub struct Stack<T> {
    cell: Lazy,
    /// A list and its turn, used while there is no memory for a cell.
    spare: [AtomicU64; 2],
    /// Nodes go in and come out: a stack of `T` is no stack of a supertype or subtype of it.
    nodes: PhantomData<fn(T) -> T>,
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
        let pushed = quickly!(&self.cell, |Shape, at| {
            // SAFETY: the cell's first word is the head of a list of nodes; this one is ours.
            unsafe { Shape::list_push(at, node) }
        });
        if pushed.is_none() {
            self.push_slowly(node);
        }
    }

    /// Takes the node on top of this CPU's list; `None` if it is empty. What other CPUs have is
    /// left alone: see [`drain`](Self::drain).
    #[inline]
    pub fn pop(&self) -> Option<Box<Node<T>>> {
        let popped = quickly!(&self.cell, |Shape, at| {
            // SAFETY: the cell's first word is the head of a list of nodes.
            unsafe { Shape::list_pop(at) }
        });
        let node = match popped {
            Some(node) => node,
            None => self.pop_slowly()?,
        };
        // SAFETY: popped from a list of ours, by this thread alone.
        Some(unsafe { Node::from_word(node) })
    }

    /// The list that is used while there is no cell.
    fn spare(&self) -> At {
        let word = self.spare.as_ptr().expose_provenance();
        At { area: 0, field: 0, cpu: 0, stop: 0, word }
    }

    #[cold]
    #[inline(never)]
    fn push_slowly(&self, node: usize) {
        let pushed = slowly!(&self.cell, BYTES, |Shape, at| {
            // SAFETY: as in `push`.
            unsafe { Shape::list_push(at, node) }
        });
        if pushed.is_none_or(|pushed: core::result::Result<(), ()>| pushed.is_err()) {
            self.push_overflow(node);
        }
    }

    /// Puts a node on this CPU's second list, or where nodes wait for a cell.
    fn push_overflow(&self, node: usize) {
        let list = self.cell.known().map_or_else(|| self.spare(), |site| site.overflow_here());
        // SAFETY: the head of a list that atomics update, and a node of ours.
        let _: Answer<()> = unsafe { Portable::list_push(list, node) };
    }

    #[cold]
    #[inline(never)]
    fn pop_slowly(&self) -> Option<usize> {
        let popped = slowly!(&self.cell, BYTES, |Shape, at| {
            // SAFETY: as in `pop`.
            unsafe { Shape::list_pop(at) }
        });
        match popped {
            Some(Ok(node)) => Some(node),
            // Nothing where windows look, or they do not run.
            Some(Err(())) | None => {
                let here = self.cell.known().and_then(|site| take_one(site.overflow_here()));
                here.or_else(|| take_one(self.spare()))
            }
        }
    }

    /// Takes every node, from every CPU, the offline ones too, and hands it to `each`; how many
    /// there were. Each CPU is stopped for as long as its list is cut off; threads on it go on
    /// meanwhile, on their second list. `each` runs afterwards. If it panics, the nodes of that
    /// list that it was not given yet go back.
    ///
    /// One CPU costs a fence of 10 to 20 microseconds if it runs this process: it is for now and
    /// then, and not for signal handlers.
    ///
    /// # Errors
    ///
    /// EPERM where a CPU cannot be fenced: the kernel has no membarrier (before Linux 5.10, or a
    /// filter) and this thread may not run on it. EDEADLK in a handler that interrupted
    /// an operation of its thread. Such a list is left alone; all others have been handed out.
    pub fn drain(&self, mut each: impl FnMut(Box<Node<T>>)) -> Result<usize> {
        const OPERATION: &str = "percpu::Stack::drain";
        let mut outcome = Ok(());
        let mut count = 0;
        let mut hand_out = |list: Result<u64>| match list {
            Ok(list) => {
                let nodes = Nodes { stack: self, first: list as usize };
                count += nodes.map(&mut each).count();
            }
            Err(error) if outcome.is_ok() => outcome = Err(error),
            Err(_) => {}
        };
        let site = self.cell.known();
        let cpus = site.map_or(0, |site| site.geometry.cpus);
        for (site, cpu) in site.into_iter().flat_map(|site| (0..cpus).map(move |n| (site, n))) {
            let head = head_of(&site, cpu);
            if head.load(Ordering::Relaxed) != 0 {
                hand_out(site.exclusive(OPERATION, cpu, |_| head.swap(0, Ordering::Relaxed)));
            }
        }
        let overflow = site.into_iter().flat_map(|site| (0..cpus).map(move |n| site.overflow(n)));
        for list in overflow.chain([self.spare()]) {
            // SAFETY: the head of a list that atomics update.
            let head = unsafe { word(list.word) };
            if head.load(Ordering::Relaxed) != 0 {
                hand_out(match Turn::wait_private(turn_of(list)) {
                    Some(_turn) => Ok(head.swap(0, Ordering::Acquire)),
                    None => {
                        let why = "this thread is taking from the list";
                        Err(Error::because(OPERATION, Errno::DEADLK, why))
                    }
                });
            }
        }
        outcome.map(|()| count)
    }
}

/// A list that was cut off. What is not taken from it goes back.
struct Nodes<'a, T> {
    stack: &'a Stack<T>,
    first: usize,
}

impl<T> Iterator for Nodes<'_, T> {
    type Item = Box<Node<T>>;
    fn next(&mut self) -> Option<Self::Item> {
        if self.first == 0 {
            return None;
        }
        // SAFETY: from a list that was cut off, by this thread alone.
        let node = unsafe { Node::<T>::from_word(self.first) };
        self.first = node.next.load(Ordering::Relaxed) as usize;
        Some(node)
    }
}

impl<T> Drop for Nodes<'_, T> {
    fn drop(&mut self) {
        let stack = self.stack;
        self.for_each(|node| stack.push(node));
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
        // Nobody else uses it: no CPU has to be stopped, and no turn taken.
        let mut heads = vec![self.spare().word];
        if let Some(site) = self.cell.known() {
            let cpus = site.geometry.cpus;
            heads.extend((0..cpus).flat_map(|cpu| [site.on_stripe(cpu), site.overflow(cpu).word]));
        }
        for head in heads {
            // SAFETY: the head of a list of this stack.
            let first = unsafe { word(head) }.swap(0, Ordering::Acquire) as usize;
            Nodes { stack: self, first }.for_each(drop);
        }
        // SAFETY: nobody uses the cell any more.
        unsafe { self.cell.release(BYTES) };
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::percpu::{Implementation, implementation};
    use crate::sync::AtomicUsize;
    use core::panic::AssertUnwindSafe;
    use std::panic::catch_unwind;

    static LIVE: AtomicUsize = AtomicUsize::new(0);

    struct Counted(usize);
    impl Counted {
        fn new(n: usize) -> Box<Node<Self>> {
            LIVE.fetch_add(1, Ordering::Relaxed);
            Node::new(Self(n))
        }
    }
    impl Drop for Counted {
        fn drop(&mut self) {
            LIVE.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Everything that a stack can have, in all of its lists.
    #[test]
    fn what_is_left_is_dropped_and_a_panic_loses_nothing() {
        let stack = Stack::new();
        (0..10).for_each(|n| stack.push(Counted::new(n)));
        (10..20).for_each(|n| stack.push_overflow(Counted::new(n).into_word()));
        let before = stack.spare();
        // SAFETY: the head of a list, and a node of ours.
        let _: Answer<()> = unsafe { Portable::list_push(before, Counted::new(20).into_word()) };
        let mut left = 7;
        let drained = catch_unwind(AssertUnwindSafe(|| {
            stack.drain(|_| {
                left -= 1;
                assert!(left > 0, "enough");
            })
        }));
        assert!(drained.is_err());
        let mut seen = Vec::new();
        assert_eq!(stack.drain(|node| seen.push(node.0)).unwrap(), 21 - 7);
        assert_eq!(LIVE.load(Ordering::Relaxed), 0);
        (0..10).for_each(|n| stack.push(Counted::new(n)));
        (10..20).for_each(|n| stack.push_overflow(Counted::new(n).into_word()));
        drop(stack);
        assert_eq!(LIVE.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_was_pushed_before_there_was_a_cell_is_found() {
        let stack = Stack::<u32>::new();
        stack.push_overflow(Node::new(1).into_word());
        assert_eq!(stack.spare[0].load(Ordering::Relaxed) != 0, stack.cell.known().is_none());
        assert_eq!(stack.pop().map(|node| node.into_inner()), Some(1));
        assert!(stack.pop().is_none() && stack.cell.known().is_some());
        // A list whose turn another one has is passed over, and drained by nobody but that one.
        stack.push_overflow(Node::new(2).into_word());
        let site = stack.cell.known().unwrap();
        let lists = (0..site.geometry.cpus).map(|cpu| turn_of(site.overflow(cpu)));
        let turns: Vec<_> = lists.map(|turn| Turn::take_private(turn).unwrap()).collect();
        assert!(stack.pop().is_none());
        let error = stack.drain(drop).unwrap_err();
        assert_eq!(error.raw_os_error(), libc::EDEADLK);
        drop(turns);
        assert_eq!(stack.drain(drop).unwrap(), 1);
    }

    /// A process that was forked while another thread drained.
    #[test]
    fn a_cpu_that_nobody_will_start_is_started() {
        let stack = Stack::new();
        stack.push(Node::new(1));
        let site = stack.cell.known().unwrap();
        let cpus = 0..site.geometry.cpus;
        // SAFETY: the stop words of mapped stripes.
        let stops: Vec<_> = cpus.map(|cpu| unsafe { word(site.stop_word(cpu)) }).collect();
        // The thread 1 of the parent. Windows of other tests find the CPUs stopped meanwhile.
        stops.iter().for_each(|stop| stop.store(1, Ordering::Relaxed));
        stack.push(Node::new(2));
        stack.push(Node::new(3));
        if implementation() != Implementation::Portable {
            assert!(stops.iter().any(|stop| stop.load(Ordering::Relaxed) == 0));
        }
        assert_eq!(stack.drain(drop).unwrap(), 3);
        for stop in stops {
            drop(Turn::take_private(stop));
            // Other tests have turns, too.
            assert_ne!(stop.load(Ordering::Relaxed), 1);
        }
    }
}
