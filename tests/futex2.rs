//! Futexes on a live kernel: every size, both scopes, both ways of waiting on 64 bits.

mod common;

use common::{SetAtEnd, child, handle_with, missing, role, succeed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use unmerged::futex2::{Clock, Deadline, Futex, Implementation, Shared, implementation};

const LONG: Duration = Duration::from_secs(60);

/// Executes `test` with each way of waiting on 64 bits; whether this process is such a
/// child and should go on.
fn in_each_implementation(test: &str) -> bool {
    let Some(wanted) = role() else {
        for wanted in ["waitv", "shadow"] {
            let mut command = child(test, wanted);
            command.env("UNMERGED_FUTEX2", wanted);
            succeed(command);
        }
        return false;
    };
    if wanted == "waitv" && implementation() != Implementation::Waitv {
        missing("futex-waitv", "shadow");
    }
    true
}

/// Wakes until one waiter was reached; a waiter in the shadow of a shared word is not
/// counted, so then until it says that it is up.
fn wake_one(wake: impl Fn() -> usize, up: &AtomicBool) {
    while wake() == 0 && !up.load(Ordering::SeqCst) {
        std::thread::yield_now();
    }
}

/// The semantics that hold for every size and scope.
macro_rules! semantics {
    ($($name:ident: $value:ty, $scope:ty, $before:expr, $after:expr;)+) => { $(
        #[test]
        fn $name() {
            if !in_each_implementation(stringify!($name)) {
                return;
            }
            let word = Futex::<$value, $scope>::new($before);
            // Another value: EAGAIN, also with a deadline that has passed.
            let past = Some(Deadline::monotonic(Duration::ZERO));
            for deadline in [None, past] {
                let error = word.wait($after, deadline).unwrap_err();
                assert_eq!(error.raw_os_error(), libc::EAGAIN);
                assert!(error.is_would_block());
            }
            // Nobody waits.
            assert_eq!((word.wake(0), word.wake(1), word.wake_all()), (0, 0, 0));
            // Deadlines on both clocks.
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            let soon = Duration::from_millis(5);
            for deadline in [past.unwrap(), Deadline::after(soon), Deadline::realtime(now + soon)] {
                let error = loop {
                    if let Err(error) = word.wait($before, Some(deadline)) {
                        break error;
                    }
                };
                assert_eq!(error.raw_os_error(), libc::ETIMEDOUT, "{deadline:?}");
                assert!(deadline.has_passed());
                let error = word.wait_while($before, Some(deadline)).unwrap_err();
                assert!(error.is_timed_out());
            }
            // A wake without a store ends a wait; with one, wait_while answers the new value.
            let up = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let waiter = scope.spawn(|| {
                    let woken = word.wait($before, Some(Deadline::after(LONG)));
                    up.store(true, Ordering::SeqCst);
                    woken
                });
                wake_one(|| word.wake(1), &up);
                waiter.join().unwrap().unwrap();
            });
            std::thread::scope(|scope| {
                let waiter = scope.spawn(|| word.wait_while($before, Some(Deadline::after(LONG))));
                std::thread::sleep(Duration::from_millis(2));
                word.store($after, Ordering::Release);
                word.wake(1);
                assert_eq!(waiter.join().unwrap().unwrap(), $after);
            });
        }
    )+ };
}

// Pairs that differ in one bit only, at both ends of the word, and beyond the next size.
semantics! {
    private_u8: u8, unmerged::futex2::Private, 0, 0x80;
    private_u16: u16, unmerged::futex2::Private, 1, 0x101;
    private_u32: u32, unmerged::futex2::Private, 1, 0x1_0001;
    private_u64: u64, unmerged::futex2::Private, 1, 0x1_0000_0001;
    private_u64_low: u64, unmerged::futex2::Private, 1 << 63, (1 << 63) + 1;
    shared_u8: u8, Shared, 0, 0x80;
    shared_u16: u16, Shared, 1, 0x101;
    shared_u32: u32, Shared, 1, 0x1_0001;
    shared_u64: u64, Shared, 1, 0x1_0000_0001;
    shared_u64_low: u64, Shared, 1 << 63, (1 << 63) + 1;
}

/// Waiters of four bytes in one 32-bit word: a wake reaches its own lane alone, and counts
/// exactly.
#[test]
fn lanes_do_not_disturb_each_other() {
    let lanes: [Futex<u8>; 4] = [const { Futex::new(0) }; 4];
    std::thread::scope(|scope| {
        let waiters: Vec<_> = lanes
            .iter()
            .flat_map(|lane| [lane, lane])
            .map(|lane| scope.spawn(|| lane.wait(0, Some(Deadline::after(LONG)))))
            .collect();
        for lane in [2, 0, 3, 1] {
            let mut woken = 0;
            while woken < 2 {
                woken += lanes[lane].wake(2 - woken as u32);
            }
            assert_eq!(woken, 2);
            assert_eq!(lanes[lane].wake_all(), 0);
        }
        for waiter in waiters {
            waiter.join().unwrap().unwrap();
        }
    });
}

