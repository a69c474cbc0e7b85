//! What the page tables of many processes cost that have all read the same memory.

use crate::harness::{Options, Row, Target};
use crate::peer::{Peer, word};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap};
use std::os::fd::AsRawFd;
use std::ptr;
use unmerged::Result;
use unmerged::mshare::{Advice, HugePages, Region};

/// The role of a process that reads one byte in so many of a region, or of a file that it maps.
pub(crate) const TOUCHER: &str = "table-toucher";

const GIB: usize = 1 << 30;

pub(crate) fn touch(until_released: &dyn Fn()) {
    let word = word();
    let mut words = word.split(' ');
    let mut next = || words.next().expect("name, size, step, offset");
    let (name, number) = (next(), |text: &str| text.parse::<usize>().expect("a number"));
    let [size, step, skew] = [next(), next(), next()].map(number);
    let mut region = None;
    let start = if name.starts_with('/') {
        let file = std::fs::File::open(name).expect("the bench has it");
        // Skewed is where the tables of two processes cannot be one.
        let place: *mut _ = ptr::without_provenance_mut(skew);
        let fixed = if skew == 0 { MapFlags::empty() } else { MapFlags::FIXED_NOREPLACE };
        let flags = MapFlags::SHARED | MapFlags::NORESERVE | fixed;
        // SAFETY: a new mapping, that replaces none.
        unsafe { mmap(place, size.max(4096), ProtFlags::READ, flags, file, 0) }
            .expect("mapped")
            .cast()
    } else {
        region.insert(Region::open(name).expect("the bench serves it")).base().as_ptr()
    };
    for at in (0..size).step_by(step) {
        // SAFETY: inside; what is read is nobody's.
        unsafe { start.wrapping_add(at).cast::<u8>().read_volatile() };
    }
    until_released();
}

pub(crate) fn rows(options: &Options) {
    for (row, count) in
        [("mshare/page-tables-1", 1), ("mshare/page-tables-10", 10), ("mshare/page-tables", 50)]
    {
        small_pages(options, row, count);
    }
    huge_pages(options);
}

/// kB of page tables of so many processes that do what `word` says.
fn tables(count: usize, word: &str) -> f64 {
    let peers: Vec<_> = (0..count).map(|_| Peer::start_with(TOUCHER, word)).collect();
    let of = |peer: &Peer| {
        let status = std::fs::read_to_string(format!("/proc/{}/status", peer.pid()));
        let status = status.expect("it lives");
        let line = status.lines().find_map(|line| line.strip_prefix("VmPTE:"));
        let figure = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
        figure.expect("the kernel counts them")
    };
    peers.iter().map(of).sum()
}

/// kB of page tables of the whole machine, while so many processes do what `word` says to each;
/// nobody else should do much meanwhile.
fn tables_of_all(count: usize, word: impl Fn(usize) -> String) -> f64 {
    let all = || {
        // The kernel counts on each CPU, and sums up once a second.
        std::thread::sleep(std::time::Duration::from_millis(2500));
        let memory = std::fs::read_to_string("/proc/meminfo").expect("there is one");
        let line = memory.lines().find_map(|line| line.strip_prefix("PageTables:"));
        let figure = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
        figure.expect("the kernel counts them")
    };
    let before = all();
    let peers: Vec<_> = (0..count).map(|n| Peer::start_with(TOUCHER, &word(n))).collect();
    let after = all();
    drop(peers);
    after - before
}

fn figure(kb: f64) -> Box<dyn FnMut(u64) -> f64 + Send> {
    Box::new(move |n| kb.max(1.0) * n as f64)
}

/// Each process reads all of a gigabyte: of a region that is collapsed, of one that is not, of a
/// plain memfd. Beyond what a process has that maps it and reads nothing.
fn small_pages(options: &Options, row: &'static str, count: usize) {
    if !options.wants(row) {
        return;
    }
    let (count, size) = if options.is_measured() { (count, GIB) } else { (2, 4 << 20) };
    let name = format!("bench-{}-tables", std::process::id());
    let of_region = |read: usize, collapse: bool| {
        let region = Region::builder(&name).size(size).create().expect("a region");
        region.advise(0..size, Advice::Populate).expect("memory for the region");
        if collapse && let Err(error) = region.advise(0..size, Advice::Collapse) {
            eprintln!("{row}: {error}");
        }
        tables(count, &format!("{name} {read} 4096 0"))
    };
    let of_memfd = |read: usize| {
        let file = memfd_create("bench", MemfdFlags::CLOEXEC).expect("a memfd");
        ftruncate(&file, size as u64).expect("a length");
        let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        // Pages that were never written are not in memory.
        std::fs::write(&path, vec![1; size]).expect("memory for the file");
        tables(count, &format!("{path} {read} 4096 0"))
    };
    let (bare, bare_memfd) = (of_region(0, true), of_memfd(0));
    let collapsed = of_region(size, true) - bare;
    let plain = of_region(size, false) - bare;
    Row::new(row, figure(collapsed))
        .unit("kB")
        .peer("plain-memfd", Target::Faster(20.0), figure(of_memfd(size) - bare_memfd))
        .peer("not-collapsed", Target::None, figure(plain))
        .run(options);
}

/// Each process reads a byte in each GiB of a region of huge pages, whose tables are shared, as the
/// one that made it has done before, whose tables are not counted; the
/// peers map the same memory elsewhere in a GiB, each 2 MiB beside the one before, where they
/// cannot be.
fn huge_pages(options: &Options) {
    const ROW: &str = "mshare/page-tables-hugetlb";
    if !options.wants(ROW) {
        return;
    }
    let (count, size) = if options.is_measured() { (40, 64 * GIB) } else { (2, 2 * GIB) };
    let name = format!("bench-{}-huge", std::process::id());
    let touched = || -> Result<Region> {
        let region = Region::builder(&name).size(size).huge_pages(HugePages::M2).create()?;
        for at in (0..size).step_by(GIB) {
            region.advise(at..at + (2 << 20), Advice::Populate)?;
            // SAFETY: inside; what is read is nobody's.
            unsafe { region.base().as_ptr().wrapping_add(at).read_volatile() };
        }
        Ok(region)
    };
    let region = match touched() {
        Ok(region) => region,
        Err(error) => return eprintln!("{ROW}: no row: {error}"),
    };
    let file = std::fs::read_dir("/proc/self/fd").expect("there is one").flatten().find(|entry| {
        let target = std::fs::read_link(entry.path()).unwrap_or_default();
        let is_large = entry.path().metadata().is_ok_and(|file| file.len() == size as u64);
        is_large && target.to_string_lossy().starts_with("/memfd:")
    });
    let file = file.expect("the region has its memory").file_name();
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.to_string_lossy());
    let skewed = |n: usize| (0x1000_usize << 30) + ((n + 1) << 21);
    let bare = tables_of_all(count, |_| format!("{name} 0 4096 0"));
    let ours = tables_of_all(count, |_| format!("{name} {size} {GIB} 0")) - bare;
    let bare = tables_of_all(count, |n| format!("{path} 0 4096 {}", skewed(n)));
    let theirs = tables_of_all(count, |n| format!("{path} {size} {GIB} {}", skewed(n))) - bare;
    drop(region);
    Row::new(ROW, figure(ours))
        .unit("kB")
        .peer("misaligned", Target::Faster(50.0), figure(theirs))
        .run(options);
}
