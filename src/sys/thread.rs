//! The calling thread as the kernel knows it: where it runs, its name, its clock, and
//! the robust list that the kernel walks when it ends.

use super::errno;
use crate::abi::robust::RobustListHead;
use core::ffi::{c_int, c_long};
use core::mem::size_of;
use core::ptr::{self, NonNull};
use rustix::io::{Errno, Result};
use rustix::time::{ClockId, clock_gettime};

/// `getcpu(&cpu, &node, NULL)` — where the calling thread runs; stale at once.
///
/// # Errors
///
/// ENOSYS under a filter that refuses the call.
pub fn cpu_and_node() -> Result<(u32, u32)> {
    let (mut cpu, mut node) = (0_u32, 0_u32);
    let none = ptr::null::<u8>();
    // SAFETY: both words are on this stack and outlive the call.
    errno::zero(unsafe { libc::syscall(libc::SYS_getcpu, &raw mut cpu, &raw mut node, none) })?;
    Ok((cpu, node))
}

/// `sched_getcpu()` — the CPU that the calling thread runs on; no system call where the kernel
/// maps its page into processes.
pub fn cpu() -> u32 {
    rustix::thread::sched_getcpu() as u32
}

/// `getpid()` and `gettid()` — the calling thread's process and own id.
pub fn ids() -> (u32, u32) {
    (rustix::process::getpid().as_raw_nonzero().get().cast_unsigned(), id())
}

/// `gettid()` — the calling thread's id.
pub fn id() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned()
}

/// `tgkill(process, thread, 0)` — whether there is no such thread, seen from this process's
/// namespace of process ids. A process that was killed is there until its parent has waited for
/// it.
pub fn is_gone(process: u32, thread: u32) -> bool {
    // SAFETY: signal 0 is not sent.
    let answer = unsafe { libc::syscall(libc::SYS_tgkill, process, thread, 0) };
    matches!(errno::zero(answer), Err(Errno::SRCH | Errno::INVAL))
}

/// `prctl(PR_GET_NAME)` — the calling thread's name, padded with zeros.
///
/// # Errors
///
/// As the kernel gives them; none is known.
pub fn name() -> Result<[u8; 16]> {
    let mut name = [0_u8; 16];
    // SAFETY: the kernel writes at most 16 bytes.
    let returned: c_int = unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    errno::zero(c_long::from(returned))?;
    Ok(name)
}

/// `nanosleep` — lets others run for so many microseconds.
pub fn sleep_us(microseconds: u64) {
    std::thread::sleep(core::time::Duration::from_micros(microseconds));
}

/// `clock_gettime(clock)` in nanoseconds.
fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    (time.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec as u64)
}

/// `clock_gettime(CLOCK_MONOTONIC)` in nanoseconds.
pub fn monotonic() -> u64 {
    nanoseconds(ClockId::Monotonic)
}

/// `clock_gettime(CLOCK_THREAD_CPUTIME_ID)` — nanoseconds that the calling thread has run.
/// Asking brings the scheduler's own sum up to date.
pub fn cpu_time() -> u64 {
    nanoseconds(ClockId::ThreadCPUTime)
}

/// `clock_gettime(clock of the thread)` — nanoseconds that a thread of this process has run,
/// up to now. Like [`cpu_time`], it brings the scheduler's own sum up to date.
///
/// # Errors
///
/// EINVAL if this process has no such thread.
pub fn cpu_time_of(tid: u32) -> Result<u64> {
    // The kernel's encoding (`posix-timers.h`): the complement of the id, then
    // CPUCLOCK_PERTHREAD_MASK and CPUCLOCK_SCHED.
    let clock = !tid.cast_signed() << 3 | 4 | 2;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the time is on this stack and outlives the call.
    errno::zero(unsafe { libc::clock_gettime(clock, &raw mut time) }.into())?;
    Ok((time.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec as u64))
}

/// `get_robust_list(0, &head, &len)` — the calling thread's robust list; `None` if the
/// kernel knows of none.
///
/// # Errors
///
/// ENOSYS on a kernel without robust lists.
pub fn robust_list() -> Result<Option<NonNull<RobustListHead>>> {
    let (mut head, mut len) = (ptr::null_mut::<RobustListHead>(), 0_usize);
    // SAFETY: both words are on this stack and outlive the call.
    errno::zero(unsafe {
        libc::syscall(libc::SYS_get_robust_list, 0, &raw mut head, &raw mut len)
    })?;
    Ok(NonNull::new(head))
}

/// `set_robust_list(head, sizeof *head)`.
///
/// # Errors
///
/// ENOSYS on a kernel without robust lists.
///
/// # Safety
///
/// `head` and what it links must be valid until the thread ends, and be what this thread's
/// libc takes for its list.
pub unsafe fn set_robust_list(head: NonNull<RobustListHead>) -> Result<()> {
    let len = size_of::<RobustListHead>();
    // SAFETY: the caller vouches for the list.
    errno::zero(unsafe { libc::syscall(libc::SYS_set_robust_list, head.as_ptr(), len) })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn place_name_and_clocks() {
        let (cpu, _node) = cpu_and_node().unwrap();
        assert!(cpu < crate::sys::cpus::Ids::possible().end());
        let named = std::thread::Builder::new().name("a name of 15 ch".into());
        let name = named.spawn(|| name().unwrap()).unwrap().join().unwrap();
        assert_eq!(&name, b"a name of 15 ch\0");
        let (wall, cpu) = (monotonic(), cpu_time());
        assert!(cpu_time() > cpu && monotonic() > wall);
    }

    #[test]
    fn the_clock_of_another_thread() {
        let (_, own) = ids();
        let other = std::thread::spawn(move || {
            let before = cpu_time_of(own).unwrap();
            let (_, gone) = ids();
            (before, gone)
        });
        let (before, gone) = other.join().unwrap();
        assert!(before > 0 && before <= cpu_time());
        // Joined is a little before gone.
        while cpu_time_of(gone).is_ok() {}
        assert_eq!(cpu_time_of(gone), Err(Errno::INVAL));
    }

    #[test]
    fn threads_that_are_there_and_gone() {
        let (process, thread) = ids();
        assert!(!is_gone(process, thread) && !is_gone(1, 1));
        let (_, other) = std::thread::spawn(ids).join().unwrap();
        assert!(other != thread && is_gone(u32::MAX, 0) && is_gone(process, 0));
    }

    #[test]
    fn libc_has_a_robust_list_or_makes_one() {
        // glibc registers before a thread runs, musl at the first robust lock.
        let head = robust_list().unwrap();
        assert!(cfg!(not(target_env = "gnu")) || head.is_some());
    }
}
