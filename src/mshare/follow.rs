//! How a process follows the log: what the layout says is mapped here.

use super::backing::{Backing, Huge, Kind};
use super::held::{Held, Local, Object};
use super::layout::{Difference, Segment, differences, pieces, replace};
use super::participants::Token;
use super::wire::Ask;
use crate::error::{Error, Result};
use crate::sync::Ordering;
use crate::sys::map::Access;
use crate::sys::memfd;
use core::time::Duration;
use rustix::fd::AsFd;
use rustix::io::Errno;
use std::sync::Arc;
use std::time::Instant;

/// How long an object may be nowhere to be had, while a server takes over.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// One attempt to follow.
#[derive(Debug, Clone, Copy)]
pub(super) struct Round {
    /// What is followed.
    pub(super) generation: u64,
    /// Until when objects are looked for.
    pub(super) end: Instant,
}

/// A part that is not as the log says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gap {
    pub(super) errno: Errno,
    /// Whether nothing lies there; else what lay there before.
    is_hole: bool,
}

impl Held {
    /// Maps here what the log says, and tells the others; answers the generation.
    ///
    /// # Errors
    ///
    /// EBADMSG if the log says what no log says, ENOMEM at the limit of mappings, ENOENT for an
    /// object that nobody has any more. What cannot be mapped is a hole here, if that can be
    /// mapped; else it stays as it was.
    pub(super) fn follow(&self, operation: &'static str, local: &mut Local) -> Result<u64> {
        self.follow_within(operation, local, PATIENCE, true)
    }

    /// The same with another patience for objects that are nowhere to be had, and perhaps without a
    /// word to the others if one is not: for the agent, which may have to serve them meanwhile.
    pub(super) fn follow_within(
        &self,
        operation: &'static str,
        local: &mut Local,
        patience: Duration,
        gives_up: bool,
    ) -> Result<u64> {
        let token = self.token(operation, local)?;
        let end = Instant::now() + patience;
        loop {
            let (generation, layout) = self.ledger().layout(operation, self.shape.size)?;
            if local.applied != generation || local.layout.as_ref() != Some(&layout) {
                if let Err(Gap { errno, is_hole }) =
                    self.lay_out(local, &layout, Round { generation, end })
                {
                    // Perhaps an object that another has unmapped meanwhile.
                    if self.ledger().log().generation() != generation && Instant::now() < end {
                        continue;
                    }
                    if gives_up || errno != Errno::NOENT {
                        self.report(token, local.applied, generation, errno);
                    }
                    let why = if is_hole {
                        "a part of the region cannot be mapped here, and is a hole"
                    } else {
                        "a part of the region cannot be changed here, and is as it was"
                    };
                    return Err(Error::because(operation, errno, why));
                }
                local.applied = generation;
                self.forget_objects();
            }
            local.lost = None;
            self.report_following(token, generation);
            return Ok(generation);
        }
    }

    /// Maps what this layout says where it differs from what is here; no longer than it is of the
    /// last generation.
    pub(super) fn lay_out(
        &self,
        local: &mut Local,
        layout: &[Segment],
        round: Round,
    ) -> core::result::Result<(), Gap> {
        let steps = match &local.layout {
            Some(here) => differences(here, layout, self.shape.size),
            None => {
                let all = pieces(layout, 0..self.shape.size);
                all.into_iter().map(Difference::Lay).collect()
            }
        };
        let mut trouble = Ok(());
        let mut actual = layout.to_vec();
        for step in steps {
            if let Err(errno) = self.step(&step, round) {
                let (Difference::Lay(part) | Difference::Protect(part)) = step;
                let hole = Segment::hole(part.range(), 0);
                // At the limit of mappings there cannot be a hole either.
                let is_hole = self.step(&Difference::Lay(hole), round).is_ok();
                actual = replace(&actual, &part.range(), &[hole]);
                let were_holes = trouble.map_or_else(|gap: Gap| gap.is_hole, |()| true);
                trouble = Err(Gap { errno, is_hole: is_hole && were_holes });
            }
        }
        local.layout = Some(actual);
        trouble
    }

