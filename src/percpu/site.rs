//! Where the words of a cell are, and how an operation gets to the one of this CPU.

use super::geometry::{Geometry, Index};
use super::stats::{ABORTS, FALLBACKS};
use super::stripes::stripes;
use super::{Implementation, STRIDE};
use crate::abi::rseq::CPU_ID;
use crate::arch::{self, Answer, At};
use crate::sync::{AtomicUsize, Ordering};
use crate::sys::{cpus, rseq};
use rustix::io::Result;

/// Windows that are tried before an operation goes to an overflow stripe. A window is aborted
/// by a preemption, a signal or a fence inside it; several in a row mean a debugger that
/// steps, or a timer that fires faster than a window runs.
pub(super) const ATTEMPTS: u32 = 16;

/// A cell of an area.
#[derive(Debug, Clone, Copy)]
pub(super) struct Site {
    /// Address of its first byte on stripe 0.
    pub(super) start: usize,
    /// Bytes from the start of a stripe to it.
    pub(super) offset: usize,
    pub(super) geometry: Geometry,
    /// Other processes may have the memory too: who stops a CPU there is named with its process.
    pub(super) shared: bool,
}

/// What a window is to be run on.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place {
    /// In the shape `Striped`.
    Striped(At),
    /// In the shape `Indexed`.
    Indexed(At),
}

impl Place {
    /// The stripe of its window; of `%gs` the one of this CPU, more or less.
    fn stripe(self) -> u32 {
        match self {
            Self::Striped(_) => cpus::current(),
            Self::Indexed(at) => at.cpu,
        }
    }
}

/// Runs `$call` in the window shape of `$place`, as type `$Shape`, at `$at`.
macro_rules! on {
    ($place:expr, |$Shape:ident, $at:ident| $call:expr) => {
        match $place {
            crate::percpu::site::Place::Striped($at) => {
                type $Shape = crate::arch::Striped;
                $call
            }
            crate::percpu::site::Place::Indexed($at) => {
                type $Shape = crate::arch::Indexed;
                $call
            }
        }
    };
}
pub(super) use on;

impl Site {
    /// Bytes of stripe `n`: the first `cpus` are for windows, the others for atomics.
    pub(super) fn on_stripe(&self, n: u32) -> usize {
        self.start + n as usize * self.geometry.stride
    }

    /// The stop word of a CPU's window stripe.
    pub(super) fn stop_word(&self, cpu: u32) -> usize {
        self.on_stripe(cpu) - self.offset
    }

    /// This cell on the overflow stripe of `cpu`.
    pub(super) fn overflow(&self, cpu: u32) -> At {
        let cpus = self.geometry.cpus;
        let word = self.on_stripe(cpus + cpu % cpus);
        At { area: 0, field: 0, cpu: cpu % cpus, stop: 0, word }
    }

    /// This cell on the overflow stripe of the CPU that the thread is on, more or less.
    pub(super) fn overflow_here(&self) -> At {
        self.overflow(cpus::current())
    }

    /// What a window of this thread would work on now; `None` if none can run.
    #[inline]
    fn place(&self) -> Option<Place> {
        let stripes = stripes();
        if stripes.implementation == Implementation::Portable || !rseq::ensure_registered() {
            return None;
        }
        let area = rseq::area();
        let field = area + self.geometry.field().cast_signed();
        let default = self.geometry.stride == STRIDE && self.geometry.index == Index::CpuId;
        if stripes.implementation == Implementation::Gs && default && stripes.restripe() {
            let word = stripes.gs_offset(self.start);
            let stop = word.wrapping_sub(self.offset);
            return Some(Place::Striped(At { area, field, cpu: 0, stop, word }));
        }
        // SAFETY: the area is known; `cpu_id` reads the word behind `area + CPU_ID`.
        let cpu = unsafe { arch::cpu_id(field - CPU_ID.cast_signed()) };
        (cpu < self.geometry.cpus).then(|| {
            let (word, stop) = (self.on_stripe(cpu), self.stop_word(cpu));
            Place::Indexed(At { area, field, cpu, stop, word })
        })
    }

    /// Runs `window` until it commits or refuses; `None` when it is to be done on an overflow
    /// stripe: this thread cannot run windows, the CPU is stopped, or too many windows were
    /// aborted.
    #[cold]
    #[inline(never)]
    pub(super) fn attempt<D, R>(
        &self,
        mut window: impl FnMut(Place) -> Answer<D, R>,
    ) -> Option<core::result::Result<D, R>> {
        for _ in 0..ATTEMPTS {
            let Some(place) = self.place() else { break };
            match window(place) {
                Answer::Done(done) => return Some(Ok(done)),
                Answer::Refused(refused) => return Some(Err(refused)),
                Answer::Stopped if self.was_forsaken(place.stripe()) => {}
                Answer::Stopped => break,
                Answer::Aborted => ABORTS.count(),
            }
        }
        FALLBACKS.count();
        None
    }
}

/// A private cell that is taken at the first use.
#[derive(Debug)]
pub(super) struct Lazy {
    /// | bits | meaning |
    /// |---|---|
    /// | `1` | not taken yet |
    /// | `…000` | distance of the cell from the GS base (implementation `gs`) |
    /// | `…001`, not `1` | address of the cell on stripe 0, plus 1 (implementation `rseq`) |
    /// | `…011` | the same, plus 3 (implementation `portable`) |
    ///
    /// It changes once.
    word: AtomicUsize,
}

const UNTAKEN: usize = 1;
const INDEXED: usize = 1;
const PORTABLE: usize = 3;
const TAG: usize = 7;

