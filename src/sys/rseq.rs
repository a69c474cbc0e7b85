//! rseq(2): who owns the area of each thread, how much of it is filled, and our own
//! registration where libc does none.
//!
//! libc owns the area if it exports `__rseq_offset` and `__rseq_size` with a size other
//! than 0 (glibc 2.35 and later, and distributions' backports); its threads are
//! registered before they run. Otherwise (musl, older glibc, `glibc.pthread.rseq=0`) the
//! area is ours, in the block of `arch`, and each thread registers at its first use.
//! A kernel that refuses (ENOSYS, EPERM under seccomp) is remembered for the process.
//!
//! How much is filled follows librseq, not a plain `size >= field`: glibc says 20 or 32
//! for reasons of its own, and both mean "what the kernel announces, 32 at the most".

use super::errno;
use crate::abi::auxv::{AT_RSEQ_ALIGN, AT_RSEQ_FEATURE_SIZE};
use crate::abi::rseq::{
    CPU_ID, CPU_ID_REGISTRATION_FAILED, CPU_ID_UNINITIALIZED, ORIG_FEATURE_SIZE, ORIG_SIZE, Rseq,
    SIGNATURE, SYS_RSEQ,
};
use crate::arch;
use crate::sync::{AtomicIsize, AtomicU32, Ordering};
use crate::sys::signals;
use core::ffi::CStr;
use core::mem::{align_of, size_of};
use rustix::io::{Errno, Result};

/// Who registered, or registers, the area of each thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// libc, before a thread runs.
    Libc,
    /// This crate, at a thread's first use.
    Own,
    /// Nobody: the kernel has no rseq, or refused it to this process.
    Nobody,
}

const UNKNOWN: u32 = 0;
const LIBC: u32 = 1;
const OWN: u32 = 2;
const NOBODY: u32 = 3;

/// State of the process: [`UNKNOWN`] until the first question.
static OWNER: AtomicU32 = AtomicU32::new(UNKNOWN);
/// Offset of the area from the thread pointer; written before [`OWNER`] is.
///
/// It is loaded before each window, right after the last one stored `rseq_cs`, which lies at 8 in an
/// area that is aligned to 32. So this word never has the same place in a page as that one: a load
/// that looks like an earlier store, as far as the low 12 bits of its address go, waits for it
/// (measured: a counter took 0.76 instead of 0.60 ns in one of two builds).
static AREA: Apart = Apart(AtomicIsize::new(0));

#[repr(align(32))]
struct Apart(AtomicIsize);
/// Bytes of the area that the kernel fills.
static SIZE: AtomicU32 = AtomicU32::new(0);

/// A number that libc exports under `name`, if it exports it.
fn libc_number<T: Copy>(name: &CStr) -> Option<T> {
    // SAFETY: dlsym takes a NUL-terminated name and answers with an address or null.
    let symbol = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    // SAFETY: the callers below name glibc's constants with the types that glibc gives them.
    (!symbol.is_null()).then(|| unsafe { symbol.cast::<T>().read() })
}

fn auxv(entry: u64) -> Option<u32> {
    // SAFETY: getauxval reads the auxiliary vector of this process.
    let value = unsafe { libc::getauxval(entry) };
    u32::try_from(value).ok().filter(|&value| value != 0)
}

/// Bytes in use of an area that libc registered with `libc_size`, on a kernel that
/// announces `kernel`.
fn active_size(libc_size: u32, kernel: Option<u32>) -> u32 {
    match libc_size {
        20 | 32 => kernel.unwrap_or(ORIG_FEATURE_SIZE).min(ORIG_SIZE),
        size => size,
    }
}

/// The length to register an area of ours with: over 32 only where the kernel fills more
/// than that and our block can hold it. `None` if the kernel asks more alignment than the
/// block has.
fn own_length(kernel_size: Option<u32>, kernel_align: Option<u32>) -> Option<u32> {
    if kernel_align.is_some_and(|align| align as usize > align_of::<Rseq>()) {
        return None;
    }
    let block = size_of::<Rseq>() as u32;
    match kernel_size {
        Some(size) if size > ORIG_SIZE && size <= block => Some(block),
        _ => Some(ORIG_SIZE),
    }
}

