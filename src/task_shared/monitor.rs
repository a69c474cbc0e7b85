//! Reading the slots of a process, this one or another, through a read-only mapping.
//!
//! # Trust
//!
//! None. The file can shrink no more (a seal, checked), so what `fstat` says of its size
//! stays true, and nothing below that size faults. The count of slots is whatever the other
//! side wrote: it is copied, and when it exceeds what is known to be there the size is asked
//! for again. The mapping is over the largest table from the start, so that nothing moves
//! while it grows; what lies beyond the known size is not touched. Slots are copied by
//! atomics, bounded in time, and no number in them is used to reach anything.

use super::discover::{self, Found};
use super::header;
use super::layout::{self, MAX_SLOTS, Shape};
use super::owner::Owner;
use super::record::Record;
use super::schema::Field;
use super::threads::{Handle, Thread, Threads};
use crate::error::{Context, Error, Result};
use crate::shm::View;
use crate::sync::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
use crate::sys::map::{Access, Mapping, Place};
use rustix::fd::OwnedFd;
use rustix::fs::fstat;
use rustix::io::{Errno, pread};

const OP: &str = "task_shared::Monitor::open";

/// A reader of the slots of one process.
///
/// It needs nothing from the process but that it has called
/// [`current`](super::current()): it finds the table under the process's descriptors, checks
/// it, and maps it read-only. From then on [`threads`](Self::threads) reads with no system
/// call, but one each time that the table has grown. The process may end, or execute another
/// program: its threads are then not alive, and their last numbers stay. A later process with
/// the same id is never taken for it.
///
/// # Examples
///
/// ```
/// use unmerged::task_shared::{self, Monitor};
///
/// task_shared::current()?.set_user(42)?;
/// let monitor = Monitor::open(std::process::id())?;
/// assert!(monitor.threads().any(|thread| thread.is_alive() && thread.user() == 42));
/// # Ok::<(), unmerged::Error>(())
/// ```
#[derive(Debug)]
pub struct Monitor {
    pid: u32,
    shape: Shape,
    fields: Vec<Field>,
    /// Index of the word that the kernel marks among the 32-bit words of an owner's entry.
    word: usize,
    file: OwnedFd,
    /// `None` if nobody said which process it is, or its main thread had ended.
    maps: Option<OwnedFd>,
    mapping: Mapping,
    /// The page in which readers say that they wait, if this one may write it.
    flag: Option<Mapping>,
    /// Slots that the file is known to have room for.
    room: AtomicUsize,
    /// What the last [`wait`](Self::wait) found.
    pub(super) last: AtomicU64,
}

impl Monitor {
    /// Opens the slots of the process `pid`.
    ///
    /// It takes the rights that reading `/proc/PID/fd` takes: the same user, or
    /// CAP_SYS_PTRACE, and a target that is dumpable.
    ///
    /// # Errors
    ///
    /// | errno | |
    /// |---|---|
    /// | ESRCH | there is no such process, or it has ended |
    /// | EACCES, EPERM | it may not be read |
    /// | ENOENT | none of its threads has taken a slot |
    /// | EPERM | a file with the name of a table that lacks a table's seals |
    /// | EPROTO | a table of another layout version |
    /// | EBADMSG | a file with the name of a table that is none |
    /// | EMFILE, ENFILE, ENOMEM | this process is out of descriptors or memory |
    pub fn open(pid: u32) -> Result<Self> {
        Self::new(discover::find(pid)?, pid)
    }

    /// Opens the table whose file is `file`, handed over by a process that one may not look
    /// into: over a socket, or by inheritance. The file is the one that
    /// `/proc/PID/fd` shows as `/memfd:unmerged.task_shared`; a read-only descriptor will do.
    ///
    /// Which process it is, the table itself says. So [`is_running`](Self::is_running)
    /// goes by the threads, which misses an execve(2) by another one than the main thread (see
    /// [`Thread::is_alive`]), and [`wait`](Self::wait) looks more often.
    ///
    /// # Errors
    ///
    /// EPERM, EPROTO, EBADMSG, EMFILE, ENFILE, ENOMEM as [`open`](Self::open); ENOENT for a table
    /// that is not finished; EACCES for a descriptor that cannot be read.
    pub fn from_fd(file: OwnedFd) -> Result<Self> {
        let within = |error: Error| error.within("task_shared::Monitor::from_fd");
        let found = discover::check(file).map_err(within)?;
        let pid = found.header.pid;
        Self::new(found, pid).map_err(within)
    }

    fn new(found: Found, pid: u32) -> Result<Self> {
        let Found { file, header, size, maps, flag } = found;
        let shape = header.shape;
        let bytes = shape.max_bytes();
        let mapping = Mapping::shared(&file, bytes, Access::Read, Place::Anywhere).op(OP)?;
        let room = AtomicUsize::new(shape.room(size));
        let (fields, word, last) = (header.fields, header.owner, AtomicU64::new(0));
        let monitor = Self { pid, shape, fields, word, file, maps, mapping, flag, room, last };
        monitor.last.store(monitor.fingerprint(), Ordering::Relaxed);
        Ok(monitor)
    }

