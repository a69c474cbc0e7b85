//! Vectors, moves and masks on a live kernel.
//!
//! The rules come from the suites of others, written anew: the proposal's own selftests and the
//! kernel's (`futex_waitv`, `futex_requeue`, `futex_wait_wouldblock`), LTP (`futex_waitv01` to 03,
//! `futex_cmp_requeue01`, `futex_wait_bitset`), liburing (`test/futex.c`), parking_lot, and
//! test262 (`Atomics.notify`: 0, 1, 2, all, none matching).

mod common;

use common::{asleep, child, missing, role, succeed};
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use unmerged::futex2::{
    self, Deadline, Domain, Futex, Implementation, Options, Private, Shared, Waiter,
    implementation, waitv, waitv_with,
};

const LONG: Duration = Duration::from_secs(60);

fn long() -> Option<Deadline> {
    Some(Deadline::after(LONG))
}

/// Executes `test` with each way of waiting on vectors and 64 bits.
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

/// Calls `wake` until it has woken `n`, less and less often: one that comes while a waiter is on
/// its way to sleep sends it back to look at its words. After many of these it goes, as it does
/// after one between two naps, and neither is counted. Fails after a minute.
fn wake_until(n: usize, mut wake: impl FnMut() -> usize) {
    let begin = Instant::now();
    let (mut woken, mut pause) = (0, Duration::from_micros(50));
    while woken < n {
        woken += wake();
        assert!(begin.elapsed() < LONG, "{woken} of {n} woken");
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONG / 60);
    }
    assert_eq!(woken, n);
}

/// RFC `futex2_waitv`, LTP `futex_waitv02`: 30 entries, the last is woken, the answer is 29.
#[test]
fn the_index_of_the_woken_entry() {
    if !in_each_implementation("the_index_of_the_woken_entry") {
        return;
    }
    let words: Vec<Futex<u32>> = (0..30).map(Futex::new).collect();
    for at in [29, 0, 17] {
        std::thread::scope(|scope| {
            let waiter = asleep(scope, || {
                let entries: Vec<_> = (0..30).map(|n| words[n].waiter(n as u32)).collect();
                waitv(&entries, long())
            });
            wake_until(1, || words[at].wake(1).max(usize::from(waiter.is_finished())));
            assert_eq!(waiter.join().unwrap().unwrap(), at);
        });
    }
}

/// All sizes, all scopes and a domain in one vector: each of them ends the wait, with its index,
/// and its value is compared whole.
#[test]
fn sizes_and_scopes_mix() {
    if !in_each_implementation("sizes_and_scopes_mix") {
        return;
    }
    let queues = implementation() == Implementation::Waitv;
    let (p8, p16, p32, p64) =
        (Futex::<u8>::new(8), Futex::<u16>::new(16), Futex::<u32>::new(32), Futex::<u64>::new(64));
    let (s8, s16, s32, s64) = (
        // Not on the same 32 bits: the kernel's vectors cannot tell their entries apart there.
        Box::new(Futex::<u8, Shared>::new(8)),
        Box::new(Futex::<u16, Shared>::new(16)),
        Futex::<u32, Shared>::new(32),
        Futex::<u64, Shared>::new(64),
    );
    let domain = Domain::create(4096).unwrap();
    let (d8, d64) = (domain.word::<u8>(3).unwrap(), domain.word::<u64>(8).unwrap());
    let entries = || {
        [
            p8.waiter(8),
            p16.waiter(16),
            p32.waiter(32),
            p64.waiter(64),
            s8.waiter(8),
            s16.waiter(16),
            s32.waiter(32),
            s64.waiter(64),
            d8.waiter_in(&domain, 0).unwrap(),
            d64.waiter_in(&domain, 0).unwrap(),
        ]
    };
    let wakes: [&(dyn Fn() -> usize + Sync); 10] = [
        &|| p8.wake(1),
        &|| p16.wake(1),
        &|| p32.wake(1),
        &|| p64.wake(1),
        &|| s8.wake(1),
        &|| s16.wake(1),
        &|| s32.wake(1),
        &|| s64.wake(1),
        &|| d8.wake_in(&domain, 1).unwrap(),
        &|| d64.wake_in(&domain, 1).unwrap(),
    ];
    for (at, wake) in wakes.iter().enumerate() {
        // Without the kernel's vectors, a wake that changes nothing is seen by private words only.
        if !queues && at >= 4 {
            continue;
        }
        std::thread::scope(|scope| {
            let waiter = asleep(scope, || waitv(&entries(), long()));
            wake_until(1, || wake().max(usize::from(waiter.is_finished())));
            assert_eq!(waiter.join().unwrap().unwrap(), at);
        });
    }
    // A store and a wake end it on every kernel.
    let change: [&(dyn Fn() + Sync); 4] = [
        &|| s8.store(0, Ordering::Release),
        &|| s64.store(64 + (1 << 40), Ordering::Release),
        &|| d8.store(1, Ordering::Release),
        &|| d64.store(1 << 63, Ordering::Release),
    ];
    let put_back = || {
        s8.store(8, Ordering::Release);
        s64.store(64, Ordering::Release);
        d8.store(0, Ordering::Release);
        d64.store(0, Ordering::Release);
    };
    for (change, at) in change.iter().zip([4, 7, 8, 9]) {
        std::thread::scope(|scope| {
            let waiter = asleep(scope, || waitv(&entries(), long()));
            change();
            wakes[at]();
            match waiter.join().unwrap() {
                Ok(index) => assert_eq!(index, at),
                Err(error) => assert!(error.is_would_block(), "{error}"),
            }
        });
        assert!(waitv(&entries(), long()).unwrap_err().is_would_block());
        put_back();
    }
}

