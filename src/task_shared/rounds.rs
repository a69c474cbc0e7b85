//! What the sampler does in its rounds.
//!
//! A slot that the sampler meets is remembered by its generation, with the thread's files.
//! These are opened by the thread's id, and then the slot is looked at again: if its owner is
//! still alive and holds it, the id was its own all the time.

use super::hazard;
use super::held::Held;
use super::liveness::is_held;
use super::owner::Label;
use super::record::{Reading, Record, SchedStats, Values};
use super::source::{self, Remote};
use super::table::Table;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::sys::thread;
use core::fmt;
use core::mem;
use core::panic::AssertUnwindSafe;
use rustix::fd::OwnedFd;
use rustix::fs::Dir;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::panic;

/// Slots that the sampler owns for others at most: the kernel marks 2048 locks of a thread
/// that dies (`ROBUST_LIST_LIMIT`), and libc may hold some.
const MOST_PROXIES: usize = 2000;
/// Nanoseconds between two looks for threads without a slot.
const LISTING: u64 = 1_000_000_000;

/// What was done, for whoever holds the handle.
#[derive(Debug)]
pub(super) struct Counts {
    pub(super) rounds: AtomicU64,
    pub(super) threads: AtomicU32,
    pub(super) publishing: AtomicU32,
    pub(super) failed: AtomicU32,
    pub(super) delayed: AtomicU64,
    pub(super) cpu_time: AtomicU64,
}

impl Counts {
    pub(super) fn new() -> Self {
        Self {
            rounds: AtomicU64::new(0),
            threads: AtomicU32::new(0),
            publishing: AtomicU32::new(0),
            failed: AtomicU32::new(0),
            delayed: AtomicU64::new(0),
            cpu_time: AtomicU64::new(0),
        }
    }
}

/// A filter by id and name.
type Filter = Box<dyn Fn(u32, &str) -> bool + Send>;

/// Which threads are published for.
#[derive(Default)]
pub(super) struct Wanted {
    /// Also those without a slot.
    pub(super) all: bool,
    pub(super) only: Option<Filter>,
}

impl Wanted {
    /// Is the thread wanted? `None` if the filter panicked.
    fn wants(&self, tid: u32, name: &[u8; 16]) -> Option<bool> {
        let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
        let name = String::from_utf8_lossy(&name[..end]);
        let Some(only) = &self.only else { return Some(true) };
        // What it leaves half-done is the business of whoever wrote it.
        panic::catch_unwind(AssertUnwindSafe(|| only(tid, &name))).ok()
    }
}

impl fmt::Debug for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wanted").field("all", &self.all).finish_non_exhaustive()
    }
}

/// A life in a slot that the sampler has met.
#[derive(Debug)]
struct Known {
    generation: u32,
    /// `None` for a thread that the filter does not want.
    thread: Option<Remote>,
    /// The time that we published last; 0 for never.
    updated: u64,
}

/// A slot that the sampler owns for a thread that never asked for one.
#[derive(Debug)]
struct Proxy {
    held: Held,
    thread: Remote,
}

/// What became of one thread in one round.
enum Outcome {
    Published,
    /// By the thread itself.
    Publishing,
    /// There is nobody, or somebody who is not wanted.
    Nobody,
    Failed,
}

/// The sampler's memory.
#[derive(Debug)]
pub(super) struct Rounds {
    table: &'static Table,
    wanted: Wanted,
    /// A publication that is not older than this is not repeated, in nanoseconds.
    fresh: u64,
    /// The directory of our threads, once it could be opened.
    tasks: Option<OwnedFd>,
    /// May descriptors be kept? Only in a table of our own.
    keep: bool,
    known: Vec<Option<Known>>,
    /// By thread id.
    proxies: BTreeMap<u32, Proxy>,
    listed: u64,
}

impl Rounds {
    /// To be made by the thread that does the rounds.
    pub(super) fn new(table: &'static Table, wanted: Wanted, rate: f64) -> Self {
        Self {
            table,
            wanted,
            fresh: (0.75e9 / rate) as u64,
            tasks: None,
            keep: table.unshare_descriptors(),
            known: Vec::new(),
            proxies: BTreeMap::new(),
            listed: 0,
        }
    }

