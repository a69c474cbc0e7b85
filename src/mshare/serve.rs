//! What whoever serves answers. Nothing that a caller says is believed: who it is, the kernel
//! says; what it may do, the mode of the region and its slot.

use super::backing::{Huge, Kind};
use super::bring::{Bringer, Brought};
use super::change::Change;
use super::charge::Charge;
use super::desk::Desk;
use super::held::{Object, join};
use super::participants::Token;
use super::places::has_room;
use super::rights::Rights;
use super::wire::{Ask, REQUEST_LEN, Reply, Request};
use crate::sync::Ordering;
use crate::sys::map::Access;
use crate::sys::memfd;
use crate::sys::socket::{self, Connection, Peer};
use core::ops::Range;
use core::time::Duration;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{FileType, fstat, fstatfs};
use rustix::io::Errno;
use std::sync::Arc;
use std::time::Instant;

type Answer = Result<([u64; 3], Vec<Arc<OwnedFd>>), Errno>;

/// How long a change for somebody else may hold the server; the caller asks again.
const PATIENCE: Duration = Duration::from_millis(100);

impl Desk {
    /// Hears what the caller says, and answers. Who is gone meanwhile gets no answer.
    pub(super) fn answer(&mut self, caller: &Connection) {
        let mut buffer = [0; REQUEST_LEN];
        let verdict = match caller.receive(&mut buffer) {
            Ok((len, files)) => Request::decode(&buffer[..len]).map(|request| (request, files)),
            Err(Errno::MSGSIZE) => Err(Errno::BADMSG),
            Err(_) => return,
        };
        let verdict = verdict.and_then(|(request, files)| {
            let peer = socket::peer(caller)?;
            self.judge(&peer, &request, files)
        });
        match verdict {
            Ok((numbers, files)) => {
                let reply = Reply { shape: self.held.shape, numbers };
                let files: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
                let _ = caller.send(&Reply::encode(Ok(&reply)), &files);
            }
            Err(errno) => {
                let _ = caller.send(&Reply::encode(Err(errno)), &[]);
            }
        }
    }

    fn judge(&mut self, peer: &Peer, request: &Request, files: Vec<OwnedFd>) -> Answer {
        let held = &self.held;
        let allowed = held.ledger().access().rights(peer);
        let numbers = request.numbers;
        match request.ask {
            Ask::Attach => return self.attach(peer, allowed, numbers),
            Ask::Tell => {
                let count = held.ledger().participants().present().len() as u64;
                let access = held.ledger().access();
                let told = [count, access.mode.into(), access.uid.into()];
                return if allowed == Rights::NONE {
                    Err(Errno::ACCESS)
                } else {
                    Ok((told, vec![]))
                };
            }
            _ => {}
        }
        if request.id != held.shape.id {
            return Err(Errno::NOENT);
        }
        // Only who is there may say more, and only for itself.
        let participants = held.ledger().participants();
        let token = participants.of_process(peer.pid).ok_or(Errno::ACCESS)?;
        let granted = participants.rights(token);
        let rights = Rights::of_bits(granted.into()).intersection(allowed);
        // A process may have two slots for a moment, so it says which.
        let claimed = || {
            let slot = usize::try_from(numbers[0]).unwrap_or(usize::MAX);
            let claimed = Token { slot, life: numbers[1] };
            let its = claimed.pid() == peer.pid && participants.is_present(claimed);
            if its { Ok(claimed) } else { Err(Errno::PERM) }
        };
        let range = || -> Result<Range<u64>, Errno> {
            let end = numbers[0].checked_add(numbers[1]).ok_or(Errno::INVAL)?;
            Ok(numbers[0]..end)
        };
        match request.ask {
            Ask::Attach | Ask::Tell => Err(Errno::INVAL),
            Ask::Fetch => {
                let object = held.object(numbers[0]).ok_or(Errno::NOENT)?;
                let file = if rights.contains(Rights::WRITE) {
                    object.file
                } else {
                    Arc::new(memfd::reopen_for_reading(&object.file)?)
                };
                Ok(([object.kind.code(), 0, 0], vec![file]))
            }
            Ask::Offer => {
                let kind = Kind::of_code(numbers[1]).ok_or(Errno::INVAL)?;
                let [file] = <[OwnedFd; 1]>::try_from(files).map_err(|_| Errno::INVAL)?;
                if rights != Rights::ALL {
                    return Err(Errno::PERM);
                }
                held.keep(Object { id: numbers[0], kind, file: Arc::new(file) });
                self.look_again();
                Ok(([0; 3], vec![]))
            }
            Ask::Follow => {
                let token = claimed()?;
                let errno = u16::try_from(numbers[3]).map_err(|_| Errno::INVAL)?;
                // Nobody follows, or fails to, what is not there yet.
                let last = held.ledger().log().generation();
                let generation = numbers[2].min(last);
                participants.set_trouble(token, numbers[4].min(last), errno);
                participants.follow(token, generation);
                held.wake(held.ledger().acks());
                Ok(([0; 3], vec![]))
            }
            Ask::Listen => {
                let token = claimed()?;
                participants.set_agent(token, u32::try_from(numbers[2]).map_err(|_| Errno::INVAL)?);
                let line = self.lines.open(token)?;
                Ok(([0; 3], vec![Arc::new(line)]))
            }
            Ask::Feel => {
                // The others have a line, which is cut.
                if rights != Rights::ALL {
                    return Err(Errno::PERM);
                }
                Ok(([0; 3], vec![self.pulse.end()?]))
            }
            Ask::Leave => {
                participants.leave(claimed()?);
                held.wake(held.ledger().acks());
                self.look_again();
                Ok(([0; 3], vec![]))
            }
            Ask::Map => {
                let (access, huge) = unpack(numbers[4])?;
                let brought = new_object(held, numbers[2], files)?;
                let change = Change::Map {
                    object: brought.as_ref().map(|brought| brought.object.clone()),
                    at: numbers[3],
                    access,
                    huge,
                    replace: numbers[4] & REPLACE != 0,
                };
                let needed = if numbers[4] & REPLACE == 0 {
                    Rights::MAP
                } else {
                    Rights::MAP | Rights::UNMAP
                };
                let done = self.for_another(peer.uid, rights, needed, range()?, &change)?;
                if let Some(brought) = brought {
                    brought.mapped();
                }
                Ok(done)
            }
            Ask::Unmap => {
                self.for_another(peer.uid, rights, Rights::UNMAP, range()?, &Change::Unmap)
            }
            Ask::Protect => {
                let (access, huge) = unpack(numbers[2])?;
                let change = if numbers[2] & ADVICE == 0 {
                    Change::Protect(access)
                } else {
                    Change::Advise(huge)
                };
                self.for_another(peer.uid, rights, Rights::PROTECT, range()?, &change)
            }
        }
    }

