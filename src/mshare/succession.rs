//! Who serves: the creator first, and when it is gone, another participant.
//!
//! # Protocol
//!
//! `leader` in the ledger is the token of who serves, or 0. It is taken by compare-exchange
//! from 0, or from a token whose participant is not there any more; so of those who see it
//! vacant one takes it. It then moves `epoch`, listens under the name of that epoch for
//! participants, takes the region's name in the runtime directory if it is still the region's,
//! and rings. Killed on the way, it is a dead leader, and the next one does all of it again.
//!
//! The name is the region's if the socket file there is one that the ledger knows: `sockets[1]`
//! is written before a new file is renamed to the name, `sockets[0]` after. So whoever
//! is killed between, the file is one of the two. Where there is none, somebody has unlinked the
//! name, and nobody makes it again.

use super::access::Access;
use super::claim::Name;
use super::desk::Desk;
use super::directory::GLANCE;
use super::follow::PATIENCE;
use super::held::{HAS_AGENT, Held};
use super::ledger::Ledger;
use super::participants::Token;
use super::question::internal;
use super::rights::Rights;
use crate::error::{Context, Result};
use crate::sync::Ordering;
use crate::sys::socket::{self, Address};
use core::time::Duration;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::sync::Arc;
use std::time::Instant;

/// How long the thread that serves waits for the lock of the directory at a time.
const BRIEF: Duration = Duration::from_millis(20);

impl Ledger {
    /// Makes `word` the leader instead of `seen`.
    fn take_lead(&self, seen: u64, word: u64) -> bool {
        let (acqrel, relaxed) = (Ordering::AcqRel, Ordering::Relaxed);
        self.leader.compare_exchange(seen, word, acqrel, relaxed).is_ok()
    }

    /// The socket files that may be the region's name.
    fn sockets(&self) -> [(u64, u64); 2] {
        let load = |n: usize| {
            let [device, inode] = &self.sockets[n];
            (device.load(Ordering::Acquire), inode.load(Ordering::Acquire))
        };
        [load(0), load(1)]
    }

    pub(super) fn set_socket(&self, n: usize, file: (u64, u64)) {
        self.sockets[n][0].store(file.0, Ordering::Release);
        self.sockets[n][1].store(file.1, Ordering::Release);
    }

    /// Who may attach.
    pub(super) fn access(&self) -> Access {
        let relaxed = Ordering::Relaxed;
        Access {
            mode: self.mode.load(relaxed),
            uid: self.uid.load(relaxed),
            gid: self.gid.load(relaxed),
            others: Rights::of_bits(self.others.load(relaxed).into()),
        }
    }
}

/// Listens for the participants, in a new epoch.
///
/// # Errors
///
/// EMFILE, ENFILE, ENOMEM.
pub(super) fn listen(operation: &'static str, ledger: &Ledger, id: &[u8; 16]) -> Result<OwnedFd> {
    loop {
        let epoch = ledger.epoch.load(Ordering::Relaxed).wrapping_add(1);
        match socket::serve(Address::Abstract(&internal(id, epoch))) {
            Ok(listener) => {
                rustix::io::ioctl_fionbio(&listener, true).op(operation)?;
                ledger.epoch.store(epoch, Ordering::Release);
                return Ok(listener);
            }
            // A forked child of a dead leader has the socket, or somebody squats on the name.
            Err(Errno::ADDRINUSE) => ledger.epoch.store(epoch, Ordering::Release),
            Err(errno) => return Err(crate::error::Error::new(operation, errno)),
        }
    }
}

impl Desk {
    /// Nobody serves, for `seen` is gone: we do, unless another is faster. Whether that is
    /// settled.
    pub(super) fn stand(&mut self, seen: u64) -> bool {
        let held = &self.held;
        if !held.is_full() {
            return true;
        }
        let ledger = held.ledger();
        // Not through the gate: who is inside may wait for somebody to serve.
        let Some(token) = ledger.participants().of_process(std::process::id()) else {
            return true;
        };
        // From a participant that another has not reaped yet, nobody takes it.
        if ledger.participants().named(seen).is_some() || !ledger.take_lead(seen, token.word()) {
            // Another was faster, and is to be watched: it may be killed before it rings.
            self.look_again();
            return true;
        }
        let listener = match listen(super::SYNC, ledger, &held.shape.id) {
            Ok(listener) => listener,
            // Perhaps another has descriptors left.
            Err(_) => {
                ledger.take_lead(token.word(), 0);
                return false;
            }
        };
        self.listeners = vec![listener];
        self.held.serving.store(std::process::id(), Ordering::Relaxed);
        self.is_nameless = true;
        // What was to be tried later was with another server.
        self.again = None;
        self.held.ring();
        self.look_again();
        true
    }

