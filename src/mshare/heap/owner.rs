//! Who has a slot: a thread, told apart from all others by two words.
//!
//! | bits of the owner's word | meaning |
//! |---|---|
//! | 0..22 | process id |
//! | 22..44 | thread id |
//! | 44..63 | the namespace of these numbers |
//! | 63 | set |
//!
//! The other word says when the thread began, so that a later thread of the same numbers is not
//! taken for it, with a few bits of the owner's word: as long as they differ, the owner has not
//! written it yet. A thread in another namespace of process ids cannot be seen from here: it
//! counts as alive, and its slot is left to those who see it.

use crate::sys::process::namespaces;
use crate::sys::task::{Life, life};
use crate::sys::thread;

const ID: u32 = 22;
const ID_MASK: u64 = (1 << ID) - 1;
const SPACE: u64 = (1 << 19) - 1;
const SET: u64 = 1 << 63;

/// A thread, as a slot names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner(pub(super) u64);

impl Owner {
    /// The calling thread.
    pub(super) fn current() -> Self {
        let (pid, tid) = thread::ids();
        let space = namespaces()[0] & SPACE;
        Self(SET | space << (2 * ID) | (u64::from(tid) & ID_MASK) << ID | u64::from(pid) & ID_MASK)
    }

    /// Process and thread.
    fn ids(self) -> (u32, u32) {
        ((self.0 & ID_MASK) as u32, (self.0 >> ID & ID_MASK) as u32)
    }

    /// Same process, as far as this word says?
    pub(super) fn is_neighbour(self, other: Self) -> bool {
        let ours = ID_MASK | SPACE << (2 * ID);
        self.0 & ours == other.0 & ours
    }

    /// The word that says when it began.
    pub(super) fn began(self) -> u64 {
        let (pid, tid) = self.ids();
        match life(pid, tid) {
            Life::Alive(start) => start << 16 | self.mark(),
            Life::Gone => 0,
        }
    }

    /// Bits that tell whose start a word is.
    const fn mark(self) -> u64 {
        (self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) | 1
    }

    /// Has it ended, seen by `me`? `began` is what it wrote. A word that no thread writes
    /// has nobody behind it.
    pub(super) fn is_gone(self, began: u64, me: Self) -> bool {
        if self.0 & SET == 0 {
            return true;
        }
        if self.0 >> (2 * ID) != me.0 >> (2 * ID) {
            return false;
        }
        let (pid, tid) = self.ids();
        match life(pid, tid) {
            Life::Gone => true,
            Life::Alive(start) => {
                let is_known = began & 0xffff == self.mark() && began >> 16 != 0 && start != 0;
                is_known && began >> 16 != start & (u64::MAX >> 16)
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_living_and_the_gone() {
        let me = Owner::current();
        assert!(!me.is_gone(me.began(), me) && !me.is_gone(0, me));
        assert_eq!(me.ids().0, std::process::id());
        // The same numbers, later.
        assert!(me.is_gone(me.began() - (1 << 16), me));
        // A start that another owner wrote says nothing.
        assert!(!me.is_gone((me.began() ^ 0xff00) - (1 << 16), me));
        let elsewhere = Owner(me.0 ^ 1 << 50);
        assert!(!Owner(elsewhere.0 | ID_MASK).is_gone(0, me));
        assert!(Owner(me.0 | ID_MASK).is_gone(0, me) && Owner(77).is_gone(0, me));
        let other = std::thread::spawn(Owner::current).join().unwrap();
        assert!(other != me && other.is_neighbour(me));
    }
}
