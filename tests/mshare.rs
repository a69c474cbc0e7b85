//! Regions between processes that were executed, killed, forked, and that lie.
//!
//! A child is this test binary again, told what to do by the environment. Each test has a
//! runtime directory of its own.

mod common;
#[path = "common/region.rs"]
mod regions;

use common::{Player, say};
use core::mem::MaybeUninit;
use core::ptr::{NonNull, null};
use core::time::Duration;
use regions::player;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use tempfile::TempDir;
use unmerged::mshare::{Arena, Region, Resident, unlink, unlink_in};

#[repr(C)]
struct Node {
    next: *const Node,
    value: u64,
}

// SAFETY: `next` is null or a Node of the same region; repr(C); nothing to drop; not
// written after it is published.
unsafe impl Resident for Node {}

const KIB: usize = 1 << 10;

fn dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn create(dir: &TempDir, name: &str, size: usize) -> unmerged::Result<Region> {
    Region::builder(name).size(size).directory(dir.path()).create()
}

fn open(dir: &TempDir, name: &str) -> unmerged::Result<Region> {
    Region::open_in(dir.path(), name)
}

fn names(dir: &TempDir) -> Vec<String> {
    let entries = dir.path().read_dir().unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Publishes a list of these values as root "list".
fn build(region: &Region, values: impl IntoIterator<Item = u64>) {
    let arena = Arena::new(region, 256).unwrap();
    let mut list = null();
    for value in values {
        list = arena.alloc_value(Node { next: list, value }).unwrap().as_ptr().cast_const();
    }
    region.set_root("list", NonNull::new(list.cast_mut()).unwrap()).unwrap();
}

/// The values of the list at this root.
fn walk(region: &Region, root: &str) -> Vec<u64> {
    let first = region.root::<Node>(root).unwrap().unwrap();
    let mut next = first.as_ptr().cast_const();
    let mut values = Vec::new();
    while !next.is_null() {
        // SAFETY: a Node that was published by set_root and is not written since.
        let node = unsafe { region.get(next) }.unwrap();
        values.push(node.value);
        next = node.next;
    }
    values
}

/// A child that does `role` in this runtime directory.
/// Until the parent lets go.
fn listen() {
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

fn fork() -> i32 {
    // SAFETY: the child of this does nothing but what each test says, and leaves by _exit.
    unsafe { libc::fork() }
}

/// What a child does; nothing in an ordinary run.
#[test]
fn child() {
    let Some(role) = common::role() else { return };
    let create = |name: &str| Region::builder(name).size(64 * KIB).create();
    match role.as_str() {
        "address" => say(format!("{:p}", Region::open("region").unwrap().base())),
        "walk and build" => {
            let region = Region::open("region").unwrap();
            say(format!("{:?}", walk(&region, "list")));
            build(&region, [7, 8, 9]);
        }
        "create and wait" => {
            let region = create("region").unwrap();
            build(&region, 1..=3);
            say("ready");
            listen();
        }
        "create with few descriptors" => {
            let region = create("region").unwrap();
            let used = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
            let limit = libc::rlimit { rlim_cur: used + 8, rlim_max: used + 8 };
            // SAFETY: a limit of this process, which is the child's own.
            assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
            say("ready");
            listen();
            drop(region);
        }
        "race" => {
            let region = create("region");
            match &region {
                Ok(_) => say("won"),
                Err(error) => say(error.raw_os_error()),
            }
            listen();
        }
        "open as nobody" => {
            // SAFETY: this process has one thread that matters, and gives its rights away.
            assert_eq!(unsafe { libc::setgroups(0, null()) }, 0);
            // SAFETY: as above.
            assert_eq!(unsafe { libc::setresgid(65_534, 65_534, 65_534) }, 0);
            // SAFETY: as above.
            assert_eq!(unsafe { libc::setresuid(65_534, 65_534, 65_534) }, 0);
            let directory = std::env::var_os("UNMERGED_RUNTIME_DIR").unwrap();
            say(match Region::open_in(directory, "region") {
                Ok(region) => format!("{:p}", region.base()),
                Err(error) => error.raw_os_error().to_string(),
            });
        }
        "clash" => {
            let base: usize = std::env::var("BASE").unwrap().parse().unwrap();
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
            let hint = core::ptr::without_provenance_mut(base);
            // SAFETY: a new page that replaces none.
            let page = unsafe { libc::mmap(hint, 4096, libc::PROT_READ | 2, flags, -1, 0) };
            assert_eq!(page.addr(), base);
            let word = page.cast::<u64>();
            // SAFETY: our page.
            unsafe { word.write(0x1234) };
            let error = Region::open("region").unwrap_err();
            // SAFETY: our page, written above.
            assert_eq!(unsafe { word.read() }, 0x1234);
            say(error);
        }
        "fork" => {
            let region = create("region").unwrap();
            build(&region, 1..=3);
            let pid = fork();
            if pid == 0 {
                let serves = region.is_server();
                let same = Region::open("region").unwrap();
                let fine =
                    !serves && same.base() == region.base() && walk(&same, "list") == [3, 2, 1];
                build(&region, 4..=6);
                drop((region, same));
                // SAFETY: ends the forked child at once.
                unsafe { libc::_exit(if fine { 0 } else { 1 }) };
            }
            let mut status = 0;
            // SAFETY: our own child.
            assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
            assert_eq!(status, 0);
            // The child's end took neither name nor mapping, and its writing is here.
            assert!(region.is_server());
            assert_eq!(walk(&Region::open("region").unwrap(), "list"), [6, 5, 4]);
            drop(region);
            assert!(Region::open("region").unwrap_err().is_not_found());
        }
        "fork a holder of the listener" => {
            let _region = create("region").unwrap();
            let pid = fork();
            if pid == 0 {
                loop {
                    // SAFETY: sleeps until it is killed.
                    unsafe { libc::pause() };
                }
            }
            say(pid);
            listen();
        }
        other => panic!("no such role: {other}"),
    }
}

#[test]
fn pointers_of_one_process_are_walked_in_another() {
    let dir = dir();
    let region = create(&dir, "region", 1 << 30).unwrap();
    build(&region, 1..=5);
    let mut other = player(&dir, "walk and build");
    assert_eq!(other.line(), "[5, 4, 3, 2, 1]");
    other.end();
    assert_eq!(walk(&region, "list"), [9, 8, 7]);
    assert_eq!(names(&dir), ["region"]);
    drop(region);
    assert_eq!(names(&dir), [""; 0]);
}

#[test]
fn all_programs_have_it_at_one_address() {
    let dir = dir();
    let region = create(&dir, "region", 1 << 40).unwrap();
    let here = format!("{:p}", region.base());
    // A thousand, when there is time.
    let programs = if common::is_thorough() { 1000 } else { 100 };
    for _ in 0..programs {
        let mut other = player(&dir, "address");
        assert_eq!(other.line(), here);
        other.end();
    }
}

#[test]
fn limits_are_told() {
    // Nothing else may lie in so large a part of the addresses.
    if common::role().is_none() {
        return common::succeed(common::child("limits_are_told", "alone"));
    }
    let dir = dir();
    let region = create(&dir, "region", Region::MAX_SIZE).unwrap();
    assert_eq!((region.size(), region.base().addr().get() % Region::ALIGNMENT), (1 << 45, 0));
    assert!(create(&dir, "larger", Region::MAX_SIZE + 4096).unwrap_err().is_invalid());
    let value = region.base().cast::<u64>();
    for n in 0..Region::MAX_ROOTS {
        region.set_root(&format!("root {n}"), value).unwrap();
    }
    assert!(region.set_root("one more", value).unwrap_err().is_exhausted());
    // Nothing is plain behind the first of these.
    for n in 0..Region::MAX_PARTS {
        region.protect(2 * n * 4096..(2 * n + 1) * 4096, unmerged::mshare::Prot::READ).unwrap();
    }
    let last = 2 * Region::MAX_PARTS * 4096;
    let error = region.protect(last..last + 4096, unmerged::mshare::Prot::READ).unwrap_err();
    assert_eq!(error.raw_os_error(), libc::ENOSPC, "{error}");
}

#[test]
fn existing_and_unknown_names() {
    let dir = dir();
    let region = create(&dir, "region", 4096).unwrap();
    let error = create(&dir, "region", 4096).unwrap_err();
    assert!(error.is_exists() && error.to_string().contains("\"region\""), "{error}");
    assert!(open(&dir, "other").unwrap_err().is_not_found());
    assert!(unlink_in(dir.path(), "other").unwrap_err().is_not_found());
    assert!(Region::open("unmerged-test-no-such-region").unwrap_err().is_not_found());
    assert!(unlink("unmerged-test-no-such-region").unwrap_err().is_not_found());

    // unlink removes the name only; the next one of that name is another region.
    unlink_in(dir.path(), "region").unwrap();
    assert!(open(&dir, "region").unwrap_err().is_not_found());
    let second = create(&dir, "region", 4096).unwrap();
    assert_ne!(second.id(), region.id());
    drop(region);
    assert_eq!(open(&dir, "region").unwrap().id(), second.id());
}

#[test]
fn bad_arguments() {
    let dir = dir();
    for name in ["", ".", "..", "a/b", "a b", "a\0b", &"x".repeat(65)] {
        assert!(create(&dir, name, 4096).unwrap_err().is_invalid(), "{name:?}");
        assert!(open(&dir, name).unwrap_err().is_invalid(), "{name:?}");
        assert!(unlink_in(dir.path(), name).unwrap_err().is_invalid(), "{name:?}");
    }
    for size in [0, 1, 4095, 4097, (32 << 40) + 4096, usize::MAX, usize::MAX - 4095] {
        let error = create(&dir, "region", size).unwrap_err();
        assert!(error.is_invalid() && error.to_string().contains(&size.to_string()), "{error}");
    }
    let builder = || Region::builder("region").size(4096).directory(dir.path());
    for base in [0, 4096, 1 << 47, usize::MAX] {
        assert!(builder().base(base).create().unwrap_err().is_invalid(), "{base:#x}");
    }
    for mode in [0o777, 0o1600, 0o100, 0o066, 0o400, u32::MAX] {
        assert!(builder().mode(mode).create().unwrap_err().is_invalid(), "{mode:o}");
    }
    assert!(Region::open_in("relative", "region").unwrap_err().is_invalid());
    assert_eq!(names(&dir), [""; 0]);
}

#[test]
fn a_second_opening_is_a_second_handle() {
    let dir = dir();
    let region = create(&dir, "region", 64 * KIB).unwrap();
    let second = open(&dir, "region").unwrap();
    let third = open(&dir, "region").unwrap();
    assert_eq!((second.base(), second.id()), (region.base(), region.id()));
    assert!(region.is_server() && second.is_server());
    build(&region, 1..=3);
    drop(region);
    // Name and mapping stay with the last handle.
    assert_eq!(open(&dir, "region").unwrap().id(), second.id());
    drop(second);
    assert_eq!(walk(&third, "list"), [3, 2, 1]);
    assert!(third.is_server());
    let (base, id) = (third.base().addr().get(), third.id());
    drop(third);
    let again = Region::builder("region").size(4096).base(base).directory(dir.path());
    let again = again.create().unwrap();
    assert_eq!(again.base().addr().get(), base);
    assert_ne!(again.id(), id);
}

/// The region is another process's, so that it is mapped and unmapped here again and again.
#[test]
fn threads_open_and_close_at_once() {
    let dir = dir();
    let mut creator = player(&dir, "create and wait");
    assert_eq!(creator.line(), "ready");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let region = open(&dir, "region").unwrap();
                    assert_eq!(walk(&region, "list"), [3, 2, 1]);
                }
            });
        }
    });
    creator.end();
    assert!(open(&dir, "region").unwrap_err().is_not_found());
}

