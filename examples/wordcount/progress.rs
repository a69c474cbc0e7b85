//! A bar for the job and a line for each worker, on a terminal.
//!
//! Nobody is asked: the words come from the per-CPU counters, the rest from the workers'
//! slots.

use crate::fleet::Member;
use crate::job::Job;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::cell::{Cell, RefCell};
use std::io::{IsTerminal, Write, stderr};
use std::time::Duration;
use unmerged::futex2::Deadline;

/// Between two drawings.
const PERIOD: Duration = Duration::from_millis(100);
/// Most lines of workers.
const LINES: usize = 16;

#[derive(Debug)]
pub(crate) struct Progress {
    /// `None` if stderr is no terminal.
    bars: Option<Bars>,
}

#[derive(Debug)]
struct Bars {
    all: MultiProgress,
    job: ProgressBar,
    workers: RefCell<Vec<ProgressBar>>,
    /// When they are drawn again.
    due: Cell<Deadline>,
}

impl Progress {
    /// For a job of so many bytes.
    pub(crate) fn new(bytes: u64) -> Self {
        let bars = stderr().is_terminal().then(|| {
            let all = MultiProgress::new();
            let style = "{bar:30} {bytes}/{total_bytes} {elapsed} {msg}";
            let style = ProgressStyle::with_template(style).expect("a constant");
            let job = all.add(ProgressBar::new(bytes).with_style(style));
            Bars { all, job, workers: RefCell::default(), due: Cell::new(Deadline::after(PERIOD)) }
        });
        Self { bars }
    }

    /// When the next drawing is due; `None`: never.
    pub(crate) fn deadline(&self) -> Option<Deadline> {
        self.bars.as_ref().map(|bars| bars.due.get())
    }

    /// Draws what the counters and the slots say, if it is time.
    pub(crate) fn draw(&self, job: &Job<'_>, members: &[Member]) {
        let Some(bars) = self.bars.as_ref().filter(|bars| bars.due.get().has_passed()) else {
            return;
        };
        bars.due.set(Deadline::after(PERIOD));
        let numbers: Vec<_> = members.iter().map(|member| (member, member.numbers())).collect();
        bars.job.set_position(numbers.iter().map(|(_, numbers)| numbers.bytes).sum());
        bars.job.set_message(format!("{} words", job.words.sum()));
        let mut lines = bars.workers.borrow_mut();
        for (n, (member, numbers)) in numbers.iter().take(LINES).enumerate() {
            if n == lines.len() {
                let style = ProgressStyle::with_template("{msg}").expect("a constant");
                lines.push(bars.all.add(ProgressBar::new(0).with_style(style)));
            }
            let (pid, megabytes, cpu) = (member.pid(), numbers.bytes / 1_000_000, numbers.cpu);
            let [ran, waited] = [numbers.stats.sum_exec_runtime, numbers.stats.run_delay]
                .map(|time| time as f64 / 1e9);
            let end = if member.end.is_some() { ", dead" } else { "" };
            lines[n].set_message(format!(
                "worker {pid}: {megabytes} MB, ran {ran:.2} s, waited {waited:.2} s, CPU {cpu}{end}"
            ));
        }
    }

    /// A line on stderr, above the bars.
    pub(crate) fn warn(&self, line: &str) {
        let warn = || drop(writeln!(stderr(), "wordcount: {line}"));
        match &self.bars {
            Some(bars) => bars.all.suspend(warn),
            None => warn(),
        }
    }

    /// Takes the bars away.
    pub(crate) fn finish(&self) {
        if let Some(bars) = &self.bars {
            bars.workers.borrow().iter().for_each(ProgressBar::finish_and_clear);
            bars.job.finish_and_clear();
        }
    }
}
