//! Objects that are added to a region, removed and protected while others are attached.

mod common;
#[path = "common/region.rs"]
mod regions;

use common::{Player, say};
use core::time::Duration;
use regions::{ask, ready};
use rustix::fd::OwnedFd;
use std::io::{BufRead, Write};
use std::os::fd::AsRawFd;
use tempfile::TempDir;
use unmerged::mshare::{Advice, Builder, HugePages, Lifetime, Object, Prot, Region, Rights};

const PAGE: usize = 4096;
const SIZE: usize = 64 * PAGE;

fn build(dir: &TempDir) -> Builder {
    Region::builder("region").size(SIZE).directory(dir.path())
}

fn open(dir: &TempDir) -> unmerged::Result<Region> {
    Region::open_in(dir.path(), "region")
}

fn word(region: &Region, offset: usize) -> *mut u64 {
    region.base().as_ptr().wrapping_add(offset).cast()
}

fn write(region: &Region, offset: usize, value: u64) {
    // SAFETY: inside the region; tests write what nobody else does.
    unsafe { word(region, offset).write_volatile(value) };
}

fn read(region: &Region, offset: usize) -> u64 {
    // SAFETY: inside the region, and readable where the tests ask.
    unsafe { word(region, offset).read_volatile() }
}

/// What a touch does, in a process of its own that has the mappings of this one: the value, or
/// the signal and its code.
fn touch(region: &Region, offset: usize, value: Option<u64>) -> String {
    let (mut fds, at) = ([0; 2], word(region, offset));
    // SAFETY: room for two descriptors.
    assert_eq!(unsafe { libc::pipe(fds.as_mut_ptr()) }, 0);
    extern "C" fn fault(signal: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // SAFETY: the kernel gives an info; the child ends with what it says.
        unsafe { libc::_exit(signal * 8 + (*info).si_code) };
    }
    // SAFETY: the child only touches the word, writes to the pipe and ends.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        for signal in [libc::SIGSEGV, libc::SIGBUS] {
            // SAFETY: a zeroed action is filled in; the handler only ends the process.
            unsafe {
                let mut action: libc::sigaction = core::mem::zeroed();
                action.sa_sigaction = fault as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO;
                libc::sigaction(signal, &raw const action, core::ptr::null_mut());
            }
        }
        // SAFETY: a word that may fault, which the handler hears.
        unsafe {
            if let Some(value) = value {
                at.write_volatile(value);
            }
            let found = at.read_volatile();
            libc::write(fds[1], (&raw const found).cast(), 8);
            libc::_exit(0);
        }
    }
    let mut status = 0;
    // SAFETY: our own child, our own pipe.
    let found = unsafe {
        assert_eq!(libc::waitpid(pid, &raw mut status, 0), pid);
        libc::close(fds[1]);
        let mut found = 0_u64;
        libc::read(fds[0], (&raw mut found).cast(), 8);
        libc::close(fds[0]);
        found
    };
    match libc::WEXITSTATUS(status) {
        0 => found.to_string(),
        code => match code / 8 {
            libc::SIGSEGV => format!("SIGSEGV {}", code % 8),
            libc::SIGBUS => format!("SIGBUS {}", code % 8),
            other => format!("signal {other}"),
        },
    }
}

