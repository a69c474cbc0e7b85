//! What the live tests share.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::io::{BufRead, BufReader, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::{Duration, Instant};

/// A kernel feature is missing: says so, with what took over. Where `UNMERGED_REQUIRE` (a
/// comma-separated list) names the feature, that is a failure.
pub(crate) fn missing(feature: &str, instead: &str) {
    // One write, so that lines of several threads stay whole.
    eprintln!("skip: {feature}: {instead}");
    let required = std::env::var("UNMERGED_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|name| name == feature), "{feature} is required here");
}

/// The environment variable that tells a test that it runs as a child, and as which.
const ROLE: &str = "UNMERGED_TEST_ROLE";

/// The role of this process: `None` in the one that libtest started.
pub(crate) fn role() -> Option<String> {
    std::env::var(ROLE).ok()
}

/// This test binary again, executing `test` alone, in `role`, with no implementation forced.
/// The signals that tests handle are blocked in it, the thread of its harness included, until
/// [`handle`]: what handlers did can be counted once the threads that were spawned since are
/// joined and the timer is off.
pub(crate) fn child(test: &str, role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]).env(ROLE, role);
    command.env_remove("UNMERGED_PERCPU").env_remove("UNMERGED_FUTEX2");
    // SAFETY: a system call, between fork and exec.
    unsafe {
        command.pre_exec(|| {
            mask(libc::SIG_BLOCK, &[libc::SIGUSR1, libc::SIGALRM]);
            Ok(())
        })
    };
    command
}

/// Runs it to its end; its output is shown if it failed.
pub(crate) fn succeed(mut command: Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    // Its skips are ours, and what a storm did.
    for line in String::from_utf8_lossy(&output.stderr).lines() {
        if line.contains("skip: ") || line.contains("storm: ") {
            eprintln!("{line}");
        }
    }
}

/// Executes `test` once in each implementation of `percpu`; whether this process is such a child
/// and should go on.
pub(crate) fn in_each_implementation(test: &str) -> bool {
    in_each_implementation_with(test, &[])
}

/// The same with more in the environment.
pub(crate) fn in_each_implementation_with(test: &str, environment: &[(&str, &str)]) -> bool {
    let Some(wanted) = role() else {
        for wanted in ["gs", "rseq", "portable"] {
            let mut command = child(test, wanted);
            command.env("UNMERGED_PERCPU", wanted).envs(environment.iter().copied());
            succeed(command);
        }
        return false;
    };
    let implementation = unmerged::percpu::implementation().name();
    if implementation != wanted {
        missing(if wanted == "gs" { "fsgsbase" } else { "rseq" }, implementation);
    }
    true
}

/// How long a storm lasts: `usual`, or what `UNMERGED_STRESS_SECONDS` says.
pub(crate) fn stress(usual: Duration) -> Duration {
    let seconds = std::env::var("UNMERGED_STRESS_SECONDS").ok();
    seconds.map_or(usual, |seconds| Duration::from_secs(seconds.parse().unwrap()))
}

/// Whether every step and every round is to be gone through, however long it takes: where
/// `UNMERGED_STRESS_THOROUGH` is set, as by `ci/stress.sh`.
pub(crate) fn is_thorough() -> bool {
    std::env::var_os("UNMERGED_STRESS_THOROUGH").is_some()
}

/// Sets its flag at the end, a panic's too: threads that work until then would otherwise work on
/// after a failed assertion, and the scope that waits for them hide it.
pub(crate) struct SetAtEnd<'a>(pub(crate) &'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// From here on this system call fails with `errno`, in this process and what it executes.
pub(crate) fn refuse(call: libc::c_long, errno: i32) {
    filter(call, libc::SECCOMP_RET_ERRNO | errno as u32);
}

/// From here on this system call of this thread is SIGSYS instead.
pub(crate) fn trap(call: libc::c_long) {
    filter(call, libc::SECCOMP_RET_TRAP);
}

fn filter(call: libc::c_long, verdict: u32) {
    use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W};
    let statement = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut filter = [
        statement(BPF_LD | BPF_W | BPF_ABS, 0, 0, 0), // the number of the call
        statement(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, call as u32),
        statement(BPF_RET | BPF_K, 0, 0, verdict),
        statement(BPF_RET | BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program outlives the call; no privilege is gained by it.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let mode = libc::SECCOMP_MODE_FILTER;
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program), 0);
    }
}

/// Another process that plays a part and talks in lines; killed when this is dropped.
pub(crate) struct Player {
    process: Child,
    says: BufReader<ChildStdout>,
    hears: Option<ChildStdin>,
}

/// What marks a line of a player among those of the test harness.
const MARK: &str = "> ";

