//! What is in a heap, and whether it fits together.

use super::class::{self, CLASSES};
use super::kept::KEPT;
use super::member::{Member, slab};
use super::pages::{Pages, figures};
use super::report::{HeapStats, Problem, Report};
use super::room::Room;
use super::slab::Slab;
use super::state::State;
use super::{Heap, Refusal};
use crate::error::Result;
use crate::sync::Ordering;
use crate::sys::map::PAGE;

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