/// A child: a participant that does what it is told, line by line.
#[test]
fn child() {
    let Some(role) = common::role() else { return };
    let region = match role.as_str() {
        "create" => Region::builder("region").size(SIZE).create(),
        "create bound" => Region::builder("region").size(SIZE).lifetime(Lifetime::Creator).create(),
        "open" => Region::open("region"),
        "read" => Region::opener("region").read_only().open(),
        "write" => Region::opener("region").rights(Rights::READ | Rights::WRITE).open(),
        "map" => {
            let rights = Rights::READ | Rights::WRITE | Rights::MAP;
            Region::opener("region").rights(rights).open()
        }
        "alter" => {
            let all = Rights::READ | Rights::WRITE | Rights::MAP | Rights::UNMAP | Rights::PROTECT;
            Region::opener("region").rights(all).open()
        }
        "by hand" => Region::opener("region").agent(false).open(),
        other => panic!("no such role: {other}"),
    };
    let region = region.unwrap();
    say("ready");
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        let words: Vec<_> = line.split(' ').collect();
        let number = |at: usize| words[at].parse::<usize>().unwrap();
        let pages = || number(1) * PAGE..number(2) * PAGE;
        let result = |result: unmerged::Result<()>| match result {
            Ok(()) => "ok".to_owned(),
            Err(error) => error.raw_os_error().to_string(),
        };
        say(match words[0] {
            "touch" => touch(&region, number(1) * PAGE, None),
            "write" => touch(&region, number(1) * PAGE, Some(number(2) as u64)),
            "map" => result(region.map(pages(), Object::anonymous()).map(drop)),
            "add" => result(region.map(pages(), Object::anonymous().no_replace()).map(drop)),
            "revocable" => result(region.map(pages(), Object::revocable()).map(drop)),
            "unmap" => result(region.unmap(pages())),
            "protect" => result(region.protect(pages(), Prot::READ)),
            "huge" => result(region.advise(pages(), Advice::NoHugePage)),
            "sum" => {
                let right = (0..number(1)).all(|at| read(&region, at * PAGE) == (at * PAGE) as u64);
                (if right { "ok" } else { "wrong" }).to_owned()
            }
            "sync" => result(region.sync().map(drop)),
            "serves" => region.is_server().to_string(),
            "id" => format!("{:?}", region.id()),
            "alloc" => result(region.alloc(core::alloc::Layout::new::<u64>()).map(drop)),
            "mappings" => {
                std::fs::read_to_string("/proc/self/maps").unwrap().lines().count().to_string()
            }
            other => panic!("no such word: {other}"),
        });
    }
    std::io::stdout().flush().unwrap();
}

fn file(bytes: &[u8]) -> OwnedFd {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.into()
}

#[test]
fn what_one_maps_all_have() {
    let dir = TempDir::new().unwrap();
    let region = build(&dir).empty().create().unwrap();
    let mut other = ready(&dir, "open");
    assert_eq!(ask(&mut other, "touch 3"), "SIGSEGV 2");
    region.map(2 * PAGE..5 * PAGE, Object::anonymous()).unwrap();
    write(&region, 3 * PAGE, 42);
    assert_eq!(ask(&mut other, "touch 3"), "42");
    assert_eq!(ask(&mut other, "touch 1"), "SIGSEGV 2");
    assert_eq!(ask(&mut other, "touch 5"), "SIGSEGV 2");
    // The other way round.
    assert_eq!(ask(&mut other, "revocable 8 10"), "ok");
    assert_eq!(ask(&mut other, "write 9 7"), "7");
    assert_eq!(read(&region, 9 * PAGE), 7);

    let mut bytes = vec![1; PAGE];
    bytes.extend(vec![2; PAGE]);
    let file = file(&bytes);
    region.map(20 * PAGE..21 * PAGE, Object::file(&file, PAGE as u64).prot(Prot::READ)).unwrap();
    assert_eq!(ask(&mut other, "touch 20"), 0x0202_0202_0202_0202_u64.to_string());
    assert_eq!(ask(&mut other, "write 20 1"), "SIGSEGV 2");

    region.unmap(2 * PAGE..64 * PAGE).unwrap();
    for page in [3, 9, 20] {
        assert_eq!(ask(&mut other, &format!("touch {page}")), "SIGSEGV 2");
        assert_eq!(touch(&region, page * PAGE, None), "SIGSEGV 2");
    }
    region.map(0..SIZE, Object::anonymous()).unwrap();
    assert_eq!(ask(&mut other, "touch 3"), "0");
    assert_eq!(ask(&mut other, "touch 9"), "0");
    // Who comes later has the same.
    region.unmap(PAGE..2 * PAGE).unwrap();
    let mut third = ready(&dir, "open");
    assert_eq!(ask(&mut third, "touch 1"), "SIGSEGV 2");
    assert_eq!(ask(&mut third, "touch 2"), "0");
}

#[test]
fn who_comes_later_gets_the_objects() {
    let dir = TempDir::new().unwrap();
    let region = build(&dir).create().unwrap();
    region.map(0..2 * PAGE, Object::revocable()).unwrap();
    write(&region, PAGE, 5);
    let mut first = ready(&dir, "open");
    assert_eq!(ask(&mut first, "touch 1"), "5");
    assert_eq!(ask(&mut first, "revocable 4 6"), "ok");
    assert_eq!(ask(&mut first, "write 4 6"), "6");
    let mut second = ready(&dir, "open");
    assert_eq!(ask(&mut second, "touch 1"), "5");
    assert_eq!(ask(&mut second, "touch 4"), "6");
    // Its maker is gone, and so is who served.
    first.kill();
    drop(region);
    let mut third = ready(&dir, "open");
    assert_eq!(ask(&mut third, "touch 1"), "5");
    assert_eq!(ask(&mut third, "touch 4"), "6");
    assert_eq!(ask(&mut second, "serves"), "true");
}

