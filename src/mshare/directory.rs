//! The runtime directory: names of regions, as sockets.
//!
//! # Protocol
//!
//! A name is a socket file whose owner listens. A creator holds the [lock of the directory](super::directory_lock) while it looks for
//! a live owner, removes what a dead one left, and publishes: it binds `.new`, sets the
//! mode, listens, and renames, so that a name appears whole or not at all. A name is removed
//! under the same lock, and by its creator only while it is still the creator's own.
//!
//! A socket file stays when its process is killed. Then nobody listens: ECONNREFUSED. One
//! case is not seen so: a forked child holds a copy of the listener. There the listener's
//! process id, from `SO_PEERCRED`, tells that its owner has ended.

use super::claim::Claim;
use super::directory_lock::Lock;
use super::occupant::{Occupant, changes, has_ended, identity, remove};
use super::runtime::place;
use crate::error::{Context, Error, Result};
use crate::sys::socket::{self, Address, Connection};
use core::time::Duration;
use rustix::fs::{Mode, OFlags, fstat, mkdir, open};
use rustix::io::Errno;
use rustix::process::geteuid;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// How long we wait for another process that does not answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// How long a full queue of connections may hold a creator; its owner is alive then.
pub(super) const GLANCE: Duration = Duration::from_millis(200);
/// How long the other participants have to take over from a server that is gone, before its name
/// counts as left behind.
pub(super) const GRACE: Duration = Duration::from_millis(300);
/// A directory that only its owner can write.
#[derive(Debug, Clone)]
pub(super) struct Directory {
    pub(super) path: PathBuf,
    /// Its owner.
    pub(super) uid: u32,
    pub(super) operation: &'static str,
    /// How long [`call`](Self::call) waits for somebody who takes over.
    pub(super) grace: Duration,
}

impl Directory {
    /// The given directory, or the user's own, to look names up.
    ///
    /// # Errors
    ///
    /// ENOENT if it does not exist, ENOTDIR if it is none or a symbolic link, EPERM if
    /// others than its owner can write it or if it is the user's default one and belongs to
    /// somebody else.
    pub(super) fn find(operation: &'static str, given: Option<&Path>) -> Result<Self> {
        let (path, default) = place(operation, given)?;
        let found = Self::check(operation, path)?;
        if default && !found.is_ours() {
            return Err(found.foreign());
        }
        Ok(found)
    }

    /// The same to remove names: it must be our own.
    ///
    /// # Errors
    ///
    /// Those of [`find`](Self::find); EPERM if it belongs to somebody else.
    pub(super) fn own(operation: &'static str, given: Option<&Path>) -> Result<Self> {
        let found = Self::find(operation, given)?;
        if found.is_ours() { Ok(found) } else { Err(found.foreign()) }
    }

    /// The same to create names: it is made if it is not there.
    ///
    /// # Errors
    ///
    /// Those of [`own`](Self::own) and of mkdir(2).
    pub(super) fn prepare(operation: &'static str, given: Option<&Path>) -> Result<Self> {
        let (path, _) = place(operation, given)?;
        match mkdir(&path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => Self::own(operation, given),
            Err(errno) => {
                let path = path.display();
                Err(Error::with(operation, errno, format_args!("cannot make {path}")))
            }
        }
    }

