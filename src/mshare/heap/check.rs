//! What is in a heap, and whether it fits together.

use super::class::{self, CLASSES};
use super::kept::KEPT;
use super::member::{Member, slab};
use super::pages::{Pages, figures};
use super::room::Room;
use super::slab::Slab;
use super::state::State;
use super::{Heap, Refusal};
use crate::error::Result;
use crate::sync::Ordering;
use crate::sys::map::PAGE;
use core::fmt;

/// How many problems a report names; it counts them all.
const NAMED: usize = 64;

/// How much of a heap is used. Taken while others work, a moment's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct HeapStats {
    /// Bytes that can be had in all.
    pub capacity: usize,
    /// Bytes of pages that are taken, by slabs and runs.
    pub taken: usize,
    /// The most that this ever was.
    pub high_water: usize,
    /// Blocks that were handed out and not freed, small and large.
    pub blocks: usize,
    /// Their bytes, rounded up as they are.
    pub bytes: usize,
    /// Bytes of free blocks of slabs, and of free runs that threads keep: the difference between
    /// what is taken and what is used.
    pub free_in_slabs: usize,
    /// Bytes of free blocks that threads have in hand; part of the above.
    pub in_hand: usize,
    /// Bytes of the longest run of free pages.
    pub longest_free: usize,
    /// Slots that are taken.
    pub participants: usize,
    /// Of each class: bytes of a block, blocks handed out.
    pub classes: [(usize, usize); CLASSES],
    /// Runs of pages: how many, and their bytes.
    pub runs: (usize, usize),
}

impl HeapStats {
    /// How much of the free pages is not in the longest run: 0 if it is all one run, towards 1
    /// if there are many small ones.
    pub fn fragmentation(&self) -> f64 {
        match self.capacity.saturating_sub(self.taken) {
            0 => 0.0,
            free => 1.0 - self.longest_free as f64 / free as f64,
        }
    }
}

/// Something that does not fit, found by [`Heap::check`]. Pages are numbered from the heap's first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// A page is taken, and no slab or run has it.
    LostPage {
        /// The page.
        page: usize,
    },
    /// A slab or run has a page that says that it is free.
    NotTaken {
        /// The page.
        page: usize,
    },
    /// A slab or run reaches into the next, or beyond the heap.
    Overlap {
        /// First page of the slab or run.
        page: usize,
    },
    /// A page's state is none, or does not belong where it is.
    BadState {
        /// The page.
        page: usize,
        /// What its word says.
        word: u64,
    },
    /// A slab has bits for blocks that it has not.
    BadBlocks {
        /// First page of the slab.
        page: usize,
    },
    /// A slab or free run says that a slot has it, and the slot does not.
    NotHeld {
        /// Its first page.
        page: usize,
        /// The slot.
        slot: usize,
    },
    /// A slot has blocks in hand that are not set in the slab, or of a slab that it does not hold.
    BadHand {
        /// The slot.
        slot: usize,
        /// The class.
        class: usize,
    },
    /// A slab in nobody's hand has free blocks, and would not be found.
    HiddenRoom {
        /// First page of the slab.
        page: usize,
    },
    /// A slab in nobody's hand has no block, and has not been given back.
    EmptySlab {
        /// First page of the slab.
        page: usize,
    },
    /// Pages that are leaving have not been given back.
    Left {
        /// First page.
        page: usize,
    },
    /// The count of taken pages is wrong.
    BadCount {
        /// What it says.
        says: usize,
        /// What was counted.
        is: usize,
    },
    /// The owner of a slot is gone; [`Heap::recover`] takes it back.
    DeadSlot {
        /// The slot.
        slot: usize,
    },
}

impl Problem {
    /// Does [`Heap::recover`] mend it, when the participants it concerns are gone?
    pub const fn is_mendable(&self) -> bool {
        matches!(
            self,
            Self::DeadSlot { .. }
                | Self::Left { .. }
                | Self::EmptySlab { .. }
                | Self::HiddenRoom { .. }
        )
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::LostPage { page } => write!(f, "page {page} is taken and nobody's"),
            Self::NotTaken { page } => write!(f, "page {page} is used and not taken"),
            Self::Overlap { page } => write!(f, "what begins at page {page} is too long"),
            Self::BadState { page, word } => write!(f, "page {page} says {word:#x}"),
            Self::BadBlocks { page } => write!(f, "the slab at page {page} has too many blocks"),
            Self::NotHeld { page, slot } => {
                write!(f, "what begins at page {page} is not held by slot {slot}")
            }
            Self::BadHand { slot, class } => {
                write!(f, "slot {slot} has what it cannot have of class {class}")
            }
            Self::HiddenRoom { page } => write!(f, "the slab at page {page} would not be found"),
            Self::EmptySlab { page } => write!(f, "the slab at page {page} is empty"),
            Self::Left { page } => write!(f, "page {page} was left"),
            Self::BadCount { says, is } => write!(f, "{is} pages are counted as {says}"),
            Self::DeadSlot { slot } => write!(f, "the owner of slot {slot} is gone"),
        }
    }
}

