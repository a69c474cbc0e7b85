//! What lies where in a region: a sorted list of the parts that are not plain memory.
//!
//! Everything here is a function of numbers. A list comes out of memory that others write, so
//! it is believed only after [`parse`]; what an operation makes of it is a new list, and what a
//! process has to do to follow is [`differences`] of two.

use super::backing::{Backing, Huge, Kind};
use crate::sys::map::{Access, PAGE};
use core::ops::Range;

/// Words of one segment in memory.
pub(super) const WORDS: usize = 6;
/// Most segments of a region.
pub(super) const SEGMENTS: usize = 1024;

/// One part of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) backing: Backing,
    /// Where it begins in its backing.
    pub(super) at: u64,
    pub(super) access: Access,
    pub(super) huge: Huge,
    /// User to whom it is charged, plus 1; 0 if nobody is: see [`charge`](super::charge).
    pub(super) owner: u64,
    /// The generation that made a hole.
    pub(super) since: u64,
}

impl Segment {
    /// Memory that nobody changed.
    pub(super) fn plain(range: Range<u64>) -> Self {
        Self {
            offset: range.start,
            len: range.end - range.start,
            backing: Backing::Memory,
            at: range.start,
            access: Access::Write,
            huge: Huge::Default,
            owner: 0,
            since: 0,
        }
    }

    /// Nothing, since `generation`.
    pub(super) fn hole(range: Range<u64>, generation: u64) -> Self {
        Self {
            backing: Backing::Hole,
            at: 0,
            access: Access::None,
            since: generation,
            ..Self::plain(range)
        }
    }

    pub(super) fn end(&self) -> u64 {
        self.offset + self.len
    }

    pub(super) fn range(&self) -> Range<u64> {
        self.offset..self.end()
    }

    /// Then it is no part of the list, whoever made it so.
    fn is_plain(&self) -> bool {
        *self == Self { owner: self.owner, ..Self::plain(self.range()) }
    }

    /// The part of it in `range`, which meets it.
    fn part(&self, range: &Range<u64>) -> Self {
        let (start, end) = (self.offset.max(range.start), self.end().min(range.end));
        let at = if self.backing == Backing::Hole { 0 } else { self.at + (start - self.offset) };
        Self { offset: start, len: end - start, at, ..*self }
    }

    /// Can `next` be the second half of it? Whoever is charged: two parts become one.
    fn continues_in(&self, next: &Self) -> bool {
        let joined = Self { len: self.len + next.len, owner: next.owner, ..*self };
        self.end() == next.offset && joined.part(&next.range()) == *next
    }

    /// Is the same memory there?
    fn is_over_the_same(&self, other: &Self) -> bool {
        self.backing == other.backing && self.at == other.at && self.offset == other.offset
    }

    pub(super) fn words(&self) -> [u64; WORDS] {
        let what = match self.backing {
            Backing::Memory => 0,
            Backing::Hole => 1,
            Backing::Object { id, kind } => id << 8 | kind.code(),
        };
        let access = match self.access {
            Access::None => 0,
            Access::Read => 1,
            Access::Write => 3,
        };
        let huge = match self.huge {
            Huge::Default => 0,
            Huge::Yes => 1,
            Huge::No => 2,
        };
        let flags = access | huge << 2 | self.owner << 16;
        [self.offset, self.len, what, self.at, flags, self.since]
    }

    fn of_words(words: &[u64; WORDS]) -> Option<Self> {
        let [offset, len, what, at, flags, since] = *words;
        let backing = match (what & 0xff, what >> 8) {
            (0, 0) => Backing::Memory,
            (1, 0) => Backing::Hole,
            (code, id) => Backing::Object { id, kind: Kind::of_code(code)? },
        };
        let access = match flags & 3 {
            0 => Access::None,
            1 => Access::Read,
            3 => Access::Write,
            _ => return None,
        };
        let huge = match flags >> 2 & 3 {
            0 => Huge::Default,
            1 => Huge::Yes,
            2 => Huge::No,
            _ => return None,
        };
        let owner = flags >> 16;
        (flags & 0xfff0 == 0 && owner <= 1 << 32).then_some(Self {
            offset,
            len,
            backing,
            at,
            access,
            huge,
            owner,
            since,
        })
    }

