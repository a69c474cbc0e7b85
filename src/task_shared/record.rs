//! A slot in memory, layout version 1, and what its words mean.

use super::life::{Copied, Life};
use crate::sync::{AtomicU32, AtomicU64, assert_layout};
use core::mem::{align_of, offset_of, size_of};

/// Bytes of a slot.
pub(super) const SIZE: usize = 128;
/// 32-bit words that libc's mutex may use.
pub(super) const OWNER_WORDS: usize = 10;
/// 64-bit words behind the two counts.
const WORDS: usize = 10;

/// Which of the words means what.
const RUNS_ON: usize = 0;
const NODE: usize = 1;
const STATS: usize = 2;
const UPDATED: usize = 6;
const NAME: usize = 7;
const USER: usize = 9;

/// Fields of a slot, each an atomic: readers look while the owner writes.
#[repr(C, align(128))]
pub(super) struct Record {
    /// libc's robust mutex, locked by the owner for life.
    pub(super) owner: [AtomicU32; OWNER_WORDS],
    pub(super) generation: AtomicU32,
    sequence: AtomicU32,
    words: [AtomicU64; WORDS],
}

assert_layout!(
    size_of::<Record>() == SIZE,
    align_of::<Record>() == SIZE,
    size_of::<libc::pthread_mutex_t>() <= 4 * OWNER_WORDS,
    align_of::<libc::pthread_mutex_t>() <= align_of::<Record>(),
    offset_of!(Record, owner) == 0,
    offset_of!(Record, generation) == 40,
    offset_of!(Record, sequence) == 44,
    offset_of!(Record, words) + 8 * RUNS_ON == 48,
    offset_of!(Record, words) + 8 * NODE == 56,
    offset_of!(Record, words) + 8 * STATS == 64,
    offset_of!(Record, words) + 8 * UPDATED == 96,
    offset_of!(Record, words) + 8 * NAME == 104,
    offset_of!(Record, words) + 8 * USER == 120,
);

/// A thread's times and counts, as it published them last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct SchedStats {
    /// Time on a CPU since the thread began, in nanoseconds.
    pub sum_exec_runtime: u64,
    /// Time spent runnable and waiting for a CPU since the thread began, in nanoseconds.
    pub run_delay: u64,
    /// How many times the thread was given a CPU.
    pub pcount: u64,
    /// Time off the CPU, blocked or waiting for one, since the slot was taken, in
    /// nanoseconds. It never goes back.
    pub off_cpu: u64,
}

/// What the words of a slot say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Values {
    pub(super) tid: u32,
    pub(super) cpu: u32,
    pub(super) node: u32,
    /// No flag is defined in version 1: written 0, not looked at.
    pub(super) flags: u32,
    pub(super) stats: SchedStats,
    pub(super) updated: u64,
    pub(super) name: [u8; 16],
    pub(super) user: u64,
}

/// The 64-bit word that lies where these two lie.
fn pair(first: u32, second: u32) -> u64 {
    let ([a, b, c, d], [e, f, g, h]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

fn unpair(word: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
    (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]))
}

impl Values {
    fn to_words(self) -> [u64; WORDS] {
        let SchedStats { sum_exec_runtime, run_delay, pcount, off_cpu } = self.stats;
        let half = |from: usize| u64::from_ne_bytes(core::array::from_fn(|n| self.name[from + n]));
        [
            pair(self.tid, self.cpu),
            pair(self.node, self.flags),
            sum_exec_runtime,
            run_delay,
            pcount,
            off_cpu,
            self.updated,
            half(0),
            half(8),
            self.user,
        ]
    }

    fn from_words(words: &[u64; WORDS]) -> Self {
        let (tid, cpu) = unpair(words[RUNS_ON]);
        let (node, flags) = unpair(words[NODE]);
        let mut name = [0; 16];
        name[..8].copy_from_slice(&words[NAME].to_ne_bytes());
        name[8..].copy_from_slice(&words[NAME + 1].to_ne_bytes());
        Self {
            tid,
            cpu,
            node,
            flags,
            stats: SchedStats {
                sum_exec_runtime: words[STATS],
                run_delay: words[STATS + 1],
                pcount: words[STATS + 2],
                off_cpu: words[STATS + 3],
            },
            updated: words[UPDATED],
            name,
            user: words[USER],
        }
    }
}

