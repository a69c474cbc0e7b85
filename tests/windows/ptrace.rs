//! Every instruction of every window, interrupted on the live kernel.
//!
//! A forked child makes one attempt after another; this thread traces it. For each instruction
//! of the window the child runs into a breakpoint there. The stop itself is a preemption; beyond
//! it the child may be moved to another CPU or get a signal. Then it goes on, as if there had been no
//! breakpoint, and must find itself at the abort address, with nothing done; right behind the
//! commit it must not, and the operation is done.
//!
//! A stop aborts the window, so an instruction of a loop is interrupted the first time that it
//! is passed; the model has the others.

use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{Ordering, compiler_fence};

use unmerged::abi::rseq::Rseq;
use unmerged::arch::{self, NOT_STRIPED};
use unmerged::sys::{features::features, gs, rseq};

use crate::cases::{Answer, CASES, Case, Memory, Operands, RESTRIPE, STRIDE, Shape};
use crate::common::missing;
use crate::image;
use crate::machine::{Code, Result, Window};
use crate::{model, planted};

/// What child and tracer share, in front of the stripes. Only one of them runs at a time.
#[repr(C)]
#[derive(Clone, Copy)]
struct Shared {
    /// Index of the case; beyond the table, the child ends.
    case: usize,
    operands: Operands,
    answer: Answer,
    /// The child's words at its last stop.
    striped: u32,
    gs: usize,
    own: [u8; STRIDE],
}

/// Exit statuses of the child.
const OVER: i32 = 0;
const NOT_TRACED: i32 = 77;
const STUCK: i32 = 78;

/// Attempts in which an undisturbed operation must be through, even on a busy machine.
const ATTEMPTS: usize = 1000;

/// The table, and windows that are wrong.
fn rows() -> impl Iterator<Item = &'static Case> {
    CASES.iter().chain(planted::RIGHT).chain(planted::WRONG)
}

fn case(index: usize) -> Option<&'static Case> {
    rows().nth(index)
}

extern "C" fn ignore(_: libc::c_int) {}

/// The child. It calls nothing that a fork from a process with threads could have left locked.
fn tracee(shared: *mut Shared) -> ! {
    let stop = |shared: *mut Shared, now: &Shared| {
        let gs = if now.gs == usize::MAX {
            usize::MAX
        } else {
            // SAFETY: the tracer has found FSGSBASE.
            unsafe { arch::gs_base() }
        };
        // SAFETY: mapped for good; the tracer waits.
        unsafe { shared.write_volatile(Shared { striped: arch::striped_cpu(), gs, ..*now }) };
        compiler_fence(Ordering::SeqCst);
        // SAFETY: stops this process; the tracer sees it.
        unsafe { libc::raise(libc::SIGSTOP) };
        compiler_fence(Ordering::SeqCst);
        // SAFETY: as above.
        unsafe { shared.read_volatile() }
    };
    // SAFETY: plain calls on this process, none of which takes a lock.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::signal(libc::SIGUSR1, ignore as *const () as libc::sighandler_t);
        if libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) != 0 {
            libc::_exit(NOT_TRACED);
        }
    }
    // SAFETY: mapped for good.
    let mut now = unsafe { shared.read_volatile() };
    loop {
        now = stop(shared, &now);
        let Some(case) = case(now.case) else {
            // SAFETY: ends this process.
            unsafe { libc::_exit(OVER) };
        };
        // SAFETY: no stripe is promised.
        unsafe { arch::set_striped_cpu(NOT_STRIPED) };
        if case.shape == Shape::Gs {
            attempt(&RESTRIPE, &mut now.operands);
        }
        now = stop(shared, &now);
        // SAFETY: the area is known.
        now.operands.cpu = unsafe { arch::cpu_id(now.operands.area) };
        // SAFETY: the operands name shared memory and this thread's words.
        now.answer = unsafe { (case.call)(&now.operands) };
        now.own = own(shared);
        now = stop(shared, &now);
        if now.answer.done == 0 {
            if case.shape == Shape::Gs {
                attempt(&RESTRIPE, &mut now.operands);
            }
            now.answer = attempt(case, &mut now.operands);
            now.own = own(shared);
        }
    }
}

/// The caller's memory, which operations write behind this struct's back.
fn own(shared: *mut Shared) -> [u8; STRIDE] {
    // SAFETY: mapped for good.
    unsafe { (&raw mut (*shared).own).read_volatile() }
}

