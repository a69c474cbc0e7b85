//! The percpu rows.

use crate::harness::{Options, Row, Target, each, in_turn, pin, pinned};
use crossbeam_utils::CachePadded;
use std::arch::asm;
use std::array;
use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;
use unmerged::percpu::{Counter, Implementation, STRIDE, implementation};
use unmerged::sys::features::features;
use unmerged::sys::map::{Access, Mapping};
use unmerged::sys::rseq;

static HITS: Counter = Counter::new();

pub(crate) fn rows(options: &Options) {
    pinned(0, || {
        counter(options);
        counter_64(options);
    });
    counter_2t(options);
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
    }
    if let Some(indexed) = Indexed::new() {
        let one = black_box(1); // in a register
        let arm = each(move || Indexed::add(&indexed.handles[0], one));
        row = row.peer("cpu-indexed", Target::Faster(2.3), arm);
    }
    row.run(options);
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

/// Two threads on two CPUs; the figure is the time of one operation of both, so half of it
/// is a perfect speed-up over one thread.
fn counter_2t(options: &Options) {
    let on_both = |op: &(dyn Fn(u64) + Sync), n: u64| -> f64 {
        let (start, spans) = (Barrier::new(2), [const { AtomicU64::new(0) }; 2]);
        std::thread::scope(|scope| {
            let (start, spans): (_, [_; 2]) = (&start, array::from_fn(|me| &spans[me]));
            for (me, span) in spans.into_iter().enumerate() {
                scope.spawn(move || {
                    pin(me);
                    op(1000);
                    start.wait();
                    let begin = Instant::now();
                    op(n);
                    span.store(begin.elapsed().as_nanos() as u64, Ordering::Relaxed);
                });
            }
        });
        // The slower of the two decides when 2n operations are done.
        spans.iter().map(|span| span.load(Ordering::Relaxed)).max().unwrap_or(0) as f64 / 2.0
    };
    let many = |n| (0..n).for_each(|_| HITS.add(1));
    let shared = AtomicU64::new(0);
    let atomics = |n| {
        for _ in 0..n {
            shared.fetch_add(1, Ordering::Relaxed);
        }
    };
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
    Row::new("percpu/counter-2t", Box::new(|n| on_both(&many, n)))
        .peer("shared-atomic", Target::Faster(25.0), Box::new(|n| on_both(&atomics, n)))
        .peer("one-thread", Target::Faster(1.8), Box::new(one))
        .run(options);
}