/// `n` waiters, woken in portions: the sum is `n`, and each wake is as large as asked.
#[test]
fn wake_counts_are_exact() {
    const WAITERS: usize = 10;
    let word = Futex::<u32>::new(7);
    let ready = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..WAITERS {
            scope.spawn(|| {
                ready.fetch_add(1, Ordering::SeqCst);
                word.wait(7, None).unwrap();
            });
        }
        while ready.load(Ordering::SeqCst) < WAITERS as u64 {
            std::thread::yield_now();
        }
        let mut woken = 0;
        while woken < WAITERS {
            let now = word.wake(3);
            assert!(now <= 3);
            woken += now;
        }
        assert_eq!((woken, word.wake_all()), (WAITERS, 0));
    });
}

extern "C" fn ignore(_: libc::c_int) {}

/// A handled signal ends no wait, with or without SA_RESTART, with or without a deadline.
#[test]
fn signals_do_not_end_a_wait() {
    const TEST: &str = "signals_do_not_end_a_wait";
    if !in_each_implementation(TEST) {
        return;
    }
    for flags in [0, libc::SA_RESTART] {
        // SAFETY: a handler that does nothing.
        unsafe { handle_with(&[libc::SIGUSR1], flags, ignore) };
        for deadline in [None, Some(Deadline::after(LONG))] {
            let (narrow, wide) = (Futex::<u8>::new(0), Futex::<u64>::new(0));
            let thread = AtomicU64::new(0);
            std::thread::scope(|scope| {
                let waiter = scope.spawn(|| {
                    // SAFETY: names this thread.
                    thread.store(unsafe { libc::pthread_self() }, Ordering::SeqCst);
                    (narrow.wait_while(0, deadline).unwrap(), wide.wait_while(0, deadline).unwrap())
                });
                let interrupt = || {
                    for _ in 0..50 {
                        std::thread::sleep(Duration::from_micros(100));
                        match thread.load(Ordering::SeqCst) {
                            0 => {}
                            // SAFETY: the thread is not joined before the scope ends.
                            it => assert_eq!(unsafe { libc::pthread_kill(it, libc::SIGUSR1) }, 0),
                        }
                    }
                };
                interrupt();
                narrow.store(1, Ordering::Release);
                narrow.wake(1);
                interrupt();
                wide.store(2, Ordering::Release);
                wide.wake(1);
                assert_eq!(waiter.join().unwrap(), (1, 2));
            });
        }
    }
}

/// A neighbour that changes without pause cannot keep a byte from being waited on.
#[test]
fn churning_neighbours() {
    #[repr(C, align(4))]
    struct Around<S: unmerged::futex2::Scope>(Futex<u8, S>, Futex<u8, S>);

    fn run<S: unmerged::futex2::Scope>(around: &Around<S>) {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let finish = SetAtEnd(&stop);
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    around.1.fetch_add(1, Ordering::Relaxed);
                }
            });
            let waiter = scope.spawn(|| {
                for value in 0..50 {
                    around.0.wait_while(value, None).unwrap();
                }
            });
            for value in 1..=50 {
                std::thread::sleep(Duration::from_micros(300));
                around.0.store(value, Ordering::Release);
                around.0.wake(1);
            }
            waiter.join().unwrap();
            drop(finish);
        });
    }
    run(&Around::<unmerged::futex2::Private>(Futex::new(0), Futex::new(0)));
    run(&Around::<Shared>(Futex::new(0), Futex::new(0)));
}

/// 64 bits whose halves change one at a time, by several threads: no wake is lost, and no
/// waiter stays behind.
#[test]
fn no_wake_of_64_bits_is_lost() {
    if !in_each_implementation("no_wake_of_64_bits_is_lost") {
        return;
    }
    const ROUNDS: u64 = 20_000;
    let word = Futex::<u64>::new(0);
    // The high half alone, then the low half alone, and so on.
    let value = |round: u64| (round.div_ceil(2) << 32) | (round / 2);
    std::thread::scope(|scope| {
        let ping = scope.spawn(|| {
            for round in (0..ROUNDS).step_by(2) {
                word.wait_while(value(round), None).unwrap();
                word.store(value(round + 2), Ordering::Release);
                word.wake(1);
            }
        });
        for round in (1..=ROUNDS).step_by(2) {
            word.store(value(round), Ordering::Release);
            word.wake(1);
            word.wait_while(value(round), None).unwrap();
        }
        ping.join().unwrap();
    });
}

