//! Rows, arms, rounds.

use std::sync::Barrier;
use std::time::Instant;

/// What the command line asks for.
pub(crate) struct Options {
    prefix: String,
    json: bool,
    rounds: usize,
    /// Seconds that one arm runs in one round.
    span: f64,
}

impl Options {
    pub(crate) fn from_args() -> Self {
        let mut options = Self { prefix: String::new(), json: false, rounds: 1, span: 0.0001 };
        let mut args = std::env::args().skip(1).peekable();
        let mut rounds = 15;
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--bench" => options.span = 0.02,
                "--json" => options.json = true,
                "--rounds" => {
                    let number = args.next().and_then(|number| number.parse().ok());
                    rounds = number.expect("--rounds takes a number");
                }
                prefix if !prefix.starts_with('-') => options.prefix = prefix.to_owned(),
                _ => {} // of libtest
            }
        }
        if options.is_measured() {
            options.rounds = rounds.max(1);
        }
        options
    }

    /// Whether a row of this name was asked for.
    pub(crate) fn wants(&self, name: &str) -> bool {
        name.starts_with(&self.prefix)
    }

    /// Whether rows are lines for programs.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Whether the figures will mean anything.
    pub(crate) fn is_measured(&self) -> bool {
        self.span > 0.001
    }
}

/// What a row has to reach against one peer.
#[derive(Clone, Copy)]
pub(crate) enum Target {
    /// At least this many times as fast as the peer.
    Faster(f64),
    /// At most this many times the peer's time.
    Within(f64),
    /// For comparison.
    None,
}

/// One way to do the thing: does it `n` times, answers the units used (nanoseconds).
type Arm<'a> = Box<dyn FnMut(u64) -> f64 + Send + 'a>;

pub(crate) struct Row<'a> {
    name: &'static str,
    unit: &'static str,
    ours: Arm<'a>,
    /// At most so many units.
    limit: Option<f64>,
    peers: Vec<(&'static str, Target, Arm<'a>)>,
}

/// An arm that does `op` once per operation.
pub(crate) fn each<'a>(op: impl Fn() + Send + 'a) -> Arm<'a> {
    Box::new(move |n| {
        let start = Instant::now();
        for _ in 0..n {
            op();
        }
        start.elapsed().as_nanos() as f64
    })
}

/// An arm that does `op` on one item after the other, again and again.
pub(crate) fn in_turn<'a, T: Sync>(items: &'a [T], op: impl Fn(&T) + Send + 'a) -> Arm<'a> {
    Box::new(move |n| {
        let passes = (n / items.len() as u64).max(1);
        let start = Instant::now();
        for _ in 0..passes {
            let (eights, rest) = items.as_chunks::<8>();
            for [a, b, c, d, e, f, g, h] in eights {
                op(a);
                op(b);
                op(c);
                op(d);
                op(e);
                op(f);
                op(g);
                op(h);
            }
            rest.iter().for_each(&op);
        }
        let done = passes * items.len() as u64;
        start.elapsed().as_nanos() as f64 * n as f64 / done as f64
    })
}

/// `threads` threads, each pinned to the next CPU, do `op` `n` times each; the time from the first
/// begin to the last end, divided by the operations of all: a perfect speed-up over one
/// thread divides it by the number of CPUs.
pub(crate) fn together(threads: usize, n: u64, op: &(dyn Fn(u64) + Sync)) -> f64 {
    together_on(usize::MAX, threads, n, op)
}

/// The same on the first `cpus` CPUs alone.
fn together_on(cpus: usize, threads: usize, n: u64, op: &(dyn Fn(u64) + Sync)) -> f64 {
    let start = Barrier::new(threads);
    let spans: Vec<(Instant, Instant)> = std::thread::scope(|scope| {
        let start = &start;
        let run = move |me| {
            pin(me % cpus);
            op(n.min(1000));
            start.wait();
            let begin = Instant::now();
            op(n);
            (begin, Instant::now())
        };
        let all: Vec<_> = (0..threads).map(|me| scope.spawn(move || run(me))).collect();
        all.into_iter().map(|thread| thread.join().expect("an arm does not panic")).collect()
    });
    // With more threads than CPUs some wait for others to end.
    let begin = spans.iter().map(|span| span.0).min();
    let end = spans.iter().map(|span| span.1).max();
    end.zip(begin).map_or(0.0, |(end, begin)| (end - begin).as_nanos() as f64) / threads as f64
}

/// An arm in which so many threads do `op`; see [`together`].
pub(crate) fn by_all<'a>(threads: usize, op: impl Fn() + Sync + Send + 'a) -> Arm<'a> {
    by_all_on(usize::MAX, threads, op)
}

/// The same on the first `cpus` CPUs alone.
pub(crate) fn by_all_on<'a>(
    cpus: usize,
    threads: usize,
    op: impl Fn() + Sync + Send + 'a,
) -> Arm<'a> {
    Box::new(move |n| together_on(cpus, threads, n, &|n| (0..n).for_each(|_| op())))
}

impl<'a> Row<'a> {
    pub(crate) fn new(name: &'static str, ours: Arm<'a>) -> Self {
        Self { name, unit: "ns", ours, limit: None, peers: Vec::new() }
    }

