//! Per-CPU rings on a live kernel, in each implementation.

mod common;

use common::{
    SetAtEnd, alarm_again, child, handle, in_each_implementation, map, missing, pin, role, stress,
    succeed,
};
use proptest::prelude::*;
use std::arch::asm;
use std::collections::{BTreeMap, VecDeque};
use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use unmerged::percpu::{
    Counter, Implementation, Record, Ring, RingStats, Source, WhenFull, implementation,
};

fn cpus() -> Vec<u32> {
    Counter::new().per_cpu().map(|(cpu, _)| cpu).collect()
}

/// A generator without state elsewhere, for handlers and forked children too.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// The record number `n` of `writer`: both numbers, then bytes that depend on them.
struct Sample {
    bytes: [u8; 400],
    len: usize,
}

const HEAD: usize = 12;

impl Sample {
    fn new(writer: u32, n: u64, extra: usize) -> Self {
        let mut bytes = [0; 400];
        bytes[..4].copy_from_slice(&writer.to_ne_bytes());
        bytes[4..HEAD].copy_from_slice(&n.to_ne_bytes());
        let len = HEAD + extra;
        let mut random = Random((u64::from(writer) << 32 ^ n) | 1);
        for byte in &mut bytes[HEAD..len] {
            *byte = random.next() as u8;
        }
        Self { bytes, len }
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Writer and number of a record that is whole.
    fn check(bytes: &[u8]) -> (u32, u64) {
        let writer = u32::from_ne_bytes(*bytes.first_chunk().unwrap());
        let n = u64::from_ne_bytes(*bytes[4..].first_chunk().unwrap());
        let whole = Self::new(writer, n, bytes.len() - HEAD);
        assert_eq!(bytes, whole.bytes(), "writer {writer}, record {n}");
        (writer, n)
    }
}

/// What a reader has seen: whole records, in order.
#[derive(Default)]
struct Seen {
    records: u64,
    /// By source and writer, its last number.
    last: BTreeMap<(Source, u32), u64>,
    /// By source, its last sequence.
    sequence: BTreeMap<Source, u64>,
}

/// Writers from here on publish in handlers, which come in any order.
const UNORDERED: u32 = 100;

impl Seen {
    fn see(&mut self, record: Record<'_>) {
        let (writer, n) = Sample::check(record.bytes);
        self.records += 1;
        if let Some(before) = self.sequence.insert(record.source, record.sequence) {
            assert!(before < record.sequence, "{}: {before}, then {record:?}", record.source);
        }
        if let Some(before) = self.last.insert((record.source, writer), n)
            && writer < UNORDERED
        {
            assert!(before < n, "{}: {writer}: {before}, then {n}", record.source);
        }
    }
}

/// The law: nothing is there twice, and nothing is gone without being counted.
fn assert_conserved(stats: RingStats, published: u64, taken: u64, refused: u64) {
    assert_eq!(stats.published, published, "{stats:?}");
    assert_eq!(stats.taken, taken, "{stats:?}");
    assert_eq!(stats.lost, published - taken, "{stats:?}");
    assert_eq!(stats.refused, refused, "{stats:?}");
}

/// A ring of one stripe, as a queue with the ring's arithmetic.
struct Model {
    units: u64,
    head: u64,
    /// Bytes and units with padding, oldest first.
    inside: VecDeque<(Vec<u8>, u64)>,
    published: u64,
    refused: u64,
}

impl Model {
    /// Whether there is room; the record is inside then.
    fn publish(&mut self, bytes: &[u8]) -> bool {
        let need = bytes.len().div_ceil(8).max(1) as u64 + 1;
        let to_end = self.units - self.head;
        let padded = if need > to_end { need + to_end } else { need };
        let used: u64 = self.inside.iter().map(|(_, units)| units).sum();
        if used + padded > self.units - 1 {
            return false;
        }
        self.inside.push_back((bytes.to_vec(), padded));
        self.head = (self.head + padded) % self.units;
        true
    }
}

#[derive(Debug, Clone)]
enum Step {
    Publish(usize),
    Drain,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        9 => (0..120_usize).prop_map(Step::Publish),
        5 => (0..20_usize).prop_map(Step::Publish),
        1 => Just(Step::Drain),
    ];
    prop::collection::vec(step, 1..200)
}

fn content(n: u64, len: usize) -> Vec<u8> {
    (0..len).map(|i| (n as usize * 31 + i) as u8).collect()
}

