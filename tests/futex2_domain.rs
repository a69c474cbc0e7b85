//! Domains: waiters of shared words that are counted for all processes, and processes that die.

mod common;
#[path = "common/hostile_domain.rs"]
mod hostile_domain;

use common::{Player, child, map, role, say, succeed};
use proptest::prelude::*;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use unmerged::futex2::{Deadline, Domain, step, waitv};

const LONG: Duration = Duration::from_secs(60);
const FD: &str = "UNMERGED_TEST_FD";
const STEPS: &str = "UNMERGED_TEST_STEPS";

/// A domain whose file is inherited by children.
fn inherited(bytes: usize) -> (Domain, OwnedFd) {
    let domain = Domain::create(bytes).unwrap();
    // SAFETY: duplicates without close-on-exec; the answer is checked by its use.
    let file = unsafe { OwnedFd::from_raw_fd(libc::dup(domain.file().unwrap().as_raw_fd())) };
    (domain, file)
}

fn with_file(mut command: Command, file: &OwnedFd) -> Command {
    command.env(FD, file.as_raw_fd().to_string());
    command
}

/// In a child: the domain of the parent.
fn attached() -> Domain {
    let fd = std::env::var(FD).unwrap().parse().unwrap();
    // SAFETY: inherited from the parent for this very use.
    Domain::open(unsafe { BorrowedFd::borrow_raw(fd) }).unwrap()
}

/// Two processes, at two addresses: ping-pong on words of every size.
#[test]
fn processes_meet() {
    const ROUNDS: u64 = 60;
    macro_rules! words {
        ($domain:expr, $do:ident) => {
            $do!(
                $domain.word::<u8>(1).unwrap(),
                $domain.word::<u16>(2).unwrap(),
                $domain.word::<u32>(64).unwrap(),
                $domain.word::<u64>(128).unwrap()
            )
        };
    }
    if role().is_some() {
        let domain = attached();
        for round in (0..ROUNDS).step_by(2) {
            macro_rules! answer {
                ($($word:expr),+) => { $(
                    let before = round.try_into().unwrap();
                    $word.wait_while_in(&domain, before, Some(Deadline::after(LONG))).unwrap();
                    $word.store((round + 2).try_into().unwrap(), Ordering::Release);
                    $word.wake_in(&domain, 1).unwrap();
                )+ };
            }
            words!(domain, answer);
        }
        return;
    }
    let (domain, file) = inherited(4096);
    let mut peer = with_file(child("processes_meet", "peer"), &file).spawn().unwrap();
    for round in (0..ROUNDS).step_by(2) {
        macro_rules! ask {
            ($($word:expr),+) => { $(
                let next = (round + 1).try_into().unwrap();
                $word.store(next, Ordering::Release);
                $word.wake_in(&domain, 1).unwrap();
                $word.wait_while_in(&domain, next, Some(Deadline::after(LONG))).unwrap();
            )+ };
        }
        words!(domain, ask);
    }
    assert!(peer.wait().unwrap().success());
    // Not `has_waiters_in`: other tests of this process wait on words of these places.
    assert_eq!(domain.counted(domain.word::<u8>(1).unwrap()).unwrap(), 0);
}

/// What a victim does: everything that changes the counts.
fn live(domain: &Domain) {
    let soon = || Some(Deadline::after(Duration::from_micros(200)));
    let (word, byte) = (domain.word::<u32>(0).unwrap(), domain.word::<u8>(100).unwrap());
    let other = domain.word::<u32>(512).unwrap();
    let _ = word.wait_in(domain, 0, soon());
    let _ =
        waitv(&[byte.waiter_in(domain, 0).unwrap(), word.waiter_in(domain, 0).unwrap()], soon());
    let _ = other.wake_in(domain, 1);
    let _ = word.requeue_in(domain, None, other, 0, 0);
}