#[test]
fn protection_holds_for_all() {
    let dir = TempDir::new().unwrap();
    let region = build(&dir).create().unwrap();
    let mut other = ready(&dir, "open");
    write(&region, 2 * PAGE, 9);
    region.protect(PAGE..3 * PAGE, Prot::READ).unwrap();
    assert_eq!(ask(&mut other, "write 2 1"), "SIGSEGV 2");
    assert_eq!(ask(&mut other, "touch 2"), "9");
    assert_eq!(touch(&region, 2 * PAGE, Some(1)), "SIGSEGV 2");
    assert_eq!(ask(&mut other, "write 3 1"), "1");
    region.protect(2 * PAGE..3 * PAGE, Prot::NONE).unwrap();
    assert_eq!(ask(&mut other, "touch 2"), "SIGSEGV 2");
    assert_eq!(ask(&mut other, "touch 1"), "0");
    region.protect(0..SIZE, Prot::READ_WRITE).unwrap();
    assert_eq!(ask(&mut other, "write 2 10"), "10");
    assert_eq!(read(&region, 2 * PAGE), 10);
    assert_eq!(region.stats().unwrap().parts, 0);
    let mut other = ready(&dir, "open");
    assert_eq!(ask(&mut other, "protect 0 1"), "ok");
    assert_eq!(touch(&region, 0, Some(1)), "SIGSEGV 2");
}

#[test]
fn bad_ranges_and_objects() {
    let dir = TempDir::new().unwrap();
    let region = build(&dir).create().unwrap();
    let errno = |result: unmerged::Result<()>| result.unwrap_err().raw_os_error();
    let backwards = core::ops::Range { start: 2 * PAGE, end: PAGE };
    for range in
        [0..0, 1..PAGE, 0..100, backwards, 0..SIZE + PAGE, SIZE..SIZE + PAGE, 0..usize::MAX]
    {
        assert_eq!(errno(region.unmap(range.clone())), libc::EINVAL, "{range:?}");
        assert_eq!(errno(region.protect(range.clone(), Prot::READ)), libc::EINVAL);
        assert_eq!(errno(region.advise(range.clone(), Advice::DontNeed)), libc::EINVAL);
        assert_eq!(errno(region.map(range, Object::anonymous()).map(drop)), libc::EINVAL);
    }
    let map = |range, object: Object<'_>| errno(region.map(range, object).map(drop));
    assert_eq!(map(0..PAGE, Object::anonymous().no_replace()), libc::EEXIST);
    assert_eq!(map(0..PAGE, Object::huge(HugePages::M2)), libc::EINVAL);
    let file = file(&[0; 8192]);
    for at in [1, u64::MAX, u64::MAX - 4095, i64::MAX as u64 - 4095] {
        assert_eq!(map(0..PAGE, Object::file(&file, at)), libc::EINVAL, "{at}");
    }
    // Descriptors that mmap(2) does not take: nothing has changed then.
    let only_read: OwnedFd = std::fs::File::open("/proc/self/exe").unwrap().into();
    assert_eq!(map(0..PAGE, Object::file(&only_read, 0)), libc::EACCES);
    let (pipe, _writer) = std::io::pipe().unwrap();
    assert_eq!(map(0..PAGE, Object::file(&pipe, 0)), libc::EACCES);
    write(&region, 0, 3);
    assert_eq!(read(&region, 0), 3);
    region.unmap(0..PAGE).unwrap();
    region.unmap(0..PAGE).unwrap();
    assert_eq!(errno(region.protect(0..2 * PAGE, Prot::READ)), libc::ENOMEM);
    assert_eq!(errno(region.advise(0..2 * PAGE, Advice::WillNeed)), libc::ENOMEM);
    region.map(0..PAGE, Object::anonymous().no_replace()).unwrap();
    assert_eq!(read(&region, 0), 0);
}

