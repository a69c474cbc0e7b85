//! Which heaps this process uses, and what each of its threads has in hand.
//!
//! A handle is the region's address, which means the same in every process; what it leads to is
//! kept in the process's own memory. A thread finds its slot by one compare; a forked child's
//! thread finds its parent's, sees by the [tag] that it is not its own, and takes another.

use super::class::CLASSES;
use super::hand::Local;
use super::kept::Kept;
use super::member::Member;
use super::space::Space;
use crate::error::{Error, Result};
use crate::mshare::attachment::{Attachment, Keep};
use crate::sync::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use crate::sys::tag::tag;
use core::cell::{Cell, UnsafeCell};
use core::ptr::{self, NonNull};
use rustix::io::Errno;

/// Heaps that a process can use at a time.
const HEAPS: usize = 64;

/// A heap in this process; the region stays mapped.
#[derive(Debug)]
struct Known {
    space: Space,
    _keep: Keep,
}

/// A place for one. Who looks for a heap compares addresses, and follows the pointer of its own
/// alone: another heap may be closed meanwhile.
#[derive(Debug)]
struct Entry {
    /// Address of the region; 0 for none. Set after the pointer, and cleared before it.
    region: AtomicUsize,
    known: AtomicPtr<Known>,
    /// How often one was closed here: what threads remember from before is not used.
    closed: AtomicU32,
}

static KNOWN: [Entry; HEAPS] = [const {
    Entry {
        region: AtomicUsize::new(0),
        known: AtomicPtr::new(ptr::null_mut()),
        closed: AtomicU32::new(0),
    }
}; HEAPS];

/// The heap of the region at this address, and its place.
fn known(region: usize) -> Option<(&'static Entry, Space)> {
    KNOWN.iter().find_map(|entry| {
        if entry.region.load(Ordering::Acquire) != region {
            return None;
        }
        // SAFETY: what is published is a leaked box, which is never changed, and is freed only when
        // nobody uses this heap any more.
        let known = unsafe { entry.known.load(Ordering::Acquire).as_ref() }?;
        Some((entry, known.space))
    })
}

/// Remembers a heap. Two threads may both do, to no harm.
pub(super) fn learn(operation: &'static str, space: Space, attachment: &Attachment) -> Result<()> {
    if known(space.region()).is_some() {
        return Ok(());
    }
    let ours = Box::into_raw(Box::new(Known { space, _keep: attachment.keep() }));
    // After what `forget` did to the entry.
    let (success, failure) = (Ordering::AcqRel, Ordering::Relaxed);
    let is_free = |entry: &&Entry| {
        entry.known.compare_exchange(ptr::null_mut(), ours, success, failure).is_ok()
    };
    if let Some(entry) = KNOWN.iter().find(is_free) {
        entry.region.store(space.region(), Ordering::Release);
        return Ok(());
    }
    // SAFETY: ours, and nobody has seen it.
    drop(unsafe { Box::from_raw(ours) });
    Err(Error::with(operation, Errno::NFILE, format_args!("this process uses {HEAPS} heaps")))
}

/// Forgets the heap of a region, and lets go of what this process's threads had in hand.
pub(super) fn forget(region: usize) {
    let Some((_, space)) = known(region) else { return };
    if let Some(member) = Member::join(space) {
        member.leave_for_all();
    }
    for entry in &KNOWN {
        if entry.region.load(Ordering::Acquire) != region {
            continue;
        }
        entry.closed.fetch_add(1, Ordering::Relaxed);
        entry.region.store(0, Ordering::Relaxed);
        let found = entry.known.swap(ptr::null_mut(), Ordering::AcqRel);
        if let Some(found) = NonNull::new(found) {
            // SAFETY: leaked in `learn`; nobody uses the heap any more, as the caller was promised.
            drop(unsafe { Box::from_raw(found.as_ptr()) });
        }
    }
}

/// One thread's part of one heap.
#[derive(Debug)]
pub(super) struct Cache {
    pub(super) member: Member,
    pub(super) locals: [Local; CLASSES],
    pub(super) kept: Kept,
    tag: u32,
    entry: &'static Entry,
    closed: u32,
}

