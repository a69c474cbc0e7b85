//! Ledgers: who counted what, so that the counts of the dead can be taken back.
//!
//! Counts may be too high, never too low. A process that is killed between two lines leaves
//! its ledger at most as high as what it has added to the table:
//!
//! ```text
//! waiter            leaving           whoever finds its process dead
//!   count += 1        ledger -= 1       n = ledger, ledger = 0   (one exchange)
//!   ledger += 1       count -= 1        count -= n
//! ```
//!
//! Killed between the last two lines, the finder leaves `n` in the count for good: a lost
//! shortcut, not a lost wake.
//!
//! # A word of a ledger
//!
//! | bits | |
//! |---|---|
//! | 0 to 15 | waiters |
//! | 16 to 31 | those of them that sleep on the sequence |
//! | 32 to 63 | the tag of the owner who wrote them |
//!
//! A finder that stood still while another one cleared the row, and a living process took it, must
//! not take that one's counts: it exchanges words of the dead one's tag only. A word of another
//! tag counts as 0.
//!
//! # The owner of a row
//!
//! | bits | |
//! |---|---|
//! | 0 to 31 | process id |
//! | 32 to 62 | when it began, in ticks |
//! | 63 | the id means something only in another namespace: it cannot be found dead |

use super::super::counts::Spot;
use super::layout::Row;
use super::step;
use crate::sync::{AtomicU64, Ordering};
use crate::sys::{pidfd, task};
use rustix::io::Errno;

/// The owner of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner(pub(super) u64);

/// Its process id means something only in another namespace.
const FOREIGN: u64 = 1 << 63;

impl Owner {
    /// This process.
    pub(super) fn own(at_home: bool) -> Self {
        let pid = std::process::id();
        let began = task::stat(pid).map(|(_, began)| began);
        let foreign = if at_home && began.is_ok() { 0 } else { FOREIGN };
        Self(u64::from(pid) | (began.unwrap_or(0) << 32 & !FOREIGN) | foreign)
    }

    fn pid(self) -> u32 {
        self.0 as u32
    }

    fn tag(self) -> u32 {
        (self.0 ^ self.0 >> 32) as u32
    }

    /// Whether it is dead for sure. For processes at home.
    fn is_dead(self) -> bool {
        if self.0 & FOREIGN != 0 {
            return false;
        }
        match pidfd::open(self.pid()) {
            Err(error) => error == Errno::SRCH,
            Ok(process) => {
                let began = task::stat(self.pid()).map(|(_, began)| began << 32 & !FOREIGN);
                pidfd::has_ended(&process) == Ok(true)
                    || began.is_ok_and(|began| began != self.0 & !FOREIGN & !u64::from(u32::MAX))
            }
        }
    }
}

/// The row of a living process.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Ledger<'a> {
    pub(super) row: &'a Row,
    pub(super) owner: Owner,
}

const SHADOWED: u32 = 1 << 16;

impl Ledger<'_> {
    pub(in super::super) fn add(&self, index: usize) {
        self.update(index, |counts| if counts as u16 == u16::MAX { counts } else { counts + 1 });
    }

    pub(in super::super) fn remove(&self, index: usize) {
        self.update(index, |counts| if counts as u16 == 0 { counts } else { counts - 1 });
    }

    pub(in super::super) fn add_shadowed(&self, index: usize) {
        let full = u32::MAX - (SHADOWED - 1);
        self.update(index, |counts| if counts >= full { counts } else { counts + SHADOWED });
    }

    pub(in super::super) fn remove_shadowed(&self, index: usize) {
        self.update(index, |counts| if counts < SHADOWED { counts } else { counts - SHADOWED });
    }

    fn update(&self, index: usize, change: impl Fn(u32) -> u32) {
        update(&self.row.places[index], self.owner.tag(), change);
    }
}

fn update(word: &AtomicU64, tag: u32, change: impl Fn(u32) -> u32) {
    let mut seen = word.load(Ordering::Relaxed);
    loop {
        let counts = if (seen >> 32) as u32 == tag { seen as u32 } else { 0 };
        let new = u64::from(tag) << 32 | u64::from(change(counts));
        match word.compare_exchange(seen, new, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => return,
            Err(other) => seen = other,
        }
    }
}

