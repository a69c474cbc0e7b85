//! The locks of futex2 among the threads of one process: exclusion with plain data, deadlines, no
//! herd, no waiter left behind.

mod common;

use common::{SetAtEnd, child, handle_with, role, succeed};
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use unmerged::futex2::lock::{
    AutoEvent, Channel, Condvar, Event, Locked, Mutex, MutexGuard, Once, RobustMutex, RwLock,
    Semaphore, select,
};
use unmerged::futex2::{Deadline, Private, Scope, Shared};

const LONG: Duration = Duration::from_secs(60);

fn soon() -> Deadline {
    Deadline::after(Duration::from_millis(5))
}

fn past() -> Deadline {
    Deadline::monotonic(Duration::ZERO)
}

/// Runs `body` in each of `n` threads.
fn threads(n: usize, body: impl Fn(usize) + Sync) {
    std::thread::scope(|scope| {
        for me in 0..n {
            let body = &body;
            scope.spawn(move || body(me));
        }
    });
}

/// Plain words that are equal whenever nobody is inside.
struct Plain(UnsafeCell<[u64; 4]>);

// SAFETY: reached under the lock that a test is about.
unsafe impl Sync for Plain {}

impl Plain {
    const fn new() -> Self {
        Self(UnsafeCell::new([0; 4]))
    }
    /// # Safety
    ///
    /// The caller excludes all others.
    unsafe fn add_one(&self) {
        let words = self.0.get().cast::<u64>();
        let value = self.check();
        for index in 0..4 {
            // SAFETY: one of four words that are ours for now.
            unsafe { words.add(index).write_volatile(value + 1) };
        }
    }
    fn check(&self) -> u64 {
        // SAFETY: nobody writes, if the lock works.
        let words = unsafe { self.0.get().read_volatile() };
        assert!(words.iter().all(|word| *word == words[0]), "{words:?}");
        words[0]
    }
}

const ROUNDS: usize = 20_000;

fn mutex<S: Scope>() {
    let (mutex, plain) = (Mutex::<(), S>::new(()), Plain::new());
    threads(4, |me| {
        for round in 0..ROUNDS / 4 {
            let guard = match (round + me) % 5 {
                0 => mutex.try_lock_until(Deadline::after(LONG)).unwrap(),
                1 => loop {
                    match mutex.try_lock_until(Deadline::after(Duration::from_micros(20))) {
                        Ok(guard) => break guard,
                        Err(error) => assert!(error.is_timed_out()),
                    }
                },
                2 => mutex.try_lock().unwrap_or_else(|| mutex.lock()),
                _ => mutex.lock(),
            };
            // SAFETY: the lock is held.
            unsafe { plain.add_one() };
            if round % 7 == 0 {
                guard.unlock_fair();
            }
        }
    });
    assert_eq!(plain.check(), ROUNDS as u64);
    assert!(!mutex.is_locked());
}

#[test]
fn mutex_private() {
    mutex::<Private>();
}

#[test]
fn mutex_shared() {
    mutex::<Shared>();
}

/// Of std's and parking_lot's suites: try_lock, into_inner, get_mut, a mutex in a mutex, unsized,
/// access while unwinding, Debug.
#[test]
fn mutex_smoke() {
    let mut mutex = Mutex::<_>::new(vec![1]);
    assert!(format!("{mutex:?}").contains("[1]"));
    let guard = mutex.lock();
    assert!(mutex.try_lock().is_none() && mutex.is_locked());
    assert!(mutex.try_lock_until(past()).unwrap_err().is_timed_out());
    assert!(mutex.try_lock_until(soon()).unwrap_err().is_timed_out());
    assert!(format!("{mutex:?}").contains("locked"));
    drop(guard);
    mutex.get_mut().push(2);
    assert_eq!(mutex.into_inner(), [1, 2]);
    let nested = Mutex::<_>::new(Mutex::<_>::new(1));
    *nested.lock().lock() += 1;
    let unsized_: &Mutex<[i32]> = &Mutex::new([1, 2, 3]);
    unsized_.lock()[0] = 4;
    assert_eq!(*unsized_.lock(), [4, 2, 3]);
    // No poison: a panic gives the lock back.
    let result = catch_unwind(AssertUnwindSafe(|| {
        let _guard = nested.lock();
        std::panic::resume_unwind(Box::new(()));
    }));
    assert!(result.is_err() && !nested.is_locked());
    assert_eq!(*nested.lock().lock(), 2);
}