    /// Gives the caller a slot, and descriptors that can do no more than it may.
    fn attach(&mut self, peer: &Peer, allowed: Rights, numbers: [u64; 5]) -> Answer {
        let [wanted, needed, pid, agent, network] = numbers;
        let (wanted, needed) = (Rights::of_bits(wanted), Rights::of_bits(needed));
        if allowed == Rights::NONE || !allowed.contains(needed) {
            return Err(Errno::ACCESS);
        }
        // Of another pid namespace: nobody could see its end.
        if pid != u64::from(peer.pid) {
            return Err(Errno::XDEV);
        }
        // Of another network namespace: nobody could be asked for an object.
        let own = super::attach::network();
        if network != own && network != 0 && own != 0 {
            return Err(Errno::XDEV);
        }
        let held = &self.held;
        let ledger = held.ledger();
        if ledger.ended.load(Ordering::Relaxed) != 0 {
            return Err(Errno::NOENT);
        }
        let rights = allowed.intersection(wanted | needed | Rights::READ);
        let bits = rights.bits() | if agent == 0 { 0 } else { super::held::HAS_AGENT };
        // Of a process that asked before, and perhaps did not hear the answer.
        let known =
            ledger.participants().of_process(peer.pid).filter(|&token| !held.is_dead(token));
        let token = match known {
            Some(token) => {
                // What it has in hand already it keeps.
                ledger.participants().add_rights(token, bits);
                token
            }
            // Who has all rights says itself when it began.
            None if rights == Rights::ALL => {
                ledger.participants().join(peer.pid, 0, bits).ok_or(Errno::USERS)?
            }
            None => {
                if ![0, ledger.access().uid].contains(&peer.uid) {
                    let most = ledger.per_user.load(Ordering::Relaxed) as usize;
                    has_room(&ledger.participants(), peer.uid, most)?;
                }
                let token = join(super::OPEN, ledger, peer.pid, bits)
                    .map_err(|error| Errno::from_raw_os_error(error.raw_os_error()))?;
                ledger.participants().set_uid(token, peer.uid);
                token
            }
        };
        let files = &held.files;
        let share = |file: &Arc<OwnedFd>, writes: bool| -> Result<Arc<OwnedFd>, Errno> {
            if writes {
                return Ok(file.clone());
            }
            Ok(Arc::new(memfd::reopen_for_reading(file)?))
        };
        let writes = rights.contains(Rights::WRITE);
        let shared = vec![
            share(&files.control, writes)?,
            share(&files.ledger, rights == Rights::ALL)?,
            share(&files.data, writes)?,
            match rights == Rights::ALL {
                true => files.bell.clone(),
                false => Arc::new(self.lines.open(token)?),
            },
        ];
        self.look_again();
        Ok(([rights.bits().into(), token.slot as u64, token.life], shared))
    }

