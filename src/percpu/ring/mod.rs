//! Ring buffers of records of any size, one per CPU.

mod control;
#[cfg(all(test, loom))]
mod models;
mod reader;
mod reservation;
mod shape;
mod stats;
mod stripe;
mod write;

pub use reader::{Reader, Record, Source};
pub use reservation::Reservation;
pub use stats::RingStats;

use super::{Implementation, implementation};
use crate::arch::{self, Publication};
use crate::error::{Context, Error, Result};
use crate::sync::AtomicU64;
use crate::sys::map::{Access, Mapping, Place as At};
use crate::sys::{memfd, rseq};
use core::marker::PhantomData;
use core::ptr::NonNull;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::SealFlags;
use rustix::io::Errno;
use rustix::mm::Advice;
use shape::{Place, Shape};
use std::io::IoSlice;
use stripe::{RECORD, units};

/// What happens to a record for which there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WhenFull {
    /// It is refused, and counted; what is inside stays.
    Refuse,
    /// It is published, and the oldest records of this CPU make room, an eighth of the
    /// ring at a time. They are counted as lost.
    Overwrite,
}

/// Records of any size, published on the CPU that the writer runs on, drained by any thread or
/// process while writers write.
///
/// ```
/// use unmerged::percpu::{Ring, WhenFull};
///
/// let ring = Ring::private(64 << 10, WhenFull::Overwrite)?;
/// ring.publish(b"begin")?;
/// ring.publish(b"end")?;
///
/// let mut seen = Vec::new();
/// ring.drain(|record| seen.push(record.bytes.to_vec()))?;
/// seen.sort();
/// assert_eq!(seen, [&b"begin"[..], b"end"]);
/// assert_eq!((ring.stats().taken, ring.stats().lost), (2, 0));
/// # Ok::<(), unmerged::Error>(())
/// ```
///
/// Every CPU has a buffer of `capacity` bytes. A record is copied into it and published by
/// one rseq window, whose last store is the commit: there is no half-written record, whatever
/// interrupts or kills the writer, and no writer ever waits for another. A record takes its
/// length rounded up to 8, at least 8, and 8 more.
///
/// # Which memory
///
/// | made by | and found by | is |
/// |---|---|---|
/// | [`private`](Self::private) | references | this process's; after a fork both have a copy |
/// | [`shared`](Self::shared) | [`from_file`](Self::from_file), with its [`file`](Self::file) | a sealed memory file |
/// | [`create`](Self::create) | [`open`](Self::open) | the caller's, for instance of an mshare region |
///
/// All are address space first: memory is committed where a CPU writes.
///
/// # What holds
///
/// - *Counts are exact.* What was published is taken, lost or inside; what was refused is counted
///   as refused ([`stats`](Self::stats)). This holds when writers and readers are killed at any
///   instruction: a record that a reader had taken and not handed out is lost.
/// - *Signal handlers* may publish, also on the stripe whose publish they interrupt. They must
///   not read.
/// - *Without a window* (implementation `portable`, a thread without rseq, a window that was
///   aborted 16 times) a record goes to one of the overflow stripes, where writers take turns. A
///   turn is never waited for; one whose owner has ended is taken over. All processes of
///   a ring must see each other's process ids for that. A handler that interrupted a publish
///   must not fork, unless the child executes a program or ends.
/// - *Another process* that writes nonsense into the memory makes records wrong or lost, and
///   calls fail; nothing else.
#[derive(Debug)]
pub struct Ring<'a> {
    place: Place,
    /// Stripes that windows of this process may write: all CPU ids, or 0.
    windows: u32,
    /// Units of a stripe less one.
    mask: u64,
    /// The memory is of this process alone.
    is_private: bool,
    /// Keeps the memory mapped.
    _mapping: Option<Mapping>,
    file: Option<OwnedFd>,
    memory: PhantomData<&'a [AtomicU64]>,
}

// SAFETY: the memory is reached by windows and atomics only.
unsafe impl Send for Ring<'_> {}
// SAFETY: as above.
unsafe impl Sync for Ring<'_> {}

/// Seals of the memory file: it can be cut off neither below a mapping nor from its seals.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

