//! The ring windows of `arch/mod.rs` without asm: what writers of overflow stripes run, one
//! at a time per stripe, and what the loom models run.
//!
//! The stores of the payload are relaxed; that of `head` releases them, and the load of `limit`
//! acquires what a reader did before it gave the room back.

use crate::arch::{Publication, RING_PAD};
use crate::sync::{AtomicU64, Ordering};
use std::io::IoSlice;

/// The stripe that a window works on, as words.
#[derive(Debug, Clone, Copy)]
pub struct Words<'a> {
    pub(crate) head: &'a AtomicU64,
    pub(crate) limit: &'a AtomicU64,
    /// A power of two of them.
    pub(crate) data: &'a [AtomicU64],
}

/// `ring_publish`; see [`crate::arch`].
pub(crate) fn publish(to: Words<'_>, step: u64, parts: &[IoSlice<'_>]) -> Publication {
    let head = to.head.load(Ordering::Relaxed);
    let units = step as u32;
    // Pairs with the exchange that moves the limit.
    let free = to.limit.load(Ordering::Acquire).wrapping_sub(head) as u32;
    let first = head as usize & (to.data.len() - 1);
    let Some(record) = to.data.get(first..first + units as usize) else {
        return Publication::Full;
    };
    if free < units {
        return Publication::Full;
    }
    let len: usize = parts.iter().map(|part| part.len()).sum();
    record[0].store(len as u64, Ordering::Relaxed);
    let payload = &record[1..];
    if let [part] = parts {
        for (unit, bytes) in payload.iter().zip(part.chunks(8)) {
            unit.store(word(bytes), Ordering::Relaxed);
        }
    } else {
        let mut bytes = parts.iter().flat_map(|part| part.iter().copied());
        for unit in payload {
            let next = core::array::from_fn::<u8, 8, _>(|_| bytes.next().unwrap_or(0));
            unit.store(word(&next), Ordering::Relaxed);
        }
    }
    // Whoever sees the new head sees the record.
    to.head.store(head.wrapping_add(step), Ordering::Release);
    Publication::Done
}

/// Up to 8 bytes as they lie in memory.
fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_ne_bytes(word)
}

/// `ring_pad`; see [`crate::arch`].
pub(crate) fn pad(to: Words<'_>, head: u64, units: u64) {
    to.data[head as usize & (to.data.len() - 1)].store(RING_PAD, Ordering::Relaxed);
    // Whoever sees the padding alone sees the records in front of it.
    to.head.store(head.wrapping_add(units), Ordering::Release);
}
