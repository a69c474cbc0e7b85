//! What a wait or a wake does otherwise than by default.

use crate::abi::futex2::MATCH_ANY;
use crate::error::{Error, Result};
use rustix::io::Errno;

/// Options of a wait, a wake or a vector. The default is that of the plain calls.
///
/// ```
/// use unmerged::futex2::{Futex, Options};
///
/// let word: Futex<u32> = Futex::new(0);
/// let readers = Options::new().mask(0b01);
/// assert_eq!(word.wake_with(1, readers).unwrap(), 0); // wakes waits whose mask has that bit
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    pub(super) mask: u32,
    pub(super) overlapping: bool,
    pub(super) interruptible: bool,
    pub(super) beyond: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self::new()
    }
}

/// Bits of a mask where sizes are told apart; the other eight tell them apart.
const STRICT_BITS: u32 = 24;

impl Options {
    /// The default: any mask, sizes told apart, waits resumed after a signal, at most 128 entries.
    pub const fn new() -> Self {
        Self { mask: MATCH_ANY, overlapping: false, interruptible: false, beyond: false }
    }

    /// 32 bits only: a wake reaches the waits whose mask has a bit in common with its own. A plain
    /// wait or wake has all bits.
    ///
    /// 24 bits are the caller's, 0 to 23. With [`overlapping`](Self::overlapping) on all sides it is
    /// 32, and masks are the kernel's own.
    #[must_use]
    pub const fn mask(mut self, mask: u32) -> Self {
        self.mask = mask;
        self
    }

    /// Waits and wakes of different sizes meet where their bytes overlap, instead of only those of
    /// one size. A wait with this option ends by any such wake; a wake with it ends any such wait.
    /// Do not move waiters ([`requeue`](super::Futex::requeue)) from such words: see there.
    #[must_use]
    pub const fn overlapping(mut self) -> Self {
        self.overlapping = true;
        self
    }

    /// A wait ends with EINTR ([`is_interrupted`](crate::Error::is_interrupted)) after a signal was
    /// handled, with or without `SA_RESTART`, instead of being resumed.
    #[must_use]
    pub const fn interruptible(mut self) -> Self {
        self.interruptible = true;
        self
    }

    /// A vector may have more than 128 entries; see [`waitv`](super::waitv).
    #[must_use]
    pub const fn beyond_128(mut self) -> Self {
        self.beyond = true;
        self
    }

    /// Checks the mask against the size of the word.
    #[inline]
    pub(super) fn check(&self, operation: &'static str, bytes: usize) -> Result<()> {
        if self.mask == MATCH_ANY {
            return Ok(());
        }
        self.check_mask(operation, bytes)
    }

    #[cold]
    fn check_mask(&self, operation: &'static str, bytes: usize) -> Result<()> {
        let mask = self.mask;
        let reason = if mask == 0 {
            "a mask of no bits matches nothing"
        } else if bytes != 4 {
            "masks are for 32-bit words"
        } else if !self.overlapping && mask >> STRICT_BITS != 0 {
            "a mask has 24 bits, or 32 with overlapping()"
        } else {
            return Ok(());
        };
        Err(Error::with(operation, Errno::INVAL, format_args!("mask {mask:#x}: {reason}")))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn masks_by_size() {
        let mask = |mask| Options::new().mask(mask);
        for (options, bytes, valid) in [
            (Options::new(), 1, true),
            (mask(0), 4, false),
            (mask(1), 4, true),
            (mask(1), 8, false),
            (mask(1 << 23), 4, true),
            (mask(1 << 24), 4, false),
            (mask(1 << 31).overlapping(), 4, true),
            (mask(0).overlapping(), 4, false),
        ] {
            let checked = options.check("test", bytes);
            assert_eq!(checked.is_ok(), valid, "{options:?}");
            assert!(checked.err().is_none_or(|error| error.is_invalid()));
        }
    }
}