impl Ring<'static> {
    /// A ring of this process, with `capacity` bytes for each CPU: a power of two from 256 to
    /// 2^31.
    ///
    /// # Errors
    ///
    /// EINVAL for another capacity; ENOMEM if there is no address space for it.
    pub fn private(capacity: usize, when_full: WhenFull) -> Result<Self> {
        const OPERATION: &str = "percpu::Ring::private";
        let shape = Shape::new(OPERATION, capacity, when_full)?;
        let mapping = Mapping::anonymous(shape.size(), Access::Write);
        let mapping = mapping.op_on(OPERATION, shape.size())?;
        // A huge page would commit stripes of CPUs that never write, on one node. A kernel
        // without huge pages refuses the advice, which is as good.
        // SAFETY: the advice takes no contents away.
        let _ = unsafe { mapping.advise(Advice::LinuxNoHugepage) };
        // SAFETY: zeroed, page-aligned, ours, and kept for as long as the ring.
        let place = unsafe { Place::create(OPERATION, mapping.start(), mapping.len(), shape) }?;
        Ok(Self { is_private: true, _mapping: Some(mapping), ..Self::at(place) })
    }

    /// A ring in a memory file, for several processes. The file is sealed against shrinking
    /// and growing. Others get its descriptor, by fork or in a message, and call
    /// [`from_file`](Self::from_file).
    ///
    /// # Errors
    ///
    /// EINVAL for a capacity that is no power of two from 256 to 2^31; ENOMEM, EMFILE, ENFILE,
    /// EFBIG.
    pub fn shared(capacity: usize, when_full: WhenFull) -> Result<Self> {
        const OPERATION: &str = "percpu::Ring::shared";
        let shape = Shape::new(OPERATION, capacity, when_full)?;
        let file =
            memfd::create("unmerged.ring", shape.size() as u64).op_on(OPERATION, shape.size())?;
        memfd::seal(&file, SEALS).op(OPERATION)?;
        let access = Access::Write;
        let mapping = Mapping::shared(&file, shape.size(), access, At::Anywhere);
        let mapping = mapping.op_on(OPERATION, shape.size())?;
        // SAFETY: zeroed, page-aligned, kept for as long as the ring, reached by rings alone.
        let place = unsafe { Place::create(OPERATION, mapping.start(), mapping.len(), shape) }?;
        Ok(Self { _mapping: Some(mapping), file: Some(file), ..Self::at(place) })
    }

    /// Opens the ring in a memory file that [`shared`](Self::shared) has made, in this or
    /// another process. The descriptor stays the caller's to close or keep.
    ///
    /// # Errors
    ///
    /// EINVAL for a file without seals or one that is too small, EPERM for one that is not
    /// sealed against shrinking; EPROTO if there is no ring of this version and number of CPUs in
    /// it; EACCES for a descriptor that is not writable; ENOMEM.
    pub fn from_file(file: impl AsFd) -> Result<Self> {
        const OPERATION: &str = "percpu::Ring::from_file";
        let file = file.as_fd();
        let size = memfd::sealed_size(file, SealFlags::SHRINK)
            .op_where(OPERATION, memfd::why_not_sealed)?;
        let size = usize::try_from(size).map_err(|_| Error::new(OPERATION, Errno::NOMEM))?;
        let file = file.try_clone_to_owned().map_err(|error| {
            let errno = error.raw_os_error().map_or(Errno::MFILE, Errno::from_raw_os_error);
            Error::new(OPERATION, errno)
        })?;
        let mapping = Mapping::shared(&file, size, Access::Write, At::Anywhere);
        let mapping = mapping.op_on(OPERATION, size)?;
        // SAFETY: page-aligned, kept for as long as the ring; it cannot be truncated.
        let place = unsafe { Place::open(OPERATION, mapping.start(), mapping.len()) }?;
        Ok(Self { _mapping: Some(mapping), file: Some(file), ..Self::at(place) })
    }
}

