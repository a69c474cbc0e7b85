//! The slots of one process: a sealed memory file, two mappings of it, and who has what.
//!
//! # The file
//!
//! One header page, the entries of owners, then slots, 32 at a time. It is mapped writable
//! over the size that it can ever have, then sealed (`F_SEAL_FUTURE_WRITE`, since Linux 5.1:
//! nobody maps it writable any more; `F_SEAL_SHRINK`: no reader can be cut off;
//! `F_SEAL_SEAL`), then mapped read-only, in this order: so not even mprotect(2) makes the second mapping writable.
//! From then on it grows by ftruncate(2) under both mappings, and nothing moves. Pages
//! beyond the end fault, so the count of committed slots is stored, with release, after
//! the pages are there; readers check it against the size of the file.

use super::descriptor::Kept;
use super::fault;
use super::header::{self, Written};
use super::held::unmarked;
use super::layout::{self, CHUNK, FLAG_NAME, MAX_SLOTS, NAME, Shape};
use super::owner::{self, Owner};
use super::places::Places;
use super::record::Record;
use super::schema::Entry;
use super::usage::Usage;
use crate::error::{Context, Error, Result};
use crate::shm::View;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::sys::map::{Access, Mapping, PAGE, Place};
use crate::sys::{descriptors, memfd, object};
use core::ptr::NonNull;
use rustix::fs::SealFlags;
use rustix::io::Errno;
use rustix::mm::Advice;

const OP: &str = "task_shared::current";
/// The seals of a table's file; the first two are what a reader asks for.
const SEALS: SealFlags = SealFlags::FUTURE_WRITE.union(SealFlags::SHRINK).union(SealFlags::SEAL);
/// The seals of the file in which readers say that they wait.
const FLAG_SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// The slots of one process.
#[derive(Debug)]
pub(super) struct Table {
    file: Kept,
    pub(super) writable: Mapping,
    pub(super) shown: Mapping,
    pub(super) shape: Shape,
    /// Index of the word that the kernel marks among the 32-bit words of an owner's entry.
    pub(super) word: usize,
    /// The file in which readers say that they wait, and its one page.
    pub(super) flag: (Kept, Mapping),
    pub(super) places: Places,
    /// Slots that were held at once, at most.
    pub(super) high_water: AtomicU64,
    /// Slots of owners who died without a release, that were reclaimed.
    pub(super) reclaimed: AtomicU64,
    /// Two words for each slot: the descriptor that its owner keeps. In memory of its own,
    /// because most of it is never touched.
    pub(super) kept: Mapping,
}

impl Table {
    /// A table of one chunk, with slots of that shape and these words declared.
    ///
    /// # Errors
    ///
    /// ENOMEM, EMFILE or ENFILE, EOPNOTSUPP on a kernel without robust lists or in a task
    /// that libc does not know.
    pub(super) fn create(shape: Shape, entries: &[Entry]) -> Result<Self> {
        // Threads have destructors of ours, and forks may have handlers.
        object::keep_loaded();
        owner::repair_list().map_err(unmarked)?;
        let file = memfd::create(NAME, shape.slot(0) as u64).op(OP)?;
        let bytes = shape.max_bytes();
        let map = |access| Mapping::shared(&file, bytes, access, Place::Anywhere).op(OP);
        let writable = map(Access::Write)?;
        memfd::seal(&file, SEALS).op(OP)?;
        let shown = map(Access::Read)?;
        // SAFETY: a child of fork finds the epoch gone and does not look here.
        unsafe { shown.advise(Advice::LinuxDontFork) }.op(OP)?;
        // A child that inherits a registration must find the area mapped: see `live`.
        if !shape.rseq {
            // SAFETY: as above.
            unsafe { writable.advise(Advice::LinuxDontFork) }.op(OP)?;
        }
        let flag = memfd::create(FLAG_NAME, PAGE as u64).op(OP)?;
        memfd::seal(&flag, FLAG_SEALS).op(OP)?;
        let flag_page = Mapping::shared(&flag, PAGE, Access::Write, Place::Anywhere).op(OP)?;
        // SAFETY: as above.
        unsafe { flag_page.advise(Advice::LinuxDontFork) }.op(OP)?;
        let kept = Mapping::anonymous(16 * MAX_SLOTS, Access::Write).op(OP)?;
        let mut table = Self {
            file: Kept::keep(file).op(OP)?,
            writable,
            shown,
            shape,
            word: 0,
            flag: (Kept::keep(flag).op(OP)?, flag_page),
            places: Places::new(),
            high_water: AtomicU64::new(0),
            reclaimed: AtomicU64::new(0),
            kept,
        };
        table.finish(entries).inspect_err(|_| table.close())?;
        Ok(table)
    }