#[test]
fn a_clash_of_addresses_is_an_error() {
    let dir = dir();
    // 0x5100_0000_0000 is in no other test's way.
    let base = 0x5100_0000_0000_usize;
    let build = |name| Region::builder(name).size(1 << 20).base(base).directory(dir.path());
    let region = build("region").create().unwrap();
    let error = build("other").create().unwrap_err();
    assert!(error.is_exists() && error.to_string().contains("0x510000"), "{error}");
    assert_eq!(names(&dir), ["region"]);

    let output = common::child("child", "clash")
        .env("BASE", base.to_string())
        .env("UNMERGED_RUNTIME_DIR", dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("not free in this process") && said.contains("os error 17"), "{said}");
    drop(region);
}

#[test]
fn a_full_region_says_so_and_goes_on() {
    use core::alloc::Layout;
    let dir = dir();
    let region = create(&dir, "region", 8 * KIB).unwrap();
    let layout = |size, align| Layout::from_size_align(size, align).unwrap();
    let first = region.alloc(layout(6000, 8)).unwrap();
    assert_eq!(first, region.base());
    // SAFETY: fresh memory of ours.
    assert!(unsafe { core::slice::from_raw_parts(first.as_ptr(), 6000) }.iter().all(|&b| b == 0));
    for (size, align, says) in [
        (3000, 8, "3000 bytes aligned to 8 do not fit: 6000 of 8192"),
        (isize::MAX as usize - 7, 8, "of 8192"),
        (1, 1 << 40, "aligned to 1099511627776, at most 1073741824"),
    ] {
        let error = region.alloc(layout(size, align)).unwrap_err();
        assert_eq!(error.raw_os_error(), libc::ENOMEM);
        assert!(error.to_string().contains(says), "{error}");
    }
    let none = region.alloc(layout(0, 1 << 62)).unwrap();
    assert!(none.addr().get().is_multiple_of(1 << 62));
    let rest = region.alloc(layout(2000, 16)).unwrap();
    assert!(rest.addr().get().is_multiple_of(16) && region.contains(rest.as_ptr(), 2000));
    assert!(region.alloc(layout(2000, 16)).unwrap_err().is_exhausted());
    region.alloc(layout(192, 1)).unwrap();
    assert!(region.alloc(layout(1, 1)).unwrap_err().is_exhausted());
}