/// The length to register an area of 64 bytes with, wherever it is; `None` if the kernel
/// wants more alignment than 64.
fn length() -> Option<u32> {
    own_length(auxv(AT_RSEQ_FEATURE_SIZE), auxv(AT_RSEQ_ALIGN))
}

/// Finds the owner, once per process. Where nobody has registered, the calling thread is
/// registered here to see whether the kernel takes it.
pub fn owner() -> Owner {
    match OWNER.load(Ordering::Acquire) {
        LIBC => Owner::Libc,
        OWN => Owner::Own,
        NOBODY => Owner::Nobody,
        _ => detect(),
    }
}

#[cold]
fn detect() -> Owner {
    let kernel = auxv(AT_RSEQ_FEATURE_SIZE);
    let offset = libc_number::<isize>(c"__rseq_offset");
    let size = libc_number::<u32>(c"__rseq_size");
    if let (Some(offset), Some(size @ 1..)) = (offset, size) {
        return settle(Owner::Libc, offset, active_size(size, kernel));
    }
    match register() {
        Ok(()) | Err(Errno::BUSY) => {
            let size = own_length(kernel, auxv(AT_RSEQ_ALIGN))
                .map_or(0, |length| kernel.unwrap_or(ORIG_FEATURE_SIZE).min(length));
            settle(Owner::Own, arch::own_area_offset(), size)
        }
        Err(_) => settle(Owner::Nobody, 0, 0),
    }
}

/// Two threads that detect at once find the same.
fn settle(owner: Owner, area: isize, size: u32) -> Owner {
    AREA.0.store(area, Ordering::Relaxed);
    SIZE.store(size, Ordering::Relaxed);
    let state = match owner {
        Owner::Libc => LIBC,
        Owner::Own => OWN,
        Owner::Nobody => NOBODY,
    };
    OWNER.store(state, Ordering::Release);
    owner
}

/// Offset of the area from the thread pointer. Meaningful after [`owner`] has answered
/// something else than `Nobody`; the same for every thread and for good.
#[inline(always)]
pub fn area() -> isize {
    AREA.0.load(Ordering::Relaxed)
}

/// Bytes of the area that the kernel fills, 0 without rseq: `node_id` is there from 24 on,
/// `mm_cid` from 28, the time-slice word from 33.
pub fn size() -> u32 {
    if owner() == Owner::Nobody { 0 } else { SIZE.load(Ordering::Relaxed) }
}

/// Bytes of an area that the kernel could fill, whatever libc registered: what it announces
/// since Linux 6.3.
pub fn kernel_size() -> u32 {
    auxv(AT_RSEQ_FEATURE_SIZE).unwrap_or(ORIG_FEATURE_SIZE)
}

/// Sees to it that the calling thread is registered; whether it is, now.
///
/// A thread of libc's that is not (`clone` without libc, or its registration was refused)
/// stays so: the area is not ours to register.
pub fn ensure_registered() -> bool {
    match owner() {
        Owner::Nobody => false,
        Owner::Libc => is_registered(),
        Owner::Own => is_registered() || register().is_ok(),
    }
}

fn is_registered() -> bool {
    // SAFETY: the owner is known, so the area is one in every thread.
    let cpu = unsafe { arch::cpu_id(area()) };
    cpu.cast_signed() >= 0
}

