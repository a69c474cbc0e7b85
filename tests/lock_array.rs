//! Per-CPU locks, arrays and histograms on a live kernel, in each implementation.

mod common;

use common::{
    alarm_again, allowed as cpus, child, handle, in_each_implementation, missing, pin, pin_thread,
    role, stress, succeed,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};
use unmerged::percpu::{
    AreaBuilder, Counter, CounterArray, Guard, Histogram, Lock, MappedArea, implementation,
};
use unmerged::sys::membarrier;

/// Waits for a forked child, which must end well.
fn wait_for(child: libc::pid_t) {
    let mut status = 0;
    // SAFETY: our own child.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0, "the child ended badly");
}

/// Forks a child that runs `body` and ends well if it answers true.
fn forked(body: impl FnOnce() -> bool) {
    // SAFETY: the child runs `body`, under a timer that ends it should it hang, and ends.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            libc::alarm(20);
            let good = catch_unwind(AssertUnwindSafe(body)).unwrap_or(false);
            libc::_exit(i32::from(!good));
        }
        wait_for(child);
    }
}

/// A number that is not atomic, in two halves that must agree.
#[derive(Debug, Default)]
struct Plain {
    one: u64,
    other: u64,
}

impl Plain {
    fn add(&mut self, n: u64) {
        self.one += n;
        // Others see a holder that was preempted here.
        std::hint::black_box(&mut *self);
        self.other += n;
        assert_eq!(self.one, self.other);
    }
}

fn total(lock: &Lock<Plain>) -> u64 {
    let mut sum = 0;
    lock.for_each(|_, plain| sum += plain.one).unwrap();
    sum
}

/// librseq's spin lock test: threads, a lock, a plain addition; and holders that yield, sleep and
/// go to another CPU.
#[test]
fn plain_additions_under_the_lock() {
    static LOCK: Lock<Plain> = Lock::new(|| Plain { one: 0, other: 0 });
    if !in_each_implementation("plain_additions_under_the_lock") {
        return;
    }
    let (cpus, done, end) =
        (cpus(), AtomicU64::new(0), Instant::now() + stress(Duration::from_millis(250)));
    std::thread::scope(|scope| {
        for me in 0..8 {
            let (cpus, done) = (&cpus, &done);
            scope.spawn(move || {
                let mut n = 0;
                while Instant::now() < end {
                    for _ in 0..50 {
                        n += 1;
                        let mut plain = LOCK.lock();
                        let cpu = cpus[(n / 16 + me) as usize % cpus.len()];
                        match n % 256 {
                            16 => std::thread::yield_now(),
                            48 => std::thread::sleep(Duration::from_micros(n % 50)),
                            96 | 160 => drop(pin(cpu)),
                            _ => {}
                        }
                        plain.add(1);
                    }
                }
                done.fetch_add(n, Ordering::Relaxed);
            });
        }
    });
    assert_eq!(total(&LOCK), done.load(Ordering::Relaxed));
}

static SIGNALLED: Lock<Plain> = Lock::new(|| Plain { one: 0, other: 0 });
static IN_HANDLER: AtomicU64 = AtomicU64::new(0);
static HANDLED: AtomicU64 = AtomicU64::new(0);

extern "C" fn try_in_handler(_: libc::c_int) {
    HANDLED.fetch_add(1, Ordering::Relaxed);
    if let Some(mut plain) = SIGNALLED.try_lock() {
        plain.add(1);
        IN_HANDLER.fetch_add(1, Ordering::Relaxed);
    }
}

