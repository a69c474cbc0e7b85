//! The shared object that this code is in.

use core::ffi::CStr;
use core::mem::MaybeUninit;

/// `dlopen(self, RTLD_NOLOAD | RTLD_NODELETE)` — keeps the shared object that this code is in, if it
/// is one, from being unloaded by `dlclose(3)`.
///
/// The kernel may look at the descriptor of a thread's last window long after the window: until
/// it has cleared `rseq_cs`, which it does when it likes. A descriptor that is unmapped by then
/// is a SIGSEGV.
///
/// A program cannot be unloaded, and needs none of this: dlopen refuses it, to no harm.
pub fn keep_loaded() {
    static HERE: u8 = 0;
    let mut info = MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: an address of this object, and room for the answer.
    if unsafe { libc::dladdr((&raw const HERE).cast(), info.as_mut_ptr()) } == 0 {
        return;
    }
    // SAFETY: filled by the call above.
    let info = unsafe { info.assume_init() };
    if info.dli_fname.is_null() {
        return;
    }
    // SAFETY: a string of the loader's, which lives as long as the object.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    let flags = libc::RTLD_LAZY | libc::RTLD_NOLOAD | libc::RTLD_NODELETE;
    // SAFETY: loads nothing; the handle is kept for good.
    let _ = unsafe { libc::dlopen(name.as_ptr(), flags) };
}