    /// One look at every thread.
    pub(super) fn round(&mut self, counts: &Counts, now: u64) {
        let (mut threads, mut publishing, mut failed) = (0, 0, 0);
        let tasks = self.tasks.take().or_else(|| source::open_tasks().ok());
        if let Some(tasks) = &tasks {
            if self.wanted.all && (self.listed == 0 || now - self.listed >= LISTING) {
                self.listed = now;
                failed += self.list(tasks);
            }
            let slots = self.table.committed().unwrap_or(0);
            self.known.resize_with(slots.max(self.known.len()), || None);
            for place in 0..slots {
                match self.visit(tasks, place) {
                    Outcome::Published => threads += 1,
                    Outcome::Publishing => publishing += 1,
                    Outcome::Nobody => {}
                    Outcome::Failed => failed += 1,
                }
            }
            self.proxies.retain(|_, proxy| match publish_for(proxy, tasks) {
                Outcome::Published => {
                    threads += 1;
                    true
                }
                Outcome::Failed => {
                    failed += 1;
                    true
                }
                Outcome::Publishing | Outcome::Nobody => {
                    proxy.held.release_apart();
                    false
                }
            });
        } else {
            failed += 1;
        }
        self.tasks = tasks;
        for (count, value) in
            [(&counts.threads, threads), (&counts.publishing, publishing), (&counts.failed, failed)]
        {
            count.store(value, Ordering::Relaxed);
        }
    }

    /// Publishes for the owner of one slot.
    fn visit(&mut self, tasks: &OwnedFd, place: usize) -> Outcome {
        let Some((record, owner)) = self.table.shared(place) else { return Outcome::Nobody };
        // Odd: the owner is publishing, or died in the middle.
        let Some(sequence) = record.quiet() else { return Outcome::Publishing };
        let Some(Reading { generation, quiet: true, values, .. }) = record.read() else {
            return Outcome::Nobody;
        };
        // Ours, for somebody else.
        if values.keeper != 0 {
            return Outcome::Nobody;
        }
        let known = match self.known[place].take().filter(|known| known.generation == generation) {
            Some(known) => known,
            None => {
                if let Some(twice) = self.proxies.remove(&values.tid) {
                    twice.held.release_apart();
                }
                match self.meet(tasks, record, owner, generation, values.tid) {
                    Ok(known) => known,
                    Err(outcome) => return outcome,
                }
            }
        };
        let known = self.known[place].insert(known);
        let Some(thread) = &mut known.thread else { return Outcome::Nobody };
        let now = thread::monotonic();
        if values.updated != known.updated && now.saturating_sub(values.updated) < self.fresh {
            return Outcome::Publishing;
        }
        match thread.read(tasks, values.stats, now) {
            // Without a file that stays open the id may be another thread's by now.
            Ok(_) if !self.keep && !is_held(owner, &record.generation, values.tid, generation) => {
                Outcome::Nobody
            }
            Ok(stats) => {
                let values = values.later(now, stats);
                if hazard::write(record, generation, sequence, values) {
                    known.updated = now;
                    Outcome::Published
                } else {
                    Outcome::Publishing
                }
            }
            Err(Errno::SRCH | Errno::NOENT) => Outcome::Nobody,
            Err(_) => Outcome::Failed,
        }
    }

    /// The thread of a slot, met for the first time.
    fn meet(
        &self,
        tasks: &OwnedFd,
        record: &Record,
        owner: &AtomicU32,
        generation: u32,
        tid: u32,
    ) -> Result<Known, Outcome> {
        let known = |thread| Known { generation, thread, updated: 0 };
        let name = source::name_of(tasks, tid).map_err(|_| Outcome::Nobody)?;
        if !self.wanted.wants(tid, &name).ok_or(Outcome::Failed)? {
            return Ok(known(None));
        }
        let thread = match Remote::open(tasks, tid, self.keep) {
            Ok(thread) => thread,
            Err(Errno::SRCH | Errno::NOENT) => return Err(Outcome::Nobody),
            Err(_) => return Err(Outcome::Failed),
        };
        if is_held(owner, &record.generation, tid, generation) {
            Ok(known(Some(thread)))
        } else {
            Err(Outcome::Nobody)
        }
    }