/// LTP `futex_waitv01`, kernel `futex_wait_wouldblock`: limits and errors.
#[test]
fn limits_of_vectors() {
    if !in_each_implementation("limits_of_vectors") {
        return;
    }
    let word = Futex::<u8>::new(1);
    let past = Some(Deadline::monotonic(Duration::ZERO));
    let code = |n, expected, deadline| {
        waitv(&vec![word.waiter(expected); n], deadline).unwrap_err().raw_os_error()
    };
    for (n, expected, errno) in [
        (0, 1, libc::EINVAL),
        (1, 1, libc::ETIMEDOUT),
        (128, 1, libc::ETIMEDOUT),
        (129, 1, libc::EINVAL),
        (128, 2, libc::EAGAIN),
        (129, 2, libc::EINVAL),
    ] {
        assert_eq!(code(n, expected, past), errno, "{n} entries");
    }
    let soon = Deadline::after(Duration::from_millis(3));
    assert_eq!(code(128, 1, Some(soon)), libc::ETIMEDOUT);
    assert!(soon.has_passed());
    let masked = waitv_with(&[word.waiter(1)], past, Options::new().mask(1));
    assert!(masked.unwrap_err().is_invalid());
}

/// Beyond 128 entries: 1000 private words of two sizes, and shared ones among them.
#[test]
fn beyond_128_entries() {
    if !in_each_implementation("beyond_128_entries") {
        return;
    }
    let words: Vec<Futex<u64>> = (0..1000).map(|_| Futex::new(0)).collect();
    let shared: Vec<Futex<u32, Shared>> = (0..100).map(|_| Futex::new(0)).collect();
    let beyond = Options::new().beyond_128();
    let entries = || -> Vec<Waiter<'_>> {
        let all = words.iter().map(|word| word.waiter(0));
        all.chain(shared.iter().map(|word| word.waiter(0))).collect()
    };
    assert!(waitv(&entries(), None).unwrap_err().is_invalid());
    for at in [0, 999, 500] {
        std::thread::scope(|scope| {
            let waiter = asleep(scope, || waitv_with(&entries(), long(), beyond));
            wake_until(1, || words[at].wake(1).max(usize::from(waiter.is_finished())));
            // Others have the same place in the table: it may have been for them.
            assert!(waiter.join().unwrap().unwrap() >= at);
        });
    }
    std::thread::scope(|scope| {
        let waiter = asleep(scope, || waitv_with(&entries(), long(), beyond));
        shared[99].store(1, Ordering::Release);
        shared[99].wake(1);
        assert!(
            waiter.join().unwrap().is_ok_and(|at| at == 1099)
                || waitv_with(&entries(), long(), beyond).unwrap_err().is_would_block()
        );
    });
}

