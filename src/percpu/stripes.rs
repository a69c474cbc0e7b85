//! What all areas have in common: the implementation, the number of stripes, the address
//! that `%gs` is relative to, and the updates themselves.
//!
//! All areas have the same stride. So one GS base serves them all: it points into the
//! first block of private cells, and a cell of any area is at the same distance from it on
//! every CPU.

use super::block::Block;
use super::geometry::{Geometry, Index};
use super::stats::{ABORTS, FALLBACKS, RESTRIPES};
use super::{Implementation, STRIDE, site};
use crate::arch::{self, Outcome, portable};
use crate::sync::Published;
use crate::sys::features::features;
use crate::sys::{cpus, object, rseq};
use core::ptr;

/// Decided once per process.
#[derive(Debug)]
pub(super) struct Stripes {
    pub(super) implementation: Implementation,
    /// One past the last possible CPU id: stripes for windows, and as many for atomics.
    pub(super) cpus: u32,
    /// Address of stripe 0 that the GS base is relative to; 0 unless the implementation is `gs`.
    base: usize,
}

static STRIPES: Published<Stripes> = Published::new();

/// What was decided. Of threads that come first together one decides; what another made (a
/// block of address space that is chained) is used like any other.
#[inline]
pub(super) fn stripes() -> &'static Stripes {
    STRIPES.get_or_make(decide)
}

#[cold]
#[inline(never)]
fn decide() -> Stripes {
    let features = features();
    let cpus = features.cpus.end();
    let wanted = Implementation::wanted();
    let implementation = Implementation::choose(features, wanted.as_deref());
    // Whatever was chosen: `raw` and `gs` run windows all the same.
    if rseq::owner() != rseq::Owner::Nobody {
        object::keep_loaded();
    }
    if implementation == Implementation::Gs {
        // Without memory for a first block there is nothing that %gs could point at.
        let geometry = Geometry { stride: STRIDE, cpus, index: Index::CpuId };
        return match Block::first(&geometry) {
            Ok(base) => Stripes { implementation, cpus, base },
            Err(_) => Stripes { implementation: Implementation::Rseq, cpus, base: 0 },
        };
    }
    Stripes { implementation, cpus, base: 0 }
}

impl Stripes {
    /// The geometry of private areas.
    pub(super) const fn geometry(&self) -> Geometry {
        Geometry { stride: STRIDE, cpus: self.cpus, index: Index::CpuId }
    }

    /// Distance from the GS base to a cell, given by its address on stripe 0; the same on every
    /// CPU.
    pub(super) const fn gs_offset(&self, cell: usize) -> usize {
        cell.wrapping_sub(self.base)
    }

    /// The cell at that distance: its word on stripe 0.
    pub(super) fn cell_at(&self, gs_offset: usize) -> *mut u64 {
        ptr::with_exposed_provenance_mut(self.base.wrapping_add(gs_offset))
    }

    /// Is that GS base one of ours?
    pub(super) const fn has_base(&self, base: usize) -> bool {
        base.wrapping_sub(self.base) < self.cpus as usize * STRIDE
    }

    /// Points `%gs` at the stripe of this CPU, if it is ours to point.
    ///
    /// A base that is neither 0 nor one of ours belongs to somebody who set it in this thread
    /// alone; the thread then does without `%gs`.
    pub(super) fn restripe(&self) -> bool {
        let area = rseq::area();
        // SAFETY: the area is known since the implementation was chosen.
        let cpu = unsafe { arch::cpu_id(area) };
        if arch::striped_cpu() == cpu {
            return true;
        }
        // SAFETY: the implementation is `gs`, so FSGSBASE works.
        let base = unsafe { arch::gs_base() };
        if base != 0 && !self.has_base(base) {
            return false;
        }
        RESTRIPES.count();
        // SAFETY: FSGSBASE works, the base is nobody else's; the area is known; the stripes lie
        // in user space.
        unsafe { arch::gs_restripe(area, self.base, STRIDE, self.cpus) == Outcome::Done }
    }

    /// `cell += n` on the stripe of this CPU, or on an overflow stripe.
    ///
    /// # Safety
    ///
    /// `cell` must be the word of stripe 0 of a cell of this process's geometry
    /// (`2 * cpus` words, [`STRIDE`] apart) that only this function and `%gs` windows update.
    pub(super) unsafe fn add(&self, cell: *mut u64, n: u64) {
        if self.implementation != Implementation::Portable && rseq::ensure_registered() {
            for _ in 0..site::ATTEMPTS {
                // SAFETY: forwarded; the thread is registered.
                if unsafe { self.add_in_window(cell, n) } == Outcome::Done {
                    return;
                }
                ABORTS.count();
            }
        }
        FALLBACKS.count();
        let stripe = self.cpus + cpus::current() % self.cpus;
        // SAFETY: the cell has a word on each of its `2 * cpus` stripes.
        let word = unsafe { cell.byte_add(stripe as usize * STRIDE) };
        // SAFETY: on an overflow stripe, which only atomics update.
        unsafe { portable::add_u64(word, n) };
    }

    /// One attempt.
    ///
    /// # Safety
    ///
    /// As [`add`](Self::add), in a registered thread.
    unsafe fn add_in_window(&self, cell: *mut u64, n: u64) -> Outcome {
        let area = rseq::area();
        if self.implementation == Implementation::Gs && self.restripe() {
            // SAFETY: the thread is striped; the offset leads to the cell's word of its stripe.
            return unsafe { arch::gs_load_add_store_u64(area, self.gs_offset(cell.addr()), n) };
        }
        // SAFETY: the area is known.
        let cpu = unsafe { arch::cpu_id(area) };
        if cpu >= self.cpus {
            return Outcome::Aborted;
        }
        // SAFETY: in range; the cell has a word on each stripe.
        let word = unsafe { cell.byte_add(cpu as usize * STRIDE) };
        // SAFETY: a window stripe of the cell, which only windows of that CPU update.
        unsafe { arch::load_add_store_u64(area, cpu, word, n) }
    }

    /// In a debug build: has somebody changed the GS base of this striped thread?
    #[inline]
    pub(super) fn check_gs(&self) {
        if !cfg!(debug_assertions) || self.implementation != Implementation::Gs {
            return;
        }
        let striped = arch::striped_cpu();
        // SAFETY: the implementation is `gs`, so FSGSBASE works.
        let base = unsafe { arch::gs_base() };
        // A signal handler between the two reads may have striped the thread anew.
        if striped != arch::NOT_STRIPED && striped == arch::striped_cpu() {
            assert!(
                base == self.base + striped as usize * STRIDE,
                "somebody set the GS base of this thread to {base:#x}; per-CPU updates would go \
                 astray (UNMERGED_PERCPU=rseq leaves %gs alone)"
            );
        }
    }
}
