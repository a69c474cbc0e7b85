//! Limits of the machine: an error that names it, and a region as before.

mod common;

use common::{Player, say, wait_for_nudge};
use std::ffi::CString;
use std::io::{Error, Result};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use unmerged::mshare::{Advice, Object, Prot, Region};

const PAGE: usize = 4096;
const SIZE: usize = 64 * PAGE;

/// Not a test: the processes that come to a limit.
#[test]
fn child() {
    match common::role().as_deref() {
        Some("mappings") => mappings(),
        Some("follows without mappings") => follows_without_mappings(),
        Some("room") => room(),
        Some("hugetlbfs") => hugetlbfs(),
        Some("group") => group(),
        _ => {}
    }
}

/// As many mappings as a process may have, in a range of its own, until no more can be had.
fn fill() -> *mut libc::c_void {
    let len = 70_000 * PAGE;
    // SAFETY: a new mapping, whose pages are protected in turns so that they do not merge.
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let start = libc::mmap(core::ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0);
        assert_ne!(start, libc::MAP_FAILED);
        for at in (PAGE..len - PAGE).step_by(2 * PAGE) {
            if libc::mprotect(start.byte_add(at), PAGE, libc::PROT_READ) != 0 {
                return start;
            }
        }
    }
    common::missing("max-map-count", "a machine without a limit that can be reached");
    std::process::exit(0);
}

fn mappings() {
    let region = Region::builder("region").size(SIZE).create().unwrap();
    region.map(0..PAGE, Object::revocable()).unwrap();
    let filled = fill();
    // Each needs mappings more than there are.
    let before = region.stats().unwrap().generation;
    for error in [
        region.map(8 * PAGE..9 * PAGE, Object::revocable()).unwrap_err(),
        region.protect(16 * PAGE..17 * PAGE, Prot::READ).unwrap_err(),
        region.unmap(24 * PAGE..25 * PAGE).unwrap_err(),
    ] {
        assert_eq!(error.raw_os_error(), libc::ENOMEM, "{error}");
    }
    let error = Region::builder("second").size(SIZE).create().unwrap_err();
    assert_eq!(error.raw_os_error(), libc::ENOMEM, "{error}");
    assert_eq!(region.stats().unwrap().generation, before);
    // SAFETY: mapped by `fill`, and used by nobody.
    unsafe { libc::munmap(filled, 70_000 * PAGE) };
    region.map(8 * PAGE..9 * PAGE, Object::revocable()).unwrap();
    region.protect(16 * PAGE..17 * PAGE, Prot::READ).unwrap();
    region.unmap(24 * PAGE..25 * PAGE).unwrap();
    // SAFETY: mapped, and ours alone.
    unsafe { region.base().add(8 * PAGE).write(1) };
    std::process::exit(0);
}

#[test]
fn no_mapping_is_left() {
    let dir = TempDir::new().unwrap();
    let mut command = common::child("child", "mappings");
    command.env("UNMERGED_RUNTIME_DIR", dir.path());
    common::succeed(command);
}

/// Cannot follow, and says what it has there.
fn follows_without_mappings() {
    let region = Region::open("region").unwrap();
    let filled = fill();
    say("full");
    wait_for_nudge();
    let error = region.sync().unwrap_err();
    let says_what = error.to_string().contains("is as it was");
    assert!(error.raw_os_error() == libc::ENOMEM && says_what, "{error}");
    // SAFETY: inside of the region, where nobody else writes; then mapped by `fill`, and used by
    // nobody.
    unsafe {
        region.base().add(16 * PAGE).write_volatile(1);
        libc::munmap(filled, 70_000 * PAGE);
    }
    region.sync().unwrap();
    std::process::exit(0);
}

#[test]
fn who_cannot_follow_says_what_it_has() {
    let most = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap();
    if most.trim().parse::<usize>().unwrap() > 69_000 {
        return common::missing("max-map-count", "a machine without a limit that can be reached");
    }
    let dir = TempDir::new().unwrap();
    let region = Region::builder("region").size(SIZE).directory(dir.path()).create().unwrap();
    let mut command = common::child("child", "follows without mappings");
    command.env("UNMERGED_RUNTIME_DIR", dir.path());
    let mut other = Player::start(command);
    other.wait_for("full");
    let pid = other.pid();
    let acks =
        region.protect_within(16 * PAGE..17 * PAGE, Prot::READ, Duration::from_secs(10)).unwrap();
    let late: Vec<_> = acks.late().iter().map(|late| (late.pid(), late.raw_os_error())).collect();
    assert_eq!(late, [(pid, Some(libc::ENOMEM))]);
    other.nudge();
    other.end();
}

/// A region in a file system with room for half of it.
fn room() {
    let dir = std::env::var("UNMERGED_TEST_SMALL").unwrap();
    let path = format!("{dir}/memory");
    let region = Region::builder("region").size(SIZE).file(&path).create().unwrap();
    region.advise(0..SIZE / 4, Advice::Populate).unwrap();
    let error = region.advise(SIZE / 4..SIZE, Advice::Populate).unwrap_err();
    assert_eq!(error.raw_os_error(), libc::ENOSPC, "{error}");
    // What is there works; what is taken away can be had again.
    region.unmap(0..SIZE / 4).unwrap();
    region.map(0..SIZE / 4, Object::anonymous()).unwrap();
    region.advise(0..SIZE / 4, Advice::Populate).unwrap();
    say("done");
    std::process::exit(0);
}

