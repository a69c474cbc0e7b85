//! The words of one file, as a hash map in the region.
//!
//! The entries are the file's: a list in the order in which the words first occur, linked by
//! plain pointers, which the parent walks where it lies. The buckets are the worker's: they
//! are needed while a map is built, and then again for the next file.

use crate::text;
use core::hash::{BuildHasher, Hasher};
use core::ptr::{self, NonNull};
use foldhash::fast::FixedState;
use unmerged::Result;
use unmerged::mshare::{Arena, Region, Resident};

/// A word of a file.
#[repr(C)]
#[derive(Debug)]
struct Entry {
    next: *const Entry,
    bytes: *const u8,
    hash: u64,
    len: u32,
    count: u32,
}

// SAFETY: pointers into the region and numbers, not written after the map is published;
// repr(C), no Drop.
unsafe impl Resident for Entry {}

/// The words of a file.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Map {
    first: *const Entry,
    /// Entries.
    distinct: u64,
    /// Words, each as often as it occurs.
    pub(crate) words: u64,
    /// Bytes that were read.
    pub(crate) bytes: u64,
}

// SAFETY: as an Entry.
unsafe impl Resident for Map {}

/// How often a word occurs in a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Word<'r> {
    pub(crate) bytes: &'r [u8],
    pub(crate) hash: u64,
    pub(crate) count: u32,
}

/// Entries of a published map.
#[derive(Debug)]
pub(crate) struct Entries<'r> {
    region: &'r Region,
    next: *const Entry,
    /// No list is longer than the map says, so a walk ends whatever the links say.
    left: u64,
}

impl Map {
    /// The map at this address.
    ///
    /// # Errors
    ///
    /// EINVAL: there is no room for one.
    ///
    /// # Safety
    ///
    /// The address was published as that of a map, and was read with acquire.
    pub(crate) unsafe fn at(region: &Region, address: *const Self) -> Result<&Self> {
        // SAFETY: the caller says that it is a published map; these are never written.
        unsafe { region.get(address) }
    }

    /// Its entries.
    pub(crate) fn entries<'r>(&self, region: &'r Region) -> Entries<'r> {
        Entries { region, next: self.first, left: self.distinct }
    }
}

impl<'r> Iterator for Entries<'r> {
    type Item = Result<Word<'r>>;

    fn next(&mut self) -> Option<Result<Word<'r>>> {
        self.left = self.left.checked_sub(1)?;
        Some(self.read())
    }
}

impl<'r> Entries<'r> {
    #[inline]
    fn read(&mut self) -> Result<Word<'r>> {
        // SAFETY: an entry of a published map, which is never written again.
        let entry = unsafe { self.region.get(self.next) }?;
        self.next = entry.next;
        // SAFETY: the bytes of the entry were written before it was.
        let bytes = unsafe { self.region.get_slice(entry.bytes, entry.len as usize) }?;
        Ok(Word { bytes, hash: entry.hash, count: entry.count })
    }
}

/// A worker's means to build maps, one after the other.
#[derive(Debug)]
pub(crate) struct Builder<'r> {
    arena: Arena<'r>,
    hasher: FixedState,
    /// Null, or an entry of the map that is being built. Only the first `mask + 1` are used.
    buckets: NonNull<[*mut Entry]>,
    mask: usize,
    first: *mut Entry,
    last: *mut Entry,
    distinct: usize,
    words: u64,
}

/// Bytes that the arena takes from the region at a time.
const CHUNK: usize = 1 << 20;
/// Buckets to begin with: enough for a file of 64 KiB.
const BUCKETS: usize = 1 << 12;

impl<'r> Builder<'r> {
    /// A builder whose maps are in `region`. All processes must use one `seed`.
    ///
    /// # Errors
    ///
    /// ENOMEM: the region is full.
    pub(crate) fn new(region: &'r Region, seed: u64) -> Result<Self> {
        let arena = Arena::new(region, CHUNK)?;
        let buckets = arena.alloc_slice(BUCKETS, |_| ptr::null_mut())?;
        Ok(Self {
            arena,
            hasher: FixedState::with_seed(seed),
            buckets,
            mask: 0,
            first: ptr::null_mut(),
            last: ptr::null_mut(),
            distinct: 0,
            words: 0,
        })
    }

    /// Begins a map for a text of so many bytes; one that was begun before is lost.
    pub(crate) fn begin(&mut self, bytes: usize) {
        // One bucket for 16 bytes of text: of source code, half of them stay empty.
        let buckets = (bytes / 16).next_power_of_two().clamp(16, self.buckets.len());
        self.clear(buckets);
        (self.first, self.last) = (ptr::null_mut(), ptr::null_mut());
        (self.distinct, self.words) = (0, 0);
    }

