//! What a participant asks whoever serves: one question, one answer, over a connection of its own.

use super::directory::may_serve;
use super::held::Held;
use super::participants::Token;
use super::wire::{Ask, REPLY_LEN, Reply, Request};
use crate::error::{Context, Error, Result};
use crate::sync::Ordering;
use crate::sys::socket::{self, Address};
use core::time::Duration;
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::process::geteuid;
use std::time::Instant;

impl Held {
    /// One question to the server, and its answer.
    ///
    /// # Errors
    ///
    /// ENOENT if nobody serves, EPERM if somebody does whom we do not believe, ETIMEDOUT if it does
    /// not answer until the deadline, which is no sooner than in 100 ms; what the server answers.
    pub(super) fn ask(
        &self,
        operation: &'static str,
        ask: Ask,
        numbers: [u64; 5],
        file: Option<BorrowedFd<'_>>,
        deadline: Instant,
    ) -> Result<(Reply, Vec<OwnedFd>)> {
        // A server that runs answers sooner, however little time the others have to follow.
        const LEAST: Duration = Duration::from_millis(100);
        let patience = deadline.saturating_duration_since(Instant::now()).max(LEAST);
        let name = internal(&self.shape.id, self.ledger().epoch.load(Ordering::Acquire));
        let connection =
            socket::call(Address::Abstract(&name), patience).map_err(|errno| match errno {
                Errno::CONNREFUSED => Error::because(operation, Errno::NOENT, "nobody serves"),
                Errno::AGAIN => self.unanswered(operation),
                errno => Error::new(operation, errno),
            })?;
        let peer = socket::peer(&connection).op(operation)?;
        if !may_serve(peer.uid, geteuid().as_raw(), self.directory.uid) {
            let why = format_args!("user {} serves this region", peer.uid);
            return Err(Error::with(operation, Errno::PERM, why));
        }
        let request = Request { ask, id: self.shape.id, numbers };
        let failed = |errno| match errno {
            Errno::AGAIN => self.unanswered(operation),
            errno => Error::new(operation, errno),
        };
        connection.send(&request.encode(), file.as_slice()).map_err(failed)?;
        let mut buffer = [0; REPLY_LEN];
        let (len, files) = connection.receive(&mut buffer).map_err(failed)?;
        Ok((Reply::decode(operation, &buffer[..len])?, files))
    }

    /// ETIMEDOUT: the server is stopped, or has no time.
    pub(super) fn unanswered(&self, operation: &'static str) -> Error {
        let leader = self.ledger().leader.load(Ordering::Relaxed);
        let pid = self.ledger().participants().named(leader).map_or(0, Token::pid);
        let why = format_args!("process {pid} serves the region, and does not answer");
        Error::with(operation, Errno::TIMEDOUT, why)
    }

    /// The same, again and again while nobody serves or the answer is not there yet.
    pub(super) fn ask_patiently(
        &self,
        operation: &'static str,
        ask: Ask,
        numbers: [u64; 5],
        file: Option<BorrowedFd<'_>>,
        deadline: Instant,
    ) -> Result<(Reply, Vec<OwnedFd>)> {
        let mut pause = Duration::from_micros(200);
        let mut has_rung = false;
        loop {
            match self.ask(operation, ask, numbers, file, deadline) {
                Err(error)
                    if Instant::now() < deadline
                        && (error.is_not_found()
                            || error.raw_os_error() == libc::ECONNRESET
                            || error.raw_os_error() == libc::EPIPE) =>
                {
                    // A server that executed another program is not seen to end: have all look.
                    if !core::mem::replace(&mut has_rung, true) {
                        self.ring();
                    }
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_millis(10));
                }
                done => return done,
            }
        }
    }
}

/// The name by which participants reach whoever serves in this epoch.
pub(super) fn internal(id: &[u8; 16], epoch: u64) -> String {
    format!("unmerged/mshare/{:032x}/{epoch}", u128::from_be_bytes(*id))
}
