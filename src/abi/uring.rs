//! io_uring as far as we ask it what it has (`uapi/linux/io_uring.h`).

use core::mem::{offset_of, size_of};

/// Number of io_uring_setup(2) (since Linux 5.1).
pub const SYS_IO_URING_SETUP: i64 = 425;
/// Number of io_uring_register(2) (since Linux 5.1).
pub const SYS_IO_URING_REGISTER: i64 = 427;
/// `IORING_REGISTER_PROBE` (since Linux 5.6).
pub const REGISTER_PROBE: u32 = 8;
/// `IO_URING_OP_SUPPORTED`: a flag of [`ProbeOp`].
pub const OP_SUPPORTED: u16 = 1;
/// `IORING_OP_FUTEX_WAIT` (since Linux 6.7).
pub const OP_FUTEX_WAIT: u8 = 51;
/// `IORING_OP_FUTEX_WAITV` (since Linux 6.7).
pub const OP_FUTEX_WAITV: u8 = 53;

/// Bytes of `struct io_uring_params`.
pub const PARAMS_BYTES: usize = 120;

/// Operations that a [`Probe`] has room for.
pub const PROBE_OPS: usize = 64;

/// `struct io_uring_probe_op`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct ProbeOp {
    /// Its number.
    pub op: u8,
    /// 0.
    pub reserved: u8,
    /// [`OP_SUPPORTED`].
    pub flags: u16,
    /// 0.
    pub reserved2: u32,
}

/// `struct io_uring_probe` with room for [`PROBE_OPS`]: all zeros when it is handed over.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Probe {
    /// The last operation of this kernel.
    pub last_op: u8,
    /// How many of `ops` were filled.
    pub ops_len: u8,
    /// 0.
    pub reserved: u16,
    /// 0.
    pub reserved2: [u32; 3],
    /// By number.
    pub ops: [ProbeOp; PROBE_OPS],
}

const _: () = {
    assert!(size_of::<ProbeOp>() == 8 && offset_of!(ProbeOp, flags) == 2);
    assert!(offset_of!(Probe, ops_len) == 1 && offset_of!(Probe, ops) == 16);
    assert!((OP_FUTEX_WAITV as usize) < PROBE_OPS && PROBE_OPS < 256);
};
