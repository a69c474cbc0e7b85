//! The percpu rows.

use crate::harness::{Options, Row, Target, each, in_turn, pinned, together};
use crossbeam_utils::CachePadded;
use std::arch::asm;
use std::array;
use std::cell::Cell;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;
use unmerged::arch;
use unmerged::percpu::{AreaBuilder, Counter, Implementation, STRIDE, Word, implementation};
use unmerged::sys::features::features;
use unmerged::sys::map::{Access, Mapping};
use unmerged::sys::rseq;

static HITS: Counter = Counter::new();

pub(crate) fn rows(options: &Options) {
    pinned(0, || {
        counter(options);
        counter_64(options);
        fetch_add(options);
        sum(options);
    });
    counter_threads(options);
}

/// librseq's shape: a handle per counter, the CPU from `cpu_id_start`, the address from both,
/// one `add` to memory from a register. As there, handle and area offset are loaded.
struct Indexed {
    /// Address of each counter's word on stripe 0.
    handles: [AtomicUsize; 64],
}

impl Indexed {
    fn new() -> Option<Self> {
        if !rseq::ensure_registered() {
            return None;
        }
        let len = features().cpus.end() as usize * STRIDE;
        let base = Mapping::anonymous(len, Access::Write).ok()?.leak().as_ptr();
        let base = base.expose_provenance();
        Some(Self { handles: array::from_fn(|cell| AtomicUsize::new(base + cell * 8)) })
    }

    /// The instructions of its inlined `rseq_load_add_store__ptr`, called until it succeeds.
    #[inline(always)]
    fn add(handle: &AtomicUsize, n: u64) {
        // SAFETY: a window as rseq(2) asks for, on words that nothing else writes.
        unsafe {
            asm!(
                ".pushsection __rseq_cs, \"aw\", @progbits",
                ".balign 32",
                "9:",
                ".long 0, 0",
                ".quad 2f, 3f - 2f, 4f",
                ".popsection",
                "6:",
                "mov {cpu}, qword ptr fs:[0]",
                "mov {cpu:e}, dword ptr [{cpu} + {area}]", // cpu_id_start
                "movsxd {word}, {cpu:e}",
                "shl {word}, {shift}",
                "add {word}, {handle}",
                "lea {s}, [rip + 9b]",
                "mov qword ptr fs:[{area} + 8], {s}",
                "2:",
                "cmp dword ptr fs:[{area} + 4], {cpu:e}",
                "jne 4f",
                "add qword ptr [{word}], {n}",
                "3:",
                ".pushsection __rseq_failure, \"ax\", @progbits",
                ".byte 0x0f, 0xb9, 0x3d",
                ".long 0x53053053",
                "4:",
                "jmp 6b",
                ".popsection",
                area = in(reg) rseq::area(),
                handle = in(reg) handle.load(Ordering::Relaxed),
                shift = const STRIDE.ilog2(),
                n = in(reg) n,
                cpu = out(reg) _,
                word = out(reg) _,
                s = out(reg) _,
                options(nostack)
            );
        }
    }
}

/// `inc %gs:offset`, without any protection: what the kernel patch of 2014 would have given.
/// The word is the last of the stripe, which no counter of this program has.
fn bare_gs() {
    // SAFETY: the thread is striped, so %gs points at a stripe of 4096 bytes.
    unsafe { asm!("inc qword ptr gs:[{}]", in(reg) STRIDE - 8, options(nostack)) };
}

fn counter(options: &Options) {
    let word = CachePadded::new(AtomicU64::new(0));
    let lock_add = each(|| {
        word.fetch_add(1, Ordering::Relaxed);
    });
    let mut row = Row::new("percpu/counter", each(|| HITS.add(1)));
    row = row.peer("lock-add", Target::Faster(6.0), lock_add);
    HITS.add(1);
    if implementation() == Implementation::Gs {
        row = row.peer("bare-gs", Target::Within(3.0), each(bare_gs));
        // The window alone: with what it needs in registers, and loading that as a counter does.
        // SAFETY of both: the thread is striped; the last words of the stripe are no counter's.
        let area = rseq::area();
        let alone = each(move || {
            // SAFETY: as above.
            let _ = unsafe { arch::gs_load_add_store_u64(area, STRIDE - 16, 1) };
        });
        let loading = each(|| {
            static OFFSET: AtomicUsize = AtomicUsize::new(STRIDE - 24);
            let offset = OFFSET.load(Ordering::Relaxed);
            // SAFETY: as above.
            let _ = unsafe { arch::gs_load_add_store_u64(rseq::area(), offset, 1) };
        });
        row = row.peer("bare-window", Target::None, alone);
        row = row.peer("bare-window-loaded", Target::Within(1.1), loading);
    }
    if let Some(indexed) = Indexed::new() {
        let one = black_box(1); // in a register
        let arm = each(move || Indexed::add(&indexed.handles[0], one));
        row = row.peer("cpu-indexed", Target::Faster(2.3), arm);
    }
    thread_local!(static OWN: Cell<u64> = const { Cell::new(0) });
    let own = each(|| OWN.with(|own| own.set(black_box(own.get()) + 1)));
    let shards = shards(features().cpus.end());
    row.peer("thread-local", Target::None, own)
        .peer("sharded-getcpu", Target::None, each(|| by_getcpu(&shards)))
        .peer("sharded-thread", Target::None, each(|| by_thread(&shards)))
        .run(options);
}

