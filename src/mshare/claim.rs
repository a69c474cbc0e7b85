//! Taking a name: the claim under the directory's lock, the name that is published.
//!
//! The protocol is that of [`directory`](super::directory).

use super::directory::{Directory, GLANCE};
use super::directory_lock::Lock;
use super::occupant::{Occupant, remove};
use crate::error::{Context, Error, Result};
use crate::sys::socket::{self, Address};
use core::time::Duration;
use rustix::fd::OwnedFd;
use rustix::fs::{Gid, Mode, Uid, chmod, chown, lstat, rename};
use rustix::io::Errno;
use rustix::process::geteuid;
use std::path::PathBuf;

/// A name that is about to appear.
const NEW: &str = ".new";

/// A name that is free, and stays so while this lives.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) directory: Directory,
    pub(super) path: PathBuf,
    pub(super) _lock: Lock,
}

impl Claim {
    /// Begins to listen with `mode` for the socket file, which is to be `owner`'s, a user and a group;
    /// the name is still not there.
    ///
    /// # Errors
    ///
    /// Those of bind(2), among them EACCES, ENOSPC, ENAMETOOLONG for a path over 107 bytes.
    pub(super) fn listen(&self, mode: u32, owner: [u32; 2]) -> Result<OwnedFd> {
        let operation = self.directory.operation;
        let new = self.new_path();
        // Left by a creator that was killed under the lock.
        remove(&new).op(operation)?;
        let listener = socket::serve(Address::Path(&new)).map_err(|errno| {
            Error::with(operation, errno, format_args!("cannot bind {}", new.display()))
        })?;
        rustix::io::ioctl_fionbio(&listener, true).op(operation)?;
        chmod(&new, Mode::from_raw_mode(mode)).op(operation)?;
        if owner[0] != geteuid().as_raw() {
            // Root serves instead of the owner, who is to reach it still.
            let [uid, gid] = owner;
            chown(&new, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).op(operation)?;
        }
        Ok(listener)
    }

    /// Device and inode of the socket file that [`listen`](Self::listen) made.
    ///
    /// # Errors
    ///
    /// Those of lstat(2).
    pub(super) fn file(&self) -> Result<(u64, u64)> {
        let stat = lstat(self.new_path()).op(self.directory.operation)?;
        Ok((stat.st_dev, stat.st_ino))
    }

    /// Removes what a dead server left under the name.
    pub(super) fn discard(self) {
        let _ = remove(&self.path);
    }

    /// Device and inode of the socket file that has the name now.
    ///
    /// # Errors
    ///
    /// Those of lstat(2).
    pub(super) fn occupied(&self) -> Result<(u64, u64)> {
        let stat = lstat(&self.path).op(self.directory.operation)?;
        Ok((stat.st_dev, stat.st_ino))
    }

    /// Lets the name appear.
    ///
    /// # Errors
    ///
    /// Those of rename(2).
    pub(super) fn publish(self) -> Result<Name> {
        let operation = self.directory.operation;
        let stat = lstat(self.new_path()).op(operation)?;
        rename(self.new_path(), &self.path).op(operation)?;
        let (directory, path) = (self.directory.clone(), self.path.clone());
        Ok(Name { directory, path, file: (stat.st_dev, stat.st_ino) })
    }

    fn new_path(&self) -> PathBuf {
        self.directory.path.join(NEW)
    }
}

impl Directory {
    /// Takes `name` from a server that is gone, if the socket file is one of these; `None` if
    /// somebody unlinked it, or serves it.
    ///
    /// # Errors
    ///
    /// ETIMEDOUT if another process keeps the lock, EAGAIN if the server has its socket still.
    pub(super) fn inherit(
        self,
        name: &str,
        files: &[(u64, u64)],
        patience: Duration,
    ) -> Result<Option<Claim>> {
        let lock = Lock::take(&self, patience)?;
        let path = self.path.join(name);
        let occupant = self.occupant(&path)?;
        if occupant == Occupant::None {
            return Ok(None);
        }
        let stat = lstat(&path).op(self.operation)?;
        let ours = files.contains(&(stat.st_dev, stat.st_ino));
        if ours && occupant == Occupant::Live {
            let why = "whoever served has not closed its socket yet";
            return Err(Error::because(self.operation, Errno::AGAIN, why));
        }
        Ok(ours.then_some(Claim { directory: self, path, _lock: lock }))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // There only if something failed before the name was published.
        let _ = remove(&self.new_path());
    }
}

/// A name that this process serves.
#[derive(Debug)]
pub(super) struct Name {
    directory: Directory,
    path: PathBuf,
    /// Device and inode of the socket file. The inode cannot be reused while its listener
    /// is open.
    file: (u64, u64),
}

impl Name {
    /// Removes the name, unless somebody unlinked it, and perhaps another creator has it
    /// now. To be called before the listener is closed.
    pub(super) fn remove(&self) {
        // Without the lock, which a stopped process may hold, the name is left; it is stale soon,
        // and the next creator's.
        if let Ok(_lock) = Lock::take(&self.directory, GLANCE)
            && lstat(&self.path).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == self.file)
        {
            let _ = remove(&self.path);
            // Left by one that was killed when it was about to take over.
            let _ = remove(&self.directory.path.join(NEW));
        }
    }
}
