//! A region that is there for all that come, whoever is first.

use super::OPEN_OR_CREATE;
use super::builder::Builder;
use super::opener::Opener;
use super::region::Region;
use crate::error::{Error, Result};
use core::time::Duration;
use rustix::io::Errno;

/// How often a name that is there and opens not is looked at, at doubling intervals.
const ATTEMPTS: u32 = 8;

impl Builder {
    /// Opens the region of this name with all rights that this process may have, or makes it if
    /// there is none. Of many processes that call this at once one makes it, and all have it; roots
    /// say which of them fills it: [`Region::create_root`].
    ///
    /// One that is there is taken if it has this size, and this address if one was
    /// [asked for](Self::base), in memory of this kind; what else the builder says is for the one
    /// that makes it.
    ///
    /// # Errors
    ///
    /// Those of [`create`](Self::create) and of [`Region::open`], but not that there is such a
    /// region, or none; EINVAL for one of another size, address or kind of memory.
    pub fn open_or_create(self) -> Result<Region> {
        self.check()?;
        let mut pause = Duration::from_millis(1);
        let mut attempts = 0;
        loop {
            // Whoever makes one waits for an heir.
            match self.opener().open_within(Duration::ZERO) {
                Ok(region) => return self.fits(&region).map(|()| region),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
            attempts += 1;
            match self.claim() {
                Ok(claim) => return self.make(claim),
                // Another was faster; or it is no region, and stays so.
                Err(error) if error.is_exists() && attempts < ATTEMPTS => {
                    std::thread::sleep(pause);
                    pause *= 2;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn opener(&self) -> Opener {
        let opener = Region::opener(&self.name);
        match &self.directory {
            Some(directory) => opener.directory(directory),
            None => opener,
        }
    }

    /// Is this region one that this builder could have made?
    fn fits(&self, region: &Region) -> Result<()> {
        let shape = region.attachment().shape();
        let base = self.base.map_or(shape.base, |base| base as u64);
        if (shape.size, shape.base, shape.memory) == (self.size as u64, base, self.kind()) {
            return Ok(());
        }
        let why = format_args!(
            "region \"{}\" has {} bytes at {:#x} in {:?}, not {} at {base:#x} in {:?}",
            self.name,
            shape.size,
            shape.base,
            shape.memory,
            self.size,
            self.kind()
        );
        Err(Error::with(OPEN_OR_CREATE, Errno::INVAL, why))
    }
}
