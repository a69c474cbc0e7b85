//! The parent: starts the workers, merges what they publish, and answers for their deaths.

use crate::Result;
use crate::corpus::Corpus;
use crate::fleet::{Fleet, Member};
use crate::job::{FINISHED, FREE, Job, Outcome, claim_of};
use crate::map::Map;
use crate::progress::Progress;
use crate::totals::Totals;
use core::sync::atomic::Ordering;
use std::collections::HashMap;
use std::io;
use std::time::{Duration, Instant};

/// Workers that may die in the middle of a file before it is given up.
pub(crate) const ATTEMPTS: u32 = 3;
/// Workers that may die elsewhere before the job is given up.
const DEATHS: u32 = 16;

/// What a count found.
#[derive(Debug)]
pub(crate) struct Report<'r> {
    pub(crate) totals: Totals<'r>,
    pub(crate) counted: usize,
    pub(crate) binary: usize,
    /// What could not be read, and why.
    pub(crate) unreadable: Vec<String>,
    /// All workers, the dead ones too.
    pub(crate) members: Vec<Member>,
    /// The one that was killed in the middle of a file, as asked for.
    pub(crate) killed: Option<u32>,
    /// Words and bytes that the per-CPU counters may lack; see [`crate::job`].
    pub(crate) in_doubt: [u64; 2],
    /// From the start of the first worker to the end of the last merge.
    pub(crate) time: Duration,
}

/// Counts the job with so many workers.
///
/// # Errors
///
/// Workers cannot be started, or die for no file's sake; a result makes no sense.
pub(crate) fn count<'r>(job: &Job<'r>, corpus: &Corpus, kill_one: bool) -> Result<Report<'r>> {
    let progress = Progress::new(corpus.bytes());
    for line in &corpus.unreadable {
        progress.warn(line);
    }
    let start = Instant::now();
    std::thread::scope(|scope| {
        let mut fleet = Fleet::new(scope, job);
        fleet.start(0..job.seats.len())?;
        let mut desk = Desk::new(job, &progress);
        desk.report.unreadable.clone_from(&corpus.unreadable);
        let mut wants_kill = kill_one;
        loop {
            // Before the look, so that what is announced after it ends the sleep.
            let seen = job.results().load(Ordering::Acquire);
            desk.merge()?;
            if desk.merged == job.files.len() {
                break;
            }
            if wants_kill && let Some(pid) = fleet.kill_halted()? {
                desk.report.killed = Some(pid);
                wants_kill = false;
            }
            let empty = fleet.reap()?;
            if !empty.is_empty() {
                desk.take_back(&empty)?;
                fleet.start(empty.into_iter())?;
                job.offer();
                continue;
            }
            progress.draw(job, &fleet.members);
            match job.results().wait_while(seen, progress.deadline()) {
                Err(error) if !error.is_timed_out() => return Err(error.into()),
                _ => {}
            }
        }
        desk.report.time = start.elapsed();
        fleet.close()?;
        progress.finish();
        desk.look_for_doubt()?;
        desk.report.members = std::mem::take(&mut fleet.members);
        Ok(desk.report)
    })
}

/// The parent's view of the files.
struct Desk<'j, 'r> {
    job: &'j Job<'r>,
    progress: &'j Progress,
    report: Report<'r>,
    /// Files that were offered to somebody and have no result yet.
    pending: Vec<usize>,
    /// Files that were ever pending.
    offered: usize,
    /// Files whose result is in the report.
    merged: usize,
    /// Workers that died of a file.
    attempts: HashMap<usize, u32>,
    /// Workers that died elsewhere.
    deaths: u32,
}

impl<'j, 'r> Desk<'j, 'r> {
    fn new(job: &'j Job<'r>, progress: &'j Progress) -> Self {
        let report = Report {
            totals: Totals::default(),
            counted: 0,
            binary: 0,
            unreadable: Vec::new(),
            members: Vec::new(),
            killed: None,
            in_doubt: [0; 2],
            time: Duration::ZERO,
        };
        let attempts = HashMap::new();
        Self {
            job,
            progress,
            report,
            pending: Vec::new(),
            offered: 0,
            merged: 0,
            attempts,
            deaths: 0,
        }
    }

    /// Takes up the results that are there. Few files are pending at a time, so each look is
    /// short.
    fn merge(&mut self) -> Result<()> {
        let offered = self.job.offered();
        self.pending.extend(self.offered..offered);
        self.offered = offered;
        let mut at = 0;
        while let Some(&file) = self.pending.get(at) {
            match self.job.files[file].outcome() {
                None => at += 1,
                Some(outcome) => {
                    self.pending.swap_remove(at);
                    self.take(file, outcome)?;
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, file: usize, outcome: Outcome) -> Result<()> {
        let path = self.job.path(&self.job.files[file])?.display();
        self.merged += 1;
        let problem = match outcome {
            Outcome::Counted(map) => {
                // SAFETY: an address that was published as a map's, read with acquire.
                let map = unsafe { Map::at(self.job.region, map) }?;
                self.report.totals.merge(map, self.job.region)?;
                self.report.counted += 1;
                let listed = self.job.files[file].size;
                if map.bytes < listed {
                    let read = map.bytes;
                    self.progress.warn(&format!("{path}: {listed} bytes when listed, now {read}"));
                }
                return Ok(());
            }
            Outcome::Binary => {
                self.report.binary += 1;
                return Ok(());
            }
            Outcome::Deadly => format!("{path}: {ATTEMPTS} workers died in the middle of it"),
            Outcome::Failed(errno) => format!("{path}: {}", io::Error::from_raw_os_error(errno)),
        };
        self.progress.warn(&problem);
        self.report.unreadable.push(problem);
        Ok(())
    }

    /// Frees the files that dead workers had claimed, or gives them up. What they published
    /// in their last moment is taken up as ever.
    fn take_back(&mut self, seats: &[usize]) -> Result<()> {
        self.merge()?;
        for &seat in seats {
            let claimed =
                |&file: &usize| self.job.claims[file].load(Ordering::Acquire) == claim_of(seat);
            let Some(file) = self.pending.iter().copied().find(claimed) else {
                self.deaths += 1;
                if self.deaths >= DEATHS {
                    return Err(format!("{DEATHS} workers died, none of them of a file").into());
                }
                continue;
            };
            let attempts = self.attempts.entry(file).or_default();
            *attempts += 1;
            if *attempts < ATTEMPTS {
                self.job.claims[file].store(FREE, Ordering::Release);
            } else {
                self.job.files[file].publish(Outcome::Deadly);
                self.job.claims[file].store(FINISHED, Ordering::Release);
            }
        }
        Ok(())
    }

    /// Once all workers are gone: what may be missing in the counters.
    fn look_for_doubt(&mut self) -> Result<()> {
        for (file, claim) in self.job.files.iter().zip(self.job.claims) {
            if claim.load(Ordering::Acquire) != FINISHED
                && let Some(Outcome::Counted(map)) = file.outcome()
            {
                // SAFETY: as in `take`.
                let map = unsafe { Map::at(self.job.region, map) }?;
                self.report.in_doubt[0] += map.words;
                self.report.in_doubt[1] += map.bytes;
            }
        }
        Ok(())
    }
}
