//! Making a region.

use super::access::Access;
use super::attach::SEALS;
use super::attachment::{Attachment, Origin, nothing};
use super::claim::Claim;
use super::collapse;
use super::directory::Directory;
use super::header::{CONTROL_LEN, Header};
use super::held::Files;
use super::kept::Kept;
use super::ledger::LEDGER_LEN;
use super::name::check_name;
use super::object::HugePages;
use super::participants::PER_USER;
use super::region::Region;
use super::rights::Rights;
use super::succession::listen;
use super::wire::{Memory, Shape};
use super::{CREATE, window};
use crate::error::{Context, Error, Result};
use crate::sync::Ordering;
use crate::sys::memfd;
use core::time::Duration;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::{getegid, geteuid};
use rustix::rand::{GetRandomFlags, getrandom};
use std::path::{Path, PathBuf};

/// When a region ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Lifetime {
    /// With the last process that has it.
    #[default]
    Last,
    /// With the process that created it, however that one ends: its memory is gone then in
    /// all others, a touch is SIGSEGV, and nothing can be mapped any more. It is the rule of the
    /// patches of 2025.
    Creator,
}

/// What a new region is to be; made by [`Region::builder`].
#[derive(Debug, Clone)]
#[must_use = "a region is made by create()"]
pub struct Builder {
    pub(super) name: String,
    pub(super) size: usize,
    mode: u32,
    pub(super) base: Option<usize>,
    pub(super) directory: Option<PathBuf>,
    lifetime: Lifetime,
    others: Rights,
    quota: u32,
    per_user: u32,
    is_empty: bool,
    room: usize,
    huge: Option<HugePages>,
    file: Option<PathBuf>,
    collapse: Option<Duration>,
}

