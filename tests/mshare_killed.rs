//! A participant that is killed at any step: the others go on.
//!
//! The victim is a forked child under ptrace, which runs it to its nth system call, or so many
//! instructions on from there, and kills it.

mod common;

use core::time::Duration;
use std::time::Instant;
use tempfile::TempDir;
use unmerged::mshare::{Advice, Lifetime, Object, Prot, Region, list_in};

const PAGE: usize = 4096;
const SIZE: usize = 16 * PAGE;

/// How a victim ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// It was killed at its step.
    Killed,
    /// It had fewer steps, and said how it went.
    Through(i32),
}

/// Runs `work` in a forked child until `calls` stops at system calls and then `instructions` more
/// are done; then kills it.
fn kill_at(calls: u32, instructions: u32, work: impl FnOnce() -> bool) -> End {
    let work = || if work() { 0 } else { 1 };
    at_step(calls, instructions, work, |pid| {
        let mut status = 0;
        // SAFETY: our own child.
        unsafe {
            libc::kill(pid, libc::SIGKILL);
            while !libc::WIFSIGNALED(status) {
                assert_eq!(libc::waitpid(pid, &raw mut status, 0), pid);
            }
        }
    })
}

/// The same, with something else to be done at that step, where it is stopped.
fn at_step(
    calls: u32,
    instructions: u32,
    work: impl FnOnce() -> i32,
    then: impl FnOnce(i32),
) -> End {
    // SAFETY: the child works and ends by _exit.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: of this process alone.
        unsafe {
            libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
            libc::raise(libc::SIGSTOP);
            let done = work();
            libc::_exit(done);
        }
    }
    let mut status = 0;
    let mut wait = || {
        // SAFETY: our own child.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        status
    };
    let go = |how: libc::c_uint| {
        // SAFETY: the child is stopped, and traced by this thread.
        assert_eq!(unsafe { libc::ptrace(how, pid, 0, 0) }, 0);
    };
    wait();
    // SAFETY: as above; children and threads of it are killed with us.
    unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, pid, 0, libc::PTRACE_O_EXITKILL) };
    let steps = (0..calls).map(|_| libc::PTRACE_SYSCALL);
    let steps = steps.chain((0..instructions).map(|_| libc::PTRACE_SINGLESTEP));
    for how in steps {
        go(how);
        let status = wait();
        if libc::WIFEXITED(status) {
            return End::Through(libc::WEXITSTATUS(status));
        }
        assert!(libc::WIFSTOPPED(status), "{status:#x}");
    }
    then(pid);
    End::Killed
}

/// Steps at which to kill: all system calls (entry and exit of each) where it is to be thorough, else
/// as many as there is time for, and single instructions behind some of them.
fn for_each_step(mut round: impl FnMut(u32, u32) -> End) {
    let end = Instant::now() + common::stress(Duration::from_millis(1200));
    // How many there are.
    let (mut low, mut high) = (0_u32, 4096_u32);
    while low + 1 < high {
        let middle = low.midpoint(high);
        match round(middle, 0) {
            End::Killed => low = middle,
            End::Through(status) => {
                assert_eq!(status, 0);
                high = middle;
            }
        }
    }
    // In an order that has no favourites: a step of a size without a common divisor.
    let count = high;
    let mut stride = count * 5 / 8 + 1;
    let divides = |a: u32, b: u32| {
        let (mut a, mut b) = (a, b);
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a > 1
    };
    while divides(stride, count) {
        stride += 1;
    }
    let mut rounds = 0;
    for n in 0..count {
        let call = n * stride % count;
        round(call, 0);
        round(call, 1 + n * 37 % 400);
        rounds += 1;
        if Instant::now() > end && !common::is_thorough() {
            break;
        }
    }
    println!("{rounds} of {count} system calls");
}

fn build(dir: &TempDir) -> Region {
    Region::builder("region").size(SIZE).directory(dir.path()).create().unwrap()
}

fn read(region: &Region, page: usize) -> u64 {
    // SAFETY: inside; mapped where the tests ask.
    unsafe { region.base().as_ptr().add(page * PAGE).cast::<u64>().read_volatile() }
}

fn write(region: &Region, page: usize, value: u64) {
    // SAFETY: as above.
    unsafe { region.base().as_ptr().add(page * PAGE).cast::<u64>().write_volatile(value) };
}

