//! What the user reads at the end.

use crate::job::Job;
use crate::parent::Report;
use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;

/// Prints the most frequent words and what it took to find them.
///
/// # Errors
///
/// Those of the output.
pub(crate) fn print(
    out: &mut impl Write,
    job: &Job<'_>,
    report: &Report<'_>,
    top: usize,
) -> io::Result<()> {
    let totals = &report.totals;
    for total in totals.top(top) {
        writeln!(out, "{:>12}  {}", total.count, String::from_utf8_lossy(total.word))?;
    }
    let (seconds, bytes) = (report.time.as_secs_f64(), totals.bytes);
    writeln!(out)?;
    writeln!(
        out,
        "files       {} counted, {} binary and skipped, {} unreadable",
        report.counted,
        report.binary,
        report.unreadable.len()
    )?;
    for line in &report.unreadable {
        writeln!(out, "unreadable  {line}")?;
    }
    writeln!(out, "bytes       {bytes}")?;
    writeln!(out, "words       {}, {} different", totals.words, totals.distinct())?;
    writeln!(out, "time        {seconds:.3} s, {:.1} MB/s", bytes as f64 / 1e6 / seconds)?;
    let on_cpus: Vec<_> = (job.words.per_cpu().filter(|(_, words)| *words > 0))
        .map(|(cpu, words)| format!("{cpu}: {words}"))
        .collect();
    writeln!(out, "by CPU      {}", on_cpus.join(", "))?;
    writeln!(out)?;
    writeln!(out, "  worker         MB   CPU s  delay s  switches  last CPU  end")?;
    for member in &report.members {
        let numbers = member.numbers();
        let stats = numbers.stats;
        let end = match member.end {
            Some(status) => match status.signal() {
                Some(signal) => format!("signal {signal}"),
                None => format!("exit {}", status.code().unwrap_or_default()),
            },
            None => "running".into(),
        };
        writeln!(
            out,
            "{:>8} {:>10.1} {:>7.3} {:>8.3} {:>9} {:>9}  {end}",
            member.pid(),
            numbers.bytes as f64 / 1e6,
            stats.sum_exec_runtime as f64 / 1e9,
            stats.run_delay as f64 / 1e9,
            stats.pcount,
            numbers.cpu,
        )?;
    }
    Ok(())
}
