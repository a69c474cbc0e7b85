//! What may live in memory that several processes map at one address.

#[cfg(not(all(test, loom)))]
use crate::sync::{
    AtomicBool, AtomicIsize, AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize,
};
use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::num::{
    NonZeroI8, NonZeroI16, NonZeroI32, NonZeroI64, NonZeroIsize, NonZeroU8, NonZeroU16, NonZeroU32,
    NonZeroU64, NonZeroUsize, Saturating, Wrapping,
};
use core::ptr::NonNull;

/// A type whose values mean the same in every process that maps them at one address.
///
/// ```
/// use core::ptr::null_mut;
/// use unmerged::mshare::Resident;
///
/// #[repr(C)]
/// struct Node {
///     next: *mut Node,
///     value: u64,
/// }
/// // SAFETY: `next` is null or points at a Node of the same region; repr(C); no Drop;
/// // written before it is published, and never after.
/// unsafe impl Resident for Node {}
/// # let _ = Node { next: null_mut(), value: 1 };
/// ```
///
/// # Safety
///
/// - Nothing in it belongs to one process: no reference, `Box`, `Vec` or `String` of the
///   ordinary heap, no function pointer, no vtable, no address of a static, no
///   descriptor, no thread id. A raw pointer may point into the region itself.
/// - No `Drop` has to run: the process that would run it may be killed, and the memory
///   stays.
/// - Its layout is the same in every process: `repr(C)`, `repr(transparent)` or a
///   primitive, because the compiler may lay out a `repr(Rust)` type differently in
///   another program.
/// - What is changed after others can see it is changed by atomics only. Types with a
///   process-private notion of waiting (`std::sync::Mutex`) are none of these.
pub unsafe trait Resident: Sized + 'static {
    /// Tells types of one size and alignment apart where they are found by name: a number of
    /// one's own choice, the same in every program, such as a version of the layout. 0, if
    /// nothing else is said, is not told from another 0.
    const TAG: u64 = 0;
}

macro_rules! residents {
    ($why:literal: $($name:ty),+ $(,)?) => {
        $(
            #[doc = $why]
            // SAFETY: a number, with no meaning of its own in any process, the same layout
            // everywhere and no Drop; an atomic one is lock-free, hence free of addresses.
            unsafe impl Resident for $name {}
        )+
    };
}

residents!("A number is the same everywhere.":
    u8, u16, u32, u64, u128, usize, i8, i16, i32, i64, i128, isize, f32, f64, bool, char, ());

// A model's atomics are no memory words.
#[cfg(not(all(test, loom)))]
residents!("A lock-free word is changed by any process.":
    AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, AtomicIsize);

#[cfg(not(all(test, loom)))]
// SAFETY: a word; what it points at is in the region, as with a raw pointer.
unsafe impl<T: Resident> Resident for AtomicPtr<T> {}
// SAFETY: an address, the same in every process; what is there is a resident itself.
unsafe impl<T: Resident> Resident for *const T {}
// SAFETY: as above.
unsafe impl<T: Resident> Resident for *mut T {}
// SAFETY: as above.
unsafe impl<T: Resident> Resident for NonNull<T> {}
// SAFETY: as above; `None` is the null pointer in every program.
unsafe impl<T: Resident> Resident for Option<NonNull<T>> {}
residents!("A number that is not 0 is the same everywhere.":
    NonZeroU8, NonZeroU16, NonZeroU32, NonZeroU64, NonZeroUsize,
    NonZeroI8, NonZeroI16, NonZeroI32, NonZeroI64, NonZeroIsize,
    Option<NonZeroU8>, Option<NonZeroU16>, Option<NonZeroU32>, Option<NonZeroU64>,
    Option<NonZeroUsize>, Option<NonZeroI8>, Option<NonZeroI16>, Option<NonZeroI32>,
    Option<NonZeroI64>, Option<NonZeroIsize>);

// SAFETY: no bytes.
unsafe impl<T: 'static> Resident for PhantomData<T> {}
// SAFETY: transparent around a `T`.
unsafe impl<T: Resident> Resident for Saturating<T> {}
// SAFETY: an array has the bytes of its elements and no others.
unsafe impl<T: Resident, const N: usize> Resident for [T; N] {}
// SAFETY: the layout of a `T`, and promises less.
unsafe impl<T: Resident> Resident for MaybeUninit<T> {}
// SAFETY: transparent around a `T`.
unsafe impl<T: Resident> Resident for Wrapping<T> {}
