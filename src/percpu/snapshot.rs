//! What a histogram has recorded: buckets, quantiles, sums and differences.

use crate::error::{Error, Result};
use core::fmt;
use rustix::io::Errno;

/// Which value belongs to which bucket.
///
/// ```text
/// shift  = max(log2(value), bits) - bits       # bits of the value that are not kept
/// bucket = (shift << bits) + (value >> shift)
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Scale {
    bits: u32,
}

/// More buckets would be millions.
const MAX_BITS: u32 = 16;

impl Scale {
    /// # Errors
    ///
    /// EINVAL for more than 16 bits.
    pub(super) fn new(operation: &'static str, bits: u32) -> Result<Self> {
        if bits > MAX_BITS {
            let numbers = format_args!("{bits} bits; there are 0 to {MAX_BITS}");
            return Err(Error::with(operation, Errno::INVAL, numbers));
        }
        Ok(Self { bits })
    }

    pub(super) const fn bits(self) -> u32 {
        self.bits
    }

    /// Buckets in all.
    pub(super) const fn buckets(self) -> usize {
        (65 - self.bits as usize) << self.bits
    }

    #[inline]
    pub(super) const fn bucket_of(self, value: u64) -> usize {
        let shift = (value | 1 << self.bits).ilog2() - self.bits;
        ((shift as usize) << self.bits) + (value >> shift) as usize
    }

    /// The least and the greatest value of a bucket.
    const fn bounds(self, bucket: usize) -> (u64, u64) {
        let shift = (bucket >> self.bits).saturating_sub(1);
        let kept = (bucket - (shift << self.bits)) as u64;
        let low = kept << shift;
        (low, low + ((1 << shift) - 1))
    }
}

/// Values from `low` to `high`, which one bucket counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Bucket {
    /// The least value.
    pub low: u64,
    /// The greatest value.
    pub high: u64,
    /// How many values of it were recorded.
    pub count: u64,
}

impl Bucket {
    /// The value in the middle: off by half a bucket at most.
    pub const fn midpoint(&self) -> u64 {
        self.low + (self.high - self.low) / 2
    }
}

/// What a [`Histogram`](super::Histogram) had recorded at one time. It is an ordinary value:
/// nothing changes it.
///
/// Quantiles are answered as the bucket that holds them. Where a histogram has `bits`, a
/// bucket's `high - low` is less than `low / 2^bits`, so any value of it is off by less than
/// that.
#[derive(Clone, PartialEq, Eq)]
pub struct HistogramSnapshot {
    scale: Scale,
    counts: Box<[u64]>,
    count: u64,
}

impl HistogramSnapshot {
    pub(super) fn of(scale: Scale, counts: Box<[u64]>) -> Self {
        let count = counts.iter().fold(0, |sum: u64, n| sum.wrapping_add(*n));
        Self { scale, counts, count }
    }

    /// How many bits of a value are kept.
    pub fn bits(&self) -> u32 {
        self.scale.bits
    }

    /// How many values were recorded.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The buckets that have a value, ascending.
    pub fn buckets(&self) -> impl DoubleEndedIterator<Item = Bucket> + '_ {
        let counts = self.counts.iter().enumerate().filter(|&(_, &count)| count != 0);
        counts.map(|(bucket, &count)| {
            let (low, high) = self.scale.bounds(bucket);
            Bucket { low, high, count }
        })
    }

    /// The bucket of the least value; `None` if there is no value.
    pub fn min(&self) -> Option<Bucket> {
        self.buckets().next()
    }

    /// The bucket of the greatest value; `None` if there is no value.
    pub fn max(&self) -> Option<Bucket> {
        self.buckets().next_back()
    }

    /// The mean, off by a factor of `2^-(bits + 1)` at most; `None` if there is no value.
    pub fn mean(&self) -> Option<f64> {
        let middle = |bucket: &Bucket| bucket.low as f64 / 2.0 + bucket.high as f64 / 2.0;
        let sum: f64 = self.buckets().map(|bucket| middle(&bucket) * bucket.count as f64).sum();
        (self.count != 0).then(|| sum / self.count as f64)
    }

    /// The bucket of the least value that is not below a share `q` of all values: 0.5 is the
    /// median, 0 the least, 1 the greatest. A `q` outside is taken for the nearer of both. `None`
    /// if there is no value.
    pub fn quantile(&self, q: f64) -> Option<Bucket> {
        let rank = ((q * self.count as f64).ceil() as u64).clamp(1, self.count.max(1));
        let mut below = 0_u64;
        self.buckets().find(|bucket| {
            below = below.saturating_add(bucket.count);
            below >= rank
        })
    }

    /// Adds what `other` has.
    ///
    /// # Errors
    ///
    /// EINVAL if it has another number of bits.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        self.same("percpu::HistogramSnapshot::merge", other)?;
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count = count.wrapping_add(*more);
        }
        self.count = self.count.wrapping_add(other.count);
        Ok(())
    }

    /// What was recorded between an `earlier` snapshot of the same histogram and this one.
    ///
    /// # Errors
    ///
    /// EINVAL if it has another number of bits, or more of some value.
    pub fn since(&self, earlier: &Self) -> Result<Self> {
        const OPERATION: &str = "percpu::HistogramSnapshot::since";
        self.same(OPERATION, earlier)?;
        let pairs = self.counts.iter().zip(&earlier.counts);
        let counts: Option<Box<[u64]>> = pairs.map(|(now, then)| now.checked_sub(*then)).collect();
        let counts = counts.ok_or_else(|| {
            Error::because(OPERATION, Errno::INVAL, "the other one is no earlier one of this")
        })?;
        Ok(Self::of(self.scale, counts))
    }

    fn same(&self, operation: &'static str, other: &Self) -> Result<()> {
        if self.scale == other.scale {
            return Ok(());
        }
        let numbers = format_args!("{} bits here, {} there", self.bits(), other.bits());
        Err(Error::with(operation, Errno::INVAL, numbers))
    }
}

