//! Traces threads at work into a per-CPU ring in shared memory; another process drains it while
//! they work, and writes a file that chrome://tracing and https://ui.perfetto.dev open.
//!
//! `cargo run --release --example trace -- --check src`
//!
//! A span is one record, published when it ends, so it is in the file whole or not at all. The
//! threads never wait for the process that drains: if it is too slow, spans are refused, and
//! counted. If it is killed, the work goes on.
//!
//! Where to read on: `span.rs` publishes, `drain.rs` is the other process, `work.rs` is what is
//! traced.

mod check;
mod drain;
mod span;
mod work;

use clap::Parser;
use rustix::io::fcntl_setfd;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use unmerged::percpu::{Ring, WhenFull};

/// What can end the program: a text for people.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Traces threads that read, hash and sort files
#[derive(Debug, Parser)]
#[command(name = "trace")]
struct Args {
    /// Files, and directories with all that is in them
    #[arg(required_unless_present = "drain")]
    paths: Vec<PathBuf>,
    /// The file to write
    #[arg(short, long, default_value = "trace.json")]
    output: PathBuf,
    /// Threads that work
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=256))]
    threads: u32,
    /// Bytes of the ring for each CPU, a power of two
    #[arg(long, default_value_t = 1 << 20)]
    capacity: usize,
    /// Read the file back, and see that it is whole
    #[arg(long)]
    check: bool,
    /// Drain the ring with this descriptor
    #[arg(long, hide = true)]
    drain: Option<i32>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match args.drain {
        Some(fd) => drain::run(fd, &args.output),
        None => run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("trace: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let files = work::files(&args.paths)?;
    let ring = Ring::shared(args.capacity, WhenFull::Refuse)?;

    // The other process inherits the descriptor, and ends when its input does.
    let file = ring.file().ok_or("a shared ring has a file")?.try_clone_to_owned()?;
    fcntl_setfd(&file, rustix::io::FdFlags::empty())?;
    let mut other = Command::new(std::env::current_exe()?)
        .arg(format!("--drain={}", file.as_raw_fd()))
        .arg("--output")
        .arg(&args.output)
        .stdin(Stdio::piped())
        .spawn()?;
    drop(file);

    let begin = span::now();
    work::work(&ring, &files, args.threads)?;
    let took = span::now() - begin;

    drop(other.stdin.take());
    let status = other.wait()?;
    if !status.success() {
        return Err(format!("the process that drains: {status}").into());
    }
    let stats = ring.stats();
    println!(
        "{} files, {} threads, {} ms: {} records, {} lost, {} refused",
        files.len(),
        args.threads,
        took / 1_000_000,
        stats.published,
        stats.lost,
        stats.refused,
    );
    println!("{}", args.output.display());
    if args.check {
        // Three spans and the one around them for each file; a name for each thread.
        let expected = (4 * files.len() as u64 + u64::from(args.threads)) - stats.refused;
        if stats.published != expected || stats.taken + stats.lost != stats.published {
            return Err(format!("{expected} records expected: {stats:?}").into());
        }
        let events = check::file(&args.output, stats.taken == expected && stats.refused == 0)?;
        if events != stats.taken {
            return Err(format!("{events} events in the file, {} were taken", stats.taken).into());
        }
        println!("checked: {events} events, in order, each inside what it is part of");
    }
    Ok(())
}
