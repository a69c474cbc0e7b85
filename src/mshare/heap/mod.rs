//! Memory from a region, taken and given back by any of its processes.
//!
//! # How it is made
//!
//! Sizes up to 8 KiB come from slabs, which are runs of pages with blocks of one [class]; what is
//! larger is a run of its own ([pages]), of which a thread keeps some for its next allocation
//! ([kept]). A thread holds one [slab] of each class that it
//! uses, takes 64 blocks from it by one atomic instruction, and hands them out by plain stores; a
//! block is freed by one atomic instruction, whoever frees it, or by a plain store if it is of the
//! 64 in hand. Slabs with free blocks that nobody holds are found by [room]; an empty one is given
//! back at once. There are no lists: all is bitmaps and states, which can be checked, repaired and
//! distrusted word by word.
//!
//! A thread that is killed leaves its [slot](member) behind, which tells what it had in hand and
//! what it was doing. Whoever finds the slots or the pages used up, or waits for the lock that the
//! dead one had, takes over what it left; so does [`Heap::recover`].
//!
//! Nothing that is read in the region is believed: page numbers and lengths are checked against
//! the [space], which is the process's own, and every loop ends.

mod blocks;
mod cache;
mod check;
mod class;
mod extent;
mod hand;
mod kept;
mod lock;
mod making;
mod member;
mod owner;
mod pages;
mod refill;
mod report;
mod room;
mod slab;
mod space;
mod state;
mod steps;

#[cfg(feature = "allocator-api2")]
mod allocator;
#[cfg(all(test, not(loom)))]
mod tests;

pub(super) use making::{abandon, range};
pub use report::{HeapStats, Problem, Report};

use crate::error::{Error, Result};
use crate::shm::Resident;
use crate::sys::map::{self, PAGE};
use cache::Cache;
use core::alloc::Layout;
use core::num::NonZeroUsize;
use core::ptr::{self, NonNull};
use member::{Block, Refusal};
use refill::{free_anywhere, put_down, run, small};
use rustix::io::Errno;

const ALLOC: &str = "mshare::Heap::alloc";
const FREE: &str = "mshare::Heap::free";
const RESIZE: &str = "mshare::Heap::resize";

/// Runs of at least so many bytes are zeroed by giving their memory back.
const PUNCH: usize = 256 << 10;

/// An allocator of memory in a region.
///
/// A handle is one word, the address of the region, and means the same heap in every process that
/// has called [`Region::heap`](super::Region::heap). It can be stored in the region: a vector or map that one
/// process makes with it is read, grown and dropped by another. With the feature `allocator-api2` it
/// is an `Allocator` of that crate.
///
/// ```
/// # fn main() -> unmerged::Result<()> {
/// use core::alloc::Layout;
/// use unmerged::mshare::Region;
///
/// # let name = format!("doc-heap-{}", std::process::id());
/// let region = Region::builder(&name).size(1 << 26).create()?;
/// let heap = region.heap()?;
/// let layout = Layout::new::<[u64; 100]>();
/// let block = heap.alloc(layout)?;
/// assert!(region.contains(block.as_ptr(), layout.size()));
/// // SAFETY: allocated above, here or in another process, and not used any more.
/// unsafe { heap.free(block, layout) }?;
/// assert_eq!(heap.stats()?.blocks, 0);
/// # Ok(())
/// # }
/// ```
///
/// # What holds
///
/// - **Alignment** up to any power of two that the region has room for; 16 at least.
/// - **Death.** A process that is killed at any instruction of any of these functions leaves a heap
///   that works. A block is the caller's from one store on, and free from one on; what the process
///   had neither handed out nor finished is taken back by whoever next needs it, or by
///   [`recover`](Self::recover). What was handed out stays allocated: whoever knows the address can
///   free it.
/// - **Hostile bytes.** Whatever is written over the heap's own words, what is given out lies in the
///   region and is aligned, and every call returns; but two may be given the same bytes.
/// - **Stopped processes.** Small blocks are allocated and freed without waiting, except for
///   the one in many that needs a new slab; there, and for large ones, a participant that is stopped
///   inside of the lock is waited for, for 2 s, and then the error is ETIMEDOUT. Of large blocks up
///   to 256 KiB, those that the thread has just freed, 8 at most, are had without the lock.
/// - **fork.** The child is a participant of its own. What it inherits is not its to free twice:
///   parent and child see one heap.
/// - **Not** in signal handlers, nor in the child of `vfork`.
///
/// The region stays mapped in a process that uses its heap, until [`close`](Self::close).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Heap {
    region: NonZeroUsize,
}

