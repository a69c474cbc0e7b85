//! Who may wait on a word, as a type.

/// A scope in which words are waited on as they are: [`Private`] or [`Shared`].
pub trait Scope: Reach {}

/// Any scope that a [`Futex`](super::Futex) can have: those of [`Scope`], and [`Counted`].
pub trait Reach: sealed::Sealed + Copy + core::fmt::Debug + Send + Sync + 'static {
    /// Waiters and wakers are threads of one process.
    const PRIVATE: bool;
}

/// Threads of this process. The word is known by its address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Private;

/// Every process that maps the memory, wherever. The word is known by its file (or, in
/// anonymous memory, by its address space) and its place in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shared;

/// Every process that has attached the [`Domain`](super::Domain) that the word is in. Waits and
/// wakes name the domain: there the waiters are counted, so that a wake that nobody waits for
/// makes no system call. A type of its own, because one waiter that is not counted can be missed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted;

impl Reach for Private {
    const PRIVATE: bool = true;
}

impl Reach for Shared {
    const PRIVATE: bool = false;
}

impl Reach for Counted {
    const PRIVATE: bool = false;
}

impl Scope for Private {}
impl Scope for Shared {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Private {}
    impl Sealed for super::Shared {}
    impl Sealed for super::Counted {}
}
