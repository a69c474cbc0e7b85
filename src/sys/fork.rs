//! Which process of a line of forks this is.
//!
//! A process id does not tell: the first process of a pid namespace and the first one of the
//! namespace that it makes for its children are both 1. A page with `MADV_WIPEONFORK` (since
//! Linux 4.14) does: a child of fork(2), or of clone(2) without `CLONE_VM`, finds it zero. A child
//! of vfork(2) shares it, and is not told apart.

use super::map::{self, Access, Mapping};
use crate::sync::{AtomicPtr, AtomicU64, Ordering};
use core::ptr;
use rustix::mm::Advice;

/// One number, which a child finds zero. Null until somebody asks; never unmapped.
static PAGE: AtomicPtr<AtomicU64> = AtomicPtr::new(ptr::null_mut());
/// The last number in the line of ancestors.
static LAST: AtomicU64 = AtomicU64::new(0);

/// Where no page is to be had the process id stands in, apart from the other numbers.
const BY_ID: u64 = 1 << 55;

/// A number of this process, the same for all its life, that none of its ancestors has; below
/// 2^56, and not 0.
#[inline]
pub fn own() -> u64 {
    let page = PAGE.load(Ordering::Acquire);
    // SAFETY: null, or mapped for good; zeros are an atomic.
    let known = unsafe { page.as_ref() }.map_or(0, |number| number.load(Ordering::Relaxed));
    if known == 0 { begin() } else { known }
}

#[cold]
fn begin() -> u64 {
    let Ok(page) = page() else { return BY_ID | u64::from(std::process::id()) };
    // Before it is ours, so that a child that is forked in between takes another one.
    let next = LAST.fetch_add(1, Ordering::Relaxed) + 1;
    match page.compare_exchange(0, next, Ordering::AcqRel, Ordering::Relaxed) {
        Ok(_) => next,
        Err(other) => other,
    }
}

fn page() -> rustix::io::Result<&'static AtomicU64> {
    let mut page = PAGE.load(Ordering::Acquire);
    if page.is_null() {
        let mapping = Mapping::anonymous(map::PAGE, Access::Write)?;
        // SAFETY: nobody relies on its contents in a child; that is what it is for.
        unsafe { mapping.advise(Advice::LinuxWipeOnFork) }?;
        let ours = mapping.start().cast().as_ptr();
        match PAGE.compare_exchange(page, ours, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => page = mapping.leak().cast().as_ptr(),
            Err(other) => page = other,
        }
    }
    // SAFETY: mapped for good; zeros are an atomic.
    Ok(unsafe { &*page })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn children_have_other_numbers() {
        let before = own();
        assert!(before != 0 && before < 1 << 56);
        // SAFETY: the child makes system calls only, and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let differs = own() != before && own() == own();
            // SAFETY: ends the child.
            unsafe { libc::_exit(i32::from(!differs)) };
        }
        let mut status = 0;
        // SAFETY: our own child.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!((status, own()), (0, before));
    }
}
