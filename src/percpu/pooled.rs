//! The guard of an object of a pool's.

use super::Pool;
use core::fmt;
use core::mem::ManuallyDrop;
use core::ops::{Deref, DerefMut};

/// An object of a [`Pool`]'s, which goes back when this is dropped.
pub struct Pooled<'a, T, F = fn() -> T> {
    pub(super) object: ManuallyDrop<Box<T>>,
    pub(super) pool: &'a Pool<T, F>,
}

impl<T, F> Pooled<'_, T, F> {
    /// The object, which does not go back.
    pub fn detach(this: Self) -> Box<T> {
        let mut this = ManuallyDrop::new(this);
        // SAFETY: taken once, as `this` is not dropped.
        unsafe { ManuallyDrop::take(&mut this.object) }
    }

    /// The object by value; its box is freed.
    pub fn into_inner(this: Self) -> T {
        *Self::detach(this)
    }
}

impl<T, F> Drop for Pooled<'_, T, F> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: taken once, here.
        let object = unsafe { ManuallyDrop::take(&mut self.object) };
        self.pool.put(object);
    }
}

impl<T, F> Deref for Pooled<'_, T, F> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.object
    }
}

impl<T, F> DerefMut for Pooled<'_, T, F> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.object
    }
}

impl<T: fmt::Debug, F> fmt::Debug for Pooled<'_, T, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pooled").field(&**self).finish()
    }
}
