//! The readers-writer lock of futex2 among the threads of one process.

mod common;
#[path = "common/locks.rs"]
mod locks;

use common::{SetAtEnd, asleep};
use locks::{Plain, ROUNDS, WAITERS, WANTS, far, soon, threads, turns_of_hogs};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use unmerged::futex2::lock::{Event, Mutex, RawRwLock, RwLock, RwLockWriteGuard, select};
use unmerged::futex2::{Deadline, Private, Scope, Shared};

fn rwlock<S: Scope>() {
    let (lock, plain) = (RwLock::<(), S>::new(()), Plain::new());
    let writes = AtomicU64::new(0);
    threads(4, |me| {
        for round in 0..ROUNDS / 4 {
            match (round + me) % 6 {
                0 => {
                    let guard = lock.write();
                    // SAFETY: the only writer, without readers.
                    unsafe { plain.add_one() };
                    writes.fetch_add(1, Ordering::Relaxed);
                    let guard = RwLockWriteGuard::downgrade(guard);
                    plain.check();
                    drop(guard);
                }
                1 => {
                    let soon = Deadline::after(Duration::from_micros(20));
                    if let Ok(_guard) = lock.try_write_until(soon) {
                        // SAFETY: as above.
                        unsafe { plain.add_one() };
                        writes.fetch_add(1, Ordering::Relaxed);
                    }
                }
                2 => {
                    let soon = Deadline::after(Duration::from_micros(20));
                    if let Ok(_guard) = lock.try_read_until(soon) {
                        plain.check();
                    }
                }
                3 => {
                    if let Some(_guard) = lock.try_read() {
                        plain.check();
                    }
                }
                _ => {
                    let _guard = lock.read();
                    plain.check();
                }
            }
        }
    });
    assert_eq!(plain.check(), writes.into_inner());
    drop(lock.write());
}

#[test]
fn rwlock_private() {
    rwlock::<Private>();
}

#[test]
fn rwlock_shared() {
    rwlock::<Shared>();
}

#[test]
fn rwlock_smoke() {
    let mut lock = RwLock::<_>::new(1);
    {
        let (one, two) = (lock.read(), lock.try_read().unwrap());
        assert_eq!((*one, *two), (1, 1));
        assert!(lock.try_write().is_none());
        assert!(lock.try_write_until(soon()).unwrap_err().is_timed_out());
        // The writer that gave up keeps nobody out.
        assert!(lock.try_read().is_some());
    }
    let mut guard = lock.write();
    assert!(lock.try_read().is_none() && lock.try_write().is_none());
    assert!(lock.try_read_until(soon()).unwrap_err().is_timed_out());
    *guard = 2;
    let guard = RwLockWriteGuard::downgrade(guard);
    assert!(*guard == 2 && lock.try_read().is_some() && lock.try_write().is_none());
    drop(guard);
    *lock.get_mut() = 3;
    assert_eq!(*lock.read(), 3);
    assert_eq!(lock.into_inner(), 3);
}

/// Writers that hog, against readers, against writers, and against both.
#[test]
fn hogs_of_a_rwlock_starve_nobody() {
    fn run<S: Scope>() {
        let (lock, number) = (RwLock::<(), S>::new(()), AtomicUsize::new(0));
        let is_locked = || lock.is_locked();
        let turn = |held: &dyn Fn()| {
            if let Some(_guard) = lock.try_write() {
                held();
            }
        };
        let read = turns_of_hogs(is_locked, turn, || drop(lock.read()));
        let write = turns_of_hogs(is_locked, turn, || drop(lock.write()));
        let both = turns_of_hogs(is_locked, turn, || {
            if number.fetch_add(1, Ordering::Relaxed) % 2 == 0 {
                drop(lock.read());
            } else {
                drop(lock.write());
            }
        });
        eprintln!("{read}, {write}, {both} turns of the hogs, {} of the others", WAITERS * WANTS);
    }
    run::<Private>();
    run::<Shared>();
}

/// A writer that waits keeps new readers out, so readers that overlap without end do not starve it.
#[test]
fn readers_do_not_starve_a_writer() {
    let (lock, stop) = (RwLock::<u32>::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let finish = SetAtEnd(&stop);
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let _guard = lock.read();
                    std::thread::sleep(Duration::from_micros(100));
                }
            });
        }
        for _ in 0..20 {
            *lock.try_write_until(far()).expect("readers starve it") += 1;
        }
        drop(finish);
    });
}

/// A wake of the lock finds a thread that selects a mutex beside it, whose place in the table of
/// waiters is the same. It is none of the lock's: the reader is woken still.
#[test]
fn a_stranger_beside_the_lock() {
    #[repr(C, align(8))]
    struct Neighbours {
        before: u32,
        lock: RwLock<()>,
        mutex: Mutex<u8>,
    }
    let near = Neighbours { before: 0, lock: RwLock::new(()), mutex: Mutex::new(0) };
    let at = |part: *const u8| part.addr() / 8;
    let turn = std::ptr::from_ref(&near.lock).cast::<u8>().wrapping_add(4);
    assert_eq!((at(turn), near.before), (at(std::ptr::from_ref(&near.mutex).cast()), 0));
    let (held, go) = (Event::<Private>::new(false), Event::<Private>::new(false));
    std::thread::scope(|scope| {
        let busy = near.mutex.lock();
        let stranger = asleep(scope, || select(&[&near.mutex], Some(far())));
        let guard = near.lock.write();
        // One that has slept, and so cannot know whether others do.
        let writer = asleep(scope, || {
            let _guard = near.lock.write();
            held.set();
            go.wait();
        });
        drop(guard);
        held.wait();
        let reader = asleep(scope, || near.lock.try_read_until(far()).is_ok());
        go.set();
        writer.join().unwrap();
        assert!(reader.join().unwrap(), "left asleep");
        drop(busy);
        assert_eq!(stranger.join().unwrap().unwrap(), 0);
    });
}

/// What was handed to one that has died, or is called by one that has, is free for those who try.
#[test]
fn what_the_dead_were_handed() {
    const HANDED: u32 = 1 << 29;
    const READERS: u32 = 1 << 30;
    const WRITERS: u32 = 1 << 31;
    for state in [HANDED, READERS, WRITERS, READERS | WRITERS | HANDED] {
        let words = [AtomicU32::new(state), AtomicU32::new(0)];
        // SAFETY: two words, and any state is a lock.
        let lock = unsafe { &*words.as_ptr().cast::<RawRwLock<Shared>>() };
        assert!(lock.try_read(), "{state:#x}");
        // SAFETY: it is held for reading.
        unsafe { lock.unlock_read() };
        assert_eq!(words[0].load(Ordering::Relaxed), 0);
    }
    // Readers that were handed it keep no other readers out, if nobody waits.
    let words = [AtomicU32::new(HANDED | 1), AtomicU32::new(0)];
    // SAFETY: as above.
    let lock = unsafe { &*words.as_ptr().cast::<RawRwLock<Shared>>() };
    assert!(lock.try_read() && lock.try_read_until(far()).is_ok());
}
