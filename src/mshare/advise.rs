//! Advice about a part of a region, for all processes or for one.

use super::ADVISE;
use super::backing::{Backing, Huge, Kind};
use super::change::Change;
use super::collapse;
use super::layout::{Segment, pieces};
use super::object::Advice;
use super::operations::{PATIENCE, complete};
use super::region::Region;
use super::rights::Rights;
use super::serve::{ADVICE, pack};
use super::wire::Ask;
use crate::error::{Context, Error, Result};
use crate::sys::memfd;
use core::ops::Range;
use rustix::io::Errno;

impl Region {
    /// Gives advice about a part of the region; [`Advice`] says for whom each holds.
    ///
    /// # Errors
    ///
    /// EINVAL for no whole pages, outside of the region, or advice that this memory does not
    /// take; EPERM without the right; ENOMEM if nothing lies in a part of it; EOPNOTSUPP where
    /// the kernel has not the advice; ETIMEDOUT.
    pub fn advise(&self, range: Range<usize>, advice: Advice) -> Result<()> {
        let whole = self.range(ADVISE, range)?;
        let kept = match advice {
            Advice::HugePage => Huge::Yes,
            Advice::NoHugePage => Huge::No,
            Advice::Default => Huge::Default,
            other => return self.advise_here(whole, other),
        };
        self.may(ADVISE, Rights::PROTECT)?;
        let flags = pack(crate::sys::map::Access::None, kept) | ADVICE;
        let numbers = [whole.start, whole.end - whole.start, flags, 0, 0];
        let change = Change::Advise(kept);
        let acks = self.alter(ADVISE, whole, &change, Ask::Protect, numbers, PATIENCE)?;
        complete(ADVISE, &acks)
    }

    /// Advice that one process gives for all, or for itself.
    fn advise_here(&self, range: Range<u64>, advice: Advice) -> Result<()> {
        self.attachment.be_born(ADVISE)?;
        let held = self.attachment.held();
        let mut local = held.enter();
        held.follow(ADVISE, &mut local)?;
        let whole = range.clone();
        let parts = pieces(local.layout.as_deref().unwrap_or_default(), range);
        if parts.iter().any(|part| part.backing == Backing::Hole) {
            return Err(Error::because(ADVISE, Errno::NOMEM, "nothing lies in a part of it"));
        }
        let number = match advice {
            Advice::Remove => {
                self.may(ADVISE, Rights::WRITE | Rights::UNMAP)?;
                held.check_heap(ADVISE, &whole)?;
                return held.empty(&parts).op(ADVISE);
            }
            // By fallocate(2), for MADV_POPULATE_WRITE is of 5.14.
            Advice::Populate => {
                drop(local);
                return self.populate(&parts);
            }
            Advice::Collapse => libc::MADV_COLLAPSE,
            Advice::WillNeed => libc::MADV_WILLNEED,
            Advice::DontNeed => libc::MADV_DONTNEED,
            Advice::Cold => libc::MADV_COLD,
            _ => libc::MADV_PAGEOUT,
        };
        // These take seconds, where there are many pages: our thread is to follow meanwhile. On what
        // is unmapped by now they do nothing, and nothing is lost in what is mapped there.
        if matches!(advice, Advice::Collapse | Advice::PageOut) {
            drop(local);
        }
        for part in &parts {
            let (offset, len) = (part.offset as usize, part.len as usize);
            // SAFETY: of shared memory, none of these takes contents away.
            match unsafe { held.data.advise_part(offset, len, number) } {
                Ok(()) => {}
                Err(_) if advice == Advice::Collapse => self.collapse(offset, len)?,
                Err(errno) => return Err(Error::new(ADVISE, errno)),
            }
        }
        Ok(())
    }

    /// One huge page after the other, so that one that cannot be does not keep the rest.
    fn collapse(&self, offset: usize, len: usize) -> Result<()> {
        const HUGE: usize = 2 << 20;
        let (start, end) = (offset.next_multiple_of(HUGE), (offset + len) / HUGE * HUGE);
        for at in (start..end).step_by(HUGE) {
            let data = &self.attachment.held().data;
            // SAFETY: takes nothing away.
            match unsafe { data.advise_part(at, HUGE, libc::MADV_COLLAPSE) } {
                // Nothing there to collapse, somebody holds a page, no huge page free for now.
                Ok(()) | Err(Errno::INVAL | Errno::AGAIN | Errno::BUSY | Errno::NOMEM) => {}
                Err(errno) => return Err(Error::new(ADVISE, errno)),
            }
        }
        if collapse::is_known() {
            return Ok(());
        }
        Err(Error::because(ADVISE, Errno::OPNOTSUPP, "MADV_COLLAPSE needs Linux 6.1"))
    }

    /// Allocates memory of ours; a file of the caller's is read, and stays as long as it is.
    fn populate(&self, parts: &[Segment]) -> Result<()> {
        let held = self.attachment.held();
        for part in parts {
            let object = |id| held.object(id).ok_or(Errno::NOENT).op(ADVISE);
            let done = match part.backing {
                Backing::Hole => Ok(()),
                Backing::Object { id, kind: Kind::File } => {
                    memfd::read_through(&object(id)?.file, part.at, part.len)
                }
                Backing::Memory => {
                    self.may(ADVISE, Rights::WRITE)?;
                    memfd::allocate(held.data_file(), part.at, part.len)
                }
                Backing::Object { id, .. } => {
                    self.may(ADVISE, Rights::WRITE)?;
                    memfd::allocate(&object(id)?.file, part.at, part.len)
                }
            };
            done.op(ADVISE)?;
        }
        Ok(())
    }
}