/// Handlers, by SIGUSR1 to each thread and by a timer, try the lock that they interrupt.
#[test]
fn handlers_try_the_lock_that_they_interrupt() {
    if !in_each_implementation("handlers_try_the_lock_that_they_interrupt") {
        return;
    }
    // SAFETY: the handler uses what is safe in handlers: atomics, and `try_lock`.
    unsafe { handle(&[libc::SIGUSR1, libc::SIGALRM], try_in_handler) };
    // Every place has its value before a handler comes.
    for cpu in cpus() {
        pin(cpu);
        SIGNALLED.lock().add(0);
    }
    let (end, done) = (Instant::now() + stress(Duration::from_millis(250)), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let threads = [(); 4].map(|()| {
            scope.spawn(|| {
                let mut n = 0;
                while Instant::now() < end || HANDLED.load(Ordering::Relaxed) < 100 {
                    alarm_again(10);
                    for _ in 0..200 {
                        SIGNALLED.lock().add(1);
                        n += 1;
                    }
                    // SAFETY: a signal to this thread, which has a handler.
                    unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGUSR1) };
                }
                done.fetch_add(n, Ordering::Relaxed);
            })
        });
        // The end of a scope is not the end of its threads: a handler may still run in one.
        let _ = threads.map(|thread| thread.join().unwrap());
    });
    let expected = || done.load(Ordering::Relaxed) + IN_HANDLER.load(Ordering::SeqCst);
    assert_eq!(total(&SIGNALLED), expected());
    assert!(IN_HANDLER.load(Ordering::Relaxed) > 0);
}

/// The kernel's word for what a thread of this process does: `S` if it sleeps.
fn state(tid: i32) -> char {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{tid}/stat")).unwrap();
    stat.rsplit(") ").next().and_then(|rest| rest.chars().next()).unwrap()
}

/// Threads that want the lock of one CPU sleep while it is held, and are all woken; some of them
/// on another CPU, where they take another lock.
#[test]
fn waiters_sleep_and_are_woken() {
    if !in_each_implementation("waiters_sleep_and_are_woken") {
        return;
    }
    const WAITERS: usize = 4;
    let cpus = cpus();
    let lock: Lock<Plain> = Lock::default();
    for round in 0..20 {
        pin(cpus[0]);
        let held = lock.lock();
        let tids = [const { AtomicI32::new(0) }; WAITERS];
        std::thread::scope(|scope| {
            for tid in &tids {
                let lock = &lock;
                scope.spawn(move || {
                    // SAFETY: asks for a number.
                    tid.store(unsafe { libc::gettid() }, Ordering::Release);
                    lock.lock().add(1);
                });
            }
            for (n, tid) in tids.iter().enumerate() {
                while tid.load(Ordering::Acquire) == 0 || state(tid.load(Ordering::Relaxed)) != 'S'
                {
                    std::thread::yield_now();
                }
                if round % 2 == 1 && n % 2 == 0 {
                    pin_thread(tid.load(Ordering::Relaxed), *cpus.last().unwrap());
                }
            }
            drop(held);
        });
        assert_eq!(total(&lock), (round + 1) * WAITERS as u64);
    }
}

/// What one thread takes out of all CPUs' values and what is left is what others put in.
#[test]
fn collecting_loses_nothing() {
    const TEST: &str = "collecting_loses_nothing";
    const FENCE: &str = "UNMERGED_PERCPU_FENCE";
    if role().is_none() {
        for wanted in ["gs", "rseq", "portable"] {
            for fence in ["membarrier", "affinity"] {
                let mut command = child(TEST, wanted);
                command.env("UNMERGED_PERCPU", wanted).env(FENCE, fence);
                succeed(command);
            }
        }
        return;
    }
    let lock: Lock<Plain> = Lock::default();
    let (cpus, put, end) =
        (cpus(), AtomicU64::new(0), Instant::now() + stress(Duration::from_millis(250)) / 2);
    let mut taken = 0;
    let mut take = |_, plain: &mut Plain| {
        let plain = std::mem::take(plain);
        assert_eq!(plain.one, plain.other);
        taken += plain.one;
    };
    std::thread::scope(|scope| {
        for me in 0..4 {
            let (lock, cpus, put) = (&lock, &cpus, &put);
            scope.spawn(move || {
                let mut n = 0;
                while Instant::now() < end {
                    for _ in 0..50 {
                        n += 1;
                        lock.lock().add(1);
                    }
                    if me < 2 {
                        pin(cpus[n as usize / 50 % cpus.len()]);
                    }
                }
                put.fetch_add(n, Ordering::Relaxed);
            });
        }
        while Instant::now() < end {
            lock.for_each(&mut take).unwrap();
        }
    });
    lock.for_each(&mut take).unwrap();
    assert_eq!(taken, put.into_inner());
}

