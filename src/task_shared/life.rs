//! What readers and the owner of a slot agree on: lives, and quiet moments in them.
//!
//! # Protocol
//!
//! Two counts stand in front of the words of a slot.
//!
//! | `generation` | the slot is |
//! |---|---|
//! | even | free: its words mean nothing |
//! | odd | held, and every word is of this life |
//!
//! | `sequence` | the owner is |
//! |---|---|
//! | even | not writing: the words are of one moment |
//! | odd | writing, or it died while writing |
//!
//! Only the holder of the slot's mutex writes. [`Life::begin`] fills the words while the
//! generation is even and makes it odd with release; [`Life::end`] makes it even. A reader
//! takes the generation, copies, and takes it again. The same odd number twice means that
//! every word is of that life:
//!
//! - none is older, because the first look synchronises with the store of `begin`;
//! - none is younger. A younger word was stored after the fence of the next `begin`, which
//!   comes after this life's `end`; the reader's fence behind the copy pairs with it, so
//!   the second look sees the generation that `end` left, or a later one.
//!
//! [`Life::write`] and the loop in [`Life::read`] do the same with the sequence for single
//! moments of a life: the classical sequence lock over relaxed atomics (Boehm, "Can seqlocks
//! get along with programming language memory models?", 2012).
//!
//! A reader never waits for an owner, who may be stopped or dead in the middle of a write:
//! after a bounded number of tries it takes words of one life but perhaps of two moments,
//! and says so.
//!
//! A count would have to go round, 2^31 lives or writes, between two looks of one reader
//! to be mistaken.

use crate::abi::robust::{OWNER_DIED, TID_MASK};
use crate::sync::{AtomicU32, AtomicU64, Ordering, fence, spin_loop};

/// Looks at the words before a reader gives up on a quiet moment.
#[cfg(not(all(test, loom)))]
const TRIES: u32 = 64;
#[cfg(all(test, loom))]
const TRIES: u32 = 2;

/// The protocol, over borrowed words.
#[derive(Debug, Clone, Copy)]
pub(super) struct Life<'a> {
    pub(super) generation: &'a AtomicU32,
    pub(super) sequence: &'a AtomicU32,
    pub(super) words: &'a [AtomicU64],
}

/// What a reader copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Copied<const N: usize> {
    /// The life that every word is of; odd.
    pub(super) generation: u32,
    /// The words.
    pub(super) words: [u64; N],
    /// Are they of one moment?
    pub(super) quiet: bool,
}

