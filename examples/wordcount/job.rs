//! What lives in the region: the files, who works on which, and the words that all wait on.
//!
//! # Who writes what
//!
//! | word | written by | waited on by |
//! |---|---|---|
//! | `claims[f]`, 8 bits | whoever claims or finishes file `f`; the parent, once its claimant is dead | nobody |
//! | `files[f].result`, 64 bits | the claimant, once; the parent, once it is dead | nobody |
//! | `seats[s].state`, 8 bits | the worker on seat `s`, and the parent | both |
//! | `work`, 32 bits | the parent, when a file is free again and at the end | workers |
//! | `results`, 64 bits | all, after a result or a change of a seat | the parent |
//!
//! # A death at any instruction
//!
//! A worker finishes a file in this order:
//!
//! ```text
//! build the map                    killed here: nobody has seen the map; the file is free again
//! result: 0 -> address of the map  the one store that makes the file count
//! add to the counters              killed here: in the result, perhaps not in the counters
//! claim: seat -> FINISHED
//! results += 1, wake
//! ```
//!
//! The totals are those of the published maps, each published once and merged once, so they
//! are exact whatever is killed. The per-CPU counters are two more words, and no store writes
//! them together with the result. So a file whose claim is not FINISHED when every process
//! is gone is *in doubt*: the counters may lack it. They never have what is in no result, and
//! what they lack is no more than the files in doubt have; without one they are equal.
//! `--check` asserts that. A worker that is killed before it publishes, as by `--kill-one`,
//! leaves nothing in doubt.

use crate::Result;
use crate::corpus::Corpus;
use crate::map::Map;
use core::alloc::Layout;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use unmerged::futex2::{Futex, Shared};
use unmerged::mshare::{Arena, Region, Resident};
use unmerged::percpu::{Area, Counter};

/// Most worker processes: a claim is a byte, and a few values of it mean something else.
pub(crate) const MOST_WORKERS: usize = 250;

/// A claim: nobody works on the file. From 1 to [`MOST_WORKERS`]: the worker on seat 0, 1, …
pub(crate) const FREE: u8 = 0;
/// A claim: the file has its result, and the counters have it too.
pub(crate) const FINISHED: u8 = 255;

/// A seat: its worker has not said anything yet.
pub(crate) const STARTING: u8 = 0;
/// A seat: its worker is attached, has a slot, and waits.
pub(crate) const READY: u8 = 1;
/// A seat: the parent has its worker's slot open, so that the numbers outlive the worker; now
/// it works.
pub(crate) const WATCHED: u8 = 2;
/// A seat: its worker sleeps in the middle of a file, to be killed there.
pub(crate) const HALTED: u8 = 3;
/// A seat: its worker's process has ended.
pub(crate) const GONE: u8 = 4;

/// [`Header::halt`]: nobody is to halt.
const NOBODY: u8 = 0;
/// [`Header::halt`]: the next to be in the middle of a file is to halt.
const ANYBODY: u8 = 1;

/// [`Header::work`]: nothing will be offered any more.
const CLOSED: u32 = u32::MAX;

/// The name of the root.
const ROOT: &str = "wordcount";

/// A file to count.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct File {
    path: *const u8,
    path_len: usize,
    /// Bytes when it was listed.
    pub(crate) size: u64,
    /// See [`Outcome`].
    result: AtomicU64,
}

// SAFETY: the path is in the region, and not written after the file is published; the result
// is an atomic; repr(C), no Drop.
unsafe impl Resident for File {}

/// Where a worker sits; its successor sits there after it.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) state: Futex<u8, Shared>,
}

// SAFETY: an atomic; repr(C), no Drop.
unsafe impl Resident for Seat {}

#[repr(C)]
#[derive(Debug)]
struct Header {
    files: *const File,
    claims: *const Futex<u8, Shared>,
    file_count: usize,
    seats: *const Seat,
    seat_count: usize,
    /// The per-CPU area.
    counters: NonNull<u8>,
    /// The parent's process id.
    parent: u32,
    halt: Futex<u8, Shared>,
    /// How often files were offered; [`CLOSED`] at the end.
    work: Futex<u32, Shared>,
    /// How often somebody had something to say to the parent.
    results: Futex<u64, Shared>,
    /// The first file that nobody was offered yet.
    next: AtomicU32,
}

// SAFETY: pointers into the region, numbers that are not written after they are published,
// and atomics; repr(C), no Drop.
unsafe impl Resident for Header {}

