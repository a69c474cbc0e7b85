//! A small key-value server on localhost that counts everything it does, and its own load.
//!
//! `cargo run --release --example counters -- --check`
//!
//! All statistics are per-CPU memory, updated by every thread at every request, and read while
//! they change: [`Counter`] for requests, bytes and errors, [`CounterArray`] for the kinds of
//! requests, [`Histogram`] for the time that they take, [`Lock`] for the keys that are asked for.

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::{LazyLock, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use unmerged::percpu::{Bucket, Counter, CounterArray, Histogram, HistogramSnapshot, Lock};

/// What can end the program: a text for people.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Serves keys and values to itself, and shows its per-CPU statistics live
///
/// Exit status: 0 all went well; 1 an error, or a difference found by --check; 2 wrong usage.
#[derive(Debug, Parser)]
#[command(name = "counters")]
struct Args {
    /// How long the load lasts
    #[arg(long, default_value_t = 3.0, value_name = "SECONDS", value_parser = seconds)]
    seconds: f64,
    /// Clients; each has a connection, and the server a thread for it [default: CPUs]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,
    /// Compare the server's statistics with what the clients have counted themselves
    #[arg(long)]
    check: bool,
}

fn seconds(text: &str) -> std::result::Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.01..=86400.0).contains(&seconds) => Ok(seconds),
        _ => Err("a number from 0.01 to 86400".into()),
    }
}

static REQUESTS: Counter = Counter::new();
static ERRORS: Counter = Counter::new();
static BYTES_IN: Counter = Counter::new();
static BYTES_OUT: Counter = Counter::new();
/// The keys that were asked for, a table on each CPU.
static ASKED: Lock<HashMap<u32, u64>> = Lock::new(HashMap::new);

/// What needs memory before it can count.
struct Tables {
    kinds: CounterArray<'static>,
    /// Nanoseconds from a request to its answer, as clients see it.
    latency: Histogram<'static>,
}

impl Tables {
    fn new() -> Result<Self> {
        Ok(Self { kinds: CounterArray::new(Kind::NAMES.len())?, latency: Histogram::new(7)? })
    }
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Hit,
    Miss,
    Set,
    Bad,
}

impl Kind {
    const NAMES: [&str; 4] = ["hit", "miss", "set", "bad"];
}

/// Keys that there are.
const KEYS: u32 = 1000;

static STORE: LazyLock<[Mutex<HashMap<u32, String>>; 16]> = LazyLock::new(Default::default);

/// One connection, to its end: lines `GET key` and `SET key value`, an answer for each.
fn serve(stream: &TcpStream, tables: &Tables) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut lines, mut stream) = (BufReader::new(stream), stream);
    let (mut line, mut answer) = (String::new(), String::new());
    while lines.read_line(&mut line)? != 0 {
        REQUESTS.add(1);
        BYTES_IN.add(line.len() as u64);
        answer.clear();
        let kind = execute(line.trim_end(), &mut answer);
        tables.kinds.add(kind as usize, 1);
        if let Kind::Bad = kind {
            ERRORS.add(1);
        }
        answer.push('\n');
        BYTES_OUT.add(answer.len() as u64);
        stream.write_all(answer.as_bytes())?;
        line.clear();
    }
    Ok(())
}

fn execute(request: &str, answer: &mut String) -> Kind {
    let (verb, rest) = request.split_once(' ').unwrap_or((request, ""));
    let (key, value) = rest.split_once(' ').map_or((rest, None), |(key, v)| (key, Some(v)));
    let Ok(key) = key.parse::<u32>() else {
        answer.push('!');
        return Kind::Bad;
    };
    *ASKED.lock().entry(key).or_default() += 1;
    let shard = &STORE[key as usize % STORE.len()];
    let mut shard = shard.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    match (verb, value) {
        ("GET", None) => match shard.get(&key) {
            Some(value) => {
                answer.push_str(value);
                Kind::Hit
            }
            None => {
                answer.push('-');
                Kind::Miss
            }
        },
        ("SET", Some(value)) => {
            shard.insert(key, value.to_owned());
            answer.push('+');
            Kind::Set
        }
        _ => {
            answer.push('!');
            Kind::Bad
        }
    }
}

