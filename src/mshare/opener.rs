//! Opening a region otherwise than with everything.

use super::attach::{Wish, attach};
use super::directory::{Directory, GRACE};
use super::name::check_name;
use super::region::Region;
use super::rights::Rights;
use crate::error::Result;
use core::time::Duration;
use std::path::{Path, PathBuf};

/// How a region is to be opened; made by [`Region::opener`].
#[derive(Debug, Clone)]
#[must_use = "a region is opened by open()"]
pub struct Opener {
    name: String,
    directory: Option<PathBuf>,
    rights: Option<Rights>,
    has_agent: bool,
}

impl Opener {
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.into(), directory: None, rights: None, has_agent: true }
    }

    /// In this directory instead of the user's runtime directory; see
    /// [`Builder::directory`](super::Builder::directory). It may belong to another user, who is
    /// then trusted to serve.
    pub fn directory(mut self, path: impl AsRef<Path>) -> Self {
        self.directory = Some(path.as_ref().into());
        self
    }

    /// Exactly these rights, and [`Rights::READ`], instead of reading and writing and all that
    /// we may have besides.
    pub fn rights(mut self, rights: Rights) -> Self {
        self.rights = Some(rights);
        self
    }

    /// For reading alone: the kernel lets this process write nothing. If it has the region already
    /// with more rights, the new handle has those too: there is one mapping.
    pub fn read_only(self) -> Self {
        self.rights(Rights::READ)
    }

    /// Whether a thread of this process is to follow the changes of others, which is the
    /// default. Without it, [`Region::sync`] has to be called, others wait for it, and this
    /// process does not take over when the one that serves ends. All handles of a process have one
    /// thread, if one of them was to have it.
    pub fn agent(mut self, agent: bool) -> Self {
        self.has_agent = agent;
        self
    }

    /// Attaches.
    ///
    /// # Errors
    ///
    /// Those of [`Region::open`], EUSERS and EXDEV among them; EBUSY if this process has the region
    /// with fewer rights.
    pub fn open(self) -> Result<Region> {
        self.open_within(GRACE)
    }

    /// The same with another time for somebody who takes over.
    pub(super) fn open_within(self, grace: Duration) -> Result<Region> {
        check_name(super::OPEN, &self.name)?;
        let found = Directory::find(super::OPEN, self.directory.as_deref())?;
        let directory = Directory { grace, ..found };
        let (wanted, needed) = match self.rights {
            Some(rights) => (rights, rights),
            None => (Rights::ALL, Rights::READ | Rights::WRITE),
        };
        let wish = Wish { wanted, needed: needed | Rights::READ, has_agent: self.has_agent };
        Ok(Region::new(self.name.clone(), attach(&directory, &self.name, wish)?))
    }
}
