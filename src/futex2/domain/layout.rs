//! The memory of a domain: a header, the table of counts, and a ledger for each process.
//!
//! Every field has a fixed place, so nothing that is read here decides where something else is.

use super::super::counts::{PLACES, Table};
use crate::error::{Error, Result};
use crate::sync::{AtomicU64, Ordering, assert_layout};
use crate::sys::process;
use core::mem::size_of;
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

/// Processes that can have one domain attached at a time.
pub(super) const ROWS: usize = 64;

/// "futex2" and the version of the layout.
const MAGIC: u64 = u64::from_le_bytes(*b"futex2\0\x01");

/// The whole of it. It is all atomics: others write it.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Layout {
    header: Header,
    pub(super) table: Table,
    pub(super) rows: [Row; ROWS],
}

#[derive(Debug)]
#[repr(C, align(128))]
struct Header {
    magic: AtomicU64,
    id: [AtomicU64; 2],
    /// Of whoever came first: see [`process::namespaces`].
    namespaces: [AtomicU64; 2],
}

/// What one process has added to the table.
#[derive(Debug)]
#[repr(C, align(128))]
pub(super) struct Row {
    /// 0: free; otherwise `Owner`.
    pub(super) owner: AtomicU64,
    pub(super) _pad: [u64; 15],
    /// By place of the table: see `ledger.rs`.
    pub(super) places: [AtomicU64; PLACES],
}

/// Bytes at the beginning of a domain, whole pages.
pub(super) const TABLE_BYTES: usize = size_of::<Layout>().next_multiple_of(4096);

assert_layout!(size_of::<Table>() == PLACES * 128, size_of::<Row>() == 128 + 8 * PLACES);

impl Layout {
    /// Checks the header; whoever comes first writes it. All fields of it are written once, each
    /// from 0, so that any number of processes can begin, and end, in here.
    pub(super) fn begin(&self) -> Result<()> {
        const OPERATION: &str = "futex2::Domain::attach";
        let header = &self.header;
        let found = header.magic.load(Ordering::Acquire);
        if found == MAGIC {
            return Ok(());
        }
        let wrong = |found| {
            Err(Error::with(
                OPERATION,
                Errno::BADMSG,
                format_args!("{found:#x} instead of zeros or {MAGIC:#x}: no domain"),
            ))
        };
        if found != 0 {
            return wrong(found);
        }
        let once = |word: &AtomicU64, value| {
            super::step();
            let _ = word.compare_exchange(0, value, Ordering::Relaxed, Ordering::Relaxed);
        };
        let mut id = [0_u8; 16];
        // Without randomness the id says less, and nothing else is worse.
        let _ = getrandom(&mut id[..], GetRandomFlags::NONBLOCK);
        let id = u128::from_ne_bytes(id) | 1;
        once(&header.id[0], id as u64);
        once(&header.id[1], (id >> 64) as u64);
        let namespaces = process::namespaces();
        once(&header.namespaces[0], namespaces[0]);
        once(&header.namespaces[1], namespaces[1]);
        super::step();
        match header.magic.compare_exchange(0, MAGIC, Ordering::Release, Ordering::Acquire) {
            Ok(_) | Err(MAGIC) => Ok(()),
            Err(found) => wrong(found),
        }
    }

    pub(super) fn id(&self) -> u128 {
        let [low, high] = [0, 1].map(|half: usize| self.header.id[half].load(Ordering::Relaxed));
        u128::from(high) << 64 | u128::from(low)
    }

    /// Whether process ids and start times mean here what they meant to whoever came first.
    pub(super) fn is_at_home(&self) -> bool {
        let first = [0, 1].map(|at: usize| self.header.namespaces[at].load(Ordering::Relaxed));
        first[0] != 0 && first == process::namespaces()
    }
}
