//! What a thread does with its slot: publish, and read back.

use super::current::{MINE, More, schedstat};
use super::hazard;
use super::live;
use super::process;
use super::record::{Reading, Record, SchedStats, Values};
use super::schema::{Datum, Word};
use super::source::{Clocks, Schedstat, read_schedstat};
use crate::error::{Context, Error, Result};
use crate::sync::{AtomicU64, Ordering};
use crate::sys::thread;
use core::fmt;
use core::marker::PhantomData;
use rustix::io::Errno;

/// Tries of a publication against handlers and the sampler before it takes their numbers.
const TRIES: u32 = 8;

/// The calling thread's slot, as its owner sees it.
///
/// It is neither `Send` nor `Sync`: only the owner publishes. Others read by a
/// [`Monitor`](super::Monitor), also of the own process.
///
/// Its methods fail with ESTALE where the slot is not this thread's any more: in a child
/// that inherited the handle over fork, and in the destructor of a thread-local that runs
/// after the slot was given back. [`current`](super::current()) knows more then.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    shown: usize,
    epoch: u64,
    /// Of this thread.
    own: PhantomData<*const ()>,
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("address", &format_args!("{:#x}", self.shown)).finish()
    }
}

impl Slot {
    /// The slot that this thread has taken, as [`Mine`](super::current::Mine) knows it.
    #[inline]
    pub(super) const fn new(shown: usize, epoch: u64) -> Self {
        Self { shown, epoch, own: PhantomData }
    }

