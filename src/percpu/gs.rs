//! `%gs`-relative memory of the caller's own layout: the interface that was proposed for
//! `arch_prctl(2)` in 2014, with its arguments and errors.
//!
//! ```
//! use unmerged::percpu::gs;
//!
//! // A stripe of 128 bytes for each CPU id, laid out by the caller.
//! let cpus = 8192;
//! let mut stripes = vec![0_u64; cpus * 16];
//! match gs::set(stripes.as_mut_ptr().expose_provenance(), 128) {
//!     Ok(()) => {
//!         // SAFETY: every stripe has a word at 8, which nothing but these operations writes.
//!         let (cpu, old) = unsafe { gs::fetch_add::<u64>(8, 1) }?;
//!         assert_eq!((old, gs::get()?.1), (0, 128));
//!         gs::clear()?;
//!         # let _ = cpu;
//!     }
//!     // No FSGSBASE (before Linux 5.9), no rseq, or somebody else has %gs.
//!     Err(error) => eprintln!("{error}"),
//! }
//! # Ok::<(), unmerged::Error>(())
//! ```
//!
//! [`set`] is for the calling thread. As proposed, children have what their creator had: a forked
//! process, and a thread that is created afterwards, which takes it over from the GS base that
//! Linux hands down. Where that base fits several stripings that this process has ever set, as with
//! another stride from the same base, such a thread has none until it sets one. An `exec` ends it. Other than proposed, a plain instruction on `%gs:offset` is not
//! safe here, because Linux does not move the GS base along when the thread changes its CPU: use the
//! operations of this module, which are rseq windows that do.
//!
//! Whoever changes the GS base in another way ends the striping of that thread without being told:
//! call [`clear`] first. A debug build checks the base on every operation and panics.
//!
//! The other types of [`percpu`](super) go on beside it; in a thread that has stripes of its own
//! they reach theirs without `%gs`.

use super::Implementation;
use super::site::ATTEMPTS;
use super::stats::{ABORTS, RESTRIPES};
use super::stripes::stripes;
use super::word::Integer;
use crate::arch::{self, Answer, At, NOT_STRIPED, Outcome, Striping, Words};
use crate::error::{Error, Result};
use crate::sync::{AtomicPtr, Ordering};
use crate::sys::features::features;
use crate::sys::gs::Claim;
use crate::sys::rseq;
use crate::sys::signals::Masked;
use core::ptr;
use rustix::io::Errno;

/// One past the last byte of user space: `TASK_SIZE_MAX` of x86-64 with four levels of page
/// tables.
const USER_SPACE: usize = (1 << 47) - 4096;

/// A striping that some thread of this process has set. They are few, and never freed.
#[derive(Debug)]
struct Known {
    striping: Striping,
    next: *mut Known,
}

/// All of them, the newest first.
static KNOWN: AtomicPtr<Known> = AtomicPtr::new(ptr::null_mut());

/// Each striping that was set in this process.
fn known() -> impl Iterator<Item = Striping> {
    // SAFETY: leaked when it was put in front, and never changed.
    let at = |known: *mut Known| unsafe { known.as_ref() };
    let first = at(KNOWN.load(Ordering::Acquire));
    core::iter::successors(first, move |known| at(known.next)).map(|known| known.striping)
}

fn remember(striping: Striping) {
    if known().any(|other| other == striping) {
        return;
    }
    let known = Box::into_raw(Box::new(Known { striping, next: ptr::null_mut() }));
    let mut first = KNOWN.load(Ordering::Relaxed);
    loop {
        // SAFETY: ours until it is put in front.
        unsafe { (*known).next = first };
        match KNOWN.compare_exchange_weak(first, known, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => return,
            Err(now) => first = now,
        }
    }
}

/// Is `base` a stripe of it?
const fn has(striping: &Striping, base: usize) -> bool {
    let distance = base.wrapping_sub(striping.base);
    striping.stride != 0
        && distance < striping.stride * striping.cpus
        && distance.is_multiple_of(striping.stride)
}

/// Whether this thread can have stripes at all.
fn available(operation: &'static str) -> Result<()> {
    let lacks = match features().gs {
        // Whether this thread's base is taken is another question.
        Claim::Free | Claim::Foreign { .. } => {
            if rseq::ensure_registered() {
                return Ok(());
            }
            "this thread is not registered for rseq(2)"
        }
        Claim::NoFsgsbase => "no FSGSBASE: before Linux 5.9, nofsgsbase, or an older processor",
        Claim::ReadBackFailed => "FSGSBASE is announced but does not work here",
    };
    Err(Error::because(operation, Errno::INVAL, lacks))
}