/// What became of a file, as its result says it.
///
/// | result | meaning |
/// |---|---|
/// | 0 | nothing yet |
/// | even | address of its [`Map`] |
/// | 1 | binary |
/// | 3 | workers died of it |
/// | `errno << 8`, plus 5 | it could not be read, or its map had no room |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Counted: its map.
    Counted(*const Map),
    /// Not counted, because it is no text.
    Binary,
    /// Not counted: [`crate::parent::ATTEMPTS`] workers died in the middle of it.
    Deadly,
    /// Not counted, because of this errno.
    Failed(i32),
}

impl Outcome {
    fn encode(self) -> u64 {
        match self {
            Self::Counted(map) => map.expose_provenance() as u64,
            Self::Binary => 1,
            Self::Deadly => 3,
            Self::Failed(errno) => u64::from(errno.unsigned_abs()) << 8 | 5,
        }
    }

    fn decode(result: u64) -> Option<Self> {
        Some(match result {
            0 => return None,
            1 => Self::Binary,
            3 => Self::Deadly,
            odd if odd & 1 == 1 => Self::Failed((odd >> 8) as i32),
            address => Self::Counted(core::ptr::without_provenance(address as usize)),
        })
    }
}

impl File {
    /// What became of it, once that is published: with it, all that the claimant wrote.
    pub(crate) fn outcome(&self) -> Option<Outcome> {
        Outcome::decode(self.result.load(Ordering::Acquire))
    }

    /// Publishes what became of it, and all that was written before. The first one counts.
    pub(crate) fn publish(&self, outcome: Outcome) -> bool {
        let result = outcome.encode();
        self.result.compare_exchange(0, result, Ordering::Release, Ordering::Relaxed).is_ok()
    }
}

/// The job as a process sees it: the header followed to its parts.
#[derive(Debug)]
pub(crate) struct Job<'r> {
    pub(crate) region: &'r Region,
    header: &'r Header,
    pub(crate) files: &'r [File],
    pub(crate) claims: &'r [Futex<u8, Shared>],
    pub(crate) seats: &'r [Seat],
    /// Words counted by all processes.
    pub(crate) words: Counter<'r>,
    /// Bytes counted by all processes.
    pub(crate) bytes: Counter<'r>,
}

impl<'r> Job<'r> {
    /// Size of a region for this corpus. It is address space: memory is taken as maps
    /// grow, to about 1.5 times the size of the text, and 16 times at the worst.
    pub(crate) fn region_size(corpus: &Corpus) -> usize {
        let bytes = corpus.bytes().saturating_mul(16).saturating_add(1 << 30);
        // 32 TiB is the most that there is.
        (bytes.min(32 << 40) as usize).next_multiple_of(4096)
    }