#[test]
fn as_many_parts_as_there_are_and_no_more() {
    let dir = TempDir::new().unwrap();
    let size = 2100 * PAGE;
    let region = Region::builder("region").size(size).directory(dir.path()).create().unwrap();
    for n in 0..1024 {
        region.protect(2 * n * PAGE..(2 * n + 1) * PAGE, Prot::READ).unwrap();
    }
    let error = region.protect(2050 * PAGE..2051 * PAGE, Prot::READ).unwrap_err();
    assert!(error.is_exhausted() && error.to_string().contains("1024"), "{error}");
    write(&region, 2050 * PAGE, 1);
    // Neighbours are one part.
    region.protect(0..size, Prot::READ).unwrap();
    assert_eq!(region.stats().unwrap().parts, 1);
}

#[test]
fn a_stopped_process_is_named_and_loses_the_memory_nevertheless() {
    let dir = TempDir::new().unwrap();
    let region = build(&dir).create().unwrap();
    region.map(0..2 * PAGE, Object::revocable()).unwrap();
    let mut other = ready(&dir, "open");
    assert_eq!(ask(&mut other, "write 1 77"), "77");
    assert_eq!(ask(&mut other, "write 4 78"), "78");
    stop(&other);
    let patience = Duration::from_millis(20);
    let acks = region.unmap_within(0..2 * PAGE, patience).unwrap();
    assert_eq!(acks.late().iter().map(|late| late.pid()).collect::<Vec<_>>(), [other.pid()]);
    assert_eq!(acks.late()[0].raw_os_error(), None);
    let acks = region.unmap_within(4 * PAGE..5 * PAGE, patience).unwrap();
    assert!(!acks.is_complete());
    // Its contents are gone: seen through its own memory.
    let memory = std::fs::File::open(format!("/proc/{}/mem", other.pid()));
    let mut found = [1; 8];
    let at = |page: usize| (region.base().addr().get() + page * PAGE) as u64;
    if let Ok(memory) = memory {
        use std::os::unix::fs::FileExt;
        assert!(memory.read_exact_at(&mut found, at(1)).is_err());
        memory.read_exact_at(&mut found, at(4)).unwrap();
        assert_eq!(found, [0; 8]);
    }
    // Nobody gets memory there that the stopped one can still reach.
    let error = region.map_within(4 * PAGE..5 * PAGE, Object::anonymous(), patience).unwrap_err();
    assert_eq!(error.raw_os_error(), libc::EBUSY, "{error}");
    // Its death is an answer.
    other.kill();
    region.map(4 * PAGE..5 * PAGE, Object::anonymous()).unwrap();
    region.protect(4 * PAGE..5 * PAGE, Prot::READ).unwrap();
    assert_eq!(region.stats().unwrap().participants.len(), 1);

    let mut other = ready(&dir, "open");
    stop(&other);
    let error = region.protect_within(5 * PAGE..6 * PAGE, Prot::READ, patience).unwrap();
    assert!(!error.is_complete());
    // It follows by itself when it goes on.
    // SAFETY: our own child.
    unsafe { libc::kill(other.pid() as i32, libc::SIGCONT) };
    region.protect(6 * PAGE..7 * PAGE, Prot::READ).unwrap();
    assert_eq!(ask(&mut other, "write 5 1"), "SIGSEGV 2");
}

/// Stops a player, and waits until it is.
fn stop(player: &Player) {
    // SAFETY: our own child.
    unsafe { libc::kill(player.pid() as i32, libc::SIGSTOP) };
    while !std::fs::read_to_string(format!("/proc/{}/stat", player.pid())).unwrap().contains(") T ")
    {
        std::thread::yield_now();
    }
}

#[test]
fn by_hand_means_at_the_call() {
    let dir = TempDir::new().unwrap();
    let region = build(&dir).create().unwrap();
    let mut other = ready(&dir, "by hand");
    let acks = region.unmap_within(0..PAGE, Duration::from_millis(20)).unwrap();
    assert!(!acks.is_complete());
    assert_eq!(ask(&mut other, "write 0 1"), "1");
    assert_eq!(ask(&mut other, "sync"), "ok");
    assert_eq!(ask(&mut other, "touch 0"), "SIGSEGV 2");
    // What it wrote meanwhile is nobody's.
    let (_, acks) =
        region.map_within(0..PAGE, Object::anonymous(), Duration::from_millis(20)).unwrap();
    assert!(!acks.is_complete());
    assert_eq!(read(&region, 0), 0);
}

