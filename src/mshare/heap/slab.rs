//! A slab: blocks of one size, with a bitmap of those that are taken.
//!
//! # Protocol
//!
//! Only the holder of a slab (see [`super::state`]) sets bits, a word's free ones at once; anybody
//! clears one by one. A set is an acquire, a clear a release: whoever gets a block sees all that
//! its last owner did. What the holder has set and not yet handed out is in the mask of its hand,
//! which is written *before* the bits are set and changed by plain stores: so each block is
//! handed out by one store, and when the holder dies, its heir clears the bits of the mask.
//! If they had not been set yet, clearing them changes nothing, because nobody else sets them.
//!
//! An idle slab with room is marked in [`super::room`]. Two make it so: a holder that lets go, and
//! who frees the first block of a full word (or the last of a word, because an empty slab is
//! given back). Each writes one word and then reads the other's, with a sequentially
//! consistent fence between: not both can miss that the slab is idle and has room.

use super::class;
use super::state::State;
use crate::sync::{AtomicU64, Ordering, fence};

/// The algorithm, over borrowed words.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slab<'a> {
    pub(super) class: usize,
    pub(super) state: &'a AtomicU64,
    pub(super) bits: &'a [AtomicU64],
}

/// What a freed block was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Freed {
    /// Taken; its slab needs no look.
    Block,
    /// Taken, the first or last of its word: somebody has to look at the slab.
    Edge,
    /// Free already.
    Twice,
}

