//! One reading in the text exposition format of Prometheus, version 0.0.4.
//!
//! Names and labels are of an exporter's choice, but for the rules of the format: base units,
//! `_total` on what only grows, and characters escaped in the value of a label. The third of these,
//! the end of a line, is replaced with all else that a terminal would act on.

use crate::printable::printable;
use crate::table::{Row, State, Table, number};
use std::fmt::Write;

/// One metric: name, type, help, and its value for a thread.
type Metric = (&'static str, &'static str, &'static str, fn(&Row) -> f64);

const METRICS: [Metric; 5] = [
    ("cpu_seconds_total", "counter", "Time on a CPU", |row| {
        row.stats.sum_exec_runtime as f64 / 1e9
    }),
    ("run_delay_seconds_total", "counter", "Time of waiting for a CPU", |row| {
        row.stats.run_delay as f64 / 1e9
    }),
    ("off_cpu_seconds_total", "counter", "Time off the CPU, blocked or waiting", |row| {
        row.stats.off_cpu as f64 / 1e9
    }),
    ("timeslices_total", "counter", "Times that it was given a CPU", |row| row.stats.pcount as f64),
    ("alive", "gauge", "1 while the thread lives", |row| {
        f64::from(u8::from(row.state != State::Dead))
    }),
];

pub(crate) fn of(table: &Table<'_>) -> String {
    let mut out = String::new();
    for (name, kind, help, value) in METRICS {
        let _ = write!(out, "# HELP task_{name} {help}.\n# TYPE task_{name} {kind}\n");
        for row in table.rows() {
            let _ = writeln!(out, "task_{name}{{{}}} {}", labels(table.pid(), row), value(row));
        }
    }
    let _ = write!(out, "# HELP task_word A word of the program's own.\n# TYPE task_word gauge\n");
    for row in table.rows() {
        for (n, word) in row.words.iter().enumerate() {
            let field = table.fields().get(n);
            let (name, unit) = field.map_or(("", ""), |field| (&field.name, &field.unit));
            let (name, unit) = (escaped(name), escaped(unit));
            let labels = labels(table.pid(), row);
            let value = of_float(number(word));
            let _ = writeln!(out, "task_word{{{labels},word=\"{name}\",unit=\"{unit}\"}} {value}");
        }
    }
    out
}

/// A thread id may come again; the generation of its slot tells two of them apart.
fn labels(pid: u32, row: &Row) -> String {
    let Row { tid, generation, .. } = row;
    let name = escaped(&row.name);
    format!("pid=\"{pid}\",tid=\"{tid}\",generation=\"{generation}\",name=\"{name}\"")
}

fn escaped(text: &str) -> String {
    printable(text).replace('\\', "\\\\").replace('"', "\\\"")
}

fn of_float(value: f64) -> String {
    match value {
        f64::INFINITY => "+Inf".to_owned(),
        f64::NEG_INFINITY => "-Inf".to_owned(),
        value if value.is_nan() => "NaN".to_owned(),
        value => value.to_string(),
    }
}
