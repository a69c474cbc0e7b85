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
//! [`Futex<T, S>`](Futex) is an atomic word of 8, 16, 32 or 64 bits with the two operations
//! of futex(2), in the sizes that the futex2 proposal asked for and no kernel has. Its scope
//! is a type: [`Private`] to the process, or [`Shared`] by all that map the memory.
//!
//! # Contract
//!
//! The same on every kernel from Linux 5.10 on.
//!
//! - [`wait`](Futex::wait) sleeps while the word holds the expected value. If it does not,
//!   the answer is EAGAIN, also when the deadline has passed already. It returns after a
//!   wake, at the deadline with ETIMEDOUT, and now and then for no reason; so a wait belongs
//!   in a loop, which [`wait_while`](Futex::wait_while) is. A signal that was handled does
//!   not end a wait.
//! - [`wake`](Futex::wake) wakes up to `n` waiters of this word, and of no neighbour in the
//!   same 32 bits; `n = 0` wakes none. It answers how many were woken.
//! - Deadlines are absolute, on a [clock](Clock) of the caller's choice.
//! - A wake orders nothing by itself: store with release, load with acquire.
//!
//! # How
//!
//! The kernel's queues do the sleeping; there is no queue and no lock of ours.
//!
//! | size | sleeps by | and where that fails |
//! |---|---|---|
//! | 32 | `FUTEX_WAIT_BITSET` | |
//! | 8, 16 | the same on the 32 bits around it, with a mask for size and lane | a neighbour in the same 32 bits that changes all the time: shadow |
//! | 64 | `futex_waitv(2)` on both halves, the woken one first (since Linux 5.16) | Linux 5.10: shadow |
//!
//! *Shadow*, in a private scope: a sequence word beside the waiter counts that a waker
//! advances. All that sleep on it are woken, some for no reason, and the answer of a wake
//! counts no more than were asked for. In a shared scope there is no such word that all
//! processes know: the wait looks at the word again every 2 milliseconds, so it may see a
//! store late by as much, and the wake that follows the store may not be counted.
//!
//! `UNMERGED_FUTEX2=shadow` forces the second way for 64 bits; [`implementation()`] tells.
//!
//! # A wake that nobody waits for
//!
//! is no system call in a private scope: waiters count themselves in a table of this
//! process, and the count may be too high but never too low (`counts.rs` has the protocol).
//! That works because a `Futex` owns its word: nobody waits on it behind its back. A shared
//! wake is always a system call.

mod counts;
mod deadline;
mod domain;
mod fence;
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
#[doc(hidden)]
pub mod step;
mod vector;
mod wait;
mod word;

pub use crate::sys::futex::Clock;
pub use deadline::Deadline;
pub use domain::Domain;
pub use fence::{Fences, choose_fences, fences};
pub use implementation::{Implementation, implementation};
pub use key::Key;
pub use numa::NumaFutex;
pub use options::Options;
pub use plain::{Atomic, cmp_requeue, requeue, wait, wait_with, waiter, wake, wake_with};
pub use scope::{Counted, Private, Reach, Scope, Shared};
pub use vector::{Waiter, waitv, waitv_with};
pub use word::{Futex, Word};
