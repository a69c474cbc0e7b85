//! Making a region.

use super::access::Access;
use super::attach::SEALS;
use super::attachment::{Attachment, Origin, nothing};
use super::collapse;
use super::directory::{Directory, GLANCE};
use super::header::{CONTROL_LEN, Header};
use super::held::Files;
use super::ledger::LEDGER_LEN;
use super::name::check_name;
use super::object::HugePages;
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
use rustix::fs::{FlockOperation, Mode, OFlags, flock, fstat, open, statfs};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid};
use rustix::rand::{GetRandomFlags, getrandom};
use std::path::{Path, PathBuf};
use std::time::Instant;

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
    name: String,
    size: usize,
    mode: u32,
    base: Option<usize>,
    directory: Option<PathBuf>,
    lifetime: Lifetime,
    others: Rights,
    quota: u32,
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
    /// 0700 if it is not there. Whoever may read the directory can hold its lock, and keep names from
    /// being made, removed and taken over meanwhile: for users that are not trusted with that, it has
    /// mode 0711.
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
    /// its allocations and roots; what was mapped, unmapped and protected is forgotten. Files
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

    /// Makes the region, maps it here, and serves it under its name.
    ///
    /// # Errors
    ///
    /// - EINVAL: not a name; a size of 0, of no whole pages or over 32 TiB; a mode with
    ///   other bits than read and write, or without the owner's; a base that is no multiple
    ///   of 1 GiB or too high; huge pages in a file; room of no whole pages, or for all of it.
    /// - EEXIST: a live process serves this name; the base asked for is not free here.
    /// - EPERM: the runtime directory belongs to somebody else or is open to others.
    /// - ETIMEDOUT: another process keeps the lock of the directory.
    /// - EBUSY: another region has the file. EBADMSG: the file is another region's, or has
    ///   contents of none, or its control page is there and it is not.
    /// - ENODEV: no huge pages of this size on this machine. EOPNOTSUPP: a file in hugetlbfs; no
    ///   [collapsing](Self::collapse) before Linux 6.1, nor in a file that stays.
    /// - ENOMEM, EMFILE, ENFILE, EAGAIN, ENAMETOOLONG: a limit of the system.
    pub fn create(self) -> Result<Region> {
        check_name(CREATE, &self.name)?;
        self.check()?;
        let claim = Directory::prepare(CREATE, self.directory.as_deref())?.claim(&self.name)?;

        let mut id = [0; 16];
        getrandom(&mut id, GetRandomFlags::empty()).op(CREATE)?;
        let (control, data, memory) = self.memory()?;
        let ledger = file(&format!("mshare-ledger:{}", self.name), LEDGER_LEN as u64)?;
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).op(CREATE)?;
        let mut shape = Shape { size: self.size as u64, base: 0, id, memory };
        let old = if memory == Memory::File { resumed(&control, &shape)? } else { None };
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
    fn begin(&self, attachment: &Attachment, claim: super::claim::Claim) -> Result<()> {
        let held = attachment.held();
        let (ledger, relaxed) = (held.ledger(), Ordering::Relaxed);
        ledger.mode.store(self.mode, relaxed);
        ledger.uid.store(geteuid().as_raw(), relaxed);
        ledger.gid.store(getegid().as_raw(), relaxed);
        ledger.others.store(self.others.bits(), relaxed);
        ledger.quota.store(self.quota, relaxed);
        let pause = self.collapse.map_or(0, |pause| pause.as_millis().clamp(1, u32::MAX.into()));
        ledger.collapse.store(pause as u32, relaxed);
        ledger.bound.store((self.lifetime == Lifetime::Creator).into(), relaxed);
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

    fn check(&self) -> Result<()> {
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

    fn kind(&self) -> Memory {
        match (self.huge, &self.file) {
            (Some(HugePages::M2), _) => Memory::Huge2M,
            (Some(HugePages::G1), _) => Memory::Huge1G,
            (None, Some(_)) => Memory::File,
            (None, None) => Memory::Ordinary,
        }
    }

    /// The two files that stay are both of one region, or both have nothing in them: then they get
    /// their sizes.
    fn belong_together(&self, path: &Path, data: &OwnedFd, control: &OwnedFd) -> Result<()> {
        let (size, page) = (self.size as u64, CONTROL_LEN as u64);
        let stat = fstat(data).op(CREATE)?;
        let found = stat.st_size.cast_unsigned();
        let is_new = match fstat(control).op(CREATE)?.st_size.cast_unsigned() {
            0 => true,
            len if len == page => control_page(control)?.is_none(),
            len => {
                let why = format_args!("control file of {len} bytes, not {page}");
                return Err(Error::with(CREATE, Errno::BADMSG, why));
            }
        };
        if is_new {
            // Of a creator that was killed it may have its size, and nothing in it.
            if found != 0 && (found != size || stat.st_blocks != 0) {
                let path = path.display();
                let why = format_args!("file {path} of {found} bytes is of no region");
                return Err(Error::with(CREATE, Errno::BADMSG, why));
            }
            memfd::grow(data, size).op(CREATE)?;
            return memfd::grow(control, page).op(CREATE);
        }
        if found != size {
            let why = format_args!("file {} of {found} bytes, not {size}", path.display());
            return Err(Error::with(CREATE, Errno::BADMSG, why));
        }
        Ok(())
    }

    /// The control file, the data file, and what they are.
    fn memory(&self) -> Result<(OwnedFd, OwnedFd, Memory)> {
        let size = self.size as u64;
        if let Some(path) = &self.file {
            in_small_pages(path)?;
            let data = plain(path)?;
            let mut beside = path.clone().into_os_string();
            beside.push(".control");
            let control = plain(Path::new(&beside))?;
            self.belong_together(path, &data, &control)?;
            return Ok((control, data, Memory::File));
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
        Ok((control, data, self.kind()))
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

/// A file of hugetlbfs has no part that is smaller than a page of it, and neither a control page
/// beside it nor a mapping at any offset of 4096 bytes can be had there.
fn in_small_pages(path: &Path) -> Result<()> {
    const HUGETLBFS: u64 = 0x9584_58f6;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let Ok(system) = statfs(directory.unwrap_or(Path::new("."))) else { return Ok(()) };
    if system.f_type as u64 & 0xffff_ffff != HUGETLBFS {
        return Ok(());
    }
    let why = format_args!("file {} would be in hugetlbfs", path.display());
    Err(Error::with(CREATE, Errno::OPNOTSUPP, why))
}

/// A file that stays, that no other region has.
fn plain(path: &Path) -> Result<OwnedFd> {
    let failed = |errno| Error::with(CREATE, errno, format_args!("file {}", path.display()));
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = open(path, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
    // Kept by the open file, which all participants share: until the last one lets go.
    // A child between its fork and its exec has a copy too, for a moment.
    let end = Instant::now() + GLANCE;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(Errno::AGAIN) if Instant::now() < end => {
                std::thread::sleep(core::time::Duration::from_millis(1));
            }
            Err(Errno::AGAIN) => return Err(failed(Errno::BUSY)),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
    Ok(file)
}

/// Base and id of the region whose control page this file has; `None` in a new one.
fn control_page(control: &OwnedFd) -> Result<Option<(u64, [u8; 16])>> {
    use crate::sys::map::{Access, Mapping, Place};
    let page = Mapping::shared(control, CONTROL_LEN, Access::Read, Place::Anywhere).op(CREATE)?;
    Ok(Header::of(&page).found())
}

/// The same, if such a region can be.
fn resumed(control: &OwnedFd, shape: &Shape) -> Result<Option<(u64, [u8; 16])>> {
    let Some((base, id)) = control_page(control)? else { return Ok(None) };
    window::check(CREATE, Errno::BADMSG, base, shape.size)?;
    Ok(Some((base, id)))
}