/// A hand-over: the holder gives the lock to the sleeper and does not get it back at once. A
/// sleeper that gets no CPU for long may be passed over, so not each time.
#[test]
fn a_fair_unlock_hands_over() {
    let handed = (0..20).filter(|_| is_handed_over()).count();
    assert!(handed > 0, "of 20");
}

fn is_handed_over() -> bool {
    let (mutex, tid) = (Mutex::<u32>::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        let guard = mutex.lock();
        scope.spawn(|| {
            tid.store(gettid(), Ordering::SeqCst);
            *mutex.lock() = 1;
        });
        while tid.load(Ordering::SeqCst) == 0 || !is_asleep(tid.load(Ordering::SeqCst)) {
            std::thread::yield_now();
        }
        guard.unlock_fair();
        *mutex.lock() == 1
    })
}

fn gettid() -> u32 {
    // SAFETY: asks for a number.
    unsafe { libc::gettid() }.cast_unsigned()
}

fn is_asleep(tid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{tid}/stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.starts_with('S')
}

/// One that holds the lock nearly all the time does not starve the others.
#[test]
fn a_greedy_thread_starves_nobody() {
    let (mutex, stop) = (Mutex::<()>::new(()), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let finish = SetAtEnd(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let _guard = mutex.lock();
                let begin = Instant::now();
                while begin.elapsed() < Duration::from_micros(200) {}
            }
        });
        for _ in 0..20 {
            drop(mutex.lock());
        }
        drop(finish);
    });
}

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
                    let guard = guard.downgrade();
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
    let guard = guard.downgrade();
    assert!(*guard == 2 && lock.try_read().is_some() && lock.try_write().is_none());
    drop(guard);
    *lock.get_mut() = 3;
    assert_eq!(*lock.read(), 3);
    assert_eq!(lock.into_inner(), 3);
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
            *lock.write() += 1;
        }
        drop(finish);
    });
}

fn condvar<S: Scope>() {
    // std's: one tells, one is told; deadlines; all are told.
    let (mutex, condvar) = (Mutex::<u32, S>::new(0), Condvar::<S>::new());
    condvar.notify_one();
    condvar.notify_all();
    let mut guard = mutex.lock();
    for deadline in [past(), soon()] {
        while let Ok(()) = condvar.wait_until(&mut guard, deadline) {}
        assert!(deadline.has_passed());
    }
    drop(guard);
    threads(5, |me| {
        if me == 0 {
            for _ in 0..4 {
                *mutex.lock() += 1;
                condvar.notify_one();
            }
        } else {
            let mut guard = mutex.lock();
            condvar.wait_while(&mut guard, |n| *n == 0);
            *guard -= 1;
        }
    });
    assert_eq!(mutex.into_inner(), 0);
}

#[test]
fn condvar_private() {
    condvar::<Private>();
}

#[test]
fn condvar_shared() {
    condvar::<Shared>();
}

/// A queue of one place, several producers and consumers, one condition for all: each change tells
/// all. Nothing is lost, and nobody is left asleep.
#[test]
fn notify_all_reaches_all() {
    const ITEMS: u64 = 2000;
    fn run<S: Scope>() {
        let (queue, changed) = (Mutex::<Option<u64>, S>::new(None), Condvar::<S>::new());
        let sum = AtomicU64::new(0);
        threads(6, |me| {
            for item in 0..ITEMS / 3 {
                let mut queue = queue.lock();
                if me < 3 {
                    changed.wait_while(&mut queue, |queue| queue.is_some());
                    *queue = Some(item);
                } else {
                    changed.wait_while(&mut queue, |queue| queue.is_none());
                    sum.fetch_add(queue.take().unwrap(), Ordering::Relaxed);
                }
                drop(queue);
                changed.notify_all();
            }
        });
        assert_eq!(sum.into_inner(), 3 * (0..ITEMS / 3).sum::<u64>());
    }
    run::<Private>();
    run::<Shared>();
}

