//! How the memory of an area is laid out: a header, then the stripes.
//!
//! ```text
//! 0          one word: magic, version, stride, index, number of stripes; stored last
//! 8          the next private block (in private memory alone)
//! 64         the bitmap of the words of a stripe that belong to cells
//! header     one stripe for each possible CPU id, for windows
//! …          as many for atomics, the overflow stripes
//! ```
//!
//! The first word of a window stripe is its stop word ([`stop`](super::stop)).

use super::runs::Runs;
use crate::abi::rseq::{CPU_ID, MM_CID};
use crate::error::{Error, Result};
use crate::sync::AtomicU64;
use crate::sys::cpus::MAX_IDS;
use crate::sys::map::PAGE;
use rustix::io::Errno;

/// Which number of the thread chooses the stripe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Index {
    /// The CPU (`rseq.cpu_id`).
    #[default]
    CpuId,
    /// The concurrency id (`rseq.mm_cid`, since Linux 6.3): below the number of threads and of
    /// allowed CPUs, so stripes stay few on large machines. It belongs to one process: an
    /// area of it cannot be shared.
    MmCid,
}

/// The geometry of an area.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) stride: usize,
    /// Stripes for windows, and as many for atomics.
    pub(super) cpus: u32,
    pub(super) index: Index,
}

/// Upper half of an area's first word: "uPC" and its version in ASCII. The lower half is its
/// geometry: the logarithm of the stride, one bit for the index, the number of stripes in 23 bits. One
/// word, so that an area is there whole or not at all.
const MAGIC: u32 = u32::from_be_bytes(*b"uPC2");

/// Where the bitmap begins.
const BITMAP: usize = 64;

/// The largest stride, in bytes.
pub(super) const MAX_STRIDE: usize = 1 << 34;

impl Geometry {
    /// A geometry, if there is one.
    ///
    /// # Errors
    ///
    /// EINVAL for a stride that is no power of two from 4096 to 2^34; EOVERFLOW if the whole
    /// would be larger than user space.
    pub(super) fn new(
        operation: &'static str,
        stride: usize,
        cpus: u32,
        index: Index,
    ) -> Result<Self> {
        let error = |errno, numbers| Err(Error::with(operation, errno, numbers));
        if !stride.is_power_of_two() || !(PAGE..=MAX_STRIDE).contains(&stride) {
            return error(
                Errno::INVAL,
                format_args!("stride {stride}: not a power of two from {PAGE} to {MAX_STRIDE}"),
            );
        }
        let all = stride as u64 * u64::from(cpus) * 2;
        if all > 1 << 46 {
            return error(
                Errno::OVERFLOW,
                format_args!("stride {stride} for twice {cpus} CPU ids is {all} bytes"),
            );
        }
        Ok(Self { stride, cpus, index })
    }

    /// Bytes in front of the stripes.
    pub(super) const fn header(&self) -> usize {
        (BITMAP + self.stride / 64).next_multiple_of(PAGE)
    }

    /// Bytes of the whole.
    pub(super) const fn size(&self) -> usize {
        self.header() + 2 * self.cpus as usize * self.stride
    }

    /// The first word of the header.
    pub(super) fn word(&self) -> u64 {
        let index = u64::from(self.index == Index::MmCid) << 23;
        u64::from(MAGIC) << 32 | u64::from(self.stride.ilog2()) << 24 | index | u64::from(self.cpus)
    }

    /// What the first word of a header says.
    ///
    /// # Errors
    ///
    /// EPROTO for another magic or version, or a geometry that cannot be or has less than `cpus`
    /// stripes.
    pub(super) fn from_word(operation: &'static str, word: u64, cpus: u32) -> Result<Self> {
        let shift = (word >> 24) as u32 & 0xff;
        let (stride, found) = (1_usize.checked_shl(shift).unwrap_or(0), word as u32 & 0x7f_ffff);
        let index = if word >> 23 & 1 == 0 { Index::CpuId } else { Index::MmCid };
        let known = (word >> 32) as u32 == MAGIC && (cpus..=MAX_IDS).contains(&found);
        Self::new(operation, stride, found, index).ok().filter(|_| known).ok_or_else(|| {
            Error::with(
                operation,
                Errno::PROTO,
                format_args!(
                    "found magic {:#x}, stride {stride}, {found} CPU ids; here: {MAGIC:#x}, {cpus}",
                    word >> 32
                ),
            )
        })
    }

    /// Offset in the rseq area of the id that is compared.
    pub(super) const fn field(&self) -> usize {
        match self.index {
            Index::CpuId => CPU_ID,
            Index::MmCid => MM_CID,
        }
    }

    /// The bitmap of an area whose header is at `header`.
    ///
    /// # Safety
    ///
    /// The header must be mapped for `'a` and be written by atomics only.
    pub(super) unsafe fn runs<'a>(&self, header: usize) -> Runs<'a> {
        let bitmap = core::ptr::with_exposed_provenance::<AtomicU64>(header + BITMAP);
        // SAFETY: aligned, inside the header, any value is one; the caller vouches for the rest.
        Runs::new(unsafe { core::slice::from_raw_parts(bitmap, self.stride / 512) })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const OP: &str = "test";

    #[test]
    fn strides_that_cannot_be() {
        for stride in [0, 1, 8, 2048, 4095, 4097, 12288, 1 << 35, usize::MAX] {
            let error = Geometry::new(OP, stride, 4, Index::CpuId).unwrap_err();
            assert!(error.is_invalid(), "{error}");
            assert!(error.to_string().contains(&stride.to_string()), "{error}");
        }
        let huge = Geometry::new(OP, 1 << 34, 8192, Index::CpuId).unwrap_err();
        assert_eq!(huge.raw_os_error(), Errno::OVERFLOW.raw_os_error());
    }

    #[test]
    fn the_header_word_says_all() {
        for index in [Index::CpuId, Index::MmCid] {
            for (stride, cpus) in [(4096, 1), (65536, 8192), (1 << 34, 3)] {
                let geometry = Geometry::new(OP, stride, cpus, index).unwrap();
                assert_eq!(Geometry::from_word(OP, geometry.word(), cpus).unwrap(), geometry);
                assert!(Geometry::from_word(OP, geometry.word(), cpus + 1).is_err());
                assert_eq!(Geometry::from_word(OP, geometry.word(), cpus - 1).unwrap(), geometry);
                assert!(Geometry::from_word(OP, geometry.word() ^ 1 << 32, cpus).is_err());
                assert!(geometry.header() >= 64 + stride / 64);
            }
        }
        for word in [0, u64::MAX, u64::from(MAGIC) << 32, u64::from(MAGIC) << 32 | 0xff00_0002] {
            assert!(Geometry::from_word(OP, word, 2).is_err());
        }
    }
}
