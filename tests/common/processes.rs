//! Children of fork, and the memory that they share.
#![allow(dead_code, reason = "each test binary uses its own part")]

use crate::common::{child, map, role, succeed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};
use unmerged::futex2::Deadline;

/// Kills of a long storm, unless `UNMERGED_STRESS_KILLS` says another number.
pub(crate) const KILLS: usize = 10_000;

/// How many a storm kills: `usual`, and it may be fewer where that takes long; or so many.
pub(crate) struct Kills {
    pub(crate) most: usize,
    end: Option<Instant>,
}

impl Kills {
    pub(crate) fn new(usual: usize) -> Self {
        let said = std::env::var("UNMERGED_STRESS_KILLS").map(|kills| kills.parse().unwrap());
        if said.is_ok() || std::env::var("UNMERGED_STRESS_SECONDS").is_ok() {
            return Self { most: said.unwrap_or(KILLS).min(KILLS), end: None };
        }
        Self { most: usual, end: Some(Instant::now() + Duration::from_millis(1200)) }
    }

    /// Whether that was the last one.
    pub(crate) fn are_over(&self, killed: usize) -> bool {
        killed >= self.most || self.end.is_some_and(|end| Instant::now() >= end)
    }

    /// A long storm has killed as many as it was to kill.
    pub(crate) fn check(&self, killed: usize) {
        assert!(killed > 0 && (self.end.is_some() || killed == self.most), "{killed} killed");
    }
}

/// Nothing may take this long.
pub(crate) fn far() -> Deadline {
    Deadline::after(Duration::from_secs(30))
}

/// Runs the test alone in a process of its own: it forks.
pub(crate) fn alone(test: &str) -> bool {
    if role().is_none() {
        succeed(child(test, "alone"));
        return false;
    }
    true
}

/// A memory file of so many bytes.
pub(crate) fn file(bytes: usize) -> OwnedFd {
    // SAFETY: a fresh descriptor, which children inherit.
    let file = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"test".as_ptr(), 0)) };
    // SAFETY: our own file.
    assert_eq!(unsafe { libc::ftruncate(file.as_raw_fd(), bytes as i64) }, 0);
    file
}

/// What processes share: zeros, for good.
pub(crate) fn shared<T>() -> &'static T {
    let bytes = size_of::<T>().next_multiple_of(4096);
    // SAFETY: as many zeros as that; it is for types of which zeros are a value.
    unsafe { map(&file(bytes), bytes).cast::<T>().as_ref() }
}

/// A child of fork; it ends well if `body` answers yes.
pub(crate) fn fork(body: impl FnOnce() -> bool) -> libc::pid_t {
    // SAFETY: the child runs what is made for forked children, and ends.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: it dies with the test, should that fail.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            let code = i32::from(!body());
            // SAFETY: ends the child.
            unsafe { libc::_exit(code) }
        }
        pid => pid,
    }
}

pub(crate) fn wait_for(pid: libc::pid_t) -> i32 {
    let mut status = 0;
    // SAFETY: our own child, not waited for yet.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    status
}

/// Kills one that would not have ended by itself.
pub(crate) fn kill(pid: libc::pid_t) {
    // SAFETY: our own child, not waited for yet.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    let status = wait_for(pid);
    assert!(libc::WIFSIGNALED(status), "a victim gave up by itself: {status:#x}");
}

/// A child gives up, so that its parent sees it.
pub(crate) fn give_up(what: &str) -> ! {
    eprintln!("{what}");
    // SAFETY: ends the child.
    unsafe { libc::_exit(1) }
}

/// Whether a child has ended; it can still be waited for.
pub(crate) fn is_over(pid: libc::pid_t) -> bool {
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    let options = libc::WEXITED | libc::WNOWAIT | libc::WNOHANG;
    // SAFETY: our own child; a zeroed structure is one, and tells that nobody has ended.
    unsafe {
        assert_eq!(libc::waitid(libc::P_PID, pid.cast_unsigned(), info.as_mut_ptr(), options), 0);
        info.assume_init().si_pid() != 0
    }
}

/// Whether a process sleeps in a futex, or in a pipe: not on its way.
pub(crate) fn is_asleep(pid: libc::pid_t) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S'))
}

/// Until `done`, with the CPU left to others.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let far = far();
    while !done() {
        assert!(!far.has_passed(), "{what}: somebody is left asleep");
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// Numbers without a pattern.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn next(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % most
    }
}

/// Kills players one after the other, after times that hit every instruction sooner or later, and
/// puts new ones in their places. A player runs `play` until it is killed; `ended` is told of each
/// that is gone.
pub(crate) fn storm<const PLAYERS: usize>(play: impl Fn(usize), mut ended: impl FnMut(usize)) {
    let kills = Kills::new(100);
    let player = |me| {
        fork(|| {
            play(me);
            false
        })
    };
    let mut players: [_; PLAYERS] = core::array::from_fn(player);
    let (mut dice, mut killed) = (Dice(88_172_645_463_325_252), 0);
    while !kills.are_over(killed) {
        let (begin, span) = (Instant::now(), Duration::from_nanos(dice.next(2_000_000)));
        while begin.elapsed() < span {
            std::hint::spin_loop();
        }
        let me = dice.next(PLAYERS as u64) as usize;
        kill(players[me]);
        killed += 1;
        ended(me);
        players[me] = player(me);
    }
    players.into_iter().for_each(kill);
    kills.check(killed);
    eprintln!("storm: {killed} killed");
}
