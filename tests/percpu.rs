//! Per-CPU counters on a live kernel, in each implementation.

mod common;

use common::{
    SetAtEnd, alarm, alarm_again, child, handle, in_each_implementation, map, missing, pin, refuse,
    role, stress, succeed,
};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use unmerged::percpu::{Area, Counter, Implementation, implementation};

/// Whether this thread still runs on that CPU alone.
fn is_pinned(cpu: u32) -> bool {
    let mut set = MaybeUninit::<libc::cpu_set_t>::zeroed();
    // SAFETY: a zeroed set is a set, which the kernel fills.
    unsafe {
        libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), set.as_mut_ptr()) == 0
            && libc::CPU_COUNT(&set.assume_init()) == 1
            && libc::CPU_ISSET(cpu as usize, &set.assume_init())
    }
}

fn cpus() -> Vec<u32> {
    Counter::new().per_cpu().map(|(cpu, _)| cpu).collect()
}

fn memory_file(len: usize) -> OwnedFd {
    // SAFETY: a fresh descriptor, owned by nobody else. Children inherit it.
    let file = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"test".as_ptr(), 0)) };
    // SAFETY: our own file.
    assert_eq!(unsafe { libc::ftruncate(file.as_raw_fd(), len as i64) }, 0);
    file
}

static HITS: Counter = Counter::new();

/// 8 threads that change their CPU again and again lose nothing.
#[test]
fn no_increment_is_lost_under_migration() {
    const TEST: &str = "no_increment_is_lost_under_migration";
    if !in_each_implementation(TEST) {
        return;
    }
    const THREADS: u64 = 8;
    const ADDS: u64 = 300_000;
    let (cpus, start) = (cpus(), Barrier::new(THREADS as usize));
    std::thread::scope(|scope| {
        for me in 0..THREADS {
            let (cpus, start) = (&cpus, &start);
            scope.spawn(move || {
                start.wait();
                for n in 0..ADDS {
                    HITS.add(1);
                    if n % 64 == me {
                        pin(cpus[(n / 64 + me) as usize % cpus.len()]);
                    }
                }
            });
        }
    });
    assert_eq!(HITS.sum(), THREADS * ADDS);
    assert_eq!(HITS.per_cpu().map(|(_, n)| n).sum::<u64>(), THREADS * ADDS);
}

/// What is counted on a CPU is counted for that CPU.
#[test]
fn each_cpu_has_its_own_word() {
    if !in_each_implementation("each_cpu_has_its_own_word") {
        return;
    }
    let counter = Counter::new();
    let mut expected = Vec::new();
    for (n, cpu) in cpus().into_iter().enumerate() {
        let n = if pin(cpu) { n as u64 + 1 } else { 0 };
        for _ in 0..n {
            counter.add(1);
        }
        if n > 0 && !is_pinned(cpu) {
            return; // the CPU went offline meanwhile
        }
        expected.push((cpu, n));
    }
    assert_eq!(counter.per_cpu().collect::<Vec<_>>(), expected);
}

extern "C" fn on_user_signal(_: libc::c_int) {
    HITS.add(1);
    IN_HANDLER.fetch_add(1, Ordering::Relaxed);
}

/// Everything at once: migrations, signals to oneself, and a timer, both with additions in their
/// handlers.
#[test]
fn storms_of_signals_and_migrations_lose_nothing() {
    if !in_each_implementation("storms_of_signals_and_migrations_lose_nothing") {
        return;
    }
    HITS.add(1);
    // SAFETY: the handler uses what is safe in handlers: an atomic, and a counter in use.
    unsafe { handle(&[libc::SIGUSR1, libc::SIGALRM], on_user_signal) };
    let end = std::time::Instant::now() + stress(Duration::from_millis(200));
    let (cpus, added) = (cpus(), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let threads = [0, 1, 2, 3, 4, 5].map(|me| {
            let (cpus, added) = (&cpus, &added);
            scope.spawn(move || {
                let mut n = 0;
                // A thread may begin after the end.
                while n < 64 * 8 || std::time::Instant::now() < end {
                    for _ in 0..64 {
                        HITS.add(1);
                        n += 1;
                    }
                    alarm_again(10);
                    match n / 64 % 4 {
                        0 => drop(pin(cpus[(n as usize / 256 + me) % cpus.len()])),
                        // SAFETY: a signal to this thread, which has a handler for it.
                        1 => drop(unsafe { libc::raise(libc::SIGUSR1) }),
                        2 => std::thread::yield_now(),
                        _ => {}
                    }
                }
                added.fetch_add(n, Ordering::Relaxed);
            })
        });
        // The end of a scope is not the end of its threads: a handler may still run in one.
        let _ = threads.map(|thread| thread.join().unwrap());
    });
    let handled = IN_HANDLER.load(Ordering::Relaxed);
    assert!(handled > 0);
    assert_eq!(HITS.sum(), 1 + handled + added.load(Ordering::Relaxed));
}

