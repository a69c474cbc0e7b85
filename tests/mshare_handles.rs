//! Handles on one region that threads of a process make and drop.

mod common;

use common::{Player, say, wait_for_nudge};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use unmerged::mshare::{Object, Region};

const PAGE: usize = 4096;
const SIZE: usize = 1 << 20;
const ROOM: usize = 1 << 18;

fn player(dir: &Path, role: &str) -> Player {
    let mut command = common::child("child", role);
    command.env("UNMERGED_RUNTIME_DIR", dir);
    let mut player = Player::start(command);
    player.wait_for("ready");
    player
}

/// Not a test: another process.
#[test]
fn child() {
    match common::role().as_deref() {
        Some("threads") => threads(),
        Some("opens, then sleeps") => sleep(Region::open("region").unwrap()),
        Some("reads, then sleeps") => {
            sleep(Region::opener("region").read_only().open().unwrap());
        }
        Some("creates, then sleeps") => {
            sleep(Region::builder("region").size(SIZE).room(ROOM).create().unwrap());
        }
        Some("two") => {
            let by_hand = Region::opener("region").agent(false).open().unwrap();
            let region = Region::open("region").unwrap();
            say("ready");
            wait_for_nudge();
            drop(by_hand);
            say("one");
            wait_for_nudge();
            drop(region);
        }
        Some("few descriptors") => few_descriptors(),
        Some("waits") => {
            say("waits");
            wait_for_nudge();
        }
        None => {}
        other => panic!("no such role: {other:?}"),
    }
}

/// How many threads of this process follow a region.
fn agents() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let name = |task: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap_or_default()
    };
    tasks.map(name).filter(|name| name.starts_with("unmerged-mshare")).count()
}

/// Two threads make and drop the only handle, while the heap keeps the region mapped.
fn threads() {
    let heap = Region::open("region").unwrap().heap().unwrap();
    say("ready");
    let end = Instant::now() + common::stress(Duration::from_millis(500));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while Instant::now() < end {
                    drop(Region::open("region"));
                }
            });
        }
    });
    assert_eq!(agents(), 0, "a thread follows for nobody");
    say("none is left");
    wait_for_nudge();
    // SAFETY: nothing was allocated.
    unsafe { heap.close() };
    assert!(!std::fs::read_to_string("/proc/self/maps").unwrap().contains("memfd:mshare:region"));
}

#[test]
fn two_threads_make_and_drop_the_first_handle() {
    let dir = TempDir::new().unwrap();
    let build = Region::builder("region").size(SIZE).room(ROOM).directory(dir.path());
    let region = build.create().unwrap();
    let mut other = player(dir.path(), "threads");
    let end = Instant::now() + common::stress(Duration::from_millis(500));
    while Instant::now() < end {
        let range = SIZE - PAGE..SIZE;
        let _ = region.map_within(range, Object::anonymous(), Duration::from_millis(1)).unwrap();
    }
    other.wait_for("none is left");
    assert_eq!(region.stats().unwrap().participants.len(), 1);
    region.unmap(SIZE - PAGE..SIZE).unwrap();
    other.nudge();
    other.end();
}

/// Executes another program, which runs until it is killed.
fn sleep(region: Region) {
    // So the thread of this process has said that it is there.
    while !region.stats().unwrap().participants.iter().any(|p| p.pid == std::process::id()) {}
    region.sync().unwrap();
    std::thread::sleep(Duration::from_millis(50));
    say("ready");
    wait_for_nudge();
    let error = std::process::Command::new("/proc/self/exe")
        .args(["child", "--exact", "--nocapture"])
        .env("UNMERGED_TEST_ROLE", "waits")
        .exec();
    panic!("{error}");
}

