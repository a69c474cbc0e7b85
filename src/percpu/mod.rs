//! Per-CPU memory for user space: counters without a `lock` prefix.
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
//! Every counter has a word on each CPU, its *stripe*. An update is one rseq window
//! (`rseq(2)`, since Linux 4.18) on the stripe of the CPU that the thread runs on: three
//! plain instructions, undone by the kernel if the thread is preempted among them. It is
//! exact under migration and in signal handlers. A read adds the stripes up; it is no
//! snapshot, but misses nothing that happened before it.
//!
//! Three implementations give the same results. The best that works is chosen at the
//! first use in the process; `UNMERGED_PERCPU` forces one ([`implementation()`] tells).
//!
//! | | how the word is reached | needs |
//! |---|---|---|
//! | `gs` | `%gs:offset`; the GS base of the thread points at the stripe | rseq, FSGSBASE (Linux 5.9), `%gs` not used by somebody else |
//! | `rseq` | `base + cpu * stride` | rseq |
//! | `portable` | an atomic addition on a stripe of its own | nothing |
//!
//! # Rules that hold everywhere
//!
//! - A word that windows update is updated by nothing else. Whoever cannot run a window (a
//!   kernel without rseq, a thread that is not registered, a window that was aborted
//!   [many times](Counter#progress)) adds to *overflow* stripes with atomics; sums include both.
//! - Stripes are 4096 bytes apart, one for each possible CPU id, reserved as address space
//!   and committed when first touched, by the CPU that touches them: at its NUMA node.
//! - `%gs` is claimed, not taken. If its base is not 0 at the first use (Wine, Wasm
//!   engines, DynamoRIO), the implementation is `rseq`. If another library changes the
//!   base of a thread later, that thread's updates would go astray: a debug build checks
//!   the base on every operation and panics.
//!
//! # Guarantees
//!
//! | event | what holds |
//! |---|---|
//! | signal handler | may add to any counter, also to the one that it interrupted, once the counter and the process have been used outside of a handler |
//! | thread exit | nothing to do; counts stay |
//! | fork | a private counter of the child starts at the parent's value and goes its own way; one in shared memory is the same in both |
//! | vfork | the child must not use counters before exec |
//! | exec | gone, like all memory; a shared one stays with the others |

mod area;
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
mod node;
mod pool;
mod pooled;
mod process;
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

pub use area::{Area, AreaBuilder, MappedArea};
pub use cell::Cell;
pub use counter::Counter;
pub use counter_array::{CounterArray, Element};
pub use geometry::Index;
pub use histogram::Histogram;
pub use implementation::{Implementation, implementation};
pub use limits::PoolLimits;
pub use lock::{Guard, Lock};
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
