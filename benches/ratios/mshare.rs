//! The mshare rows.

use crate::harness::{Options, Row, Target, pinned};
use crate::peer::{Peer, word};
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use unmerged::mshare::{Object, Region};

/// The role of a process that serves a region.
pub(crate) const SERVER: &str = "server";
const SIZE: usize = 1 << 26;

fn name(server: u32) -> String {
    format!("bench-{server}")
}

pub(crate) fn serve(until_released: &dyn Fn()) {
    let region = Region::builder(&name(std::process::id())).size(SIZE).create();
    let region = region.expect("the runtime directory can be written");
    // SAFETY: the first byte of the region, which nobody else writes.
    unsafe { region.base().write(7) };
    until_released();
}

/// The role of a process that has a region of the bench's.
pub(crate) const SHARER: &str = "sharer";

pub(crate) fn share(until_released: &dyn Fn()) {
    let _region = Region::open(&word()).expect("the bench serves it");
    until_released();
}

pub(crate) fn rows(options: &Options) {
    attach(options);
    for (sharers, [map, unmap]) in [
        (1, ["mshare/map-1", "mshare/unmap-1"]),
        (8, ["mshare/map-8", "mshare/unmap-8"]),
        (32, ["mshare/map-32", "mshare/unmap-32"]),
        (128, ["mshare/map-128", "mshare/unmap-128"]),
    ] {
        objects(options, map, sharers, true);
        objects(options, unmap, sharers, false);
    }
    revoke(options);
}

/// Percentiles, in the manner of a row.
pub(crate) fn percentiles(options: &Options, times: Mutex<Vec<Duration>>) {
    let mut times = times.into_inner().expect("nobody panics");
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    if options.is_measured() {
        eprintln!("{:>40} p50 {:?}, p99 {:?} of {}", "", at(50), at(99), times.len());
    }
}

/// Giving 2 MiB to everybody, or taking them, until everybody has said that it follows.
fn objects(options: &Options, row: &'static str, sharers: usize, maps: bool) {
    const LEN: usize = 2 << 20;
    if !options.wants(row) {
        return;
    }
    let name = format!("{}-objects", name(std::process::id()));
    let region = Region::builder(&name).size(2 * LEN).create().expect("a region");
    let peers = if options.is_measured() { sharers } else { 1 };
    let peers: Vec<_> = (0..peers).map(|_| Peer::start_with(SHARER, &name)).collect();
    let times = Mutex::new(Vec::new());
    let ours = |n: u64| {
        let mut sum = Duration::ZERO;
        for _ in 0..n {
            let start = Instant::now();
            region.map(0..LEN, Object::revocable()).expect("mapped");
            let mapped = start.elapsed();
            // SAFETY: just mapped, by us.
            unsafe { region.base().write(1) };
            let start = Instant::now();
            region.unmap(0..LEN).expect("unmapped");
            let took = if maps { mapped } else { start.elapsed() };
            times.lock().expect("nobody panics").push(took);
            sum += took;
        }
        sum.as_nanos() as f64
    };
    Row::new(row, Box::new(ours)).run(options);
    percentiles(options, times);
    drop(peers);
}

/// Taking the pages of 2 MiB, one of them touched, from another process that is stopped: what the
/// kernel does by itself, up to the return of a call that waits for nobody.
fn revoke(options: &Options) {
    const LEN: usize = 2 << 20;
    const ROW: &str = "mshare/revoke-1";
    if !options.wants(ROW) {
        return;
    }
    let name = format!("{}-revoke", name(std::process::id()));
    let region = Region::builder(&name).size(2 * LEN).create().expect("a region");
    let peer = Peer::start_with(SHARER, &name);
    let signal = |signal| {
        // SAFETY: a process of ours that has not been waited for.
        assert_eq!(unsafe { libc::kill(peer.pid().cast_signed(), signal) }, 0);
    };
    let times = Mutex::new(Vec::new());
    let ours = |n: u64| {
        let mut sum = Duration::ZERO;
        for _ in 0..n {
            region.map(0..LEN, Object::revocable()).expect("mapped");
            // SAFETY: just mapped, by us.
            unsafe { region.base().write(1) };
            signal(libc::SIGSTOP);
            let start = Instant::now();
            let acks = region.unmap_within(0..LEN, Duration::ZERO).expect("unmapped");
            let took = start.elapsed();
            signal(libc::SIGCONT);
            drop(acks);
            region.sync().expect("the region is sound");
            times.lock().expect("nobody panics").push(took);
            sum += took;
        }
        sum.as_nanos() as f64
    };
    Row::new(ROW, Box::new(ours)).limit(50_000.0).run(options);
    percentiles(options, times);
}

/// An arm whose operation ends before its value is dropped.
fn timed<'a, T>(op: impl Fn() -> T + Send + 'a) -> Box<dyn FnMut(u64) -> f64 + Send + 'a> {
    Box::new(move |n| {
        let mut sum = Duration::ZERO;
        for _ in 0..n {
            let start = Instant::now();
            let value = op();
            sum += start.elapsed();
            drop(value);
        }
        sum.as_nanos() as f64
    })
}

/// A mapping of the plain arm.
struct Mapped(*mut libc::c_void, usize);

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: mapped by the arm, and used by nobody any more.
        unsafe { libc::munmap(self.0, self.1) };
    }
}

/// From the name to the first byte.
fn attach(options: &Options) {
    if !options.wants("mshare/attach") {
        return;
    }
    let server = Peer::start(SERVER);
    let name = name(server.pid());
    let ours = timed(|| {
        let region = Region::open(&name).expect("the peer serves it");
        // SAFETY: mapped, and written before the peer was ready.
        assert_eq!(unsafe { region.base().read_volatile() }, 7);
        region
    });
    let object = std::path::PathBuf::from(format!("/dev/shm/{name}"));
    std::fs::write(&object, [7]).expect("/dev/shm can be written");
    let theirs = timed(|| {
        let file = std::fs::File::open(&object).expect("it was just written");
        let len = file.metadata().expect("it is a file").len() as usize;
        // SAFETY: a new mapping of that file, read within its length.
        unsafe {
            let (read, shared) = (libc::PROT_READ, libc::MAP_SHARED);
            let at = libc::mmap(ptr::null_mut(), len, read, shared, file.as_raw_fd(), 0);
            assert_eq!(at.cast::<u8>().read_volatile(), 7);
            (file, Mapped(at, len))
        }
    });
    let id = format!("/{name}-crate");
    let kept = shared_memory::ShmemConf::new().size(4096).os_id(&id).create();
    let kept = kept.expect("/dev/shm can be written");
    // SAFETY: the first byte of it, which nobody reads yet.
    unsafe { kept.as_ptr().write(7) };
    let crate_arm = timed(|| {
        let opened = shared_memory::ShmemConf::new().os_id(&id).open().expect("it is there");
        // SAFETY: mapped, and written above.
        assert_eq!(unsafe { opened.as_ptr().read_volatile() }, 7);
        opened
    });
    pinned(0, || {
        Row::new("mshare/attach", ours)
            .limit(100_000.0)
            .peer("shm-open-mmap", Target::None, theirs)
            .peer("shared-memory", Target::None, crate_arm)
            .run(options);
    });
    let _ = std::fs::remove_file(object);
    drop(kept);
}
