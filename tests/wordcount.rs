//! The example `wordcount`, as a user runs it: results, exit status, and what is left behind.
//!
//! The program is the one that cargo built beside this test, or the one in
//! `UNMERGED_EXAMPLES_DIR`.

mod common;

use rustix::process::{Pid, Signal, geteuid, kill_process};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Files to count, and a runtime directory beside them.
struct Place {
    files: TempDir,
    names: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { files: tempfile::tempdir().unwrap(), names: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// Some hundred files of many sizes, with words of their own and common ones.
    fn fill(&self, files: usize) {
        for file in 0..files {
            let words = if file % 50 == 0 { 20_000 } else { file % 300 };
            let text: String =
                (0..words).map(|word| format!("w{} common\n", word * (file % 7 + 1))).collect();
            self.write(&format!("{}/{file}.txt", file % 10), text);
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(common::example("wordcount"));
        command
            .args(args)
            .env("UNMERGED_RUNTIME_DIR", self.names.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Counts the files; afterwards, no name is left.
    fn count(&self, args: &[&str]) -> Answer {
        self.answer(self.command(args).arg(self.files.path()))
    }

    fn answer(&self, command: &mut Command) -> Answer {
        let answer = Answer::from(command.output().unwrap());
        assert_eq!(self.left(), [""; 0], "{answer:?}");
        answer
    }

    fn left(&self) -> Vec<String> {
        let entries = self.names.path().read_dir().unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

#[derive(Debug)]
struct Answer {
    code: Option<i32>,
    out: String,
    err: String,
}

impl From<Output> for Answer {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Answer {
    /// Ends with this status.
    #[track_caller]
    fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}\n{}", self.out, self.err);
        self
    }

    /// What the line with this label says.
    #[track_caller]
    fn line(&self, label: &str) -> &str {
        let mut lines = self.out.lines().filter_map(|line| line.strip_prefix(label));
        lines.next().unwrap_or_else(|| panic!("no {label} in {self:?}")).trim()
    }

    /// The most frequent words.
    fn top(&self) -> Vec<(u64, &str)> {
        let lines = self.out.lines().take_while(|line| !line.is_empty());
        lines
            .map(|line| {
                let (count, word) = line.trim().split_once("  ").unwrap();
                (count.parse().unwrap(), word)
            })
            .collect()
    }
}

/// Whoever reads the output wants no more of it, or there is no room for it: an end with a
/// status of the help's, and no panic.
#[test]
fn an_output_that_takes_nothing() {
    for (target, says) in [("/dev/full", "No space left"), ("closed pipe", "")] {
        let place = Place::new();
        place.write("a", "one two two");
        let mut command = place.command(&[]);
        command.arg(place.files.path());
        if target == "/dev/full" {
            command.stdout(std::fs::File::options().write(true).open(target).unwrap());
        } else {
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            command.stdout(writer);
        }
        let output = command.spawn().unwrap().wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{target}: {stderr}");
        assert!(stderr.contains(says) && !stderr.contains("panicked"), "{target}: {stderr}");
    }
}

#[test]
fn known_text() {
    let place = Place::new();
    place.write("a.txt", "the cat and the dog_2, the CAT.\n");
    place.write("sub/b.txt", "the naïve cat—and");
    place.write("sub/empty", "");
    let answer = place.count(&["--top", "3"]).expect(0);
    // A dash of three bytes is no separator.
    assert_eq!(answer.top(), [(4, "the"), (1, "CAT"), (1, "and")]);
    assert_eq!(answer.line("files"), "3 counted, 0 binary and skipped, 0 unreadable");
    assert_eq!(answer.line("words"), "10, 7 different");
    assert_eq!(answer.line("bytes"), (32 + 20).to_string());
    assert_eq!(answer.err, "");

    let all = place.count(&["--processes", "1", "--check"]).expect(0);
    let words: Vec<_> = all.top().iter().map(|(_, word)| *word).collect();
    assert_eq!(words, ["the", "CAT", "and", "cat", "cat—and", "dog_2", "naïve"]);
}

#[test]
fn what_is_not_counted() {
    let place = Place::new();
    place.write("text", "one two");
    place.write("binary", "one\0two");
    place.write("latin-1", b"caf\xe9 caf\xe9");
    place.write(".hidden", "hidden");
    place.write(".git/text", "git");
    place.write("cache/CACHEDIR.TAG", "Signature: 8a477f597d28d172789f06886806bc55");
    place.write("cache/text", "cached");
    symlink(place.path("text"), place.path("link")).unwrap();
    symlink(place.files.path(), place.path("loop")).unwrap();
    let answer = place.count(&["--check"]).expect(0);
    assert_eq!(answer.line("files"), "3 counted, 1 binary and skipped, 0 unreadable");
    assert_eq!(answer.line("words"), "5, 4 different");

    // What is given is taken.
    let mut command = place.command(&["--check"]);
    command.args(["link", "cache", ".git", "loop/text"].map(|name| place.path(name)));
    let answer = place.answer(&mut command).expect(0);
    assert_eq!(answer.line("files"), "5 counted, 0 binary and skipped, 0 unreadable");
}

#[test]
fn unreadable_files_are_named() {
    let place = Place::new();
    place.write("text", "one two");
    // 4 GiB, without a block.
    fs::File::create(place.path("huge")).unwrap().set_len(1 << 32).unwrap();
    let answer = place.count(&["--check", "--kill-one"]).expect(3);
    assert_eq!(answer.line("files"), "1 counted, 0 binary and skipped, 1 unreadable");
    for text in [&answer.out, &answer.err] {
        assert!(text.contains("huge: File too large"), "{answer:?}");
    }
    if geteuid().is_root() {
        eprintln!("no file is unreadable to root");
        return;
    }
    for (name, path) in [("secret", "secret"), ("room", "room/text")] {
        place.write(path, "three");
        fs::set_permissions(place.path(name), fs::Permissions::from_mode(0o000)).unwrap();
    }
    let answer = place.count(&["--check"]).expect(3);
    assert_eq!(answer.line("files"), "1 counted, 0 binary and skipped, 3 unreadable");
    for name in ["secret: Permission denied", "room: Permission denied"] {
        assert!(answer.err.contains(name), "{answer:?}");
    }
    fs::set_permissions(place.path("room"), fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn nothing_to_count_and_wrong_usage() {
    let place = Place::new();
    let answer = place.count(&[]).expect(1);
    assert!(answer.err.contains("no file"), "{answer:?}");
    let answer = place.answer(place.command(&[]).arg(place.path("missing"))).expect(1);
    assert!(answer.err.contains("missing: No such file"), "{answer:?}");
    let answer = place.answer(place.command(&[]).arg("/dev/null")).expect(1);
    assert!(answer.err.contains("neither a file nor a directory"), "{answer:?}");
    for wrong in ["--processes=0", "--processes=251", "--processes=many", "--top=-1", "--what"] {
        place.count(&[wrong]).expect(2);
    }
    // Nobody to kill in the middle of a file.
    place.write("empty", "");
    let answer = place.count(&["--kill-one"]).expect(1);
    assert!(answer.err.contains("none has text"), "{answer:?}");
    place.count(&["--check"]).expect(0);
}

#[test]
fn exact_with_any_number_of_processes_and_with_a_death() {
    let place = Place::new();
    place.fill(400);
    for processes in ["1", "2", "3", "20"] {
        let answer = place.count(&["--check", "--processes", processes]).expect(0);
        assert!(answer.line("check").starts_with("same"), "{answer:?}");
        let answer = place.count(&["--check", "--kill-one", "--processes", processes]).expect(0);
        assert!(answer.line("killed").contains("in the middle of a file"), "{answer:?}");
        assert_eq!(answer.line("remains"), "none: no name, no process");
        assert_eq!(answer.out.matches("signal 9").count(), 1, "{answer:?}");
    }
}

#[test]
fn words_and_gaps_of_any_length() {
    let place = Place::new();
    let mut text = Vec::new();
    for len in (0..300).chain([1 << 12, 1 << 16, 1 << 20]) {
        text.extend(std::iter::repeat_n(b'w', len));
        text.extend(std::iter::repeat_n(b'-', 1 + len % 130));
    }
    place.write("long", &text);
    // Every byte but NUL, between two letters.
    place.write("bytes", (1..=255).flat_map(|byte| [b'x', byte]).collect::<Vec<_>>());
    for cut in 0..130 {
        place.write(&format!("{cut}"), &text[text.len() - 200 - cut..][..cut]);
    }
    place.count(&["--check"]).expect(0);
}

#[test]
fn one_file_and_a_death() {
    let place = Place::new();
    place.write("text", "x");
    for processes in ["1", "2", "3"] {
        let answer = place.count(&["--check", "--kill-one", "--processes", processes]).expect(0);
        assert_eq!(answer.top(), [(1, "x")]);
    }
}

#[test]
fn exact_with_each_way_to_count() {
    let place = Place::new();
    place.fill(100);
    for (variable, value) in [
        ("UNMERGED_PERCPU", "gs"),
        ("UNMERGED_PERCPU", "rseq"),
        ("UNMERGED_PERCPU", "portable"),
        ("UNMERGED_FUTEX2", "shadow"),
        ("GLIBC_TUNABLES", "glibc.pthread.rseq=0"),
    ] {
        for options in [&["--check"][..], &["--check", "--kill-one"]] {
            let mut command = place.command(options);
            let answer = place.answer(command.env(variable, value).arg(place.files.path()));
            assert!(answer.code == Some(0), "{variable}={value}: {answer:?}");
        }
    }
}

/// The parent of a process and whether it still runs, as its stat file says.
fn parent_of(pid: u32) -> Option<(u32, bool)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let runs = !["Z", "X"].contains(&fields.next()?);
    Some((fields.next()?.parse().ok()?, runs))
}

/// Children that still run.
fn children(parent: u32) -> Vec<u32> {
    let entries = Path::new("/proc").read_dir().unwrap();
    let pids = entries.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    pids.filter(|&pid| parent_of(pid) == Some((parent, true))).collect()
}

fn signal(pid: u32, signal: Signal) -> bool {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).is_ok()
}

/// Calls `look` until it answers.
#[track_caller]
fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "{what}");
        sleep(Duration::from_millis(1));
    }
}

/// Starts a count and stops the parent when it has three workers, which then wait for ever.
fn stopped_with_workers(place: &Place) -> (Child, Vec<u32>) {
    place.fill(1500);
    let mut parent = place.command(&["--processes", "3"]).arg(place.files.path()).spawn().unwrap();
    let pid = parent.id();
    let workers = wait_for("no three workers", || {
        assert_eq!(parent.try_wait().unwrap(), None, "it ended before it was seen");
        (children(pid).len() == 3).then(|| {
            signal(pid, Signal::STOP);
            children(pid)
        })
    });
    assert!(!workers.is_empty(), "they ended before the parent was stopped");
    (parent, workers)
}

fn wait_for_end(worker: u32) {
    wait_for("a worker is left", || {
        let runs = parent_of(worker).is_some_and(|(_, runs)| runs);
        // Another process may have the number by now.
        let is_worker = fs::read(format!("/proc/{worker}/cmdline"))
            .is_ok_and(|line| line.windows(8).any(|part| part == b"--worker"));
        (!runs || !is_worker).then_some(())
    });
}

#[test]
fn workers_end_with_their_parent() {
    let place = Place::new();
    let (mut parent, workers) = stopped_with_workers(&place);
    parent.kill().unwrap();
    parent.wait().unwrap();
    workers.into_iter().for_each(wait_for_end);
}

#[test]
fn nothing_is_left_by_ctrl_c() {
    let place = Place::new();
    let (mut parent, workers) = stopped_with_workers(&place);
    assert_eq!(place.left().len(), 1);
    signal(parent.id(), Signal::INT);
    signal(parent.id(), Signal::CONT);
    // Everything may be counted by now; then it may come to its own end first.
    let status = parent.wait().unwrap();
    assert!(status.signal() == Some(Signal::INT.as_raw()) || status.success(), "{status}");
    assert_eq!(place.left(), [""; 0]);
    workers.into_iter().for_each(wait_for_end);
}

#[test]
fn deaths_that_nobody_planned() {
    let place = Place::new();
    place.fill(1500);
    for processes in ["1", "3"] {
        let mut command = place.command(&["--check", "--processes", processes]);
        let mut parent = command.arg(place.files.path()).spawn().unwrap();
        let mut killed = Vec::new();
        while killed.len() < 4 && parent.try_wait().unwrap().is_none() {
            let alive = children(parent.id()).into_iter().filter(|pid| !killed.contains(pid));
            // The one that was started last, so that files of the first are done meanwhile.
            if let Some(pid) = alive.max() {
                signal(pid, Signal::KILL);
                killed.push(pid);
            }
            sleep(Duration::from_millis(3));
        }
        let answer = Answer::from(parent.wait_with_output().unwrap());
        // Three of the deaths may have been of the same file: then it is named.
        let given_up = answer.err.contains("workers died in the middle of it");
        assert!(answer.code == Some(0) || given_up, "{answer:?}");
        assert!(killed.is_empty() || answer.out.contains("signal 9"), "{answer:?}");
        assert_eq!(place.left(), [""; 0], "{answer:?}");
    }
}
