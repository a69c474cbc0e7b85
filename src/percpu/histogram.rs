//! Histograms that every CPU records into on its own.

use super::cell::Cell;
use super::counter_array::CounterArray;
use super::snapshot::{HistogramSnapshot, Scale};
use crate::error::{Error, Result};
use core::fmt;
use rustix::io::Errno;

/// How often which values were recorded, on a [`CounterArray`].
///
/// Buckets are log-linear, as those of HdrHistogram and H2: every power of two is divided into
/// `2^bits` buckets of one width, and what is below `2^(bits + 1)` has a bucket for each value.
/// The whole range of `u64` is there. A bucket is narrower than its least value by a factor of
/// `2^bits` at least, which is how far off a quantile can be:
///
/// | bits | error at most | memory a CPU, all of the range touched |
/// |---|---|---|
/// | 3 | 12.5 % | 4 KiB |
/// | 5 | 3.1 % | 15 KiB |
/// | 7 | 0.8 % | 58 KiB |
/// | 10 | 0.1 % | 440 KiB |
///
/// Only pages that values fall into cost memory: a tenth of the range is a tenth of it.
///
/// Recording is one addition, with the guarantees of a [`Counter`](super::Counter): it never
/// waits, nothing is lost, and a signal handler may do it.
///
/// ```
/// use unmerged::percpu::Histogram;
///
/// let latency = Histogram::new(7)?;
/// (1..=1000).for_each(|us| latency.record(us));
/// let snapshot = latency.snapshot();
/// let p99 = snapshot.quantile(0.99).unwrap();
/// assert_eq!(snapshot.count(), 1000);
/// assert!(p99.low <= 990 && 990 <= p99.high && p99.high - p99.low <= 990 / 128);
/// # Ok::<(), unmerged::Error>(())
/// ```
pub struct Histogram<'a> {
    counters: CounterArray<'a>,
    scale: Scale,
}

impl Histogram<'static> {
    /// An empty one of this process, with `2^bits` buckets in every power of two.
    ///
    /// # Errors
    ///
    /// EINVAL for more than 16 bits; ENOMEM if there is no address space for it.
    pub fn new(bits: u32) -> Result<Self> {
        let scale = Scale::new("percpu::Histogram::new", bits)?;
        Ok(Self { counters: CounterArray::new(scale.buckets())?, scale })
    }
}

impl<'a> Cell<'a> {
    /// Its words as a histogram of `2^bits` buckets in every power of two: for processes that
    /// share it. It takes `(65 - bits) * 2^bits` words: with 3 bits a cell of 3968 bytes, with
    /// 7 one of 59,392 (and an area of that [stride](super::AreaBuilder::stride)).
    ///
    /// # Errors
    ///
    /// EINVAL for more than 16 bits, or if the cell has less words than that.
    pub fn histogram(&self, bits: u32) -> Result<Histogram<'a>> {
        const OPERATION: &str = "percpu::Cell::histogram";
        let scale = Scale::new(OPERATION, bits)?;
        let (needed, has) = (scale.buckets() * 8, self.size());
        if has < needed {
            let numbers = format_args!("{bits} bits take {needed} bytes; the cell has {has}");
            return Err(Error::with(OPERATION, Errno::INVAL, numbers));
        }
        Ok(Histogram { counters: self.counters()?, scale })
    }
}

impl Histogram<'_> {
    /// How many bits of a value are kept.
    pub fn bits(&self) -> u32 {
        self.scale.bits()
    }

    /// Records `value`.
    #[inline]
    pub fn record(&self, value: u64) {
        self.record_many(value, 1);
    }

    /// Records `value`, `n` times.
    #[inline]
    pub fn record_many(&self, value: u64, n: u64) {
        // Every value has a bucket.
        self.counters.add(self.scale.bucket_of(value), n);
    }

    /// What was recorded up to now, on all CPUs. Nothing that was recorded before the call is
    /// missing; of what is recorded meanwhile, some is there.
    pub fn snapshot(&self) -> HistogramSnapshot {
        let mut counts = self.counters.sums();
        counts.truncate(self.scale.buckets());
        HistogramSnapshot::of(self.scale, counts.into())
    }
}

impl fmt::Debug for Histogram<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Histogram").field("bits", &self.bits()).finish_non_exhaustive()
    }
}
