//! What readers and the owner of a slot agree on: lives, and quiet moments in them.
//!
//! # Protocol
//!
//! Two counts stand in front of the words of a slot.
//!
//! | `generation` | the slot is |
//! |---|---|
//! | 4k | free, and the next life is about to begin: its words mean nothing |
//! | 4k + 1 | held, and every word is of this life |
//! | 4k + 2 | free, and every word is still of the life that ended |
//!
//! | `sequence` | the owner is |
//! |---|---|
//! | even | not writing: the words are of one moment |
//! | odd | writing, or it died while writing |
//!
//! Only the holder of the slot's mutex writes. [`Life::begin`] makes the generation a
//! multiple of 4, fills the words, and makes it odd with release; [`Life::end`] makes it
//! even. A reader takes the generation, copies, and takes it again. The same odd number
//! twice, or an odd number and then the next, means that every word is of that life:
//!
//! - none is older, because the first look synchronises with the last store of `begin`;
//! - none is younger. A younger word was stored after the fence of the next `begin`, which
//!   comes after its multiple of 4; the reader's fence behind the copy pairs with it, so
//!   the second look sees that, or something later.
//!
//! [`Life::write`] and the loop in [`Life::copy`] do the same with the sequence for single
//! moments of a life: the classical sequence lock over relaxed atomics (Boehm, "Can seqlocks
//! get along with programming language memory models?", 2012).
//!
//! A reader never waits for an owner, who may be stopped or dead in the middle of a write:
//! after a bounded number of tries it takes words of one life but perhaps of two moments,
//! and says so.
//!
//! A count would have to go round, 2^30 lives or 2^31 writes, between two looks of one reader
//! to be mistaken.

use super::fault;
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
#[cfg(all(test, not(loom)))]
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
    /// Begins a life with these words, and with what `fill` stores. Only for the holder of a
    /// free slot.
    pub(super) fn begin(&self, values: &[u64], fill: impl FnOnce()) {
        let generation = (self.generation.load(Ordering::Relaxed) | 3).wrapping_add(1);
        self.generation.store(generation, Ordering::Relaxed);
        // Pairs with the last fence of a try: who reads a word of this life sees that the
        // words of the life before are gone.
        fence(Ordering::Release);
        fault::step();
        fill();
        for (word, &value) in self.words.iter().zip(values) {
            word.store(value, Ordering::Relaxed);
        }
        // A last owner that died while writing left it odd.
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(sequence.wrapping_add(sequence & 1), Ordering::Relaxed);
        fault::step();
        // Pairs with the first fence of a try.
        self.generation.store(generation | 1, Ordering::Release);
        fault::step();
    }

    /// Ends the life, if one had begun. Only for the holder of the slot.
    pub(super) fn end(&self) {
        let generation = self.generation.load(Ordering::Relaxed);
        // The order towards the next life is made by its `begin`.
        fault::step();
        self.generation.store(generation.wrapping_add(generation & 1), Ordering::Relaxed);
        fault::step();
    }

    /// The sequence, for [`write`](Self::write), if the owner is not writing: this could be
    /// a signal handler that interrupted it.
    #[inline]
    pub(super) fn quiet(&self) -> Option<u32> {
        let sequence = self.sequence.load(Ordering::Relaxed);
        (sequence & 1 == 0).then_some(sequence)
    }

    /// Writes `values` from word `first` on, as one moment. `false` and nothing written if
    /// the sequence is no longer the given one: a signal handler of the owner has written
    /// since, and what is in `values` may be older.
    pub(super) fn write(&self, sequence: u32, first: usize, values: &[u64]) -> bool {
        // An exchange, because the handler may come here, too, and the sampler. Acquire: the
        // words of the other writer are there, and ours come after them.
        let (now, odd) = (&self.sequence, sequence.wrapping_add(1));
        if now.compare_exchange(sequence, odd, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return false;
        }
        // Pairs with the last fence of a try: who reads a word of this write sees the odd
        // count, or a later one.
        fence(Ordering::Release);
        for (word, &value) in self.words[first..].iter().zip(values) {
            fault::step();
            word.store(value, Ordering::Relaxed);
        }
        fault::step();
        // Pairs with the first fence of a try.
        self.sequence.store(sequence.wrapping_add(2), Ordering::Release);
        true
    }

    /// Writes `values` from word `first` on, as one moment, where nobody but the owner ever
    /// writes: no locked instruction. `false` and nothing written in a signal handler that
    /// interrupted another such write.
    #[inline]
    pub(super) fn write_alone(&self, first: usize, values: &[u64]) -> bool {
        if self.quiet().is_none() {
            return false;
        }
        // A handler between the look and this has finished its write, and left the count even.
        // One that comes behind it finds it odd.
        let odd = increment(self.sequence);
        // Pairs with the last fence of a try, as in `write`.
        fence(Ordering::Release);
        for (word, &value) in self.words[first..].iter().zip(values) {
            fault::step();
            word.store(value, Ordering::Relaxed);
        }
        fault::step();
        // Pairs with the first fence of a try.
        self.sequence.store(odd.wrapping_add(1), Ordering::Release);
        true
    }

    /// Copies the words of the life that is on; `None` if the slot is free, or the words of
    /// another life came meanwhile.
    #[cfg(all(test, not(loom)))]
    fn read<const N: usize>(&self) -> Option<Copied<N>> {
        let (generation, (words, quiet)) = self.during(|| self.copy())?;
        Some(Copied { generation, words, quiet })
    }

    /// What `look` finds, all of one life, and that life; `None` if the slot is free, or the
    /// words of another life came meanwhile.
    #[inline]
    pub(super) fn during<T>(&self, look: impl FnOnce() -> T) -> Option<(u32, T)> {
        // Relaxed loads and fences, not acquire loads: the mapping may be read-only, where Rust
        // allows only relaxed loads.
        let generation = self.generation.load(Ordering::Relaxed);
        if generation & 1 == 0 {
            return None;
        }
        // Pairs with the last store of `begin`.
        fence(Ordering::Acquire);
        let found = look();
        self.is_of(generation).then_some((generation, found))
    }

    /// Is what was read before this of the life `generation`, which may have ended since?
    #[inline]
    pub(super) fn is_of(&self, generation: u32) -> bool {
        // Pairs with the fence of `begin`.
        fence(Ordering::Acquire);
        self.generation.load(Ordering::Relaxed).wrapping_sub(generation) <= 1
    }

    /// Copies the words; are they of one moment? Of one life they are inside of
    /// [`during`](Self::during).
    #[inline]
    pub(super) fn copy<const N: usize>(&self) -> ([u64; N], bool) {
        let mut words = [0; N];
        let quiet = self.copy_into(&mut words);
        (words, quiet)
    }

    /// The same to where the caller says.
    #[inline]
    pub(super) fn copy_into(&self, words: &mut [u64]) -> bool {
        self.copy_once(words) || self.copy_again(words)
    }

    /// The tries behind the first.
    #[cold]
    fn copy_again(&self, words: &mut [u64]) -> bool {
        for _ in 1..TRIES {
            spin_loop();
            if self.copy_once(words) {
                return true;
            }
        }
        false
    }

    /// One try.
    #[inline]
    fn copy_once(&self, words: &mut [u64]) -> bool {
        let before = self.sequence.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        for (copy, word) in words.iter_mut().zip(self.words) {
            *copy = word.load(Ordering::Relaxed);
        }
        fence(Ordering::Acquire);
        before & 1 == 0 && self.sequence.load(Ordering::Relaxed) == before
    }
}

