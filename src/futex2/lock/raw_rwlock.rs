//! A readers-writer lock without its data.

use super::rwlock_words::{HANDED, MASK, WRITER, Words};
use super::waiting::without_fail;
use crate::error::Result;
use crate::futex2::{Deadline, Futex, Private, Scope};
use crate::sync::Ordering::Relaxed;
use core::fmt;

/// A readers-writer lock without data: 8 bytes, zeros being unlocked. [`RwLock`](super::RwLock)
/// is this with its data.
#[repr(C)]
pub struct RawRwLock<S: Scope = Private> {
    state: Futex<u32, S>,
    turn: Futex<u32, S>,
}

impl<S: Scope> RawRwLock<S> {
    /// An unlocked lock.
    pub const fn new() -> Self {
        Self { state: Futex::new(0), turn: Futex::new(0) }
    }

    fn words(&self) -> Words<'_, Futex<u32, S>> {
        Words { state: &self.state, turn: &self.turn }
    }

    /// Takes it for reading, sleeping while a writer holds it or waits.
    #[inline]
    pub fn read(&self) {
        if !self.words().read_quickly() {
            without_fail(|| self.words().read_slowly(None));
        }
    }

    /// Takes it for reading if nobody holds it, or readers do and nobody waits.
    #[inline]
    pub fn try_read(&self) -> bool {
        let words = self.words();
        words.read_quickly() || words.read_freed()
    }

    /// Takes it for reading, sleeping until the deadline at the most.
    ///
    /// # Errors
    ///
    /// ETIMEDOUT at the deadline.
    #[inline]
    pub fn try_read_until(&self, deadline: Deadline) -> Result<()> {
        if self.words().read_quickly() {
            return Ok(());
        }
        self.words().read_slowly(Some(deadline))
    }

    /// Takes it for writing, sleeping while anybody holds it.
    #[inline]
    pub fn write(&self) {
        if !self.words().write_quickly() {
            without_fail(|| self.words().write_slowly(None));
        }
    }

    /// Takes it for writing if nobody holds it.
    #[inline]
    pub fn try_write(&self) -> bool {
        self.words().try_write()
    }

    /// Takes it for writing, sleeping until the deadline at the most.
    ///
    /// # Errors
    ///
    /// ETIMEDOUT at the deadline.
    #[inline]
    pub fn try_write_until(&self, deadline: Deadline) -> Result<()> {
        if self.words().write_quickly() {
            return Ok(());
        }
        self.words().write_slowly(Some(deadline))
    }

    /// Gives back what was taken for reading.
    ///
    /// # Safety
    ///
    /// The caller must hold it for reading.
    #[inline]
    pub unsafe fn unlock_read(&self) {
        self.words().unlock_read();
    }

    /// Gives back what was taken for writing.
    ///
    /// # Safety
    ///
    /// The caller must hold it for writing.
    #[inline]
    pub unsafe fn unlock_write(&self) {
        self.words().unlock_write();
    }

    /// Turns a writer into a reader; no other writer comes between.
    ///
    /// # Safety
    ///
    /// The caller must hold it for writing.
    #[inline]
    pub unsafe fn downgrade(&self) {
        self.words().downgrade();
    }

    /// Whether anybody holds it, or it is kept for those who have slept; stale at once.
    pub fn is_locked(&self) -> bool {
        self.state.load(Relaxed) & (MASK | HANDED) != 0
    }

    /// Whether a writer holds it; stale at once.
    pub fn is_write_locked(&self) -> bool {
        self.state.load(Relaxed) & MASK == WRITER
    }
}

impl<S: Scope> Default for RawRwLock<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: Scope> fmt::Debug for RawRwLock<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.load(Relaxed);
        let name = match state & MASK {
            0 => "free",
            WRITER => "written",
            _ => "read",
        };
        f.debug_tuple("RawRwLock").field(&name).finish()
    }
}
