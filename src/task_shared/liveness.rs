//! Who holds a slot, and still lives: what a reader sees of the owner's mutex.

use crate::abi::robust::{OWNER_DIED, TID_MASK};
use crate::sync::{AtomicU32, Ordering, fence};

/// Does the thread `tid` still hold the slot, in the life `generation`? Once it is `false`
/// it stays so.
///
/// The word is that of a robust mutex: the owner's id, or [`OWNER_DIED`] put there by the
/// kernel. It alone could be that of a later thread with the same id. Between two owners
/// the mutex was unlocked, after `end`: a reader that sees the later lock sees that too.
pub(super) fn is_held(owner: &AtomicU32, generation: &AtomicU32, tid: u32, life: u32) -> bool {
    let word = owner.load(Ordering::Relaxed);
    // Pairs with the unlock, whose release sequence the next lock carries on.
    fence(Ordering::Acquire);
    tid != 0
        && word & OWNER_DIED == 0
        && word & TID_MASK == tid
        && generation.load(Ordering::Relaxed) == life
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn holding() {
        let word = |value| AtomicU32::new(value);
        assert!(is_held(&word(5), &word(3), 5, 3));
        assert!(is_held(&word(5 | 1 << 31), &word(3), 5, 3), "with waiters");
        assert!(!is_held(&word(5 | OWNER_DIED), &word(3), 5, 3));
        assert!(!is_held(&word(6), &word(3), 5, 3));
        assert!(!is_held(&word(5), &word(4), 5, 3));
        assert!(!is_held(&word(0), &word(3), 0, 3));
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::super::life::Life;
    use super::*;
    use crate::sync::model;
    use loom::sync::Arc;
    use loom::thread;

    struct Shared {
        owner: AtomicU32,
        generation: AtomicU32,
        sequence: AtomicU32,
    }

    impl Shared {
        fn life(&self) -> Life<'_> {
            Life { generation: &self.generation, sequence: &self.sequence, words: &[] }
        }
    }

    /// A slot changes hands between two threads with the same id. Whoever found the first
    /// gone never finds it back. Fails when the fence of `is_held` is taken out.
    #[test]
    fn the_dead_stay_dead() {
        model(|| {
            let shared = Arc::new(Shared {
                owner: AtomicU32::new(0).ready(),
                generation: AtomicU32::new(0).ready(),
                sequence: AtomicU32::new(0).ready(),
            });
            // What libc's mutex does; the first thread has locked it.
            shared.owner.store(5, Ordering::Relaxed);
            shared.life().begin(&[], || {});
            let first = {
                let shared = shared.clone();
                thread::spawn(move || {
                    shared.life().end();
                    shared.owner.store(0, Ordering::Release);
                })
            };
            let second = {
                let shared = shared.clone();
                thread::spawn(move || {
                    let (lock, unlocked) = (Ordering::Acquire, Ordering::Relaxed);
                    if shared.owner.compare_exchange(0, 5, lock, unlocked).is_ok() {
                        shared.life().begin(&[], || {});
                    }
                })
            };
            let is_first = || is_held(&shared.owner, &shared.generation, 5, 5);
            assert!(is_first() || !is_first());
            first.join().unwrap();
            second.join().unwrap();
        });
    }
}
