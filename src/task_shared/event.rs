//! The event word: how a reader waits for births and deaths.
//!
//! # Protocol
//!
//! A reader of another process maps the table read-only, so it cannot count itself. It says
//! that it waits in a file of its own, which it may write: the *flag*. The word that it sleeps
//! on is in the header, where only the process writes.
//!
//! ```text
//! reader                                   whoever takes or gives back a slot
//!   seen = event                             event += 1
//!   look at the slots                        fence
//!   flag = 1                                 if flag == 0: done
//!   fence                                    flag = 0
//!   sleep while event == seen                event += 1
//!                                            wake all that sleep on event
//! ```
//!
//! Each side writes one word and then reads the other's, with a sequentially consistent fence
//! between: not both miss. The flag is taken down *before* the second step of the event. So a
//! reader whose flag is taken down has read an event from before that step: either it
//! sleeps already and is woken, or the kernel finds another number and does not let it sleep.
//! Whoever comes later sets a flag that stays.
//!
//! A flag that a reader leaves behind, because it was killed, costs one wake. A reader that
//! takes down the flags of others, or cannot set its own, makes itself or others sleep on: so
//! a wait has a deadline, and looks again.

use crate::sync::{AtomicU32, Ordering, fence};

/// The two words.
#[derive(Debug, Clone, Copy)]
pub(super) struct Event<'a> {
    /// In the header: advanced by each birth and each death.
    pub(super) word: &'a AtomicU32,
    /// In the file that readers may write.
    pub(super) flag: &'a AtomicU32,
}

impl Event<'_> {
    /// Something has happened; `wake` wakes all that sleep on the word.
    pub(super) fn announce(self, wake: impl FnOnce()) {
        // Release: whoever has seen the number sees what happened.
        self.word.fetch_add(1, Ordering::Release);
        // Pairs with the fence of `watch`.
        fence(Ordering::SeqCst);
        if self.flag.load(Ordering::Relaxed) != 0 {
            self.flag.swap(0, Ordering::AcqRel);
            self.word.fetch_add(1, Ordering::Release);
            wake();
        }
    }

    /// Says that the caller is about to sleep on the word, while it holds a number that the
    /// caller has read before.
    pub(super) fn watch(self) {
        // A swap, which carries on the chain of those that have taken it down.
        self.flag.swap(1, Ordering::AcqRel);
        // Pairs with the fence of `announce`.
        fence(Ordering::SeqCst);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use core::cell::Cell;

    #[test]
    fn a_wake_only_where_somebody_waits() {
        let (word, flag, wakes) = (AtomicU32::new(0), AtomicU32::new(0), Cell::new(0));
        let event = Event { word: &word, flag: &flag };
        let announce = || event.announce(|| wakes.set(wakes.get() + 1));
        announce();
        assert_eq!((word.load(Ordering::Relaxed), wakes.get()), (1, 0));
        event.watch();
        announce();
        announce();
        assert_eq!((word.load(Ordering::Relaxed), wakes.get()), (4, 1));
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::sync::model;
    use loom::sync::Arc;
    use loom::sync::Mutex;
    use loom::thread;

    /// The kernel's queue: the compare and the sleep are one step against a wake.
    struct Shared {
        word: AtomicU32,
        flag: AtomicU32,
        asleep: Mutex<bool>,
        /// What happened, to be seen by who is awake.
        births: AtomicU32,
    }

    impl Shared {
        fn event(&self) -> Event<'_> {
            Event { word: &self.word, flag: &self.flag }
        }
        fn announce(&self) {
            self.births.fetch_add(1, Ordering::Relaxed);
            self.event().announce(|| *self.asleep.lock().unwrap() = false);
        }
        /// One round of a reader that has seen `seen`.
        fn sleep(&self, seen: u32) {
            self.event().watch();
            let mut asleep = self.asleep.lock().unwrap();
            *asleep = self.word.load(Ordering::Relaxed) == seen;
        }
    }

    fn shared() -> Arc<Shared> {
        Arc::new(Shared {
            word: AtomicU32::new(0).ready(),
            flag: AtomicU32::new(0).ready(),
            asleep: Mutex::new(false),
            births: AtomicU32::new(0).ready(),
        })
    }

    /// Nobody sleeps through a birth. Fails when either fence is taken out.
    #[test]
    fn no_birth_is_slept_through() {
        model(|| {
            let shared = shared();
            let writer = {
                let shared = shared.clone();
                thread::spawn(move || shared.announce())
            };
            let seen = shared.word.load(Ordering::Acquire);
            shared.sleep(seen);
            writer.join().unwrap();
            assert!(!*shared.asleep.lock().unwrap() || seen != 0);
        });
    }

    /// Two births, and a reader that goes to sleep after each number: it sleeps on the last
    /// only. Fails when the second step of the event is taken out.
    #[test]
    fn no_birth_of_two_is_slept_through() {
        model(|| {
            let shared = shared();
            let announce = |shared: Arc<Shared>| thread::spawn(move || shared.announce());
            let first = announce(shared.clone());
            // A thread of its own: its steps between those of the first are what counts.
            let reader = {
                let shared = shared.clone();
                thread::spawn(move || {
                    let seen = shared.word.load(Ordering::Acquire);
                    shared.sleep(seen);
                    seen
                })
            };
            let second = announce(shared.clone());
            first.join().unwrap();
            let seen = reader.join().unwrap();
            second.join().unwrap();
            let last = shared.word.load(Ordering::Relaxed);
            assert!(!*shared.asleep.lock().unwrap() || seen == last, "{seen} {last}");
        });
    }

    /// Who sees the number sees the birth. Fails when the first step is relaxed.
    #[test]
    fn the_number_brings_the_birth() {
        model(|| {
            let shared = shared();
            let writer = {
                let shared = shared.clone();
                thread::spawn(move || shared.announce())
            };
            if shared.word.load(Ordering::Acquire) != 0 {
                assert_eq!(shared.births.load(Ordering::Relaxed), 1);
            }
            writer.join().unwrap();
        });
    }
}