    fn check(operation: &'static str, path: PathBuf) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let stat = open(&path, flags, Mode::empty()).and_then(fstat).map_err(|errno| {
            Error::with(operation, errno, format_args!("runtime directory {}", path.display()))
        })?;
        if stat.st_mode & 0o022 != 0 {
            return Err(Error::with(
                operation,
                Errno::PERM,
                format_args!(
                    "runtime directory {} has mode {:o}: others could replace names in it",
                    path.display(),
                    stat.st_mode & 0o7777
                ),
            ));
        }
        Ok(Self { path, uid: stat.st_uid, operation, grace: GRACE })
    }

    fn is_ours(&self) -> bool {
        self.uid == geteuid().as_raw()
    }

    fn foreign(&self) -> Error {
        Error::with(
            self.operation,
            Errno::PERM,
            format_args!("runtime directory {} belongs to user {}", self.path.display(), self.uid),
        )
    }

    /// A connection to whoever serves `name`. The listener is ours, root's or the
    /// directory's owner's; its process has not ended.
    ///
    /// # Errors
    ///
    /// ENOENT for an unknown name and for one whose server is gone, EACCES if its mode bits
    /// forbid it, EPERM if somebody else listens, ETIMEDOUT if the queue stays full.
    pub(super) fn call(&self, name: &str, patience: Duration) -> Result<Connection> {
        let end = Instant::now() + self.grace;
        let path = self.path.join(name);
        loop {
            let before = identity(&path);
            match self.try_call(name, patience) {
                // Another participant may take over.
                Err(error) if error.is_not_found() && before.is_some() => {
                    if !changes(&path, before, end) {
                        return Err(error);
                    }
                }
                done => return done,
            }
        }
    }

    fn try_call(&self, name: &str, patience: Duration) -> Result<Connection> {
        let at = self.path.display();
        let gone = |why| {
            Error::with(self.operation, Errno::NOENT, format_args!("{why} \"{name}\" in {at}"))
        };
        let connection =
            socket::call(Address::Path(&self.path.join(name)), patience).map_err(|e| match e {
                Errno::NOENT => gone("no region"),
                Errno::CONNREFUSED => gone("nobody serves"),
                Errno::AGAIN => self.timed_out(patience),
                Errno::ACCESS => {
                    let why = "the mode of the region or of its directory forbids";
                    Error::with(
                        self.operation,
                        Errno::ACCESS,
                        format_args!("{why} \"{name}\" in {at}"),
                    )
                }
                errno => Error::new(self.operation, errno),
            })?;
        let server = socket::peer(&connection).op(self.operation)?;
        if !may_serve(server.uid, geteuid().as_raw(), self.uid) {
            return Err(Error::with(
                self.operation,
                Errno::PERM,
                format_args!("user {} serves this name", server.uid),
            ));
        }
        if has_ended(server.pid) {
            return Err(gone("nobody serves"));
        }
        Ok(connection)
    }

    /// The other side gave no answer.
    pub(super) fn timed_out(&self, patience: Duration) -> Error {
        Error::with(self.operation, Errno::TIMEDOUT, format_args!("no answer in {patience:?}"))
    }

    /// Takes the lock, and `name` if it is free.
    ///
    /// # Errors
    ///
    /// EEXIST if a live process serves the name or if it is no socket, ETIMEDOUT if another
    /// process keeps the lock.
    pub(super) fn claim(self, name: &str) -> Result<Claim> {
        let path = self.path.join(name);
        let (lock, occupant) = self.settled(&path)?;
        match occupant {
            Occupant::None => {}
            Occupant::Stale => remove(&path).op(self.operation)?,
            Occupant::Live => {
                return Err(Error::with(
                    self.operation,
                    Errno::EXIST,
                    format_args!("region \"{name}\" exists"),
                ));
            }
        }
        Ok(Claim { directory: self, path, _lock: lock })
    }

    /// Removes `name`, whoever of this user serves it.
    ///
    /// # Errors
    ///
    /// ENOENT for an unknown name, and for one whose server is gone, which is cleaned.
    pub(super) fn unlink(&self, name: &str) -> Result<()> {
        let path = self.path.join(name);
        let (_lock, occupant) = self.settled(&path)?;
        if matches!(occupant, Occupant::Live | Occupant::Stale) {
            remove(&path).op(self.operation)?;
        }
        match occupant {
            Occupant::Live => Ok(()),
            Occupant::None => Err(Error::with(
                self.operation,
                Errno::NOENT,
                format_args!("no region \"{name}\" in {}", self.path.display()),
            )),
            Occupant::Stale => Err(Error::because(
                self.operation,
                Errno::NOENT,
                "the process that served this name has ended; the name is cleaned",
            )),
        }
    }

    /// The lock, and who is behind this path, after the others have had time to take over.
    fn settled(&self, path: &Path) -> Result<(Lock, Occupant)> {
        let end = Instant::now() + GRACE;
        loop {
            let lock = Lock::take(self, PATIENCE)?;
            let before = identity(path);
            let occupant = self.occupant(path)?;
            if occupant != Occupant::Stale || Instant::now() >= end {
                return Ok((lock, occupant));
            }
            drop(lock);
            changes(path, before, end);
        }
    }
}