    /// The process, as it was given to [`open`](Self::open), or as it knows itself.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The user's words that the process has declared, in the order of their declaration.
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// Does the process still run the program whose slots these are? One system call: it
    /// stops at exit and at execve(2), whichever thread called it.
    ///
    /// Of a process whose main thread had ended by pthread_exit(3) when this was opened, it goes by
    /// the threads, as for [`from_fd`](Self::from_fd).
    pub fn is_running(&self) -> bool {
        match &self.maps {
            Some(maps) => matches!(pread(maps, &mut [0], 0), Ok(1) | Err(Errno::INTR)),
            None => self.threads().any(|thread| thread.is_alive()),
        }
    }

    /// Does it run the program still, as far as its list of mappings tells?
    pub(super) fn is_mapped(&self) -> bool {
        self.maps.is_none() || self.is_running()
    }

    /// The threads that hold a slot, one after the other, without an allocation. Those that
    /// died without giving it back are among them until the slot is needed for another.
    ///
    /// A thread that takes or gives back its slot meanwhile may be in it or not.
    pub fn threads(&self) -> Threads<'_> {
        Threads::new(self, self.slots())
    }

    /// Looks again at a thread that was seen before.
    ///
    /// # Errors
    ///
    /// ESTALE if the thread has ended or given its slot back, and so also if the slot has
    /// another thread.
    pub fn thread(&self, handle: Handle) -> Result<Thread<'_>> {
        let place = handle.place();
        let seen = if place < self.slots() { Thread::at(self, place) } else { None };
        seen.filter(|thread| thread.handle() == handle && thread.is_alive()).ok_or_else(|| {
            Error::with(
                "task_shared::Monitor::thread",
                Errno::STALE,
                format_args!(
                    "slot {place} has no more the thread of generation {}",
                    handle.generation()
                ),
            )
        })
    }

    /// How many slots were taken so far, as the process counts them.
    pub fn births(&self) -> u64 {
        header::births(self.view()).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// How many slots were given back or reclaimed so far, as the process counts them.
    pub fn deaths(&self) -> u64 {
        header::deaths(self.view()).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// Slots that exist and may be touched.
    pub(super) fn slots(&self) -> usize {
        // The header page is there: it was read before it was mapped.
        let committed = header::committed(self.view());
        let committed = committed.map_or(0, |count| count.load(Ordering::Relaxed));
        // Pairs with the store of the count: the slots are made.
        fence(Ordering::Acquire);
        let committed = (committed as usize).min(MAX_SLOTS);
        let known = self.room.load(Ordering::Relaxed);
        if committed <= known {
            return committed;
        }
        let size = fstat(&self.file).map_or(0, |stat| stat.st_size.cast_unsigned());
        let known = self.shape.room(size).max(known);
        self.room.store(known, Ordering::Relaxed);
        committed.min(known)
    }

    pub(super) fn view(&self) -> View<'_> {
        View::of(&self.mapping)
    }

    pub(super) fn shape(&self) -> Shape {
        self.shape
    }

    /// The word in which readers say that they wait.
    pub(super) fn flag(&self) -> Option<&AtomicU32> {
        View::of(self.flag.as_ref()?).u32(0).ok()
    }

    /// The slot at `place`, which [`slots`](Self::slots) has allowed.
    #[inline]
    pub(super) fn record(&self, place: usize) -> &Record {
        debug_assert!(place < MAX_SLOTS, "place {place}");
        // SAFETY: the mapping is over the largest table, which has room for MAX_SLOTS.
        let at = unsafe { self.mapping.start().add(self.shape.slot(place)) };
        // SAFETY: inside the mapping and inside the file, whose size does not shrink; aligned,
        // because the page and the slots are; of atomics, which others may write.
        unsafe { at.cast::<Record>().as_ref() }
    }

    /// The rseq area in it, if slots have one.
    pub(super) fn rseq(&self, place: usize) -> Option<&[AtomicU32; 16]> {
        let at = self.shape.slot(place) + self.shape.rseq_at();
        let at = self.shape.rseq.then(|| self.mapping.at(at, layout::RSEQ).ok())??;
        // SAFETY: as in `record`; the area is a part of the slot.
        Some(unsafe { at.cast().as_ref() })
    }

    /// The entry of its owner.
    #[inline]
    pub(super) fn owner(&self, place: usize) -> &Owner {
        debug_assert!(place < MAX_SLOTS, "place {place}");
        // SAFETY: as in `record`.
        let at = unsafe { self.mapping.start().add(layout::owner(place)) };
        // SAFETY: as in `record`; entries lie in front of the slots.
        unsafe { at.cast::<Owner>().as_ref() }
    }

    /// The word of it that the kernel marks.
    #[inline]
    pub(super) fn mark(&self, place: usize) -> &AtomicU32 {
        &self.owner(place).mutex[self.word]
    }

    /// All of the user's words of the slot at `place`.
    pub(super) fn user(&self, place: usize) -> &[AtomicU64] {
        let first = self.shape.slot(place) + layout::USER;
        self.view().u64s(first, self.shape.words()).unwrap_or_default()
    }
}