/// In the child: until it is done.
fn attempt(case: &Case, operands: &mut Operands) -> Answer {
    for _ in 0..ATTEMPTS {
        // SAFETY: the area is known.
        operands.cpu = unsafe { arch::cpu_id(operands.area) };
        // SAFETY: as in `tracee`.
        let answer = unsafe { (case.call)(operands) };
        if answer.done == 1 {
            return answer;
        }
    }
    // SAFETY: ends this process.
    unsafe { libc::_exit(STUCK) }
}

/// Ends the run with what is wrong, unless `holds`.
macro_rules! ensure {
    ($holds:expr, $($wrong:tt)+) => {
        if !$holds {
            return Err(format!($($wrong)+));
        }
    };
}

/// What befalls the child at the breakpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// It is scheduled out, and goes on where it was.
    Preempted,
    /// It goes on somewhere else.
    Moved,
    /// It has a signal to handle first.
    Signalled,
}

#[derive(Debug, PartialEq, Eq)]
enum Stop {
    /// The child says that it has come to its next stage.
    Stage,
    /// It ran into the breakpoint at this address.
    Breakpoint(u64),
    Ended(i32),
}

/// The child, as its tracer has it.
struct Tracer {
    pid: libc::pid_t,
    shared: *mut Shared,
    stripes: usize,
    breakpoints: Vec<u64>,
}

impl Tracer {
    /// Forks the child and waits for its first stop; `None` where tracing is refused.
    fn start(cpus: u32, with_gs: bool) -> Option<Self> {
        let header = size_of::<Shared>().next_multiple_of(STRIDE);
        let len = header + cpus as usize * STRIDE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe {
            let both = libc::PROT_READ | libc::PROT_WRITE;
            let shared = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
            libc::mmap(ptr::null_mut(), len, both, shared, -1, 0)
        };
        assert_ne!(at, libc::MAP_FAILED);
        let stripes = at.expose_provenance() + header;
        let shared = at.cast::<Shared>();
        let operands = Operands {
            area: rseq::area(),
            striped_cpu: arch::own_area_offset() + size_of::<Rseq>() as isize,
            cpu: 0,
            cpus,
            stripes,
            buffer: at.addr() + std::mem::offset_of!(Shared, own),
        };
        let first = Shared {
            case: 0,
            operands,
            answer: Answer::default(),
            striped: NOT_STRIPED,
            gs: if with_gs { 0 } else { usize::MAX },
            own: [0; STRIDE],
        };
        // SAFETY: freshly mapped.
        unsafe { shared.write_volatile(first) };
        // SAFETY: the child executes `tracee` and nothing else.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0);
        if pid == 0 {
            tracee(shared);
        }
        let tracer = Self { pid, shared, stripes, breakpoints: Vec::new() };
        match tracer.wait() {
            Stop::Ended(NOT_TRACED) => None,
            stop => {
                assert_eq!(stop, Stop::Stage);
                tracer.request(libc::PTRACE_SETOPTIONS, 0, libc::PTRACE_O_EXITKILL as usize);
                Some(tracer)
            }
        }
    }

    fn request(&self, request: libc::c_uint, address: usize, data: usize) -> libc::c_long {
        let [address, data] = [address, data].map(ptr::without_provenance_mut::<c_void>);
        // SAFETY: the requests of this file write into the child alone.
        let answer = unsafe { libc::ptrace(request as _, self.pid, address, data) };
        let error = std::io::Error::last_os_error();
        assert!(answer != -1, "ptrace request {request}: {error}");
        answer
    }

    fn wait(&self) -> Stop {
        let mut status = 0;
        // SAFETY: our own child.
        let pid = unsafe { libc::waitpid(self.pid, &raw mut status, libc::__WALL) };
        assert_eq!(pid, self.pid);
        if libc::WIFEXITED(status) {
            return Stop::Ended(libc::WEXITSTATUS(status));
        }
        assert!(libc::WIFSTOPPED(status), "the child was killed: status {status:#x}");
        match libc::WSTOPSIG(status) {
            libc::SIGSTOP => Stop::Stage,
            libc::SIGTRAP => Stop::Breakpoint(self.registers().rip - 1),
            signal => panic!("signal {signal} in the child at {:#x}", self.registers().rip),
        }
    }

