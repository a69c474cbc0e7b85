//! Participants that cannot follow a change at once, and those who wait for them.

mod common;
#[path = "common/region.rs"]
mod regions;

use common::{Player, say};
use regions::{ask, lies, ready};
use std::alloc::Layout;
use std::io::BufRead;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use unmerged::mshare::{Arena, Object, Prot, Region};

const PAGE: usize = 4096;
const SIZE: usize = 64 * PAGE;
const PATIENCE: Duration = Duration::from_secs(10);

fn create(dir: &Path) -> Region {
    Region::builder("region").size(SIZE).room(SIZE / 2).directory(dir).create().unwrap()
}

/// Not a test: another process.
#[test]
fn child() {
    let Some(role) = common::role() else { return };
    if role == "creates" {
        let region = create(Path::new(&std::env::var("UNMERGED_RUNTIME_DIR").unwrap()));
        say("ready");
        common::wait_for_nudge();
        return drop(region);
    }
    let region = Region::open("region").unwrap();
    say("ready");
    if role != "told" {
        return change(&region, &role);
    }
    for line in std::io::stdin().lock().lines() {
        say(match line.unwrap().as_str() {
            "fill" => limit_descriptors(true),
            "free" => limit_descriptors(false),
            "lies" => lies(&region, SIZE / 2).to_string(),
            other => panic!("no such word: {other}"),
        });
    }
}

/// Has this process no descriptor free, or some again.
fn limit_descriptors(none: bool) -> String {
    let used = || std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a place for two numbers.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
    limit.rlim_cur = if none { used() - 1 } else { limit.rlim_max };
    // SAFETY: two numbers.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
    "done".into()
}

/// One that changes the region all the time.
fn change(region: &Region, role: &str) {
    let end = Instant::now() + common::stress(Duration::from_millis(1200));
    let object = SIZE / 2..SIZE / 2 + PAGE;
    for turn in 0.. {
        if Instant::now() >= end {
            break;
        }
        match role {
            "maps" => drop(region.map(object.clone(), Object::revocable()).unwrap()),
            "unmaps" => region.unmap(object.clone()).unwrap(),
            _ => {
                let prot = if turn % 2 == 0 { Prot::READ } else { Prot::READ_WRITE };
                region.protect(0..PAGE, prot).unwrap();
            }
        }
    }
}

#[test]
fn an_object_is_gone_before_all_have_it() {
    let dir = TempDir::new().unwrap();
    let _region = create(dir.path());
    let roles = ["maps", "unmaps", "protects", "protects"];
    let players = roles.map(|role| ready(&dir, role));
    players.into_iter().for_each(Player::end);
}

#[test]
fn trouble_is_of_one_change_and_ends() {
    let dir = TempDir::new().unwrap();
    let region = create(dir.path());
    let mut other = ready(&dir, "told");
    let object = SIZE / 2..SIZE / 2 + PAGE;
    ask(&mut other, "fill");
    let (_, acks) = region.map_within(object.clone(), Object::revocable(), PATIENCE).unwrap();
    let late: Vec<_> = acks.late().iter().map(|late| (late.pid(), late.raw_os_error())).collect();
    assert_eq!(late, [(other.pid(), Some(libc::EMFILE))]);
    // This needs no descriptor.
    region.unmap(object.clone()).unwrap();
    region.protect(0..PAGE, Prot::READ).unwrap();

    let (_, acks) = region.map_within(object.clone(), Object::revocable(), PATIENCE).unwrap();
    assert!(!acks.is_complete());
    ask(&mut other, "free");
    // Nobody has to ask again.
    let begin = Instant::now();
    while ask(&mut other, "lies") != "true" {
        assert!(begin.elapsed() < PATIENCE, "it does not follow");
        std::thread::sleep(Duration::from_millis(1));
    }
    other.end();
}

