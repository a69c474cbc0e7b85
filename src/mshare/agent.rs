//! The thread of a participant, as the others of its process have it: started, and stopped.
//! What it does is in [`desk`](super::desk).

use super::claim::Name;
use super::desk::Desk;
use super::held::Held;
use crate::error::{Context, Error, Result};
use crate::sync::Ordering;
use crate::sys::signals;
use core::mem::ManuallyDrop;
use core::ops::Deref;
use core::ptr::NonNull;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::sync::Arc;
use std::thread::JoinHandle;

/// The region, lent to the thread: whoever drops it joins the thread before, or never drops it.
#[derive(Debug)]
pub(super) struct Lent(NonNull<Held>);

// SAFETY: a reference in all but name, to what may be shared.
unsafe impl Send for Lent {}

impl Deref for Lent {
    type Target = Held;

    fn deref(&self) -> &Held {
        // SAFETY: joined before the region is dropped, which it is not if that fails.
        unsafe { self.0.as_ref() }
    }
}

/// The thread, until this is dropped.
#[derive(Debug)]
pub(super) struct Agent {
    stop: Arc<OwnedFd>,
    thread: ManuallyDrop<JoinHandle<Desk>>,
    pid: u32,
    /// The name that appeared when the thread served already.
    pub(super) name: Option<Name>,
}

impl Agent {
    /// Starts it; with listeners it serves from the first moment. No signal handler runs in
    /// the thread.
    ///
    /// # Errors
    ///
    /// EMFILE or ENFILE, EAGAIN if there can be no more threads.
    pub(super) fn start(
        operation: &'static str,
        held: &Arc<Held>,
        listeners: Vec<OwnedFd>,
    ) -> Result<Self> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).op(operation)?);
        let lent = Lent(NonNull::from(&**held));
        let desk = Desk::new(operation, lent, stop.clone(), listeners)?;
        if !desk.listeners.is_empty() {
            held.serving.store(std::process::id(), Ordering::Relaxed);
        }
        let masked = signals::Masked::all();
        let thread = std::thread::Builder::new()
            .name("unmerged-mshare".into())
            .spawn(move || desk.run())
            .map_err(|_| Error::because(operation, Errno::AGAIN, "cannot start a thread"))?;
        drop(masked);
        Ok(Self { stop, thread: ManuallyDrop::new(thread), pid: std::process::id(), name: None })
    }

    /// Whether it runs in this process: a forked child has its parent's in name only.
    pub(super) fn is_ours(&self) -> bool {
        self.pid == std::process::id()
    }

    /// Stops the thread; what it had. `None` in a forked child, which has no such thread, and
    /// shares the eventfd with its parent.
    ///
    /// # Errors
    ///
    /// EBADF or EINVAL if the program has closed the eventfd: the thread runs on, and has the region.
    pub(super) fn stop(mut self) -> rustix::io::Result<Option<Desk>> {
        if !self.is_ours() {
            return Ok(None);
        }
        rustix::io::write(&*self.stop, &1_u64.to_ne_bytes())?;
        // SAFETY: taken once, here.
        let thread = unsafe { ManuallyDrop::take(&mut self.thread) };
        let Ok(mut desk) = thread.join() else { return Ok(None) };
        desk.name = desk.name.or(self.name.take());
        Ok(Some(desk))
    }
}