    fn registers(&self) -> libc::user_regs_struct {
        // SAFETY: plain numbers.
        let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        let at = (&raw mut registers).cast::<c_void>();
        let none = ptr::null_mut::<c_void>();
        // SAFETY: the kernel fills the struct.
        let answer = unsafe { libc::ptrace(libc::PTRACE_GETREGS, self.pid, none, at) };
        assert_eq!(answer, 0);
        registers
    }

    fn set_ip(&self, ip: u64) {
        let mut registers = self.registers();
        registers.rip = ip;
        let at = (&raw mut registers).cast::<c_void>();
        let none = ptr::null_mut::<c_void>();
        // SAFETY: the kernel reads the struct.
        let answer = unsafe { libc::ptrace(libc::PTRACE_SETREGS, self.pid, none, at) };
        assert_eq!(answer, 0);
    }

    /// Lets it run until it stops again, with a signal or without.
    fn go_on(&self, signal: i32) -> Stop {
        self.request(libc::PTRACE_CONT, 0, signal as usize);
        self.wait()
    }

    /// Lets it run, to come to its next stage.
    fn expect_stage(&self, signal: i32) -> Result<()> {
        let stop = self.go_on(signal);
        ensure!(stop == Stop::Stage, "{stop:?} instead of the next stage");
        Ok(())
    }

    /// Lets it come from `ip` to its next attempt: this one does not count.
    fn finish(&mut self, ip: u64) -> Result<bool> {
        self.set_breakpoints(&[]);
        self.set_ip(ip);
        self.expect_stage(0)?;
        self.expect_stage(0)?;
        Ok(false)
    }

    /// Puts breakpoints here and nowhere else.
    fn set_breakpoints(&mut self, at: &[u64]) {
        let old = std::mem::replace(&mut self.breakpoints, at.to_vec());
        for word in old.into_iter().chain(at.iter().copied()) {
            // The child's text is ours, but for its breakpoints.
            let mut bytes = image::bytes::<8>(word).expect("text");
            for (byte, address) in bytes.iter_mut().zip(word..) {
                if at.contains(&address) {
                    *byte = 0xcc;
                }
            }
            self.request(libc::PTRACE_POKETEXT, word as usize, usize::from_le_bytes(bytes));
        }
    }

    fn pin(&self, cpu: u32) {
        // SAFETY: a zeroed set is a set, and the id is one that the kernel gave.
        unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(cpu as usize, &mut set);
            let len = size_of::<libc::cpu_set_t>();
            assert_eq!(libc::sched_setaffinity(self.pid, len, &raw const set), 0);
        }
    }

    fn shared(&self) -> Shared {
        // SAFETY: mapped for good; the child is stopped.
        unsafe { self.shared.read_volatile() }
    }

    fn own(&self) -> Memory {
        Memory { address: self.shared().operands.buffer, bytes: self.shared().own }
    }

    fn stripe(&self, cpu: u32) -> *mut [u8; STRIDE] {
        ptr::with_exposed_provenance_mut(self.stripes + cpu as usize * STRIDE)
    }

    fn stripes(&self) -> Vec<Memory> {
        let memory = |cpu| {
            let at = self.stripe(cpu);
            // SAFETY: mapped for good; the child is stopped.
            Memory { address: at.addr(), bytes: unsafe { at.read_volatile() } }
        };
        (0..self.shared().operands.cpus).map(memory).collect()
    }

    /// Stripes and the caller's memory as the case wants them, in the child too.
    fn prepare(&self, index: usize, case: &Case) -> (Vec<Memory>, Memory) {
        let mut own = self.own();
        let mut stripes = self.stripes();
        for (cpu, stripe) in (0..).zip(&mut stripes) {
            (stripe.bytes, own.bytes) = ([0; STRIDE], [0; STRIDE]);
            (case.prepare)(stripe, &mut own);
            // SAFETY: as above.
            unsafe { self.stripe(cpu).write_volatile(stripe.bytes) };
        }
        let shared = Shared { case: index, own: own.bytes, ..self.shared() };
        // SAFETY: as above.
        unsafe { self.shared.write_volatile(shared) };
        (stripes, own)
    }

    /// `striped_cpu` of the child, wherever it is stopped.
    fn striped(&self) -> u32 {
        let offset = self.shared().operands.striped_cpu as i64;
        let word = self.registers().fs_base.wrapping_add_signed(offset);
        self.request(libc::PTRACE_PEEKDATA, word as usize, 0) as u32
    }
}

