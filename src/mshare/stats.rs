//! What a region costs, and whom.

use super::held::HAS_AGENT;
use super::region::Region;
use super::rights::Rights;
use crate::error::Result;
use crate::sync::Ordering;
use core::time::Duration;
use std::collections::HashMap;

/// A process that has a region.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Participant {
    /// Its process id.
    pub pid: u32,
    /// What it may do.
    pub rights: Rights,
    /// Whether a thread of it follows.
    pub has_agent: bool,
    /// The number of the last change that it follows.
    pub generation: u64,
    /// Bytes of its page tables (`VmPTE`), for this region and all else that it maps, those that it
    /// shares with others among them; `None` if the kernel does not let us look.
    pub page_tables: Option<u64>,
    /// Bytes of huge pages (hugetlb) that it has mapped by itself; those behind a page table
    /// that it shares with another process do not count.
    pub huge_pages: Option<u64>,
    /// Its page faults so far that needed no disk, and those that did.
    pub faults: Option<(u64, u64)>,
}

/// What a region costs, and whom; from [`Region::stats`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// The processes.
    pub participants: Vec<Participant>,
    /// Bytes of page tables of all of them: for this region and all else that each maps, and a
    /// table that hugetlb pages share once for each. The kernel does not tell those of one region,
    /// so what a region costs is the difference between before and after.
    pub page_tables: u64,
    /// Bytes of the region in memory that this process has mapped, in pages of any size.
    pub resident: u64,
    /// Bytes of them that are mapped as huge pages by this process.
    pub mapped_huge: u64,
    /// Bytes of memory behind the region, whoever maps it, or none does.
    pub memory: u64,
    /// Number of changes so far.
    pub generation: u64,
    /// Parts that are not plain memory, of at most 1024.
    pub parts: usize,
    /// Objects whose descriptors this process has.
    pub objects: usize,
    /// Participants that were found dead, by anybody.
    pub reaped: u64,
    /// How many times a process began to serve.
    pub epoch: u64,
    /// How often this process waited for the others. What it counts ends with it, and nobody counts
    /// for all processes.
    pub waits: u64,
    /// How often not all of them followed in time.
    pub incomplete: u64,
    /// How long it waited on the average.
    pub mean_wait: Duration,
    /// How long at most.
    pub longest_wait: Duration,
    /// How many of these waits took so long: number `n` those of less than 2^`n` microseconds and
    /// not less than half of that, the last one all that took longer.
    pub waits_by_time: Vec<u64>,
}

impl Stats {
    /// A time within which at least this share of the waits, from 0 to 1, were over; it is less
    /// than twice the least such time. `None` without any, or beyond half a minute.
    pub fn wait_quantile(&self, share: f64) -> Option<Duration> {
        let all: u64 = self.waits_by_time.iter().sum();
        let wanted = ((share * all as f64).ceil() as u64).max(1);
        let mut counted = 0;
        let length = self.waits_by_time.iter().position(|&count| {
            counted += count;
            counted >= wanted
        })?;
        (length + 1 < self.waits_by_time.len()).then(|| Duration::from_micros(1 << length))
    }
}

