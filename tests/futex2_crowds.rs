//! Many waiters, random values, and the order of the halves of 64 bits.
//!
//! The rules of the crowds come from parking_lot's tests (single and common wakes of up to a hundred
//! threads), that of huge pages from LTP (`futex_wake04`).

mod common;

use common::{allowed, child, missing, pin, role, stress, succeed};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use unmerged::futex2::{
    Deadline, Futex, Implementation, Private, Scope, Shared, Word, implementation,
};

const LONG: Duration = Duration::from_secs(60);

/// Waits until it is so; fails after a minute.
fn until(what: &str, mut it_is: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !it_is() {
        assert!(begin.elapsed() < LONG, "{what}: not after a minute");
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// `threads` wait; `singles` wakes of one end exactly as many waits, one of all ends the rest.
fn crowd<T: Word + Default, S: Scope>(threads: usize, singles: usize, latches: usize) {
    for _ in 0..latches {
        let word = Futex::<T, S>::default();
        let (came, up) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    came.fetch_add(1, Ordering::SeqCst);
                    word.wait(T::default(), Some(Deadline::after(LONG))).unwrap();
                    up.fetch_add(1, Ordering::SeqCst);
                });
            }
            until("all have come", || came.load(Ordering::SeqCst) == threads);
            let mut woken = 0;
            until("single wakes", || {
                woken += word.wake(u32::from(woken < singles));
                woken == singles
            });
            until("the single ones are up", || up.load(Ordering::SeqCst) >= singles);
            // Those that had not slept yet when the first ones were woken.
            until("a common wake", || {
                woken += word.wake_all();
                woken == threads
            });
        });
        assert_eq!((up.load(Ordering::SeqCst), word.wake_all()), (threads, 0));
    }
}

#[test]
fn crowds() {
    crowd::<u32, Private>(1, 0, 50);
    crowd::<u8, Private>(1, 1, 50);
    crowd::<u32, Private>(100, 0, 2);
    crowd::<u8, Private>(100, 99, 1);
    crowd::<u16, Shared>(100, 50, 1);
    crowd::<u32, Shared>(100, 100, 1);
    if implementation() == Implementation::Waitv {
        crowd::<u64, Private>(100, 50, 2);
        crowd::<u64, Shared>(100, 99, 1);
    } else {
        missing("futex-waitv", "64 bits wake all that sleep in a shadow");
    }
}

/// 64 bits of which now one half changes, now the other, now both, in no order: each value is seen
/// by all before the next one comes.
#[test]
fn random_values_of_64_bits() {
    if role().is_none() {
        for wanted in ["waitv", "shadow"] {
            let mut command = child("random_values_of_64_bits", wanted);
            command.env("UNMERGED_FUTEX2", wanted);
            succeed(command);
        }
        return;
    }
    const WAITERS: usize = 6;
    let (word, seen) = (Futex::<u64>::new(0), [const { AtomicU64::new(0) }; WAITERS]);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for seen in &seen {
            scope.spawn(|| {
                let mut value = 0;
                while !over.load(Ordering::SeqCst) {
                    value = word.wait_while(value, Some(Deadline::after(LONG))).unwrap();
                    seen.store(value, Ordering::SeqCst);
                }
            });
        }
        let begin = Instant::now();
        let (mut random, mut value) = (1_u64, 0);
        while begin.elapsed() < stress(Duration::from_millis(300)) {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let keep = [0, u64::from(u32::MAX), !u64::from(u32::MAX)][(random >> 33) as usize % 3];
            let next = value & keep | random & !keep;
            if next == value {
                continue;
            }
            value = next;
            word.store(value, Ordering::Release);
            word.wake_all();
            let begin = Instant::now();
            while !seen.iter().all(|seen| seen.load(Ordering::SeqCst) == value) {
                assert!(begin.elapsed() < LONG / 2, "a wake was lost");
                std::thread::yield_now();
            }
        }
        over.store(true, Ordering::SeqCst);
        word.store(!value, Ordering::Release);
        word.wake_all();
    });
}

