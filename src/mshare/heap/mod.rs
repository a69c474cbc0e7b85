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
mod kept;
mod lock;
mod member;
mod owner;
mod pages;
mod room;
mod slab;
mod space;
mod state;
mod steps;

#[cfg(feature = "allocator-api2")]
mod allocator;
#[cfg(all(test, not(loom)))]
mod tests;

pub use check::{HeapStats, Problem, Report};

use super::layout::plain_until;
use super::region::Region;
use crate::error::{Error, Result};
use crate::shm::Resident;
use crate::sync::Ordering;
use crate::sys::map::{self, PAGE};
use cache::Cache;
use class::CLASSES;
use core::alloc::Layout;
use core::num::NonZeroUsize;
use core::ops::Range;
use core::ptr::{self, NonNull};
use extent::Extent;
use member::{Block, Local, Refusal};
use rustix::io::Errno;
use space::Space;

const OPEN: &str = "mshare::Region::heap";
const ALLOC: &str = "mshare::Heap::alloc";
const FREE: &str = "mshare::Heap::free";
const RESIZE: &str = "mshare::Heap::resize";

/// Runs of at least so many bytes are zeroed by giving their memory back.
const PUNCH: usize = 256 << 10;

/// An allocator of memory in a region.
///
/// A handle is one word, the address of the region, and means the same heap in every process that
/// has called [`Region::heap`]. It can be stored in the region: a vector or map that one
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
///   the one in many that needs a new slab; there, and for runs, a participant that is stopped
///   inside of the lock is waited for, for 2 s, and then the error is ETIMEDOUT.
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

impl Region {
    /// The heap of this region: all of its memory that [`alloc`](Self::alloc) and arenas had not
    /// taken when the first process asked, up to the first part that is no plain memory: an object,
    /// or the [room](super::Builder::room) for some. From then on they take from the heap, and
    /// nothing can be mapped, unmapped or protected there.
    ///
    /// # Errors
    ///
    /// EINVAL if less than 256 KiB is left, EACCES for a participant that may not write, EPERM if
    /// there is no heap yet and this participant has not all rights, EBADMSG for a control page that
    /// names a heap outside of the region, ENFILE if this process uses 64 heaps, ETIMEDOUT if
    /// another process keeps the lock of the region.
    pub fn heap(&self) -> Result<Heap> {
        self.heap_of(usize::MAX)
    }

    /// The same, of at most so many bytes if there is none yet.
    ///
    /// # Errors
    ///
    /// As for [`heap`](Self::heap).
    pub fn heap_of(&self, bytes: usize) -> Result<Heap> {
        self.writable(OPEN)?;
        let extent = match self.extent(OPEN)? {
            Some(extent) => extent,
            None => self.make_heap(bytes as u64)?,
        };
        // SAFETY: mapped, and kept so by the attachment that goes with it.
        let space = unsafe { Space::new(OPEN, self.base(), extent) }?;
        cache::learn(OPEN, space, self.attachment())?;
        Ok(Heap { region: self.base().addr() })
    }

    /// The heap, if there is one.
    fn extent(&self, operation: &'static str) -> Result<Option<Extent>> {
        let (word, size) = (self.attachment().header().next(), self.size() as u64);
        let corrupt = |word| {
            let numbers = format_args!("heap of {word:#x} in a region of {size} bytes");
            Error::with(operation, Errno::BADMSG, numbers)
        };
        Extent::of(word.load(Ordering::Relaxed), size).map_err(corrupt)
    }

    /// Makes one, under the lock of the log: no mapping changes meanwhile, and whoever changes one
    /// later sees the heap.
    fn make_heap(&self, bytes: u64) -> Result<Extent> {
        let size = self.size() as u64;
        let word = self.attachment().header().next();
        // Also when memory lies there.
        let room = self.attachment().header().room(size);
        self.attachment().held().locked(OPEN, |layout| {
            let mut seen = word.load(Ordering::Relaxed);
            loop {
                if let Some(extent) = self.extent(OPEN)? {
                    return Ok(extent);
                }
                let end = plain_until(layout, seen.next_multiple_of(PAGE as u64), size).min(room);
                let extent = Extent::from(seen, bytes, end).unwrap_or(Extent { start: 0, len: 0 });
                if extent.len < space::LEN_MIN {
                    let numbers =
                        format_args!("{} bytes are left, at least {}", extent.len, space::LEN_MIN);
                    return Err(Error::with(OPEN, Errno::INVAL, numbers));
                }
                // Relaxed: there is nothing behind it but zeros.
                let relaxed = Ordering::Relaxed;
                match word.compare_exchange(seen, extent.word(), relaxed, relaxed) {
                    Ok(_) => return Ok(extent),
                    Err(now) => seen = now,
                }
            }
        })
    }

