//! Where a region lies: the part of the address space that ASLR leaves free.
//!
//! On x86-64 with 47-bit addresses, programs and their heaps begin at 0x5555_5555_4000 at
//! the earliest, libraries and stacks lie above 0x6fff_0000_0000 (`mmap_rnd_bits` of at
//! most 32), and low addresses belong to programs without PIE. So 0x2000_0000_0000 to
//! 0x5000_0000_0000, 48 TiB, is free in every ordinary process. Sanitizers put shadow memory
//! there: a base can be forced.

use crate::error::{Error, Result};
use crate::sys::map::PAGE;
use core::ops::Range;
use rustix::io::Errno;

/// Bases are multiples of this: one page table of the level above 2 MiB pages covers it, so
/// that huge pages share theirs.
pub(super) const ALIGN: u64 = 1 << 30;
/// The free part.
const WINDOW: Range<u64> = 0x2000_0000_0000..0x5000_0000_0000;
/// End of user space with 47 bits.
const USER_END: u64 = (1 << 47) - PAGE as u64;
/// Largest region in bytes: two thirds of the window, 32 TiB.
pub(super) const SIZE_MAX: u64 = 32 << 40;
/// Places to try before the window counts as full.
const TRIES: u64 = 256;

/// A size that a region can have: at least one page, whole pages, at most [`SIZE_MAX`].
pub(super) fn is_size(size: u64) -> bool {
    (1..=SIZE_MAX).contains(&size) && size.is_multiple_of(PAGE as u64)
}

/// Is `base` an address that a region of `size` bytes, and its control page in front, can
/// have? Neither number has been checked before.
pub(super) fn is_base(base: u64, size: u64) -> bool {
    base >= ALIGN
        && base.is_multiple_of(ALIGN)
        && base.checked_add(size).is_some_and(|end| end <= USER_END)
}

/// Bases for a region of `size` bytes, in the order in which to try them: the same for the
/// same id.
pub(super) fn bases(id: &[u8; 16], size: u64) -> impl Iterator<Item = u64> {
    // The control page needs room in front of the first.
    let first = WINDOW.start / ALIGN + 1;
    let slots = (WINDOW.end - size) / ALIGN - first + 1;
    let seed = u128::from_le_bytes(*id);
    let seed = seed as u64 ^ (seed >> 64) as u64;
    (0..TRIES).map(move |attempt| (first + mix(seed.wrapping_add(attempt)) % slots) * ALIGN)
}

/// Can a region have this size and this base?
///
/// # Errors
///
/// `errno` with the numbers.
pub(super) fn check(operation: &'static str, errno: Errno, base: u64, size: u64) -> Result<()> {
    if !is_size(size) {
        return Err(Error::with(
            operation,
            errno,
            format_args!("size {size} is not 1 to {} pages of {PAGE}", SIZE_MAX / PAGE as u64),
        ));
    }
    if !is_base(base, size) {
        return Err(Error::with(
            operation,
            errno,
            format_args!("base {base:#x} is not a multiple of {ALIGN:#x} with {size} bytes free"),
        ));
    }
    Ok(())
}

/// SplitMix64: each step gives an unrelated slot, so that a large neighbour is jumped over.
fn mix(seed: u64) -> u64 {
    let z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Aligned, with room in front, inside the window up to the last byte.
        #[test]
        fn every_base_fits(id: [u8; 16], pages in 1..=SIZE_MAX / 4096) {
            let size = pages * 4096;
            for base in bases(&id, size) {
                prop_assert!(is_base(base, size));
                prop_assert!(base - ALIGN >= WINDOW.start && base + size <= WINDOW.end);
            }
        }
    }

    #[test]
    fn small_regions_spread() {
        let mut seen: Vec<_> = bases(&[7; 16], 4096).collect();
        seen.sort_unstable();
        seen.dedup();
        assert!(seen.len() > 250, "{}", seen.len());
    }

    #[test]
    fn sizes_and_bases() {
        assert!(is_size(4096) && is_size(SIZE_MAX));
        for size in [0, 1, 4095, 4097, SIZE_MAX + 4096, u64::MAX] {
            assert!(!is_size(size), "{size}");
        }
        assert!(is_base(ALIGN, 4096) && is_base(0x100_0000_0000, 1 << 30));
        for (base, size) in [
            (0, 4096),
            (4096, 4096),
            (ALIGN + 4096, 4096),
            (1 << 47, 4096),
            ((1 << 47) - ALIGN, ALIGN),
            (u64::MAX - ALIGN + 1, u64::MAX),
        ] {
            assert!(!is_base(base, size), "{base:#x} {size}");
        }
    }
}