impl Builder {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            size: 0,
            mode: 0o600,
            base: None,
            directory: None,
            lifetime: Lifetime::Last,
            others: Rights::NONE,
            quota: 128,
            per_user: PER_USER,
            is_empty: false,
            room: 0,
            huge: None,
            file: None,
            collapse: None,
        }
    }

    /// Size in bytes: a multiple of 4096, up to [32 TiB](Region::MAX_SIZE). It is address space; memory is
    /// taken page by page as it is touched. There is no default.
    pub fn size(mut self, bytes: usize) -> Self {
        self.size = bytes;
        self
    }

    /// Who may attach, as permission bits of a file, taken as they are (no umask). A class
    /// with the bit to read alone attaches for reading alone; the owner must have both.
    /// Default 0o600: this user, and root. Others can only reach the name in a
    /// [`directory`](Self::directory) that they may search: the default one is this user's alone.
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// The address to lie at, a multiple of 1 GiB, instead of one that the region's id
    /// chooses; for programs whose address space is not the usual one, such as those built
    /// with a sanitizer.
    pub fn base(mut self, address: usize) -> Self {
        self.base = Some(address);
        self
    }

    /// The directory for the name, instead of the user's runtime directory: an absolute
    /// path that is no symbolic link, ours, and writable by nobody else. It is made with mode
    /// 0700 if it is not there. Its lock is a file that nobody but its owner and root can open.
    pub fn directory(mut self, path: impl AsRef<Path>) -> Self {
        self.directory = Some(path.as_ref().into());
        self
    }

    /// When the region ends.
    pub fn lifetime(mut self, lifetime: Lifetime) -> Self {
        self.lifetime = lifetime;
        self
    }

    /// What users other than the owner and root may do besides reading and writing, if the
    /// mode lets them write: [`Rights::MAP`], [`Rights::UNMAP`], [`Rights::PROTECT`]. Default
    /// none.
    pub fn others(mut self, rights: Rights) -> Self {
        self.others = rights.intersection(Rights::MAP | Rights::UNMAP | Rights::PROTECT);
        self
    }

    /// How many parts of the region the participants of one user may make, those with all rights
    /// apart: by mapping, unmapping, protecting and lasting advice. Plain memory is no part; what is
    /// left behind a part in the midst of another is one, so an object with nothing on both sides
    /// counts as two. A part is the user's who changed it last, also when the process has left. More
    /// is EDQUOT. Default 128, of [1024](Region::MAX_PARTS) for
    /// all.
    ///
    /// Bytes are limited by the size of the region alone.
    pub fn quota(mut self, parts: u32) -> Self {
        self.quota = parts;
        self
    }

    /// How many processes of one user that is neither the owner nor root may have the region at a
    /// time; one more is EDQUOT. Default 128. All those users together have half of the 1024
    /// places.
    pub fn processes_per_user(mut self, processes: u32) -> Self {
        self.per_user = processes;
        self
    }

    /// Nothing lies in it, as in the patches: a touch is SIGSEGV until something is mapped there.
    /// Without this, all of it is memory. Named roots and [`Region::alloc`] count on memory.
    pub fn empty(mut self) -> Self {
        self.is_empty = true;
        self
    }

    /// Nothing lies in the last so many bytes, a multiple of 4096 less than the size: they are for
    /// [objects](Region::map), and neither [`Region::alloc`] nor [`Region::heap`] takes them.
    /// Default none.
    pub fn room(mut self, bytes: usize) -> Self {
        self.room = bytes;
        self
    }

    /// The region's own memory is in huge pages, of which the administrator has reserved enough:
    /// a touch without one is SIGBUS. The size is a multiple of the page. Processes that map it
    /// share the page tables of whole gigabytes.
    pub fn huge_pages(mut self, pages: HugePages) -> Self {
        self.huge = Some(pages);
        self
    }

    /// Huge pages are made of the region's own memory while it is used, as by
    /// [`Advice::Collapse`](super::Advice::Collapse): by the thread of whoever serves, in turns with
    /// so much time between them, of a millisecond at least. For a heap, that is most of its memory.
    ///
    /// It costs that thread a millisecond a turn, and less than one turn a second once all is done;
    /// of each 2 MiB a copy, for about as long, in which a touch of them waits; and a free huge page
    /// of the system for the copy. It takes no memory: places of which a page was never touched are
    /// left alone. What is gained are page tables, of all processes, and faults: one for 2 MiB.
    /// [`Advice::HugePage`](super::Advice::HugePage) makes huge pages at the first touch instead,
    /// which costs up to 2 MiB for a byte. Default none.
    pub fn collapse(mut self, pause: Duration) -> Self {
        self.collapse = Some(pause);
        self
    }

    /// The region's own memory is this file, of tmpfs or of a disk, and its control page the file of this name
    /// with `.control` behind it: they stay when the last process has let go. If they are
    /// there, with the contents of a region of this size, it comes back at its old address, with
    /// its allocations and roots; what was mapped, unmapped and protected is forgotten.
    ///
    /// Both are to be there, and of one region and one time, or neither. They may be renamed and
    /// copied, both together, while no process has the region; a copy of both is a region, also one
    /// from a backup. One of them alone, put back from a backup, is refused. Nothing forces them
    /// to the disk: after a crash of the machine they may be refused, or hold less than was written.
    ///
    /// The data file is 4096 bytes longer than the region, for what tells that. Files
    /// have no seals: who may write them may cut them, and a touch beyond the end is SIGBUS. So is
    /// one for which the file system has no room, also in [`Region::alloc`]; with
    /// [`Advice::Populate`](super::Advice::Populate) that is ENOSPC before.
    ///
    /// Huge pages do not stay: a file in hugetlbfs is EOPNOTSUPP. In a tmpfs that is mounted with
    /// `huge=advise` or `always`, [`Advice::HugePage`](super::Advice::HugePage) has huge pages in a
    /// file.
    pub fn file(mut self, path: impl AsRef<Path>) -> Self {
        self.file = Some(path.as_ref().into());
        self
    }

    /// Makes the region, maps it here, and serves it under its name. A name that a process left when
    /// it was killed is had after 300 ms: so long its heirs have to take over, and until one does it
    /// looks the same with heirs as without.
    ///
    /// # Errors
    ///
    /// - EINVAL: not a name; a size of 0, of no whole pages or over 32 TiB; a mode with
    ///   other bits than read and write, or without the owner's; a base that is no multiple
    ///   of 1 GiB or too high; huge pages in a file; room of no whole pages, or for all of it.
    /// - EEXIST: a live process serves this name; the base asked for is not free here.
    /// - EPERM: the runtime directory belongs to somebody else or is open to others.
    /// - ETIMEDOUT: another process keeps the lock of the directory.
    /// - EBUSY: another region has the file. EBADMSG: the file is a region's of another size, or has
    ///   contents of none; it or its control file is not there; they are of two regions, or times.
    /// - ENODEV: no huge pages of this size on this machine. EOPNOTSUPP: a file in hugetlbfs; no
    ///   [collapsing](Self::collapse) before Linux 6.1, nor in a file that stays.
    /// - ENOMEM, EMFILE, ENFILE, EAGAIN, ENAMETOOLONG: a limit of the system.
    pub fn create(self) -> Result<Region> {
        self.check()?;
        let claim = self.claim()?;
        self.make(claim)
    }

    /// The name, if it is free.
    pub(super) fn claim(&self) -> Result<Claim> {
        Directory::prepare(CREATE, self.directory.as_deref())?.claim(&self.name)
    }

    /// Makes it under a name that is free.
    pub(super) fn make(self, claim: Claim) -> Result<Region> {
        let mut id = [0; 16];
        getrandom(&mut id, GetRandomFlags::empty()).op(CREATE)?;
        let Kept { data, control, found: old } = self.memory()?;
        let ledger = file(&format!("mshare-ledger:{}", self.name), LEDGER_LEN as u64)?;
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).op(CREATE)?;
        let mut shape = Shape { size: self.size as u64, base: 0, id, memory: self.kind() };
        let bases: Vec<u64> = match (old, self.base) {
            (Some((base, id)), _) => {
                shape.id = id;
                vec![base]
            }
            (None, Some(base)) => vec![base as u64],
            (None, None) => window::bases(&id, shape.size).collect(),
        };
        let origin = Origin {
            name: self.name.clone(),
            directory: claim.directory.clone(),
            rights: Rights::ALL,
            has_agent: true,
        };
        let files = Files::new([control, ledger, data, bell]);
        let fill = |header: &Header, shape: &Shape| match old {
            Some(_) => header.verify(shape),
            None => {
                header.fill(shape, self.room as u64);
                Ok(())
            }
        };
        let attachment = Attachment::create(files, origin, shape, bases.into_iter(), fill)?;
        if old.is_some() {
            // We have the file alone, so whoever had its heap is gone: also of another namespace.
            let word = attachment.header().next().load(Ordering::Relaxed);
            super::heap::abandon(CREATE, word, attachment.base(), self.size as u64);
        }
        self.begin(&attachment, claim)?;
        Ok(Region::new(self.name, attachment))
    }

    /// Says in the ledger what the region is, and begins to serve.
    fn begin(&self, attachment: &Attachment, claim: Claim) -> Result<()> {
        let held = attachment.held();
        let (ledger, relaxed) = (held.ledger(), Ordering::Relaxed);
        ledger.mode.store(self.mode, relaxed);
        ledger.uid.store(geteuid().as_raw(), relaxed);
        ledger.gid.store(getegid().as_raw(), relaxed);
        ledger.others.store(self.others.bits(), relaxed);
        ledger.quota.store(self.quota, relaxed);
        ledger.per_user.store(self.per_user, relaxed);
        let pause = self.collapse.map_or(0, |pause| pause.as_millis().clamp(1, u32::MAX.into()));
        ledger.collapse.store(pause as u32, relaxed);
        ledger.bound.store((self.lifetime == Lifetime::Creator).into(), relaxed);
        // Of a file that comes back.
        ledger.heap.store(held.header().next().load(relaxed), relaxed);
        let mut local = held.enter();
        let token = held.token(CREATE, &mut local)?;
        ledger.owner.store(token.word(), relaxed);
        if self.is_empty {
            ledger.publish(&nothing(0..held.shape.size));
        } else {
            let (room, size) = (held.header().room(held.shape.size), held.shape.size);
            if room < size {
                ledger.publish(&nothing(room..size));
            }
        }
        held.follow(CREATE, &mut local)?;
        drop(local);
        ledger.leader.store(token.word(), Ordering::Release);
        let internal = listen(CREATE, ledger, &held.shape.id)?;
        let owner = [geteuid().as_raw(), getegid().as_raw()];
        let listener = claim.listen(Access::socket_mode(self.mode), owner)?;
        let file = claim.file()?;
        ledger.set_socket(0, file);
        ledger.set_socket(1, file);
        // A name that nobody serves is not left behind.
        attachment.start(CREATE, vec![internal, listener])?;
        attachment.set_name(claim.publish()?);
        Ok(())
    }

    /// Can there be such a region?
    pub(super) fn check(&self) -> Result<()> {
        check_name(CREATE, &self.name)?;
        let base = self.base.map_or(window::ALIGN, |base| base as u64);
        let size = self.size as u64;
        window::check(CREATE, Errno::INVAL, base, size)?;
        // Without its owner's bits, a name could not be told from a stale one.
        if self.mode & !0o066 != 0o600 {
            return Err(Error::with(
                CREATE,
                Errno::INVAL,
                format_args!("mode {:#o} is not 0o600 with read and write bits more", self.mode),
            ));
        }
        if self.collapse.is_some() && (self.kind() != Memory::Ordinary || !collapse::is_known()) {
            let why = "collapsing is of memory in small pages, and needs Linux 6.1";
            return Err(Error::because(CREATE, Errno::OPNOTSUPP, why));
        }
        let grain = self.kind().grain();
        if !(self.room as u64).is_multiple_of(grain) || self.room as u64 >= size {
            let why = format_args!("room of {} in {size} bytes, in pages of {grain}", self.room);
            return Err(Error::with(CREATE, Errno::INVAL, why));
        }
        if !size.is_multiple_of(grain) || (self.huge.is_some() && self.file.is_some()) {
            let why = format_args!("{size} bytes in pages of {grain}, or huge pages in a file");
            return Err(Error::with(CREATE, Errno::INVAL, why));
        }
        Ok(())
    }

    /// What its memory is.
    pub(super) fn kind(&self) -> Memory {
        match (self.huge, &self.file) {
            (Some(HugePages::M2), _) => Memory::Huge2M,
            (Some(HugePages::G1), _) => Memory::Huge1G,
            (None, Some(_)) => Memory::File,
            (None, None) => Memory::Ordinary,
        }
    }

    /// The control file, the data file, and base and id of the region that was in them.
    fn memory(&self) -> Result<Kept> {
        let size = self.size as u64;
        if let Some(path) = &self.file {
            let kept = Kept::open(path, size)?;
            if let Some((base, _)) = kept.found {
                window::check(CREATE, Errno::BADMSG, base, size)?;
            }
            return Ok(kept);
        }
        let control = file(&format!("mshare-control:{}", self.name), CONTROL_LEN as u64)?;
        let name = format!("mshare:{}", self.name);
        let data = match self.huge {
            None => file(&name, size)?,
            Some(pages) => {
                let data = memfd::create_huge(&name, size, pages.page()).map_err(|errno| {
                    Error::because(CREATE, errno, "no memory file in huge pages of this size")
                })?;
                seal(&data)?;
                data
            }
        };
        Ok(Kept { data, control, found: None })
    }
}

/// A sparse memory file that keeps its size and its seals.
fn file(name: &str, size: u64) -> Result<OwnedFd> {
    let file = memfd::create(name, size).op(CREATE)?;
    seal(&file)?;
    Ok(file)
}

fn seal(file: &OwnedFd) -> Result<()> {
    // The last seal keeps participants from adding others, against later ones.
    memfd::seal(file, SEALS | rustix::fs::SealFlags::SEAL).op(CREATE)
}
