//! The lock of a runtime directory: one process at a time makes, removes or takes over names.
//!
//! # Protocol
//!
//! It is `flock` of the file `.lock`, which nobody but the directory's owner and root can open;
//! of the directory itself, whoever may list it could keep the lock. The file is removed by
//! who has the lock, so that none is left. Who gets the lock of a file that is not at its path
//! any more has that of nobody, and begins again.
//!
//! Root makes the file for the owner: as `.lock.new`, which it links to the name when it is the
//! owner's.

use super::directory::Directory;
use super::occupant::remove;
use crate::error::{Error, Result};
use core::time::Duration;
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{
    AtFlags, CWD, FlockOperation, Mode, OFlags, Uid, fchown, flock, fstat, linkat, lstat, open,
};
use rustix::io::Errno;
use rustix::process::geteuid;
use std::path::{Path, PathBuf};
use std::time::Instant;

const LOCK: &str = ".lock";
const NEW: &str = ".lock.new";

/// A lock. A copy of the descriptor in a forked child does not keep it: it is given back by name,
/// not by the last close.
#[derive(Debug)]
pub(super) struct Lock {
    file: OwnedFd,
    path: PathBuf,
}

impl Lock {
    /// Takes it, within `patience`.
    ///
    /// # Errors
    ///
    /// ETIMEDOUT if another process keeps it; those of open(2), among them ELOOP for a symbolic
    /// link.
    pub(super) fn take(directory: &Directory, patience: Duration) -> Result<Self> {
        let path = directory.path.join(LOCK);
        let deadline = Instant::now() + patience;
        loop {
            let locked = open_or_make(directory, &path).and_then(|file| {
                flock(&file, FlockOperation::NonBlockingLockExclusive)?;
                Ok(file)
            });
            match locked {
                Ok(file) if is_at(&file, &path) => return Ok(Self { file, path }),
                // Removed meanwhile: by who had it, or before root could link it.
                Ok(_) | Err(Errno::INTR | Errno::NOENT | Errno::EXIST)
                    if Instant::now() < deadline && directory.path.exists() => {}
                // A stopped process may hold it for ever, so no blocking wait.
                Err(Errno::AGAIN) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Ok(_) | Err(Errno::AGAIN) => return Err(directory.timed_out(patience)),
                Err(errno) => {
                    let why = format_args!("cannot lock {}", path.display());
                    return Err(Error::with(directory.operation, errno, why));
                }
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Before it is given back: then somebody else may have it.
        if is_at(&self.file, &self.path) {
            let _ = remove(&self.path);
        }
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

/// The file, which is there already or made, and is the owner's.
fn open_or_make(directory: &Directory, path: &Path) -> rustix::io::Result<OwnedFd> {
    // A pipe in its place would hold who opens it.
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let (made, mode) = (flags | OFlags::CREATE, Mode::RUSR | Mode::WUSR);
    if geteuid().as_raw() == directory.uid {
        return open(path, made, mode);
    }
    match open(path, flags, Mode::empty()) {
        Err(Errno::NOENT) => {
            let new = directory.path.join(NEW);
            // Left by root that was killed here, or a link of the owner's to a file of root's.
            remove(&new)?;
            let file = open(&new, made | OFlags::EXCL, mode)?;
            fchown(&file, Some(Uid::from_raw(directory.uid)), None)?;
            // This one, whatever has its name by now.
            let this = format!("/proc/self/fd/{}", file.as_raw_fd());
            let linked = linkat(CWD, this, CWD, path, AtFlags::SYMLINK_FOLLOW);
            remove(&new)?;
            linked.map(|()| file)
        }
        opened => opened,
    }
}

fn is_at(file: &OwnedFd, path: &Path) -> bool {
    let (Ok(file), Ok(found)) = (fstat(file), lstat(path)) else { return false };
    (file.st_dev, file.st_ino) == (found.st_dev, found.st_ino)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::mshare::directory::PATIENCE;
    use rustix::fd::AsFd;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    fn directory(temp: &tempfile::TempDir) -> Directory {
        Directory::prepare("test", Some(temp.path())).unwrap()
    }

    #[test]
    fn the_lock_is_one_at_a_time_and_given_back_by_name() {
        let temp = tempfile::tempdir().unwrap();
        let directory = directory(&temp);
        let lock = Lock::take(&directory, PATIENCE).unwrap();
        let error = Lock::take(&directory, Duration::ZERO).unwrap_err();
        assert!(error.is_timed_out(), "{error}");
        // What a forked child would hold.
        let copy = rustix::io::fcntl_dupfd_cloexec(lock.file.as_fd(), 0).unwrap();
        drop(lock);
        Lock::take(&directory, PATIENCE).unwrap();
        drop(copy);
        assert_eq!(temp.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn who_may_list_the_directory_cannot_hold_it() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::set_permissions(temp.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let directory = directory(&temp);
        let outside = std::fs::File::open(temp.path()).unwrap();
        flock(&outside, FlockOperation::LockExclusive).unwrap();
        let _lock = Lock::take(&directory, Duration::from_millis(100)).unwrap();
        let mode = temp.path().join(LOCK).metadata().unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_file_that_was_removed_is_nobodys() {
        let temp = tempfile::tempdir().unwrap();
        let directory = directory(&temp);
        let first = Lock::take(&directory, PATIENCE).unwrap();
        std::fs::remove_file(temp.path().join(LOCK)).unwrap();
        let second = Lock::take(&directory, PATIENCE).unwrap();
        drop(first);
        // It has not removed the other's.
        assert!(Lock::take(&directory, Duration::ZERO).unwrap_err().is_timed_out());
        drop(second);
        symlink("/dev/null", temp.path().join(LOCK)).unwrap();
        let error = Lock::take(&directory, PATIENCE).unwrap_err();
        assert_eq!(error.raw_os_error(), libc::ELOOP, "{error}");
    }

    #[test]
    fn root_makes_it_for_the_owner() {
        if !geteuid().is_root() {
            eprintln!("skip: root: the owner makes it");
            return;
        }
        let temp = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(temp.path(), Some(1000), None).unwrap();
        let directory = Directory::find("test", Some(temp.path())).unwrap();
        let lock = Lock::take(&directory, PATIENCE).unwrap();
        assert_eq!(temp.path().join(LOCK).metadata().unwrap().uid(), 1000);
        assert_eq!(temp.path().read_dir().unwrap().count(), 1);
        drop(lock);
        assert_eq!(temp.path().read_dir().unwrap().count(), 0);
    }
}
