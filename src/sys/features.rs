//! What this machine offers, looked at once per process.

use super::{cpus, futex, gs, membarrier, memfd, pidfd, rseq};
use crate::sync::Published;

/// The facilities that the crate's implementations choose by.
#[derive(Debug)]
pub struct Features {
    /// Who owns the rseq area.
    pub rseq: rseq::Owner,
    /// Bytes of it that the kernel fills; 0 without rseq.
    pub rseq_size: u32,
    /// Bytes that the kernel could fill, whatever libc registered.
    pub rseq_kernel_size: u32,
    /// What became of the claim on `%gs`.
    pub gs: gs::Claim,
    /// The private fence (membarrier).
    pub fence: bool,
    /// The private fence that aborts windows.
    pub fence_rseq: bool,
    /// The fence across registered processes.
    pub fence_global: bool,
    /// futex_waitv(2).
    pub waitv: bool,
    /// futex_wait(2), futex_wake(2), futex_requeue(2).
    pub futex2: bool,
    /// `FUTEX2_NUMA`.
    pub futex_numa: bool,
    /// `MFD_NOEXEC_SEAL`.
    pub noexec: bool,
    /// `F_SEAL_FUTURE_WRITE`.
    pub seal_future_write: bool,
    /// pidfd_open(2).
    pub pidfd: bool,
    /// `/proc/self/schedstat`: the kernel keeps run delay and run count.
    pub schedstat: bool,
    /// Huge pages of 2 MiB that the administrator has reserved.
    pub huge_pages: u64,
    /// Possible CPU ids.
    pub cpus: cpus::Ids,
}

/// The number in a file of one number.
fn number(path: &str) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

impl Features {
    fn look() -> Self {
        Self {
            rseq: rseq::owner(),
            rseq_size: rseq::size(),
            rseq_kernel_size: rseq::kernel_size(),
            gs: gs::claim(),
            fence: membarrier::is_available(membarrier::Fence::Private),
            fence_rseq: membarrier::is_available(membarrier::Fence::Rseq),
            fence_global: membarrier::is_available(membarrier::Fence::Global),
            waitv: futex::has_waitv(),
            futex2: futex::has_futex2(),
            futex_numa: futex::has_numa(),
            noexec: memfd::has_noexec(),
            seal_future_write: memfd::has_future_write(),
            pidfd: pidfd::open(std::process::id()).is_ok(),
            schedstat: std::fs::metadata("/proc/self/schedstat").is_ok(),
            huge_pages: number("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
                .unwrap_or(0),
            cpus: cpus::Ids::possible(),
        }
    }
}

/// What this machine offers. The first calls look, with some twenty system calls, and one of
/// them decides for the process; they allocate, so they are not for signal handlers.
pub fn features() -> &'static Features {
    static FEATURES: Published<Features> = Published::new();
    FEATURES.get_or_make(Features::look)
}