/// Takes what this owner has written; its waiters, and those that sleep on the sequence.
fn take(word: &AtomicU64, tag: u32) -> (u32, u32) {
    let mut seen = word.load(Ordering::Acquire);
    // Only its living owner and other finders change the word; in a table that somebody else
    // writes, there is an end too.
    for _ in 0..64 {
        if (seen >> 32) as u32 != tag || seen as u32 == 0 {
            break;
        }
        let none = u64::from(tag) << 32;
        match word.compare_exchange(seen, none, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return (seen as u32 & 0xffff, seen as u32 >> 16),
            Err(other) => seen = other,
        }
    }
    (0, 0)
}

/// Takes back all that `owner` has added to the table, and frees its row.
pub(super) fn clear<'a>(row: &Row, owner: Owner, spot: impl Fn(usize) -> Spot<'a>) {
    for (index, word) in row.places.iter().enumerate() {
        let (waiters, shadowed) = take(word, owner.tag());
        if waiters == 0 && shadowed == 0 {
            continue;
        }
        step();
        let spot = spot(index);
        if shadowed != 0 {
            spot.entry().remove_shadowed(shadowed);
        }
        step();
        if waiters != 0 {
            spot.leave(waiters);
        }
        step();
    }
    let _ = row.owner.compare_exchange(owner.0, 0, Ordering::AcqRel, Ordering::Relaxed);
    step();
}

/// The owner of a row whose process is dead.
pub(super) fn dead_owner(row: &Row) -> Option<Owner> {
    let owner = row.owner.load(Ordering::Acquire);
    (owner != 0 && Owner(owner).is_dead()).then_some(Owner(owner))
}

#[cfg(all(test, loom))]
mod models {
    use super::super::super::counts::models::table;
    use super::super::super::counts::{PLACES, Spot, Table};
    use super::*;
    use crate::sync::model;
    use loom::sync::Arc;
    use loom::thread;

    const DEAD: Owner = Owner(7 << 32 | 1);
    const NEXT: Owner = Owner(9 << 32 | 2);

    struct Shared {
        table: Table,
        row: Row,
    }

    fn shared() -> Arc<Shared> {
        let places = core::array::from_fn::<_, PLACES, _>(|_| AtomicU64::new(0).ready());
        let row = Row { owner: AtomicU64::new(DEAD.0).ready(), _pad: [0; 15], places };
        Arc::new(Shared { table: table(), row })
    }

    impl Shared {
        fn spot(&self, index: usize) -> Spot<'_> {
            Spot { table: &self.table, index }
        }
        fn find(&self) {
            if self.row.owner.load(Ordering::Acquire) == DEAD.0 {
                clear(&self.row, DEAD, |index| self.spot(index));
            }
        }
    }

    /// Killed after each line of entering and leaving, then found by two, one of whom then has a
    /// waiter of its own in the row: no count is lost, and but for the time between a count and
    /// its ledger none is left over.
    #[test]
    fn the_dead_are_cleared_once() {
        for lines in 0..4 {
            model(move || {
                let shared = shared();
                let dead = Ledger { row: &shared.row, owner: DEAD };
                let steps: [&dyn Fn(); 4] = [
                    &|| shared.spot(0).entry().add(),
                    &|| dead.add(0),
                    &|| dead.remove(0),
                    &|| shared.spot(0).leave(1),
                ];
                steps[..lines].iter().for_each(|step| step());
                let other = {
                    let shared = shared.clone();
                    thread::spawn(move || shared.find())
                };
                shared.find();
                let free = shared.row.owner.compare_exchange(
                    0,
                    NEXT.0,
                    Ordering::AcqRel,
                    Ordering::Relaxed,
                );
                if free.is_ok() {
                    shared.spot(0).entry().add();
                    Ledger { row: &shared.row, owner: NEXT }.add(0);
                }
                other.join().unwrap();
                let count = shared.spot(0).entry().waiters();
                let living = u32::from(free.is_ok());
                assert!(count >= living, "a count is too low: {count} of {living}");
                let stuck = u32::from(lines == 1 || lines == 3);
                assert_eq!(count - living, stuck, "after {lines} lines");
            });
        }
    }
}