    /// Does the bump pointer say that the rest is a heap of this region?
    pub(super) fn is_heap(&self, word: u64) -> bool {
        matches!(Extent::of(word, self.size() as u64), Ok(Some(_)))
    }
}

/// Which bytes of a region are its heap, by the word of its control page; none if it names
/// something outside.
pub(super) fn range(word: u64, size: u64) -> Option<Range<u64>> {
    let extent = Extent::of(word, size).ok().flatten()?;
    Some(extent.start..extent.start + extent.len)
}

impl Heap {
    fn with<R>(&self, operation: &'static str, body: impl FnOnce(&mut Cache) -> R) -> Result<R> {
        cache::with(operation, self.region.get(), body)
    }

    /// Allocates, uninitialised. A layout of no bytes takes none, and gets an aligned pointer to
    /// none.
    ///
    /// # Errors
    ///
    /// ENOMEM with the numbers; ENXIO if this process has not called [`Region::heap`]; EAGAIN if
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
    /// the life of the [`Region`].
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

/// Puts down what the thread has in hand.
fn put_down(cache: &mut Cache) {
    for class in 0..CLASSES {
        if cache.locals[class].slab != 0 {
            cache.member.drop_local(class, &mut cache.locals[class]);
        }
    }
    cache.member.unkeep_all(&mut cache.kept);
}

/// Frees what begins at this address; whether there was something.
fn free_anywhere(cache: &mut Cache, address: usize) -> bool {
    match Block::at(&cache.member.space, address) {
        Some(Block::Small { page, class, index }) => {
            cache.member.free(page, class, index, &mut cache.locals[class])
        }
        Some(Block::Run { page, pages }) => cache.member.free_run(page, pages, &mut cache.kept),
        None => false,
    }
}

/// A small block, when there is none in hand.
#[cold]
fn small(cache: &mut Cache, class: usize, align: usize) -> core::result::Result<usize, Refusal> {
    let member = cache.member;
    let hand_out = |class, local: &mut Local| member.hand_out(class, local).ok_or(Refusal::Full);
    let local = &mut cache.locals[class];
    match member.fill(class, local) {
        Ok(()) => return hand_out(class, local),
        Err(Refusal::Locked) => return Err(Refusal::Locked),
        Err(Refusal::Full) => {}
    }
    reclaim(cache);
    let local = &mut cache.locals[class];
    match member.fill(class, local) {
        Ok(()) => return hand_out(class, local),
        Err(Refusal::Locked) => return Err(Refusal::Locked),
        Err(Refusal::Full) => {}
    }
    // A larger block does as well.
    for class in class + 1..CLASSES {
        let local = &mut cache.locals[class];
        if class::SIZES[class].is_multiple_of(align.min(PAGE))
            && member.fill_from_room(class, local)
        {
            return hand_out(class, local);
        }
    }
    Err(Refusal::Full)
}

/// A run of pages.
fn run(cache: &mut Cache, layout: Layout) -> core::result::Result<usize, Refusal> {
    let member = cache.member;
    let pages = layout.size().div_ceil(PAGE);
    let align = layout.align().max(PAGE);
    if let Some(page) = member.take_kept(pages, align, &mut cache.kept) {
        return Ok(member.space.memory(page).addr().get());
    }
    let take = || member.pages().map(|lock| lock.take_run(pages, align));
    let page = match take()? {
        Some(page) => page,
        None => {
            reclaim(cache);
            take()?.ok_or(Refusal::Full)?
        }
    };
    Ok(member.space.memory(page).addr().get())
}

/// Makes free what can be.
fn reclaim(cache: &mut Cache) {
    put_down(cache);
    cache.member.recover_others();
    cache.member.sweep();
}
