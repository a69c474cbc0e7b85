//! Rows of mshare that are about what other processes cost: the first touch of a second mapper, and
//! the end of one that is killed.

use crate::harness::{Options, Row, Target};
use crate::mshare::percentiles;
use crate::peer::{Peer, word};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use unmerged::mshare::{Advice, HugePages, Region};

/// The role of a process that has a region.
pub(crate) const HOLDER: &str = "holder";

pub(crate) fn hold(until_released: &dyn Fn()) {
    let word = word();
    let _region = match word.strip_prefix("create ") {
        Some(name) => Region::builder(name).size(1 << 20).create(),
        None => Region::open(&word),
    }
    .expect("it is there");
    until_released();
}

/// The role of a process that says how long its first touch of a region takes, in its root.
pub(crate) const TOUCHER: &str = "toucher";

pub(crate) fn touch(until_released: &dyn Fn()) {
    let region = Region::open(&word()).expect("the bench serves it");
    let start = Instant::now();
    for at in (0..region.size() - (2 << 20)).step_by(4096) {
        // SAFETY: inside; what is read is nobody's.
        unsafe { region.base().add(at).read_volatile() };
    }
    let took = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
    // SAFETY: the last page, which only the one toucher of this round writes.
    unsafe { region.base().add(region.size() - 4096).cast::<u64>().write_volatile(took) };
    until_released();
}

pub(crate) fn rows(options: &Options) {
    first_touch(options);
    killed(options, "mshare/kill-to-clean", false);
    killed(options, "mshare/kill-to-served", true);
}

fn region(what: &str, size: usize, huge: bool) -> unmerged::Result<Region> {
    let name = format!("bench-{}-{what}", std::process::id());
    let mut builder = Region::builder(&name).size(size);
    if huge {
        builder = builder.huge_pages(HugePages::M2);
    }
    builder.create()
}

/// A new process reads each page of a gigabyte that is in memory already.
fn first_touch(options: &Options) {
    const ROW: &str = "mshare/first-touch-1g";
    if !options.wants(ROW) {
        return;
    }
    let size = (if options.is_measured() { 1 << 30 } else { 4 << 20 }) + (2 << 20);
    let populated = |what, huge| {
        let region = region(what, size, huge)?;
        region.advise(0..size, Advice::Populate)?;
        Ok::<_, unmerged::Error>(region)
    };
    let small = populated("small", false).expect("memory for the region");
    let collapsed = populated("collapsed", false).expect("memory for the region");
    if let Err(error) = collapsed.advise(0..size, Advice::Collapse) {
        eprintln!("{ROW}: {error}");
    }
    let huge = populated("hugetlb", true);
    let arm = |region: &Region| {
        let (name, end) = (region.name().to_owned(), region.base().addr().get() + size - 4096);
        Box::new(move |n: u64| {
            let mut sum = 0.0;
            for _ in 0..n {
                let peer = Peer::start_with(TOUCHER, &name);
                let took: *const u64 = std::ptr::with_exposed_provenance(end);
                // SAFETY: the last page of the region, which is mapped here as long as the arms run.
                sum += unsafe { took.read_volatile() } as f64;
                drop(peer);
            }
            sum
        })
    };
    small.base().as_ptr().expose_provenance();
    collapsed.base().as_ptr().expose_provenance();
    let mut row = Row::new(ROW, arm(&collapsed));
    row = row.peer("4k-pages", Target::None, arm(&small));
    match &huge {
        Ok(huge) => {
            huge.base().as_ptr().expose_provenance();
            row = row.peer("hugetlb", Target::None, arm(huge));
        }
        Err(error) => eprintln!("{ROW}: no arm hugetlb: {error}"),
    }
    row.run(options);
}

/// From SIGKILL to the moment at which the others have freed the place of the dead one; or, if it
/// was the one that served, at which another serves.
fn killed(options: &Options, row: &'static str, serves: bool) {
    if !options.wants(row) {
        return;
    }
    let times = Mutex::new(Vec::new());
    let name = format!("bench-{}-killed", std::process::id());
    let limit = Duration::from_secs(10);
    let ours = |n: u64| {
        let mut sum = Duration::ZERO;
        for _ in 0..n {
            let first = Peer::start_with(HOLDER, &format!("create {name}"));
            let region = Region::open(&name).expect("just made");
            let second = Peer::start_with(HOLDER, &name);
            let victim = if serves { first.pid() } else { second.pid() };
            let is_clean = || {
                let stats = region.stats().expect("the region is sound");
                let gone = stats.participants.iter().all(|one| one.pid != victim);
                gone && (!serves || stats.epoch > 1)
            };
            assert!(!is_clean());
            let start = Instant::now();
            // SAFETY: a process of ours that has not been waited for.
            assert_eq!(unsafe { libc::kill(victim.cast_signed(), libc::SIGKILL) }, 0);
            while !is_clean() {
                assert!(start.elapsed() < limit, "nobody cleans up");
                std::thread::yield_now();
            }
            let took = start.elapsed();
            times.lock().expect("nobody panics").push(took);
            sum += took;
        }
        sum.as_nanos() as f64
    };
    Row::new(row, Box::new(ours)).run(options);
    percentiles(options, times);
}