impl Region {
    /// What the region costs, and whom. It reads `/proc` for each participant, and all of this
    /// process's mappings: it is not for a fast path.
    ///
    /// # Errors
    ///
    /// EBADMSG if the log says what no log says.
    pub fn stats(&self) -> Result<Stats> {
        const OP: &str = "mshare::Region::stats";
        let held = self.attachment.held();
        let ledger = held.ledger();
        let (generation, layout) = ledger.layout(OP, held.shape.size)?;
        let participants: Vec<_> = ledger
            .participants()
            .present()
            .into_iter()
            .map(|token| {
                let status = status(token.pid());
                let rights = ledger.participants().rights(token);
                Participant {
                    pid: token.pid(),
                    rights: Rights::of_bits(rights.into()),
                    has_agent: rights & HAS_AGENT != 0,
                    generation: ledger.participants().followed(token),
                    page_tables: status.get("VmPTE").copied(),
                    huge_pages: status.get("HugetlbPages").copied(),
                    faults: faults(token.pid()),
                }
            })
            .collect();
        let end = self.base().addr().get() + self.size();
        let (resident, mapped_huge) = mapped(self.base().addr().get(), end);
        let mut memory = blocks(&held.files.data);
        let objects = held.objects.enter(Vec::new).clone();
        memory +=
            objects.iter().filter(|o| o.kind.is_memory()).map(|o| blocks(&*o.file)).sum::<u64>();
        let waits = held.waits.count.load(Ordering::Relaxed);
        let total = held.waits.nanoseconds.load(Ordering::Relaxed);
        Ok(Stats {
            page_tables: participants.iter().filter_map(|p| p.page_tables).sum(),
            participants,
            resident,
            mapped_huge,
            memory,
            generation,
            parts: layout.len(),
            objects: objects.len(),
            reaped: ledger.reaped.load(Ordering::Relaxed),
            epoch: ledger.epoch.load(Ordering::Relaxed),
            waits,
            incomplete: held.waits.incomplete.load(Ordering::Relaxed),
            mean_wait: Duration::from_nanos(total.checked_div(waits).unwrap_or(0)),
            longest_wait: Duration::from_nanos(held.waits.longest.load(Ordering::Relaxed)),
            waits_by_time: held.waits.by_time.iter().map(|n| n.load(Ordering::Relaxed)).collect(),
        })
    }
}

/// Bytes of a file that take room.
fn blocks(file: impl rustix::fd::AsFd) -> u64 {
    rustix::fs::fstat(file).map_or(0, |stat| stat.st_blocks.cast_unsigned() * 512)
}

/// The sizes of `/proc/PID/status`, in bytes.
fn status(pid: u32) -> HashMap<String, u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    sizes(text.lines())
}

/// Lines of a name, a number and kB.
fn sizes<'a>(lines: impl Iterator<Item = &'a str>) -> HashMap<String, u64> {
    lines
        .filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            let number = value.trim().strip_suffix(" kB")?.parse::<u64>().ok()?;
            Some((name.to_owned(), number.saturating_mul(1024)))
        })
        .collect()
}

fn faults(pid: u32) -> Option<(u64, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<_> = stat.rsplit(')').next()?.split_whitespace().collect();
    Some((fields.get(7)?.parse().ok()?, fields.get(9)?.parse().ok()?))
}

/// Of this process's mappings between two addresses: bytes that are in memory, and bytes that
/// are mapped as huge pages.
fn mapped(start: usize, end: usize) -> (u64, u64) {
    let text = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    let (mut resident, mut huge, mut inside) = (0, 0, false);
    for line in text.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if let Some((from, to)) = first.split_once('-') {
            let hex = |text| usize::from_str_radix(text, 16).ok();
            inside = matches!((hex(from), hex(to)), (Some(a), Some(b)) if a >= start && b <= end);
            continue;
        }
        if !inside {
            continue;
        }
        for (name, bytes) in sizes(core::iter::once(line)) {
            match name.as_str() {
                "Rss" => resident += bytes,
                "ShmemPmdMapped" | "FilePmdMapped" => huge += bytes,
                "Shared_Hugetlb" | "Private_Hugetlb" => {
                    resident += bytes;
                    huge += bytes;
                }
                _ => {}
            }
        }
    }
    (resident, huge)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn lines_of_sizes() {
        let text = "Name:\tcat\nVmPTE:\t      40 kB\nHugetlbPages:\t 2048 kB\nThreads:\t1\n: kB";
        let sizes = sizes(text.lines());
        assert_eq!((sizes["VmPTE"], sizes["HugetlbPages"], sizes.len()), (40 << 10, 2 << 20, 2));
        assert!(faults(std::process::id()).unwrap().0 > 0);
        assert_eq!(faults(u32::MAX), None);
    }
}
