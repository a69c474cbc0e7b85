//! A child that makes attempts, and the thread that traces it.

use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{Ordering, compiler_fence};

use unmerged::abi::rseq::Rseq;
use unmerged::arch::{self, NOT_STRIPED};
use unmerged::sys::rseq;

use crate::cases::{Answer, CASES, Case, Memory, Operands, RESTRIPE, STRIDE, Shape};
use crate::machine::Result;
use crate::{image, planted};

/// Ends the run with what is wrong, unless `holds`.
macro_rules! ensure {
    ($holds:expr, $($wrong:tt)+) => {
        if !$holds {
            return Err(format!($($wrong)+));
        }
    };
}
pub(crate) use ensure;

/// What child and tracer share, in front of the stripes. Only one of them runs at a time.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Shared {
    /// Index of the case; beyond the table, the child ends.
    pub(crate) case: usize,
    pub(crate) operands: Operands,
    pub(crate) answer: Answer,
    /// The child's words at its last stop.
    pub(crate) striped: u32,
    pub(crate) gs: usize,
    pub(crate) own: [u8; STRIDE],
}

/// Exit statuses of the child.
const OVER: i32 = 0;
const NOT_TRACED: i32 = 77;
const STUCK: i32 = 78;

/// Attempts in which an undisturbed operation must be through, even on a busy machine.
pub(crate) const ATTEMPTS: usize = 1000;

/// The table, and windows that are wrong.
pub(crate) fn rows() -> impl Iterator<Item = &'static Case> {
    CASES.iter().chain(planted::RIGHT).chain(planted::WRONG)
}

pub(crate) fn case(index: usize) -> Option<&'static Case> {
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

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The child says that it has come to its next stage.
    Stage,
    /// It ran into the breakpoint at this address.
    Breakpoint(u64),
    Ended(i32),
}

/// The child, as its tracer has it.
pub(crate) struct Tracer {
    pid: libc::pid_t,
    shared: *mut Shared,
    stripes: usize,
    breakpoints: Vec<u64>,
}

impl Tracer {
    /// Forks the child and waits for its first stop; `None` where tracing is refused.
    pub(crate) fn start(cpus: u32, with_gs: bool) -> Option<Self> {
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

    pub(crate) fn set_ip(&self, ip: u64) {
        let mut registers = self.registers();
        registers.rip = ip;
        let at = (&raw mut registers).cast::<c_void>();
        let none = ptr::null_mut::<c_void>();
        // SAFETY: the kernel reads the struct.
        let answer = unsafe { libc::ptrace(libc::PTRACE_SETREGS, self.pid, none, at) };
        assert_eq!(answer, 0);
    }

    /// Lets it run until it stops again, with a signal or without.
    pub(crate) fn go_on(&self, signal: i32) -> Stop {
        self.request(libc::PTRACE_CONT, 0, signal as usize);
        self.wait()
    }

    /// Lets it run, to come to its next stage.
    pub(crate) fn expect_stage(&self, signal: i32) -> Result<()> {
        let stop = self.go_on(signal);
        ensure!(stop == Stop::Stage, "{stop:?} instead of the next stage");
        Ok(())
    }

    /// Lets it come from `ip` to its next attempt: this one does not count.
    pub(crate) fn finish(&mut self, ip: u64) -> Result<bool> {
        self.set_breakpoints(&[]);
        self.set_ip(ip);
        self.expect_stage(0)?;
        self.expect_stage(0)?;
        Ok(false)
    }

    /// Puts breakpoints here and nowhere else.
    pub(crate) fn set_breakpoints(&mut self, at: &[u64]) {
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

    pub(crate) fn pin(&self, cpu: u32) {
        // SAFETY: a zeroed set is a set, and the id is one that the kernel gave.
        unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(cpu as usize, &mut set);
            let len = size_of::<libc::cpu_set_t>();
            assert_eq!(libc::sched_setaffinity(self.pid, len, &raw const set), 0);
        }
    }

    pub(crate) fn shared(&self) -> Shared {
        // SAFETY: mapped for good; the child is stopped.
        unsafe { self.shared.read_volatile() }
    }

    pub(crate) fn own(&self) -> Memory {
        Memory { address: self.shared().operands.buffer, bytes: self.shared().own }
    }

    fn stripe(&self, cpu: u32) -> *mut [u8; STRIDE] {
        ptr::with_exposed_provenance_mut(self.stripes + cpu as usize * STRIDE)
    }

    pub(crate) fn stripes(&self) -> Vec<Memory> {
        let memory = |cpu| {
            let at = self.stripe(cpu);
            // SAFETY: mapped for good; the child is stopped.
            Memory { address: at.addr(), bytes: unsafe { at.read_volatile() } }
        };
        (0..self.shared().operands.cpus).map(memory).collect()
    }

    /// Stripes and the caller's memory as the case wants them, in the child too.
    pub(crate) fn prepare(&self, index: usize, case: &Case) -> (Vec<Memory>, Memory) {
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
    pub(crate) fn striped(&self) -> u32 {
        let offset = self.shared().operands.striped_cpu as i64;
        let word = self.registers().fs_base.wrapping_add_signed(offset);
        self.request(libc::PTRACE_PEEKDATA, word as usize, 0) as u32
    }
}

impl Tracer {
    /// Ends the child, which waits for its next attempt.
    pub(crate) fn end(self) {
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

/// The CPUs that this thread may run on.
pub(crate) fn allowed() -> Vec<u32> {
    // SAFETY: the kernel fills the set.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        let len = size_of::<libc::cpu_set_t>();
        assert_eq!(libc::sched_getaffinity(0, len, &raw mut set), 0);
        (0..libc::CPU_SETSIZE as u32).filter(|&cpu| libc::CPU_ISSET(cpu as usize, &set)).collect()
    }
}
