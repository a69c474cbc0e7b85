//! The protocol by which one thread has a CPU's stripe to itself, without being on that CPU.
//!
//! Every stripe begins with a *stop word*: 0, or who has stopped the CPU, by a
//! [turn](super::turn).
//!
//! ```text
//! stop    the word becomes ours: a turn is taken on it (acquire)
//! fence   every window that had read 0 there is aborted, or has committed
//! own     the words of the stripe are ours: every later window sees the word and leaves
//! start   the turn ends, the word is 0 (release): the next window sees what we did
//! ```
//!
//! Windows read the word inside, after their check of the CPU. The fence must be one that aborts
//! windows: `MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ`, or having run on that CPU oneself. It reaches
//! this process only, so the words of a stripe that another process shares are not ours then.
//!
//! A thread that finds its CPU stopped never waits: it does its operation on an overflow stripe.
//! Those who want to stop the same CPU wait for each other: in private memory however long that
//! takes, in shared memory for a second.

use super::geometry::Index;
use super::site::Site;
use super::stats::FENCES;
use super::turn::{Owner, Turn};
use crate::error::{Error, Result};
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::sys::{cpus, membarrier};
use core::ptr;
use rustix::io::Errno;

/// How windows are fenced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fence {
    Membarrier,
    /// By running on the CPU in question: what was in a window there is preempted, hence aborted.
    Affinity,
}

/// The environment variable that forces one: `membarrier` or `affinity`.
const VARIABLE: &str = "UNMERGED_PERCPU_FENCE";

/// The way of this process: membarrier, once it is registered, where the kernel has it.
fn fence_kind() -> Fence {
    /// 0: not looked at yet; 1: membarrier; 2: affinity.
    static KIND: AtomicU32 = AtomicU32::new(0);
    match KIND.load(Ordering::Relaxed) {
        1 => Fence::Membarrier,
        2 => Fence::Affinity,
        _ => {
            let forced = std::env::var(VARIABLE).is_ok_and(|wanted| wanted == "affinity");
            let works = !forced && membarrier::register(membarrier::Fence::Rseq).is_ok();
            KIND.store(if works { 1 } else { 2 }, Ordering::Relaxed);
            if works { Fence::Membarrier } else { Fence::Affinity }
        }
    }
}

