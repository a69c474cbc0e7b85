//! Domains: memory of several processes in which waiters of shared words are counted.

mod layout;
mod ledger;

use super::Counted;
use super::counts::{Spot, Table};
use super::step::step;
use super::{Futex, Word};
use crate::error::{Context, Error, Result};
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::sys::map::{Access, Mapping, Place, check_range};
use crate::sys::{fork, memfd};
use core::ops::Range;
use core::ptr::NonNull;
use layout::{Layout, TABLE_BYTES};
pub(super) use ledger::Ledger;
use ledger::{Owner, clear, dead_owner};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::SealFlags;
use rustix::io::{Errno, dup};

/// Memory of several processes in which the waiters of its words are counted, so that a wake
/// that nobody waits for makes no system call.
///
/// Its words are [`Futex<T, Counted>`](Futex). Whoever waits on one, in whatever process, counts
/// itself in the domain's table; a process that is killed leaves its counts behind, and a ledger
/// of them, by which the next one takes them back: when it attaches, when its wakes find nobody
/// though the counts say otherwise, or when it is told to [`reap`](Self::reap).
///
/// ```
/// use unmerged::futex2::Domain;
/// use std::sync::atomic::Ordering;
///
/// let domain = Domain::create(4096)?; // hand `domain.file()` to other processes
/// let word = domain.word::<u8>(64)?;
/// word.store(1, Ordering::Release);
/// assert_eq!(word.wake_in(&domain, 1)?, 0); // nobody waits: no system call
/// # Ok::<(), unmerged::Error>(())
/// ```
///
/// From Linux 5.10 on, by sealed memory files (memfd_create(2)) and, for the dead, pidfd_open(2) and
/// `/proc`.
///
/// # What a wake costs
///
/// A fence and two loads if nobody waits. When wakes of this process have found nobody 64 times in a
/// row though the counts said otherwise (then 128 times, and so on), the next one
/// [reaps](Self::reap): it looks at up to [`PROCESSES`](Self::PROCESSES) rows, with a system call or
/// two for each that is taken, some 100 µs in all. So it is in no signal handler that is in a hurry.
///
/// # Trust
///
/// Others may write what they like into the memory. The words are theirs too, so they can wake
/// whom they like, let waits end, and move waiters to another word of the memory, by
/// futex(2), so that wakes of the old one miss them. Nothing that they write makes a wake of this
/// process miss a waiter of this process, and nothing is read or written outside of the domain.
///
/// # In the life of a process
///
/// | event | what becomes of its counts |
/// |---|---|
/// | drop | they are taken back, the row of the ledger is free |
/// | SIGKILL at any instruction | too high until somebody reaps; never too low |
/// | SIGKILL of who reaps | a count may stay too high: wakes there ask the kernel |
/// | fork | the child has none, and takes a row of its own when it first waits |
/// | fork in a signal handler, during a wait | the wait that the child goes on with is not counted |
/// | exec | they stay until the process ends |
/// | another pid or time namespace than that of the first process | they stay after SIGKILL |
#[derive(Debug)]
pub struct Domain {
    base: NonNull<Layout>,
    /// Where words can be.
    words: Range<usize>,
    /// The row that a process has taken, plus 1, in the low 8 bits, and above them which process of
    /// the line of forks that was: a child of it has none.
    row: AtomicU64,
    /// How it is known there.
    owner: AtomicU64,
    /// Wakes in a row that found nobody though the counts said otherwise, and how many of them
    /// make a look for the dead worth it.
    idle: AtomicU32,
    patience: AtomicU32,
    memory: Option<(Mapping, OwnedFd)>,
}

// SAFETY: all of the layout is atomics; the rest is plain data.
unsafe impl Send for Domain {}
// SAFETY: as above.
unsafe impl Sync for Domain {}

/// Wakes that found nobody before the first look for the dead.
const PATIENCE: u32 = 64;

impl Domain {
    /// Bytes that the table takes, at the beginning of the memory.
    pub const TABLE_BYTES: usize = TABLE_BYTES;

    /// Processes that can attach at a time.
    pub const PROCESSES: usize = layout::ROWS;

    /// Creates a domain with `bytes` bytes for words in a memory file, which is sealed so that it
    /// keeps its size.
    ///
    /// # Errors
    ///
    /// EINVAL for a size that is none, ENOMEM, EMFILE.
    pub fn create(bytes: usize) -> Result<Self> {
        const OPERATION: &str = "futex2::Domain::create";
        let size = TABLE_BYTES.checked_add(bytes).and_then(|size| u64::try_from(size).ok());
        let size = size.filter(|&size| size < 1 << 46);
        let size = size.ok_or(Error::because(OPERATION, Errno::INVAL, "too many bytes"))?;
        let file = memfd::create("unmerged.futex2", size).op(OPERATION)?;
        memfd::seal(&file, SealFlags::SHRINK | SealFlags::GROW).op(OPERATION)?;
        Self::open(&file)
    }