impl<'a> Ring<'a> {
    /// Bytes that a ring of this capacity takes on this machine: a page, and for each possible
    /// CPU id twice the capacity and 4096 (more with less than 8 ids). They cost memory
    /// where they are touched.
    ///
    /// # Errors
    ///
    /// EINVAL for a capacity that is no power of two from 256 to 2^31.
    pub fn size(capacity: usize) -> Result<usize> {
        Ok(Shape::new("percpu::Ring::size", capacity, WhenFull::Refuse)?.size())
    }

    /// Makes a ring in zeroed memory of the caller's.
    ///
    /// # Errors
    ///
    /// EINVAL for a capacity that is no power of two from 256 to 2^31, or memory that is not
    /// aligned to 4096 or has less than [`size`](Self::size) bytes; EEXIST if it is not zero.
    ///
    /// # Safety
    ///
    /// `memory` must be readable and writable for `len` bytes and for `'a`, in every process
    /// that opens it, and be written by nothing but rings.
    pub unsafe fn create(
        memory: NonNull<u8>,
        len: usize,
        capacity: usize,
        when_full: WhenFull,
    ) -> Result<Self> {
        const OPERATION: &str = "percpu::Ring::create";
        let shape = Shape::new(OPERATION, capacity, when_full)?;
        // SAFETY: forwarded.
        Ok(Self::at(unsafe { Place::create(OPERATION, memory, len, shape) }?))
    }

    /// Opens a ring that this or another process has made in memory of the caller's.
    ///
    /// # Errors
    ///
    /// EINVAL for memory that is not aligned to 4096 or too small for the ring that is there;
    /// EPROTO if there is no ring of this version and number of CPUs.
    ///
    /// # Safety
    ///
    /// As for [`create`](Self::create).
    pub unsafe fn open(memory: NonNull<u8>, len: usize) -> Result<Self> {
        const OPERATION: &str = "percpu::Ring::open";
        // SAFETY: forwarded.
        Ok(Self::at(unsafe { Place::open(OPERATION, memory, len) }?))
    }

    fn at(place: Place) -> Self {
        let shape = place.shape;
        let windows = if implementation() == Implementation::Portable { 0 } else { shape.cpus };
        Self {
            place,
            windows,
            mask: shape.capacity as u64 / 8 - 1,
            is_private: false,
            _mapping: None,
            file: None,
            memory: PhantomData,
        }
    }

