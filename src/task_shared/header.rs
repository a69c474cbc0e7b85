//! The first page of the memory file: who wrote it, and how to read the rest.
//!
//! | bytes | field | |
//! |---|---|---|
//! | 0..8 | magic | `"tskshard"`; written last, so 0 while the table is being made |
//! | 8..12 | version | 1 |
//! | 12..16 | pid | of the process, in its own pid namespace |
//! | 16..20 | slot size | 128 |
//! | 20..24 | owner offset | from a slot to the 32-bit word that the kernel marks |
//! | 24..28 | committed | slots that exist; only grows, a page of 32 at a time |
//! | 28..32 | | 0 |

use super::record::{self, OWNER_WORDS};
use crate::error::{Error, Result};
use crate::shm::View;
use crate::sync::{AtomicU32, Ordering};
use crate::sys::map::PAGE;
use core::fmt;
use rustix::io::Errno;

/// The name of the memory file, which readers look for.
pub(super) const NAME: &str = "unmerged.task_shared";
/// Slots of one page.
pub(super) const PER_PAGE: usize = PAGE / record::SIZE;
/// Slots of a process.
pub(super) const MAX_SLOTS: usize = 65_536;
/// Bytes of the header page and all slots.
pub(super) const MAX_BYTES: usize = bytes_for(MAX_SLOTS);
/// Bytes of the header that are in use.
pub(super) const BYTES: usize = 32;

const MAGIC: u64 = u64::from_ne_bytes(*b"tskshard");
const VERSION: u32 = 1;
const COMMITTED: usize = 24;

/// Bytes of a file with so many slots.
pub(super) const fn bytes_for(slots: usize) -> usize {
    PAGE + slots * record::SIZE
}

/// What a valid header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) pid: u32,
    /// Index of the word that the kernel marks among the 32-bit words of a slot.
    pub(super) owner: usize,
    pub(super) committed: usize,
}

/// Writes the header, magic last.
pub(super) fn write(view: View<'_>, pid: u32, owner: usize) -> Result<()> {
    for (offset, value) in
        [(8, VERSION), (12, pid), (16, record::SIZE as u32), (20, 4 * owner as u32)]
    {
        view.u32(offset)?.store(value, Ordering::Relaxed);
    }
    // Pairs with nothing that a reader could use: it copies by a system call. The file's
    // size and the slots were there before, and a store is one moment.
    view.u64s(0, 1)?[0].store(MAGIC, Ordering::Release);
    Ok(())
}

/// The count of slots that exist.
pub(super) fn committed(view: View<'_>) -> Result<&AtomicU32> {
    view.u32(COMMITTED)
}

fn corrupt(message: fmt::Arguments<'_>) -> Error {
    Error::with("task_shared::Monitor::open", Errno::BADMSG, message)
}

/// Checks the bytes of a header that anybody may have written; `None` of one that is not
/// finished yet.
///
/// # Errors
///
/// EBADMSG for what no version of this crate writes, EPROTO for another layout version.
pub(super) fn parse(bytes: &[u8; BYTES]) -> Result<Option<Header>> {
    let word = |at: usize| u32::from_ne_bytes(core::array::from_fn(|n| bytes[at + n]));
    let magic = u64::from_ne_bytes(core::array::from_fn(|n| bytes[n]));
    let [version, pid, size, owner, committed] = [8, 12, 16, 20, COMMITTED].map(word);
    if magic == 0 {
        return Ok(None);
    }
    if magic != MAGIC {
        return Err(corrupt(format_args!("magic {magic:#x}, not {MAGIC:#x}")));
    }
    if version != VERSION {
        return Err(Error::with(
            "task_shared::Monitor::open",
            Errno::PROTO,
            format_args!("layout version {version}, this reader knows {VERSION}"),
        ));
    }
    if size as usize != record::SIZE {
        return Err(corrupt(format_args!("slots of {size} bytes, not {}", record::SIZE)));
    }
    if !owner.is_multiple_of(4) || owner as usize / 4 >= OWNER_WORDS {
        return Err(corrupt(format_args!("owner word at {owner}, not an aligned one of 40 bytes")));
    }
    if committed as usize > MAX_SLOTS {
        return Err(corrupt(format_args!("{committed} slots, at most {MAX_SLOTS}")));
    }
    Ok(Some(Header { pid, owner: owner as usize / 4, committed: committed as usize }))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sys::map::{Access, Mapping};
    use proptest::prelude::*;

    fn header() -> [u8; BYTES] {
        let mapping = Mapping::anonymous(PAGE, Access::Write).unwrap();
        let view = View::of(&mapping);
        assert_eq!(parse(&bytes(view)).unwrap(), None);
        write(view, 77, 1).unwrap();
        committed(view).unwrap().store(32, Ordering::Release);
        bytes(view)
    }

    fn bytes(view: View<'_>) -> [u8; BYTES] {
        let words = view.u64s(0, BYTES / 8).unwrap();
        core::array::from_fn(|n| words[n / 8].load(Ordering::Relaxed).to_ne_bytes()[n % 8])
    }

    #[test]
    fn what_is_written_is_understood() {
        assert_eq!(parse(&header()).unwrap(), Some(Header { pid: 77, owner: 1, committed: 32 }));
    }

    #[test]
    fn each_field_is_checked() {
        for (offset, value, errno, number) in [
            (0, 1_u32, libc::EBADMSG, "magic"),
            (8, 2, libc::EPROTO, "version 2"),
            (16, 64, libc::EBADMSG, "64 bytes"),
            (20, 40, libc::EBADMSG, "at 40"),
            (20, 2, libc::EBADMSG, "at 2"),
            (20, u32::MAX, libc::EBADMSG, "at 4294967295"),
            (24, 65_537, libc::EBADMSG, "65537 slots"),
        ] {
            let mut bytes = header();
            bytes[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
            let error = parse(&bytes).unwrap_err();
            assert_eq!(error.raw_os_error(), errno, "{error}");
            assert!(error.to_string().contains(number), "{error}");
        }
    }

    proptest! {
        /// Nothing panics, and what is accepted is in range.
        #[test]
        fn any_bytes(tail in any::<[u8; 24]>(), keep in 0..24_usize) {
            let mut bytes = header();
            bytes[8 + keep..].copy_from_slice(&tail[keep..]);
            if let Ok(Some(header)) = parse(&bytes) {
                prop_assert!(header.owner < OWNER_WORDS && header.committed <= MAX_SLOTS);
            }
        }
    }
}
