//! Who holds a robust lock: a number that no other thread of this boot has.
//!
//! | bits | mean |
//! |---|---|
//! | 0 to 21 | the thread's id; the kernel gives no larger ones |
//! | 22 to 61 | when it began, in clock ticks since boot; 0 if `/proc` does not tell |
//!
//! The second part tells a thread from an earlier one with its id. Where it could not be read when
//! the thread first locked, it stays 0: a number that changed could not give the lock back. A thread
//! keeps its number in a thread-local word, with the number of its process: a child of fork has
//! another one, and finds its own identity anew.

use crate::sys::{fork, task, thread};
use core::cell::Cell;
use rustix::io::Errno;

/// The bits of an identity.
pub(super) const ID: u64 = (1 << 62) - 1;

const TID_BITS: u32 = 22;

thread_local! {
    static MINE: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
}

/// The calling thread.
#[inline]
pub(super) fn me() -> u64 {
    let (process, id) = MINE.get();
    let now = fork::own();
    if process == now { id } else { find(now) }
}

#[cold]
#[inline(never)]
fn find(process: u64) -> u64 {
    let tid = thread::id();
    let start =
        if task::is_proc_ours() { task::stat(tid).map_or(0, |(_, start)| start) } else { 0 };
    let id = (u64::from(tid) & ((1 << TID_BITS) - 1) | start << TID_BITS) & ID;
    MINE.set((process, id));
    id
}

/// Whether the thread is gone. Seen at once if its process was waited for; otherwise only a
/// thorough look finds out.
pub(super) fn is_dead(id: u64, thorough: bool) -> bool {
    let tid = (id & ((1 << TID_BITS) - 1)) as u32;
    if task::is_gone(tid) {
        return true;
    }
    if !thorough || !task::is_proc_ours() {
        return false;
    }
    match task::stat(tid) {
        Ok((b'Z' | b'X' | b'x', _)) => true,
        Ok((_, start)) => {
            let then = id >> TID_BITS;
            let start = (start << TID_BITS & ID) >> TID_BITS;
            then != 0 && start != then
        }
        // It is gone now, or `/proc` is hidden.
        Err(Errno::NOENT | Errno::SRCH) => task::is_gone(tid),
        Err(_) => false,
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn one_for_each_thread_and_for_a_child() {
        let here = me();
        let other = std::thread::spawn(me).join().unwrap();
        assert!(here == me() && here != other && !is_dead(here, true));
        while !is_dead(other, true) {
            std::thread::yield_now();
        }
        // The same id, begun at another time.
        assert!(is_dead(here ^ 1 << 40, true) && !is_dead(here ^ 1 << 40, false));
        // SAFETY: the child only ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let code = i32::from(me() == here || me() != me() || is_dead(me(), true));
            // SAFETY: ends the child.
            unsafe { libc::_exit(code) };
        }
        let mut status = 0;
        let number = child.cast_unsigned();
        let mut info = core::mem::MaybeUninit::<libc::siginfo_t>::uninit();
        let options = libc::WEXITED | libc::WNOWAIT;
        // SAFETY: our own child; it stays a zombie until it is waited for.
        unsafe { libc::waitid(libc::P_PID, number, info.as_mut_ptr(), options) };
        let id = u64::from(number) | task::stat(number).unwrap().1 << TID_BITS;
        assert!(is_dead(id, true) && !is_dead(id, false));
        // SAFETY: our own child.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert!(is_dead(id, false));
        assert_eq!(status, 0);
    }
}