/// In one thread on one CPU: what goes in comes out, in order, byte by byte; refused or
/// overwritten is counted. (A test that is preempted 16 times in a row would see two sources;
/// it does not come to that.)
#[test]
fn agrees_with_a_queue() {
    if !in_each_implementation("agrees_with_a_queue") {
        return;
    }
    pin(cpus()[0]);
    let config = ProptestConfig { cases: 60, failure_persistence: None, ..Default::default() };
    proptest!(config, |(steps in steps())| {
        let ring = Ring::private(256, WhenFull::Refuse).unwrap();
        let mut model =
            Model { units: 32, head: 0, inside: VecDeque::new(), published: 0, refused: 0 };
        let overwriting = Ring::private(512, WhenFull::Overwrite).unwrap();
        let (mut n, mut drained) = (0_u64, 0_u64);
        let mut all: Vec<Vec<u8>> = Vec::new();
        for step in steps.into_iter().chain([Step::Drain]) {
            match step {
                Step::Publish(len) => {
                    let bytes = content(n, len);
                    n += 1;
                    let fits = model.publish(&bytes);
                    let published = ring.publish(&bytes);
                    prop_assert_eq!(published.is_ok(), fits, "{:?}", published);
                    model.published += u64::from(fits);
                    model.refused += u64::from(!fits);
                    overwriting.publish(&bytes).unwrap();
                    all.push(bytes);
                }
                Step::Drain => {
                    let mut seen = Vec::new();
                    ring.drain(|record| seen.push(record.bytes.to_vec())).unwrap();
                    let inside: Vec<_> = model.inside.drain(..).map(|(bytes, _)| bytes).collect();
                    prop_assert_eq!(seen, inside);
                    let stats = ring.stats();
                    prop_assert_eq!(stats.published, model.published);
                    prop_assert_eq!(stats.taken, model.published);
                    prop_assert_eq!((stats.lost, stats.refused), (0, model.refused));
                    // The newest are there, numbered as published.
                    let mut seen = Vec::new();
                    overwriting
                        .drain(|record| seen.push((record.sequence, record.bytes.to_vec())))
                        .unwrap();
                    prop_assert!(all.is_empty() || !seen.is_empty());
                    drained += seen.len() as u64;
                    let newest = all.len() - seen.len();
                    for (at, (sequence, bytes)) in seen.into_iter().enumerate() {
                        prop_assert_eq!(sequence, n - (all.len() - newest - at) as u64);
                        prop_assert_eq!(&bytes, &all[newest + at]);
                    }
                    all.clear();
                    assert_conserved(overwriting.stats(), n, drained, 0);
                }
            }
        }
    });
}

/// Every length from 0 to the largest, at whatever place the ones before have led to.
#[test]
fn every_length_at_many_places() {
    if !in_each_implementation("every_length_at_many_places") {
        return;
    }
    let ring = Ring::private(512, WhenFull::Refuse).unwrap();
    assert_eq!((ring.capacity(), ring.max_record()), (512, 248));
    let mut n = 0;
    for filler in 0..20 {
        for len in 0..=ring.max_record() {
            let (one, two) = (content(n, len), content(n + 1, filler));
            ring.publish(&one).unwrap();
            // The thread may have moved to another CPU in between.
            let mut seen = Vec::new();
            ring.drain(|record| seen.push(record.bytes.to_vec())).unwrap();
            ring.publish_vectored(&[
                IoSlice::new(&two[..filler / 2]),
                IoSlice::new(&two[filler / 2..]),
            ])
            .unwrap();
            ring.drain(|record| seen.push(record.bytes.to_vec())).unwrap();
            assert_eq!(seen, [one, two]);
            n += 2;
        }
    }
    for len in [249, 250, 4096, 1 << 20] {
        let error = ring.publish(&vec![0; len]).unwrap_err();
        assert_eq!(error.raw_os_error(), libc::EMSGSIZE);
        let text = error.to_string();
        assert!(text.contains(&len.to_string()) && text.contains("248"), "{text}");
    }
    assert_conserved(ring.stats(), n, n, 0);
}

#[test]
fn pieces_become_one_record_or_none() {
    let ring = Ring::private(4096, WhenFull::Refuse).unwrap();
    let mut record = ring.reserve([0; 40]);
    write!(record, "{}-abc", 12).unwrap();
    record.as_bytes_mut()[0] = b'7';
    assert_eq!(record.as_bytes(), b"72-abc");
    record.commit().unwrap();
    {
        let mut dropped = ring.reserve([0; 8]);
        dropped.write_all(b"no").unwrap();
    }
    let mut buffer = [0; 100];
    let mut record = ring.reserve(&mut buffer[..]);
    assert_eq!(record.write(&[5; 120]).unwrap(), 100);
    assert!(record.write_all(b"more").is_err());
    record.commit().unwrap();
    let mut seen = Vec::new();
    ring.drain(|record| seen.push(record.bytes.to_vec())).unwrap();
    seen.sort_by_key(Vec::len);
    assert_eq!(seen, [b"72-abc".to_vec(), vec![5; 100]]);
}

static RING: OnceLock<Ring<'static>> = OnceLock::new();
static HANDLED: AtomicU64 = AtomicU64::new(0);
static PUBLISHED: AtomicU64 = AtomicU64::new(0);
static REFUSED: AtomicU64 = AtomicU64::new(0);

