//! What a participant does to the mappings of a region, as a caller sees it.

use super::backing::{Huge, Kind};
use super::bring::Bringer;
use super::change::Change;
use super::held::Held;
use super::object::{Acks, HugePages, Object, Prot, What};
use super::region::Region;
use super::rights::Rights;
use super::serve::{REPLACE, pack};
use super::span::{aligned, check};
use super::wire::Ask;
use super::{MAP, PROTECT, SYNC, UNMAP};
use crate::error::{Context, Error, Result};
use crate::sys::memfd;
use core::ops::Range;
use core::ptr::NonNull;
use core::time::Duration;
use rustix::fd::AsFd;
use rustix::io::Errno;
use std::time::Instant;

/// How long the operations without a time of their own wait for the others.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// ETIMEDOUT if somebody does not follow.
pub(super) fn complete(operation: &'static str, acks: &Acks) -> Result<()> {
    if acks.is_complete() {
        return Ok(());
    }
    let name = |late: &super::Late| match late.raw_os_error() {
        Some(errno) => format!("{} (errno {errno})", late.pid()),
        None => late.pid().to_string(),
    };
    let late: Vec<_> = acks.late().iter().map(name).collect();
    Err(Error::with(
        operation,
        Errno::TIMEDOUT,
        format_args!("done, but the processes {} do not follow yet", late.join(", ")),
    ))
}

/// Ranges are offsets from [`base`](Region::base), in bytes, of whole pages.
///
/// A change is made for all participants. When a call returns `Ok`, every live one follows. A
/// participant that is stopped, or has no agent and does not call [`sync`](Region::sync), makes
/// it ETIMEDOUT: then the change is made nevertheless, and that one follows when it goes
/// on. The calls that end in `_within` answer who it is instead.
///
/// If the process is killed in one of them, the change is made or it is not, and the
/// other participants go on. A [`map`](Region::map) that replaces something is two changes: killed
/// between them, what lay there is gone, and nothing lies there.
///
/// A change after which the pages of what lay there cannot be taken away, as by EIO of a file
/// system, is that error, and what lay there is unmapped nevertheless.
///
/// ```
/// # fn main() -> unmerged::Result<()> {
/// use unmerged::mshare::{Object, Prot, Region};
///
/// # let name = &format!("doc-map-{}", std::process::id());
/// let region = Region::builder(name).size(1 << 20).empty().create()?;
/// let page = region.map(0..4096, Object::revocable())?;
/// // SAFETY: just mapped, and nobody else uses it.
/// unsafe { page.write(42) };
/// region.protect(0..4096, Prot::READ)?;
/// region.unmap(0..4096)?;
/// assert!(region.protect(0..4096, Prot::READ).unwrap_err().is_exhausted()); // ENOMEM
/// # Ok(())
/// # }
/// ```
impl Region {
    /// Puts an object into a part of the region, in every process; pointer to its first byte.
    ///
    /// What lay there is unmapped before, unless the object is not to
    /// [replace](Object::no_replace) anything. An offset of the region's that nobody uses comes
    /// from [`alloc`](Region::alloc) with the alignment of a page.
    ///
    /// # Errors
    ///
    /// - EINVAL: no whole pages, or of a size of pages that the object has not; outside of the
    ///   region; the region has ended with its creator.
    /// - EEXIST: something lies there, and is not to be replaced; or the [heap](Self::heap) does.
    /// - EPERM: this process has not the right to map, or to unmap what lies there.
    /// - EACCES, EPERM, ENODEV: mmap(2) does not take the file so.
    /// - EBUSY: memory, where a stopped process does not follow the unmapping yet.
    /// - ENOSPC: more than 1024 parts; no room for pages. EDQUOT: more than [this user](super::Builder::quota)
    ///   may have. ENOMEM: no huge page free, or a limit of this process.
    /// - ENODEV: no huge pages of this size on this machine.
    /// - ETIMEDOUT: as above, or another process keeps the lock.
    /// - ENOENT: nobody serves the region, so a descriptor cannot be passed on.
    pub fn map(&self, range: Range<usize>, object: Object<'_>) -> Result<NonNull<u8>> {
        let (start, acks) = self.map_within(range, object, PATIENCE)?;
        complete(MAP, &acks)?;
        Ok(start)
    }

