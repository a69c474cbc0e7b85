//! A hash map in a region that outlives whoever changes it.
//!
//! Buckets are chains of nodes that are never changed once they are linked: a change links a new
//! node by one store and frees the old one. So a process that is killed in the middle leaves the old
//! chain or the new one, and at most one node that nobody links. A stripe of buckets has a lock that
//! tells of its holder's death: there is nothing to repair then, and the next one goes on.

use core::alloc::Layout;
use core::hash::BuildHasher;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use unmerged::futex2::lock::{RobustGuard, RobustMutex};
use unmerged::futex2::{Deadline, Shared};
use unmerged::mshare::{Heap, Region, Resident};
use unmerged::{Error, Result};

const BUCKETS: usize = 1 << 16;
const STRIPES: usize = 1 << 10;
/// Longest wait for a holder that lives and does not go on, because it is stopped.
const PATIENCE: Duration = Duration::from_secs(5);

#[repr(C)]
struct Table {
    locks: [RobustMutex<(), Shared>; STRIPES],
    /// Addresses of the first nodes.
    buckets: [AtomicU64; BUCKETS],
    len: AtomicU64,
}

// SAFETY: words that are changed by atomics, and locks of words; zeros are an empty table.
unsafe impl Resident for Table {}

/// What is in front of a key and its value.
#[repr(C)]
struct Node {
    /// Address of the next one, 0 for none. The one field that changes, by an atomic store.
    next: AtomicU64,
    key: u64,
    value: u64,
}

/// A value, or that there is none of the kind that is wanted.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Of the region, such as that it is full.
    Region(Error),
    /// A participant keeps a lock.
    Stopped,
    /// The value is no number, or would be none.
    NoNumber,
}

impl core::fmt::Display for Failure {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Region(error) => error.fmt(f),
            Self::Stopped => f.write_str("another process is stopped and keeps a lock"),
            Self::NoNumber => f.write_str("the value is no number"),
        }
    }
}

impl std::error::Error for Failure {}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Region(error)
    }
}

pub(crate) struct Store {
    region: Region,
    heap: Heap,
    table: NonNull<Table>,
}

// SAFETY: the table is all atomics, and stays mapped as long as the region.
unsafe impl Send for Store {}
// SAFETY: as above.
unsafe impl Sync for Store {}

/// The links of a bucket, locked.
struct Bucket<'s> {
    store: &'s Store,
    first: &'s AtomicU64,
    /// `None` where nobody changes anything.
    _lock: Option<RobustGuard<'s, (), Shared>>,
}

impl Store {
    /// The store of a region, made by whoever comes first.
    pub(crate) fn open(region: Region) -> Result<Self> {
        let heap = region.heap()?;
        let table = match region.root::<Table>("table")? {
            Some(table) => table,
            None => {
                let layout = Layout::new::<Table>();
                let ours = heap.alloc_zeroed(layout)?;
                match region.create_root::<Table>("table", ours.cast())? {
                    None => ours.cast(),
                    Some(theirs) => {
                        // SAFETY: ours, and nobody has seen it.
                        unsafe { heap.free(ours, layout) }?;
                        theirs
                    }
                }
            }
        };
        Ok(Self { region, heap, table })
    }

    pub(crate) fn heap(&self) -> Heap {
        self.heap
    }

    fn table(&self) -> &Table {
        // SAFETY: a root of the region, which is mapped as long as we are.
        unsafe { self.table.as_ref() }
    }

    fn bucket(&self, key: &[u8]) -> core::result::Result<Bucket<'_>, Failure> {
        let hash = foldhash::fast::FixedState::default().hash_one(key) as usize;
        let lock = &self.table().locks[hash % STRIPES];
        let first = &self.table().buckets[hash % BUCKETS];
        let locked = match lock.try_lock_until(Deadline::after(PATIENCE)) {
            Err(error) if error.is_timed_out() => return Err(Failure::Stopped),
            locked => locked?,
        };
        // SAFETY: there is no data, and no thread leaks its guard.
        let guard = unsafe { locked.or_repair(|()| ()) };
        Ok(Bucket { store: self, first, _lock: Some(guard) })
    }

    /// Does something with the value of a key, where it is.
    pub(crate) fn get<R>(
        &self,
        key: &[u8],
        read: impl FnOnce(Option<&[u8]>) -> R,
    ) -> core::result::Result<R, Failure> {
        let bucket = self.bucket(key)?;
        Ok(read(bucket.find(key).map(|(_, node)| bucket.value(node))))
    }

    pub(crate) fn set(&self, key: &[u8], value: &[u8]) -> core::result::Result<(), Failure> {
        self.bucket(key)?.put(key, value)
    }

    /// Whether there was one.
    pub(crate) fn remove(&self, key: &[u8]) -> core::result::Result<bool, Failure> {
        let bucket = self.bucket(key)?;
        let Some((link, node)) = bucket.find(key) else { return Ok(false) };
        // SAFETY: a node of this bucket, which is locked.
        let next = unsafe { node.as_ref() }.next.load(Ordering::Relaxed);
        link.store(next, Ordering::Release);
        self.table().len.fetch_sub(1, Ordering::Relaxed);
        bucket.free(node)?;
        Ok(true)
    }

    /// Adds to a number, which is 0 if there is none.
    pub(crate) fn add(&self, key: &[u8], more: i64) -> core::result::Result<i64, Failure> {
        let bucket = self.bucket(key)?;
        let was = match bucket.find(key) {
            None => Some(0),
            Some((_, node)) => {
                core::str::from_utf8(bucket.value(node)).ok().and_then(|text| text.parse().ok())
            }
        };
        let sum: i64 = was.and_then(|was: i64| was.checked_add(more)).ok_or(Failure::NoNumber)?;
        bucket.put(key, sum.to_string().as_bytes())?;
        Ok(sum)
    }

    /// Frees the nodes that are in no bucket: of processes that were killed between the allocation
    /// of a node and its link, or its last use and its end. Nobody changes anything meanwhile. How
    /// many there were.
    pub(crate) fn collect(&self) -> core::result::Result<usize, Failure> {
        let mut known = std::collections::HashSet::from([self.table.addr().get()]);
        for first in &self.table().buckets {
            let bucket = Bucket { store: self, first, _lock: None };
            let mut next = first.load(Ordering::Acquire);
            while let Some(node) = bucket.node(next) {
                known.insert(node.addr().get());
                // SAFETY: a node of this bucket, and nobody changes anything.
                next = unsafe { node.as_ref() }.next.load(Ordering::Acquire);
            }
        }
        self.table().len.store(known.len() as u64 - 1, Ordering::Relaxed);
        let mut freed = 0;
        for (block, size) in self.heap.blocks()? {
            if !known.contains(&block.addr().get()) {
                let layout = Layout::from_size_align(size, 1).expect("a block's size");
                // SAFETY: a block of this heap that nobody knows any more.
                unsafe { self.heap.free(block, layout) }?;
                freed += 1;
            }
        }
        Ok(freed)
    }

    pub(crate) fn region(&self) -> &Region {
        &self.region
    }

    pub(crate) fn len(&self) -> u64 {
        self.table().len.load(Ordering::Relaxed)
    }
}