/// What [`Heap::check`] found.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Report {
    /// How much is used.
    pub stats: HeapStats,
    /// The first 64 problems.
    pub problems: Vec<Problem>,
    /// How many there are.
    pub count: usize,
}

impl Report {
    /// No problem?
    pub fn is_sound(&self) -> bool {
        self.count == 0
    }

    /// Blocks that are handed out beyond the `reachable` that their users know of: what was lost by
    /// processes that were killed before they had published an address.
    pub fn leaked(&self, reachable: usize) -> usize {
        self.stats.blocks.saturating_sub(reachable)
    }

    fn add(&mut self, problem: Problem) {
        self.count += 1;
        if self.problems.len() < NAMED {
            self.problems.push(problem);
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let HeapStats { blocks, bytes, taken, capacity, .. } = self.stats;
        write!(f, "{blocks} blocks of {bytes} bytes, {taken} of {capacity} taken; ")?;
        write!(f, "{} problems", self.count)?;
        self.problems.iter().try_for_each(|problem| write!(f, "; {problem}"))
    }
}

impl Heap {
    /// How much of the heap is used. Looks at every page that was ever taken.
    ///
    /// # Errors
    ///
    /// ENXIO, EAGAIN, ETIMEDOUT as for [`alloc`](Self::alloc).
    pub fn stats(&self) -> Result<HeapStats> {
        self.check().map(|report| report.stats)
    }

