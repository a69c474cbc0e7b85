//! rseq(2): the per-thread area and the critical-section descriptor
//! (`uapi/linux/rseq.h`), and the glibc symbols that tell who owns the area.

use core::mem::{align_of, offset_of, size_of};

/// Number of rseq(2) on x86-64 (since Linux 4.18).
pub const SYS_RSEQ: i64 = 334;

/// `RSEQ_FLAG_UNREGISTER`, the only flag of the call that we use.
pub const FLAG_UNREGISTER: i32 = 1;

/// The signature that precedes every abort address on x86-64. It is the one that glibc
/// registers; in the instruction stream it is the displacement of a trapping `ud1`.
pub const SIGNATURE: u32 = 0x5305_3053;

/// `cpu_id` of a thread that has not registered.
pub const CPU_ID_UNINITIALIZED: u32 = u32::MAX;
/// `cpu_id` of a thread whose registration was refused.
pub const CPU_ID_REGISTRATION_FAILED: u32 = u32::MAX - 1;

/// Size of the area as merged in Linux 4.18, and the smallest one that the call accepts.
pub const ORIG_SIZE: u32 = 32;
/// Bytes in use when the kernel says nothing of `AT_RSEQ_FEATURE_SIZE`.
pub const ORIG_FEATURE_SIZE: u32 = 20;

/// `struct rseq`: written by the kernel, read by its thread. User code may write
/// `rseq_cs` and nothing else; from Linux 7.1 on a write to another field ends the process.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Rseq {
    /// Always a valid index: 0 before registration.
    pub cpu_id_start: u32,
    /// The CPU of the thread, or one of the `CPU_ID_*` values.
    pub cpu_id: u32,
    /// Address of the active descriptor, or 0.
    pub rseq_cs: u64,
    /// Must stay 0.
    pub flags: u32,
    /// NUMA node (since Linux 6.3, when the active size covers it).
    pub node_id: u32,
    /// Dense id within the address space (since Linux 6.3, when the active size covers it).
    pub mm_cid: u32,
    /// Time-slice extension (since Linux 7.0).
    pub slice_ctrl: u32,
    /// First byte past the fields above; Linux 7.0 reports a feature size of 33.
    pub end: [u8; 32],
}

/// Offset of [`Rseq::cpu_id_start`], for asm.
pub const CPU_ID_START: usize = offset_of!(Rseq, cpu_id_start);
/// Offset of [`Rseq::cpu_id`], for asm.
pub const CPU_ID: usize = offset_of!(Rseq, cpu_id);
/// Offset of [`Rseq::mm_cid`], for asm.
pub const MM_CID: usize = offset_of!(Rseq, mm_cid);
/// Offset of [`Rseq::rseq_cs`], for asm.
pub const RSEQ_CS: usize = offset_of!(Rseq, rseq_cs);

/// `struct rseq_cs`: the descriptor of one window `[start_ip, start_ip + post_commit_offset)`.
#[derive(Debug)]
#[repr(C, align(32))]
pub struct RseqCs {
    /// Must be 0.
    pub version: u32,
    /// Must be 0.
    pub flags: u32,
    /// First instruction of the window.
    pub start_ip: u64,
    /// Length of the window in bytes; the commit is its last instruction.
    pub post_commit_offset: u64,
    /// Where an interrupted thread goes on; outside the window, behind [`SIGNATURE`].
    pub abort_ip: u64,
}

const _: () = {
    assert!(size_of::<Rseq>() == 64 && align_of::<Rseq>() == 64);
    assert!(CPU_ID_START == 0 && CPU_ID == 4 && RSEQ_CS == 8);
    assert!(offset_of!(Rseq, flags) == 16);
    assert!(offset_of!(Rseq, node_id) == 20);
    assert!(offset_of!(Rseq, mm_cid) == 24);
    assert!(offset_of!(Rseq, slice_ctrl) == 28);
    assert!(offset_of!(Rseq, end) == 32);
    assert!(size_of::<RseqCs>() == 32 && align_of::<RseqCs>() == 32);
    assert!(offset_of!(RseqCs, start_ip) == 8);
    assert!(offset_of!(RseqCs, post_commit_offset) == 16);
    assert!(offset_of!(RseqCs, abort_ip) == 24);
};