#[test]
fn pointers_are_checked() {
    let dir = dir();
    let region = create(&dir, "region", 4096).unwrap();
    let base = region.base().as_ptr();
    assert!(region.contains(base, 4096) && region.contains(base.wrapping_add(4096), 0));
    assert!(!region.contains(base, 4097) && !region.contains(base, usize::MAX));
    assert!(!region.contains(base.wrapping_sub(1), 1) && !region.contains(null::<u8>(), 1));
    region.resolve(base.wrapping_add(4088).cast::<u64>()).unwrap();
    for bad in [4089, 4096, 4, usize::MAX] {
        let error = region.resolve(base.wrapping_add(bad).cast::<u64>()).unwrap_err();
        assert!(error.is_invalid() && error.to_string().contains("4096 bytes at"), "{error}");
    }
    let local = Box::new(5_u64);
    assert!(region.set_root("local", NonNull::from(&*local)).unwrap_err().is_invalid());
    assert_eq!(region.root::<u64>("local").unwrap(), None);

    region.set_root("root", region.base().cast::<u64>()).unwrap();
    let error = region.root::<u32>("root").unwrap_err();
    assert!(error.is_invalid() && error.to_string().contains("8 bytes"), "{error}");
    for n in 1..Region::MAX_ROOTS {
        region.set_root(&format!("root {n}"), region.base()).unwrap();
    }
    let error = region.set_root("one more", region.base()).unwrap_err();
    assert!(error.is_exhausted() && error.to_string().contains("60 roots"), "{error}");
}

