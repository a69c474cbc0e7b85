//! Size classes: what a small block's size is rounded up to, and the slab that it comes from.
//!
//! Up to 128 bytes in steps of 16, then four to each doubling, up to 8 KiB: at most a fifth of a
//! block is lost by rounding, as in jemalloc
//! (<https://jemalloc.net/jemalloc.3.html#size_classes>). A slab has 16 blocks at least.

use crate::sys::map::PAGE;
use core::alloc::Layout;

/// Number of classes.
pub(super) const CLASSES: usize = 32;
/// Bytes of the largest block of a class.
pub(super) const SMALL: usize = 8192;

/// Bytes of a block of each class.
pub(super) const SIZES: [usize; CLASSES] = {
    let mut sizes = [0; CLASSES];
    let mut class = 0;
    while class < CLASSES {
        sizes[class] = if class < 8 {
            (class + 1) * 16
        } else {
            let (doubling, step) = ((class - 8) / 4, (class - 8) % 4);
            (128 << doubling) + (step + 1) * (32 << doubling)
        };
        class += 1;
    }
    sizes
};

/// Multipliers that divide an offset in a slab by the size: `offset * MAGIC >> 32`. Exact
/// because the error, `offset * (size - 1)`, stays below 2^32.
const MAGIC: [u64; CLASSES] = {
    let mut magic = [0; CLASSES];
    let mut class = 0;
    while class < CLASSES {
        magic[class] = (1_u64 << 32).div_ceil(SIZES[class] as u64);
        class += 1;
    }
    magic
};

/// Pages of a slab.
pub(super) const fn pages(class: usize) -> usize {
    match SIZES[class] {
        0..=1024 => 4,
        1025..=2048 => 8,
        2049..=4096 => 16,
        _ => 32,
    }
}

/// Blocks of a slab of each class: what a division would say.
const BLOCKS: [usize; CLASSES] = {
    let mut blocks = [0; CLASSES];
    let mut class = 0;
    while class < CLASSES {
        blocks[class] = pages(class) * PAGE / SIZES[class];
        class += 1;
    }
    blocks
};

/// The smallest class of so many sixteenths of bytes.
const SMALLEST: [u8; SMALL / 16 + 1] = {
    let mut smallest = [0; SMALL / 16 + 1];
    let (mut class, mut units) = (0, 0);
    while units < smallest.len() {
        if units * 16 > SIZES[class] {
            class += 1;
        }
        smallest[units] = class as u8;
        units += 1;
    }
    smallest
};

/// Blocks of a slab.
#[inline]
pub(super) const fn blocks(class: usize) -> usize {
    BLOCKS[class]
}

/// Words of a slab's bitmap.
pub(super) const fn words(class: usize) -> usize {
    blocks(class).div_ceil(64)
}

/// The bits of a word of a slab's bitmap that stand for blocks.
pub(super) const fn valid(class: usize, word: usize) -> u64 {
    match blocks(class) - word * 64 {
        64.. => u64::MAX,
        rest => (1 << rest) - 1,
    }
}

/// The class of a layout; `None` if it is none of a slab's. Its blocks are aligned as asked,
/// because slabs begin on a page and the size is a multiple of the alignment.
#[inline]
pub(super) const fn of(layout: Layout) -> Option<usize> {
    let (size, align) = (layout.size(), layout.align());
    if size > SMALL || align > PAGE {
        return None;
    }
    let mut class = SMALLEST[size.div_ceil(16)] as usize;
    if align > 16 {
        // The largest is a multiple of every such alignment, which is a power of two.
        while SIZES[class] & (align - 1) != 0 {
            class += 1;
        }
    }
    Some(class)
}

/// Which block of its slab begins at this offset; `None` between two of them, and behind the
/// last.
#[inline]
pub(super) const fn index(class: usize, offset: usize) -> Option<usize> {
    let index = ((offset as u64 * MAGIC[class]) >> 32) as usize;
    if index * SIZES[class] == offset && index < blocks(class) { Some(index) } else { None }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_that_fits() {
        for size in 0..=SMALL {
            for align in [1, 16, 32, 64, 128, 512, 4096] {
                let class = of(Layout::from_size_align(size, align).unwrap()).unwrap();
                let fits =
                    |class: usize| SIZES[class] >= size && SIZES[class].is_multiple_of(align);
                let smaller = (0..class).find(|&class| fits(class) && (align <= 16 || class > 0));
                assert!(fits(class) || align < 16, "{size} {align}");
                assert!(SIZES[class] >= size && smaller.is_none_or(|_| align < 16));
            }
        }
        assert_eq!(of(Layout::from_size_align(SMALL + 1, 1).unwrap()), None);
        assert_eq!(of(Layout::from_size_align(1, 8192).unwrap()), None);
        assert_eq!((SIZES[0], SIZES[8], SIZES[CLASSES - 1]), (16, 160, SMALL));
        assert!(SIZES.is_sorted() && (0..CLASSES).all(|class| blocks(class) >= 16));
        assert!((0..CLASSES).all(|class| words(class) <= pages(class) * 4));
    }

    #[test]
    fn blocks_are_found_by_offset() {
        for (class, size) in SIZES.into_iter().enumerate() {
            for offset in 0..pages(class) * PAGE {
                let is_first = offset.is_multiple_of(size);
                let expected = (offset / size < blocks(class) && is_first).then_some(offset / size);
                assert_eq!(index(class, offset), expected);
            }
            let bits: u32 = (0..words(class)).map(|word| valid(class, word).count_ones()).sum();
            assert_eq!(bits as usize, blocks(class));
        }
    }
}
