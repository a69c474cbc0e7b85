//! The reading side.

use super::Ring;
use super::stripe::{Fault, units};
use crate::error::{Error, Result};
use core::fmt;
use core::mem::size_of_val;
use rustix::io::Errno;

/// Where a record was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// On this CPU.
    Cpu(u32),
    /// Without a window, on one of the stripes for that.
    Overflow(u32),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu(cpu) => write!(f, "CPU {cpu}"),
            Self::Overflow(n) => write!(f, "overflow {n}"),
        }
    }
}

/// A record, in its reader's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'b> {
    /// Where it was published.
    pub source: Source,
    /// The number of the record among those of that source, from 0. A number that is left out is a
    /// record that was overwritten, or that another reader took.
    pub sequence: u64,
    /// What was published.
    pub bytes: &'b [u8],
}

/// The stripe being read.
#[derive(Debug, Clone, Copy)]
struct Visit {
    index: u32,
    /// Where its head was when this began.
    until: u64,
    /// Records that may still come: more were never in front of that head, unless another
    /// process keeps bringing old ones back.
    most: u64,
}

/// Takes records out of a ring.
///
/// Several readers, in one process or in many, share the records: each goes to one of
/// them. A reader takes some at a time into its buffer; those that it has not handed out
/// when it is dropped or killed are lost, and counted so.
#[derive(Debug)]
pub struct Reader<'r> {
    ring: &'r Ring<'r>,
    stripe: Option<Visit>,
    /// Where to look for the next stripe.
    next: u32,
    buffer: Vec<u64>,
    /// Where the next record is in the buffer.
    at: usize,
    left: u64,
    sequence: u64,
}

impl<'r> Reader<'r> {
    pub(super) fn new(ring: &'r Ring<'r>) -> Self {
        Self { ring, stripe: None, next: 0, buffer: Vec::new(), at: 0, left: 0, sequence: 0 }
    }

    /// The next record. `None` at the end of a pass: each source was read up to where its
    /// head was when its turn came. After that a new pass begins.
    ///
    /// Of one source records come in the order in which they were published.
    ///
    /// # Errors
    ///
    /// EBADMSG if another process wrote nonsense over a source: what is in it is
    /// skipped, and the next call goes on. ENOMEM without memory for a copy; the records stay.
    #[expect(clippy::should_implement_trait, reason = "the record is in the reader's buffer")]
    pub fn next(&mut self) -> Result<Option<Record<'_>>> {
        const OPERATION: &str = "percpu::Reader::next";
        let place = &self.ring.place;
        while self.left == 0 {
            let Some(Visit { index, until, most }) = self.stripe.filter(|visit| visit.most > 0)
            else {
                let Some(index) = place.next_opened(self.next) else {
                    (self.stripe, self.next) = (None, 0);
                    return Ok(None);
                };
                self.next = index + 1;
                let until = place.stripe(index).head();
                let most = place.shape.capacity as u64 / 16;
                self.stripe = Some(Visit { index, until, most });
                continue;
            };
            match place.stripe(index).take(until, &mut self.buffer) {
                Ok(Some(batch)) => {
                    (self.at, self.left, self.sequence) = (0, batch.records, batch.sequence);
                    let most = most.saturating_sub(batch.records);
                    self.stripe = Some(Visit { index, until, most });
                }
                Ok(None) => self.stripe = None,
                Err(Fault::Corrupt(records)) => {
                    self.stripe = None;
                    return Err(Error::with(
                        OPERATION,
                        Errno::BADMSG,
                        format_args!("{}: {records} records skipped", self.source(index)),
                    ));
                }
                Err(Fault::Memory) => {
                    self.stripe = None;
                    return Err(Error::new(OPERATION, Errno::NOMEM));
                }
            }
        }
        let index = self.stripe.map_or(0, |visit| visit.index);
        let (source, sequence) = (self.source(index), self.sequence);
        let len = self.buffer[self.at] as usize;
        let words = &self.buffer[self.at + 1..self.at + units(len) as usize];
        self.at += units(len) as usize;
        self.left -= 1;
        self.sequence = sequence.wrapping_add(1);
        place.stripe(index).count_taken();
        let bytes = words.as_ptr().cast::<u8>();
        // SAFETY: the bytes of initialised words, borrowed like them.
        let bytes = unsafe { core::slice::from_raw_parts(bytes, size_of_val(words)) };
        Ok(Some(Record { source, sequence, bytes: &bytes[..len] }))
    }

    fn source(&self, index: u32) -> Source {
        let cpus = self.ring.place.shape.cpus;
        if index < cpus { Source::Cpu(index) } else { Source::Overflow(index - cpus) }
    }
}
