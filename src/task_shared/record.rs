//! A slot in memory, layout version 2, and what its words mean.

use super::layout;
use super::life::Life;
use super::owner::{Label, Owner};
use crate::sync::{AtomicU32, AtomicU64, Ordering, assert_layout};
use core::mem::{align_of, offset_of, size_of};

/// 64-bit words that a publication writes.
const WORDS: usize = 6;
/// The user's words in the smallest slot.
pub(super) const INLINE: usize = 7;

/// Which of the words means what.
const RUNS_ON: usize = 0;
const STATS: usize = 1;
const UPDATED: usize = 5;

/// The last 64 bytes of the slot are the rseq area of its owner, which the kernel writes.
pub(super) const FLAG_RSEQ: u32 = 1;

/// Fields of a slot, each an atomic: readers look while the owner writes.
///
/// Publications come from the owner or from a sampler, under `sequence`; the user's words
/// come from the owner alone, under a sequence of their own, with no locked instruction.
#[repr(C, align(128))]
#[derive(Debug)]
pub(super) struct Record {
    pub(super) generation: AtomicU32,
    sequence: AtomicU32,
    user_sequence: AtomicU32,
    tid: AtomicU32,
    flags: AtomicU32,
    /// Who owns the slot in the name of `tid`; 0 if that is its own owner.
    keeper: AtomicU32,
    words: [AtomicU64; WORDS],
    /// The first of the user's words; a larger slot has more behind them.
    user: [AtomicU64; INLINE],
}

assert_layout!(
    size_of::<Record>() == 128,
    align_of::<Record>() == 128,
    offset_of!(Record, generation) == 0,
    offset_of!(Record, sequence) == 4,
    offset_of!(Record, user_sequence) == 8,
    offset_of!(Record, tid) == 12,
    offset_of!(Record, flags) == 16,
    offset_of!(Record, words) + 8 * RUNS_ON == 24,
    offset_of!(Record, words) + 8 * STATS == 32,
    offset_of!(Record, words) + 8 * UPDATED == 64,
    offset_of!(Record, user) == layout::USER,
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

/// What the words of a slot say, but for the user's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Values {
    pub(super) tid: u32,
    pub(super) keeper: u32,
    pub(super) flags: u32,
    pub(super) cpu: u32,
    pub(super) node: u32,
    pub(super) stats: SchedStats,
    pub(super) updated: u64,
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
    /// As they lie in a slot; tid, keeper and flags are not among them.
    pub(super) fn to_words(self) -> [u64; WORDS] {
        let SchedStats { sum_exec_runtime, run_delay, pcount, off_cpu } = self.stats;
        [pair(self.cpu, self.node), sum_exec_runtime, run_delay, pcount, off_cpu, self.updated]
    }

    fn from_words([tid, keeper, flags]: [u32; 3], words: &[u64; WORDS]) -> Self {
        let (cpu, node) = unpair(words[RUNS_ON]);
        Self {
            tid,
            keeper,
            flags,
            cpu,
            node,
            stats: SchedStats {
                sum_exec_runtime: words[STATS],
                run_delay: words[STATS + 1],
                pcount: words[STATS + 2],
                off_cpu: words[STATS + 3],
            },
            updated: words[UPDATED],
        }
    }
}

/// One look at a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reading {
    pub(super) generation: u32,
    /// Are the values of one moment?
    pub(super) quiet: bool,
    pub(super) values: Values,
    /// The first of the user's words.
    pub(super) user: [u64; INLINE],
    /// Are these of one moment?
    pub(super) user_quiet: bool,
}

