//! Taking a slot and giving it back.
//!
//! ```text
//! take:     place (acquire) -> mutex -> begin life -> birth        lowest free place first
//! release:  end life -> mutex (release) -> place (release) -> death
//! reclaim:  mutex of the dead -> as release, under the process's lock
//! ```
//!
//! When no place is free, those that cool are thawed; if there are none, the slots of owners
//! who died without a release are reclaimed; if there are none, the table grows by an eighth.
//! A thread with descriptors of its own ([`Table::unshare_descriptors`]) does not reclaim: what
//! the dead have kept open is in the table of the others. Nor does it close what is noted there
//! under a number, nor forget it: a slot has one such note, which stays until it was closed.
//!
//! A thread that is killed between two of these steps leaves: a place without an owner (before
//! the mutex), which only a process's end can do, as all its threads end then; or a mutex that
//! the kernel marks, in any state of the life, which `reclaim` ends.

use super::descriptor::Kept;
use super::event::Event;
use super::fault;
use super::hazard;
use super::header;
use super::owner::{self, Label};
use super::process;
use super::record::{Record, Values};
use super::table::Table;
use crate::abi::futex2::MATCH_ANY;
use crate::error::{Error, Result};
use crate::shm::View;
use crate::sync::{AtomicU64, Ordering};
use crate::sys::{futex, thread};
use core::ptr::NonNull;
use rustix::io::Errno;

const OP: &str = "task_shared::current";

/// A slot that the calling thread holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    table: &'static Table,
    place: usize,
    /// The lock word as libc left it.
    left: u32,
}

impl Table {
    /// Takes the lowest free slot and makes the calling thread its owner. The life is not
    /// begun.
    ///
    /// # Errors
    ///
    /// ENOSPC if all slots are taken, ENOMEM, EOPNOTSUPP if the kernel would
    /// not mark the thread's death.
    pub(super) fn take(&'static self) -> Result<Held> {
        self.take_by(Self::reclaim)
    }

    /// The same for a thread with descriptors of its own.
    pub(super) fn take_apart(&'static self) -> Result<Held> {
        self.take_by(|_, _| Ok(false))
    }