    fn step(&self, step: &Difference, round: Round) -> rustix::io::Result<()> {
        let (Difference::Lay(part) | Difference::Protect(part)) = *step;
        let (offset, len) = (part.offset as usize, part.len as usize);
        let access = self.cap(part.access);
        if matches!(step, Difference::Protect(_)) {
            // SAFETY: the log is the region's; who relies on an access has read its contract.
            return unsafe { self.data.protect_part(offset, len, access) };
        }
        let found;
        let file = match part.backing {
            Backing::Memory => Some((self.data_file(), part.at)),
            Backing::Hole => None,
            Backing::Object { id, kind } => {
                found = self.find(id, kind, round)?;
                Some((found.file.as_fd(), part.at))
            }
        };
        // SAFETY: as above.
        unsafe { self.data.lay(offset, len, access, file) }?;
        let advice = match part.huge {
            Huge::Default => return Ok(()),
            Huge::Yes => libc::MADV_HUGEPAGE,
            Huge::No => libc::MADV_NOHUGEPAGE,
        };
        // A kernel without huge pages is as good as it gets.
        // SAFETY: takes nothing away.
        let _ = unsafe { self.data.advise_part(offset, len, advice) };
        Ok(())
    }

    /// What the rights of this process leave of an access.
    fn cap(&self, access: Access) -> Access {
        let writes = self.rights.contains(super::rights::Rights::WRITE);
        if access == Access::Write && !writes { Access::Read } else { access }
    }

