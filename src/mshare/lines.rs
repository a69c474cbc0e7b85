//! How those hear of a change that may not ring the bell.
//!
//! The bell is one open file. Whoever has it can fill it and have it block, and then it holds all
//! that ring it. So participants with all rights have it alone. To each of the others whoever
//! serves has a line, a pair of sockets, and passes on what it hears by a call that never waits:
//! who does not read its line hurts itself. A line is cut when the server is gone; its successor
//! gives another.

use super::participants::Token;
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::{Errno, Result};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};

/// Lines of one participant: it may ask again before the server sees that it let go of one.
const LINES: usize = 4;

/// The server's ends.
#[derive(Debug, Default)]
pub(super) struct Lines(Vec<(Token, OwnedFd)>);

impl Lines {
    /// A new line to this participant: its end.
    ///
    /// # Errors
    ///
    /// EMFILE, ENFILE, ENOMEM.
    pub(super) fn open(&mut self, token: Token) -> Result<OwnedFd> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let mut known = self.0.iter().enumerate().filter(|(_, (other, _))| *other == token);
        if let Some((oldest, _)) = known.next().filter(|_| known.count() + 1 == LINES) {
            self.0.remove(oldest);
        }
        self.0.push((token, ours));
        Ok(theirs)
    }

    /// Tells all of them that are `present`; the others' lines are cut.
    pub(super) fn ring(&mut self, present: impl Fn(Token) -> bool) {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        self.0.retain(|(token, line)| {
            // Who has not read what it was told before will find that.
            present(*token)
                && matches!(send(line, &[0], flags), Ok(_) | Err(Errno::AGAIN | Errno::INTR))
        });
    }
}

/// Reads all that was said on the participant's end; whether the line is cut.
pub(super) fn is_cut(line: impl AsFd) -> bool {
    loop {
        match recv(&line, &mut [0; 8], RecvFlags::DONTWAIT) {
            Ok((0, _)) => return true,
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return errno != Errno::AGAIN,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const A: Token = Token { slot: 1, life: 7 };
    const B: Token = Token { slot: 2, life: 8 };

    #[test]
    fn who_does_not_read_holds_nobody() {
        let mut lines = Lines::default();
        let (idle, other) = (lines.open(A).unwrap(), lines.open(B).unwrap());
        for _ in 0..10_000 {
            lines.ring(|_| true);
            assert!(!is_cut(&other));
        }
        assert!(!is_cut(&idle));
        lines.ring(|token| token != A);
        assert!(is_cut(&idle) && !is_cut(&other));
        drop(other);
        lines.ring(|_| true);
        assert!(lines.0.is_empty());
    }

    #[test]
    fn who_asks_again_loses_the_oldest() {
        let mut lines = Lines::default();
        let _other = lines.open(B).unwrap();
        let first: Vec<_> = (0..LINES).map(|_| lines.open(A).unwrap()).collect();
        assert!(!is_cut(&first[0]));
        let _last = lines.open(A).unwrap();
        assert!(is_cut(&first[0]) && !is_cut(&first[1]));
        assert_eq!(lines.0.len(), 1 + LINES);
    }
}