/// The calling thread's striping: its own, or the one that it was created with. All that tells of
/// that one is the GS base: where it fits several, also of times past, there is none.
fn current() -> Option<Striping> {
    let own = arch::callers_striping();
    // SAFETY: a word of this thread, which this thread alone writes.
    let striping = unsafe { own.read_volatile() };
    if striping.stride != 0 {
        return Some(striping);
    }
    // SAFETY: asked only where FSGSBASE works.
    let base = unsafe { arch::gs_base() };
    let mut fitting = known().filter(|striping| has(striping, base));
    let inherited = fitting.next()?;
    if fitting.next().is_some() {
        return None;
    }
    // SAFETY: as above.
    unsafe { own.write_volatile(inherited) };
    Some(inherited)
}

/// Is this GS base that of a striping, of this thread or of its creator?
fn is_of_a_striping(base: usize) -> bool {
    known().any(|striping| has(&striping, base))
}

/// Lays `%gs` of this thread over the caller's stripes: the one of CPU `n` begins at
/// `base + n * stride`.
///
/// Nothing is read or written there before an operation of this module is. All CPU ids from 0 to
/// [the last possible one](crate::probe()) have a stripe.
///
/// # Errors
///
/// - EINVAL: not available (no FSGSBASE, no rseq in this thread), a stride that is no multiple of 8
///   or is 0, or a base of 0, which is the GS base of a thread without stripes;
/// - EPERM: `base` is above user space;
/// - EOVERFLOW: the stripes of all CPU ids would reach beyond user space;
/// - EBUSY: somebody else uses `%gs` in this thread.
pub fn set(base: usize, stride: usize) -> Result<()> {
    const OPERATION: &str = "percpu::gs::set";
    available(OPERATION)?;
    let stripes = stripes();
    let cpus = stripes.cpus as usize;
    if base >= USER_SPACE {
        let numbers = format_args!("base {base:#x}; user space ends at {USER_SPACE:#x}");
        return Err(Error::with(OPERATION, Errno::PERM, numbers));
    }
    if stride > (USER_SPACE - base) / cpus {
        let numbers = format_args!("stride {stride} for {cpus} CPU ids from base {base:#x}");
        return Err(Error::with(OPERATION, Errno::OVERFLOW, numbers));
    }
    if stride == 0 || !stride.is_multiple_of(8) {
        let numbers = format_args!("stride {stride}: not a multiple of 8, or 0");
        return Err(Error::with(OPERATION, Errno::INVAL, numbers));
    }
    if base == 0 {
        let why = "a base of 0 is that of a thread without stripes";
        return Err(Error::because(OPERATION, Errno::INVAL, why));
    }
    // SAFETY: FSGSBASE works.
    let now = unsafe { arch::gs_base() };
    let ours = stripes.implementation == Implementation::Gs && stripes.has_base(now);
    if now != 0 && !ours && !is_of_a_striping(now) {
        let numbers = format_args!("the GS base of this thread is {now:#x}: somebody else's");
        return Err(Error::with(OPERATION, Errno::BUSY, numbers));
    }
    let striping = Striping { base, stride, cpus };
    remember(striping);
    lay(striping, base);
    Ok(())
}

/// Writes this thread's words and its GS base, which must agree for a signal handler too.
fn lay(striping: Striping, base: usize) {
    let _masked = Masked::all();
    // SAFETY: a word of this thread; no window relies on it from now on.
    unsafe { arch::callers_cpu().write_volatile(NOT_STRIPED) };
    // SAFETY: as above.
    unsafe { arch::set_striped_cpu(NOT_STRIPED) };
    // SAFETY: as above.
    unsafe { arch::callers_striping().write_volatile(striping) };
    // SAFETY: FSGSBASE works, the base is in user space and nobody else's.
    unsafe { arch::set_gs_base(base) };
}

/// Base and stride of this thread.
///
/// # Errors
///
/// EINVAL: not available; ENOENT: not configured.
pub fn get() -> Result<(usize, usize)> {
    const OPERATION: &str = "percpu::gs::get";
    available(OPERATION)?;
    let striping = current().ok_or_else(|| not_configured(OPERATION))?;
    Ok((striping.base, striping.stride))
}

/// Ends the striping of this thread: its GS base is 0 again.
///
/// # Errors
///
/// EINVAL: not available; ENOENT: not configured.
pub fn clear() -> Result<()> {
    const OPERATION: &str = "percpu::gs::clear";
    available(OPERATION)?;
    // SAFETY: FSGSBASE works.
    if current().is_none() && !is_of_a_striping(unsafe { arch::gs_base() }) {
        return Err(not_configured(OPERATION));
    }
    lay(Striping::default(), 0);
    Ok(())
}

#[cold]
fn not_configured(operation: &'static str) -> Error {
    // SAFETY: asked only where FSGSBASE works.
    let base = unsafe { arch::gs_base() };
    if is_of_a_striping(base) {
        let numbers = format_args!("the GS base {base:#x} fits several stripings: set one");
        return Error::with(operation, Errno::NOENT, numbers);
    }
    Error::because(operation, Errno::NOENT, "this thread has no stripes of the caller's")
}

