//! The three mappings of a region in a process, one right in front of the other.

use super::header::CONTROL_LEN;
use super::held::Files;
use super::ledger::{LEDGER_LEN, Ledger};
use super::rights::Rights;
use super::wire::Shape;
use crate::error::{Error, Result};
use crate::sys::map::{Access, Mapping, Place};
use rustix::fd::AsFd;
use rustix::io::Errno;

/// Ledger, control page and data.
#[derive(Debug)]
pub(super) struct Maps {
    pub(super) control: Mapping,
    pub(super) ledger: Mapping,
    pub(super) data: Mapping,
}

impl Maps {
    /// Maps what `rights` allow at the base of `shape`.
    ///
    /// # Errors
    ///
    /// EEXIST if the addresses are not free, ENOMEM.
    pub(super) fn new(
        operation: &'static str,
        files: &Files,
        shape: &Shape,
        rights: Rights,
    ) -> Result<Self> {
        let writes = |right| if right { Access::Write } else { Access::Read };
        let memory = writes(rights.contains(Rights::WRITE));
        let (control, ledger) = (CONTROL_LEN as u64, LEDGER_LEN as u64);
        let at = shape.base - control;
        let full = writes(rights == Rights::ALL);
        Ok(Self {
            data: map(operation, &files.data, shape.base, shape.size, memory)?,
            control: map(operation, &files.control, at, control, memory)?,
            ledger: map(operation, &files.ledger, at - ledger, ledger, full)?,
        })
    }

    pub(super) fn ledger(&self) -> &Ledger {
        // SAFETY: mapped, and borrowed as long as it is.
        unsafe { Ledger::at(self.ledger.start().cast()) }
    }
}

fn map(
    operation: &'static str,
    file: impl AsFd,
    address: u64,
    len: u64,
    access: Access,
) -> Result<Mapping> {
    let place = Place::Exactly(address as usize);
    Mapping::shared(file, len as usize, access, place).map_err(|errno| {
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