#[test]
fn a_killed_creator_leaves_memory_and_name_to_the_others() {
    let dir = dir();
    let mut creator = player(&dir, "create and wait");
    assert_eq!(creator.line(), "ready");
    let region = open(&dir, "region").unwrap();
    assert!(!region.is_server());
    creator.kill();
    assert_eq!(walk(&region, "list"), [3, 2, 1]);
    // We have taken over.
    assert_eq!(open(&dir, "region").unwrap().id(), region.id());
    assert!(region.is_server());
    assert!(create(&dir, "region", 4096).unwrap_err().is_exists());
    assert_eq!(player(&dir, "address").line(), format!("{:p}", region.base()));
    assert_eq!(names(&dir), ["region"]);
    drop(region);
    assert_eq!(names(&dir), [""; 0]);

    // Nobody is left.
    let mut creator = player(&dir, "create and wait");
    assert_eq!(creator.line(), "ready");
    creator.kill();
    assert!(unlink_in(dir.path(), "region").unwrap_err().is_not_found());
    assert_eq!(names(&dir), [""; 0]);
}

#[test]
fn one_creator_of_many_wins() {
    let dir = dir();
    for round in 0..4 {
        let mut racers: Vec<_> = (0..4).map(|_| player(&dir, "race")).collect();
        let mut said: Vec<_> = racers.iter_mut().map(Player::line).collect();
        said.sort();
        let exists = libc::EEXIST.to_string();
        assert_eq!(said, [&*exists, &*exists, &*exists, "won"]);
        // Odd rounds leave a stale name for the next to clean.
        for mut racer in racers {
            if round % 2 == 0 { racer.kill() } else { racer.end() }
        }
    }
}

