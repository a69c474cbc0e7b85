//! Compresses files with several processes that are connected by channels in shared memory, as
//! `cat FILES | gzip` would, into one file that gzip reads.
//!
//! `cargo run --release --example pipeline -- --check --kill-one`
//!
//! ```text
//!            work                    done
//!   reader ---------> compressors ---------> writer, which is the parent
//!      ^                                        |
//!      +---------------- free ------------------+
//! ```
//!
//! Blocks of text lie in one region that all processes have at the same address; what goes through
//! the channels are their numbers. Each process waits by `select`: for its channel or the end, the
//! parent for blocks or the death of a child.
//!
//! A compressor may be killed at any instruction. No channel is blocked by that, nothing is lost
//! and nothing done twice: `job.rs` says how. Its successor begins where it stood, and the output
//! is the same to the byte.

mod check;
mod compressor;
mod inputs;
mod job;
mod parent;
mod reader;

use clap::Parser;
use job::{Job, MOST_WORKERS};
use rustix::rand::{GetRandomFlags, getrandom};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use unmerged::mshare::{Region, unlink};

/// What can end the program: a text for people.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const HELP: &str = "\
The output is a series of gzip members, one for each block; `zcat` gives the files, one after the
other. Directories are searched, but for .git and caches; symbolic links in them are not followed.

Exit status: 0 all is compressed; 1 an error, or a difference found by --check; 2 wrong usage.";

/// Compresses files with several processes, connected by channels in shared memory
#[derive(Debug, Parser)]
#[command(name = "pipeline", after_help = HELP)]
struct Args {
    /// Processes that compress, 1 to 250; by default as many as there are CPUs
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=MOST_WORKERS as i64))]
    processes: Option<u16>,
    /// Bytes of a block, 1 to 16777216
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 16, value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    block: u32,
    /// Compress again in one process, and compare the outputs byte by byte
    #[arg(long)]
    check: bool,
    /// Kill a compressor in the middle of a block
    #[arg(long)]
    kill_one: bool,
    /// Where to write; by default nowhere
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Be the reader, or the compressor of this seat
    #[arg(long, hide = true, requires = "region", value_name = "ROLE")]
    role: Option<String>,
    /// The region of the job
    #[arg(long, hide = true, requires = "role", value_name = "NAME")]
    region: Option<String>,
    /// Files, and directories to search; by default the source of this crate and its README
    #[arg(value_name = "PATH", default_values = [
        concat!(env!("CARGO_MANIFEST_DIR"), "/README.md"),
        concat!(env!("CARGO_MANIFEST_DIR"), "/src"),
    ])]
    paths: Vec<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match (args.role.as_deref(), &args.region) {
        (Some("reader"), Some(region)) => reader::run(region),
        (Some(seat), Some(region)) => compressor::run(region, seat),
        _ => run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Whoever reads our output may want no more of it.
            let unwanted = error.downcast_ref::<io::Error>();
            if unwanted.is_none_or(|error| error.kind() != io::ErrorKind::BrokenPipe) {
                let _ = writeln!(io::stderr(), "pipeline: {error}");
            }
            ExitCode::FAILURE
        }
    }
}

/// The whole program, in the parent.
fn run(args: &Args) -> Result<()> {
    let files = inputs::list(&args.paths)?;
    let workers = match args.processes {
        Some(processes) => usize::from(processes),
        None => std::thread::available_parallelism()?.get().min(MOST_WORKERS),
    };
    let name = unique_name()?;
    remove_name_at_end(name.clone())?;
    let region =
        Region::builder(&name).size(Job::region_size(&files, workers, args.block)).create()?;
    let job = Job::create(&region, &files, workers, args.block, args.kill_one)?;
    let report = parent::run(&job, args.output.as_deref(), args.check)?;
    let mut out = io::stdout().lock();
    let seconds = report.time.as_secs_f64();
    writeln!(out, "files       {}", files.len())?;
    writeln!(out, "blocks      {}, by {workers} processes", report.blocks)?;
    writeln!(out, "bytes       {} to {}", report.read, report.written)?;
    writeln!(out, "time        {seconds:.3} s, {:.1} MB/s", report.read as f64 / 1e6 / seconds)?;
    if let Some(pid) = report.killed {
        writeln!(out, "killed      compressor {pid}, in the middle of a block")?;
    }
    if args.check {
        let one = check::compare(&files, args.block as usize, &report)?;
        let (one, ratio) = (one.as_secs_f64(), one.as_secs_f64() / seconds);
        writeln!(out, "check       same to the byte; one process {one:.3} s")?;
        writeln!(out, "ratio       {ratio:.2} times as fast as one process")?;
    }
    if args.kill_one && report.killed.is_none() {
        return Err("--kill-one: no compressor came to stand in a block".into());
    }
    Ok(())
}

/// When the user ends us, the name of the region goes too. The children go by themselves, and
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

/// The pid, and 64 random bits: no other region has the name.
fn unique_name() -> Result<String> {
    let mut random = [0; 8];
    getrandom(&mut random, GetRandomFlags::empty())?;
    Ok(format!("pipeline-{}-{:016x}", std::process::id(), u64::from_ne_bytes(random)))
}
