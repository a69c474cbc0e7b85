//! membarrier(2), through `rustix`, with the commands that this crate uses.
//!
//! `Rseq` is the one command that also aborts the windows it meets; the plain private
//! command does not, whatever it is used for elsewhere (`kernel/sched/membarrier.c`).

use rustix::io::Result;
use rustix::thread::{Cpuid, MembarrierCommand, membarrier, membarrier_cpu, membarrier_query};

/// A fence in all running threads of this process, or of all registered processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fence {
    /// `MEMBARRIER_CMD_PRIVATE_EXPEDITED` (since Linux 4.14).
    Private,
    /// `MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ`: also aborts windows (since Linux 5.10).
    Rseq,
    /// `MEMBARRIER_CMD_GLOBAL_EXPEDITED`: every process that registered (since Linux 4.16).
    Global,
}

impl Fence {
    const fn commands(self) -> (MembarrierCommand, MembarrierCommand) {
        use MembarrierCommand as C;
        match self {
            Self::Private => (C::PrivateExpedited, C::RegisterPrivateExpedited),
            Self::Rseq => (C::PrivateExpeditedRseq, C::RegisterPrivateExpeditedRseq),
            Self::Global => (C::GlobalExpedited, C::RegisterGlobalExpedited),
        }
    }
}

/// `membarrier(MEMBARRIER_CMD_QUERY)` — does this kernel know the command?
pub fn is_available(fence: Fence) -> bool {
    membarrier_query().contains_command(fence.commands().0)
}

/// `membarrier(MEMBARRIER_CMD_REGISTER_…)` — announces that this process will use, or for
/// `Global` will be reached by, the fence. Kept over fork, cleared by exec.
///
/// # Errors
///
/// EINVAL where the kernel does not know the command, ENOSYS where it has no membarrier.
pub fn register(fence: Fence) -> Result<()> {
    membarrier(fence.commands().1)
}

/// `membarrier(MEMBARRIER_CMD_…)` — the fence.
///
/// # Errors
///
/// EPERM before [`register`], EINVAL where the kernel does not know the command.
pub fn fence(fence: Fence) -> Result<()> {
    membarrier(fence.commands().0)
}

/// `membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ, MEMBARRIER_CMD_FLAG_CPU, cpu)` — the
/// fence on one CPU (since Linux 5.10).
///
/// # Errors
///
/// As [`fence`]; ENXIO on some kernels for a CPU that is not there, which needs no fence.
pub fn fence_cpu(cpu: u32) -> Result<()> {
    // SAFETY: the kernel checks the number; one that is no CPU is answered, not believed.
    let cpu = unsafe { Cpuid::from_raw(cpu) };
    membarrier_cpu(Fence::Rseq.commands().0, cpu)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use rustix::io::Errno;

    #[test]
    fn register_then_fence() {
        for kind in [Fence::Private, Fence::Rseq, Fence::Global] {
            if !is_available(kind) {
                assert_eq!(register(kind), Err(Errno::INVAL));
                continue;
            }
            register(kind).unwrap();
            fence(kind).unwrap();
        }
    }

    #[test]
    fn one_cpu_and_an_absent_one() {
        if !is_available(Fence::Rseq) {
            return;
        }
        register(Fence::Rseq).unwrap();
        fence_cpu(crate::sys::cpus::current()).unwrap();
        assert!(matches!(fence_cpu(8000), Ok(()) | Err(Errno::NXIO)));
    }
}
