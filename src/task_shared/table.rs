//! The slots of one process: a sealed memory file, two mappings of it, and who has what.
//!
//! # The file
//!
//! One header page, the entries of owners, then slots, 32 at a time. It is mapped writable over the size that it can
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
//! take:     place (acquire) -> mutex -> begin life -> birth        lowest free place first
//! release:  end life -> mutex (release) -> place (release) -> death
//! reclaim:  mutex of the dead -> as release, under the process's lock
//! ```
//!
//! When no place is free, those that cool are thawed; if there are none, the slots of owners
//! who died without a release are reclaimed; if there are none, the table grows by an eighth.
//!
//! A thread that is killed between two of these steps leaves: a place without an owner (before
//! the mutex), which only a process's end can do, as all its threads end then; or a mutex that
//! the kernel marks, in any state of the life, which `reclaim` ends.

use super::descriptor::Kept;
use super::event::Event;
use super::fault;
use super::hazard;
use super::header::{self, Written};
use super::layout::{self, CHUNK, FLAG_NAME, MAX_SLOTS, NAME, Shape};
use super::owner::{self, Label, Owner};
use super::places::Places;
use super::process;
use super::record::{Record, Values};
use super::schema::Entry;
use super::usage::Usage;
use crate::abi::futex2::MATCH_ANY;
use crate::error::{Context, Error, Result};
use crate::shm::View;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::sys::map::{Access, Mapping, PAGE, Place};
use crate::sys::{futex, memfd, object};
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
    writable: Mapping,
    shown: Mapping,
    shape: Shape,
    /// Index of the word that the kernel marks among the 32-bit words of an owner's entry.
    word: usize,
    /// The file in which readers say that they wait, and its one page.
    flag: (Kept, Mapping),
    places: Places,
    /// Slots that were held at once, at most.
    high_water: AtomicU64,
    /// Slots of owners who died without a release, that were reclaimed.
    reclaimed: AtomicU64,
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
        self.word = unsafe { owner::find_word(self.entry(0)) }.map_err(unmarked)?;
        let (pid, owner, shape) = (std::process::id(), self.word, self.shape);
        let flag = Some(self.flag.0.number_and_inode());
        header::write(View::of(&self.writable), Written { pid, owner, shape, entries, flag })
    }

    /// Gives the descriptors up.
    fn close(&self) {
        self.file.close();
        self.flag.0.close();
    }

    /// Slots that exist.
    pub(super) fn committed(&self) -> Result<usize> {
        let committed = header::committed(View::of(&self.writable))?.load(Ordering::Acquire);
        Ok(committed as usize)
    }

    /// The writable slot at `place`, which is below [`MAX_SLOTS`].
    fn record(&self, place: usize) -> NonNull<Record> {
        debug_assert!(place < MAX_SLOTS, "place {place}");
        // SAFETY: the mapping has room for MAX_SLOTS of them.
        unsafe { self.writable.start().add(self.shape.slot(place)) }.cast()
    }

    /// The entry of its owner.
    fn entry(&self, place: usize) -> NonNull<Owner> {
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
        let owner = unsafe { self.entry(place).as_ref() };
        Some((record, owner.mutex.get(self.word)?))
    }

    /// All of the user's words of the slot at `place`, which is committed.
    fn user(&self, place: usize) -> Result<&[AtomicU64]> {
        let first = self.shape.slot(place) + layout::USER;
        View::of(&self.writable).u64s(first, self.shape.words())
    }

    /// The rseq area of the slot at `place`, if slots have one.
    fn rseq(&self, place: usize) -> Option<NonNull<[AtomicU64; 8]>> {
        let at = self.shape.slot(place) + self.shape.rseq_at();
        self.shape.rseq.then(|| self.writable.at(at, layout::RSEQ).ok().map(NonNull::cast))?
    }

    /// Tells readers that a slot was taken or given back.
    fn announce(&self) {
        let (table, flag) = (View::of(&self.writable), View::of(&self.flag.1));
        let (Ok(word), Ok(flag)) = (header::event(table), flag.u32(0)) else { return };
        let address = core::ptr::from_ref(word).cast();
        Event { word, flag }.announce(|| {
            let _ = futex::wake_bitset(address, false, u32::MAX, MATCH_ANY);
        });
    }

    /// Makes room for more behind the first `slots`, and shows them: an eighth, in chunks.
    fn grow(&self, slots: usize) -> Result<()> {
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
            unsafe { owner::init(self.entry(place)) }.op(OP)?;
        }
        // Whoever sees the count may touch the slots.
        let committed = header::committed(View::of(&self.writable))?;
        committed.store(end as u32, Ordering::Release);
        Ok(())
    }

    /// Takes the lowest free slot and makes the calling thread its owner. The life is not
    /// begun.
    ///
    /// # Errors
    ///
    /// ENOSPC if all slots are taken, ENOMEM, EOPNOTSUPP if the kernel would
    /// not mark the thread's death.
    pub(super) fn take(&'static self) -> Result<Held> {
        owner::repair_list().map_err(unmarked)?;
        let place = self.places.take(self.committed()?);
        let place = place.map_or_else(|| self.take_or_grow(), Ok)?;
        fault::step();
        // SAFETY: in a mapping that is kept for good, made when its page was added; the word
        // is the one that was found.
        match unsafe { owner::lock(self.entry(place), self.word) } {
            Ok(left) => {
                fault::step();
                Ok(Held { table: self, place, left })
            }
            Err(errno) => {
                self.places.untake(place);
                Err(unmarked(errno))
            }
        }
    }

    #[cold]
    fn take_or_grow(&self) -> Result<usize> {
        let _guard = process::lock()?;
        loop {
            let slots = self.committed()?;
            if let Some(place) = self.places.take(slots) {
                return Ok(place);
            }
            // Other threads may take what is found before we do; then look again.
            if !self.places.thaw(slots) && !self.reclaim(slots)? {
                self.grow(slots)?;
            }
        }
    }

    /// Frees the slots of owners who died without a release; were there any? Only under the
    /// process's lock: a slot with the mark is then nobody else's to free.
    fn reclaim(&self, slots: usize) -> Result<bool> {
        let mut found = false;
        for place in 0..slots {
            let entry = self.entry(place);
            // SAFETY: committed, in a mapping that is kept for good, and of atomics.
            let owner = unsafe { entry.as_ref() };
            if !self.places.is_taken(place) || !owner::has_died(owner, self.word) {
                continue;
            }
            // While we hold the mutex to end the dead one's life, a reader must not take us
            // for it because the kernel gave us the same id.
            // SAFETY: as above.
            let record = unsafe { self.record(place).as_ref() };
            if record.read().is_some() && record.owner_tid() == owner::tid() {
                continue;
            }
            // SAFETY: as in `take`.
            let left = unsafe { owner::lock(entry, self.word) }.map_err(unmarked)?;
            self.give_back(place, left);
            self.reclaimed.fetch_add(1, Ordering::Relaxed);
            found = true;
        }
        Ok(found)
    }

    /// Ends the life in a slot that the calling thread owns, and frees it.
    fn give_back(&self, place: usize, left: u32) {
        // SAFETY: in a mapping that is kept for good, and of atomics.
        let record = unsafe { self.record(place).as_ref() };
        record.end();
        hazard::wait_until_left(record);
        if let Some(kept) = self.swap_kept(place, None) {
            kept.close();
        }
        fault::step();
        // SAFETY: the caller is the owner.
        unsafe { owner::unlock(self.entry(place), self.word, left) };
        self.places.give_back(place);
        self.count(header::deaths);
    }

    /// Counts a birth or a death, and tells readers.
    fn count<'a>(&'a self, what: impl FnOnce(View<'a>) -> Result<&'a AtomicU64>) {
        if let Ok(count) = what(View::of(&self.writable)) {
            count.fetch_add(1, Ordering::Release);
        }
        self.announce();
    }

    /// Births without a death, as far as they are known at this moment.
    fn held(&self) -> u64 {
        let view = View::of(&self.writable);
        let (Ok(births), Ok(deaths)) = (header::births(view), header::deaths(view)) else {
            return 0;
        };
        // Deaths first: each of them had its birth before.
        let deaths = deaths.load(Ordering::Acquire);
        births.load(Ordering::Relaxed).saturating_sub(deaths)
    }

    /// Notes how many are held.
    fn note_high_water(&self) {
        let held = self.held();
        let mut high = self.high_water.load(Ordering::Relaxed);
        while held > high {
            let (ok, lost) = (Ordering::Relaxed, Ordering::Relaxed);
            match self.high_water.compare_exchange_weak(high, held, ok, lost) {
                Ok(_) => break,
                Err(now) => high = now,
            }
        }
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

    /// Exchanges the descriptor that the owner of a slot keeps.
    fn swap_kept(&self, place: usize, new: Option<Kept>) -> Option<Kept> {
        let words = View::of(&self.kept).u64s(16 * place, 2).ok()?;
        let new = new.map_or([0, 0], Kept::to_words);
        Kept::from_words(core::array::from_fn(|n| words[n].swap(new[n], Ordering::Relaxed)))
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

impl Held {
    /// The slot, for its owner. Not in a child that inherited it.
    pub(super) fn record(&self) -> &'static Record {
        // SAFETY: committed, of atomics, and in a mapping that is kept for good.
        unsafe { self.table.record(self.place).as_ref() }
    }

    /// Begins the life of its owner, and tells readers.
    pub(super) fn begin(&self, values: Values, label: Label) -> Result<()> {
        // SAFETY: committed, of atomics, and in a mapping that is kept for good.
        let owner = unsafe { self.table.entry(self.place).as_ref() };
        self.record().begin(values, self.user()?, owner, label);
        self.table.count(header::births);
        self.table.note_high_water();
        Ok(())
    }

    /// What a reader asks whether the owner lives.
    #[cfg(all(test, not(loom)))]
    pub(super) fn owner_and_generation(&self) -> (&'static AtomicU32, &'static AtomicU32) {
        // SAFETY: committed, of atomics, and in a mapping that is kept for good.
        let owner = unsafe { self.table.entry(self.place).as_ref() };
        (&owner.mutex[self.table.word], &self.record().generation)
    }

    /// All of the user's words.
    pub(super) fn user(&self) -> Result<&'static [AtomicU64]> {
        self.table.user(self.place)
    }

    /// The rseq area in the slot, if slots have one.
    pub(super) fn rseq(&self) -> Option<NonNull<[AtomicU64; 8]>> {
        self.table.rseq(self.place)
    }

    /// Address of the slot in the read-only mapping.
    pub(super) fn shown(&self) -> usize {
        self.table.shown.address() + self.table.shape.slot(self.place)
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
        Box::leak(Box::new(Table::create(Shape { size: 128, rseq: false }, &[]).unwrap()))
    }

    #[test]
    fn lowest_first_and_grows_by_a_chunk() {
        let table = table();
        assert_eq!(table.committed().unwrap(), CHUNK);
        let mut held: Vec<_> = (0..CHUNK).map(|_| table.take().unwrap()).collect();
        assert!(held.iter().enumerate().all(|(n, held)| held.place == n));
        held[3].release();
        held[1].release();
        let used = table.usage().unwrap();
        assert_eq!((used.held, used.slots, used.deaths), (CHUNK - 2, CHUNK, 2));
        assert_eq!([table.take().unwrap().place, table.take().unwrap().place], [1, 3]);
        held.push(table.take().unwrap());
        assert_eq!((held[CHUNK].place, table.committed().unwrap()), (CHUNK, 2 * CHUNK));
        for held in held {
            held.release();
        }
        table.abandon();
    }

    /// All the slots that there can be, by one thread; the table has not moved.
    #[test]
    fn the_last_slot_and_no_more() {
        let table = table();
        let first = table.take().unwrap();
        let address = first.shown();
        let held: Vec<_> = (1..MAX_SLOTS).map(|_| table.take().unwrap()).collect();
        let error = table.take().unwrap_err();
        assert_eq!(error.raw_os_error(), libc::ENOSPC);
        assert!(error.is_exhausted() && error.to_string().contains("65536 slots"), "{error}");
        assert_eq!((held[MAX_SLOTS - 2].place, first.shown()), (MAX_SLOTS - 1, address));
        held[1000].release();
        assert_eq!(table.take().unwrap().place, 1001);
        assert!(table.take().is_err());
        first.release();
        held.into_iter().for_each(Held::release);
        assert_eq!(table.usage().unwrap().held, 0);
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

    #[test]
    fn the_dead_are_reclaimed_before_the_table_grows() {
        let table = table();
        let take_all = move || {
            for _ in 0..CHUNK {
                table.take().unwrap();
            }
        };
        // The thread releases nothing.
        std::thread::spawn(take_all).join().unwrap();
        assert_eq!(table.take().unwrap().place, 0);
        assert_eq!(table.committed().unwrap(), CHUNK);
        table.abandon();
    }
}