fn publish(ring: &Ring<'_>, writer: u32, n: u64, extra: usize) {
    let counter = match ring.publish(Sample::new(writer, n, extra).bytes()) {
        Ok(()) => &PUBLISHED,
        Err(error) => {
            assert!(matches!(error.raw_os_error(), libc::ENOSPC | libc::EBUSY), "{error}");
            &REFUSED
        }
    };
    counter.fetch_add(1, Ordering::Relaxed);
}

extern "C" fn on_alarm(_: libc::c_int) {
    if let Some(ring) = RING.get() {
        let n = HANDLED.fetch_add(1, Ordering::Relaxed);
        publish(ring, UNORDERED, n, n as usize % 100);
    }
}

/// 8 threads that change their CPU, a signal whose handler publishes over what it interrupts,
/// and a reader that never stops.
fn storm_on_one_ring(when_full: WhenFull) {
    let ring = RING.get_or_init(|| Ring::private(8 << 10, when_full).unwrap());
    // SAFETY: the handler publishes, which handlers may, and counts.
    unsafe { handle(&[libc::SIGALRM], on_alarm) };
    let (stop, cpus) = (AtomicBool::new(false), cpus());
    let mut seen = Seen::default();
    std::thread::scope(|scope| {
        let finish = SetAtEnd(&stop);
        let (stop, cpus) = (&stop, &cpus);
        let writers = [0, 1, 2, 3, 4, 5, 6, 7].map(|me: u32| {
            scope.spawn(move || {
                let mut random = Random(u64::from(me) + 1);
                for n in 0.. {
                    publish(ring, me, n, random.next() as usize % 380);
                    if n % 4 == 0 {
                        alarm_again(10);
                    }
                    if n % 64 == u64::from(me) {
                        pin(cpus[random.next() as usize % cpus.len()]);
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                    }
                }
            })
        });
        let reader = scope.spawn(move || {
            let mut seen = Seen::default();
            while !stop.load(Ordering::Relaxed) {
                ring.drain(|record| seen.see(record)).unwrap();
                std::thread::yield_now();
            }
            seen
        });
        std::thread::sleep(stress(Duration::from_millis(400)));
        drop(finish);
        // The end of a scope is not the end of its threads: a handler may still run in one.
        let _ = writers.map(|writer| writer.join().unwrap());
        seen = reader.join().unwrap();
    });
    ring.drain(|record| seen.see(record)).unwrap();
    let (published, refused) = (PUBLISHED.load(Ordering::SeqCst), REFUSED.load(Ordering::SeqCst));
    assert!(published > 100 && HANDLED.load(Ordering::Relaxed) > 10, "{published}");
    let stats = ring.stats();
    assert_conserved(stats, published, seen.records, refused);
    assert!(when_full == WhenFull::Overwrite || stats.lost == 0);
}

#[test]
fn a_storm_loses_nothing_uncounted_refusing() {
    if in_each_implementation("a_storm_loses_nothing_uncounted_refusing") {
        storm_on_one_ring(WhenFull::Refuse);
    }
}

#[test]
fn a_storm_loses_nothing_uncounted_overwriting() {
    if in_each_implementation("a_storm_loses_nothing_uncounted_overwriting") {
        storm_on_one_ring(WhenFull::Overwrite);
    }
}

/// Windows that are aborted without end: the fence that does it, without a pause.
#[test]
fn storms_of_fences_lose_nothing() {
    use unmerged::sys::membarrier::{Fence, fence, is_available, register};
    if !in_each_implementation("storms_of_fences_lose_nothing") {
        return;
    }
    if !is_available(Fence::Rseq) {
        return missing("membarrier-rseq", "no storm");
    }
    register(Fence::Rseq).unwrap();
    let (ring, stop) = (Ring::private(4096, WhenFull::Overwrite).unwrap(), AtomicBool::new(false));
    let mut seen = Seen::default();
    std::thread::scope(|scope| {
        let finish = SetAtEnd(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                fence(Fence::Rseq).unwrap();
            }
        });
        for n in 0..30_000 {
            publish(&ring, 1, n, n as usize % 380);
            if n % 1000 == 0 {
                ring.drain(|record| seen.see(record)).unwrap();
            }
        }
        drop(finish);
    });
    ring.drain(|record| seen.see(record)).unwrap();
    assert_conserved(ring.stats(), 30_000, seen.records, 0);
}

