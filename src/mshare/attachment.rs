//! Handles on a region: it is mapped once in a process, however often it is opened.
//!
//! A region has one address, so a process cannot map it twice. A table of what this process
//! has mapped, under a lock, makes a second opening a second handle; the last handle unmaps,
//! under the same lock, so that nobody opens what is being unmapped. Regions are told apart
//! by their control file and random id, which a server cannot make up.

use super::agent::Agent;
use super::directory::Directory;
use super::gate::{Gate, Inside};
use super::header::Header;
use super::held::{Files, HAS_AGENT, Held, Local, Waits, join};
use super::layout::Segment;
use super::maps::Maps;
use super::participants::Token;
use super::rights::Rights;
use super::window;
use super::wire::Shape;
use crate::error::{Context, Error, Result};
use crate::sync::{AtomicBool, AtomicU32, Ordering};
use core::mem::ManuallyDrop;
use core::ptr::NonNull;
use rustix::fs::fstat;
use rustix::io::Errno;
use std::sync::Arc;

/// What tells regions apart: device and inode of the ledger's file, and the id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    device: u64,
    inode: u64,
    id: [u8; 16],
}

#[derive(Debug)]
struct Entry {
    key: Key,
    handles: usize,
    /// Those that only want it to stay mapped.
    keeps: usize,
    held: Arc<Held>,
}

static TABLE: Gate<Vec<Entry>> = Gate::new(Vec::new());

fn table() -> Inside<'static, Vec<Entry>> {
    // A child that was forked in the midst of this has what its parent had mapped, and does not
    // know it: its addresses are taken.
    TABLE.enter(Vec::new)
}

/// What a process brings when it maps a region.
#[derive(Debug)]
pub(super) struct Origin {
    pub(super) name: String,
    pub(super) directory: Directory,
    pub(super) rights: Rights,
    pub(super) has_agent: bool,
}

/// A handle.
#[derive(Debug)]
pub(super) struct Attachment {
    key: Key,
    /// Dropped by hand, under the lock of the table.
    held: ManuallyDrop<Arc<Held>>,
}

impl Attachment {
    /// Maps a new region at the first of `bases` that is free, and fills its ledger; `fill`
    /// fills or checks its control page.
    ///
    /// # Errors
    ///
    /// EEXIST if none is, ENOMEM.
    pub(super) fn create(
        files: Files,
        origin: Origin,
        shape: Shape,
        bases: impl Iterator<Item = u64>,
        fill: impl Fn(&Header, &Shape) -> Result<()>,
    ) -> Result<Self> {
        let mut clash = Error::new(super::CREATE, Errno::EXIST);
        for base in bases {
            let shape = Shape { base, ..shape };
            match Maps::new(super::CREATE, &files, &shape, Rights::ALL) {
                Ok(maps) => {
                    fill(Header::of(&maps.control), &shape)?;
                    maps.ledger().fill();
                    let rights = Rights::ALL.bits() | HAS_AGENT;
                    let pid = std::process::id();
                    let token = join(super::CREATE, maps.ledger(), pid, rights)?;
                    let key = key(super::CREATE, &files, &shape)?;
                    return Ok(Self::put(&mut table(), key, files, origin, shape, maps, token));
                }
                Err(error) if error.is_exists() => clash = error,
                Err(error) => return Err(error),
            }
        }
        Err(clash)
    }

