//! The word of a robust mutex: 64 bits that say who holds it.
//!
//! | bits | name | means |
//! |---|---|---|
//! | 0 to 61 | | who holds it, as `identity.rs` has it; 0: nobody |
//! | 62 | `PARKED` | somebody may sleep who is nobody's duty yet |
//! | 63 | `ORPHANED` | held: its last holder died, and the data is not made good yet. Not held: nobody made it good, and nobody can take it any more |
//!
//! Taking it is one exchange that brings the holder's identity, and giving it back is another one. So
//! there is no instant at which a holder's death leaves a word that does not tell: there is no
//! list of held locks to keep, and no address in memory that others write. That is why this is
//! not the kernel's robust list, in which the links lie beside the words, and libc follows
//! those of its neighbours.
//!
//! Who waits looks whether the holder lives: before each sleep, thoroughly after each beat and
//! before it gives up at its deadline. A thread of one process dies as silently as another
//! process, so there are beats in private memory, too.

use super::cell::Cell;
use super::identity::ID;
use super::waiting::{BEAT, Patience, Slept, Spins};
use crate::error::{Error, Result};
use crate::sync::Ordering::{Acquire, Relaxed, Release};
use rustix::io::Errno;

pub(super) const PARKED: u64 = 1 << 62;
pub(super) const ORPHANED: u64 = 1 << 63;

/// How the lock was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// Free.
    Clean,
    /// Held by one who is dead.
    Orphaned,
}

const OPERATION: &str = "futex2::RobustMutex::lock";

/// Takes it if it is free and there is no more to say.
#[inline]
pub(super) fn try_quick<C: Cell<u64>>(word: &C, me: u64) -> bool {
    word.compare_exchange(0, me, Acquire, Relaxed).is_ok()
}

/// Takes it. `is_dead` looks after a holder, thoroughly if asked to.
#[cold]
#[inline(never)]
pub(super) fn take<C: Cell<u64>>(
    word: &C,
    me: u64,
    patience: Patience,
    is_dead: impl Fn(u64, bool) -> bool,
) -> Result<Taken> {
    let (mut spins, mut thorough, deadline) = match patience {
        Patience::None => (Spins::none(), true, None),
        Patience::Until(deadline) => (Spins::new(), false, Some(deadline)),
        Patience::Endless => (Spins::new(), false, None),
    };
    let (mut duty, mut over) = (false, None);
    loop {
        let seen = word.load(Relaxed);
        let holder = seen & ID;
        let keep = (seen | if duty { PARKED } else { 0 }) & PARKED;
        if holder == 0 {
            if seen & ORPHANED != 0 {
                return Err(Error::because(
                    OPERATION,
                    Errno::NOTRECOVERABLE,
                    "its holder died and nobody made the data good",
                ));
            }
            if word.compare_exchange(seen, me | keep, Acquire, Relaxed).is_ok() {
                return Ok(Taken::Clean);
            }
            continue;
        }
        if holder == me {
            return Err(Error::because(OPERATION, Errno::DEADLK, "this thread holds it"));
        }
        if !spins.are_over() {
            continue;
        }
        if is_dead(holder, thorough) {
            let next = me | ORPHANED | keep;
            if word.compare_exchange(seen, next, Acquire, Relaxed).is_ok() {
                return Ok(Taken::Orphaned);
            }
            continue;
        }
        if matches!(patience, Patience::None) {
            return Err(Error::new(OPERATION, Errno::AGAIN));
        }
        if let Some(error) = over {
            return Err(error);
        }
        let parked = seen | PARKED;
        if parked != seen && word.compare_exchange(seen, parked, Relaxed, Relaxed).is_err() {
            continue;
        }
        duty = false;
        match word.nap(parked, deadline, Some(BEAT)) {
            Ok(slept) => {
                duty |= slept.owes();
                thorough = slept == Slept::Beat;
                spins = Spins::new();
            }
            // The last look.
            Err(error) => {
                over = Some(error.within(OPERATION));
                thorough = true;
            }
        }
    }
}

/// The data is good again.
pub(super) fn make_consistent<C: Cell<u64>>(word: &C) {
    word.fetch_and(!ORPHANED, Relaxed);
}

/// Gives it back, as what it is: an orphan that was not made good can never be taken again.
#[inline]
pub(super) fn give_back<C: Cell<u64>>(word: &C, me: u64) {
    if word.compare_exchange(me, 0, Release, Relaxed).is_err() {
        give_back_slowly(word, me);
    }
}