#[test]
fn fork_shares_memory_and_not_the_name() {
    let dir = dir();
    player(&dir, "fork").end();
    assert_eq!(names(&dir), [""; 0]);
}

#[test]
fn a_forked_copy_of_the_listener_is_no_server() {
    let dir = dir();
    let mut creator = player(&dir, "fork a holder of the listener");
    let holder: i32 = creator.line().parse().unwrap();
    open(&dir, "region").unwrap();
    creator.kill();
    let error = open(&dir, "region").unwrap_err();
    assert!(error.is_not_found(), "{error}");
    create(&dir, "region", 4096).unwrap();
    // SAFETY: the child's child, which waits to be killed.
    unsafe { libc::kill(holder, libc::SIGKILL) };
}

fn socket() -> OwnedFd {
    let (unix, packets) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    rustix::net::socket_with(unix, packets, SocketFlags::CLOEXEC, None).unwrap()
}

/// A client by hand.
fn call(dir: &TempDir, name: &str) -> OwnedFd {
    let connection = socket();
    let address = SocketAddrUnix::new(dir.path().join(name)).unwrap();
    rustix::net::connect(&connection, &address).unwrap();
    connection
}

fn send(connection: impl AsFd, bytes: &[u8], fds: &[OwnedFd]) {
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(&fds)));
    let bytes = [rustix::io::IoSlice::new(bytes)];
    rustix::net::sendmsg(connection, &bytes, &mut control, SendFlags::NOSIGNAL).unwrap();
}

fn receive(connection: impl AsFd) -> (Vec<u8>, Vec<OwnedFd>) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 256];
    let mut slices = [rustix::io::IoSliceMut::new(&mut bytes)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let len = rustix::net::recvmsg(connection, &mut slices, &mut control, flags).unwrap().bytes;
    let fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let fds = fds.flatten().collect();
    (bytes[..len].to_vec(), fds)
}

/// A request of version 4, byte by byte: a change of it is a change of version. It asks for all
/// rights, and needs to read and write.
fn request() -> Vec<u8> {
    let mut bytes = b"umshareQ\x04\0\0\0\x01\0\0\0".to_vec();
    bytes.extend([0; 16]);
    for number in [63, 3, u64::from(std::process::id()), 0, 0] {
        bytes.extend(number.to_le_bytes());
    }
    bytes
}

fn errno(reply: &[u8]) -> i32 {
    assert_eq!((reply.len(), &reply[..12]), (80, &b"umshareR\x04\0\0\0"[..]));
    i32::from_le_bytes(reply[12..16].try_into().unwrap())
}

#[test]
fn files_cannot_be_cut_grown_or_sealed_by_others() {
    let dir = dir();
    let region = create(&dir, "region", 64 * KIB).unwrap();
    let client = call(&dir, "region");
    send(&client, &request(), &[]);
    let (reply, fds) = receive(&client);
    assert_eq!((errno(&reply), fds.len()), (0, 4));
    assert_eq!(reply[16..32], region.id());
    assert_eq!(reply[32..40], (64 * KIB as u64).to_le_bytes());
    assert_eq!(reply[40..48], (region.base().addr().get() as u64).to_le_bytes());
    for (file, size) in [(&fds[0], 4096), (&fds[2], 64 * KIB as u64)] {
        let stat = rustix::fs::fstat(file).unwrap();
        assert_eq!((stat.st_mode & 0o777, stat.st_size as u64), (0o600, size));
        assert_eq!(ftruncate(file, 0), Err(Errno::PERM));
        assert_eq!(ftruncate(file, size + 4096), Err(Errno::PERM));
        assert_eq!(fcntl_add_seals(file, SealFlags::FUTURE_WRITE), Err(Errno::PERM));
    }
}