/// A signal at every instruction of a publish, whose handler publishes too: windows are aborted
/// without end, so the record goes to an overflow stripe, and there every step is interrupted.
#[test]
fn a_writer_that_is_stepped_gets_there() {
    if !in_each_implementation("a_writer_that_is_stepped_gets_there") {
        return;
    }
    for when_full in [WhenFull::Refuse, WhenFull::Overwrite] {
        HANDLED.store(0, Ordering::Relaxed);
        let (published, refused) = (&PUBLISHED, &REFUSED);
        let before = [published, refused].map(|counter| counter.load(Ordering::Relaxed));
        let ring: &Ring<'_> = Box::leak(Box::new(Ring::private(2048, when_full).unwrap()));
        STEPPED.store(ptr::from_ref(ring).cast_mut(), Ordering::Relaxed);
        // SAFETY: the handler publishes, which handlers may, and counts.
        unsafe {
            let mut action = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
            action.sa_sigaction = on_step as *const () as usize;
            assert_eq!(libc::sigaction(libc::SIGTRAP, &raw const action, ptr::null_mut()), 0);
        }
        let mut seen = Seen::default();
        // Thousands of steps each.
        let records = if std::env::var("UNMERGED_STRESS_SECONDS").is_ok() { 3 } else { 1 };
        for n in 0..records {
            let sample = Sample::new(1, n, 30 + 40 * n as usize);
            // SAFETY: the trap flag, until it is taken back below.
            unsafe { asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq") };
            let done = ring.publish(sample.bytes());
            // SAFETY: as above.
            unsafe { asm!("pushfq", "and qword ptr [rsp], -0x101", "popfq") };
            let counter = if done.is_ok() { published } else { refused };
            counter.fetch_add(1, Ordering::Relaxed);
            ring.drain(|record| seen.see(record)).unwrap();
        }
        assert!(HANDLED.load(Ordering::Relaxed) > 200);
        let all = [published, refused].map(|counter| counter.load(Ordering::Relaxed));
        assert_conserved(ring.stats(), all[0] - before[0], seen.records, all[1] - before[1]);
        if when_full == WhenFull::Overwrite {
            assert_eq!(refused.load(Ordering::Relaxed), before[1]);
        }
        // The stepped ones that were not refused or overwritten went this way.
        let stepped = seen.last.keys().filter(|(_, writer)| *writer == 1);
        assert!(stepped.into_iter().all(|(source, _)| matches!(source, Source::Overflow(_))));
    }
}

static STEPPED: AtomicPtr<Ring<'static>> = AtomicPtr::new(ptr::null_mut());

extern "C" fn on_step(_: libc::c_int) {
    // SAFETY: leaked by the test.
    if let Some(ring) = unsafe { STEPPED.load(Ordering::Relaxed).as_ref() } {
        let n = HANDLED.fetch_add(1, Ordering::Relaxed);
        publish(ring, UNORDERED, n, n as usize % 100);
    }
}

/// The file of a ring, inherited by a child.
const FD: &str = "UNMERGED_TEST_FD";

fn inherit(ring: &Ring<'_>) -> OwnedFd {
    // SAFETY: a fresh descriptor, owned by nobody else; not closed on exec.
    unsafe { OwnedFd::from_raw_fd(libc::dup(ring.file().unwrap().as_raw_fd())) }
}

fn inherited() -> Ring<'static> {
    let fd = std::env::var(FD).unwrap().parse().unwrap();
    // SAFETY: inherited from the parent for this very use.
    let file = unsafe { OwnedFd::from_raw_fd(fd) };
    Ring::from_file(&file).unwrap()
}

/// Processes of all three implementations write into one ring, and another one drains it.
#[test]
fn processes_of_all_implementations_share_a_ring() {
    const TEST: &str = "processes_of_all_implementations_share_a_ring";
    const RECORDS: u64 = 3_000;
    const WRITERS: [&str; 3] = ["gs", "rseq", "portable"];
    if let Some(role) = role() {
        let ring = inherited();
        let (mut random, cpus) = (Random(7), cpus());
        let writer = WRITERS.iter().position(|&name| name == role).unwrap() as u32;
        for n in 0..RECORDS {
            while ring
                .publish(Sample::new(writer, n, random.next() as usize % 380).bytes())
                .is_err()
            {
                std::thread::yield_now();
            }
            if n % 256 == 0 {
                pin(cpus[random.next() as usize % cpus.len()]);
            }
        }
        return;
    }
    let ring = Ring::shared(16 << 10, WhenFull::Refuse).unwrap();
    let file = inherit(&ring);
    let children: Vec<_> = WRITERS
        .into_iter()
        .map(|wanted| {
            let mut command = child(TEST, wanted);
            command.env("UNMERGED_PERCPU", wanted).env(FD, file.as_raw_fd().to_string());
            command.spawn().unwrap()
        })
        .collect();
    let (mut seen, all) = (Seen::default(), RECORDS * WRITERS.len() as u64);
    let begin = Instant::now();
    while seen.records < all {
        ring.drain(|record| seen.see(record)).unwrap();
        assert!(begin.elapsed() < Duration::from_secs(120), "{} records", seen.records);
    }
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let stats = ring.stats();
    assert_conserved(stats, all, seen.records, stats.refused);
}