/// Rounds in which one half changes while a waiter goes to sleep; rounds and lost wakes.
fn halves(span: Duration) -> (u64, u64) {
    const HIGH: u64 = 1 << 32;
    let (word, ready, over) = (Futex::<u64>::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let delay = AtomicU64::new(100);
    let cpus = allowed();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pin(cpus[1]);
            for round in 1.. {
                while ready.load(Ordering::Acquire) != round {
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    core::hint::spin_loop();
                }
                for spin in 0..delay.load(Ordering::Relaxed) + round * 7 % 16 {
                    core::hint::black_box(spin);
                }
                // The half that is not woken.
                word.fetch_add(HIGH, Ordering::Release);
                word.wake(1);
            }
        });
        pin(cpus[0]);
        let (begin, mut lost, mut rounds) = (Instant::now(), 0, 0);
        while begin.elapsed() < span && lost == 0 {
            rounds += 1;
            ready.store(rounds, Ordering::Release);
            let soon = Deadline::after(Duration::from_millis(100));
            let slept = word.wait((rounds - 1) * HIGH, Some(soon));
            // The change is to come while the waiter goes to sleep.
            let late = delay.load(Ordering::Relaxed);
            let next = if slept.is_ok() { late.saturating_sub(8) } else { late + 8 };
            delay.store(next, Ordering::Relaxed);
            let changed = || word.load(Ordering::Acquire) == rounds * HIGH;
            if slept.is_err_and(|error| error.is_timed_out()) && changed() {
                lost += 1;
            }
            while !changed() {
                core::hint::spin_loop();
            }
        }
        over.store(true, Ordering::Relaxed);
        (rounds, lost)
    })
}

/// With the woken half first no wake is lost; with the halves exchanged some are.
#[test]
fn the_woken_half_comes_first() {
    const TEST: &str = "the_woken_half_comes_first";
    if allowed().len() < 2 {
        return missing("two-cpus", "nothing runs at the same time");
    }
    let Some(wanted) = role() else {
        for wanted in ["waitv", "exchanged-for-tests"] {
            let mut command = child(TEST, wanted);
            command.env("UNMERGED_FUTEX2", wanted);
            succeed(command);
        }
        return;
    };
    if implementation() != Implementation::Waitv {
        return missing("futex-waitv", "no halves");
    }
    let exchanged = wanted != "waitv";
    let usual = if exchanged { 1000 } else { 200 };
    let (rounds, lost) = halves(stress(Duration::from_millis(usual)));
    eprintln!("{wanted}: {rounds} rounds, {lost} lost");
    if !exchanged {
        assert_eq!(lost, 0, "of {rounds} rounds");
    } else if lost == 0 {
        missing("halves-race", "no wake was lost in the wrong order: a slow or a busy machine?");
    }
}

/// Words in different 4 KiB of one huge page are different words.
#[test]
fn huge_pages() {
    const BYTES: usize = 2 << 20;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB;
    // SAFETY: new memory, for good.
    let at = unsafe { libc::mmap(ptr::null_mut(), BYTES, access, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return missing("huge-pages", "none are reserved");
    }
    fn word<T: Word>(at: *mut libc::c_void, offset: usize) -> &'static Futex<T, Shared> {
        // SAFETY: inside the mapping, zeros, and aligned.
        unsafe { &*at.cast::<u8>().add(offset).cast() }
    }
    fn apart<T: Word + Default>(at: *mut libc::c_void) {
        let (here, there) = (word::<T>(at, 64), word::<T>(at, 64 + 4096));
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| here.wait(T::default(), Some(Deadline::after(LONG))));
            std::thread::sleep(Duration::from_millis(5));
            assert_eq!(there.wake_all(), 0);
            until("a wake", || here.wake(1) == 1 || waiter.is_finished());
            waiter.join().unwrap().unwrap();
        });
    }
    apart::<u8>(at);
    apart::<u32>(at);
    apart::<u64>(at);
}