    /// Inside a region of `size` bytes, aligned, and what it says of itself fits together?
    fn is_sound(&self, size: u64) -> bool {
        let grain = match self.backing {
            Backing::Object { kind, .. } => kind.grain(),
            Backing::Memory | Backing::Hole => PAGE as u64,
        };
        let aligned = [self.offset, self.len, self.at].iter().all(|n| n.is_multiple_of(grain));
        let inside = self.len > 0 && self.offset.checked_add(self.len).is_some_and(|e| e <= size);
        let kept = match self.backing {
            Backing::Memory => self.at == self.offset && self.since == 0,
            Backing::Hole => self.at == 0 && self.access == Access::None,
            Backing::Object { .. } => {
                // An offset of a file is an off_t.
                self.since == 0
                    && self.at.checked_add(self.len).is_some_and(|e| e <= i64::MAX as u64)
            }
        };
        aligned && inside && kept
    }
}

/// The list as words.
pub(super) fn words(segments: &[Segment]) -> Vec<u64> {
    segments.iter().flat_map(Segment::words).collect()
}

/// The list that these words say, for a region of `size` bytes.
///
/// # Errors
///
/// The number of the first segment that is none, or that overlaps with the one before it.
pub(super) fn parse(words: &[u64], size: u64) -> Result<Vec<Segment>, usize> {
    let (chunks, rest) = words.as_chunks::<WORDS>();
    let mut segments = Vec::with_capacity(chunks.len());
    let mut end = 0;
    for (number, chunk) in chunks.iter().enumerate() {
        match Segment::of_words(chunk) {
            Some(segment) if segment.is_sound(size) && segment.offset >= end => {
                end = segment.end();
                segments.push(segment);
            }
            _ => return Err(number),
        }
    }
    if rest.is_empty() && segments.len() <= SEGMENTS { Ok(segments) } else { Err(segments.len()) }
}

/// All of `range` in pieces: of the list, and of plain memory between.
pub(super) fn pieces(segments: &[Segment], range: Range<u64>) -> Vec<Segment> {
    let mut pieces = Vec::new();
    let mut next = range.start;
    for segment in segments {
        if segment.end() <= next || segment.offset >= range.end {
            continue;
        }
        if segment.offset > next {
            pieces.push(Segment::plain(next..segment.offset));
        }
        let part = segment.part(&(next..range.end));
        next = part.end();
        pieces.push(part);
    }
    if next < range.end {
        pieces.push(Segment::plain(next..range.end));
    }
    pieces
}

/// The first byte from `start` on that is no memory as every region has it; `size` if there is
/// none. Advice makes no difference.
pub(super) fn plain_until(segments: &[Segment], start: u64, size: u64) -> u64 {
    let other = |part: &&Segment| {
        let plain = Segment { huge: part.huge, owner: part.owner, ..Segment::plain(part.range()) };
        part.end() > start && **part != plain
    };
    segments.iter().find(other).map_or(size, |part| part.offset.max(start))
}

/// The list with `range` as `new` says, whose segments cover it.
pub(super) fn replace(segments: &[Segment], range: &Range<u64>, new: &[Segment]) -> Vec<Segment> {
    let before = segments.iter().filter(|s| s.offset < range.start);
    let after = segments.iter().filter(|s| s.end() > range.end);
    let all = before
        .map(|s| s.part(&(0..range.start)))
        .chain(new.iter().copied())
        .chain(after.map(|s| s.part(&(range.end..u64::MAX))));
    let mut list: Vec<Segment> = Vec::new();
    for segment in all.filter(|segment| !segment.is_plain()) {
        match list.last_mut() {
            Some(last) if last.continues_in(&segment) => last.len += segment.len,
            _ => list.push(segment),
        }
    }
    list
}

/// What a process has to do where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Difference {
    /// Other memory, or advice that can only be given anew.
    Lay(Segment),
    /// The same memory under another protection.
    Protect(Segment),
}

