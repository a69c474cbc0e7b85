//! A word as the kernel sees it: where, how wide, for whom.

use super::Options;
use super::implementation::are_halves_exchanged;
use crate::abi::futex2::{FutexWaitv, MATCH_ANY, PRIVATE, SIZE_U32};
use crate::arch;
use crate::sync::{AtomicU64, Ordering};

/// A word.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Address of the word itself.
    pub(super) address: *const u8,
    /// 1, 2, 4 or 8.
    pub(super) bytes: usize,
    /// Threads of this process alone.
    pub(super) private: bool,
}

/// An entry of the kernel's vector: the 32 bits at `word`, which hold `value`.
pub(super) fn entry(word: *const u32, value: u32, private: bool) -> FutexWaitv {
    FutexWaitv {
        val: value.into(),
        uaddr: word.expose_provenance() as u64,
        flags: SIZE_U32 | if private { PRIVATE } else { 0 },
        reserved: 0,
    }
}

/// The bit that no wait has: a wake with it reaches those that the kernel lets wait without a
/// mask, which are the entries of vectors, and so all waits on 64 bits.
pub(super) const NOBODY: u32 = 1 << 31;

/// The bits of 32-bit waits. Those of 8 bits are 0 to 3, by lane, and of 16 bits 4 and 5.
const BITS_OF_32: u32 = 0x7fff_ff80;

impl Place {
    /// The aligned 32 bits that the kernel compares and keys by. Of a 64-bit word it is the
    /// half at the lower address: the one that is woken.
    pub(super) fn word(&self) -> *const u32 {
        self.address.wrapping_sub(self.address.addr() & 3).cast()
    }

    /// Bits that say size and lane, so that a wake reaches the waits on this very word; or
    /// those of all words that overlap with it.
    pub(super) fn mask(&self, options: &Options) -> u32 {
        let lane = (self.address.addr() & 3) as u32;
        match (self.bytes, options.overlapping) {
            (1, false) => 1 << lane,
            (1, true) => 1 << lane | 1 << (4 + lane / 2) | BITS_OF_32,
            (2, false) => 1 << (4 + lane / 2),
            (2, true) => 0b11 << lane | 1 << (4 + lane / 2) | BITS_OF_32,
            (4, false) if options.mask == MATCH_ANY => BITS_OF_32,
            (4, false) => options.mask << 7,
            (4, true) => options.mask,
            (_, false) => NOBODY,
            (_, true) => MATCH_ANY,
        }
    }

    /// The same for a sequence, on which waits on 64 bits sleep with a mask.
    pub(super) fn mask_in_shadow(&self, options: &Options) -> u32 {
        self.mask(options) | if options.overlapping { NOBODY } else { 0 }
    }

    /// The value of this word inside `word`, the 32 bits around it.
    pub(super) fn lane_of(&self, word: u32) -> u64 {
        let bytes = word.to_ne_bytes();
        let lane = self.address.addr() & 3;
        match self.bytes {
            1 => u64::from(bytes[lane]),
            2 => u64::from(u16::from_ne_bytes([bytes[lane], bytes[lane + 1]])),
            _ => u64::from(word),
        }
    }

    /// What the 32 bits around hold now: for words of at most that size.
    ///
    /// # Safety
    ///
    /// The address must be valid, and aligned to the size.
    pub(super) unsafe fn around(&self) -> u32 {
        // SAFETY: the caller vouches for the address. On x86 the load has acquire semantics.
        unsafe { arch::containing_u32(self.address) }
    }

    /// What the word holds now.
    ///
    /// # Safety
    ///
    /// The address must be valid, and aligned to the size.
    pub(super) unsafe fn load(&self) -> u64 {
        if self.bytes == 8 {
            // SAFETY: the caller vouches for it; a 64-bit word is reached by 64-bit atomics.
            return unsafe { &*self.address.cast::<AtomicU64>() }.load(Ordering::Acquire);
        }
        // SAFETY: forwarded.
        self.lane_of(unsafe { self.around() })
    }

    /// An entry of a vector for the 32 bits at `word`, of this one's.
    pub(super) fn entry(&self, word: *const u32, value: u32) -> FutexWaitv {
        entry(word, value, self.private)
    }

    /// Both halves of 64 bits as a vector, the one that is woken first.
    ///
    /// The order is what makes it correct: the kernel compares and queues in array order. A
    /// store between the two compares is followed by a wake of the first half, on which the
    /// waiter is queued by then. With the halves exchanged such a wake would find nobody.
    pub(super) fn halves(&self, expected: u64) -> [FutexWaitv; 2] {
        let word = self.word();
        // x86 has the low half at the lower address.
        let (low, high) = (expected as u32, (expected >> 32) as u32);
        let mut halves = [self.entry(word, low), self.entry(word.wrapping_add(1), high)];
        if are_halves_exchanged() {
            halves.reverse();
        }
        halves
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn strict_masks_are_apart_and_overlapping_ones_meet() {
        let words = [1, 2, 4].iter().flat_map(|&bytes| {
            (0..4 / bytes).map(move |n| Place {
                address: core::ptr::without_provenance(0x1000 + n * bytes),
                bytes,
                private: true,
            })
        });
        let words: Vec<_> = words.collect();
        let (strict, wide) = (Options::new(), Options::new().overlapping());
        for a in &words {
            for b in &words {
                let (at, to) = (a.address.addr(), b.address.addr());
                let same = at == to && a.bytes == b.bytes;
                let overlap = at < to + b.bytes && to < at + a.bytes;
                assert_eq!(a.mask(&strict) & b.mask(&strict) != 0, same, "{a:?} {b:?}");
                assert_eq!(a.mask(&wide) & b.mask(&strict) != 0, overlap, "{a:?} {b:?}");
                assert!(!overlap || a.mask(&wide) & b.mask(&wide) != 0, "{a:?} {b:?}");
            }
            assert_eq!(a.mask(&strict) & NOBODY, 0);
        }
    }

    #[test]
    fn lanes_and_halves() {
        let at = |address, bytes| Place {
            address: core::ptr::without_provenance(address),
            bytes,
            private: false,
        };
        assert_eq!(at(0x1002, 1).lane_of(0xddcc_bbaa), 0xcc);
        assert_eq!(at(0x1002, 2).lane_of(0xddcc_bbaa), 0xddcc);
        let [low, high] = at(0x1008, 8).halves(0x1_0000_0002);
        assert_eq!((low.uaddr, low.val, high.uaddr, high.val), (0x1008, 2, 0x100c, 1));
        assert_eq!(low.flags, SIZE_U32);
    }
}
