//! What the thread of a participant does: it follows the log, watches the others, and serves if
//! it is its turn. It sleeps until something happens.
//!
//! It waits for the bell, for the ends of processes, for callers and for the word to stop in
//! one poll; so a caller that says nothing delays nobody, and is cut off after a while. It
//! never panics on what a caller sends, and never spins: without a free descriptor it looks
//! away from the listeners for a moment.

use super::agent::Lent;
use super::claim::Name;
use super::collapse::Collapsing;
use super::follow;
use super::lines::{self, Lines};
use super::participants::Token;
use super::pulse::{Felt, Pulse};
use super::wire::Ask;
use crate::error::{Context, Error, Result};
use crate::sync::Ordering;
use crate::sys::socket::{self, Connection};
use crate::sys::{pidfd, thread};
use core::time::Duration;
use rustix::event::epoll;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

/// How long a caller may be silent.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the listeners are left alone after accept failed.
const PAUSE: Duration = Duration::from_millis(50);
/// How soon something is tried again that somebody else was in the way of.
const SOON: Duration = Duration::from_millis(1);
/// How soon a change is tried again that could not be followed, at first and at last.
const AGAIN: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(4));
/// Callers at a time; one more cuts off the oldest.
const CALLERS: usize = 64;

/// What the thread has.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) held: Lent,
    stop: Arc<OwnedFd>,
    /// An epoll instance that hears the bell.
    pub(super) ears: OwnedFd,
    /// Those that this process serves by: for the name, and for participants.
    pub(super) listeners: Vec<OwnedFd>,
    pub(super) name: Option<Name>,
    /// Who was accepted and has said nothing yet; the oldest first.
    callers: VecDeque<Connection>,
    /// Processes whose end is waited for.
    pub(super) watched: Vec<(Token, OwnedFd)>,
    /// The epoch whose server was offered our objects.
    offered: u64,
    /// Whether it has not all of them.
    owes: bool,
    /// Whether there is something to follow.
    due: bool,
    /// Since when an object is nowhere to be had.
    lost: Option<Instant>,
    /// When what could not be followed is tried again, and how long after the last time that is.
    pub(super) again: Option<(Instant, Duration)>,
    /// To participants that have no bell, if this process serves.
    pub(super) lines: Lines,
    /// From the server, if this process has no bell: another than the first.
    line: Option<OwnedFd>,
    /// Whether that is cut.
    is_deaf: bool,
    /// Whether this process serves and has still to take the name.
    pub(super) is_nameless: bool,
    /// Whether this process serves, and has looked at all that were there before.
    is_settled: bool,
    /// What heirs feel of this process, if it serves.
    pub(super) pulse: Pulse,
    /// What this process feels of the one that serves.
    pub(super) felt: Option<Felt>,
    collapsing: Collapsing,
}

