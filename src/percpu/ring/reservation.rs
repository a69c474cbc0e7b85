//! A record in the making.

use super::Ring;
use crate::error::Result;
use std::io::{self, Write};

/// A record that is written piece by piece, then published whole.
///
/// Its bytes are in a buffer of the writer's, not in the ring: a place in the ring that is
/// taken and not filled would be a hole, which every reader has to wait for, if its writer is
/// stopped or killed perhaps for ever. So a reservation takes no room, and dropping it publishes
/// nothing. The copy at the end is part of the window, and short.
#[derive(Debug)]
pub struct Reservation<'r, B> {
    ring: &'r Ring<'r>,
    buffer: B,
    len: usize,
}

impl<'r, B: AsMut<[u8]> + AsRef<[u8]>> Reservation<'r, B> {
    pub(super) const fn new(ring: &'r Ring<'r>, buffer: B) -> Self {
        Self { ring, buffer, len: 0 }
    }

    /// The bytes written so far.
    pub fn as_bytes(&self) -> &[u8] {
        &self.buffer.as_ref()[..self.len]
    }

    /// The bytes written so far, to be changed.
    pub fn as_bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buffer.as_mut()[..self.len]
    }

    /// Publishes them as one record.
    ///
    /// # Errors
    ///
    /// As [`Ring::publish`].
    pub fn commit(self) -> Result<()> {
        self.ring.publish(self.as_bytes())
    }
}

/// Writes go to the end of the record, as far as the buffer has room.
impl<B: AsMut<[u8]> + AsRef<[u8]>> Write for Reservation<'_, B> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = &mut self.buffer.as_mut()[self.len..];
        let len = bytes.len().min(room.len());
        room[..len].copy_from_slice(&bytes[..len]);
        self.len += len;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