    /// The descriptor of an object, from the server if it is not here. ENOENT at once if the layout
    /// is another by now: the object may lie nowhere any more.
    fn find(&self, id: u64, kind: Kind, round: Round) -> rustix::io::Result<Object> {
        if let Some(object) = self.object(id) {
            return Ok(object);
        }
        // Of a server that runs, the agent awaits the answer too.
        let soon = Instant::now() + PATIENCE;
        let (reply, mut files) = loop {
            // The others offer the server what it has not, and it may be us by now.
            if self.is_serving() {
                return self.object(id).ok_or(Errno::NOENT);
            }
            match self.ask(super::SYNC, Ask::Fetch, [id, 0, 0, 0, 0], None, round.end.max(soon)) {
                Ok(answer) => break answer,
                Err(error)
                    if Instant::now() > round.end
                        || self.ledger().log().generation() != round.generation =>
                {
                    // Also from a server that has just ended, or does not answer.
                    return Err(match Errno::from_raw_os_error(error.raw_os_error()) {
                        Errno::CONNRESET | Errno::PIPE | Errno::TIMEDOUT => Errno::NOENT,
                        errno => errno,
                    });
                }
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        match (files.pop(), files.is_empty()) {
            (Some(file), true) if Kind::of_code(reply.numbers[0]) == Some(kind) => {
                let object = Object { id, kind, file: Arc::new(file) };
                self.keep(object.clone());
                Ok(object)
            }
            _ => Err(Errno::BADMSG),
        }
    }

    /// Tells that this process follows up to `generation`.
    pub(super) fn report_following(&self, token: Token, generation: u64) {
        if self.is_full() {
            self.ledger().participants().set_trouble(token, generation, 0);
            self.ledger().participants().follow(token, generation);
            self.wake(self.ledger().acks());
        } else if self.ledger().participants().followed(token) < generation {
            self.tell(token, generation, generation, None);
        }
    }

    /// Tells why it does not follow further than up to `applied`: `generation` cannot be mapped.
    fn report(&self, token: Token, applied: u64, generation: u64, errno: Errno) {
        if self.is_full() {
            let participants = self.ledger().participants();
            participants.set_trouble(token, generation, errno.raw_os_error() as u16);
            participants.follow(token, applied);
            self.wake(self.ledger().acks());
        } else {
            self.tell(token, applied, generation, Some(errno));
        }
    }

    /// The same through the server, for who may not write the ledger.
    fn tell(&self, token: Token, applied: u64, generation: u64, errno: Option<Errno>) {
        let errno = errno.map_or(0, |errno| errno.raw_os_error() as u64);
        let numbers = [token.slot as u64, token.life, applied, errno, generation];
        let deadline = Instant::now() + PATIENCE;
        let _ = self.ask_patiently(super::SYNC, Ask::Follow, numbers, None, deadline);
    }

    /// Offers every object that is here to whoever serves now, until it does not answer or the caller
    /// `is_over`. Whether it has heard of all.
    pub(super) fn offer_all(&self, deadline: Instant, is_over: impl Fn() -> bool) -> bool {
        let objects = self.objects.enter(Vec::new).clone();
        objects.iter().filter(|_| self.is_full()).all(|object| {
            let numbers = [object.id, object.kind.code(), 0, 0, 0];
            let file = Some(object.file.as_fd());
            if is_over() {
                return false;
            }
            match self.ask(super::SYNC, Ask::Offer, numbers, file, deadline) {
                Ok(_) => true,
                // What it does not want now, it will not want later.
                Err(error) => {
                    [libc::EPERM, libc::EACCES, libc::EINVAL, libc::EBADMSG, libc::EPROTO]
                        .contains(&error.raw_os_error())
                }
            }
        })
    }

    /// Offers one object to whoever serves, so that the others can fetch it.
    pub(super) fn offer(&self, object: &Object, deadline: Instant) -> Result<()> {
        let numbers = [object.id, object.kind.code(), 0, 0, 0];
        let file = Some(object.file.as_fd());
        self.ask_patiently(super::MAP, Ask::Offer, numbers, file, deadline).map(drop)
    }

    /// Takes the pages of these parts away from everybody: of memory and of holes what the
    /// region has there, of our objects what they have. A part that cannot be emptied does not keep
    /// the rest.
    ///
    /// # Errors
    ///
    /// The first of those of [`memfd::clear`].
    pub(super) fn empty(&self, parts: &[Segment]) -> rustix::io::Result<()> {
        let mut all = Ok(());
        for part in parts {
            let done = match part.backing {
                Backing::Memory | Backing::Hole => {
                    memfd::clear(self.data_file(), part.offset, part.len)
                }
                Backing::Object { id, kind } if kind.is_memory() => match self.object(id) {
                    Some(object) => memfd::clear(&object.file, part.at, part.len),
                    None => Ok(()),
                },
                Backing::Object { .. } => Ok(()),
            };
            all = all.and(done);
        }
        all
    }

    /// What an operation that was cut off may have left: empties the holes that `layout` does
    /// not vouch for, and what no part of it names of our objects.
    ///
    /// What cannot be emptied is left, and keeps nobody from changing the rest: nothing vouches for
    /// such a hole, so its memory is not mapped again. Whether the holes are empty.
    pub(super) fn tidy(&self, layout: &[Segment]) -> bool {
        let emptied = self.ledger().emptied.load(Ordering::Relaxed);
        let fresh = |part: &&Segment| part.backing == Backing::Hole && part.since > emptied;
        let holes: Vec<_> = layout.iter().filter(fresh).copied().collect();
        if holes.is_empty() {
            return true;
        }
        let are_empty = self.empty(&holes).is_ok();
        let objects = self.objects.enter(Vec::new).clone();
        for object in objects.iter().filter(|object| object.kind.is_memory()) {
            let mut named: Vec<_> = layout
                .iter()
                .filter(
                    |part| matches!(part.backing, Backing::Object { id, .. } if id == object.id),
                )
                .map(|part| part.at..part.at + part.len)
                .collect();
            // One that lies nowhere is on its way in.
            if named.is_empty() {
                continue;
            }
            named.sort_by_key(|range| range.start);
            let Ok(stat) = rustix::fs::fstat(&object.file) else { continue };
            let size = stat.st_size.cast_unsigned();
            let mut next = 0;
            for range in named.into_iter().chain(core::iter::once(size..size)) {
                if range.start > next {
                    let _ = memfd::clear(&object.file, next, range.start - next);
                }
                next = next.max(range.end);
            }
        }
        are_empty
    }
}