    fn take_by(&'static self, reclaim: fn(&Self, usize) -> Result<bool>) -> Result<Held> {
        owner::repair_list().map_err(unmarked)?;
        let place = self.places.take(self.committed()?);
        let place = place.map_or_else(|| self.take_or_grow(reclaim), Ok)?;
        fault::step();
        // SAFETY: in a mapping that is kept for good, made when its page was added; the word
        // is the one that was found.
        match unsafe { owner::lock(self.owner(place), self.word) } {
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
    fn take_or_grow(&self, reclaim: fn(&Self, usize) -> Result<bool>) -> Result<usize> {
        let _guard = process::lock()?;
        loop {
            let slots = self.committed()?;
            if let Some(place) = self.places.take(slots) {
                return Ok(place);
            }
            // Other threads may take what is found before we do; then look again.
            if !self.places.thaw(slots) && !reclaim(self, slots)? {
                self.grow(slots)?;
            }
        }
    }

    /// Frees the slots of owners who died without a release; were there any? Only under the
    /// process's lock: a slot with the mark is then nobody else's to free.
    fn reclaim(&self, slots: usize) -> Result<bool> {
        let mut found = false;
        for place in 0..slots {
            let entry = self.owner(place);
            // SAFETY: committed, in a mapping that is kept for good, and of atomics.
            let owner = unsafe { entry.as_ref() };
            if !self.places.is_taken(place) || !owner::has_died(owner, self.word) {
                continue;
            }
            // While we hold the mutex to end the dead one's life, a reader must not take us
            // for it because the kernel gave us the same id.
            // SAFETY: as above.
            let record = unsafe { self.record(place).as_ref() };
            if record.read().is_some() && record.owner_tid() == thread::id() {
                continue;
            }
            // SAFETY: as in `take`.
            let left = unsafe { owner::lock(entry, self.word) }.map_err(unmarked)?;
            self.close_kept(place);
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
        fault::step();
        // SAFETY: the caller is the owner.
        unsafe { owner::unlock(self.owner(place), self.word, left) };
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

    /// Tells readers that a slot was taken or given back.
    fn announce(&self) {
        let (table, flag) = (View::of(&self.writable), View::of(&self.flag.1));
        let (Ok(word), Ok(flag)) = (header::event(table), flag.u32(0)) else { return };
        let address = core::ptr::from_ref(word).cast();
        Event { word, flag }.announce(|| {
            let _ = futex::wake_bitset(address, false, u32::MAX, MATCH_ANY);
        });
    }

    /// Closes the descriptor that the owner of a slot has kept. In a thread whose table of
    /// descriptors is not that of the owner the number names something else: then it stays noted,
    /// for whoever has the slot next.
    fn close_kept(&self, place: usize) {
        if let Some(kept) = self.swap_kept(place, None)
            && !kept.close()
        {
            self.swap_kept(place, Some(kept));
        }
    }

    /// Exchanges the descriptor that the owner of a slot keeps.
    pub(super) fn swap_kept(&self, place: usize, new: Option<Kept>) -> Option<Kept> {
        let words = View::of(&self.kept).u64s(16 * place, 2).ok()?;
        let new = new.map_or([0, 0], Kept::to_words);
        Kept::from_words(core::array::from_fn(|n| words[n].swap(new[n], Ordering::Relaxed)))
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
        let owner = unsafe { self.table.owner(self.place).as_ref() };
        self.record().begin(values, self.user()?, owner, label);
        self.table.count(header::births);
        self.table.note_high_water();
        Ok(())
    }

    /// What a reader asks whether the owner lives.
    #[cfg(all(test, not(loom)))]
    pub(super) fn owner_and_generation(
        &self,
    ) -> (&'static crate::sync::AtomicU32, &'static crate::sync::AtomicU32) {
        // SAFETY: committed, of atomics, and in a mapping that is kept for good.
        let owner = unsafe { self.table.owner(self.place).as_ref() };
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
        if let Some(last) = self.table.swap_kept(self.place, Some(file)) {
            last.close();
        }
    }

    /// Ends the life and frees the slot. Only by the thread that took it, once.
    pub(super) fn release(self) {
        self.table.close_kept(self.place);
        self.table.give_back(self.place, self.left);
    }

    /// The same by a thread with descriptors of its own, where a number that is noted could
    /// be that of a file which is in use.
    pub(super) fn release_apart(self) {
        self.table.give_back(self.place, self.left);
    }
}

/// An error of the robust list or the mutex.
pub(super) fn unmarked(errno: Errno) -> Error {
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
pub(super) mod tests {
    use super::super::layout::{CHUNK, MAX_SLOTS, Shape};
    use super::*;
    use crate::sys::memfd;

    /// A table beside that of the process.
    pub(in super::super) fn table() -> &'static Table {
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

    /// A thread with descriptors of its own cannot close what the dead have kept open in the
    /// table of the others: who has the slot next does.
    #[test]
    fn what_is_kept_open_is_closed_in_the_table_of_the_others() {
        let table = table();
        let kept = Kept::keep(memfd::create("unmerged.test", 0).unwrap()).unwrap();
        let dies = move || table.take().unwrap().keep(kept);
        std::thread::spawn(dies).join().unwrap();
        for _ in 1..CHUNK {
            table.take().unwrap();
        }
        let apart = move || {
            if !table.unshare_descriptors() {
                return false; // Linux before 5.9
            }
            let held = table.take().unwrap();
            assert_eq!(held.place, 0);
            held.release();
            true
        };
        let is_apart = std::thread::spawn(apart).join().unwrap();
        assert_eq!(kept.is_same(), is_apart);
        let next = table.take().unwrap();
        assert_eq!(next.place, 0);
        next.release();
        assert!(!kept.is_same());
        table.abandon();
    }
}
