//! What all locks of futex2 have in common: signals, deadlines, selecting, waits that the kernel
//! refuses. And the channel between threads.

mod common;
#[path = "common/locks.rs"]
mod locks;

use common::{SetAtEnd, asleep, child, handle_with, own_tid, refuse, role, succeed};
use locks::{LONG, far, soon, threads};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use unmerged::futex2::lock::{
    AutoEvent, Channel, Condvar, Event, Mutex, Once, RobustMutex, RwLock, Semaphore, Source, select,
};
use unmerged::futex2::{Deadline, Private, Shared};

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
                    1 => channel.send_until(item, Deadline::after(LONG)).unwrap(),
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
    for wrong in [0, (1 << 30) + 1, 1 << 31] {
        assert!(Channel::<u8>::bounded(wrong).unwrap_err().is_invalid());
    }
    let counter = std::sync::Arc::new(());
    let channel = Channel::<_>::bounded(2).unwrap();
    assert!(channel.try_recv().unwrap_err().is_would_block());
    assert!(channel.recv_until(soon()).unwrap_err().is_timed_out());
    channel.send(counter.clone()).unwrap();
    channel.send(counter.clone()).unwrap();
    let error = channel.try_send(counter.clone()).unwrap_err();
    assert!(error.error.is_would_block() && (channel.len(), channel.capacity()) == (2, 2));
    let error = channel.send_until(error.item, soon()).unwrap_err();
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
                    let sources: [&dyn Source; 4] =
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
            loop {
                permits.acquire_until(far()).expect("left asleep");
                if stop.is_set() {
                    return;
                }
                taken.fetch_add(1, Ordering::SeqCst);
            }
        });
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
        permits.release(1).unwrap();
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

/// One that selects is woken for a permit, finds it gone and goes on with something else: who sleeps
/// for a permit has the next one.
#[test]
fn a_permit_that_was_selected_and_is_gone() {
    for _ in 0..100 {
        let (permits, stop) = (Semaphore::<Private>::new(0), Event::<Private>::new(false));
        std::thread::scope(|scope| {
            // The first in the queue.
            let selector = asleep(scope, || select(&[&stop, &permits], Some(far())));
            let sleeper = asleep(scope, || permits.acquire_until(far()));
            permits.release(1).unwrap();
            let was_faster = permits.try_acquire();
            stop.set();
            selector.join().unwrap().expect("it is stopped");
            if was_faster {
                permits.release(1).unwrap();
            }
            sleeper.join().unwrap().expect("left asleep");
        });
    }
}

