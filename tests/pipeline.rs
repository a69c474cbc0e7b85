//! The example `pipeline`, as a user runs it: its output, exit status, and what is left behind.
//!
//! The program is the one that cargo built beside this test, or the one in
//! `UNMERGED_EXAMPLES_DIR`.

use flate2::read::MultiGzDecoder;
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::TempDir;

fn program() -> PathBuf {
    let directory = std::env::var_os("UNMERGED_EXAMPLES_DIR").map_or_else(
        || {
            let test = std::env::current_exe().unwrap();
            // target/PROFILE/deps/pipeline-HASH
            test.ancestors().nth(2).unwrap().join("examples")
        },
        PathBuf::from,
    );
    let program = directory.join("pipeline");
    assert!(program.exists(), "{} is not built: cargo build --examples", program.display());
    program
}

/// Files to compress, and a runtime directory beside them.
struct Place {
    files: TempDir,
    names: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { files: tempfile::tempdir().unwrap(), names: tempfile::tempdir().unwrap() }
    }

    /// Some files, and what they are one after the other.
    fn fill(&self, files: usize) -> String {
        let mut all = String::new();
        for file in 0..files {
            let words = file % 700;
            let text: String = (0..words).map(|word| format!("{} word\n", word * file)).collect();
            fs::write(self.files.path().join(format!("{file:04}")), &text).unwrap();
            all += &text;
        }
        all
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program());
        command
            .args(args)
            .env("UNMERGED_RUNTIME_DIR", self.names.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        let output = self.command(args).arg(self.files.path()).output().unwrap();
        assert_eq!(self.left(), 0, "{output:?}");
        output
    }

    /// Names that are left.
    fn left(&self) -> usize {
        self.names.path().read_dir().unwrap().count()
    }
}

#[track_caller]
fn succeeded(output: &Output) -> String {
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{out}{}", String::from_utf8_lossy(&output.stderr));
    out
}

fn unpacked(file: &Path) -> String {
    let mut text = String::new();
    MultiGzDecoder::new(fs::File::open(file).unwrap()).read_to_string(&mut text).unwrap();
    text
}

/// Any number of processes, blocks of any size, a death: always the same.
#[test]
fn the_same_with_any_number_of_processes_and_with_a_death() {
    let place = Place::new();
    let text = place.fill(40);
    let outputs = tempfile::tempdir().unwrap();
    for block in ["777", "65536"] {
        let mut first = None;
        for processes in ["1", "2", "7"] {
            for more in [&[][..], &["--kill-one"]] {
                let file = outputs.path().join("out.gz");
                let args = ["--check", "--processes", processes, "--block", block, "-o"];
                let output = place.run(&[&args[..], &[file.to_str().unwrap()], more].concat());
                let out = succeeded(&output);
                assert!(out.contains("check       same to the byte"), "{out}");
                assert_eq!(out.contains("killed      compressor"), !more.is_empty(), "{out}");
                let bytes = fs::read(&file).unwrap();
                assert_eq!(*first.get_or_insert_with(|| bytes.clone()), bytes);
                assert_eq!(unpacked(&file), text);
            }
        }
    }
}

#[test]
fn with_each_way_to_wait() {
    let place = Place::new();
    place.fill(10);
    for value in ["shadow", "waitv"] {
        let mut command = place.command(&["--check", "--kill-one", "--block", "4096"]);
        let output = command.env("UNMERGED_FUTEX2", value).arg(place.files.path()).output();
        succeeded(&output.unwrap());
    }
}