// SAFETY: one word, checked against what the process knows whenever it is used.
unsafe impl Resident for Heap {}

impl Heap {
    fn with<R>(&self, operation: &'static str, body: impl FnOnce(&mut Cache) -> R) -> Result<R> {
        cache::with(operation, self.region.get(), body)
    }

    /// Allocates, uninitialised. A layout of no bytes takes none, and gets an aligned pointer to
    /// none.
    ///
    /// # Errors
    ///
    /// ENOMEM with the numbers; ENXIO if this process has not called [`Region::heap`](super::Region::heap); EAGAIN if
    /// the heap has as many living threads as it takes, 16 to 1024 by size; ETIMEDOUT if a
    /// participant is stopped inside of the lock.
    #[inline]
    pub fn alloc(&self, layout: Layout) -> Result<NonNull<u8>> {
        if layout.size() == 0 {
            return Ok(layout.dangling_ptr());
        }
        // Most are in hand.
        if let Some(class) = class::of(layout)
            && let Some(mut cache) = cache::last(self.region.get())
        {
            // SAFETY: this thread's, and nobody else refers to it.
            let cache = unsafe { cache.as_mut() };
            if let Some(address) = cache.member.hand_out(class, &mut cache.locals[class]) {
                return Ok(self.pointer(address));
            }
        }
        self.alloc_slowly(layout)
    }

    #[cold]
    #[inline(never)]
    fn alloc_slowly(&self, layout: Layout) -> Result<NonNull<u8>> {
        let address = self.with(ALLOC, |cache| match class::of(layout) {
            Some(class) => match cache.member.hand_out(class, &mut cache.locals[class]) {
                Some(address) => Ok(address),
                None => small(cache, class, layout.align()),
            },
            None => run(cache, layout),
        })?;
        match address {
            Ok(address) => Ok(self.pointer(address)),
            Err(refusal) => Err(self.refused(layout, refusal)),
        }
    }

    /// Allocates, zeroed.
    ///
    /// # Errors
    ///
    /// Those of [`alloc`](Self::alloc).
    pub fn alloc_zeroed(&self, layout: Layout) -> Result<NonNull<u8>> {
        let block = self.alloc(layout)?;
        let len = layout.size();
        let whole = len / PAGE * PAGE;
        if len >= PUNCH && block.addr().get().is_multiple_of(PAGE) {
            // SAFETY: whole pages of a block that is ours.
            if unsafe { map::remove(block.as_ptr(), whole) }.is_ok() {
                // SAFETY: in the block.
                let rest = unsafe { block.add(whole) };
                // SAFETY: as many bytes as the block has left.
                unsafe { rest.write_bytes(0, len - whole) };
                return Ok(block);
            }
        }
        // SAFETY: ours, and as long as that.
        unsafe { block.write_bytes(0, len) };
        Ok(block)
    }

    /// Frees a block.
    ///
    /// # Errors
    ///
    /// EINVAL with the address if there is no such block, or it is free already as far as can be
    /// told; then nothing is changed. ENXIO and EAGAIN as for [`alloc`](Self::alloc).
    ///
    /// # Safety
    ///
    /// It was allocated in this heap, by whichever process, with this layout or one whose size it
    /// was changed to; nobody uses it any more, and nobody else frees it.
    #[inline]
    pub unsafe fn free(&self, block: NonNull<u8>, layout: Layout) -> Result<()> {
        if layout.size() == 0 {
            return Ok(());
        }
        let address = block.addr().get();
        // Most are freed by who has just allocated them.
        if let Some(class) = class::of(layout)
            && let Some(mut cache) = cache::last(self.region.get())
        {
            // SAFETY: this thread's, and nobody else refers to it.
            let cache = unsafe { cache.as_mut() };
            if cache.member.free_local(address, class, &mut cache.locals[class]) == Some(true) {
                return Ok(());
            }
        }
        self.free_slowly(address)
    }

    #[inline(never)]
    fn free_slowly(&self, address: usize) -> Result<()> {
        let freed = self.with(FREE, |cache| free_anywhere(cache, address))?;
        if freed { Ok(()) } else { Err(Self::no_block(FREE, address)) }
    }

