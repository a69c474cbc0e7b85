//! What the tests of slots share.
#![allow(dead_code, reason = "each user takes its own part")]

use super::common;
use std::ptr;
use std::thread;
use std::time::{Duration, Instant};
use unmerged::task_shared::Monitor;

/// The test once more, in a process of its own, whose slots are its own; whether this is that
/// process.
pub(crate) fn alone(test: &str) -> bool {
    if common::role().is_none() {
        common::succeed(common::child(test, "alone"));
    }
    common::role().is_some()
}

/// A reader of this process.
pub(crate) fn own() -> Monitor {
    Monitor::open(std::process::id()).unwrap()
}

pub(crate) fn gettid() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned()
}

/// Waits until `done`, for what comes soon but not at once.
pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{what} did not happen");
        thread::sleep(Duration::from_millis(1));
    }
}

/// How a child ended, as waitpid tells it.
pub(crate) fn status_of(pid: libc::pid_t) -> libc::c_int {
    let mut status = 0;
    // SAFETY: a child of ours, and a word on this stack.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) }, pid);
    status
}

/// A thread of C's, from its beginning to its end: it has no std around it.
pub(crate) fn c_thread(body: extern "C" fn(*mut libc::c_void) -> *mut libc::c_void) {
    let mut id = 0;
    // SAFETY: a thread without an argument, joined once.
    unsafe {
        assert_eq!(libc::pthread_create(&raw mut id, ptr::null(), body, ptr::null_mut()), 0);
        assert_eq!(libc::pthread_join(id, ptr::null_mut()), 0);
    }
}

/// Ends the calling thread with no destructor at all.
pub(crate) fn raw_exit() -> ! {
    // SAFETY: nothing of the thread is used any more but by the kernel.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
    unreachable!()
}

/// `body` in a child by fork, which fails if it panics.
pub(crate) fn in_fork(body: impl FnOnce()) {
    assert_eq!(status_of(fork(body)), 0, "the child failed");
}

/// A child by fork that executes `body` and ends.
pub(crate) fn fork(body: impl FnOnce()) -> libc::pid_t {
    // SAFETY: the child runs on with what fork leaves it: its own thread and memory, glibc's
    // allocator made whole. It ends by _exit.
    end_after(unsafe { libc::fork() }, body)
}

/// The same by clone(2), without libc's knowledge.
pub(crate) fn raw_clone(flags: libc::c_int, body: impl FnOnce()) -> libc::pid_t {
    let (flags, none) = (flags | libc::SIGCHLD, 0_usize);
    // SAFETY: as fork; the callers have no other thread that holds a lock of libc.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, none, none, none, none) };
    end_after(libc::pid_t::try_from(pid).unwrap(), body)
}

/// In the child, which has `pid` 0: executes `body` and ends.
fn end_after(pid: libc::pid_t, body: impl FnOnce()) -> libc::pid_t {
    assert!(pid >= 0);
    if pid == 0 {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        // SAFETY: ends the child without its parent's destructors.
        unsafe { libc::_exit(i32::from(outcome.is_err())) };
    }
    pid
}
