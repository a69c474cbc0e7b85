//! The lock of a heap's pages: a word that names its holder, so that a dead one is noticed.
//!
//! | bits | meaning |
//! |---|---|
//! | 0..12 | slot of the holder, plus 1; 0 when free |
//! | 12 | somebody may sleep on the word |
//! | 13..32 | how often it was taken, so that one holding is not taken for another |
//!
//! # Protocol
//!
//! Taking is an acquire, releasing a release. Who finds it held sleeps on the word for a moment at a
//! time, and asks then whether the holder lives; if not, the word is exchanged, from exactly what
//! was seen, to its own name, and what the dead holder had begun is repaired before
//! anything else. Only that exchange, of which one succeeds, takes a lock over.
//!
//! A holder that lives and does not go on, because it is stopped, is waited for as long as
//! [`PATIENCE`]; what a hostile participant writes here costs as much.

use crate::sync::{AtomicU32, Ordering, spin_loop};

const HOLDER: u32 = (1 << 12) - 1;
const SLEEPERS: u32 = 1 << 12;
const COUNT: u32 = 1 << 13;

/// Looks at the word before the first sleep.
const SPINS: u32 = 64;
/// Looks until a taker gives up, whatever it saw: seconds of being overtaken.
const LOOKS: u32 = 2_000_000;
/// Milliseconds of one sleep.
pub(super) const NAP_MS: u64 = 10;
/// Sleeps without any change of holder until a taker gives up: 2 s, less in unit tests.
pub(super) const PATIENCE: u32 = if cfg!(test) { 20 } else { 200 };

/// The algorithm, over a borrowed word.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lock<'a>(pub(super) &'a AtomicU32);

/// How it was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// From nobody.
    Free,
    /// From a holder that died in it: repair first.
    Over,
}

/// What a taker needs of its surroundings.
pub(super) trait Neighbours {
    /// Will this slot never release it?
    fn is_dead(&self, slot: usize) -> bool;
    /// Sleeps for a moment while the word is this.
    fn sleep(&self, word: &AtomicU32, seen: u32);
    /// Wakes a sleeper.
    fn wake(&self, word: &AtomicU32);
}

