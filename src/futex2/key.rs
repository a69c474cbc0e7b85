//! What the kernel knows a word by.

use super::Reach;
use super::{Futex, Word};
use crate::error::{Error, Result};
use crate::sys::futex;
use crate::sys::map::PAGE;
use crate::sys::mappings::{self, Region};
use core::ptr;

/// What a word is known by: waits and wakes meet if their keys are equal.
///
/// - A private word, and a shared one in anonymous memory: its address space and its address there.
/// - A shared word in a file, or in memory that is shared by fork or by shmget(2): the file and the
///   place in it, so two mappings of one file meet, wherever they are.
///
/// A private and a shared key are never equal, even on one address. Sizes are told apart by the
/// waits themselves, not here.
///
/// ```
/// use unmerged::futex2::{Futex, Key, Private, Shared};
///
/// let word = Futex::<u8>::new(0);
/// let key = Key::of(&word)?;
/// assert_eq!(key, Key::of(&word)?);
/// assert!(key.is_private() && key.file().is_none());
/// # Ok::<(), unmerged::Error>(())
/// ```
///
/// A key tells what is so at the moment: an address may be unmapped and mapped anew, a file
/// removed and its number given to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    whose: Whose,
    /// Of the file, or of the address space.
    page: u64,
    offset: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Whose {
    /// This process, private.
    Private(u32),
    /// This process, shared: anonymous memory.
    Anonymous(u32),
    File {
        device: (u32, u32),
        inode: u64,
    },
}

const OPERATION: &str = "futex2::Key";

impl Key {
    /// The key of a futex.
    ///
    /// # Errors
    ///
    /// For shared words, as [`shared`](Self::shared).
    pub fn of<T: Word, S: Reach>(word: &Futex<T, S>) -> Result<Self> {
        let address = ptr::from_ref(word).addr();
        if S::PRIVATE { Ok(Self::private(address)) } else { Self::shared(address) }
    }

    /// The key of a private word at this address.
    pub fn private(address: usize) -> Self {
        Self::at(Whose::Private(std::process::id()), address as u64)
    }

    /// The key of a shared word at this address, which is not looked at otherwise.
    ///
    /// It asks the kernel whether there is memory, and reads `/proc/self/maps`. Like a wait, it makes a
    /// private copy of a page of a file that is mapped `MAP_PRIVATE` and writable.
    ///
    /// # Errors
    ///
    /// EFAULT if nothing is mapped there, or nothing that can be read, or behind the end of the
    /// file, or anonymous memory that cannot be written; EINVAL for an address whose 32 bits
    /// are not in user space; what reading `/proc/self/maps` gives, ENOENT without `/proc`.
    pub fn shared(address: usize) -> Result<Self> {
        let word = ptr::without_provenance::<u32>(address & !3);
        let wrong = |errno| Error::with(OPERATION, errno, format_args!("{address:#x}"));
        futex::look(word, false).map_err(wrong)?;
        let region = mappings::around(address).map_err(wrong)?;
        let in_file = match region.inode {
            0 => false,
            _ if region.is_shared => true,
            // A private mapping of a file: the file's page until it is copied.
            _ => !region.is_writable && mappings::is_of_file(address).map_err(wrong)?,
        };
        if !in_file {
            return Ok(Self::at(Whose::Anonymous(std::process::id()), address as u64));
        }
        let Region { device, inode, .. } = region;
        let place = region.offset + (address - region.start) as u64;
        Ok(Self::at(Whose::File { device, inode }, place))
    }

    fn at(whose: Whose, place: u64) -> Self {
        let page = PAGE as u64;
        Self { whose, page: place / page, offset: (place % page) as u16 }
    }

    /// Known to this process alone.
    pub fn is_private(&self) -> bool {
        matches!(self.whose, Whose::Private(_))
    }

    /// Device (major, minor) and inode of the file.
    pub fn file(&self) -> Option<((u32, u32), u64)> {
        match self.whose {
            Whose::File { device, inode } => Some((device, inode)),
            _ => None,
        }
    }

    /// The page in the file, or in the address space, counted in 4096 bytes.
    pub fn page(&self) -> u64 {
        self.page
    }

    /// The offset in the page.
    pub fn offset(&self) -> u16 {
        self.offset
    }
}