/// Forks; the child does `work` without end.
fn forked(work: impl FnOnce()) -> libc::pid_t {
    // SAFETY: the child publishes or drains, and is killed or ends; glibc's fork lets it
    // allocate.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        // SAFETY: ends the child.
        unsafe { libc::_exit(if done.is_ok() { 0 } else { 101 }) };
    }
    assert!(child > 0);
    child
}

/// How the child ended.
fn reap(child: libc::pid_t) -> libc::c_int {
    let mut status = 0;
    // SAFETY: our own child.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    status
}

fn kill(child: libc::pid_t) {
    // SAFETY: our own child, not reaped yet.
    assert_eq!(unsafe { libc::kill(child, libc::SIGKILL) }, 0);
    let status = reap(child);
    assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL, "{status:#x}");
}

/// Words that forked children share with their parent.
fn shared_words(n: usize) -> &'static [AtomicU64] {
    // SAFETY: a new mapping, zeroed, of that many words, never unmapped.
    unsafe {
        let (read_write, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        let at = libc::mmap(ptr::null_mut(), n * 8, read_write, flags, -1, 0);
        assert_ne!(at, libc::MAP_FAILED);
        std::slice::from_raw_parts(at.cast(), n)
    }
}

fn sleep_a_little(random: &mut Random) {
    std::thread::sleep(Duration::from_micros(random.next() % 700));
}

