//! Where a channel lies: what is in its memory, and how it comes into being and ends.

use super::bell::Bell;
use super::channel::Channel;
use super::items::Plain;
use super::ring::Shape;
use crate::error::{Error, Result};
use crate::futex2::{Futex, Private, Scope, Shared};
use crate::sync::{AtomicU32, AtomicU64};
use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::mem::{MaybeUninit, align_of, size_of};
use core::ptr::NonNull;
use crossbeam_utils::CachePadded;
use rustix::io::Errno;

/// A slot of the ring: its stamp in one process, its word between several.
#[repr(C)]
pub(super) struct Slot<T> {
    pub(super) word: AtomicU64,
    pub(super) item: UnsafeCell<MaybeUninit<T>>,
}

/// Where senders look; between processes, also a head that one of them has seen.
#[repr(C)]
pub(super) struct Tail {
    pub(super) position: AtomicU64,
    pub(super) seen: AtomicU64,
}

/// Written only when somebody sleeps, and at the end.
#[repr(C)]
pub(super) struct Bells<S: Scope> {
    /// Rung by senders.
    pub(super) items: Bell<Futex<u32, S>>,
    /// Rung by receivers.
    pub(super) room: Bell<Futex<u32, S>>,
    /// Between processes.
    pub(super) closed: AtomicU32,
}

/// What lies before the slots. Zeros, also in these, are an empty channel.
#[repr(C)]
pub(super) struct Control<S: Scope> {
    pub(super) tail: CachePadded<Tail>,
    pub(super) head: CachePadded<AtomicU64>,
    pub(super) bells: CachePadded<Bells<S>>,
}

impl<T: Send> Channel<T, Private> {
    /// A channel of this process with room for `capacity` items.
    ///
    /// # Errors
    ///
    /// EINVAL if it is 0, or more than 2³⁰; ENOMEM.
    pub fn bounded(capacity: u32) -> Result<Self> {
        check(capacity)?;
        let slot =
            |_| Slot { word: AtomicU64::new(0), item: UnsafeCell::new(MaybeUninit::uninit()) };
        let mut slots = Vec::<Slot<T>>::new();
        let room = slots.try_reserve_exact(capacity as usize);
        room.map_err(|_| Error::new("futex2::Channel", Errno::NOMEM))?;
        slots.extend((0..capacity).map(slot));
        let slots = NonNull::from(Box::leak(slots.into_boxed_slice())).cast();
        let bells = Bells {
            items: Bell::new(Futex::new(0)),
            room: Bell::new(Futex::new(0)),
            closed: AtomicU32::new(0),
        };
        let control = Control {
            tail: CachePadded::new(Tail { position: AtomicU64::new(0), seen: AtomicU64::new(0) }),
            head: CachePadded::new(AtomicU64::new(0)),
            bells: CachePadded::new(bells),
        };
        let control = NonNull::from(Box::leak(Box::new(control)));
        Ok(Self { control, slots, shape: Shape::new(capacity), owned: true, items: PhantomData })
    }
}

impl<T: Plain> Channel<T, Shared> {
    /// What [`attach`](Self::attach) wants its base aligned to.
    pub const ALIGN: usize = {
        let (control, slot) = (align_of::<Control<Shared>>(), align_of::<Slot<T>>());
        if control > slot { control } else { slot }
    };

    /// Bytes that a channel of so many items needs; `usize::MAX` for more than there can be.
    pub const fn bytes(capacity: u32) -> usize {
        let slots = size_of::<Control<Shared>>().next_multiple_of(align_of::<Slot<T>>());
        slots.saturating_add((capacity as usize).saturating_mul(size_of::<Slot<T>>()))
    }

    /// The channel that lies at `base`, with room for `capacity` items. Zeros are an empty one, and
    /// every process gives the same capacity.
    ///
    /// What others write there can give errors and wrong items, nothing worse; and a wait with a
    /// deadline ends.
    ///
    /// # Errors
    ///
    /// EINVAL if the capacity is 0 or more than 2³⁰, if `len` bytes are too few, or `base` is not
    /// aligned to [`ALIGN`](Self::ALIGN).
    ///
    /// # Safety
    ///
    /// `len` bytes from `base` on must be mapped, writable, as long as the channel is used, and
    /// nothing else may be in them.
    pub unsafe fn attach(base: NonNull<u8>, len: usize, capacity: u32) -> Result<Self> {
        check(capacity)?;
        let needs = Self::bytes(capacity);
        let refuse = |why: core::fmt::Arguments<'_>| {
            Err(Error::with("futex2::Channel::attach", Errno::INVAL, why))
        };
        if len < needs {
            return refuse(format_args!("{len} bytes for a channel of {needs}"));
        }
        if !base.addr().get().is_multiple_of(Self::ALIGN) {
            return refuse(format_args!("{base:p} is not aligned to {}", Self::ALIGN));
        }
        // SAFETY: inside what the caller vouches for.
        let slots = unsafe { base.add(needs - capacity as usize * size_of::<Slot<T>>()) };
        Ok(Self {
            control: base.cast(),
            slots: slots.cast(),
            shape: Shape::new(capacity),
            owned: false,
            items: PhantomData,
        })
    }
}

fn check(capacity: u32) -> Result<()> {
    if (1..=1 << 30).contains(&capacity) {
        return Ok(());
    }
    Err(Error::with(
        "futex2::Channel",
        Errno::INVAL,
        format_args!("a capacity of {capacity}, of 1 to {}", 1 << 30),
    ))
}

impl<T, S: Scope> Drop for Channel<T, S> {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        while let Ok(item) = self.try_recv() {
            drop(item);
        }
        let slots = NonNull::slice_from_raw_parts(self.slots, self.shape.capacity as usize);
        // SAFETY: leaked by `bounded`, and empty.
        drop(unsafe { Box::from_raw(slots.as_ptr()) });
        // SAFETY: leaked by `bounded`.
        drop(unsafe { Box::from_raw(self.control.as_ptr()) });
    }
}