/// Who executes another program is no participant any more, whoever it was.
#[test]
fn another_program_is_no_participant() {
    let dir = TempDir::new().unwrap();
    let mut creator = player(dir.path(), "creates, then sleeps");
    let region = Region::open_in(dir.path(), "region").unwrap();
    let mut other = player(dir.path(), "opens, then sleeps");
    let mut reader = player(dir.path(), "reads, then sleeps");
    for player in [&mut other, &mut reader, &mut creator] {
        player.nudge();
        player.wait_for("waits");
        region.map(SIZE - PAGE..SIZE, Object::revocable()).unwrap();
        region.unmap(SIZE - PAGE..SIZE).unwrap();
    }
    assert_eq!(region.stats().unwrap().participants.len(), 1);
    // Within moments: the name is found.
    Region::opener("region").directory(dir.path()).open().unwrap();
    assert!(region.is_server());
}

/// Nobody has to change anything for that.
#[test]
fn a_server_that_executes_another_program_is_succeeded() {
    let dir = TempDir::new().unwrap();
    let mut creator = player(dir.path(), "creates, then sleeps");
    let region = Region::open_in(dir.path(), "region").unwrap();
    creator.nudge();
    creator.wait_for("waits");
    let end = Instant::now() + Duration::from_secs(10);
    while !region.is_server() {
        assert!(Instant::now() < end, "nobody takes over");
        std::thread::sleep(Duration::from_millis(1));
    }
    let again = Region::open_in(dir.path(), "region").unwrap();
    assert_eq!(again.id(), region.id());
    assert_eq!(region.stats().unwrap().participants.len(), 1);
}

/// A handle that follows, beside one that does not.
#[test]
fn a_second_handle_follows() {
    let dir = TempDir::new().unwrap();
    let build = Region::builder("region").size(SIZE).room(ROOM).directory(dir.path());
    let region = build.create().unwrap();
    let mut other = player(dir.path(), "two");
    region.map(SIZE - PAGE..SIZE, Object::revocable()).unwrap();
    other.nudge();
    other.wait_for("one");
    region.unmap(SIZE - PAGE..SIZE).unwrap();
    other.nudge();
    other.end();
}

/// Each time one descriptor more, until there are enough: nothing is left of an attempt.
fn few_descriptors() {
    say("ready");
    let dir = std::env::var("UNMERGED_RUNTIME_DIR").unwrap();
    let used = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    for more in 0..64 {
        let limit = libc::rlimit { rlim_cur: used + more, rlim_max: 4096 };
        // SAFETY: two numbers.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
        let created = Region::builder("region").size(SIZE).create();
        let limit = libc::rlimit { rlim_cur: 4096, rlim_max: 4096 };
        // SAFETY: as above.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
        match created {
            Ok(_) => return assert!(more > 4),
            Err(error) => {
                assert_eq!(error.raw_os_error(), libc::EMFILE, "{error}");
                assert!(error.to_string().contains("Builder::create"), "{error}");
                let left: Vec<_> = std::fs::read_dir(&dir).unwrap().collect();
                assert!(left.is_empty(), "{left:?}");
            }
        }
    }
    panic!("64 descriptors are too few");
}

#[test]
fn nothing_is_left_of_a_region_that_could_not_be_made() {
    let dir = TempDir::new().unwrap();
    player(dir.path(), "few descriptors").end();
}

/// A file with contents of its own is not written over, nor one that is gone made up for.
#[test]
fn a_file_that_is_no_regions() {
    let dir = TempDir::new().unwrap();
    let (data, control) = (dir.path().join("data"), dir.path().join("data.control"));
    let create = || Region::builder("region").size(SIZE).directory(dir.path()).file(&data).create();
    std::fs::write(&data, [7; SIZE]).unwrap();
    assert!(create().unwrap_err().is_corrupt());
    assert_eq!(std::fs::read(&data).unwrap(), [7; SIZE]);
    // As a creator leaves them that was killed early.
    std::fs::File::create(&data).unwrap().set_len((SIZE + PAGE) as u64).unwrap();
    let region = create().unwrap();
    assert_eq!(std::fs::metadata(&control).unwrap().len(), PAGE as u64);
    drop(region);
    create().unwrap();
    std::fs::remove_file(&data).unwrap();
    assert!(create().unwrap_err().is_corrupt());
    std::fs::remove_file(&control).unwrap();
    create().unwrap();
}