    /// [`map`](Self::map), with the time that the others have, and with who does not follow.
    ///
    /// # Errors
    ///
    /// Those of [`map`](Self::map).
    pub fn map_within(
        &self,
        range: Range<usize>,
        object: Object<'_>,
        patience: Duration,
    ) -> Result<(NonNull<u8>, Acks)> {
        let held = self.attachment.held();
        let deadline = Instant::now() + patience;
        let offset = range.start;
        let range = self.range(MAP, range)?;
        let needs = if object.replace { Rights::MAP | Rights::UNMAP } else { Rights::MAP };
        self.may(MAP, needs)?;
        self.attachment.be_born(MAP)?;
        let len = range.end - range.start;
        let access = object.prot.access();
        let (file, kind, at) = self.bring(&object, &range)?;
        let flags = pack(access, object.huge) | if object.replace { REPLACE } else { 0 };
        let generation = if held.is_full() {
            // One object at a time.
            let _turn = held.bringing.enter(|| ());
            let brought = match file {
                None => None,
                Some(file) => {
                    let token = held.token(MAP, &mut held.enter())?;
                    Some(held.bring(token, Bringer::Thread, kind, file))
                }
            };
            if let Some(brought) = brought.as_ref().filter(|_| !held.is_serving()) {
                // While another takes over, too.
                let [least, most] = [100, 1000].map(Duration::from_millis);
                let now = Instant::now();
                held.offer(&brought.object, deadline.clamp(now + least, now + most))?;
            }
            let change = Change::Map {
                object: brought.as_ref().map(|brought| brought.object.clone()),
                at,
                access,
                huge: object.huge,
                replace: object.replace,
            };
            let generation = self.patiently(range, deadline, &change)?;
            if let Some(brought) = brought {
                brought.mapped();
            }
            generation
        } else {
            let code = if file.is_some() { kind.code() } else { 0 };
            let numbers = [range.start, len, code, at, flags];
            let file = file.as_ref().map(AsFd::as_fd);
            self.request(MAP, Ask::Map, numbers, file, deadline)?
        };
        let acks = self.wait_for(MAP, generation, deadline)?;
        // SAFETY: inside the region.
        let start = unsafe { self.base().add(offset) };
        Ok((start, acks))
    }

    /// Memory where a stopped process has not followed the unmapping is waited for.
    fn patiently(&self, range: Range<u64>, deadline: Instant, change: &Change) -> Result<u64> {
        let held = self.attachment.held();
        match held.change(MAP, range.clone(), change, None, deadline) {
            Err(error) if error.raw_os_error() == libc::EBUSY => {
                let generation = held.ledger().log().generation();
                if held.wait(generation, deadline).is_complete() {
                    held.change(MAP, range, change, None, deadline)
                } else {
                    Err(error)
                }
            }
            made => made,
        }
    }

    /// The descriptor of an object, its kind, and where in it to begin.
    fn bring(
        &self,
        object: &Object<'_>,
        range: &Range<u64>,
    ) -> Result<(Option<rustix::fd::OwnedFd>, Kind, u64)> {
        let len = range.end - range.start;
        let name = format!("mshare-object:{}", self.name());
        let (file, kind, at) = match object.what {
            What::Memory => (None, Kind::Revocable, 0),
            What::Revocable => {
                let file = memfd::create(&name, len).op(MAP)?;
                memfd::keep_revocable(&file).op(MAP)?;
                (Some(file), Kind::Revocable, 0)
            }
            What::File(file, at) => {
                let copy = rustix::io::fcntl_dupfd_cloexec(file, 0).op(MAP)?;
                (Some(copy), Kind::File, at)
            }
            What::Huge(pages) => {
                let kind = match pages {
                    HugePages::M2 => Kind::Huge2M,
                    HugePages::G1 => Kind::Huge1G,
                };
                aligned(MAP, range, 0, kind)?;
                let file = memfd::create_huge(&name, len, pages.page()).op(MAP)?;
                memfd::keep_revocable(&file).op(MAP)?;
                // A page that is missing is an error here, or SIGBUS later.
                memfd::allocate(&file, 0, len).map_err(|errno| {
                    Error::with(MAP, errno, format_args!("{len} bytes of reserved huge pages"))
                })?;
                (Some(file), kind, 0)
            }
        };
        aligned(MAP, range, at, kind)?;
        Ok((file, kind, at))
    }

    /// Takes what lies in a part of the region away, in every process: its pages are gone, and
    /// a touch is SIGSEGV. Where nothing lies, nothing happens.
    ///
    /// Pages of memory, and of objects of ours, are taken by the kernel at once, also from
    /// stopped processes; a file of the caller's stays as it is.
    ///
    /// # Errors
    ///
    /// EINVAL for no whole pages or outside of the region; EEXIST where the [heap](Self::heap)
    /// lies; EPERM without the right; ENOSPC if
    /// the rest would be more than 1024 parts, EDQUOT if it would be more than
    /// [this user](super::Builder::quota) may have; ETIMEDOUT.
    pub fn unmap(&self, range: Range<usize>) -> Result<()> {
        complete(UNMAP, &self.unmap_within(range, PATIENCE)?)
    }

