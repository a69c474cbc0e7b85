//! Per-CPU memory for user space: counters, stacks, pools, rings and locks on every CPU, without a
//! `lock` prefix.
//!
//! ```
//! use unmerged::percpu;
//!
//! static HITS: percpu::Counter = percpu::Counter::new();
//!
//! HITS.add(1);
//! assert_eq!(HITS.sum(), 1);
//! for (cpu, hits) in HITS.per_cpu() {
//!     println!("CPU {cpu}: {hits}");
//! }
//! ```
//!
//! | you have | you want |
//! |---|---|
//! | sharded or thread-local counters | [`Counter`]; many of them by number: [`CounterArray`] |
//! | latencies, sizes | [`Histogram`] |
//! | a thread-local cache of objects | [`Pool`]; without bounds, or with nodes of your own: [`Stack`] |
//! | a log, a trace, a flight recorder, also for another process | [`Ring`] |
//! | state per `sched_getcpu` behind a mutex | [`Lock`] |
//! | an id generator, flags, a state word per CPU | [`Word`] |
//! | your own layout in `%gs` | [`gs`], the interface that was proposed in 2014 |
//! | a structure of your own | [`raw`]: librseq's menu, and a macro for your own windows |
//! | other strides, concurrency ids, NUMA placement, memory shared between processes | [`AreaBuilder`] |
//!
//! Every one of them has a word, or more, on each CPU: its *stripe*. An update is one rseq window
//! (`rseq(2)`, since Linux 4.18) on the stripe of the CPU that the thread runs on: a few plain
//! instructions, undone by the kernel if the thread is preempted among them. It is exact under
//! migration and in signal handlers. A read adds the stripes up; it is no snapshot, but misses
//! nothing that happened before it.
//!
//! Three implementations give the same results. The best that works is chosen at the
//! first use in the process; `UNMERGED_PERCPU` forces one ([`implementation()`] tells).
//!
//! | | how the word is reached | needs |
//! |---|---|---|
//! | `gs` | `%gs:offset`; the GS base of the thread points at the stripe | rseq, FSGSBASE (Linux 5.9), `%gs` not used by somebody else |
//! | `rseq` | `base + cpu * stride` | rseq |
//! | `portable` | an atomic operation on a stripe of its own | nothing |
//!
//! Where rseq has no users' tools (valgrind, rr, some sandboxes), `UNMERGED_PERCPU=portable` does
//! without it. `UNMERGED_PERCPU_FENCE=affinity` forces the second of the two ways in which other CPUs
//! are [stopped](#other-cpus).
//!
//! # Rules that hold everywhere
//!
//! - A word that windows update is updated by nothing else. Whoever cannot run a window (a
//!   kernel without rseq, a thread that is not registered, a window that was aborted
//!   16 times in a row, a CPU that is stopped) works on *overflow* stripes with atomics; sums and drains
//!   include both. So no operation waits for another CPU, and none is retried without end.
//! - Stripes are 4096 bytes apart unless you ask for more, one for each possible CPU id, reserved as
//!   address space and committed when first touched, by the CPU that touches them: at its NUMA
//!   node. Ids that never run cost no memory.
//! - `%gs` is claimed, not taken. If its base is not 0 at the first use (Wine, Wasm
//!   engines, DynamoRIO), the implementation is `rseq`. If another library changes the
//!   base of a thread later, that thread's updates would go astray: a debug build checks
//!   the base on every operation and panics.
//! - [`stats()`] counts what was not the fast way: aborts, restripes, fallbacks, fences.
//!
//! # Other CPUs
//!
//! Reading another CPU's stripe needs nothing. To *take* what is there ([`Stack::drain`], [`Pool::drain`],
//! [`Word::with_exclusive`], [`Lock::for_each`]) the CPU is stopped for a moment: its stop word is set, a
//! fence aborts every window that had not seen it (`MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ`, since
//! Linux 5.10; else this thread runs on that CPU once), the stripe is ours, and the word is cleared.
//! Threads on that CPU go on meanwhile, on the overflow stripe. The fence reaches one process, so between
//! processes there is none of this: counters and rings need it not.
//!
//! # Guarantees
//!
//! Each row is tested; `tests/percpu-cases.md` has the whole list of what can go wrong.
//!
//! | event | what holds | test |
//! |---|---|---|
//! | signal handler | may use everything but drains, [`Lock::lock`] and what allocates, also on the very object that it interrupted, once object and process have been used outside of a handler | `percpu::signal_handlers_count_too`, `stack_pool::nodes_are_conserved`, `ring::a_storm_loses_nothing_uncounted_refusing`, `lock_array::handlers_try_the_lock_that_they_interrupt` |
//! | thread exit | nothing to do; what was counted or put stays; destructors of thread-locals may use everything | `percpu_life::destructors_of_a_thread_count` |
//! | fork | private memory of the child starts as the parent's was and goes its own way; shared memory is the same in both. What the parent's other threads were moving at that moment is lost in the child, locks that they held are taken over with a new value, and nothing hangs | `percpu_life::fork_while_others_work`, `percpu::fork_during_the_first_use`, `lock_array::fork_while_others_hold` |
//! | vfork, `posix_spawn` | the child must not use any of this before exec; the parent and its other threads are not disturbed | `percpu_life::exec_starts_anew` |
//! | exec | private memory is gone, like all memory; shared memory stays with the others | `percpu_life::exec_starts_anew` |
//! | fibers, coroutines | every operation looks at where it is; a fiber may go on in another thread between two of them | `percpu_life::fibers_change_threads` |
//! | dlclose | a shared object whose windows have run stays loaded, because the kernel may still look at their descriptors | `ci/elf.sh` |
//! | a CPU goes offline | its stripes keep what they have; sums and drains include them | `ci/kernels.sh 6.12/hard` |
//! | a debugger steps, a timer fires every microsecond | operations are done all the same, on an overflow stripe | `percpu_life::a_thread_that_is_stepped_makes_progress` |
//! | no memory | counters count in themselves, stacks keep a list in themselves; what cannot do without says ENOMEM | `percpu_life::without_memory` |
//! | SIGKILL of a process that shares an area or ring | what it had done is there, what it was doing is not | `percpu::processes_share_an_area`, `ring::killed_writers_leave_whole_records` |

mod area;
mod area_builder;
mod asymmetric;
mod block;
mod cell;
mod counter;
mod counter_array;
mod depot;
mod door;
mod geometry;
pub mod gs;
mod histogram;
mod implementation;
mod limits;
mod list;
mod lock;
mod locked;
mod mapped_area;
mod node;
mod pool;
mod pooled;
pub mod raw;
mod ring;
mod runs;
mod site;
mod snapshot;
mod stack;
mod stats;
mod stop;
mod stripes;
mod taken;
mod turn;
mod word;

pub use area::Area;
pub use area_builder::AreaBuilder;
pub use cell::Cell;
pub use counter::Counter;
pub use counter_array::{CounterArray, Element};
pub use geometry::Index;
pub use histogram::Histogram;
pub use implementation::{Implementation, implementation};
pub use limits::PoolLimits;
pub use lock::Lock;
pub use locked::Guard;
pub use mapped_area::MappedArea;
pub use node::Node;
pub use pool::Pool;
pub use pooled::Pooled;
pub use ring::{Reader, Record, Reservation, Ring, RingStats, Source, WhenFull};
pub use snapshot::{Bucket, HistogramSnapshot};
pub use stack::Stack;
pub use stats::{Stats, stats};
pub use word::{Integer, On, Stripe, Word};

/// Bytes from one stripe to the next.
pub const STRIDE: usize = 4096;