#[test]
fn bad_clients_do_not_hurt() {
    let dir = dir();
    let region = create(&dir, "region", 64 * KIB).unwrap();
    let with = |at: usize, byte| {
        let mut bytes = request();
        bytes[at] = byte;
        bytes
    };
    for (bytes, expected) in [
        (&b"x"[..], libc::EBADMSG),
        (&request()[..71], libc::EBADMSG),
        (&[0xff; 72], libc::EBADMSG),
        (&[0; 200], libc::EBADMSG),
        // Operation, version, the id of another region, another process's number.
        (&with(12, 12), libc::EBADMSG),
        (&with(8, 9), libc::EPROTO),
        (&with(12, 2), libc::ENOENT),
        (&with(51, 1), libc::EXDEV),
    ] {
        let client = call(&dir, "region");
        send(&client, bytes, &[]);
        let (reply, fds) = receive(&client);
        assert_eq!((errno(&reply), fds.len()), (expected, 0), "{bytes:?}");
        // One reply, and the line is cut.
        assert_eq!(receive(&client).0, b"");
    }

    // Descriptors that nobody asked for, a few and too many.
    for (count, expected) in [(2, 0), (8, libc::EBADMSG)] {
        let client = call(&dir, "region");
        let fds: Vec<_> = (0..count).map(|_| socket()).collect();
        send(&client, &request(), &fds);
        assert_eq!(errno(&receive(&client).0), expected);
    }

    // Silent ones, each of whom would hold a server that hears one after the other, and more of
    // them than it hears at a time; and some who are gone before or after they spoke.
    let mut silent: Vec<_> = (0..50).map(|_| call(&dir, "region")).collect();
    assert_eq!(open(&dir, "region").unwrap().base(), region.base());
    silent.extend((0..100).map(|_| call(&dir, "region")));
    for _ in 0..100 {
        drop(call(&dir, "region"));
        send(call(&dir, "region"), &request(), &[]);
    }
    assert_eq!(open(&dir, "region").unwrap().base(), region.base());
    drop(silent);
    drop(region);
    assert_eq!(names(&dir), [""; 0]);
}

#[test]
fn silent_callers_are_cut_off() {
    let dir = dir();
    let _region = create(&dir, "region", 4096).unwrap();
    let silent = call(&dir, "region");
    // Returns when the server hangs up.
    assert_eq!(receive(&silent).0, b"");
}

/// A memory file with these seals.
fn file(size: u64, seals: SealFlags) -> OwnedFd {
    let file = memfd_create("test", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, size).unwrap();
    fcntl_add_seals(&file, seals).unwrap();
    file
}

/// A reply of version 4, byte by byte, with all rights.
fn reply(size: u64, base: u64) -> Vec<u8> {
    let mut bytes = b"umshareR\x04\0\0\0\0\0\0\0".to_vec();
    bytes.extend([7; 16]);
    for number in [size, base, 0, 63, 0, 1 << 32] {
        bytes.extend(number.to_le_bytes());
    }
    bytes
}

/// What an opener says when the server answers so.
fn lied_to(bytes: &[u8], fds: Vec<OwnedFd>) -> unmerged::Error {
    let dir = dir();
    let listener = socket();
    let path = dir.path().join("region");
    rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    rustix::net::listen(&listener, 8).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let connection = rustix::net::accept(&listener).unwrap();
            assert_eq!(receive(&connection).0.len(), 72);
            send(&connection, bytes, &fds);
        });
        open(&dir, "region").unwrap_err()
    })
}

