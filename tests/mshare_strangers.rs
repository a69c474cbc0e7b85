//! Participants that may do some things, and try others.

mod common;

use common::{Player, say, wait_for_nudge};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, recv, sendmsg, socket_with,
};
use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;
use unmerged::mshare::{Object, Region, Rights};

const PAGE: usize = 4096;
const SIZE: usize = 8 << 20;

fn create(dir: &Path) -> Region {
    Region::builder("region").size(SIZE).room(SIZE / 2).directory(dir).create().unwrap()
}

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
        Some("maps by hand") => maps_by_hand(),
        Some("fills the bell") => fills_the_bell(),
        Some("creates") => stay(create(Path::new(&directory()))),
        Some("maps") => {
            let region = Region::open("region").unwrap();
            say("ready");
            wait_for_nudge();
            region.map(SIZE / 2..SIZE / 2 + PAGE, Object::revocable()).unwrap();
            region.unmap(SIZE / 2..SIZE / 2 + PAGE).unwrap();
            say("done");
        }
        Some("is elsewhere") => {
            let error = Region::open("region").unwrap_err();
            assert_eq!(error.raw_os_error(), libc::EXDEV, "{error}");
        }
        Some("may read") => {
            let error = Region::open("region").unwrap_err();
            let says_how = error.to_string().contains("Opener::read_only");
            assert!(error.is_permission_denied() && says_how, "{error}");
            stay(Region::opener("region").read_only().open().unwrap());
        }
        Some("is one too many") => {
            let error = Region::opener("region").read_only().open().unwrap_err();
            let says_why = error.to_string().contains("processes_per_user");
            assert!(error.raw_os_error() == libc::EDQUOT && says_why, "{error}");
        }
        Some("opens again for writing") => opens_again_for_writing(),
        Some("opens") => stay(Region::open("region").unwrap()),
        Some("reads") => stay(Region::opener("region").read_only().open().unwrap()),
        None => {}
        other => panic!("no such role: {other:?}"),
    }
}

fn directory() -> String {
    std::env::var("UNMERGED_RUNTIME_DIR").unwrap()
}

fn stay(region: Region) {
    say("ready");
    wait_for_nudge();
    drop(region);
}

/// A reader: has every eventfd that it was given block, and fills it.
fn fills_the_bell() {
    let region = Region::opener("region").read_only().agent(false).open().unwrap();
    for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
        let path = entry.unwrap().path();
        let link = std::fs::read_link(&path).unwrap_or_default();
        if !link.to_string_lossy().contains("eventfd") {
            continue;
        }
        let fd: i32 = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
        let most = (u64::MAX - 1).to_ne_bytes();
        // SAFETY: a descriptor of this process, eight bytes.
        unsafe {
            assert_eq!(libc::write(fd, most.as_ptr().cast(), 8), 8);
            let flags = libc::fcntl(fd, libc::F_GETFL);
            assert_eq!(libc::fcntl(fd, libc::F_SETFL, flags & !libc::O_NONBLOCK), 0);
        }
    }
    stay(region);
}

#[test]
fn a_reader_holds_nobody() {
    let dir = TempDir::new().unwrap();
    let region = create(dir.path());
    let _other = player(dir.path(), "fills the bell");
    let (done, is_done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let object = Object::anonymous();
        let patience = Duration::from_millis(1);
        let _ = region.map_within(SIZE / 2..SIZE / 2 + PAGE, object, patience).unwrap();
        drop(region);
        done.send(()).unwrap();
    });
    is_done.recv_timeout(Duration::from_secs(20)).expect("the bell holds who rings it");
}

#[test]
fn a_reader_hears_whoever_serves() {
    let dir = TempDir::new().unwrap();
    let mut first = player(dir.path(), "creates");
    let mut second = player(dir.path(), "maps");
    let third = player(dir.path(), "maps");
    let reader = player(dir.path(), "reads");
    first.kill();
    second.nudge();
    second.wait_for("done");
    second.kill();
    let mut third = third;
    third.nudge();
    third.wait_for("done");
    third.end();
    reader.end();
}

