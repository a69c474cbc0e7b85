//! What this machine offers, for a person and for a program.

use crate::sys::features::{Features, features};
use crate::sys::{gs, rseq, uring};
use crate::{futex2, percpu};
use core::fmt;

/// One facility of the kernel or the processor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feature {
    /// Its name, for instance `futex-waitv`.
    pub name: &'static str,
    /// The first kernel that has it.
    pub since: &'static str,
    /// Whether it works here.
    pub present: bool,
    /// More about it, or empty.
    pub detail: String,
}

/// The features of this machine, and which implementation each module chose by them.
///
/// It prints as a table.
///
/// ```
/// let probe = unmerged::probe();
/// println!("{probe}");
/// if !probe.has("futex-waitv") {
///     println!("64-bit waits go another way: {}", probe.futex2());
/// }
/// ```
#[derive(Debug, Clone)]
pub struct Probe {
    features: Vec<Feature>,
    percpu: percpu::Implementation,
    futex2: futex2::Implementation,
}

/// Looks at the machine once per process, lets the modules choose, and tells.
pub fn probe() -> Probe {
    Probe {
        features: list(features()),
        percpu: percpu::implementation(),
        futex2: futex2::implementation(),
    }
}

/// The features by name. The names are those that `UNMERGED_REQUIRE` takes in the tests.
fn list(features: &Features) -> Vec<Feature> {
    let f = features;
    let feature = |name, since, present, detail: String| Feature { name, since, present, detail };
    let plain = |name, since, present| feature(name, since, present, String::new());
    let size = f.rseq_size;
    let area = match f.rseq {
        rseq::Owner::Libc => format!("area of libc, {size} bytes in use"),
        rseq::Owner::Own => format!("area of our own, {size} bytes in use"),
        rseq::Owner::Nobody => "refused, or not in this kernel".to_owned(),
    };
    let claim = match f.gs {
        gs::Claim::Free => "%gs is free".to_owned(),
        gs::Claim::NoFsgsbase => String::new(),
        gs::Claim::ReadBackFailed => "promised, but a written base has no effect".to_owned(),
        gs::Claim::Foreign { base } => format!("%gs belongs to somebody else: base {base:#x}"),
    };
    // Asked here and not with the others: who does not want to know need not open a ring.
    let (rings, why) = match uring::has_futex_wait() {
        Ok(rings) => (rings, String::new()),
        Err(errno) => (false, format!("refused: {errno}")),
    };
    let (possible, end) = (f.cpus.iter().count(), f.cpus.end());
    vec![
        feature("cpus", "", true, format!("{possible} possible, ids below {end}")),
        feature("rseq", "4.18", f.rseq != rseq::Owner::Nobody, area),
        plain("rseq-extended", "6.3", f.rseq_kernel_size >= 28),
        plain("rseq-v2", "7.0", f.rseq_kernel_size >= 33),
        feature("fsgsbase", "5.9", f.gs == gs::Claim::Free, claim),
        plain("membarrier", "4.14", f.fence),
        plain("membarrier-rseq", "5.10", f.fence_rseq),
        plain("membarrier-global", "4.16", f.fence_global),
        plain("futex-waitv", "5.16", f.waitv),
        plain("futex2", "6.7", f.futex2),
        plain("futex-numa", "6.16", f.futex_numa),
        feature("io-uring", "6.7", rings, why),
        plain("memfd-noexec", "6.3", f.noexec),
        plain("seal-future-write", "5.1", f.seal_future_write),
        plain("pidfd", "5.3", f.pidfd),
        plain("schedstat", "2.6.9", f.schedstat),
        feature("huge-pages", "2.6", f.huge_pages > 0, format!("{} of 2 MiB", f.huge_pages)),
    ]
}

impl Probe {
    /// Each feature.
    pub fn features(&self) -> &[Feature] {
        &self.features
    }

    /// Whether the feature of this name works here; no for a name that is none.
    pub fn has(&self, name: &str) -> bool {
        self.features.iter().any(|feature| feature.name == name && feature.present)
    }

    /// What [`percpu`] chose.
    pub fn percpu(&self) -> percpu::Implementation {
        self.percpu
    }

    /// What [`futex2`] chose for 64 bits.
    pub fn futex2(&self) -> futex2::Implementation {
        self.futex2
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Feature { name, since, present, detail } in &self.features {
            let answer = if *present { "yes" } else { "no" };
            let line = format!("{name:<18} {answer:<4} {since:<7} {detail}");
            writeln!(f, "{}", line.trim_end())?;
        }
        writeln!(f, "percpu by {} (UNMERGED_PERCPU=gs|rseq|portable forces one)", self.percpu)?;
        writeln!(
            f,
            "futex2 on 64 bits by {} (UNMERGED_FUTEX2=shadow forces the other)",
            self.futex2
        )?;
        match futex2::decided_fences() {
            Some(fences) => write!(f, "futex2 counts with {fences} fences")?,
            None => write!(f, "futex2 has not chosen its fences yet")?,
        }
        writeln!(f, " (UNMERGED_FUTEX2_FENCE=symmetric|membarrier forces them)")?;
        let stats = if self.has("schedstat") { "schedstat" } else { "nothing: unsupported" };
        writeln!(f, "task_shared statistics by {stats}")?;
        write!(f, "mshare regions in memory files, served by any participant")
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_table_with_a_line_for_each_feature_and_choice() {
        let probe = probe();
        let table = probe.to_string();
        assert_eq!(table.lines().count(), probe.features().len() + 5);
        assert!(table.contains("futex-waitv") && table.contains("UNMERGED_PERCPU"));
        assert!(probe.has("cpus") && !probe.has("magic"));
        let windows = probe.percpu() != percpu::Implementation::Portable;
        assert!(!windows || probe.has("rseq"));
    }
}
