//! A bell: what one side of a channel sleeps on, and the other side rings. It is an eventcount: a
//! sequence to sleep on, and a count of sleepers that spares wakes.
//!
//! # Protocol
//!
//! ```text
//! sleeper                                  ringer
//!   s = sequence                             change what the sleeper looks at
//!   sleepers += 1                            fence
//!   fence                                    if no sleepers, or WAKING: done
//!   look again: if there is something, go    WAKING = 1
//!   sleep while sequence == s                sequence += 1
//!   sleepers -= 1; WAKING = 0                wake one
//!   take one; if more is left, ring          nobody slept: start anew, as below
//! ```
//!
//! Both sides write one place and then read the other's, with a fence between, as in `counts.rs`:
//! the sleeper finds something, or the ringer finds the sleeper.
//!
//! `WAKING` keeps those who come while a woken sleeper is on its way from waking another one for
//! each item. Whoever leaves clears it before it looks, and rings for what it leaves behind: so
//! each thing that was not rung for is seen by the one who cleared the bit.
//!
//! If a wake finds nobody, those that were counted were about to sleep, or had died asleep. Which
//! of the two cannot be told, so the count starts anew, in a new epoch, and then all are woken,
//! those about to sleep by the sequence that is another one: they are counted again when they
//! come again, and who leaves takes away only what it added in this epoch. A dead sleeper so
//! costs one wake and not one for each item from then on.
//!
//! In shared memory a ringer may die between its change and its wake, and a woken sleeper with
//! `WAKING`: there every sleep ends after a beat.
//!
//! | bits of `state` | |
//! |---|---|
//! | 0 to 31 | sleepers of this epoch |
//! | 32, `WAKING` | one was woken and has not left yet |
//! | 33 to 63 | the epoch |

use super::cell::Cell;
use crate::sync::Ordering::Relaxed;
use crate::sync::{AtomicU64, fence_after_rmw};

const WAKING: u64 = 1 << 32;
const EPOCH: u64 = 1 << 33;

/// See the head of the file. Zeros are a bell that nobody listens to.
#[repr(C)]
pub(super) struct Bell<C> {
    state: AtomicU64,
    sequence: C,
}

impl<C> Bell<C> {
    pub(super) const fn new(sequence: C) -> Self {
        Self { state: AtomicU64::new(0), sequence }
    }

    /// The same, registered with the running model.
    #[cfg(all(test, loom))]
    pub(super) fn ready(self) -> Self {
        Self { state: self.state.ready(), ..self }
    }

    /// What a sleeper sleeps on.
    pub(super) fn sequence(&self) -> &C {
        &self.sequence
    }
}

impl<C: Cell<u32>> Bell<C> {
    /// Counts a sleeper until the answer is dropped; with the value to sleep on. What it looks at
    /// from here on is ordered against [`ring`](Self::ring).
    pub(super) fn announce(&self) -> (u32, Listener<'_>) {
        // Before the count: whoever starts that anew then changes this. The fence below brings what
        // was changed before it.
        let seen = self.sequence.load(Relaxed);
        let before = self.state.fetch_add(1, Relaxed);
        fence_after_rmw();
        (seen, Listener { state: &self.state, epoch: before / EPOCH })
    }

    /// Wakes a sleeper if there is one and none is on its way. A fence is between the change and
    /// this.
    #[inline]
    pub(super) fn ring(&self) {
        let seen = self.state.load(Relaxed);
        if seen as u32 != 0 && seen & WAKING == 0 {
            self.wake(seen);
        }
    }

    /// Wakes all.
    pub(super) fn ring_all(&self) {
        self.sequence.fetch_add(1, Relaxed);
        self.sequence.wake(u32::MAX);
    }

    #[cold]
    #[inline(never)]
    fn wake(&self, mut seen: u64) {
        loop {
            if seen as u32 == 0 || seen & WAKING != 0 {
                return;
            }
            match self.state.compare_exchange(seen, seen | WAKING, Relaxed, Relaxed) {
                Ok(_) => break,
                Err(now) => seen = now,
            }
        }
        self.sequence.fetch_add(1, Relaxed);
        if self.sequence.wake(1) != 0 {
            return;
        }
        let mut now = self.state.load(Relaxed);
        while now / EPOCH == seen / EPOCH {
            let anew = (now / EPOCH).wrapping_add(1).wrapping_mul(EPOCH);
            match self.state.compare_exchange(now, anew, Relaxed, Relaxed) {
                Ok(_) => return self.ring_all(),
                Err(other) => now = other,
            }
        }
    }
}

