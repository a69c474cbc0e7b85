//! How much a pool keeps.

use super::depot::MOST;

/// How many objects a [`Pool`](super::Pool) keeps.
///
/// ```
/// use unmerged::percpu::{Pool, PoolLimits};
///
/// const FEW: PoolLimits = PoolLimits::new().per_cpu(7).batch(4).shared(16);
/// static BUFFERS: Pool<[u8; 4096]> = Pool::with_limits(|| [0; 4096], FEW);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolLimits {
    pub(super) per_cpu: usize,
    pub(super) batch: usize,
    shared: usize,
}

/// Objects that the array of a CPU can have room for: half of a stripe.
pub(super) const MOST_PER_CPU: usize = 255;

impl PoolLimits {
    /// 63 objects on each CPU, batches of 32, 1024 objects in the global list.
    pub const fn new() -> Self {
        Self { per_cpu: 63, batch: 32, shared: 1024 }
    }

    /// Objects in the array of one CPU, from 1 to 255; 63 by default. What is one less than a power
    /// of two wastes no room. A larger batch is cut to it.
    ///
    /// # Panics
    ///
    /// If it is out of range; in a constant this is an error of the compiler.
    #[must_use]
    pub const fn per_cpu(mut self, objects: usize) -> Self {
        assert!(0 < objects && objects <= MOST_PER_CPU, "from 1 to 255 objects on a CPU");
        self.per_cpu = objects;
        if self.batch > objects {
            self.batch = objects;
        }
        self
    }

    /// Objects that move between a CPU and the global list at a time, from 1 to what one CPU has
    /// room for; 32 by default.
    ///
    /// # Panics
    ///
    /// If it is out of range; in a constant this is an error of the compiler.
    #[must_use]
    pub const fn batch(mut self, objects: usize) -> Self {
        assert!(0 < objects && objects <= self.per_cpu, "from 1 to as many as a CPU has room for");
        self.batch = objects;
        self
    }

    /// Objects in the global list, rounded up to whole batches; 1024 by default. At most 50000
    /// batches.
    ///
    /// # Panics
    ///
    /// In [`Pool::with_limits`](super::Pool::with_limits) if it is out of range; in a constant this
    /// is an error of the compiler.
    #[must_use]
    pub const fn shared(mut self, objects: usize) -> Self {
        self.shared = objects;
        self
    }

    /// Batches of the global list.
    pub(super) const fn kept(&self) -> usize {
        let kept = self.shared.div_ceil(self.batch);
        assert!(kept <= MOST, "at most 50000 batches in the global list");
        kept
    }
}

impl Default for PoolLimits {
    fn default() -> Self {
        Self::new()
    }
}
