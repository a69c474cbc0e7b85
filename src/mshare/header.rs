//! The control page of a region.
//!
//! It lies right in front of the data, at the same address in every process. All of it is
//! atomic words, because every participant can write it: what was agreed at the attachment
//! (size, base, id) is checked once and then kept in the process's own memory, never read
//! here again.

use super::bump::Bump;
use super::roots::{ROOTS, Root, Roots};
use super::wire::{Shape, VERSION};
use crate::error::{Error, Result};
use crate::sync::{AtomicU32, AtomicU64, Ordering, assert_layout};
use crate::sys::map::{Mapping, PAGE};
use core::ptr::NonNull;
use rustix::io::Errno;

/// Bytes of the control file.
pub(super) const CONTROL_LEN: usize = PAGE;

const MAGIC: u64 = u64::from_le_bytes(*b"umshareH");
const READY: u32 = 1;

/// The words of the control page.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Header {
    magic: AtomicU64,
    version: AtomicU32,
    /// 0 until the creator has filled the rest, then 1.
    state: AtomicU32,
    size: AtomicU64,
    base: AtomicU64,
    id: [AtomicU64; 2],
    /// Offset of the room for objects behind the memory: the size if there is none.
    room: AtomicU64,
    /// Of a region in files that stay: see [`kept`](super::kept).
    session: AtomicU64,
    /// Offset of the first byte that nobody took: see [`Bump`]. A line of its own.
    next: AtomicU64,
    unused_too: [AtomicU64; 7],
    roots: [Root; ROOTS],
}

assert_layout!(
    core::mem::offset_of!(Header, next) == 64,
    core::mem::offset_of!(Header, roots) == 128,
    size_of::<Header>() <= CONTROL_LEN,
);

impl Header {
    /// The header in a control mapping, for as long as that is mapped.
    pub(super) fn of(control: &Mapping) -> &Self {
        assert!(control.len() >= CONTROL_LEN, "a control file is one page");
        // SAFETY: a page is large and aligned enough, any bytes are atomics, others change
        // them by atomics at most, and the mapping is borrowed as long as the header.
        unsafe { Self::at(control.start().cast()) }
    }

    /// The header at this address.
    ///
    /// # Safety
    ///
    /// A control page must be mapped there for all of `'a`.
    pub(super) unsafe fn at<'a>(control: NonNull<Self>) -> &'a Self {
        // SAFETY: mapped, as the caller says; all fields are atomics.
        unsafe { control.as_ref() }
    }

    /// Fills a fresh page, of a region whose last `room` bytes are for objects.
    pub(super) fn fill(&self, shape: &Shape, room: u64) {
        let relaxed = Ordering::Relaxed;
        self.magic.store(MAGIC, relaxed);
        self.version.store(VERSION, relaxed);
        self.size.store(shape.size, relaxed);
        self.base.store(shape.base, relaxed);
        self.room.store(shape.size.saturating_sub(room), relaxed);
        for (word, half) in self.id.iter().zip(halves(&shape.id)) {
            word.store(half, relaxed);
        }
        // Nobody else has the page yet: the socket that hands it out orders all this. In a file it
        // is the last that is written.
        self.state.store(READY, Ordering::Release);
    }

    /// Base and id of the region whose page this is, as found; `None` if it is nobody's yet.
    pub(super) fn found(&self) -> Option<(u64, [u8; 16])> {
        let relaxed = Ordering::Relaxed;
        if self.state.load(relaxed) == 0 {
            return None;
        }
        let [low, high] = [&self.id[0], &self.id[1]].map(|half| u128::from(half.load(relaxed)));
        Some((self.base.load(relaxed), (low | high << 64).to_le_bytes()))
    }

    /// The number of the last time that the region came back, if it can.
    pub(super) fn session(&self) -> u64 {
        self.session.load(Ordering::Relaxed)
    }

    pub(super) fn set_session(&self, session: u64) {
        self.session.store(session, Ordering::Relaxed);
    }

    /// Does the page say what the server said?
    ///
    /// # Errors
    ///
    /// EPROTO for another version, EBADMSG for anything else, with the numbers.
    pub(super) fn verify(&self, shape: &Shape) -> Result<()> {
        let relaxed = Ordering::Relaxed;
        let version = self.version.load(relaxed);
        let id = [self.id[0].load(relaxed), self.id[1].load(relaxed)];
        let magic = self.magic.load(relaxed);
        if magic == MAGIC && version != VERSION {
            return Err(Error::with(
                super::OPEN,
                Errno::PROTO,
                format_args!("control page of version {version}, this is version {VERSION}"),
            ));
        }
        for (what, found, expected) in [
            ("magic", magic, MAGIC),
            ("state", u64::from(self.state.load(relaxed)), u64::from(READY)),
            ("size", self.size.load(relaxed), shape.size),
            ("base", self.base.load(relaxed), shape.base),
            ("id", id[0], halves(&shape.id)[0]),
            ("id", id[1], halves(&shape.id)[1]),
        ] {
            if found != expected {
                return Err(Error::with(
                    super::OPEN,
                    Errno::BADMSG,
                    format_args!("control page with {what} {found:#x} instead of {expected:#x}"),
                ));
            }
        }
        Ok(())
    }

    /// The allocator of a region of `size` bytes.
    pub(super) fn bump(&self, size: u64) -> Bump<'_> {
        Bump::new(&self.next, self.room(size))
    }

    /// Where the room for objects begins, in a region of `size` bytes.
    pub(super) fn room(&self, size: u64) -> u64 {
        self.room.load(Ordering::Relaxed).min(size)
    }

    /// The allocator's word, which says too what the heap is.
    pub(super) fn next(&self) -> &AtomicU64 {
        &self.next
    }

    /// The named roots.
    pub(super) fn roots(&self) -> Roots<'_> {
        Roots(&self.roots)
    }
}

fn halves(id: &[u8; 16]) -> [u64; 2] {
    let id = u128::from_le_bytes(*id);
    [id as u64, (id >> 64) as u64]
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sys::map::Access;

    #[test]
    fn each_word_is_checked() {
        let shape = Shape {
            size: 8192,
            base: 1 << 45,
            id: *b"0123456789abcdef",
            memory: super::super::wire::Memory::Ordinary,
        };
        let page = Mapping::anonymous(CONTROL_LEN, Access::Write).unwrap();
        let header = Header::of(&page);
        let error = header.verify(&shape).unwrap_err();
        assert!(error.is_corrupt() && error.to_string().contains("magic 0x0"), "{error}");
        header.fill(&shape, 4096);
        assert_eq!((header.room(8192), header.room(100)), (4096, 100));
        header.verify(&shape).unwrap();
        for other in [
            Shape { size: 4096, ..shape },
            Shape { base: 0, ..shape },
            Shape { id: *b"0123456789abcdeX", ..shape },
            Shape { id: *b"X123456789abcdef", ..shape },
        ] {
            assert_eq!(header.verify(&other).unwrap_err().raw_os_error(), libc::EBADMSG);
        }
        header.state.store(0, Ordering::Relaxed);
        assert!(header.verify(&shape).unwrap_err().to_string().contains("state"));
        header.version.store(7, Ordering::Relaxed);
        let error = header.verify(&shape).unwrap_err();
        assert_eq!(error.raw_os_error(), libc::EPROTO);
        assert!(error.to_string().contains("version 7"), "{error}");
    }
}
