//! Who is behind a name: a socket file, whose process may have ended.

use super::directory::{Directory, GLANCE};
use crate::error::{Context, Error, Result};
use crate::sys::pidfd;
use crate::sys::socket::{self, Address};
use core::time::Duration;
use rustix::fs::{FileType, lstat, unlink};
use rustix::io::Errno;
use std::path::Path;
use std::time::Instant;

/// How often one looks meanwhile.
const LOOK: Duration = Duration::from_millis(3);

/// What is found at the path of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Occupant {
    None,
    Stale,
    Live,
}

/// What tells one file at a path from the next.
pub(super) fn identity(path: &Path) -> Option<[u64; 4]> {
    let stat = lstat(path).ok()?;
    Some([stat.st_dev, stat.st_ino, stat.st_ctime as u64, stat.st_ctime_nsec])
}

/// Whether there is another file at the path, before `end`; also if there is none. Who takes
/// over renames a new one to it, so nobody has to call again and again: a queue that nobody
/// empties would soon be full.
pub(super) fn changes(path: &Path, before: Option<[u64; 4]>, end: Instant) -> bool {
    loop {
        if identity(path) != before {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(LOOK);
    }
}

/// Has this process ended? Not that we know, if it cannot be looked at.
pub(super) fn has_ended(pid: u32) -> bool {
    match pidfd::open(pid) {
        Ok(process) => pidfd::has_ended(process).unwrap_or(false),
        Err(errno) => errno == Errno::SRCH,
    }
}

pub(super) fn remove(path: &Path) -> rustix::io::Result<()> {
    match unlink(path) {
        Err(Errno::NOENT) => Ok(()),
        done => done,
    }
}

impl Directory {
    /// Who is behind this path? Under the lock, so that nobody is half way there.
    pub(super) fn occupant(&self, path: &Path) -> Result<Occupant> {
        match lstat(path) {
            Err(Errno::NOENT) => return Ok(Occupant::None),
            Err(errno) => return Err(Error::new(self.operation, errno)),
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Socket => {
                return Err(Error::with(
                    self.operation,
                    Errno::EXIST,
                    format_args!("{} is no socket", path.display()),
                ));
            }
            Ok(_) => {}
        }
        match socket::call(Address::Path(path), GLANCE) {
            Err(Errno::NOENT) => Ok(Occupant::None),
            Err(Errno::CONNREFUSED) => Ok(Occupant::Stale),
            // A full queue, or mode bits without the owner's: somebody is there.
            Err(Errno::AGAIN | Errno::ACCESS) => Ok(Occupant::Live),
            Err(errno) => Err(Error::new(self.operation, errno)),
            Ok(connection) => {
                let pid = socket::peer(connection).op(self.operation)?.pid;
                Ok(if has_ended(pid) { Occupant::Stale } else { Occupant::Live })
            }
        }
    }
}
