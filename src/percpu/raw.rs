//! Windows on memory of the caller's, for those who build structures that this crate has not: the
//! menu of librseq, and a macro for windows of one's own.
//!
//! ```
//! use unmerged::percpu::raw::{self, Answer};
//!
//! // A word for each CPU id, 128 bytes apart.
//! let mut words = vec![0_u64; raw::cpu_ids() as usize * 16];
//! let base = words.as_mut_ptr();
//! while let Some(id) = raw::this_cpu() {
//!     // SAFETY: one of the words; only windows of this CPU write it.
//!     let word = unsafe { base.add(id.cpu as usize * 16) };
//!     // SAFETY: as above, and the thread is registered.
//!     match unsafe { raw::load_cbne_store(id, word, 0, 7) } {
//!         Answer::Done(()) => break,          // the word was 0 and is 7 now
//!         Answer::Refused(()) => break,       // it was not 0
//!         _ => {}                             // aborted: again, on the CPU that it is now
//!     }
//! }
//! ```
//!
//! Each is stated in pseudo code in [`arch`](crate::arch), and named by it; librseq's own names are in
//! the docs of each. A caller must bound its retries: a debugger that steps aborts every window.

use super::stripes::stripes;
use crate::abi::rseq::{CPU_ID, MM_CID};
use crate::sys::rseq;

#[doc(inline)]
pub use crate::unmerged_window as window;

pub use crate::arch::{
    Answer, Id, load_add_load_load_add_store, load_add_store_u64, load_cbeq_store_add_load_store,
    load_cbne_load_cbne_store, load_cbne_memcpy_store, load_cbne_store, load_cbne_store_store,
};

/// One past the last possible CPU id: how many stripes an array indexed by CPU has. Concurrency ids
/// are below it too.
pub fn cpu_ids() -> u32 {
    stripes().cpus
}

fn this(field: usize) -> Option<Id> {
    // With the first question the shared object that this is in stays loaded.
    let cpus = stripes().cpus;
    if !rseq::ensure_registered() {
        return None;
    }
    let area = rseq::area();
    let field = area + field.cast_signed();
    // SAFETY: the area is known; `cpu_id` reads the word behind `area + CPU_ID`.
    let cpu = unsafe { crate::arch::cpu_id(field - CPU_ID.cast_signed()) };
    (cpu < cpus).then_some(Id { area, field, cpu })
}

/// The CPU of this thread, for the next window; it registers the thread if need be. `None` where no
/// window can run: no rseq (before Linux 4.18, or refused), or an id that sysfs did not announce.
pub fn this_cpu() -> Option<Id> {
    this(CPU_ID)
}

/// The concurrency id of this thread, for the next window. `None` where no window can run, or rseq
/// has no `mm_cid` (before Linux 6.3).
pub fn this_mm_cid() -> Option<Id> {
    if rseq::size() < 28 { None } else { this(MM_CID) }
}
