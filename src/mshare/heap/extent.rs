//! Which part of a region is its heap: one word of the control page.
//!
//! The word is the region's bump pointer. As long as bit 63 is clear it is the offset of the first
//! byte that nobody took; whoever sets it, by one compare-exchange, has made everything from
//! there on, or so many bytes of it, the heap. There is nothing to fill in, because a heap
//! of zeros is an empty one: so two creators cannot meet half-way, and none can be killed there.
//!
//! Every participant that may write can write the word. So whoever makes the heap, with all rights,
//! writes it into the ledger too, before: a change of mappings believes the word only if both say
//! the same.
//!
//! | bits | meaning, with bit 63 set |
//! |---|---|
//! | 0..33 | first page |
//! | 33..57 | pages: the factor |
//! | 57..63 | pages: the power of two that it is multiplied with |

use crate::sys::map::PAGE;

const HEAP: u64 = 1 << 63;
const START: u32 = 33;
const FACTOR: u32 = 24;

/// Offset and length in bytes, in a region: whole pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) start: u64,
    pub(super) len: u64,
}

impl Extent {
    /// What the word says in a region of `size` bytes: `None` without a heap.
    ///
    /// # Errors
    ///
    /// The word, if it names what is not in the region.
    pub(super) fn of(word: u64, size: u64) -> Result<Option<Self>, u64> {
        if word & HEAP == 0 {
            return Ok(None);
        }
        let start = (word & ((1 << START) - 1)) * PAGE as u64;
        let factor = word >> START & ((1 << FACTOR) - 1);
        let power = word >> (START + FACTOR) & 0x3f;
        let pages = factor.checked_shl(power as u32).filter(|pages| pages >> power == factor);
        let len = pages.and_then(|pages| pages.checked_mul(PAGE as u64)).ok_or(word)?;
        match start.checked_add(len) {
            Some(end) if end <= size => Ok(Some(Self { start, len })),
            _ => Err(word),
        }
    }

    /// The largest one from `next` on, of at most `len` bytes, in a region of `size`.
    pub(super) fn from(next: u64, len: u64, size: u64) -> Option<Self> {
        let start = next.checked_next_multiple_of(PAGE as u64)?;
        let pages = size.checked_sub(start)?.min(len) / PAGE as u64;
        // Larger ones lose what the factor cannot tell.
        let power = (u64::BITS - pages.leading_zeros()).saturating_sub(FACTOR);
        Some(Self { start, len: (pages >> power << power) * PAGE as u64 })
    }

    /// As a word.
    pub(super) fn word(self) -> u64 {
        let (start, pages) = (self.start / PAGE as u64, self.len / PAGE as u64);
        let power = u64::from((u64::BITS - pages.leading_zeros()).saturating_sub(FACTOR));
        HEAP | start | (pages >> power) << START | power << (START + FACTOR)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_word_tells_it(next: u64, len: u64, pages in 1..=(1_u64 << 33)) {
            let size = pages * 4096;
            if let Some(extent) = Extent::from(next % size, len, size) {
                prop_assert!(extent.len <= len && extent.start >= next % size);
                prop_assert_eq!(Extent::of(extent.word(), size), Ok(Some(extent)));
            }
        }

        #[test]
        fn any_word_is_inside_or_refused(word: u64, pages in 1..=(1_u64 << 33)) {
            if let Ok(Some(extent)) = Extent::of(word, pages * 4096) {
                prop_assert!(extent.start + extent.len <= pages * 4096);
            }
        }
    }

    #[test]
    fn the_rest_is_taken_whole() {
        let size = 1 << 40;
        let extent = Extent::from(100, u64::MAX, size).unwrap();
        assert_eq!(extent.start, 4096);
        assert!(size - extent.len < size >> 22);
        assert_eq!(Extent::of(77, 4096), Ok(None));
        assert_eq!(Extent::from(4097, 1, 4096), None);
        assert!(Extent::of(u64::MAX, size).is_err());
    }
}
