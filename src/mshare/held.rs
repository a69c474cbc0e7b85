//! A region as this process holds it: its mappings, its files, its place among the participants.

use super::agent::Agent;
use super::backing::Kind;
use super::directory::Directory;
use super::gate::{Gate, Inside};
use super::header::Header;
use super::layout::Segment;
use super::ledger::Ledger;
use super::participants::Token;
use super::rights::Rights;
use super::wire::Shape;
use crate::error::{Error, Result};
use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use crate::sys::map::Mapping;
use crate::sys::{futex, pidfd, thread};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use std::sync::Arc;
use std::time::Instant;

/// The files of a region.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) control: Arc<OwnedFd>,
    pub(super) ledger: Arc<OwnedFd>,
    pub(super) data: Arc<OwnedFd>,
    /// An eventfd to which all listen that have all rights: rung when the log or the server has
    /// changed. In a process without, its first [line](super::lines) to the server.
    pub(super) bell: Arc<OwnedFd>,
}

impl Files {
    pub(super) fn new([control, ledger, data, bell]: [OwnedFd; 4]) -> Self {
        let [control, ledger, data, bell] = [control, ledger, data, bell].map(Arc::new);
        Self { control, ledger, data, bell }
    }
}

/// An object of the region whose descriptor this process has.
#[derive(Debug, Clone)]
pub(super) struct Object {
    pub(super) id: u64,
    pub(super) kind: Kind,
    pub(super) file: Arc<OwnedFd>,
}

/// What changes while a process holds a region.
#[derive(Debug)]
pub(super) struct Local {
    /// Whose this is: a forked child has its parent's until it looks.
    pub(super) pid: u32,
    pub(super) token: Option<Token>,
    /// What is mapped here; `None` if nobody knows.
    pub(super) layout: Option<Vec<Segment>>,
    /// The generation that this follows.
    pub(super) applied: u64,
    /// Since when a change waits for an object that is nowhere to be had.
    pub(super) lost: Option<std::time::Instant>,
    /// Whether the thread that follows is about to end, in order.
    pub(super) is_closing: bool,
}

impl Local {
    pub(super) fn new(token: Option<Token>) -> Self {
        Self {
            pid: std::process::id(),
            token,
            layout: Some(Vec::new()),
            applied: 0,
            lost: None,
            is_closing: false,
        }
    }

    fn unknown() -> Self {
        Self { layout: None, ..Self::new(None) }
    }
}

/// How long others took to follow.
#[derive(Debug)]
pub(super) struct Waits {
    pub(super) count: AtomicU64,
    pub(super) nanoseconds: AtomicU64,
    pub(super) longest: AtomicU64,
    pub(super) incomplete: AtomicU64,
    /// How many took less than 2^n microseconds, and no less than half of that.
    pub(super) by_time: [AtomicU64; WAITS],
}

/// Lengths that waits are told apart by: the last is of more than half a minute.
pub(super) const WAITS: usize = 26;

impl Waits {
    pub(super) fn new() -> Self {
        let word = || AtomicU64::new(0);
        Self {
            count: word(),
            nanoseconds: word(),
            longest: word(),
            incomplete: word(),
            by_time: core::array::from_fn(|_| word()),
        }
    }
}

/// A region in this process.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) name: String,
    pub(super) directory: Directory,
    pub(super) shape: Shape,
    pub(super) rights: Rights,
    /// Whether a thread follows for this process.
    pub(super) has_agent: AtomicBool,
    pub(super) control: Mapping,
    pub(super) ledger: Mapping,
    pub(super) data: Mapping,
    pub(super) files: Files,
    /// Held while the log's lock is waited for, so never in the way of the agent.
    pub(super) local: Gate<Local>,
    /// Held for moments only: the agent hands objects out.
    pub(super) objects: Gate<Vec<Object>>,
    /// Held by a thread that maps an object: one at a time.
    pub(super) bringing: Gate<()>,
    pub(super) agent: Gate<Option<Agent>>,
    /// The process whose agent serves, if it is this one.
    pub(super) serving: AtomicU32,
    pub(super) waits: Waits,
}

/// Set in a participant's rights if it has an agent.
pub(super) const HAS_AGENT: u32 = 1 << 15;

impl Held {
    pub(super) fn header(&self) -> &Header {
        Header::of(&self.control)
    }

    pub(super) fn ledger(&self) -> &Ledger {
        // SAFETY: mapped as long as this lives.
        unsafe { Ledger::at(self.ledger.start().cast()) }
    }

    /// May this process write the ledger?
    pub(super) fn is_full(&self) -> bool {
        self.rights == Rights::ALL
    }

    /// Does the agent of this process serve?
    pub(super) fn is_serving(&self) -> bool {
        self.serving.load(Ordering::Relaxed) == std::process::id()
    }