    /// Takes slots for threads that have none; how many could not get one.
    fn list(&mut self, tasks: &OwnedFd) -> u32 {
        let (slots, mut failed) = (self.table.committed().unwrap_or(0), 0);
        let readings = (0..slots).filter_map(|place| self.table.shared(place)?.0.read());
        let mut taken: Vec<u32> = readings.map(|reading| reading.values.tid).collect();
        taken.sort_unstable();
        for entry in Dir::read_from(tasks).into_iter().flatten().flatten() {
            let tid = entry.file_name().to_str().ok().and_then(|name| name.parse().ok());
            let Some(tid) = tid.filter(|tid| taken.binary_search(tid).is_err()) else { continue };
            if self.proxies.contains_key(&tid) {
                continue;
            }
            match self.stand_in(tasks, tid) {
                Ok(Some(proxy)) => {
                    self.proxies.insert(tid, proxy);
                }
                Ok(None) => {}
                Err(()) => failed += 1,
            }
        }
        failed
    }

    /// Takes a slot for the thread `tid`; `None` if it is gone or not wanted.
    fn stand_in(&self, tasks: &OwnedFd, tid: u32) -> Result<Option<Proxy>, ()> {
        let Ok(name) = source::name_of(tasks, tid) else { return Ok(None) };
        if !self.wanted.wants(tid, &name).ok_or(())? {
            return Ok(None);
        }
        if self.proxies.len() >= MOST_PROXIES {
            return Err(());
        }
        // Its name may be that of an earlier thread of the same id; nothing else is.
        let remote = match Remote::open(tasks, tid, self.keep) {
            Ok(thread) => thread,
            Err(Errno::SRCH | Errno::NOENT) => return Ok(None),
            Err(_) => return Err(()),
        };
        let held = if self.keep { self.table.take_apart() } else { self.table.take() };
        let held = held.map_err(drop)?;
        let (keeper, unknown) = (thread::id(), u32::MAX);
        let values = Values { tid, keeper, cpu: unknown, node: unknown, ..Values::default() };
        let label = Label { name, since: thread::monotonic() };
        let proxy = Proxy { held, thread: remote };
        match held.begin(values, label) {
            Ok(()) => Ok(Some(proxy)),
            Err(_) => {
                held.release_apart();
                Err(())
            }
        }
    }
}

impl Drop for Rounds {
    fn drop(&mut self) {
        for proxy in mem::take(&mut self.proxies).into_values() {
            proxy.held.release_apart();
        }
    }
}

/// Publishes in a slot of our own for a thread that has none.
fn publish_for(proxy: &mut Proxy, tasks: &OwnedFd) -> Outcome {
    let record = proxy.held.record();
    let now = thread::monotonic();
    let (Some(sequence), Some(reading)) = (record.quiet(), record.read()) else {
        return Outcome::Failed;
    };
    match proxy.thread.read(tasks, reading.values.stats, now) {
        Ok(stats) => {
            record.publish(sequence, reading.values.later(now, stats));
            Outcome::Published
        }
        Err(Errno::SRCH | Errno::NOENT) => Outcome::Nobody,
        Err(_) => Outcome::Failed,
    }
}

impl Values {
    /// The same with what was read at the time `now`. Nothing goes back: a later look by
    /// another way may be a little behind.
    fn later(self, now: u64, read: SchedStats) -> Self {
        let last = self.stats;
        let ran = read.sum_exec_runtime.saturating_sub(last.sum_exec_runtime);
        let off = match self.updated {
            0 => 0,
            updated => now.saturating_sub(updated).saturating_sub(ran),
        };
        let stats = SchedStats {
            sum_exec_runtime: read.sum_exec_runtime.max(last.sum_exec_runtime),
            run_delay: read.run_delay.max(last.run_delay),
            pcount: read.pcount.max(last.pcount),
            off_cpu: last.off_cpu.saturating_add(off),
        };
        Self { stats, updated: now.max(self.updated), ..self }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn numbers_never_go_back() {
        let stats = |sum_exec_runtime, run_delay, pcount, off_cpu| SchedStats {
            sum_exec_runtime,
            run_delay,
            pcount,
            off_cpu,
        };
        let first = Values::default().later(100, stats(40, 5, 2, 0));
        assert_eq!((first.stats, first.updated), (stats(40, 5, 2, 0), 100));
        let second = first.later(200, stats(70, 9, 3, 0));
        assert_eq!((second.stats, second.updated), (stats(70, 9, 3, 70), 200));
        let behind = second.later(150, stats(60, 8, 3, 0));
        assert_eq!((behind.stats, behind.updated), (second.stats, 200));
    }
}