/// In a new process: a file system of 128 KiB at `path`, in name spaces of its own.
fn mount_small(path: &CString, [uid, gid]: [u32; 2]) -> Result<()> {
    // SAFETY: system calls, with strings that end.
    unsafe {
        if libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS) != 0 {
            return Err(Error::last_os_error());
        }
        // Who has no number there cannot make a file.
        std::fs::write("/proc/self/setgroups", "deny")?;
        std::fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
        std::fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
        let (kind, data) = (c"tmpfs".as_ptr(), c"size=128k".as_ptr().cast());
        if libc::mount(kind, path.as_ptr(), kind, 0, data) != 0 {
            return Err(Error::last_os_error());
        }
    }
    Ok(())
}

/// In a new process: a hugetlbfs at `path`, in a name space of its own.
fn mount_huge(path: &CString) -> Result<()> {
    // SAFETY: system calls, with strings that end.
    unsafe {
        let (kind, private) = (c"hugetlbfs".as_ptr(), libc::MS_REC | libc::MS_PRIVATE);
        let nothing = core::ptr::null();
        if libc::unshare(libc::CLONE_NEWNS) != 0
            || libc::mount(nothing, c"/".as_ptr(), nothing, private, nothing.cast()) != 0
            || libc::mount(kind, path.as_ptr(), kind, 0, nothing.cast()) != 0
        {
            return Err(Error::last_os_error());
        }
    }
    Ok(())
}

/// A file in hugetlbfs is refused by an error of its own, and nothing is left of it.
#[test]
fn no_file_in_hugetlbfs() {
    let (dir, huge) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let path = CString::new(huge.path().to_str().unwrap()).unwrap();
    let mut command = common::child("child", "hugetlbfs");
    command.env("UNMERGED_RUNTIME_DIR", dir.path()).env("UNMERGED_TEST_SMALL", huge.path());
    // SAFETY: as in the test below.
    unsafe { command.pre_exec(move || mount_huge(&path)) };
    match command.output() {
        Ok(output) => {
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{error}");
        }
        Err(error) => common::missing("hugetlbfs", &error.to_string()),
    }
}

/// In such a file system.
fn hugetlbfs() {
    let dir = std::env::var("UNMERGED_TEST_SMALL").unwrap();
    let path = format!("{dir}/memory");
    let error = Region::builder("region").size(4 << 20).file(&path).create().unwrap_err();
    assert!(error.is_unsupported() && error.to_string().contains("hugetlbfs"), "{error}");
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), 0);
    std::process::exit(0);
}

#[test]
fn no_room_is_left() {
    let (dir, small) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let path = CString::new(small.path().to_str().unwrap()).unwrap();
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let ids = [uid.as_raw(), gid.as_raw()];
    let mut command = common::child("child", "room");
    command.env("UNMERGED_RUNTIME_DIR", dir.path()).env("UNMERGED_TEST_SMALL", small.path());
    // SAFETY: between fork and exec in a copy of a process with threads, so that it could wait
    // for an allocator's lock; glibc's is whole in a forked child.
    unsafe { command.pre_exec(move || mount_small(&path, ids)) };
    match command.output() {
        Ok(output) => {
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{error}");
        }
        Err(error) => common::missing("user-namespaces", &error.to_string()),
    }
}

/// Bytes that a group of processes may have, and of the region that is too large for it.
const GROUP: usize = 16 << 20;

/// Takes more memory than its group may have.
fn group() {
    let region = Region::open("region").unwrap();
    say("open");
    for at in (0..region.size()).step_by(PAGE) {
        // SAFETY: inside of the region, where nobody else writes.
        unsafe { region.base().add(at).write(1) };
    }
    std::process::exit(0);
}

/// A memory cgroup of ours, empty when it is dropped.
struct Group(PathBuf);

impl Group {
    fn new() -> Result<Self> {
        let of_us = std::fs::read_to_string("/proc/self/cgroup")?;
        let is_first = of_us.lines().any(|line| line.contains(":memory:"));
        let (mount, limit) = if is_first {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        } else {
            ("/sys/fs/cgroup", "memory.max")
        };
        let group = Self(Path::new(mount).join(format!("unmerged-{}", std::process::id())));
        std::fs::create_dir(&group.0)?;
        // Not made: a group of version 2 has the file if its parent hands the controller down.
        let mut file = std::fs::OpenOptions::new().write(true).open(group.0.join(limit))?;
        std::io::Write::write_all(&mut file, GROUP.to_string().as_bytes())?;
        Ok(group)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// Who is killed because its group has no memory left is a dead participant like any other.
#[test]
fn a_group_has_no_memory_left() {
    let group = match Group::new() {
        Ok(group) => group,
        Err(error) => return common::missing("memory-cgroup", &error.to_string()),
    };
    let dir = TempDir::new().unwrap();
    let builder = Region::builder("region").size(4 * GROUP).directory(dir.path());
    let region = builder.create().unwrap();
    let mut command = common::child("child", "group");
    command.env("UNMERGED_RUNTIME_DIR", dir.path());
    let procs = group.0.join("cgroup.procs");
    // SAFETY: between fork and exec in a copy of a process with threads, so that it could wait
    // for an allocator's lock; glibc's is whole in a forked child.
    unsafe { command.pre_exec(move || std::fs::write(&procs, "0")) };
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("> open"), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.signal(), Some(libc::SIGKILL), "{output:?}");
    let begin = Instant::now();
    while region.stats().unwrap().participants.len() > 1 {
        assert!(begin.elapsed() < Duration::from_secs(10), "it is not reaped");
        std::thread::sleep(Duration::from_millis(1));
    }
    // What it took stays, is counted, and can be given back; we have no such limit.
    assert!(region.stats().unwrap().memory >= GROUP as u64 / 2);
    region.map(0..PAGE, Object::revocable()).unwrap();
    region.unmap(0..region.size()).unwrap();
    assert_eq!(region.stats().unwrap().memory, 0);
    region.map(0..region.size(), Object::anonymous()).unwrap();
    region.advise(0..4 * PAGE, Advice::Populate).unwrap();
}
