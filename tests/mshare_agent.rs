//! The thread of a participant, when something is in its way: a long call of another thread, a server
//! that does not answer, a lock that is kept, descriptors that the program closed.

mod common;
#[path = "common/region.rs"]
mod regions;

use common::{Player, say};
use regions::{ask, ready};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};
use std::io::{BufRead, Write};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use unmerged::mshare::{Advice, Lifetime, Object, Prot, Region};

const PAGE: usize = 4096;
const SIZE: usize = 64 * PAGE;
/// Nothing takes so long.
const PATIENCE: Duration = Duration::from_secs(20);

fn create(dir: &TempDir) -> Region {
    Region::builder("region").size(SIZE).directory(dir.path()).create().unwrap()
}

fn open(dir: &TempDir) -> Region {
    Region::open_in(dir.path(), "region").unwrap()
}

/// Not a test: another process, which does what it is told.
#[test]
fn child() {
    let Some(role) = common::role() else { return };
    let builder = Region::builder("region").size(SIZE);
    let region = match role.as_str() {
        "creates" => builder.create(),
        "opens" => Region::open("region"),
        "reads" => Region::opener("region").read_only().open(),
        other => panic!("no such role: {other}"),
    };
    let mut region = Some(region.unwrap());
    say("ready");
    for line in std::io::stdin().lock().lines() {
        let held = region.as_ref();
        let populate = |range| {
            let done = held.unwrap().advise(range, Advice::Populate);
            done.map_or_else(|error| error.raw_os_error(), |()| 0).to_string()
        };
        say(match line.unwrap().as_str() {
            "unmap" => held.unwrap().unmap(0..PAGE).is_ok().to_string(),
            "populate" => populate(0..PAGE),
            "populate file" => populate(2 * PAGE..4 * PAGE),
            "lose" => lose_eventfds(),
            "drop" => {
                let start = format!("{:x}-", held.unwrap().base().addr());
                drop(region.take());
                let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
                maps.lines().any(|line| line.starts_with(&start)).to_string()
            }
            other => panic!("no such word: {other}"),
        });
    }
}

/// Puts something that nobody can write in the place of every eventfd of this process.
fn lose_eventfds() -> String {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut lost = 0;
    for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
        let path = entry.unwrap().path();
        let link = std::fs::read_link(&path).unwrap_or_default();
        if link.to_string_lossy().contains("eventfd") {
            let fd = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
            // SAFETY: what the test is about.
            assert_eq!(unsafe { libc::dup2(reader.as_raw_fd(), fd) }, fd);
            lost += 1;
        }
    }
    core::mem::forget((reader, writer));
    (lost >= 2).to_string()
}

/// A word of the ledger, by its number: see ledger.rs.
fn ledger(region: &Region, word: usize) -> *mut u64 {
    region.base().as_ptr().wrapping_sub(PAGE + 167_936).cast::<u64>().wrapping_add(word)
}

/// What names this participant in the ledger.
fn token(region: &Region, player: &Player) -> u64 {
    for slot in 0..1024 {
        // SAFETY: the first word of a slot.
        let life = unsafe { ledger(region, (512 + slot * 64) / 8).read_volatile() };
        if life as u32 == player.pid() {
            return life >> 32 << 16 | (slot as u64 + 1);
        }
    }
    panic!("no participant {}", player.pid());
}

static IS_INSIDE: AtomicBool = AtomicBool::new(false);
static GOES_ON: AtomicBool = AtomicBool::new(false);

/// The call that was trapped takes as long as the test wants, and succeeds.
extern "C" fn linger(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    IS_INSIDE.store(true, Ordering::Release);
    while !GOES_ON.load(Ordering::Acquire) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: the kernel gives the context of what it goes back to.
    unsafe { (*context).uc_mcontext.gregs[libc::REG_RAX as usize] = 0 };
}