    /// The slot itself, if it is this thread's.
    #[inline]
    fn record(&self, operation: &'static str) -> Result<&'static Record> {
        let record = MINE.with(|mine| {
            let same = mine.shown.get() == self.shown && process::epoch() == self.epoch;
            if same { mine.record.get() } else { None }
        });
        record.ok_or_else(|| stale(operation))
    }

    fn reading(&self, operation: &'static str) -> Result<Reading> {
        self.record(operation)?.read().ok_or_else(|| stale(operation))
    }

    /// Address of the slot in memory that this process maps read-only: 128 bytes, laid out as
    /// [the module](super) says, until the thread ends.
    pub fn address(&self) -> usize {
        self.shown
    }

    /// The slot's generation: odd, and another one for the next thread that gets the slot.
    ///
    /// # Errors
    ///
    /// ESTALE as [`Slot`] says.
    pub fn generation(&self) -> Result<u32> {
        Ok(self.reading("task_shared::Slot::generation")?.generation)
    }

    /// The id of the thread, as gettid(2) answers it.
    ///
    /// # Errors
    ///
    /// ESTALE as [`Slot`] says.
    pub fn tid(&self) -> Result<u32> {
        Ok(self.reading("task_shared::Slot::tid")?.values.tid)
    }

    /// Brings the slot up to date, for every reader, and answers with what it now says.
    ///
    /// Two system calls, half a microsecond: the thread's CPU clock, and its schedstat file
    /// (which the first call opens, and the slot keeps). One more after a migration.
    ///
    /// # Errors
    ///
    /// EOPNOTSUPP if the kernel keeps no run delay (CONFIG_SCHED_INFO) or /proc is not there,
    /// EMFILE or ENFILE, EBUSY in a signal handler that interrupted a publication, EBADF or
    /// EBADMSG if somebody closed the descriptor that the slot keeps, ESTALE as [`Slot`] says.
    pub fn publish(&self) -> Result<SchedStats> {
        const OP: &str = "task_shared::Slot::publish";
        let record = self.record(OP)?;
        let more = MINE.with(|mine| mine.more.get());
        let More { start, schedstat: kept, .. } = more.ok_or_else(|| stale(OP))?;
        let schedstat = kept.map_or_else(schedstat, Ok)?;
        // The sampler, or a handler of this thread, may publish between the look at the clocks
        // and our write. What it published is then older, or newer, than what we have.
        for _ in 0..TRIES {
            let Some(sequence) = hazard::quiet(record) else {
                return Err(busy(OP));
            };
            let clocks = Clocks::now();
            let Schedstat { run_delay, pcount } = read_schedstat(&schedstat)?;
            let last = self.reading(OP)?.values;
            // The kernel's page tells the CPU without a call; its node is where it was.
            let cpu = thread::cpu();
            let (cpu, node) =
                if cpu == last.cpu { (cpu, last.node) } else { thread::cpu_and_node().op(OP)? };
            let stats = SchedStats {
                sum_exec_runtime: clocks.cpu,
                run_delay,
                pcount,
                off_cpu: clocks.off_cpu_since(start).max(last.stats.off_cpu),
            };
            let values = Values { cpu, node, stats, updated: clocks.monotonic, ..last };
            if record.publish(sequence, values) {
                return Ok(stats);
            }
        }
        // Handlers publish all the time: these are theirs.
        self.stats()
    }

    /// What was published last; zeros before the first [`publish`](Self::publish).
    ///
    /// # Errors
    ///
    /// ESTALE as [`Slot`] says.
    pub fn stats(&self) -> Result<SchedStats> {
        Ok(self.reading("task_shared::Slot::stats")?.values.stats)
    }

    /// All of the user's words, and the slot.
    #[inline]
    fn words(&self, operation: &'static str) -> Result<(&'static Record, &'static [AtomicU64])> {
        let record = self.record(operation)?;
        Ok((record, MINE.with(|mine| mine.user.get())))
    }

    /// One of the user's words.
    #[inline]
    fn word(&self, operation: &'static str, index: usize) -> Result<&'static AtomicU64> {
        let (_, words) = self.words(operation)?;
        words.get(index).ok_or_else(|| beyond(operation, index, 1, words.len()))
    }

    /// Sets a word of the user's, for every reader: one store, no system call.
    ///
    /// The store is relaxed: it says nothing about other memory or other words. A thread
    /// starts with 0 in all of them.
    ///
    /// # Errors
    ///
    /// EINVAL for a word that the slots of this process do not have, ESTALE as [`Slot`] says.
    #[inline]
    pub fn set<T: Datum>(&self, word: Word<T>, value: T) -> Result<()> {
        let word = self.word("task_shared::Slot::set", word.index())?;
        word.store(value.to_bits(), Ordering::Relaxed);
        Ok(())
    }

    /// A word of the user's.
    ///
    /// # Errors
    ///
    /// As [`set`](Self::set).
    #[inline]
    pub fn get<T: Datum>(&self, word: Word<T>) -> Result<T> {
        let word = self.word("task_shared::Slot::get", word.index())?;
        Ok(T::from_bits(word.load(Ordering::Relaxed)))
    }

    /// Sets the user's words from `first` on as one moment: a reader sees all of them, or
    /// none. No system call, and no locked instruction.
    ///
    /// # Errors
    ///
    /// EINVAL if the slots of this process do not have so many, EBUSY in a signal handler that
    /// interrupted this very function, ESTALE as [`Slot`] says.
    #[inline]
    pub fn publish_words(&self, first: usize, values: &[u64]) -> Result<()> {
        const OP: &str = "task_shared::Slot::publish_words";
        let (record, words) = self.words(OP)?;
        if first > words.len() || values.len() > words.len() - first {
            return Err(beyond(OP, first, values.len(), words.len()));
        }
        if record.user_life(words).write_alone(first, values) { Ok(()) } else { Err(busy(OP)) }
    }

    /// Has the kernel write into the slot where this thread runs, whenever it comes back to
    /// user mode on another CPU: readers see it by
    /// [`Thread::whereabouts`](super::Thread::whereabouts), with no publication.
    ///
    /// The thread's one rseq registration moves into the slot, until
    /// [`unregister_rseq`](Self::unregister_rseq) or the end of the thread. Meanwhile whoever
    /// relies on libc's rseq area in this thread does without: `sched_getcpu` asks the kernel,
    /// and [`percpu`](crate::percpu) counts by atomics, exact but slower. The area is of 32 bytes:
    /// from Linux 7 on the thread has no time slice extension meanwhile.
    ///
    /// # Errors
    ///
    /// EINVAL if the process was not configured with [`Config::rseq`](super::Config::rseq),
    /// EOPNOTSUPP if the kernel has no rseq (CONFIG_RSEQ, a filter),
    /// EBUSY if the registration is neither libc's nor this crate's, ESTALE as [`Slot`] says.
    pub fn register_rseq(&self) -> Result<()> {
        const OP: &str = "task_shared::Slot::register_rseq";
        self.record(OP)?;
        let more = MINE.with(|mine| mine.more.get());
        live::register(more.ok_or_else(|| stale(OP))?.held)
    }

    /// Gives the registration back to libc. Nothing if it was not moved.
    ///
    /// # Errors
    ///
    /// ESTALE as [`Slot`] says.
    pub fn unregister_rseq(&self) -> Result<()> {
        self.record("task_shared::Slot::unregister_rseq")?;
        live::unregister();
        Ok(())
    }

    /// Sets the first of the user's words: one store, no system call. As
    /// [`set`](Self::set) with [`Word::new(0, …)`](Word::new).
    ///
    /// # Errors
    ///
    /// ESTALE as [`Slot`] says.
    #[inline]
    pub fn set_user(&self, value: u64) -> Result<()> {
        let record = self.record("task_shared::Slot::set_user")?;
        record.inline()[0].store(value, Ordering::Relaxed);
        Ok(())
    }

    /// The first of the user's words.
    ///
    /// # Errors
    ///
    /// ESTALE as [`Slot`] says.
    pub fn user(&self) -> Result<u64> {
        Ok(self.record("task_shared::Slot::user")?.inline()[0].load(Ordering::Relaxed))
    }
}

#[cold]
fn beyond(operation: &'static str, first: usize, count: usize, words: usize) -> Error {
    Error::with(
        operation,
        Errno::INVAL,
        format_args!("{count} words from word {first} on, the slots of this process have {words}"),
    )
}

#[cold]
fn busy(operation: &'static str) -> Error {
    Error::because(
        operation,
        Errno::BUSY,
        "a publication of this thread is interrupted by this very call",
    )
}

#[cold]
fn stale(operation: &'static str) -> Error {
    Error::because(operation, Errno::STALE, "the slot is not this thread's any more")
}