impl Tracer {
    /// Ends the child, which waits for its next attempt.
    fn end(self) {
        let over = Shared { case: usize::MAX, ..self.shared() };
        // SAFETY: mapped for good; the child is stopped.
        unsafe { self.shared.write_volatile(over) };
        assert_eq!(self.go_on(0), Stop::Ended(OVER));
        std::mem::forget(self);
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // SAFETY: our own child, which is not reaped yet.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, ptr::null_mut(), libc::__WALL);
        }
    }
}

/// Published contents only.
fn published(case: &Case, mut stripes: Vec<Memory>) -> Vec<Memory> {
    stripes.iter_mut().for_each(case.forget);
    stripes
}

/// One attempt of `case`, with `way` at the breakpoint `at`. `false` if something else
/// interrupted it before.
fn run(
    tracer: &mut Tracer,
    index: usize,
    window: &Window,
    at: u64,
    way: Way,
    cpus: [u32; 2],
) -> Result<bool> {
    let case = case(index).expect("a row");
    tracer.set_breakpoints(&[]);
    tracer.pin(cpus[0]);
    let (before, own) = tracer.prepare(index, case);
    tracer.expect_stage(0)?;
    tracer.set_breakpoints(&[at, window.abort]);
    match tracer.go_on(0) {
        Stop::Breakpoint(ip) if ip == at => {}
        // The machine has other things to do: the attempt was aborted on its own.
        Stop::Breakpoint(ip) if ip == window.abort => return tracer.finish(ip),
        stop => return Err(format!("{stop:?} instead of the breakpoint")),
    }
    tracer.set_breakpoints(&[window.abort]);
    tracer.set_ip(at);
    if way == Way::Moved {
        tracer.pin(cpus[1]);
    }
    let (inside, behind) = (window.contains(at), passed_commit(window, at));
    let stop = tracer.go_on(if way == Way::Signalled { libc::SIGUSR1 } else { 0 });
    let aborted = stop == Stop::Breakpoint(window.abort);
    if aborted {
        let found = published(case, tracer.stripes());
        ensure!(found == published(case, before.clone()), "aborted, but not undone");
        if case.shape == Shape::Restripe {
            ensure!(tracer.striped() == NOT_STRIPED, "aborted, but striped");
        }
        ensure!(!behind, "aborted behind the commit");
        // In front of the window, another CPU is noticed by the compare.
        let elsewhere = way == Way::Moved && case.shape != Shape::Restripe;
        if !inside && !elsewhere {
            return tracer.finish(window.abort);
        }
        tracer.set_breakpoints(&[]);
        tracer.set_ip(window.abort);
        tracer.expect_stage(0)?;
    } else {
        ensure!(stop == Stop::Stage, "{stop:?} instead of its end");
        ensure!(!inside, "the kernel did not abort it");
        tracer.set_breakpoints(&[]);
    }
    let done = tracer.shared().answer.done;
    ensure!(done == u64::from(!aborted), "aborted: {aborted}, but the answer is {done}");
    // The retry, if there must be one.
    tracer.expect_stage(0)?;
    // Where it was when it committed.
    let cpu = if way == Way::Moved && !behind { cpus[1] } else { cpus[0] };
    done_once(tracer, case, cpu, before, own)?;
    Ok(true)
}

/// Is this stop behind the window? In front of it, there is but one.
fn passed_commit(window: &Window, at: u64) -> bool {
    !window.contains(at) && (at >= window.end() || at < window.start - image::LONGEST as u64)
}

/// The operation was done once, on `cpu`.
fn done_once(
    tracer: &Tracer,
    case: &Case,
    cpu: u32,
    mut expected: Vec<Memory>,
    mut own: Memory,
) -> Result<()> {
    let value = (case.apply)(&mut expected[cpu as usize], &mut own);
    let shared = tracer.shared();
    let answer = Answer { done: 1, value };
    ensure!(shared.answer == answer, "{:?} instead of {answer:?}", shared.answer);
    let found = published(case, tracer.stripes());
    ensure!(found == published(case, expected), "not done once on CPU {cpu}");
    ensure!(tracer.own() == own, "the caller's memory is wrong");
    if case.shape == Shape::Restripe {
        let base = shared.operands.stripes + cpu as usize * STRIDE;
        let (striped, gs) = (shared.striped, shared.gs);
        ensure!((striped, gs) == (cpu, base), "striped for {striped}, GS base {gs:#x}");
    }
    Ok(())
}

