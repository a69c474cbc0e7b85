//! What is of this process and of none that it forks: the epoch, the lock, the table.
//!
//! The epoch and the lock lie in one private page with `MADV_WIPEONFORK` (since Linux
//! 4.14). A child of fork(2), or of clone(2) without `CLONE_VM`, finds both 0: it has no
//! table, and the lock is free whatever the parent's threads were doing. A child of
//! vfork(2) shares the page and is not told apart.
//!
//! | epoch | this process |
//! |---|---|
//! | 0 | has no table of its own; [`TABLE`] may be one that was inherited |
//! | `n` | has [`TABLE`], made as the `n`th in the line of its ancestors |
//!
//! A handle keeps its epoch. It differs from that of every later process in the line, so a
//! handle that was inherited is never taken for one of this process.

use super::config::Config;
use super::table::Table;
use crate::error::{Context, Error, Result};
use crate::sync::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use crate::sys::map::{self, Access, Mapping};
use core::cell::UnsafeCell;
use core::ptr;
use rustix::io::Errno;
use rustix::mm::Advice;

/// The page that a child finds zero.
#[repr(C)]
struct Page {
    epoch: AtomicU64,
    /// A page of zeros is an unlocked mutex: `PTHREAD_MUTEX_INITIALIZER` is nothing but
    /// zeros in glibc and in musl, which a test checks.
    lock: UnsafeCell<libc::pthread_mutex_t>,
    /// Was [`CONFIG`] said by this process?
    configured: AtomicU32,
}

/// Null until somebody needs it; never unmapped, and inherited at the same address.
static PAGE: AtomicPtr<Page> = AtomicPtr::new(ptr::null_mut());
/// The table of the process whose epoch is in the page, or one that was inherited.
static TABLE: AtomicPtr<Table> = AtomicPtr::new(ptr::null_mut());
/// What slots are to be like; null for the default. Inherited, and never freed.
static CONFIG: AtomicPtr<Config> = AtomicPtr::new(ptr::null_mut());
/// The last epoch in the line of ancestors.
static EPOCHS: AtomicU64 = AtomicU64::new(0);

/// The epoch of this process; 0 while it has no table.
#[inline]
pub(super) fn epoch() -> u64 {
    let page = PAGE.load(Ordering::Acquire);
    if page.is_null() {
        return 0;
    }
    // SAFETY: a page that was mapped for good.
    let page = unsafe { &*page };
    // Pairs with the store of `table`.
    page.epoch.load(Ordering::Acquire)
}

/// The table of this process, and its epoch; made by the first call.
///
/// # Errors
///
/// As [`Table::create`].
pub(super) fn table() -> Result<(&'static Table, u64)> {
    if epoch() == 0 {
        make()?;
    }
    // SAFETY: this process has an epoch, so this is its own table, which is never dropped.
    Ok((unsafe { &*TABLE.load(Ordering::Acquire) }, epoch()))
}

/// The table of this process, if there is one.
pub(super) fn existing() -> Option<&'static Table> {
    // SAFETY: this process has an epoch, so this is its own table, which is never dropped.
    (epoch() != 0).then(|| unsafe { &*TABLE.load(Ordering::Acquire) })
}

#[cold]
fn make() -> Result<()> {
    let _guard = lock()?;
    if epoch() != 0 {
        return Ok(());
    }
    let inherited = TABLE.swap(ptr::null_mut(), Ordering::AcqRel);
    if !inherited.is_null() {
        // SAFETY: made for good by an ancestor; its ordinary memory was inherited.
        unsafe { &*inherited }.abandon();
    }
    // SAFETY: null, or made for good.
    let config = unsafe { CONFIG.load(Ordering::Acquire).as_ref() };
    let config = config.unwrap_or(const { &Config::new() });
    let table = Box::leak(Box::new(Table::create(config.shape, &config.entries)?));
    TABLE.store(table, Ordering::Release);
    let next = EPOCHS.load(Ordering::Relaxed) + 1;
    EPOCHS.store(next, Ordering::Relaxed);
    // SAFETY: `lock` has mapped it for good.
    let page = unsafe { &*PAGE.load(Ordering::Acquire) };
    // Whoever sees the epoch sees the table.
    page.epoch.store(next, Ordering::Release);
    Ok(())
}