#[test]
fn a_reader_reads() {
    let dir = TempDir::new().unwrap();
    let region = build(&dir).create().unwrap();
    region.map(0..PAGE, Object::revocable()).unwrap();
    write(&region, 0, 5);
    write(&region, 9 * PAGE, 6);
    let mut reader = ready(&dir, "read");
    assert_eq!(ask(&mut reader, "touch 0"), "5");
    assert_eq!(ask(&mut reader, "touch 9"), "6");
    assert_eq!(ask(&mut reader, "write 0 1"), "SIGSEGV 2");
    assert_eq!(ask(&mut reader, "write 9 1"), "SIGSEGV 2");
    let (perm, access) = (libc::EPERM.to_string(), libc::EACCES.to_string());
    for asked in ["map 1 2", "unmap 0 1", "protect 0 1"] {
        assert_eq!(ask(&mut reader, asked), perm);
    }
    assert_eq!(ask(&mut reader, "alloc"), access);
    // It follows all the same.
    region.unmap(0..PAGE).unwrap();
    assert_eq!(ask(&mut reader, "touch 0"), "SIGSEGV 2");
    region.map(0..PAGE, Object::revocable()).unwrap();
    write(&region, 0, 8);
    assert_eq!(ask(&mut reader, "touch 0"), "8");
    assert_eq!(ask(&mut reader, "write 0 1"), "SIGSEGV 2");
    let stats = region.stats().unwrap();
    let rights: Vec<_> = stats.participants.iter().map(|one| one.rights).collect();
    assert_eq!(rights, [Rights::ALL, Rights::READ]);

    // The kernel's word: its mappings cannot be made writable, none of its files can.
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", reader.pid())).unwrap();
    let ours = maps.lines().filter(|line| line.contains("memfd:mshare"));
    assert!(ours.clone().count() >= 3 && ours.clone().all(|line| !line.contains(" rw")), "{maps}");
    reader.end();
    assert_eq!(region.stats().unwrap().participants.len(), 1);
    // Who holds it for reading here does not get it for writing by a second handle.
    let mut command = common::child("two_handles", "two handles");
    command.env("UNMERGED_RUNTIME_DIR", dir.path());
    common::succeed(command);
}

#[test]
fn two_handles() {
    if common::role().as_deref() != Some("two handles") {
        return;
    }
    let reader = Region::opener("region").read_only().open().unwrap();
    let error = Region::open("region").unwrap_err();
    assert_eq!(error.raw_os_error(), libc::EBUSY, "{error}");
    let again = Region::opener("region").read_only().open().unwrap();
    assert_eq!(again.base(), reader.base());
    let control = reader.base().as_ptr().wrapping_sub(PAGE).cast::<libc::c_void>();
    for (at, len) in [(control, PAGE), (reader.base().as_ptr().cast(), SIZE)] {
        let writable = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: refused by the kernel, which is what is tested.
        assert_eq!(unsafe { libc::mprotect(at, len, writable) }, -1);
        assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EACCES));
    }
    // What its descriptors allow.
    for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
        let entry = entry.unwrap();
        let Ok(target) = std::fs::read_link(entry.path()) else { continue };
        if target.to_string_lossy().contains("memfd:mshare") {
            let fd: i32 = entry.file_name().to_str().unwrap().parse().unwrap();
            // SAFETY: asks for the flags of a descriptor.
            let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
            assert_eq!(flags & libc::O_ACCMODE, libc::O_RDONLY, "{target:?}");
            // SAFETY: refused, as above.
            assert_eq!(unsafe { libc::ftruncate(fd, 0) }, -1);
        }
    }
}

