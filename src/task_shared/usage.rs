//! What the slots of a process cost.

use super::layout::MAX_SLOTS;
use super::owner::Owner;
use super::process;
use crate::error::Result;
use core::mem::size_of;

/// What the slots of this process take, and how they were used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Usage {
    /// Slots that there is memory for.
    pub slots: usize,
    /// Those that have an owner, or had one that died and was not reclaimed yet.
    pub held: usize,
    /// How many were held at once, at most.
    pub high_water: usize,
    /// Slots that were taken.
    pub births: u64,
    /// Slots that were given back or reclaimed.
    pub deaths: u64,
    /// Those of them whose owners died without giving them back.
    pub reclaimed: u64,
    /// Memory in use, in bytes: slots, owners, header, and what the process notes of them.
    pub bytes_resident: usize,
    /// Bytes of a slot.
    pub slot_size: usize,
}

impl Usage {
    /// How many slots there can be.
    pub const MAX_SLOTS: usize = MAX_SLOTS;

    /// Bytes that one more thread takes: its slot, its owner's entry, and a note of the
    /// descriptor that it keeps once it has published.
    pub const fn bytes_per_thread(&self) -> usize {
        self.slot_size + size_of::<Owner>() + 16
    }
}

/// What the slots of this process take; all 0 where no thread has asked for one.
///
/// # Errors
///
/// EAGAIN if the kernel is short of memory.
pub fn stats() -> Result<Usage> {
    process::existing().map_or(Ok(Usage::default()), |table| table.usage())
}