impl fmt::Debug for HistogramSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quantile = |q| self.quantile(q).map(|bucket| bucket.high);
        f.debug_struct("HistogramSnapshot")
            .field("count", &self.count)
            .field("p50", &quantile(0.5))
            .field("p99", &quantile(0.99))
            .field("max", &quantile(1.0))
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn scale(bits: u32) -> Scale {
        Scale::new("test", bits).unwrap()
    }

    fn snapshot(bits: u32, values: &[u64]) -> HistogramSnapshot {
        let scale = scale(bits);
        let mut counts = vec![0; scale.buckets()];
        values.iter().for_each(|&value| counts[scale.bucket_of(value)] += 1);
        HistogramSnapshot::of(scale, counts.into())
    }

    /// Values of every magnitude.
    fn values() -> impl Strategy<Value = Vec<u64>> {
        prop::collection::vec((any::<u64>(), 0_u32..64).prop_map(|(v, by)| v >> by), 1..200)
    }

    #[test]
    fn buckets_follow_each_other_without_a_gap() {
        for bits in 0..=10 {
            let (scale, mut next) = (scale(bits), Some(0_u64));
            for bucket in 0..scale.buckets() {
                let (low, high) = scale.bounds(bucket);
                assert_eq!(Some(low), next, "bucket {bucket} of {bits} bits");
                assert_eq!((scale.bucket_of(low), scale.bucket_of(high)), (bucket, bucket));
                assert!(high - low <= low >> bits);
                next = high.checked_add(1);
            }
            assert_eq!(next, None, "the last bucket ends at the greatest value");
        }
        assert!(Scale::new("test", 17).unwrap_err().to_string().contains("17 bits"));
    }

    #[test]
    fn nothing_has_no_quantile() {
        let mut empty = snapshot(3, &[]);
        assert_eq!((empty.min(), empty.max(), empty.mean()), (None, None, None));
        assert_eq!((empty.quantile(0.5), empty.count()), (None, 0));
        assert!(empty.merge(&snapshot(4, &[])).unwrap_err().is_invalid());
        assert!(empty.since(&snapshot(3, &[1])).unwrap_err().is_invalid());
        let one = snapshot(3, &[u64::MAX]);
        assert_eq!(one.quantile(f64::NAN), one.max());
        assert_eq!(one.quantile(-1.0), one.quantile(7.0));
        assert_eq!(format!("{empty:?}").matches("None").count(), 3);
    }

    proptest! {
        /// Against the sorted values themselves.
        #[test]
        fn quantiles_are_off_by_less_than_a_bucket(
            mut values in values(), q in 0.0..=1.0_f64, bits in 0_u32..12,
        ) {
            let snapshot = snapshot(bits, &values);
            values.sort_unstable();
            let rank = ((q * values.len() as f64).ceil() as usize).max(1);
            for (exact, bucket) in [
                (values[rank - 1], snapshot.quantile(q)),
                (values[0], snapshot.min()),
                (values[values.len() - 1], snapshot.max()),
            ] {
                let bucket = bucket.unwrap();
                prop_assert!(bucket.low <= exact && exact <= bucket.high);
                for answer in [bucket.low, bucket.midpoint(), bucket.high] {
                    prop_assert!(answer.abs_diff(exact) <= exact >> bits);
                }
            }
            let mean = values.iter().map(|&v| v as f64).sum::<f64>() / values.len() as f64;
            let off = (snapshot.mean().unwrap() - mean).abs();
            prop_assert!(off <= mean * (0.5_f64.powi(bits as i32 + 1) + 1e-9) + 1e-9);
        }

        /// A part and the rest are the whole, both ways.
        #[test]
        fn merging_and_subtracting(values in values(), at in any::<prop::sample::Index>()) {
            let (first, rest) = values.split_at(at.index(values.len()));
            let (first, rest, all) = (snapshot(5, first), snapshot(5, rest), snapshot(5, &values));
            prop_assert_eq!(&all.since(&first).unwrap(), &rest);
            let mut merged = first;
            merged.merge(&rest).unwrap();
            prop_assert_eq!(&merged, &all);
            prop_assert_eq!(all.buckets().map(|bucket| bucket.count).sum::<u64>(), all.count());
        }
    }
}
