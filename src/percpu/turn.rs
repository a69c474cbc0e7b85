//! A turn: one writer at a time, without waiting and without a word left locked.
//!
//! Where windows cannot run, writers exclude each other by a word that holds its owner. It is
//! only ever tried: whoever finds it taken goes to another stripe, so nobody waits for a thread
//! that is stopped, and a signal handler not for the thread that it interrupted.
//!
//! # Protocol
//!
//! | word | meaning |
//! |---|---|
//! | 0 | free |
//! | process id << 32 \| thread id | taken |
//! | thread id | taken, in private memory |
//!
//! In private memory the process is not named: a thread that is not of this process is one of
//! those that it was forked from, and gone. That saves a system call each time.
//!
//! Taken by an exchange with acquire, given back with release: the next owner sees all that
//! the last one did. An owner that died is succeeded, by an exchange against its own id, so
//! by one alone. What the dead did last may be half done: who uses a turn must publish with one
//! store of its own, released, and read that with acquire.
//!
//! A thread that finds its own id does not succeed it: it is a handler that interrupted the
//! owner, or the id was given anew and the word stays taken until that thread ends too.

use crate::sync::{AtomicU64, Ordering, spin_loop};
use crate::sys::thread;
use core::fmt;

/// Who takes turns: process and thread id in one word, never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner(pub(super) u64);

impl Owner {
    /// The calling thread, for words that another process may see.
    pub(super) fn this_thread() -> Self {
        let (process, thread) = thread::ids();
        Self(u64::from(process) << 32 | u64::from(thread))
    }

    /// The calling thread, for words of private memory.
    fn this_thread_here() -> Self {
        Self(thread::id().into())
    }

    const fn process(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Whether `owner` will not go on: it has ended, or, where the memory is `private`, it
    /// is a thread of the process that this one was forked from.
    pub(super) fn is_gone(self, owner: Self, private: bool) -> bool {
        private && owner.process() != self.process()
            || thread::is_gone(owner.process(), owner.0 as u32)
    }

    /// The same of a word of private memory. Asked only where the word is found taken.
    fn is_not_here(self) -> bool {
        self.process() != 0 || thread::is_gone(thread::ids().0, self.0 as u32)
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "thread {} of process {}", self.0 as u32, self.process())
    }
}

/// The word is this thread's until this is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    word: &'a AtomicU64,
    owner: Owner,
}

impl<'a> Turn<'a> {
    /// Takes one on a word of private memory, for the calling thread.
    pub(super) fn take_private(word: &'a AtomicU64) -> Option<Self> {
        Self::take(word, Owner::this_thread_here(), Owner::is_not_here)
    }

    /// The same, however long another thread has it. `None` if this very thread has it, and would
    /// wait for itself.
    pub(super) fn wait_private(word: &'a AtomicU64) -> Option<Self> {
        Self::wait(word, Owner::this_thread_here(), Owner::is_not_here, || false).ok()
    }

    /// Takes one on a word that other processes may see, for the calling thread. All of them must
    /// see each other's process ids.
    pub(super) fn take_shared(word: &'a AtomicU64) -> Option<Self> {
        let me = Owner::this_thread();
        Self::take(word, me, |owner| me.is_gone(owner, false))
    }

    /// The same on a word that other processes may see, but for no longer than a second: what is
    /// in the word may be any process's doing.
    ///
    /// # Errors
    ///
    /// The owner that has it: perhaps this very thread.
    pub(super) fn wait_shared(word: &'a AtomicU64) -> Result<Self, Owner> {
        const PATIENCE: u64 = 1_000_000_000;
        let (me, begun) = (Owner::this_thread(), thread::monotonic());
        let is_long = || thread::monotonic().saturating_sub(begun) > PATIENCE;
        Self::wait(word, me, |owner| me.is_gone(owner, false), is_long)
    }

    fn wait(
        word: &'a AtomicU64,
        me: Owner,
        is_gone: impl Fn(Owner) -> bool,
        is_long: impl Fn() -> bool,
    ) -> Result<Self, Owner> {
        let mut looks = 0_u32;
        loop {
            if let Some(turn) = Self::take(word, me, &is_gone) {
                return Ok(turn);
            }
            let owner = Owner(word.load(Ordering::Relaxed));
            // Whoever has it is about to let go, unless it was preempted.
            looks += 1;
            if owner == me || looks >= 100 && is_long() {
                return Err(owner);
            }
            if looks < 100 { spin_loop() } else { thread::sleep_us(50) }
        }
    }

