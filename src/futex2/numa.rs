//! Futexes that say on which NUMA node their waiters are queued.

use super::implementation::{Numa, is_numa_refused, numa};
use super::place::Place;
use super::scope::{Private, Scope};
use super::seat::Seat;
use super::{Deadline, Options};
use crate::abi::futex2::{MPOL, NUMA, PRIVATE, SIZE_U32};
use crate::error::{Error, Result};
use crate::sync::{AtomicU32, Ordering};
use crate::sys::{futex, thread};
use core::marker::PhantomData;
use core::ptr;
use rustix::io::Errno;

/// 32 bits with a word behind them that names a NUMA node: the kernel queues the waiters in that
/// node's memory.
///
/// The node is -1 ("none") at first, and the first wait or wake writes the node that it runs on
/// there; it stays until it is set again. With `FUTEX2_NUMA` (since Linux 6.16) the kernel's
/// queue is there; before, the queue is where it always was, and all else is the same.
/// Threads and processes that share one must not differ in this: a filter that refuses futex_wait(2)
/// to some of them parts them. Whom it refuses them goes on with a queue where it always was, and
/// does not meet those who wait on the node.
///
/// 32 bits, private or shared, is what the kernel has a node for: futex_waitv(2) and moves know none,
/// so there is no [`Waiter`](super::Waiter) and no requeue.
///
/// ```
/// use unmerged::futex2::NumaFutex;
///
/// let word: NumaFutex = NumaFutex::new(7);
/// assert_eq!(word.node(), None);
/// assert_eq!(word.wake(1)?, 0);
/// assert!(word.wait(8, None).unwrap_err().is_would_block());
/// assert!(word.node().is_some());
/// # Ok::<(), unmerged::Error>(())
/// ```
#[derive(Debug)]
#[repr(C, align(8))]
pub struct NumaFutex<S: Scope = Private> {
    value: AtomicU32,
    node: AtomicU32,
    scope: PhantomData<S>,
}

/// No node yet.
const NONE: u32 = u32::MAX;

impl<S: Scope> NumaFutex<S> {
    /// A futex that holds `value`, with no node yet.
    pub const fn new(value: u32) -> Self {
        Self { value: AtomicU32::new(value), node: AtomicU32::new(NONE), scope: PhantomData }
    }

    /// Loads the value.
    #[inline]
    pub fn load(&self, order: Ordering) -> u32 {
        self.value.load(order)
    }

    /// Stores `value`. It wakes nobody.
    #[inline]
    pub fn store(&self, value: u32, order: Ordering) {
        self.value.store(value, order);
    }

    /// The value, with all operations of an atomic.
    pub fn value(&self) -> &AtomicU32 {
        &self.value
    }

    /// The node, if one was chosen.
    pub fn node(&self) -> Option<u32> {
        let node = self.node.load(Ordering::Relaxed);
        (node != NONE).then_some(node)
    }

    /// Chooses the node, or none. Nobody may wait at that time: waiters are queued at the old one.
    ///
    /// It is checked when it is used: a wait or a wake with a node that this machine cannot have
    /// is EINVAL.
    pub fn set_node(&self, node: Option<u32>) {
        self.node.store(node.unwrap_or(NONE), Ordering::Relaxed);
    }

    /// Chooses the node by the memory policy of the word's address, if none is chosen; answers
    /// the node. For a futex that nobody waits on yet.
    ///
    /// # Errors
    ///
    /// EOPNOTSUPP on kernels without `FUTEX2_MPOL` (before Linux 6.16); EFAULT if the memory
    /// cannot be written.
    pub fn choose_by_policy(&self) -> Result<u32> {
        const OPERATION: &str = "futex2::NumaFutex::choose_by_policy";
        if numa() == Numa::Here {
            return Err(Error::because(OPERATION, Errno::OPNOTSUPP, "no FUTEX2_MPOL"));
        }
        // A wake of nobody: the kernel looks for the queue, and so for the node.
        // SAFETY: the pair is ours, and all atomics.
        unsafe { futex::wake_numa(self.word(), u64::from(u32::MAX), 0, Self::FLAGS | MPOL) }
            .map_err(|errno| match errno {
                errno if is_numa_refused(errno) => {
                    Error::because(OPERATION, Errno::OPNOTSUPP, "refused")
                }
                errno => Error::new(OPERATION, errno),
            })?;
        // A policy without a preference leaves it to us.
        self.settle(OPERATION)
    }

    const FLAGS: u32 = SIZE_U32 | NUMA | if S::PRIVATE { PRIVATE } else { 0 };

    /// The pair, which the kernel may write: all of it is atomics.
    fn word(&self) -> *mut u32 {
        ptr::from_ref(self).cast_mut().cast()
    }

    fn place(&self) -> Place {
        Place { address: self.word().cast_const().cast(), bytes: 4, private: S::PRIVATE }
    }

