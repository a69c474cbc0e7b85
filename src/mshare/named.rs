//! The roots of a region, as a caller sees them.

use super::region::Region;
use super::root_key::{Key, Kind};
use super::roots::{Listed, Refusal};
use crate::error::{Error, Result};
use crate::shm::Resident;
use core::ptr::NonNull;
use rustix::io::Errno;

impl Region {
    /// Publishes `value`, and all that was written before, as the root of this name, instead
    /// of what was there. There are [60 roots](Self::MAX_ROOTS); the first who sets a
    /// name takes one for good, and with it size and alignment of the type. It is not given to
    /// another name when the root is removed, for another process may be about to set it again.
    ///
    /// # Errors
    ///
    /// EINVAL with the numbers if the value is not inside and aligned, or if the root was set
    /// with a type of other size, alignment or [tag](Resident::TAG). ENOSPC if all roots have other
    /// names; EEXIST if another name has the same hash.
    pub fn set_root<T: Resident>(&self, name: &str, value: NonNull<T>) -> Result<()> {
        const OP: &str = "mshare::Region::set_root";
        self.writable(OP)?;
        let value = self.check(OP, value.as_ptr(), 1, Errno::INVAL)?;
        let kind = Kind::of::<T>();
        let address = value.as_ptr().expose_provenance() as u64;
        let roots = self.attachment.header().roots();
        roots.set(Key::of(name), kind, address).map_err(|refusal| refused(OP, name, kind, refusal))
    }

    /// The root of this name: what was published last, with all that was written before.
    /// `None` if nothing was.
    ///
    /// # Errors
    ///
    /// EINVAL with the numbers if it was set with a type of other size or alignment, EBADMSG
    /// if the address found is not inside and aligned: a participant wrote it by force.
    pub fn root<T: Resident>(&self, name: &str) -> Result<Option<NonNull<T>>> {
        const OP: &str = "mshare::Region::root";
        let kind = Kind::of::<T>();
        let roots = self.attachment.header().roots();
        match roots.get(Key::of(name), kind).map_err(|refusal| refused(OP, name, kind, refusal))? {
            0 => Ok(None),
            address => {
                let pointer = core::ptr::without_provenance(address as usize);
                self.check(OP, pointer, 1, Errno::BADMSG).map(Some)
            }
        }
    }

    /// Publishes `value` as the root of this name if there is none: `Ok(None)`. If there is,
    /// because another process was first, the answer is that one, and `value` is the caller's
    /// still.
    ///
    /// # Errors
    ///
    /// Those of [`set_root`](Self::set_root) and [`root`](Self::root).
    pub fn create_root<T: Resident>(
        &self,
        name: &str,
        value: NonNull<T>,
    ) -> Result<Option<NonNull<T>>> {
        self.exchange_root(name, None, Some(value))
            .map(core::result::Result::err)
            .map(Option::flatten)
    }

    /// Publishes `value` instead of `was`, if that is what the root of this name is now; `None`
    /// stands for no root. The inner error is what it is instead.
    ///
    /// # Errors
    ///
    /// Those of [`set_root`](Self::set_root) and [`root`](Self::root).
    pub fn exchange_root<T: Resident>(
        &self,
        name: &str,
        was: Option<NonNull<T>>,
        value: Option<NonNull<T>>,
    ) -> Result<core::result::Result<(), Option<NonNull<T>>>> {
        const OP: &str = "mshare::Region::exchange_root";
        self.writable(OP)?;
        let kind = Kind::of::<T>();
        let address = match value {
            Some(value) => {
                let value = self.check(OP, value.as_ptr(), 1, Errno::INVAL)?;
                value.as_ptr().expose_provenance() as u64
            }
            None => 0,
        };
        let was = was.map_or(0, |was| was.addr().get() as u64);
        let roots = self.attachment.header().roots();
        match roots.replace(Key::of(name), kind, was, address) {
            Ok(Ok(_)) => Ok(Ok(())),
            Ok(Err(0)) => Ok(Err(None)),
            Ok(Err(other)) => {
                let pointer = core::ptr::without_provenance(other as usize);
                self.check(OP, pointer, 1, Errno::BADMSG).map(|other| Err(Some(other)))
            }
            Err(refusal) => Err(refused(OP, name, kind, refusal)),
        }
    }

    /// Makes the root of this name none; what it was. Of several who call this one gets it, and
    /// may free it. The name keeps its place among the 16, and its type.
    ///
    /// # Errors
    ///
    /// Those of [`root`](Self::root).
    pub fn remove_root<T: Resident>(&self, name: &str) -> Result<Option<NonNull<T>>> {
        const OP: &str = "mshare::Region::remove_root";
        self.writable(OP)?;
        let kind = Kind::of::<T>();
        let roots = self.attachment.header().roots();
        match roots
            .remove(Key::of(name), kind)
            .map_err(|refusal| refused(OP, name, kind, refusal))?
        {
            0 => Ok(None),
            address => {
                let pointer = core::ptr::without_provenance(address as usize);
                self.check(OP, pointer, 1, Errno::BADMSG).map(Some)
            }
        }
    }

    /// All roots that are set, in no order. What they say is not checked.
    pub fn roots(&self) -> Vec<RootInfo> {
        let listed = self.attachment.header().roots().list();
        let info = |root: Listed| RootInfo {
            name: root.name,
            size: root.kind.size(),
            align: 1_u64.checked_shl(root.kind.align_log2() as u32).unwrap_or(0),
            tag: root.kind.tag(),
            address: root.pointer,
        };
        listed.into_iter().map(info).collect()
    }
}

/// A root, as [`Region::roots`] lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RootInfo {
    /// Its name, cut after 32 bytes.
    pub name: String,
    /// Bytes of its type.
    pub size: u64,
    /// Alignment of its type.
    pub align: u64,
    /// [Tag](Resident::TAG) of its type, 0 for none.
    pub tag: u64,
    /// Where it points.
    pub address: u64,
}

#[cold]
fn refused(operation: &'static str, name: &str, kind: Kind, refusal: Refusal) -> Error {
    match refusal {
        Refusal::Full => Error::with(
            operation,
            Errno::NOSPC,
            format_args!("all {} roots have other names than \"{name}\"", Region::MAX_ROOTS),
        ),
        Refusal::Name => Error::with(
            operation,
            Errno::EXIST,
            format_args!("another name has the hash of \"{name}\""),
        ),
        Refusal::Kind(other) => Error::with(
            operation,
            Errno::INVAL,
            format_args!(
                "root \"{name}\" is {} bytes aligned to 2^{} with tag {:#x}, not {} aligned to \
                 2^{} with tag {:#x}",
                other.size(),
                other.align_log2(),
                other.tag(),
                kind.size(),
                kind.align_log2(),
                kind.tag()
            ),
        ),
    }
}
