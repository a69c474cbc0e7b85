//! What lives in the region: the blocks, the channels between the processes, and the words that
//! they wait on.
//!
//! # A block's way
//!
//! | state | whose block it is | next |
//! |---|---|---|
//! | `FREE` | the reader's, who got its number from `free` | filled, its number goes into `work` |
//! | `FILLED` | whoever of the compressors changes the state first | `TAKEN` |
//! | `TAKEN` + seat | the compressor on that seat | compressed, its number goes into `done` |
//! | `DONE` | the writer's | written in its turn, its number goes into `free` |
//!
//! The state has the number of the block's text beside it, so a message about an earlier text in the
//! same block changes nothing.
//!
//! # A death at any instruction
//!
//! A channel gives each item to one receiver, who may die with it; and a compressor may die with a
//! block, before it has said that it is done. So when one is dead, the parent makes `FILLED` again
//! what was `TAKEN` by it, sends the numbers of all blocks that are `FILLED` once more, as soon as
//! there is room for them, and takes those that are `DONE`. Then some numbers are in a channel
//! twice. That is no harm: of two that find one, the state is changed by one.

use crate::Result;
use core::alloc::Layout;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use unmerged::futex2::Shared;
use unmerged::futex2::lock::{AutoEvent, Channel, Event};
use unmerged::mshare::{Arena, Region, Resident};

/// Most compressors: a state has a byte for the seat.
pub(crate) const MOST_WORKERS: usize = 250;
/// Blocks for each compressor: one that it works on, and those on their way.
pub(crate) const BLOCKS: usize = 4;

/// States, in the lowest byte; from `TAKEN` on the seat is added.
pub(crate) const FREE: u64 = 0;
pub(crate) const FILLED: u64 = 1;
pub(crate) const DONE: u64 = 2;
pub(crate) const TAKEN: u64 = 3;

/// The state with the number of a text.
pub(crate) const fn state(what: u64, text: u64) -> u64 {
    text << 8 | what
}

/// [`Header::halt`]: the next compressor with a block is to stop in the middle of it.
const ANYBODY: u8 = 1;

/// What goes through the channels: a block, and the number of the text in it.
pub(crate) type Message = [u64; 2];

/// The name of the root.
const ROOT: &str = "pipeline";

/// A block of text and what becomes of it.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Block {
    state: AtomicU64,
    /// Bytes of text, and of what it was compressed to.
    pub(crate) len: AtomicU32,
    pub(crate) packed: AtomicU32,
    text: NonNull<u8>,
}

// SAFETY: atomics, and a pointer into the region that is not written after it is published;
// repr(C), no Drop.
unsafe impl Resident for Block {}

#[repr(C)]
#[derive(Debug)]
struct Header {
    paths: *const u8,
    paths_len: usize,
    blocks: *const Block,
    block_count: usize,
    channels: NonNull<u8>,
    /// Bytes of a block's text; as many and some more follow for what it is compressed to.
    size: u32,
    /// The parent's process id.
    parent: u32,
    /// Texts in all, once the reader knows; before, `u64::MAX`.
    texts: AtomicU64,
    /// Who can, sets it when there is something that no channel tells.
    news: AutoEvent<Shared>,
    /// All is written.
    end: Event<Shared>,
    /// Never set: who waits for it waits to be killed.
    never: Event<Shared>,
    halt: AtomicU8,
    /// The seat of the one who halted, plus 1.
    halted: AtomicU32,
}

// SAFETY: pointers into the region, numbers that are not written after they are published,
// and atomics; repr(C), no Drop.
unsafe impl Resident for Header {}

/// The job as a process sees it.
#[derive(Debug)]
pub(crate) struct Job<'r> {
    pub(crate) region: &'r Region,
    header: &'r Header,
    pub(crate) blocks: &'r [Block],
    pub(crate) free: Channel<Message, Shared>,
    pub(crate) work: Channel<Message, Shared>,
    pub(crate) done: Channel<Message, Shared>,
}

/// Room for what a block of so many bytes is compressed to, at the worst.
pub(crate) fn room_of(size: usize) -> usize {
    size + size / 8 + 256
}

/// Items that a channel holds at the most: each block, and some that are told twice.
fn capacity(blocks: usize) -> u32 {
    2 * blocks as u32
}

fn stride(size: u32) -> usize {
    (size as usize + room_of(size as usize)).next_multiple_of(64)
}

fn channel_bytes(blocks: usize) -> usize {
    Channel::<Message, Shared>::bytes(capacity(blocks)).next_multiple_of(4096)
}

impl<'r> Job<'r> {
    /// Size of a region for such a job.
    pub(crate) fn region_size(files: &[PathBuf], workers: usize, size: u32) -> usize {
        let paths: usize = files.iter().map(|path| path.as_os_str().len() + 1).sum();
        let blocks = workers * BLOCKS;
        let bytes = paths + blocks * (stride(size) + 4096) + 4 * channel_bytes(blocks);
        (2 * bytes + (4 << 20)).next_multiple_of(4096)
    }

