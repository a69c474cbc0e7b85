//! The example `top`, as a user runs it: on a process that has slots, and on none.
//!
//! The program is the one that cargo built beside this test, or the one in
//! `UNMERGED_EXAMPLES_DIR`.

mod common;

use common::{Player, say, wait_for_nudge};
use prometheus_parse::{Scrape, Value};
use serde_json::Value as Json;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Output, Stdio};
use unmerged::task_shared::{self, Config, Word};

const JOBS: Word<u64> = Word::new(0, "jobs", "1");
const LOAD: Word<f64> = Word::new(1, "load", "ratio");
/// With all that is special in the formats.
const NAME: &str = "a \"b\\c\" d";

/// With all that a terminal acts on: ESC, CSI in one character, DEL, an end of a line, and what
/// turns the direction of writing.
const HOSTILE: &str = "\x1b]0;\u{9b}2J\x7f\r\n\u{202e}";

fn top(args: &[&str]) -> Output {
    Command::new(common::example("top")).args(args).output().unwrap()
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
    let Some(role) = common::role() else { return };
    let name = if role == "hostile" { HOSTILE } else { NAME };
    let config = Config::new().slot_size(256).word(JOBS).word(LOAD);
    let names = ["third", "fourth", "fifth", "sixth", "seventh", "eighth"];
    let many = if role == "words" { &names[..] } else { &[] };
    let word = |config: Config, (n, name): (usize, &&'static str)| {
        config.word(Word::<u64>::new(n + 2, name, "1"))
    };
    task_shared::configure(&many.iter().enumerate().fold(config, word)).unwrap();
    let load = if role == "words" { 1e300 } else { f64::INFINITY };
    let work = move || {
        let me = task_shared::current().unwrap();
        me.set(JOBS, 42).unwrap();
        me.set(LOAD, load).unwrap();
        let published = me.publish();
        assert!(published.is_ok() || published.is_err_and(|error| error.is_unsupported()));
        say("ready");
        wait_for_nudge();
    };
    std::thread::Builder::new().name(name.into()).spawn(work).unwrap().join().unwrap();
}

fn start() -> (Player, String) {
    start_as("target")
}

fn start_as(role: &str) -> (Player, String) {
    let mut player = Player::start(common::child("child", role));
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

#[test]
fn nothing_that_a_terminal_acts_on() {
    let (_player, pid) = start_as("hostile");
    for format in ["--once", "--json", "--prometheus"] {
        let text = printed(&[&pid, format, "--interval", "10"]);
        let acts = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!text.contains(acts), "{format}: {text:?}");
        if format == "--json" {
            assert_eq!(text.trim_end().lines().count(), 1, "{text:?}");
            let all: Json = serde_json::from_str(&text).unwrap();
            assert_eq!(all["threads"][0]["name"], HOSTILE);
        } else {
            assert!(text.contains("?]0;?2J????"), "{format}: {text:?}");
        }
    }
}

/// A terminal of so many columns: the end that a user has, and the program's.
fn terminal(columns: u16) -> (File, File) {
    let size = libc::winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    let (mut user, mut program) = (0, 0);
    let none = std::ptr::null_mut();
    // SAFETY: two descriptors and a size on this stack.
    let made = unsafe {
        libc::openpty(&raw mut user, &raw mut program, none, none.cast(), &raw const size)
    };
    assert_eq!(made, 0);
    // SAFETY: both are new, and nobody else's.
    unsafe { (File::from_raw_fd(user), File::from_raw_fd(program)) }
}

/// Reads what is shown until there is this in it.
fn read_until(user: &mut File, shown: &mut String, wanted: &str) {
    let mut bytes = [0; 4096];
    while !shown.contains(wanted) {
        let len = user.read(&mut bytes).unwrap();
        shown.push_str(&String::from_utf8_lossy(&bytes[..len]));
    }
}

fn show(pid: &str, columns: u16) -> (Child, File, File) {
    let (user, end) = terminal(columns);
    let ours = || Stdio::from(end.try_clone().unwrap());
    let args = [pid, "--interval", "50"];
    let child = Command::new(common::example("top"))
        .args(args)
        .stdin(ours())
        .stdout(ours())
        .spawn()
        .unwrap();
    (child, user, end)
}

#[test]
fn a_signal_leaves_the_terminal_as_it_was() {
    let (_player, pid) = start();
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        let (mut child, mut user, end) = show(&pid, 100);
        let cooked = |file: &File| {
            let mut modes = std::mem::MaybeUninit::<libc::termios>::zeroed();
            // SAFETY: an open terminal, and a struct of zeros that is filled in.
            let modes = unsafe {
                assert_eq!(libc::tcgetattr(file.as_raw_fd(), modes.as_mut_ptr()), 0);
                modes.assume_init()
            };
            modes.c_lflag & (libc::ICANON | libc::ECHO) == libc::ICANON | libc::ECHO
        };
        let mut shown = String::new();
        read_until(&mut user, &mut shown, "quit");
        assert!(shown.contains("\x1b[?1049h") && !cooked(&end), "{shown:?}");
        // SAFETY: our own child.
        assert_eq!(unsafe { libc::kill(child.id().cast_signed(), signal) }, 0);
        assert_eq!(child.wait().unwrap().signal(), Some(signal));
        assert!(cooked(&end));
        read_until(&mut user, &mut shown, "\x1b[?1049l");
        read_until(&mut user, &mut shown, "\x1b[?25h");
    }
}

/// Eight words, of which a usual terminal has room for some: no column is squeezed for them.
#[test]
fn columns_that_do_not_fit_are_left_out() {
    let (mut player, pid) = start_as("words");
    let text = printed(&[&pid, "--once", "--interval", "10"]);
    assert!(text.contains(" 1.00e300"), "{text}");
    let (mut child, mut user, _end) = show(&pid, 100);
    let mut shown = String::new();
    read_until(&mut user, &mut shown, "quit");
    let head = "TID      NAME            STATE  ON  CPU%  DELAY% OFF%  TIME      AGE   JOBS     ";
    assert!(shown.contains(head) && shown.contains("7 columns hidden"), "{shown:?}");
    player.kill();
    read_until(&mut user, &mut shown, "ENDED");
    assert!(!shown.contains("-0.00"), "{shown:?}");
    child.kill().unwrap();
    child.wait().unwrap();
}