/// One look at a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reading {
    pub(super) generation: u32,
    pub(super) quiet: bool,
    pub(super) values: Values,
}

impl Record {
    fn life(&self) -> Life<'_> {
        Life { generation: &self.generation, sequence: &self.sequence, words: &self.words }
    }

    /// Begins a life. Only for the holder of the mutex.
    pub(super) fn begin(&self, values: Values) {
        self.life().begin(&values.to_words());
    }

    /// Ends it. Only for the holder of the mutex.
    pub(super) fn end(&self) {
        self.life().end();
    }

    /// The sequence, for [`publish`](Self::publish), unless a publication is going on.
    pub(super) fn quiet(&self) -> Option<u32> {
        self.life().quiet()
    }

    /// Publishes all but name and user word as one moment; `false` in a signal handler that
    /// interrupted the owner's publication. Only for the holder of the mutex.
    pub(super) fn publish(&self, sequence: u32, values: Values) -> bool {
        self.life().write(sequence, 0, &values.to_words()[..NAME])
    }

    /// What a reader may know; `None` if nobody holds the slot, or it changed hands
    /// meanwhile.
    pub(super) fn read(&self) -> Option<Reading> {
        let Copied { generation, words, quiet } = self.life().read::<WORDS>()?;
        Some(Reading { generation, quiet, values: Values::from_words(&words) })
    }

    /// The one word that the owner writes without a sequence: it is a moment by itself, and
    /// that it is of this life does not depend on the sequence.
    pub(super) fn user(&self) -> &AtomicU64 {
        &self.words[USER]
    }

    /// A free slot in ordinary memory.
    #[cfg(all(test, not(loom)))]
    pub(super) fn new() -> Self {
        Self {
            owner: [const { AtomicU32::new(0) }; OWNER_WORDS],
            generation: AtomicU32::new(0),
            sequence: AtomicU32::new(0),
            words: [const { AtomicU64::new(0) }; WORDS],
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sync::Ordering;

    fn values() -> Values {
        Values {
            tid: 1,
            cpu: 2,
            node: 3,
            flags: 0,
            stats: SchedStats { sum_exec_runtime: 4, run_delay: 5, pcount: 6, off_cpu: 7 },
            updated: 8,
            name: *b"a name of 15 ch\0",
            user: 9,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let record = Record::new();
        record.begin(values());
        let reading = Reading { generation: 1, quiet: true, values: values() };
        assert_eq!(record.read(), Some(reading));
        let later = Values { cpu: 20, updated: 80, name: [b'x'; 16], user: 90, ..values() };
        assert!(record.publish(record.quiet().unwrap(), later));
        let expected = Values { cpu: 20, updated: 80, ..values() };
        assert_eq!(record.read().unwrap().values, expected, "neither name nor user word");
        record.user().store(91, Ordering::Relaxed);
        assert_eq!(record.read().unwrap().values, Values { user: 91, ..expected });
    }

    /// The table in the module's documentation, byte by byte.
    #[test]
    fn layout_is_the_documented_one() {
        let record = Record::new();
        record.begin(values());
        // SAFETY: a record has no padding, and any byte is a u8.
        let bytes: [u8; SIZE] = unsafe { core::mem::transmute(record) };
        let u32_at = |n: usize| u32::from_ne_bytes(bytes[n..n + 4].try_into().unwrap());
        let u64_at = |n: usize| u64::from_ne_bytes(bytes[n..n + 8].try_into().unwrap());
        assert_eq!([40, 44, 48, 52, 56, 60].map(u32_at), [1, 0, 1, 2, 3, 0]);
        assert_eq!([64, 72, 80, 88, 96, 120].map(u64_at), [4, 5, 6, 7, 8, 9]);
        assert_eq!(&bytes[104..120], b"a name of 15 ch\0");
    }
}
