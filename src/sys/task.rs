//! Any thread of the machine: whether it still runs, and when it began.

use super::errno;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, Result, read};

/// `tkill(thread, 0)` — whether there is no such thread, seen from this process's namespace of
/// process ids. One that was killed is there until its parent has waited for it.
pub fn is_gone(thread: u32) -> bool {
    // SAFETY: signal 0 is not sent.
    let answer = unsafe { libc::syscall(libc::SYS_tkill, thread, 0) };
    matches!(errno::zero(answer), Err(Errno::SRCH | Errno::INVAL))
}

/// State and start time in `/proc/<thread>/stat`: a letter, and clock ticks since boot. It does
/// not allocate.
///
/// # Errors
///
/// ENOENT if there is no such thread, it is hidden from us, or `/proc` is not mounted; EBADMSG for
/// a line that is none.
pub fn stat(thread: u32) -> Result<(u8, u64)> {
    let mut path = *b"/proc/0000000000/stat\0";
    let mut rest = thread;
    // Leading zeros are not taken: the number is written to the right and the path begins there.
    let mut first = 16;
    loop {
        first -= 1;
        path[first] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    let start = first - 6;
    path[start..first].copy_from_slice(b"/proc/");
    let name = core::ffi::CStr::from_bytes_with_nul(&path[start..]).map_err(|_| Errno::INVAL)?;
    let file = openat(CWD, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut line = [0; 1024];
    let len = read(&file, &mut line)?;
    parse(&line[..len]).ok_or(Errno::BADMSG)
}

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
        let own = crate::sys::thread::id();
        let (state, start) = stat(own).unwrap();
        assert_eq!((state, is_gone(own)), (b'R', false));
        assert!(start > 0 && stat(own).unwrap().1 == start);
        assert_eq!((stat(u32::MAX), is_gone(u32::MAX)), (Err(Errno::NOENT), true));
        let other = std::thread::spawn(crate::sys::thread::id).join().unwrap();
        while !is_gone(other) {
            std::thread::yield_now();
        }
        assert!(
            parse(b"7 (a) b) Z 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 99 1").unwrap()
                == (b'Z', 99)
        );
        assert_eq!((parse(b""), parse(b"7 (a)"), parse(b"7 (a) S 1")), (None, None, None));
    }
}
