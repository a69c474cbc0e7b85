//! Making a region.

use super::access::Access;
use super::agent::{Agent, Offer};
use super::attach::SEALS;
use super::attachment::{Attachment, Files};
use super::claim::Name;
use super::directory::Directory;
use super::header::CONTROL_LEN;
use super::name::check_name;
use super::region::Region;
use super::{CREATE, window};
use crate::error::{Context, Error, Result};
use crate::sys::memfd;
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid};
use rustix::rand::{GetRandomFlags, getrandom};
use std::path::{Path, PathBuf};

/// What a new region is to be; made by [`Region::builder`].
#[derive(Debug, Clone)]
#[must_use = "a region is made by create()"]
pub struct Builder {
    name: String,
    size: usize,
    mode: u32,
    base: Option<usize>,
    directory: Option<PathBuf>,
}

impl Builder {
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.into(), size: 0, mode: 0o600, base: None, directory: None }
    }

    /// Size in bytes: a multiple of 4096, up to 32 TiB. It is address space; memory is
    /// taken page by page as it is touched. There is no default.
    pub fn size(mut self, bytes: usize) -> Self {
        self.size = bytes;
        self
    }

    /// Who may attach, as permission bits of a file, taken as they are (no umask). A class
    /// needs both bits, read and write, and the owner must have them. Default 0o600: this
    /// user, and root. Others can only reach the name in a [`directory`](Self::directory) that
    /// they may search: the default one is this user's alone.
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
    /// 0700 if it is not there.
    pub fn directory(mut self, path: impl AsRef<Path>) -> Self {
        self.directory = Some(path.as_ref().into());
        self
    }

    /// Makes the region, maps it here, and serves it under its name until the returned
    /// [`Region`] is dropped.
    ///
    /// # Errors
    ///
    /// - EINVAL: not a name; a size of 0, of no whole pages or over 32 TiB; a mode with
    ///   other bits than read and write, or without the owner's; a base that is no multiple
    ///   of 1 GiB or too high.
    /// - EEXIST: a live process serves this name; the base asked for is not free here.
    /// - EPERM: the runtime directory belongs to somebody else or is open to others.
    /// - ETIMEDOUT: another process keeps the lock of the directory.
    /// - ENOMEM, EMFILE, ENFILE, EAGAIN, ENAMETOOLONG: a limit of the system.
    pub fn create(self) -> Result<Region> {
        check_name(CREATE, &self.name)?;
        self.check()?;
        let claim = Directory::prepare(CREATE, self.directory.as_deref())?.claim(&self.name)?;

        let mut id = [0; 16];
        getrandom(&mut id, GetRandomFlags::empty()).op(CREATE)?;
        let control = file(&format!("mshare-control:{}", self.name), CONTROL_LEN as u64)?;
        let data = file(&format!("mshare:{}", self.name), self.size as u64)?;
        let files = Files { control: control.as_fd(), data: data.as_fd() };
        let size = self.size as u64;
        let attachment = match self.base {
            Some(base) => Attachment::create(files, id, size, core::iter::once(base as u64))?,
            None => Attachment::create(files, id, size, window::bases(&id, size))?,
        };

        let access = Access { mode: self.mode, uid: geteuid().as_raw(), gid: getegid().as_raw() };
        let listener = claim.listen(self.mode)?;
        let shape = *attachment.shape();
        let agent = Agent::start(listener, Offer { shape, control, data, access })?;
        let server = Server { name: claim.publish()?, agent };
        Ok(Region::new(self.name, attachment, Some(server)))
    }

    fn check(&self) -> Result<()> {
        let base = self.base.map_or(window::ALIGN, |base| base as u64);
        window::check(CREATE, Errno::INVAL, base, self.size as u64)?;
        // Without its owner's bits, a name could not be told from a stale one.
        if self.mode & !0o066 != 0o600 {
            return Err(Error::with(
                CREATE,
                Errno::INVAL,
                format_args!("mode {:#o} is not 0o600 with read and write bits more", self.mode),
            ));
        }
        Ok(())
    }
}

/// A sparse memory file that keeps its size and its seals.
fn file(name: &str, size: u64) -> Result<OwnedFd> {
    let file = memfd::create(name, size).op(CREATE)?;
    // The last seal keeps participants from adding others, against later ones.
    memfd::seal(&file, SEALS | rustix::fs::SealFlags::SEAL).op(CREATE)?;
    Ok(file)
}

/// What the creator of a region does for others, until this is dropped.
#[derive(Debug)]
pub(super) struct Server {
    name: Name,
    /// Has the listener; ends after the name is removed.
    agent: Agent,
}

impl Server {
    /// Is this the process that serves, and not a forked child of it?
    pub(super) fn is_ours(&self) -> bool {
        self.agent.is_ours()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Not in a forked child: the name is its parent's.
        if self.is_ours() {
            self.name.remove();
        }
    }
}