/// Writers that are killed leave nothing half done, and what they had published counts.
#[test]
fn killed_writers_leave_whole_records() {
    if !in_each_implementation("killed_writers_leave_whole_records") {
        return;
    }
    for when_full in [WhenFull::Refuse, WhenFull::Overwrite] {
        let ring = Ring::shared(4096, when_full).unwrap();
        let [published, refused] = shared_words(2) else { unreachable!() };
        let (mut random, mut seen, mut kills) = (Random(5), Seen::default(), 0);
        let begin = Instant::now();
        while begin.elapsed() < stress(Duration::from_millis(250)) {
            kills += 1;
            let writer = forked(|| {
                for n in 0.. {
                    let sample = Sample::new(kills, n, n as usize * 7 % 380);
                    let counter =
                        if ring.publish(sample.bytes()).is_ok() { published } else { refused };
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            });
            sleep_a_little(&mut random);
            ring.drain(|record| assert!(Sample::check(record.bytes).0 <= kills)).unwrap();
            sleep_a_little(&mut random);
            kill(writer);
        }
        ring.drain(|_| seen.records += 1).unwrap();
        let stats = ring.stats();
        assert_eq!(stats.taken + stats.lost, stats.published, "{stats:?}");
        // The last one of each may be published and not counted by its writer.
        for (ours, theirs) in [(stats.published, published), (stats.refused, refused)] {
            let theirs = theirs.load(Ordering::Relaxed);
            assert!((theirs..=theirs + u64::from(kills)).contains(&ours), "{theirs} {stats:?}");
        }
        // Every CPU's stripe still takes records.
        let (before, cpus) = (ring.stats().published, cpus());
        for n in 0..100 {
            pin(cpus[n as usize % cpus.len()]);
            ring.publish(Sample::new(0, n, 100).bytes()).unwrap();
            ring.drain(|record| assert_eq!(Sample::check(record.bytes), (0, n))).unwrap();
        }
        assert_eq!(ring.stats().published, before + 100);
    }
}

/// Readers that are killed lose what they had taken and not handed out, and it is counted.
#[test]
fn killed_readers_lose_what_they_had_counted() {
    if !in_each_implementation("killed_readers_lose_what_they_had_counted") {
        return;
    }
    for when_full in [WhenFull::Refuse, WhenFull::Overwrite] {
        let ring = Ring::shared(4096, when_full).unwrap();
        let [delivered] = shared_words(1) else { unreachable!() };
        let (mut random, mut kills) = (Random(5), 0);
        let (mut published, mut refused) = (0, 0);
        let begin = Instant::now();
        while begin.elapsed() < stress(Duration::from_millis(300)) {
            kills += 1;
            let reader = forked(|| {
                loop {
                    ring.drain(|record| {
                        Sample::check(record.bytes);
                        delivered.fetch_add(1, Ordering::Relaxed);
                    })
                    .unwrap();
                }
            });
            let until = Instant::now() + Duration::from_micros(300 + random.next() % 700);
            while Instant::now() < until {
                match ring.publish(Sample::new(1, published, published as usize % 380).bytes()) {
                    Ok(()) => published += 1,
                    Err(_) => refused += 1,
                }
            }
            kill(reader);
        }
        ring.drain(|record| {
            Sample::check(record.bytes);
            delivered.fetch_add(1, Ordering::Relaxed);
        })
        .unwrap();
        let (stats, delivered) = (ring.stats(), delivered.load(Ordering::Relaxed));
        assert_conserved(stats, published, stats.taken, refused);
        assert!((delivered..=delivered + kills).contains(&stats.taken), "{delivered} {stats:?}");
    }
}

/// A private ring is copied by a fork, a shared one is not.
#[test]
fn fork_in_the_middle() {
    if !in_each_implementation("fork_in_the_middle") {
        return;
    }
    let private = Ring::private(4096, WhenFull::Refuse).unwrap();
    let shared = Ring::shared(4096, WhenFull::Refuse).unwrap();
    for n in 0..3 {
        publish(&private, 1, n, 20);
        publish(&shared, 1, n, 20);
    }
    let child = forked(|| {
        publish(&private, 1, 3, 20);
        publish(&shared, 2, 3, 20);
        let mut records = 0;
        private
            .drain(|record| {
                Sample::check(record.bytes);
                records += 1;
            })
            .unwrap();
        assert_eq!(records, 4);
    });
    assert_eq!(reap(child), 0);
    let mut seen = Seen::default();
    private.drain(|record| seen.see(record)).unwrap();
    assert_conserved(private.stats(), 3, seen.records, 0);
    let mut seen = Seen::default();
    shared.drain(|record| seen.see(record)).unwrap();
    assert_conserved(shared.stats(), 4, seen.records, 0);
}

/// Children forked in the middle of other threads' publications are not left waiting.
#[test]
fn fork_beside_writers() {
    if !in_each_implementation("fork_beside_writers") {
        return;
    }
    let (ring, stop) = (Ring::private(4096, WhenFull::Overwrite).unwrap(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let finish = SetAtEnd(&stop);
        for me in 0..4 {
            let (ring, stop) = (&ring, &stop);
            scope.spawn(move || {
                for n in 0.. {
                    publish(ring, me, n, 200);
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
        }
        for _ in 0..20 {
            let child = forked(|| {
                for n in 0..200 {
                    ring.publish(Sample::new(9, n, 300).bytes()).unwrap();
                }
                let mut mine = 0;
                ring.drain(|record| mine += u32::from(Sample::check(record.bytes).0 == 9)).unwrap();
                assert!(mine > 0);
            });
            assert_eq!(reap(child), 0);
        }
        drop(finish);
    });
}

/// Somebody writes nonsense over everything, while others publish and drain: records are
/// garbage, calls fail, and nothing else.
#[test]
fn nonsense_is_survived() {
    if !in_each_implementation("nonsense_is_survived") {
        return;
    }
    for when_full in [WhenFull::Refuse, WhenFull::Overwrite] {
        let ring = Ring::shared(1024, when_full).unwrap();
        ring.publish(b"open").unwrap();
        let size = Ring::size(1024).unwrap();
        let memory = map(&ring.file().unwrap(), size).cast::<AtomicU64>();
        // SAFETY: mapped for good, zeroed or written by atomics.
        let words = unsafe { NonNull::slice_from_raw_parts(memory, size / 8).as_ref() };
        let stop = AtomicBool::new(false);
        let (mut corrupt, mut delivered) = (0, 0);
        std::thread::scope(|scope| {
            let finish = SetAtEnd(&stop);
            scope.spawn(|| {
                let mut random = Random(11);
                while !stop.load(Ordering::Relaxed) {
                    let value = match random.next() % 6 {
                        0 => random.next(),
                        1 => u64::MAX,
                        2 => 0,
                        3 => random.next() % 200,
                        4 => ((random.next() % 64) << 32) | (random.next() % 256),
                        _ => 1 << (random.next() % 64),
                    };
                    // All words, but the control words of the stripes more often.
                    let anywhere = random.next() as usize % words.len();
                    let at = match random.next() % 3 {
                        0 => anywhere,
                        1 => anywhere / 512 * 512 + (anywhere % 24),
                        _ => anywhere / 512 * 512 + 48 + (anywhere % 128),
                    };
                    words[at.min(words.len() - 1)].store(value, Ordering::Relaxed);
                    if random.next().is_multiple_of(8) {
                        std::thread::yield_now();
                    }
                }
            });
            for me in 0..2 {
                let (ring, stop) = (&ring, &stop);
                scope.spawn(move || {
                    let mut random = Random(me + 1);
                    while !stop.load(Ordering::Relaxed) {
                        let _ = ring.publish(&[7; 500][..random.next() as usize % 500]);
                    }
                });
            }
            let begin = Instant::now();
            while begin.elapsed() < stress(Duration::from_millis(200)) {
                match ring.drain(|record| delivered += u64::from(record.bytes.len() <= 504)) {
                    Ok(_) => {}
                    Err(error) => {
                        assert!(error.is_corrupt(), "{error}");
                        assert_eq!(error.raw_os_error(), libc::EBADMSG);
                        corrupt += 1;
                    }
                }
                let _ = ring.stats();
                ring.resident().unwrap();
            }
            drop(finish);
        });
        assert!(corrupt + delivered > 0, "{corrupt} {delivered}");
    }
}

/// Nonsense that stays: reported once, skipped, and the stripe works again.
#[test]
fn a_corrupt_source_is_skipped_and_goes_on() {
    if !in_each_implementation("a_corrupt_source_is_skipped_and_goes_on") {
        return;
    }
    pin(cpus()[0]);
    let ring = Ring::shared(1024, WhenFull::Refuse).unwrap();
    let size = Ring::size(1024).unwrap();
    let memory = map(&ring.file().unwrap(), size).cast::<AtomicU64>();
    // SAFETY: mapped for good, zeroed or written by atomics.
    let words = unsafe { NonNull::slice_from_raw_parts(memory, size / 8).as_ref() };
    for len in [505, u64::MAX, u64::MAX - 7, 1 << 32] {
        for n in 0..3 {
            ring.publish(Sample::new(1, n, 8).bytes()).unwrap();
        }
        // The lengths, wherever they are.
        let lengths = words.iter().skip(512).filter(|word| word.load(Ordering::Relaxed) == 20);
        lengths.for_each(|word| word.store(len, Ordering::Relaxed));
        let error = ring.drain(|record| panic!("{record:?}")).unwrap_err();
        assert_eq!(error.raw_os_error(), libc::EBADMSG);
        assert!(error.to_string().contains("3 records"), "{error}");
        ring.publish(Sample::new(1, 3, 50).bytes()).unwrap();
        assert_eq!(
            ring.drain(|record| assert_eq!(Sample::check(record.bytes), (1, 3))).unwrap(),
            1
        );
    }
    assert_conserved(ring.stats(), 16, 4, 0);
}

#[test]
fn bad_arguments_are_refused_with_the_numbers() {
    for capacity in [0, 1, 128, 257, 4095, 3 << 20, 1 << 32, 1 << 63, usize::MAX] {
        let text = capacity.to_string();
        for error in [
            Ring::private(capacity, WhenFull::Refuse).unwrap_err(),
            Ring::shared(capacity, WhenFull::Overwrite).unwrap_err(),
            Ring::size(capacity).unwrap_err(),
        ] {
            assert!(error.is_invalid() && error.to_string().contains(&text), "{error}");
        }
    }
    let size = Ring::size(4096).unwrap();
    let ring = Ring::shared(4096, WhenFull::Overwrite).unwrap();
    let len = size + 4096;
    // SAFETY: a fresh file of our own.
    let file = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"test".as_ptr(), 0)) };
    // SAFETY: our own file.
    assert_eq!(unsafe { libc::ftruncate(file.as_raw_fd(), len as i64) }, 0);
    let memory = map(&file, len);
    // SAFETY: mapped for good, in all of what follows.
    let create = |at, len| unsafe { Ring::create(at, len, 4096, WhenFull::Refuse) }.map(drop);
    // SAFETY: as above.
    let open = |at, len| unsafe { Ring::open(at, len) }.map(drop);
    // SAFETY: inside the mapping.
    let odd = unsafe { memory.add(8) };
    for (at, len) in [(odd, size), (memory, size - 1), (memory, 0)] {
        let error = create(at, len).unwrap_err();
        assert!(error.is_invalid() && error.to_string().contains(&size.to_string()), "{error}");
    }
    let error = open(memory, size).unwrap_err();
    assert!(error.is_corrupt() && error.to_string().contains("found magic 0x0"), "{error}");
    create(memory, size).unwrap();
    open(memory, size).unwrap();
    assert!(create(memory, size).unwrap_err().is_exists());
    assert!(open(memory, size - 1).unwrap_err().is_invalid());
    assert!(open(memory, 100).unwrap_err().is_invalid());
    // Another capacity, mode, number of CPUs, version; garbage.
    // SAFETY: inside the mapping, aligned; the test plays a peer of another layout.
    let word = unsafe { memory.cast::<AtomicU64>().as_ref() };
    let own = word.load(Ordering::Relaxed);
    for other in [own + 1, own | 0xff << 16, own | 2 << 24, own + (1 << 32), 1, u64::MAX] {
        word.store(other, Ordering::Relaxed);
        let error = open(memory, size).unwrap_err();
        assert_eq!(error.raw_os_error(), libc::EPROTO, "{error}");
    }
    word.store(own + (8 << 16), Ordering::Relaxed);
    assert!(open(memory, size).unwrap_err().is_invalid(), "a larger ring than there is memory");
    // Files: not sealed, not a memory file, another kind, too small.
    assert_eq!(Ring::from_file(&file).unwrap_err().raw_os_error(), libc::EPERM);
    assert!(Ring::from_file(std::fs::File::open("/proc/self/exe").unwrap()).is_err());
    // SAFETY: a fresh file of our own.
    let small = unsafe {
        let flags = libc::MFD_ALLOW_SEALING;
        OwnedFd::from_raw_fd(libc::memfd_create(c"test".as_ptr(), flags))
    };
    // SAFETY: our own file.
    unsafe {
        assert_eq!(libc::ftruncate(small.as_raw_fd(), 100), 0);
        assert_eq!(libc::fcntl(small.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK), 0);
    }
    assert!(Ring::from_file(&small).unwrap_err().is_invalid());
    // The ring's own file cannot be cut off.
    // SAFETY: our own file; the call is to fail.
    let cut = unsafe { libc::ftruncate(ring.file().unwrap().as_raw_fd(), 0) };
    assert_eq!(cut, -1);
    let other = Ring::from_file(ring.file().unwrap()).unwrap();
    assert_eq!((other.capacity(), other.when_full()), (4096, WhenFull::Overwrite));
    other.publish(b"seen by both").unwrap();
    assert_eq!(ring.drain(|record| assert_eq!(record.bytes, b"seen by both")).unwrap(), 1);
}

/// Memory of the caller's, mapped twice, as two processes would.
#[test]
fn a_ring_in_memory_of_the_callers() {
    if !in_each_implementation("a_ring_in_memory_of_the_callers") {
        return;
    }
    let size = Ring::size(1024).unwrap();
    // SAFETY: a fresh file of our own.
    let file = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"test".as_ptr(), 0)) };
    // SAFETY: our own file.
    assert_eq!(unsafe { libc::ftruncate(file.as_raw_fd(), size as i64) }, 0);
    let (here, there) = (map(&file, size), map(&file, size));
    // SAFETY: mapped for good, zeroed, reached by rings alone.
    let here = unsafe { Ring::create(here, size, 1024, WhenFull::Overwrite) }.unwrap();
    // SAFETY: as above.
    let there = unsafe { Ring::open(there, size) }.unwrap();
    assert_eq!((there.capacity(), there.when_full()), (1024, WhenFull::Overwrite));
    assert!(there.file().is_none());
    let mut seen = Seen::default();
    for n in 0..500 {
        publish(if n % 2 == 0 { &here } else { &there }, 1, n, n as usize % 380);
        if n % 7 == 0 {
            (if n % 3 == 0 { &here } else { &there }).drain(|record| seen.see(record)).unwrap();
        }
    }
    here.drain(|record| seen.see(record)).unwrap();
    assert_conserved(here.stats(), 500, seen.records, 0);
    assert_eq!(here.stats(), there.stats());
}

