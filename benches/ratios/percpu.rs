//! The percpu rows.

use crate::harness::{Options, Row, Target, each, numbered, pin, pinned};
use crossbeam_utils::CachePadded;
use std::arch::asm;
use std::array;
use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use unmerged::percpu::{Counter, Implementation, STRIDE, implementation};
use unmerged::sys::{features::features, rseq};

static HITS: Counter = Counter::new();

pub(crate) fn rows(options: &Options) {
    pinned(0, || {
        counter(options);
        counter_64(options);
    });
    counter_2t(options);
}

/// librseq's shape: the CPU from `cpu_id_start`, the address from the CPU, one `add` to
/// memory from a register.
struct Indexed {
    area: isize,
    stripes: Vec<CachePadded<[u64; STRIDE / 8]>>,
}

impl Indexed {
    fn new() -> Option<Self> {
        if !rseq::ensure_registered() {
            return None;
        }
        let stripe = || CachePadded::new([0; STRIDE / 8]);
        let stripes = (0..features().cpus.end()).map(|_| stripe()).collect();
        Some(Self { area: rseq::area(), stripes })
    }

    #[inline(always)]
    fn add(&self, cell: usize, n: u64) {
        let base = self.stripes.as_ptr().cast::<u64>();
        loop {
            let mut done: u64;
            // SAFETY: a window as rseq(2) asks for, on words that nothing else writes.
            unsafe {
                asm!(
                    ".pushsection __rseq_cs, \"aw\", @progbits",
                    ".balign 32",
                    "9:",
                    ".long 0, 0",
                    ".quad 2f, 3f - 2f, 4f",
                    ".popsection",
                    "mov {cpu:e}, dword ptr fs:[{area}]",
                    "mov {word}, {cpu}",
                    "imul {word}, {word}, {stride}",
                    "add {word}, {base}",
                    "lea {done}, [rip + 9b]",
                    "mov qword ptr fs:[{area} + 8], {done}",
                    "2:",
                    "cmp {cpu:e}, dword ptr fs:[{area} + 4]",
                    "jne 4f",
                    "add qword ptr [{word}], {n}",
                    "3:",
                    "mov {done:e}, 1",
                    "5:",
                    ".pushsection __rseq_failure, \"ax\", @progbits",
                    ".byte 0x0f, 0xb9, 0x3d",
                    ".long 0x53053053",
                    "4:",
                    "xor {done:e}, {done:e}",
                    "jmp 5b",
                    ".popsection",
                    area = in(reg) self.area,
                    base = in(reg) base.wrapping_add(cell),
                    stride = const size_of::<CachePadded<[u64; STRIDE / 8]>>(),
                    n = in(reg) n,
                    cpu = out(reg) _,
                    word = out(reg) _,
                    done = out(reg) done,
                    options(nostack)
                );
            }
            if done != 0 {
                return;
            }
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
        let arm = each(move || indexed.add(0, one));
        row = row.peer("cpu-indexed", Target::Faster(2.3), arm);
    }
    row.run(options);
}

fn counter_64(options: &Options) {
    static COUNTERS: [Counter; 64] = [const { Counter::new() }; 64];
    let ours = numbered(|i| COUNTERS[i % 64].add(1));
    let mut row = Row::new("percpu/counter-64", ours);
    if let Some(indexed) = Indexed::new() {
        let one = black_box(1);
        let arm = numbered(move |i| indexed.add(i % 64, one));
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
