//! What the tests of the locks share.
#![allow(dead_code, reason = "each test binary uses its own part")]

use crate::common::own_tid;
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;
use unmerged::futex2::Deadline;

/// Nothing takes this long; who waits until then was left asleep.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// [`LONG`] from now.
pub(crate) fn far() -> Deadline {
    Deadline::after(LONG)
}

pub(crate) fn soon() -> Deadline {
    Deadline::after(Duration::from_millis(5))
}

pub(crate) fn past() -> Deadline {
    Deadline::monotonic(Duration::ZERO)
}

/// Runs `body` in each of `n` threads.
pub(crate) fn threads(n: usize, body: impl Fn(usize) + Sync) {
    std::thread::scope(|scope| {
        for me in 0..n {
            let body = &body;
            scope.spawn(move || body(me));
        }
    });
}

/// Plain words that are equal whenever nobody is inside.
pub(crate) struct Plain(UnsafeCell<[u64; 4]>);

// SAFETY: reached under the lock that a test is about.
unsafe impl Sync for Plain {}

impl Plain {
    pub(crate) const fn new() -> Self {
        Self(UnsafeCell::new([0; 4]))
    }
    /// # Safety
    ///
    /// The caller excludes all others.
    pub(crate) unsafe fn add_one(&self) {
        let words = self.0.get().cast::<u64>();
        let value = self.check();
        for index in 0..4 {
            // SAFETY: one of four words that are ours for now.
            unsafe { words.add(index).write_volatile(value + 1) };
        }
    }
    pub(crate) fn check(&self) -> u64 {
        // SAFETY: nobody writes, if the lock works.
        let words = unsafe { self.0.get().read_volatile() };
        assert!(words.iter().all(|word| *word == words[0]), "{words:?}");
        words[0]
    }
}

pub(crate) const ROUNDS: usize = 20_000;

/// Threads that want a lock which two hogs pass to and fro.
pub(crate) const WAITERS: usize = 2;

/// How often each of them wants it.
pub(crate) const WANTS: usize = 3;

/// How many turns two hogs have until everybody has got what it wants. The one that does not hold
/// the lock looks at it without pause, and has it long before anybody who is woken can run. A turn
/// lasts until all that still want the lock sleep, and longer than anybody is to be passed over.
/// `turn` takes the lock, if it can, and holds it while it calls what it is given.
pub(crate) fn turns_of_hogs(
    is_locked: impl Fn() -> bool + Sync,
    turn: impl Fn(&dyn Fn()) + Sync,
    want: impl Fn() + Sync,
) -> usize {
    const MOST: usize = WAITERS * WANTS * 20;
    let tids: Vec<_> = (0..WAITERS).map(|_| AtomicU32::new(0)).collect();
    let done: Vec<_> = (0..WAITERS).map(|_| AtomicBool::new(false)).collect();
    let turns = AtomicUsize::new(0);
    let inside = AtomicBool::new(false);
    let held = || {
        inside.store(true, Ordering::SeqCst);
        for (tid, done) in tids.iter().zip(&done) {
            while !done.load(Ordering::SeqCst) && !sleeps(tid.load(Ordering::SeqCst)) {
                std::thread::yield_now();
            }
        }
        std::thread::sleep(Duration::from_micros(500));
        inside.store(false, Ordering::SeqCst);
        turns.fetch_add(1, Ordering::SeqCst);
    };
    let hog = || {
        while turns.load(Ordering::SeqCst) < MOST
            && !done.iter().all(|done| done.load(Ordering::SeqCst))
        {
            if is_locked() {
                std::hint::spin_loop();
            } else {
                turn(&held);
            }
        }
    };
    threads(WAITERS + 2, |me| match (tids.get(me), done.get(me)) {
        (Some(tid), Some(done)) => {
            tid.store(own_tid().cast_unsigned(), Ordering::SeqCst);
            for _ in 0..WANTS {
                while !inside.load(Ordering::SeqCst) && turns.load(Ordering::SeqCst) < MOST {
                    std::thread::yield_now();
                }
                want();
            }
            done.store(true, Ordering::SeqCst);
        }
        _ => hog(),
    });
    let turns = turns.into_inner();
    assert!(turns < MOST, "somebody was starved");
    turns
}

/// Whether a thread that may have ended is asleep.
pub(crate) fn sleeps(tid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{tid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S'))
}