/// Runs `window` until it commits or refuses.
#[inline]
fn run<T: Integer>(
    operation: &'static str,
    offset: usize,
    window: impl Fn(At) -> Answer<(u32, T)>,
) -> Result<core::result::Result<(u32, T), (u32, T)>> {
    let at = At { area: rseq::area(), field: 0, cpu: 0, stop: 0, word: offset };
    // Nobody has asked for rseq yet, or there is none: a window stores the address of its descriptor
    // before it looks at anything, here over what libc keeps in the thread's control block.
    if at.area == 0 {
        return retry(operation, at, &window);
    }
    check_base();
    match window(at) {
        Answer::Done(done) => Ok(Ok(done)),
        Answer::Refused(refused) => Ok(Err(refused)),
        _ => retry(operation, at, &window),
    }
}

/// The thread came from another CPU, was interrupted, or has no stripes.
#[cold]
#[inline(never)]
fn retry<T: Integer>(
    operation: &'static str,
    at: At,
    window: &dyn Fn(At) -> Answer<(u32, T)>,
) -> Result<core::result::Result<(u32, T), (u32, T)>> {
    available(operation)?;
    let Striping { base, stride, cpus } = current().ok_or_else(|| not_configured(operation))?;
    let at = At { area: rseq::area(), ..at };
    for _ in 0..ATTEMPTS {
        RESTRIPES.count();
        // SAFETY: the striping is this thread's; its stripes lie in user space.
        let striped = unsafe { arch::gs_restripe_callers(at.area, base, stride, cpus as u32) };
        if striped == Outcome::Done {
            match window(at) {
                Answer::Done(done) => return Ok(Ok(done)),
                Answer::Refused(refused) => return Ok(Err(refused)),
                _ => {}
            }
        }
        ABORTS.count();
    }
    let numbers = format_args!("{ATTEMPTS} windows in a row were aborted");
    Err(Error::with(operation, Errno::AGAIN, numbers))
}

/// In a debug build: has somebody changed the GS base of this striped thread?
#[inline]
fn check_base() {
    if cfg!(debug_assertions) {
        let (cpu, striping) = (arch::callers_cpu(), arch::callers_striping());
        // SAFETY: words of this thread.
        let striped = unsafe { cpu.read_volatile() };
        if striped == NOT_STRIPED {
            return;
        }
        // SAFETY: as above.
        let striping = unsafe { striping.read_volatile() };
        // SAFETY: the thread is striped, so FSGSBASE works.
        let base = unsafe { arch::gs_base() };
        // A signal handler between may have striped the thread anew.
        // SAFETY: as above.
        if striped == unsafe { cpu.read_volatile() } {
            assert!(
                base == striping.base + striped as usize * striping.stride,
                "somebody set the GS base of this thread to {base:#x}; operations would go astray"
            );
        }
    }
}

macro_rules! operations {
    ($(
        $(#[$doc:meta])*
        $name:ident($($argument:ident),*) = $window:ident;
    )+) => {
        $(
            $(#[$doc])*
            ///
            /// # Errors
            ///
            /// ENOENT without stripes, EINVAL where they are not available, EAGAIN if 16 windows in a
            /// row were aborted (a debugger that steps, a timer of a microsecond): nothing happened.
            ///
            /// # Safety
            ///
            /// `offset` from the start of each stripe leads to a readable, writable word, aligned to its
            /// size, that is written by nothing but operations of this module.
            #[inline]
            pub unsafe fn $name<T: Integer>(offset: usize $(, $argument: T)*) -> Result<(u32, T)> {
                let done = run(concat!("percpu::gs::", stringify!($name)), offset, |at| {
                    // SAFETY: the caller vouches for the word on every stripe; a thread that is not
                    // striped aborts before it touches one.
                    unsafe { T::ByCaller::$window(at $(, $argument)*) }
                });
                done.map(|done| match done {
                    Ok(done) | Err(done) => done,
                })
            }
        )+
    };
}

operations! {
    /// The CPU, and the value there.
    load() = load;
    /// Overwrites the value on this CPU; the CPU, and the new value.
    store(value) = store;
    /// Adds on this CPU, wrapping; the CPU, and the value before.
    fetch_add(value) = load_add_store;
    /// Exchanges the value on this CPU; the CPU, and the one before.
    swap(value) = load_store;
    /// Keeps on this CPU the bits that `value` has; the CPU, and the value before.
    fetch_and(value) = load_and_store;
    /// Sets on this CPU the bits that `value` has; the CPU, and the value before.
    fetch_or(value) = load_or_store;
}

/// Exchanges the value on this CPU if it is `current`: `Ok(Ok(_))` with the CPU and the value before
/// if it was, `Ok(Err(_))` with those that were found if not.
///
/// # Errors
///
/// As the others.
///
/// # Safety
///
/// As for the others.
#[inline]
pub unsafe fn compare_exchange<T: Integer>(
    offset: usize,
    current: T,
    new: T,
) -> Result<core::result::Result<(u32, T), (u32, T)>> {
    run("percpu::gs::compare_exchange", offset, |at| {
        // SAFETY: as for the others.
        unsafe { T::ByCaller::load_cbne_store(at, current, new) }
    })
}