/// Is a server of user `server` one that user `own` believes, in a directory of `owner`? Root
/// could be anybody, and who chose the directory chose its owner.
pub(super) fn may_serve(server: u32, own: u32, owner: u32) -> bool {
    [0, own, owner].contains(&server)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    const TEST: &str = "test";

    #[test]
    fn a_server_of_another_user_is_not_believed() {
        let (own, owner, other) = (1000, 1001, 1002);
        assert!(may_serve(own, own, own) && may_serve(0, own, own));
        assert!(may_serve(owner, own, owner));
        assert!(!may_serve(other, own, owner) && !may_serve(owner, own, own));
        assert!(!may_serve(own, 0, 0));
    }

    #[test]
    fn directories_that_are_refused() {
        let temp = tempfile::tempdir().unwrap();
        let find = |path: &Path| Directory::find(TEST, Some(path)).unwrap_err();
        assert!(find(&temp.path().join("none")).is_not_found());
        assert!(find(Path::new("relative")).is_invalid());
        assert!(find(Path::new("/tmp")).is_permission_denied());

        let (real, link) = (temp.path().join("real"), temp.path().join("link"));
        Directory::prepare(TEST, Some(&real)).unwrap();
        assert_eq!(real.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        symlink(&real, &link).unwrap();
        assert_eq!(find(&link).raw_os_error(), libc::ENOTDIR);
        std::fs::set_permissions(&real, PermissionsExt::from_mode(0o770)).unwrap();
        let error = Directory::prepare(TEST, Some(&real)).unwrap_err();
        assert!(error.is_permission_denied() && error.to_string().contains("770"), "{error}");
        if geteuid().as_raw() != 0 {
            let error = Directory::prepare(TEST, Some(Path::new("/usr"))).unwrap_err();
            assert!(error.is_permission_denied() && error.to_string().contains("user 0"));
        }
    }

    #[test]
    fn a_name_is_published_whole_and_removed_by_its_own_creator_only() {
        let temp = tempfile::tempdir().unwrap();
        let prepare = || Directory::prepare(TEST, Some(temp.path())).unwrap();
        let claim = prepare().claim("one").unwrap();
        let listener = claim.listen(0o640, [geteuid().as_raw(), 0]).unwrap();
        assert!(prepare().call("one", PATIENCE).unwrap_err().is_not_found());
        let name = claim.publish().unwrap();
        let mode = temp.path().join("one").metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        prepare().call("one", PATIENCE).unwrap();
        assert!(prepare().claim("one").unwrap_err().is_exists());

        prepare().unlink("one").unwrap();
        assert!(prepare().unlink("one").unwrap_err().is_not_found());
        let claim = prepare().claim("one").unwrap();
        let other = claim.listen(0o600, [geteuid().as_raw(), 0]).unwrap();
        let second = claim.publish().unwrap();
        name.remove();
        prepare().call("one", PATIENCE).unwrap();
        drop((listener, other));
        // Stale now: unknown to an opener, free for a creator.
        assert!(prepare().call("one", PATIENCE).unwrap_err().is_not_found());
        drop(prepare().claim("one").unwrap());
        second.remove();
        assert_eq!(temp.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("file");
        std::fs::write(&file, "precious").unwrap();
        let prepare = || Directory::prepare(TEST, Some(temp.path())).unwrap();
        assert!(prepare().claim("file").unwrap_err().is_exists());
        assert!(prepare().unlink("file").unwrap_err().is_exists());
        assert!(prepare().call("file", PATIENCE).unwrap_err().is_not_found());
        assert_eq!(std::fs::read_to_string(file).unwrap(), "precious");
    }
}