impl Desk {
    /// Everything for a thread that has not begun.
    ///
    /// # Errors
    ///
    /// EMFILE or ENFILE.
    pub(super) fn new(
        operation: &'static str,
        held: Lent,
        stop: Arc<OwnedFd>,
        listeners: Vec<OwnedFd>,
    ) -> Result<Self> {
        let ears = epoll::create(epoll::CreateFlags::CLOEXEC).op(operation)?;
        // Each ring is an edge for everybody, whoever else hears it.
        let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&ears, &held.files.bell, epoll::EventData::new_u64(0), edge).op(operation)?;
        Ok(Self {
            offered: held.ledger().epoch.load(Ordering::Acquire),
            // So the server learns of this thread.
            is_deaf: !held.is_full(),
            held,
            stop,
            ears,
            listeners,
            name: None,
            callers: VecDeque::new(),
            watched: Vec::new(),
            owes: false,
            due: true,
            is_nameless: false,
            lost: None,
            again: None,
            lines: Lines::default(),
            line: None,
            is_settled: false,
            pulse: Pulse::default(),
            felt: None,
            collapsing: Collapsing::default(),
        })
    }

    /// What the thread does until it is to stop.
    pub(super) fn run(mut self) -> Self {
        let mut pause = None;
        loop {
            let again = self.attend();
            let now = Instant::now();
            while self.callers.front().is_some_and(|caller| caller.deadline() <= now) {
                self.callers.pop_front();
            }
            pause = pause.filter(|&end| end > now);
            let deadline = self.callers.front().map(Connection::deadline);
            let again = again.map(|pause| now + pause);
            let collapse = self.collapsing.attend(&self.held);
            let alarm = pause.into_iter().chain(deadline).chain(again).chain(collapse).min();

            let timeout = alarm.map(|at| at.saturating_duration_since(Instant::now()));
            let mut heard = self.wait(timeout, pause.is_some()).into_iter();
            let mut next = || heard.next().unwrap_or(false);
            if next() {
                return self;
            }
            if next() {
                self.listen();
            }
            let (mut ended, mut spoken) = (Vec::new(), Vec::new());
            self.watched.retain(|&(token, _)| {
                let end = next();
                if end {
                    ended.push(token);
                }
                !end
            });
            self.callers = core::mem::take(&mut self.callers)
                .into_iter()
                .filter_map(|caller| {
                    if !next() {
                        return Some(caller);
                    }
                    spoken.push(caller);
                    None
                })
                .collect();
            let calls: Vec<_> = self.listeners.iter().map(|_| next()).collect();
            for token in ended {
                self.mourn(token);
            }
            for caller in spoken {
                self.answer(&caller);
            }
            for at in calls.into_iter().enumerate().filter_map(|(at, call)| call.then_some(at)) {
                if self.accept(at).is_err() {
                    pause = Some(Instant::now() + PAUSE);
                }
            }
        }
    }

    /// Sleeps; then, who is to be heard: the word to stop, the bell, the ends of processes, the
    /// callers, and unless they are left alone, the listeners.
    fn wait(&self, timeout: Option<Duration>, paused: bool) -> Vec<bool> {
        let listeners = if paused { &[] } else { &self.listeners[..] };
        let mut fds: Vec<_> = [self.stop.as_fd(), self.ears.as_fd()]
            .into_iter()
            .chain(self.watched.iter().map(|(_, process)| process.as_fd()))
            .chain(self.callers.iter().map(Connection::as_fd))
            .chain(listeners.iter().map(AsFd::as_fd))
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

    /// The bell rang: takes the edge.
    fn listen(&mut self) {
        let none = Timespec::default();
        let mut room = [core::mem::MaybeUninit::<epoll::Event>::uninit(); 1];
        let _ = epoll::wait(&self.ears, &mut room, Some(&none));
        self.due = true;
        let held = &self.held;
        if !held.is_full() {
            self.is_deaf |= lines::is_cut(self.line.as_ref().unwrap_or(&held.files.bell));
        } else if held.is_serving() {
            self.lines.ring(|token| held.ledger().participants().is_present(token));
        }
    }

    /// Has whoever serves now give us a line instead of the one that is cut.
    fn hear(&mut self) -> Result<()> {
        let token = self.held.try_enter().and_then(|local| local.token);
        let token = token.ok_or_else(|| Error::new(super::SYNC, Errno::AGAIN))?;
        let numbers = [token.slot as u64, token.life, thread::id().into(), 0, 0];
        let (_, mut files) = {
            let deadline = Instant::now() + follow::PATIENCE;
            self.held.ask(super::SYNC, Ask::Listen, numbers, None, deadline)?
        };
        let line = files.pop().ok_or_else(|| Error::new(super::SYNC, Errno::BADMSG))?;
        let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&self.ears, &line, epoll::EventData::new_u64(0), edge).op(super::SYNC)?;
        let _ = epoll::delete(&self.ears, self.line.as_ref().unwrap_or(&self.held.files.bell));
        self.line = Some(line);
        self.is_deaf = false;
        Ok(())
    }

    /// Does what is due: follows the log, and looks who serves and who is to be watched. When
    /// what is left is to be tried again.
    fn attend(&mut self) -> Option<Duration> {
        if !self.due
            && let Some(end) = self.again.map(|(end, _)| end).filter(|&end| end > Instant::now())
        {
            return Some(end.saturating_duration_since(Instant::now()));
        }
        if !self.due && self.again.is_none() {
            return None;
        }
        self.due = false;
        let is_time = self.again.is_none_or(|(end, _)| end <= Instant::now());
        self.offer(is_time);
        // Without a descriptor for a process, there may be one later.
        let watched = self.watch();
        let is_over = self.held.end_with_creator();
        let hears = !self.is_deaf || (is_time && self.hear().is_ok());
        let is_named = !self.is_nameless || (is_time && self.take_name());
        // Perhaps this process serves by now.
        let epoch = self.held.ledger().epoch.load(Ordering::Acquire);
        let feels = !is_time || self.feel(epoch).is_ok();
        let Some(mut local) = self.held.try_enter() else {
            self.due = true;
            return Some(SOON);
        };
        // What went wrong is in our slot, for whoever waits.
        // Never long: perhaps we have to serve what we look for.
        let gives_up = self.lost.is_some_and(|since| since.elapsed() > follow::PATIENCE);
        let followed = self.held.follow_within(super::SYNC, &mut local, Duration::ZERO, gives_up);
        let is_lost = followed.as_ref().is_err_and(Error::is_not_found);
        self.lost = is_lost.then(|| self.lost.unwrap_or_else(Instant::now));
        if let Some(token) = local.token.filter(|_| self.held.is_full() && !local.is_closing) {
            self.held.ledger().participants().set_agent(token, thread::id());
        }
        drop(local);
        if hears && is_named && feels && is_over && !self.owes && followed.is_ok() {
            self.again = None;
        } else if is_lost && !gives_up {
            self.again = Some((Instant::now() + SOON, SOON));
        } else if is_time {
            let pause = self.again.map_or(AGAIN.0, |(_, pause)| AGAIN.1.min(pause * 2));
            self.again = Some((Instant::now() + pause, pause));
        }
        if self.due {
            return Some(Duration::ZERO);
        }
        self.due = !watched;
        let pause = self.again.map(|(end, _)| end.saturating_duration_since(Instant::now()));
        self.due.then_some(PAUSE).into_iter().chain(pause).min()
    }

    /// Offers our objects to a server that has just begun, and what it did not hear later once more.
    fn offer(&mut self, is_time: bool) {
        let ledger = self.held.ledger();
        let leader = ledger.leader.load(Ordering::Acquire);
        // It moves when somebody listens.
        let epoch = ledger.epoch.load(Ordering::Acquire);
        let is_new = epoch != self.offered && ledger.participants().named(leader).is_some();
        if is_new {
            self.offered = epoch;
        }
        self.owes = (self.owes || is_new) && !self.held.is_serving();
        if self.owes && (is_new || is_time) {
            // One that does not answer is not waited for long: we have to follow, and to stop.
            let patience = if is_new { follow::PATIENCE } else { AGAIN.0 };
            self.owes = !self.held.offer_all(Instant::now() + patience, || self.is_stopped());
        }
    }

    /// Is this thread to stop?
    fn is_stopped(&self) -> bool {
        let mut fds = [PollFd::new(&*self.stop, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).is_ok_and(|count| count > 0)
    }

    /// Watches whom this process has to: who serves, all others; the others, who serves, and the
    /// creator if the region ends with it. Whether that is done.
    fn watch(&mut self) -> bool {
        if self.held.is_serving() {
            let wanted = self.held.ledger().participants().present();
            let done = self.look_at(&wanted);
            self.is_settled = done;
            return done;
        }
        let ledger = self.held.ledger();
        let leader = ledger.leader.load(Ordering::Acquire);
        let bound = ledger.bound.load(Ordering::Relaxed) != 0;
        let owner = if bound { ledger.owner.load(Ordering::Relaxed) } else { 0 };
        let wanted: Vec<_> =
            [leader, owner].iter().filter_map(|&w| ledger.participants().named(w)).collect();
        let mut done = self.look_at(&wanted);
        if !wanted.iter().any(|token| token.word() == leader) {
            done &= self.stand(leader);
        }
        done
    }

    /// Has these watched, and no others but ourselves.
    fn look_at(&mut self, wanted: &[Token]) -> bool {
        self.watched.retain(|(token, _)| wanted.contains(token));
        let mut ended = Vec::new();
        let mut done = true;
        for &token in wanted {
            let known = self.watched.iter().any(|(watched, _)| *watched == token);
            // All look at the few that they watch; who serves is told of the others by those that
            // wait for them.
            if known && !self.held.is_serving() && self.held.is_without_agent(token) {
                self.watched.retain(|(watched, _)| *watched != token);
                ended.push(token);
                continue;
            }
            if known || token.pid() == std::process::id() {
                continue;
            }
            match pidfd::open(token.pid()) {
                // It may be another process of this number by now: not if it has just come.
                Ok(_) if !self.is_settled && self.held.is_dead(token) => ended.push(token),
                Ok(process) => self.watched.push((token, process)),
                Err(Errno::SRCH) => ended.push(token),
                Err(_) => done = false,
            }
        }
        for token in ended {
            self.mourn(token);
        }
        done
    }

    /// A process has ended: its slot is freed, what it held is others'.
    fn mourn(&mut self, token: Token) {
        if !self.held.is_full() {
            // It served us; another reaps it.
            self.is_deaf = true;
            self.due |= self.again.is_none();
            return;
        }
        self.held.reap(token);
        // It was the creator, or had the lock when the creator ended.
        self.held.end_with_creator();
        // Perhaps it was cut off before it rang, and perhaps it served.
        self.due = true;
        if self.held.is_serving() {
            self.held.ring();
        }
    }

    /// Takes one call.
    fn accept(&mut self, listener: usize) -> rustix::io::Result<()> {
        match socket::answer(&self.listeners[listener], PATIENCE) {
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

    /// Somebody came: it is to be watched.
    pub(super) fn look_again(&mut self) {
        self.due = true;
    }
}
