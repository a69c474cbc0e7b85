//! Typed views of memory that others may write.
//!
//! The rule: such memory is reached by atomic or by volatile copy, never by `&T` or
//! `&[u8]`. A length or an offset found in it is copied out, then checked, then used, and
//! never read twice.

mod bitmap;
mod resident;
mod view;

pub(crate) use bitmap::Bitmap;
pub use resident::Resident;
pub(crate) use view::View;