    /// Maps the region of a server's reply at its base, or takes the mapping that is there.
    /// `None` if the slot that the server gave us is free again.
    ///
    /// # Errors
    ///
    /// EBADMSG for a shape that no region has, or if the control memory says otherwise; EPROTO
    /// for a control page of another version; EEXIST if something else is at its address;
    /// ENOMEM.
    pub(super) fn open(
        files: Files,
        origin: Origin,
        shape: Shape,
        token: Token,
    ) -> Result<Option<Self>> {
        window::check(super::OPEN, Errno::BADMSG, shape.base, shape.size)?;
        let key = key(super::OPEN, &files, &shape)?;
        let mut table = table();
        if let Some(entry) = table.iter_mut().find(|entry| entry.key == key) {
            if !entry.held.rights.contains(origin.rights) {
                let why = "this process has the region already, with fewer rights";
                return Err(Error::because(super::OPEN, Errno::BUSY, why));
            }
            let is_first = entry.handles == 0;
            let has_slot = || entry.held.ledger().participants().is_present(token);
            if is_first && !entry.held.is_full() && !has_slot() {
                return Ok(None);
            }
            entry.handles += 1;
            let again = Self { key, held: ManuallyDrop::new(entry.held.clone()) };
            let started = if is_first {
                // Only a heap kept it mapped: it is a participant anew. Under the lock, like all
                // that makes or ends one.
                let mut local = again.held.enter();
                (local.token, local.is_closing) = (Some(token), false);
                drop(local);
                again.held.has_agent.store(origin.has_agent, Ordering::Relaxed);
                again.start(super::OPEN, Vec::new())
            } else if origin.has_agent {
                // Perhaps the other handles do without; this one does not.
                again.held.has_agent.store(true, Ordering::Relaxed);
                again.start(super::OPEN, Vec::new())
            } else {
                Ok(())
            };
            // One that goes takes it.
            drop(table);
            started?;
            match again.live(super::OPEN) {
                Err(error) if error.is_not_found() => {}
                lived => {
                    lived?;
                }
            }
            if !is_first {
                again.held.give_back(token);
            }
            return Ok(Some(again));
        }
        let maps = Maps::new(super::OPEN, &files, &shape, origin.rights)?;
        Header::of(&maps.control).verify(&shape)?;
        maps.ledger().verify()?;
        let token = match maps.ledger().participants().is_present(token) {
            true => token,
            false if origin.rights == Rights::ALL => {
                // It went with a handle of this process that was just dropped.
                let bits = Rights::ALL.bits() | if origin.has_agent { HAS_AGENT } else { 0 };
                join(super::OPEN, maps.ledger(), std::process::id(), bits)?
            }
            false => return Ok(None),
        };
        if origin.rights == Rights::ALL {
            let began = super::held::began(std::process::id());
            maps.ledger().participants().set_began(token, began);
        }
        let attachment = Self::put(&mut table, key, files, origin, shape, maps, token);
        let started = attachment.start(super::OPEN, Vec::new());
        drop(table);
        started?;
        let mut local = attachment.held.enter();
        match attachment.held.follow(super::OPEN, &mut local) {
            // An object that nobody has any more: a hole, for now in this process alone.
            Err(error) if error.is_not_found() => {}
            followed => {
                followed?;
            }
        }
        drop(local);
        Ok(Some(attachment))
    }

    /// Makes the first handle.
    fn put(
        table: &mut Vec<Entry>,
        key: Key,
        files: Files,
        origin: Origin,
        shape: Shape,
        maps: Maps,
        token: Token,
    ) -> Self {
        let Maps { control, ledger, data } = maps;
        let Origin { name, directory, rights, has_agent } = origin;
        let held = Arc::new(Held {
            name,
            directory,
            shape,
            rights,
            has_agent: AtomicBool::new(has_agent),
            control,
            ledger,
            data,
            files,
            local: Gate::new(Local::new(Some(token))),
            objects: Gate::new(Vec::new()),
            bringing: Gate::new(()),
            agent: Gate::new(None),
            serving: AtomicU32::new(0),
            waits: Waits::new(),
        });
        table.push(Entry { key, handles: 1, keeps: 0, held: held.clone() });
        Self { key, held: ManuallyDrop::new(held) }
    }