/// A child that is forked while other threads hold locks is not left waiting, and sees no value
/// that is half changed.
#[test]
fn fork_while_others_hold() {
    if !in_each_implementation("fork_while_others_hold") {
        return;
    }
    let (lock, cpus): (Lock<Plain>, _) = (Lock::default(), cpus());
    let (locked, over) = (Barrier::new(cpus.len() + 1), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for &cpu in &cpus {
            let (lock, locked, over) = (&lock, &locked, &over);
            scope.spawn(move || {
                pin(cpu);
                let mut plain = lock.lock();
                plain.one = 99; // half changed
                locked.wait();
                while !over.load(Ordering::Acquire) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                plain.other = 99;
            });
        }
        locked.wait();
        assert!(lock.try_lock().is_none());
        forked(|| {
            let mut good = true;
            for &cpu in &cpus {
                pin(cpu);
                good &= lock.try_lock().is_some_and(|plain| plain.one == 0);
                lock.lock().add(1);
                // Forked once more, from a thread that holds it.
                let held = lock.lock();
                forked(|| {
                    let inherited = held;
                    let other =
                        std::thread::scope(|scope| scope.spawn(|| lock.lock().one).join().unwrap());
                    other == 0 && inherited.one == 1
                });
            }
            // Threads of the child wait for each other like any others.
            let held = lock.lock();
            std::thread::scope(|scope| {
                scope.spawn(|| lock.lock().add(1));
                std::thread::sleep(Duration::from_millis(5));
                drop(held);
            });
            good && total(&lock) == cpus.len() as u64 + 1
        });
        // The same with no lock taken before the walk.
        forked(|| total(&lock) == 0);
        over.store(true, Ordering::Release);
    });
    assert_eq!(total(&lock), 99 * cpus.len() as u64);
}

/// Values are made where they are needed, and dropped once.
#[test]
fn values_are_made_late_and_dropped_once() {
    if !in_each_implementation("values_are_made_late_and_dropped_once") {
        return;
    }
    static MADE: AtomicUsize = AtomicUsize::new(0);
    static DROPPED: AtomicUsize = AtomicUsize::new(0);
    /// As large and as aligned as can be.
    #[repr(align(64))]
    struct Large([u8; 1984]);
    impl Drop for Large {
        fn drop(&mut self) {
            assert!(self.0.iter().all(|&byte| byte == 7));
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }
    let cpus = cpus();
    for round in 1..=3 {
        let lock = Lock::new(|| {
            MADE.fetch_add(1, Ordering::Relaxed);
            Large([7; 1984])
        });
        for &cpu in &cpus {
            if pin(cpu) {
                let guard = lock.lock();
                assert_eq!((Guard::cpu(&guard), ptr::from_ref(&*guard).addr() % 64), (cpu, 0));
            }
        }
        let made = MADE.load(Ordering::Relaxed);
        assert_eq!(made, round * cpus.len());
        drop(lock);
        assert_eq!(DROPPED.load(Ordering::Relaxed), made);
    }
    // A value without bytes.
    Lock::new(|| ()).lock();
}

/// Without address space for more cells a lock is one for all CPUs, and an array is refused.
#[test]
fn without_address_space() {
    if !in_each_implementation("without_address_space") {
        return;
    }
    const LOCKS: usize = 300;
    let locks: Vec<Lock<Plain>> = (0..LOCKS).map(|_| Lock::default()).collect();
    locks[0].lock().add(0);
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let array = {
        // SAFETY: limits of this process, given back below.
        unsafe { libc::getrlimit(libc::RLIMIT_AS, &raw mut limit) };
        let none = libc::rlimit { rlim_cur: 4096, ..limit };
        // SAFETY: as above.
        unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const none) };
        for _ in 0..2 {
            locks.iter().for_each(|lock| lock.lock().add(1));
        }
        let array = CounterArray::new(100_000).map(drop);
        // SAFETY: as above.
        unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) };
        array
    };
    assert!(array.unwrap_err().is_exhausted());
    locks.iter().for_each(|lock| lock.lock().add(1));
    assert!(locks.iter().all(|lock| total(lock) == 3));
}