    /// Changes the size of a block where it is; whether that could be done. A larger one needs
    /// room in its class, or free pages behind it; a smaller one frees the pages it no longer needs.
    ///
    /// # Errors
    ///
    /// As for [`free`](Self::free), and ETIMEDOUT.
    ///
    /// # Safety
    ///
    /// As for [`free`](Self::free), but that the block is used no further than `size`.
    pub unsafe fn resize(&self, block: NonNull<u8>, layout: Layout, size: usize) -> Result<bool> {
        if layout.size() == 0 || size == 0 {
            return Ok(size == layout.size());
        }
        let address = block.addr().get();
        let resized = self.with(RESIZE, |cache| match Block::at(&cache.member.space, address) {
            Some(Block::Run { page, pages }) => {
                let (len, member) = (size.div_ceil(PAGE), cache.member);
                let change = || member.pages().is_ok_and(|lock| lock.resize(page, pages, len));
                // What is behind it may be what this thread keeps.
                let make_room = |kept| len > pages && member.unkeep_all(kept);
                Some(len == pages || change() || make_room(&mut cache.kept) && change())
            }
            Some(block) => Some(size <= block.capacity()),
            None => None,
        })?;
        resized.ok_or_else(|| Self::no_block(RESIZE, address))
    }

    /// Bytes that a block really has.
    ///
    /// # Errors
    ///
    /// EINVAL with the address if no block begins there. ENXIO, EAGAIN as for [`alloc`](Self::alloc).
    pub fn capacity(&self, block: NonNull<u8>) -> Result<usize> {
        const OP: &str = "mshare::Heap::capacity";
        let address = block.addr().get();
        let found = self.with(OP, |cache| Block::at(&cache.member.space, address))?;
        found.map(Block::capacity).ok_or_else(|| Self::no_block(OP, address))
    }

    /// Takes back what threads that are gone had in hand, and completes what they were doing; how
    /// many there were. Whoever runs out of memory or slots does so too.
    ///
    /// # Errors
    ///
    /// ENXIO, EAGAIN as for [`alloc`](Self::alloc).
    pub fn recover(&self) -> Result<usize> {
        self.with("mshare::Heap::recover", |cache| {
            let recovered = cache.member.recover_others();
            cache.member.sweep();
            recovered
        })
    }

    /// Gives the memory of free pages to the system; how many bytes. Before that, it recovers, and
    /// puts down what this thread has in hand.
    ///
    /// # Errors
    ///
    /// ENXIO, EAGAIN and ETIMEDOUT as for [`alloc`](Self::alloc).
    pub fn trim(&self) -> Result<usize> {
        const OP: &str = "mshare::Heap::trim";
        self.recover()?;
        let trimmed = self.with(OP, |cache| {
            put_down(cache);
            let (mut trimmed, mut next) = (0, Some(0));
            while let Some(from) = next {
                // Others get their turn in between.
                let (bytes, on) = cache.member.pages()?.punch(from);
                (trimmed, next) = (trimmed + bytes, on);
            }
            Ok(trimmed)
        })?;
        trimmed.map_err(|refusal| self.refused(Layout::new::<()>(), refusal))
    }

    /// Ends this process's use of the heap, so that the region can be unmapped.
    ///
    /// # Safety
    ///
    /// No thread of this process calls this heap any more, by this handle, by another, or by a value
    /// that has one; those that did have been joined (a thread gives back what it has in hand
    /// when it ends, after a scope has let go of it). Nothing uses memory of the heap beyond
    /// the life of the [`Region`](super::Region).
    pub unsafe fn close(self) {
        cache::forget(self.region.get());
    }

    /// A pointer to what was allocated.
    #[inline]
    fn pointer(&self, address: usize) -> NonNull<u8> {
        let pointer: *mut u8 = ptr::with_exposed_provenance_mut(address);
        // SAFETY: an address in the region, which is not at 0.
        unsafe { NonNull::new_unchecked(pointer) }
    }

    #[cold]
    fn no_block(operation: &'static str, address: usize) -> Error {
        Error::with(operation, Errno::INVAL, format_args!("no block begins at {address:#x}"))
    }

    #[cold]
    fn refused(&self, layout: Layout, refusal: Refusal) -> Error {
        let (size, align) = (layout.size(), layout.align());
        if refusal == Refusal::Locked {
            let numbers = format_args!("{size} bytes: a participant keeps the lock of the pages");
            return Error::with(ALLOC, Errno::TIMEDOUT, numbers);
        }
        let figures = self.with(ALLOC, |cache| {
            let space = &cache.member.space;
            let longest = cache.member.pages().map_or(0, |pages| pages.longest());
            let [taken, ..] = pages::figures(space);
            (taken * PAGE, space.pages() * PAGE, longest * PAGE)
        });
        let (taken, all, longest) = figures.unwrap_or_default();
        let numbers = format_args!(
            "{size} bytes aligned to {align} do not fit: {taken} of {all} are taken, the longest \
             free run is {longest}"
        );
        Error::with(ALLOC, Errno::NOMEM, numbers)
    }
}
