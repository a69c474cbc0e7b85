//! Locks, a condition variable, semaphores, events, a robust mutex and a channel: what one builds on
//! a [`Futex`](super::Futex).
//!
//! Each is private to the process, or [`Shared`](super::Shared) by a type parameter. The shared
//! ones work in memory that several processes map, wherever each maps it: they are `repr(C)`, zeros
//! are a valid state, and there are no addresses in them.
//!
//! ```
//! use unmerged::futex2::lock::{Condvar, Mutex};
//! use unmerged::futex2::{Deadline, Shared};
//! use core::time::Duration;
//!
//! #[repr(C)]
//! struct Counter {
//!     value: Mutex<u64, Shared>, // one byte of lock, then the value
//!     changed: Condvar<Shared>,
//! }
//! # let counter = Counter { value: Mutex::new(0), changed: Condvar::new() };
//! *counter.value.lock() += 1;
//! counter.changed.notify_all(); // no system call if nobody waits
//! let soon = Deadline::after(Duration::from_millis(1));
//! let mut value = counter.value.try_lock_until(soon)?;
//! assert!(counter.changed.wait_until(&mut value, soon).unwrap_err().is_timed_out());
//! # Ok::<(), unmerged::Error>(())
//! ```
//!
//! | type | bytes | |
//! |---|---|---|
//! | [`Mutex`] | 1 | if a waiter was passed over for 0.1 ms, the lock is kept for those who have slept |
//! | [`RwLock`] | 8 | a waiting writer keeps new readers out; if somebody was passed over for 0.1 ms, the lock is kept for those who have slept; writers can turn readers |
//! | [`Condvar`] | 24 | `notify_all` moves waiters to the mutex: they wake one by one |
//! | [`Semaphore`] | 4 | up to 2³¹ − 1 permits; nothing is kept for who sleeps, so one may starve |
//! | [`Event`], [`AutoEvent`] | 4 | stays set until it is reset; lets one through and resets itself, as a semaphore does |
//! | [`Once`] | 1 | |
//! | [`RobustMutex`] | 8 | its holder's death is told, its data can be made good; nothing is kept for who sleeps |
//! | [`Channel`] | | bounded, any number of senders and receivers, no lock in it; survives deaths |
//! | [`Sender`], [`Receiver`] | | its ends apart: the channel closes when one side is gone |
//!
//! [`select()`] waits for the first of several semaphores, events, mutexes and ends of channels, until
//! a deadline, and for a word to change; [`Source`] says what cannot be selected. There is no wait for *all* of several: see
//! [`waitv`](super::waitv).
//!
//! There is no poison: a guard that is dropped by a panic gives its lock back, as lock_api and
//! parking_lot have it. Data that must survive half of a change needs a [`RobustMutex`], or a
//! change that is one store.
//!
//! With the feature `lock_api`, [`RawMutex`] has that crate's `RawMutex`, `RawMutexTimed` and
//! `RawMutexFair`, and [`RawRwLock`] its `RawRwLock`, `RawRwLockTimed` and `RawRwLockDowngrade`; so
//! `lock_api::Mutex<RawMutex<Private>, T>` is one of ours. What is generic over fair unlocks, recursive
//! or upgradable reads of a readers-writer lock does not compile with ours: it has none.
//!
//! They are `Send` and `Sync` as std's are. As with parking_lot, and not as with std, `&Mutex` and
//! `&RwLock` are not `UnwindSafe`: without poison, what a panic left half done under the lock is seen
//! by the next one. Channels are, and all that has no data.
//!
//! # What goes wrong
//!
//! | | what happens |
//! |---|---|
//! | a deadline | every wait has a form with one, but for the mutex that a [`Condvar`] takes back. What was taken at that instant is taken, and no wake is lost with a waiter that leaves |
//! | others change the word without pause | the deadline is not missed, unless each change of ours meets one of theirs, time after time |
//! | the kernel refuses to let a thread wait | a call without a deadline tries again until it has what it is for; one that returns an error returns that |
//! | others write anything into shared memory | errors, wrong data, a lock that seems held or free; nothing out of bounds, and no wait longer than its deadline, unless somebody wins each race for a word, time after time |
//!
//! # Signals
//!
//! A thread that handles one while it waits goes on waiting. In a handler one may use the `try_`
//! forms, [`Event::is_set`], [`Event::set`], [`Semaphore::release`] and [`AutoEvent::set`]: none waits.
//! Others may wait for the thread that was interrupted.
//!
//! # Deaths
//!
//! Of a thread that ends, or a process that dies:
//!
//! | | what happens |
//! |---|---|
//! | *holding* a mutex, a readers-writer lock or a permit, or running a [`Once`] | it is held for ever. Deadlines and [`RobustMutex`] are the ways out, but not of a [`Condvar`]: it goes with a [`Mutex`] alone, and waits for it |
//! | holding a [`RobustMutex`] | the next one is told; one that sleeps, within 50 ms |
//! | inside a [`Channel`] in shared memory | nothing is lost or doubled that was sent; the others go on, within 50 ms |
//! | *waiting*, or woken, or waking, in shared memory | the others go on: whoever waits looks again every 50 ms |
//! | waiting for a [`Condvar`] | it stays counted: a notification that nobody waits for is then a system call |
//!
//! # Fork
//!
//! | | what becomes of it |
//! |---|---|
//! | private | the child has a copy. What other threads held is held in it for ever, as with every lock; what the forking thread holds is held by both |
//! | private, with waiters | they are not copied; at worst a wake finds nobody. A [`Condvar`] takes them for waiters: in the child, use it with the same mutex |
//! | a private [`Channel`] that other threads use at that moment | it is of no use to the child: what they are in the middle of never ends there |
//! | shared | one lock still. A guard that the forking thread holds must be forgotten in one of the two; that of a robust mutex belongs to the parent |
//! | a signal handler that forks in the middle of a send | the child must leave that channel alone |
//!
//! # Memory
//!
//! That a lock is not moved or unmapped while somebody waits is seen to by the borrow checker, and for
//! shared memory by the caller.
//!
//! A [`Mutex`] is not written after it was given back for all, but its address is woken; after a fair
//! unlock, or by the other locks, it may be. So memory that stays mapped can be used anew by who has
//! the mutex after an ordinary unlock, and other memory when all unlocks have returned.