/// A panic gives the lock back, of a holder and of the one who makes the value.
#[test]
fn panics_give_the_lock_back() {
    if !in_each_implementation("panics_give_the_lock_back") {
        return;
    }
    static FAILS: AtomicBool = AtomicBool::new(true);
    let lock = Lock::new(|| {
        assert!(!FAILS.swap(false, Ordering::Relaxed), "no value yet");
        String::from("made")
    });
    pin(cpus()[0]);
    catch_unwind(AssertUnwindSafe(|| drop(lock.lock()))).unwrap_err();
    assert_eq!(*lock.lock(), "made");
    catch_unwind(AssertUnwindSafe(|| {
        lock.lock().push_str(" and changed");
        let _guard = lock.lock();
        panic!("a holder's");
    }))
    .unwrap_err();
    assert_eq!(*lock.lock(), "made and changed");
}

/// A debug build notices a thread that would wait for itself.
#[test]
fn a_second_lock_of_one_thread_is_noticed() {
    if !in_each_implementation("a_second_lock_of_one_thread_is_noticed") {
        return;
    }
    if !cfg!(debug_assertions) {
        return missing("debug-assertions", "nothing: the thread would wait");
    }
    let lock: Lock<Plain> = Lock::default();
    pin(cpus()[0]);
    let _held = lock.lock();
    assert!(lock.try_lock().is_none());
    catch_unwind(AssertUnwindSafe(|| drop(lock.lock()))).unwrap_err();
    catch_unwind(AssertUnwindSafe(|| lock.for_each(|_, _| {}))).unwrap_err();
}

/// Runs `work` in three threads, which gets the number of the round, while windows are aborted
/// without a pause and one of the threads changes its CPU again and again.
fn in_a_storm(work: impl Fn(u64) + Sync) -> u64 {
    let (cpus, done, end) =
        (cpus(), AtomicU64::new(0), Instant::now() + stress(Duration::from_millis(250)));
    let fence = membarrier::Fence::Rseq;
    let fences = membarrier::is_available(fence) && membarrier::register(fence).is_ok();
    if !fences {
        missing("membarrier-rseq", "no storm");
    }
    std::thread::scope(|scope| {
        for me in 0..3 {
            let (work, cpus, done) = (&work, &cpus, &done);
            scope.spawn(move || {
                let mut n = 0;
                while Instant::now() < end {
                    (n..n + 500).for_each(work);
                    n += 500;
                    if me == 0 {
                        pin(cpus[n as usize / 500 % cpus.len()]);
                    }
                }
                done.fetch_add(n, Ordering::Relaxed);
            });
        }
        while fences && Instant::now() < end {
            membarrier::fence(fence).unwrap();
        }
    });
    done.into_inner()
}

#[test]
fn a_storm_of_fences_breaks_no_lock() {
    if !in_each_implementation("a_storm_of_fences_breaks_no_lock") {
        return;
    }
    let lock: Lock<Plain> = Lock::default();
    let done = in_a_storm(|_| lock.lock().add(1));
    assert_eq!(total(&lock), done);
}

#[test]
fn a_storm_loses_nothing_of_an_array() {
    if !in_each_implementation("a_storm_loses_nothing_of_an_array") {
        return;
    }
    const LEN: usize = 1100; // three planes
    let array = CounterArray::new(LEN).unwrap();
    let done = in_a_storm(|n| array.add(n as usize * 37 % LEN, 1));
    assert_eq!(array.sums().into_iter().sum::<u64>(), done);
    let parts = (0..LEN).flat_map(|index| array.per_cpu(index)).map(|(_, n)| n);
    assert_eq!(parts.sum::<u64>(), done);
}

