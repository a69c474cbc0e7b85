//! The example `top`, as a user runs it: on a process that has slots, and on none.
//!
//! The program is the one that cargo built beside this test, or the one in
//! `UNMERGED_EXAMPLES_DIR`.

mod common;

use common::{Player, say, wait_for_nudge};
use prometheus_parse::{Scrape, Value};
use serde_json::Value as Json;
use std::path::PathBuf;
use std::process::{Command, Output};
use unmerged::task_shared::{self, Config, Word};

const JOBS: Word<u64> = Word::new(0, "jobs", "1");
const LOAD: Word<f64> = Word::new(1, "load", "ratio");
/// With all that is special in the formats.
const NAME: &str = "a \"b\\c\" d";

fn top(args: &[&str]) -> Output {
    let directory = std::env::var_os("UNMERGED_EXAMPLES_DIR").map_or_else(
        || {
            let test = std::env::current_exe().unwrap();
            // target/PROFILE/deps/top-HASH
            test.ancestors().nth(2).unwrap().join("examples")
        },
        PathBuf::from,
    );
    let program = directory.join("top");
    assert!(program.exists(), "{} is not built: cargo build --examples", program.display());
    Command::new(program).args(args).output().unwrap()
}

/// What it prints, of a run that succeeds.
fn printed(args: &[&str]) -> String {
    let output = top(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Not a test: the process that is looked at.
#[test]
fn child() {
    let Some(_) = common::role() else { return };
    task_shared::configure(&Config::new().word(JOBS).word(LOAD)).unwrap();
    let work = || {
        let me = task_shared::current().unwrap();
        me.set(JOBS, 42).unwrap();
        me.set(LOAD, f64::INFINITY).unwrap();
        let published = me.publish();
        assert!(published.is_ok() || published.is_err_and(|error| error.is_unsupported()));
        say("ready");
        wait_for_nudge();
    };
    std::thread::Builder::new().name(NAME.into()).spawn(work).unwrap().join().unwrap();
}

fn start() -> (Player, String) {
    let mut player = Player::start(common::child("child", "target"));
    player.wait_for("ready");
    let pid = player.pid().to_string();
    (player, pid)
}

#[test]
fn text() {
    let (_player, pid) = start();
    let text = printed(&[&pid, "--once", "--interval", "10"]);
    let (head, rows) = text.split_once('\n').unwrap();
    assert!(head.contains("JOBS") && head.contains("LOAD (RATIO)"), "{text}");
    assert_eq!(rows.lines().count(), 1);
    assert!(rows.contains(NAME) && rows.contains(" 42") && rows.contains("inf"), "{text}");
}

#[test]
fn json() {
    let (_player, pid) = start();
    let all: Json = serde_json::from_str(&printed(&[&pid, "--json"])).unwrap();
    assert_eq!(all["pid"].to_string(), pid);
    let thread = &all["threads"][0];
    assert_eq!((&thread["name"], &thread["alive"]), (&NAME.into(), &true.into()));
    assert_eq!(thread["words"]["jobs"], 42);
    assert!(thread["words"]["load"].is_null(), "JSON has no infinity");
    assert!(thread["pcount"].is_u64() && thread["off_cpu_ns"].is_u64());
}

#[test]
fn prometheus() {
    let (_player, pid) = start();
    let text = printed(&[&pid, "--prometheus"]);
    let scrape = Scrape::parse(text.lines().map(|line| Ok(line.to_owned()))).unwrap();
    assert_eq!(scrape.docs["task_cpu_seconds_total"], "Time on a CPU.");
    let of = |metric: &str| -> Vec<_> {
        scrape.samples.iter().filter(|sample| sample.metric == metric).collect()
    };
    for metric in
        ["task_cpu_seconds_total", "task_run_delay_seconds_total", "task_timeslices_total"]
    {
        let [sample] = of(metric)[..] else { panic!("{metric}: {text}") };
        assert!(matches!(sample.value, Value::Counter(value) if value >= 0.0), "{sample:?}");
        assert_eq!(sample.labels.get("pid"), Some(pid.as_str()));
    }
    let [alive] = of("task_alive")[..] else { panic!("{text}") };
    assert_eq!(alive.value, Value::Gauge(1.0));
    // This parser finds the end of a label, and leaves in it what was escaped.
    let name = alive.labels.get("name").unwrap();
    assert_eq!(name.replace("\\\"", "\"").replace(r"\\", r"\"), NAME);
    let words: Vec<_> = of("task_word");
    let values: Vec<_> = words.iter().map(|word| (word.labels.get("word"), &word.value)).collect();
    let infinite = Value::Gauge(f64::INFINITY);
    assert_eq!(values, [(Some("jobs"), &Value::Gauge(42.0)), (Some("load"), &infinite)]);
}

#[test]
fn what_cannot_be_shown_is_said() {
    let fails = |args: &[&str], code: i32, message: &str| {
        let output = top(args);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {error}");
        assert!(error.contains(message), "{args:?}: {error}");
    };
    fails(&["--bogus"], 2, "unexpected argument '--bogus'");
    fails(&[], 2, "required");
    fails(&["1", "--demo", "2"], 2, "cannot be used with");
    fails(&["1", "--interval", "0"], 2, "10..=60000");
    fails(&["4294967295"], 1, "there is no process 4294967295");
    let (_player, pid) = start();
    fails(&[&pid], 1, "no terminal");
}