/// Sets what slots are to be like, once, before there are any.
///
/// # Errors
///
/// EBUSY where there are, or it was set before; ENOMEM.
pub(super) fn configure(config: &Config) -> Result<()> {
    const OP: &str = "task_shared::configure";
    let _guard = lock().map_err(|error| error.within(OP))?;
    if epoch() != 0 {
        return Err(Error::because(OP, Errno::BUSY, "this process has slots already"));
    }
    // SAFETY: `lock` has mapped it for good.
    let page = unsafe { &*PAGE.load(Ordering::Acquire) };
    if page.configured.swap(1, Ordering::Relaxed) != 0 {
        return Err(Error::because(OP, Errno::BUSY, "this process was configured before"));
    }
    CONFIG.store(Box::leak(Box::new(config.clone())), Ordering::Release);
    Ok(())
}

/// The process's lock, until this is dropped.
#[derive(Debug)]
pub(super) struct Guard(*mut libc::pthread_mutex_t);

impl Drop for Guard {
    fn drop(&mut self) {
        // SAFETY: locked by the thread that made the guard, which is not `Send`.
        let _ = unsafe { libc::pthread_mutex_unlock(self.0) };
    }
}

/// Takes the lock under which the table is made, grows and is searched for the dead.
///
/// # Errors
///
/// ENOMEM if the page cannot be mapped.
pub(super) fn lock() -> Result<Guard> {
    let page = page().op("task_shared::current")?;
    // SAFETY: mapped for good; only the address of the field is taken.
    let mutex = UnsafeCell::raw_get(unsafe { &raw const (*page).lock });
    // SAFETY: the page was zero, which is an unlocked mutex, and only libc has changed it.
    match unsafe { libc::pthread_mutex_lock(mutex) } {
        0 => Ok(Guard(mutex)),
        code => Err(Error::new("task_shared::current", Errno::from_raw_os_error(code))),
    }
}

fn page() -> rustix::io::Result<*mut Page> {
    let page = PAGE.load(Ordering::Acquire);
    if !page.is_null() {
        return Ok(page);
    }
    let mapping = Mapping::anonymous(map::PAGE, Access::Write)?;
    // SAFETY: nobody relies on its contents in a child; that is what it is for.
    unsafe { mapping.advise(Advice::LinuxWipeOnFork) }?;
    let mine = mapping.start().cast::<Page>().as_ptr();
    let (ok, lost) = (Ordering::AcqRel, Ordering::Acquire);
    match PAGE.compare_exchange(ptr::null_mut(), mine, ok, lost) {
        Ok(_) => Ok(mapping.leak().cast().as_ptr()),
        Err(other) => Ok(other),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use core::mem;

    #[test]
    fn zeros_are_an_unlocked_mutex() {
        let mutex = libc::PTHREAD_MUTEX_INITIALIZER;
        // SAFETY: every byte of a pthread_mutex_t is initialised, and any byte is a u8.
        let bytes: [u8; size_of::<libc::pthread_mutex_t>()] = unsafe { mem::transmute(mutex) };
        assert_eq!(bytes, [0; size_of::<libc::pthread_mutex_t>()]);
    }

    #[test]
    fn one_table_of_one_epoch() {
        let (table, first) = super::table().unwrap();
        let other = std::thread::spawn(|| {
            let (table, epoch) = super::table().unwrap();
            (ptr::from_ref(table).addr(), epoch)
        });
        assert_eq!(other.join().unwrap(), (ptr::from_ref(table).addr(), first));
        assert!(first != 0 && epoch() == first);
    }
}
