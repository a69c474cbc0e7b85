//! Waiting for the first of several.

use super::cell::sleep;
use crate::error::{Error, Result};
use crate::futex2::{Deadline, Shared, Waiter, waitv};
use crate::sync::{AtomicU32, Ordering};
use rustix::io::Errno;

/// Whether a source has something now, or what to sleep on until it may.
#[derive(Debug)]
pub enum Ready<'a> {
    /// It has.
    Now,
    /// It had not. The source knows that somebody sleeps, for as long as this is kept.
    Not(Waiter<'a>, Announced<'a>),
}

/// A sleeper that a source counts until this is dropped, if it counts them.
#[derive(Debug)]
pub struct Announced<'a>(Option<&'a AtomicU32>);

impl<'a> Announced<'a> {
    /// Of a source that does not count.
    pub(super) const NONE: Self = Self(None);

    /// Counted. The kernel has a barrier before it compares the word that is slept on.
    pub(super) fn new(count: &'a AtomicU32) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Some(count))
    }
}

impl Drop for Announced<'_> {
    fn drop(&mut self) {
        if let Some(count) = self.0 {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Something that [`select()`] waits for: a [`Semaphore`](super::Semaphore), an
/// [`Event`](super::Event), an [`AutoEvent`](super::AutoEvent), the receiving end of a
/// [`Channel`](super::Channel) or its sending end.
pub trait Source {
    /// Looks; announces a sleeper if there is nothing.
    fn ready(&self) -> Ready<'_>;

    /// A wake may have been spent on a thread that takes something else: wakes the next one if there
    /// is something.
    fn pass_on(&self);
}

/// Sleeps until one of the sources may have something; answers its index, the lowest if there are
/// several.
///
/// Nothing is taken: call `try_acquire`, `try_recv` and the like on the one that was named, and
/// select again if another thread was faster.
///
/// ```
/// use unmerged::futex2::lock::{Event, Semaphore, select};
///
/// let (stop, work): (Event, Semaphore) = (Event::new(false), Semaphore::new(1));
/// assert_eq!(select(&[&stop, &work], None)?, 1);
/// assert!(work.try_acquire());
/// # Ok::<(), unmerged::Error>(())
/// ```
///
/// # Errors
///
/// ETIMEDOUT at the deadline; EINVAL for no sources or more than 128; ENOMEM.
pub fn select(sources: &[&dyn Source], deadline: Option<Deadline>) -> Result<usize> {
    const OPERATION: &str = "futex2::select";
    let mut slept = false;
    loop {
        let (mut waiters, mut announced) = (Vec::with_capacity(sources.len()), Vec::new());
        let found = sources.iter().position(|source| match source.ready() {
            Ready::Now => true,
            Ready::Not(waiter, count) => {
                waiters.push(waiter);
                announced.push(count);
                false
            }
        });
        if let Some(index) = found {
            if slept {
                sources.iter().for_each(|source| source.pass_on());
            }
            return Ok(index);
        }
        if deadline.is_some_and(|deadline| deadline.has_passed()) {
            return Err(Error::new(OPERATION, Errno::TIMEDOUT));
        }
        // With a beat, as shared words need.
        let mut late = false;
        match sleep::<Shared>(deadline, |until| waitv(&waiters, until).map(drop)) {
            Ok(_) => {}
            Err(error) if error.is_timed_out() => late = true,
            Err(error) => return Err(error),
        }
        drop(announced);
        slept = true;
        if late {
            sources.iter().for_each(|source| source.pass_on());
            let found = sources.iter().position(|source| matches!(source.ready(), Ready::Now));
            return found.ok_or(Error::new(OPERATION, Errno::TIMEDOUT));
        }
    }
}