#[test]
fn some_rights_and_a_quota() {
    let dir = TempDir::new().unwrap();
    let region = build(&dir).quota(2).create().unwrap();
    region.unmap(0..20 * PAGE).unwrap();
    let mut other = ready(&dir, "map");
    assert_eq!(ask(&mut other, "add 0 1"), "ok");
    assert_eq!(ask(&mut other, "write 0 4"), "4");
    assert_eq!(read(&region, 0), 4);
    let perm = libc::EPERM.to_string();
    assert_eq!(ask(&mut other, "map 0 1"), perm);
    assert_eq!(ask(&mut other, "unmap 0 1"), perm);
    assert_eq!(ask(&mut other, "protect 0 1"), perm);
    assert_eq!(ask(&mut other, "add 0 1"), libc::EEXIST.to_string());
    // Each makes a part of the hole behind it.
    assert_eq!(ask(&mut other, "add 4 5"), "ok");
    assert_eq!(ask(&mut other, "add 8 9"), "ok");
    assert_eq!(ask(&mut other, "add 12 13"), libc::EDQUOT.to_string());
    region.unmap(4 * PAGE..5 * PAGE).unwrap();
    assert_eq!(ask(&mut other, "add 12 13"), "ok");
    // The server is another: it asks that one.
    let mut heir = ready(&dir, "open");
    drop(region);
    assert_eq!(ask(&mut heir, "touch 0"), "4");
    assert_eq!(ask(&mut other, "unmap 0 1"), perm);
    assert_eq!(ask(&mut heir, "unmap 0 1"), "ok");
    assert_eq!(ask(&mut other, "touch 0"), "SIGSEGV 2");
    assert_eq!(ask(&mut other, "add 0 1"), "ok");
}

/// Whichever processes of a user make them, by whatever: they are the user's.
#[test]
fn a_quota_is_of_a_user() {
    let dir = TempDir::new().unwrap();
    let region = build(&dir).quota(4).create().unwrap();
    let quota = libc::EDQUOT.to_string();
    let mut first = ready(&dir, "alter");
    assert_eq!(ask(&mut first, "revocable 0 1"), "ok");
    assert_eq!(ask(&mut first, "protect 2 3"), "ok");
    // Another slot, while the first is taken.
    let mut second = ready(&dir, "alter");
    first.end();
    assert_eq!(ask(&mut second, "unmap 4 5"), "ok");
    assert_eq!(ask(&mut second, "protect 6 7"), "ok");
    for more in ["revocable 8 9", "protect 8 9", "unmap 8 9", "huge 8 9"] {
        assert_eq!(ask(&mut second, more), quota, "{more}");
    }
    // What makes no part more is not refused, nor is one that the owner takes.
    assert_eq!(ask(&mut second, "unmap 6 7"), "ok");
    assert_eq!(ask(&mut second, "map 6 7"), "ok");
    region.protect(16 * PAGE..24 * PAGE, Prot::READ).unwrap();
    region.map(4 * PAGE..5 * PAGE, Object::anonymous()).unwrap();
    assert_eq!(ask(&mut second, "unmap 17 18"), "ok");
    assert_eq!(ask(&mut second, "unmap 20 21"), quota);
    second.end();
}