    /// Starts the thread of this process, unless it is to have none or has it: there is one, which
    /// whoever drops the last handle stops.
    pub(super) fn start(
        &self,
        operation: &'static str,
        listeners: Vec<rustix::fd::OwnedFd>,
    ) -> Result<()> {
        if !self.held.has_agent.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut agent = self.held.agent.enter(|| None);
        if !agent.as_ref().is_some_and(Agent::is_ours) {
            *agent = Some(Agent::start(operation, &self.held, listeners)?);
        }
        Ok(())
    }

    /// The name that the thread serves by now.
    pub(super) fn set_name(&self, name: super::claim::Name) {
        if let Some(agent) = self.held.agent.enter(|| None).as_mut() {
            agent.name = Some(name);
        }
    }

    /// In a forked child, begins to live as a participant.
    pub(super) fn be_born(&self, operation: &'static str) -> Result<()> {
        let inherited = self.held.enter().token.is_none();
        if inherited { self.live(operation).map(drop) } else { Ok(()) }
    }

    /// Follows the log; in a forked child, begins to live as a participant.
    pub(super) fn live(&self, operation: &'static str) -> Result<u64> {
        let mut local = self.held.enter();
        let inherited = local.token.is_none();
        let generation = self.held.follow(operation, &mut local)?;
        drop(local);
        if inherited {
            // The agent of the parent is not here.
            self.start(operation, Vec::new())?;
            self.held.ring();
        }
        Ok(generation)
    }

    /// The region in this process.
    pub(super) fn held(&self) -> &Arc<Held> {
        &self.held
    }

    /// Has it stay mapped, also when the last handle goes and this process is no participant any
    /// more.
    pub(super) fn keep(&self) -> Keep {
        if let Some(entry) = table().iter_mut().find(|entry| entry.key == self.key) {
            entry.keeps += 1;
        }
        Keep { key: self.key, held: ManuallyDrop::new(Arc::clone(&self.held)) }
    }

    /// What was agreed.
    pub(super) fn shape(&self) -> &Shape {
        &self.held.shape
    }

    /// First byte of the data.
    pub(super) fn base(&self) -> NonNull<u8> {
        self.held.data.start()
    }

    /// The control page.
    pub(super) fn header(&self) -> &Header {
        self.held.header()
    }
}

/// Has this process a region of this id?
pub(super) fn is_held(id: &[u8; 16]) -> bool {
    table().iter().any(|entry| entry.key.id == *id)
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let mut table = table();
        if let Some(at) = table.iter().position(|entry| entry.key == self.key) {
            table[at].handles -= 1;
            if table[at].handles == 0 {
                table[at].held.close();
                if table[at].keeps == 0 {
                    table.swap_remove(at);
                }
            }
        }
        // Here at the latest it is unmapped, still under the lock.
        // SAFETY: not used after this.
        unsafe { ManuallyDrop::drop(&mut self.held) };
    }
}

/// A region that stays mapped, until this is dropped.
#[derive(Debug)]
pub(super) struct Keep {
    key: Key,
    /// Dropped by hand, under the lock of the table.
    held: ManuallyDrop<Arc<Held>>,
}

impl Drop for Keep {
    fn drop(&mut self) {
        let mut table = table();
        if let Some(at) = table.iter().position(|entry| entry.key == self.key) {
            table[at].keeps -= 1;
            if table[at].keeps == 0 && table[at].handles == 0 {
                table.swap_remove(at);
            }
        }
        // SAFETY: not used after this.
        unsafe { ManuallyDrop::drop(&mut self.held) };
    }
}

fn key(operation: &'static str, files: &Files, shape: &Shape) -> Result<Key> {
    let stat = fstat(&files.ledger).op(operation)?;
    Ok(Key { device: stat.st_dev, inode: stat.st_ino, id: shape.id })
}

/// The first layout of a region in a part of which nothing lies.
pub(super) fn nothing(range: core::ops::Range<u64>) -> Vec<Segment> {
    vec![Segment::hole(range, 0)]
}
