//! The threads of a process, as they publish themselves: a full screen, or one reading as
//! text, as JSON or for Prometheus.
//!
//! ```text
//! cargo run --release --example top -- --demo 12        # something to look at; tells its pid
//! cargo run --release --example top -- PID              # keys: see the last line of the screen
//! cargo run --release --example top -- PID --once       # or --json, or --prometheus
//! ```
//!
//! It works on any process of the same user in which a thread has called
//! `task_shared::current`, such as `wordcount` while it runs, and has nothing to ask of it.
//! A refresh makes no system call on the process, and none for each of its threads: it reads
//! memory. `examples/top/strace.sh` counts the calls, with 10 threads and with 1000.
//!
//! `top.svg` is what it shows of `--demo 12`. To make it anew: `examples/top/picture.py`.

mod demo;
mod json;
mod printable;
mod prometheus;
mod screen;
mod table;
mod terminal;
mod text;

use clap::{ArgGroup, Parser};
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;
use table::{Order, Table};
use unmerged::task_shared::Monitor;

/// What can end the program: a text for people.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Shows the threads of a process that has slots of `task_shared`
#[derive(Debug, Parser)]
#[command(name = "top")]
#[command(group = ArgGroup::new("target").required(true).args(["pid", "demo"]))]
#[command(group = ArgGroup::new("format").args(["once", "json", "prometheus"]))]
struct Args {
    /// The process to look at
    #[arg(value_name = "PID")]
    pid: Option<u32>,
    /// Be a process with so many threads of three kinds, until standard input ends
    #[arg(long, value_name = "THREADS", value_parser = clap::value_parser!(u16).range(1..=10_000))]
    demo: Option<u16>,
    /// Print one reading as text, over one interval
    #[arg(long)]
    once: bool,
    /// Print one reading as JSON
    #[arg(long)]
    json: bool,
    /// Print one reading in the text format of Prometheus
    #[arg(long)]
    prometheus: bool,
    /// Milliseconds between two refreshes
    #[arg(long, value_name = "MS", default_value_t = 500, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    interval: u64,
    /// End after so many refreshes of the screen
    #[arg(long, value_name = "N")]
    refreshes: Option<u64>,
    /// What the threads are sorted by
    #[arg(long, value_enum, default_value_t = Order::Cpu)]
    sort: Order,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Whoever reads our output may want no more of it.
            let unwanted = error.downcast_ref::<io::Error>();
            if unwanted.is_none_or(|error| error.kind() != io::ErrorKind::BrokenPipe) {
                let _ = writeln!(io::stderr(), "top: {error}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    if let Some(threads) = args.demo {
        return demo::run(threads.into());
    }
    let monitor = Monitor::open(args.pid.ok_or("no process")?)?;
    let mut table = Table::new(&monitor, args.sort);
    let interval = Duration::from_millis(args.interval);
    table.refresh();
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", printable::escape(&json::of(&table).to_string()))?;
    } else if args.prometheus {
        write!(out, "{}", prometheus::of(&table))?;
    } else if args.once {
        // Shares are of the time between two looks.
        std::thread::sleep(interval);
        table.refresh();
        write!(out, "{}", text::of(&table))?;
    } else {
        drop(out);
        screen::run(&mut table, interval, args.refreshes)?;
    }
    Ok(())
}