/// What leads a process from `old` to `new` in a region of `size` bytes.
pub(super) fn differences(old: &[Segment], new: &[Segment], size: u64) -> Vec<Difference> {
    let (old, new) = (pieces(old, 0..size), pieces(new, 0..size));
    let mut found: Vec<Difference> = Vec::new();
    let (mut i, mut j) = (0, 0);
    while let (Some(was), Some(is)) = (old.get(i), new.get(j)) {
        let common = was.offset.max(is.offset)..was.end().min(is.end());
        let (before, after) = (was.part(&common), is.part(&common));
        let step = if !before.is_over_the_same(&after) || before.huge != after.huge {
            Some(Difference::Lay(after))
        } else if before.access != after.access {
            Some(Difference::Protect(after))
        } else {
            None
        };
        // Neighbours in one call.
        match (found.last_mut(), step) {
            (Some(Difference::Lay(last)), Some(Difference::Lay(next)))
            | (Some(Difference::Protect(last)), Some(Difference::Protect(next)))
                if last.continues_in(&next) =>
            {
                last.len += next.len;
            }
            (_, Some(step)) => found.push(step),
            (_, None) => {}
        }
        i += usize::from(was.end() == common.end);
        j += usize::from(is.end() == common.end);
    }
    found
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGES: u64 = 24;
    const P: u64 = PAGE as u64;

    fn segment() -> impl Strategy<Value = Segment> {
        let access = prop_oneof![Just(Access::None), Just(Access::Read), Just(Access::Write)];
        let huge = prop_oneof![Just(Huge::Default), Just(Huge::Yes), Just(Huge::No)];
        (0..PAGES, 1..=PAGES, 0..4_u8, access, huge, 0..3_u64).prop_map(
            |(start, len, what, access, huge, id)| {
                let range = start * P..(start + len).min(PAGES) * P;
                let plain = Segment::plain(range.clone());
                match what {
                    0 => Segment { access, huge, ..plain },
                    1 => Segment::hole(range, id),
                    2 => {
                        let backing = Backing::Object { id, kind: Kind::File };
                        Segment { backing, at: id * P, access, owner: id, ..plain }
                    }
                    _ => {
                        let backing = Backing::Object { id, kind: Kind::Revocable };
                        Segment { backing, at: 0, access, huge, ..plain }
                    }
                }
            },
        )
    }

    /// One page each: the model.
    fn by_page(segments: &[Segment]) -> Vec<Segment> {
        let page = |n| pieces(segments, n * P..(n + 1) * P)[0];
        (0..PAGES).map(page).collect()
    }

    proptest! {
        /// Each page has what was put there last, and the list stays a list.
        #[test]
        fn the_last_one_wins(steps in prop::collection::vec(segment(), 0..20)) {
            let mut list = Vec::new();
            let mut model = by_page(&[]);
            for step in &steps {
                list = replace(&list, &step.range(), &[*step]);
                for (n, page) in model.iter_mut().enumerate() {
                    let range = n as u64 * P..(n as u64 + 1) * P;
                    if step.offset <= range.start && range.end <= step.end() {
                        *page = step.part(&range);
                    }
                }
                prop_assert_eq!(&by_page(&list), &model);
                prop_assert_eq!(parse(&words(&list), PAGES * P), Ok(list.clone()));
                prop_assert!(list.iter().all(|segment| !segment.is_plain()));
            }
        }

        /// Following the differences leads from one list to the other.
        #[test]
        fn differences_are_enough(
            here in prop::collection::vec(segment(), 0..8),
            there in prop::collection::vec(segment(), 0..8),
        ) {
            let put = |list: Vec<Segment>, s: &Segment| replace(&list, &s.range(), &[*s]);
            let (old, new) = (here.iter().fold(vec![], put), there.iter().fold(vec![], put));
            let mut now = by_page(&old);
            for step in differences(&old, &new, PAGES * P) {
                let (Difference::Lay(s) | Difference::Protect(s)) = step;
                for page in now.iter_mut().filter(|p| s.offset <= p.offset && p.end() <= s.end()) {
                    let part = s.part(&page.range());
                    if matches!(step, Difference::Protect(_)) {
                        prop_assert!(page.is_over_the_same(&part));
                    }
                    *page = part;
                }
            }
            for (now, wanted) in now.iter().zip(by_page(&new)) {
                prop_assert!(now.is_over_the_same(&wanted));
                prop_assert_eq!((now.access, now.huge), (wanted.access, wanted.huge));
            }
            prop_assert_eq!(differences(&new, &new, PAGES * P), []);
        }

        /// Any words are a list, inside and in order, or none.
        #[test]
        fn garbage(raw in prop::collection::vec(any::<u64>(), 0..40), size in 1..1_u64 << 40) {
            if let Ok(list) = parse(&raw, size) {
                prop_assert!(list.iter().all(|s| s.len > 0 && s.end() <= size));
                prop_assert!(list.windows(2).all(|two| two[0].end() <= two[1].offset));
            }
        }

        /// One word of a good list replaced by any other: a list inside, or none.
        #[test]
        fn one_word_that_lies(
            steps in prop::collection::vec(segment(), 1..8),
            at: prop::sample::Index,
            lie in prop_oneof![any::<u64>(), 0..64_u64, (0..64_u64).prop_map(|n| n * P)],
        ) {
            let put = |list: Vec<Segment>, s: &Segment| replace(&list, &s.range(), &[*s]);
            let mut raw = words(&steps.iter().fold(vec![], put));
            prop_assume!(!raw.is_empty());
            let at = at.index(raw.len());
            raw[at] = lie;
            if let Ok(list) = parse(&raw, PAGES * P) {
                prop_assert!(list.iter().all(|s| s.end() <= PAGES * P));
                prop_assert!(list.windows(2).all(|two| two[0].end() <= two[1].offset));
            }
        }
    }
}