/// The errno with which the server answers a request, byte by byte.
fn request(region: &Region, ask: u32, numbers: [u64; 5], file: Option<&OwnedFd>) -> i32 {
    let (unix, packets) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let connection = socket_with(unix, packets, SocketFlags::CLOEXEC, None).unwrap();
    let path = Path::new(&directory()).join(region.name());
    connect(&connection, &SocketAddrUnix::new(path).unwrap()).unwrap();
    let mut bytes = b"umshareQ\x04\0\0\0".to_vec();
    bytes.extend(ask.to_le_bytes());
    bytes.extend(region.id());
    numbers.iter().for_each(|number| bytes.extend(number.to_le_bytes()));
    let fds: Vec<_> = file.iter().map(|file| file.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(&fds)));
    let bytes = [rustix::io::IoSlice::new(&bytes)];
    sendmsg(&connection, &bytes, &mut control, SendFlags::NOSIGNAL).unwrap();
    let mut reply = [0; 80];
    recv(&connection, &mut reply, rustix::net::RecvFlags::empty()).unwrap();
    i32::from_le_bytes(reply[12..16].try_into().unwrap())
}

/// Asks for mappings that [`Region::map`] would not ask for.
fn maps_by_hand() {
    const MAP: u32 = 6;
    let rights = Rights::READ | Rights::WRITE | Rights::MAP;
    let region = Region::opener("region").rights(rights).open().unwrap();
    let memory = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&memory, 4 << 20).unwrap();
    let plain = OwnedFd::from(std::fs::File::open("/proc/self/maps").unwrap());
    let device = OwnedFd::from(std::fs::File::open("/dev/zero").unwrap());
    let sealable = || {
        let file = memfd_create("test", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, 4096).unwrap();
        file
    };
    let sealed = sealable();
    fcntl_add_seals(&sealed, SealFlags::SHRINK).unwrap();
    let open = sealable();
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&open));
    let for_reading = OwnedFd::from(std::fs::File::open(path).unwrap());
    let (page, huge, start) = (PAGE as u64, 2 << 20, SIZE as u64 / 2);
    let (file, revocable, in_huge_pages, write) = (2, 3, 4, 3);
    for (offset, len, kind, at, what) in [
        // No whole page of the file, of huge pages; beyond what a file can have.
        (start, page, file, 100, &memory),
        (start + page, page, in_huge_pages, 0, &memory),
        (start, page, in_huge_pages, 0, &memory),
        (start, huge, in_huge_pages, page, &memory),
        (start, page, file, u64::MAX - page + 1, &memory),
        (start, page, file, 1 << 63, &memory),
        // Other pages than it says, and no memory file.
        (start, huge, in_huge_pages, 0, &memory),
        (start, page, revocable, 0, &plain),
        (start, page, file, 0, &device),
        // Memory that could never be taken away again.
        (start, page, revocable, 0, &sealed),
        (start, page, revocable, 0, &for_reading),
    ] {
        let errno = request(&region, MAP, [offset, len, kind, at, write], Some(what));
        assert_eq!(errno, libc::EINVAL, "{offset:#x} {len:#x} {kind} {at:#x}");
    }
    assert_eq!(request(&region, MAP, [start, page, file, page, write], Some(&memory)), 0);
    assert_eq!(request(&region, MAP, [start + page, page, revocable, 0, write], Some(&open)), 0);
    // Nor is it sealed once it lies there.
    let sealed = fcntl_add_seals(&open, SealFlags::FUTURE_WRITE);
    assert_eq!(sealed, Err(rustix::io::Errno::PERM));
    say("ready");
    wait_for_nudge();
}

#[test]
fn what_a_participant_asks_for_is_checked() {
    let dir = TempDir::new().unwrap();
    let region = create(dir.path());
    let other = player(dir.path(), "maps by hand");
    region.sync().unwrap();
    region.unmap(SIZE / 2..SIZE / 2 + PAGE).unwrap();
    region.map(SIZE / 2..SIZE / 2 + PAGE, Object::revocable()).unwrap();
    assert!(region.is_server());
    other.end();
}

