//! Which CPU ids this machine can ever use.
//!
//! Stripes are sized by *possible* ids: `available_parallelism`, `nproc` and musl's
//! `sysconf` follow the affinity mask or the online set, and a thread may run on an id
//! that neither of them counts. Ids can be sparse, and go up to 8191.

use rustix::io::{Errno, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// One past the largest CPU id that a Linux kernel can be built for.
pub const MAX_IDS: u32 = 8192;

/// Where the kernel lists the possible ids.
const POSSIBLE: &str = "/sys/devices/system/cpu/possible";

/// The possible CPU ids, as ascending ranges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ids(Vec<core::ops::RangeInclusive<u32>>);

impl Ids {
    /// Parses the kernel's list format, for instance `0-3,8,10-11`.
    ///
    /// `None` for anything else: an empty list, a descending or overlapping range, an id
    /// over 8191.
    pub fn parse(list: &str) -> Option<Self> {
        let mut ranges = Vec::new();
        let mut least = 0;
        for part in list.trim().split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let first: u32 = first.parse().ok()?;
            let last: u32 = last.parse().ok()?;
            if first < least || last < first || last >= MAX_IDS {
                return None;
            }
            least = last + 1;
            ranges.push(first..=last);
        }
        Some(Self(ranges))
    }

    /// The possible ids of this machine.
    ///
    /// Where sysfs is not mounted: all ids up to the last one that `sysconf` or the
    /// affinity mask tells of.
    pub fn possible() -> Self {
        let listed = std::fs::read_to_string(POSSIBLE).ok();
        listed.as_deref().and_then(Self::parse).unwrap_or_else(Self::without_sysfs)
    }

    fn without_sysfs() -> Self {
        // SAFETY: sysconf reads a number.
        let configured = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_CONF) };
        let configured = u32::try_from(configured).unwrap_or(1).max(1);
        let allowed = sched_getaffinity(None).ok().and_then(|set| {
            (0..CpuSet::MAX_CPU).rev().find(|&id| set.is_set(id)).map(|id| id as u32 + 1)
        });
        let end = configured.max(allowed.unwrap_or(1)).min(MAX_IDS);
        Self(vec![0..=end - 1])
    }

    /// One past the last id: what an array indexed by id must hold.
    pub fn end(&self) -> u32 {
        self.0.last().map_or(1, |range| range.end() + 1)
    }

    /// Each possible id, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().flat_map(Clone::clone)
    }
}

/// The CPU of the calling thread as libc tells it (rseq, vDSO or system call); stale at
/// once, so good for choosing a stripe that is updated with atomics and nothing else.
#[inline]
pub fn current() -> u32 {
    // SAFETY: sched_getcpu takes nothing and touches no memory of ours.
    u32::try_from(unsafe { libc::sched_getcpu() }).unwrap_or(0)
}

/// How often another thread may move this one while it is on its way to a CPU.
const MOVES: u32 = 64;

/// How often, a millisecond apart, a CPU that is said to be online may refuse this thread before
/// that is believed.
const REFUSALS: u32 = 200;

/// `sched_setaffinity(0, …)` for each of `cpus`, then back — runs on each of them for a moment.
/// One that is offline is passed over: nothing runs there. Where somebody else has set the
/// affinity of this thread meanwhile, theirs stays.
///
/// # Errors
///
/// EPERM if this thread may not run on one that is online; EAGAIN if somebody keeps moving it.
pub fn visit(cpus: impl IntoIterator<Item = u32>) -> Result<()> {
    struct Home {
        was: CpuSet,
        now: CpuSet,
    }
    impl Drop for Home {
        fn drop(&mut self) {
            if sched_getaffinity(None).is_ok_and(|set| set == self.now) {
                let _ = sched_setaffinity(None, &self.was);
            }
        }
    }
    let was = sched_getaffinity(None)?;
    let mut home = Home { was, now: was };
    for cpu in cpus {
        if cpu as usize >= CpuSet::MAX_CPU {
            return Err(Errno::PERM);
        }
        let mut only = CpuSet::new();
        only.set(cpu as usize);
        let (mut moves, mut refused) = (0, 0);
        loop {
            // What somebody else has set is where to go back to.
            let set = sched_getaffinity(None)?;
            if set != home.now {
                home.was = set;
            }
            match sched_setaffinity(None, &only) {
                Ok(()) => home.now = only,
                Err(Errno::INVAL) if !is_online(cpu) => break,
                // On its way up or down it is online, and takes nobody.
                Err(Errno::INVAL) if refused < REFUSALS => {
                    refused += 1;
                    super::thread::sleep_us(1000);
                    continue;
                }
                Err(_) => return Err(Errno::PERM),
            }
            if current() == cpu {
                break;
            }
            moves += 1;
            if moves == MOVES {
                return Err(Errno::AGAIN);
            }
        }
    }
    Ok(())
}

/// Is that CPU online? Without sysfs, yes.
fn is_online(cpu: u32) -> bool {
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online").ok();
    online.as_deref().and_then(Ids::parse).is_none_or(|ids| ids.iter().any(|id| id == cpu))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn sparse_list() {
        let ids = Ids::parse("0-3,8,10-11\n").unwrap();
        assert_eq!(ids.iter().collect::<Vec<_>>(), [0, 1, 2, 3, 8, 10, 11]);
        assert_eq!(ids.end(), 12);
        assert_eq!(Ids::parse("8191").unwrap().end(), MAX_IDS);
    }

    #[test]
    fn garbage_is_refused() {
        for list in ["", "\n", "a", "3-1", "0-3,2", "0,,2", "0-", "-1", "8192", "0-99999999999"] {
            assert_eq!(Ids::parse(list), None, "{list:?}");
        }
    }

    #[test]
    fn this_machine() {
        let ids = Ids::possible();
        assert!(ids.iter().any(|id| id == current()), "{ids:?}");
        assert!(Ids::without_sysfs().end() > current());
    }
}
