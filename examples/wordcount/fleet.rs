//! The worker processes, as the parent holds them: started, watched, replaced, reaped.

use crate::Result;
use crate::job::{GONE, HALTED, Job, READY, STARTING, WATCHED, announce};
use core::sync::atomic::Ordering;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::env;
use std::io::{self, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::Scope;
use unmerged::task_shared::{Monitor, SchedStats};

/// What a worker's slot says.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Numbers {
    /// Of the files that it has finished.
    pub(crate) bytes: u64,
    pub(crate) stats: SchedStats,
    /// Where it ran last.
    pub(crate) cpu: u32,
}

/// A worker, living or dead.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) seat: usize,
    child: Child,
    process: OwnedFd,
    /// Opened while the worker lived; what it maps outlives the worker.
    monitor: Option<Monitor>,
    /// How it ended, once it is reaped.
    pub(crate) end: Option<ExitStatus>,
    /// What its slot said at the end of the job.
    last: Numbers,
}

impl Member {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Reads the slot, with no word to the worker; what it said last, if it gave it back.
    pub(crate) fn numbers(&self) -> Numbers {
        let slots = self.monitor.iter().flat_map(Monitor::threads);
        // The only thread of a worker has the id of its process.
        slots.filter(|slot| slot.tid() == self.pid()).last().map_or(self.last, |slot| Numbers {
            bytes: slot.user(),
            stats: slot.stats(),
            cpu: slot.cpu(),
        })
    }

    fn reap(&mut self) -> Result<()> {
        self.last = self.numbers();
        self.end = Some(self.child.wait()?);
        Ok(())
    }
}

/// All workers of a job, the dead ones too. None survives it.
#[derive(Debug)]
pub(crate) struct Fleet<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    job: &'scope Job<'scope>,
    pub(crate) members: Vec<Member>,
}

impl<'scope, 'env> Fleet<'scope, 'env> {
    pub(crate) fn new(scope: &'scope Scope<'scope, 'env>, job: &'scope Job<'scope>) -> Self {
        Self { scope, job, members: Vec::new() }
    }

    /// Starts a worker on each of these seats, which nobody sits on; waits until all work, or
    /// are gone.
    ///
    /// To be called by a thread that lives as long as the job: the kernel ends a worker with
    /// the thread that started it.
    ///
    /// # Errors
    ///
    /// One cannot be started. One that ends before it is ready is no error, but a death.
    pub(crate) fn start(&mut self, seats: impl Iterator<Item = usize>) -> Result<()> {
        let first = self.members.len();
        for seat in seats {
            self.spawn(seat)?;
        }
        for member in &mut self.members[first..] {
            let seat = &self.job.seats[member.seat].state;
            let state = seat.wait_while(STARTING, None)?;
            match Monitor::open(member.pid()) {
                Ok(monitor) => member.monitor = Some(monitor),
                // It died since; that is seen soon.
                Err(_) if state == GONE || !is_running(&member.process) => {}
                Err(error) => {
                    let _ = writeln!(io::stderr(), "wordcount: worker {}: {error}", member.pid());
                }
            }
            // Unless it is gone.
            if seat.compare_exchange(READY, WATCHED, Ordering::Release, Ordering::Relaxed).is_ok() {
                seat.wake_all();
            }
        }
        Ok(())
    }

    fn spawn(&mut self, seat: usize) -> Result<()> {
        let (job, results) = (self.job, self.job.results());
        let state = &job.seats[seat];
        state.state.store(STARTING, Ordering::Relaxed);
        let mut child = Command::new(env::current_exe()?)
            .args(["--worker", &seat.to_string(), "--region", job.region.name()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let watch = || -> Result<OwnedFd> {
            let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
            let watched = process.try_clone()?;
            std::thread::Builder::new().spawn_scoped(self.scope, move || {
                wait_for_end(&watched);
                state.enter(GONE);
                announce(results);
            })?;
            Ok(process)
        };
        match watch() {
            Ok(process) => {
                let last = Numbers::default();
                self.members.push(Member { seat, child, process, monitor: None, end: None, last });
                Ok(())
            }
            Err(error) => {
                child.kill()?;
                child.wait()?;
                Err(error)
            }
        }
    }

    /// Kills the worker that halted, if one did; which one.
    ///
    /// # Errors
    ///
    /// Those of the signal.
    pub(crate) fn kill_halted(&self) -> Result<Option<u32>> {
        for member in self.living() {
            if self.job.seats[member.seat].state.load(Ordering::Acquire) == HALTED {
                pidfd_send_signal(&member.process, Signal::KILL)?;
                return Ok(Some(member.pid()));
            }
        }
        Ok(None)
    }

    /// Reaps those whose end was seen; their seats, which are empty then.
    ///
    /// # Errors
    ///
    /// Those of waiting for a child.
    pub(crate) fn reap(&mut self) -> Result<Vec<usize>> {
        let mut seats = Vec::new();
        for member in self.members.iter_mut().filter(|member| member.end.is_none()) {
            if self.job.seats[member.seat].state.load(Ordering::Acquire) == GONE {
                member.reap()?;
                seats.push(member.seat);
            }
        }
        Ok(seats)
    }

    /// Lets all workers end, once there is nothing left to do, and reaps them.
    ///
    /// # Errors
    ///
    /// Those of waiting for a child.
    pub(crate) fn close(&mut self) -> Result<()> {
        for member in &mut self.members {
            // A worker that ends in order gives its slot back.
            member.last = member.numbers();
        }
        self.job.close();
        for member in self.members.iter_mut().filter(|member| member.end.is_none()) {
            let seat = &self.job.seats[member.seat].state;
            let mut state = seat.load(Ordering::Acquire);
            while state != GONE {
                state = seat.wait_while(state, None)?;
            }
            member.reap()?;
        }
        Ok(())
    }

    fn living(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| member.end.is_none())
    }
}

impl Drop for Fleet<'_, '_> {
    /// After an error: the threads that watch must see an end.
    fn drop(&mut self) {
        for member in self.members.iter_mut().filter(|member| member.end.is_none()) {
            let _ = member.child.kill();
            let _ = member.child.wait();
        }
    }
}

/// Has the process not ended?
fn is_running(process: impl AsFd) -> bool {
    poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&Timespec::default())) == Ok(0)
}

/// Sleeps until the process has ended; it is not reaped.
fn wait_for_end(process: impl AsFd) {
    let mut fds = [PollFd::new(&process, PollFlags::IN)];
    while poll(&mut fds, None) == Err(Errno::INTR) {}
}
