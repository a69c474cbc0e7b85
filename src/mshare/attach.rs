//! The opener's side of an attachment. Nothing that the server says is believed before it
//! is checked: not the bytes, not the number of descriptors, not what they are.

use super::attachment::{Attachment, Origin, is_held};
use super::directory::{Directory, PATIENCE};
use super::header::CONTROL_LEN;
use super::held::Files;
use super::kept;
use super::ledger::LEDGER_LEN;
use super::participants::{PARTICIPANTS, Token};
use super::rights::Rights;
use super::wire::{Ask, Memory, REPLY_LEN, Reply, Request};
use crate::error::{Error, Result};
use crate::sys::memfd;
use crate::sys::socket::Connection;
use core::time::Duration;
use rustix::fd::OwnedFd;
use rustix::fs::{FileType, SealFlags, fstat};
use rustix::io::Errno;
use std::time::Instant;

/// Connections that are cut off, one after the other, before we give up. A server that ends
/// in order cuts one off, and its name is gone at the next look; one with too many callers
/// cuts off the oldest.
const ATTEMPTS: u32 = 8;

/// What keeps a size true.
pub(super) const SEALS: SealFlags = SealFlags::GROW.union(SealFlags::SHRINK);

/// What an opener asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish {
    pub(super) wanted: Rights,
    pub(super) needed: Rights,
    pub(super) has_agent: bool,
}

/// Asks the server of `name`, and maps what it grants.
///
/// # Errors
///
/// Those of [`super::Region::open`].
pub(super) fn attach(directory: &Directory, name: &str, wish: Wish) -> Result<Attachment> {
    let mut pause = Duration::from_millis(1);
    let deadline = Instant::now() + PATIENCE;
    for _ in 0..ATTEMPTS {
        let left = deadline.saturating_duration_since(Instant::now());
        let connection = directory.call(name, left)?;
        match ask(&connection, wish) {
            Ok((bytes, fds)) => {
                if let Some(attachment) = accept(&bytes, fds, directory, name, wish)? {
                    return Ok(attachment);
                }
                // Our slot went with an attachment of this process that was just ending.
            }
            Err(Errno::AGAIN) => return Err(directory.timed_out(PATIENCE)),
            Err(Errno::MSGSIZE) => {
                return Err(Error::with(
                    super::OPEN,
                    Errno::BADMSG,
                    format_args!("reply of more than {REPLY_LEN} bytes or 4 descriptors"),
                ));
            }
            // The last one from a send on Linux 5.10.
            Err(Errno::CONNRESET | Errno::PIPE | Errno::CONNREFUSED) => {
                std::thread::sleep(pause);
                pause *= 2;
            }
            Err(errno) => return Err(Error::new(super::OPEN, errno)),
        }
    }
    Err(Error::with(
        super::OPEN,
        Errno::CONNRESET,
        format_args!("the server cut off {ATTEMPTS} connections"),
    ))
}

/// One request, one reply.
fn ask(connection: &Connection, wish: Wish) -> rustix::io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let (wanted, needed) = (wish.wanted.bits().into(), wish.needed.bits().into());
    let numbers = [wanted, needed, std::process::id().into(), wish.has_agent.into(), network()];
    let request = Request { ask: Ask::Attach, id: [0; 16], numbers };
    connection.send(&request.encode(), &[])?;
    let mut buffer = [0; REPLY_LEN];
    let (len, fds) = connection.receive(&mut buffer)?;
    Ok((buffer[..len].to_vec(), fds))
}

/// The network namespace of this process, as a number; 0 if nobody can tell. Participants call
/// each other by names that one namespace has.
pub(super) fn network() -> u64 {
    rustix::fs::stat("/proc/self/ns/net").map_or(0, |stat| stat.st_ino)
}