    /// A change in the name of a user's participant that may not write the log.
    fn for_another(
        &self,
        user: u32,
        rights: Rights,
        needed: Rights,
        range: Range<u64>,
        change: &Change,
    ) -> Answer {
        if !rights.contains(needed) {
            return Err(Errno::PERM);
        }
        let held = &self.held;
        super::span::check(super::MAP, &range, held.shape.size)
            .map_err(|error| Errno::from_raw_os_error(error.raw_os_error()))?;
        let quota = held.ledger().quota.load(Ordering::Relaxed) as usize;
        let charge = Some(Charge { user, quota });
        // Who is inside waits for us, perhaps; the caller asks again.
        if held.try_enter().is_none() {
            return Err(Errno::AGAIN);
        }
        let deadline = Instant::now() + PATIENCE;
        let generation = held
            .change(super::MAP, range, change, charge, deadline)
            .map_err(|error| Errno::from_raw_os_error(error.raw_os_error()))?;
        Ok(([generation, 0, 0], vec![]))
    }
}

/// Set in the flags of a mapping that may replace another.
pub(super) const REPLACE: u64 = 1 << 8;
/// Set in the flags of a change of advice.
pub(super) const ADVICE: u64 = 1 << 9;

/// Protection and advice as one number.
pub(super) fn pack(access: Access, huge: Huge) -> u64 {
    let access = match access {
        Access::None => 0,
        Access::Read => 1,
        Access::Write => 3,
    };
    let huge = match huge {
        Huge::Default => 0,
        Huge::Yes => 1,
        Huge::No => 2,
    };
    access | huge << 2
}

/// The reverse.
///
/// # Errors
///
/// EINVAL for bits that mean nothing.
fn unpack(flags: u64) -> Result<(Access, Huge), Errno> {
    let access = match flags & 3 {
        0 => Access::None,
        1 => Access::Read,
        3 => Access::Write,
        _ => return Err(Errno::INVAL),
    };
    let huge = match flags >> 2 & 3 {
        0 => Huge::Default,
        1 => Huge::Yes,
        2 => Huge::No,
        _ => return Err(Errno::INVAL),
    };
    if flags & !(0xf | REPLACE | ADVICE) == 0 { Ok((access, huge)) } else { Err(Errno::INVAL) }
}

/// The object that another participant brings, if its memory is not to be the region's.
fn new_object(
    held: &super::held::Held,
    kind: u64,
    files: Vec<OwnedFd>,
) -> Result<Option<Brought<'_>>, Errno> {
    let mut files = files.into_iter();
    match (kind, files.next(), files.next()) {
        (0, None, None) => Ok(None),
        (kind, Some(file), None) => {
            let kind =
                Kind::of_code(kind).filter(|&kind| is_of(&file, kind)).ok_or(Errno::INVAL)?;
            let own = held.ledger().participants().of_process(std::process::id());
            Ok(Some(held.bring(own.ok_or(Errno::AGAIN)?, Bringer::Agent, kind, file)))
        }
        _ => Err(Errno::INVAL),
    }
}

/// Is this a file of that kind? Others map it, cut it and take its pages away, with calls that
/// another file may not take, or that it may hold up.
fn is_of(file: &OwnedFd, kind: Kind) -> bool {
    const HUGETLBFS: u64 = 0x9584_58f6;
    let (Ok(stat), Ok(system)) = (fstat(file), fstatfs(file)) else { return false };
    let in_huge_pages = system.f_type as u64 & 0xffff_ffff == HUGETLBFS;
    let grain_is = |grain: u64| system.f_bsize as u64 == grain;
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        && match kind {
            Kind::File => !in_huge_pages,
            // Only memory files have seals; and whoever has the file could add one that keeps its
            // pages from being taken away.
            Kind::Revocable => !in_huge_pages && memfd::keep_revocable(file).is_ok(),
            Kind::Huge2M | Kind::Huge1G => {
                in_huge_pages && grain_is(kind.grain()) && memfd::keep_revocable(file).is_ok()
            }
        }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn flags(flags: u64) {
            if let Ok((access, huge)) = unpack(flags) {
                prop_assert_eq!(pack(access, huge), flags & 0xf);
            }
        }
    }
}
