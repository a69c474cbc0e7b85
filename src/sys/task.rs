//! Any thread of the machine: whether it still runs, and when it began.

use super::{errno, thread};
use core::fmt::{self, Write};
use core::mem::MaybeUninit;
use rustix::fs::{CWD, Mode, OFlags, openat, readlinkat_raw};
use rustix::io::{Errno, Result, read, retry_on_intr};

/// `tkill(thread, 0)` — whether there is no such thread, seen from this process's namespace of
/// process ids. One that was killed is there until its parent has waited for it.
pub fn is_gone(thread: u32) -> bool {
    // SAFETY: signal 0 is not sent.
    let answer = unsafe { libc::syscall(libc::SYS_tkill, thread, 0) };
    matches!(errno::zero(answer), Err(Errno::SRCH | Errno::INVAL))
}

/// State and start time in `/proc/<thread>/stat`: a letter, and clock ticks since boot as this
/// process's time namespace has them. It does not allocate.
///
/// # Errors
///
/// ENOENT if there is no such thread, it is hidden from us, or `/proc` is not mounted; EBADMSG for
/// a line that is none.
pub fn stat(thread: u32) -> Result<(u8, u64)> {
    read_stat(format_args!("/proc/{thread}/stat"))
}

/// `readlink("/proc/thread-self")` — whether `/proc` numbers threads as this one's namespace of process
/// ids does. Another namespace's `/proc` tells of other threads.
pub fn is_proc_ours() -> bool {
    let mut text = [MaybeUninit::uninit(); 64];
    let Ok((link, _)) = readlinkat_raw(CWD, c"/proc/thread-self", &mut text) else { return false };
    let (process, thread) = thread::ids();
    let mut path = Path { text: [0; 64], len: 0 };
    let wanted = fmt::write(&mut path, format_args!("{process}/task/{thread}"));
    wanted.is_ok() && *link == path.text[..path.len]
}

/// What is known of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// It runs, and began at this clock tick since the machine did; 0 where that is not told.
    Alive(u64),
    /// There is none, or it has ended and nobody has waited for it yet.
    Gone,
}

/// `/proc/<pid>/task/<tid>/stat` — looks at thread `tid` of process `pid`, as numbered in our
/// namespace. Without `/proc`, only whether there is one of that number.
pub fn life(pid: u32, tid: u32) -> Life {
    match read_stat(format_args!("/proc/{pid}/task/{tid}/stat")) {
        Ok((b'Z' | b'X' | b'x', _)) => Life::Gone,
        Ok((_, start)) => Life::Alive(start),
        Err(_) if thread::is_gone(pid, tid) => Life::Gone,
        Err(_) => Life::Alive(0),
    }
}

/// Room for a path of numbers, without the heap: a forked child may be here.
struct Path {
    text: [u8; 64],
    len: usize,
}

impl Write for Path {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.len + text.len();
        self.text.get_mut(self.len..end).ok_or(fmt::Error)?.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

fn read_stat(path: fmt::Arguments<'_>) -> Result<(u8, u64)> {
    let mut text = Path { text: [0; 64], len: 0 };
    fmt::write(&mut text, path).map_err(|_| Errno::INVAL)?;
    let path = &text.text[..text.len];
    let file = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut line = [0; 1024];
    let len = retry_on_intr(|| read(&file, &mut line))?;
    parse(&line[..len]).ok_or(Errno::BADMSG)
}

/// The state is the first field after the name, the start time the 20th.
fn parse(line: &[u8]) -> Option<(u8, u64)> {
    // The name, in parentheses, may hold anything.
    let name = line.iter().rposition(|&byte| byte == b')')?;
    let mut fields = line.get(name + 2..)?.split(|&byte| byte == b' ');
    let state = *fields.next()?.first()?;
    let start = core::str::from_utf8(fields.nth(18)?).ok()?.parse().ok()?;
    Some((state, start))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn threads_that_run_and_are_gone() {
        let (pid, tid) = thread::ids();
        let (state, start) = stat(tid).unwrap();
        assert_eq!((state, is_gone(tid)), (b'R', false));
        assert!(start > 0 && stat(tid).unwrap().1 == start);
        assert_eq!(life(pid, tid), Life::Alive(start));
        assert!(is_proc_ours() && std::thread::spawn(is_proc_ours).join().unwrap());
        assert_eq!((stat(u32::MAX), is_gone(u32::MAX)), (Err(Errno::NOENT), true));
        assert_eq!(life(u32::MAX, 1), Life::Gone);
        let other = std::thread::spawn(thread::id).join().unwrap();
        // The kernel may take a moment to forget it.
        while !is_gone(other) || life(pid, other) != Life::Gone {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_name_with_parentheses() {
        let rest = "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 99 1";
        assert_eq!(parse(format!("7 (a) b) Z {rest}").as_bytes()), Some((b'Z', 99)));
        assert_eq!((parse(b""), parse(b"7 (a)"), parse(b"7 (a) S 1")), (None, None, None));
    }
}