impl<'s> Bucket<'s> {
    /// A node, if that is what the address says: it lies in the region with its key and value.
    fn node(&self, address: u64) -> Option<NonNull<Node>> {
        let node: *const Node = core::ptr::with_exposed_provenance(address as usize);
        let region = &self.store.region;
        if !address.is_multiple_of(8) || !region.contains(node, size_of::<Node>()) {
            return None;
        }
        // SAFETY: in the region, aligned.
        let (key, value) = unsafe { ((*node).key as usize, (*node).value as usize) };
        let len = size_of::<Node>().checked_add(key)?.checked_add(value)?;
        region.contains(node, len).then(|| NonNull::new(node.cast_mut()))?
    }

    /// The link to the node of a key, and the node.
    fn find(&self, key: &[u8]) -> Option<(&'s AtomicU64, NonNull<Node>)> {
        let mut link = self.first;
        while let Some(node) = self.node(link.load(Ordering::Acquire)) {
            if self.bytes(node).0 == key {
                return Some((link, node));
            }
            // SAFETY: a node of this bucket, which is locked as long as we are.
            link = unsafe { &(*node.as_ptr()).next };
        }
        None
    }

    /// Key and value of a node, which do not change.
    fn bytes(&self, node: NonNull<Node>) -> (&[u8], &[u8]) {
        // SAFETY: checked by `node`; the bytes follow it, and nobody frees it while we have the lock.
        unsafe {
            let (key, value) = (node.as_ref().key as usize, node.as_ref().value as usize);
            let first = node.add(1).cast::<u8>();
            let key_bytes = core::slice::from_raw_parts(first.as_ptr(), key);
            (key_bytes, core::slice::from_raw_parts(first.add(key).as_ptr(), value))
        }
    }

    fn value(&self, node: NonNull<Node>) -> &[u8] {
        self.bytes(node).1
    }

    fn layout(key: usize, value: usize) -> Layout {
        Layout::from_size_align(size_of::<Node>() + key + value, 8)
            .expect("the bytes are in memory")
    }

    /// Links a node of this key and value, instead of the one that there is.
    fn put(&self, key: &[u8], value: &[u8]) -> core::result::Result<(), Failure> {
        let block = self.store.heap.alloc(Self::layout(key.len(), value.len()))?;
        let was = self.find(key);
        let (link, next) = match was {
            // SAFETY: a node of this bucket, which is locked.
            Some((link, old)) => (link, unsafe { old.as_ref() }.next.load(Ordering::Relaxed)),
            None => (self.first, self.first.load(Ordering::Relaxed)),
        };
        let node = block.cast::<Node>();
        // SAFETY: just allocated for all of it.
        unsafe {
            let (key_len, value_len) = (key.len() as u64, value.len() as u64);
            node.write(Node { next: AtomicU64::new(next), key: key_len, value: value_len });
            let bytes = node.add(1).cast::<u8>();
            bytes.copy_from_nonoverlapping(NonNull::from(key).cast(), key.len());
            let bytes = bytes.add(key.len());
            bytes.copy_from_nonoverlapping(NonNull::from(value).cast(), value.len());
        }
        // The moment at which it is there.
        link.store(block.as_ptr().expose_provenance() as u64, Ordering::Release);
        match was {
            Some((_, old)) => self.free(old),
            None => {
                self.store.table().len.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    /// Frees a node that is not linked any more.
    fn free(&self, node: NonNull<Node>) -> core::result::Result<(), Failure> {
        let (key, value) = self.bytes(node);
        let layout = Self::layout(key.len(), value.len());
        // SAFETY: allocated with this layout, and only who has the lock knows it.
        Ok(unsafe { self.store.heap.free(node.cast(), layout) }?)
    }
}