    /// Figures in another unit than nanoseconds.
    pub(crate) fn unit(mut self, unit: &'static str) -> Self {
        self.unit = unit;
        self
    }

    pub(crate) fn limit(mut self, units: f64) -> Self {
        self.limit = Some(units);
        self
    }

    pub(crate) fn peer(mut self, name: &'static str, target: Target, arm: Arm<'a>) -> Self {
        self.peers.push((name, target, arm));
        self
    }

    /// Runs the rounds and prints the row, if it is one of those that are wanted.
    pub(crate) fn run(mut self, options: &Options) {
        if !options.wants(self.name) {
            return;
        }
        let mut arms: Vec<&mut Arm<'a>> = vec![&mut self.ours];
        arms.extend(self.peers.iter_mut().map(|(_, _, arm)| arm));
        let counts: Vec<u64> = arms.iter_mut().map(|arm| calibrate(arm, options.span)).collect();
        let mut figures = vec![Vec::new(); arms.len()];
        for round in 0..options.rounds {
            for turn in 0..arms.len() {
                // Each round begins with another arm.
                let arm = (round + turn) % arms.len();
                figures[arm].push(arms[arm](counts[arm]) / counts[arm] as f64);
            }
        }
        let medians: Vec<f64> = figures.into_iter().map(median).collect();
        self.print(options, &medians);
    }

    fn print(&self, options: &Options, medians: &[f64]) {
        let (ours, theirs) = (medians[0], &medians[1..]);
        if options.json {
            let peers: serde_json::Map<_, _> = self
                .peers
                .iter()
                .zip(theirs)
                .map(|((name, ..), figure)| ((*name).to_owned(), rounded(*figure).into()))
                .collect();
            let mut line = serde_json::json!({
                "name": self.name, "ours_ns": rounded(ours), "peers": peers,
            });
            if self.unit != "ns" {
                line["unit"] = self.unit.into();
            }
            println!("{line}");
            return;
        }
        println!("{:<28} {:>10} {}", self.name, rounded(ours), self.unit);
        let verdict = |reached| match (options.is_measured(), reached) {
            (false, _) => "",
            (true, true) => ": reached",
            (true, false) => ": MISSED",
        };
        if let Some(limit) = self.limit {
            println!("{:>50} {limit} {}{}", "to reach: at most", self.unit, verdict(ours <= limit));
        }
        for ((name, target, _), figure) in self.peers.iter().zip(theirs) {
            let ratio = figure / ours;
            let says = match target {
                Target::Faster(times) => format!("to reach {times}{}", verdict(ratio >= *times)),
                Target::Within(times) => {
                    format!("to stay within {times}{}", verdict(1.0 / ratio <= *times))
                }
                Target::None => String::new(),
            };
            let against = if matches!(target, Target::Within(_)) {
                format!("{:.2} of its time", 1.0 / ratio)
            } else {
                format!("{ratio:.2} times as fast")
            };
            println!("    {name:<24} {:>10}    {against}  {says}", rounded(*figure));
        }
    }
}

/// How many operations take about `span` seconds.
fn calibrate(arm: &mut Arm<'_>, span: f64) -> u64 {
    let mut n = 1;
    loop {
        let took = arm(n);
        if took >= span * 1e9 / 4.0 || n >= 1 << 40 {
            return ((span * 1e9 / took * n as f64) as u64).max(1);
        }
        n *= 4;
    }
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Three significant digits are more than these figures are good for; four are printed.
fn rounded(figure: f64) -> f64 {
    let scale = 10_f64.powi(3 - figure.abs().max(0.001).log10().floor() as i32);
    (figure * scale).round() / scale
}

/// Pins this thread to the `n`-th CPU that the process may use, counted from 0 and wrapping
/// around.
pub(crate) fn pin(n: usize) {
    use std::mem::{MaybeUninit, size_of};
    thread_local!(static FIRST: std::cell::OnceCell<libc::cpu_set_t> = const { std::cell::OnceCell::new() });
    let allowed = FIRST.with(|first| {
        *first.get_or_init(|| {
            let mut set = MaybeUninit::<libc::cpu_set_t>::zeroed();
            // SAFETY: the main thread's mask, into a set of that size.
            unsafe {
                let pid = std::process::id().cast_signed();
                libc::sched_getaffinity(pid, size_of::<libc::cpu_set_t>(), set.as_mut_ptr());
                set.assume_init()
            }
        })
    });
    // SAFETY: the sets are initialised, the indices in range.
    unsafe {
        let cpus: Vec<usize> =
            (0..libc::CPU_SETSIZE as usize).filter(|&cpu| libc::CPU_ISSET(cpu, &allowed)).collect();
        let mut one = MaybeUninit::<libc::cpu_set_t>::zeroed().assume_init();
        libc::CPU_SET(cpus[n % cpus.len()], &mut one);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const one);
    }
}

/// Runs `body` on a thread of its own, pinned to one CPU.
pub(crate) fn pinned(cpu: usize, body: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pin(cpu);
            body();
        });
    });
}
