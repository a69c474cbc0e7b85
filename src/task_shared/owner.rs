//! The owner of a slot: a robust mutex of libc that the thread holds for life.
//!
//! At the end of a thread, however it comes (return, raw exit, SIGKILL, execve), the kernel
//! walks the thread's robust list and puts [`OWNER_DIED`] into the word of every mutex on
//! it. So the death is there to be read, in a read-only mapping, with no system call and no
//! destructor.
//!
//! Which word of libc's mutex that is, is asked of the kernel: the entry of the mutex that
//! was locked last is the first of the thread's list, and `futex_offset` leads from it to
//! the word. So no libc's private layout is relied on.
//!
//! A child of raw clone(2) without `CLONE_VM` is a task that libc does not know about. Its
//! libc still has the parent's thread id and the parent's list, with entries in memory that
//! was not inherited, and the kernel has no list at all. [`repair_list`] empties the list
//! and registers it, as libc does in a child of fork(2); [`lock`] writes the true id.

use crate::abi::robust::{OWNER_DIED, RobustListHead, TID_MASK};
use crate::arch;
use crate::sync::{AtomicIsize, AtomicU32, AtomicU64, Ordering, assert_layout};
use crate::sys::thread::{self, robust_list, set_robust_list};
use core::mem::{MaybeUninit, align_of, offset_of, size_of};
use core::ptr::NonNull;
use rustix::io::{Errno, Result};

/// 32-bit words that libc's mutex may use.
pub(super) const OWNER_WORDS: usize = 10;

/// What is known of the owner of one slot. It lies apart from the slots: it is written at
/// birth and death, and a sweep over many slots need not fetch it.
///
/// | bytes | field | |
/// |---|---|---|
/// | 0..40 | mutex | libc's robust mutex, locked by the owner for life |
/// | 40..56 | name | of the thread when it took the slot, padded with zeros |
/// | 56..64 | since | CLOCK_MONOTONIC when the slot was taken, in nanoseconds |
#[repr(C, align(64))]
#[derive(Debug)]
pub(super) struct Owner {
    pub(super) mutex: [AtomicU32; OWNER_WORDS],
    name: [AtomicU64; 2],
    since: AtomicU64,
}

assert_layout!(
    size_of::<Owner>() == 64,
    size_of::<libc::pthread_mutex_t>() <= 4 * OWNER_WORDS,
    align_of::<libc::pthread_mutex_t>() <= align_of::<Owner>(),
    offset_of!(Owner, name) == 40,
    offset_of!(Owner, since) == 56,
);

/// What an owner is called, and since when it has its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Label {
    pub(super) name: [u8; 16],
    pub(super) since: u64,
}

impl Owner {
    /// Only for the holder of the mutex, while a life begins.
    pub(super) fn set_label(&self, label: Label) {
        for (word, bytes) in self.name.iter().zip(label.name.as_chunks::<8>().0) {
            word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
        }
        self.since.store(label.since, Ordering::Relaxed);
    }

    /// Of some life: which, the slot's generation tells.
    pub(super) fn label(&self) -> Label {
        let name = |n: usize| self.name[n / 8].load(Ordering::Relaxed).to_ne_bytes()[n % 8];
        Label { name: core::array::from_fn(name), since: self.since.load(Ordering::Relaxed) }
    }

    /// Nobody's, in ordinary memory.
    #[cfg(all(test, not(loom)))]
    pub(super) fn new() -> Self {
        Self {
            mutex: [const { AtomicU32::new(0) }; OWNER_WORDS],
            name: [const { AtomicU64::new(0) }; 2],
            since: AtomicU64::new(0),
        }
    }
}

/// From the thread pointer to libc's list head, the same in every thread; 0 while not known.
static LIST: AtomicIsize = AtomicIsize::new(0);

/// The errno that libc's mutex calls answer with.
fn done(code: core::ffi::c_int) -> Result<()> {
    if code == 0 { Ok(()) } else { Err(Errno::from_raw_os_error(code)) }
}

fn mutex(entry: NonNull<Owner>) -> *mut libc::pthread_mutex_t {
    // An entry begins with the mutex; its layout assertions have the size and alignment.
    entry.as_ptr().cast()
}

