//! The control memory of a region besides its header: participants, lock, log, who serves.
//!
//! It lies in front of the control page, at the same address in every process. Participants
//! with all rights can write it; the others map it for reading, and ask the server. All of it is
//! atomic words. Numbers that were agreed at the attachment are never read here again.

use super::layout::{Segment, parse, words};
use super::lock::Lock;
use super::log::{COPY, Log};
use super::participants::{PARTICIPANTS, Participants, Slot};
use super::wire::VERSION;
use crate::error::{Error, Result};
use crate::sync::{AtomicU32, AtomicU64, Ordering, assert_layout};
use crate::sys::map::PAGE;
use core::ptr::NonNull;
use rustix::io::Errno;

/// Bytes of the file.
pub(super) const LEDGER_LEN: usize = size_of::<Ledger>().next_multiple_of(PAGE);

const MAGIC: u64 = u64::from_le_bytes(*b"umshareL");

/// The words.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Ledger {
    magic: AtomicU64,
    version: AtomicU64,
    /// Permission bits and the creator's user and group: what a server judges by.
    pub(super) mode: AtomicU32,
    pub(super) uid: AtomicU32,
    pub(super) gid: AtomicU32,
    /// Rights of those that are neither the owner nor root.
    pub(super) others: AtomicU32,
    /// Most segments that one of them may map.
    pub(super) quota: AtomicU32,
    /// Whether the region ends with its creator: see [`Ledger::owner`].
    pub(super) bound: AtomicU32,
    /// Most participants of one user that is neither the owner nor root.
    pub(super) per_user: AtomicU32,
    unused_half: AtomicU32,
    /// The creator, by token.
    pub(super) owner: AtomicU64,
    /// Who serves, by token; 0 if nobody.
    pub(super) leader: AtomicU64,
    /// How many times somebody began to serve.
    pub(super) epoch: AtomicU64,
    /// Device and inode of the socket file that is the region's name; then of the one that its
    /// server is about to put there.
    pub(super) sockets: [[AtomicU64; 2]; 2],
    /// 1 when the region has ended with its creator.
    pub(super) ended: AtomicU64,
    /// The control page's word when a participant with all rights made the heap; see
    /// [`extent`](super::heap). Every writer can write that one.
    pub(super) heap: AtomicU64,
    /// Milliseconds between two turns of the [thread that makes huge pages](super::collapse); 0 if
    /// none does.
    pub(super) collapse: AtomicU32,
    other_half: AtomicU32,
    unused: [AtomicU64; 16],
    holder: AtomicU64,
    turns: AtomicU32,
    acks: AtomicU32,
    generation: AtomicU64,
    /// Holes of this generation and before are empty, and everybody follows them.
    pub(super) emptied: AtomicU64,
    serials: AtomicU64,
    /// The last number of an object.
    pub(super) objects: AtomicU64,
    /// Participants that were found dead.
    pub(super) reaped: AtomicU64,
    unused_too: [AtomicU64; 25],
    slots: [Slot; PARTICIPANTS],
    copies: [[AtomicU64; COPY]; 2],
}

assert_layout!(
    core::mem::offset_of!(Ledger, holder) == 256,
    core::mem::offset_of!(Ledger, slots) == 512,
);

impl Ledger {
    /// The ledger at this address.
    ///
    /// # Safety
    ///
    /// A ledger must be mapped there for all of `'a`.
    pub(super) unsafe fn at<'a>(ledger: NonNull<Self>) -> &'a Self {
        // SAFETY: mapped, as the caller says; all fields are atomics.
        unsafe { ledger.as_ref() }
    }

    /// Fills a fresh one.
    pub(super) fn fill(&self) {
        // The socket that hands it out orders all this.
        self.version.store(u64::from(VERSION), Ordering::Relaxed);
        self.magic.store(MAGIC, Ordering::Relaxed);
    }

    /// Is it one?
    ///
    /// # Errors
    ///
    /// EBADMSG for another magic or version.
    pub(super) fn verify(&self) -> Result<()> {
        let (magic, version) =
            (self.magic.load(Ordering::Relaxed), self.version.load(Ordering::Relaxed));
        if magic == MAGIC && version == u64::from(VERSION) {
            return Ok(());
        }
        Err(Error::with(
            super::OPEN,
            Errno::BADMSG,
            format_args!("ledger with magic {magic:#x} and version {version}"),
        ))
    }

    /// The log's lock.
    pub(super) fn lock(&self) -> Lock<'_> {
        Lock { holder: &self.holder, turns: &self.turns }
    }

    /// The futex on which those wait who want the lock.
    pub(super) fn turns(&self) -> &AtomicU32 {
        &self.turns
    }

    /// The futex on which those wait who want to be followed.
    pub(super) fn acks(&self) -> &AtomicU32 {
        &self.acks
    }

    /// The processes.
    pub(super) fn participants(&self) -> Participants<'_> {
        Participants { slots: &self.slots, serials: &self.serials, acks: &self.acks }
    }

    /// The log, as words.
    pub(super) fn log(&self) -> Log<'_> {
        let [a, b] = &self.copies;
        Log { generation: &self.generation, copies: [a, b] }
    }

    /// The layout of a region of `size` bytes, and the generation that made it.
    ///
    /// # Errors
    ///
    /// EBADMSG if what is there is no layout.
    pub(super) fn layout(&self, operation: &'static str, size: u64) -> Result<(u64, Vec<Segment>)> {
        let bad =
            |numbers: core::fmt::Arguments<'_>| Error::with(operation, Errno::BADMSG, numbers);
        let Some((generation, raw)) = self.log().snapshot() else {
            return Err(bad(format_args!("the log is longer than any, or never rests")));
        };
        match parse(&raw, size) {
            Ok(segments) => Ok((generation, segments)),
            Err(number) => Err(bad(format_args!("segment {number} of the log is none"))),
        }
    }

    /// Publishes a layout; the caller has the lock.
    pub(super) fn publish(&self, segments: &[Segment]) -> u64 {
        self.log().commit(&words(segments))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sys::map::{Access, Mapping};
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Any bytes in the whole ledger: an answer or an error, whatever is asked.
        #[test]
        fn a_ledger_of_any_bytes(
            seed: u64,
            lies in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>()), 0..40),
        ) {
            let memory = Mapping::anonymous(LEDGER_LEN, Access::Write).unwrap();
            let words = LEDGER_LEN / 8;
            let put = |at: usize, value: u64| {
                let word = memory.at(at * 8, 8).unwrap().cast::<u64>();
                // SAFETY: inside our own mapping.
                unsafe { word.write(value) };
            };
            if seed % 2 == 0 {
                (0..words).for_each(|at| put(at, (at as u64).wrapping_mul(seed | 1) >> (at % 60)));
            }
            for (at, lie) in lies {
                put(at.index(words), lie);
            }
            // SAFETY: mapped, zeroed or scribbled; all fields are atomics.
            let ledger = unsafe { Ledger::at(memory.start().cast()) };
            let _ = ledger.verify();
            if let Ok((_, layout)) = ledger.layout("test", 1 << 30) {
                prop_assert!(layout.iter().all(|segment| segment.end() <= 1 << 30));
            }
            for token in ledger.participants().present() {
                let all = ledger.participants();
                let _ = (all.followed(token), all.rights(token), all.began(token));
            }
            let _ = ledger.participants().named(ledger.leader.load(Ordering::Relaxed));
            let _ = ledger.participants().behind(seed);
        }
    }
}
