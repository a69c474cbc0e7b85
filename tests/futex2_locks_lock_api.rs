//! Code that is generic over lock_api, on the locks of futex2.

use lock_api::{
    GetThreadId, MappedMutexGuard, MutexGuard, RawMutexFair, RawMutexTimed, RawRwLockDowngrade,
    RawRwLockTimed, ReentrantMutex, RwLockWriteGuard,
};
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use unmerged::futex2::lock::{RawMutex, RawRwLock};
use unmerged::futex2::{Private, Shared};

fn mutex<R: RawMutexFair + RawMutexTimed<Duration = Duration, Instant = Instant> + Sync + Send>() {
    const ROUNDS: u32 = 2000;
    let mutex = lock_api::Mutex::<R, u32>::new(0);
    std::thread::scope(|scope| {
        for me in 0..4 {
            let mutex = &mutex;
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let mut guard = mutex.lock();
                    *guard += 1;
                    if (round + me) % 9 == 0 {
                        lock_api::MutexGuard::unlock_fair(guard);
                    } else if (round + me) % 9 == 1 {
                        lock_api::MutexGuard::bump(&mut guard);
                    }
                }
            });
        }
    });
    let guard = mutex.lock();
    assert!(*guard == 4 * ROUNDS && mutex.is_locked() && mutex.try_lock().is_none());
    assert!(mutex.try_lock_for(Duration::from_millis(2)).is_none());
    assert!(mutex.try_lock_until(Instant::now() + Duration::from_millis(2)).is_none());
    drop(guard);
    assert!(mutex.try_lock_for(Duration::from_secs(9)).is_some() && !mutex.is_locked());
}

fn rwlock<R: RawRwLockDowngrade + RawRwLockTimed<Duration = Duration, Instant = Instant>>() {
    let lock = lock_api::RwLock::<R, u32>::new(1);
    let soon = Duration::from_millis(2);
    let read = lock.read();
    assert!(lock.try_read().is_some() && lock.try_write_for(soon).is_none());
    assert!(lock.try_write_until(Instant::now() + soon).is_none() && lock.is_locked());
    drop(read);
    let mut write = lock.write();
    *write = 2;
    assert!(lock.try_read_for(soon).is_none() && lock.is_locked_exclusive());
    assert!(lock.try_read_until(Instant::now() + soon).is_none());
    let read = lock_api::RwLockWriteGuard::downgrade(write);
    assert!(*read == 2 && lock.try_read().is_some() && !lock.is_locked_exclusive());
}

/// What parking_lot's own suite has for mutexes, for any raw one: into_inner drops once, get_mut,
/// a mutex in a mutex, access while unwinding, unsized data, guards of a part, Debug.
fn mutex_suite<R: RawMutexFair + Sync + Send>() {
    struct Counts<'a>(&'a AtomicUsize);
    impl Drop for Counts<'_> {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let drops = AtomicUsize::new(0);
    let counted = lock_api::Mutex::<R, _>::new(Counts(&drops));
    {
        let _inner = counted.into_inner();
        assert_eq!(drops.load(Ordering::SeqCst), 0);
    }
    assert_eq!(drops.load(Ordering::SeqCst), 1);
    let mut mutex = lock_api::Mutex::<R, _>::new((1, [2, 3]));
    mutex.get_mut().0 = 4;
    assert!(format!("{mutex:?}").contains("4"));
    let guard = mutex.lock();
    assert!(format!("{mutex:?}").contains("locked"));
    let mut part: MappedMutexGuard<'_, R, i32> = MutexGuard::map(guard, |both| &mut both.1[0]);
    *part = 5;
    drop(part);
    assert_eq!(mutex.lock().1, [5, 3]);
    let unlocked = {
        let mut guard = mutex.lock();
        MutexGuard::unlocked(&mut guard, || mutex.try_lock().is_some())
    };
    assert!(unlocked && !mutex.is_locked());
    let nested = lock_api::Mutex::<R, _>::new(lock_api::Mutex::<R, _>::new(1));
    *nested.lock().lock() += 1;
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        struct Adds<'a, R: lock_api::RawMutex>(&'a lock_api::Mutex<R, i32>);
        impl<R: lock_api::RawMutex> Drop for Adds<'_, R> {
            fn drop(&mut self) {
                *self.0.lock() += 1;
            }
        }
        let inner = nested.lock();
        let _adds = Adds(&inner);
        resume_unwind(Box::new(()));
    }));
    assert!(panicked.is_err() && *nested.lock().lock() == 3);
    let unsized_: &lock_api::Mutex<R, [i32]> = &lock_api::Mutex::new([1, 2, 3]);
    unsized_.lock()[2] = 9;
    assert_eq!(*unsized_.lock(), [1, 2, 9]);
    let total = lock_api::Mutex::<R, u32>::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..500).for_each(|_| *total.lock() += 1));
        }
    });
    assert_eq!(total.into_inner(), 4000);
}