/// One that a bell counts until this is dropped.
#[derive(Debug)]
pub(super) struct Listener<'a> {
    state: &'a AtomicU64,
    epoch: u64,
}

impl Drop for Listener<'_> {
    fn drop(&mut self) {
        let mut seen = self.state.load(Relaxed);
        loop {
            let ours = seen / EPOCH == self.epoch && seen as u32 != 0;
            let next = (seen & !WAKING) - u64::from(ours);
            match self.state.compare_exchange(seen, next, Relaxed, Relaxed) {
                Ok(_) => break,
                Err(now) => seen = now,
            }
        }
        fence_after_rmw();
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::super::cell::model::Modelled;
    use super::*;
    use crate::sync::{AtomicU32, model};
    use loom::sync::Arc;
    use loom::thread;

    struct Shared {
        items: AtomicU32,
        bell: Bell<Modelled<AtomicU32>>,
    }

    impl Shared {
        fn new() -> Arc<Self> {
            Arc::new(Self {
                items: AtomicU32::new(0).ready(),
                bell: Bell::new(Modelled::<AtomicU32>::new(0)).ready(),
            })
        }

        fn put(&self) {
            self.items.fetch_add(1, Relaxed);
            fence_after_rmw();
            self.bell.ring();
        }

        fn take(&self) {
            loop {
                let (seen, listener) = self.bell.announce();
                let items = self.items.load(Relaxed);
                let has = items != 0
                    && self.items.compare_exchange(items, items - 1, Relaxed, Relaxed).is_ok();
                if has {
                    drop(listener);
                    if self.items.load(Relaxed) != 0 {
                        self.bell.ring();
                    }
                    return;
                }
                if items == 0 {
                    self.bell.sequence().wait(seen, None).unwrap();
                }
            }
        }
    }

    /// One sleeps, one rings.
    #[test]
    fn a_sleeper_is_woken() {
        model(|| {
            let shared = Shared::new();
            let other = shared.clone();
            let taker = thread::spawn(move || other.take());
            shared.put();
            taker.join().unwrap();
        });
    }

    /// Two sleep and two things come, while one wake is on its way: both are woken.
    #[test]
    fn nobody_is_left_asleep() {
        model(|| {
            let shared = Shared::new();
            let takers = [(); 2].map(|()| {
                let shared = shared.clone();
                thread::spawn(move || shared.take())
            });
            shared.put();
            shared.put();
            takers.map(|taker| taker.join().unwrap());
        });
    }

    /// One is woken and takes nothing: the other one, who sleeps, is woken for what came meanwhile.
    #[test]
    fn a_wake_is_passed_on() {
        model(|| {
            let shared = Shared::new();
            let other = shared.clone();
            let taker = thread::spawn(move || other.take());
            let other = shared.clone();
            let passer = thread::spawn(move || {
                let (seen, listener) = other.bell.announce();
                if other.items.load(Relaxed) == 0 {
                    other.bell.sequence().wait(seen, None).unwrap();
                }
                drop(listener);
                if other.items.load(Relaxed) != 0 {
                    other.bell.ring();
                }
            });
            shared.put();
            // A third one is faster.
            let _ = shared.items.compare_exchange(1, 0, Relaxed, Relaxed);
            shared.put();
            taker.join().unwrap();
            shared.put();
            passer.join().unwrap();
        });
    }

    /// One that was counted is dead: the next one that is, is woken.
    #[test]
    fn after_a_death() {
        model(|| {
            let shared = Shared::new();
            core::mem::forget(shared.bell.announce());
            let other = shared.clone();
            let taker = thread::spawn(move || {
                other.take();
                other.take();
            });
            shared.put();
            shared.put();
            taker.join().unwrap();
        });
    }

    /// Closing wakes whoever sleeps, or is about to.
    #[test]
    fn all_are_woken() {
        model(|| {
            let shared = Shared::new();
            let other = shared.clone();
            let sleeper = thread::spawn(move || {
                loop {
                    let (seen, _listener) = other.bell.announce();
                    if other.items.load(Relaxed) != 0 {
                        return;
                    }
                    other.bell.sequence().wait(seen, None).unwrap();
                }
            });
            shared.items.store(1, Relaxed);
            shared.bell.ring_all();
            sleeper.join().unwrap();
        });
    }
}
