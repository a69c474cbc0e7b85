//! A view: a mapping, reached by atomics, every access range-checked.

use crate::error::{Error, Result};
use crate::sync::{AtomicU32, AtomicU64};
use crate::sys::map::{Mapping, check_range};
use core::marker::PhantomData;
use core::mem::{align_of, size_of};
use core::ptr::NonNull;
use rustix::io::Errno;

/// The bytes of a mapping that others may write.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View<'a> {
    start: NonNull<u8>,
    len: usize,
    mapping: PhantomData<&'a Mapping>,
}

impl<'a> View<'a> {
    /// A view of the whole mapping.
    pub(crate) fn of(mapping: &'a Mapping) -> Self {
        Self { start: mapping.start(), len: mapping.len(), mapping: PhantomData }
    }

    /// Pointer to a `T` at `offset`, inside and aligned.
    fn at<T>(&self, offset: usize, count: usize) -> Result<NonNull<T>> {
        let size = size_of::<T>().saturating_mul(count);
        check_range("view", self.len, offset, size)?;
        if !(self.start.addr().get() + offset).is_multiple_of(align_of::<T>()) {
            let align = align_of::<T>();
            return Err(Error::with(
                "view",
                Errno::INVAL,
                format_args!("offset {offset} is not aligned to {align}"),
            ));
        }
        // SAFETY: the range lies inside the mapping.
        Ok(unsafe { self.start.add(offset) }.cast())
    }

    /// The 32-bit word at `offset`.
    ///
    /// # Errors
    ///
    /// EINVAL if it does not lie inside, or is not aligned.
    pub(crate) fn u32(&self, offset: usize) -> Result<&'a AtomicU32> {
        let at = self.at::<AtomicU32>(offset, 1)?;
        // SAFETY: in range, aligned, mapped for 'a; an atomic may be written by others.
        Ok(unsafe { at.as_ref() })
    }

    /// `count` 64-bit words from `offset` on.
    ///
    /// # Errors
    ///
    /// EINVAL if they do not lie inside, or are not aligned.
    pub(crate) fn u64s(&self, offset: usize, count: usize) -> Result<&'a [AtomicU64]> {
        let at = self.at::<AtomicU64>(offset, count)?;
        // SAFETY: in range, aligned, mapped for 'a; atomics may be written by others.
        Ok(unsafe { NonNull::slice_from_raw_parts(at, count).as_ref() })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sync::Ordering;
    use crate::sys::map::{Access, PAGE};

    #[test]
    fn in_range_and_aligned_or_an_error_with_the_numbers() {
        let mapping = Mapping::anonymous(PAGE, Access::Write).unwrap();
        let view = View::of(&mapping);
        view.u64s(8, 2).unwrap()[1].store(9, Ordering::Relaxed);
        let copy = view.u64s(0, 3).unwrap().iter().map(|word| word.load(Ordering::Relaxed));
        assert_eq!(copy.collect::<Vec<_>>(), [0, 0, 9]);
        assert_eq!(view.u32(PAGE - 4).unwrap().load(Ordering::Relaxed), 0);
        for (offset, message) in [(PAGE - 3, "4093"), (usize::MAX, "beyond"), (2, "aligned to 4")] {
            let error = view.u32(offset).unwrap_err();
            assert!(error.is_invalid() && error.to_string().contains(message), "{error}");
        }
        assert!(view.u64s(0, usize::MAX).is_err());
        assert!(view.u64s(PAGE - 16, 3).is_err());
    }
}