/// How often this thread gave its CPU up to wait.
fn switches() -> u64 {
    // SAFETY: the kernel fills the structure.
    unsafe {
        let mut usage = std::mem::zeroed::<libc::rusage>();
        assert_eq!(libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage), 0);
        usage.ru_nvcsw as u64
    }
}

/// `notify_all` under the mutex: each waiter sleeps on and wakes when it gets the mutex, so it sleeps
/// once. With a herd all would wake, find the mutex held, and sleep a second time.
#[test]
fn waiters_are_moved_not_herded() {
    const WAITERS: usize = 24;
    fn run<S: Scope>() -> u64 {
        let (mutex, condvar) = (Mutex::<bool, S>::new(false), Condvar::<S>::new());
        let (asleep, total) = (AtomicUsize::new(0), AtomicU64::new(0));
        let tids: Vec<_> = (0..WAITERS).map(|_| AtomicU32::new(0)).collect();
        std::thread::scope(|scope| {
            for tid in &tids {
                let (mutex, condvar, asleep, total) = (&mutex, &condvar, &asleep, &total);
                scope.spawn(move || {
                    let mut guard = mutex.lock();
                    tid.store(gettid(), Ordering::SeqCst);
                    asleep.fetch_add(1, Ordering::SeqCst);
                    let before = switches();
                    while !*guard {
                        condvar.wait(&mut guard);
                    }
                    total.fetch_add(switches() - before, Ordering::SeqCst);
                    // Long enough for a herd to find it held.
                    std::thread::sleep(Duration::from_micros(300));
                });
            }
            while asleep.load(Ordering::SeqCst) < WAITERS
                || !tids.iter().all(|tid| is_asleep(tid.load(Ordering::SeqCst)))
            {
                std::thread::sleep(Duration::from_millis(1));
            }
            let mut guard = mutex.lock();
            *guard = true;
            condvar.notify_all();
            std::thread::sleep(Duration::from_millis(5));
            drop(guard);
        });
        total.into_inner()
    }
    // One sleep each, one more of the one that moves the others, and some that only slow guests
    // see, now and then; a herd has twice as many, each time.
    let most = WAITERS as u64 * 3 / 2;
    for run in [run::<Private>, run::<Shared>] {
        let all: Vec<_> = (0..10).map(|_| run()).collect();
        assert!(all.iter().any(|&sleeps| sleeps <= most), "{all:?} sleeps of {WAITERS} waiters");
    }
}

/// Two mutexes with one condition, one after the other, and a guard of an unsized value.
#[test]
fn one_mutex_after_the_other() {
    let condvar = Condvar::<Private>::new();
    let mutexes = [Mutex::<_>::new([1]), Mutex::<_>::new([2])];
    for mutex in &mutexes {
        let mutex: &Mutex<[i32]> = mutex;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                mutex.lock()[0] = 0;
                condvar.notify_all();
            });
            let mut guard: MutexGuard<'_, [i32]> = mutex.lock();
            condvar.wait_while(&mut guard, |value| value[0] != 0);
        });
    }
}

fn semaphore<S: Scope>() {
    const PERMITS: u32 = 2;
    let semaphore = Semaphore::<S>::new(PERMITS);
    let inside = AtomicU32::new(0);
    threads(5, |me| {
        for round in 0..ROUNDS / 5 {
            if (round + me) % 3 == 0 {
                if semaphore.acquire_until(Deadline::after(Duration::from_micros(20))).is_err() {
                    continue;
                }
            } else {
                semaphore.acquire();
            }
            assert!(inside.fetch_add(1, Ordering::SeqCst) < PERMITS);
            inside.fetch_sub(1, Ordering::SeqCst);
            semaphore.release(1).unwrap();
        }
    });
    assert_eq!(semaphore.available(), PERMITS);
    // Many at once reach as many.
    let semaphore = Semaphore::<S>::new(0);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| semaphore.acquire());
        }
        semaphore.release(2).unwrap();
        semaphore.release(4).unwrap();
    });
    assert!(!semaphore.try_acquire());
    assert!(semaphore.acquire_until(soon()).unwrap_err().is_timed_out());
    semaphore.release(Semaphore::<S>::MOST).unwrap();
    let error = semaphore.release(1).unwrap_err();
    assert_eq!((error.raw_os_error(), semaphore.try_acquire()), (libc::EOVERFLOW, true));
}

