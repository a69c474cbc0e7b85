//! The slots of one process: a sealed memory file, two mappings of it, and who has what.
//!
//! # The file
//!
//! One header page, then pages of 32 slots. It is mapped writable over the size that it can
//! ever have, then sealed (`F_SEAL_FUTURE_WRITE`, since Linux 5.1: nobody maps it writable
//! any more; `F_SEAL_SHRINK`: no reader can be cut off; `F_SEAL_SEAL`), then mapped
//! read-only, in this order: so not even mprotect(2) makes the second mapping writable.
//! From then on it grows by ftruncate(2) under both mappings, and nothing moves. Pages
//! beyond the end fault, so the count of committed slots is stored, with release, after
//! the pages are there; readers check it against the size of the file.
//!
//! # Taking and giving back
//!
//! ```text
//! take:     bit (acquire) -> mutex -> begin life        lowest free bit first
//! release:  end life -> mutex (release) -> bit (release)
//! reclaim:  mutex of the dead -> end life -> mutex -> bit, under the process's lock
//! ```
//!
//! A slot whose owner died without a release keeps its bit until nothing else is free. It is
//! then reclaimed, before the table grows.

use super::descriptor::Kept;
use super::header::{self, MAX_BYTES, MAX_SLOTS, NAME, PER_PAGE, bytes_for};
use super::owner;
use super::process;
use super::record::Record;
use crate::error::{Context, Error, Result};
use crate::shm::{Bitmap, View};
use crate::sync::{AtomicU64, Ordering};
use crate::sys::map::{Access, Mapping, Place};
use crate::sys::memfd;
use core::ptr::NonNull;
use rustix::fs::{SealFlags, ftruncate};
use rustix::io::Errno;
use rustix::mm::Advice;

const OP: &str = "task_shared::current";
/// The seals of a table's file; the first two are what a reader asks for.
const SEALS: SealFlags = SealFlags::FUTURE_WRITE.union(SealFlags::SHRINK).union(SealFlags::SEAL);
/// Words of the bitmap, and of its summary.
const WORDS: usize = MAX_SLOTS / 64;

/// The slots of one process.
#[derive(Debug)]
pub(super) struct Table {
    file: Kept,
    writable: Mapping,
    shown: Mapping,
    /// Index of the word that the kernel marks among the 32-bit words of a slot.
    word: usize,
    taken: Box<[AtomicU64]>,
    summary: Box<[AtomicU64]>,
    /// Two words for each slot: the descriptor that its owner keeps. In memory of its own,
    /// because most of it is never touched.
    kept: Mapping,
}

/// A slot that the calling thread holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    pub(super) table: &'static Table,
    place: usize,
    /// The lock word as libc left it.
    left: u32,
}

impl Table {
    /// A table of one page.
    ///
    /// # Errors
    ///
    /// ENOMEM, EMFILE or ENFILE, EOPNOTSUPP on a kernel without robust lists or in a task
    /// that libc does not know.
    pub(super) fn create() -> Result<Self> {
        owner::repair_list().map_err(unmarked)?;
        let file = memfd::create(NAME, bytes_for(0) as u64).op(OP)?;
        let map = |access| Mapping::shared(&file, MAX_BYTES, access, Place::Anywhere).op(OP);
        let writable = map(Access::Write)?;
        memfd::seal(&file, SEALS).op(OP)?;
        let shown = map(Access::Read)?;
        for mapping in [&writable, &shown] {
            // SAFETY: a child of fork finds the epoch gone and does not look here.
            unsafe { mapping.advise(Advice::LinuxDontFork) }.op(OP)?;
        }
        let kept = Mapping::anonymous(16 * MAX_SLOTS, Access::Write).op(OP)?;
        let words = |n| (0..n).map(|_| AtomicU64::new(0)).collect();
        let mut table = Self {
            file: Kept::keep(file).op(OP)?,
            writable,
            shown,
            word: 0,
            taken: words(WORDS),
            summary: words(WORDS.div_ceil(64)),
            kept,
        };
        table.finish().inspect_err(|_| table.file.close())?;
        Ok(table)
    }

