//! The example `mshare`, as a user runs it from a shell.

mod common;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};
use tempfile::TempDir;
use unmerged::mshare::{Object, Prot, Region};

fn program() -> Command {
    Command::new(common::example("mshare"))
}

fn run(dir: &TempDir, args: &[&str]) -> Output {
    program().arg("--directory").arg(dir.path()).args(args).output().unwrap()
}

/// What it prints; it must not fail.
fn said(dir: &TempDir, args: &[&str]) -> String {
    let output = run(dir, args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// What it says against it.
fn refused(dir: &TempDir, args: &[&str]) -> String {
    let output = run(dir, args);
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn json(dir: &TempDir, args: &[&str]) -> Value {
    serde_json::from_str(&said(dir, args)).unwrap()
}

/// One that stays until it is told to end.
struct Kept(Child);

impl Kept {
    fn start(dir: &TempDir, args: &[&str]) -> Self {
        let mut command = program();
        command.arg("--directory").arg(dir.path()).args(args);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains(" bytes at 0x"), "{line}");
        Self(child)
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.0)
    }

    /// It must end well.
    fn wait(mut self) {
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn create_list_inspect_dump_attach_and_unlink() {
    let dir = TempDir::new().unwrap();
    assert_eq!(json(&dir, &["list", "--json"]), Value::from(Vec::<Value>::new()));
    let args = ["create", "scratch", "--size", "4M", "--room", "1M", "--mode", "640"];
    let creator = Kept::start(&dir, &args);

    let region = Region::open_in(dir.path(), "scratch").unwrap();
    let value = region.alloc(core::alloc::Layout::new::<[u8; 16]>()).unwrap();
    // SAFETY: just allocated.
    unsafe { value.cast::<[u8; 16]>().write(*b"sixteen bytes ..") };
    region.set_root("text", value.cast::<u64>()).unwrap();
    region.map(3 << 20..(3 << 20) + 4096, Object::revocable().prot(Prot::READ)).unwrap();
    region.heap_of(1 << 20).unwrap();

    let list = said(&dir, &["list"]);
    assert!(list.contains("scratch") && list.contains(" 640 "), "{list}");
    let listed = json(&dir, &["list", "--json"]);
    assert_eq!(listed[0]["size"], 4 << 20);
    assert_eq!(listed[0]["server"], creator.0.id());

    let seen = json(&dir, &["inspect", "scratch", "--json", "--heap"]);
    assert_eq!(seen["base"], format!("{:p}", region.base()));
    assert_eq!(seen["roots"][0]["name"], "text");
    assert_eq!(seen["heap_sound"], true);
    let contents: Vec<_> =
        seen["parts"].as_array().unwrap().iter().map(|part| part["content"].clone()).collect();
    assert_eq!(contents, ["memory", "revocable", "nothing"]);
    let rights: Vec<_> = seen["participants"].as_array().unwrap().iter().collect();
    assert_eq!(rights.len(), 3);
    let text = said(&dir, &["inspect", "scratch"]);
    for wanted in ["revocable object 1", "r-", "heap", "text", "read+write+map"] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }

    let dumped = said(&dir, &["dump", "scratch", "--length", "48"]);
    assert!(dumped.contains("|sixteen bytes ..|"), "{dumped}");
    let dumped = said(&dir, &["dump", "scratch", "--offset", "3M"]);
    assert!(dumped.contains("nothing to read until 0x400000"), "{dumped}");
    assert!(dumped.lines().count() < 6, "{dumped}");
    let raw = run(&dir, &["dump", "scratch", "--raw"]).stdout;
    assert_eq!((raw.len(), &raw[..7]), (4 << 20, &b"sixteen"[..]));
    assert!(refused(&dir, &["dump", "scratch", "--offset", "5M"]).contains("4194304 bytes"));

    // Another keeps it when the creator goes.
    let reader = Kept::start(&dir, &["attach", "scratch", "--read-only"]);
    let keeper = Kept::start(&dir, &["attach", "scratch"]);
    drop(region);
    kill_process(creator.pid(), Signal::TERM).unwrap();
    creator.wait();
    let listed = json(&dir, &["list", "--json"]);
    assert_eq!(listed[0]["server"], keeper.0.id());
    assert!(said(&dir, &["dump", "scratch", "--length", "16"]).contains("sixteen"));
    assert_eq!(said(&dir, &["unlink", "scratch"]), "");
    assert_eq!(json(&dir, &["list", "--json"]), Value::from(Vec::<Value>::new()));
    for kept in [reader, keeper] {
        kill_process(kept.pid(), Signal::INT).unwrap();
        kept.wait();
    }
}

#[test]
fn a_file_comes_back() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("kept.data");
    let args = ["create", "kept", "--size", "64K", "--file", path.to_str().unwrap()];
    for round in 0..3 {
        let mut creator = Kept::start(&dir, &args);
        let region = Region::open_in(dir.path(), "kept").unwrap();
        let word = region.base().cast::<u64>();
        // SAFETY: in the region, and ours alone.
        unsafe {
            assert_eq!(word.read(), round);
            word.write(round + 1);
        }
        drop(region);
        // The end of its input is its end.
        drop(creator.0.stdin.take());
        creator.wait();
    }
}

#[test]
fn nobody_reads_what_it_says() {
    let dir = TempDir::new().unwrap();
    let _creator = Kept::start(&dir, &["create", "scratch", "--size", "4M"]);
    for args in [
        &["list"][..],
        &["list", "--json"],
        &["inspect", "scratch"],
        &["inspect", "scratch", "--json"],
        &["dump", "scratch"],
        &["attach", "scratch"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = program();
        command.arg("--directory").arg(dir.path()).args(args).stdin(Stdio::piped());
        let child = command.stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        let output = child.wait_with_output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && error.is_empty(), "{args:?}: {error}");
    }
}

#[test]
fn what_cannot_be() {
    let dir = TempDir::new().unwrap();
    for args in [["inspect", "none"], ["attach", "none"], ["dump", "none"], ["unlink", "none"]] {
        assert!(refused(&dir, &args).contains("none"), "{args:?}");
    }
    assert!(refused(&dir, &["create", "../up", "--size", "4K"]).contains("name"));
    assert!(refused(&dir, &["create", "odd", "--size", "5"]).contains("mshare"));
    for args in [&["create", "a", "--size", "3X"][..], &["create", "a", "--size", "99999999T"]] {
        assert_eq!(run(&dir, args).status.code(), Some(2), "{args:?}");
    }
}