/// libc without rseq: each thread registers at its first record.
#[test]
fn own_registration() {
    const TEST: &str = "own_registration";
    if role().is_none() {
        let mut command = child(TEST, "own");
        command.env("GLIBC_TUNABLES", "glibc.pthread.rseq=0");
        return succeed(command);
    }
    let ring = Ring::private(64 << 10, WhenFull::Refuse).unwrap();
    std::thread::scope(|scope| {
        for me in 0..8 {
            let ring = &ring;
            scope.spawn(move || (0..50).for_each(|n| publish(ring, me, n, 30)));
        }
    });
    let mut seen = Seen::default();
    ring.drain(|record| seen.see(record)).unwrap();
    assert_conserved(ring.stats(), 400, seen.records, 0);
    let windows = seen.sequence.keys().any(|source| matches!(source, Source::Cpu(_)));
    assert_eq!(windows, implementation() != Implementation::Portable);
}

#[test]
fn without_address_space_there_is_an_error() {
    const TEST: &str = "without_address_space_there_is_an_error";
    if role().is_none() {
        return succeed(child(TEST, "limited"));
    }
    let limit = libc::rlimit { rlim_cur: 4 << 30, rlim_max: 4 << 30 };
    // SAFETY: a limit of this process.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) }, 0);
    for error in [
        Ring::private(1 << 31, WhenFull::Refuse).unwrap_err(),
        Ring::shared(1 << 31, WhenFull::Refuse).unwrap_err(),
    ] {
        assert!(error.is_exhausted(), "{error}");
        assert_eq!(error.raw_os_error(), libc::ENOMEM);
    }
    Ring::private(4096, WhenFull::Refuse).unwrap().publish(b"still works").unwrap();
}

/// A large ring costs what is written.
#[test]
fn memory_is_committed_where_it_is_written() {
    for ring in [
        Ring::private(1 << 30, WhenFull::Refuse).unwrap(),
        Ring::shared(1 << 30, WhenFull::Refuse).unwrap(),
    ] {
        assert_eq!(ring.stats(), RingStats::default());
        assert_eq!(ring.drain(|_| ()).unwrap(), 0);
        assert_eq!(ring.resident().unwrap(), 4096);
        for _ in 0..100 {
            ring.publish(&[1; 400]).unwrap();
        }
        let resident = ring.resident().unwrap();
        assert!((8192..=40 * 4096).contains(&resident), "{resident}");
    }
}
