//! The same count as one writes it without this crate: one thread, one `HashMap`.

use crate::Result;
use crate::corpus::Corpus;
use crate::parent::Report;
use crate::text;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// What the one thread found.
#[derive(Debug, Default)]
pub(crate) struct Plain {
    counts: HashMap<Box<[u8]>, u64>,
    words: u64,
    bytes: u64,
    counted: usize,
    binary: usize,
    unreadable: usize,
    /// Of reading and counting.
    pub(crate) time: Duration,
}

/// Reads every file once, so that both counts find them in the page cache.
pub(crate) fn warm_up(corpus: &Corpus) {
    let mut buffer = Vec::new();
    for file in &corpus.files {
        // Who counts says what cannot be read.
        let _ = text::read(&file.path, file.size, &mut buffer);
    }
}

/// Counts in this thread. Words are split by the standard library, so that the splitting is
/// checked too, and are copied when they are new.
pub(crate) fn count(corpus: &Corpus) -> Plain {
    let start = Instant::now();
    let mut plain = Plain { unreadable: corpus.unreadable.len(), ..Plain::default() };
    let mut buffer = Vec::new();
    for file in &corpus.files {
        let Ok(text) = text::read(&file.path, file.size, &mut buffer) else {
            plain.unreadable += 1;
            continue;
        };
        if text::is_binary(text) {
            plain.binary += 1;
            continue;
        }
        plain.counted += 1;
        plain.bytes += text.len() as u64;
        for word in text.split(|&byte| !text::is_letter(byte)).filter(|word| !word.is_empty()) {
            plain.words += 1;
            match plain.counts.get_mut(word) {
                Some(count) => *count += 1,
                None => {
                    plain.counts.insert(word.into(), 1);
                }
            }
        }
    }
    plain.time = start.elapsed();
    plain
}

/// Compares the two counts, and the per-CPU counters with their results.
///
/// # Errors
///
/// The first difference.
pub(crate) fn compare(plain: &Plain, report: &Report<'_>, counters: [u64; 2]) -> Result<()> {
    let totals = &report.totals;
    for (what, one, all) in [
        ("files counted", plain.counted as u64, report.counted as u64),
        ("files binary", plain.binary as u64, report.binary as u64),
        ("files unreadable", plain.unreadable as u64, report.unreadable.len() as u64),
        ("bytes", plain.bytes, totals.bytes),
        ("words", plain.words, totals.words),
        ("different words", plain.counts.len() as u64, totals.distinct() as u64),
    ] {
        if one != all {
            return Err(format!("{what}: one thread has {one}, the processes have {all}").into());
        }
    }
    for total in totals.iter() {
        let one = plain.counts.get(total.word).copied().unwrap_or(0);
        if one != total.count {
            let (word, all) = (String::from_utf8_lossy(total.word), total.count);
            return Err(format!("\"{word}\": one thread has {one}, the processes {all}").into());
        }
    }
    let doubts = report.in_doubt;
    for (what, merged, counter, doubt) in [
        ("words", totals.words, counters[0], doubts[0]),
        ("bytes", totals.bytes, counters[1], doubts[1]),
    ] {
        if !(merged - doubt.min(merged)..=merged).contains(&counter) {
            return Err(format!(
                "{what}: the maps have {merged}, the counters {counter}, with {doubt} in doubt"
            )
            .into());
        }
    }
    Ok(())
}
