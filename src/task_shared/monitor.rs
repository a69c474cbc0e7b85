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
use super::life::is_held;
use super::live::Whereabouts;
use super::owner::Owner;
use super::record::{FLAG_RSEQ, Reading, Record, SchedStats};
use crate::error::{Context, Result};
use crate::shm::View;
use crate::sync::{AtomicU32, AtomicUsize, Ordering, fence};
use crate::sys::map::{Access, Mapping, Place};
use rustix::fd::OwnedFd;
use rustix::fs::fstat;
use rustix::io::{Errno, pread};
use std::borrow::Cow;

const OP: &str = "task_shared::Monitor::open";

/// A reader of the slots of one process.
///
/// It needs nothing from the process but that it has called
/// [`current`](super::current()): it finds the table under the process's descriptors, checks
/// it, and maps it read-only. From then on [`threads`](Self::threads) reads with no system
/// call, but one each time that the table has grown. The process may end, or execute another
/// program: its threads are then not alive, and their last numbers stay.
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
    /// Index of the word that the kernel marks among the 32-bit words of an owner's entry.
    word: usize,
    file: OwnedFd,
    maps: OwnedFd,
    mapping: Mapping,
    /// Slots that the file is known to have room for.
    room: AtomicUsize,
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
    /// | ESRCH | there is no such process |
    /// | EACCES, EPERM | it may not be read |
    /// | ENOENT | none of its threads has taken a slot |
    /// | EPERM | a file with the name of a table that lacks a table's seals |
    /// | EPROTO | a table of another layout version |
    /// | EBADMSG | a file with the name of a table that is none |
    /// | EMFILE, ENFILE, ENOMEM | this process is out of descriptors or memory |
    pub fn open(pid: u32) -> Result<Self> {
        let Found { file, header, size, maps } = discover::find(pid)?;
        let shape = header.shape;
        let bytes = shape.max_bytes();
        let mapping = Mapping::shared(&file, bytes, Access::Read, Place::Anywhere).op(OP)?;
        let room = AtomicUsize::new(shape.room(size));
        Ok(Self { pid, shape, word: header.owner, file, maps, mapping, room })
    }

    /// The process, as it was given to [`open`](Self::open).
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Does the process still run the program whose slots these are? One system call: it
    /// stops at exit and at execve(2), whichever thread called it.
    pub fn is_running(&self) -> bool {
        matches!(pread(&self.maps, &mut [0], 0), Ok(1) | Err(Errno::INTR))
    }

    /// The threads that hold a slot, one after the other, without an allocation. Those that
    /// died without giving it back are among them until the slot is needed for another.
    ///
    /// A thread that takes or gives back its slot meanwhile may be in it or not.
    pub fn threads(&self) -> Threads<'_> {
        Threads { monitor: self, slots: 0..self.slots() }
    }

    /// Slots that exist and may be touched.
    fn slots(&self) -> usize {
        // The header page is there: `open` has read a header.
        let committed = header::committed(View::of(&self.mapping));
        let committed = committed.map_or(0, |count| count.load(Ordering::Relaxed));
        // Pairs with the store of the count: the slots of the page are made.
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

    /// The slot at `place`, which [`slots`](Self::slots) has allowed.
    fn record(&self, place: usize) -> Option<&Record> {
        let at = self.mapping.at(self.shape.slot(place), self.shape.size).ok()?;
        // SAFETY: inside the mapping and inside the file, whose size does not shrink; aligned,
        // because the page and the slots are; of atomics, which others may write.
        Some(unsafe { at.cast::<Record>().as_ref() })
    }

    /// The rseq area in it, if slots have one.
    fn rseq(&self, place: usize) -> Option<&[AtomicU32; 16]> {
        let at = self.shape.slot(place) + self.shape.rseq_at();
        let at = self.shape.rseq.then(|| self.mapping.at(at, layout::RSEQ).ok())??;
        // SAFETY: as in `record`; the area is a part of the slot.
        Some(unsafe { at.cast().as_ref() })
    }

    /// The entry of its owner.
    fn owner(&self, place: usize) -> Option<&Owner> {
        let at = self.mapping.at(layout::owner(place), size_of::<Owner>()).ok()?;
        // SAFETY: as in `record`; entries lie in front of the slots.
        Some(unsafe { at.cast::<Owner>().as_ref() })
    }
}