#[test]
fn a_server_that_lies_is_not_believed() {
    const SIZE: u64 = 64 * KIB as u64;
    const BASE: u64 = 0x5200_0000_0000;
    const BOTH: SealFlags = SealFlags::GROW.union(SealFlags::SHRINK);
    const LEDGER: u64 = 167_936;
    let good = reply(SIZE, BASE);
    let bell = socket;
    let ledger = || file(LEDGER, BOTH);
    let four = || vec![file(4096, BOTH), ledger(), file(SIZE, BOTH), bell()];
    let check = |bytes: &[u8], fds, errno, message: &str| {
        let error = lied_to(bytes, fds);
        assert_eq!(error.raw_os_error(), errno, "{error}");
        assert!(error.to_string().contains(message), "{error}");
    };
    let (bad, proto, perm) = (libc::EBADMSG, libc::EPROTO, libc::EPERM);

    check(b"hello", four(), bad, "5 bytes instead of 80");
    check(&good[..79], four(), bad, "79 bytes instead of 80");
    check(&[0xff; 80], four(), bad, "begins with");
    check(&[0; 100], four(), bad, "more than 80 bytes");
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    check(&with(8, 99), four(), proto, "version 99");
    check(&with(12, libc::EACCES as u8), vec![], libc::EACCES, "refused");
    check(&with(48, 9), four(), bad, "memory of kind 9");
    check(&with(56, 1), four(), bad, "the rights read");
    check(&with(65, 4), four(), bad, "slot 1024");

    check(&good, vec![], bad, "0 descriptors");
    check(&good, vec![file(4096, BOTH)], bad, "1 descriptors");
    let eight = (0..8).map(|_| socket()).collect();
    check(&good, eight, bad, "4 descriptors");

    let empty = SealFlags::empty();
    let three = |control, ledger, data| vec![control, ledger, data, bell()];
    let whole = || file(SIZE, BOTH);
    let page = || file(4096, BOTH);
    check(&good, three(file(4096, empty), ledger(), whole()), perm, "control file without");
    check(&good, three(page(), file(LEDGER, empty), whole()), perm, "ledger file without");
    let grown = file(SIZE, SealFlags::GROW);
    check(&good, three(page(), ledger(), grown), perm, "data file without");
    check(&good, three(socket(), ledger(), whole()), perm, "control file without");
    let plain = || OwnedFd::from(std::fs::File::open("/proc/self/exe").unwrap());
    check(&good, three(page(), ledger(), plain()), perm, "data file without");
    // What is said to be files, and huge pages, and is not.
    check(&with(48, 3), three(plain(), ledger(), plain()), bad, "control file of");
    check(&with(48, 1), three(page(), ledger(), whole()), perm, "data file without");

    let wide = file(8192, BOTH);
    check(&good, three(wide, ledger(), whole()), bad, "of 8192 bytes instead of 4096");
    check(&good, three(page(), page(), whole()), bad, "ledger file of 4096 bytes");
    check(&good, three(page(), ledger(), page()), bad, "of 4096 bytes instead of 65536");
    check(&reply(SIZE + 4096, BASE), four(), bad, "instead of 69632");

    for size in [0, 1, 4097, u64::MAX, 1 << 62] {
        let fds = three(page(), ledger(), file(size.min(4097), BOTH));
        let mut bytes = reply(size, BASE);
        let error = lied_to(&bytes, fds);
        assert!(error.is_corrupt(), "{error}");
        // The same in files that stay.
        bytes[48] = 3;
        let error = lied_to(&bytes, three(page(), ledger(), page()));
        assert!(error.is_corrupt(), "{error}");
    }
    for base in [0, 4096, BASE + 4096, 1 << 47, u64::MAX, u64::MAX << 30] {
        check(&reply(SIZE, base), four(), bad, &format!("{base:#x}"));
    }
    // All fits but the control page, which is empty.
    check(&good, four(), bad, "magic 0x0");
}

#[test]
fn a_control_page_that_lies_is_not_believed() {
    let dir = dir();
    let region = create(&dir, "region", 4096).unwrap();
    let value = region.base().cast::<u64>();
    region.set_root("root", value).unwrap();
    // Participants can write it: it lies in front of the data. Words as in header.rs.
    let words = region.base().cast::<u64>().as_ptr().wrapping_sub(512);
    let root = |lie: u64| {
        // SAFETY: mapped, as are all of its words, and used by nobody else now: the pointer
        // of root 0, at byte 128 + 16.
        unsafe { words.wrapping_add(18).write_volatile(lie) };
        region.root::<u64>("root")
    };
    assert_eq!(root(value.addr().get() as u64).unwrap(), Some(value));
    for lie in
        [8, 0xdead, u64::MAX, value.addr().get() as u64 + 1, value.addr().get() as u64 + 4096]
    {
        assert_eq!(root(lie).unwrap_err().raw_os_error(), libc::EBADMSG);
    }
    // The allocator's word, at byte 64.
    for lie in [4097, u64::MAX] {
        // SAFETY: as above.
        unsafe { words.wrapping_add(8).write_volatile(lie) };
        let error = region.alloc(core::alloc::Layout::new::<u64>()).unwrap_err();
        assert_eq!(error.raw_os_error(), libc::ENOMEM);
    }
    // Size and base, which were copied at the creation.
    for word in [2, 3] {
        // SAFETY: as above.
        unsafe { words.wrapping_add(word).write_volatile(u64::MAX) };
    }
    assert_eq!((region.size(), region.base()), (4096, value.cast()));
}

