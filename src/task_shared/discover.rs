//! Finding the memory file of another process, with no help from it.
//!
//! The file is among the descriptors of the process, under its name. A process may hold
//! other files of that name: a fork child has its parent's until it takes a slot itself, and
//! anybody can make one with anything in it. So each candidate is checked: that it is a
//! memory file which cannot shrink and which nobody can map writable any more, and that its
//! header is one, and of this process.

use super::header::{self, BYTES, Header};
use super::layout::{FLAG_NAME, NAME};
use crate::error::{Context, Error, Result};
use crate::sys::map::{Access, Mapping, PAGE, Place};
use crate::sys::memfd;
use core::ffi::CStr;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, Dir, Mode, OFlags, SealFlags, open, openat, readlinkat};
use rustix::io::{Errno, pread, read};
use std::ffi::CString;

const OP: &str = "task_shared::Monitor::open";
/// What a reader relies on: no cut, and no writer but the process itself.
const SEALS: SealFlags = SealFlags::FUTURE_WRITE.union(SealFlags::SHRINK);

/// What a reader has of a process.
#[derive(Debug)]
pub(super) struct Found {
    /// The table's file.
    pub(super) file: OwnedFd,
    /// Its header, checked.
    pub(super) header: Header,
    /// Its size in bytes, which does not shrink.
    pub(super) size: u64,
    /// The process's list of mappings. It belongs to the program that the process ran when it
    /// was opened: it reads as empty once that is gone, by exit or by execve(2). `None` for a
    /// table that was handed over, and for a process without its main thread.
    pub(super) maps: Option<OwnedFd>,
    /// The page in which readers say that they wait, if it may be written.
    pub(super) flag: Option<Mapping>,
}

/// Finds the table of the process `pid`.
///
/// # Errors
///
/// ESRCH, EACCES or EPERM, ENOENT without slots, EPERM for missing seals, EPROTO for another
/// layout, EBADMSG for what is no table.
pub(super) fn find(pid: u32) -> Result<Found> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let process = open(format!("/proc/{pid}"), flags | OFlags::PATH, Mode::empty());
    let process = process.map_err(|errno| about(pid, errno))?;
    let own_pid = own_pid(pid, process.as_fd())?;
    let (folder, maps) = open_folders(process.as_fd()).map_err(|errno| about(pid, errno))?;
    // What was wrong with the last candidate, if one has the name.
    let mut wrong = None;
    for entry in Dir::read_from(&folder).map_err(|errno| about(pid, errno))? {
        let entry = entry.map_err(|errno| about(pid, errno))?;
        if !has_name(folder.as_fd(), entry.file_name(), NAME) {
            continue;
        }
        match candidate(folder.as_fd(), entry.file_name(), own_pid) {
            Ok(Some(found)) => {
                let flag = found.header.flag.and_then(|flag| map_flag(folder.as_fd(), flag));
                return Ok(Found { maps, flag, ..found });
            }
            Ok(None) => {}
            Err(error) => wrong = Some(error),
        }
    }
    Err(wrong.unwrap_or_else(|| {
        // Without a list of mappings, other threads live on.
        if maps.is_some() && has_ended(process.as_fd()) {
            return Error::with(OP, Errno::SRCH, format_args!("process {pid} has ended"));
        }
        Error::with(OP, Errno::NOENT, format_args!("process {pid} has taken no slot"))
    }))
}

