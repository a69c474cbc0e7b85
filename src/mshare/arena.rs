//! Many small values, without a shared word touched for each.

use super::region::Region;
use crate::error::{Error, Result};
use crate::shm::Resident;
use core::alloc::Layout;
use core::cell::Cell;
use core::ptr::NonNull;
use rustix::io::Errno;

/// Chunks begin on a cache line, so that two arenas never write one line.
const LINE: usize = 64;

/// One owner's allocator: takes chunks from a [`Region`], and gives out pieces of them.
///
/// For one thread at a time: it can be sent, not shared. Nothing is given back: what is
/// left of a chunk is lost with the arena, the memory of values stays theirs as long as the
/// region is there. A forked child must not use its parent's arenas, because both would give out
/// the same bytes.
///
/// ```
/// # fn main() -> unmerged::Result<()> {
/// use unmerged::mshare::{Arena, Region};
///
/// # let name = format!("doc-arena-{}", std::process::id());
/// let region = Region::builder(&name).size(1 << 20).create()?;
/// let arena = Arena::new(&region, 4096)?;
/// let answer = arena.alloc_value(42_u64)?;
/// let greeting = arena.alloc_str("hello")?;
/// assert!(region.contains(answer.as_ptr(), 8));
/// // SAFETY: written above, and by nobody else.
/// assert_eq!(unsafe { greeting.as_ref() }, "hello");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Arena<'r> {
    region: &'r Region,
    chunk: usize,
    /// Address of the first free byte of the current chunk, and of its end.
    next: Cell<usize>,
    end: Cell<usize>,
}

impl<'r> Arena<'r> {
    /// An arena that takes `chunk` bytes at a time. It takes none yet.
    ///
    /// # Errors
    ///
    /// EINVAL for a chunk of no bytes, or of more than the region has.
    pub fn new(region: &'r Region, chunk: usize) -> Result<Self> {
        if chunk == 0 || chunk > region.size() {
            return Err(Error::with(
                "mshare::Arena::new",
                Errno::INVAL,
                format_args!("chunk of {chunk} bytes in a region of {}", region.size()),
            ));
        }
        Ok(Self { region, chunk, next: Cell::new(0), end: Cell::new(0) })
    }

    /// Memory that nobody had before: zero.
    ///
    /// # Errors
    ///
    /// ENOMEM with the numbers if the region is full.
    pub fn alloc(&self, layout: Layout) -> Result<NonNull<u8>> {
        if let Some(piece) = self.piece(layout) {
            return Ok(piece);
        }
        // What would waste much of a chunk goes past it, and so does the last that fits.
        if layout.size() <= self.chunk / 4
            && layout.align() <= LINE
            && let Ok(chunk) = Layout::from_size_align(self.chunk, LINE)
            && let Ok(start) = self.region.alloc(chunk)
        {
            let start = start.addr().get();
            self.next.set(start);
            self.end.set(start + self.chunk);
            if let Some(piece) = self.piece(layout) {
                return Ok(piece);
            }
        }
        self.region.alloc(layout)
    }

    /// A piece of the current chunk.
    #[inline]
    fn piece(&self, layout: Layout) -> Option<NonNull<u8>> {
        let start = self.next.get().checked_next_multiple_of(layout.align())?;
        let end = start.checked_add(layout.size())?;
        if start == 0 || end > self.end.get() {
            return None;
        }
        self.next.set(end);
        let base = self.region.base();
        // SAFETY: a chunk lies in the region, and the piece in the chunk.
        Some(unsafe { base.add(start - base.addr().get()) })
    }

    /// Moves a value into the region.
    ///
    /// # Errors
    ///
    /// ENOMEM with the numbers if the region is full; the value is dropped then.
    pub fn alloc_value<T: Resident>(&self, value: T) -> Result<NonNull<T>> {
        let place = self.alloc(Layout::new::<T>())?.cast::<T>();
        // SAFETY: room for a T, aligned, and ours alone: nobody else knows the address.
        unsafe { place.write(value) };
        Ok(place)
    }

    /// Moves `len` values into the region, one after the other: `value(n)` is the one at `n`.
    ///
    /// # Errors
    ///
    /// ENOMEM with the numbers if the region is full; then no value was made.
    pub fn alloc_slice<T: Resident>(
        &self,
        len: usize,
        mut value: impl FnMut(usize) -> T,
    ) -> Result<NonNull<[T]>> {
        let layout = Layout::array::<T>(len).map_err(|_| {
            Error::with(
                "mshare::Arena::alloc_slice",
                Errno::NOMEM,
                format_args!("{len} times {} bytes", size_of::<T>()),
            )
        })?;
        let place = self.alloc(layout)?.cast::<T>();
        for n in 0..len {
            // SAFETY: there is room for `len` of them.
            let place = unsafe { place.add(n) };
            // SAFETY: aligned, and ours alone: nobody else knows the address.
            unsafe { place.write(value(n)) };
        }
        Ok(NonNull::slice_from_raw_parts(place, len))
    }

