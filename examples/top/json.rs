//! One reading as JSON: numbers as they were published, no shares.

use crate::table::{State, Table};
use serde_json::{Value as Json, json};
use unmerged::task_shared::Value;

pub(crate) fn of(table: &Table<'_>) -> Json {
    let names: Vec<&str> = table.fields().iter().map(|field| field.name.as_str()).collect();
    let threads: Vec<Json> = table
        .rows()
        .map(|row| {
            let words =
                row.words.iter().enumerate().map(|(n, word)| {
                    (names.get(n).copied().unwrap_or("word").to_owned(), plain(word))
                });
            json!({
                "tid": row.tid,
                "generation": row.generation,
                "name": row.name,
                "alive": row.state != State::Dead,
                "cpu": row.cpu,
                "node": row.node,
                "sum_exec_runtime_ns": row.stats.sum_exec_runtime,
                "run_delay_ns": row.stats.run_delay,
                "pcount": row.stats.pcount,
                "off_cpu_ns": row.stats.off_cpu,
                "age_seconds": row.age(table.now),
                "words": words.collect::<serde_json::Map<_, _>>(),
            })
        })
        .collect();
    json!({"pid": table.pid(), "threads": threads})
}

/// JSON has no number for NaN and the infinities: they are null.
fn plain(value: &Value) -> Json {
    match *value {
        Value::U64(value) => value.into(),
        Value::I64(value) => value.into(),
        Value::F64(value) => value.into(),
        Value::Bool(value) => value.into(),
        _ => Json::Null,
    }
}
