//! Which regions there are.

use super::LIST;
use super::directory::{Directory, GLANCE};
use super::name::check_name;
use super::wire::{Ask, REPLY_LEN, Reply, Request};
use crate::error::{Error, Result};
use crate::sys::socket::{self, Connection};
use rustix::io::Errno;
use std::path::Path;

/// A name in a runtime directory, and what is behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Listed {
    /// The name.
    pub name: String,
    /// The process that serves it; `None` if it is dead, and nobody has taken over.
    pub server: Option<u32>,
    /// The owner; `None` if the server does not tell, for instance because it is stopped.
    pub uid: Option<u32>,
    /// Permission bits.
    pub mode: Option<u32>,
    /// Bytes.
    pub size: Option<usize>,
    /// Address of the first byte.
    pub base: Option<usize>,
    /// Processes that have it.
    pub participants: Option<usize>,
}

/// The names in the user's runtime directory, in order. A directory that is not there has none.
///
/// # Errors
///
/// EPERM if the runtime directory is somebody else's or open to others.
pub fn list() -> Result<Vec<Listed>> {
    look(None)
}

/// [`list`] for another directory; see [`Builder::directory`](super::Builder::directory).
///
/// # Errors
///
/// Those of [`list`]; EINVAL for a path that is not absolute.
pub fn list_in(directory: impl AsRef<Path>) -> Result<Vec<Listed>> {
    look(Some(directory.as_ref()))
}

fn look(given: Option<&Path>) -> Result<Vec<Listed>> {
    let directory = match Directory::find(LIST, given) {
        Err(error) if error.is_not_found() && given.is_none() => return Ok(Vec::new()),
        found => found?,
    };
    let failed =
        |error: std::io::Error| Error::new(LIST, Errno::from_io_error(&error).unwrap_or(Errno::IO));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&directory.path).map_err(failed)? {
        let Ok(name) = entry.map_err(failed)?.file_name().into_string() else { continue };
        if check_name(LIST, &name).is_ok()
            && let Some(listed) = inquire(&directory, name)
        {
            found.push(listed);
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// `None` for what is no region, and for a name that went meanwhile.
fn inquire(directory: &Directory, name: String) -> Option<Listed> {
    use std::os::unix::fs::FileTypeExt;
    let kind = std::fs::symlink_metadata(directory.path.join(&name)).ok()?.file_type();
    if !kind.is_socket() {
        return None;
    }
    let (mut server, mut told) = (None, None);
    if let Ok(connection) = directory.call(&name, GLANCE) {
        server = socket::peer(&connection).ok().map(|peer| peer.pid);
        told = ask(&connection).ok();
    }
    let numbers = told.map(|reply| reply.numbers);
    Some(Listed {
        name,
        server,
        uid: numbers.map(|numbers| numbers[2] as u32),
        mode: numbers.map(|numbers| numbers[1] as u32),
        size: told.map(|reply| reply.shape.size as usize),
        base: told.map(|reply| reply.shape.base as usize),
        participants: numbers.map(|numbers| numbers[0] as usize),
    })
}

fn ask(connection: &Connection) -> Result<Reply> {
    let failed = |errno| Error::new(LIST, errno);
    let request = Request { ask: Ask::Tell, id: [0; 16], numbers: [0; 5] };
    connection.send(&request.encode(), &[]).map_err(failed)?;
    let mut buffer = [0; REPLY_LEN];
    let (len, _) = connection.receive(&mut buffer).map_err(failed)?;
    Reply::decode(LIST, &buffer[..len])
}
