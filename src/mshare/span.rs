//! Which ranges a change can have.

use super::backing::{Backing, Kind};
use super::held::Held;
use super::layout::Segment;
use crate::error::{Error, Result};
use crate::sync::Ordering;
use core::ops::Range;
use rustix::io::Errno;

/// Is this a range that a change can have?
///
/// # Errors
///
/// EINVAL with the numbers: empty, backwards, no whole pages, or not inside.
pub(super) fn check(operation: &'static str, range: &Range<u64>, size: u64) -> Result<()> {
    let page = crate::sys::map::PAGE as u64;
    let whole = range.start.is_multiple_of(page) && range.end.is_multiple_of(page);
    if whole && range.start < range.end && range.end <= size {
        return Ok(());
    }
    let (start, end) = (range.start, range.end);
    Err(Error::with(
        operation,
        Errno::INVAL,
        format_args!("{start:#x} to {end:#x} is no range of whole pages in {size:#x} bytes"),
    ))
}

/// Are offset, length and place in the object multiples of its pages?
///
/// # Errors
///
/// EINVAL with the numbers.
pub(super) fn aligned(
    operation: &'static str,
    range: &Range<u64>,
    at: u64,
    kind: Kind,
) -> Result<()> {
    let grain = kind.grain();
    let all = [range.start, range.end, at];
    let fits = at.checked_add(range.end - range.start).is_some_and(|end| end <= i64::MAX as u64);
    if fits && all.iter().all(|number| number.is_multiple_of(grain)) {
        return Ok(());
    }
    let [start, end, at] = all;
    let why = format_args!("{start:#x} to {end:#x} from {at:#x} on, in pages of {grain:#x}");
    Err(Error::with(operation, Errno::INVAL, why))
}

impl Held {
    /// What the heap manages is not for others to take away.
    ///
    /// A heap that only the control page names is none: any writer could name one, and so keep
    /// everybody from changing anything.
    pub(super) fn check_heap(&self, operation: &'static str, range: &Range<u64>) -> Result<()> {
        let word = self.header().next().load(Ordering::Relaxed);
        let is_made = self.ledger().heap.load(Ordering::Relaxed) == word;
        match super::heap::range(word, self.shape.size).filter(|_| is_made) {
            Some(heap) if heap.start < range.end && range.start < heap.end => Err(Error::with(
                operation,
                Errno::EXIST,
                format_args!("the heap lies in {:#x} to {:#x}", heap.start, heap.end),
            )),
            _ => Ok(()),
        }
    }

    /// Both ends must lie between pages: of the region, and of an object that they cut.
    pub(super) fn check_cuts(
        &self,
        operation: &'static str,
        old: &[Segment],
        range: &Range<u64>,
    ) -> Result<()> {
        for end in [range.start, range.end] {
            let cut = old.iter().find(|part| part.offset < end && end < part.end());
            let grain = match cut.map(|part| part.backing) {
                Some(Backing::Object { kind, .. }) => kind.grain(),
                _ => 1,
            };
            let grain = grain.max(self.shape.memory.grain());
            if !end.is_multiple_of(grain) {
                return Err(Error::with(
                    operation,
                    Errno::INVAL,
                    format_args!("{end:#x} is inside a page of {grain:#x} bytes"),
                ));
            }
        }
        Ok(())
    }
}