#[test]
fn no_permits_wake_nobody_and_forget_nobody() {
    let semaphore = Semaphore::<Private>::new(0);
    std::thread::scope(|scope| {
        let sleeper = common::asleep(scope, || semaphore.acquire());
        semaphore.release(0).unwrap();
        semaphore.release(1).unwrap();
        sleeper.join().unwrap();
    });
}

#[test]
fn semaphore_private() {
    semaphore::<Private>();
}

#[test]
fn semaphore_shared() {
    semaphore::<Shared>();
}

fn events<S: Scope>() {
    let event = Event::<S>::new(false);
    assert!(event.wait_until(past()).unwrap_err().is_timed_out());
    assert!(event.wait_until(soon()).unwrap_err().is_timed_out() && !event.reset());
    // A pulse reaches all that wait.
    let ready = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let waiters: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    ready.fetch_add(1, Ordering::SeqCst);
                    event.wait();
                })
            })
            .collect();
        while !waiters.iter().all(|waiter| waiter.is_finished()) {
            event.set();
            event.reset();
            std::thread::yield_now();
        }
    });
    event.set();
    event.set();
    event.wait();
    assert!(event.is_set() && event.reset() && !event.is_set());
    // One that resets itself lets one through each time.
    let auto = AutoEvent::<S>::new(false);
    auto.set();
    auto.set();
    assert!(auto.is_set() && auto.reset() && !auto.reset());
    assert!(auto.wait_until(soon()).unwrap_err().is_timed_out());
    let (turns, back) = (AtomicU32::new(0), AutoEvent::<S>::new(false));
    threads(2, |me| {
        for _ in 0..500 {
            if me == 0 {
                auto.set();
                back.wait();
            } else {
                auto.wait();
                turns.fetch_add(1, Ordering::SeqCst);
                back.set();
            }
        }
    });
    assert_eq!(turns.into_inner(), 500);
}

#[test]
fn events_private() {
    events::<Private>();
}

#[test]
fn events_shared() {
    events::<Shared>();
}

#[test]
fn once_and_panics() {
    fn run<S: Scope>() {
        let (once, plain) = (Once::<S>::new(), Plain::new());
        let failed = catch_unwind(AssertUnwindSafe(|| {
            once.call_once(|| std::panic::resume_unwind(Box::new(())));
        }));
        assert!(failed.is_err() && !once.is_done());
        threads(6, |_| {
            // SAFETY: run once.
            once.call_once(|| unsafe { plain.add_one() });
            assert_eq!(plain.check(), 1);
        });
        assert!(once.is_done());
        once.call_once_until(past(), || panic!("done already")).unwrap();
        let busy = Once::<S>::new();
        busy.call_once(|| {
            let error = busy.call_once_until(soon(), || panic!("begun already")).unwrap_err();
            assert!(error.is_timed_out());
        });
    }
    run::<Private>();
    run::<Shared>();
}

fn robust<S: Scope>() {
    let (mutex, plain) = (RobustMutex::<(), S>::new(()), Plain::new());
    threads(4, |me| {
        for round in 0..ROUNDS / 8 {
            let locked = match (round + me) % 3 {
                0 => mutex.try_lock_until(Deadline::after(LONG)),
                1 => mutex.try_lock().or_else(|error| {
                    assert!(error.is_would_block());
                    mutex.lock()
                }),
                _ => mutex.lock(),
            };
            let Locked::Clean(_guard) = locked.unwrap() else { panic!("nobody died") };
            // SAFETY: the lock is held.
            unsafe { plain.add_one() };
        }
    });
    assert_eq!(plain.check(), (ROUNDS / 8 * 4) as u64);
    let guard = mutex.lock().unwrap();
    assert_eq!(mutex.lock().unwrap_err().raw_os_error(), libc::EDEADLK);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            assert!(mutex.try_lock().unwrap_err().is_would_block());
            assert!(mutex.try_lock_until(soon()).unwrap_err().is_timed_out());
        });
    });
    drop(guard);
}

#[test]
fn robust_private() {
    robust::<Private>();
}

#[test]
fn robust_shared() {
    robust::<Shared>();
}