static IN_HANDLER: AtomicU64 = AtomicU64::new(0);

extern "C" fn on_alarm(_: libc::c_int) {
    // The word that the interrupted window may be about to commit.
    HITS.add(1);
    IN_HANDLER.fetch_add(1, Ordering::Relaxed);
}

/// A handler adds to the counter that it interrupts.
#[test]
fn signal_handlers_count_too() {
    if !in_each_implementation("signal_handlers_count_too") {
        return;
    }
    HITS.add(1);
    // SAFETY: the handler uses what is safe in handlers: an atomic, and a counter in use.
    unsafe { handle(&[libc::SIGALRM], on_alarm) };
    let mut here = 1;
    while IN_HANDLER.load(Ordering::Relaxed) < 2000 {
        alarm_again(10);
        for _ in 0..64 {
            HITS.add(1);
            here += 1;
        }
    }
    alarm(0);
    assert_eq!(HITS.sum(), here + IN_HANDLER.load(Ordering::Relaxed));
}

/// The first addition of all, by 16 threads at once.
#[test]
fn first_use_by_many_threads() {
    if !in_each_implementation("first_use_by_many_threads") {
        return;
    }
    for _ in 0..50 {
        let (counter, start) = (Counter::new(), Barrier::new(16));
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    start.wait();
                    counter.add(1);
                });
            }
        });
        assert_eq!(counter.sum(), 16);
    }
}

/// A child that is forked while another thread is in the first use of all is not left waiting.
#[test]
fn fork_during_the_first_use() {
    const TEST: &str = "fork_during_the_first_use";
    if role().is_none() {
        return (0..20).for_each(|_| succeed(child(TEST, "process")));
    }
    let start = Barrier::new(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            start.wait();
            HITS.add(1);
        });
        start.wait();
        for _ in 0..8 {
            // SAFETY: the child adds, which glibc's fork lets allocate, and ends.
            let child = unsafe { libc::fork() };
            if child == 0 {
                let counter = Counter::new();
                counter.add(1);
                let code = i32::from(counter.sum() != 1);
                // SAFETY: ends the child.
                unsafe { libc::_exit(code) };
            }
            let mut status = 0;
            // SAFETY: our own child.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            assert_eq!(status, 0);
        }
    });
}

