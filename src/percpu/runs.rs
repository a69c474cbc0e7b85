//! Which words of a stripe belong to which cell: a bitmap from which runs of words are taken.
//!
//! # Protocol
//!
//! Bit set = the word is taken. A run is aligned to its size, rounded up to a power of two (the
//! one that is longer than half of the stripe is not): so one of up to 64 words is inside one word
//! of the bitmap and is taken by a single compare-exchange. A longer one is taken word by word, in
//! ascending order, and given back if one of them is not free; whoever dies in between leaves what
//! it had taken so far taken, which loses room and nothing else. Taking is an acquire, releasing a release: whoever takes a run
//! sees what its last owner did to it, zeroes above all.
//!
//! Bit 0 is never free: word 0 of a stripe is its stop word.

use crate::sync::{AtomicU64, Ordering};

const BITS: usize = u64::BITS as usize;

/// The algorithm, over borrowed words; as many bits as a stripe has words.
#[derive(Debug, Clone, Copy)]
pub(super) struct Runs<'a>(&'a [AtomicU64]);

impl<'a> Runs<'a> {
    pub(super) fn new(bitmap: &'a [AtomicU64]) -> Self {
        Self(bitmap)
    }

    /// Words of a stripe.
    fn words(&self) -> usize {
        self.0.len() * BITS
    }

    /// Takes the lowest run of `len` words that is free; its first word.
    pub(super) fn take(&self, len: usize) -> Option<usize> {
        if len == 0 || len >= self.words() {
            return None;
        }
        let size = len.next_power_of_two();
        if size < self.words() {
            // The first place of each size holds word 0.
            return (size..self.words()).step_by(size).find(|&start| self.claim(start, len));
        }
        // What is longer than half of the stripe goes right behind the stop word.
        self.claim(1, len).then_some(1)
    }

    /// Takes the words `start..start + len`, all of them or none; whether it did.
    pub(super) fn claim(&self, start: usize, len: usize) -> bool {
        for (n, (index, mask)) in Self::parts(start, len).enumerate() {
            let word = &self.0[index];
            let mut seen = word.load(Ordering::Relaxed);
            loop {
                if (seen | Self::reserved(index)) & mask != 0 {
                    for (index, mask) in Self::parts(start, len).take(n) {
                        self.0[index].fetch_and(!mask, Ordering::Release);
                    }
                    return false;
                }
                let with = seen | mask;
                match word.compare_exchange_weak(seen, with, Ordering::Acquire, Ordering::Relaxed) {
                    Ok(_) => break,
                    Err(now) => seen = now,
                }
            }
        }
        true
    }

    /// Gives the words `start..start + len` back.
    pub(super) fn release(&self, start: usize, len: usize) {
        for (index, mask) in Self::parts(start, len) {
            self.0[index].fetch_and(!mask, Ordering::Release);
        }
    }

    /// Are all the words `start..start + len` taken? A moment's answer.
    pub(super) fn is_taken(&self, start: usize, len: usize) -> bool {
        Self::parts(start, len)
            .all(|(index, mask)| self.0[index].load(Ordering::Acquire) & mask == mask)
    }

    /// The words of the bitmap that a run touches, each with its bits.
    fn parts(start: usize, len: usize) -> impl Iterator<Item = (usize, u64)> {
        let end = start + len;
        (start / BITS..end.div_ceil(BITS)).map(move |index| {
            let first = start.max(index * BITS) - index * BITS;
            let last = end.min((index + 1) * BITS) - index * BITS;
            (index, (u64::MAX >> (BITS - (last - first))) << first)
        })
    }

    /// The bits of a word of the bitmap that are never free.
    const fn reserved(index: usize) -> u64 {
        (index == 0) as u64
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn bitmap<const N: usize>() -> [AtomicU64; N] {
        [const { AtomicU64::new(0) }; N]
    }

    #[test]
    fn lowest_first_and_aligned() {
        let words = bitmap::<8>();
        let runs = Runs::new(&words);
        assert_eq!(runs.take(1), Some(1));
        assert_eq!(runs.take(1), Some(2));
        assert_eq!(runs.take(2), Some(4));
        assert_eq!(runs.take(1), Some(3));
        assert_eq!(runs.take(5), Some(8));
        assert_eq!(runs.take(64), Some(64));
        assert_eq!(runs.take(65), Some(128));
        runs.release(64, 64);
        assert_eq!(runs.take(33), Some(64));
        assert!(runs.is_taken(128, 65) && !runs.is_taken(128, 66));
    }

    #[test]
    fn the_whole_stripe_but_for_its_stop_word() {
        for words in [bitmap::<8>().as_slice(), bitmap::<1>().as_slice()] {
            let runs = Runs::new(words);
            let all = words.len() * BITS - 1;
            assert_eq!(runs.take(all + 1), None);
            assert_eq!(runs.take(all), Some(1));
            assert_eq!(runs.take(1), None);
            runs.release(1, all);
            for word in 1..=all {
                assert_eq!(runs.take(1), Some(word));
            }
            assert_eq!(runs.take(1), None);
        }
    }

    #[test]
    fn what_does_not_fit_takes_nothing() {
        let words = bitmap::<2>();
        let runs = Runs::new(&words);
        assert!(runs.claim(100, 1));
        assert_eq!(runs.take(100), None);
        assert_eq!(runs.take(0), None);
        assert!(!runs.claim(60, 50));
        assert!(
            words.iter().map(|word| word.load(Ordering::Relaxed).count_ones()).sum::<u32>() == 1
        );
        assert!(!runs.claim(0, 1));
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::sync::model;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    struct Shared {
        bitmap: [AtomicU64; 2],
        /// What the runs protect: a word of one word of the bitmap, one of the other.
        cells: [UnsafeCell<u32>; 2],
    }
    // SAFETY: a cell is touched by the owner of its run: loom checks.
    unsafe impl Sync for Shared {}

    /// Two threads take the same run, across two words of the bitmap, use what it protects and
    /// give it back. Fails when taking or releasing is relaxed.
    #[test]
    fn a_run_has_one_owner() {
        model(|| {
            let shared = Arc::new(Shared {
                bitmap: [AtomicU64::new(1).ready(), AtomicU64::new(0).ready()],
                cells: [UnsafeCell::new(0), UnsafeCell::new(0)],
            });
            let turn = |shared: &Shared| {
                let runs = Runs::new(&shared.bitmap);
                if runs.claim(60, 8) {
                    for cell in &shared.cells {
                        cell.with_mut(|value| unsafe { *value += 1 });
                    }
                    runs.release(60, 8);
                }
            };
            let both = [(); 2].map(|()| {
                let shared = shared.clone();
                thread::spawn(move || turn(&shared))
            });
            let _ = both.map(|thread| thread.join().unwrap());
            assert_eq!(shared.bitmap[0].load(Ordering::Relaxed), 1);
            assert_eq!(shared.bitmap[1].load(Ordering::Relaxed), 0);
        });
    }
}