#[test]
fn a_server_that_hangs_up_or_belongs_to_nobody() {
    let dir = dir();
    let path = dir.path().join("region");
    let listener = socket();
    rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    assert!(open(&dir, "region").unwrap_err().is_not_found());
    rustix::net::listen(&listener, 8).unwrap();
    std::thread::scope(|scope| {
        let server = scope.spawn(|| {
            for _ in 0..8 {
                drop(rustix::net::accept(&listener).unwrap());
            }
        });
        let answer = open(&dir, "region").map(drop);
        // Whatever it is, the server has an end.
        while !server.is_finished() {
            let caller = socket();
            let _ = rustix::net::connect(&caller, &SocketAddrUnix::new(&path).unwrap());
        }
        let error = answer.unwrap_err();
        assert_eq!(error.raw_os_error(), libc::ECONNRESET, "{error}");
    });
    // Somebody lives behind the name, though no region of ours.
    assert!(create(&dir, "region", 4096).unwrap_err().is_exists());
    drop(listener);
    // For a moment a child of another test may hold a copy, between fork and exec.
    let free = (0..500).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        create(&dir, "region", 4096).is_ok()
    });
    assert!(free);
}

/// Really another user: only root can play this one. What others decide by is a function with
/// tests of its own.
#[test]
fn a_peer_of_another_user() {
    if !rustix::process::geteuid().is_root() {
        return common::missing("root", "all processes are of one user");
    }
    let dir = dir();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    for (mode, allowed) in [(0o600, false), (0o660, false), (0o644, false), (0o666, true)] {
        let build = Region::builder("region").size(4096).mode(mode).directory(dir.path());
        let region = build.create().unwrap();
        let mut other = player(&dir, "open as nobody");
        let base = format!("{:p}", region.base());
        assert_eq!(other.line(), if allowed { base } else { libc::EACCES.to_string() });
        other.end();
    }
}

#[test]
fn who_may_read_may_call_whatever_the_umask() {
    let dir = dir();
    for (mode, socket_mode) in [(0o600, 0o600), (0o640, 0o660), (0o660, 0o660), (0o644, 0o666)] {
        let build = Region::builder("region").size(4096).mode(mode).directory(dir.path());
        let region = build.create().unwrap();
        let socket = dir.path().join("region").metadata().unwrap();
        assert_eq!(socket.permissions().mode() & 0o777, socket_mode);
        assert_eq!(open(&dir, "region").unwrap().id(), region.id());
    }
}

/// More callers than it may have descriptors: it neither spins nor stops to serve.
#[test]
fn a_server_without_descriptors_waits() {
    let dir = dir();
    let mut creator = player(&dir, "create with few descriptors");
    assert_eq!(creator.line(), "ready");
    let silent: Vec<_> = (0..40).map(|_| call(&dir, "region")).collect();
    // The CPU time of the server, in clock ticks of 10 ms.
    let ticks = || -> u64 {
        let stat = format!("/proc/{}/stat", creator.pid());
        let stat = std::fs::read_to_string(stat).unwrap();
        let fields = stat.rsplit(')').next().unwrap().split_whitespace();
        fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
    };
    let before = ticks();
    std::thread::sleep(Duration::from_secs(1));
    let spent = ticks() - before;
    assert!(spent < 50, "{spent} of 100 ticks");
    open(&dir, "region").unwrap();
    drop(silent);
    creator.end();
}

#[test]
fn directories_of_others_are_refused() {
    let dir = dir();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o770)).unwrap();
    assert!(create(&dir, "region", 4096).unwrap_err().is_permission_denied());
    assert!(open(&dir, "region").unwrap_err().is_permission_denied());
    let deep = dir.path().join("no/such/parent");
    let error = Region::builder("a").size(4096).directory(&deep).create().unwrap_err();
    assert!(error.is_not_found(), "{error}");
    let long = dir.path().join("x".repeat(120));
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o700)).unwrap();
    let error = Region::builder("a").size(4096).directory(&long).create().unwrap_err();
    assert_eq!(error.raw_os_error(), libc::ENAMETOOLONG, "{error}");
}