impl Life<'_> {
    /// Begins a life with these words. Only for the holder of a free slot.
    pub(super) fn begin(&self, values: &[u64]) {
        // Pairs with the last fence of a try: who reads a word of this life sees that the
        // life before has ended.
        fence(Ordering::Release);
        for (word, &value) in self.words.iter().zip(values) {
            word.store(value, Ordering::Relaxed);
        }
        // A last owner that died while writing left it odd.
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(sequence.wrapping_add(sequence & 1), Ordering::Relaxed);
        let generation = self.generation.load(Ordering::Relaxed);
        // Pairs with the first fence of a try.
        self.generation.store(generation | 1, Ordering::Release);
    }

    /// Ends the life, if one had begun. Only for the holder of the slot.
    pub(super) fn end(&self) {
        let generation = self.generation.load(Ordering::Relaxed);
        // The order towards the next life is made by its `begin`.
        self.generation.store(generation.wrapping_add(generation & 1), Ordering::Relaxed);
    }

    /// The sequence, for [`write`](Self::write), if the owner is not writing: this could be
    /// a signal handler that interrupted it.
    pub(super) fn quiet(&self) -> Option<u32> {
        let sequence = self.sequence.load(Ordering::Relaxed);
        (sequence & 1 == 0).then_some(sequence)
    }

    /// Writes `values` from word `first` on, as one moment. `false` and nothing written if
    /// the sequence is no longer the given one: a signal handler of the owner has written
    /// since, and what is in `values` may be older.
    pub(super) fn write(&self, sequence: u32, first: usize, values: &[u64]) -> bool {
        // An exchange, because the handler may come here, too.
        let (now, odd) = (&self.sequence, sequence.wrapping_add(1));
        if now.compare_exchange(sequence, odd, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return false;
        }
        // Pairs with the last fence of a try: who reads a word of this write sees the odd
        // count, or a later one.
        fence(Ordering::Release);
        for (word, &value) in self.words[first..].iter().zip(values) {
            word.store(value, Ordering::Relaxed);
        }
        // Pairs with the first fence of a try.
        self.sequence.store(sequence.wrapping_add(2), Ordering::Release);
        true
    }

    /// Copies the words of the life that is on; `None` if the slot is free, or changed
    /// hands meanwhile.
    pub(super) fn read<const N: usize>(&self) -> Option<Copied<N>> {
        // Relaxed loads and fences, not acquire loads: the mapping may be read-only, where Rust
        // allows only relaxed loads. The first fence of a try stands behind both counts.
        let generation = self.generation.load(Ordering::Relaxed);
        if generation & 1 == 0 {
            return None;
        }
        let (mut words, mut quiet) = ([0; N], false);
        for _ in 0..TRIES {
            let before = self.sequence.load(Ordering::Relaxed);
            fence(Ordering::Acquire);
            for (copy, word) in words.iter_mut().zip(self.words) {
                *copy = word.load(Ordering::Relaxed);
            }
            fence(Ordering::Acquire);
            quiet = before & 1 == 0 && self.sequence.load(Ordering::Relaxed) == before;
            if quiet {
                break;
            }
            spin_loop();
        }
        (self.generation.load(Ordering::Relaxed) == generation).then_some(Copied {
            generation,
            words,
            quiet,
        })
    }
}

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

    struct Words {
        generation: AtomicU32,
        sequence: AtomicU32,
        words: [AtomicU64; 3],
    }

    impl Words {
        fn new() -> Self {
            Self {
                generation: AtomicU32::new(0),
                sequence: AtomicU32::new(0),
                words: [const { AtomicU64::new(0) }; 3],
            }
        }
        fn life(&self) -> Life<'_> {
            Life { generation: &self.generation, sequence: &self.sequence, words: &self.words }
        }
    }

    #[test]
    fn a_life() {
        let words = Words::new();
        let life = words.life();
        assert_eq!(life.read::<3>(), None);
        life.begin(&[1, 2, 3]);
        let copied = Copied { generation: 1, words: [1, 2, 3], quiet: true };
        assert_eq!(life.read(), Some(copied));
        assert!(life.write(life.quiet().unwrap(), 1, &[7]));
        assert_eq!(life.read(), Some(Copied { words: [1, 7, 3], ..copied }));
        life.end();
        assert_eq!(life.read::<3>(), None);
        life.end();
        life.begin(&[4, 5, 6]);
        assert_eq!(life.read(), Some(Copied { generation: 3, words: [4, 5, 6], quiet: true }));
    }

    #[test]
    fn death_in_the_middle_of_a_write() {
        let words = Words::new();
        let life = words.life();
        life.begin(&[1, 2, 3]);
        words.sequence.store(1, Ordering::Relaxed);
        words.words[0].store(9, Ordering::Relaxed);
        assert_eq!(life.quiet(), None);
        assert!(!life.write(0, 0, &[5]), "somebody has written since");
        let torn = life.read::<3>().unwrap();
        assert!(!torn.quiet && torn.words == [9, 2, 3]);
        life.end();
        life.begin(&[4, 4, 4]);
        assert!(life.read::<3>().unwrap().quiet && life.write(life.quiet().unwrap(), 0, &[5]));
    }

    #[test]
    fn counts_go_round() {
        let words = Words::new();
        words.generation.store(u32::MAX - 1, Ordering::Relaxed);
        words.sequence.store(u32::MAX - 1, Ordering::Relaxed);
        let life = words.life();
        life.begin(&[1, 1, 1]);
        assert!(life.write(life.quiet().unwrap(), 0, &[2]));
        assert_eq!(words.sequence.load(Ordering::Relaxed), 0);
        assert_eq!(life.read::<3>().unwrap().generation, u32::MAX);
        life.end();
        assert_eq!(life.read::<3>(), None);
    }

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
    use super::*;
    use crate::sync::model;
    use loom::sync::Arc;
    use loom::thread;

    struct Shared {
        owner: AtomicU32,
        generation: AtomicU32,
        sequence: AtomicU32,
        words: [AtomicU64; 2],
    }

    impl Shared {
        fn new() -> Arc<Self> {
            Arc::new(Self {
                owner: AtomicU32::new(0).ready(),
                generation: AtomicU32::new(0).ready(),
                sequence: AtomicU32::new(0).ready(),
                words: [AtomicU64::new(0).ready(), AtomicU64::new(0).ready()],
            })
        }
        fn life(&self) -> Life<'_> {
            Life { generation: &self.generation, sequence: &self.sequence, words: &self.words }
        }
    }

    /// Two lives and a word set without the sequence; a reader has the words of one life,
    /// quiet or not. Fails when the fence of `begin` or either fence of a try is taken out, or
    /// the last store of `begin` is relaxed.
    #[test]
    fn words_are_of_one_life() {
        model(|| {
            let shared = Shared::new();
            let reader = {
                let shared = shared.clone();
                thread::spawn(move || {
                    let Some(copied) = shared.life().read::<2>() else { return };
                    match copied.generation {
                        1 => assert_eq!(copied.words, [1, 1]),
                        3 => assert!(copied.words[0] == 2 && matches!(copied.words[1], 0 | 2)),
                        other => panic!("generation {other}"),
                    }
                })
            };
            let life = shared.life();
            life.begin(&[1, 1]);
            life.end();
            life.begin(&[2, 0]);
            shared.words[1].store(2, Ordering::Relaxed);
            reader.join().unwrap();
        });
    }

    /// A quiet copy is of one moment. Fails when the fence of `write` or either fence of a try
    /// is taken out, or the last store of `write` is relaxed.
    #[test]
    fn a_quiet_copy_is_not_torn() {
        model(|| {
            let shared = Shared::new();
            shared.life().begin(&[0, 0]);
            let owner = {
                let shared = shared.clone();
                thread::spawn(move || {
                    assert!(shared.life().write(shared.life().quiet().unwrap(), 0, &[1, 1]));
                    assert!(shared.life().write(shared.life().quiet().unwrap(), 0, &[2, 2]));
                })
            };
            let copied = shared.life().read::<2>().unwrap();
            assert!(!copied.quiet || copied.words[0] == copied.words[1], "{copied:?}");
            owner.join().unwrap();
        });
    }

    /// A slot changes hands between two threads with the same id. Whoever found the first
    /// gone never finds it back. Fails when the fence of `is_held` is taken out.
    #[test]
    fn the_dead_stay_dead() {
        model(|| {
            let shared = Shared::new();
            // What libc's mutex does; the first thread has locked it.
            shared.owner.store(5, Ordering::Relaxed);
            shared.life().begin(&[0, 0]);
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
                        shared.life().begin(&[0, 0]);
                    }
                })
            };
            let is_first = || is_held(&shared.owner, &shared.generation, 5, 1);
            assert!(is_first() || !is_first());
            first.join().unwrap();
            second.join().unwrap();
        });
    }
}