    /// Empties the first `buckets`, of those that there are, and uses them alone.
    fn clear(&mut self, buckets: usize) {
        assert!(buckets.is_power_of_two() && buckets <= self.buckets.len());
        self.mask = buckets - 1;
        // SAFETY: as many as are cleared are there; they are this worker's alone.
        unsafe { self.buckets.cast::<*mut Entry>().write_bytes(0, buckets) };
    }

    /// Counts the words of a text.
    ///
    /// # Errors
    ///
    /// ENOMEM: the region is full.
    pub(crate) fn count(&mut self, text: &[u8]) -> Result<()> {
        for word in text::words(text) {
            let mut hasher = self.hasher.build_hasher();
            hasher.write(word);
            let hash = hasher.finish();
            self.words += 1;
            let mut bucket = self.bucket(hash);
            // SAFETY: `bucket` gives one of the buckets, which this worker alone uses.
            while let Some(mut entry) = NonNull::new(unsafe { bucket.read() }) {
                // SAFETY: an entry of the map that is being built: written by `insert`, and
                // nobody else knows of it.
                let entry = unsafe { entry.as_mut() };
                // SAFETY: as many bytes were copied there.
                if entry.hash == hash && unsafe { is_word(entry, word) } {
                    entry.count += 1;
                    break;
                }
                bucket = self.after(bucket);
            }
            // SAFETY: as above.
            if unsafe { bucket.read() }.is_null() {
                self.insert(bucket, word, hash)?;
            }
        }
        Ok(())
    }

    /// The bucket at which the search for a hash begins.
    #[inline]
    fn bucket(&self, hash: u64) -> NonNull<*mut Entry> {
        // SAFETY: the mask is less than the number of buckets.
        unsafe { self.buckets.cast::<*mut Entry>().add(hash as usize & self.mask) }
    }

    /// The bucket after this one; after the last, the first.
    #[inline]
    fn after(&self, bucket: NonNull<*mut Entry>) -> NonNull<*mut Entry> {
        let first = self.buckets.cast::<*mut Entry>();
        // SAFETY: both are of the same buckets.
        let at = unsafe { bucket.offset_from_unsigned(first) };
        // SAFETY: the mask is less than the number of buckets.
        unsafe { first.add((at + 1) & self.mask) }
    }

    /// Adds a word that is not there, in an empty bucket.
    fn insert(&mut self, bucket: NonNull<*mut Entry>, word: &[u8], hash: u64) -> Result<()> {
        let bytes = self.arena.alloc_bytes(word)?;
        let entry = self.arena.alloc_value(Entry {
            next: ptr::null(),
            bytes: bytes.cast().as_ptr(),
            hash,
            len: word.len() as u32, // A file has less than 4 GiB.
            count: 1,
        })?;
        match NonNull::new(self.last) {
            None => self.first = entry.as_ptr(),
            // SAFETY: the entry before, which nobody else knows of yet.
            Some(mut last) => unsafe { last.as_mut() }.next = entry.as_ptr(),
        }
        self.last = entry.as_ptr();
        // SAFETY: one of the buckets, which this worker alone uses.
        unsafe { bucket.write(entry.as_ptr()) };
        self.distinct += 1;
        if 2 * self.distinct > self.mask {
            self.grow()?;
        }
        Ok(())
    }

    /// Twice the buckets, and every entry in its new one.
    #[cold]
    fn grow(&mut self) -> Result<()> {
        let buckets = 2 * (self.mask + 1);
        if buckets > self.buckets.len() {
            // The old ones are lost to the region; all that were lost so are less than these.
            self.buckets = self.arena.alloc_slice(buckets, |_| ptr::null_mut())?;
        }
        self.clear(buckets);
        let mut next = self.first;
        while let Some(entry) = NonNull::new(next) {
            // SAFETY: an entry of the map that is being built.
            let (hash, after) = unsafe { ((*next).hash, (*next).next) };
            let mut bucket = self.bucket(hash);
            // SAFETY: one of the buckets, which this worker alone uses.
            while !unsafe { bucket.read() }.is_null() {
                bucket = self.after(bucket);
            }
            // SAFETY: as above.
            unsafe { bucket.write(entry.as_ptr()) };
            next = after.cast_mut();
        }
        Ok(())
    }

    /// Ends the map of a file of so many bytes: to be published, and not written any more.
    ///
    /// # Errors
    ///
    /// ENOMEM: the region is full.
    pub(crate) fn finish(&mut self, bytes: usize) -> Result<NonNull<Map>> {
        let map = self.arena.alloc_value(Map {
            first: self.first,
            distinct: self.distinct as u64,
            words: self.words,
            bytes: bytes as u64,
        });
        self.begin(0);
        map
    }
}

/// Is it the entry of this word?
///
/// # Safety
///
/// The entry has as many bytes as it says.
#[inline]
unsafe fn is_word(entry: &Entry, word: &[u8]) -> bool {
    // SAFETY: the caller's word.
    entry.len as usize == word.len()
        && unsafe { core::slice::from_raw_parts(entry.bytes, word.len()) } == word
}
