//! The two files of a region that stays, and whether they belong together.
//!
//! # Protocol
//!
//! Each time that a region comes back it draws a random number, its *session*. The control page has
//! that of the last time, and so has a page of the data file behind the memory, the *trailer*:
//! there as `current`, after `next`. A creator that has both files locked
//!
//! 1. writes the new number as `next`,
//! 2. writes it to the control page,
//! 3. writes it as `current`.
//!
//! So one that is killed leaves a control page with one of the two. Files of different regions, or
//! of one region at different times, have no number in common; copies of both have.
//!
//! A new region writes its trailer before the control page is ready. Until then the data file has
//! nothing in it but the trailer, and may be had by the next creator.

use super::CREATE;
use super::header::{CONTROL_LEN, Header};
use super::wire::Memory;
use crate::error::{Context, Error, Result};
use crate::sys::map::{Access, Mapping, PAGE, Place};
use crate::sys::memfd;
use core::time::Duration;
use rustix::fd::OwnedFd;
use rustix::fs::{
    FileType, FlockOperation, Mode, OFlags, SeekFrom, flock, fstat, lstat, open, seek, statfs,
};
use rustix::io::{Errno, pread, pwrite};
use rustix::rand::{GetRandomFlags, getrandom};
use std::path::{Path, PathBuf};
use std::time::Instant;

const MAGIC: u64 = u64::from_le_bytes(*b"umshareT");
/// Offsets of the words of the trailer.
const CURRENT: u64 = 8;
const NEXT: u64 = 16;

/// Bytes of the data file of a region of `size` bytes.
pub(super) fn data_len(memory: Memory, size: u64) -> u64 {
    if memory == Memory::File { size.saturating_add(PAGE as u64) } else { size }
}

/// The files, locked for all that have the region.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) data: OwnedFd,
    pub(super) control: OwnedFd,
    /// Base and id of the region that they are; `None` of a new one.
    pub(super) found: Option<(u64, [u8; 16])>,
}

impl Kept {
    /// Takes the data file at `path` and the control file beside it, or makes both, for a region
    /// of `size` bytes.
    ///
    /// # Errors
    ///
    /// EBUSY if another region has them, EBADMSG if one of them is not there, or they do not belong
    /// together; EOPNOTSUPP in hugetlbfs; EFBIG, ENOSPC; those of open(2).
    pub(super) fn open(path: &Path, size: u64) -> Result<Self> {
        in_small_pages(path)?;
        let mut beside = path.to_path_buf().into_os_string();
        beside.push(".control");
        let beside = PathBuf::from(beside);
        // The data file is made first, so it is there if this is.
        let has_control = lstat(&beside).is_ok();
        let data = match plain(path, !has_control)? {
            Some(data) => data,
            None => return Err(bad(path, "is not there, and its control file is")),
        };
        let is_new = is_new(&data, size).op(CREATE)?;
        let control = match plain(&beside, is_new)? {
            Some(control) => control,
            None => return Err(bad(path, "is of no region: its control file is not there")),
        };
        let len = data_len(Memory::File, size);
        let page = CONTROL_LEN as u64;
        let control_len = fstat(&control).op(CREATE)?.st_size.cast_unsigned();
        if ![0, page].contains(&control_len) {
            return Err(bad(&beside, "is no control file"));
        }
        let found = if control_len == 0 { None } else { Header::of(&map(&control)?).found() };
        if found.is_none() && !is_new {
            return Err(bad(path, "is of no region: its control file is empty"));
        }
        let has = fstat(&data).op(CREATE)?.st_size.cast_unsigned();
        if found.is_some() && has != len {
            let why = format_args!("file {} of {has} bytes, not {len}", path.display());
            return Err(Error::with(CREATE, Errno::BADMSG, why));
        }
        // Also where nothing grows: a write beyond the limit of this process would be a signal.
        memfd::grow(&data, len).op(CREATE)?;
        memfd::grow(&control, page).op(CREATE)?;
        let page = map(&control)?;
        let header = Header::of(&page);
        if found.is_some() {
            let words = [0, CURRENT, NEXT].map(|at| read(&data, size + at));
            let [magic, current, next] = words.map(|word| word.unwrap_or(0));
            if magic != MAGIC || ![current, next].contains(&header.session()) {
                return Err(bad(path, "and its control file are not of one region and one time"));
            }
        }
        let session = draw()?;
        let put = |at, word| write(&data, size + at, word).op(CREATE);
        put(NEXT, session)?;
        header.set_session(session);
        put(CURRENT, session)?;
        put(0, MAGIC)?;
        Ok(Self { data, control, found })
    }
}