impl Player {
    pub(crate) fn start(mut command: Command) -> Self {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let says = BufReader::new(process.stdout.take().unwrap());
        let hears = process.stdin.take();
        Self { process, says, hears }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The next line that it says.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert_ne!(self.says.read_line(&mut line).unwrap(), 0, "the child says no more");
            if let Some((_, said)) = line.split_once(MARK) {
                return said.trim().to_owned();
            }
        }
    }

    /// Reads until it says this.
    pub(crate) fn wait_for(&mut self, word: &str) {
        while self.line() != word {}
    }

    /// Lets it go on from [`wait_for_nudge`].
    pub(crate) fn nudge(&mut self) {
        self.hears.as_mut().unwrap().write_all(b"\n").unwrap();
    }

    /// Says a line to it.
    pub(crate) fn tell(&mut self, line: &str) {
        writeln!(self.hears.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Kills it, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Lets it go on to its end, which must be a good one.
    pub(crate) fn end(mut self) {
        drop(self.hears.take());
        let mut rest = String::new();
        self.says.read_to_string(&mut rest).unwrap();
        assert!(self.process.wait().unwrap().success(), "{rest}");
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// In a player: says a line.
pub(crate) fn say(what: impl std::fmt::Display) {
    println!("{MARK}{what}");
    std::io::stdout().flush().unwrap();
}

/// In a player: until the parent nudges, or is gone.
pub(crate) fn wait_for_nudge() {
    let _ = std::io::stdin().read(&mut [0]);
}

/// The example of this name: the one that cargo built beside this test, or the one in
/// `UNMERGED_EXAMPLES_DIR`.
pub(crate) fn example(name: &str) -> PathBuf {
    let directory = std::env::var_os("UNMERGED_EXAMPLES_DIR").map_or_else(
        || {
            let test = std::env::current_exe().unwrap();
            // target/PROFILE/deps/TEST-HASH
            test.ancestors().nth(2).unwrap().join("examples")
        },
        PathBuf::from,
    );
    let program = directory.join(name);
    assert!(program.exists(), "{} is not built: cargo build --examples", program.display());
    program
}

/// The id of the calling thread.
pub(crate) fn own_tid() -> i32 {
    // SAFETY: a number.
    unsafe { libc::gettid() }
}

/// Until this thread of ours sleeps on a futex.
pub(crate) fn until_asleep(tid: i32) {
    let begin = Instant::now();
    const FUTEX_WAIT: libc::c_long = 455; // since Linux 6.7
    let calls = [libc::SYS_futex, libc::SYS_futex_waitv, FUTEX_WAIT];
    let calls = calls.map(|call| format!("{call} "));
    loop {
        // "running" if it is; a short sleep for another reason is another call, or none.
        let doing = std::fs::read_to_string(format!("/proc/self/task/{tid}/syscall")).unwrap();
        if calls.iter().any(|call| doing.starts_with(call)) {
            return;
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "{tid} does not sleep: {doing}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Starts a thread that waits, and returns when it sleeps on a futex.
pub(crate) fn asleep<'s, T: Send + 's>(
    scope: &'s std::thread::Scope<'s, '_>,
    wait: impl FnOnce() -> T + Send + 's,
) -> std::thread::ScopedJoinHandle<'s, T> {
    // No channel: its sender may sleep on a futex, too.
    let tid = Arc::new(AtomicI32::new(0));
    let tell = tid.clone();
    let waiter = scope.spawn(move || {
        tell.store(own_tid(), Ordering::SeqCst);
        wait()
    });
    while tid.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    until_asleep(tid.load(Ordering::SeqCst));
    waiter
}

/// Until no thread of this process has anything to do, at three looks.
pub(crate) fn until_idle(pid: u32) {
    let mut looks = 0;
    while looks < 3 {
        let mut tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let sleeps = |task: std::io::Result<std::fs::DirEntry>| {
            let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
            stat.rsplit_once(") ").unwrap().1.starts_with('S')
        };
        looks = if tasks.all(sleeps) { looks + 1 } else { 0 };
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Pins a thread of this process, 0 being the caller; whether it may run there.
pub(crate) fn pin_thread(tid: i32, cpu: u32) -> bool {
    let mut set = MaybeUninit::<libc::cpu_set_t>::zeroed();
    // SAFETY: a zeroed set is a set; the kernel checks thread and CPU.
    unsafe {
        libc::CPU_SET(cpu as usize, &mut *set.as_mut_ptr());
        libc::sched_setaffinity(tid, size_of::<libc::cpu_set_t>(), set.as_ptr()) == 0
    }
}

/// Pins the calling thread.
pub(crate) fn pin(cpu: u32) -> bool {
    pin_thread(0, cpu)
}

/// The CPUs that this thread may use. Call it before the first [`pin`].
pub(crate) fn allowed() -> Vec<u32> {
    let mut set = MaybeUninit::<libc::cpu_set_t>::zeroed();
    // SAFETY: the kernel fills the set, and a zeroed one is one; the ids are in range.
    unsafe {
        libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), set.as_mut_ptr());
        let set = set.assume_init();
        (0..libc::CPU_SETSIZE as u32).filter(|&cpu| libc::CPU_ISSET(cpu as usize, &set)).collect()
    }
}

/// A page-aligned mapping of a memory file, shared by whoever has the file; never unmapped.
pub(crate) fn map(file: &impl AsRawFd, len: usize) -> NonNull<u8> {
    // SAFETY: a new mapping at an address of the kernel's choice.
    let at = unsafe {
        let read_write = libc::PROT_READ | libc::PROT_WRITE;
        libc::mmap(ptr::null_mut(), len, read_write, libc::MAP_SHARED, file.as_raw_fd(), 0)
    };
    assert_ne!(at, libc::MAP_FAILED);
    NonNull::new(at.cast()).unwrap()
}

/// Blocks or unblocks signals in this thread, and in those that it will spawn.
fn mask(how: libc::c_int, signals: &[libc::c_int]) {
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: the set is emptied first.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for &signal in signals {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        libc::pthread_sigmask(how, set.as_ptr(), ptr::null_mut());
    }
}

/// `handler` runs at each of `signals`, with these `flags`.
///
/// # Safety
///
/// It does only what is safe in handlers.
pub(crate) unsafe fn handle_with(
    signals: &[libc::c_int],
    flags: libc::c_int,
    handler: extern "C" fn(libc::c_int),
) {
    for &signal in signals {
        // SAFETY: zeroed, an action has no flags and an empty mask; the caller vouches for the rest.
        unsafe {
            let mut action = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = flags;
            assert_eq!(libc::sigaction(signal, &raw const action, ptr::null_mut()), 0);
        }
    }
    mask(libc::SIG_UNBLOCK, signals);
}

/// The same with `SA_RESTART`.
///
/// # Safety
///
/// That of [`handle_with`].
pub(crate) unsafe fn handle(signals: &[libc::c_int], handler: extern "C" fn(libc::c_int)) {
    // SAFETY: vouched for by the caller.
    unsafe { handle_with(signals, libc::SA_RESTART, handler) };
}

/// A timer that signals the thread that made it.
struct Timer(libc::timer_t);

impl Timer {
    fn new() -> Self {
        let mut timer = MaybeUninit::uninit();
        // SAFETY: a zeroed event is filled in; the kernel writes the id.
        unsafe {
            let mut event = MaybeUninit::<libc::sigevent>::zeroed().assume_init();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = libc::SIGALRM;
            event.sigev_notify_thread_id = libc::gettid();
            let clock = libc::CLOCK_MONOTONIC;
            assert_eq!(libc::timer_create(clock, &raw mut event, timer.as_mut_ptr()), 0);
            Self(timer.assume_init())
        }
    }

    fn arm(&self, us: i64) {
        let [it_value, it_interval] =
            [us * 1000, 0].map(|tv_nsec| libc::timespec { tv_sec: 0, tv_nsec });
        let when = libc::itimerspec { it_interval, it_value };
        // SAFETY: a timer of this thread.
        unsafe { libc::timer_settime(self.0, 0, &raw const when, ptr::null_mut()) };
    }

    fn is_armed(&self) -> bool {
        let mut when = MaybeUninit::<libc::itimerspec>::zeroed();
        // SAFETY: a timer of this thread; the kernel writes the rest of its time.
        let left = unsafe {
            libc::timer_gettime(self.0, when.as_mut_ptr());
            when.assume_init().it_value
        };
        left.tv_sec != 0 || left.tv_nsec != 0
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: it is not used after this.
        unsafe { libc::timer_delete(self.0) };
    }
}

thread_local! {
    static TIMER: Timer = Timer::new();
}

/// A SIGALRM to this thread in so many microseconds, under a second; for 0 none.
pub(crate) fn alarm(us: i64) {
    TIMER.with(|timer| timer.arm(us));
}

/// The same, unless one is still to come. A loop with this in it is interrupted all the time and
/// goes on nevertheless: an interval could be shorter than the handling, for ever.
pub(crate) fn alarm_again(us: i64) {
    TIMER.with(|timer| {
        if !timer.is_armed() {
            timer.arm(us);
        }
    });
}