    /// The first slots, and the header that says how to read them.
    fn finish(&mut self, entries: &[Entry]) -> Result<()> {
        self.grow(0)?;
        // SAFETY: in a mapping that a table keeps for good; made by `grow`, and not shared
        // yet.
        self.word = unsafe { owner::find_word(self.owner(0)) }.map_err(unmarked)?;
        let (pid, owner, shape) = (std::process::id(), self.word, self.shape);
        let flag = Some(self.flag.0.number_and_inode());
        header::write(View::of(&self.writable), Written { pid, owner, shape, entries, flag })
    }

    /// Gives the descriptors up.
    fn close(&self) {
        self.file.close();
        self.flag.0.close();
    }

    /// Gives the calling thread a table of descriptors of its own, with nothing in it but the
    /// file of the slots; `false` if the kernel cannot.
    pub(super) fn unshare_descriptors(&self) -> bool {
        let done = descriptors::unshare_all_but(self.file.number_and_inode().0);
        if done.is_ok() && !self.file.is_same() {
            // The process has closed it, and the number names what is not ours to keep open.
            let _ = descriptors::unshare_all_but(u32::MAX);
        }
        done.is_ok()
    }

    /// Slots that exist.
    pub(super) fn committed(&self) -> Result<usize> {
        let committed = header::committed(View::of(&self.writable))?.load(Ordering::Acquire);
        Ok(committed as usize)
    }

    /// The writable slot at `place`, which is below [`MAX_SLOTS`].
    pub(super) fn record(&self, place: usize) -> NonNull<Record> {
        debug_assert!(place < MAX_SLOTS, "place {place}");
        // SAFETY: the mapping has room for MAX_SLOTS of them.
        unsafe { self.writable.start().add(self.shape.slot(place)) }.cast()
    }

    /// The entry of its owner.
    pub(super) fn owner(&self, place: usize) -> NonNull<Owner> {
        debug_assert!(place < MAX_SLOTS, "place {place}");
        // SAFETY: the mapping has room for MAX_SLOTS of them.
        unsafe { self.writable.start().add(layout::owner(place)) }.cast()
    }

    /// The slot at `place` and the word that the kernel marks when its owner dies, if they
    /// are committed. For the sampler.
    pub(super) fn shared(&self, place: usize) -> Option<(&Record, &AtomicU32)> {
        if place >= self.committed().ok()? {
            return None;
        }
        // SAFETY: committed, in a mapping that is kept for good, and of atomics.
        let record = unsafe { self.record(place).as_ref() };
        // SAFETY: as above.
        let owner = unsafe { self.owner(place).as_ref() };
        Some((record, owner.mutex.get(self.word)?))
    }

    /// All of the user's words of the slot at `place`, which is committed.
    pub(super) fn user(&self, place: usize) -> Result<&[AtomicU64]> {
        let first = self.shape.slot(place) + layout::USER;
        View::of(&self.writable).u64s(first, self.shape.words())
    }

    /// The rseq area of the slot at `place`, if slots have one.
    pub(super) fn rseq(&self, place: usize) -> Option<NonNull<[AtomicU64; 8]>> {
        let at = self.shape.slot(place) + self.shape.rseq_at();
        self.shape.rseq.then(|| self.writable.at(at, layout::RSEQ).ok().map(NonNull::cast))?
    }

