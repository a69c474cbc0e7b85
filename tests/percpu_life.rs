//! What happens to per-CPU memory in the life of a thread and a process: the rows of the table
//! "Guarantees" in the module's docs that `tests/percpu.rs` has not.

mod common;

use common::{SetAtEnd, alarm, alarm_again, child, in_each_implementation, missing, role, succeed};
use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use unmerged::percpu::{Counter, Node, Stack, Word, gs, implementation, stats};
use unmerged::sys::{features::features, gs::Claim, rseq};

static HITS: Counter = Counter::new();
static SPARE: Stack<u64> = Stack::new();

/// Waits for a forked child, which must have ended well.
fn reap(pid: libc::pid_t) {
    let mut status = 0;
    // SAFETY: our own child.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "{status:#x}");
}

/// A child has a copy, whatever the other threads of its parent were doing, and goes on with it
/// in every operation, drains included.
#[test]
fn fork_while_others_work() {
    if !in_each_implementation("fork_while_others_work") {
        return;
    }
    for n in 0..64 {
        SPARE.push(Node::new(n));
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let finish = SetAtEnd(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                if let Some(node) = SPARE.pop() {
                    SPARE.push(node);
                }
                HITS.add(1);
            }
        });
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let mut all = Vec::new();
                SPARE.drain(|node| all.push(node)).unwrap();
                all.into_iter().for_each(|node| SPARE.push(node));
            }
        });
        for _ in 0..30 {
            // SAFETY: the child calls nothing that another thread may have locked, and leaves
            // without destructors. It allocates, which glibc's fork allows.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                // What the parent's threads had in their hands is not here.
                let (mut sum, before) = (0, HITS.sum());
                let count = SPARE.drain(|node| sum += **node).unwrap_or(usize::MAX);
                let mut good = count <= 64 && sum <= 63 * 64 / 2;
                SPARE.push(Node::new(7));
                // On another CPU by now, it is not popped but drained.
                let mut left: Vec<_> = SPARE.pop().into_iter().collect();
                good &= SPARE.drain(|node| left.push(node)).is_ok();
                good &= matches!(&left[..], [node] if ***node == 7);
                for _ in 0..100 {
                    HITS.add(1);
                }
                good &= HITS.sum() == before + 100;
                // SAFETY: ends the child.
                unsafe { libc::_exit(i32::from(!good)) };
            }
            reap(pid);
        }
        drop(finish);
    });
    let mut all = Vec::new();
    SPARE.drain(|node| all.push(node.into_inner())).unwrap();
    all.sort_unstable();
    assert_eq!(all, (0..64).collect::<Vec<_>>());
}

/// A program that is executed starts anew, in the parent's thread and in a child of vfork
/// (`posix_spawn`), whatever the GS base was.
#[test]
fn exec_starts_anew() {
    const TEST: &str = "exec_starts_anew";
    match role().as_deref() {
        None => {
            HITS.add(3);
            succeed(child(TEST, "executes"));
        }
        Some("executes") => {
            use std::os::unix::process::CommandExt;
            HITS.add(2);
            let error = child(TEST, "executed").exec();
            panic!("{error}");
        }
        Some(_) => {
            assert_eq!(HITS.sum(), 0);
            HITS.add(1);
            assert_eq!(HITS.sum(), 1);
        }
    }
}

/// Destructors of thread-locals run when the thread is all but gone.
#[test]
fn destructors_of_a_thread_count() {
    if !in_each_implementation("destructors_of_a_thread_count") {
        return;
    }
    struct Last;
    impl Drop for Last {
        fn drop(&mut self) {
            HITS.add(1);
            SPARE.push(Node::new(1));
        }
    }
    thread_local!(static LAST: RefCell<Option<Last>> = const { RefCell::new(None) });
    for first in [true, false] {
        // Whether the thread has ever counted before its last moment.
        for _ in 0..20 {
            std::thread::spawn(move || {
                if first {
                    HITS.add(1);
                }
                LAST.with_borrow_mut(|last| *last = Some(Last));
            })
            .join()
            .unwrap();
        }
    }
    assert_eq!(HITS.sum(), 60);
    assert_eq!(SPARE.drain(drop).unwrap(), 40);
}

/// The states of the fiber and of whoever resumes it.
struct Fiber {
    inside: libc::ucontext_t,
    outside: libc::ucontext_t,
    stack: Vec<u8>,
}

/// The fiber that `run_fiber` is started for.
static STARTED: std::sync::atomic::AtomicPtr<Fiber> =
    std::sync::atomic::AtomicPtr::new(std::ptr::null_mut());

