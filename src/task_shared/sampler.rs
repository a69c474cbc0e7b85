//! A thread that publishes for the others.

use super::hazard;
use super::process;
use super::rounds::{Counts, Rounds, Wanted};
use super::source;
use crate::error::{Context, Error, Result};
use crate::futex2::{Deadline, Futex};
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::sys::signals::Masked;
use crate::sys::thread;
use core::fmt;
use core::time::Duration;
use rustix::io::Errno;
use std::sync::Arc;
use std::thread::JoinHandle;

const OP: &str = "task_shared::Sampler::start";
/// Name of the thread; the kernel has room for 15 bytes.
const NAME: &str = "task-sampler";

/// Publishes the numbers of threads that do not do it themselves, until it is dropped.
///
/// It is one thread, named `task-sampler`, that sleeps between its rounds. In a round it asks
/// the kernel for the times and counts of each thread of this process that has a slot, and
/// publishes them there, unless the thread has published itself since the last round. So
/// the numbers of any thread are at most one period old, also those of a thread that is
/// blocked, or runs without ever calling this library again. (One is older: the delay of a
/// thread that waits for a CPU and is moved to another one while it waits, up to a second.)
///
/// # Which threads
///
/// Those with a slot; with [`all_threads`](Builder::all_threads) also those that never called
/// [`current`](super::current()). The sampler takes slots for these, in their name: it owns
/// such a slot, and [`Thread::is_sampled`](super::Thread::is_sampled) tells. New threads get
/// one within a second. The end of such a thread is seen in the next round, not at once as
/// that of an owner; the end of the process is seen at once. A thread that takes a slot of its own is
/// there twice until the next round. At most 2000 threads are published so: of more locks,
/// the kernel would not mark all when the process is killed.
///
/// # What it costs
///
/// For each thread and round one look at its CPU clock, and at its file if it has run since: 0.6
/// microseconds for a thread that sleeps, measured on a busy machine. Never more than the
/// [budget](Builder::budget): where a round took longer than the budget allows for the period,
/// the next one comes later. The files that it keeps open are in a descriptor
/// table of its own (Linux 5.9), so they count against no limit of the process and nobody
/// else can close them. Before, or where there are more threads than descriptors, it opens
/// the files of threads that have run each time, at four times the cost.
///
/// # What does not change
///
/// A thread still writes alone in its slot: sampler and owner exclude each other by the
/// slot's sequence, and a slot is not given to another while the sampler is in it. Numbers
/// never go back. A child of fork has no sampler; the handle that it inherited does nothing.
///
/// `off_cpu` counts from when the sampler first saw the thread, until the thread publishes
/// itself. `cpu` and `node` are those of the thread's own last publication.
///
/// # Examples
///
/// ```
/// use core::time::Duration;
/// use unmerged::task_shared::Sampler;
///
/// let sampler = match Sampler::builder().rate(20.0).budget(0.01).all_threads(true).start() {
///     Err(error) if error.is_unsupported() => return Ok(()), // no CONFIG_SCHED_INFO
///     sampler => sampler?,
/// };
/// sampler.wait_for_round(Duration::from_secs(5))?;
/// assert!(sampler.stats().threads >= 1);
/// # Ok::<(), unmerged::Error>(())
/// ```
pub struct Sampler {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// Of the process that started it.
    epoch: u64,
}

/// What handle and thread share.
#[derive(Debug)]
pub(super) struct Shared {
    /// 1 once it is to end.
    stop: Futex<u32>,
    /// Counts rounds, for those who wait for one.
    round: Futex<u32>,
    pub(super) counts: Counts,
}

/// What a [`Sampler`] has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct SamplerStats {
    /// Rounds that are over.
    pub rounds: u64,
    /// Threads that the last round published for.
    pub threads: u32,
    /// Threads that had published themselves before the last round.
    pub publishing: u32,
    /// Threads that the last round could not read or had no slot for, or for which
    /// [`only`](Builder::only) panicked.
    pub failed: u32,
    /// Times that the budget has put off a round.
    pub delayed: u64,
    /// CPU time of the sampler itself, in nanoseconds.
    pub cpu_time: u64,
}

/// How a [`Sampler`] is to work; made by [`Sampler::builder`].
#[derive(Debug)]
#[must_use = "nothing happens before `start`"]
pub struct Builder {
    rate: f64,
    budget: f64,
    wanted: Wanted,
}

impl Builder {
    /// Rounds in a second, from 0.001 to 1000; 10 if it is not set.
    pub fn rate(mut self, hz: f64) -> Self {
        self.rate = hz;
        self
    }

    /// The most that the sampler may use, as a share of one CPU, above 0 and up to 1; 0.01 if it
    /// is not set. Where its rate would cost more, the rate goes down.
    pub fn budget(mut self, share: f64) -> Self {
        self.budget = share;
        self
    }

    /// Whether threads without a slot are published, too; if it is not set, they are not.
    pub fn all_threads(mut self, all: bool) -> Self {
        self.wanted.all = all;
        self
    }

    /// Publishes only for threads that `wanted` says yes to; it is asked once for each
    /// thread, with id and name. It runs on the sampler's thread, which has neither standard
    /// input nor output.
    ///
    /// If it panics, the thread counts as [`failed`](SamplerStats::failed), and it is asked
    /// again in the next round.
    pub fn only(mut self, wanted: impl Fn(u32, &str) -> bool + Send + 'static) -> Self {
        self.wanted.only = Some(Box::new(wanted));
        self
    }