/// A process is killed at each step of attaching, waiting, moving and detaching, beside a waiter
/// that lives: the living one stays counted and is woken, and what the dead one left is taken back.
#[test]
fn killed_at_every_step() {
    if role().is_some() {
        step::die_after(std::env::var(STEPS).unwrap().parse().unwrap());
        let domain = attached();
        live(&domain);
        drop(domain);
        return;
    }
    let mut left_over = Vec::new();
    for steps in 0.. {
        assert!(steps < 500, "a life without end");
        let (domain, file) = inherited(4096);
        let word = domain.word::<u32>(0).unwrap();
        let command = || {
            let mut command = with_file(child("killed_at_every_step", "victim"), &file);
            command.env(STEPS, steps.to_string());
            command
        };
        let mut survived = false;
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| word.wait_in(&domain, 0, Some(Deadline::after(LONG))));
            while domain.counted(word).unwrap() == 0 {
                std::thread::yield_now();
            }
            survived = command().output().unwrap().status.success();
            let reaped = domain.reap();
            assert!(reaped <= 1 && domain.reap() == 0);
            assert!(domain.counted(word).unwrap() >= 1, "step {steps}: a count is too low");
            while word.wake_in(&domain, 1).unwrap() == 0 && !waiter.is_finished() {
                std::thread::yield_now();
            }
            waiter.join().unwrap().unwrap();
        });
        if domain.counted(word).unwrap() != 0 {
            left_over.push(steps);
        }
        if survived {
            assert!(steps > 20 && domain.counted(word).unwrap() == 0, "{steps} steps");
            // Between a count and its ledger, on either way: few places.
            assert!(left_over.len() <= steps / 3, "{left_over:?} of {steps}");
            return;
        }
    }
}

/// Who reaps is killed at each step: the next one ends it, and no count gets too low.
#[test]
fn killed_while_reaping() {
    match role().as_deref() {
        Some("sleeper") => {
            let domain = attached();
            let word = domain.word::<u32>(0).unwrap();
            say("asleep");
            let _ = word.wait_in(&domain, 0, None);
        }
        Some(_) => {
            step::die_after(std::env::var(STEPS).unwrap().parse().unwrap());
            drop(attached());
        }
        None => {
            for steps in 0..16 {
                let (domain, file) = inherited(4096);
                let word = domain.word::<u32>(0).unwrap();
                let sleeper = || with_file(child("killed_while_reaping", "sleeper"), &file);
                let (mut dead, mut living) = (Player::start(sleeper()), Player::start(sleeper()));
                dead.wait_for("asleep");
                living.wait_for("asleep");
                while domain.counted(word).unwrap() < 2 {
                    std::thread::yield_now();
                }
                dead.kill();
                let mut reaper = with_file(child("killed_while_reaping", "reaper"), &file);
                let _ = reaper.env(STEPS, steps.to_string()).output().unwrap();
                domain.reap();
                assert!(domain.counted(word).unwrap() >= 1, "step {steps}: a count is too low");
                // A wake of another process finds the living one.
                while word.wake_in(&domain, 1).unwrap() == 0 {
                    std::thread::yield_now();
                }
                living.end();
            }
        }
    }
}

/// A wake that finds nobody again and again looks for the dead by itself.
#[test]
fn wakes_look_for_the_dead() {
    if role().is_some() {
        let domain = attached();
        say("asleep");
        let _ = domain.word::<u64>(0).unwrap().wait_in(&domain, 0, None);
        return;
    }
    let (domain, file) = inherited(4096);
    let word = domain.word::<u64>(0).unwrap();
    let mut player = Player::start(with_file(child("wakes_look_for_the_dead", "sleeper"), &file));
    player.wait_for("asleep");
    while domain.counted(word).unwrap() == 0 {
        std::thread::yield_now();
    }
    // Killed before it is in the ledger, it would be counted for good.
    common::until_idle(player.pid());
    player.kill();
    assert_ne!(domain.counted(word).unwrap(), 0);
    for _ in 0..10_000 {
        assert_eq!(word.wake_in(&domain, 1).unwrap(), 0);
    }
    assert_eq!(domain.counted(word).unwrap(), 0);
}

/// A child of fork waits with a row of its own, and leaves its parent's alone.
#[test]
fn forks() {
    if role().is_none() {
        return succeed(child("forks", "alone"));
    }
    let domain = Domain::create(4096).unwrap();
    let word = domain.word::<u16>(0).unwrap();
    let here = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            here.store(true, Ordering::SeqCst);
            word.wait_in(&domain, 0, Some(Deadline::after(LONG)))
        });
        while !here.load(Ordering::SeqCst) || domain.counted(word).unwrap() == 0 {
            std::thread::yield_now();
        }
        // SAFETY: the child waits in the domain, drops it, and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let soon = Some(Deadline::after(Duration::from_millis(1)));
            let timed_out = word.wait_in(&domain, 0, soon).is_err_and(|error| error.is_timed_out());
            let counted = domain.counted(word).unwrap();
            let other = Domain::open(domain.file().unwrap());
            drop(other);
            // SAFETY: ends the child.
            unsafe { libc::_exit(i32::from(!timed_out || counted != 1)) };
        }
        let mut status = 0;
        // SAFETY: our own child.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0);
        assert_eq!(domain.reap(), 1);
        assert_eq!(domain.counted(word).unwrap(), 1);
        while word.wake_in(&domain, 1).unwrap() == 0 && !waiter.is_finished() {}
        waiter.join().unwrap().unwrap();
    });
    assert_eq!(domain.counted(word).unwrap(), 0);
}

