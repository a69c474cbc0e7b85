//! Holes of a layout: fewer of them, for a layout has room for so many parts.
//!
//! A hole is as old as the change that made it, until everybody follows that: then its age says
//! nothing any more. Ages differ, so neighbours stay apart; and a region in which a page here and
//! there comes and goes would soon have as many parts as there may be, with nothing in them.

use super::backing::Backing;
use super::layout::{SEGMENTS, Segment};

/// The same layout with holes that touch as one: those up to `emptied`, of which the age says
/// nothing, and the others, as old as the youngest of them. If there are too many parts still, all
/// that touch: then the old ones are emptied and waited for once more.
pub(super) fn merge(layout: &[Segment], emptied: u64) -> Vec<Segment> {
    let aged = layout.iter().map(|part| match part.backing {
        Backing::Hole if part.since <= emptied => Segment { since: 0, ..*part },
        _ => *part,
    });
    let merged = join(aged, |one, other| (one.since == 0) == (other.since == 0));
    if merged.len() <= SEGMENTS { merged } else { join(merged.into_iter(), |_, _| true) }
}

fn join(
    parts: impl Iterator<Item = Segment>,
    may: impl Fn(&Segment, &Segment) -> bool,
) -> Vec<Segment> {
    let mut list: Vec<Segment> = Vec::new();
    for part in parts {
        match list.last_mut() {
            Some(last)
                if last.backing == Backing::Hole
                    && part.backing == Backing::Hole
                    && last.end() == part.offset
                    && last.huge == part.huge
                    && may(last, &part) =>
            {
                last.len += part.len;
                last.since = last.since.max(part.since);
            }
            _ => list.push(part),
        }
    }
    list
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const P: u64 = 4096;

    fn hole(page: u64, since: u64) -> Segment {
        Segment::hole(page * P..(page + 1) * P, since)
    }

    fn ages(layout: &[Segment]) -> Vec<(u64, u64, u64)> {
        layout.iter().map(|part| (part.offset / P, part.len / P, part.since)).collect()
    }

    #[test]
    fn what_touches_is_one() {
        let holes = [hole(0, 1), hole(1, 5), hole(2, 9), hole(3, 8), hole(5, 7), hole(6, 0)];
        assert_eq!(ages(&merge(&holes, 5)), [(0, 2, 0), (2, 2, 9), (5, 1, 7), (6, 1, 0)]);
        assert_eq!(ages(&merge(&holes, 9)), [(0, 4, 0), (5, 2, 0)]);
        let memory = Segment { since: 0, ..Segment::plain(P..2 * P) };
        assert_eq!(merge(&[hole(0, 3), memory, hole(2, 3)], 9).len(), 3);
    }

    /// Too many, half of which are old.
    #[test]
    fn as_many_as_there_are_and_more() {
        let count = SEGMENTS as u64 + 2;
        let holes: Vec<_> = (0..count).map(|page| hole(page, page % 2 * 9)).collect();
        assert_eq!(ages(&merge(&holes, 0)), [(0, count, 9)]);
    }
}
