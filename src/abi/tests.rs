//! Our numbers against those of two other crates that state them.

use super::{auxv, futex2, robust, rseq, uring};
use core::mem::{offset_of, size_of};
use linux_raw_sys::{auxvec, general as raw, io_uring};

#[test]
fn call_numbers() {
    assert_eq!(rseq::SYS_RSEQ, i64::from(raw::__NR_rseq));
    assert_eq!(rseq::SYS_RSEQ, libc::SYS_rseq);
    assert_eq!(futex2::SYS_FUTEX, libc::SYS_futex);
    assert_eq!(futex2::SYS_FUTEX_WAITV, libc::SYS_futex_waitv);
    assert_eq!(futex2::SYS_FUTEX_WAKE, i64::from(raw::__NR_futex_wake));
    assert_eq!(futex2::SYS_FUTEX_WAIT, i64::from(raw::__NR_futex_wait));
    assert_eq!(futex2::SYS_FUTEX_REQUEUE, i64::from(raw::__NR_futex_requeue));
    assert_eq!(uring::SYS_IO_URING_SETUP, libc::SYS_io_uring_setup);
    assert_eq!(uring::SYS_IO_URING_REGISTER, libc::SYS_io_uring_register);
}

#[test]
fn futex_layout_and_flags() {
    assert_eq!(size_of::<futex2::FutexWaitv>(), size_of::<raw::futex_waitv>());
    assert_eq!(offset_of!(futex2::FutexWaitv, val), offset_of!(raw::futex_waitv, val));
    assert_eq!(offset_of!(futex2::FutexWaitv, uaddr), offset_of!(raw::futex_waitv, uaddr));
    assert_eq!(offset_of!(futex2::FutexWaitv, flags), offset_of!(raw::futex_waitv, flags));
    assert_eq!(futex2::OP_REQUEUE, raw::FUTEX_REQUEUE as i32);
    assert_eq!(futex2::OP_CMP_REQUEUE, raw::FUTEX_CMP_REQUEUE as i32);
    assert_eq!(futex2::OP_WAIT_BITSET, raw::FUTEX_WAIT_BITSET as i32);
    assert_eq!(futex2::OP_WAKE_BITSET, raw::FUTEX_WAKE_BITSET as i32);
    assert_eq!(futex2::OP_PRIVATE, raw::FUTEX_PRIVATE_FLAG as i32);
    assert_eq!(futex2::OP_CLOCK_REALTIME, raw::FUTEX_CLOCK_REALTIME as i32);
    assert_eq!(futex2::MATCH_ANY, raw::FUTEX_BITSET_MATCH_ANY);
    assert_eq!(futex2::SIZE_U8, raw::FUTEX2_SIZE_U8);
    assert_eq!(futex2::SIZE_U16, raw::FUTEX2_SIZE_U16);
    assert_eq!(futex2::SIZE_U32, raw::FUTEX2_SIZE_U32);
    assert_eq!(futex2::SIZE_U64, raw::FUTEX2_SIZE_U64);
    assert_eq!(futex2::NUMA, raw::FUTEX2_NUMA);
    assert_eq!(futex2::PRIVATE, raw::FUTEX2_PRIVATE);
    assert_eq!(futex2::WAITV_MAX, raw::FUTEX_WAITV_MAX as usize);
}

#[test]
fn auxiliary_vector() {
    assert_eq!(auxv::AT_HWCAP2, u64::from(auxvec::AT_HWCAP2));
    assert_eq!(auxv::AT_RSEQ_FEATURE_SIZE, u64::from(auxvec::AT_RSEQ_FEATURE_SIZE));
    assert_eq!(auxv::AT_RSEQ_ALIGN, u64::from(auxvec::AT_RSEQ_ALIGN));
}

#[test]
fn robust_list() {
    type Head = raw::robust_list_head;
    assert_eq!(size_of::<robust::RobustListHead>(), size_of::<Head>());
    assert_eq!(offset_of!(robust::RobustListHead, futex_offset), offset_of!(Head, futex_offset));
    assert_eq!(offset_of!(robust::RobustListHead, pending), offset_of!(Head, list_op_pending));
    assert_eq!(robust::OWNER_DIED, raw::FUTEX_OWNER_DIED);
    assert_eq!(robust::TID_MASK, raw::FUTEX_TID_MASK);
}

#[test]
fn what_a_ring_has() {
    use io_uring::{io_uring_op as op, io_uring_probe as Probe, io_uring_probe_op as ProbeOp};
    assert_eq!(uring::PARAMS_BYTES, size_of::<io_uring::io_uring_params>());
    assert_eq!(size_of::<uring::ProbeOp>(), size_of::<ProbeOp>());
    assert_eq!(offset_of!(uring::ProbeOp, flags), offset_of!(ProbeOp, flags));
    assert_eq!(offset_of!(uring::Probe, ops), size_of::<Probe>());
    let probe = io_uring::io_uring_register_op::IORING_REGISTER_PROBE;
    assert_eq!(uring::REGISTER_PROBE, probe as u32);
    assert_eq!(u32::from(uring::OP_SUPPORTED), io_uring::IO_URING_OP_SUPPORTED);
    assert_eq!(u32::from(uring::OP_FUTEX_WAIT), op::IORING_OP_FUTEX_WAIT as u32);
    assert_eq!(u32::from(uring::OP_FUTEX_WAITV), op::IORING_OP_FUTEX_WAITV as u32);
}