    /// What changes, for one thread; a forked child finds what it inherited, without a token.
    pub(super) fn enter(&self) -> Inside<'_, Local> {
        Self::own(self.local.enter(Local::unknown))
    }

    /// The same if nobody is inside: for the agent, which others wait for.
    pub(super) fn try_enter(&self) -> Option<Inside<'_, Local>> {
        self.local.try_enter(Local::unknown).map(Self::own)
    }

    fn own(mut local: Inside<'_, Local>) -> Inside<'_, Local> {
        let pid = std::process::id();
        if local.pid != pid {
            local.pid = pid;
            local.token = None;
        }
        local
    }

    /// The descriptor of an object, if it is here.
    pub(super) fn object(&self, id: u64) -> Option<Object> {
        let objects = self.objects.enter(Vec::new);
        objects.iter().find(|object| object.id == id).cloned()
    }

    /// Lets go of an object that came to nothing.
    pub(super) fn drop_object(&self, id: u64) {
        self.objects.enter(Vec::new).retain(|object| object.id != id);
    }

    /// Keeps a descriptor, unless there is one of this object.
    pub(super) fn keep(&self, object: Object) {
        let mut objects = self.objects.enter(Vec::new);
        if objects.iter().all(|known| known.id != object.id) {
            objects.push(object);
        }
    }

    /// The token of this process, which takes a slot if it has none.
    ///
    /// # Errors
    ///
    /// EUSERS if all slots are taken; EPERM in the forked child of a participant that has not
    /// all rights: it has to open the region itself.
    pub(super) fn token(&self, operation: &'static str, local: &mut Local) -> Result<Token> {
        if let Some(token) = local.token
            && self.ledger().participants().is_present(token)
        {
            return Ok(token);
        }
        if !self.is_full() {
            let why = "a forked child without all rights is no participant";
            return Err(Error::because(operation, Errno::PERM, why));
        }
        let has_agent = self.has_agent.load(Ordering::Relaxed);
        let rights = self.rights.bits() | if has_agent { HAS_AGENT } else { 0 };
        // The server may know us already, if we have asked it.
        let known = self.ledger().participants().of_process(local.pid);
        let token = match known.filter(|&token| !self.is_dead(token)) {
            Some(token) => token,
            None => join(operation, self.ledger(), local.pid, rights)?,
        };
        local.token = Some(token);
        Ok(token)
    }

    /// Wakes the agents of all participants. Those without all rights change nothing by
    /// themselves.
    pub(super) fn ring(&self) {
        if !self.is_full() {
            return;
        }
        let one = 1_u64.to_ne_bytes();
        if rustix::io::write(&self.files.bell, &one) == Err(Errno::AGAIN) {
            // Somebody filled it: emptied, it rings again.
            let _ = rustix::io::read(&self.files.bell, &mut [0; 8]);
            let _ = rustix::io::write(&self.files.bell, &one);
        }
    }

    /// Is the thread gone that followed for this participant? Then its process executed another
    /// program, or is about to end.
    pub(super) fn is_without_agent(&self, token: Token) -> bool {
        let agent = self.ledger().participants().agent(token);
        agent.is_some_and(|agent| thread::is_gone(token.pid(), agent))
    }

    /// Has this participant's process ended, or executed another program?
    pub(super) fn is_dead(&self, token: Token) -> bool {
        self.is_without_agent(token) || self.has_ended(token)
    }

    /// Has its process ended, so that no instruction of it is still to come?
    pub(super) fn has_ended(&self, token: Token) -> bool {
        match pidfd::open(token.pid()) {
            Err(errno) => errno == Errno::SRCH,
            Ok(process) => {
                if pidfd::has_ended(&process).unwrap_or(false) {
                    return true;
                }
                // Or another process has its number.
                let began = self.ledger().participants().began(token);
                began != 0 && pidfd::began(token.pid()).is_ok_and(|now| now != began)
            }
        }
    }

    /// Frees the slot of a dead participant, and wakes who waited for it. One of those who try
    /// does.
    pub(super) fn reap(&self, token: Token) -> bool {
        let first = self.is_full() && self.ledger().participants().leave(token);
        if first {
            self.ledger().reaped.fetch_add(1, Ordering::Relaxed);
            self.wake(self.ledger().acks());
        }
        first
    }

    /// Wakes all that sleep on a word of the ledger.
    pub(super) fn wake(&self, word: &AtomicU32) {
        let word = core::ptr::from_ref(word).cast();
        let _ = futex::wake_bitset(word, false, u32::MAX, u32::MAX);
    }

    /// Sleeps while a word of the ledger is `seen`, until `end` at most.
    pub(super) fn sleep(&self, word: &AtomicU32, seen: u32, end: Instant) {
        let left = end.saturating_duration_since(Instant::now());
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        if let Some(end) =
            rustix::time::Timespec::try_from(left).ok().and_then(|l| now.checked_add(l))
        {
            let word = core::ptr::from_ref(word).cast();
            let _ = futex::wait_bitset(
                word,
                false,
                seen,
                futex::Clock::Monotonic,
                Some(&end),
                u32::MAX,
            );
        }
    }

    pub(super) fn data_file(&self) -> BorrowedFd<'_> {
        self.files.data.as_fd()
    }
}

/// Takes a slot.
///
/// # Errors
///
/// EUSERS if there is none.
pub(super) fn join(
    operation: &'static str,
    ledger: &Ledger,
    pid: u32,
    rights: u32,
) -> Result<Token> {
    let began = began(pid);
    ledger.participants().join(pid, began, rights).ok_or_else(|| {
        let most = super::participants::PARTICIPANTS;
        Error::with(operation, Errno::USERS, format_args!("{most} processes have this region"))
    })
}

/// When a process began; 0 if nobody can tell. Our own is looked up once.
pub(super) fn began(pid: u32) -> u64 {
    /// Process id and beginning of the process that asked last, in one word.
    static OWN: AtomicU64 = AtomicU64::new(0);
    /// Those of 10 ms fit for 497 days; who began later is looked up each time.
    const TICKS: u64 = (1 << 32) - 1;
    let look = || pidfd::began(pid).unwrap_or(0);
    if pid != std::process::id() {
        return look();
    }
    let known = OWN.load(Ordering::Relaxed);
    if known >> 32 == u64::from(pid) {
        return known & TICKS;
    }
    let began = look();
    if began <= TICKS {
        OWN.store(u64::from(pid) << 32 | began, Ordering::Relaxed);
    }
    began
}
