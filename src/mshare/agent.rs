//! The thread that serves a region: it sleeps until somebody calls.
//!
//! It waits for the listener, for every caller and for the word to stop in one poll; so a
//! caller that says nothing delays nobody, and is cut off after a while. It never panics on
//! what a caller sends, and never spins: without a free descriptor it looks away from the
//! listener for a moment.

use super::CREATE;
use super::access::Access;
use super::wire::{REQUEST_LEN, Shape, decode_request, encode_reply};
use crate::error::{Context, Error, Result};
use crate::sys::signals;
use crate::sys::socket::{self, Connection};
use core::mem::ManuallyDrop;
use core::time::Duration;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

/// How long a caller may be silent.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the listener is left alone after accept failed.
const PAUSE: Duration = Duration::from_millis(50);
/// Callers at a time; one more cuts off the oldest.
const CALLERS: usize = 64;

/// What is served, and to whom.
#[derive(Debug)]
pub(super) struct Offer {
    pub(super) shape: Shape,
    pub(super) control: OwnedFd,
    pub(super) data: OwnedFd,
    pub(super) access: Access,
}

/// The thread, until this is dropped.
#[derive(Debug)]
pub(super) struct Agent {
    stop: Arc<OwnedFd>,
    thread: ManuallyDrop<JoinHandle<()>>,
    pid: u32,
}

impl Agent {
    /// Starts to serve. No signal handler runs in the thread.
    ///
    /// # Errors
    ///
    /// EMFILE or ENFILE, EAGAIN if there can be no more threads.
    pub(super) fn start(listener: OwnedFd, offer: Offer) -> Result<Self> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).op(CREATE)?);
        let desk = Desk { listener, stop: stop.clone(), offer, callers: VecDeque::new() };
        let masked = signals::Masked::all();
        let thread = std::thread::Builder::new()
            .name("unmerged-mshare".into())
            .spawn(move || desk.run())
            .map_err(|_| Error::because(CREATE, Errno::AGAIN, "cannot start a thread"))?;
        drop(masked);
        Ok(Self { stop, thread: ManuallyDrop::new(thread), pid: std::process::id() })
    }

    /// Is this the process that started the thread, and not a forked child of it?
    pub(super) fn is_ours(&self) -> bool {
        self.pid == std::process::id()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // A forked child has no such thread, and shares the eventfd with its parent.
        if !self.is_ours() {
            return;
        }
        // SAFETY: taken once, here.
        let thread = unsafe { ManuallyDrop::take(&mut self.thread) };
        if rustix::io::write(&*self.stop, &1_u64.to_ne_bytes()).is_ok() {
            let _ = thread.join();
        }
    }
}

/// What the thread has.
struct Desk {
    listener: OwnedFd,
    stop: Arc<OwnedFd>,
    offer: Offer,
    /// Who was accepted and has said nothing yet; the oldest first.
    callers: VecDeque<Connection>,
}

impl Desk {
    fn run(mut self) {
        let mut pause = None;
        loop {
            let now = Instant::now();
            while self.callers.front().is_some_and(|caller| caller.deadline() <= now) {
                self.callers.pop_front();
            }
            pause = pause.filter(|&end| end > now);
            let deadline = self.callers.front().map(Connection::deadline);
            let alarm = pause.into_iter().chain(deadline).min();

            let mut heard = self.wait(alarm.map(|at| at - now), pause.is_some()).into_iter();
            let mut next = || heard.next().unwrap_or(false);
            if next() {
                return;
            }
            let offer = &self.offer;
            self.callers.retain(|caller| {
                let spoke = next();
                if spoke {
                    offer.answer(caller);
                }
                !spoke
            });
            if next() && self.accept().is_err() {
                pause = Some(Instant::now() + PAUSE);
            }
        }
    }

    /// Sleeps; then, who is to be heard: the word to stop, the callers, and unless it is
    /// left alone, the listener.
    fn wait(&self, timeout: Option<Duration>, paused: bool) -> Vec<bool> {
        let mut fds: Vec<_> = core::iter::once(self.stop.as_fd())
            .chain(self.callers.iter().map(Connection::as_fd))
            .chain((!paused).then_some(self.listener.as_fd()))
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => fds.iter().map(|fd| !fd.revents().is_empty()).collect(),
            Err(Errno::INTR) => Vec::new(),
            // No memory, for the moment.
            Err(_) => {
                std::thread::sleep(PAUSE);
                Vec::new()
            }
        }
    }

    /// Takes one call.
    fn accept(&mut self) -> rustix::io::Result<()> {
        match socket::answer(&self.listener, PATIENCE) {
            Ok(caller) => {
                if self.callers.len() == CALLERS {
                    self.callers.pop_front();
                }
                self.callers.push_back(caller);
                Ok(())
            }
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(()),
            Err(errno) => {
                // Perhaps there was no descriptor left.
                self.callers.pop_front();
                Err(errno)
            }
        }
    }
}

impl Offer {
    /// Hears what the caller says, and answers. Who is gone meanwhile gets no answer.
    fn answer(&self, caller: &Connection) {
        let mut buffer = [0; REQUEST_LEN];
        let verdict = match caller.receive(&mut buffer) {
            Ok((len, _unwanted)) => decode_request(&buffer[..len]),
            Err(Errno::MSGSIZE) => Err(Errno::BADMSG),
            Err(_) => return,
        };
        let verdict = verdict.and_then(|()| {
            let peer = socket::peer(caller)?;
            if self.access.allows(&peer) { Ok(&self.shape) } else { Err(Errno::ACCESS) }
        });
        let fds = [self.control.as_fd(), self.data.as_fd()];
        let granted = if verdict.is_ok() { &fds[..] } else { &[] };
        let _ = caller.send(&encode_reply(verdict), granted);
    }
}