    /// Starts the sampler.
    ///
    /// # Errors
    ///
    /// EINVAL for a rate or budget out of range, EOPNOTSUPP if the kernel keeps no run delay
    /// or /proc is that of another pid namespace, EBUSY if this process has a sampler, EAGAIN or ENOMEM if there can be no thread, and
    /// those of [`current`](super::current()).
    pub fn start(self) -> Result<Sampler> {
        let Self { rate, budget, wanted } = self;
        if !(0.001..=1000.0).contains(&rate) {
            let message = format_args!("a rate of {rate} Hz, not from 0.001 to 1000");
            return Err(Error::with(OP, Errno::INVAL, message));
        }
        if !(budget > 0.0 && budget <= 1.0) {
            let message = format_args!("a budget of {budget} CPUs, not above 0 and up to 1");
            return Err(Error::with(OP, Errno::INVAL, message));
        }
        let from = |error: Error| error.within(OP);
        source::check_schedstat().map_err(from)?;
        if !source::knows_us() {
            let message = "/proc is that of another pid namespace, or it is hidden";
            return Err(Error::because(OP, Errno::OPNOTSUPP, message));
        }
        let (table, epoch) = process::table().map_err(from)?;
        if !hazard::claim(epoch) {
            return Err(Error::because(OP, Errno::BUSY, "this process has a sampler"));
        }
        let shared =
            Arc::new(Shared { stop: Futex::new(0), round: Futex::new(0), counts: Counts::new() });
        let theirs = shared.clone();
        let body = move || {
            let mut rounds = Rounds::new(table, wanted, rate);
            theirs.work(&mut rounds, Duration::from_secs_f64(1.0 / rate), budget);
        };
        // No handler runs on a thread that the program does not know about.
        let masked = Masked::all();
        let thread = std::thread::Builder::new().name(NAME.into()).spawn(body);
        drop(masked);
        match thread {
            Ok(thread) => Ok(Sampler { shared, thread: Some(thread), epoch }),
            Err(error) => {
                hazard::disclaim(epoch);
                let errno = error.raw_os_error().map_or(Errno::AGAIN, Errno::from_raw_os_error);
                Err(errno).op(OP)
            }
        }
    }
}

impl Shared {
    /// The thread's body.
    fn work(&self, rounds: &mut Rounds, period: Duration, budget: f64) {
        while self.stop.load(Ordering::Acquire) == 0 {
            let (begin, spent) = (thread::monotonic(), thread::cpu_time());
            rounds.round(&self.counts, begin);
            let after = thread::cpu_time();
            let cost = Duration::from_nanos(after - spent).div_f64(budget);
            self.counts.cpu_time.store(after, Ordering::Relaxed);
            if cost > period {
                self.counts.delayed.fetch_add(1, Ordering::Relaxed);
            }
            self.counts.rounds.fetch_add(1, Ordering::Release);
            self.round.fetch_add(1, Ordering::Release);
            self.round.wake_all();
            let next = Duration::from_nanos(begin).saturating_add(period.max(cost));
            let _ = self.stop.wait_while(0, Some(Deadline::monotonic(next)));
        }
    }
}

impl Sampler {
    /// A sampler of 10 rounds in a second for at most a hundredth of a CPU, for threads that
    /// have a slot.
    pub fn builder() -> Builder {
        Builder { rate: 10.0, budget: 0.01, wanted: Wanted::default() }
    }

    /// What it has done so far.
    pub fn stats(&self) -> SamplerStats {
        let counts = &self.shared.counts;
        let small = |count: &AtomicU32| count.load(Ordering::Relaxed);
        let large = |count: &AtomicU64| count.load(Ordering::Relaxed);
        SamplerStats {
            rounds: counts.rounds.load(Ordering::Acquire),
            threads: small(&counts.threads),
            publishing: small(&counts.publishing),
            failed: small(&counts.failed),
            delayed: large(&counts.delayed),
            cpu_time: large(&counts.cpu_time),
        }
    }

    /// Waits until a round that begins after this call is over, for at most so long.
    ///
    /// # Errors
    ///
    /// ETIMEDOUT; ESTALE in a child of fork, which has no sampler.
    pub fn wait_for_round(&self, most: Duration) -> Result<()> {
        const OP: &str = "task_shared::Sampler::wait_for_round";
        if self.epoch != process::epoch() {
            return Err(Error::because(OP, Errno::STALE, "the sampler is another process's"));
        }
        let deadline = Deadline::after(most);
        let begin = self.shared.round.load(Ordering::Acquire);
        // The round that is going on, if one is, has begun before.
        while self.shared.round.load(Ordering::Acquire).wrapping_sub(begin) < 2 {
            let now = self.shared.round.load(Ordering::Acquire);
            if now.wrapping_sub(begin) < 2 {
                let waited = self.shared.round.wait_while(now, Some(deadline));
                waited.map_err(|error| error.within(OP))?;
            }
        }
        Ok(())
    }

    /// Ends it, and waits for its thread. Dropping does the same.
    pub fn stop(self) {}
}

impl Drop for Sampler {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        if self.epoch != process::epoch() {
            // Nobody would ever end it here: the child has not inherited the thread.
            core::mem::forget(thread);
            return;
        }
        self.shared.stop.store(1, Ordering::Release);
        self.shared.stop.wake_all();
        // It does not panic.
        let _ = thread.join();
        hazard::disclaim(self.epoch);
    }
}

impl fmt::Debug for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sampler").field("stats", &self.stats()).finish_non_exhaustive()
    }
}
