//! A bump pointer that any process moves.
//!
//! # Protocol
//!
//! `next`: offset of the first byte that nobody took. Whoever moves it by compare-exchange
//! from one value to a larger one owns the bytes between. It never goes back, so a process
//! that dies loses what it had taken and nothing else, and there is nothing to repair.
//!
//! Relaxed is enough: the bytes were never anybody's before, so the word orders nothing but
//! itself. Whoever hands an address on publishes what is behind it by a release of its own.

use crate::sync::{AtomicU64, Ordering};
use core::alloc::Layout;

/// The algorithm, over a borrowed word.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bump<'a> {
    next: &'a AtomicU64,
    len: u64,
}

impl<'a> Bump<'a> {
    /// Over the offsets below `len`.
    pub(super) fn new(next: &'a AtomicU64, len: u64) -> Self {
        Self { next, len }
    }

    /// Start and end of what would be taken now; `None` if nothing would be.
    pub(super) fn peek(&self, layout: Layout) -> Option<(u64, u64)> {
        place(self.next.load(Ordering::Relaxed), layout, self.len)
    }

    /// Takes bytes of this layout; offset of the first. `Err` is the number of bytes taken
    /// so far, of `len`.
    ///
    /// The word may say anything, because any participant can write it: what comes out lies
    /// below `len` in any case.
    pub(super) fn take(&self, layout: Layout) -> Result<u64, u64> {
        let mut seen = self.next.load(Ordering::Relaxed);
        loop {
            let Some((start, end)) = place(seen, layout, self.len) else {
                return Err(seen);
            };
            match self.next.compare_exchange_weak(seen, end, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(start),
                Err(now) => seen = now,
            }
        }
    }
}

/// Start and end of the first place from `next` on; `None` beyond `len`.
fn place(next: u64, layout: Layout, len: u64) -> Option<(u64, u64)> {
    let start = next.checked_next_multiple_of(u64::try_from(layout.align()).ok()?)?;
    let end = start.checked_add(u64::try_from(layout.size()).ok()?)?;
    (end <= len).then_some((start, end))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).unwrap()
    }

    proptest! {
        /// Aligned, inside, disjoint and in order, until the first that does not fit.
        #[test]
        fn places(sizes in prop::collection::vec((0..200_usize, 0..8_u32), 1..60)) {
            let next = AtomicU64::new(0);
            let bump = Bump::new(&next, 4096);
            let mut end = 0;
            for (size, align) in sizes {
                let layout = layout(size, 1 << align);
                match bump.take(layout) {
                    Ok(start) => {
                        prop_assert!(start >= end && start.is_multiple_of(1 << align));
                        end = start + size as u64;
                        prop_assert!(end <= 4096);
                    }
                    Err(taken) => {
                        prop_assert_eq!(taken, end);
                        prop_assert!(end.next_multiple_of(1 << align) + size as u64 > 4096);
                    }
                }
            }
        }
    }

    #[test]
    fn a_word_that_lies_gives_nothing_outside() {
        for lie in [4097, u64::MAX, u64::MAX - 7] {
            let next = AtomicU64::new(lie);
            assert_eq!(Bump::new(&next, 4096).take(layout(1, 8)), Err(lie));
        }
        let next = AtomicU64::new(8);
        assert_eq!(Bump::new(&next, 4096).take(layout(isize::MAX as usize, 1)), Err(8));
        assert_eq!(Bump::new(&next, 4096).take(layout(4088, 8)), Ok(8));
        assert_eq!(Bump::new(&next, 4096).take(layout(0, 8)), Ok(4096));
        assert_eq!(Bump::new(&next, 4096).take(layout(1, 1)), Err(4096));
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::sync::model;
    use loom::sync::Arc;
    use loom::thread;

    /// Three takers, room for two. Fails when the compare-exchange is a load and a store.
    #[test]
    fn no_byte_is_taken_twice() {
        model(|| {
            let next = Arc::new(AtomicU64::new(0).ready());
            let take = |next: Arc<AtomicU64>| {
                move || Bump::new(&next, 24).take(Layout::from_size_align(8, 8).unwrap())
            };
            let others = [thread::spawn(take(next.clone())), thread::spawn(take(next.clone()))];
            let mine = take(next.clone())();
            let mut taken: Vec<_> = others.map(|other| other.join().unwrap()).to_vec();
            taken.push(mine);
            taken.sort();
            assert_eq!(taken, [Ok(0), Ok(8), Ok(16)]);
            assert_eq!(take(next)(), Err(24));
        });
    }
}
