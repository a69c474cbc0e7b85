//! Other processes: when they began, and in which namespaces numbers mean what they mean here.

use core::fmt::Write;
use rustix::fs::{CWD, Mode, OFlags, openat, stat};
use rustix::io::{Errno, Result, read};

/// A path under `/proc`, without an allocation.
struct Path {
    text: [u8; 48],
    len: usize,
}

impl Write for Path {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        let end = self.len + text.len();
        self.text.get_mut(self.len..end).ok_or(core::fmt::Error)?.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

/// Field 22 of `/proc/<pid>/stat` — when the process began, in clock ticks since boot, as this
/// process's time namespace has it.
///
/// # Errors
///
/// ENOENT if there is no such process, or it is hidden from us; EBADMSG for a line that is none.
pub fn start_time(pid: u32) -> Result<u64> {
    let mut path = Path { text: [0; 48], len: 0 };
    write!(path, "/proc/{pid}/stat").map_err(|_| Errno::INVAL)?;
    let file =
        openat(CWD, &path.text[..path.len], OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut line = [0; 1024];
    let len = read(&file, &mut line)?;
    parse(&line[..len]).ok_or(Errno::BADMSG)
}

fn parse(line: &[u8]) -> Option<u64> {
    // The name, in parentheses, may hold anything.
    let name = line.iter().rposition(|&byte| byte == b')')?;
    let field = line[name..].split(|&byte| byte == b' ').nth(20)?;
    core::str::from_utf8(field).ok()?.parse().ok()
}

/// The inodes of `/proc/self/ns/pid` and `/proc/self/ns/time` — the namespaces in which process
/// ids and start times are told. 0 for one that cannot be looked at; before Linux 5.6 there is no
/// time namespace.
pub fn namespaces() -> [u64; 2] {
    ["/proc/self/ns/pid", "/proc/self/ns/time"].map(|path| stat(path).map_or(0, |stat| stat.st_ino))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn when_and_where() {
        let own = std::process::id();
        let began = start_time(own).unwrap();
        assert!(began > 0 && start_time(own) == Ok(began));
        assert_eq!(start_time(u32::MAX), Err(Errno::NOENT));
        assert_ne!(namespaces()[0], 0);
        assert_eq!(
            parse(b"7 (a) b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 99 1"),
            Some(99)
        );
        assert_eq!((parse(b""), parse(b"7 (a) S")), (None, None));
    }
}