/// What lies at a page of this process.
fn mapped(region: &Region, page: usize) -> String {
    let at = region.base().addr().get() + page * PAGE;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|line| {
        let (from, rest) = line.split_once('-').unwrap();
        let to = rest.split(' ').next().unwrap();
        let hex = |text| usize::from_str_radix(text, 16).unwrap();
        (hex(from)..hex(to)).contains(&at)
    });
    let fields: Vec<_> = line.unwrap().split_whitespace().collect();
    format!("{} {}", fields[1], fields.get(5).unwrap_or(&"-"))
}

/// The region is whole: changes are made, and followed by all.
fn works(region: &Region) {
    region.map(0..SIZE, Object::anonymous()).unwrap();
    for page in 0..16 {
        assert_eq!(read(region, page), 0);
    }
    region.protect(0..PAGE, Prot::READ).unwrap();
    region.protect(0..PAGE, Prot::READ_WRITE).unwrap();
    assert_eq!(region.stats().unwrap().participants.len(), 1);
}

#[test]
fn in_unmap() {
    let dir = TempDir::new().unwrap();
    let region = build(&dir);
    for_each_step(|calls, instructions| {
        write(&region, 3, 7);
        let end = kill_at(calls, instructions, || region.unmap(2 * PAGE..5 * PAGE).is_ok());
        region.sync().unwrap();
        // Made or not made, and nothing between.
        let (first, all) = (mapped(&region, 2), 2..5);
        assert!(all.clone().all(|page| mapped(&region, page) == first));
        if first.starts_with("rw-s") {
            assert_eq!(read(&region, 3), 7);
            assert_eq!(end, End::Killed);
        } else {
            assert!(first.starts_with("---p"), "{first}");
        }
        works(&region);
        end
    });
}

#[test]
fn in_map() {
    let dir = TempDir::new().unwrap();
    let region = build(&dir);
    for_each_step(|calls, instructions| {
        region.unmap(2 * PAGE..5 * PAGE).unwrap();
        let map = || region.map(2 * PAGE..5 * PAGE, Object::revocable()).is_ok();
        let end = kill_at(calls, instructions, map);
        region.sync().unwrap();
        let first = mapped(&region, 2);
        assert!((2..5).all(|page| mapped(&region, page) == first));
        if first.starts_with("rw-s") {
            // Its maker is dead, the object is not.
            assert!(first.contains("mshare-object"), "{first}");
            assert_eq!(read(&region, 3), 0);
        } else {
            assert!(first.starts_with("---p") && end == End::Killed, "{first}");
        }
        works(&region);
        end
    });
}

/// Two changes: killed between them, nothing lies there.
#[test]
fn in_a_map_that_replaces() {
    let dir = TempDir::new().unwrap();
    let region = build(&dir);
    for_each_step(|calls, instructions| {
        (2..5).for_each(|page| write(&region, page, 7));
        let map = || region.map(2 * PAGE..5 * PAGE, Object::anonymous()).is_ok();
        let end = kill_at(calls, instructions, map);
        region.sync().unwrap();
        let first = mapped(&region, 2);
        assert!((2..5).all(|page| mapped(&region, page) == first));
        if first.starts_with("rw-s") {
            let value = read(&region, 2);
            assert!((2..5).all(|page| read(&region, page) == value));
            assert!(value == 0 || (value == 7 && end == End::Killed), "{value}");
        } else {
            assert!(first.starts_with("---p") && end == End::Killed, "{first}");
        }
        works(&region);
        end
    });
}

#[test]
fn in_remove() {
    let dir = TempDir::new().unwrap();
    let region = build(&dir);
    for_each_step(|calls, instructions| {
        write(&region, 3, 7);
        let remove = || region.advise(2 * PAGE..5 * PAGE, Advice::Remove).is_ok();
        let end = kill_at(calls, instructions, remove);
        region.sync().unwrap();
        let value = read(&region, 3);
        assert!(value == 0 || (value == 7 && end == End::Killed), "{value}");
        works(&region);
        end
    });
}