    /// Takes the name, if that is still to be done; whether it is done, or somebody unlinked it.
    /// Another process may have the lock of the directory, or the one that served is about to end
    /// and its socket still there: then it is tried again later.
    pub(super) fn take_name(&mut self) -> bool {
        if !self.is_nameless {
            return true;
        }
        match self.inherit_name() {
            Ok(Some((name, listener))) => {
                self.name = Some(name);
                self.listeners.push(listener);
                self.is_nameless = false;
            }
            Ok(None) => self.is_nameless = false,
            Err(_) => {}
        }
        !self.is_nameless
    }

    fn inherit_name(&self) -> Result<Option<(Name, OwnedFd)>> {
        let (held, ledger) = (&self.held, self.held.ledger());
        let known = ledger.sockets();
        let Some(claim) = held.directory.clone().inherit(&held.name, &known, BRIEF)? else {
            return Ok(None);
        };
        // The one that is there stays known until ours is in its place.
        ledger.set_socket(0, claim.occupied()?);
        let access = ledger.access();
        let listener = claim.listen(Access::socket_mode(access.mode), [access.uid, access.gid])?;
        let file = claim.file()?;
        ledger.set_socket(1, file);
        let name = claim.publish()?;
        ledger.set_socket(0, file);
        Ok(Some((name, listener)))
    }
}

impl Held {
    /// A slot that the server gave to this process, which had one: nobody shall wait for it.
    pub(super) fn give_back(&self, token: Token) {
        if self.enter().token == Some(token) {
            return;
        }
        if self.is_full() {
            self.ledger().participants().leave(token);
            self.wake(self.ledger().acks());
        } else {
            let numbers = [token.slot as u64, token.life, 0, 0, 0];
            let deadline = Instant::now() + PATIENCE;
            let _ = self.ask(super::SYNC, super::wire::Ask::Leave, numbers, None, deadline);
        }
    }

    /// The last handle of this process goes: another serves, or the name goes too.
    pub(super) fn close(self: &Arc<Self>) {
        let mut local = self.enter();
        local.is_closing = true;
        if let Some(token) = local.token.filter(|_| self.is_full()) {
            // Its thread goes, and it is no dead one.
            self.ledger().participants().set_agent(token, 0);
        }
        drop(local);
        let agent = self.agent.enter(|| None).take();
        let Ok(desk) = agent.map_or(Ok(None), super::agent::Agent::stop) else {
            // It runs on with what it was lent: so this process stays a participant, and the region
            // mapped, until it ends.
            core::mem::forget(Arc::clone(self));
            return;
        };
        // A heap may keep the region mapped, and it may be opened again.
        self.serving.store(0, Ordering::Relaxed);
        let mut local = self.enter();
        // A forked child that is no participant leaves nothing.
        let Some(token) = local.token.take() else { return };
        drop(local);
        let ledger = self.ledger();
        if !self.is_full() {
            let numbers = [token.slot as u64, token.life, 0, 0, 0];
            let deadline = Instant::now() + PATIENCE;
            let _ = self.ask(super::SYNC, super::wire::Ask::Leave, numbers, None, deadline);
            return;
        }
        let owns = ledger.owner.load(Ordering::Relaxed) == token.word();
        if owns && ledger.bound.load(Ordering::Relaxed) != 0 {
            let mut local = self.enter();
            local.token = Some(token);
            self.end(local, PATIENCE);
            self.enter().token = None;
        }
        let able = Rights::ALL.bits() | HAS_AGENT;
        let has_heir = ledger.participants().present().into_iter().any(|other| {
            other != token
                && ledger.participants().rights(other) & able == able
                && !self.is_dead(other)
        });
        let leader = ledger.leader.load(Ordering::Relaxed);
        if let Some(mut desk) = desk.filter(|_| leader == token.word()) {
            match desk.name.take() {
                Some(name) if !has_heir => name.remove(),
                None if !has_heir && desk.is_nameless => self.discard_name(),
                _ => {}
            }
            for listener in desk.listeners.drain(..) {
                // Also for the copies of it in forked children.
                let _ = rustix::net::shutdown(&listener, rustix::net::Shutdown::Both);
            }
            ledger.leader.store(0, Ordering::Release);
        } else if !has_heir
            && ledger.participants().named(leader).is_none_or(|leader| self.is_dead(leader))
        {
            // We were to take over, and had no time to.
            self.discard_name();
        }
        ledger.participants().leave(token);
        self.wake(ledger.acks());
        self.ring();
    }

    /// Removes the name, if it is the region's and nobody serves by it.
    fn discard_name(&self) {
        let known = self.ledger().sockets();
        let name = self.directory.clone().inherit(&self.name, &known, GLANCE);
        if let Ok(Some(claim)) = name {
            claim.discard();
        }
    }
}