/// The wake of one lane is not taken by a vector that waits on another lane of the same 32 bits;
/// private, and shared.
#[test]
fn a_vector_steals_no_wake() {
    fn run<S: futex2::Scope>() {
        #[repr(C, align(4))]
        struct Lanes<S: futex2::Scope>(Futex<u8, S>, Futex<u8, S>);
        let (lanes, other) = (Lanes::<S>(Futex::new(0), Futex::new(0)), Futex::<u32>::new(0));
        for _ in 0..20 {
            std::thread::scope(|scope| {
                let vector = scope.spawn(|| {
                    loop {
                        // Any wake of the word may end it for no reason, but for `other` in the end.
                        let entries = [lanes.1.waiter(0), other.waiter(0)];
                        match waitv(&entries, long()) {
                            Ok(0) => {}
                            answer => return answer,
                        }
                    }
                });
                std::thread::sleep(Duration::from_micros(300));
                let plain = scope.spawn(|| lanes.0.wait(0, long()));
                // The answer may count a vector that was woken for no reason; the waiter tells.
                wake_until(1, || {
                    lanes.0.wake(1);
                    usize::from(plain.is_finished())
                });
                plain.join().unwrap().unwrap();
                wake_until(1, || other.wake(1).max(usize::from(vector.is_finished())));
                assert_eq!(vector.join().unwrap().unwrap(), 1);
            });
        }
    }
    run::<Private>();
    run::<Shared>();
}

/// A thread that names one word twice is one waiter or two, and is woken.
#[test]
fn a_word_that_is_named_twice() {
    let word = Futex::<u32>::new(0);
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| waitv(&[word.waiter(0), word.waiter(0)], long()));
        let mut woken = 0;
        while woken == 0 && !waiter.is_finished() {
            woken = word.wake_all();
        }
        assert!(woken <= 2 && waiter.join().unwrap().unwrap() < 2);
    });
}

/// Starts `n` waiters, lets them sleep, and calls `then`; all must have returned at its end.
fn with_waiters(n: usize, wait: impl Fn() + Sync, then: impl FnOnce()) {
    std::thread::scope(|scope| {
        for _ in 0..n {
            asleep(scope, &wait);
        }
        then();
    });
}

/// Kernel `futex_requeue`, LTP `futex_cmp_requeue01`: some are woken, others moved, the counts
/// are exact, and the target's wakes find them although nobody counted itself there.
#[test]
fn moved_waiters_are_found() {
    if !in_each_implementation("moved_waiters_are_found") {
        return;
    }
    macro_rules! run {
        ($value:ty, $scope:ty, $moves:expr, $exact:expr) => {{
            for (waiters, wake, requeue) in
                [(1, 0, 1), (10, 3, 7), (10, 3, 4), (10, 0, 9), (3, 0, 0)]
            {
                let (from, to) = (Futex::<$value, $scope>::new(1), Futex::<$value, $scope>::new(2));
                let wait = || from.wait(1, long()).unwrap();
                with_waiters(waiters, wait, || {
                    let error = from.cmp_requeue(3, &to, wake, requeue).unwrap_err();
                    assert!(error.is_would_block());
                    let both = (wake + requeue) as usize;
                    let touched = from.cmp_requeue(1, &to, wake, requeue).unwrap();
                    assert_eq!(touched, both.min(waiters));
                    let moved = if $moves { touched.saturating_sub(wake as usize) } else { 0 };
                    assert_eq!(to.wake_all(), moved);
                    // Those that sleep on a sequence are all woken, some for no reason.
                    let exact = $exact || touched == 0;
                    assert_eq!(from.wake_all(), if exact { waiters - touched } else { 0 });
                });
                assert_eq!((from.wake_all(), to.wake_all()), (0, 0));
                assert_eq!(from.requeue(&to, 1, 1).unwrap(), 0);
            }
        }};
    }
    let queues = implementation() == Implementation::Waitv;
    run!(u32, Private, true, true);
    run!(u32, Shared, true, true);
    run!(u64, Private, queues, queues);
    run!(u8, Private, false, true);
    run!(u16, Shared, false, true);
}

/// Between sizes and scopes as many are woken as would have been woken or moved; and a place
/// from which waiters were moved to one word a moment ago does not move to another.
#[test]
fn moves_that_are_wakes() {
    let (from, narrow, shared) =
        (Futex::<u32>::new(1), Futex::<u8>::new(0), Futex::<u32, Shared>::new(0));
    let (one, two) = (Futex::<u32>::new(0), Futex::<u32>::new(0));
    let wait = || from.wait(1, long()).unwrap();
    with_waiters(4, wait, || {
        assert_eq!(from.cmp_requeue(1, &narrow, 1, 1).unwrap(), 2);
        assert_eq!(from.requeue(&shared, 0, 9).unwrap(), 2);
    });
    assert_eq!((narrow.wake_all(), shared.wake_all()), (0, 0));
    with_waiters(4, wait, || {
        assert_eq!(from.cmp_requeue(1, &one, 0, 2).unwrap(), 2);
        assert_eq!(from.cmp_requeue(1, &two, 0, 2).unwrap(), 2);
        // The last two were woken, unless both words have one place in the table.
        let left = (one.wake_all(), two.wake_all(), from.wake_all());
        assert!(matches!(left, (2, 0 | 2, 0)), "{left:?}");
    });
    // What was pinned is let go.
    with_waiters(1, wait, || {
        assert_eq!(from.cmp_requeue(1, &two, 0, 1).unwrap(), 1);
        assert_eq!(two.wake_all(), 1);
    });
}