/// What a client has counted itself.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Seen {
    requests: u64,
    errors: u64,
    sent: u64,
    received: u64,
    kinds: [u64; Kind::NAMES.len()],
    keys: u64,
}

impl Seen {
    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.errors += other.errors;
        self.sent += other.sent;
        self.received += other.received;
        self.keys += other.keys;
        for (kind, more) in self.kinds.iter_mut().zip(other.kinds) {
            *kind += more;
        }
    }
}

/// Asks until `end`.
fn load(stream: &TcpStream, end: Instant, seed: u64, tables: &Tables) -> io::Result<Seen> {
    stream.set_nodelay(true)?;
    let (mut answers, mut stream) = (BufReader::new(stream), stream);
    let (mut seen, mut random, mut answer) = (Seen::default(), seed | 1, String::new());
    let mut now = Instant::now();
    while now < end {
        // Marsaglia's xorshift64.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        // Small keys are asked for more often.
        let key = random % (u64::from(KEYS) >> (random >> 32 & 7)).max(1);
        let (request, known) = match random >> 40 & 1023 {
            0 => ("FROB\n".to_owned(), Some(Kind::Bad)),
            1..=100 => (format!("SET {key} value-{random:x}\n"), Some(Kind::Set)),
            _ => (format!("GET {key}\n"), None),
        };
        stream.write_all(request.as_bytes())?;
        answer.clear();
        if answers.read_line(&mut answer)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let then = std::mem::replace(&mut now, Instant::now());
        tables.latency.record((now - then).as_nanos() as u64);
        let kind = known.unwrap_or(if answer == "-\n" { Kind::Miss } else { Kind::Hit });
        seen.kinds[kind as usize] += 1;
        seen.requests += 1;
        seen.errors += u64::from(matches!(kind, Kind::Bad));
        seen.keys += u64::from(!matches!(kind, Kind::Bad));
        seen.sent += request.len() as u64;
        seen.received += answer.len() as u64;
    }
    Ok(seen)
}

/// A number with its unit, short.
fn short(nanoseconds: Option<Bucket>) -> String {
    match nanoseconds.map(|bucket| bucket.midpoint()) {
        None => "-".into(),
        Some(ns @ 0..10_000) => format!("{ns} ns"),
        Some(ns @ 0..10_000_000) => format!("{} us", ns / 1000),
        Some(ns) => format!("{} ms", ns / 1_000_000),
    }
}

/// p50, p99 and p99.9.
fn quantiles(latency: &HistogramSnapshot) -> String {
    let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|q| short(latency.quantile(q)));
    format!("p50 {p50}, p99 {p99}, p99.9 {p999}")
}

/// Each CPU's share of what was counted, in percent.
fn shares(counter: &Counter<'_>) -> String {
    let parts: Vec<_> = counter.per_cpu().collect();
    let all = parts.iter().map(|(_, n)| n).sum::<u64>().max(1);
    let busy = parts.into_iter().filter(|&(_, n)| n != 0);
    busy.map(|(cpu, n)| format!("{cpu}: {} %", n * 100 / all)).collect::<Vec<_>>().join(", ")
}

