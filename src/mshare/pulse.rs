//! How heirs see that the server executed another program.
//!
//! Its process goes on then, so nothing ends that a pidfd would tell. But its descriptors are
//! closed. So the server has one end of a pair of sockets, and the participants that may succeed it
//! have the other in their epoll instance: it wakes them when the server's is not there any more.
//! They look then, as at every ring, whether the server itself is.
//!
//! A child that the server forked has its end too, until it ends or executes a program.

use super::desk::Desk;
use super::wire::Ask;
use crate::error::{Context, Error, Result};
use rustix::event::epoll;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::sync::Arc;
use std::time::Instant;

/// The server's own, once somebody has asked for it.
#[derive(Debug, Default)]
pub(super) struct Pulse(Option<(Arc<OwnedFd>, OwnedFd)>);

impl Pulse {
    /// The end for an heir.
    ///
    /// # Errors
    ///
    /// EMFILE, ENFILE.
    pub(super) fn end(&mut self) -> rustix::io::Result<Arc<OwnedFd>> {
        let (end, _) = match &self.0 {
            Some(both) => both,
            None => {
                let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                let (unix, packets) = (AddressFamily::UNIX, SocketType::SEQPACKET);
                let (end, ours) = socketpair(unix, packets, flags, None)?;
                self.0.insert((Arc::new(end), ours))
            }
        };
        Ok(end.clone())
    }
}

/// That of the server of an epoch, as an heir has it.
#[derive(Debug)]
pub(super) struct Felt {
    epoch: u64,
    end: OwnedFd,
}

impl Desk {
    /// Has the pulse of the server of this epoch felt, if this process may succeed it.
    ///
    /// # Errors
    ///
    /// ENOENT if nobody serves, ETIMEDOUT if the server does not answer at once.
    pub(super) fn feel(&mut self, epoch: u64) -> Result<()> {
        let is_felt = self.felt.as_ref().is_some_and(|felt| felt.epoch == epoch);
        if is_felt || !self.held.is_full() || self.held.is_serving() {
            return Ok(());
        }
        let now = Instant::now();
        let (_, mut files) = self.held.ask(super::SYNC, Ask::Feel, [0; 5], None, now)?;
        let end = files.pop().ok_or_else(|| Error::new(super::SYNC, Errno::BADMSG))?;
        // Nobody writes: an end is all there is to hear.
        let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&self.ears, &end, epoll::EventData::new_u64(0), edge).op(super::SYNC)?;
        if let Some(before) = self.felt.replace(Felt { epoch, end }) {
            // Others have it open too, so closing it alone would leave it there.
            let _ = epoll::delete(&self.ears, &before.end);
        }
        Ok(())
    }
}