    /// Takes it if it is free, or if `is_gone` says so of its owner.
    pub(super) fn take(
        word: &'a AtomicU64,
        owner: Owner,
        is_gone: impl FnOnce(Owner) -> bool,
    ) -> Option<Self> {
        let exchange =
            |from| word.compare_exchange(from, owner.0, Ordering::Acquire, Ordering::Relaxed);
        let taken = match exchange(0) {
            Ok(_) => true,
            Err(other) if other == owner.0 => false,
            Err(other) => is_gone(Owner(other)) && exchange(other).is_ok(),
        };
        // Not made unless taken: dropping it gives the turn back.
        taken.then(|| Self { word, owner })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // What another process wrote over it is not ours to give back.
        let (release, relaxed) = (Ordering::Release, Ordering::Relaxed);
        let _ = self.word.compare_exchange(self.owner.0, 0, release, relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn one_owner_who_may_be_succeeded_when_gone() {
        let word = AtomicU64::new(0);
        let me = Owner::this_thread();
        let turn = Turn::take(&word, me, |_| unreachable!()).unwrap();
        // A handler of this very thread.
        assert!(Turn::take(&word, me, |_| unreachable!()).is_none());
        assert_eq!(word.load(Ordering::Relaxed), me.0);
        let other = std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                let owner = Owner::this_thread();
                assert!(Turn::take(&word, owner, |of| owner.is_gone(of, false)).is_none());
                owner
            });
            other.join().unwrap()
        });
        drop(turn);
        assert_eq!(word.load(Ordering::Relaxed), 0);
        // Left behind by a thread that has ended.
        word.store(other.0, Ordering::Relaxed);
        // Who is joined may still be on its way out.
        let turn = loop {
            if let Some(turn) = Turn::take(&word, me, |of| me.is_gone(of, false)) {
                break turn;
            }
            std::thread::yield_now();
        };
        assert_eq!(turn.word.load(Ordering::Relaxed), me.0);
        drop(turn);
        // Garbage, and the parent of a fork.
        for (left, private) in [(u64::MAX, false), (1 << 32 | 1, true)] {
            word.store(left, Ordering::Relaxed);
            drop(Turn::take(&word, me, |of| me.is_gone(of, private)).unwrap());
        }
        word.store(1 << 32 | 1, Ordering::Relaxed);
        assert!(Turn::take(&word, me, |of| me.is_gone(of, false)).is_none());
    }

    #[test]
    fn one_owner_in_private_memory() {
        let word = AtomicU64::new(0);
        let turn = Turn::take_private(&word).unwrap();
        assert!(Turn::take_private(&word).is_none());
        assert!(Turn::wait_private(&word).is_none());
        let left = std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                assert!(Turn::take_private(&word).is_none());
                Owner::this_thread_here()
            });
            other.join().unwrap()
        });
        drop(turn);
        // A thread that has ended, one of the parent's (every process has another 1), garbage.
        for left in [left.0, 1, u64::MAX, 1 << 32 | 1] {
            // Who is joined may still be on its way out.
            word.store(left, Ordering::Relaxed);
            drop(Turn::wait_private(&word).unwrap());
            word.store(left, Ordering::Relaxed);
            drop(Turn::take_private(&word).unwrap());
            assert_eq!(word.load(Ordering::Relaxed), 0);
        }
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::sync::model;
    use loom::sync::Arc;
    use loom::thread;

    struct Shared {
        word: AtomicU64,
        /// What an owner does without atomics.
        place: loom::cell::UnsafeCell<u64>,
    }

    fn shared(word: u64) -> Arc<Shared> {
        let place = loom::cell::UnsafeCell::new(0);
        Arc::new(Shared { word: AtomicU64::new(word).ready(), place })
    }

    fn use_turn(shared: &Shared, me: u64, is_gone: impl FnOnce(Owner) -> bool) -> u64 {
        let Some(_turn) = Turn::take(&shared.word, Owner(me), is_gone) else { return 0 };
        shared.place.with_mut(|value| unsafe { *value += 1 });
        1
    }

    /// Fails when the take's acquire or the drop's release is relaxed.
    #[test]
    fn one_owner_at_a_time() {
        model(|| {
            let shared = shared(0);
            let other = thread::spawn({
                let shared = shared.clone();
                move || use_turn(&shared, 1, |_| false)
            });
            let here = use_turn(&shared, 2, |_| false);
            let done = here + other.join().unwrap();
            assert!(done >= 1);
            assert_eq!(shared.place.with(|value| unsafe { *value }), done);
        });
    }

    /// A handler finds its own thread's turn and leaves it alone. Fails when the turn that is
    /// not taken is made, and dropped.
    #[test]
    fn a_turn_refused_is_not_given_back() {
        model(|| {
            let shared = shared(0);
            let turn = Turn::take(&shared.word, Owner(1), |_| false).unwrap();
            assert_eq!(use_turn(&shared, 1, |_| false), 0);
            assert_eq!(use_turn(&shared, 2, |_| false), 0);
            drop(turn);
        });
    }

    /// Two find the owner dead; one succeeds it, the other may have its turn afterwards. Fails
    /// when the successor's exchange is a store.
    #[test]
    fn the_dead_are_succeeded_by_one() {
        model(|| {
            let shared = shared(9);
            let other = thread::spawn({
                let shared = shared.clone();
                move || use_turn(&shared, 1, |owner| owner.0 == 9)
            });
            let here = use_turn(&shared, 2, |owner| owner.0 == 9);
            let done = here + other.join().unwrap();
            assert!(done >= 1);
            assert_eq!(shared.place.with(|value| unsafe { *value }), done);
        });
    }
}