impl Lazy {
    pub(super) const fn new() -> Self {
        Self { word: AtomicUsize::new(UNTAKEN) }
    }

    /// Where this thread would run a window if all is as it was last time; `None` if the cell is
    /// not taken or windows do not run.
    #[inline(always)]
    pub(super) fn place(&self) -> Option<Place> {
        let word = self.word.load(Ordering::Acquire);
        let area = rseq::area();
        if word & 1 == 0 {
            if cfg!(debug_assertions) {
                stripes().check_gs();
            }
            // Stripes are aligned to their stride, seen from the GS base.
            let stop = word & !(STRIDE - 1);
            return Some(Place::Striped(At { area, field: 0, cpu: 0, stop, word }));
        }
        if word & TAG != INDEXED || word == UNTAKEN {
            return None;
        }
        // SAFETY: the area is known, as the cell is taken.
        let cpu = unsafe { arch::cpu_id(area) };
        (cpu < stripes().cpus).then(|| {
            let word = word - INDEXED + cpu as usize * STRIDE;
            let (field, stop) = (area + CPU_ID.cast_signed(), word & !(STRIDE - 1));
            Place::Indexed(At { area, field, cpu, stop, word })
        })
    }

    /// The cell, if it is taken.
    pub(super) fn known(&self) -> Option<Site> {
        let word = self.word.load(Ordering::Acquire);
        (word != UNTAKEN).then(|| Self::site(word))
    }

    /// Address of the cell on stripe `n`, if it is taken: what [`Site::on_stripe`] says.
    #[inline]
    pub(super) fn on_stripe(&self, n: u32) -> Option<usize> {
        let word = self.word.load(Ordering::Acquire);
        let start = match word {
            UNTAKEN => return None,
            _ if word & 1 == 0 => stripes().cell_at(word).addr(),
            _ => word & !TAG,
        };
        Some(start + n as usize * STRIDE)
    }

    fn site(word: usize) -> Site {
        let stripes = stripes();
        let start = if word & 1 == 0 { stripes.cell_at(word).addr() } else { word & !TAG };
        // The distance from the page-aligned stripe.
        Site { start, offset: start % STRIDE, geometry: stripes.geometry(), shared: false }
    }

    /// The cell, of `bytes`; taken now if need be.
    ///
    /// # Errors
    ///
    /// ENOMEM if there is no address space for another block.
    #[cold]
    #[inline(never)]
    pub(super) fn site_of(&self, bytes: usize) -> Result<Site> {
        if let Some(site) = self.known() {
            return Ok(site);
        }
        let stripes = stripes();
        let cell = super::block::take(stripes, bytes)?;
        let word = match stripes.implementation {
            Implementation::Gs => stripes.gs_offset(cell),
            Implementation::Rseq => cell + INDEXED,
            Implementation::Portable => cell + PORTABLE,
        };
        match self.word.compare_exchange(UNTAKEN, word, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok(Self::site(word)),
            Err(winner) => {
                super::block::release(stripes, cell, bytes);
                Ok(Self::site(winner))
            }
        }
    }

    /// Gives the cell back.
    ///
    /// # Safety
    ///
    /// Nobody uses it any more, and it was taken with these `bytes`.
    pub(super) unsafe fn release(&mut self, bytes: usize) {
        if let Some(site) = self.known() {
            super::block::release(stripes(), site.start, bytes);
        }
        self.word = AtomicUsize::new(UNTAKEN);
    }
}

/// Runs a window on the private cell `$lazy` if it can be run at once: what `Done` brought. All else
/// is for a function that is not inlined, which begins with [`slowly`].
macro_rules! quickly {
    ($lazy:expr, |$Shape:ident, $at:ident| $call:expr) => {{
        let lazy: &crate::percpu::site::Lazy = $lazy;
        match lazy.place().map(|place| crate::percpu::site::on!(place, |$Shape, $at| $call)) {
            Some(crate::arch::Answer::Done(done)) => Some(done),
            _ => None,
        }
    }};
}
pub(super) use quickly;

/// Runs a window on the private cell `$lazy` of `$bytes`, by [`Site::attempt`], and takes the cell
/// first if need be. `Option<Result<D, R>>`: `None` where the operation belongs on an overflow
/// stripe, or where there is no memory for a cell, hence no stripe.
macro_rules! slowly {
    ($lazy:expr, $bytes:expr, |$Shape:ident, $at:ident| $call:expr) => {{
        let lazy: &crate::percpu::site::Lazy = $lazy;
        let site = lazy.site_of($bytes).ok();
        site.and_then(|site| {
            site.attempt(|place| crate::percpu::site::on!(place, |$Shape, $at| $call))
        })
    }};
}
pub(super) use slowly;

/// Runs a window on the private cell `$lazy` of `$bytes`: at once if it can, else by
/// [`Site::attempt`]. `Result<Option<Result<D, R>>>`: ENOMEM without a cell; `None` where the
/// operation belongs on an overflow stripe.
macro_rules! window {
    ($lazy:expr, $bytes:expr, |$Shape:ident, $at:ident| $call:expr) => {{
        let lazy: &crate::percpu::site::Lazy = $lazy;
        let first = match lazy.place() {
            Some(place) => crate::percpu::site::on!(place, |$Shape, $at| $call),
            None => crate::arch::Answer::Aborted,
        };
        match first {
            crate::arch::Answer::Done(done) => Ok(Some(Ok(done))),
            crate::arch::Answer::Refused(refused) => Ok(Some(Err(refused))),
            _ => lazy.site_of($bytes).map(|site| {
                site.attempt(|place| crate::percpu::site::on!(place, |$Shape, $at| $call))
            }),
        }
    }};
}
pub(super) use window;