#[test]
fn a_storm_loses_nothing_of_a_histogram() {
    if !in_each_implementation("a_storm_loses_nothing_of_a_histogram") {
        return;
    }
    let histogram = Histogram::new(5).unwrap();
    let before = histogram.snapshot();
    let done = in_a_storm(|n| histogram.record(n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (n % 64)));
    let snapshot = histogram.snapshot();
    assert_eq!((snapshot.count(), before.count()), (done, 0));
    assert_eq!(snapshot.since(&before).unwrap(), snapshot);
}

/// Against an array of ordinary numbers.
#[test]
fn arrays_follow_a_model() {
    if !in_each_implementation("arrays_follow_a_model") {
        return;
    }
    let cpus = cpus();
    let op = (any::<prop::sample::Index>(), any::<u64>(), any::<bool>(), any::<u8>());
    let ops = (1_usize..2000, prop::collection::vec(op, 0..50));
    let mut runner =
        TestRunner::new(Config { cases: 64, failure_persistence: None, ..Config::default() });
    let run = runner.run(&ops, |(len, ops)| {
        let (array, mut model) = (CounterArray::new(len).unwrap(), vec![0_u64; len]);
        for (index, n, up, cpu) in ops {
            let index = index.index(len);
            if cpu < 32 {
                pin(cpus[cpu as usize % cpus.len()]);
            }
            if up {
                array.add(index, n);
                model[index] = model[index].wrapping_add(n);
            } else {
                array.sub(index, n);
                model[index] = model[index].wrapping_sub(n);
            }
            prop_assert_eq!(array.sum(index), model[index]);
        }
        prop_assert_eq!(array.sums(), model);
        Ok(())
    });
    run.unwrap();
}

/// Against the values themselves, sorted.
#[test]
fn histograms_follow_a_model() {
    if !in_each_implementation("histograms_follow_a_model") {
        return;
    }
    let value = (any::<u64>(), 0_u32..64).prop_map(|(value, by)| value >> by);
    let ops = (0_u32..9, prop::collection::vec(value, 1..80), 0.0..=1.0_f64);
    let mut runner =
        TestRunner::new(Config { cases: 64, failure_persistence: None, ..Config::default() });
    let run = runner.run(&ops, |(bits, mut values, q)| {
        let histogram = Histogram::new(bits).unwrap();
        values.iter().for_each(|&value| histogram.record(value));
        values.sort_unstable();
        let snapshot = histogram.snapshot();
        prop_assert_eq!(snapshot.count(), values.len() as u64);
        let exact = values[((q * values.len() as f64).ceil() as usize).max(1) - 1];
        let bucket = snapshot.quantile(q).unwrap();
        prop_assert!(bucket.low <= exact && exact <= bucket.high);
        prop_assert!(bucket.high - bucket.low <= exact >> bits);
        Ok(())
    });
    run.unwrap();
}

