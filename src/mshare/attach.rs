//! The opener's side of an attachment. Nothing that the server says is believed before it
//! is checked: not the bytes, not the number of descriptors, not what they are.

use super::attachment::{Attachment, Files};
use super::directory::{Directory, PATIENCE};
use super::header::CONTROL_LEN;
use super::wire::{REPLY_LEN, decode_reply, encode_request};
use crate::error::{Error, Result};
use crate::sys::memfd;
use crate::sys::socket::Connection;
use core::time::Duration;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::SealFlags;
use rustix::io::Errno;
use std::time::Instant;

/// Connections that are cut off, one after the other, before we give up. A server that ends
/// in order cuts one off, and its name is gone at the next look; one with too many callers
/// cuts off the oldest.
const ATTEMPTS: u32 = 8;

/// What keeps a size true.
pub(super) const SEALS: SealFlags = SealFlags::GROW.union(SealFlags::SHRINK);

/// Asks the server of `name`, and maps what it grants.
///
/// # Errors
///
/// Those of [`super::Region::open`].
pub(super) fn attach(directory: &Directory, name: &str) -> Result<Attachment> {
    let mut pause = Duration::from_millis(1);
    let deadline = Instant::now() + PATIENCE;
    for _ in 0..ATTEMPTS {
        let left = deadline.saturating_duration_since(Instant::now());
        let connection = directory.call(name, left)?;
        match ask(&connection) {
            Ok((bytes, fds)) => return accept(&bytes, &fds),
            Err(Errno::AGAIN) => return Err(directory.timed_out(PATIENCE)),
            Err(Errno::MSGSIZE) => {
                return Err(Error::with(
                    super::OPEN,
                    Errno::BADMSG,
                    format_args!("reply of more than {REPLY_LEN} bytes or 2 descriptors"),
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
fn ask(connection: &Connection) -> rustix::io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    connection.send(&encode_request(), &[])?;
    let mut buffer = [0; REPLY_LEN];
    let (len, fds) = connection.receive(&mut buffer)?;
    Ok((buffer[..len].to_vec(), fds))
}

/// Checks a reply from its first byte to its last seal.
fn accept(bytes: &[u8], fds: &[OwnedFd]) -> Result<Attachment> {
    let shape = decode_reply(bytes)?;
    let [control, data] = fds else {
        let count = fds.len();
        return Err(Error::with(
            super::OPEN,
            Errno::BADMSG,
            format_args!("reply with {count} descriptors instead of 2"),
        ));
    };
    check_file("control", control, CONTROL_LEN as u64)?;
    check_file("data", data, shape.size)?;
    Attachment::open(Files { control: control.as_fd(), data: data.as_fd() }, &shape)
}

/// Is this a memory file of `size` bytes, now and for good?
fn check_file(what: &'static str, file: &OwnedFd, size: u64) -> Result<()> {
    match memfd::sealed_size(file, SEALS) {
        Ok(found) if found == size => Ok(()),
        Ok(found) => Err(Error::with(
            super::OPEN,
            Errno::BADMSG,
            format_args!("{what} file of {found} bytes instead of {size}"),
        )),
        // EINVAL: a file that has no seals at all.
        Err(Errno::PERM | Errno::INVAL) => Err(Error::with(
            super::OPEN,
            Errno::PERM,
            format_args!("{what} file without the seals {:#x}", SEALS.bits()),
        )),
        Err(errno) => Err(Error::new(super::OPEN, errno)),
    }
}