/// Words in a domain are moved too, and found by wakes that would skip.
#[test]
fn moves_in_a_domain() {
    let domain = Domain::create(4096).unwrap();
    let (from, to) = (domain.word::<u32>(0).unwrap(), domain.word::<u32>(2048).unwrap());
    with_waiters(
        5,
        || from.wait_in(&domain, 0, long()).unwrap(),
        || {
            assert_eq!(from.requeue_in(&domain, Some(0), to, 1, 3).unwrap(), 4);
            assert!(to.has_waiters_in(&domain).unwrap());
            assert_eq!(to.wake_in(&domain, 9).unwrap(), 3);
            assert_eq!(from.wake_in(&domain, 9).unwrap(), 1);
        },
    );
    assert_eq!((domain.counted(from).unwrap(), domain.counted(to).unwrap()), (0, 0));
    assert!(from.requeue_in(&domain, Some(1), to, 1, 3).unwrap_err().is_would_block());
}

/// An entry of a vector is moved like a waiter, and answers its own index.
#[test]
fn a_vector_is_moved() {
    if implementation() != Implementation::Waitv {
        return missing("futex-waitv", "a move wakes it");
    }
    let (other, from, to) = (Futex::<u32>::new(0), Futex::<u32>::new(0), Futex::<u32>::new(0));
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| waitv(&[other.waiter(0), from.waiter(0)], long()));
        wake_until(1, || from.cmp_requeue(0, &to, 0, 1).unwrap());
        wake_until(1, || to.wake(1));
        assert_eq!(waiter.join().unwrap().unwrap(), 1);
    });
}

/// LTP `futex_wait_bitset`: a wake reaches the waits whose mask meets its own; a plain one reaches
/// all.
#[test]
fn masks() {
    let word = Futex::<u32>::new(7);
    let mask = |mask| Options::new().mask(mask);
    for (wait, miss, hit) in [
        (mask(1), mask(!1 & 0xff_ffff), mask(0b11)),
        (mask(1 << 23), mask(1), mask(1 << 23)),
        (mask(6), mask(9), Options::new()),
        (mask(1 << 31).overlapping(), mask(1).overlapping(), mask(u32::MAX - 1).overlapping()),
        (Options::new(), mask(4).overlapping(), mask(4)),
    ] {
        with_waiters(
            1,
            || word.wait_with(7, long(), wait).unwrap(),
            || {
                assert_eq!(word.wake_with(1, miss).unwrap(), 0, "{wait:?} {miss:?}");
                assert_eq!(word.wake_with(0, hit).unwrap(), 0);
                assert_eq!(word.wake_with(9, hit).unwrap(), 1, "{wait:?} {hit:?}");
            },
        );
    }
    for wrong in [mask(0), mask(1 << 24)] {
        assert!(word.wait_with(7, None, wrong).unwrap_err().is_invalid());
        assert!(word.wake_with(1, wrong).unwrap_err().is_invalid());
    }
    assert!(Futex::<u64>::new(0).wake_with(1, mask(1)).unwrap_err().is_invalid());
}

