//! Waiting for the first of several.

use super::bell::Listener;
use super::waiting::{BEAT, sleep};
use crate::abi::futex2::WAITV_MAX;
use crate::error::{Error, Result};
use crate::futex2::{Deadline, Waiter, waitv};
use core::time::Duration;
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
pub struct Announced<'a> {
    _listener: Option<Listener<'a>>,
    /// How long it may sleep at the most.
    nap: Option<Duration>,
    /// How often an event had been set.
    time: Option<u32>,
}

impl<'a> Announced<'a> {
    /// Of a source that does not count.
    pub(super) const NONE: Self = Self { _listener: None, nap: None, time: None };

    /// Counted. With a nap, it sleeps no longer than that before it looks again.
    pub(super) fn new(listener: Listener<'a>, nap: Option<Duration>) -> Self {
        Self { _listener: Some(listener), nap, time: None }
    }

    /// Of an event, which lets whoever waits through when this has become another number.
    pub(super) fn at(time: u32) -> Self {
        Self { time: Some(time), ..Self::NONE }
    }
}

/// Something that [`select()`] waits for: a [`Semaphore`](super::Semaphore), an
/// [`Event`](super::Event), an [`AutoEvent`](super::AutoEvent), a [`Mutex`](super::Mutex) that is to
/// become free, the receiving end of a [`Channel`](super::Channel) or its sending end.
///
/// A [`Waiter`] is one too: it is ready when its word holds another value than it expects.
///
/// None are: a [`Condvar`](super::Condvar), for who waits gives a mutex back and takes it again; a
/// [`RobustMutex`](super::RobustMutex), for a death wakes nobody, and who waits has to look for it; a
/// [`RwLock`](super::RwLock) and a [`Once`](super::Once). An event or a semaphore beside them
/// serves.
///
/// It is implemented here alone, and what it asks is for [`select()`].
pub trait Source {
    /// Looks; announces a sleeper if there is nothing.
    #[doc(hidden)]
    fn ready(&self, inside: Inside) -> Ready<'_>;

    /// A wake may have been spent on a thread that takes something else: wakes the next one if there
    /// is something.
    #[doc(hidden)]
    fn pass_on(&self, inside: Inside);
}

/// Nobody else can name or make it, so nobody else implements or calls what takes it.
#[derive(Debug, Clone, Copy)]
pub struct Inside(());

impl Source for Waiter<'_> {
    fn ready(&self, _: Inside) -> Ready<'_> {
        if self.holds() { Ready::Not(*self, Announced::NONE) } else { Ready::Now }
    }

    fn pass_on(&self, _: Inside) {
        if !self.holds() {
            self.wake_another();
        }
    }
}

/// Sleeps until one of the sources may have something; answers its index, the lowest if there are
/// several.
///
/// Nothing is taken: call `try_acquire`, `try_recv`, `try_lock` and the like on the one that was
/// named, and select again if another thread was faster. So it is for the caller what comes first:
/// put what is to be preferred at the front. An [`Event`](super::Event) that was set meanwhile counts,
/// even if it is reset again.
///
/// There is no wait for *all* of several: see [`waitv`].
///
/// ```
/// use unmerged::futex2::lock::{Event, Mutex, Semaphore, select};
///
/// let (stop, work): (Event, Semaphore) = (Event::new(false), Semaphore::new(1));
/// assert_eq!(select(&[&stop, &work], None)?, 1);
/// assert!(work.try_acquire());
///
/// // The first of two locks that becomes free.
/// let shards: [Mutex<Vec<u32>>; 2] = [Mutex::new(vec![]), Mutex::new(vec![])];
/// let busy = shards[0].lock();
/// let free = select(&[&shards[0], &shards[1]], None)?;
/// shards[free].try_lock().unwrap().push(1);
/// # drop(busy);
/// # Ok::<(), unmerged::Error>(())
/// ```
///
/// # Errors
///
/// ETIMEDOUT at the deadline; EINVAL for no sources or more than 128; ENOMEM.
pub fn select(sources: &[&dyn Source], deadline: Option<Deadline>) -> Result<usize> {
    const OPERATION: &str = "futex2::select";
    if !(1..=WAITV_MAX).contains(&sources.len()) {
        let given = format_args!("{} of 1 to {WAITV_MAX} sources", sources.len());
        return Err(Error::with(OPERATION, Errno::INVAL, given));
    }
    let mut slept = false;
    let (mut waiters, mut announced) = (Vec::with_capacity(sources.len()), Vec::new());
    let mut times: Vec<Option<u32>> = Vec::new();
    loop {
        waiters.clear();
        let found =
            sources.iter().enumerate().position(|(at, source)| match source.ready(Inside(())) {
                Ready::Now => true,
                Ready::Not(waiter, count) => {
                    let time = count.time;
                    waiters.push(waiter);
                    announced.push(count);
                    match times.get(at) {
                        Some(then) => time != *then,
                        None => {
                            times.push(time);
                            false
                        }
                    }
                }
            });
        let nap = announced.iter().filter_map(|announced: &Announced<'_>| announced.nap).min();
        if let Some(index) = found {
            drop(announced);
            if slept {
                sources.iter().for_each(|source| source.pass_on(Inside(())));
            }
            return Ok(index);
        }
        if deadline.is_some_and(|deadline| deadline.has_passed()) {
            drop(announced);
            // The look above was the last one; a wake that came since is the next one's.
            sources.iter().for_each(|source| source.pass_on(Inside(())));
            return Err(Error::new(OPERATION, Errno::TIMEDOUT));
        }
        let until = nap.map(|nap| Deadline::or_sooner(deadline, nap)).or(deadline);
        let beat = (!waiters.iter().all(Waiter::is_private)).then_some(BEAT);
        let woken = sleep(until, beat, |until| waitv(&waiters, until).map(drop));
        // Before the next look, as those who ring want it.
        announced.clear();
        match woken {
            Err(error) if !error.is_timed_out() => return Err(error),
            _ => slept = true,
        }
    }
}
