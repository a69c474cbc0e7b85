//! The numbers of a ring.

use super::Ring;
use crate::error::{Context, Result};
use crate::sys::map;

/// What became of the records of a ring, summed over its stripes.
///
/// When nobody writes or reads, `published` is `taken`, `lost` and what is still inside. Sums
/// taken meanwhile are as of different moments for different stripes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RingStats {
    /// Records that were published.
    pub published: u64,
    /// Records that readers have handed out.
    pub taken: u64,
    /// Records that were overwritten, or taken by a reader that has not handed them out: it
    /// still may, unless it is gone.
    pub lost: u64,
    /// Records that were refused because the ring was full.
    pub refused: u64,
}

impl Ring<'_> {
    /// The numbers now.
    pub fn stats(&self) -> RingStats {
        let mut sum = RingStats::default();
        for stripe in self.opened() {
            let counts = self.place.stripe(stripe).counts();
            sum.published = sum.published.wrapping_add(counts.published);
            sum.taken = sum.taken.wrapping_add(counts.taken);
            sum.lost = sum.lost.wrapping_add(counts.lost);
            sum.refused = sum.refused.wrapping_add(counts.refused);
        }
        sum
    }

    /// Bytes of the ring that are in memory, of all its stripes and the header.
    ///
    /// # Errors
    ///
    /// As mincore(2) gives them; ENOSYS or EPERM under a filter.
    pub fn resident(&self) -> Result<usize> {
        const OPERATION: &str = "percpu::Ring::resident";
        let header = map::resident(self.place.start.as_ptr(), map::PAGE).op(OPERATION)?;
        let stride = self.place.shape.stride();
        self.opened().try_fold(header, |sum, stripe| {
            let bytes = map::resident(self.place.address(stripe), stride).op(OPERATION)?;
            Ok(sum + bytes)
        })
    }

    /// The stripes that were ever written.
    fn opened(&self) -> impl Iterator<Item = u32> {
        let mut next = 0;
        core::iter::from_fn(move || {
            let found = self.place.next_opened(next)?;
            next = found + 1;
            Some(found)
        })
    }
}