/// Several locks of one thread on one mutex, by what lock_api builds on any raw one.
fn reentrant<R: lock_api::RawMutex + Sync + Send>() {
    struct Ids;
    // SAFETY: no two threads that live have one id.
    unsafe impl GetThreadId for Ids {
        const INIT: Self = Self;
        fn nonzero_thread_id(&self) -> NonZeroUsize {
            // SAFETY: asks for a number.
            NonZeroUsize::new(unsafe { libc::gettid() } as usize).unwrap()
        }
    }
    let mutex = ReentrantMutex::<R, Ids, _>::new(std::cell::Cell::new(0));
    let (one, two) = (mutex.lock(), mutex.try_lock().unwrap());
    two.set(one.get() + 1);
    std::thread::scope(|scope| {
        scope.spawn(|| assert!(mutex.try_lock().is_none()));
    });
    drop((one, two));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..500 {
                    let outer = mutex.lock();
                    let inner = mutex.lock();
                    inner.set(outer.get() + 1);
                }
            });
        }
    });
    assert_eq!(mutex.into_inner().get(), 2001);
}

/// The same of readers-writer locks; many that read and write, and downgrades under contention.
fn rwlock_suite<R: RawRwLockDowngrade + Sync + Send>() {
    let lock = lock_api::RwLock::<R, [u32; 2]>::new([0; 2]);
    std::thread::scope(|scope| {
        for me in 0..6 {
            let lock = &lock;
            scope.spawn(move || {
                for round in 0..800 {
                    if (round + me) % 5 == 0 {
                        let mut both = lock.write();
                        both[0] += 1;
                        both[1] += 1;
                        let both = RwLockWriteGuard::downgrade(both);
                        assert_eq!(both[0], both[1]);
                    } else {
                        let both = lock.read();
                        assert_eq!(both[0], both[1]);
                    }
                }
            });
        }
    });
    assert_eq!(*lock.read(), [960; 2]);
    let mut lock = lock;
    lock.get_mut()[0] = 1;
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let mut both = lock.write();
        both[1] = 2;
        resume_unwind(Box::new(()));
    }));
    assert!(panicked.is_err() && !lock.is_locked());
    let part = RwLockWriteGuard::map(lock.write(), |both| &mut both[0]);
    assert!(*part == 1 && lock.try_read().is_none());
    drop(part);
    assert!(format!("{lock:?}").contains("[1, 2]"));
    assert_eq!(lock.into_inner(), [1, 2]);
    let unsized_: &lock_api::RwLock<R, [i32]> = &lock_api::RwLock::new([1, 2]);
    unsized_.write()[0] = 3;
    assert_eq!(*unsized_.read(), [3, 2]);
}

#[test]
fn mutexes() {
    mutex::<RawMutex<Private>>();
    mutex::<RawMutex<Shared>>();
    mutex_suite::<RawMutex<Private>>();
    mutex_suite::<RawMutex<Shared>>();
    reentrant::<RawMutex<Private>>();
    reentrant::<RawMutex<Shared>>();
}

#[test]
fn rwlocks() {
    rwlock::<RawRwLock<Private>>();
    rwlock::<RawRwLock<Shared>>();
    rwlock_suite::<RawRwLock<Private>>();
    rwlock_suite::<RawRwLock<Shared>>();
}
