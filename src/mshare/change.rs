//! How a process changes the layout for all.
//!
//! # Protocol
//!
//! Under the lock of the log, in this order; a process may be killed between any two steps.
//!
//! | step | killed before it | who completes |
//! |---|---|---|
//! | the server gets the descriptor of a new object | nothing happened | |
//! | the new layout is mapped in this process | nothing happened to others | |
//! | commit, by one store: see [`log`](super::log) | nothing happened | |
//! | of a mapping that replaces something: the pages are taken away, then commit of the new layout; the first commit was of a hole | what lay there is gone, nothing lies there | nobody: whoever wants it maps again |
//! | pages of what is unmapped are taken away | the change is done, memory may be left | the next who takes the lock: [`Held::tidy`]; who follows cuts objects that lie nowhere |
//! | the bell is rung | the change is done, agents sleep | the server, which sees the death |
//! | the others follow, each by itself | | |
//! | what they touched meanwhile in holes is taken away; the holes count as empty | such pages are left | the next who takes the lock |

use super::backing::{Backing, Huge};
use super::charge::{self, Charge};
use super::follow::{Gap, Round};
use super::gate::Inside;
use super::held::{Held, Local, Object};
use super::holes;
use super::layout::{SEGMENTS, Segment, parse, pieces, replace, words};
use super::lock::Lock;
use super::participants::Token;
use super::span::aligned;
use crate::error::{Error, Result};
use crate::sync::Ordering;
use crate::sys::map::Access;
use core::ops::Range;
use core::time::Duration;
use rustix::io::Errno;
use std::time::Instant;

/// What is to become of a range.
#[derive(Debug, Clone)]
pub(super) enum Change {
    /// Other memory; the object is known here and to the server.
    Map {
        object: Option<Object>,
        at: u64,
        access: Access,
        huge: Huge,
        replace: bool,
    },
    Unmap,
    Protect(Access),
    Advise(Huge),
}

/// The lock of the log, until this is dropped.
pub(super) struct Taken<'a> {
    held: &'a Held,
    lock: Lock<'a>,
    word: u64,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.lock.release(self.word);
        self.held.wake(self.held.ledger().turns());
    }
}