/// Root takes over from the owner, who finds the name still.
#[test]
fn who_serves_instead_of_the_owner_is_reached_by_the_owner() {
    if !rustix::process::geteuid().is_root() {
        return common::missing("root", "the owner serves");
    }
    const OWNER: u32 = 1000;
    let dir = TempDir::new().unwrap();
    std::os::unix::fs::chown(dir.path(), Some(OWNER), Some(OWNER)).unwrap();
    let owner = |role| {
        let mut command = common::child("child", role);
        command.env("UNMERGED_RUNTIME_DIR", dir.path()).uid(OWNER).gid(OWNER);
        let mut player = Player::start(command);
        player.wait_for("ready");
        player
    };
    let mut first = owner("creates");
    let region = Region::open_in(dir.path(), "region").unwrap();
    first.kill();
    owner("opens").end();
    drop(region);
}

/// In a new process: a network namespace of its own.
fn leave([uid, gid]: [u32; 2]) -> std::io::Result<()> {
    // SAFETY: a system call.
    if unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
    std::fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))
}

#[test]
fn who_is_in_another_network_namespace() {
    let dir = TempDir::new().unwrap();
    let _region = create(dir.path());
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let ids = [uid.as_raw(), gid.as_raw()];
    let mut command = common::child("child", "is elsewhere");
    command.env("UNMERGED_RUNTIME_DIR", dir.path());
    // SAFETY: between fork and exec in a copy of a process with threads, so that it could wait
    // for an allocator's lock; glibc's is whole in a forked child.
    unsafe { command.pre_exec(move || leave(ids)) };
    match command.output() {
        Ok(output) => {
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{error}");
        }
        Err(error) => common::missing("user-namespaces", &error.to_string()),
    }
}

/// A reader of another user: the modes of the files are not its to change, and keep it from opening
/// them otherwise.
fn opens_again_for_writing() {
    let region = Region::opener("region").read_only().open().unwrap();
    // An object as well.
    region.sync().unwrap();
    let mut found = 0;
    for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
        let path = entry.unwrap().path();
        let link = std::fs::read_link(&path).unwrap_or_default();
        if !link.to_string_lossy().contains("memfd:mshare") {
            continue;
        }
        found += 1;
        let error = std::fs::OpenOptions::new().write(true).open(&path).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EACCES), "{link:?}");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        let error = std::fs::set_permissions(&path, mode).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{link:?}");
    }
    assert!(found >= 4, "{found}");
    stay(region);
}

/// A directory that other users may look up names in.
fn open_to_others() -> TempDir {
    let dir = TempDir::new().unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o711);
    std::fs::set_permissions(dir.path(), mode).unwrap();
    dir
}

/// What `child` is to do as this user.
fn child_of(dir: &TempDir, uid: u32, role: &str) -> std::process::Command {
    let mut command = common::child("child", role);
    command.env("UNMERGED_RUNTIME_DIR", dir.path()).uid(uid).gid(uid);
    command
}

/// The same, once it is ready.
fn of_user(dir: &TempDir, uid: u32, role: &str) -> Player {
    let mut player = Player::start(child_of(dir, uid, role));
    player.wait_for("ready");
    player
}

#[test]
fn a_reader_of_another_user_stays_one() {
    if !rustix::process::geteuid().is_root() {
        return common::missing("root", "all processes are of one user");
    }
    let dir = open_to_others();
    let builder = Region::builder("region").size(SIZE).mode(0o644);
    let region = builder.directory(dir.path()).create().unwrap();
    region.map(0..PAGE, Object::revocable()).unwrap();
    of_user(&dir, 1000, "opens again for writing").end();
}

#[test]
fn who_may_only_read_is_told_so() {
    if !rustix::process::geteuid().is_root() {
        return common::missing("root", "all processes are of one user");
    }
    let dir = open_to_others();
    let builder = Region::builder("region").size(SIZE).mode(0o644);
    let _region = builder.directory(dir.path()).create().unwrap();
    of_user(&dir, 1000, "may read").end();
}

#[test]
fn one_user_does_not_take_all_places() {
    if !rustix::process::geteuid().is_root() {
        return common::missing("root", "all processes are of one user");
    }
    let dir = open_to_others();
    let builder = Region::builder("region").size(SIZE).mode(0o644).processes_per_user(2);
    let _region = builder.directory(dir.path()).create().unwrap();
    let start = |uid| of_user(&dir, uid, "reads");
    let (first, second) = (start(1000), start(1000));
    common::succeed(child_of(&dir, 1000, "is one too many"));
    start(1001).end();
    first.end();
    start(1000).end();
    second.end();
}
