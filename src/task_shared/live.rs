//! The thread's rseq area inside its slot: the kernel itself writes where the thread runs, and
//! every reader sees it.
//!
//! | hazard | what is done |
//! |---|---|
//! | libc has the registration | it is moved here, and back before the slot is given back |
//! | somebody else has it | EBUSY |
//! | this crate's `percpu` in this thread | works on, by atomics, while libc's area says "not registered" |
//! | fork(2) | it is moved back before and here again after, by pthread_atfork(3); the child has libc's |
//! | clone(2) around libc, `_Fork` | the child has inherited it. The table of such a configuration is therefore mapped in children too, or the child would be killed: until its first slot it writes where it runs over its parent's word, which is wrong until the parent moves; that is why 32 bytes are registered, see `sys::rseq_elsewhere` |
//! | vfork(2), posix_spawn(3), threads | the kernel gives a child that shares memory none |
//! | the thread's end | moved back first; at a raw exit the kernel has written for the last time before it marks the owner |
//! | a read-only mapping | it is registered in the writable one |
//! | what a dead thread left there | cleared before the next registration |
//! | registrations of more than 32 bytes, faster from Linux 7 on | not used: the kernel ends a process in whose area another has written |
//! | writes to the area by others | no word of the slot's protocol lies in its line, and no life touches it |

use super::held::Held;
use crate::error::{Error, Result};
use crate::sync::{AtomicBool, AtomicU32, Ordering};
use crate::sys::rseq;
use crate::sys::rseq_elsewhere::Moved;
use core::cell::Cell;
use rustix::io::Errno;

const OP: &str = "task_shared::Slot::register_rseq";

thread_local! {
    /// The registration in this thread's slot, without a destructor.
    static MOVED: Cell<Option<(Held, Moved)>> = const { Cell::new(None) };
    /// The slot whose registration a fork has taken back for a moment.
    static FORKING: Cell<Option<Held>> = const { Cell::new(None) };
}

/// Where a thread runs, as the kernel has written it when the thread last came back to user
/// mode on a CPU. It tells where it ran last if it does not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Whereabouts {
    /// The CPU.
    pub cpu: u32,
    /// Its NUMA node (since Linux 6.3).
    pub node: Option<u32>,
    /// The thread's concurrency id, dense within its process (since Linux 6.3).
    pub concurrency_id: Option<u32>,
}

impl Whereabouts {
    /// What an area says; `None` if it is not registered.
    pub(super) fn of(area: &[AtomicU32; 16]) -> Option<Self> {
        let word = |n: usize| area[n].load(Ordering::Relaxed);
        let used = rseq::kernel_size();
        let cpu = word(1);
        (cpu.cast_signed() >= 0).then(|| Self {
            cpu,
            node: (used >= 24).then(|| word(5)),
            concurrency_id: (used >= 28).then(|| word(6)),
        })
    }
}

/// Registers the area in the slot that the calling thread holds. A second time: nothing.
pub(super) fn register(held: Held) -> Result<()> {
    if MOVED.get().is_some() {
        return Ok(());
    }
    let area = held.rseq().ok_or_else(|| {
        Error::because(OP, Errno::INVAL, "the slots of this process have no room for an rseq area")
    })?;
    watch_forks()?;
    // SAFETY: in the slot of this thread, 64-aligned, in a mapping that is kept for good and
    // inherited; moved back before the slot is given back.
    let moved = unsafe { Moved::to(area) }.map_err(|errno| match errno {
        Errno::BUSY => Error::because(OP, errno, "somebody else has this thread's registration"),
        Errno::NOSYS | Errno::PERM | Errno::OPNOTSUPP => {
            Error::because(OP, Errno::OPNOTSUPP, "the kernel has no rseq for this thread")
        }
        other => Error::new(OP, other),
    })?;
    MOVED.set(Some((held, moved)));
    held.record().set_flags(super::record::FLAG_RSEQ);
    Ok(())
}

/// Gives the registration back to libc, if it is here.
pub(super) fn unregister() {
    if let Some((held, moved)) = MOVED.take() {
        held.record().set_flags(0);
        moved.back();
    }
}

/// In a child that has inherited a registration in its parent's slot.
pub(super) fn disown() {
    if let Some((_, moved)) = MOVED.take() {
        moved.back();
    }
}

/// Once per process, and for its children.
fn watch_forks() -> Result<()> {
    static WATCHED: AtomicBool = AtomicBool::new(false);
    if WATCHED.swap(true, Ordering::AcqRel) {
        return Ok(());
    }
    // SAFETY: three functions of this library, which may run at any fork of any thread.
    match unsafe { libc::pthread_atfork(Some(before), Some(after), Some(in_child)) } {
        0 => Ok(()),
        code => {
            WATCHED.store(false, Ordering::Release);
            Err(Error::new(OP, Errno::from_raw_os_error(code)))
        }
    }
}

extern "C" fn before() {
    FORKING.set(MOVED.get().map(|(held, _)| held));
    unregister();
}

extern "C" fn after() {
    if let Some(held) = FORKING.take() {
        // Where it cannot be made again, the flag says so.
        let _ = register(held);
    }
}

extern "C" fn in_child() {
    FORKING.set(None);
}