/// A file of hugetlbfs has no part that is smaller than a page of it, and neither a control page
/// beside it nor a mapping at any offset of 4096 bytes can be had there.
fn in_small_pages(path: &Path) -> Result<()> {
    const HUGETLBFS: u64 = 0x9584_58f6;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    // Where there is none, the file cannot be opened either.
    let Ok(system) = statfs(directory.unwrap_or(Path::new("."))) else { return Ok(()) };
    if system.f_type as u64 & 0xffff_ffff != HUGETLBFS {
        return Ok(());
    }
    let why = format_args!("file {} would be in hugetlbfs", path.display());
    Err(Error::with(CREATE, Errno::OPNOTSUPP, why))
}

/// A file that no other region has; `None` if it is not there, and not to be made.
fn plain(path: &Path, makes: bool) -> Result<Option<OwnedFd>> {
    let failed = |errno| Error::with(CREATE, errno, format_args!("file {}", path.display()));
    let made = if makes { OFlags::CREATE } else { OFlags::empty() };
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | made;
    let file = match open(path, flags, Mode::RUSR | Mode::WUSR) {
        Err(Errno::NOENT) if !makes => return Ok(None),
        opened => opened.map_err(failed)?,
    };
    let stat = fstat(&file).map_err(failed)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(bad(path, "is no regular file"));
    }
    // Kept by the open file, which all participants share: until the last one lets go.
    // A child between its fork and its exec has a copy too, for a moment.
    let end = Instant::now() + super::directory::GLANCE;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(file)),
            Err(Errno::AGAIN) if Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(Errno::AGAIN) => return Err(failed(Errno::BUSY)),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
}

/// Is there nothing in it but what a creator wrote that was killed before the region began?
fn is_new(data: &OwnedFd, size: u64) -> rustix::io::Result<bool> {
    let len = fstat(data)?.st_size.cast_unsigned();
    if len == 0 {
        return Ok(true);
    }
    if len != data_len(Memory::File, size) {
        return Ok(false);
    }
    match seek(data, SeekFrom::Data(0)) {
        Err(Errno::NXIO) => Ok(true),
        // The trailer, perhaps in a larger block.
        first => Ok(first? >= size && [0, MAGIC].contains(&read(data, size)?)),
    }
}

fn map(control: &OwnedFd) -> Result<Mapping> {
    Mapping::shared(control, CONTROL_LEN, Access::Write, Place::Anywhere).op(CREATE)
}

fn read(file: &OwnedFd, at: u64) -> rustix::io::Result<u64> {
    let mut word = [0; 8];
    match pread(file, &mut word, at)? {
        8 => Ok(u64::from_le_bytes(word)),
        _ => Err(Errno::BADMSG),
    }
}

fn write(file: &OwnedFd, at: u64, word: u64) -> rustix::io::Result<()> {
    match pwrite(file, &word.to_le_bytes(), at)? {
        8 => Ok(()),
        _ => Err(Errno::NOSPC),
    }
}

/// A number that no other session has, and not 0.
fn draw() -> Result<u64> {
    let mut bytes = [0; 8];
    getrandom(&mut bytes, GetRandomFlags::empty()).op(CREATE)?;
    Ok(u64::from_le_bytes(bytes).max(1))
}