    /// Attaches the domain in a memory file that another process has created.
    ///
    /// # Errors
    ///
    /// EPERM for a file whose size is not sealed, EINVAL for one that is too small, EBADMSG if
    /// there is something else in it, ENOSPC if [`PROCESSES`](Self::PROCESSES) have it attached.
    pub fn open(file: impl AsFd) -> Result<Self> {
        const OPERATION: &str = "futex2::Domain::open";
        let size = memfd::sealed_size(&file, SealFlags::SHRINK).op(OPERATION)?;
        let len = usize::try_from(size).unwrap_or(usize::MAX);
        if len < TABLE_BYTES {
            return Err(too_small(OPERATION, len));
        }
        let memory = Mapping::shared(&file, len, Access::Write, Place::Anywhere).op(OPERATION)?;
        let file = dup(&file).op(OPERATION)?;
        let _ = rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::CLOEXEC);
        // SAFETY: mapped as long as the domain lives, page-aligned, and zero or a domain.
        let mut domain = unsafe { Self::attach(memory.start(), len) }?;
        domain.memory = Some((memory, file));
        Ok(domain)
    }

    /// Attaches the domain in memory of the caller's, for instance of an `mshare` region: `len`
    /// bytes from `base` on, which begin with the table.
    ///
    /// Words may be anywhere behind it. With [`covering`](Self::covering) they can be elsewhere.
    ///
    /// # Errors
    ///
    /// EINVAL for a base that is not aligned to 128 or memory that is too small, EBADMSG if
    /// there is something else in it, ENOSPC if [`PROCESSES`](Self::PROCESSES) have it attached.
    ///
    /// # Safety
    ///
    /// The memory must be mapped, readable and writable, until the domain is dropped, and shared by
    /// all who attach it. Its first [`TABLE_BYTES`](Self::TABLE_BYTES) must be zero or a domain,
    /// and be used by domains only; all bytes behind must be initialised, and be reached in this
    /// process as atomics only while they are words.
    pub unsafe fn attach(base: NonNull<u8>, len: usize) -> Result<Self> {
        const OPERATION: &str = "futex2::Domain::attach";
        let base: NonNull<Layout> = base.cast();
        if !base.is_aligned() {
            return Err(Error::because(OPERATION, Errno::INVAL, "the base is not aligned to 128"));
        }
        if len < TABLE_BYTES {
            return Err(too_small(OPERATION, len));
        }
        let start = base.addr().get();
        let domain = Self {
            base,
            words: start + TABLE_BYTES..start + len,
            row: AtomicU64::new(0),
            owner: AtomicU64::new(0),
            idle: AtomicU32::new(0),
            patience: AtomicU32::new(PATIENCE),
            memory: None,
        };
        domain.layout().begin()?;
        domain.reap();
        if domain.claim().is_none() {
            return Err(Error::with(
                OPERATION,
                Errno::NOSPC,
                format_args!("{} processes have it attached", Self::PROCESSES),
            ));
        }
        Ok(domain)
    }

    /// Lets words be in these `len` bytes instead of behind the table.
    ///
    /// # Errors
    ///
    /// EINVAL for a range beyond the address space.
    ///
    /// # Safety
    ///
    /// The range must be what [`attach`](Self::attach) asks of the bytes behind the table, and at the
    /// same distance from the base in every process.
    pub unsafe fn covering(mut self, start: NonNull<u8>, len: usize) -> Result<Self> {
        let start = start.addr().get();
        let end = start.checked_add(len);
        let end = end.ok_or(Error::new("futex2::Domain::covering", Errno::INVAL))?;
        self.words = start..end;
        Ok(self)
    }

    fn layout(&self) -> &Layout {
        // SAFETY: mapped as long as we live, and all atomics, of which every bit pattern is one.
        unsafe { self.base.as_ref() }
    }

    pub(super) fn table(&self) -> &Table {
        &self.layout().table
    }

    fn spot(&self, index: usize) -> Spot<'_> {
        Spot { table: self.table(), index }
    }

    /// A random number that tells this domain from others.
    pub fn id(&self) -> u128 {
        self.layout().id()
    }

    /// The memory file, of a domain that is in one.
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        self.memory.as_ref().map(|(_, file)| file.as_fd())
    }

    /// Bytes that words can be in.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// No bytes for words.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// The word at `offset` of those bytes. In fresh memory it is 0.
    ///
    /// The same bytes may be had as words of several sizes. Such accesses that overlap are of one
    /// machine instruction each on x86-64, and whole; what Rust says of atomics of mixed sizes at one
    /// address is that it does not say, so use one size unless overlapping is what you want.
    ///
    /// # Errors
    ///
    /// EINVAL for an offset that is not inside, or not a multiple of the size.
    pub fn word<T: Word>(&self, offset: usize) -> Result<&Futex<T, Counted>> {
        const OPERATION: &str = "futex2::Domain::word";
        check_range(OPERATION, self.words.len(), offset, size_of::<T>())?;
        let address = self.words.start + offset;
        if !address.is_multiple_of(size_of::<T>()) {
            let size = size_of::<T>();
            return Err(Error::with(
                OPERATION,
                Errno::INVAL,
                format_args!("offset {offset} is not aligned to {size}"),
            ));
        }
        let distance = address.wrapping_sub(self.base.addr().get()).cast_signed();
        let word = self.base.as_ptr().cast::<u8>().wrapping_offset(distance);
        // SAFETY: inside the words, mapped as long as we live; a futex is its atomic word.
        Ok(unsafe { &*word.cast::<Futex<T, Counted>>() })
    }

    /// The distance of a word from the base.
    ///
    /// # Errors
    ///
    /// EINVAL if it is not one of this domain.
    pub(super) fn offset_of(&self, address: usize, bytes: usize) -> Result<usize> {
        if address < self.words.start || address > self.words.end.saturating_sub(bytes) {
            let Range { start, end } = self.words;
            return Err(Error::with(
                "futex2::Domain",
                Errno::INVAL,
                format_args!(
                    "{address:#x} is not in {start:#x} to {end:#x}: no word of this domain"
                ),
            ));
        }
        Ok(address.wrapping_sub(self.base.addr().get()))
    }

    /// The ledger of this process; `None` if there is no row left for a child of fork.
    pub(super) fn ledger(&self) -> Option<Ledger<'_>> {
        self.own_ledger().or_else(|| self.claim())
    }

    /// The row that this process has taken.
    fn own_ledger(&self) -> Option<Ledger<'_>> {
        let row = self.row.load(Ordering::Acquire);
        if row >> 8 != fork::own() {
            return None;
        }
        let row = &self.layout().rows[(row as u8 as usize).wrapping_sub(1) % layout::ROWS];
        // The owner is what we wrote there, whatever is there now.
        Some(Ledger { row, owner: Owner(self.owner.load(Ordering::Relaxed)) })
    }

    #[cold]
    fn claim(&self) -> Option<Ledger<'_>> {
        let before = self.row.load(Ordering::Acquire);
        let owner = Owner::own(self.layout().is_at_home());
        let rows = &self.layout().rows;
        let free = || {
            rows.iter().position(|row| {
                let free =
                    row.owner.compare_exchange(0, owner.0, Ordering::AcqRel, Ordering::Relaxed);
                free.is_ok()
            })
        };
        let index = free().or_else(|| (self.reap() > 0).then(free).flatten())?;
        step();
        self.owner.store(owner.0, Ordering::Relaxed);
        let row = fork::own() << 8 | (index as u64 + 1);
        if self.row.compare_exchange(before, row, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            // Another thread of this process was faster, and one row is enough.
            let free = (Ordering::AcqRel, Ordering::Relaxed);
            let _ = rows[index].owner.compare_exchange(owner.0, 0, free.0, free.1);
            return self.own_ledger();
        }
        Some(Ledger { row: &rows[index], owner })
    }

    /// What the domain itself counts at the place of this word, for tests.
    #[cfg(feature = "planted-faults")]
    #[doc(hidden)]
    pub fn counted<T: Word>(&self, word: &Futex<T, Counted>) -> Result<u32> {
        let address = core::ptr::from_ref(word).addr();
        let offset = self.offset_of(address, size_of::<T>())?;
        Ok(self.spot(super::counts::place_of(offset)).entry().waiters())
    }

    /// Takes back what dead processes have added to the counts; how many processes. It asks the kernel
    /// about each process that has the domain attached.
    pub fn reap(&self) -> usize {
        // Asked each time: a child of this process may have been born into another namespace.
        if !self.layout().is_at_home() {
            return 0;
        }
        let mut reaped = 0;
        for row in &self.layout().rows {
            if let Some(dead) = dead_owner(row) {
                step();
                clear(row, dead, |index| self.spot(index));
                reaped += 1;
            }
        }
        reaped
    }

    /// A wake went to the kernel and reached so many.
    pub(super) fn noticed(&self, woken: usize) {
        if woken != 0 {
            self.idle.store(0, Ordering::Relaxed);
            return;
        }
        let patience = self.patience.load(Ordering::Relaxed);
        if self.idle.fetch_add(1, Ordering::Relaxed) + 1 >= patience {
            self.idle.store(0, Ordering::Relaxed);
            // The living, too, may share a place of the table: so this gets rarer.
            let next = if self.reap() > 0 { PATIENCE } else { patience.saturating_mul(2) };
            self.patience.store(next, Ordering::Relaxed);
        }
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        // A child that was forked has no row of its own here, and leaves its parent's alone.
        if let Some(Ledger { row, owner }) = self.own_ledger() {
            step();
            clear(row, owner, |index| self.spot(index));
        }
    }
}

fn too_small(operation: &'static str, len: usize) -> Error {
    Error::with(
        operation,
        Errno::INVAL,
        format_args!("{len} bytes, and the table takes {TABLE_BYTES}"),
    )
}
