//! The first page of the memory file: who wrote it, and how to read the rest.
//!
//! | bytes | field | |
//! |---|---|---|
//! | 0..8 | magic | `"tskshard"`; written last, so 0 while the table is being made |
//! | 8..12 | version | 2 |
//! | 12..16 | pid | of the process, in its own pid namespace |
//! | 16..20 | slot size | a multiple of 128, at most 1024 |
//! | 20..24 | owner offset | from an owner's entry to the 32-bit word that the kernel marks |
//! | 24..28 | committed | slots that exist; only grows, a chunk of 32 at a time |
//! | 28..32 | owners | byte of the first owner's entry: 4096 |
//! | 32..36 | slots | byte of the first slot |
//! | 36..40 | rseq | byte of the rseq area in a slot; 0 without |
//! | 40..44 | words | user's words in a slot |
//! | 44..48 | declared | how many of them are declared |
//! | 48..52 | flag fd | of the file in which readers say that they wait, plus 1; 0 without |
//! | 56..64 | flag inode | of that file |
//! | 64..68 | event | advanced by each birth and each death; a shared futex |
//! | 72..80 | births | slots taken so far |
//! | 80..88 | deaths | slots given back or reclaimed so far |
//! | 1024..4096 | | 64 bytes for each declared word |
//!
//! and of a declared word:
//!
//! | bytes | field | |
//! |---|---|---|
//! | 0..32 | name | UTF-8, padded with zeros |
//! | 32..48 | unit | likewise |
//! | 48..52 | type | 1: u64, 2: i64, 3: f64, 4: bool |
//! | 52..56 | index | which of the user's words |
//! | 56..64 | | 0 |

use super::layout::{MAX_SLOTS, OWNERS, SLOTS, Shape, is_size};
use super::owner::OWNER_WORDS;
use super::schema::{self, ENTRY, Entry, Field, MAX_FIELDS};
use crate::error::{Error, Result};
use crate::shm::View;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::sys::map::PAGE;
use core::fmt;
use rustix::io::Errno;

/// Bytes of the header.
pub(super) const BYTES: usize = PAGE;

const MAGIC: u64 = u64::from_ne_bytes(*b"tskshard");
const VERSION: u32 = 2;
const COMMITTED: usize = 24;
const EVENT: usize = 64;
const BIRTHS: usize = 72;
const DEATHS: usize = 80;
const FIELDS: usize = 1024;
const _: () = assert!(FIELDS + MAX_FIELDS * ENTRY == BYTES);

/// What a valid header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) pid: u32,
    /// Index of the word that the kernel marks among the 32-bit words of an owner's entry.
    pub(super) owner: usize,
    pub(super) committed: usize,
    pub(super) shape: Shape,
    /// The declared words, in the order of their declaration.
    pub(super) fields: Vec<Field>,
    /// Descriptor and inode of the file in which readers say that they wait.
    pub(super) flag: Option<(u32, u64)>,
}

/// What is written of it, once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Written<'a> {
    pub(super) pid: u32,
    pub(super) owner: usize,
    pub(super) shape: Shape,
    pub(super) entries: &'a [Entry],
    pub(super) flag: Option<(u32, u64)>,
}

