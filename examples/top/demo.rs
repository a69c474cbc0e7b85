//! Something to look at: a process with threads of three kinds.
//!
//! Some compute, some answer requests in bursts, some wait for theirs. They count what they
//! did in words of their own; a sampler publishes the rest.

use crate::Result;
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};
use unmerged::task_shared::{self, Config, Sampler, Word};

const STEPS: Word<u64> = Word::new(0, "steps", "1");
const BUSY: Word<f64> = Word::new(1, "busy", "s");

/// Runs until standard input ends.
pub(crate) fn run(threads: usize) -> Result<()> {
    task_shared::configure(&Config::new().word(STEPS).word(BUSY))?;
    let sampler = Sampler::builder().rate(10.0).all_threads(true).start()?;
    for n in 0..threads {
        let (kind, work): (_, fn(u64) -> unmerged::Result<()>) = match n % 6 {
            0 => ("compute", compute),
            1 | 2 => ("serve", serve),
            _ => ("wait", wait),
        };
        // A thread that cannot have a slot ends, and is missing on the screen.
        let work = move || work(n as u64);
        std::thread::Builder::new().name(format!("{kind} {n}")).spawn(work)?;
    }
    let mut out = io::stdout();
    writeln!(out, "{}", std::process::id())?;
    out.flush()?;
    io::stdin().read_to_end(&mut Vec::new())?;
    sampler.stop();
    Ok(())
}

fn spin(span: Duration) {
    let begin = Instant::now();
    while begin.elapsed() < span {
        std::hint::spin_loop();
    }
}

/// Counts a step, and the time that it took.
fn count(step: u64, busy: &mut Duration, took: Duration) -> unmerged::Result<()> {
    *busy += took;
    let slot = task_shared::current()?;
    slot.set(STEPS, step)?;
    slot.set(BUSY, busy.as_secs_f64())
}

/// On a CPU most of the time, as long as there is one.
fn compute(_: u64) -> unmerged::Result<()> {
    let (mut busy, span) = (Duration::ZERO, Duration::from_millis(20));
    for step in 1.. {
        spin(span);
        count(step, &mut busy, span)?;
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// In bursts.
fn serve(seed: u64) -> unmerged::Result<()> {
    let mut busy = Duration::ZERO;
    for request in 1.. {
        let span = Duration::from_micros(200 + 700 * ((request + seed) % 5));
        spin(span);
        count(request, &mut busy, span)?;
        std::thread::sleep(Duration::from_millis(4 + 12 * ((request / 50 + seed) % 4)));
    }
    Ok(())
}

/// Nearly never.
fn wait(_: u64) -> unmerged::Result<()> {
    let mut busy = Duration::ZERO;
    for nap in 1.. {
        count(nap, &mut busy, Duration::ZERO)?;
        std::thread::sleep(Duration::from_secs(1));
    }
    Ok(())
}