impl Lock<'_> {
    /// Takes it for `slot`; `None` if a living holder does not let go.
    pub(super) fn take(&self, slot: usize, around: &impl Neighbours) -> Option<Taken> {
        let me = slot as u32 + 1;
        let mut seen = self.0.load(Ordering::Relaxed);
        let (mut looks, mut naps, mut waited) = (0_u32, 0, 0);
        let mut holding = seen & !SLEEPERS;
        loop {
            // Whoever changes the word all the time for nothing is not waited for either.
            looks += 1;
            if looks > LOOKS {
                return None;
            }
            if seen & HOLDER == 0 {
                // Who has slept cannot know that nobody else does.
                let next = (seen & !(HOLDER | SLEEPERS)).wrapping_add(COUNT) | waited | me;
                match self.change(seen, next | seen & SLEEPERS) {
                    Ok(()) => return Some(Taken::Free),
                    Err(now) => seen = now,
                }
                continue;
            }
            if seen & !SLEEPERS != holding {
                (holding, naps) = (seen & !SLEEPERS, 0);
            }
            if looks < SPINS {
                spin_loop();
                seen = self.0.load(Ordering::Relaxed);
                continue;
            }
            if seen & SLEEPERS == 0 {
                if let Err(now) = self.change(seen, seen | SLEEPERS) {
                    seen = now;
                    continue;
                }
                seen |= SLEEPERS;
            }
            waited = SLEEPERS;
            around.sleep(self.0, seen);
            let now = self.0.load(Ordering::Relaxed);
            if now == seen {
                naps += 1;
                if around.is_dead((seen & HOLDER) as usize - 1) {
                    let next = (seen & !HOLDER).wrapping_add(COUNT) | me;
                    match self.change(seen, next) {
                        Ok(()) => return Some(Taken::Over),
                        Err(now) => seen = now,
                    }
                    continue;
                }
                if naps > PATIENCE {
                    return None;
                }
            }
            seen = now;
        }
    }

    /// Takes it for `slot` if `dead`, whose slot is the caller's now, held it.
    pub(super) fn inherit(&self, slot: usize, dead: usize) -> bool {
        let seen = self.0.load(Ordering::Relaxed);
        let next = (seen & !HOLDER).wrapping_add(COUNT) | (slot as u32 + 1);
        seen & HOLDER == dead as u32 + 1 && self.change(seen, next).is_ok()
    }

    fn change(&self, seen: u32, next: u32) -> Result<(), u32> {
        self.0.compare_exchange(seen, next, Ordering::Acquire, Ordering::Relaxed).map(drop)
    }

    /// Releases it.
    pub(super) fn release(&self, around: &impl Neighbours) {
        let seen = self.0.load(Ordering::Relaxed);
        let before = self.0.swap(seen & !(HOLDER | SLEEPERS), Ordering::Release);
        if before & SLEEPERS != 0 {
            around.wake(self.0);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use core::cell::Cell;

    struct Fake {
        dead: Option<usize>,
        naps: Cell<u32>,
    }

    impl Neighbours for Fake {
        fn is_dead(&self, slot: usize) -> bool {
            self.dead == Some(slot)
        }
        fn sleep(&self, _: &AtomicU32, _: u32) {
            self.naps.set(self.naps.get() + 1);
        }
        fn wake(&self, _: &AtomicU32) {}
    }

    #[test]
    fn from_nobody_from_the_dead_and_not_from_the_stopped() {
        let word = AtomicU32::new(0);
        let lock = Lock(&word);
        let fake = |dead| Fake { dead, naps: Cell::new(0) };
        assert_eq!(lock.take(7, &fake(None)), Some(Taken::Free));
        let stopped = fake(None);
        assert_eq!(lock.take(8, &stopped), None);
        assert_eq!(stopped.naps.get(), PATIENCE + 1);
        assert_eq!(lock.take(8, &fake(Some(7))), Some(Taken::Over));
        assert!(!lock.inherit(9, 7) && lock.inherit(9, 8));
        lock.release(&fake(None));
        assert_eq!(lock.take(0, &fake(None)), Some(Taken::Free));
    }

    #[test]
    fn any_word_ends() {
        for word in [u32::MAX, HOLDER, SLEEPERS, 5 | SLEEPERS, COUNT - 1] {
            let word = AtomicU32::new(word);
            let fake = Fake { dead: None, naps: Cell::new(0) };
            let _ = Lock(&word).take(1, &fake);
        }
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::sync::model;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    struct Shared {
        word: AtomicU32,
        pages: UnsafeCell<u32>,
    }
    // SAFETY: the holder's alone: loom checks.
    unsafe impl Sync for Shared {}

    struct Living(Option<usize>);

    impl Neighbours for Living {
        fn is_dead(&self, slot: usize) -> bool {
            self.0 == Some(slot)
        }
        fn sleep(&self, _: &AtomicU32, _: u32) {
            thread::yield_now();
        }
        fn wake(&self, _: &AtomicU32) {}
    }

    fn shared(word: u32) -> Arc<Shared> {
        Arc::new(Shared { word: AtomicU32::new(word).ready(), pages: UnsafeCell::new(0) })
    }

    fn turn(shared: &Shared, slot: usize, around: &Living) {
        let lock = Lock(&shared.word);
        if lock.take(slot, around).is_some() {
            shared.pages.with_mut(|pages| unsafe { *pages += 1 });
            lock.release(around);
        }
    }

    /// Two take turns. Fails when taking is no acquire or releasing no release.
    #[test]
    fn one_at_a_time() {
        model(|| {
            let shared = shared(0);
            let other = thread::spawn({
                let shared = shared.clone();
                move || turn(&shared, 1, &Living(None))
            });
            turn(&shared, 2, &Living(None));
            other.join().unwrap();
        });
    }

    /// Two find a dead holder: one takes over, the other waits for that one. Fails when the
    /// exchange is a load and a store.
    #[test]
    fn one_heir() {
        model(|| {
            let shared = shared(8);
            let other = thread::spawn({
                let shared = shared.clone();
                move || turn(&shared, 1, &Living(Some(7)))
            });
            turn(&shared, 2, &Living(Some(7)));
            other.join().unwrap();
            assert_eq!(shared.pages.with(|pages| unsafe { *pages }), 2);
        });
    }
}