    /// Copies bytes into the region.
    ///
    /// # Errors
    ///
    /// ENOMEM with the numbers if the region is full.
    pub fn alloc_bytes(&self, bytes: &[u8]) -> Result<NonNull<[u8]>> {
        let place = self.alloc(Layout::for_value(bytes))?;
        let source = NonNull::from(bytes).cast::<u8>();
        // SAFETY: as many bytes as were taken. They are ours alone, unless a participant lied about
        // what is taken: then they may overlap with `bytes`, which this copy allows.
        unsafe { place.copy_from(source, bytes.len()) };
        Ok(NonNull::slice_from_raw_parts(place, bytes.len()))
    }

    /// Copies a string into the region.
    ///
    /// # Errors
    ///
    /// ENOMEM with the numbers if the region is full.
    pub fn alloc_str(&self, text: &str) -> Result<NonNull<str>> {
        let bytes = self.alloc_bytes(text.as_bytes())?;
        let text = bytes.as_ptr() as *mut str;
        // SAFETY: not null; it was not before the cast either.
        Ok(unsafe { NonNull::new_unchecked(text) })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn region(size: usize) -> (tempfile::TempDir, Region) {
        let temp = tempfile::tempdir().unwrap();
        let region = Region::builder("arena").size(size).directory(temp.path()).create().unwrap();
        (temp, region)
    }

    #[test]
    fn pieces_are_apart_and_aligned() {
        let (_temp, region) = region(1 << 16);
        let arena = Arena::new(&region, 1024).unwrap();
        let mut pieces = Vec::new();
        for (size, align) in (1..100).zip([1, 2, 4, 8, 16, 64, 128, 4096].into_iter().cycle()) {
            let piece = arena.alloc(Layout::from_size_align(size, align).unwrap()).unwrap();
            let start = piece.addr().get();
            assert!(start.is_multiple_of(align) && region.contains(piece.as_ptr(), size));
            pieces.push(start..start + size);
        }
        pieces.sort_by_key(|piece| piece.start);
        assert!(pieces.is_sorted_by(|a, b| a.end <= b.start));
    }

    #[test]
    fn the_last_byte_can_be_had() {
        let (_temp, region) = region(4096);
        let arena = Arena::new(&region, 4000).unwrap();
        let bytes = (0..4096).map_while(|_| arena.alloc_value(7_u8).ok()).count();
        assert_eq!(bytes, 4096);
        let error = arena.alloc_value(7_u8).unwrap_err();
        assert!(error.is_exhausted() && error.to_string().contains("4096 of 4096"), "{error}");
        arena.alloc_bytes(&[]).unwrap();
    }

    #[test]
    fn slices_are_read_back_within_the_region() {
        use crate::futex2::{Futex, Shared};

        let (_temp, region) = region(1 << 16);
        let arena = Arena::new(&region, 1024).unwrap();
        let squares = arena.alloc_slice(300, |n| (n * n) as u64).unwrap().cast::<u64>().as_ptr();
        // SAFETY: written above, and by nobody else.
        let read = unsafe { region.get_slice(squares, 300) }.unwrap();
        assert!(read.iter().enumerate().all(|(n, &square)| square == (n * n) as u64));
        let words = arena.alloc_slice(5, |_| Futex::<u8, Shared>::new(7)).unwrap();
        // SAFETY: as above; atomics.
        let words = unsafe { region.get_slice(words.cast::<Futex<u8, Shared>>().as_ptr(), 5) };
        assert!(words.unwrap()[4].wait(8, None).unwrap_err().is_would_block());

        for len in [(1 << 13) + 1, usize::MAX / 8, usize::MAX] {
            // SAFETY: refused.
            let error = unsafe { region.get_slice(squares, len) }.unwrap_err();
            assert!(error.is_invalid(), "{error}");
        }
        assert!(arena.alloc_slice(usize::MAX, |_| 0_u64).unwrap_err().is_exhausted());
        assert!(arena.alloc_slice(1 << 13, |_| 0_u64).unwrap_err().is_exhausted());
    }

    #[test]
    fn chunks_of_no_sense() {
        let (_temp, region) = region(4096);
        assert!(Arena::new(&region, 0).unwrap_err().is_invalid());
        assert!(Arena::new(&region, 4097).unwrap_err().is_invalid());
    }
}