    /// [`unmap`](Self::unmap), with the time that the others have, and with who does not follow.
    ///
    /// # Errors
    ///
    /// Those of [`unmap`](Self::unmap).
    pub fn unmap_within(&self, range: Range<usize>, patience: Duration) -> Result<Acks> {
        let range = self.range(UNMAP, range)?;
        self.may(UNMAP, Rights::UNMAP)?;
        let numbers = [range.start, range.end - range.start, 0, 0, 0];
        self.alter(UNMAP, range, &Change::Unmap, Ask::Unmap, numbers, patience)
    }

    /// What every process may do with a part of the region from now on.
    ///
    /// # Errors
    ///
    /// Those of [`unmap`](Self::unmap); ENOMEM if nothing lies in a part of it; EACCES if the
    /// file of a part cannot be written.
    pub fn protect(&self, range: Range<usize>, prot: Prot) -> Result<()> {
        complete(PROTECT, &self.protect_within(range, prot, PATIENCE)?)
    }

    /// [`protect`](Self::protect), with the time that the others have, and with who does not
    /// follow.
    ///
    /// # Errors
    ///
    /// Those of [`protect`](Self::protect).
    pub fn protect_within(
        &self,
        range: Range<usize>,
        prot: Prot,
        patience: Duration,
    ) -> Result<Acks> {
        let range = self.range(PROTECT, range)?;
        self.may(PROTECT, Rights::PROTECT)?;
        let access = prot.access();
        let numbers = [range.start, range.end - range.start, pack(access, Huge::Default), 0, 0];
        self.alter(PROTECT, range, &Change::Protect(access), Ask::Protect, numbers, patience)
    }

    /// Follows what others have changed, now and in this thread; answers the number of the last
    /// change. A process with an agent need not call it, except a forked child, which
    /// becomes a participant by it: until then, it has what its parent had at the fork.
    ///
    /// # Errors
    ///
    /// EBADMSG if the log says what no log says; EPERM in a forked child without all rights,
    /// which has to open the region; ENOMEM, or ENOENT for an object that nobody has any more:
    /// that part is a hole here, or at the limit of mappings is as it was.
    pub fn sync(&self) -> Result<u64> {
        self.attachment.live(SYNC)
    }

    pub(super) fn range(&self, operation: &'static str, range: Range<usize>) -> Result<Range<u64>> {
        let range = range.start as u64..range.end as u64;
        check(operation, &range, self.size() as u64)?;
        Ok(range)
    }

    pub(super) fn may(&self, operation: &'static str, needed: Rights) -> Result<()> {
        let rights = self.rights();
        if rights.contains(needed) {
            return Ok(());
        }
        let why = format_args!("the rights of this process are {rights}, not {needed}");
        Err(Error::with(operation, Errno::PERM, why))
    }

    /// A change without an object: by ourselves, or through the server.
    pub(super) fn alter(
        &self,
        operation: &'static str,
        range: Range<u64>,
        change: &Change,
        ask: Ask,
        numbers: [u64; 5],
        patience: Duration,
    ) -> Result<Acks> {
        self.attachment.be_born(operation)?;
        let held = self.attachment.held();
        let deadline = Instant::now() + patience;
        let generation = if held.is_full() {
            held.change(operation, range, change, None, deadline)?
        } else {
            self.request(operation, ask, numbers, None, deadline)?
        };
        self.wait_for(operation, generation, deadline)
    }

    fn request(
        &self,
        operation: &'static str,
        ask: Ask,
        numbers: [u64; 5],
        file: Option<rustix::fd::BorrowedFd<'_>>,
        deadline: Instant,
    ) -> Result<u64> {
        let held = self.attachment.held();
        loop {
            match held.ask_patiently(operation, ask, numbers, file, deadline) {
                // Somebody else changes something, or does not follow yet.
                Err(error)
                    if [libc::EAGAIN, libc::EBUSY, libc::ETIMEDOUT]
                        .contains(&error.raw_os_error())
                        && Instant::now() < deadline =>
                {
                    std::thread::sleep(Duration::from_millis(1));
                }
                // Busy until now.
                Err(error) if error.raw_os_error() == libc::EAGAIN => {
                    return Err(held.unanswered(operation));
                }
                done => return Ok(done?.0.numbers[0]),
            }
        }
    }

    fn wait_for(
        &self,
        operation: &'static str,
        generation: u64,
        deadline: Instant,
    ) -> Result<Acks> {
        let held: &Held = self.attachment.held();
        if !held.is_full() {
            let mut local = held.enter();
            held.follow(operation, &mut local)?;
        }
        Ok(held.wait(generation, deadline))
    }
}

impl Prot {
    /// Does it allow reading?
    pub fn reads(self) -> bool {
        self != Self::NONE
    }

    /// Does it allow writing?
    pub fn writes(self) -> bool {
        self == Self::READ_WRITE
    }
}