impl Record {
    /// The protocol of the slot's life and of its publications.
    pub(super) fn life(&self) -> Life<'_> {
        Life { generation: &self.generation, sequence: &self.sequence, words: &self.words }
    }

    /// The same life with the user's words, the inline ones or all of them.
    #[inline]
    pub(super) fn user_life<'a>(&'a self, words: &'a [AtomicU64]) -> Life<'a> {
        Life { generation: &self.generation, sequence: &self.user_sequence, words }
    }

    /// The user's words of the smallest slot.
    #[inline]
    pub(super) fn inline(&self) -> &[AtomicU64; INLINE] {
        &self.user
    }

    /// Begins a life, with all of the user's words 0. Only for the holder of the mutex.
    pub(super) fn begin(&self, values: Values, user: &[AtomicU64], owner: &Owner, label: Label) {
        self.life().begin(&values.to_words(), || {
            self.tid.store(values.tid, Ordering::Relaxed);
            self.keeper.store(values.keeper, Ordering::Relaxed);
            self.flags.store(values.flags, Ordering::Relaxed);
            owner.set_label(label);
            for word in user {
                word.store(0, Ordering::Relaxed);
            }
            // A last owner that died while writing left it odd.
            let sequence = self.user_sequence.load(Ordering::Relaxed);
            self.user_sequence.store(sequence.wrapping_add(sequence & 1), Ordering::Relaxed);
        });
    }

    /// Ends it. Only for the holder of the mutex.
    pub(super) fn end(&self) {
        self.life().end();
    }

    /// The sequence, for [`publish`](Self::publish), unless a publication is going on.
    pub(super) fn quiet(&self) -> Option<u32> {
        self.life().quiet()
    }

    /// Publishes all but tid and flags as one moment; `false` if somebody has published
    /// since the sequence was taken. Only for the holder of the mutex, or a sampler.
    pub(super) fn publish(&self, sequence: u32, values: Values) -> bool {
        self.life().write(sequence, 0, &values.to_words())
    }

    /// What a reader may know; `None` if nobody holds the slot, or it changed hands
    /// meanwhile.
    #[inline]
    pub(super) fn read(&self) -> Option<Reading> {
        let life = self.life();
        let (generation, (ids, (words, quiet), (user, user_quiet))) = life.during(|| {
            let ids = [&self.tid, &self.keeper, &self.flags];
            let ids = ids.map(|word| word.load(Ordering::Relaxed));
            (ids, life.copy(), self.user_life(&self.user).copy())
        })?;
        let values = Values::from_words(ids, &words);
        Some(Reading { generation, quiet, values, user, user_quiet })
    }

    /// Whose id the owner's word has while the life is on.
    pub(super) fn owner_tid(&self) -> u32 {
        match self.keeper.load(Ordering::Relaxed) {
            0 => self.tid.load(Ordering::Relaxed),
            keeper => keeper,
        }
    }

    /// Says what is true of the slot for a part of its life. Only for the holder.
    pub(super) fn set_flags(&self, flags: u32) {
        self.flags.store(flags, Ordering::Relaxed);
    }

    /// The flags of this moment.
    pub(super) fn flags(&self) -> u32 {
        self.flags.load(Ordering::Relaxed)
    }

    /// A free slot in ordinary memory.
    #[cfg(all(test, not(loom)))]
    pub(super) fn new() -> Self {
        Self {
            generation: AtomicU32::new(0),
            sequence: AtomicU32::new(0),
            user_sequence: AtomicU32::new(0),
            tid: AtomicU32::new(0),
            flags: AtomicU32::new(0),
            keeper: AtomicU32::new(0),
            words: [const { AtomicU64::new(0) }; WORDS],
            user: [const { AtomicU64::new(0) }; INLINE],
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn values() -> Values {
        Values {
            tid: 1,
            keeper: 0,
            flags: 0,
            cpu: 2,
            node: 3,
            stats: SchedStats { sum_exec_runtime: 4, run_delay: 5, pcount: 6, off_cpu: 7 },
            updated: 8,
        }
    }

    fn begun() -> (Record, Owner) {
        let (record, owner) = (Record::new(), Owner::new());
        record.begin(
            values(),
            record.inline(),
            &owner,
            Label { name: *b"0123456789abcde\0", since: 9 },
        );
        (record, owner)
    }

    #[test]
    fn what_is_written_is_read() {
        let (record, owner) = begun();
        let reading = Reading {
            generation: 5,
            quiet: true,
            values: values(),
            user: [0; INLINE],
            user_quiet: true,
        };
        assert_eq!(record.read(), Some(reading));
        assert_eq!((&owner.label().name, owner.label().since), (b"0123456789abcde\0", 9));
        let later = Values { tid: 10, flags: 1, cpu: 20, updated: 80, ..values() };
        assert!(record.publish(record.quiet().unwrap(), later));
        let expected = Values { cpu: 20, updated: 80, ..values() };
        assert_eq!(record.read().unwrap().values, expected, "neither tid nor flags");
        assert!(record.user_life(record.inline()).write_alone(2, &[91, 92]));
        let now = record.read().unwrap();
        assert_eq!((now.values, now.user), (expected, [0, 0, 91, 92, 0, 0, 0]));
        record.end();
        record.begin(values(), record.inline(), &owner, Label::default());
        let now = record.read().unwrap();
        assert_eq!((now.generation, now.user), (9, [0; INLINE]));
    }

    /// The table in the module's documentation, byte by byte.
    #[test]
    fn layout_is_the_documented_one() {
        let (record, _) = begun();
        assert!(record.user_life(record.inline()).write_alone(0, &[10, 11, 12, 13, 14, 15, 16]));
        // SAFETY: a record has no padding, and any byte is a u8.
        let bytes: [u8; 128] = unsafe { core::mem::transmute(record) };
        let u32_at = |n: usize| u32::from_ne_bytes(bytes[n..n + 4].try_into().unwrap());
        let u64_at = |n: usize| u64::from_ne_bytes(bytes[n..n + 8].try_into().unwrap());
        assert_eq!([0, 4, 8, 12, 16, 20, 24, 28].map(u32_at), [5, 0, 2, 1, 0, 0, 2, 3]);
        assert_eq!([32, 40, 48, 56, 64, 72, 120].map(u64_at), [4, 5, 6, 7, 8, 10, 16]);
    }
}
