//! Waiting on a word of any size, private or shared between processes.
//!
//! ```
//! use core::sync::atomic::Ordering::{Acquire, Release};
//! use unmerged::futex2::Futex;
//!
//! static DOOR: Futex<u8> = Futex::new(0); // one byte; 0: closed
//!
//! std::thread::scope(|scope| {
//!     scope.spawn(|| DOOR.wait_while(0, None)); // sleeps while the value is 0
//!     DOOR.store(1, Release);
//!     DOOR.wake(1); // no system call if nobody waits
//! });
//! assert_eq!(DOOR.load(Acquire), 1);
//! ```
//!
//! [`Futex<T, S>`](Futex) is an atomic word of 8, 16, 32 or 64 bits with the operations of
//! the futex2 proposal, in sizes that no kernel has. Its scope is a type: [`Private`] to the
//! process, [`Shared`] by all that map the memory, or [`Counted`] in a [`Domain`] of such.
//!
//! | | |
//! |---|---|
//! | wait, wake | [`Futex`]; [`wait()`], [`wake`] on plain atomics |
//! | on several words of any size and scope | [`waitv`] |
//! | by a ring of io_uring | [`Futex::ring_wait`] |
//! | move waiters to another word | [`Futex::requeue`], [`Futex::cmp_requeue`] |
//! | masks, overlapping sizes, ends by signals | [`Options`] |
//! | wakes between processes without a system call | [`Domain`] |
//! | what a word is known by | [`Key`] |
//! | a queue on a NUMA node | [`NumaFutex`] |
//! | locks, events, a channel, the first of several | [`lock`] |
//! | the calls as in C, with flags and all errors | [`raw`] |
//!
//! # Contract
//!
//! The same on every kernel from Linux 5.10 on.
//!
//! - A [wait](Futex::wait) sleeps while the word holds the expected value. If it does not,
//!   the answer is EAGAIN, also when the deadline has passed already. It returns after a
//!   wake, at the deadline with ETIMEDOUT, and now and then for no reason; so a wait belongs
//!   in a loop, which [`wait_while`](Futex::wait_while) is.
//! - A signal that was handled does not end a wait, with or without `SA_RESTART`, unless the wait
//!   [asks for it](Options::interruptible): then the answer is EINTR. Two kinds of waits that ask
//!   for it are ended by handlers without `SA_RESTART` alone, for the kernel resumes them after
//!   others: a vector with words that are shared, and a [`NumaFutex`].
//! - A [wake](Futex::wake) wakes up to `n` waiters of this word, and of no neighbour in the
//!   same 32 bits; `n = 0` wakes none. It answers how many were woken. Threads of one priority
//!   are woken in the order in which they came, where they sleep in one queue of the kernel; those
//!   that sleep on a shadow word or are listed (see below) come after, all at once.
//! - Sizes at one address are apart, unless [asked for](Options::overlapping). One exception: a
//!   wake of 32 bits may reach a wait on 64 bits at that address, or on the half behind it.
//! - Deadlines are absolute, on a [clock](Clock) of the caller's choice.
//! - A wake orders nothing by itself: store with release, load with acquire.
//! - A thread that is killed after it was woken takes that wake with it, as with futex(2).
//!
//! There is no wait for all of several words: see [`waitv`]. There is no priority inheritance, and
//! no word that tells of its owner's death: the kernel has both for futex(2) on 32 bits alone,
//! and the list that the second needs is libc's.
//!
//! # How
//!
//! The kernel's queues do the sleeping; there is no queue and no lock of ours.
//!
//! | size | sleeps by | and where that fails |
//! |---|---|---|
//! | 32 | `FUTEX_WAIT_BITSET` | |
//! | 8, 16 | the same on the 32 bits around it, with a mask for size and lane | a neighbour in the same 32 bits that changes all the time: shadow |
//! | 64 | `futex_waitv(2)` on both halves, the woken one first (since Linux 5.16) | Linux 5.10, or to be ended by signals: shadow |
//! | vectors | `futex_waitv(2)` (since Linux 5.16) | Linux 5.10, or beyond 128: a word of the process; see [`waitv`] |
//!
//! *Shadow*, in a private scope or a domain: a sequence word beside the waiter counts that a waker
//! advances. All that sleep on it are woken, some for no reason, and the answer of a wake
//! counts no more than were asked for. That of a domain can be written by anybody in it, so who
//! sleeps there looks at its word after 2 milliseconds, and then more and more rarely, up to
//! every 50 milliseconds: against liars, for an honest wake comes at once. In a shared scope there is no such word that all
//! processes know: the wait looks at the word again every 2 milliseconds, so it may see a
//! store late by as much, and the wake that follows the store may not be counted.
//!
//! Where wakes are not exact: a shadowed or listed waiter may be woken beside the `n` that were
//! asked for; a wake of a shared byte may count a vector that waits on another byte of the same
//! 32 bits; an overlapping wake of 64 bits may count a wait on 64 bits twice; a
//! shadowed or listed waiter that is not asleep yet takes a wake that does not count it.
//!
//! # Fork
//!
//! | | in the child |
//! |---|---|
//! | private words | a copy, with no waiters: the other threads are not there. Their counts are, for good, so a wake at such a place is a system call that finds nobody, and a vector there may return for no reason |
//! | shared words | the same words as the parent's |
//! | words of a [`Domain`] | the same; the child counts itself anew |
//! | choices: [`implementation()`], [`fences()`] | the parent's, where they were made |
//! | a fork in a handler, during a wait | the wait goes on in both |
//!
//! # A wake that nobody waits for
//!
//! is no system call in a private scope and in a domain: waiters count themselves in a table, and
//! the count may be too high but never too low (`counts.rs` has the protocol).
//! That works because a `Futex` owns its word: nobody waits on it behind its back. A shared
//! wake, and one of a plain atomic, is always a system call.
//!
//! The fence that this costs can be moved into the waiter: [`choose_fences`].
//!
//! # Environment
//!
//! | variable | |
//! |---|---|
//! | `UNMERGED_FUTEX2=shadow` | as if there were no futex_waitv(2); [`implementation()`] tells |
//! | `UNMERGED_FUTEX2_FENCE=symmetric`, `membarrier` | which [`Fences`]; [`fences()`] tells |
//! | `UNMERGED_FUTEX2_NUMA=here` | as if there were no `FUTEX2_NUMA` |
//!
//! They are read at the first use. Another value is as none; [`probe()`](crate::probe()) tells what is
//! in force.
//!
//! # References
//!
//! - The proposal: André Almeida, "Add futex2 syscalls", RFC of February 2021
//!   (<https://lore.kernel.org/r/20210215152404.250281-1-andrealmeid@collabora.com>), and its fourth
//!   version of June 2021, with sizes
//!   (<https://lore.kernel.org/r/20210603195924.361327-1-andrealmeid@collabora.com>).
//! - futex(2) and futex_waitv(2) in the kernel: `kernel/futex/syscalls.c`, `waitwake.c`, `requeue.c`;
//!   futex_wait(2), futex_wake(2) and futex_requeue(2) since Linux 6.7, `FUTEX2_NUMA` and
//!   `FUTEX2_MPOL` since 6.16 (`include/uapi/linux/futex.h`).
//! - [futex(2)](https://man7.org/linux/man-pages/man2/futex.2.html),
//!   [membarrier(2)](https://man7.org/linux/man-pages/man2/membarrier.2.html).

mod beds;
mod counted;
mod counts;
mod deadline;
mod domain;
mod fence;
mod futex;
mod implementation;
mod key;
pub mod lock;
mod numa;
mod options;
mod place;
mod plain;
pub mod raw;
mod requeue;
mod scope;
mod seat;
#[cfg(feature = "planted-faults")]
#[doc(hidden)]
pub mod step;
#[cfg(not(feature = "planted-faults"))]
mod step;
mod uring;
mod vector;
mod wait;
mod word;

pub use crate::sys::futex::Clock;
pub use deadline::Deadline;
pub use domain::Domain;
pub(crate) use fence::decided as decided_fences;
pub use fence::{Fences, choose_fences, fences};
pub use futex::Futex;
pub use implementation::{Implementation, implementation};
pub use key::Key;
pub use numa::NumaFutex;
pub use options::Options;
pub use plain::{Atomic, cmp_requeue, requeue, wait, wait_with, waiter, wake, wake_with};
pub use scope::{Counted, Private, Reach, Scope, Shared};
pub use uring::{RingOperation, RingWait, has_ring_waits};
pub use vector::{Waiter, waitv, waitv_with};
pub use word::Word;