/// There is a heap in which nothing can be unmapped, or none.
#[test]
fn in_heap() {
    const HEAP: usize = 128 * PAGE;
    let dir = TempDir::new().unwrap();
    for_each_step(|calls, instructions| {
        let builder = Region::builder("region").size(2 * HEAP).directory(dir.path());
        let region = builder.create().unwrap();
        let end = kill_at(calls, instructions, || region.heap_of(HEAP).is_ok());
        let refused = region.unmap(0..PAGE).is_err_and(|error| error.is_exists());
        assert_eq!(region.heap_range().is_some(), refused);
        let _ = region.map(0..PAGE, Object::anonymous());
        assert!(refused || end == End::Killed);
        region.unmap(HEAP..2 * HEAP).unwrap();
        let heap = region.heap().unwrap();
        assert!(heap.check().unwrap().is_sound());
        assert!(region.unmap(0..PAGE).unwrap_err().is_exists());
        // SAFETY: nobody uses it.
        unsafe { heap.close() };
        end
    });
}

/// The creator of a region that ends with it is killed while it ends it: it ends.
#[test]
fn in_the_end() {
    let dir = TempDir::new().unwrap();
    for_each_step(|calls, instructions| {
        let builder = Region::builder("region").size(SIZE).lifetime(Lifetime::Creator);
        let region = builder.directory(dir.path()).create().unwrap();
        // The seventh word of the ledger names the creator: see ledger.rs.
        let word = |n: usize| {
            let ledger = region.base().as_ptr().wrapping_sub(PAGE + 167_936);
            ledger.cast::<u64>().wrapping_add(n)
        };
        // SAFETY: words of the ledger: the lives in the slots.
        let life = |slot: usize| unsafe { word((512 + slot * 64) / 8).read_volatile() };
        // SAFETY: as above.
        let first = unsafe { word(6).read_volatile() };
        let end = kill_at(calls, instructions, || {
            region.sync().unwrap();
            let slot = (0..1024).find(|&slot| life(slot) as u32 == std::process::id()).unwrap();
            // SAFETY: as above; and the copy of a child, which does not use the handle any more.
            unsafe {
                word(6).write_volatile(life(slot) >> 32 << 16 | (slot as u64 + 1));
                drop(core::ptr::from_ref(&region).read());
            }
            true
        });
        // SAFETY: as above.
        if unsafe { word(6).read_volatile() } == first {
            works(&region);
            assert_eq!(end, End::Killed);
            return end;
        }
        let patience = Instant::now() + Duration::from_secs(20);
        let has_ended = || {
            let done = region.protect(0..PAGE, Prot::READ);
            done.is_err_and(|error| error.raw_os_error() == libc::EINVAL)
        };
        while !has_ended() {
            assert!(Instant::now() < patience, "the region outlives its creator");
        }
        region.sync().unwrap();
        assert!(mapped(&region, 3).starts_with("---p"));
        end
    });
}

#[test]
fn in_protect() {
    let dir = TempDir::new().unwrap();
    let region = build(&dir);
    for_each_step(|calls, instructions| {
        write(&region, 3, 7);
        let protect = || region.protect(2 * PAGE..5 * PAGE, Prot::READ).is_ok();
        let end = kill_at(calls, instructions, protect);
        region.sync().unwrap();
        let first = mapped(&region, 2);
        assert!((2..5).all(|page| mapped(&region, page) == first));
        assert!(first.starts_with("r--s") || end == End::Killed, "{first}");
        assert_eq!(read(&region, 3), 7);
        works(&region);
        end
    });
}

#[test]
fn in_create_and_in_attach() {
    let dir = TempDir::new().unwrap();
    let path = dir.path();
    let build = || Region::builder("region").size(SIZE).directory(path);
    for_each_step(|calls, instructions| {
        let end = kill_at(calls, instructions, || build().create().is_ok());
        // The next one has name and directory for itself, whatever was left.
        let region = build().create().unwrap();
        assert_eq!(list_in(path).unwrap().len(), 1);
        drop(region);
        assert_eq!(path.read_dir().unwrap().count(), 0);
        end
    });
}

#[test]
fn in_attach() {
    let dir = TempDir::new().unwrap();
    let mut command = common::child("serve", "serve");
    command.env("UNMERGED_RUNTIME_DIR", dir.path());
    let mut server = common::Player::start(command);
    server.wait_for("ready");
    let path = dir.path();
    for_each_step(|calls, instructions| {
        let open = || Region::open_in(path, "region").map(core::mem::forget).is_ok();
        let end = kill_at(calls, instructions, open);
        let region = Region::open_in(path, "region").unwrap();
        region.unmap(0..PAGE).unwrap();
        region.map(0..PAGE, Object::anonymous()).unwrap();
        assert_eq!(region.stats().unwrap().participants.len(), 2);
        end
    });
    server.end();
}