/// Sizes at one address: apart by default, together if asked for.
#[test]
fn strict_and_overlapping_sizes() {
    #[repr(C, align(8))]
    struct Bytes([AtomicU8; 8]);
    let bytes = Bytes([const { AtomicU8::new(0) }; 8]);
    let at = bytes.0.as_ptr();
    // SAFETY: the same memory under other sizes, which nobody writes.
    let (byte, short, word, long_word) = unsafe {
        (&*at, &*at.cast::<AtomicU16>(), &*at.cast::<AtomicU32>(), &*at.cast::<AtomicU64>())
    };
    let strict = Options::new();
    let wide = strict.overlapping();
    let wake = |size, n, options| match size {
        1 => futex2::wake_with(byte, Private, n, options).unwrap(),
        2 => futex2::wake_with(short, Private, n, options).unwrap(),
        4 => futex2::wake_with(word, Private, n, options).unwrap(),
        _ => futex2::wake_with(long_word, Private, n, options).unwrap(),
    };
    let wait = |size, options| match size {
        1 => futex2::wait_with(byte, Private, 0, long(), options).unwrap(),
        2 => futex2::wait_with(short, Private, 0, long(), options).unwrap(),
        4 => futex2::wait_with(word, Private, 0, long(), options).unwrap(),
        _ => futex2::wait_with(long_word, Private, 0, long(), options).unwrap(),
    };
    for mine in [1, 2, 4, 8] {
        for theirs in [1, 2, 4, 8] {
            // The kernel's vectors, by which 64 bits are waited on, have no masks.
            if mine != theirs && !(mine == 8 && implementation() == Implementation::Waitv) {
                with_waiters(
                    1,
                    || wait(mine, strict),
                    || {
                        assert_eq!(wake(theirs, 9, strict), 0, "{mine} woken by {theirs}");
                        assert_eq!(wake(mine, 9, strict), 1);
                    },
                );
            }
            with_waiters(
                1,
                || wait(mine, strict),
                || {
                    let woken = wake(theirs, 9, wide);
                    // A wait on 64 bits is found on both halves.
                    let most = if (mine, theirs) == (8, 8) { 2 } else { 1 };
                    assert!((1..=most).contains(&woken), "{mine} woken {woken} times by {theirs}");
                },
            );
            if theirs != 8 {
                with_waiters(
                    1,
                    || wait(mine, wide),
                    || {
                        assert_eq!(wake(theirs, 9, strict), 1, "{mine} not woken by {theirs}");
                    },
                );
            }
        }
    }
}

/// Words that libc or a peer waits on: our wakes reach its waits, its wakes ours.
#[test]
fn strangers() {
    let word = AtomicU32::new(0);
    let futex = |op: i32, value: u32| {
        // SAFETY: a word of ours; no timeout.
        unsafe {
            libc::syscall(libc::SYS_futex, word.as_ptr(), op | libc::FUTEX_PRIVATE_FLAG, value, 0)
        }
    };
    with_waiters(
        1,
        || assert_eq!(futex(libc::FUTEX_WAIT, 0), 0),
        || {
            wake_until(1, || futex2::wake(&word, Private, 1).unwrap());
        },
    );
    with_waiters(
        1,
        || futex2::wait(&word, Private, 0, long()).unwrap(),
        || {
            wake_until(1, || futex(libc::FUTEX_WAKE, 1) as usize);
        },
    );
    // And the plain functions among themselves, by moves and vectors.
    let (long_word, other) = (AtomicU64::new(5), AtomicU32::new(0));
    with_waiters(
        1,
        || futex2::wait(&word, Shared, 0, long()).unwrap(),
        || {
            let moved = futex2::cmp_requeue((&word, Shared), 0, (&other, Shared), 0, 1);
            assert_eq!(moved.unwrap(), 1);
            assert_eq!(futex2::wake(&other, Shared, 1).unwrap(), 1);
        },
    );
    assert_eq!(futex2::requeue((&word, Shared), (&long_word, Private), 1, 1).unwrap(), 0);
    let entries = [futex2::waiter(&word, Shared, 0), futex2::waiter(&long_word, Private, 6)];
    assert!(waitv(&entries, None).unwrap_err().is_would_block());
}

/// liburing, parking_lot, test262: the first to wait is the first to be woken.
#[test]
fn first_in_first_out() {
    fn run<T: futex2::Word, S: futex2::Scope>(word: &Futex<T, S>, zero: T) {
        let order = std::sync::Mutex::new(Vec::new());
        let order = &order;
        std::thread::scope(|scope| {
            for n in 0..4 {
                asleep(scope, move || {
                    word.wait(zero, long()).unwrap();
                    order.lock().unwrap().push(n);
                });
            }
            for n in 0..4 {
                assert_eq!(word.wake(0), 0);
                assert_eq!(word.wake(1), 1);
                while order.lock().unwrap().len() <= n {
                    std::thread::yield_now();
                }
            }
        });
        assert_eq!(*order.lock().unwrap(), [0, 1, 2, 3]);
    }
    run(&Futex::<u8>::new(0), 0);
    run(&Futex::<u32, Shared>::new(0), 0);
    if implementation() == Implementation::Waitv {
        run(&Futex::<u64>::new(0), 0);
    }
}