    /// The first page of slots, and the header that says how to read it.
    fn finish(&mut self) -> Result<()> {
        self.add_page(0)?;
        // SAFETY: in a mapping that a table keeps for good; made by `add_page`, and not
        // shared yet.
        self.word = unsafe { owner::find_word(self.record(0)) }.map_err(unmarked)?;
        header::write(View::of(&self.writable), std::process::id(), self.word)
    }

    fn bitmap(&self) -> Bitmap<'_> {
        Bitmap::new(&self.taken, &self.summary)
    }

    fn committed(&self) -> Result<usize> {
        let committed = header::committed(View::of(&self.writable))?.load(Ordering::Acquire);
        Ok(committed as usize)
    }

    /// The writable slot at `place`, which is below [`MAX_SLOTS`].
    fn record(&self, place: usize) -> NonNull<Record> {
        debug_assert!(place < MAX_SLOTS, "place {place}");
        // SAFETY: the mapping has room for MAX_SLOTS of them behind the header page.
        unsafe { self.writable.start().add(bytes_for(place)) }.cast()
    }

    /// Makes room for a page of slots behind the first `slots`, and shows them.
    fn add_page(&self, slots: usize) -> Result<()> {
        if slots + PER_PAGE > MAX_SLOTS {
            return Err(Error::with(
                OP,
                Errno::NOMEM,
                format_args!("{slots} slots are taken, and there are {MAX_SLOTS}"),
            ));
        }
        if !self.file.is_same() {
            return Err(Error::because(OP, Errno::BADF, "the table's descriptor was closed"));
        }
        // SAFETY: looked at above; it is kept for good.
        let file = unsafe { self.file.file() };
        ftruncate(file, bytes_for(slots + PER_PAGE) as u64).op(OP)?;
        for place in slots..slots + PER_PAGE {
            // SAFETY: in the page that was added, which nobody else uses yet, and in a
            // mapping that a table keeps for good.
            unsafe { owner::init(self.record(place)) }.op(OP)?;
        }
        // Whoever sees the count may touch the page.
        let committed = header::committed(View::of(&self.writable))?;
        committed.store((slots + PER_PAGE) as u32, Ordering::Release);
        Ok(())
    }

    /// Takes the lowest free slot and makes the calling thread its owner. The life is not
    /// begun.
    ///
    /// # Errors
    ///
    /// ENOMEM if all slots are taken or there is no memory, EOPNOTSUPP if the kernel would
    /// not mark the thread's death.
    pub(super) fn take(&'static self) -> Result<Held> {
        owner::repair_list().map_err(unmarked)?;
        let place = self.bitmap().take(self.committed()?);
        let place = place.map_or_else(|| self.take_or_grow(), Ok)?;
        // SAFETY: in a mapping that is kept for good, made when its page was added; the word
        // is the one that was found.
        match unsafe { owner::lock(self.record(place), self.word) } {
            Ok(left) => Ok(Held { table: self, place, left }),
            Err(errno) => {
                self.bitmap().release(place);
                Err(unmarked(errno))
            }
        }
    }

    #[cold]
    fn take_or_grow(&self) -> Result<usize> {
        let _guard = process::lock()?;
        loop {
            let slots = self.committed()?;
            if let Some(place) = self.bitmap().take(slots) {
                return Ok(place);
            }
            // Other threads may take what is found before we do; then look again.
            if !self.reclaim(slots)? {
                self.add_page(slots)?;
            }
        }
    }

    /// Frees the slots of owners who died without a release; were there any? Only under the
    /// process's lock: a slot with the mark is then nobody else's to free.
    fn reclaim(&self, slots: usize) -> Result<bool> {
        let mut found = false;
        for place in 0..slots {
            let record = self.record(place);
            // SAFETY: committed, in a mapping that is kept for good, and of atomics.
            let shared = unsafe { record.as_ref() };
            if !self.bitmap().is_taken(place) || !owner::has_died(shared, self.word) {
                continue;
            }
            // While we hold the mutex to end the dead one's life, a reader must not take us
            // for it because the kernel gave us the same id.
            if shared.read().is_some_and(|last| last.values.tid == owner::tid()) {
                continue;
            }
            // SAFETY: as in `take`.
            let left = unsafe { owner::lock(record, self.word) }.map_err(unmarked)?;
            self.give_back(place, left);
            found = true;
        }
        Ok(found)
    }

    /// Ends the life in a slot that the calling thread owns, and frees it.
    fn give_back(&self, place: usize, left: u32) {
        let record = self.record(place);
        // SAFETY: in a mapping that is kept for good, and of atomics.
        unsafe { record.as_ref() }.end();
        if let Some(kept) = self.swap_kept(place, None) {
            kept.close();
        }
        // SAFETY: the caller is the owner.
        unsafe { owner::unlock(record, self.word, left) };
        self.bitmap().release(place);
    }

    /// Exchanges the descriptor that the owner of a slot keeps.
    fn swap_kept(&self, place: usize, new: Option<Kept>) -> Option<Kept> {
        let words = View::of(&self.kept).u64s(16 * place, 2).ok()?;
        let new = new.map_or([0, 0], Kept::to_words);
        Kept::from_words(core::array::from_fn(|n| words[n].swap(new[n], Ordering::Relaxed)))
    }

    /// In a child that inherited the table: closes its descriptors. Its mappings were not
    /// inherited, and are not touched.
    pub(super) fn abandon(&self) {
        self.file.close();
        let taken = (0..MAX_SLOTS).filter(|&place| self.bitmap().is_taken(place));
        for kept in taken.filter_map(|place| self.swap_kept(place, None)) {
            kept.close();
        }
    }
}