/// The descriptors of a process, and its list of mappings. Once the main thread has ended, by
/// pthread_exit(3), it has neither, though the others live on: then the descriptors are those of
/// another thread, and there is no list that would last as long as the process.
fn open_folders(process: BorrowedFd<'_>) -> rustix::io::Result<(OwnedFd, Option<OwnedFd>)> {
    let (file, folder) = (OFlags::RDONLY | OFlags::CLOEXEC, OFlags::DIRECTORY);
    let open = |path: &CStr, flags| openat(process, path, file | flags, Mode::empty());
    // Before the table: if the program is another one by then, this says that it is gone.
    let maps = match open(c"maps", OFlags::empty()) {
        // Later kernels do not open an empty one.
        Err(Errno::SRCH) => None,
        maps => Some(maps?),
    };
    if !maps.as_ref().is_some_and(|maps| pread(maps, &mut [0], 0) != Ok(0)) {
        for task in Dir::read_from(open(c"task", folder)?)? {
            let path = [b"task/", task?.file_name().to_bytes(), b"/fd"].concat();
            // It may have ended, too, or be none.
            match openat(process, path, file | folder, Mode::empty()) {
                Ok(others) if !is_empty(&others).unwrap_or(true) => return Ok((others, None)),
                _ => {}
            }
        }
    }
    Ok((open(c"fd", folder)?, maps))
}

fn is_empty(folder: &OwnedFd) -> rustix::io::Result<bool> {
    for entry in Dir::read_from(folder)? {
        if !entry?.file_name().to_bytes().starts_with(b".") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Has it ended, and waits for its parent?
fn has_ended(process: BorrowedFd<'_>) -> bool {
    let mut text = [0; 1024];
    let status = openat(process, "status", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    match status.and_then(|status| pread(status, &mut text, 0)) {
        Ok(len) => text[..len].windows(8).any(|line| matches!(line, b"State:\tZ" | b"State:\tX")),
        Err(errno) => errno == Errno::SRCH,
    }
}

/// An error on the way to the descriptors of a process.
fn about(pid: u32, errno: Errno) -> Error {
    match errno {
        Errno::NOENT | Errno::SRCH => {
            Error::with(OP, Errno::SRCH, format_args!("there is no process {pid}"))
        }
        other => Error::with(OP, other, format_args!("process {pid}")),
    }
}

/// The process's id in its own pid namespace, which is what it knows itself by: the last
/// number of `NSpid` in its status; without that line there are no namespaces.
fn own_pid(pid: u32, process: BorrowedFd<'_>) -> Result<u32> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let status = openat(process, "status", flags, Mode::empty());
    let status = status.map_err(|errno| about(pid, errno))?;
    let (mut text, mut len) = ([0_u8; 4096], 0);
    while len < text.len() {
        match read(&status, &mut text[len..]) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(about(pid, errno)),
        }
    }
    Ok(innermost_pid(&text[..len]).unwrap_or(pid))
}

fn innermost_pid(status: &[u8]) -> Option<u32> {
    let line = status.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"NSpid:"))?;
    core::str::from_utf8(line).ok()?.split_whitespace().next_back()?.parse().ok()
}

/// Does the link of a descriptor show a memory file of this name?
fn has_name(folder: BorrowedFd<'_>, fd: &CStr, name: &str) -> bool {
    let Ok(link) = readlinkat(folder, fd, Vec::new()) else {
        return false;
    };
    let shown = link.as_bytes().strip_prefix(b"/memfd:");
    let shown = shown.and_then(|shown| shown.strip_prefix(name.as_bytes()));
    shown.is_some_and(|rest| rest.is_empty() || rest == b" (deleted)")
}

/// How the files of others are opened. A name can be put on a pipe too, which must not keep us
/// waiting, and neither must a lease that the process has taken on the file.
const OPEN: OFlags = OFlags::CLOEXEC.union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

/// Checks one candidate; `None` if it is not the process's own, or gone meanwhile.
fn candidate(folder: BorrowedFd<'_>, fd: &CStr, pid: u32) -> Result<Option<Found>> {
    let file = open_path(folder, fd).and_then(|path| {
        memfd::inode(&path)?;
        open(own_name(&path), OFlags::RDONLY | OPEN, Mode::empty())
    });
    match file {
        Err(Errno::NOENT) => Ok(None),
        Err(Errno::INVAL) => Err(unsealed()),
        file => match look(file.op(OP)?) {
            Err(error) if error.raw_os_error() == libc::EPERM => Err(unsealed()),
            found => Ok(found?.filter(|found| found.header.pid == pid)),
        },
    }
}