#[cold]
fn bad(path: &Path, why: &str) -> Error {
    Error::with(CREATE, Errno::BADMSG, format_args!("file {} {why}", path.display()))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::mshare::wire::Shape;

    const SIZE: u64 = 4 * PAGE as u64;
    const SHAPE: Shape = Shape { size: SIZE, base: 1 << 45, id: [7; 16], memory: Memory::File };

    /// What the next creator finds.
    fn open_at(path: &Path) -> Result<Option<[u8; 16]>> {
        Kept::open(path, SIZE).map(|kept| kept.found.map(|(_, id)| id))
    }

    /// A region that was there once.
    fn make(path: &Path) {
        let kept = Kept::open(path, SIZE).unwrap();
        assert_eq!(kept.found, None);
        Header::of(&map(&kept.control).unwrap()).fill(&SHAPE, 0);
        pwrite(&kept.data, b"contents", 0).unwrap();
    }

    #[test]
    fn a_creator_that_is_killed_at_any_step() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("data");
        // Before the region began.
        assert_eq!(open_at(&path).unwrap(), None);
        assert_eq!(open_at(&path).unwrap(), None);
        make(&path);
        assert_eq!(open_at(&path).unwrap(), Some([7; 16]));
        let put = |control, current, next| {
            let kept = Kept::open(&path, SIZE).unwrap();
            Header::of(&map(&kept.control).unwrap()).set_session(control);
            write(&kept.data, SIZE + CURRENT, current).unwrap();
            write(&kept.data, SIZE + NEXT, next).unwrap();
        };
        for (control, current, next) in [(5, 5, 6), (6, 5, 6), (6, 6, 6)] {
            put(control, current, next);
            assert_eq!(open_at(&path).unwrap(), Some([7; 16]));
        }
        put(4, 5, 6);
        assert!(open_at(&path).unwrap_err().is_corrupt());
        let mut contents = [0; 8];
        pread(std::fs::File::open(&path).unwrap(), &mut contents, 0).unwrap();
        assert_eq!(&contents, b"contents");
    }

    #[test]
    fn files_that_do_not_belong_together() {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        let copy = |from: &str, to: &str| std::fs::copy(at(from), at(to)).map(drop).unwrap();
        for name in ["a", "b"] {
            make(&at(name));
        }
        // A backup of both comes back.
        copy("a", "old");
        copy("a.control", "old.control");
        copy("a", "copy");
        copy("a.control", "copy.control");
        assert_eq!(open_at(&at("copy")).unwrap(), Some([7; 16]));
        // Of another region, of the same size.
        copy("b.control", "copy.control");
        assert!(open_at(&at("copy")).unwrap_err().is_corrupt());
        // Of the same region, and older.
        assert_eq!(open_at(&at("a")).unwrap(), Some([7; 16]));
        copy("a.control", "new.control");
        copy("old.control", "a.control");
        assert!(open_at(&at("a")).unwrap_err().is_corrupt());
        copy("new.control", "a.control");
        assert_eq!(open_at(&at("a")).unwrap(), Some([7; 16]));
        copy("old", "a");
        assert!(open_at(&at("a")).unwrap_err().is_corrupt());
        assert_eq!(open_at(&at("old")).unwrap(), Some([7; 16]));
    }

    #[test]
    fn one_of_two_is_neither_taken_nor_made() {
        let temp = tempfile::tempdir().unwrap();
        let (path, control) = (temp.path().join("a"), temp.path().join("a.control"));
        make(&path);
        let aside = temp.path().join("aside");
        for gone in [&path, &control] {
            std::fs::rename(gone, &aside).unwrap();
            assert!(open_at(&path).unwrap_err().is_corrupt());
            assert!(!gone.exists());
            std::fs::rename(&aside, gone).unwrap();
        }
        rustix::fs::mkfifoat(rustix::fs::CWD, &aside, Mode::RUSR | Mode::WUSR).unwrap();
        assert!(open_at(&aside).unwrap_err().is_corrupt());
        assert_eq!(open_at(&path).unwrap(), Some([7; 16]));
    }
}
