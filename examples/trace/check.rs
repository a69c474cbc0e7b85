//! Reads a trace back.

use crate::Result;
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;

/// How many events the file has; an error unless they are in the order of their times, and the
/// spans of each thread lie one inside the other or apart, so that each has its begin and end.
/// If the trace is `complete`, every thread has its name.
pub(crate) fn file(path: &Path, complete: bool) -> Result<u64> {
    let trace: Value = serde_json::from_slice(&std::fs::read(path)?)?;
    let events = trace["traceEvents"].as_array().ok_or("no events")?;
    let (mut last, mut named) = (0, 0);
    let mut open: HashMap<u64, Vec<u64>> = HashMap::new();
    for event in events {
        let wrong = || format!("what event is this: {event}");
        let thread = event["tid"].as_u64().ok_or_else(wrong)?;
        if event["ph"] == "M" {
            event["args"]["name"].as_str().ok_or_else(wrong)?;
            named += 1;
            continue;
        }
        let nanos = |key: &str| event[key].as_f64().map(|us| (us * 1000.0).round() as u64);
        let begin = nanos("ts").ok_or_else(wrong)?;
        let end = begin + nanos("dur").ok_or_else(wrong)?;
        if event["ph"] != "X" || event["name"].as_str().is_none() || begin < last {
            return Err(wrong().into());
        }
        last = begin;
        let ends = open.entry(thread).or_default();
        while ends.pop_if(|outer| *outer <= begin).is_some() {}
        if ends.last().is_some_and(|&outer| outer < end) {
            return Err(format!("it ends after what it is part of: {event}").into());
        }
        ends.push(end);
    }
    if complete && named < open.len() {
        return Err(format!("{named} threads are named, {} have spans", open.len()).into());
    }
    Ok(events.len() as u64)
}
