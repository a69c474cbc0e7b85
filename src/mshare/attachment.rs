//! A region in this process: mapped once, however often it is opened.
//!
//! A region has one address, so a process cannot map it twice. A table of what this process
//! has mapped, under a lock, makes a second opening a second handle; the last handle unmaps,
//! under the same lock, so that nobody opens what is being unmapped. Regions are told apart
//! by their control file and random id, which a server cannot make up.

use super::header::{CONTROL_LEN, Header};
use super::window;
use super::wire::Shape;
use crate::error::{Error, Result};
use crate::sys::map::{Access, Mapping, Place};
use core::ptr::NonNull;
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::fstat;
use rustix::io::Errno;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The two files of a region, sizes and seals checked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Files<'a> {
    pub(super) control: BorrowedFd<'a>,
    pub(super) data: BorrowedFd<'a>,
}

/// What tells regions apart: device and inode of the control file, and the id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    device: u64,
    inode: u64,
    id: [u8; 16],
}

#[derive(Debug)]
struct Entry {
    key: Key,
    shape: Shape,
    handles: usize,
    control: Mapping,
    data: Mapping,
}

static TABLE: Mutex<Vec<Entry>> = Mutex::new(Vec::new());

fn table() -> MutexGuard<'static, Vec<Entry>> {
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A handle on the mappings of a region.
#[derive(Debug)]
pub(super) struct Attachment {
    key: Key,
    shape: Shape,
    control: NonNull<Header>,
    data: NonNull<u8>,
}

// SAFETY: the pointers stay valid in every thread until the last handle is dropped, and
// what is behind them is atomic or handed out raw.
unsafe impl Send for Attachment {}
// SAFETY: as above.
unsafe impl Sync for Attachment {}

impl Attachment {
    /// Maps a new region at the first of `bases` that is free, and fills its control page.
    ///
    /// # Errors
    ///
    /// EEXIST if none is, ENOMEM.
    pub(super) fn create(
        files: Files<'_>,
        id: [u8; 16],
        size: u64,
        bases: impl Iterator<Item = u64>,
    ) -> Result<Self> {
        let mut clash = Error::new(super::CREATE, Errno::EXIST);
        for base in bases {
            let shape = Shape { size, base, id };
            match map_control(super::CREATE, files, &shape)
                .and_then(|control| Ok((control, map_data(super::CREATE, files, &shape)?)))
            {
                Ok((control, data)) => {
                    Header::of(&control).fill(&shape);
                    let key = key(super::CREATE, files, &shape)?;
                    let mut table = table();
                    table.push(Entry { key, shape, handles: 0, control, data });
                    return Ok(Self::of(table.last_mut().expect("pushed above")));
                }
                Err(error) if error.is_exists() => clash = error,
                Err(error) => return Err(error),
            }
        }
        Err(clash)
    }

    /// Maps the region of a server's reply at its base, or takes the mapping that is there.
    ///
    /// # Errors
    ///
    /// EBADMSG for a shape that no region has, or if the control page says otherwise; EPROTO
    /// for a control page of another version; EEXIST if something else is at its address;
    /// ENOMEM.
    pub(super) fn open(files: Files<'_>, shape: &Shape) -> Result<Self> {
        window::check(super::OPEN, Errno::BADMSG, shape.base, shape.size)?;
        let key = key(super::OPEN, files, shape)?;
        let mut table = table();
        if let Some(entry) = table.iter_mut().find(|entry| entry.key == key) {
            return Ok(Self::of(entry));
        }
        let control = map_control(super::OPEN, files, shape)?;
        Header::of(&control).verify(shape)?;
        let data = map_data(super::OPEN, files, shape)?;
        table.push(Entry { key, shape: *shape, handles: 0, control, data });
        Ok(Self::of(table.last_mut().expect("pushed above")))
    }

    /// One more handle on an entry, whose table is locked.
    fn of(entry: &mut Entry) -> Self {
        entry.handles += 1;
        Self {
            key: entry.key,
            shape: entry.shape,
            control: entry.control.start().cast(),
            data: entry.data.start(),
        }
    }

    /// Another handle on the same mapping.
    pub(super) fn again(&self) -> Self {
        let mut table = table();
        let entry = table.iter_mut().find(|entry| entry.key == self.key);
        Self::of(entry.expect("its entry stays as long as there is a handle"))
    }

    /// What was agreed.
    pub(super) fn shape(&self) -> &Shape {
        &self.shape
    }

    /// First byte of the data.
    pub(super) fn base(&self) -> NonNull<u8> {
        self.data
    }

    /// The control page.
    pub(super) fn header(&self) -> &Header {
        // SAFETY: the control page stays mapped as long as there is a handle.
        unsafe { Header::at(self.control) }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let mut table = table();
        if let Some(at) = table.iter().position(|entry| entry.key == self.key) {
            table[at].handles -= 1;
            if table[at].handles == 0 {
                table.swap_remove(at);
            }
        }
    }
}

fn key(operation: &'static str, files: Files<'_>, shape: &Shape) -> Result<Key> {
    let stat = fstat(files.control).map_err(|errno| Error::new(operation, errno))?;
    Ok(Key { device: stat.st_dev, inode: stat.st_ino, id: shape.id })
}

/// The control page lies right in front of the data.
fn map_control(operation: &'static str, files: Files<'_>, shape: &Shape) -> Result<Mapping> {
    map(operation, files.control, shape.base - CONTROL_LEN as u64, CONTROL_LEN as u64)
}

fn map_data(operation: &'static str, files: Files<'_>, shape: &Shape) -> Result<Mapping> {
    map(operation, files.data, shape.base, shape.size)
}

fn map(operation: &'static str, file: impl AsFd, address: u64, len: u64) -> Result<Mapping> {
    let place = Place::Exactly(address as usize);
    Mapping::shared(file, len as usize, Access::Write, place).map_err(|errno| {
        let end = address + len;
        match errno {
            Errno::EXIST => Error::with(
                operation,
                errno,
                format_args!("addresses {address:#x} to {end:#x} are not free in this process"),
            ),
            errno => Error::with(
                operation,
                errno,
                format_args!("cannot map {len} bytes at {address:#x}"),
            ),
        }
    })
}
