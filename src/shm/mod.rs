//! Typed views of memory that others may write.
//!
//! The rule: such memory is reached by atomics or by raw pointers, never by `&T` or
//! `&[u8]` while it may change. A length or an offset found in it is copied out, then checked, then used, and
//! never read twice.

mod bitmap;
mod resident;
mod view;

pub(crate) use bitmap::Bitmap;
pub use resident::Resident;
pub(crate) use view::View;