/// Aborts every window of this process that is under way on `cpu`, or on every CPU.
fn fence(operation: &'static str, cpu: Option<u32>) -> Result<()> {
    FENCES.count();
    let failed = |errno| match cpu {
        Some(cpu) => Error::with(operation, errno, format_args!("the fence of CPU {cpu}")),
        None => Error::with(operation, errno, format_args!("the fence of all CPUs")),
    };
    if fence_kind() == Fence::Membarrier {
        let done = match cpu {
            Some(cpu) => membarrier::fence_cpu(cpu),
            None => membarrier::fence(membarrier::Fence::Rseq),
        };
        match done {
            // A CPU that is not there runs no window.
            Ok(()) | Err(Errno::NXIO) => return Ok(()),
            // A filter that came later than the registration.
            Err(Errno::PERM | Errno::NOSYS | Errno::INVAL) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
    match cpu {
        Some(cpu) => cpus::visit([cpu]),
        None => cpus::visit(cpus::Ids::possible().iter()),
    }
    .map_err(failed)
}

impl Site {
    /// Has the stripe of `cpu` to itself while `own` runs: no window of this process is in it or
    /// enters it, and the words of this cell on that stripe may be read and written.
    ///
    /// # Errors
    ///
    /// EINVAL for a CPU id out of range, EDEADLK if this thread has stopped it already, EBUSY if
    /// another process keeps it stopped, EPERM where there is no fence: the kernel has no membarrier
    /// and this thread may not run on that CPU.
    pub(super) fn exclusive<R>(
        &self,
        operation: &'static str,
        cpu: u32,
        own: impl FnOnce(usize) -> R,
    ) -> Result<R> {
        let cpus = self.geometry.cpus;
        if cpu >= cpus {
            let numbers = format_args!("CPU {cpu}; there are stripes for 0 to {}", cpus - 1);
            return Err(Error::with(operation, Errno::INVAL, numbers));
        }
        let word = self.stop_of(cpu);
        let by_this_thread = || {
            let numbers = format_args!("CPU {cpu} is stopped by this thread already");
            Error::with(operation, Errno::DEADLK, numbers)
        };
        let turn = if self.shared {
            Turn::wait_shared(word).map_err(|owner| {
                if owner == Owner::this_thread() {
                    return by_this_thread();
                }
                let numbers = format_args!("CPU {cpu} is stopped by {owner} since a second");
                Error::with(operation, Errno::BUSY, numbers)
            })
        } else {
            Turn::wait_private(word).ok_or_else(by_this_thread)
        };
        let _turn = turn?;
        // A concurrency id can be anybody's on any CPU.
        fence(operation, (self.geometry.index == Index::CpuId).then_some(cpu))?;
        Ok(own(self.on_stripe(cpu)))
    }

    /// Whether nobody has stopped `cpu`: not any more, or in a process that this one was forked
    /// from, whose thread will not start it here. Then it is started.
    #[cold]
    pub(super) fn was_forsaken(&self, cpu: u32) -> bool {
        let word = self.stop_of(cpu % self.geometry.cpus);
        let turn = if self.shared { Turn::take_shared(word) } else { Turn::take_private(word) };
        turn.is_some()
    }

    fn stop_of(&self, cpu: u32) -> &AtomicU64 {
        let word = ptr::with_exposed_provenance::<AtomicU64>(self.stop_word(cpu));
        // SAFETY: the first word of a stripe, mapped as long as the cell is; windows read it,
        // atomics write it.
        unsafe { &*word }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::percpu::{Area, AreaBuilder, Implementation, implementation};

    #[test]
    fn both_fences_work_here() {
        let here = cpus::current();
        cpus::visit([here]).unwrap();
        fence("test", Some(here)).unwrap();
        fence("test", None).unwrap();
    }

    /// The stop words of an area as `owner` has left them, and a word in it.
    fn stopped_by(owner: u64, area: Area<'_>) -> (Vec<&AtomicU64>, bool) {
        let cell = area.alloc(8).unwrap();
        let (site, _) = cell.parts();
        let stops = (0..site.geometry.cpus).map(|cpu| {
            let word = ptr::with_exposed_provenance::<AtomicU64>(site.stop_word(cpu));
            // SAFETY: the stop word of a mapped stripe.
            unsafe { &*word }
        });
        let stops: Vec<_> = stops.collect();
        stops.iter().for_each(|stop| stop.store(owner, Ordering::Relaxed));
        let word = cell.word::<u64>(0).unwrap();
        (stops, word.fetch_add(1).unwrap().stripe.overflow)
    }

    /// A thread of another process, here init's, has stopped every CPU.
    #[test]
    fn another_process_is_not_taken_for_gone() {
        const INIT: u64 = 1 << 32 | 1;
        let mapped = AreaBuilder::new().memory_file("stopped").unwrap();
        let (stops, on_overflow) = stopped_by(INIT, mapped.area());
        assert!(on_overflow);
        assert!(stops.iter().all(|stop| stop.load(Ordering::Relaxed) == INIT));
        // Nor is it waited for without end.
        let word = mapped.area().alloc(8).unwrap().word::<u64>(0).unwrap();
        let error = word.with_exclusive(0, |_| unreachable!()).unwrap_err();
        assert_eq!(error.raw_os_error(), libc::EBUSY, "{error}");
        assert!(error.to_string().contains("thread 1 of process 1"), "{error}");
    }

    /// A process that was forked while another thread had stopped every concurrency id.
    #[test]
    fn the_stripe_of_a_concurrency_id_is_started() {
        let Ok(mapped) = AreaBuilder::new().index(Index::MmCid).private() else { return };
        let (stops, on_overflow) = stopped_by(1, mapped.area());
        if implementation() != Implementation::Portable {
            assert!(!on_overflow);
            assert!(stops.iter().any(|stop| stop.load(Ordering::Relaxed) == 0));
        }
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::sync::model;
    use loom::cell::UnsafeCell;
    use loom::sync::{Arc, Mutex};
    use loom::thread;

    /// One CPU. Its lock stands for the kernel: a commit is one step, and a fence aborts whatever
    /// window has begun before it.
    struct Cpu {
        fences: Mutex<u32>,
        stop: AtomicU64,
        word: UnsafeCell<u32>,
    }
    // SAFETY: the word is written by windows of one thread and by who has stopped it: loom checks.
    unsafe impl Sync for Cpu {}

    /// A window that adds 1; whether it committed.
    fn window(cpu: &Cpu) -> bool {
        let begun = *cpu.fences.lock().unwrap();
        if cpu.stop.load(Ordering::Acquire) != 0 {
            return false;
        }
        let fences = cpu.fences.lock().unwrap();
        let goes_on = *fences == begun;
        if goes_on {
            cpu.word.with_mut(|word| unsafe { *word += 1 });
        }
        goes_on
    }

    /// A thread on the CPU, and one that takes what is there, twice. Fails when the end of the turn is
    /// relaxed, or without the fence.
    #[test]
    fn the_stripe_is_ours() {
        model(|| {
            let cpu = Arc::new(Cpu {
                fences: Mutex::new(0),
                stop: AtomicU64::new(0).ready(),
                word: UnsafeCell::new(0),
            });
            let worker = thread::spawn({
                let cpu = cpu.clone();
                move || (0..2).filter(|_| window(&cpu)).count() as u32
            });
            let taker = thread::spawn({
                let cpu = cpu.clone();
                move || {
                    let take = || {
                        let turn = Turn::take(&cpu.stop, Owner(1), |_| false);
                        assert!(turn.is_some());
                        *cpu.fences.lock().unwrap() += 1;
                        cpu.word.with_mut(|word| unsafe { core::mem::take(&mut *word) })
                    };
                    take() + take()
                }
            });
            let (added, taken) = (worker.join().unwrap(), taker.join().unwrap());
            let left = cpu.word.with(|word| unsafe { *word });
            assert_eq!(added, taken + left);
        });
    }
}
