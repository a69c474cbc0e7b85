//! One reading as lines of text, and how each column is written.

use crate::printable::printable;
use crate::table::{Row, Table};
use std::fmt::Write;
use unmerged::task_shared::Value;

/// A word as people read it, with an exponent where it would be long or nothing but zeros.
pub(crate) fn word(value: &Value) -> String {
    match value {
        Value::F64(value) if value.is_finite() && value.abs() >= 1e9 => format!("{value:.2e}"),
        Value::F64(value) if *value != 0.0 && value.abs() < 0.005 => format!("{value:.2e}"),
        Value::F64(value) => format!("{value:.2}"),
        value => value.to_string(),
    }
}

pub(crate) fn percent(share: f64) -> String {
    format!("{:.1}", share * 100.0)
}

/// Time on a CPU, as `minutes:seconds.hundredths`.
pub(crate) fn time(ns: u64) -> String {
    let hundredths = ns / 10_000_000;
    format!("{}:{:02}.{:02}", hundredths / 6000, hundredths / 100 % 60, hundredths % 100)
}

pub(crate) fn age(seconds: Option<f64>) -> String {
    seconds.map_or("-".to_owned(), |seconds| format!("{seconds:.1}"))
}

pub(crate) fn or_none(number: Option<u32>) -> String {
    number.map_or("-".to_owned(), |number| number.to_string())
}

pub(crate) fn of(table: &Table<'_>) -> String {
    let mut out = String::new();
    let _ = write!(
        out,
        "{:>8} {:<15} {:<6} {:>4} {:>6} {:>6} {:>6} {:>10} {:>6}",
        "TID", "NAME", "STATE", "ON", "CPU%", "DELAY%", "OFF%", "TIME", "AGE"
    );
    for name in table.word_names() {
        let _ = write!(out, " {:>14}", printable(&name).to_uppercase());
    }
    out.push('\n');
    for row in table.rows() {
        let Row { tid, shares, .. } = row;
        let _ = write!(
            out,
            "{tid:>8} {:<15} {:<6} {:>4} {:>6} {:>6} {:>6} {:>10} {:>6}",
            printable(&row.name),
            row.state.name(),
            or_none(row.cpu),
            percent(shares.cpu),
            percent(shares.delay),
            percent(shares.off),
            time(row.stats.sum_exec_runtime),
            age(row.age(table.now)),
        );
        for value in &row.words {
            let _ = write!(out, " {:>14}", word(value));
        }
        out.push('\n');
    }
    out
}
