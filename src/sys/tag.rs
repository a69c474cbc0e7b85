//! Which process this is: told apart from those that it forks, at the price of two loads.
//!
//! A private lock that was held when the process forked is held in the child's copy too, by a
//! thread that the child does not have. So a holder leaves a *tag* in the lock that its process
//! alone has.
//!
//! The tag lies in a page with `MADV_WIPEONFORK` (since Linux 4.14). A child of fork(2), or of
//! clone(2) without `CLONE_VM`, finds 0 there and makes the next tag in the line of its ancestors.
//! A child of vfork(2) shares the page, as it shares everything.

use super::map::{Access, Mapping, PAGE};
use crate::sync::{AtomicPtr, AtomicU32, Ordering};
use core::ptr;
use rustix::mm::Advice;

/// The word in the page; null until somebody needs it, never unmapped.
static WORD: AtomicPtr<AtomicU32> = AtomicPtr::new(ptr::null_mut());

/// What [`WORD`] names where there is no such page. It stays 0: the process id serves.
static NONE: AtomicU32 = AtomicU32::new(0);

/// The last tag in the line of ancestors.
static LAST: AtomicU32 = AtomicU32::new(0);

/// The tag of this process; never 0.
#[inline]
pub fn tag() -> u32 {
    let word = WORD.load(Ordering::Acquire);
    // SAFETY: null, a static, or in a page that is mapped for good.
    let tag = unsafe { word.as_ref() }.map_or(0, |word| word.load(Ordering::Relaxed));
    if tag == 0 { make() } else { tag }
}

#[cold]
#[inline(never)]
fn make() -> u32 {
    let word = word();
    if ptr::eq(word, &raw const NONE) {
        return std::process::id();
    }
    let next = LAST.fetch_add(1, Ordering::Relaxed).wrapping_add(1).max(1);
    match word.compare_exchange(0, next, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => next,
        Err(first) => first,
    }
}

/// The word, whoever makes it first.
fn word() -> &'static AtomicU32 {
    let page = || {
        let page = Mapping::anonymous(PAGE, Access::Write)?;
        // SAFETY: the page is new; what a fork takes away is what it is for.
        unsafe { page.advise(Advice::LinuxWipeOnFork) }?;
        rustix::io::Result::Ok(page)
    };
    if WORD.load(Ordering::Acquire).is_null() {
        let page = page().ok();
        let none = (&raw const NONE).cast_mut();
        let ours = page.as_ref().map_or(none, |page| page.start().cast().as_ptr());
        let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
        if WORD.compare_exchange(ptr::null_mut(), ours, success, failure).is_ok() {
            page.map(Mapping::leak);
        }
    }
    // SAFETY: not null any more; otherwise as in `tag`.
    unsafe { &*WORD.load(Ordering::Acquire) }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_child_has_another_tag() {
        let here = tag();
        assert!(here != 0 && std::thread::spawn(tag).join().unwrap() == here);
        // SAFETY: the child maps nothing and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let code = i32::from(tag() == here || tag() != tag() || tag() == 0);
            // SAFETY: ends the child.
            unsafe { libc::_exit(code) };
        }
        let mut status = 0;
        // SAFETY: our own child.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!((status, tag()), (0, here));
    }
}