impl Held {
    /// The slot, for its owner. Not in a child that inherited it.
    pub(super) fn record(&self) -> &'static Record {
        // SAFETY: committed, of atomics, and in a mapping that is kept for good.
        unsafe { self.table.record(self.place).as_ref() }
    }

    /// Address of the slot in the read-only mapping.
    pub(super) fn shown(&self) -> usize {
        self.table.shown.address() + bytes_for(self.place)
    }

    /// Keeps a descriptor until the slot is released or its owner is reclaimed.
    pub(super) fn keep(&self, file: Kept) {
        self.table.swap_kept(self.place, Some(file));
    }

    /// Ends the life and frees the slot. Only by the thread that took it, once.
    pub(super) fn release(self) {
        self.table.give_back(self.place, self.left);
    }
}

/// An error of the robust list or the mutex.
fn unmarked(errno: Errno) -> Error {
    match errno {
        Errno::NOSYS | Errno::OPNOTSUPP => Error::because(
            OP,
            Errno::OPNOTSUPP,
            "the kernel keeps no robust list for this thread, so it would not mark its death",
        ),
        other => Error::new(OP, other),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sys::map::PAGE;
    use rustix::io::pwrite;

    /// A table beside that of the process.
    fn table() -> &'static Table {
        Box::leak(Box::new(Table::create().unwrap()))
    }

    #[test]
    fn lowest_first_and_grows_by_a_page() {
        let table = table();
        assert_eq!(table.committed().unwrap(), PER_PAGE);
        let held: Vec<_> = (0..PER_PAGE + 1).map(|_| table.take().unwrap()).collect();
        assert_eq!(table.committed().unwrap(), 2 * PER_PAGE);
        assert!(held.iter().enumerate().all(|(n, held)| held.place == n));
        held[3].release();
        held[1].release();
        assert_eq!([table.take().unwrap().place, table.take().unwrap().place], [1, 3]);
        for held in held {
            held.release();
        }
        table.abandon();
    }

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
        assert_eq!(ftruncate(file, 0), Err(Errno::PERM));
        table.abandon();
    }

    #[test]
    fn a_closed_descriptor_is_an_error_and_no_other_file_grows() {
        let table = table();
        table.file.close();
        for _ in 0..PER_PAGE {
            table.take().unwrap();
        }
        assert_eq!(table.take().unwrap_err().raw_os_error(), libc::EBADF);
    }

    #[test]
    fn the_dead_are_reclaimed_before_the_table_grows() {
        let table = table();
        let take_all = move || {
            for _ in 0..PER_PAGE {
                table.take().unwrap();
            }
        };
        // The thread releases nothing.
        std::thread::spawn(take_all).join().unwrap();
        assert_eq!(table.take().unwrap().place, 0);
        assert_eq!(table.committed().unwrap(), PER_PAGE);
        table.abandon();
    }
}