/// Others do not wait for a process whose thread is in a long call.
#[test]
fn a_long_call_is_in_nobodys_way() {
    let dir = TempDir::new().unwrap();
    let region = create(&dir);
    let mut other = ready(&dir, "opens");
    // SAFETY: a zeroed action is filled in; the handler only waits.
    unsafe {
        let mut action: libc::sigaction = core::mem::zeroed();
        action.sa_sigaction = linger as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(libc::sigaction(libc::SIGSYS, &raw const action, core::ptr::null_mut()), 0);
    }
    std::thread::scope(|scope| {
        let long = scope.spawn(|| {
            common::trap(libc::SYS_fallocate);
            region.advise(PAGE..2 * PAGE, Advice::Populate)
        });
        while !IS_INSIDE.load(Ordering::Acquire) && !long.is_finished() {
            std::thread::yield_now();
        }
        let followed = ask(&mut other, "unmap");
        GOES_ON.store(true, Ordering::Release);
        long.join().unwrap().unwrap();
        assert_eq!(followed, "true");
    });
    other.end();
}

/// A file of the caller's is not made longer, and a reader takes no memory.
#[test]
fn what_is_populated() {
    let dir = TempDir::new().unwrap();
    let region = create(&dir);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[7; 100]).unwrap();
    region.map(2 * PAGE..4 * PAGE, Object::file(&file, 0).prot(Prot::READ)).unwrap();
    let mut reader = ready(&dir, "reads");
    region.advise(0..4 * PAGE, Advice::Populate).unwrap();
    assert_eq!(ask(&mut reader, "populate file"), "0");
    assert_eq!(file.metadata().unwrap().len(), 100);
    assert_eq!(ask(&mut reader, "populate"), libc::EPERM.to_string());
    reader.end();
}

/// The lock is kept by one that is stopped when the creator ends, and is killed later.
#[test]
fn the_region_ends_although_the_lock_was_kept() {
    let dir = TempDir::new().unwrap();
    let bound = Region::builder("region").size(SIZE).lifetime(Lifetime::Creator);
    let region = bound.directory(dir.path()).create().unwrap();
    let (mut creator, mut keeper) = (ready(&dir, "opens"), ready(&dir, "opens"));
    // Somebody else made it, and this process serves it by now.
    // SAFETY: a word of the ledger.
    unsafe { ledger(&region, 6).write_volatile(token(&region, &creator)) };
    // SAFETY: our own child.
    unsafe { libc::kill(keeper.pid() as i32, libc::SIGSTOP) };
    // SAFETY: the word of the lock, which nobody has.
    unsafe { ledger(&region, 256 / 8).write_volatile(token(&region, &keeper)) };
    creator.kill();
    // Long enough to give up.
    std::thread::sleep(Duration::from_millis(1300));
    keeper.kill();
    let end = Instant::now() + PATIENCE;
    let has_ended = || {
        let done = region.protect(0..PAGE, Prot::READ);
        done.is_err_and(|error| error.raw_os_error() == libc::EINVAL)
    };
    while !has_ended() {
        assert!(Instant::now() < end, "the region outlives its creator");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A server that hears nothing keeps nobody from following, and from letting go.
#[test]
fn a_new_server_that_does_not_answer() {
    let dir = TempDir::new().unwrap();
    let mut server = ready(&dir, "creates");
    let region = open(&dir);
    for page in 16..48 {
        region.map(page * PAGE..(page + 1) * PAGE, Object::revocable()).unwrap();
    }
    // SAFETY: a word of the ledger.
    let epoch = unsafe { ledger(&region, 8).read_volatile() } + 1;
    let name = format!("unmerged/mshare/{:032x}/{epoch}", u128::from_be_bytes(region.id()));
    let (unix, packets) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let listener = socket_with(unix, packets, SocketFlags::CLOEXEC, None).unwrap();
    bind(&listener, &SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap()).unwrap();
    listen(&listener, 128).unwrap();
    // SAFETY: as above; the server does not look at it.
    unsafe { ledger(&region, 8).write_volatile(epoch) };
    // It rings.
    assert_eq!(ask(&mut server, "unmap"), "true");
    let (done, is_done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        drop(region);
        let _ = done.send(());
    });
    is_done.recv_timeout(PATIENCE).expect("the region cannot be let go of");
    drop(listener);
    server.kill();
}

/// A thread that cannot be told to stop has its region for as long as it runs.
#[test]
fn descriptors_that_the_program_closed() {
    let dir = TempDir::new().unwrap();
    let region = create(&dir);
    let mut other = ready(&dir, "opens");
    assert_eq!(ask(&mut other, "lose"), "true");
    assert_eq!(ask(&mut other, "drop"), "true");
    // It hears the bell still.
    let _ = region.unmap_within(0..PAGE, Duration::from_millis(100)).unwrap();
    region.sync().unwrap();
    other.end();
}