    /// Writes the job into an empty region.
    ///
    /// # Errors
    ///
    /// Those of the region.
    pub(crate) fn create(
        region: &'r Region,
        files: &[PathBuf],
        workers: usize,
        size: u32,
        kill_one: bool,
    ) -> Result<Self> {
        let arena = Arena::new(region, 1 << 16)?;
        let mut paths = Vec::new();
        for file in files {
            paths.extend_from_slice(file.as_os_str().as_bytes());
            paths.push(0);
        }
        let paths = arena.alloc_bytes(&paths)?;
        let count = workers * BLOCKS;
        let texts = region.alloc(Layout::from_size_align(count * stride(size), 64)?)?;
        let blocks = arena.alloc_slice(count, |n| Block {
            state: AtomicU64::new(state(FREE, 0)),
            len: AtomicU32::new(0),
            packed: AtomicU32::new(0),
            // SAFETY: there is a stride for each.
            text: unsafe { texts.add(n * stride(size)) },
        })?;
        let channels = region.alloc(Layout::from_size_align(3 * channel_bytes(count), 4096)?)?;
        let header = arena.alloc_value(Header {
            paths: paths.cast().as_ptr(),
            paths_len: paths.len(),
            blocks: blocks.cast().as_ptr(),
            block_count: count,
            channels,
            size,
            parent: std::process::id(),
            texts: AtomicU64::new(u64::MAX),
            news: AutoEvent::new(false),
            end: Event::new(false),
            never: Event::new(false),
            halt: AtomicU8::new(if kill_one { ANYBODY } else { 0 }),
            halted: AtomicU32::new(0),
        })?;
        region.set_root(ROOT, header)?;
        let job = Self::open(region)?;
        for block in 0..count as u64 {
            job.free.try_send([block, 0])?;
        }
        Ok(job)
    }

    /// Finds the job in a region.
    ///
    /// # Errors
    ///
    /// There is none, or it is not one of ours.
    pub(crate) fn open(region: &'r Region) -> Result<Self> {
        let header = region.root::<Header>(ROOT)?.ok_or("there is no job in the region")?;
        // SAFETY: a Header, published by set_root; what is written since is atomic.
        let header = unsafe { region.get(header.as_ptr()) }?;
        // SAFETY: written before the header was published, and since then by atomics only.
        let blocks = unsafe { region.get_slice(header.blocks, header.block_count) }?;
        let bytes = channel_bytes(blocks.len());
        if !region.contains(header.channels.as_ptr(), 3 * bytes) {
            return Err("the channels lie outside of the region".into());
        }
        let channel = |n: usize| {
            // SAFETY: inside of the region.
            let base = unsafe { header.channels.add(n * bytes) };
            // SAFETY: inside of the region, which is mapped as long as it is borrowed; channels of
            // this job are all that is there.
            unsafe { Channel::attach(base, bytes, capacity(blocks.len())) }
        };
        let (free, work, done) = (channel(0)?, channel(1)?, channel(2)?);
        Ok(Self { region, header, blocks, free, work, done })
    }

    /// The parent's process id.
    pub(crate) fn parent(&self) -> u32 {
        self.header.parent
    }

    /// The files to read.
    ///
    /// # Errors
    ///
    /// The list lies outside of the region.
    pub(crate) fn paths(&self) -> Result<Vec<PathBuf>> {
        // SAFETY: written before the header was published, and never since.
        let paths = unsafe { self.region.get_slice(self.header.paths, self.header.paths_len) }?;
        let paths = paths.split(|&byte| byte == 0).filter(|path| !path.is_empty());
        Ok(paths.map(|path| OsStr::from_bytes(path).into()).collect())
    }

    /// Texts in all, if the reader knows by now.
    pub(crate) fn texts(&self) -> Option<u64> {
        let texts = self.header.texts.load(Ordering::Acquire);
        (texts != u64::MAX).then_some(texts)
    }

    pub(crate) fn set_texts(&self, texts: u64) {
        self.header.texts.store(texts, Ordering::Release);
        self.header.news.set();
    }

    pub(crate) fn news(&self) -> &'r AutoEvent<Shared> {
        &self.header.news
    }

    pub(crate) fn end(&self) -> &'r Event<Shared> {
        &self.header.end
    }

    /// If somebody was to stop in the middle of a block: stops until the parent kills us.
    pub(crate) fn halt_if_chosen(&self, seat: usize) {
        let halt = &self.header.halt;
        if halt.load(Ordering::Relaxed) == ANYBODY
            && halt.compare_exchange(ANYBODY, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        {
            self.header.halted.store(seat as u32 + 1, Ordering::Release);
            self.header.news.set();
            self.header.never.wait();
        }
    }

    /// The seat of who halted.
    pub(crate) fn halted(&self) -> Option<usize> {
        (self.header.halted.load(Ordering::Acquire) as usize).checked_sub(1)
    }

    pub(crate) fn clear_halted(&self) {
        self.header.halted.store(0, Ordering::Release);
    }

    /// The block of a message, if it is one and in this state.
    pub(crate) fn block(&self, [block, text]: Message, what: u64) -> Option<&'r Block> {
        let block = self.blocks.get(usize::try_from(block).ok()?)?;
        (block.state() == state(what, text)).then_some(block)
    }

    /// Room for the text of a block, and behind it for what it is compressed to.
    ///
    /// # Errors
    ///
    /// It lies outside of the region.
    ///
    /// # Safety
    ///
    /// The block must be the caller's, as its state says.
    #[allow(clippy::mut_from_ref, reason = "the block's state says whose it is")]
    pub(crate) unsafe fn room(&self, block: &Block) -> Result<(&mut [u8], &mut [u8])> {
        let (text, size) = (block.text, self.header.size as usize);
        if !self.region.contains(text.as_ptr(), stride(self.header.size)) {
            return Err("a block lies outside of the region".into());
        }
        // SAFETY: inside of the region, and the caller's alone.
        let all = unsafe { core::slice::from_raw_parts_mut(text.as_ptr(), size + room_of(size)) };
        Ok(all.split_at_mut(size))
    }
}

impl Block {
    pub(crate) fn state(&self) -> u64 {
        self.state.load(Ordering::Acquire)
    }

    /// From one state to another, if it is in that one.
    pub(crate) fn change(&self, from: u64, to: u64) -> bool {
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}
