//! Entries of the auxiliary vector (`uapi/linux/auxvec.h`, `arch/x86/uapi/asm/hwcap2.h`).

/// `AT_HWCAP2`: second word of processor capabilities.
pub const AT_HWCAP2: u64 = 26;
/// `AT_RSEQ_FEATURE_SIZE`: bytes of `struct rseq` that the kernel fills (since Linux 6.3).
pub const AT_RSEQ_FEATURE_SIZE: u64 = 27;
/// `AT_RSEQ_ALIGN`: alignment that the kernel asks of the area (since Linux 6.3).
pub const AT_RSEQ_ALIGN: u64 = 28;

/// `HWCAP2_FSGSBASE`: `rdgsbase` and `wrgsbase` work in user space (since Linux 5.9).
pub const HWCAP2_FSGSBASE: u64 = 1 << 1;