impl Cache {
    fn join((entry, space): (&'static Entry, Space)) -> Option<Self> {
        let closed = entry.closed.load(Ordering::Relaxed);
        Some(Self {
            member: Member::join(space)?,
            locals: [Local::default(); CLASSES],
            kept: Kept::default(),
            tag: tag(),
            entry,
            closed,
        })
    }

    #[inline]
    fn is_current(&self) -> bool {
        self.tag == tag() && self.closed == self.entry.closed.load(Ordering::Relaxed)
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        // Not in a forked child, nor when the heap was closed.
        if self.is_current() {
            self.member.leave();
        }
    }
}

/// A thread's caches.
#[expect(clippy::vec_box, reason = "`LAST` points at one")]
struct Caches(UnsafeCell<Vec<Box<Cache>>>);

thread_local! {
    /// The one that was used last, of [`CACHES`]: found without a search. It needs no destructor,
    /// so nobody asks at each use whether that has run.
    static LAST: Cell<*mut Cache> = const { Cell::new(ptr::null_mut()) };
    static CACHES: Caches = const { Caches(UnsafeCell::new(Vec::new())) };
}

impl Drop for Caches {
    fn drop(&mut self) {
        LAST.set(ptr::null_mut());
    }
}

/// The calling thread's part of the heap at `region`, if it is the one that it used last. Nothing
/// else refers to it.
#[inline]
pub(super) fn last(region: usize) -> Option<NonNull<Cache>> {
    let last = NonNull::new(LAST.get())?;
    // SAFETY: in a box of `CACHES`, which are dropped in `search` and with the thread only, and
    // `LAST` is null then.
    let cache = unsafe { last.as_ref() };
    (cache.member.space.region() == region && cache.is_current()).then_some(last)
}

impl Caches {
    #[cold]
    #[inline(never)]
    fn search(&self, region: usize) -> Option<NonNull<Cache>> {
        LAST.set(ptr::null_mut());
        // SAFETY: this thread's, and nothing that is called here comes back here.
        let all = unsafe { &mut *self.0.get() };
        all.retain(|cache| cache.is_current());
        let at = match all.iter().position(|cache| cache.member.space.region() == region) {
            Some(at) => at,
            None => {
                all.push(Box::new(Cache::join(known(region)?)?));
                all.len() - 1
            }
        };
        let cache = NonNull::from(&mut *all[at]);
        LAST.set(cache.as_ptr());
        Some(cache)
    }
}

/// Does something with the calling thread's part of the heap at `region`.
///
/// # Errors
///
/// ENXIO if this process does not use that heap, EAGAIN if every slot of it is taken.
pub(super) fn with<R>(
    operation: &'static str,
    region: usize,
    body: impl FnOnce(&mut Cache) -> R,
) -> Result<R> {
    let found = last(region).map(Some);
    // What the thread that is ending has in hand is given back with the slot.
    let mut for_this_once;
    let found = match found.map_or_else(|| CACHES.try_with(|caches| caches.search(region)), Ok) {
        Ok(found) => found,
        Err(_) => {
            for_this_once = known(region).and_then(Cache::join).map(Box::new);
            for_this_once.as_deref_mut().map(NonNull::from)
        }
    };
    match found {
        // SAFETY: this thread's, and no body comes back here.
        Some(mut cache) => Ok(body(unsafe { cache.as_mut() })),
        None => Err(refused(operation, region)),
    }
}

#[cold]
fn refused(operation: &'static str, region: usize) -> Error {
    match known(region) {
        None => Error::with(
            operation,
            Errno::NXIO,
            format_args!("no heap of a region at {region:#x} in this process"),
        ),
        Some((_, space)) => Error::with(
            operation,
            Errno::AGAIN,
            format_args!("all {} participants of the heap are alive", space.slots()),
        ),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Another heap may be freed at any time.
    #[test]
    fn only_the_heap_that_is_looked_for_is_looked_at() {
        let entry = KNOWN.last().unwrap();
        entry.known.store(ptr::without_provenance_mut(8), Ordering::Relaxed);
        entry.region.store(1, Ordering::Relaxed);
        assert!(known(2).is_none());
        entry.region.store(0, Ordering::Relaxed);
        entry.known.store(ptr::null_mut(), Ordering::Relaxed);
    }
}