/// Checks a reply from its first byte to its last seal.
fn accept(
    bytes: &[u8],
    fds: Vec<OwnedFd>,
    directory: &Directory,
    name: &str,
    wish: Wish,
) -> Result<Option<Attachment>> {
    let reply = Reply::decode(super::OPEN, bytes).map_err(|error| {
        let why = match error.raw_os_error() {
            libc::EACCES if wish.needed.contains(Rights::WRITE) => {
                "refused by the process that serves the region, which may let this one read: \
                 Opener::read_only"
            }
            libc::EDQUOT => {
                "as many processes of this user have the region as may: \
                 Builder::processes_per_user"
            }
            _ => return error,
        };
        Error::because(super::OPEN, Errno::from_raw_os_error(error.raw_os_error()), why)
    });
    let Reply { shape, numbers: [rights, slot, life] } = reply?;
    let count = fds.len();
    let Ok([control, ledger, data, bell]) = <[OwnedFd; 4]>::try_from(fds) else {
        return Err(Error::with(
            super::OPEN,
            Errno::BADMSG,
            format_args!("reply with {count} descriptors instead of 4"),
        ));
    };
    let rights = Rights::of_bits(rights);
    let slot = usize::try_from(slot).unwrap_or(usize::MAX);
    if !rights.contains(wish.needed | Rights::READ) || slot >= PARTICIPANTS {
        return Err(Error::with(
            super::OPEN,
            Errno::BADMSG,
            format_args!("reply with the rights {rights} and slot {slot}"),
        ));
    }
    match shape.memory {
        Memory::File => check_plain("control", &control, CONTROL_LEN as u64)?,
        _ => check_file("control", &control, CONTROL_LEN as u64, false)?,
    }
    check_file("ledger", &ledger, LEDGER_LEN as u64, false)?;
    match shape.memory {
        memory @ Memory::File => check_plain("data", &data, kept::data_len(memory, shape.size))?,
        memory => check_file("data", &data, shape.size, memory != Memory::Ordinary)?,
    }
    // A bell that blocks would hold whoever rings it.
    rustix::io::ioctl_fionbio(&bell, true).map_err(|errno| Error::new(super::OPEN, errno))?;
    let origin = Origin {
        name: name.into(),
        directory: directory.clone(),
        rights,
        has_agent: wish.has_agent,
    };
    let files = Files::new([control, ledger, data, bell]);
    let opened = Attachment::open(files, origin, shape, Token { slot, life });
    if opened.is_err() && !is_held(&shape.id) {
        // Nobody shall wait for a participant that came to nothing.
        let numbers = [slot as u64, life, 0, 0, 0];
        let request = Request { ask: Ask::Leave, id: shape.id, numbers };
        if let Ok(connection) = directory.call(name, Duration::from_millis(100)) {
            let _ = connection.send(&request.encode(), &[]);
        }
    }
    opened
}

/// Is this a memory file of `size` bytes, now and for good?
fn check_file(what: &'static str, file: &OwnedFd, size: u64, huge: bool) -> Result<()> {
    let found =
        if huge { memfd::sealed_size_huge(file, SEALS) } else { memfd::sealed_size(file, SEALS) };
    match found {
        Ok(found) if found == size => Ok(()),
        Ok(found) => Err(of_size(what, found, size)),
        // EINVAL: a file that has no seals at all.
        Err(Errno::PERM | Errno::INVAL) => Err(Error::with(
            super::OPEN,
            Errno::PERM,
            format_args!("{what} file without the seals {:#x}", SEALS.bits()),
        )),
        Err(errno) => Err(Error::new(super::OPEN, errno)),
    }
}

/// Is this a file of `size` bytes? Whether it stays so is up to its owner.
fn check_plain(what: &'static str, file: &OwnedFd, size: u64) -> Result<()> {
    let stat = fstat(file).map_err(|errno| Error::new(super::OPEN, errno))?;
    let found = stat.st_size.cast_unsigned();
    if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && found == size {
        return Ok(());
    }
    Err(of_size(what, found, size))
}

fn of_size(what: &str, found: u64, size: u64) -> Error {
    Error::with(
        super::OPEN,
        Errno::BADMSG,
        format_args!("{what} file of {found} bytes instead of {size}"),
    )
}