/// Adds 1 in one instruction, which no signal handler of this thread interrupts, and answers
/// with the sum. Other threads only read.
#[cfg(not(all(test, loom)))]
#[inline]
fn increment(word: &AtomicU32) -> u32 {
    // SAFETY: an atomic word that lives; the caller is the only one who writes it.
    unsafe { crate::arch::fetch_add_alone(word.as_ptr(), 1) }.wrapping_add(1)
}

/// The same in a model, which has no signal handlers.
#[cfg(all(test, loom))]
fn increment(word: &AtomicU32) -> u32 {
    let sum = word.load(Ordering::Relaxed).wrapping_add(1);
    word.store(sum, Ordering::Relaxed);
    sum
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
        life.begin(&[1, 2, 3], || {});
        let copied = Copied { generation: 5, words: [1, 2, 3], quiet: true };
        assert_eq!(life.read(), Some(copied));
        assert!(life.write_alone(1, &[8]) && life.write(life.quiet().unwrap(), 1, &[7]));
        assert_eq!(life.read(), Some(Copied { words: [1, 7, 3], ..copied }));
        life.end();
        assert_eq!(life.read::<3>(), None);
        life.end();
        life.begin(&[4, 5, 6], || {});
        assert_eq!(life.read(), Some(Copied { generation: 9, words: [4, 5, 6], quiet: true }));
    }

    #[test]
    fn death_in_the_middle_of_a_write() {
        let words = Words::new();
        let life = words.life();
        life.begin(&[1, 2, 3], || {});
        words.sequence.store(1, Ordering::Relaxed);
        words.words[0].store(9, Ordering::Relaxed);
        assert_eq!(life.quiet(), None);
        assert!(!life.write(0, 0, &[5]) && !life.write_alone(0, &[5]), "somebody is writing");
        let torn = life.read::<3>().unwrap();
        assert!(!torn.quiet && torn.words == [9, 2, 3]);
        life.end();
        life.begin(&[4, 4, 4], || {});
        assert!(life.read::<3>().unwrap().quiet && life.write(life.quiet().unwrap(), 0, &[5]));
    }

    #[test]
    fn counts_go_round() {
        let words = Words::new();
        words.generation.store(u32::MAX - 5, Ordering::Relaxed);
        words.sequence.store(u32::MAX - 1, Ordering::Relaxed);
        let life = words.life();
        life.begin(&[1, 1, 1], || {});
        assert!(life.write(life.quiet().unwrap(), 0, &[2]));
        assert_eq!(words.sequence.load(Ordering::Relaxed), 0);
        assert_eq!(life.read::<3>().unwrap().generation, u32::MAX - 2);
        life.end();
        assert_eq!((life.read::<3>(), life.is_of(u32::MAX - 2)), (None, true));
        life.begin(&[1, 1, 1], || {});
        assert_eq!((life.read::<3>().unwrap().generation, life.is_of(u32::MAX - 2)), (1, false));
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::sync::model;
    use loom::sync::Arc;
    use loom::thread;

    struct Shared {
        generation: AtomicU32,
        sequence: AtomicU32,
        words: [AtomicU64; 2],
        /// What belongs to the life and not to a sequence.
        label: AtomicU32,
    }

    impl Shared {
        fn new() -> Arc<Self> {
            Arc::new(Self {
                label: AtomicU32::new(0).ready(),
                generation: AtomicU32::new(0).ready(),
                sequence: AtomicU32::new(0).ready(),
                words: [AtomicU64::new(0).ready(), AtomicU64::new(0).ready()],
            })
        }
        fn life(&self) -> Life<'_> {
            Life { generation: &self.generation, sequence: &self.sequence, words: &self.words }
        }
    }

    /// Two lives, a word set without the sequence, and a label; a reader has the words of one
    /// life, quiet or not. Fails when the fence of `begin` or the last fence of a try is taken
    /// out, or the last store of `begin` is relaxed.
    #[test]
    fn words_are_of_one_life() {
        model(|| {
            let shared = Shared::new();
            let reader = {
                let shared = shared.clone();
                thread::spawn(move || match shared.life().during(|| shared.life().copy::<2>()) {
                    None => {}
                    Some((5, (words, _))) => assert_eq!(words, [1, 1]),
                    Some((9, (words, _))) => {
                        assert!(words[0] == 2 && matches!(words[1], 0 | 2));
                    }
                    Some((other, _)) => panic!("generation {other}"),
                })
            };
            let life = shared.life();
            life.begin(&[1, 1], || {});
            life.end();
            life.begin(&[2, 0], || {});
            shared.words[1].store(2, Ordering::Relaxed);
            reader.join().unwrap();
        });
    }

    /// What lies beside the words is of the same life. Fails when the fence of `during` or
    /// that of `is_of` is taken out.
    #[test]
    fn the_label_is_of_the_life() {
        model(|| {
            let shared = Shared::new();
            let reader = {
                let shared = shared.clone();
                thread::spawn(move || {
                    let label = || shared.label.load(Ordering::Relaxed);
                    if let Some((life, label)) = shared.life().during(label) {
                        assert_eq!(label, life);
                    }
                })
            };
            let life = shared.life();
            for n in [5, 9] {
                life.begin(&[0, 0], || shared.label.store(n, Ordering::Relaxed));
                life.end();
            }
            reader.join().unwrap();
        });
    }

    /// The same for the owner's writes without a locked instruction. Fails when the fence of
    /// `write_alone` is taken out, or its last store is relaxed.
    #[test]
    fn a_quiet_copy_is_not_torn_by_the_owner_alone() {
        model(|| {
            let shared = Shared::new();
            shared.life().begin(&[0, 0], || {});
            let owner = {
                let shared = shared.clone();
                thread::spawn(move || {
                    assert!(shared.life().write_alone(0, &[1, 1]));
                    assert!(shared.life().write_alone(0, &[2, 2]));
                })
            };
            let (words, quiet) = shared.life().copy::<2>();
            assert!(!quiet || words[0] == words[1], "{words:?}");
            owner.join().unwrap();
        });
    }

    /// A quiet copy is of one moment. Fails when the fence of `write` or either fence of a try
    /// is taken out, or the last store of `write` is relaxed.
    #[test]
    fn a_quiet_copy_is_not_torn() {
        model(|| {
            let shared = Shared::new();
            shared.life().begin(&[0, 0], || {});
            let owner = {
                let shared = shared.clone();
                thread::spawn(move || {
                    assert!(shared.life().write(shared.life().quiet().unwrap(), 0, &[1, 1]));
                    assert!(shared.life().write(shared.life().quiet().unwrap(), 0, &[2, 2]));
                })
            };
            let (words, quiet) = shared.life().copy::<2>();
            assert!(!quiet || words[0] == words[1], "{words:?}");
            owner.join().unwrap();
        });
    }
}