/// Iterator over the threads of a process that hold a slot.
#[derive(Debug)]
pub struct Threads<'a> {
    monitor: &'a Monitor,
    slots: core::ops::Range<usize>,
}

impl<'a> Iterator for Threads<'a> {
    type Item = Thread<'a>;

    fn next(&mut self) -> Option<Thread<'a>> {
        self.slots.find_map(|place| {
            let record = self.monitor.record(place)?;
            let reading = record.read()?;
            let owner = self.monitor.owner(place)?;
            let label = owner.label();
            let word = &owner.mutex[self.monitor.word];
            record.life().is_of(reading.generation).then_some(Thread {
                record,
                owner: word,
                rseq: self.monitor.rseq(place),
                name: label.name,
                reading,
            })
        })
    }
}

/// One thread, as it was at the last look; [`is_alive`](Self::is_alive) looks again.
///
/// It is bound to the thread, not to the slot: it never shows the numbers of another thread
/// that got the slot later.
#[derive(Clone)]
pub struct Thread<'a> {
    record: &'a Record,
    owner: &'a AtomicU32,
    rseq: Option<&'a [AtomicU32; 16]>,
    name: [u8; 16],
    reading: Reading,
}

impl Thread<'_> {
    /// The thread's id, in the process's own pid namespace.
    pub fn tid(&self) -> u32 {
        self.reading.values.tid
    }

    /// Does the thread still live, and hold its slot? Looks now, with one load or two and no
    /// system call: the kernel marks the slot at the end of the thread, whatever ended it.
    /// Once `false`, it stays so.
    ///
    /// One end is not marked: a thread other than the main one that calls execve(2). The
    /// kernel gives it the main thread's id first, and then finds another owner in the word.
    /// All other threads of the process are marked, and [`Monitor::is_running`] knows.
    pub fn is_alive(&self) -> bool {
        is_held(self.owner, &self.record.generation, self.tid(), self.reading.generation)
    }

    /// What the thread published last; zeros before its first publication.
    pub fn stats(&self) -> SchedStats {
        self.reading.values.stats
    }

    /// The first of the words that the thread has set.
    pub fn user(&self) -> u64 {
        self.reading.user[0]
    }

    /// The thread's name when it took its slot; at most 15 bytes, and what is not UTF-8 is
    /// replaced.
    pub fn name(&self) -> Cow<'_, str> {
        let name = &self.name;
        let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
        String::from_utf8_lossy(&name[..end])
    }

    /// The CPU that the thread ran on when it published last.
    pub fn cpu(&self) -> u32 {
        self.reading.values.cpu
    }

    /// The NUMA node of that CPU.
    pub fn node(&self) -> u32 {
        self.reading.values.node
    }

    /// Where the thread runs, or ran last, as the kernel has written it: looks now, with no
    /// publication of the thread. `None` unless it has called
    /// [`Slot::register_rseq`](super::Slot::register_rseq), and once it is gone.
    pub fn whereabouts(&self) -> Option<Whereabouts> {
        let registered = self.record.flags() & FLAG_RSEQ != 0;
        let found = self.rseq.filter(|_| registered).and_then(Whereabouts::of);
        found.filter(|_| self.is_alive())
    }

    /// When the thread published last, in nanoseconds of CLOCK_MONOTONIC; 0 before the first
    /// time.
    pub fn updated(&self) -> u64 {
        self.reading.values.updated
    }

    /// Generation of the slot: odd, and another one for each thread that gets the slot.
    pub fn generation(&self) -> u32 {
        self.reading.generation
    }

    /// Are the numbers of one moment? They are not if the thread died, or was stopped, or was
    /// writing again and again, while it published; they are this thread's all the same.
    pub fn is_consistent(&self) -> bool {
        self.reading.quiet
    }

    /// Looks again. `false`, and nothing changes, if the slot is not this thread's any more.
    pub fn refresh(&mut self) -> bool {
        match self.record.read() {
            Some(now) if now.generation == self.reading.generation => {
                self.reading = now;
                true
            }
            _ => false,
        }
    }
}

impl core::fmt::Debug for Thread<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Thread")
            .field("tid", &self.tid())
            .field("name", &self.name())
            .field("is_alive", &self.is_alive())
            .field("stats", &self.stats())
            .field("user", &self.user())
            .finish_non_exhaustive()
    }
}