/// Where to stop: the store that arms the window, each instruction of it that the case passes,
/// and the first behind it.
fn stops(code: &Code, case: &Case) -> Result<(Window, Vec<u64>)> {
    let (window, passed) = model::trace(code, case)?;
    let first = passed.iter().position(|&at| at == window.start).ok_or("no window")?;
    let rest = &passed[first..];
    let inside = rest.iter().position(|&at| !window.contains(at)).ok_or("no end")?;
    let mut stops = passed[first - 1..=first + inside].to_vec();
    let mut seen = Vec::new();
    stops.retain(|at| {
        let first = !seen.contains(at);
        seen.push(*at);
        first
    });
    Ok((window, stops))
}

/// The CPUs that this thread may run on.
fn allowed() -> Vec<u32> {
    // SAFETY: the kernel fills the set.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        let len = size_of::<libc::cpu_set_t>();
        assert_eq!(libc::sched_getaffinity(0, len, &raw mut set), 0);
        (0..libc::CPU_SETSIZE as u32).filter(|&cpu| libc::CPU_ISSET(cpu as usize, &set)).collect()
    }
}

/// A traced child, and the CPUs that it is moved between; says so where there is none.
fn start() -> Option<(Tracer, [u32; 2], bool)> {
    const INSTEAD: &str = "the model alone";
    if !rseq::ensure_registered() {
        missing("rseq", INSTEAD);
        return None;
    }
    let with_gs = features().gs == gs::Claim::Free;
    if !with_gs {
        missing("fsgsbase", "the windows without %gs");
    }
    let cpus = allowed();
    if cpus.len() < 2 {
        missing("two-cpus", "preemptions and signals");
    }
    let tracer = Tracer::start(features().cpus.end(), with_gs);
    if tracer.is_none() {
        missing("ptrace", INSTEAD);
    }
    Some((tracer?, [cpus[0], *cpus.last()?], with_gs))
}

/// All ways at all stops of a row; how many, or what is wrong.
fn holds(tracer: &mut Tracer, index: usize, cpus: [u32; 2]) -> Result<usize> {
    let code = Code::default();
    let (window, stops) = stops(&code, case(index).expect("a row"))?;
    let mut runs = 0;
    for at in stops {
        for way in [Way::Preempted, Way::Moved, Way::Signalled] {
            if way == Way::Moved && cpus[0] == cpus[1] {
                continue;
            }
            let place = at.wrapping_sub(window.start).cast_signed();
            let wrong = |what| format!("{way:?} at window {place:+}: {what}");
            let mut ran = false;
            for _ in 0..ATTEMPTS {
                ran = run(tracer, index, &window, at, way, cpus).map_err(wrong)?;
                if ran {
                    break;
                }
            }
            ensure!(ran, "{ATTEMPTS} attempts were disturbed");
            runs += 1;
        }
    }
    Ok(runs)
}

#[test]
fn every_instruction_on_the_live_kernel() {
    let Some((mut tracer, cpus, with_gs)) = start() else { return };
    for (index, case) in CASES.iter().enumerate() {
        if case.shape != Shape::Cpu && !with_gs {
            continue;
        }
        match holds(&mut tracer, index, cpus) {
            Ok(runs) => println!("{}: {runs} interruptions", case.name),
            Err(what) => panic!("{}: {what}", case.name),
        }
    }
    tracer.end();
}

/// Those that an abort alone shows to be wrong are found here too.
#[test]
fn planted_windows_on_the_live_kernel() {
    let Some((mut tracer, cpus, with_gs)) = start() else { return };
    for (index, case) in (0..).zip(rows()).skip(CASES.len()) {
        if index < CASES.len() + planted::RIGHT.len() {
            if case.shape == Shape::Cpu || with_gs {
                let found = holds(&mut tracer, index, cpus);
                assert!(found.is_ok(), "{}: {found:?}", case.name);
            }
        } else if ["counts_first", "publishes_twice", "ends_late"].contains(&case.name) {
            let found = holds(&mut tracer, index, cpus);
            assert!(found.is_err(), "{} was accepted", case.name);
            println!("{}: {}", case.name, found.unwrap_err());
            // It may have stopped anywhere.
            (tracer, ..) = start().expect("as before");
        }
    }
    tracer.end();
}