/// Nobody looks again and again after what only this process changes.
#[test]
fn a_private_selector_sleeps_on() {
    // Without futex_waitv(2) any wake of a vector in this process is a look.
    if role().is_none() {
        return succeed(child("a_private_selector_sleeps_on", "alone"));
    }
    let (permits, stop) = (Semaphore::<Private>::new(0), Event::<Private>::new(false));
    let tid = AtomicI32::new(0);
    let switches = || {
        let tid = tid.load(Ordering::SeqCst);
        let status = std::fs::read_to_string(format!("/proc/self/task/{tid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.unwrap().trim().parse::<u32>().unwrap()
    };
    std::thread::scope(|scope| {
        let selector = asleep(scope, || {
            tid.store(own_tid(), Ordering::SeqCst);
            select(&[&stop, &permits], None)
        });
        let before = switches();
        std::thread::sleep(Duration::from_millis(500));
        let looks = switches() - before;
        stop.set();
        // It may have been on its way to sleep. A look every 50 ms would be ten.
        assert!(looks <= 2, "{looks}");
        assert_eq!(selector.join().unwrap().unwrap(), 0);
    });
}

/// The kernel refuses to let a thread wait: what it asked for it has nevertheless, or goes on asking.
#[test]
fn a_wait_that_is_refused() {
    if role().is_none() {
        return succeed(child("a_wait_that_is_refused", "child"));
    }
    static MUTEX: Mutex<()> = Mutex::new(());
    static LOCK: RwLock<()> = RwLock::new(());
    static PERMITS: Semaphore<Shared> = Semaphore::new(0);
    static AUTO: AutoEvent = AutoEvent::new(false);
    static ONCE: Once<Shared> = Once::new();
    static TURN: AtomicU32 = AtomicU32::new(0);
    static PASSED: AtomicU32 = AtomicU32::new(0);
    let waits: [fn(); 6] = [
        || drop(MUTEX.lock()),
        || drop(LOCK.read()),
        || drop(LOCK.write()),
        || PERMITS.acquire(),
        || AUTO.wait(),
        || ONCE.call_once(|| panic!("it runs already")),
    ];
    std::thread::spawn(move || {
        refuse(libc::SYS_futex, libc::EPERM);
        for (turn, wait) in (1..).zip(waits) {
            while TURN.load(Ordering::SeqCst) != turn {
                std::thread::sleep(Duration::from_micros(100));
            }
            wait();
            PASSED.store(turn, Ordering::SeqCst);
        }
        // Its end would be told by a wake that is refused.
        loop {
            std::thread::sleep(LONG);
        }
    });
    let turn = |turn: u32| {
        TURN.store(turn, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(PASSED.load(Ordering::SeqCst), turn - 1, "it has what nobody gave");
    };
    let passed = |turn: u32| {
        while PASSED.load(Ordering::SeqCst) != turn {
            std::thread::sleep(Duration::from_micros(100));
        }
    };
    let guard = MUTEX.lock();
    turn(1);
    drop(guard);
    passed(1);
    for at in [2, 3] {
        let guard = LOCK.write();
        turn(at);
        drop(guard);
        passed(at);
    }
    turn(4);
    PERMITS.release(1).unwrap();
    passed(4);
    turn(5);
    AUTO.set();
    passed(5);
    ONCE.call_once(|| turn(6));
    passed(6);
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
        let (stage, waiting) = (AtomicU32::new(9), AtomicI32::new(0));
        std::thread::scope(|scope| {
            let guard = lock.write();
            let waiter = scope.spawn(|| {
                waiting.store(own_tid(), Ordering::SeqCst);
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
                channel.recv_until(far).unwrap()
            });
            let interrupt = |at| {
                while stage.load(Ordering::SeqCst) != at {
                    std::thread::yield_now();
                }
                for _ in 0..20 {
                    std::thread::sleep(Duration::from_micros(100));
                    let tid = waiting.load(Ordering::SeqCst);
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
    let done = std::sync::Arc::new(AtomicBool::new(false));
    let watched = done.clone();
    std::thread::spawn(move || {
        let begin = std::time::Instant::now();
        while !watched.load(Ordering::SeqCst) {
            if begin.elapsed() > LONG {
                eprintln!("a wait has outlived its deadline");
                std::process::abort();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    });
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
        done.store(true, Ordering::SeqCst);
        drop(finish);
    });
}

/// Made from a value, and shown with it.
#[test]
fn made_and_shown() {
    let (mutex, lock) = (Mutex::<_>::from(5), RwLock::<_>::from(6));
    let robust = RobustMutex::<_>::from(7);
    assert_eq!(format!("{mutex:?} {lock:?}"), "Mutex { value: 5 } RwLock { value: 6 }");
    {
        let (held, writer) = (mutex.lock(), lock.write());
        assert_eq!(format!("{held} {held:?} {writer} {writer:?}"), "5 5 6 6");
        let shown = format!("{mutex:?} {lock:?}");
        assert_eq!(shown, "Mutex { value: <locked> } RwLock { value: <locked> }");
    }
    // SAFETY: nobody has held it.
    let held = unsafe { robust.lock().unwrap().or_repair(|_| ()) };
    assert_eq!(format!("{} {held}", lock.read()), "6 7");
}

/// An item that does not go through comes back, or is dropped for the sake of a `?`.
#[test]
fn what_was_not_sent() {
    let channel = Channel::<String>::bounded(1).unwrap();
    let send = |item: &str| -> unmerged::Result<()> { Ok(channel.try_send(item.into())?) };
    send("first").unwrap();
    assert!(send("second").unwrap_err().is_would_block());
    assert_eq!(channel.try_send("third".into()).unwrap_err().into_inner(), "third");
}