/// Holes of many ages become one once everybody follows; and when somebody does not, the limit of
/// parts is not met by holes that touch.
#[test]
fn many_pages_come_and_go() {
    let dir = TempDir::new().unwrap();
    let size = 1200 * PAGE;
    let builder = Region::builder("region").size(size).directory(dir.path());
    let region = builder.empty().create().unwrap();
    for page in (0..520).map(|page| 2 * page * PAGE) {
        region.map(page..page + PAGE, Object::anonymous()).unwrap();
        region.unmap(page..page + PAGE).unwrap();
    }
    assert!(region.stats().unwrap().parts <= 3, "{}", region.stats().unwrap().parts);
    // From here on one is late.
    let other = ready(&dir, "told");
    // SAFETY: our own child.
    assert_eq!(unsafe { libc::kill(other.pid() as i32, libc::SIGSTOP) }, 0);
    for page in (0..520).map(|page| 2 * page * PAGE) {
        let object = Object::revocable();
        let _ = region.map_within(page..page + PAGE, object, Duration::ZERO).unwrap();
        let _ = region.unmap_within(page..page + PAGE, Duration::ZERO).unwrap();
    }
    // SAFETY: as above.
    assert_eq!(unsafe { libc::kill(other.pid() as i32, libc::SIGCONT) }, 0);
    region.map(0..size, Object::anonymous()).unwrap();
    other.end();
}

#[test]
fn a_server_that_is_stopped_is_named() {
    let dir = TempDir::new().unwrap();
    let other = ready(&dir, "creates");
    let region = Region::open_in(dir.path(), "region").unwrap();
    let signal = |signal| {
        // SAFETY: our own child.
        assert_eq!(unsafe { libc::kill(other.pid() as i32, signal) }, 0);
    };
    signal(libc::SIGSTOP);
    let mut status = 0;
    // SAFETY: our own child, a place for its status.
    let seen = unsafe { libc::waitpid(other.pid() as i32, &raw mut status, libc::WUNTRACED) };
    assert!(seen == other.pid() as i32 && libc::WIFSTOPPED(status));
    let (object, patience) = (Object::revocable(), Duration::from_millis(10));
    let error = region.map_within(SIZE / 2..SIZE / 2 + PAGE, object, patience).unwrap_err();
    signal(libc::SIGCONT);
    let named = error.to_string().contains(&format!("process {} serves", other.pid()));
    assert!(error.is_timed_out() && named, "{error}");
    other.end();
}

/// Memory is not handed out where a touch would be SIGSEGV.
#[test]
fn nothing_is_allocated_where_nothing_lies() {
    let dir = TempDir::new().unwrap();
    let build = || Region::builder("region").size(SIZE).directory(dir.path());
    let refused = |region: &Region| {
        let error = region.alloc(Layout::new::<[u64; 8]>()).unwrap_err();
        assert!(error.is_exhausted(), "{error}");
        let arena = Arena::new(region, PAGE).and_then(|arena| arena.alloc_value(1_u64).map(drop));
        assert!(arena.unwrap_err().is_exhausted());
    };
    refused(&build().empty().create().unwrap());
    let region = build().create().unwrap();
    let first = region.alloc(Layout::new::<u64>()).unwrap();
    region.unmap(0..SIZE).unwrap();
    refused(&region);
    region.map(0..SIZE, Object::anonymous()).unwrap();
    region.protect(0..PAGE, Prot::READ).unwrap();
    refused(&region);
    region.protect(0..PAGE, Prot::READ_WRITE).unwrap();
    // An object's bytes are not the region's to give.
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, &[7; PAGE]).unwrap();
    region.map(0..PAGE, Object::file(&file, 0)).unwrap();
    refused(&region);
    assert_eq!(std::fs::read(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap(), [7; PAGE]);
    region.map(0..PAGE, Object::revocable()).unwrap();
    refused(&region);
    region.map(0..PAGE, Object::anonymous()).unwrap();
    // What was refused was not taken.
    let second = region.alloc(Layout::new::<u64>()).unwrap();
    assert_eq!(second.addr().get(), first.addr().get() + 8);
}
