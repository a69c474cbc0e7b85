//! What lies where in a region, for who wants to look.

use super::backing::{Backing, Huge, Kind};
use super::layout::pieces;
use super::object::{HugePages, Prot};
use super::region::Region;
use crate::error::Result;
use crate::sync::Ordering;
use crate::sys::map::Access;
use core::ops::Range;

/// What a part of a region is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Content {
    /// The region's own memory.
    Memory,
    /// Nothing: a touch is SIGSEGV.
    Nothing,
    /// A file.
    File,
    /// Memory in a file of its own.
    Revocable,
    /// The same in huge pages.
    Huge(HugePages),
}

/// A part of a region; from [`Region::parts`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Part {
    /// Offsets from [`base`](Region::base).
    pub range: Range<usize>,
    /// What lies there.
    pub content: Content,
    /// What processes that may write can do with it.
    pub prot: Prot,
    /// Number of the object; `None` for the region's own memory and for nothing.
    pub object: Option<u64>,
    /// Where in its object it begins.
    pub at: u64,
    /// What was advised: `MADV_HUGEPAGE`, its contrary, or nothing.
    pub huge_pages: Option<bool>,
}

impl Region {
    /// All parts of the region, in order, without a gap. Taken while others change them, a
    /// moment's answer.
    ///
    /// # Errors
    ///
    /// EBADMSG if the log says what no log says.
    pub fn parts(&self) -> Result<Vec<Part>> {
        let held = self.attachment.held();
        let size = held.shape.size;
        let (_, layout) = held.ledger().layout("mshare::Region::parts", size)?;
        let part = |segment: super::layout::Segment| {
            let (content, object) = match segment.backing {
                Backing::Memory => (Content::Memory, None),
                Backing::Hole => (Content::Nothing, None),
                Backing::Object { id, kind } => (content(kind), Some(id)),
            };
            let prot = match segment.access {
                Access::None => Prot::NONE,
                Access::Read => Prot::READ,
                Access::Write => Prot::READ_WRITE,
            };
            let huge_pages = match segment.huge {
                Huge::Default => None,
                Huge::Yes => Some(true),
                Huge::No => Some(false),
            };
            let range = segment.offset as usize..segment.end() as usize;
            Part { range, content, prot, object, at: segment.at, huge_pages }
        };
        Ok(pieces(&layout, 0..size).into_iter().map(part).collect())
    }

    /// Where the [heap](Self::heap) lies, if somebody has made one; as the control page says.
    pub fn heap_range(&self) -> Option<Range<usize>> {
        let word = self.attachment.header().next().load(Ordering::Relaxed);
        let heap = super::heap::range(word, self.size() as u64)?;
        Some(heap.start as usize..heap.end as usize)
    }
}

fn content(kind: Kind) -> Content {
    match kind {
        Kind::File => Content::File,
        Kind::Revocable => Content::Revocable,
        Kind::Huge2M => Content::Huge(HugePages::M2),
        Kind::Huge1G => Content::Huge(HugePages::G1),
    }
}