/// A forked child starts at the parent's value and goes its own way.
#[test]
fn fork_copies_a_private_counter() {
    if !in_each_implementation("fork_copies_a_private_counter") {
        return;
    }
    HITS.add(3);
    // SAFETY: the child uses the counter and _exit alone.
    let child = unsafe { libc::fork() };
    if child == 0 {
        HITS.add(4);
        let code = i32::from(HITS.sum() != 7);
        // SAFETY: ends the child.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: our own child.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!((libc::WIFEXITED(status), libc::WEXITSTATUS(status)), (true, 0));
    HITS.add(1);
    assert_eq!(HITS.sum(), 4);
}

const PROCESSES: [&str; 3] = ["gs", "rseq", "portable"];
const SHARED_ADDS: u64 = 200_000;

/// Processes of all three implementations add to one word of shared memory.
#[test]
fn processes_share_an_area() {
    const TEST: &str = "processes_share_an_area";
    const FD: &str = "UNMERGED_TEST_FD";
    if role().is_some() {
        let fd = std::env::var(FD).unwrap().parse().unwrap();
        // SAFETY: inherited from the parent for this very use.
        let file = unsafe { OwnedFd::from_raw_fd(fd) };
        let memory = map(&file, Area::size());
        // SAFETY: mapped for good, written by areas alone.
        let area = unsafe { Area::open(memory, Area::size()) }.unwrap();
        if implementation().name() != role().unwrap() {
            missing(if role().unwrap() == "gs" { "fsgsbase" } else { "rseq" }, "the next best");
        }
        let (one, two) = (area.counter(0).unwrap(), area.counter(510).unwrap());
        let cpus = cpus();
        for n in 0..SHARED_ADDS {
            one.add(1);
            two.sub(1);
            if n % 128 == 0 {
                pin(cpus[n as usize / 128 % cpus.len()]);
            }
        }
        return;
    }
    let file = memory_file(Area::size());
    let memory = map(&file, Area::size());
    // SAFETY: mapped for good, written by areas alone.
    let area = unsafe { Area::create(memory, Area::size()) }.unwrap();
    let children: Vec<_> = PROCESSES
        .into_iter()
        .map(|wanted| {
            let mut command = child(TEST, wanted);
            command.env("UNMERGED_PERCPU", wanted).env(FD, file.as_raw_fd().to_string());
            command.spawn().unwrap()
        })
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let total = SHARED_ADDS * PROCESSES.len() as u64;
    assert_eq!(area.counter(0).unwrap().sum(), total);
    assert_eq!(area.counter(510).unwrap().sum(), total.wrapping_neg());
    // SAFETY: mapped for good, written by areas alone.
    let again = unsafe { Area::create(memory, Area::size()) }.unwrap_err();
    assert!(again.is_exists(), "{again}");
}

#[test]
fn bad_areas_are_refused_with_the_numbers() {
    let file = memory_file(Area::size() + 8192);
    let memory = map(&file, Area::size() + 8192);
    // SAFETY: mapped for good, in all of what follows.
    let create = |memory, len| unsafe { Area::create(memory, len) }.map(drop);
    // SAFETY: as above.
    let open = |memory, len| unsafe { Area::open(memory, len) }.map(drop);
    // SAFETY: inside the mapping.
    let odd = unsafe { memory.add(8) };
    let size = Area::size();
    for (at, len) in [(odd, size), (memory, size - 1), (memory, 0)] {
        let error = create(at, len).unwrap_err();
        assert!(error.is_invalid() && error.to_string().contains(&size.to_string()), "{error}");
    }
    let error = open(memory, size).unwrap_err();
    assert!(error.is_corrupt() && error.to_string().contains("found magic 0x0"), "{error}");
    create(memory, size).unwrap();
    open(memory, size).unwrap();
    for (at, len) in [(odd, size), (memory, size - 1), (memory, 0)] {
        let error = open(at, len).unwrap_err();
        assert!(error.is_invalid() && error.to_string().contains(&len.to_string()), "{error}");
    }
    // Fewer CPUs, a stride that cannot be, another version, garbage.
    // SAFETY: inside the mapping, aligned; the test plays a peer of another layout.
    let word = unsafe { memory.cast::<AtomicU64>().as_ref() };
    let own = word.load(Ordering::Relaxed);
    for other in [own - 1, own - (1 << 24), own + (1 << 32), u64::MAX] {
        let before = word.swap(other, Ordering::Relaxed);
        let error = open(memory, size).unwrap_err();
        assert!(error.is_corrupt(), "{error}");
        assert_eq!(error.raw_os_error(), libc::EPROTO);
        word.store(before, Ordering::Relaxed);
    }
    // More CPUs than this machine has are stripes that nobody uses, if the memory has them.
    word.store(own + 1, Ordering::Relaxed);
    open(memory, size + 8192).unwrap();
    assert!(open(memory, size).unwrap_err().is_invalid());
    word.store(own, Ordering::Relaxed);
    // SAFETY: mapped for good.
    let area = unsafe { Area::open(memory, size) }.unwrap();
    let error = area.counter(511).unwrap_err();
    assert!(error.is_invalid() && error.to_string().contains("511"), "{error}");
}

/// Somebody else owns %gs when it is first claimed: it is left alone.
#[test]
fn a_foreign_gs_base_is_left_alone() {
    const TEST: &str = "a_foreign_gs_base_is_left_alone";
    if role().is_none() {
        return succeed(child(TEST, "owner"));
    }
    if unmerged::sys::gs::claim() != unmerged::sys::gs::Claim::Free {
        return missing("fsgsbase", implementation().name());
    }
    let theirs = [0_u64; 8];
    let base = theirs.as_ptr().expose_provenance();
    // SAFETY: FSGSBASE works; this thread plays the other owner.
    unsafe { unmerged::arch::set_gs_base(base) };
    match implementation() {
        Implementation::Rseq => {}
        other => {
            assert_eq!(other, Implementation::Portable);
            missing("rseq", "portable");
        }
    }
    for _ in 0..1000 {
        HITS.add(1);
    }
    // SAFETY: as above.
    assert_eq!((HITS.sum(), unsafe { unmerged::arch::gs_base() }), (1000, base));
}

/// One thread of a process uses %gs for itself: its updates go another way.
#[test]
fn a_thread_with_a_gs_base_of_its_own() {
    const TEST: &str = "a_thread_with_a_gs_base_of_its_own";
    if role().is_none() {
        return succeed(child(TEST, "process"));
    }
    if implementation() != Implementation::Gs {
        return missing("fsgsbase", implementation().name());
    }
    HITS.add(1);
    let theirs = [0_u64; 8];
    let base = theirs.as_ptr().expose_provenance();
    std::thread::spawn(move || {
        // SAFETY: FSGSBASE works; this thread plays the other owner.
        unsafe { unmerged::arch::set_gs_base(base) };
        for _ in 0..1000 {
            HITS.add(1);
        }
        // SAFETY: as above.
        assert_eq!(unsafe { unmerged::arch::gs_base() }, base);
    })
    .join()
    .unwrap();
    assert_eq!(HITS.sum(), 1001);
}

/// A thread that is stepped or interrupted without end still gets its additions done: the
/// fence that aborts windows, without a pause.
#[test]
fn storms_of_fences_lose_nothing() {
    use unmerged::sys::membarrier::{Fence, fence, is_available, register};
    if !in_each_implementation("storms_of_fences_lose_nothing") {
        return;
    }
    if !is_available(Fence::Rseq) {
        return missing("membarrier-rseq", "no storm");
    }
    register(Fence::Rseq).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let finish = SetAtEnd(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                fence(Fence::Rseq).unwrap();
            }
        });
        for _ in 0..400_000 {
            HITS.add(1);
        }
        drop(finish);
    });
    assert_eq!(HITS.sum(), 400_000);
}

