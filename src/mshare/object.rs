//! What can be mapped into a region, under which protection, and who follows.

use super::backing::Huge;
use crate::sys::map::Access;
use crate::sys::memfd::HugePage;
use core::time::Duration;
use rustix::fd::{AsFd, BorrowedFd};

/// What processes may do with a part of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Prot(u8);

impl Prot {
    /// Nothing: a touch is SIGSEGV.
    pub const NONE: Self = Self(0);
    /// Reading.
    pub const READ: Self = Self(1);
    /// Reading and writing.
    pub const READ_WRITE: Self = Self(3);

    pub(super) fn access(self) -> Access {
        match self {
            Self::NONE => Access::None,
            Self::READ => Access::Read,
            _ => Access::Write,
        }
    }
}

/// Pages of a size that the administrator reserves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HugePages {
    /// 2 MiB.
    M2,
    /// 1 GiB.
    G1,
}

impl HugePages {
    pub(super) fn page(self) -> HugePage {
        match self {
            Self::M2 => HugePage::M2,
            Self::G1 => HugePage::G1,
        }
    }
}

/// What is to lie in a part of a region; see [`Region::map`](super::Region::map).
#[derive(Debug, Clone, Copy)]
#[must_use = "an object is mapped by Region::map"]
pub struct Object<'a> {
    pub(super) what: What<'a>,
    pub(super) prot: Prot,
    pub(super) replace: bool,
    pub(super) huge: Huge,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum What<'a> {
    Memory,
    Revocable,
    Huge(HugePages),
    File(BorrowedFd<'a>, u64),
}

impl<'a> Object<'a> {
    fn new(what: What<'a>) -> Self {
        Self { what, prot: Prot::READ_WRITE, replace: true, huge: Huge::Default }
    }

    /// Zeroed memory of the region.
    ///
    /// When it is unmapped its pages are gone at once in every process, even in a stopped one,
    /// which finds zeros there until it follows.
    pub fn anonymous() -> Self {
        Self::new(What::Memory)
    }

    /// Zeroed memory in a file of its own.
    ///
    /// When all of it is unmapped the kernel takes it from every process at once: until a process
    /// follows, a touch there is SIGBUS, and then SIGSEGV. Nobody can seal the file against that.
    /// Who may write in the region can cut it too, and make a touch SIGBUS for everybody.
    pub fn revocable() -> Self {
        Self::new(What::Revocable)
    }

    /// The same in huge pages, which are taken when it is mapped. Offset and length are multiples
    /// of the page. Processes whose parts are whole gigabytes share their page tables.
    pub fn huge(pages: HugePages) -> Self {
        Self::new(What::Huge(pages))
    }

    /// A file from this offset on. Who cuts the file makes a touch beyond its end SIGBUS for
    /// everybody.
    ///
    /// Others get the descriptor, not the range: who may write in the region gets this very one, for
    /// reading and writing if it is, whatever the protection of the part; who may read, one for
    /// reading. Both reach all of the file. For a part of a file that is more secret than the
    /// region, copy it; for one that others must not write, bring a descriptor for reading, which
    /// can be mapped with [`Prot::READ`].
    pub fn file(file: &'a impl AsFd, offset: u64) -> Self {
        Self::new(What::File(file.as_fd(), offset))
    }

    /// Under this protection instead of [`Prot::READ_WRITE`].
    pub fn prot(mut self, prot: Prot) -> Self {
        self.prot = prot;
        self
    }

    /// Only where nothing is: else EEXIST.
    pub fn no_replace(mut self) -> Self {
        self.replace = false;
        self
    }
}

/// What [`Region::advise`](super::Region::advise) is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Advice {
    /// Everywhere: takes the pages of memory away; the next touch finds zeros.
    Remove,
    /// Everywhere: takes pages now that would be taken at the first touch; needs the right to write.
    /// Of a file of the caller's, what there is of it is read.
    Populate,
    /// Everywhere: makes huge pages of small ones, whose page tables all processes lose
    /// (`MADV_COLLAPSE`, Linux 6.1; there those of other processes were seen to stay, on 6.12 and
    /// later to go). What is left as it is is no error.
    Collapse,
    /// In each process, also in those to come: the kernel should make huge pages at the
    /// first touch (`MADV_HUGEPAGE`).
    HugePage,
    /// The contrary (`MADV_NOHUGEPAGE`).
    NoHugePage,
    /// In each process, also in those to come: as the system is set.
    Default,
    /// In this process: the pages will be wanted soon (`MADV_WILLNEED`).
    WillNeed,
    /// In this process: forgets its page table entries; nothing is lost (`MADV_DONTNEED`).
    DontNeed,
    /// In this process: the pages may be swapped out first (`MADV_COLD`, Linux 5.4).
    Cold,
    /// In this process: the pages are swapped out, unless others have them
    /// (`MADV_PAGEOUT`, Linux 5.4).
    PageOut,
}

/// Who follows a change.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "it says which processes do not follow yet"]
pub struct Acks {
    pub(super) generation: u64,
    pub(super) late: Vec<Late>,
    pub(super) waited: Duration,
}

impl Acks {
    /// Number of the change, counted from the creation of the region.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Does every live participant follow?
    pub fn is_complete(&self) -> bool {
        self.late.is_empty()
    }

    /// Those that do not yet. They will when they go on, or when what kept them is over, which they
    /// try from time to time: nobody has to ask again. Until then a stopped process has what it had;
    /// one that could not map a part has a hole there or, at its limit of mappings, what it had.
    pub fn late(&self) -> &[Late] {
        &self.late
    }

    /// How long the others took.
    pub fn waited(&self) -> Duration {
        self.waited
    }
}

/// A participant that does not follow yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Late {
    pub(super) pid: u32,
    pub(super) errno: Option<i32>,
}

impl Late {
    /// Its process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Why it cannot, if it said so; `None` if it says nothing, for instance because it is
    /// stopped.
    pub fn raw_os_error(&self) -> Option<i32> {
        self.errno
    }
}