/// A path is opened without effect on what it names: a server of a file system in user space,
/// which could keep us waiting, does not hear of it. From then on it names nothing else.
fn open_path(folder: BorrowedFd<'_>, fd: &CStr) -> rustix::io::Result<OwnedFd> {
    openat(folder, fd, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

/// Under which a descriptor of ours is opened again.
fn own_name(file: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

fn unsealed() -> Error {
    Error::with(
        OP,
        Errno::PERM,
        format_args!("a file named {NAME} is no memory file with the seals of a table"),
    )
}

/// Checks a file that is said to be a table.
///
/// # Errors
///
/// EPERM for missing seals, EPROTO for another layout, EBADMSG for what is no table, ENOENT
/// for one that is not finished.
pub(super) fn check(file: OwnedFd) -> Result<Found> {
    look(file)?.ok_or_else(|| Error::because(OP, Errno::NOENT, "the table is not finished"))
}

/// The same; `None` if it is not finished.
fn look(file: OwnedFd) -> Result<Option<Found>> {
    if memfd::sealed_size(&file, SEALS).is_err() {
        let message = "the file is no memory file with the seals of a table";
        return Err(Error::because(OP, Errno::PERM, message));
    }
    let mut bytes = [0; BYTES];
    let len = pread(&file, &mut bytes, 0).op(OP)?;
    if len < BYTES {
        return Err(Error::with(
            OP,
            Errno::BADMSG,
            format_args!("a table of {len} bytes, a header has {BYTES}"),
        ));
    }
    let Some(header) = header::parse(&bytes)? else {
        return Ok(None);
    };
    // Asked after the count was copied: the file was large enough before the count was
    // stored, and has not shrunk.
    let size = memfd::sealed_size(&file, SEALS).op(OP)?;
    let least = header.shape.slot(header.committed) as u64;
    if size < least {
        return Err(Error::with(
            OP,
            Errno::BADMSG,
            format_args!("a table of {size} bytes, its slots need {least}"),
        ));
    }
    Ok(Some(Found { file, header, size, maps: None, flag: None }))
}

/// Maps the file in which readers say that they wait. The process can name any descriptor of
/// its own, and this reader may have more rights than it has: so nothing is opened for writing
/// that is not a memory file of that name, sealed, and no larger than the flag. `None` if it is
/// not, or may not be written; news is then looked for.
fn map_flag(folder: BorrowedFd<'_>, (number, inode): (u32, u64)) -> Option<Mapping> {
    let path = open_path(folder, &CString::new(number.to_string()).ok()?).ok()?;
    let link = CString::new(own_name(&path)).ok()?;
    if !has_name(CWD, &link, FLAG_NAME) || memfd::inode(&path) != Ok(inode) {
        return None;
    }
    let read = open(own_name(&path), OFlags::RDONLY | OPEN, Mode::empty()).ok()?;
    let size = memfd::sealed_size(read, SealFlags::SHRINK | SealFlags::GROW).ok()?;
    if size != PAGE as u64 {
        return None;
    }
    let file = open(own_name(&path), OFlags::RDWR | OPEN, Mode::empty()).ok()?;
    Mapping::shared(&file, PAGE, Access::Write, Place::Anywhere).ok()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn pid_in_its_own_namespace() {
        assert_eq!(innermost_pid(b"Pid:\t7\nNSpid:\t7\t3\t1\nNSpgid:\t7\n"), Some(1));
        assert_eq!(innermost_pid(b"Name:\tx\nNSpid:\t7\n"), Some(7));
        for status in ["", "Pid:\t7\n", "NSpid:\n", "NSpid:\tx\n", "NSpid:\t99999999999\n"] {
            assert_eq!(innermost_pid(status.as_bytes()), None, "{status:?}");
        }
    }

    #[test]
    fn this_process_is_found() {
        crate::task_shared::current().unwrap();
        let Found { header, size, .. } = find(std::process::id()).unwrap();
        assert_eq!(header.pid, std::process::id());
        assert!(size >= header.shape.slot(header.committed) as u64 && header.committed > 0);
    }
}
