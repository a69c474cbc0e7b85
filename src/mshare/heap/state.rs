//! What a page is part of: one word for each.
//!
//! | state | bits 60..64 | bits 8..48 | bits 48..60 | bits 0..8 | changed by |
//! |---|---|---|---|---|---|
//! | free | 0 | 0 | 0 | 0 | whoever has the lock, to slab, run or inner |
//! | idle slab | 1 | 0 | 0 | class | any participant, to held or emptied |
//! | held slab | 2 | 0 | slot | class | that participant, to idle |
//! | emptied slab | 3 | 0 | slot | class | that participant, to idle or leaving |
//! | inner page of a slab | 4 | pages from the first | 0 | class | whoever has the lock |
//! | run | 5 | pages | 0 | 0 | who frees it, to leaving or kept; whoever has the lock, in length |
//! | leaving | 6 | pages | 0 | 0 | whoever has the lock, to free |
//! | kept run | 7 | pages | slot | 0 | that participant, to run; any, to leaving |
//!
//! The word of a slab or run is that of its first page; a run's inner pages say free. A word that
//! names a slot, but for a kept run, is changed by that slot's owner alone, and by whoever takes the
//! slot over after the owner's death: so what a dead participant was doing can be told.

use super::class::CLASSES;

/// A word, understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Nobody's, or an inner page of a run.
    Free,
    /// A slab in nobody's hand.
    Idle { class: usize },
    /// A slab from which this slot takes.
    Held { class: usize, slot: usize },
    /// A slab without a block, being given back by this slot.
    Emptied { class: usize, slot: usize },
    /// An inner page of a slab that begins so many pages before.
    Inner { class: usize, back: usize },
    /// Pages that are one block.
    Run { pages: usize },
    /// Pages of which nobody holds anything any more.
    Leaving { pages: usize },
    /// A free run that this slot keeps.
    Kept { pages: usize, slot: usize },
    /// Nothing that this code writes.
    Broken(u64),
}

const MIDDLE: u64 = (1 << 40) - 1;

impl State {
    #[inline]
    pub(super) const fn of(word: u64) -> Self {
        let class = (word & 0xff) as usize;
        let middle = (word >> 8 & MIDDLE) as usize;
        let slot = (word >> 48 & 0xfff) as usize;
        let is_class = class < CLASSES;
        match word >> 60 {
            0 if word == 0 => Self::Free,
            1 if is_class && middle == 0 && slot == 0 => Self::Idle { class },
            2 if is_class && middle == 0 => Self::Held { class, slot },
            3 if is_class && middle == 0 => Self::Emptied { class, slot },
            4 if is_class && slot == 0 && middle > 0 => Self::Inner { class, back: middle },
            5 if class == 0 && slot == 0 && middle > 0 => Self::Run { pages: middle },
            6 if class == 0 && slot == 0 && middle > 0 => Self::Leaving { pages: middle },
            7 if class == 0 && middle > 0 => Self::Kept { pages: middle, slot },
            _ => Self::Broken(word),
        }
    }

    #[inline]
    pub(super) const fn word(self) -> u64 {
        match self {
            Self::Free => 0,
            Self::Idle { class } => 1 << 60 | class as u64,
            Self::Held { class, slot } => 2 << 60 | (slot as u64) << 48 | class as u64,
            Self::Emptied { class, slot } => 3 << 60 | (slot as u64) << 48 | class as u64,
            Self::Inner { class, back } => 4 << 60 | (back as u64) << 8 | class as u64,
            Self::Run { pages } => 5 << 60 | (pages as u64) << 8,
            Self::Leaving { pages } => 6 << 60 | (pages as u64) << 8,
            Self::Kept { pages, slot } => 7 << 60 | (slot as u64) << 48 | (pages as u64) << 8,
            Self::Broken(word) => word,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn words_are_understood_one_way(word: u64, small in 0..1_u64 << 12, kind in 0..8_u64) {
            for word in [word, kind << 60 | small, kind << 60 | small << 8, kind << 60 | small << 48] {
                prop_assert_eq!(State::of(word).word(), word);
            }
        }
    }
}
