//! Huge pages in the background, made by the thread of whoever serves.
//!
//! One process is enough: what `MADV_COLLAPSE` makes of a memory file is there for all that map it,
//! and their page tables for it go. A huge page is made only where all of its small ones are, so that
//! it takes no memory that nobody asked for; it is a copy of 2 MiB then, for which a touch waits.
//! The thread does little at a time, and looks in between for what else is due.

use super::backing::Backing;
use super::held::Held;
use super::layout::{Segment, pieces};
use crate::sync::Ordering;
use crate::sys::map::Access;
use core::time::Duration;
use rustix::fs::{SeekFrom, seek};
use std::time::Instant;

/// Bytes of a huge page.
pub(super) const HUGE: u64 = 2 << 20;
/// How long the thread is at it, besides the last page.
const TURN: Duration = Duration::from_millis(1);
/// How long it rests once it has been everywhere, at least.
const REST: Duration = Duration::from_secs(1);

/// Does this kernel know `MADV_COLLAPSE`? For no bytes it says yes or EINVAL.
pub(super) fn is_known() -> bool {
    // SAFETY: no bytes are touched.
    unsafe { libc::madvise(core::ptr::null_mut(), 0, libc::MADV_COLLAPSE) == 0 }
}

/// Where the thread is, and when it goes on.
#[derive(Debug, Default)]
pub(super) struct Collapsing {
    at: u64,
    next: Option<Instant>,
}

impl Collapsing {
    /// Makes some huge pages if it is time for it; when to come again, if at all.
    pub(super) fn attend(&mut self, held: &Held) -> Option<Instant> {
        let pause = held.ledger().collapse.load(Ordering::Relaxed);
        if pause == 0 || !held.is_serving() {
            return None;
        }
        let now = Instant::now();
        if let Some(next) = self.next.filter(|&next| next > now) {
            return Some(next);
        }
        let mut pause = Duration::from_millis(pause.into());
        if !self.take_turn(held, now + TURN) {
            self.at = 0;
            pause = pause.max(REST);
        }
        self.next = Instant::now().checked_add(pause);
        self.next
    }

    /// Goes on from where it was until its time is over; whether there is more.
    fn take_turn(&mut self, held: &Held, end: Instant) -> bool {
        let Ok((_, layout)) = held.ledger().layout(super::ADVISE, held.shape.size) else {
            return false;
        };
        while Instant::now() < end {
            let Some(at) = next(held, self.at) else { return false };
            self.at = at + HUGE;
            if is_plain(&layout, at) {
                // No huge page free for now, or somebody holds a small one: the next time.
                // SAFETY: takes nothing away.
                let _ = unsafe {
                    held.data.advise_part(at as usize, HUGE as usize, libc::MADV_COLLAPSE)
                };
            }
        }
        true
    }
}

/// The first place from `from` on of which all pages are there.
fn next(held: &Held, from: u64) -> Option<u64> {
    let (file, size) = (held.data_file(), held.shape.size);
    let mut at = from;
    while at + HUGE <= size {
        // The offset of the file is nobody's: all other calls name their own.
        at = seek(file, SeekFrom::Data(at)).ok()?.next_multiple_of(HUGE);
        let hole = seek(file, SeekFrom::Hole(at)).ok()?;
        if at + HUGE <= hole.min(size) {
            return Some(at);
        }
        at = at.max(hole);
    }
    None
}

/// Is it the region's own memory, which all may write?
fn is_plain(layout: &[Segment], at: u64) -> bool {
    let here = pieces(layout, at..at + HUGE);
    here.iter().all(|part| part.backing == Backing::Memory && part.access == Access::Write)
}