/// 100 times: add, go back to whoever resumed.
extern "C" fn run_fiber() {
    let fiber = STARTED.load(Ordering::Acquire);
    for _ in 0..100 {
        HITS.add(1);
        let node = SPARE.pop().unwrap_or_else(|| Node::new(0));
        // SAFETY: the fiber is alive, and whoever resumed it waits in `outside`.
        unsafe { libc::swapcontext(&raw mut (*fiber).inside, &raw const (*fiber).outside) };
        // Here on another thread.
        SPARE.push(node);
        HITS.add(1);
    }
    // SAFETY: as above; it is not resumed again.
    unsafe { libc::setcontext(&raw const (*fiber).outside) };
}

/// A fiber that goes on in another thread each time: the GS base is the thread's, and every
/// operation looks at where it is.
#[test]
fn fibers_change_threads() {
    if !in_each_implementation("fibers_change_threads") {
        return;
    }
    let mut fiber = Box::new(Fiber {
        // SAFETY: getcontext fills them in.
        inside: unsafe { std::mem::zeroed() },
        // SAFETY: as above.
        outside: unsafe { std::mem::zeroed() },
        stack: vec![0; 256 << 10],
    });
    // SAFETY: the context is filled, then given a stack of its own and a function.
    unsafe {
        assert_eq!(libc::getcontext(&raw mut fiber.inside), 0);
        fiber.inside.uc_stack.ss_sp = fiber.stack.as_mut_ptr().cast();
        fiber.inside.uc_stack.ss_size = fiber.stack.len();
        libc::makecontext(&raw mut fiber.inside, run_fiber, 0);
    }
    let fiber = Box::into_raw(fiber);
    STARTED.store(fiber, Ordering::Release);
    let address = fiber.expose_provenance();
    for _ in 0..=100 {
        std::thread::spawn(move || {
            let fiber = std::ptr::with_exposed_provenance_mut::<Fiber>(address);
            HITS.add(1);
            // SAFETY: one thread at a time resumes the fiber.
            unsafe { libc::swapcontext(&raw mut (*fiber).outside, &raw const (*fiber).inside) };
            HITS.add(1);
        })
        .join()
        .unwrap();
    }
    assert_eq!(HITS.sum(), 200 + 202);
    // SAFETY: it has ended.
    drop(unsafe { Box::from_raw(fiber) });
}

/// No memory for a cell: counts and nodes are kept in the object itself, and what cannot be says so.
#[test]
fn without_memory() {
    const TEST: &str = "without_memory";
    if !in_each_implementation(TEST) {
        return;
    }
    // The process knows what it uses; only blocks are missing.
    let _ = implementation();
    static EARLY: Counter = Counter::new();
    EARLY.add(1);
    let nodes: Vec<_> = (0..10).map(Node::new).collect();
    let limit = libc::rlimit { rlim_cur: 0, rlim_max: libc::RLIM_INFINITY };
    // Blocks are full after so many cells.
    let mut full = Vec::new();
    let restore = {
        let mut before = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: both structures are on this stack.
        unsafe {
            libc::getrlimit(libc::RLIMIT_AS, &raw mut before);
            full.reserve(1 << 10);
            assert_eq!(libc::setrlimit(libc::RLIMIT_AS, &raw const limit), 0);
        }
        before
    };
    let mut refused = None;
    for _ in 0..1000 {
        let word: Word<u64> = Word::new();
        if let Err(error) = word.fetch_add(1) {
            refused = Some(error.raw_os_error());
            break;
        }
        full.push(word);
    }
    let (late, stack) = (Counter::new(), Stack::new());
    late.add(5);
    for node in nodes {
        stack.push(node);
    }
    let popped = stack.pop().map(|node| node.into_inner());
    let drained = stack.drain(std::mem::forget);
    // SAFETY: the structure is on this stack.
    unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const restore) };
    assert_eq!(refused, Some(libc::ENOMEM));
    assert_eq!((late.sum(), EARLY.sum()), (5, 1));
    assert_eq!((popped, drained.unwrap()), (Some(9), 9));
    // With memory again, all go on.
    late.add(1);
    stack.push(Node::new(3));
    assert_eq!(late.sum(), 6);
    assert_eq!(stack.pop().map(|node| **node), Some(3));
}