/// A thread that ends with the lock: the next one is told, repairs or gives up.
#[test]
fn the_end_of_a_holder_is_told() {
    let mutex = RobustMutex::<u32>::new(1);
    let end_with = |value| {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut guard = mutex.lock().unwrap().or_repair(|_| panic!("nobody died"));
                *guard = value;
                std::mem::forget(guard);
            });
        });
    };
    end_with(2);
    // A scope may end before the thread has.
    let locked = mutex.lock().unwrap();
    let Locked::Orphaned(mut orphan) = locked else { panic!("not told") };
    assert_eq!(*orphan, 2);
    *orphan = 3;
    assert_eq!(*orphan.make_consistent(), 3);
    assert!(!mutex.lock().unwrap().is_orphaned());
    // One that sleeps already.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::mem::forget(mutex.lock().unwrap());
            std::thread::sleep(Duration::from_millis(20));
        });
        std::thread::sleep(Duration::from_millis(10));
        assert_eq!(*mutex.lock().unwrap().or_repair(|value| *value = 4), 4);
    });
    // Given up: nobody gets it any more, not even those who sleep.
    end_with(5);
    std::thread::scope(|scope| {
        let orphan = mutex.lock().unwrap();
        assert!(orphan.is_orphaned());
        let other = scope.spawn(|| mutex.lock().map(drop));
        std::thread::sleep(Duration::from_millis(2));
        drop(orphan);
        assert_eq!(other.join().unwrap().unwrap_err().raw_os_error(), libc::ENOTRECOVERABLE);
    });
    for error in [mutex.lock().map(drop), mutex.try_lock().map(drop)] {
        assert_eq!(error.unwrap_err().raw_os_error(), libc::ENOTRECOVERABLE);
    }
}

/// Several senders, several receivers, a small ring: each item once, those of one sender in order.
#[test]
fn channel_conserves() {
    const ITEMS: u64 = 3000;
    let channel = Channel::<Box<(usize, u64)>>::bounded(4).unwrap();
    let seen = Mutex::<Vec<Vec<u64>>>::new(vec![Vec::new(); 3]);
    let left = AtomicUsize::new(3);
    threads(6, |me| {
        if me < 3 {
            for item in 0..ITEMS {
                let item = Box::new((me, item));
                match item.1 % 3 {
                    0 => channel.send(item).unwrap(),
                    1 => channel.send_deadline(item, Deadline::after(LONG)).unwrap(),
                    _ => {
                        if let Err(error) = channel.try_send(item) {
                            assert!(error.error.is_would_block());
                            channel.send(error.item).unwrap();
                        }
                    }
                }
            }
            if left.fetch_sub(1, Ordering::SeqCst) == 1 {
                channel.close();
            }
        } else {
            let mut mine: Vec<Vec<u64>> = vec![Vec::new(); 3];
            while let Ok(item) = channel.recv() {
                assert!(mine[item.0].last().is_none_or(|last| *last < item.1), "order");
                mine[item.0].push(item.1);
            }
            let mut seen = seen.lock();
            seen.iter_mut().zip(mine).for_each(|(all, mine)| all.extend(mine));
        }
    });
    for mut items in seen.into_inner() {
        items.sort_unstable();
        assert!(items.into_iter().eq(0..ITEMS));
    }
}

#[test]
fn channel_smoke() {
    for wrong in [0, 3, 1 << 31] {
        assert!(Channel::<u8>::bounded(wrong).unwrap_err().is_invalid());
    }
    let counter = std::sync::Arc::new(());
    let channel = Channel::<_>::bounded(2).unwrap();
    assert!(channel.try_recv().unwrap_err().is_would_block());
    assert!(channel.recv_deadline(soon()).unwrap_err().is_timed_out());
    channel.send(counter.clone()).unwrap();
    channel.send(counter.clone()).unwrap();
    let error = channel.try_send(counter.clone()).unwrap_err();
    assert!(error.error.is_would_block() && (channel.len(), channel.capacity()) == (2, 2));
    let error = channel.send_deadline(error.item, soon()).unwrap_err();
    assert!(error.error.is_timed_out());
    drop(channel.recv().unwrap());
    channel.close();
    let error = channel.send(error.item).unwrap_err();
    assert!(error.error.is_closed() && channel.is_closed());
    drop(error);
    assert_eq!(std::sync::Arc::strong_count(&counter), 2);
    // What is left is dropped with the channel.
    drop(channel);
    assert_eq!(std::sync::Arc::strong_count(&counter), 1);
    // Closing lets those go who sleep, on either side.
    let full = Channel::<u8>::bounded(1).unwrap();
    let empty = Channel::<u8>::bounded(1).unwrap();
    full.send(1).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| assert!(full.send(2).unwrap_err().error.is_closed()));
        scope.spawn(|| assert!(empty.recv().unwrap_err().is_closed()));
        std::thread::sleep(Duration::from_millis(5));
        full.close();
        empty.close();
    });
    assert_eq!((full.recv().unwrap(), full.recv().unwrap_err().is_closed()), (1, true));
}