/// Makes the mutex of a new slot's owner.
///
/// # Safety
///
/// `entry` must lie in writable memory that is never unmapped, and nobody may use its
/// mutex yet.
pub(super) unsafe fn init(entry: NonNull<Owner>) -> Result<()> {
    let mut attributes = MaybeUninit::<libc::pthread_mutexattr_t>::uninit();
    let at = attributes.as_mut_ptr();
    // SAFETY: room for attributes on this stack.
    done(unsafe { libc::pthread_mutexattr_init(at) })?;
    // SAFETY: initialised above.
    done(unsafe { libc::pthread_mutexattr_setpshared(at, libc::PTHREAD_PROCESS_SHARED) })?;
    // SAFETY: as above.
    done(unsafe { libc::pthread_mutexattr_setrobust(at, libc::PTHREAD_MUTEX_ROBUST) })?;
    // SAFETY: the caller's entry is ours alone and large enough; the attributes are set.
    done(unsafe { libc::pthread_mutex_init(mutex(entry), at) })?;
    // SAFETY: initialised above, used no more.
    done(unsafe { libc::pthread_mutexattr_destroy(at) })
}

/// Notes where libc keeps the thread's robust list; where the kernel knows of none in a
/// place that has been noted, empties it and registers it. To be called before a thread's
/// first [`lock`].
///
/// # Errors
///
/// ENOSYS on a kernel without robust lists.
pub(super) fn repair_list() -> Result<()> {
    let here = arch::thread_pointer();
    if let Some(head) = robust_list()? {
        let offset = head.as_ptr().expose_provenance().wrapping_sub(here).cast_signed();
        LIST.store(offset, Ordering::Relaxed);
        return Ok(());
    }
    let offset = LIST.load(Ordering::Relaxed);
    if offset == 0 {
        // musl registers at the first lock.
        return Ok(());
    }
    let address = here.wrapping_add_signed(offset);
    let head = core::ptr::with_exposed_provenance_mut::<RobustListHead>(address);
    let head = NonNull::new(head).ok_or(Errno::FAULT)?;
    // SAFETY: libc's own list head, at the same place of every thread.
    let stale = unsafe { head.read() };
    // SAFETY: as above; only this thread uses it, and the kernel does not know it yet.
    unsafe { head.write(RobustListHead { list: address, pending: 0, ..stale }) };
    // SAFETY: the head lives as long as the thread, and is now empty.
    unsafe { set_robust_list(head) }
}

/// Locks the mutex, whether its last owner has died or not.
///
/// # Safety
///
/// `entry` lies in memory that is never unmapped, and [`init`] made its mutex.
unsafe fn acquire(entry: NonNull<Owner>) -> Result<()> {
    // SAFETY: the caller's mutex.
    match unsafe { libc::pthread_mutex_trylock(mutex(entry)) } {
        // SAFETY: locked, by a call that said that the last owner died.
        libc::EOWNERDEAD => done(unsafe { libc::pthread_mutex_consistent(mutex(entry)) }),
        code => done(code),
    }
}

/// # Safety
///
/// The calling thread has locked the mutex.
unsafe fn give_back(entry: NonNull<Owner>) {
    // SAFETY: locked by this thread.
    let code = unsafe { libc::pthread_mutex_unlock(mutex(entry)) };
    debug_assert_eq!(code, 0, "a lock that is held can be given back");
}

/// Finds which of the mutex's words the kernel marks.
///
/// # Errors
///
/// EOPNOTSUPP if the kernel does not know of the lock, or the word is not one of the first
/// [`OWNER_WORDS`].
///
/// # Safety
///
/// `entry` lies in memory that is never unmapped, [`init`] made its mutex, and nobody else
/// uses it yet.
pub(super) unsafe fn find_word(entry: NonNull<Owner>) -> Result<usize> {
    // SAFETY: the caller's mutex.
    unsafe { acquire(entry) }?;
    let head = robust_list();
    let marked = head.map(|head| {
        head.and_then(|head| {
            // SAFETY: the kernel answered with this thread's list, which lives as long as it.
            let RobustListHead { list, futex_offset, .. } = unsafe { head.read() };
            let word = (list & !1).wrapping_add_signed(futex_offset);
            word.checked_sub(entry.as_ptr().addr())
        })
    });
    // SAFETY: acquired above.
    unsafe { give_back(entry) };
    match marked? {
        Some(offset) if offset % 4 == 0 && offset / 4 < OWNER_WORDS => Ok(offset / 4),
        _ => Err(Errno::OPNOTSUPP),
    }
}