/// One word of each size in a memory file.
#[repr(C)]
struct Words {
    byte: Futex<u8, Shared>,
    short: Futex<u16, Shared>,
    word: Futex<u32, Shared>,
    long: Futex<u64, Shared>,
}

fn map(file: &OwnedFd) -> &'static Words {
    // SAFETY: a new mapping of our own file, for good; atomics may be written by others.
    unsafe {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let at = libc::mmap(ptr::null_mut(), 4096, access, libc::MAP_SHARED, file.as_raw_fd(), 0);
        assert_ne!(at, libc::MAP_FAILED);
        &*at.cast::<Words>()
    }
}

/// Another process, at another address: ping-pong on every size.
#[test]
fn processes_meet_on_every_size() {
    const TEST: &str = "processes_meet_on_every_size";
    const FD: &str = "UNMERGED_TEST_FD";
    const ROUNDS: u8 = 100;
    if let Ok(fd) = std::env::var(FD) {
        // SAFETY: inherited from the parent for this very use.
        let file = unsafe { OwnedFd::from_raw_fd(fd.parse().unwrap()) };
        let words = map(&file);
        for round in (0..ROUNDS).step_by(2) {
            macro_rules! answer {
                ($($field:ident),+) => { $(
                    words.$field.wait_while(round.into(), None).unwrap();
                    words.$field.store((round + 2).into(), Ordering::Release);
                    words.$field.wake(1);
                )+ };
            }
            answer!(byte, short, word, long);
        }
        return;
    }
    if !in_each_implementation(TEST) {
        return;
    }
    // SAFETY: a fresh descriptor, which the child inherits.
    let file = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"test".as_ptr(), 0)) };
    // SAFETY: our own file.
    assert_eq!(unsafe { libc::ftruncate(file.as_raw_fd(), 4096) }, 0);
    let words = map(&file);
    let mut command = child(TEST, &role().unwrap());
    let mut peer = command.env(FD, file.as_raw_fd().to_string()).spawn().unwrap();
    for round in (0..ROUNDS).step_by(2) {
        macro_rules! ask {
            ($($field:ident),+) => { $(
                words.$field.store((round + 1).into(), Ordering::Release);
                words.$field.wake(1);
                words.$field.wait_while((round + 1).into(), None).unwrap();
            )+ };
        }
        ask!(byte, short, word, long);
    }
    assert!(peer.wait().unwrap().success());
}

/// A private and a shared wait on one address do not meet, and deadlines tell their clock.
#[test]
fn scopes_and_clocks_are_apart() {
    let deadline = Deadline::realtime(Duration::from_secs(5));
    assert_eq!((deadline.clock(), deadline.at()), (Clock::Realtime, Duration::from_secs(5)));
    let private = Futex::<u32>::new(0);
    // SAFETY: same layout; only the scope differs, which is what is tested.
    let shared = unsafe { &*ptr::from_ref(&private).cast::<Futex<u32, Shared>>() };
    std::thread::scope(|scope| {
        let waiter = common::asleep(scope, || private.wait(0, Some(Deadline::after(LONG))));
        assert_eq!(shared.wake_all(), 0);
        while private.wake(1) == 0 {
            std::thread::yield_now();
        }
        waiter.join().unwrap().unwrap();
    });
}

/// The operations of core's atomics, with their results.
#[test]
fn operations_of_the_atomic() {
    use Ordering::{AcqRel, Relaxed};
    macro_rules! each {
        ($($word:ty),+) => { $({
            let mut futex = Futex::<$word>::from(0b0110);
            assert_eq!((futex.fetch_xor(0b0011, AcqRel), futex.load(Relaxed)), (0b0110, 0b0101));
            assert_eq!(futex.compare_exchange_weak(1, 2, AcqRel, Relaxed), Err(0b0101));
            while futex.compare_exchange_weak(0b0101, 7, AcqRel, Relaxed).is_err() {}
            let next = |value: $word| (value < 9).then(|| value + 1);
            assert_eq!(futex.fetch_update(AcqRel, Relaxed, next), Ok(7));
            assert_eq!(futex.fetch_update(AcqRel, Relaxed, next), Ok(8));
            assert_eq!(futex.fetch_update(AcqRel, Relaxed, next), Err(9));
            *futex.get_mut() += 1;
            assert_eq!(futex.as_ptr().addr(), ptr::from_ref(&futex).addr());
            assert_eq!(futex.into_inner(), 10);
        })+ };
    }
    each!(u8, u16, u32, u64);
}
