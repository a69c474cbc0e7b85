//! Something that is done once.
//!
//! | value | means |
//! |---|---|
//! | 0, `NEW` | nobody has begun |
//! | 1, `RUNNING` | somebody does it |
//! | 2, `AWAITED` | the same, and somebody may sleep |
//! | 3, `DONE` | |

use super::cell::Cell;
use super::waiting::without_fail;
use crate::error::Result;
use crate::futex2::{Deadline, Futex, Private, Scope};
use crate::sync::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::fmt;

const NEW: u8 = 0;
const RUNNING: u8 = 1;
const AWAITED: u8 = 2;
const DONE: u8 = 3;

/// Runs a function once, whoever comes first; the others wait for it.
///
/// A function that panics has not been run: the next one tries. One that calls its own `Once`
/// waits for itself, for ever. In shared memory zeros are a new
/// one; a process that dies in its function leaves the others waiting, so give them a
/// [deadline](Self::call_once_until).
///
/// ```
/// use unmerged::futex2::lock::Once;
///
/// static START: Once = Once::new();
/// let mut runs = 0;
/// START.call_once(|| runs += 1);
/// START.call_once(|| runs += 1);
/// assert_eq!(runs, 1);
/// ```
#[repr(C)]
pub struct Once<S: Scope = Private> {
    word: Futex<u8, S>,
}

impl<S: Scope> Once<S> {
    /// Nothing has been done.
    pub const fn new() -> Self {
        Self { word: Futex::new(NEW) }
    }

    /// Runs `f` if nobody has. When this returns it has been done, and what it did is seen.
    ///
    /// # Panics
    ///
    /// If `f` does.
    #[inline]
    pub fn call_once(&self, f: impl FnOnce()) {
        if !self.is_done() {
            let mut f = Some(f);
            without_fail(|| call(&self.word, None, || f.take().into_iter().for_each(|f| f())));
        }
    }

    /// The same, waiting for another's run until the deadline at the most.
    ///
    /// # Errors
    ///
    /// ETIMEDOUT if another one still runs then.
    ///
    /// # Panics
    ///
    /// If `f` does.
    pub fn call_once_until(&self, deadline: Deadline, f: impl FnOnce()) -> Result<()> {
        if self.is_done() { Ok(()) } else { call(&self.word, Some(deadline), f) }
    }

    /// Whether it has been done. It may be used in signal handlers.
    #[inline]
    pub fn is_done(&self) -> bool {
        self.word.load(Acquire) == DONE
    }
}

impl<S: Scope> Default for Once<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: Scope> fmt::Debug for Once<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Once").field("done", &self.is_done()).finish()
    }
}

/// Leaves the word as `then`, and wakes all, when the run is over.
struct Run<'a, C: Cell<u8>> {
    word: &'a C,
    then: u8,
}

impl<C: Cell<u8>> Drop for Run<'_, C> {
    fn drop(&mut self) {
        if self.word.swap(self.then, Release) == AWAITED {
            self.word.wake(u32::MAX);
        }
    }
}

const OPERATION: &str = "futex2::Once::call_once";

#[cold]
fn call<C: Cell<u8>>(word: &C, deadline: Option<Deadline>, f: impl FnOnce()) -> Result<()> {
    loop {
        match word.compare_exchange(NEW, RUNNING, AcqRel, Acquire) {
            Ok(_) => {
                let mut run = Run { word, then: NEW };
                f();
                run.then = DONE;
                return Ok(());
            }
            Err(DONE) => return Ok(()),
            Err(AWAITED) => {}
            // Bytes that are none of these are taken for a run.
            Err(running) => {
                if word.compare_exchange(running, AWAITED, Relaxed, Relaxed).is_err() {
                    continue;
                }
            }
        }
        word.wait(AWAITED, deadline).map_err(|error| error.within(OPERATION))?;
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::super::cell::model::Modelled;
    use super::*;
    use crate::sync::{AtomicU8, model};
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    #[test]
    fn done_once_and_seen_by_all() {
        model(|| {
            let shared = Arc::new((Modelled::<AtomicU8>::new(NEW), UnsafeCell::new(0)));
            let body = |(word, data): &(Modelled<AtomicU8>, UnsafeCell<u32>)| {
                // SAFETY: one thread runs it, before the others read.
                call(word, None, || data.with_mut(|data| unsafe { *data += 1 })).unwrap();
                // SAFETY: it has been done.
                assert_eq!(data.with(|data| unsafe { *data }), 1);
            };
            let others = [(); 2].map(|()| {
                let shared = shared.clone();
                thread::spawn(move || body(&shared))
            });
            body(&shared);
            others.into_iter().for_each(|other| other.join().unwrap());
        });
    }

    /// What is_done answers is ordered, too.
    #[test]
    fn seen_without_a_call() {
        model(|| {
            let shared = Arc::new((Modelled::<AtomicU8>::new(NEW), UnsafeCell::new(0)));
            let other = shared.clone();
            let runner = thread::spawn(move || {
                // SAFETY: nobody reads before it is done.
                call(&other.0, None, || other.1.with_mut(|data| unsafe { *data = 1 })).unwrap();
            });
            if shared.0.load(Acquire) == DONE {
                // SAFETY: it has been done.
                assert_eq!(shared.1.with(|data| unsafe { *data }), 1);
            }
            runner.join().unwrap();
        });
    }

    /// One leaves at its deadline, or sees it done: the other one does.
    #[test]
    fn one_gives_up() {
        model(|| {
            let word = Arc::new(Modelled::<AtomicU8>::new(RUNNING));
            let bodies = [None, Some(Deadline::monotonic(core::time::Duration::MAX))];
            let bodies = bodies.map(|deadline| {
                let word = word.clone();
                thread::spawn(move || {
                    let done = call(&*word, deadline, || panic!("it runs already"));
                    assert!(deadline.is_some() || done.is_ok());
                })
            });
            word.end_deadlines(1);
            drop(Run { word: &*word, then: DONE });
            bodies.into_iter().for_each(|body| body.join().unwrap());
        });
    }
}