/// Processes of all three implementations count in one array and one histogram.
#[test]
fn processes_share_arrays_and_histograms() {
    const TEST: &str = "processes_share_arrays_and_histograms";
    const FDS: &str = "UNMERGED_TEST_FDS";
    const OFFSETS: &str = "UNMERGED_TEST_OFFSETS";
    const COUNTERS: usize = 300;
    const BUCKETS: usize = 60 * 32 * 8; // 5 bits
    const ROUNDS: u64 = 30_000;
    const ROLES: [&str; 3] = ["gs", "rseq", "portable"];
    use std::os::fd::{AsRawFd, BorrowedFd};
    if let Some(role) = role() {
        if implementation().name() != role {
            missing(if role == "gs" { "fsgsbase" } else { "rseq" }, "the next best");
        }
        let numbers = |name| -> Vec<usize> {
            let list = std::env::var(name).unwrap();
            list.split(',').map(|number| number.parse().unwrap()).collect()
        };
        let (fds, offsets) = (numbers(FDS), numbers(OFFSETS));
        let open = |fd: usize| {
            // SAFETY: inherited from the parent for this very use.
            let fd = unsafe { BorrowedFd::borrow_raw(fd as i32) };
            MappedArea::open(fd).unwrap()
        };
        let (large, small) = (open(fds[0]), open(fds[1]));
        let array = small.area().cell(offsets[0], COUNTERS * 8).unwrap().counters().unwrap();
        let wide = large.area().cell(offsets[1], COUNTERS * 8).unwrap().counters().unwrap();
        let histogram = large.area().cell(offsets[2], BUCKETS).unwrap().histogram(5).unwrap();
        for n in 0..ROUNDS {
            array.add(n as usize % COUNTERS, 1);
            wide.add(n as usize % COUNTERS, 2);
            histogram.record(n);
        }
        return;
    }
    let large = AreaBuilder::new().stride(65536).memory_file("test").unwrap();
    let small = AreaBuilder::new().memory_file("test").unwrap();
    let cell = small.area().alloc(COUNTERS * 8).unwrap();
    let wide = large.area().alloc(COUNTERS * 8).unwrap();
    let buckets = large.area().alloc(BUCKETS).unwrap();
    assert!(wide.histogram(5).unwrap_err().is_invalid());
    let fds = [&large, &small].map(|area| {
        let fd = area.file().unwrap().as_raw_fd();
        // SAFETY: the children inherit a copy, which stays open in this process.
        unsafe { libc::fcntl(fd, libc::F_DUPFD, 3) }.to_string()
    });
    let offsets = [cell, wide, buckets].map(|cell| cell.offset().to_string());
    let children = ROLES.map(|role| {
        let mut command = child(TEST, role);
        command.env("UNMERGED_PERCPU", role).env(FDS, fds.join(","));
        command.env(OFFSETS, offsets.join(",")).spawn().unwrap()
    });
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let all = ROUNDS * ROLES.len() as u64;
    let each = all / COUNTERS as u64;
    assert_eq!(cell.counters().unwrap().sums(), [each; COUNTERS]);
    assert_eq!(wide.counters().unwrap().sums(), [2 * each; COUNTERS]);
    let snapshot = buckets.histogram(5).unwrap().snapshot();
    assert_eq!(snapshot.count(), all);
    let max = snapshot.max().unwrap();
    assert!(max.low < ROUNDS && ROUNDS <= max.high + 1 + ROUNDS / 32);
}

/// An array and a lock are shared by reference like anything else.
#[test]
fn they_are_sync() {
    fn shared<T: Send + Sync>(_: &T) {}
    let (array, histogram) = (CounterArray::new(1).unwrap(), Histogram::new(0).unwrap());
    let lock: Arc<Lock<Vec<u8>>> = Arc::default();
    shared(&array);
    shared(&histogram);
    shared(&lock);
    shared(&Counter::new());
}

/// A process that is forked while a `T` is being made makes another; the two never meet.
#[test]
fn a_fork_while_a_value_is_made() {
    static FORKED: AtomicBool = AtomicBool::new(false);
    static LOCK: Lock<Vec<u32>> = Lock::new(|| {
        let is_first = !FORKED.swap(true, Ordering::Relaxed);
        // SAFETY: the child uses the lock, and ends below.
        if is_first && unsafe { libc::fork() } == 0 {
            LOCK.lock().push(1);
            return vec![2];
        }
        Vec::new()
    });
    pin(cpus()[0]);
    let parent = std::process::id();
    let mut first = LOCK.lock();
    if std::process::id() == parent {
        let mut status = 0;
        // SAFETY: waits for the child that was forked above.
        unsafe { libc::wait(&raw mut status) };
        assert_eq!(status, 0);
        return assert!(first.is_empty());
    }
    let is_another = LOCK.try_lock().is_none_or(|mut other| {
        other.push(3);
        !ptr::eq(&raw const *other, &raw const *first)
    });
    first.push(4);
    let is_well = is_another && *first == [2, 4];
    drop(first);
    let is_well = is_well && !LOCK.lock().contains(&4);
    // SAFETY: nothing of the parent's harness is to run here.
    unsafe { libc::_exit(i32::from(!is_well)) }
}