/// A thread whose every window is aborted, because a debugger steps it, still gets its operations
/// done.
#[test]
fn a_thread_that_is_stepped_makes_progress() {
    const TEST: &str = "a_thread_that_is_stepped_makes_progress";
    if role().is_none() {
        for wanted in ["gs", "rseq"] {
            let mut command = child(TEST, wanted);
            command.env("UNMERGED_PERCPU", wanted);
            succeed(command);
        }
        return;
    }
    HITS.add(1);
    SPARE.push(Node::new(1));
    // SAFETY: the child below is single-threaded, and leaves without destructors.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: asks to be traced by the parent.
        let traced = unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) };
        if traced != 0 {
            // SAFETY: ends the child.
            unsafe { libc::_exit(77) };
        }
        let before = stats().fallbacks;
        // SAFETY: stops for the parent, which steps from here on.
        unsafe { libc::raise(libc::SIGSTOP) };
        HITS.add(1);
        let node = SPARE.pop();
        SPARE.push(node.unwrap_or_else(|| Node::new(2)));
        let good = HITS.sum() == 2 && stats().fallbacks > before;
        // SAFETY: ends the child.
        unsafe { libc::_exit(i32::from(!good)) };
    }
    let mut steps = 0_u64;
    loop {
        let mut status = 0;
        // SAFETY: our own child.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        if libc::WIFEXITED(status) {
            if libc::WEXITSTATUS(status) == 77 {
                return missing("ptrace", "no thread is stepped");
            }
            assert_eq!(libc::WEXITSTATUS(status), 0);
            break;
        }
        assert!(libc::WIFSTOPPED(status), "{status:#x}");
        steps += 1;
        // SAFETY: a stopped child of ours.
        unsafe { libc::ptrace(libc::PTRACE_SINGLESTEP, pid, 0, 0) };
    }
    assert!(steps > 100);
}

static STRIPES: [AtomicU64; 1 << 16] = [const { AtomicU64::new(0) }; 1 << 16];
static IN_HANDLER: AtomicU64 = AtomicU64::new(0);

extern "C" fn on_alarm(_: libc::c_int) {
    let base = STRIPES.as_ptr().addr();
    // 64 bytes for each of up to 8192 CPU ids.
    if gs::set(base, 64).is_ok() {
        // SAFETY: every stripe has a word at 8, which these operations alone write.
        let _ = unsafe { gs::fetch_add::<u64>(8, 1) };
        let _ = gs::clear();
    }
    HITS.add(1);
    IN_HANDLER.fetch_add(1, Ordering::Relaxed);
}

/// A handler lays stripes of its own and takes them away, in the middle of anything.
#[test]
fn a_handler_with_stripes_of_its_own() {
    if !in_each_implementation("a_handler_with_stripes_of_its_own") {
        return;
    }
    if features().gs != Claim::Free {
        return missing("fsgsbase", "no stripes of the caller's");
    }
    if !rseq::ensure_registered() {
        return missing("rseq", "no stripes of the caller's");
    }
    // Outside of a handler first: this is where memory is taken.
    let _ = STRIPES.as_ptr().expose_provenance();
    gs::set(STRIPES.as_ptr().addr(), 64).unwrap();
    gs::clear().unwrap();
    HITS.add(1);
    // SAFETY: the handler uses what is in use.
    unsafe { common::handle(&[libc::SIGALRM], on_alarm) };
    let mut here = 1;
    while IN_HANDLER.load(Ordering::Relaxed) < 1000 {
        alarm_again(10);
        for _ in 0..64 {
            HITS.add(1);
            here += 1;
        }
    }
    alarm(0);
    let handled = IN_HANDLER.load(Ordering::Relaxed);
    assert_eq!(HITS.sum(), here + handled);
    let theirs = STRIPES.iter().map(|word| word.load(Ordering::Relaxed)).sum::<u64>();
    assert_eq!(theirs, handled);
}

/// The table of cases names tests that exist.
#[test]
fn the_table_of_cases_is_true() {
    let sources = [
        ("arch", include_str!("arch.rs")),
        ("lock_array", include_str!("lock_array.rs")),
        ("percpu", include_str!("percpu.rs")),
        ("percpu_area", include_str!("percpu_area.rs")),
        ("percpu_life", include_str!("percpu_life.rs")),
        ("ring", include_str!("ring.rs")),
        ("stack_pool", include_str!("stack_pool.rs")),
        (
            "windows",
            concat!(
                include_str!("windows/elf.rs"),
                include_str!("windows/model.rs"),
                include_str!("windows/ptrace.rs"),
                include_str!("windows/rules.rs"),
            ),
        ),
    ];
    let mut named = 0;
    for name in include_str!("percpu-cases.md").split('`') {
        let Some((file, test)) = name.split_once("::") else { continue };
        let Some((_, source)) = sources.iter().find(|(name, _)| *name == file) else { continue };
        if test.contains("::") {
            continue; // a unit test or a model
        }
        assert!(source.contains(&format!("fn {test}(")), "{name} does not exist");
        named += 1;
    }
    assert!(named > 60, "{named}");
}