/// Makes the calling thread the owner. Answers with the word as libc left it, which
/// [`unlock`] wants back.
///
/// # Errors
///
/// EBUSY if it has an owner, EOPNOTSUPP if the kernel would not mark this thread's death.
///
/// # Safety
///
/// `entry` lies in memory that is never unmapped, [`init`] made its mutex, and `word` is
/// what [`find_word`] answered.
pub(super) unsafe fn lock(entry: NonNull<Owner>, word: usize) -> Result<u32> {
    // SAFETY: the caller's mutex.
    unsafe { acquire(entry) }?;
    if !matches!(robust_list(), Ok(Some(_))) {
        // SAFETY: acquired above.
        unsafe { give_back(entry) };
        return Err(Errno::OPNOTSUPP);
    }
    // SAFETY: the entry stays mapped, and is of atomics.
    let word = &unsafe { entry.as_ref() }.mutex[word];
    let left = word.load(Ordering::Relaxed);
    if left & TID_MASK != thread::id() {
        // Release: it carries on what the last unlock released, which `is_held` relies on.
        word.store(left & !TID_MASK | thread::id(), Ordering::Release);
    }
    Ok(left)
}

/// Gives the ownership back.
///
/// # Safety
///
/// The calling thread is the owner, by a [`lock`] with these arguments that answered `left`.
pub(super) unsafe fn unlock(entry: NonNull<Owner>, word: usize, left: u32) {
    // SAFETY: the entry stays mapped, and is of atomics.
    let word = &unsafe { entry.as_ref() }.mutex[word];
    if word.load(Ordering::Relaxed) != left {
        word.store(left, Ordering::Relaxed);
    }
    // SAFETY: the caller is the owner, and libc finds the id that it wrote.
    unsafe { give_back(entry) };
}

/// Has the kernel marked the owner's death?
pub(super) fn has_died(entry: &Owner, word: usize) -> bool {
    entry.mutex[word].load(Ordering::Relaxed) & OWNER_DIED != 0
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_marks_the_word_that_was_found() {
        let entry = NonNull::from(Box::leak(Box::new(Owner::new())));
        // SAFETY: leaked, and nobody else has it.
        unsafe { init(entry) }.unwrap();
        // SAFETY: initialised, and nobody else has it.
        let word = unsafe { find_word(entry) }.unwrap();
        let address = entry.as_ptr().expose_provenance();
        let owned = std::thread::spawn(move || {
            let entry = NonNull::new(core::ptr::with_exposed_provenance_mut(address)).unwrap();
            // SAFETY: initialised, leaked, and the word is the one that was found.
            unsafe { lock(entry, word) }.unwrap();
            // SAFETY: leaked, and of atomics.
            let owner = &unsafe { entry.as_ref() }.mutex[word];
            assert_eq!(owner.load(Ordering::Relaxed) & TID_MASK, thread::id());
        });
        owned.join().unwrap();
        // SAFETY: leaked, and of atomics.
        let shared = unsafe { entry.as_ref() };
        // pthread_join waits for a word that the kernel clears after it walked the list.
        assert!(has_died(shared, word));
        // SAFETY: initialised, leaked, and the word is the one that was found.
        let left = unsafe { lock(entry, word) }.unwrap();
        assert!(!has_died(shared, word));
        // SAFETY: locked above.
        assert_eq!(unsafe { lock(entry, word) }, Err(Errno::BUSY));
        // SAFETY: locked above.
        unsafe { unlock(entry, word, left) };
        assert_eq!(shared.mutex[word].load(Ordering::Relaxed) & TID_MASK, 0);
    }
}
