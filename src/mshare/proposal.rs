//! The two calls of the proposal of 2022, with its arguments and its errors.

use super::gate::Gate;
use super::region::Region;
use super::rights::Rights;
use super::window::ALIGN;
use crate::error::{Error, Result};
use core::ptr::NonNull;
use rustix::io::Errno;

const MSHARE: &str = "mshare::mshare";
const MSHARE_UNLINK: &str = "mshare::mshare_unlink";

/// The regions of this process that have been made or taken by these calls.
static TAKEN: Gate<Vec<Region>> = Gate::new(Vec::new());

/// `mshare(name, addr, len, oflag, mode)` — makes a region at an address of the caller's, or takes
/// the one that is there; it stays mapped until [`mshare_unlink`].
///
/// `oflag` is 0 or `O_RDONLY` to read, `O_RDWR` to read and write, `O_CREAT` to make it; the last
/// with `O_EXCL` or alone fails if it exists, as in the patches. Unlike them, `addr` and `len`
/// are multiples of 1 GiB and 4096 and not of 512 GiB, an `addr` of 0 lets the library choose, and
/// no memory of the caller's is taken over: the range has to be free.
///
/// # Errors
///
/// EINVAL for a name, an address, a length or flags that cannot be, and for a region that lies
/// elsewhere or has another length; EEXIST if it exists and was to be made, or if the addresses are
/// not free; ENOENT if it does not exist; EPERM or EACCES if the mode forbids it.
pub fn mshare(name: &str, addr: usize, len: usize, oflag: i32, mode: u32) -> Result<NonNull<u8>> {
    let create = oflag & (libc::O_CREAT | libc::O_EXCL) != 0;
    if oflag & !(libc::O_CREAT | libc::O_EXCL | libc::O_ACCMODE) != 0
        || oflag & libc::O_ACCMODE == libc::O_ACCMODE
        || !addr.is_multiple_of(ALIGN as usize)
    {
        let why = format_args!("address {addr:#x}, flags {oflag:#o}");
        return Err(Error::with(MSHARE, Errno::INVAL, why));
    }
    let region = if create {
        let mut builder = Region::builder(name).size(len).mode(mode);
        if addr != 0 {
            builder = builder.base(addr);
        }
        builder.create()?
    } else {
        let opener = Region::opener(name);
        let opener = match oflag & libc::O_ACCMODE {
            libc::O_RDONLY => opener.rights(Rights::READ),
            _ => opener,
        };
        opener.open()?
    };
    let base = region.base();
    if region.size() != len || (addr != 0 && base.addr().get() != addr) {
        let size = region.size();
        let why = format_args!("it has {size:#x} bytes at {base:p}, not {len:#x} at {addr:#x}");
        return Err(Error::with(MSHARE, Errno::INVAL, why));
    }
    TAKEN.enter(Vec::new).push(region);
    Ok(base)
}

/// `mshare_unlink(name)` — lets go of what one call of [`mshare`] gave this process. The name
/// goes when the last process has let go, or has ended.
///
/// # Errors
///
/// EINVAL if this process has not taken it.
pub fn mshare_unlink(name: &str) -> Result<()> {
    let mut taken = TAKEN.enter(Vec::new);
    match taken.iter().position(|region| region.name() == name) {
        Some(at) => {
            let region = taken.swap_remove(at);
            drop(taken);
            drop(region);
            Ok(())
        }
        None => Err(Error::because(MSHARE_UNLINK, Errno::INVAL, "not taken by this process")),
    }
}