    /// Looks at every page that was ever taken, whether all fits together. Safe on any bytes.
    /// While others allocate, what they are in the middle of may look like a problem.
    ///
    /// # Errors
    ///
    /// ENXIO, EAGAIN, ETIMEDOUT as for [`alloc`](Self::alloc).
    pub fn check(&self) -> Result<Report> {
        let report = self.with("mshare::Heap::check", |cache| {
            let pages = cache.member.pages()?;
            Ok(examine(&cache.member, &pages))
        })?;
        report.map_err(|refusal: Refusal| self.refused(core::alloc::Layout::new::<()>(), refusal))
    }
}

fn examine(member: &Member, pages: &Pages<'_, Member>) -> Report {
    let space = &member.space;
    let [taken, most, highest] = figures(space);
    let classes = class::SIZES.map(|size| (size, 0));
    let stats = HeapStats {
        capacity: space.pages() * PAGE,
        taken: taken * PAGE,
        high_water: most * PAGE,
        blocks: 0,
        bytes: 0,
        free_in_slabs: 0,
        in_hand: 0,
        longest_free: pages.longest() * PAGE,
        participants: 0,
        classes,
        runs: (0, 0),
    };
    let mut report = Report { stats, problems: Vec::new(), count: 0 };
    let mut counted = 0;
    let mut page = 0;
    while page < highest {
        let word = space.state(page).load(Ordering::Acquire);
        let state = State::of(word);
        if !pages.is_taken(page) {
            if state != State::Free {
                report.add(Problem::NotTaken { page });
            }
            page += 1;
            continue;
        }
        let len = match state {
            State::Idle { class } | State::Held { class, .. } | State::Emptied { class, .. } => {
                match slab(space, page, class) {
                    Some(slab) => examine_slab(member, &mut report, page, &slab, state),
                    None => 0,
                }
            }
            State::Run { pages } => {
                report.stats.blocks += 1;
                report.stats.bytes = report.stats.bytes.saturating_add(pages.saturating_mul(PAGE));
                report.stats.runs.0 += 1;
                report.stats.runs.1 =
                    report.stats.runs.1.saturating_add(pages.saturating_mul(PAGE));
                pages
            }
            State::Leaving { pages } => {
                report.add(Problem::Left { page });
                pages
            }
            State::Kept { pages, slot } => {
                let bytes = pages.saturating_mul(PAGE);
                report.stats.in_hand = report.stats.in_hand.saturating_add(bytes);
                let keeps = |at| space.kept(slot, at).load(Ordering::Relaxed) == page as u64 + 1;
                if slot >= space.slots() || !(0..KEPT).any(keeps) {
                    report.add(Problem::NotHeld { page, slot });
                }
                pages
            }
            State::Free => {
                report.add(Problem::LostPage { page });
                1
            }
            State::Inner { .. } | State::Broken(_) => {
                report.add(Problem::BadState { page, word });
                1
            }
        };
        let end = page + len.max(1).min(space.pages() - page);
        if len == 0 || len > space.pages() - page {
            report.add(Problem::Overlap { page });
        }
        let is_run =
            matches!(state, State::Run { .. } | State::Leaving { .. } | State::Kept { .. });
        let mut inside = page + 1;
        while inside < end {
            if !pages.is_taken(inside) {
                report.add(Problem::NotTaken { page: inside });
            }
            if is_run && State::of(space.state(inside).load(Ordering::Acquire)) != State::Free {
                // The next one begins here.
                report.add(Problem::Overlap { page });
                break;
            }
            inside += 1;
        }
        counted += inside - page;
        page = inside;
    }
    if counted != taken {
        report.add(Problem::BadCount { says: taken, is: counted });
    }
    for slot in 0..space.slots() {
        examine_slot(member, &mut report, slot);
    }
    let in_hand = report.stats.in_hand;
    report.stats.free_in_slabs = report.stats.free_in_slabs.saturating_add(in_hand);
    report
}

/// Looks at a slab; its pages.
fn examine_slab(
    member: &Member,
    report: &mut Report,
    page: usize,
    slab: &Slab<'_>,
    state: State,
) -> usize {
    let (space, class) = (&member.space, slab.class);
    let taken = slab.taken();
    let size = class::SIZES[class];
    report.stats.blocks += taken;
    report.stats.bytes += taken * size;
    report.stats.free_in_slabs += (class::blocks(class) - taken) * size;
    report.stats.classes[class].1 += taken;
    let extra = |(word, bits): (usize, &crate::sync::AtomicU64)| {
        bits.load(Ordering::Relaxed) & !class::valid(class, word) != 0
    };
    if slab.bits.iter().enumerate().any(extra) {
        report.add(Problem::BadBlocks { page });
    }
    for back in 1..class::pages(class) {
        let word = space.state(page + back).load(Ordering::Acquire);
        if State::of(word) != (State::Inner { class, back }) {
            report.add(Problem::BadState { page: page + back, word });
        }
    }
    match state {
        State::Held { slot, .. } => {
            let holds = slot < space.slots()
                && space.owners()[slot].load(Ordering::Relaxed) != 0
                && space.hand(slot, class).slab.load(Ordering::Relaxed) == page as u64 + 1;
            if !holds {
                report.add(Problem::NotHeld { page, slot });
            }
        }
        State::Emptied { slot, .. } => report.add(Problem::NotHeld { page, slot }),
        _ if taken == 0 => report.add(Problem::EmptySlab { page }),
        _ if slab.has_room() && !Room::new(space.room(class)).has(page) => {
            report.add(Problem::HiddenRoom { page });
        }
        _ => {}
    }
    class::pages(class)
}

/// Looks at what a slot has in hand, which is set in bitmaps and was counted as handed out.
fn examine_slot(member: &Member, report: &mut Report, slot: usize) {
    use crate::mshare::heap::lock::Neighbours;

    let space = &member.space;
    let owner = space.owners()[slot].load(Ordering::Acquire);
    if owner == 0 {
        return;
    }
    report.stats.participants += 1;
    if slot != member.slot && member.is_dead(slot) {
        report.add(Problem::DeadSlot { slot });
    }
    for class in 0..CLASSES {
        let hand = space.hand(slot, class);
        let mask = hand.mask.load(Ordering::Acquire);
        if mask == 0 {
            continue;
        }
        let word = hand.word.load(Ordering::Acquire) as usize;
        let page = (hand.slab.load(Ordering::Acquire) as usize).wrapping_sub(1);
        let slab = slab(space, page, class).filter(|slab| {
            let held = State::Held { class, slot }.word();
            slab.state.load(Ordering::Acquire) == held
                && slab
                    .bits
                    .get(word)
                    .is_some_and(|bits| bits.load(Ordering::Acquire) & mask == mask)
                && mask & !class::valid(class, word) == 0
        });
        if slab.is_none() {
            report.add(Problem::BadHand { slot, class });
            continue;
        }
        let count = mask.count_ones() as usize;
        let stats = &mut report.stats;
        stats.in_hand = stats.in_hand.saturating_add(count * class::SIZES[class]);
        stats.blocks = stats.blocks.saturating_sub(count);
        stats.bytes = stats.bytes.saturating_sub(count * class::SIZES[class]);
        let blocks = &mut stats.classes[class].1;
        *blocks = blocks.saturating_sub(count);
    }
}