#[test]
fn the_region_ends_with_its_creator_if_it_is_to() {
    for killed in [true, false] {
        let dir = TempDir::new().unwrap();
        let mut creator = ready(&dir, "create bound");
        let region = open(&dir).unwrap();
        write(&region, 0, 5);
        let mut reader = ready(&dir, "read");
        assert_eq!(ask(&mut reader, "touch 0"), "5");
        if killed {
            creator.kill()
        } else {
            creator.end()
        }
        for _ in 0..2000 {
            if touch(&region, 0, None) == "SIGSEGV 2" {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(touch(&region, 0, None), "SIGSEGV 2");
        let error = region.map(0..PAGE, Object::anonymous()).unwrap_err();
        assert!(error.is_invalid() && error.to_string().contains("creator"), "{error}");
        for _ in 0..2000 {
            if ask(&mut reader, "touch 0") == "SIGSEGV 2" {
                break;
            }
        }
        assert_eq!(ask(&mut reader, "touch 0"), "SIGSEGV 2");
        assert!(open(&dir).unwrap_err().is_not_found());
    }
}

#[test]
fn a_forked_child_follows_once_it_asks() {
    let dir = TempDir::new().unwrap();
    let region = build(&dir).create().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    // SAFETY: the child ends by _exit.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let mut byte = [0];
        // Until the parent has changed something.
        // SAFETY: one byte into our own.
        unsafe { libc::read(reader.as_raw_fd(), byte.as_mut_ptr().cast(), 1) };
        write(&region, 3 * PAGE, 9);
        let fine = region.sync().is_ok()
            && touch(&region, PAGE, None) == "SIGSEGV 2"
            && region.unmap(2 * PAGE..3 * PAGE).is_ok()
            && region.stats().unwrap().participants.len() == 2;
        // SAFETY: ends the child.
        unsafe { libc::_exit(if fine { 0 } else { 1 }) };
    }
    // It is no participant yet, so nobody waits for it.
    region.unmap(PAGE..2 * PAGE).unwrap();
    (&writer).write_all(b"x").unwrap();
    let mut status = 0;
    // SAFETY: our own child.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert_eq!(status, 0);
    assert_eq!(touch(&region, 2 * PAGE, None), "SIGSEGV 2");
    assert_eq!(read(&region, 3 * PAGE), 9);
    region.protect(0..PAGE, Prot::READ).unwrap();
    assert_eq!(region.stats().unwrap().participants.len(), 1);
}

#[test]
fn huge_objects() {
    let dir = TempDir::new().unwrap();
    let huge = 2 << 20;
    let region = Region::builder("region").size(4 * huge).directory(dir.path()).create().unwrap();
    match region.map(huge..3 * huge, Object::huge(HugePages::M2)) {
        Ok(_) => {
            let mut other = ready(&dir, "open");
            write(&region, huge, 5);
            assert_eq!(ask(&mut other, &format!("touch {}", huge / PAGE)), "5");
            let error = region.unmap(huge..huge + PAGE).unwrap_err();
            assert!(error.is_invalid(), "{error}");
            region.unmap(huge..2 * huge).unwrap();
            assert_eq!(ask(&mut other, &format!("touch {}", huge / PAGE)), "SIGSEGV 2");
            assert_eq!(ask(&mut other, &format!("touch {}", 2 * huge / PAGE)), "0");
        }
        Err(error) => {
            assert!(error.is_exhausted() || error.raw_os_error() == libc::ENODEV, "{error}");
            common::missing("huge-pages", "an error that says so");
            write(&region, huge, 6);
            assert_eq!(read(&region, huge), 6);
        }
    }
}

#[test]
fn advice() {
    let dir = TempDir::new().unwrap();
    let huge = 2 << 20;
    let region = Region::builder("region").size(4 * huge).directory(dir.path()).create().unwrap();
    let mut other = ready(&dir, "open");
    write(&region, 0, 3);
    for advice in [
        Advice::HugePage,
        Advice::NoHugePage,
        Advice::Default,
        Advice::WillNeed,
        Advice::DontNeed,
        Advice::Cold,
        Advice::PageOut,
        Advice::Populate,
    ] {
        region.advise(0..huge, advice).unwrap();
    }
    assert_eq!(read(&region, 0), 3);
    assert!(region.stats().unwrap().memory >= huge as u64);
    assert_eq!(ask(&mut other, "touch 0"), "3");
    match region.advise(0..huge, Advice::Collapse) {
        Ok(()) => assert_eq!(read(&region, 0), 3),
        Err(error) => {
            assert!(error.is_unsupported(), "{error}");
            common::missing("madv-collapse", "an error that says so");
        }
    }
    region.advise(0..huge, Advice::Remove).unwrap();
    assert_eq!(ask(&mut other, "touch 0"), "0");
    assert!(region.stats().unwrap().memory < huge as u64);
}

/// What a mapping of the region's memory is for the kernel, in another process.
fn flags(pid: u32, region: &Region) -> String {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let start = format!("{:x}-", region.base().addr().get());
    let ours = smaps.lines().skip_while(|line| !line.starts_with(&start));
    ours.into_iter().find(|line| line.starts_with("VmFlags:")).unwrap_or_default().to_owned()
}

/// Of page tables, as [`Region::stats`] says.
fn page_tables(region: &Region, pid: u32) -> u64 {
    let stats = region.stats().unwrap();
    stats.participants.iter().find(|one| one.pid == pid).unwrap().page_tables.unwrap()
}

/// Two processes touch all of it, a page at a time; then huge pages are made, by whatever `make`
/// does. In both, page tables go.
fn are_collapsed(builder: Builder, dir: &TempDir, make: impl Fn(&Region)) {
    const HUGE: usize = 2 << 20;
    let region = builder.size(9 * HUGE).directory(dir.path()).create().unwrap();
    let mut other = ready(dir, "open");
    // The last one is touched in part.
    let touched = 8 * HUGE + PAGE;
    for offset in (0..touched).step_by(PAGE) {
        write(&region, offset, offset as u64);
    }
    assert_eq!(ask(&mut other, &format!("sum {}", touched / PAGE)), "ok");
    let before = page_tables(&region, other.pid());
    let end = std::time::Instant::now() + Duration::from_secs(20);
    while region.stats().unwrap().mapped_huge < 8 * HUGE as u64 {
        make(&region);
        if std::time::Instant::now() > end {
            return common::missing("huge-pages-to-collapse", "small pages");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(ask(&mut other, &format!("sum {}", touched / PAGE)), "ok");
    let after = page_tables(&region, other.pid());
    if after + 5 * PAGE as u64 > before {
        common::missing("collapse-for-others", "the page tables of others stay");
    }
    assert!(region.stats().unwrap().memory <= (touched + PAGE) as u64);
}

#[test]
fn huge_pages_are_made_for_all() {
    let (dir, range) = (TempDir::new().unwrap(), 0..8 * (2 << 20));
    let builder = Region::builder("region");
    are_collapsed(builder, &dir, |region| match region.advise(range.clone(), Advice::Collapse) {
        Ok(()) => {}
        Err(error) => assert!(error.is_unsupported(), "{error}"),
    });
}

#[test]
fn huge_pages_are_made_in_the_background() {
    let dir = TempDir::new().unwrap();
    let builder = || Region::builder("region").collapse(Duration::from_millis(1));
    let file = builder().size(SIZE).file(dir.path().join("memory")).directory(dir.path());
    assert!(file.create().unwrap_err().is_unsupported());
    match builder().size(SIZE).directory(dir.path()).create() {
        Ok(region) => drop(region),
        Err(error) => {
            assert!(error.is_unsupported(), "{error}");
            return common::missing("madv-collapse", "an error that says so");
        }
    }
    are_collapsed(builder(), &dir, |_| ());
}

#[test]
fn waits_are_counted_by_their_time() {
    let dir = TempDir::new().unwrap();
    let region = build(&dir).create().unwrap();
    let other = ready(&dir, "open");
    assert_eq!(region.stats().unwrap().wait_quantile(0.5), None);
    for _ in 0..20 {
        region.protect(0..PAGE, Prot::READ).unwrap();
        region.protect(0..PAGE, Prot::READ_WRITE).unwrap();
    }
    other.end();
    let stats = region.stats().unwrap();
    assert_eq!((stats.waits, stats.waits_by_time.iter().sum()), (40, 40));
    let [least, half, all] = [0.0, 0.5, 1.0].map(|share| stats.wait_quantile(share).unwrap());
    assert!(least <= half && half <= all && stats.longest_wait < all, "{stats:?}");
    assert!(all <= (stats.longest_wait * 2).max(Duration::from_micros(1)), "{stats:?}");
}

/// Advice that is to hold in each process holds in another one.
#[test]
fn advice_for_all() {
    let dir = TempDir::new().unwrap();
    let region = Region::builder("region").size(4 << 20).directory(dir.path()).create().unwrap();
    let other = ready(&dir, "open");
    for (advice, flag) in [(Advice::HugePage, " hg"), (Advice::NoHugePage, " nh")] {
        region.advise(0..4 << 20, advice).unwrap();
        let later = ready(&dir, "open");
        for pid in [std::process::id(), other.pid(), later.pid()] {
            let flags = flags(pid, &region);
            if !flags.contains(flag)
                && !std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists()
            {
                return common::missing("transparent-huge-pages", "small pages");
            }
            assert!(flags.contains(flag), "{advice:?} {flags}");
        }
    }
}

#[test]
fn system_calls_reach_what_was_mapped() {
    let dir = TempDir::new().unwrap();
    let region = build(&dir).empty().create().unwrap();
    let start = region.map(0..PAGE, Object::revocable()).unwrap();
    let source = file(b"from a file");
    // SAFETY: the region's first page, which was just mapped.
    let count = unsafe { libc::pread(source.as_raw_fd(), start.as_ptr().cast(), 11, 0) };
    assert_eq!(count, 11);
    region.unmap(0..PAGE).unwrap();
    // SAFETY: refused by the kernel.
    let count = unsafe { libc::pread(source.as_raw_fd(), start.as_ptr().cast(), 11, 0) };
    assert_eq!(count, -1);
    assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EFAULT));
}
