//! pthread_sigmask(3): no signal handler here for a while.

use core::mem::MaybeUninit;

/// All signals blocked in this thread until this is dropped. A thread that is started
/// meanwhile is born so and stays so.
#[derive(Debug)]
pub struct Masked {
    before: libc::sigset_t,
    /// The mask is the thread's.
    _thread: core::marker::PhantomData<*const ()>,
}

impl Masked {
    /// `pthread_sigmask(SIG_SETMASK, all)`.
    pub fn all() -> Self {
        let mut all = MaybeUninit::<libc::sigset_t>::uninit();
        let mut before = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigfillset initialises the set that it is given.
        unsafe { libc::sigfillset(all.as_mut_ptr()) };
        // SAFETY: reads a set that is initialised, fills the other one.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) };
        // SAFETY: filled by the call above, which cannot fail with these arguments.
        Self { before: unsafe { before.assume_init() }, _thread: core::marker::PhantomData }
    }
}

impl Drop for Masked {
    fn drop(&mut self) {
        // SAFETY: restores the mask that was there.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, core::ptr::null_mut())
        };
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn blocks_usr1() -> bool {
        let mut now = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: asks for the mask and changes none.
        unsafe { libc::pthread_sigmask(0, core::ptr::null(), now.as_mut_ptr()) };
        // SAFETY: filled by the call above.
        unsafe { libc::sigismember(now.as_ptr(), libc::SIGUSR1) == 1 }
    }

    #[test]
    fn until_dropped_and_inherited() {
        let masked = Masked::all();
        assert!(blocks_usr1());
        assert!(std::thread::spawn(blocks_usr1).join().unwrap());
        drop(masked);
        assert!(!blocks_usr1());
    }
}
