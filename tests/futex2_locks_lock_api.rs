//! Code that is generic over lock_api, on the locks of futex2.

use lock_api::{RawMutexFair, RawMutexTimed, RawRwLockDowngrade, RawRwLockTimed};
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

#[test]
fn mutexes() {
    mutex::<RawMutex<Private>>();
    mutex::<RawMutex<Shared>>();
}

#[test]
fn rwlocks() {
    rwlock::<RawRwLock<Private>>();
    rwlock::<RawRwLock<Shared>>();
}