/// What is printed once in a while: rates, and the quantiles of that while.
fn show(tables: &Tables, end: Instant) -> io::Result<()> {
    let terminal = io::stdout().is_terminal();
    let style = ProgressStyle::with_template("{spinner} {msg}").expect("a constant");
    let bar = terminal.then(|| ProgressBar::new_spinner().with_style(style));
    let period = Duration::from_millis(if terminal { 200 } else { 1000 });
    let (mut latency, mut requests) = (tables.latency.snapshot(), REQUESTS.sum());
    let mut then = Instant::now();
    while then < end {
        thread::sleep(period.min(end - then));
        let (now, snapshot, sum) = (Instant::now(), tables.latency.snapshot(), REQUESTS.sum());
        let rate = (sum - requests) as f64 / (now - then).as_secs_f64();
        let lately = snapshot.since(&latency).map_err(io::Error::from)?;
        let line = format!(
            "{sum} requests, {rate:.0}/s, {:.1} MB in, {:.1} MB out, {} errors; {}; CPU {}",
            BYTES_IN.sum() as f64 / 1e6,
            BYTES_OUT.sum() as f64 / 1e6,
            ERRORS.sum(),
            quantiles(&lately),
            shares(&REQUESTS),
        );
        match &bar {
            Some(bar) => {
                bar.set_message(line);
                bar.tick();
            }
            None => writeln!(io::stdout(), "{line}")?,
        }
        (then, latency, requests) = (now, snapshot, sum);
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    Ok(())
}

/// The end of the show: totals of all kinds.
fn sum_up(tables: &Tables, asked: &HashMap<u32, u64>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{} requests; {}", REQUESTS.sum(), quantiles(&tables.latency.snapshot()))?;
    for (name, sum) in Kind::NAMES.iter().zip(tables.kinds.sums()) {
        writeln!(out, "{name:>6} {sum:>12}")?;
    }
    let mut most: Vec<_> = asked.iter().map(|(key, n)| (n, key)).collect();
    most.sort_unstable_by(|a, b| b.cmp(a));
    for (n, key) in most.iter().take(3) {
        writeln!(out, "key {key:>3} {n:>11}")?;
    }
    Ok(())
}

fn run(args: &Args) -> Result<ExitCode> {
    let tables = &Tables::new()?;
    let cpus = thread::available_parallelism().map_or(2, |cpus| cpus.get().min(256) as u16);
    let threads = args.threads.unwrap_or(cpus);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let end = Instant::now() + Duration::from_secs_f64(args.seconds);
    let seen = thread::scope(|scope| -> Result<Seen> {
        let (mut clients, mut servers) = (Vec::new(), Vec::new());
        for n in 1..=u64::from(threads) {
            let near = TcpStream::connect(address)?;
            let (far, _) = listener.accept()?;
            servers.push(scope.spawn(move || serve(&far, tables)));
            clients.push(scope.spawn(move || load(&near, end, n * 0x9e37_79b9, tables)));
        }
        show(tables, end)?;
        let mut seen = Seen::default();
        for client in clients {
            seen.add(&client.join().map_err(|_| "a client panicked")??);
        }
        for server in servers {
            server.join().map_err(|_| "a server thread panicked")??;
        }
        Ok(seen)
    })?;

    let mut asked: HashMap<u32, u64> = HashMap::new();
    ASKED.for_each(|_, keys| {
        for (key, n) in keys.drain() {
            *asked.entry(key).or_default() += n;
        }
    })?;
    sum_up(tables, &asked)?;
    if !args.check {
        return Ok(ExitCode::SUCCESS);
    }
    let counted = Seen {
        requests: REQUESTS.sum(),
        errors: ERRORS.sum(),
        sent: BYTES_IN.sum(),
        received: BYTES_OUT.sum(),
        kinds: tables.kinds.sums().try_into().map_err(|_| "the kinds changed")?,
        keys: asked.values().sum(),
    };
    let timed = tables.latency.snapshot().count();
    if counted != seen || timed != seen.requests {
        return Err(format!("check: counted {counted:?}, {timed} timed; seen {seen:?}").into());
    }
    writeln!(io::stdout(), "check: all as the clients counted")?;
    Ok(ExitCode::SUCCESS)
}

fn main() -> ExitCode {
    run(&Args::parse()).unwrap_or_else(|error| {
        let _ = writeln!(io::stderr(), "counters: {error}");
        ExitCode::FAILURE
    })
}