    /// The memory file, for another process's [`from_file`](Ring::from_file).
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(OwnedFd::as_fd)
    }

    /// Bytes for each CPU.
    pub const fn capacity(&self) -> usize {
        self.place.shape.capacity
    }

    /// Bytes of the largest record: half the capacity less 8.
    pub const fn max_record(&self) -> usize {
        self.place.shape.most()
    }

    /// What happens when there is no room.
    pub const fn when_full(&self) -> WhenFull {
        self.place.shape.when_full
    }

    /// Publishes a record.
    ///
    /// # Errors
    ///
    /// EMSGSIZE for one that is larger than [`max_record`](Self::max_record). ENOSPC if there is
    /// no room and the ring refuses then; EBUSY if this thread runs no windows and every overflow
    /// stripe is being written: both are counted as refused.
    #[inline]
    pub fn publish(&self, bytes: &[u8]) -> Result<()> {
        if bytes.len() <= 64 && self.publish_short(bytes) {
            return Ok(());
        }
        self.publish_elsewhere(&[IoSlice::new(bytes)])
    }

    /// Publishes one record of several parts.
    ///
    /// # Errors
    ///
    /// As [`publish`](Self::publish).
    pub fn publish_vectored(&self, parts: &[IoSlice<'_>]) -> Result<()> {
        // A few short parts are gathered faster in front of the window than in it.
        let mut bytes = [0; 64];
        let mut len = 0;
        for part in parts {
            let Some(to) = bytes[len..].get_mut(..part.len()) else {
                return self.publish_elsewhere(parts);
            };
            to.copy_from_slice(part);
            len += part.len();
        }
        if self.publish_short(&bytes[..len]) {
            return Ok(());
        }
        self.publish_elsewhere(parts)
    }

    /// A record to be written piece by piece into `buffer`, an array or a mutable slice. It may
    /// have as many bytes as the buffer.
    ///
    /// ```
    /// use std::io::Write;
    /// # use unmerged::percpu::{Ring, WhenFull};
    /// # let ring = Ring::private(4096, WhenFull::Refuse)?;
    /// let mut record = ring.reserve([0; 256]);
    /// write!(record, "{} took {} ms", "sort", 12).expect("256 bytes are enough");
    /// record.commit()?;
    /// # ring.drain(|record| assert_eq!(record.bytes, b"sort took 12 ms"))?;
    /// # Ok::<(), unmerged::Error>(())
    /// ```
    pub const fn reserve<B: AsMut<[u8]> + AsRef<[u8]>>(&self, buffer: B) -> Reservation<'_, B> {
        Reservation::new(self, buffer)
    }

    /// A reader of this ring.
    pub fn reader(&self) -> Reader<'_> {
        Reader::new(self)
    }

    /// Hands out what is inside, source by source; how many records. It is one pass of a
    /// [`Reader`]: what is published meanwhile does not make it longer.
    ///
    /// # Errors
    ///
    /// As [`Reader::next`]; a further call goes on with what is left.
    pub fn drain(&self, mut each: impl FnMut(Record<'_>)) -> Result<u64> {
        let mut reader = self.reader();
        let mut records = 0;
        while let Some(record) = reader.next()? {
            each(record);
            records += 1;
        }
        Ok(records)
    }

    /// One window, for up to 64 bytes; whether that did it.
    #[inline(always)]
    fn publish_short(&self, bytes: &[u8]) -> bool {
        let (area, mask, len) = (rseq::area(), self.mask, bytes.len());
        // SAFETY: an area of the process, or the thread's control block, which is not used then.
        let cpu = unsafe { arch::cpu_id(area) };
        if cpu >= self.windows {
            return false;
        }
        let (stripe, step) = (self.place.address(cpu), RECORD + units(len));
        let outcome = if let Some((words, end)) = short(bytes) {
            let len = len as u64;
            // SAFETY: a stripe of this ring, of at least 32 units, whose head only windows of
            // `cpu` write; the record has up to 3 units.
            unsafe { arch::ring_publish_words(area, cpu, stripe, mask, step, len, end, words) }
        } else {
            let (from, apart) = (bytes.as_ptr(), if len < 32 { 0 } else { 16 });
            let len = len as u64;
            // SAFETY: as above; 17 to 64 bytes, up to 9 units.
            unsafe { arch::ring_publish_vectors(area, cpu, stripe, mask, step, len, from, apart) }
        };
        outcome == Publication::Done
    }
}

/// Up to 16 bytes as two words: the first 8, and the last 8, which end at `end`.
#[inline(always)]
fn short(bytes: &[u8]) -> Option<([u64; 2], usize)> {
    let len = bytes.len();
    if let (Some(first), Some(last)) = (bytes.first_chunk(), bytes.last_chunk()) {
        let words = [u64::from_ne_bytes(*first), u64::from_ne_bytes(*last)];
        return (len <= 16).then_some((words, len));
    }
    let word = if let (Some(first), Some(last)) = (bytes.first_chunk(), bytes.last_chunk()) {
        let [first, last] = [u32::from_le_bytes(*first), u32::from_le_bytes(*last)];
        u64::from(first) | u64::from(last) << ((len - 4) * 8)
    } else {
        // Up to three bytes: the first, the middle one and the last are all of them.
        let byte = |at: usize| bytes.get(at).map_or(0, |&byte| u64::from(byte) << (at * 8));
        byte(0) | byte(len / 2) | byte(len.saturating_sub(1))
    };
    Some(([word, word], 8))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn two_words_have_all_bytes() {
        let bytes: Vec<u8> = (1..=17).collect();
        for len in 0..=16 {
            let ([first, last], end) = short(&bytes[..len]).unwrap();
            let mut stored = [0; 16];
            stored[..8].copy_from_slice(&first.to_ne_bytes());
            stored[end - 8..end].copy_from_slice(&last.to_ne_bytes());
            assert_eq!(stored[..len], bytes[..len]);
            assert!(stored[len..].iter().all(|&byte| byte == 0));
        }
        assert_eq!(short(&bytes), None);
    }
}
