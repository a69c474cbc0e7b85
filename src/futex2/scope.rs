//! Who may wait on a word, as a type.

/// A scope: [`Private`] or [`Shared`].
pub trait Scope: sealed::Sealed + Send + Sync + 'static {
    /// Waiters and wakers are threads of one process.
    const PRIVATE: bool;
}

/// Threads of this process. The word is known by its address.
#[derive(Debug)]
pub enum Private {}

/// Every process that maps the memory, wherever. The word is known by its file (or, in
/// anonymous memory, by its address space) and its place in it.
#[derive(Debug)]
pub enum Shared {}

impl Scope for Private {
    const PRIVATE: bool = true;
}

impl Scope for Shared {
    const PRIVATE: bool = false;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Private {}
    impl Sealed for super::Shared {}
}
