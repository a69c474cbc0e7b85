//! The other process: drains the ring until its input ends, then writes the file.

use crate::Result;
use crate::span::Header;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;
use unmerged::percpu::Ring;

/// How long the ring is left alone when there was nothing in it.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
const NONE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

pub(crate) fn run(fd: i32, output: &Path) -> Result<()> {
    // SAFETY: the parent let this process inherit it, for this.
    let file = unsafe { OwnedFd::from_raw_fd(fd) };
    let ring = Ring::from_file(&file)?;
    let input = std::io::stdin();
    let (mut events, mut pause) = (Vec::new(), NONE);
    loop {
        let ended = poll(&mut [PollFd::new(&input, PollFlags::IN)], Some(&pause))? > 0;
        // After the end, what was published before it is still to come.
        let records = ring.drain(|record| {
            if let Some((header, name)) = Header::parse(record.bytes) {
                let name = String::from_utf8_lossy(name).into_owned();
                events.push((header, name, record.source));
            }
        })?;
        if ended {
            break;
        }
        pause = if records == 0 { PAUSE } else { NONE };
    }
    // The ring has them CPU by CPU, by their ends. Of two that begin together the longer one is
    // outside.
    events.sort_by_key(|(header, ..)| (header.begin, u64::MAX - header.end));
    let mut output = BufWriter::new(File::create(output)?);
    write!(output, "{{\"displayTimeUnit\":\"ns\",\"traceEvents\":[")?;
    for (n, (header, name, source)) in events.iter().enumerate() {
        let line = event(*header, name, &source.to_string());
        write!(output, "{}\n{line}", if n > 0 { "," } else { "" })?;
    }
    writeln!(output, "\n]}}")?;
    output.flush()?;
    Ok(())
}

/// An event of the Chrome trace format; times are in microseconds there.
fn event(header: Header, name: &str, cpu: &str) -> Value {
    let Header { process, thread, begin, end } = header;
    if begin == 0 {
        return json!({
            "ph": "M", "name": "thread_name", "pid": process, "tid": thread,
            "args": { "name": name },
        });
    }
    let micros = |ns: u64| ns as f64 / 1000.0;
    json!({
        "ph": "X", "name": name, "pid": process, "tid": thread,
        "ts": micros(begin), "dur": micros(end - begin), "args": { "cpu": cpu },
    })
}
