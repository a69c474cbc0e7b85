//! rseq(2) with the area of the calling thread somewhere else for a while.
//!
//! A thread has one registration. To put it elsewhere, that of libc (or ours) is taken back
//! first, and made again afterwards. Meanwhile libc's area says "not registered": so
//! `sched_getcpu` asks the kernel, and windows on that area abort.
//!
//! It is made with 32 bytes wherever it is, which hold all that a reader is shown. Of a larger
//! one, from Linux 7 on, the kernel checks what it has written before, and ends the process
//! with SIGSEGV where that is not there. A child by clone(2) around libc has inherited the
//! registration, and the area may be shared memory: it would end its parent so.

use super::errno;
use super::rseq::{self, Owner};
use super::signals::Masked;
use crate::abi::rseq::{
    CPU_ID, CPU_ID_UNINITIALIZED, FLAG_UNREGISTER, ORIG_SIZE, RSEQ_CS, Rseq, SIGNATURE, SYS_RSEQ,
};
use crate::arch;
use crate::sync::{AtomicU64, Ordering};
use core::mem::size_of;
use core::ptr::NonNull;
use rustix::io::{Errno, Result};

/// A registration that was moved.
#[derive(Debug, Clone, Copy)]
pub struct Moved {
    area: NonNull<[AtomicU64; 8]>,
    /// Where it was, and its length there.
    home: (usize, u32),
}

fn register(area: usize, length: u32) -> Result<()> {
    // SAFETY: both callers vouch for the area.
    errno::zero(unsafe { libc::syscall(SYS_RSEQ, area, length, 0, SIGNATURE) })
}

fn unregister(area: usize, length: u32) -> Result<()> {
    // SAFETY: the kernel writes to the area one last time if it is the registered one, and
    // otherwise answers EINVAL.
    errno::zero(unsafe { libc::syscall(SYS_RSEQ, area, length, FLAG_UNREGISTER, SIGNATURE) })
}

/// Why the registration is not ours to move: the kernel answers EINVAL to who takes back what
/// nobody can have registered, a filter something else.
fn why_not() -> Errno {
    match unregister(0, ORIG_SIZE) {
        Err(Errno::NOSYS | Errno::PERM) => Errno::OPNOTSUPP,
        _ => Errno::BUSY,
    }
}

/// The lengths that a libc could have registered its area with. The kernel wants the same
/// number again, and libc says only how many bytes are in use.
fn lengths() -> [u32; 4] {
    let used = rseq::size().max(ORIG_SIZE);
    [ORIG_SIZE, used, used.next_multiple_of(32), used.next_multiple_of(64)]
}

impl Moved {
    /// Moves the registration of the calling thread to `area`.
    ///
    /// # Errors
    ///
    /// EOPNOTSUPP without rseq or under a filter that refuses it, EBUSY if the registration
    /// belongs to somebody else.
    ///
    /// # Safety
    ///
    /// Until [`back`](Self::back), or the end of the thread, `area` must be mapped writable
    /// here and in children that inherit the registration, 64-aligned, and nobody else may
    /// write it.
    pub unsafe fn to(area: NonNull<[AtomicU64; 8]>) -> Result<Self> {
        if rseq::owner() == Owner::Nobody {
            return Err(Errno::OPNOTSUPP);
        }
        if !rseq::ensure_registered() {
            return Err(why_not());
        }
        let home = arch::thread_pointer().wrapping_add_signed(rseq::area());
        // A signal handler must not find the thread without.
        let _masked = Masked::all();
        let was = lengths().into_iter().find(|&length| unregister(home, length).is_ok());
        let was = was.ok_or_else(why_not)?;
        let moved = Self { area, home: (home, was) };
        moved.clear();
        match register(area.as_ptr().expose_provenance(), ORIG_SIZE) {
            Ok(()) => Ok(moved),
            Err(errno) => {
                moved.restore();
                Err(if errno == Errno::INVAL { Errno::BUSY } else { errno })
            }
        }
    }

    /// The area as if nobody had ever registered it: what a thread that was killed has left
    /// is not to be followed.
    fn clear(&self) {
        // SAFETY: mapped and ours, as the caller of `to` has promised; of atomics.
        let words = unsafe { self.area.as_ref() };
        for word in words {
            word.store(0, Ordering::Relaxed);
        }
        let first = u64::from(CPU_ID_UNINITIALIZED) << (8 * CPU_ID);
        words[0].store(first, Ordering::Relaxed);
    }

    /// Makes the registration at home again.
    fn restore(&self) {
        let (home, length) = self.home;
        let at = core::ptr::with_exposed_provenance_mut::<u64>(home + RSEQ_CS);
        // A kernel before 6.14 would follow what a window has left there.
        // SAFETY: the word of libc's area that user code may write, in this thread.
        unsafe { at.write_volatile(0) };
        // It was registered like this before; there is nothing to be done if it cannot be again.
        let _ = register(home, length);
    }

    /// Moves it back. Only by the thread that moved it, or its child by fork or clone.
    pub fn back(self) {
        let _masked = Masked::all();
        if unregister(self.area.as_ptr().expose_provenance(), ORIG_SIZE).is_ok() {
            self.restore();
        }
    }
}

const _: () = assert!(size_of::<Rseq>() == 64 && CPU_ID == 4);

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[repr(align(64))]
    struct Area([AtomicU64; 8]);

    #[test]
    fn there_and_back() {
        if rseq::owner() == Owner::Nobody {
            return;
        }
        let area = Box::leak(Box::new(Area([const { AtomicU64::new(u64::MAX) }; 8])));
        let there = NonNull::from(&area.0);
        let cpu_there = || (area.0[0].load(Ordering::Relaxed) >> 32) as u32;
        // SAFETY: leaked, aligned, and nobody else's.
        let moved = unsafe { Moved::to(there) }.unwrap();
        assert!(cpu_there() < crate::sys::cpus::Ids::possible().end());
        // SAFETY: the owner is known.
        assert_eq!(unsafe { arch::cpu_id(rseq::area()) }, CPU_ID_UNINITIALIZED);
        assert!(rseq::owner() == Owner::Own || !rseq::ensure_registered());
        // SAFETY: as above.
        assert!(unsafe { Moved::to(there) }.is_err(), "twice");
        moved.back();
        assert_eq!(cpu_there(), CPU_ID_UNINITIALIZED);
        assert!(rseq::ensure_registered());
    }
}