/// The first of several; wakes that went to one that took something else are passed on.
#[test]
fn select_the_first() {
    const ITEMS: u32 = 500;
    let (a, b) = (Channel::<u32>::bounded(1).unwrap(), Channel::<u32>::bounded(2).unwrap());
    let (permits, event, stop) = (
        Semaphore::<Private>::new(0),
        AutoEvent::<Shared>::new(false),
        Event::<Private>::new(false),
    );
    let late = select(&[&permits, &event, &stop, &a.receiving()], Some(soon())).unwrap_err();
    assert!(late.is_timed_out());
    assert!(select(&[], None).unwrap_err().is_invalid());
    assert_eq!(select(&[&permits, &a.sending()], None).unwrap(), 1);
    let (items, taken) = (AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                loop {
                    let sources: [&dyn unmerged::futex2::lock::Source; 4] =
                        [&stop, &a.receiving(), &permits, &b.receiving()];
                    let got = match select(&sources, None).unwrap() {
                        1 => a.try_recv().is_ok(),
                        2 => {
                            let got = permits.try_acquire();
                            taken.fetch_add(u32::from(got), Ordering::SeqCst);
                            false
                        }
                        3 => b.try_recv().is_ok(),
                        _ => return,
                    };
                    items.fetch_add(u32::from(got), Ordering::SeqCst);
                }
            });
        }
        // Ordinary waiters beside those that select.
        scope.spawn(|| {
            while a.recv().is_ok() {
                items.fetch_add(1, Ordering::SeqCst);
            }
        });
        for item in 0..ITEMS {
            a.send(item).unwrap();
            b.send(item).unwrap();
            permits.release(1).unwrap();
        }
        while items.load(Ordering::SeqCst) < 2 * ITEMS || taken.load(Ordering::SeqCst) < ITEMS {
            std::thread::yield_now();
        }
        stop.set();
        a.close();
    });
    assert_eq!((items.into_inner(), taken.into_inner()), (2 * ITEMS, ITEMS));
}

/// The same without futex_waitv(2).
#[test]
fn select_in_shadow() {
    if role().is_none() {
        let mut command = child("select_the_first", "shadow");
        command.env("UNMERGED_FUTEX2", "shadow");
        succeed(command);
    }
}

extern "C" fn ignore(_: libc::c_int) {}