/// `rseq(area, len, 0, sig)` — registers our own area for the calling thread.
///
/// Signals are masked meanwhile, and the area is looked at again under the mask: a handler
/// may have come first.
///
/// # Errors
///
/// ENOSYS or EPERM where the kernel or a filter refuses, EBUSY where the thread is
/// registered already, EINVAL where it is registered with another area.
fn register() -> Result<()> {
    let length = length().ok_or(Errno::INVAL)?;
    let area = arch::own_area_offset();
    let masked = signals::Masked::all();
    // SAFETY: our own area exists in every thread.
    let cpu = unsafe { arch::cpu_id(area) };
    let outcome = match cpu {
        CPU_ID_UNINITIALIZED if exit_guard::arm() => {
            let address = arch::thread_pointer().wrapping_add_signed(area);
            // SAFETY: the area is 64 bytes, 64-aligned, zero but for cpu_id, and lives as long
            // as the thread: it lies in the thread's static TLS, where glibc keeps its own.
            let answer = unsafe { libc::syscall(SYS_RSEQ, address, length, 0, SIGNATURE) };
            errno::zero(answer).inspect_err(|_| refuse(area))
        }
        // This thread is ending, or was refused before.
        CPU_ID_UNINITIALIZED | CPU_ID_REGISTRATION_FAILED => Err(Errno::PERM),
        _ => Ok(()),
    };
    drop(masked);
    outcome
}

/// Remembers in this thread's own area, which no kernel writes, that it was refused: it is
/// not asked for again.
fn refuse(area: isize) {
    let word = arch::thread_pointer().wrapping_add_signed(area).wrapping_add(CPU_ID);
    let word = core::ptr::with_exposed_provenance_mut::<u32>(word);
    // SAFETY: our own area in our own TLS, read by asm only.
    unsafe { word.write_volatile(CPU_ID_REGISTRATION_FAILED) };
}

/// musl unmaps the stack of a detached thread, and with it our area, from the thread
/// itself: the kernel would then write to nothing. So there, a thread that registered
/// unregisters in a destructor. glibc frees the memory only once the kernel has left it.
#[cfg(target_env = "musl")]
mod exit_guard {
    use super::{SIGNATURE, SYS_RSEQ};
    use crate::abi::rseq::FLAG_UNREGISTER;
    use crate::{abi, arch};

    struct Guard;

    thread_local!(static GUARD: Guard = const { Guard });

    /// Whether the destructor is still to come: a thread that is past it must not register.
    pub(super) fn arm() -> bool {
        GUARD.try_with(|_| {}).is_ok()
    }

    impl Drop for Guard {
        fn drop(&mut self) {
            let address = arch::thread_pointer().wrapping_add_signed(arch::own_area_offset());
            for length in [abi::rseq::ORIG_SIZE, size_of::<abi::rseq::Rseq>() as u32] {
                // SAFETY: takes back the registration of this thread; with the other length
                // the call answers EINVAL and changes nothing.
                unsafe { libc::syscall(SYS_RSEQ, address, length, FLAG_UNREGISTER, SIGNATURE) };
            }
        }
    }
}

#[cfg(not(target_env = "musl"))]
mod exit_guard {
    pub(super) fn arm() -> bool {
        true
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_glibc_and_kernel() {
        // (libc size, kernel feature size) -> bytes in use
        for (libc, kernel, active) in [
            (32, None, 20),     // glibc 2.35 on Linux 5.10
            (20, None, 20),     // glibc 2.40
            (32, Some(28), 28), // glibc 2.35 on Linux 6.3
            (20, Some(28), 28),
            (20, Some(33), 32), // registered with 32 bytes: no more than those
            (28, Some(28), 28), // glibc 2.41
            (33, Some(33), 33),
        ] {
            assert_eq!(active_size(libc, kernel), active, "libc {libc}, kernel {kernel:?}");
        }
    }

    #[test]
    fn own_lengths() {
        assert_eq!(own_length(None, None), Some(32));
        assert_eq!(own_length(Some(28), Some(32)), Some(32));
        assert_eq!(own_length(Some(33), Some(64)), Some(64));
        assert_eq!(own_length(Some(65), Some(64)), Some(32));
        assert_eq!(own_length(Some(300), Some(512)), None);
    }

    #[test]
    fn this_thread_and_another() {
        let here = ensure_registered();
        assert_eq!(here, owner() != Owner::Nobody);
        assert_eq!(std::thread::spawn(ensure_registered).join().unwrap(), here);
        if here {
            assert!(size() >= ORIG_FEATURE_SIZE);
            // SAFETY: the owner is known.
            let cpu = unsafe { arch::cpu_id(area()) };
            assert!(cpu < crate::sys::cpus::Ids::possible().end());
        }
    }
}