    /// Writes the job into an empty region.
    ///
    /// # Errors
    ///
    /// Those of the region.
    pub(crate) fn create(
        region: &'r Region,
        corpus: &Corpus,
        workers: usize,
        kill_one: bool,
    ) -> Result<Self> {
        let arena = Arena::new(region, 1 << 16)?;
        let count = corpus.files.len();
        let mut paths = Vec::with_capacity(count);
        for file in &corpus.files {
            paths.push(arena.alloc_bytes(file.path.as_os_str().as_bytes())?);
        }
        let files = arena.alloc_slice(count, |n| File {
            path: paths[n].cast().as_ptr(),
            path_len: paths[n].len(),
            size: corpus.files[n].size,
            result: AtomicU64::new(0),
        })?;
        let claims = arena.alloc_slice(count, |_| Futex::<u8, Shared>::new(FREE))?;
        let seats = arena.alloc_slice(workers, |_| Seat { state: Futex::new(STARTING) })?;
        let counters = region.alloc(Layout::from_size_align(Area::size(), 4096)?)?;
        // SAFETY: zeroed memory of the region, for this area alone; `'r` keeps it mapped.
        unsafe { Area::<'r>::create(counters, Area::size()) }?;
        let header = arena.alloc_value(Header {
            files: files.cast().as_ptr(),
            claims: claims.cast().as_ptr(),
            file_count: count,
            seats: seats.cast().as_ptr(),
            seat_count: workers,
            counters,
            parent: std::process::id(),
            halt: Futex::new(if kill_one { ANYBODY } else { NOBODY }),
            work: Futex::new(0),
            results: Futex::new(0),
            next: AtomicU32::new(0),
        })?;
        region.set_root(ROOT, header)?;
        Self::open(region)
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
        let files = unsafe { region.get_slice(header.files, header.file_count) }?;
        // SAFETY: as above.
        let claims = unsafe { region.get_slice(header.claims, header.file_count) }?;
        // SAFETY: as above.
        let seats = unsafe { region.get_slice(header.seats, header.seat_count) }?;
        if !region.contains(header.counters.as_ptr(), Area::size()) {
            return Err("the counters lie outside of the region".into());
        }
        // SAFETY: inside the region, mapped for `'r`, and written by areas only.
        let area = unsafe { Area::<'r>::open(header.counters, Area::size()) }?;
        let (words, bytes) = (area.counter(0)?, area.counter(1)?);
        Ok(Self { region, header, files, claims, seats, words, bytes })
    }

    /// The parent's process id.
    pub(crate) fn parent(&self) -> u32 {
        self.header.parent
    }

    /// The same for all processes of the job, and another one for each job.
    pub(crate) fn seed(&self) -> u64 {
        self.region.id()[..8].iter().fold(0, |seed, &byte| seed << 8 | u64::from(byte))
    }

    /// Path of a file.
    ///
    /// # Errors
    ///
    /// It lies outside of the region.
    pub(crate) fn path(&self, file: &File) -> unmerged::Result<&'r Path> {
        // SAFETY: written before the header was published, and never since.
        let path = unsafe { self.region.get_slice(file.path, file.path_len) }?;
        Ok(Path::new(OsStr::from_bytes(path)))
    }

    /// How many files, from the first on, were offered to somebody.
    pub(crate) fn offered(&self) -> usize {
        (self.header.next.load(Ordering::Acquire) as usize).min(self.files.len())
    }

    /// Claims a file for the worker on `seat`; sleeps while there is none and one may still
    /// be offered again. `None` when the job is closed.
    ///
    /// # Errors
    ///
    /// Those of the wait.
    pub(crate) fn claim(&self, seat: usize) -> Result<Option<usize>> {
        loop {
            // Before the look, so that what is offered after it ends the sleep.
            let offers = self.header.work.load(Ordering::Acquire);
            if offers == CLOSED {
                return Ok(None);
            }
            // Each file once, in order; then those whose claimant died, whichever they are.
            while self.offered() < self.files.len() {
                let file = self.header.next.fetch_add(1, Ordering::AcqRel) as usize;
                if file < self.files.len() && self.try_claim(file, seat) {
                    return Ok(Some(file));
                }
            }
            if let Some(file) = (0..self.files.len()).find(|&file| self.try_claim(file, seat)) {
                return Ok(Some(file));
            }
            self.header.work.wait_while(offers, None)?;
        }
    }

    fn try_claim(&self, file: usize, seat: usize) -> bool {
        let claim = &self.claims[file];
        claim.load(Ordering::Relaxed) == FREE
            && claim
                .compare_exchange(FREE, claim_of(seat), Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
    }

    /// Tells sleeping workers that a file is free again.
    pub(crate) fn offer(&self) {
        self.header.work.fetch_add(1, Ordering::Release);
        self.header.work.wake_all();
    }

    /// Tells all workers to end.
    pub(crate) fn close(&self) {
        self.header.work.store(CLOSED, Ordering::Release);
        self.header.work.wake_all();
    }

    /// What the parent waits on.
    pub(crate) fn results(&self) -> &'r Futex<u64, Shared> {
        &self.header.results
    }

    /// Is the caller the one that is to halt in the middle of its file? Only one is told so.
    pub(crate) fn is_chosen(&self) -> bool {
        let halt = &self.header.halt;
        halt.load(Ordering::Relaxed) == ANYBODY
            && halt.compare_exchange(ANYBODY, NOBODY, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

/// Tells the parent, which waits on `results`, that there is something to see.
pub(crate) fn announce(results: &Futex<u64, Shared>) {
    results.fetch_add(1, Ordering::Release);
    results.wake(1);
}

/// The claim of the worker on `seat`.
pub(crate) fn claim_of(seat: usize) -> u8 {
    u8::try_from(seat + 1).expect("seats are as few as MOST_WORKERS")
}

impl Seat {
    /// Changes the state and wakes whoever waits for it.
    pub(crate) fn enter(&self, state: u8) {
        self.state.store(state, Ordering::Release);
        self.state.wake_all();
    }
}
