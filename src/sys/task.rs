//! /proc/PID/task/TID/stat: is that thread there, and is it still the same one?

use super::thread;
use core::fmt::Write;
use rustix::fs::{CWD, Mode, OFlags, openat, stat};
use rustix::io::{Errno, read, retry_on_intr};

/// What is known of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// It runs, and began at this clock tick since the machine did; 0 where that is not told.
    Alive(u64),
    /// There is none, or it has ended and nobody has waited for it yet.
    Gone,
}

/// Room for a path of numbers, without the heap: a forked child may be here.
struct Path {
    bytes: [u8; 64],
    len: usize,
}

impl Write for Path {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        let room = self.bytes.get_mut(self.len..self.len + text.len()).ok_or(core::fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.len += text.len();
        Ok(())
    }
}

/// Looks at thread `tid` of process `pid`, as numbered in our namespace. Without /proc, only
/// whether there is one of that number.
pub fn life(pid: u32, tid: u32) -> Life {
    let mut path = Path { bytes: [0; 64], len: 0 };
    let _ = write!(path, "/proc/{pid}/task/{tid}/stat");
    let file =
        openat(CWD, &path.bytes[..path.len], OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let known = file.and_then(|file| {
        let mut text = [0; 1024];
        let len = retry_on_intr(|| read(&file, &mut text))?;
        parse(&text[..len]).ok_or(Errno::INVAL)
    });
    match known {
        Ok(life) => life,
        Err(_) if thread::is_gone(pid, tid) => Life::Gone,
        Err(_) => Life::Alive(0),
    }
}

/// The state is the first field after the name, in parentheses, which may hold any byte; the
/// start time is the 20th.
fn parse(text: &[u8]) -> Option<Life> {
    let end = text.iter().rposition(|&byte| byte == b')')?;
    let mut fields = text[end + 1..].split(|&byte| byte == b' ').filter(|field| !field.is_empty());
    if matches!(fields.next()?, b"Z" | b"X" | b"x") {
        return Some(Life::Gone);
    }
    core::str::from_utf8(fields.nth(18)?).ok()?.parse().ok().map(Life::Alive)
}

/// Number of our namespace of process ids; 0 where it is not told.
pub fn namespace() -> u64 {
    stat("/proc/self/ns/pid").map_or(0, |stat| stat.st_ino)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn threads_come_and_go() {
        let (pid, tid) = thread::ids();
        assert!(matches!(life(pid, tid), Life::Alive(1..)));
        assert_eq!(life(pid, tid), life(pid, tid));
        let (_, other) = std::thread::spawn(thread::ids).join().unwrap();
        // The kernel may take a moment to forget it.
        let gone = (0..500).any(|_| {
            thread::sleep_us(1000);
            life(pid, other) == Life::Gone
        });
        assert!(gone && life(u32::MAX, 1) == Life::Gone);
        assert_ne!(namespace(), 0);
    }

    #[test]
    fn a_name_with_parentheses() {
        let rest = " 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20";
        assert_eq!(parse(format!("5 (a) Z (b) R{rest}").as_bytes()), Some(Life::Alive(777)));
        assert_eq!(parse(format!("5 (a) R) Z{rest}").as_bytes()), Some(Life::Gone));
        assert_eq!(parse(b"5 (a"), None);
    }
}