/// Bad memory is an error with its errno.
#[test]
fn what_is_no_domain() {
    let domain = Domain::create(64).unwrap();
    let file = domain.file().unwrap();
    let other = Domain::create(64).unwrap();
    assert_ne!(domain.id(), other.id());
    assert_eq!(Domain::open(file).unwrap().id(), domain.id());
    // Offsets and strangers.
    for offset in [64, 63, usize::MAX, 2] {
        assert!(domain.word::<u32>(offset).unwrap_err().is_invalid());
    }
    let word = domain.word::<u8>(63).unwrap();
    assert!(word.wake_in(&other, 1).unwrap_err().is_invalid());
    assert!(word.wait_in(&other, 0, None).unwrap_err().is_invalid());
    assert!(Domain::create(usize::MAX).unwrap_err().is_invalid());
    // A file that is none, too small, or unsealed.
    let plain = std::fs::File::open("/proc/self/exe").unwrap();
    assert!(Domain::open(&plain).is_err());
    // SAFETY: a fresh descriptor.
    let open = unsafe {
        OwnedFd::from_raw_fd(libc::memfd_create(c"test".as_ptr(), libc::MFD_ALLOW_SEALING))
    };
    assert_eq!(Domain::open(&open).unwrap_err().raw_os_error(), libc::EPERM);
    // SAFETY: our own file.
    unsafe { libc::fcntl(open.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK) };
    assert!(Domain::open(&open).unwrap_err().is_invalid());
    // Something else in it.
    let at = map(&file, 4096);
    // SAFETY: the header of a domain that nobody else uses.
    unsafe { at.cast::<u64>().write_volatile(7) };
    assert!(Domain::open(file).unwrap_err().is_corrupt());
}

/// More processes than rows; and a row is free again when its owner detaches.
#[test]
fn rows_run_out() {
    let domain = Domain::create(64).unwrap();
    let mut all: Vec<_> =
        (1..Domain::PROCESSES).map(|_| Domain::open(domain.file().unwrap()).unwrap()).collect();
    let full = Domain::open(domain.file().unwrap()).unwrap_err();
    assert_eq!(full.raw_os_error(), libc::ENOSPC);
    all.pop();
    Domain::open(domain.file().unwrap()).unwrap();
}

/// In memory of the caller's, with words elsewhere.
#[test]
fn memory_of_the_callers() {
    let len = Domain::TABLE_BYTES + 8192;
    // SAFETY: a fresh descriptor.
    let file = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"test".as_ptr(), 0)) };
    // SAFETY: our own file.
    assert_eq!(unsafe { libc::ftruncate(file.as_raw_fd(), len as i64) }, 0);
    let attach = |at: NonNull<u8>| {
        // SAFETY: mapped for good, zero at first.
        let domain = unsafe { Domain::attach(at.add(4096), Domain::TABLE_BYTES) }.unwrap();
        assert!(domain.is_empty() && domain.file().is_none());
        // SAFETY: the page before the table, mapped for good.
        unsafe { domain.covering(at, 4096) }.unwrap()
    };
    let (one, two) = (attach(map(&file, len)), attach(map(&file, len)));
    assert_eq!((one.len(), one.id()), (4096, two.id()));
    let (here, there) = (one.word::<u64>(8).unwrap(), two.word::<u64>(8).unwrap());
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| here.wait_while_in(&one, 0, Some(Deadline::after(LONG))));
        there.store(5, Ordering::Release);
        there.wake_in(&two, 1).unwrap();
        assert_eq!(waiter.join().unwrap().unwrap(), 5);
    });
    let at = map(&file, len);
    // SAFETY: mapped for good.
    let (odd, small) =
        unsafe { (Domain::attach(at.add(64), Domain::TABLE_BYTES), Domain::attach(at, 4096)) };
    assert!(odd.unwrap_err().is_invalid() && small.unwrap_err().is_invalid());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever others write: no hang, no crash, no lost wake in this process.
    #[test]
    fn hostile_bytes(bytes in prop::collection::vec(any::<u8>(), 0..1000)) {
        hostile_domain::run(&bytes);
    }
}
