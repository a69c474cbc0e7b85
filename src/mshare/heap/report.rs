//! How much of a heap is used, and what does not fit together in it.

use super::class::CLASSES;
use core::fmt;

/// How many problems a report names; it counts them all.
const NAMED: usize = 64;

/// How much of a heap is used. Taken while others work, a moment's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct HeapStats {
    /// Bytes that can be had in all.
    pub capacity: usize,
    /// Bytes of pages that are taken, by slabs and runs.
    pub taken: usize,
    /// The most that this ever was.
    pub high_water: usize,
    /// Blocks that were handed out and not freed, small and large.
    pub blocks: usize,
    /// Their bytes, rounded up as they are.
    pub bytes: usize,
    /// Bytes of free blocks of slabs, and of free runs that threads keep: the difference between
    /// what is taken and what is used.
    pub free_in_slabs: usize,
    /// Bytes of free blocks that threads have in hand; part of the above.
    pub in_hand: usize,
    /// Bytes of the longest run of free pages.
    pub longest_free: usize,
    /// Slots that are taken.
    pub participants: usize,
    /// Of each class: bytes of a block, blocks handed out.
    pub classes: [(usize, usize); CLASSES],
    /// Runs of pages: how many, and their bytes.
    pub runs: (usize, usize),
}

impl HeapStats {
    /// How much of the free pages is not in the longest run: 0 if it is all one run, towards 1
    /// if there are many small ones.
    pub fn fragmentation(&self) -> f64 {
        match self.capacity.saturating_sub(self.taken) {
            0 => 0.0,
            free => 1.0 - self.longest_free as f64 / free as f64,
        }
    }
}

/// Something that does not fit, found by [`Heap::check`](super::Heap::check). Pages are numbered from the heap's first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// A page is taken, and no slab or run has it.
    LostPage {
        /// The page.
        page: usize,
    },
    /// A slab or run has a page that says that it is free.
    NotTaken {
        /// The page.
        page: usize,
    },
    /// A slab or run reaches into the next, or beyond the heap.
    Overlap {
        /// First page of the slab or run.
        page: usize,
    },
    /// A page's state is none, or does not belong where it is.
    BadState {
        /// The page.
        page: usize,
        /// What its word says.
        word: u64,
    },
    /// A slab has bits for blocks that it has not.
    BadBlocks {
        /// First page of the slab.
        page: usize,
    },
    /// A slab or free run says that a slot has it, and the slot does not.
    NotHeld {
        /// Its first page.
        page: usize,
        /// The slot.
        slot: usize,
    },
    /// A slot has blocks in hand that are not set in the slab, or of a slab that it does not hold.
    BadHand {
        /// The slot.
        slot: usize,
        /// The class.
        class: usize,
    },
    /// A slab in nobody's hand has free blocks, and would not be found.
    HiddenRoom {
        /// First page of the slab.
        page: usize,
    },
    /// A slab in nobody's hand has no block, and has not been given back.
    EmptySlab {
        /// First page of the slab.
        page: usize,
    },
    /// Pages that are leaving have not been given back.
    Left {
        /// First page.
        page: usize,
    },
    /// The count of taken pages is wrong.
    BadCount {
        /// What it says.
        says: usize,
        /// What was counted.
        is: usize,
    },
    /// The owner of a slot is gone; [`Heap::recover`](super::Heap::recover) takes it back.
    DeadSlot {
        /// The slot.
        slot: usize,
    },
}

impl Problem {
    /// Does [`Heap::recover`](super::Heap::recover) mend it, when the participants it concerns are gone?
    pub const fn is_mendable(&self) -> bool {
        matches!(
            self,
            Self::DeadSlot { .. }
                | Self::Left { .. }
                | Self::EmptySlab { .. }
                | Self::HiddenRoom { .. }
        )
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::LostPage { page } => write!(f, "page {page} is taken and nobody's"),
            Self::NotTaken { page } => write!(f, "page {page} is used and not taken"),
            Self::Overlap { page } => write!(f, "what begins at page {page} is too long"),
            Self::BadState { page, word } => write!(f, "page {page} says {word:#x}"),
            Self::BadBlocks { page } => write!(f, "the slab at page {page} has too many blocks"),
            Self::NotHeld { page, slot } => {
                write!(f, "what begins at page {page} is not held by slot {slot}")
            }
            Self::BadHand { slot, class } => {
                write!(f, "slot {slot} has what it cannot have of class {class}")
            }
            Self::HiddenRoom { page } => write!(f, "the slab at page {page} would not be found"),
            Self::EmptySlab { page } => write!(f, "the slab at page {page} is empty"),
            Self::Left { page } => write!(f, "page {page} was left"),
            Self::BadCount { says, is } => write!(f, "{is} pages are counted as {says}"),
            Self::DeadSlot { slot } => write!(f, "the owner of slot {slot} is gone"),
        }
    }
}

/// What [`Heap::check`](super::Heap::check) found.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Report {
    /// How much is used.
    pub stats: HeapStats,
    /// The first 64 problems.
    pub problems: Vec<Problem>,
    /// How many there are.
    pub count: usize,
}

impl Report {
    /// No problem?
    pub fn is_sound(&self) -> bool {
        self.count == 0
    }

    /// Blocks that are handed out beyond the `reachable` that their users know of: what was lost by
    /// processes that were killed before they had published an address.
    pub fn leaked(&self, reachable: usize) -> usize {
        self.stats.blocks.saturating_sub(reachable)
    }

    pub(super) fn add(&mut self, problem: Problem) {
        self.count += 1;
        if self.problems.len() < NAMED {
            self.problems.push(problem);
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let HeapStats { blocks, bytes, taken, capacity, .. } = self.stats;
        write!(f, "{blocks} blocks of {bytes} bytes, {taken} of {capacity} taken; ")?;
        write!(f, "{} problems", self.count)?;
        self.problems.iter().try_for_each(|problem| write!(f, "; {problem}"))
    }
}