mod bell;
mod cell;
mod channel;
mod channel_memory;
mod channel_select;
mod channel_wait;
mod claims;
mod condvar;
mod ends;
mod event;
mod identity;
mod items;
#[cfg(feature = "lock_api")]
mod lock_api;
mod mutex;
mod once;
mod raw_mutex;
mod raw_robust;
mod raw_rwlock;
mod ring;
mod robust;
mod rwlock;
mod rwlock_words;
mod select;
mod select_mutex;
mod semaphore;
mod waiting;

pub use channel::{Channel, Items};
pub use channel_select::{Receiving, Sending};
pub use condvar::Condvar;
pub use ends::{Receiver, Sender, channel};
pub use event::Event;
pub use items::{Plain, SendError};
pub use mutex::{Mutex, MutexGuard};
pub use once::Once;
pub use raw_mutex::RawMutex;
pub use raw_rwlock::RawRwLock;
pub use robust::{Locked, Orphan, RobustGuard, RobustMutex};
pub use rwlock::{RwLock, RwLockReadGuard, RwLockWriteGuard};
pub use select::{Source, select};
pub use semaphore::{AutoEvent, Semaphore};

crate::sync::assert_layout!(
    size_of::<Mutex<u8, super::Shared>>() == 2,
    size_of::<RawMutex>() == 1,
    align_of::<RawMutex>() == 1,
    size_of::<RawMutex<super::Shared>>() == 1,
    align_of::<RawMutex<super::Shared>>() == 1,
    size_of::<RawRwLock>() == 8,
    size_of::<Condvar>() == 24,
    size_of::<Semaphore>() == 4,
    size_of::<Event>() == 4,
    size_of::<Once>() == 1,
    size_of::<RobustMutex<()>>() == 8,
);