impl Held {
    /// Takes the lock, from a dead holder if need be, and completes what that one began.
    pub(super) fn take(
        &self,
        operation: &'static str,
        token: Token,
        deadline: Instant,
    ) -> Result<Taken<'_>> {
        /// A holder is looked at when it has kept us so long.
        const GLANCE: Duration = Duration::from_millis(2);
        let (lock, word) = (self.ledger().lock(), token.word());
        loop {
            let turn = self.ledger().turns().load(Ordering::Acquire);
            let holder = match lock.try_take(word) {
                Ok(()) => break,
                Err(holder) => holder,
            };
            let participants = self.ledger().participants();
            // Our own word: a thread of ours panicked, for the gate keeps others out.
            let gone = holder == word
                || match participants.named(holder) {
                    None => true,
                    Some(other) => self.has_ended(other),
                };
            if gone && lock.steal(holder, word).is_ok() {
                break;
            }
            if Instant::now() >= deadline {
                let pid = participants.named(holder).map_or(0, Token::pid);
                let why = format_args!("process {pid} keeps the lock of the region");
                return Err(Error::with(operation, Errno::TIMEDOUT, why));
            }
            self.sleep(self.ledger().turns(), turn, deadline.min(Instant::now() + GLANCE));
        }
        Ok(Taken { held: self, lock, word })
    }

    /// Publishes one change; answers its generation. The others follow by themselves.
    ///
    /// # Errors
    ///
    /// EINVAL for a range that does not fit; EEXIST, ENOMEM, EBUSY, ENOSPC, EDQUOT as
    /// [`super::Region::map`] has them; those of mmap(2) in this process; ETIMEDOUT if another
    /// process keeps the lock; EIO and the like if what lay there is unmapped, and its pages could not
    /// be taken away.
    pub(super) fn change(
        &self,
        operation: &'static str,
        range: Range<u64>,
        change: &Change,
        charge: Option<Charge>,
        deadline: Instant,
    ) -> Result<u64> {
        let mut local = self.enter();
        let token = self.token(operation, &mut local)?;
        let taken = self.take(operation, token, deadline)?;
        self.alive(operation)?;
        // Nobody changes the log now.
        let generation = match self.follow(operation, &mut local) {
            Err(error) if error.is_not_found() => self.give_up(operation, &mut local, deadline)?,
            followed => followed?,
        };
        let (_, old) = self.ledger().layout(operation, self.shape.size)?;
        // Who may not write the ledger waits for the others too, but only we can say that holes are
        // empty from then on.
        let emptied = &self.ledger().emptied;
        let vouched = emptied.load(Ordering::Relaxed);
        let settles = old.iter().any(|part| part.backing == Backing::Hole && part.since > vouched)
            && self.ledger().participants().behind(generation).is_empty();
        if self.tidy(&old) && settles {
            emptied.store(generation, Ordering::Relaxed);
        }
        let plan = self.plan(operation, &old, &range, change, charge, generation)?;
        let (published, emptied) = self.carry_out(operation, &mut local, &old, plan)?;
        drop(taken);
        // It is made: whatever happened after it, the others are to follow, and so are we.
        match emptied {
            Ok(()) => self.report_following(token, published),
            Err(_) => drop(self.follow(operation, &mut local)),
        }
        drop(local);
        self.ring();
        emptied.map(|()| published).map_err(|errno| {
            let why = "what lay there is unmapped, but its pages could not be taken away";
            Error::because(operation, errno, why)
        })
    }

    /// Does something with the layout that nobody changes meanwhile.
    ///
    /// # Errors
    ///
    /// EPERM without all rights, ETIMEDOUT if another process keeps the lock, EBADMSG for a log that
    /// is none; those of `body`.
    pub(super) fn locked<R>(
        &self,
        operation: &'static str,
        body: impl FnOnce(&[Segment]) -> Result<R>,
    ) -> Result<R> {
        const PATIENCE: Duration = Duration::from_secs(5);
        let mut local = self.enter();
        if !self.is_full() {
            let why = "only a participant with all rights can do that";
            return Err(Error::because(operation, Errno::PERM, why));
        }
        let token = self.token(operation, &mut local)?;
        let _taken = self.take(operation, token, Instant::now() + PATIENCE)?;
        let (_, layout) = self.ledger().layout(operation, self.shape.size)?;
        body(&layout)
    }

    /// An object of the log is nowhere to be had: all that had it have been killed, or somebody
    /// is about to offer it to a server that has just taken over. If nobody does for a while,
    /// a hole is in its place from now on. The caller has the lock.
    fn give_up(
        &self,
        operation: &'static str,
        local: &mut Local,
        deadline: Instant,
    ) -> Result<u64> {
        const GRACE: Duration = Duration::from_secs(1);
        // Also over many short calls: a server has little time for each.
        let end = *local.lost.get_or_insert_with(Instant::now) + GRACE;
        loop {
            match self.follow(operation, local) {
                Err(error) if error.is_not_found() => {
                    let now = Instant::now();
                    if now >= end {
                        break;
                    }
                    if now >= deadline {
                        return Err(error);
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
                followed => return followed,
            }
        }
        let (generation, mut layout) = self.ledger().layout(operation, self.shape.size)?;
        for part in &mut layout {
            if matches!(part.backing, Backing::Object { id, .. } if self.object(id).is_none()) {
                *part = Segment::hole(part.range(), generation + 1);
            }
        }
        self.ledger().publish(&layout);
        self.follow(operation, local)
    }

    /// EINVAL once the region has ended with its creator.
    fn alive(&self, operation: &'static str) -> Result<()> {
        if self.ledger().ended.load(Ordering::Relaxed) == 0 {
            return Ok(());
        }
        Err(Error::because(operation, Errno::INVAL, "the region has ended with its creator"))
    }

    /// What the layout is to be, and which parts of the old one lose their pages.
    fn plan(
        &self,
        operation: &'static str,
        old: &[Segment],
        range: &Range<u64>,
        change: &Change,
        charge: Option<Charge>,
        generation: u64,
    ) -> Result<Plan> {
        let here = pieces(old, range.clone());
        self.check_cuts(operation, old, range)?;
        if !matches!(change, Change::Advise(_)) {
            self.check_heap(operation, range)?;
        }
        let next = generation + 1;
        let vouched = self.ledger().emptied.load(Ordering::Relaxed);
        let hole = |part: &Segment| part.backing == Backing::Hole;
        let mut emptied = Vec::new();
        let new = match change {
            Change::Unmap => {
                emptied.extend(here.iter().copied().filter(|part| !hole(part)));
                // A hole that is there stays as old as it is.
                here.iter()
                    .map(|part| if hole(part) { *part } else { Segment::hole(part.range(), next) })
                    .collect()
            }
            Change::Map { object, at, access, huge, replace } => {
                if let Some(Object { kind, .. }) = object {
                    // Who asked the server looked at nothing.
                    aligned(operation, range, *at, *kind)?;
                }
                if !replace && !here.iter().all(hole) {
                    return Err(Error::with(
                        operation,
                        Errno::EXIST,
                        format_args!("something lies in {:#x} to {:#x}", range.start, range.end),
                    ));
                }
                if object.is_none() && here.iter().any(|part| hole(part) && part.since > vouched) {
                    let why = "not every process follows the unmapping of this part";
                    return Err(Error::because(operation, Errno::BUSY, why));
                }
                emptied.extend(here.iter().copied().filter(|part| !hole(part)));
                // Below an object may be what somebody wrote who followed late.
                let is_object = |part: &Segment| matches!(part.backing, Backing::Object { .. });
                if object.is_none() && here.iter().any(is_object) {
                    emptied.push(Segment::plain(range.clone()));
                }
                let plain = Segment::plain(range.clone());
                let (access, huge) = (*access, *huge);
                vec![match object {
                    None => Segment { access, huge, ..plain },
                    Some(Object { id, kind, .. }) => {
                        let backing = Backing::Object { id: *id, kind: *kind };
                        Segment { backing, at: *at, access, huge, ..plain }
                    }
                }]
            }
            Change::Protect(_) | Change::Advise(_) if here.iter().any(hole) => {
                return Err(Error::with(
                    operation,
                    Errno::NOMEM,
                    format_args!(
                        "nothing lies in a part of {:#x} to {:#x}",
                        range.start, range.end
                    ),
                ));
            }
            Change::Protect(access) => {
                here.iter().map(|part| Segment { access: *access, ..*part }).collect()
            }
            Change::Advise(huge) => {
                here.iter().map(|part| Segment { huge: *huge, ..*part }).collect()
            }
        };
        let layout = holes::merge(&charge::replace(old, range, new, charge), vouched);
        if let Some(charge) = charge {
            charge.check(operation, old, &layout)?;
        }
        // Memory that is mapped begins with zeros: what was there goes in a step of its own, so
        // that nobody who dies leaves it.
        let goes = matches!(change, Change::Map { .. }) && !emptied.is_empty();
        let gone = [Segment::hole(range.clone(), next)];
        let first = goes.then(|| holes::merge(&replace(old, range, &gone), vouched));
        if layout.len().max(first.as_ref().map_or(0, Vec::len)) > SEGMENTS {
            let why = format_args!("more than {SEGMENTS} parts that are not plain memory");
            return Err(Error::with(operation, Errno::NOSPC, why));
        }
        debug_assert_eq!(parse(&words(&layout), self.shape.size).as_ref(), Ok(&layout));
        Ok(Plan { first, layout, emptied })
    }

    /// Maps it here, commits, and takes pages away; the generation, and whether that was possible.
    /// If not, nothing takes the place of what lay there.
    fn carry_out(
        &self,
        operation: &'static str,
        local: &mut Local,
        old: &[Segment],
        plan: Plan,
    ) -> Result<(u64, rustix::io::Result<()>)> {
        let Plan { first, layout, emptied } = plan;
        // All that is there was found when we followed; nobody changes it now.
        let before = Round { generation: self.ledger().log().generation(), end: Instant::now() };
        if let Err(Gap { errno, .. }) = self.lay_out(local, &layout, before) {
            let _ = self.lay_out(local, old, before);
            let why = "cannot be mapped in this process";
            return Err(Error::because(operation, errno, why));
        }
        let mut generation = self.ledger().publish(first.as_ref().unwrap_or(&layout));
        let done = self.empty(&emptied);
        if first.is_some() && done.is_ok() {
            generation = self.ledger().publish(&layout);
        }
        if first.is_none() || done.is_ok() {
            local.applied = generation;
            self.forget_objects();
        }
        Ok((generation, done))
    }

    /// Ends the region if it is to end with its creator, and that one is not there any more. Whether
    /// there is nothing left to do: if another keeps the lock, this is to be tried again.
    pub(super) fn end_with_creator(&self) -> bool {
        /// The thread that asks has others to hear.
        const PATIENCE: Duration = Duration::from_millis(50);
        let (ledger, relaxed) = (self.ledger(), Ordering::Relaxed);
        let is_bound = ledger.bound.load(relaxed) != 0 && ledger.ended.load(relaxed) == 0;
        let has_creator = || ledger.participants().named(ledger.owner.load(relaxed)).is_some();
        if !is_bound || !self.is_full() || has_creator() {
            return true;
        }
        self.try_enter().is_some_and(|local| self.end(local, PATIENCE))
    }

    /// Ends the region: nothing lies in it any more, for anybody. Done once; whether it is.
    pub(super) fn end(&self, mut local: Inside<'_, Local>, patience: Duration) -> bool {
        if !self.is_full() {
            return true;
        }
        let deadline = Instant::now() + patience;
        let Ok(token) = self.token(super::SYNC, &mut local) else { return false };
        let Ok(taken) = self.take(super::SYNC, token, deadline) else { return false };
        if self.ledger().ended.load(Ordering::Relaxed) != 0 {
            return true;
        }
        let (generation, size) = (self.ledger().log().generation(), self.shape.size);
        let hole = Segment::hole(0..size, generation + 1);
        let published = self.ledger().publish(&[hole]);
        self.ledger().ended.store(1, Ordering::Relaxed);
        let _ = self.empty(&[hole]);
        let _ = self.follow(super::SYNC, &mut local);
        drop(taken);
        self.report_following(token, published);
        drop(local);
        self.ring();
        true
    }
}

/// What a change makes.
struct Plan {
    /// What is published before.
    first: Option<Vec<Segment>>,
    layout: Vec<Segment>,
    emptied: Vec<Segment>,
}