    fn seat(&self) -> Seat<'static> {
        if S::PRIVATE { Seat::private(self.word().addr()) } else { Seat::NOWHERE }
    }

    /// The node, chosen now if it was not: once, by one exchange, so that all agree. The kernel's
    /// own choice, a read and a write, may differ between two that come together.
    fn settle(&self, operation: &'static str) -> Result<u32> {
        let mut node = self.node.load(Ordering::Relaxed);
        if node == NONE {
            let current = thread::cpu_and_node().map_or(0, |(_, node)| node);
            let (order, none) = (Ordering::Relaxed, NONE);
            node = match self.node.compare_exchange(none, current, order, order) {
                Ok(_) => current,
                Err(other) => other,
            };
        }
        if nodes::is_possible(node) {
            return Ok(node);
        }
        Err(Error::with(operation, Errno::INVAL, format_args!("node {node} of this machine")))
    }

    /// Sleeps while the value is `expected`: see [`Futex::wait`](super::Futex::wait).
    ///
    /// # Errors
    ///
    /// As [`Futex::wait`](super::Futex::wait); EINVAL for a node that this machine cannot have.
    pub fn wait(&self, expected: u32, deadline: Option<Deadline>) -> Result<()> {
        self.wait_with(expected, deadline, Options::new())
    }

    /// [`wait`](Self::wait) with options.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait); EINTR if asked for, after a handler without `SA_RESTART`.
    pub fn wait_with(
        &self,
        expected: u32,
        deadline: Option<Deadline>,
        options: Options,
    ) -> Result<()> {
        const OPERATION: &str = "futex2::NumaFutex::wait";
        options.check(OPERATION, 4)?;
        self.settle(OPERATION)?;
        let place = self.place();
        let here = || {
            // SAFETY: the word is borrowed for the time of the wait, and aligned.
            unsafe { place.wait(self.seat(), expected.into(), deadline, options) }
        };
        if numa() == Numa::Here {
            return here();
        }
        let waiting = self.seat().enter();
        let mask = u64::from(place.mask(&options));
        loop {
            if self.value.load(Ordering::Acquire) != expected {
                return Err(Error::new(OPERATION, Errno::AGAIN));
            }
            if deadline.is_some_and(|deadline| deadline.has_passed()) {
                return Err(Error::new(OPERATION, Errno::TIMEDOUT));
            }
            let end = (!waiting.sure).then(|| Deadline::or_sooner(deadline, super::wait::GLANCE));
            let (clock, timespec) = super::wait::until(end.or(deadline));
            let value = u64::from(expected);
            // SAFETY: the pair is borrowed, and all atomics.
            let slept = unsafe {
                futex::wait_numa(self.word(), value, mask, Self::FLAGS, clock, timespec.as_ref())
            };
            match slept {
                Ok(()) => return Ok(()),
                Err(Errno::TIMEDOUT) if !waiting.sure => {}
                Err(Errno::INTR) if !options.interruptible => {}
                Err(Errno::AGAIN) => {}
                Err(errno) if is_numa_refused(errno) => break,
                Err(errno) => return Err(Error::new(OPERATION, errno)),
            }
        }
        drop(waiting);
        here()
    }

    /// Sleeps as long as the value is `expected`; answers the value that it has then, loaded with
    /// acquire.
    ///
    /// # Errors
    ///
    /// ETIMEDOUT ([`is_timed_out`](crate::Error::is_timed_out)) at the deadline; EINVAL for a node
    /// that this machine cannot have.
    pub fn wait_while(&self, expected: u32, deadline: Option<Deadline>) -> Result<u32> {
        loop {
            let value = self.load(Ordering::Acquire);
            if value != expected {
                return Ok(value);
            }
            match self.wait(expected, deadline) {
                Err(error) if !error.is_would_block() => return Err(error),
                _ => {}
            }
        }
    }

    /// Wakes up to `n` waiters; answers how many.
    ///
    /// # Errors
    ///
    /// EINVAL for a node that this machine cannot have; EFAULT if the memory behind a shared word is
    /// gone.
    pub fn wake(&self, n: u32) -> Result<usize> {
        self.wake_with(n, Options::new())
    }

    /// [`wake`](Self::wake) with options.
    ///
    /// # Errors
    ///
    /// As [`wake`](Self::wake); EINVAL for a mask that does not fit.
    pub fn wake_with(&self, n: u32, options: Options) -> Result<usize> {
        const OPERATION: &str = "futex2::NumaFutex::wake";
        options.check(OPERATION, 4)?;
        self.settle(OPERATION)?;
        let (place, seat) = (self.place(), self.seat());
        if numa() == Numa::Here {
            return place.wake(seat, n, options, true);
        }
        if n == 0 || !seat.has_waiters() {
            return Ok(0);
        }
        let mask = u64::from(place.mask(&options));
        // SAFETY: the pair is borrowed, and all atomics.
        match unsafe { futex::wake_numa(self.word(), mask, n, Self::FLAGS) } {
            Err(errno) if is_numa_refused(errno) => place.wake(seat, n, options, true),
            woken => woken.map_err(|errno| Error::new(OPERATION, errno)),
        }
    }

    /// Wakes all waiters; answers how many.
    ///
    /// # Errors
    ///
    /// As [`wake`](Self::wake).
    pub fn wake_all(&self) -> Result<usize> {
        self.wake(u32::MAX)
    }
}

impl<S: Scope> Default for NumaFutex<S> {
    fn default() -> Self {
        Self::new(0)
    }
}

mod nodes {
    //! The nodes that this machine can have.

    use crate::sync::Published;
    use crate::sys::numa;

    /// Whether the kernel would take this one.
    pub(super) fn is_possible(node: u32) -> bool {
        static NODES: Published<Vec<u32>> = Published::new();
        NODES.get_or_make(numa::possible).contains(&node)
    }
}
