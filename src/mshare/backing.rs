//! What lies behind a part of a region.

use crate::sys::map::PAGE;

/// What the memory of a segment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Backing {
    /// The region's own memory, at the same offset.
    Memory,
    /// Nothing: a touch is SIGSEGV.
    Hole,
    /// A descriptor that participants pass on.
    Object {
        /// Never used twice in a region.
        id: u64,
        /// What it is.
        kind: Kind,
    },
}

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A file of the caller's.
    File,
    /// A memory file that is cut to nothing when it is unmapped.
    Revocable,
    /// One in huge pages, of 2 MiB.
    Huge2M,
    /// The same, of 1 GiB.
    Huge1G,
}

impl Kind {
    const ALL: [(u64, Self); 4] =
        [(2, Self::File), (3, Self::Revocable), (4, Self::Huge2M), (5, Self::Huge1G)];

    pub(super) fn code(self) -> u64 {
        Self::ALL.iter().find(|(_, kind)| *kind == self).map_or(0, |(code, _)| *code)
    }

    pub(super) fn of_code(code: u64) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == code).map(|(_, kind)| *kind)
    }

    /// Bytes of which its offsets and lengths are multiples.
    pub(super) fn grain(self) -> u64 {
        match self {
            Self::File | Self::Revocable => PAGE as u64,
            Self::Huge2M => 2 << 20,
            Self::Huge1G => 1 << 30,
        }
    }

    /// Is it ours, so that its contents may be taken away with it?
    pub(super) fn is_memory(self) -> bool {
        self != Self::File
    }
}

/// Whether the kernel should make huge pages of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Huge {
    /// As the system is set.
    Default,
    /// `MADV_HUGEPAGE`.
    Yes,
    /// `MADV_NOHUGEPAGE`.
    No,
}