    /// Makes room for more behind the first `slots`, and shows them: an eighth, in chunks.
    pub(super) fn grow(&self, slots: usize) -> Result<()> {
        if slots == MAX_SLOTS {
            return Err(Error::with(
                OP,
                Errno::NOSPC,
                format_args!("{slots} slots are taken, and there are {MAX_SLOTS}"),
            ));
        }
        let end = (slots + (slots / 8).next_multiple_of(CHUNK).max(CHUNK)).min(MAX_SLOTS);
        if !self.file.is_same() {
            return Err(Error::because(OP, Errno::BADF, "the table's descriptor was closed"));
        }
        // SAFETY: looked at above; it is kept for good.
        let file = unsafe { self.file.file() };
        fault::step();
        memfd::grow(file, self.shape.slot(end) as u64).op(OP)?;
        fault::step();
        for place in slots..end {
            // SAFETY: an entry that nobody uses yet, in a mapping that a table keeps for good.
            unsafe { owner::init(self.owner(place)) }.op(OP)?;
        }
        // Whoever sees the count may touch the slots.
        let committed = header::committed(View::of(&self.writable))?;
        committed.store(end as u32, Ordering::Release);
        Ok(())
    }

    /// For tests of what a process leaves behind that is killed: its children work on it.
    #[cfg(all(test, not(loom)))]
    pub(super) fn share_with_children(&self) {
        // SAFETY: takes nothing away.
        unsafe { self.writable.advise(Advice::LinuxDoFork) }.unwrap();
    }

    /// What the table takes and has.
    pub(super) fn usage(&self) -> Result<Usage> {
        const OP: &str = "task_shared::stats";
        let view = View::of(&self.writable);
        let memory = [&self.writable, &self.kept, &self.flag.1];
        let resident = memory.into_iter().map(Mapping::resident).sum::<rustix::io::Result<_>>();
        Ok(Usage {
            slots: self.committed()?,
            held: self.places.count(),
            high_water: self.high_water.load(Ordering::Relaxed) as usize,
            births: header::births(view)?.load(Ordering::Relaxed),
            deaths: header::deaths(view)?.load(Ordering::Relaxed),
            reclaimed: self.reclaimed.load(Ordering::Relaxed),
            bytes_resident: resident.op(OP)?,
            slot_size: self.shape.size,
        })
    }

    /// In a child that inherited the table: closes its descriptors. Its mappings were not
    /// inherited, and are not touched.
    pub(super) fn abandon(&self) {
        self.close();
        let taken = (0..MAX_SLOTS).filter(|&place| self.places.is_taken(place));
        for kept in taken.filter_map(|place| self.swap_kept(place, None)) {
            kept.close();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::held::tests::table;
    use super::*;
    use crate::sys::map::PAGE;
    use rustix::io::pwrite;

    #[test]
    fn nobody_else_can_write() {
        let table = table();
        // SAFETY: the table's own file, open until `abandon`.
        let file = unsafe { table.file.file() };
        let again = Mapping::shared(file, PAGE, Access::Write, Place::Anywhere);
        assert_eq!(again.map(drop), Err(Errno::PERM));
        // SAFETY: nobody relies on the access, because nothing is taken away.
        assert_eq!(unsafe { table.shown.protect(Access::Write) }, Err(Errno::ACCESS));
        assert_eq!(pwrite(file, b"x", 0), Err(Errno::PERM));
        assert_eq!(rustix::fs::ftruncate(file, 0), Err(Errno::PERM));
        table.abandon();
    }

    #[test]
    fn a_closed_descriptor_is_an_error_and_no_other_file_grows() {
        let table = table();
        table.file.close();
        for _ in 0..CHUNK {
            table.take().unwrap();
        }
        assert_eq!(table.take().unwrap_err().raw_os_error(), libc::EBADF);
    }
}
