//! The life of a region and of its name: who serves, who is reaped, what stays in a file.

mod common;
#[path = "common/region.rs"]
mod regions;

use common::{Player, say};
use core::sync::atomic::{AtomicU8, Ordering};
use core::time::Duration;
use regions::{ask, player, ready};
use std::io::BufRead;
use std::time::Instant;
use tempfile::TempDir;
use unmerged::mshare::{
    Advice, Builder, Content, HugePages, Lifetime, Object, Prot, Region, Rights, list_in, mshare,
    mshare_unlink, unlink_in,
};

const PAGE: usize = 4096;
const SIZE: usize = 16 * PAGE;

fn build(dir: &TempDir) -> Builder {
    Region::builder("region").size(SIZE).directory(dir.path())
}

fn open(dir: &TempDir) -> unmerged::Result<Region> {
    Region::open_in(dir.path(), "region")
}

fn names(dir: &TempDir) -> Vec<String> {
    let entries = dir.path().read_dir().unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Until it is so, for 10 seconds at most.
fn until(mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn signal(player: &Player, signal: i32) {
    // SAFETY: our own child.
    unsafe { libc::kill(player.pid() as i32, signal) };
}

#[test]
fn child() {
    let Some(role) = common::role() else { return };
    let region = match role.as_str() {
        "create" => Region::builder("region").size(SIZE).create().unwrap(),
        "open" => Region::open("region").unwrap(),
        "open or create" => {
            let region = Region::builder("region").size(SIZE).open_or_create().unwrap();
            // SAFETY: a byte of the region, which all count in.
            let count = unsafe { AtomicU8::from_ptr(region.base().as_ptr()) };
            count.fetch_add(1, Ordering::Relaxed);
            region
        }
        "maps" => {
            let rights = Rights::READ | Rights::WRITE | Rights::MAP | Rights::UNMAP;
            Region::opener("region").rights(rights).open().unwrap()
        }
        "calls of the proposal" => return calls_of_the_proposal(),
        "limits" => return limits(),
        other => panic!("no such role: {other}"),
    };
    say("ready");
    for line in std::io::stdin().lock().lines() {
        say(match line.unwrap().as_str() {
            "serves" => region.is_server().to_string(),
            "id" => format!("{:?}", region.id()),
            "unmap" => region.unmap(0..PAGE).is_ok().to_string(),
            "map" => region.map(0..2 * PAGE, Object::revocable()).is_ok().to_string(),
            "unlink" => unmerged::mshare::unlink("region").is_ok().to_string(),
            offset => {
                let offset: usize = offset.parse().expect("a word, or an offset");
                assert!(offset < region.size());
                // SAFETY: inside of the region.
                unsafe { region.base().add(offset).read_volatile() }.to_string()
            }
        });
    }
}

#[test]
fn of_many_heirs_one_serves() {
    let dir = TempDir::new().unwrap();
    let mut serving = ready(&dir, "create");
    let id = ask(&mut serving, "id");
    let mut others: Vec<_> = (0..4).map(|_| ready(&dir, "open")).collect();
    while !others.is_empty() {
        serving.kill();
        // Found by its name at once, and by one of them.
        let region = Region::opener("region").directory(dir.path()).agent(false).open().unwrap();
        assert_eq!(format!("{:?}", region.id()), id);
        until(|| {
            let serves =
                others.iter_mut().filter_map(|o| (ask(o, "serves") == "true").then_some(()));
            serves.count() == 1
        });
        // The dead one was reaped once.
        let left = others.len();
        until(|| region.stats().unwrap().participants.len() == left + 1);
        assert_eq!(region.stats().unwrap().reaped, 5 - left as u64);
        assert_eq!(names(&dir), ["region"]);
        drop(region);
        let at = others.iter_mut().position(|other| ask(other, "serves") == "true").unwrap();
        serving = others.swap_remove(at);
    }
    serving.end();
    assert_eq!(names(&dir), [""; 0]);
}

#[test]
fn of_many_that_open_or_create_one_makes_it() {
    const MANY: usize = 8;
    let dir = TempDir::new().unwrap();
    // What is left of those that are killed, and of those that end, is in nobody's way.
    for is_killed in [true, false, true] {
        let mut all: Vec<_> = (0..MANY).map(|_| player(&dir, "open or create")).collect();
        all.iter_mut().for_each(|player| player.wait_for("ready"));
        let mut ids: Vec<_> = all.iter_mut().map(|player| ask(player, "id")).collect();
        ids.dedup();
        assert_eq!(ids.len(), 1);
        assert_eq!(ask(&mut all[0], "0"), MANY.to_string());
        assert_eq!(open(&dir).unwrap().stats().unwrap().participants.len(), MANY + 1);
        for mut player in all {
            if is_killed { player.kill() } else { player.end() }
        }
    }
    let region = build(&dir).open_or_create().unwrap();
    assert_eq!(build(&dir).open_or_create().unwrap().id(), region.id());
    let path = dir.path().join("memory.data");
    for other in [
        build(&dir).size(2 * SIZE),
        build(&dir).base(region.base().addr().get() + (1 << 30)),
        build(&dir).file(&path),
        build(&dir).size(0),
    ] {
        let error = other.open_or_create().unwrap_err();
        assert!(error.is_invalid(), "{error}");
    }
    std::fs::write(dir.path().join("file"), "precious").unwrap();
    let none = Region::builder("file").size(SIZE).directory(dir.path()).open_or_create();
    assert!(none.unwrap_err().is_exists());
    assert!(!path.exists());
}

#[test]
fn an_heir_that_cannot_have_the_name_tries_again() {
    let dir = TempDir::new().unwrap();
    let mut creator = ready(&dir, "create");
    let id = ask(&mut creator, "id");
    let mut heir = ready(&dir, "open");
    // The directory can be listed by others, who may lock it: that is nobody's business.
    let outside = std::fs::File::open(dir.path()).unwrap();
    rustix::fs::flock(&outside, rustix::fs::FlockOperation::LockExclusive).unwrap();
    Region::builder("other").size(PAGE).directory(dir.path()).create().unwrap();
    // Its own lock is the owner's.
    let lock = std::fs::File::create(dir.path().join(".lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    creator.kill();
    until(|| ask(&mut heir, "serves") == "true");
    assert!(open(&dir).unwrap_err().is_not_found());
    assert_eq!(ask(&mut heir, "unmap"), "true");
    drop(lock);
    until(|| open(&dir).is_ok_and(|region| format!("{:?}", region.id()) == id));
    heir.end();
    assert_eq!(names(&dir), [""; 0]);
}

/// Nor is a name left by one that had no time to.
#[test]
fn an_heir_that_ends_before_it_has_the_name() {
    let dir = TempDir::new().unwrap();
    let mut creator = ready(&dir, "create");
    let mut heir = ready(&dir, "open");
    let lock = std::fs::File::create(dir.path().join(".lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    creator.kill();
    until(|| ask(&mut heir, "serves") == "true");
    // By now it tries seldom.
    std::thread::sleep(Duration::from_millis(800));
    drop(lock);
    heir.end();
    assert_eq!(names(&dir), [""; 0]);
}

#[test]
fn one_that_ends_in_order_is_succeeded_too() {
    let dir = TempDir::new().unwrap();
    let region = build(&dir).create().unwrap();
    let id = region.id();
    let mut first = ready(&dir, "open");
    drop(region);
    let region = open(&dir).unwrap();
    assert_eq!(region.id(), id);
    until(|| ask(&mut first, "serves") == "true");
    first.end();
    until(|| region.is_server());
    assert_eq!(open(&dir).unwrap().id(), id);
}

#[test]
fn a_name_that_was_unlinked_is_not_made_again() {
    let dir = TempDir::new().unwrap();
    let mut creator = ready(&dir, "create");
    let region = open(&dir).unwrap();
    unlink_in(dir.path(), "region").unwrap();
    assert!(open(&dir).unwrap_err().is_not_found());
    // It goes on without a name, and so do its changes and its objects.
    assert_eq!(ask(&mut creator, "unmap"), "true");
    region.map(0..PAGE, Object::revocable()).unwrap();
    let other = Region::builder("region").size(SIZE).directory(dir.path()).create().unwrap();
    creator.kill();
    until(|| region.is_server());
    region.map(0..PAGE, Object::revocable()).unwrap();
    assert_eq!(open(&dir).unwrap().id(), other.id());
    drop(other);
    assert_eq!(names(&dir), [""; 0]);
    drop(region);
}

#[test]
fn the_list_says_who_and_what() {
    let dir = TempDir::new().unwrap();
    assert_eq!(list_in(dir.path()).unwrap(), []);
    let region = build(&dir).mode(0o640).create().unwrap();
    let second = Region::builder("another").size(PAGE).directory(dir.path()).create().unwrap();
    let mut killed = ready(&dir, "open");
    let listed = list_in(dir.path()).unwrap();
    let names: Vec<_> = listed.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["another", "region"]);
    assert_eq!(listed[1].server, Some(std::process::id()));
    assert_eq!((listed[1].mode, listed[1].size), (Some(0o640), Some(SIZE)));
    assert_eq!(listed[1].base, Some(region.base().addr().get()));
    assert_eq!(listed[1].participants, Some(2));
    drop(second);
    drop(region);
    until(|| ask(&mut killed, "serves") == "true");
    killed.kill();
    let listed = list_in(dir.path()).unwrap();
    assert_eq!((listed.len(), listed[0].server), (1, None));
    assert!(list_in("relative").unwrap_err().is_invalid());
}

#[test]
fn a_file_stays() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("memory.data");
    let file = |size| build(&dir).size(size).file(&path).create();
    let region = file(SIZE).unwrap();
    let (base, id) = (region.base(), region.id());
    let value = region.alloc(core::alloc::Layout::new::<u64>()).unwrap().cast::<u64>();
    // SAFETY: fresh memory of ours.
    unsafe { value.write(42) };
    region.set_root("value", value).unwrap();
    region.unmap(8 * PAGE..9 * PAGE).unwrap();
    // Nobody else has it meanwhile.
    let second = Region::builder("second").size(SIZE).directory(dir.path()).file(&path).create();
    assert_eq!(second.unwrap_err().raw_os_error(), libc::EBUSY);
    let mut other = ready(&dir, "open");
    assert_eq!(ask(&mut other, "unmap"), "true");
    drop(region);
    other.end();
    assert!(open(&dir).unwrap_err().is_not_found());

    assert_eq!(file(2 * SIZE).unwrap_err().raw_os_error(), libc::EBADMSG);
    let region = file(SIZE).unwrap();
    assert_eq!((region.base(), region.id()), (base, id));
    let found = region.root::<u64>("value").unwrap().unwrap();
    assert_eq!(found, value);
    // SAFETY: what was unmapped is memory again, and zero; the rest is as it was.
    unsafe {
        assert_eq!(region.base().add(8 * PAGE).cast::<u64>().read(), 0);
        assert_eq!(region.stats().unwrap().parts, 0);
    }
    drop(region);
    // A file that is none, or lies.
    for (at, lie) in [(0, 1), (16, 99), (24, 1)] {
        use std::os::unix::fs::FileExt;
        let control = dir.path().join("memory.data.control");
        let control = std::fs::OpenOptions::new().read(true).write(true).open(control).unwrap();
        let mut before = [0];
        control.read_exact_at(&mut before, at).unwrap();
        control.write_all_at(&[lie], at).unwrap();
        assert!(file(SIZE).unwrap_err().is_corrupt());
        control.write_all_at(&before, at).unwrap();
    }
    file(SIZE).unwrap();
    let both = build(&dir).size(2 << 20).huge_pages(HugePages::M2).file(&path).create();
    assert!(both.unwrap_err().is_invalid());
}

#[test]
fn a_region_in_huge_pages() {
    let dir = TempDir::new().unwrap();
    assert!(build(&dir).huge_pages(HugePages::M2).create().unwrap_err().is_invalid());
    match build(&dir).size(4 << 20).huge_pages(HugePages::M2).create() {
        Ok(region) => {
            let mut other = ready(&dir, "open");
            assert_eq!(ask(&mut other, "unmap"), "false");
            region.unmap(0..2 << 20).unwrap();
            assert!(region.base().addr().get().is_multiple_of(1 << 30));
            drop((other, region));
            tables_of_huge_pages_are_shared(&dir);
        }
        Err(error) => {
            assert_eq!(error.raw_os_error(), libc::ENODEV, "{error}");
            common::missing("huge-pages", "an error that says so");
        }
    }
}

/// Who reads what another has touched finds the table that is there: of a region in whole
/// gigabytes, at an address that is a multiple of one.
fn tables_of_huge_pages_are_shared(dir: &TempDir) {
    let (gib, huge) = (1 << 30, 2 << 20);
    let region = build(dir).size(2 * gib).huge_pages(HugePages::M2).create().unwrap();
    let touched = [0, gib, gib + huge];
    for at in touched {
        match region.advise(at..at + huge, Advice::Populate) {
            // The first to touch it has the table made.
            // SAFETY: inside of the region, and there is memory now.
            Ok(()) => assert_eq!(unsafe { region.base().add(at).read_volatile() }, 0),
            Err(error) => {
                assert_eq!(error.raw_os_error(), libc::ENOSPC, "{error}");
                return common::missing("huge-pages", "an error that says so");
            }
        }
    }
    let mut other = ready(dir, "open");
    for at in touched {
        assert_eq!(ask(&mut other, &format!("{at}")), "0");
    }
    let stats = region.stats().unwrap();
    let huge_pages = |pid: u32| {
        let found = stats.participants.iter().find(|one| one.pid == pid);
        found.unwrap().huge_pages
    };
    // The kernel counts what a table maps for the process that it was made for.
    assert_eq!(huge_pages(std::process::id()), Some(3 * huge as u64));
    assert_eq!(huge_pages(other.pid()), Some(0));
}

fn calls_of_the_proposal() {
    let errno = |result: unmerged::Result<_>| match result {
        Ok(_) => 0,
        Err(error) => error.raw_os_error(),
    };
    let (create, excl, rdwr) = (libc::O_CREAT, libc::O_EXCL, libc::O_RDWR);
    let at = 0x5300_0000_0000;
    let size = 1 << 30;
    assert_eq!(errno(mshare("p", at + PAGE, size, create | rdwr, 0o600)), libc::EINVAL);
    assert_eq!(errno(mshare("p", at, 100, create | rdwr, 0o600)), libc::EINVAL);
    assert_eq!(errno(mshare("p", at, size, libc::O_TRUNC, 0o600)), libc::EINVAL);
    assert_eq!(errno(mshare("p", at, size, rdwr, 0)), libc::ENOENT);
    assert_eq!(mshare_unlink("p").unwrap_err().raw_os_error(), libc::EINVAL);
    let base = mshare("p", at, size, create | rdwr, 0o600).unwrap();
    assert_eq!(base.addr().get(), at);
    // SAFETY: the first byte, which nobody else has.
    unsafe { base.write(7) };
    for flags in [create, create | excl, excl] {
        assert_eq!(errno(mshare("p", at, size, flags | rdwr, 0o600)), libc::EEXIST);
    }
    assert_eq!(errno(mshare("p", at, 2 * size, rdwr, 0)), libc::EINVAL);
    assert_eq!(errno(mshare("p", 2 * at, size, rdwr, 0)), libc::EINVAL);
    let again = mshare("p", at, size, rdwr, 0).unwrap();
    assert_eq!(again, base);
    mshare_unlink("p").unwrap();
    // SAFETY: still mapped, by the first call.
    assert_eq!(unsafe { base.read() }, 7);
    mshare_unlink("p").unwrap();
    assert_eq!(mshare_unlink("p").unwrap_err().raw_os_error(), libc::EINVAL);
    assert_eq!(errno(mshare("p", 0, size, rdwr, 0)), libc::ENOENT);
}

#[test]
fn the_calls_of_the_proposal() {
    let dir = TempDir::new().unwrap();
    let mut command = common::child("child", "calls of the proposal");
    command.env("UNMERGED_RUNTIME_DIR", dir.path());
    common::succeed(command);
}

/// At a limit of the process: an error, and the region as before.
fn limits() {
    let region = Region::builder("region").size(SIZE).create().unwrap();
    let limit = |rlim_cur| {
        let limit = libc::rlimit { rlim_cur, rlim_max: 4096 };
        // SAFETY: a limit of this process.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
    };
    // No number is left; what is open stays.
    limit(3);
    let error = region.map(0..PAGE, Object::revocable()).unwrap_err();
    assert_eq!(error.raw_os_error(), libc::EMFILE, "{error}");
    region.protect(0..PAGE, Prot::READ).unwrap();
    limit(4096);
    region.map(0..PAGE, Object::revocable()).unwrap();
    // Address space: nothing can be mapped, so nothing is published.
    let before = region.stats().unwrap().generation;
    let limit = libc::rlimit { rlim_cur: 1 << 20, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: as above.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) }, 0);
    let error = Region::builder("large").size(1 << 30).create().unwrap_err();
    assert_eq!(error.raw_os_error(), libc::EFBIG, "{error}");
    assert_eq!(region.stats().unwrap().generation, before);
}

#[test]
fn at_the_limits() {
    let dir = TempDir::new().unwrap();
    let mut command = common::child("child", "limits");
    command.env("UNMERGED_RUNTIME_DIR", dir.path());
    command.env("RUST_BACKTRACE", "0");
    // Over the limit of file sizes, the kernel sends SIGXFSZ first.
    // SAFETY: a system call, between fork and exec.
    unsafe {
        use std::os::unix::process::CommandExt;
        command.pre_exec(|| {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            Ok(())
        })
    };
    common::succeed(command);
}

#[test]
fn a_ledger_that_lies() {
    let dir = TempDir::new().unwrap();
    let region = build(&dir).create().unwrap();
    region.protect(0..PAGE, Prot::READ).unwrap();
    // The log's words: see ledger.rs. The second operation is in the first copy.
    let ledger = region.base().as_ptr().wrapping_sub(PAGE + 167_936).cast::<u64>();
    let generation = ledger.wrapping_add(272 / 8);
    // SAFETY: words of the ledger, which nobody else changes now.
    unsafe {
        assert_eq!(generation.read_volatile(), 1);
        let copy = ledger.wrapping_add((512 + 1024 * 64) / 8 + 1 + 1024 * 6);
        assert_eq!(copy.read_volatile(), 6);
        for (word, lie) in [(0, 7), (0, u64::MAX), (1, 1), (1, u64::MAX), (2, 0), (3, 0xff), (5, 2)]
        {
            let before = copy.wrapping_add(word).read_volatile();
            copy.wrapping_add(word).write_volatile(lie);
            for error in [
                region.sync().map(drop).unwrap_err(),
                region.unmap(0..PAGE).unwrap_err(),
                region.stats().map(drop).unwrap_err(),
            ] {
                assert!(error.is_corrupt(), "{word} {lie}: {error}");
            }
            copy.wrapping_add(word).write_volatile(before);
        }
        region.unmap(0..PAGE).unwrap();
        // Somebody who is not there has the lock; and somebody who is, and keeps it.
        let holder = ledger.wrapping_add(256 / 8);
        holder.write_volatile(u64::MAX);
        region.unmap(PAGE..2 * PAGE).unwrap();
        let other = ready(&dir, "open");
        signal(&other, libc::SIGSTOP);
        let token = ledger.wrapping_add(512 / 8 + 8).read_volatile() >> 32 << 16 | 2;
        holder.write_volatile(token);
        let error = region.unmap_within(2 * PAGE..3 * PAGE, Duration::from_millis(30)).unwrap_err();
        assert!(error.is_timed_out() && error.to_string().contains("lock"), "{error}");
        signal(&other, libc::SIGKILL);
        region.unmap(2 * PAGE..3 * PAGE).unwrap();
    }
}

#[test]
fn a_bound_region_whose_creator_lives_goes_on() {
    let dir = TempDir::new().unwrap();
    let region = build(&dir).lifetime(Lifetime::Creator).create().unwrap();
    let mut other = ready(&dir, "open");
    assert_eq!(ask(&mut other, "unmap"), "true");
    other.kill();
    region.map(0..PAGE, Object::anonymous()).unwrap();
    drop(region);
    assert_eq!(names(&dir), [""; 0]);
}

/// The thread of a process that serves it, or will.
fn agent_of(player: &Player) -> i32 {
    // It names itself once it runs.
    loop {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", player.pid())).unwrap();
        let agent = tasks.map(Result::unwrap).find(|task| {
            let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            name.trim() == "unmerged-mshare"
        });
        if let Some(agent) = agent {
            return agent.file_name().to_str().unwrap().parse().unwrap();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The status of a traced thread, if it has a new one, or there is such a thread at all.
fn wait_thread(thread: i32, flags: i32) -> Option<i32> {
    let mut status = 0;
    // SAFETY: a thread of our own child.
    let waited = unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL | flags) };
    (waited == thread).then_some(status)
}

/// Lets a thread that is traced and stopped make so many stops at system calls; whether it went to
/// sleep before.
fn step_thread(thread: i32, steps: u32) -> bool {
    for _ in 0..steps {
        // SAFETY: stopped, and traced by this thread.
        assert_eq!(unsafe { libc::ptrace(libc::PTRACE_SYSCALL, thread, 0, 0) }, 0);
        let patience = Instant::now() + Duration::from_millis(300);
        while wait_thread(thread, libc::WNOHANG).is_none() {
            if Instant::now() > patience {
                return true;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }
    false
}

/// A server is killed at each step of a change that it makes for another; the next one makes it.
#[test]
fn a_server_that_dies_in_the_change_of_another() {
    let end = Instant::now() + common::stress(Duration::from_millis(800));
    let mut step = 0;
    loop {
        let dir = TempDir::new().unwrap();
        let mut server = ready(&dir, "create");
        let (next, mut other) = (ready(&dir, "open"), ready(&dir, "maps"));
        let agent = agent_of(&server);
        // SAFETY: a thread of our own child, which is stopped before it is stepped.
        unsafe {
            let kill = libc::PTRACE_O_EXITKILL;
            assert_eq!(libc::ptrace(libc::PTRACE_SEIZE, agent, 0, kill), 0);
            assert_eq!(libc::ptrace(libc::PTRACE_INTERRUPT, agent, 0, 0), 0);
            assert_eq!(libc::waitpid(agent, core::ptr::null_mut(), libc::__WALL), agent);
        }
        other.tell("map");
        let asleep = step_thread(agent, step);
        signal(&server, libc::SIGKILL);
        // A traced thread has to be waited for, or its process never ends.
        while wait_thread(agent, 0).is_some_and(|status| libc::WIFSTOPPED(status)) {}
        server.kill();
        assert_eq!(other.line(), "true", "step {step}");
        let region = open(&dir).unwrap();
        let parts = region.parts().unwrap();
        assert_eq!((parts[0].range.clone(), parts[0].content), (0..2 * PAGE, Content::Revocable));
        assert_eq!(ask(&mut other, "0"), "0");
        region.unmap(0..PAGE).unwrap();
        assert_eq!(region.stats().unwrap().participants.len(), 3);
        next.end();
        other.end();
        if asleep || Instant::now() > end {
            break;
        }
        step += 3;
    }
}

/// An heir is killed at each step of its taking over; the next one takes over from it.
#[test]
fn an_heir_that_dies_on_the_way() {
    let end = Instant::now() + common::stress(Duration::from_millis(1500));
    let mut step = 0;
    loop {
        let dir = TempDir::new().unwrap();
        let mut creator = ready(&dir, "create");
        let id = ask(&mut creator, "id");
        let (mut heir, mut next) = (ready(&dir, "open"), ready(&dir, "open"));
        signal(&next, libc::SIGSTOP);
        let agent = agent_of(&heir);
        let stop = libc::PTRACE_INTERRUPT;
        // SAFETY: a thread of our own child, which is stopped before it is stepped.
        unsafe {
            let kill = libc::PTRACE_O_EXITKILL;
            assert_eq!(libc::ptrace(libc::PTRACE_SEIZE, agent, 0, kill), 0);
            assert_eq!(libc::ptrace(stop, agent, 0, 0), 0);
            assert_eq!(libc::waitpid(agent, core::ptr::null_mut(), libc::__WALL), agent);
        }
        creator.kill();
        let asleep = step_thread(agent, step);
        signal(&heir, libc::SIGKILL);
        // A traced thread has to be waited for, or its process never ends.
        while wait_thread(agent, 0).is_some_and(|status| libc::WIFSTOPPED(status)) {}
        heir.kill();
        signal(&next, libc::SIGCONT);
        let patience = Instant::now() + Duration::from_secs(10);
        while ask(&mut next, "serves") != "true" {
            // What it waits for, and who is said to be there.
            let found = unmerged::mshare::list_in(dir.path());
            assert!(Instant::now() < patience, "step {step}, heir {}: {found:?}", heir.pid());
            std::thread::sleep(Duration::from_millis(1));
        }
        let region = open(&dir).unwrap();
        assert_eq!(format!("{:?}", region.id()), id);
        region.unmap(0..PAGE).unwrap();
        assert_eq!(names(&dir).iter().filter(|name| !name.starts_with('.')).count(), 1);
        next.end();
        drop(region);
        assert!(names(&dir).iter().all(|name| [".new", ".lock"].contains(&&**name)));
        let is_thorough = common::is_thorough();
        if asleep || (Instant::now() > end && !is_thorough) {
            break;
        }
        step += if is_thorough { 1 } else { 3 };
    }
}