/// libc without rseq: ours is registered, in every thread.
#[test]
fn own_registration() {
    const TEST: &str = "own_registration";
    if role().is_none() {
        let mut command = child(TEST, "own");
        command.env("GLIBC_TUNABLES", "glibc.pthread.rseq=0");
        return succeed(command);
    }
    use unmerged::sys::rseq::{Owner, owner};
    if owner() == Owner::Nobody {
        return missing("rseq", implementation().name());
    }
    assert_eq!(owner(), Owner::Own);
    let threads: Vec<_> = (0..8)
        .map(|_| {
            std::thread::spawn(|| {
                for _ in 0..50_000 {
                    HITS.add(1);
                }
                unmerged::sys::rseq::ensure_registered()
            })
        })
        .collect();
    assert!(threads.into_iter().all(|thread| thread.join().unwrap()));
    assert_eq!(HITS.sum(), 400_000);
}

/// A filter refuses rseq(2), and libc has not registered: atomics take over.
#[test]
fn a_refused_registration_is_a_clean_fallback() {
    const TEST: &str = "a_refused_registration_is_a_clean_fallback";
    match role().as_deref() {
        None => succeed(child(TEST, "filter")),
        Some("filter") => {
            refuse(libc::SYS_rseq, libc::ENOSYS);
            let mut command = child(TEST, "refused");
            command.env("GLIBC_TUNABLES", "glibc.pthread.rseq=0");
            succeed(command);
        }
        Some(_) => {
            assert_eq!(implementation(), Implementation::Portable);
            HITS.add(5);
            std::thread::spawn(|| HITS.add(6)).join().unwrap();
            assert_eq!(HITS.sum(), 11);
        }
    }
}
