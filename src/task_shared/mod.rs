//! A 128-byte slot for each thread, in shared memory that everybody may read and only the
//! thread writes.
//!
//! It is `task_getshared` (Sangappa, "Provide fast access to thread specific data", 2021)
//! in user space. A thread takes its slot by [`current`](current()), publishes its scheduler statistics
//! by [`Slot::publish`], and words of its own by [`Slot::set`] and [`Slot::publish_words`], whose
//! names, units and types [`configure`] has declared. Any thread, and any
//! process with the rights to look, reads the slots of a process by [`Monitor`] with no
//! system call, and sees the end of a thread however it came.
//!
//! ```
//! use unmerged::task_shared::{self, Monitor};
//!
//! # fn main() -> unmerged::Result<()> {
//! let me = task_shared::current()?; // this thread's slot, the same at every call
//! me.set_user(7)?; // one store
//! match me.publish() {
//!     Ok(stats) => println!("on a CPU for {} ns", stats.sum_exec_runtime),
//!     Err(error) if error.is_unsupported() => println!("{error}"), // no CONFIG_SCHED_INFO
//!     Err(error) => return Err(error),
//! }
//! for thread in Monitor::open(std::process::id())?.threads() {
//!     println!("{} {} {}", thread.tid(), thread.is_alive(), thread.stats().run_delay);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! The numbers of a thread are as old as its last publication: without privilege the kernel
//! pushes nothing. [`Thread::updated`] tells the age, and [`Thread::off_cpu_at`] what may have come
//! since. A [`Sampler`] publishes for threads that do not; [`Monitor::wait`] sleeps until
//! one comes or goes, and [`Monitor::thread`] finds one again by its [`Handle`].
//!
//! # What happens to a slot
//!
//! | event | the slot | a handle, and the next [`current`](current()) |
//! |---|---|---|
//! | the thread returns, panics, calls pthread_exit | given back by a thread-local destructor | later destructors, also of pthread keys: ESTALE, ESHUTDOWN |
//! | the thread ends by raw exit(2) | marked by the kernel, reclaimed before the table grows | |
//! | the process ends, also by abort or SIGKILL | marked; the last numbers stay for who has them open | |
//! | execve(2) by the main thread | as above | no slots until the program asks for one |
//! | execve(2) by another thread | all marked but that thread's: see [`Thread::is_alive`] | as above |
//! | fork(2), clone(2) without `CLONE_VM` | untouched, not inherited | in the child ESTALE; then a slot in a table of its own |
//! | vfork(2), posix_spawn(3) | untouched | the child must use neither: it would be taken for its parent |
//! | clone(2) with `CLONE_VM` around libc | untouched | must use neither: it has its maker's thread-locals |
//! | dlclose(3) of a library with this crate in it | untouched: once a slot was taken the library stays loaded | stay valid |
//!
//! A slot that is given back cools down: the others that there is memory for are taken first,
//! lowest first, and meanwhile it still says what it said, as the slot of a thread that has
//! ended. Then it goes to the next thread that asks, with the user's words and the statistics 0
//! and another generation. Slots never move; memory is not given back before the process ends,
//! [`stats`] tells how much it is. There are at most 65,536.
//!
//! A slot is taken and given back with all signals blocked: no handler comes between. A process
//! that is killed there leaves nothing.
//!
//! In signal handlers, [`Slot::set`], [`Slot::get`], [`Slot::set_user`], [`Slot::user`],
//! [`Slot::publish_words`] and [`current`](current()) after its first call are safe to use. A
//! [`Slot::publish`] or [`Slot::publish_words`] that interrupts another of its kind is EBUSY. A
//! handler may fork; a child that returns from it into the middle of one of these has no slot
//! to go on with, and is killed by SIGSEGV.
//!
//! # Layout, version 2
//!
//! The slots lie in a memory file named `unmerged.task_shared`, which stays open in the
//! process. Page 0 is a header (the table is in the source of `header.rs`); it is followed by
//! the entries of owners, 64 bytes for each slot that there can be (libc's robust mutex, one
//! word of which holds the owner's id, or 0x4000_0000 once it died; the thread's name; since when
//! it has the slot), and these by the slots. Numbers are in the machine's byte order.
//!
//! | bytes | field | |
//! |---|---|---|
//! | 0..4 | generation | odd: held. 4k + 2: given back, the rest still says what it said. 4k: nothing below means anything |
//! | 4..8 | sequence | odd: bytes 24..72 are being written. The same even number before and after: one moment |
//! | 8..12 | user sequence | the same for the user's words |
//! | 12..16 | tid | gettid(2), in the process's own pid namespace |
//! | 16..20 | flags | 1: the last 64 bytes are the thread's rseq area |
//! | 20..24 | keeper | the thread that owns the slot in the name of `tid`; 0 if that is itself |
//! | 24..28 | cpu | where the thread ran when it published last, or took the slot |
//! | 28..32 | node | the NUMA node of that CPU |
//! | 32..40 | sum_exec_runtime | nanoseconds on a CPU, by the thread's CPU clock |
//! | 40..48 | run_delay | nanoseconds of waiting for a CPU |
//! | 48..56 | pcount | times that it was given a CPU |
//! | 56..64 | off_cpu | nanoseconds off the CPU since the slot was taken |
//! | 64..72 | updated | CLOCK_MONOTONIC of the last publication, in nanoseconds; 0 before it |
//! | 72.. | user | the user's words, 7 in 128 bytes |
//!
//! # Who can write
//!
//! The process itself, in principle all of it: a wild store can hit the writable mapping.
//! Nobody else: the file is sealed against writing and further writable mappings
//! (`F_SEAL_FUTURE_WRITE`, since Linux 5.1) and against shrinking. A reader takes nothing that
//! it finds there for granted.

mod config;
mod current;
mod descriptor;
mod discover;
mod event;
mod fault;
mod hazard;
mod header;
mod held;
mod layout;
mod life;
mod live;
mod liveness;
mod monitor;
mod owner;
mod places;
mod process;
mod record;
mod rounds;
mod sampler;
mod schema;
mod slot;
mod source;
mod table;
mod threads;
mod usage;
mod waiting;

pub use config::{Config, configure};
pub use current::{TASK_SCHEDSTAT, current, getshared};
pub use live::Whereabouts;
pub use monitor::Monitor;
#[doc(hidden)]
pub use places::Places;
pub use record::SchedStats;
pub use sampler::{Builder as SamplerBuilder, Sampler, SamplerStats};
pub use schema::{Datum, Field, Kind, Value, Word};
pub use slot::Slot;
pub use threads::{Handle, Thread, Threads};
pub use usage::{Usage, stats};