/// The creator is killed while another process is on its way in, at each of that one's steps: it
/// comes in, and serves then, or is told that nobody does. The name is free at the end.
#[test]
fn in_the_creator_while_another_attaches() {
    /// How an opener ends whose region does not work.
    const BROKEN: i32 = 255;
    let dir = TempDir::new().unwrap();
    let path = dir.path();
    let end = Instant::now() + common::stress(Duration::from_millis(1200));
    // A creator for each: so not those that were looked at the last time, if not all.
    let stride = if common::is_thorough() { 1 } else { 29 };
    for calls in (1 + std::process::id() % stride..).step_by(stride as usize) {
        let mut command = common::child("serve", "serve");
        command.env("UNMERGED_RUNTIME_DIR", path);
        let mut server = common::Player::start(command);
        server.wait_for("ready");
        let open = || match Region::open_in(path, "region") {
            Ok(region) if region.unmap(0..PAGE).is_ok() => 0,
            Ok(_) => BROKEN,
            Err(error) => error.raw_os_error(),
        };
        let server = &mut server;
        let done = at_step(calls, 0, open, |opener| {
            server.kill();
            let mut status = 0;
            // SAFETY: our own child, which is stopped.
            unsafe {
                assert_eq!(libc::ptrace(libc::PTRACE_DETACH, opener, 0, 0), 0);
                assert_eq!(libc::waitpid(opener, &raw mut status, 0), opener);
            }
            assert!(libc::WIFEXITED(status), "step {calls}: {status:#x}");
            let how = libc::WEXITSTATUS(status);
            let fine = [0, libc::ENOENT, libc::ECONNRESET].contains(&how);
            assert!(fine, "step {calls}: {how}");
        });
        server.kill();
        // Nobody is left behind the name.
        drop(build(&dir));
        if done != End::Killed || (Instant::now() > end && !common::is_thorough()) {
            assert!([End::Killed, End::Through(0)].contains(&done), "{done:?}");
            break;
        }
    }
}

/// Processes that change all they can and are killed again and again, the one that serves among
/// them.
#[test]
fn in_a_storm() {
    let dir = TempDir::new().unwrap();
    let start = || {
        let mut command = common::child("storm", "storm");
        command.env("UNMERGED_RUNTIME_DIR", dir.path());
        let mut player = common::Player::start(command);
        player.wait_for("ready");
        player
    };
    let mut first = build(&dir);
    let mut others = [start(), start(), start()];
    let end = Instant::now() + common::stress(Duration::from_millis(1500));
    let mut killed = 0;
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(7 + killed % 5 * 3));
        let at = killed as usize % others.len();
        others[at].kill();
        killed += 1;
        others[at] = start();
        if killed % 8 == 4 {
            // Now others serve.
            let id = first.id();
            drop(first);
            first = Region::open_in(dir.path(), "region").unwrap();
            assert_eq!(first.id(), id);
        }
    }
    others.iter_mut().for_each(common::Player::kill);
    works(&first);
    assert_eq!(first.stats().unwrap().parts, 0);
}

#[test]
fn storm() {
    if common::role().is_none() {
        return;
    }
    let region = Region::open("region").unwrap();
    common::say("ready");
    let mut seed = u64::from(std::process::id());
    loop {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (first, count) = ((seed >> 33) as usize % 12, 1 + (seed >> 40) as usize % 4);
        let range = first * PAGE..(first + count) * PAGE;
        let patience = Duration::from_secs(2);
        let made = match seed >> 50 & 3 {
            0 => region.map_within(range, Object::anonymous(), patience).map(drop),
            1 => region.map_within(range, Object::revocable(), patience).map(drop),
            2 => region.unmap_within(range, patience).map(drop),
            _ => region.protect_within(range, Prot::READ, patience).map(drop),
        };
        // Nothing may lie there, or an object be lost with all who had it.
        if let Err(error) = made {
            let fine = [libc::ENOMEM, libc::ENOENT, libc::EBUSY];
            assert!(fine.contains(&error.raw_os_error()), "{error}");
        }
    }
}

#[test]
fn serve() {
    if common::role().is_none() {
        return;
    }
    let region = Region::builder("region").size(SIZE).create().unwrap();
    common::say("ready");
    common::wait_for_nudge();
    drop(region);
}
