//! Counts the words of a tree of files with several processes, through all four modules of
//! the crate.
//!
//! `cargo run --release --example wordcount -- --check`
//!
//! - **mshare**: the processes attach to one region by name. Workers build hash maps in it;
//!   the parent walks these through their plain pointers, with nothing copied or sent.
//! - **futex2**: all waiting is on shared words of 8, 32 and 64 bits. Nobody polls.
//! - **percpu**: words and bytes are counted in per-CPU counters that the processes share.
//! - **task_shared**: each worker publishes its numbers; the parent reads them with no word to
//!   the worker, also after its death.
//!
//! Where to read on: `job.rs` has what lives in the region, and what holds when a process is
//! killed; `worker.rs` and `parent.rs` are the two sides of it.

mod check;
mod corpus;
mod fleet;
mod job;
mod map;
mod parent;
mod progress;
mod summary;
mod text;
mod totals;
mod worker;

use clap::Parser;
use corpus::Corpus;
use job::{Job, MOST_WORKERS};
use rustix::io::Errno;
use rustix::process::{WaitOptions, wait};
use rustix::rand::{GetRandomFlags, getrandom};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use unmerged::mshare::{Region, runtime_directory, unlink};

/// What can end the program: a text for people.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Some files could not be read.
const UNREADABLE: u8 = 3;

const HELP: &str = "\
A word is a longest run of ASCII letters, digits, `_` and bytes from 0x80 on; case matters.
A file with a NUL byte is binary, and skipped. Directories are searched with all that is in
them, hidden or not, but .git and caches (those with a CACHEDIR.TAG, such as cargo's target);
symbolic links in them are not followed. A file that is given twice is counted twice.

Exit status: 0 all was counted; 1 an error, or a difference found by --check; 2 wrong usage;
3 counted, but some files could not be read.";

/// Counts words, with several processes that share one range of memory
#[derive(Debug, Parser)]
#[command(name = "wordcount", after_help = HELP)]
struct Args {
    /// Worker processes, 1 to 250; by default as many as there are CPUs
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=MOST_WORKERS as i64))]
    processes: Option<u16>,
    /// Count again in one thread with a HashMap, and compare results and speed
    #[arg(long)]
    check: bool,
    /// Kill a worker in the middle of a file
    #[arg(long)]
    kill_one: bool,
    /// How many of the most frequent words to print
    #[arg(long, value_name = "K", default_value_t = 10)]
    top: usize,
    /// Be a worker, on this seat
    #[arg(long, hide = true, requires = "region", value_name = "SEAT")]
    worker: Option<usize>,
    /// The region that the worker attaches to
    #[arg(long, hide = true, requires = "worker", value_name = "NAME")]
    region: Option<String>,
    /// Files, and directories to search; by default the source of this crate
    #[arg(value_name = "PATH", default_value = env!("CARGO_MANIFEST_DIR"))]
    paths: Vec<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match (args.worker, &args.region) {
        (Some(seat), Some(region)) => worker::run(region, seat).map(|()| ExitCode::SUCCESS),
        _ => run(&args),
    };
    done.unwrap_or_else(|error| {
        // Whoever reads our output may want no more of it.
        let unwanted = error.downcast_ref::<io::Error>();
        if unwanted.is_none_or(|error| error.kind() != io::ErrorKind::BrokenPipe) {
            let _ = writeln!(io::stderr(), "wordcount: {error}");
        }
        ExitCode::FAILURE
    })
}

/// The whole program, in the parent.
fn run(args: &Args) -> Result<ExitCode> {
    let corpus = Corpus::list(&args.paths)?;
    let workers = match args.processes {
        Some(processes) => usize::from(processes),
        None => std::thread::available_parallelism()?.get().min(MOST_WORKERS),
    };
    let name = unique_name()?;
    remove_name_at_end(name.clone())?;
    if args.check {
        check::warm_up(&corpus);
    }
    let code = count(args, &corpus, workers, &name)?;
    if args.kill_one && args.check {
        look_for_remains(&name)?;
        writeln!(io::stdout(), "remains     none: no name, no process")?;
    }
    Ok(code)
}

/// When the user ends us, the name of the region goes too. The workers go by themselves, and
/// the memory with the last of them.
fn remove_name_at_end(name: String) -> Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    std::thread::Builder::new().spawn(move || {
        for signal in signals.forever() {
            // If there is none, it is not made yet, or dropped.
            let _ = unlink(&name);
            // Does not return from these.
            let _ = emulate_default_handler(signal);
        }
    })?;
    Ok(())
}

/// From the region's beginning to its end.
fn count(args: &Args, corpus: &Corpus, workers: usize, name: &str) -> Result<ExitCode> {
    let region = Region::builder(name).size(Job::region_size(corpus)).create()?;
    let job = Job::create(&region, corpus, workers, args.kill_one)?;
    let report = parent::count(&job, corpus, args.kill_one)?;
    let mut out = io::stdout().lock();
    summary::print(&mut out, &job, &report, args.top)?;
    writeln!(out)?;
    if let Some(pid) = report.killed {
        writeln!(out, "killed      worker {pid}, in the middle of a file")?;
    }
    if args.check {
        let plain = check::count(corpus);
        let counters = [job.words.sum(), job.bytes.sum()];
        check::compare(&plain, &report, counters)?;
        if report.in_doubt != [0; 2] {
            let (lack, doubt) = (report.totals.words - counters[0], report.in_doubt[0]);
            writeln!(out, "counters    lack {lack} words; {doubt} were in doubt, by a death")?;
        }
        let (one, all) = (plain.time.as_secs_f64(), report.time.as_secs_f64());
        let ratio = one / all;
        writeln!(out, "check       same; HashMap {one:.3} s, {workers} processes {all:.3} s")?;
        writeln!(out, "ratio       {ratio:.2} times as fast as a plain HashMap in one thread")?;
    }
    if args.kill_one && report.killed.is_none() {
        return Err("--kill-one: no worker came to stand in a file: none has text, or the worker \
                    was killed before"
            .into());
    }
    let all_read = report.unreadable.is_empty();
    Ok(if all_read { ExitCode::SUCCESS } else { ExitCode::from(UNREADABLE) })
}

/// The pid, and 64 random bits: no other region has the name.
fn unique_name() -> Result<String> {
    let mut random = [0; 8];
    getrandom(&mut random, GetRandomFlags::empty())?;
    Ok(format!("wordcount-{}-{:016x}", std::process::id(), u64::from_ne_bytes(random)))
}

/// Is there anything of this job, once its region is dropped?
///
/// # Errors
///
/// There is, or one cannot look.
fn look_for_remains(name: &str) -> Result<()> {
    let directory = runtime_directory()?;
    for entry in directory.read_dir()? {
        let entry = entry?.file_name();
        if entry.to_string_lossy().contains(name) {
            return Err(format!("{} is left", directory.join(entry).display()).into());
        }
    }
    match Region::open(name) {
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(error.into()),
        Ok(_) => return Err(format!("region {name} is left").into()),
    }
    match wait(WaitOptions::NOHANG) {
        Err(Errno::CHILD) => Ok(()),
        other => Err(format!("a child is left: {other:?}").into()),
    }
}