#[cold]
#[inline(never)]
fn give_back_slowly<C: Cell<u64>>(word: &C, me: u64) {
    let mut seen = word.load(Relaxed);
    // A word that somebody else wrote is left alone.
    while seen & ID == me {
        match word.compare_exchange(seen, seen & ORPHANED, Release, Relaxed) {
            Ok(_) => {
                if seen & PARKED != 0 {
                    word.wake(if seen & ORPHANED == 0 { 1 } else { u32::MAX });
                }
                return;
            }
            Err(now) => seen = now,
        }
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::super::cell::model::Modelled;
    use super::*;
    use crate::sync::{AtomicBool, AtomicU64, model};
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    struct Shared {
        word: Modelled<AtomicU64>,
        dead: AtomicBool,
        data: UnsafeCell<u32>,
    }

    impl Shared {
        fn new() -> Arc<Self> {
            Arc::new(Self {
                word: Modelled::<AtomicU64>::new(0),
                dead: AtomicBool::new(false).ready(),
                data: UnsafeCell::new(0),
            })
        }
        fn take(&self, me: u64) -> Taken {
            if try_quick(&self.word, me) {
                return Taken::Clean;
            }
            // The kernel's word about a death comes after all that the dead one did.
            take(&self.word, me, Patience::Endless, |id, _| id == 1 && self.dead.load(Acquire))
                .unwrap()
        }
        fn add(&self) {
            // SAFETY: the lock is held.
            self.data.with_mut(|data| unsafe { *data += 1 });
        }
    }

    #[test]
    fn one_holder_at_a_time() {
        model(|| {
            let shared = Shared::new();
            let others = [2, 3].map(|me| {
                let shared = shared.clone();
                thread::spawn(move || {
                    shared.take(me);
                    shared.add();
                    give_back(&shared.word, me);
                })
            });
            shared.take(4);
            shared.add();
            give_back(&shared.word, 4);
            others.into_iter().for_each(|other| other.join().unwrap());
            shared.take(4);
            // SAFETY: the lock is held.
            assert_eq!(shared.data.with(|data| unsafe { *data }), 3);
        });
    }

    /// One dies with the lock; of two others one is told, and both get it.
    #[test]
    fn a_death_is_told_once() {
        model(|| {
            let shared = Shared::new();
            assert_eq!(shared.take(1), Taken::Clean);
            shared.add();
            // Before the others come: who sleeps already would look again after a beat.
            shared.dead.store(true, Release);
            let bodies = [2, 3].map(|me| {
                let shared = shared.clone();
                thread::spawn(move || {
                    let taken = shared.take(me);
                    if taken == Taken::Orphaned {
                        make_consistent(&shared.word);
                    }
                    shared.add();
                    give_back(&shared.word, me);
                    taken
                })
            });
            let told = bodies.map(|body| body.join().unwrap() == Taken::Orphaned);
            assert!(told[0] != told[1]);
        });
    }

    /// One dies with the lock, the next one does not make it good: the other is told, be it asleep.
    #[test]
    fn given_up_for_all() {
        model(|| {
            let shared = Shared::new();
            shared.take(1);
            shared.dead.store(true, Release);
            let bodies = [2, 3].map(|me| {
                let shared = shared.clone();
                thread::spawn(move || {
                    let is_dead = |id, _| id == 1;
                    match take(&shared.word, me, Patience::Endless, is_dead) {
                        Ok(taken) => {
                            assert_eq!(taken, Taken::Orphaned);
                            give_back(&shared.word, me);
                            1
                        }
                        Err(error) => {
                            assert_eq!(error.raw_os_error(), libc::ENOTRECOVERABLE);
                            0
                        }
                    }
                })
            });
            let sum: u32 = bodies.map(|body| body.join().unwrap()).iter().sum();
            assert_eq!(sum, 1);
        });
    }

    /// One dies with the lock while others sleep, or are about to: after a beat one of them is told.
    #[test]
    fn a_death_is_told_to_sleepers() {
        model(|| {
            let shared = Shared::new();
            shared.take(1);
            let bodies = [2, 3].map(|me| {
                let shared = shared.clone();
                thread::spawn(move || {
                    let taken = shared.take(me);
                    if taken == Taken::Orphaned {
                        make_consistent(&shared.word);
                    }
                    give_back(&shared.word, me);
                    taken
                })
            });
            shared.dead.store(true, Release);
            shared.word.end_naps(2);
            let told = bodies.map(|body| body.join().unwrap() == Taken::Orphaned);
            assert!(told[0] != told[1]);
        });
    }

    /// The deadline is before the first beat: the last look finds the death.
    #[test]
    fn a_death_is_seen_at_the_deadline() {
        model(|| {
            let shared = Shared::new();
            shared.take(1);
            // Killed, and not waited for yet: only a thorough look tells.
            shared.word.end_deadlines(1);
            let far =
                Patience::Until(crate::futex2::Deadline::monotonic(core::time::Duration::MAX));
            let taken = take(&shared.word, 2, far, |id, thorough| id == 1 && thorough);
            assert_eq!(taken.unwrap(), Taken::Orphaned);
        });
    }

    /// Of two that sleep one leaves at its deadline, or has the lock: the other one has it, too.
    #[test]
    fn one_gives_up() {
        model(|| {
            let shared = Shared::new();
            shared.take(1);
            let bodies = [2, 3].map(|me| {
                let shared = shared.clone();
                thread::spawn(move || {
                    let far = crate::futex2::Deadline::monotonic(core::time::Duration::MAX);
                    let patience = if me == 2 { Patience::Until(far) } else { Patience::Endless };
                    let taken = take(&shared.word, me, patience, |_, _| false);
                    if taken.is_ok() {
                        give_back(&shared.word, me);
                    }
                })
            });
            shared.word.end_deadlines(1);
            give_back(&shared.word, 1);
            bodies.into_iter().for_each(|body| body.join().unwrap());
            assert_eq!(shared.word.load(Relaxed) & ID, 0);
        });
    }
}