/// Writes the header, magic last.
pub(super) fn write(view: View<'_>, header: Written<'_>) -> Result<()> {
    let Written { pid, owner, shape, entries, flag } = header;
    let (flag_fd, flag_inode) = flag.map_or((0, 0), |(fd, inode)| (fd + 1, inode));
    for (offset, value) in [
        (8, VERSION),
        (12, pid),
        (16, shape.size as u32),
        (20, 4 * owner as u32),
        (28, OWNERS as u32),
        (32, SLOTS as u32),
        (36, shape.rseq_at() as u32),
        (40, shape.words() as u32),
        (44, entries.len() as u32),
        (48, flag_fd),
    ] {
        view.u32(offset)?.store(value, Ordering::Relaxed);
    }
    view.u64s(56, 1)?[0].store(flag_inode, Ordering::Relaxed);
    for (n, entry) in entries.iter().enumerate() {
        let bytes = entry.to_bytes();
        let words = view.u64s(FIELDS + n * ENTRY, ENTRY / 8)?;
        for (word, bytes) in words.iter().zip(bytes.as_chunks::<8>().0) {
            word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
        }
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

/// The word that each birth and each death advances.
pub(super) fn event(view: View<'_>) -> Result<&AtomicU32> {
    view.u32(EVENT)
}

/// Slots taken so far.
pub(super) fn births(view: View<'_>) -> Result<&AtomicU64> {
    Ok(&view.u64s(BIRTHS, 1)?[0])
}

/// Slots given back or reclaimed so far.
pub(super) fn deaths(view: View<'_>) -> Result<&AtomicU64> {
    Ok(&view.u64s(DEATHS, 1)?[0])
}

/// What was found is no table.
pub(super) fn corrupt(message: fmt::Arguments<'_>) -> Error {
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
    let long = |at: usize| u64::from_ne_bytes(core::array::from_fn(|n| bytes[at + n]));
    let magic = long(0);
    if magic == 0 {
        return Ok(None);
    }
    if magic != MAGIC {
        return Err(corrupt(format_args!("magic {magic:#x}, not {MAGIC:#x}")));
    }
    let version = word(8);
    if version != VERSION {
        return Err(Error::with(
            "task_shared::Monitor::open",
            Errno::PROTO,
            format_args!("layout version {version}, this reader knows {VERSION}"),
        ));
    }
    let [pid, size, owner, committed] = [12, 16, 20, COMMITTED].map(word);
    if !is_size(size as usize) {
        return Err(corrupt(format_args!("slots of {size} bytes")));
    }
    if !owner.is_multiple_of(4) || owner as usize / 4 >= OWNER_WORDS {
        return Err(corrupt(format_args!("owner word at {owner}, not an aligned one of 40 bytes")));
    }
    if committed as usize > MAX_SLOTS {
        return Err(corrupt(format_args!("{committed} slots, at most {MAX_SLOTS}")));
    }
    let [owners, slots, rseq, words, declared, flag_fd] = [28, 32, 36, 40, 44, 48].map(word);
    if (owners as usize, slots as usize) != (OWNERS, SLOTS) {
        return Err(corrupt(format_args!("owners at {owners}, slots at {slots}")));
    }
    // The smallest has no room for it.
    if rseq != 0 && size < 256 {
        return Err(corrupt(format_args!("an rseq area in slots of {size} bytes")));
    }
    let shape = Shape { size: size as usize, rseq: rseq != 0 };
    if (shape.rseq_at(), shape.words()) != (rseq as usize, words as usize) {
        return Err(corrupt(format_args!("{words} words, rseq at {rseq} in {size} bytes")));
    }
    if declared as usize > MAX_FIELDS.min(shape.words()) {
        return Err(corrupt(format_args!("{declared} words of {words} are declared")));
    }
    let (entries, _) = bytes[FIELDS..].as_chunks::<ENTRY>();
    let fields =
        entries[..declared as usize].iter().map(|entry| schema::parse(entry, shape.words()));
    Ok(Some(Header {
        pid,
        owner: owner as usize / 4,
        committed: committed as usize,
        shape,
        fields: fields.collect::<Result<_>>()?,
        flag: flag_fd.checked_sub(1).map(|fd| (fd, long(56))),
    }))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::schema::Word;
    use super::*;
    use crate::sys::map::{Access, Mapping};
    use proptest::prelude::*;

    const SHAPE: Shape = Shape { size: 256, rseq: true };

    fn header() -> [u8; BYTES] {
        let mapping = Mapping::anonymous(PAGE, Access::Write).unwrap();
        let view = View::of(&mapping);
        assert_eq!(parse(&bytes(view)).unwrap(), None);
        let entries = [Word::<i64>::new(14, "depth", "1").entry()];
        let flag = Some((0, 5));
        write(view, Written { pid: 77, owner: 1, shape: SHAPE, entries: &entries, flag }).unwrap();
        committed(view).unwrap().store(32, Ordering::Release);
        bytes(view)
    }

    fn bytes(view: View<'_>) -> [u8; BYTES] {
        let words = view.u64s(0, BYTES / 8).unwrap();
        core::array::from_fn(|n| words[n / 8].load(Ordering::Relaxed).to_ne_bytes()[n % 8])
    }

    #[test]
    fn what_is_written_is_understood() {
        let Header { pid, owner, committed, shape, fields, flag } =
            parse(&header()).unwrap().unwrap();
        assert_eq!((pid, owner, committed, shape, flag), (77, 1, 32, SHAPE, Some((0, 5))));
        assert_eq!((fields.len(), fields[0].index, fields[0].name.as_str()), (1, 14, "depth"));
    }

    #[test]
    fn each_field_is_checked() {
        for (offset, value, errno, number) in [
            (0, 1_u32, libc::EBADMSG, "magic"),
            (8, 1, libc::EPROTO, "version 1"),
            (16, 64, libc::EBADMSG, "64 bytes"),
            (16, 2048, libc::EBADMSG, "2048 bytes"),
            (16, 128, libc::EBADMSG, "128 bytes"),
            (20, 40, libc::EBADMSG, "at 40"),
            (20, 2, libc::EBADMSG, "at 2"),
            (20, u32::MAX, libc::EBADMSG, "at 4294967295"),
            (24, 65_537, libc::EBADMSG, "65537 slots"),
            (28, 0, libc::EBADMSG, "owners at 0"),
            (32, 4096, libc::EBADMSG, "slots at 4096"),
            (36, 128, libc::EBADMSG, "rseq at 128"),
            (40, 500, libc::EBADMSG, "500 words"),
            (44, 16, libc::EBADMSG, "16 words of 15"),
            (1024 + 48, 9, libc::EBADMSG, "type 9"),
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
        fn any_bytes(tail in any::<[u8; 24]>(), keep in 0..24_usize, at in 8..100_usize) {
            let mut bytes = header();
            bytes[at + keep..at + 24].copy_from_slice(&tail[keep..]);
            if let Ok(Some(header)) = parse(&bytes) {
                prop_assert!(header.owner < OWNER_WORDS && header.committed <= MAX_SLOTS);
                prop_assert!(header.fields.len() <= header.shape.words());
            }
        }
    }
}