impl Slab<'_> {
    const fn idle(&self) -> u64 {
        State::Idle { class: self.class }.word()
    }

    /// Takes an idle slab in hand; whether it was one.
    pub(super) fn hold(&self, slot: usize) -> bool {
        let held = State::Held { class: self.class, slot }.word();
        self.state.compare_exchange(self.idle(), held, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Lets go of it. Then look at it with [`has_room`](Self::has_room) and
    /// [`is_empty`](Self::is_empty).
    pub(super) fn let_go(&self) {
        self.state.store(self.idle(), Ordering::Release);
        // Pairs with the fence of `free`.
        fence(Ordering::SeqCst);
    }

    /// The free blocks of a word, as bits. They stay free as long as the caller holds the slab.
    pub(super) fn free_of(&self, word: usize) -> u64 {
        !self.bits[word].load(Ordering::Relaxed) & class::valid(self.class, word)
    }

    /// Takes these blocks, which [`free_of`](Self::free_of) gave to the holder.
    pub(super) fn take(&self, word: usize, blocks: u64) {
        self.bits[word].fetch_or(blocks, Ordering::Acquire);
    }

    /// Gives blocks back that were not handed out.
    pub(super) fn put_back(&self, word: usize, blocks: u64) {
        if let Some(bits) = self.bits.get(word) {
            bits.fetch_and(!blocks, Ordering::Release);
        }
    }

    /// Frees one block.
    pub(super) fn free(&self, block: usize) -> Freed {
        let (word, bit) = (block / 64, 1 << (block % 64));
        let before = self.bits[word].fetch_and(!bit, Ordering::Release);
        if before & bit == 0 {
            Freed::Twice
        } else if before == class::valid(self.class, word) || before == bit {
            // Pairs with the fence of `let_go`.
            fence(Ordering::SeqCst);
            Freed::Edge
        } else {
            Freed::Block
        }
    }

    /// Is it in nobody's hand?
    pub(super) fn is_idle(&self) -> bool {
        self.state.load(Ordering::Relaxed) == self.idle()
    }

    /// Is a block free?
    pub(super) fn has_room(&self) -> bool {
        (0..self.bits.len()).any(|word| self.free_of(word) != 0)
    }

    /// Is every block free?
    pub(super) fn is_empty(&self) -> bool {
        self.bits.iter().all(|bits| bits.load(Ordering::Acquire) == 0)
    }

    /// Takes an idle slab away from all, to give back its pages; whether it is empty. If it is
    /// not, it is idle again.
    pub(super) fn empty(&self, slot: usize) -> bool {
        let emptied = State::Emptied { class: self.class, slot }.word();
        let (acquire, relaxed) = (Ordering::Acquire, Ordering::Relaxed);
        self.state.compare_exchange(self.idle(), emptied, acquire, relaxed).is_ok()
    }

    /// How many blocks are taken.
    pub(super) fn taken(&self) -> usize {
        let valid = |word| class::valid(self.class, word);
        let taken = |(word, bits): (usize, &AtomicU64)| bits.load(Ordering::Relaxed) & valid(word);
        self.bits.iter().enumerate().map(taken).map(|bits| bits.count_ones() as usize).sum()
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::sync::model;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    /// The class with the fewest blocks: 16 in one word.
    const CLASS: usize = super::super::class::CLASSES - 1;
    const FULL: u64 = class::valid(CLASS, 0);

    struct Shared {
        state: AtomicU64,
        bits: [AtomicU64; 1],
        marked: AtomicU64,
        /// The memory of block 0.
        block: UnsafeCell<u32>,
    }
    // SAFETY: the block is its owner's: loom checks.
    unsafe impl Sync for Shared {}

    impl Shared {
        fn new(state: State, bits: u64) -> Arc<Self> {
            Arc::new(Self {
                state: AtomicU64::new(state.word()).ready(),
                bits: [AtomicU64::new(bits).ready()],
                marked: AtomicU64::new(0).ready(),
                block: UnsafeCell::new(0),
            })
        }

        fn slab(&self) -> Slab<'_> {
            Slab { class: CLASS, state: &self.state, bits: &self.bits }
        }

        /// What both sides do then.
        fn look(&self) {
            if self.slab().is_idle() && self.slab().has_room() {
                self.marked.store(1, Ordering::Relaxed);
            }
        }
    }

    /// The holder lets go of a full slab while another frees a block of it: it is marked.
    /// Fails when a fence is taken out.
    #[test]
    fn idle_room_is_marked() {
        model(|| {
            let shared = Shared::new(State::Held { class: CLASS, slot: 3 }, FULL);
            let holder = thread::spawn({
                let shared = shared.clone();
                move || {
                    shared.slab().let_go();
                    shared.look();
                }
            });
            if shared.slab().free(5) == Freed::Edge {
                shared.look();
            }
            holder.join().unwrap();
            assert_eq!(shared.marked.load(Ordering::Relaxed), 1);
        });
    }

    /// The last owner of a block writes it and frees it; the holder takes it and writes it. Fails
    /// when the free is no release or the take no acquire.
    #[test]
    fn a_block_has_one_owner() {
        model(|| {
            let shared = Shared::new(State::Held { class: CLASS, slot: 3 }, FULL);
            let owner = thread::spawn({
                let shared = shared.clone();
                move || {
                    shared.block.with_mut(|block| unsafe { *block += 1 });
                    shared.slab().free(0);
                }
            });
            let free = shared.slab().free_of(0);
            if free == 1 {
                shared.slab().take(0, free);
                shared.block.with_mut(|block| unsafe { *block += 1 });
            }
            owner.join().unwrap();
        });
    }

    /// A holder puts back what it had in hand, a block that it had freed itself; the next holder
    /// takes it. Fails when putting back is no release.
    #[test]
    fn what_is_put_back_has_one_owner() {
        model(|| {
            let shared = Shared::new(State::Held { class: CLASS, slot: 3 }, FULL);
            let holder = thread::spawn({
                let shared = shared.clone();
                move || {
                    shared.block.with_mut(|block| unsafe { *block += 1 });
                    shared.slab().put_back(0, 1);
                }
            });
            if shared.slab().free_of(0) == 1 {
                shared.slab().take(0, 1);
                shared.block.with_mut(|block| unsafe { *block += 1 });
            }
            holder.join().unwrap();
        });
    }

    /// One holds the slab, takes and writes a block, puts it back and lets go; the other may hold
    /// it after that. Fails when letting go is no release, holding no acquire, or when holding is
    /// a load and a store.
    #[test]
    fn one_holder_at_a_time() {
        model(|| {
            let shared = Shared::new(State::Idle { class: CLASS }, FULL & !1);
            let turn = |shared: &Shared, slot| {
                if shared.slab().hold(slot) {
                    // What is the holder's alone, such as the mask of its hand.
                    shared.block.with_mut(|block| unsafe { *block += 1 });
                    shared.slab().let_go();
                }
            };
            let other = thread::spawn({
                let shared = shared.clone();
                move || turn(&shared, 3)
            });
            turn(&shared, 4);
            other.join().unwrap();
            assert!(shared.slab().is_idle());
        });
    }

    /// The last block is freed while a slab is being given back: who finds it empty sees all that
    /// the last owner did, and nobody holds it then. Fails when `is_empty` is no acquire,
    /// or `empty` a load and a store.
    #[test]
    fn an_empty_slab_is_nobodys() {
        model(|| {
            let shared = Shared::new(State::Idle { class: CLASS }, 1);
            let owner = thread::spawn({
                let shared = shared.clone();
                move || {
                    shared.block.with_mut(|block| unsafe { *block += 1 });
                    shared.slab().free(0);
                    let holds = shared.slab().hold(3);
                    if holds {
                        let free = shared.slab().free_of(0);
                        shared.slab().take(0, free);
                    }
                    holds
                }
            });
            let leaves = shared.slab().empty(4) && shared.slab().is_empty();
            if leaves {
                shared.block.with_mut(|block| unsafe { *block += 1 });
            }
            assert!(!(leaves && owner.join().unwrap()));
        });
    }
}