/// A handled signal ends no wait, and the try forms work in a handler that interrupts a holder.
#[test]
fn signals() {
    if role().is_none() {
        return succeed(child("signals", "child"));
    }
    static MUTEX: Mutex<u32> = Mutex::new(0);
    static ROBUST: RobustMutex<u32> = RobustMutex::new(0);
    static EVENT: Event = Event::new(false);
    static TRIED: AtomicU32 = AtomicU32::new(0);
    extern "C" fn tries(_: libc::c_int) {
        let held = MUTEX.try_lock().is_none() && ROBUST.try_lock().is_err();
        TRIED.fetch_add(1 + u32::from(held), Ordering::SeqCst);
        EVENT.set();
    }
    let (mutex, once) = (MUTEX.lock(), ROBUST.lock().unwrap());
    // SAFETY: what is promised for handlers.
    unsafe { handle_with(&[libc::SIGALRM], libc::SA_RESTART, tries) };
    // SAFETY: to this thread.
    unsafe { libc::raise(libc::SIGALRM) };
    assert_eq!(TRIED.load(Ordering::SeqCst), 2);
    assert!(EVENT.is_set());
    drop((mutex, once));
    for flags in [0, libc::SA_RESTART] {
        // SAFETY: a handler that does nothing.
        unsafe { handle_with(&[libc::SIGUSR1], flags, ignore) };
        let (mutex, condvar) = (Mutex::<u32>::new(0), Condvar::<Private>::new());
        let (lock, semaphore) = (RwLock::<()>::new(()), Semaphore::<Shared>::new(0));
        let channel = Channel::<u8>::bounded(1).unwrap();
        let (stage, waiting) = (AtomicU32::new(9), AtomicU32::new(0));
        std::thread::scope(|scope| {
            let guard = lock.write();
            let waiter = scope.spawn(|| {
                waiting.store(gettid(), Ordering::SeqCst);
                stage.store(0, Ordering::SeqCst);
                let far = Deadline::after(LONG);
                semaphore.acquire_until(far).unwrap();
                stage.store(1, Ordering::SeqCst);
                drop(lock.try_read_until(far).unwrap());
                stage.store(2, Ordering::SeqCst);
                let mut guard = mutex.lock();
                while *guard == 0 {
                    condvar.wait_until(&mut guard, far).unwrap();
                }
                stage.store(3, Ordering::SeqCst);
                channel.recv_deadline(far).unwrap()
            });
            let interrupt = |at| {
                while stage.load(Ordering::SeqCst) != at {
                    std::thread::yield_now();
                }
                for _ in 0..20 {
                    std::thread::sleep(Duration::from_micros(100));
                    let tid = waiting.load(Ordering::SeqCst).cast_signed();
                    // SAFETY: a thread that has not been joined.
                    unsafe { libc::syscall(libc::SYS_tkill, tid, libc::SIGUSR1) };
                }
            };
            interrupt(0);
            semaphore.release(1).unwrap();
            interrupt(1);
            drop(guard);
            interrupt(2);
            *mutex.lock() = 1;
            condvar.notify_one();
            interrupt(3);
            channel.send(7).unwrap();
            assert_eq!(waiter.join().unwrap(), 7);
        });
    }
}

/// A byte beside the lock that never rests, and a lock word that others flip: deadlines hold.
#[test]
fn deadlines_hold_whatever_others_write() {
    #[repr(C, align(8))]
    struct Words([AtomicU64; 4]);
    let words = Words([const { AtomicU64::new(0) }; 4]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let finish = SetAtEnd(&stop);
        scope.spawn(|| {
            let mut seed = 1_u64;
            while !stop.load(Ordering::Relaxed) {
                for word in &words.0 {
                    seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    // Bits that look held, mostly.
                    word.store(seed >> 3 | 0x0101_0101_0101_0101, Ordering::Relaxed);
                }
            }
        });
        let at = std::ptr::from_ref(&words);
        for _ in 0..20 {
            let soon = || Deadline::after(Duration::from_millis(2));
            // SAFETY: atomics all over, and no bytes are not a lock; the data is of no size.
            unsafe {
                let _ =
                    (*at.cast::<Mutex<(), Shared>>()).try_lock_until(soon()).map(std::mem::forget);
                let _ = (*at.cast::<RwLock<(), Shared>>())
                    .try_write_until(soon())
                    .map(std::mem::forget);
                let _ =
                    (*at.cast::<RwLock<(), Shared>>()).try_read_until(soon()).map(std::mem::forget);
                let _ = (*at.cast::<Semaphore<Shared>>()).acquire_until(soon());
                let _ = (*at.cast::<Event<Shared>>()).wait_until(soon());
                let _ = (*at.cast::<AutoEvent<Shared>>()).wait_until(soon());
                let _ = (*at.cast::<Once<Shared>>()).call_once_until(soon(), || {});
                let robust = &*at.cast::<RobustMutex<(), Shared>>();
                let _ = robust.try_lock_until(soon()).map(std::mem::forget);
                let mutex = Mutex::<(), Shared>::new(());
                let mut guard = mutex.lock();
                let _ = (*at.cast::<Condvar<Shared>>()).wait_until(&mut guard, soon());
            }
        }
        drop(finish);
    });
}
