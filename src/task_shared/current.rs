//! The calling thread's own slot: taking it, and giving it back when the thread ends.
//!
//! Both are done with all signals blocked. So a handler finds the thread with its slot or
//! without, and can neither end the thread half-way nor meddle with libc's list of its locks.

use super::descriptor::Kept;
use super::held::Held;
use super::live;
use super::owner::Label;
use super::process;
use super::record::{Record, Values};
use super::slot::Slot;
use super::source::{Clocks, open_schedstat};
use crate::error::{Context, Error, Result};
use crate::sync::AtomicU64;
use crate::sys::signals::Masked;
use crate::sys::thread;
use core::cell::Cell;
use rustix::io::Errno;

/// What a thread knows of its slot. The first four cells are all that the fast paths read.
pub(super) struct Mine {
    /// Address of the slot in the read-only mapping; 0 without one.
    pub(super) shown: Cell<usize>,
    /// Epoch of the process that took it.
    epoch: Cell<u64>,
    /// The slot in the writable mapping.
    pub(super) record: Cell<Option<&'static Record>>,
    /// The user's words of it.
    pub(super) user: Cell<&'static [AtomicU64]>,
    pub(super) more: Cell<Option<More>>,
}

#[derive(Clone, Copy)]
pub(super) struct More {
    pub(super) held: Held,
    /// The clocks when the slot was taken.
    pub(super) start: Clocks,
    /// The thread's schedstat, once it was needed.
    pub(super) schedstat: Option<Kept>,
}

/// Gives the slot back when the thread ends.
struct Guard;

impl Drop for Guard {
    fn drop(&mut self) {
        let _masked = Masked::all();
        // In a child that inherited the slot there is nothing to give back.
        if MINE.with(Mine::is_of_this_process) {
            MINE.with(|mine| mine.shown.set(0));
            if let Some(more) = MINE.with(|mine| mine.more.take()) {
                live::unregister();
                more.held.release();
            }
        }
    }
}

thread_local! {
    /// Without a destructor, so that it can be read to the very end of the thread.
    pub(super) static MINE: Mine = const {
        Mine {
            shown: Cell::new(0),
            epoch: Cell::new(0),
            record: Cell::new(None),
            user: Cell::new(&[]),
            more: Cell::new(None),
        }
    };
    static GUARD: Guard = const { Guard };
}

impl Mine {
    #[inline]
    fn is_of_this_process(&self) -> bool {
        self.shown.get() != 0 && self.epoch.get() == process::epoch()
    }
}

/// The calling thread's slot: the first call takes one, later calls answer with the same.
///
/// This is `task_getshared(TASK_SCHEDSTAT, 0, &address)` of the proposal. A later call is a
/// few loads. A first call may map memory and take a lock, so it is not for signal handlers;
/// later calls are. In a child of fork, and of clone without `CLONE_VM`, the next call is a
/// first one. A child of vfork must not call it: it would be taken for its parent.
///
/// Since Linux 5.1 (`F_SEAL_FUTURE_WRITE`).
///
/// # Errors
///
/// ENOMEM, ENOSPC if all 65,536 slots are taken, EMFILE or ENFILE, EFBIG if the table would
/// exceed the process's limit for files (RLIMIT_FSIZE; at first some 4 MiB), ESHUTDOWN in
/// a thread-local's destructor after the slot was given back, EOPNOTSUPP where the kernel
/// keeps no robust list for the thread.
///
/// # Examples
///
/// ```
/// let me = unmerged::task_shared::current()?;
/// assert_eq!(me.address(), unmerged::task_shared::current()?.address());
/// # Ok::<(), unmerged::Error>(())
/// ```
#[inline]
pub fn current() -> Result<Slot> {
    let known =
        MINE.with(|mine| mine.is_of_this_process().then(|| (mine.shown.get(), mine.epoch.get())));
    match known {
        Some((shown, epoch)) => Ok(Slot::new(shown, epoch)),
        None => take(),
    }
}

/// The option of [`getshared`] for scheduler statistics.
pub const TASK_SCHEDSTAT: u32 = 1;

/// `task_getshared(option, flags, &slot)` of the proposal: the calling thread's slot, with its
/// statistics brought up to date.
///
/// The proposal knows one option, [`TASK_SCHEDSTAT`], and no flags. Unlike it, this looks at the
/// flags. [`current`] is the same without the statistics, which cost half a microsecond.
///
/// # Errors
///
/// EINVAL for another option or any flag, EOPNOTSUPP if the kernel keeps no scheduler
/// statistics (CONFIG_SCHED_INFO), and those of [`current`].
///
/// # Examples
///
/// ```
/// use unmerged::task_shared::{TASK_SCHEDSTAT, getshared};
///
/// assert!(getshared(2, 0).unwrap_err().is_invalid());
/// match getshared(TASK_SCHEDSTAT, 0) {
///     Ok(slot) => assert!(slot.stats()?.pcount > 0),
///     Err(error) => assert!(error.is_unsupported(), "{error}"),
/// }
/// # Ok::<(), unmerged::Error>(())
/// ```
pub fn getshared(option: u32, flags: u32) -> Result<Slot> {
    const OP: &str = "task_shared::getshared";
    if option != TASK_SCHEDSTAT {
        let message = format_args!("option {option}, there is {TASK_SCHEDSTAT}");
        return Err(Error::with(OP, Errno::INVAL, message));
    }
    if flags != 0 {
        let message = format_args!("flags {flags:#x}, there are none");
        return Err(Error::with(OP, Errno::INVAL, message));
    }
    let slot = current().map_err(|error| error.within(OP))?;
    match slot.publish() {
        // A signal handler, and what it interrupted publishes.
        Err(error) if error.raw_os_error() == libc::EBUSY => Ok(slot),
        published => published.map(|_| slot).map_err(|error| error.within(OP)),
    }
}

#[cold]
#[inline(never)]
fn take() -> Result<Slot> {
    const OP: &str = "task_shared::current";
    // The first touch registers the destructor. Afterwards there would be none to run.
    GUARD.try_with(|_| ()).map_err(|_| {
        Error::because(OP, Errno::SHUTDOWN, "this thread is ending and has given its slot back")
    })?;
    let _masked = Masked::all();
    live::disown();
    let (name, (cpu, node)) = (thread::name().op(OP)?, thread::cpu_and_node().op(OP)?);
    let (table, epoch) = process::table()?;
    let held = table.take()?;
    let start = Clocks::now();
    let values = Values { tid: thread::id(), cpu, node, ..Values::default() };
    held.begin(values, Label { name, since: start.monotonic })?;
    let (record, user) = (held.record(), held.user()?);
    let shown = held.shown();
    MINE.with(|mine| {
        mine.more.set(Some(More { held, start, schedstat: None }));
        mine.record.set(Some(record));
        mine.user.set(user);
        mine.epoch.set(epoch);
        mine.shown.set(shown);
    });
    Ok(Slot::new(shown, epoch))
}

/// The schedstat of the calling thread, which has a slot: opened, and kept with it.
#[cold]
pub(super) fn schedstat() -> Result<Kept> {
    // A handler may publish, too: it comes before, and we take what it has opened, or after.
    let _masked = Masked::all();
    let more = MINE.with(|mine| mine.more.get());
    if let Some(More { schedstat: Some(file), .. }) = more {
        return Ok(file);
    }
    let file = open_schedstat()?;
    if let Some(more) = more {
        MINE.with(|mine| mine.more.set(Some(More { schedstat: Some(file), ..more })));
        more.held.keep(file);
    }
    Ok(file)
}
