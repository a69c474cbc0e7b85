//! What is known of the threads: numbers of now, shares since the last publication, and some
//! history.

use std::collections::{HashMap, VecDeque};
use unmerged::task_shared::{Field, Handle, Monitor, SchedStats, Thread, Value};

/// Shares that a line of history has.
pub(crate) const HISTORY: usize = 24;

/// What threads are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Order {
    /// Share of a CPU
    Cpu,
    /// Share of the time that it waited for a CPU
    Delay,
    /// Share of the time off the CPU
    Off,
    /// The first of the user's words
    Word,
    /// Thread id
    Tid,
    /// Name
    Name,
}

/// What a thread did of late, as far as its numbers tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Mostly on a CPU.
    Runs,
    /// Mostly waiting for a CPU.
    Waits,
    /// Mostly blocked.
    Sleeps,
    /// It has not published since the last look.
    Silent,
    /// It has never published.
    New,
    Dead,
}

impl State {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Runs => "runs",
            Self::Waits => "waits",
            Self::Sleeps => "sleeps",
            Self::Silent => "silent",
            Self::New => "new",
            Self::Dead => "dead",
        }
    }
}

/// Shares of the time between two publications, 0 to 1.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Shares {
    pub(crate) cpu: f64,
    pub(crate) delay: f64,
    pub(crate) off: f64,
}

/// One thread.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) tid: u32,
    pub(crate) generation: u32,
    pub(crate) name: String,
    pub(crate) state: State,
    pub(crate) cpu: Option<u32>,
    pub(crate) node: Option<u32>,
    pub(crate) stats: SchedStats,
    /// CLOCK_MONOTONIC of its last publication, in nanoseconds; 0 before it.
    pub(crate) updated: u64,
    pub(crate) shares: Shares,
    /// The words that the process has declared, or the first one.
    pub(crate) words: Vec<Value>,
    /// The latest last.
    pub(crate) history: VecDeque<f64>,
    /// Was it there in the last look?
    seen: bool,
}

/// The threads of one process.
#[derive(Debug)]
pub(crate) struct Table<'m> {
    monitor: &'m Monitor,
    rows: HashMap<Handle, Row>,
    sorted: Vec<Handle>,
    pub(crate) order: Order,
    pub(crate) reverse: bool,
    /// CLOCK_MONOTONIC of the last look, in nanoseconds.
    pub(crate) now: u64,
    ended: bool,
}

impl<'m> Table<'m> {
    pub(crate) fn new(monitor: &'m Monitor, order: Order) -> Self {
        let (rows, sorted) = (HashMap::new(), Vec::new());
        Self { monitor, rows, sorted, order, reverse: false, now: 0, ended: false }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.monitor.pid()
    }

    /// The words that the process has declared.
    pub(crate) fn fields(&self) -> &'m [Field] {
        self.monitor.fields()
    }

    /// What to call the columns of words.
    pub(crate) fn word_names(&self) -> Vec<String> {
        if self.fields().is_empty() {
            return vec!["word".to_owned()];
        }
        let named = |field: &Field| match field.unit.as_str() {
            "" | "1" => field.name.clone(),
            unit => format!("{} ({unit})", field.name),
        };
        self.fields().iter().map(named).collect()
    }

    /// The threads in order.
    pub(crate) fn rows(&self) -> impl ExactSizeIterator<Item = &Row> {
        self.sorted.iter().map(|handle| &self.rows[handle])
    }

    /// Has the process ended, or executed another program?
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Looks at the process: memory, and no system call unless a thread has died in its slot.
    pub(crate) fn refresh(&mut self) {
        self.now = now();
        self.rows.values_mut().for_each(|row| row.seen = false);
        for thread in self.monitor.threads() {
            let fields = self.monitor.fields();
            self.rows
                .entry(thread.handle())
                .or_insert_with(|| Row::new(&thread))
                .look(&thread, fields);
        }
        self.rows.retain(|_, row| row.seen);
        let any_dead = self.rows.values().any(|row| row.state == State::Dead);
        self.ended |= any_dead && !self.monitor.is_running();
        self.sort();
    }

    /// Sorts anew, after a change of the order.
    pub(crate) fn sort(&mut self) {
        self.sorted.clear();
        self.sorted.extend(self.rows.keys());
        let key = |row: &Row| match self.order {
            Order::Cpu => -row.shares.cpu,
            Order::Delay => -row.shares.delay,
            Order::Off => -row.shares.off,
            Order::Word => row.words.first().map_or(0.0, |word| -number(word)),
            Order::Tid | Order::Name => 0.0,
        };
        self.sorted.sort_by(|a, b| {
            let (a, b) = (&self.rows[a], &self.rows[b]);
            let order = key(a).total_cmp(&key(b));
            let names = if self.order == Order::Name { a.name.cmp(&b.name) } else { order };
            let order = names.then(a.tid.cmp(&b.tid)).then(a.generation.cmp(&b.generation));
            if self.reverse { order.reverse() } else { order }
        });
    }
}

impl Row {
    fn new(thread: &Thread<'_>) -> Self {
        Self {
            tid: thread.tid(),
            generation: thread.generation(),
            name: thread.name().into_owned(),
            state: State::New,
            cpu: None,
            node: None,
            stats: thread.stats(),
            updated: thread.updated(),
            shares: Shares::default(),
            words: Vec::new(),
            history: VecDeque::with_capacity(HISTORY),
            seen: true,
        }
    }

    fn look(&mut self, thread: &Thread<'_>, fields: &[Field]) {
        let (last, now) = (self.stats, thread.stats());
        let span = thread.updated().saturating_sub(self.updated);
        if span > 0 && self.updated > 0 {
            let share =
                |now: u64, last: u64| (now.saturating_sub(last) as f64 / span as f64).min(1.0);
            self.shares = Shares {
                cpu: share(now.sum_exec_runtime, last.sum_exec_runtime),
                delay: share(now.run_delay, last.run_delay),
                off: share(now.off_cpu, last.off_cpu),
            };
        }
        let Shares { cpu, delay, off } = self.shares;
        self.state = match (thread.is_alive(), thread.updated(), span) {
            (false, ..) => State::Dead,
            (_, 0, _) => State::New,
            (.., 0) => State::Silent,
            _ if cpu >= 0.5 => State::Runs,
            _ if delay > cpu && delay >= off - delay => State::Waits,
            _ if cpu >= off => State::Runs,
            _ => State::Sleeps,
        };
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(if self.state == State::Dead { 0.0 } else { cpu });
        (self.cpu, self.node) = match thread.whereabouts() {
            Some(live) => (Some(live.cpu), live.node),
            None => (known(thread.cpu()), known(thread.node())),
        };
        (self.stats, self.updated, self.seen) = (now, thread.updated(), true);
        self.words.clear();
        self.words.extend(fields.iter().filter_map(|field| thread.value(field)));
        if fields.is_empty() {
            self.words.push(Value::U64(thread.user()));
        }
    }

    /// Seconds since the last publication.
    pub(crate) fn age(&self, now: u64) -> Option<f64> {
        (self.updated > 0).then(|| now.saturating_sub(self.updated) as f64 / 1e9)
    }
}

/// A word as a number to sort by, or to export.
pub(crate) fn number(value: &Value) -> f64 {
    match *value {
        Value::U64(value) => value as f64,
        Value::I64(value) => value as f64,
        Value::F64(value) => value,
        Value::Bool(value) => value.into(),
        _ => f64::NAN,
    }
}

/// A CPU or node, unless it is not known.
fn known(number: u32) -> Option<u32> {
    (number != u32::MAX).then_some(number)
}

fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