#[test]
fn nothing_to_compress_and_wrong_usage() {
    let place = Place::new();
    let file = place.names.path().with_extension("gz");
    let out = succeeded(&place.run(&["--check", "-o", file.to_str().unwrap()]));
    assert!(out.contains("blocks      0"), "{out}");
    assert_eq!(unpacked(&file), "");
    fs::remove_file(file).unwrap();
    let output = place.run(&["--kill-one"]);
    assert!(output.status.code() == Some(1), "{output:?}");
    for (args, code) in [
        (&["--processes", "0"][..], 2),
        (&["--processes", "251"], 2),
        (&["--block", "0"], 2),
        (&["--role", "0"], 2),
        (&["--role", "0", "--region", "there-is-none"], 1),
        (&["--role", "reader", "--region", "there-is-none"], 1),
        (&["/nowhere/at/all"], 1),
        (&["/dev/null"], 1),
        (&["-o", "/nowhere/at/all"], 1),
    ] {
        let output = place.run(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
        assert!(!output.stderr.is_empty());
    }
}

/// A file that cannot be read once it is listed, and an output that takes nothing.
#[test]
fn what_cannot_be_read_or_written() {
    let place = Place::new();
    place.fill(3);
    let output = place.run(&["-o", "/dev/full"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("No space left"), "{output:?}");
    // Gone after a while: /proc/self of the parent is another one in the reader.
    let output = place.command(&["/proc/self/task"]).output().unwrap();
    assert_eq!((place.left(), output.status.code()), (0, Some(1)), "{output:?}");
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

/// Starts a job and stops the parent when it has children, which then wait for ever.
fn stopped(place: &Place) -> (Child, Vec<u32>) {
    place.fill(300);
    let mut command = place.command(&["--processes", "3", "--block", "100"]);
    let parent = command.arg(place.files.path()).spawn().unwrap();
    let pid = parent.id();
    let all = wait_for("no four children", || {
        (children(pid).len() == 4).then(|| {
            signal(pid, Signal::STOP);
            children(pid)
        })
    });
    (parent, all)
}

fn wait_for_ends(children: Vec<u32>) {
    for child in children {
        wait_for("a child is left", || {
            let runs = parent_of(child).is_some_and(|(_, runs)| runs);
            // Another process may have the number by now.
            let is_ours = fs::read(format!("/proc/{child}/cmdline"))
                .is_ok_and(|line| line.windows(6).any(|part| part == b"--role"));
            (!runs || !is_ours).then_some(())
        });
    }
}

#[test]
fn children_end_with_their_parent() {
    let place = Place::new();
    let (mut parent, children) = stopped(&place);
    parent.kill().unwrap();
    parent.wait().unwrap();
    wait_for_ends(children);
}

#[test]
fn nothing_is_left_by_ctrl_c() {
    let place = Place::new();
    let (mut parent, children) = stopped(&place);
    assert_eq!(place.left(), 1);
    signal(parent.id(), Signal::INT);
    signal(parent.id(), Signal::CONT);
    let status = parent.wait().unwrap();
    assert!(status.signal() == Some(Signal::INT.as_raw()) || status.success(), "{status}");
    assert_eq!(place.left(), 0);
    wait_for_ends(children);
}

/// Whoever is started last is killed, some times: a compressor is replaced, at whatever it was; without
/// the reader there is an error.
#[test]
fn deaths_that_nobody_planned() {
    let place = Place::new();
    place.fill(300);
    for processes in ["1", "3"] {
        let mut command = place.command(&["--check", "--processes", processes, "--block", "500"]);
        let mut parent = command.arg(place.files.path()).spawn().unwrap();
        let mut killed = Vec::new();
        while killed.len() < 6 && parent.try_wait().unwrap().is_none() {
            let alive = children(parent.id()).into_iter().filter(|pid| !killed.contains(pid));
            let is_compressor = |pid: &u32| {
                fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
                    let has = |what: &[u8]| line.windows(what.len()).any(|part| part == what);
                    has(b"--role") && !has(b"reader")
                })
            };
            if let Some(pid) = alive.filter(is_compressor).max() {
                signal(pid, Signal::KILL);
                killed.push(pid);
            }
            sleep(Duration::from_millis(3));
        }
        let out = succeeded(&parent.wait_with_output().unwrap());
        assert!(out.contains("same to the byte"), "{out}");
        assert_eq!(place.left(), 0);
    }
}