/// The window that brings a value out, through the public API.
fn fetch_add(options: &Options) {
    static WORD: Word<u64> = Word::new();
    let word = CachePadded::new(AtomicU64::new(0));
    let lock_xadd = each(|| {
        black_box(word.fetch_add(1, Ordering::Relaxed));
    });
    let ours = each(|| {
        black_box(WORD.fetch_add(1).map_or(0, |on| on.value));
    });
    Row::new("percpu/fetch-add", ours).peer("lock-xadd", Target::None, lock_xadd).run(options);
}

fn counter_64(options: &Options) {
    static COUNTERS: [Counter; 64] = [const { Counter::new() }; 64];
    let ours = in_turn(&COUNTERS, |counter| counter.add(1));
    let mut row = Row::new("percpu/counter-64", ours);
    let indexed = Indexed::new();
    if let Some(indexed) = &indexed {
        let one = black_box(1);
        let arm = in_turn(&indexed.handles, move |handle| Indexed::add(handle, one));
        row = row.peer("cpu-indexed", Target::Faster(1.15), arm);
    }
    row.run(options);
}

/// What people use instead: relaxed atomics, one for each CPU, a pair of cache lines apart.
fn by_getcpu(shards: &[CachePadded<AtomicU64>]) {
    // SAFETY: sched_getcpu takes nothing.
    let cpu = unsafe { libc::sched_getcpu() } as usize;
    shards[cpu % shards.len()].fetch_add(1, Ordering::Relaxed);
}

/// The same, one for each thread.
fn by_thread(shards: &[CachePadded<AtomicU64>]) {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static MINE: usize = NEXT.fetch_add(1, Ordering::Relaxed));
    shards[MINE.with(|mine| *mine) % shards.len()].fetch_add(1, Ordering::Relaxed);
}

fn shards(n: u32) -> Vec<CachePadded<AtomicU64>> {
    (0..n).map(|_| CachePadded::new(AtomicU64::new(0))).collect()
}

/// Two threads on two CPUs, then more threads than there are.
fn counter_threads(options: &Options) {
    let many = |n| (0..n).for_each(|_| HITS.add(1));
    let shared = AtomicU64::new(0);
    let atomics = |n| {
        for _ in 0..n {
            shared.fetch_add(1, Ordering::Relaxed);
        }
    };
    let (of_cpus, of_threads) = (shards(features().cpus.end()), shards(64));
    let getcpu = |n| (0..n).for_each(|_| by_getcpu(&of_cpus));
    let thread = |n| (0..n).for_each(|_| by_thread(&of_threads));
    let one = |n| {
        let mut took = 0.0;
        pinned(0, || {
            many(1000);
            let begin = Instant::now();
            many(n);
            took = begin.elapsed().as_nanos() as f64;
        });
        took
    };
    Row::new("percpu/counter-2t", Box::new(|n| together(2, n, &many)))
        .peer("shared-atomic", Target::Faster(25.0), Box::new(|n| together(2, n, &atomics)))
        .peer("one-thread", Target::Faster(1.8), Box::new(one))
        .peer("sharded-getcpu", Target::None, Box::new(|n| together(2, n, &getcpu)))
        .peer("sharded-thread", Target::None, Box::new(|n| together(2, n, &thread)))
        .run(options);
    for (name, threads) in [("percpu/counter-4t", 4), ("percpu/counter-8t", 8)] {
        Row::new(name, Box::new(move |n| together(threads, n, &many)))
            .peer("shared-atomic", Target::None, Box::new(|n| together(threads, n, &atomics)))
            .peer("sharded-getcpu", Target::None, Box::new(|n| together(threads, n, &getcpu)))
            .peer("sharded-thread", Target::None, Box::new(|n| together(threads, n, &thread)))
            .run(options);
    }
}

/// A read of all stripes: those of this machine, and those of one with 512 CPUs, every one of
/// which has counted.
fn sum(options: &Options) {
    let few = Counter::new();
    few.add(1);
    let cpus = features().cpus.end();
    let mapped = AreaBuilder::new().cpu_ids(512).private().expect("address space for 1024 pages");
    let cell = mapped.area().alloc(8).expect("an empty area has room");
    for cpu in 0..512 {
        let word = cell.on_cpu(cpu).expect("there are 512 stripes").cast::<u64>();
        // SAFETY: a word of a stripe whose CPU is not there, or runs no window now.
        unsafe { word.write_volatile(1) };
    }
    let many = cell.counter().expect("the cell has 8 bytes");
    let of = |counter: &Counter<'_>| {
        black_box(counter.sum());
    };
    Row::new("percpu/sum-2", each(|| of(&few))).limit(5.0 * f64::from(cpus)).run(options);
    let ours = each(|| of(&many));
    Row::new("percpu/sum-512", ours)
        .limit(5.0 * 512.0)
        .peer("sum-2", Target::None, each(|| of(&few)))
        .run(options);
}
