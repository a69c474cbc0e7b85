//! Values whose layout only one program knows.

use crate::error::{Error, Result};
use crate::shm::Resident;
use crate::sync::{AtomicU64, Ordering};
use core::hash::{Hash, Hasher};
use core::mem::MaybeUninit;
use core::ptr;
use rustix::io::Errno;

/// A value of any type, with the marks of the type and of the program that made it: other programs are
/// refused, because the compiler may lay out the type otherwise there, and so are other types.
///
/// So vectors and hash maps that allocate from a [`Heap`](super::Heap), which are not `repr(C)`,
/// are published in a region.
///
/// ```
/// # #[cfg(feature = "allocator-api2")]
/// # fn main() -> unmerged::Result<()> {
/// use allocator_api2::vec::Vec;
/// use core::alloc::Layout;
/// use unmerged::mshare::{Heap, Region, SameProgram};
///
/// type Numbers = SameProgram<Vec<u64, Heap>>;
///
/// # let name = format!("doc-same-{}", std::process::id());
/// let region = Region::builder(&name).size(1 << 26).create()?;
/// let heap = region.heap()?;
/// let mut numbers = Vec::new_in(heap);
/// numbers.extend(1..=4);
/// let place = heap.alloc(Layout::new::<Numbers>())?.cast::<Numbers>();
/// // SAFETY: room for one; the vector has no addresses but those of the heap.
/// unsafe { place.write(SameProgram::new(numbers)?) };
/// region.create_root("numbers", place)?;
///
/// // In another process that runs this program:
/// let region = Region::open(&name)?;
/// region.heap()?;
/// let numbers = region.root::<Numbers>("numbers")?.unwrap();
/// // SAFETY: published above, and nobody else uses it now.
/// let numbers = unsafe { &mut *region.get(numbers.as_ptr())?.get()? };
/// numbers.push(5);
/// assert_eq!(numbers.iter().sum::<u64>(), 15);
/// # Ok(())
/// # }
/// # #[cfg(not(feature = "allocator-api2"))]
/// # fn main() {}
/// ```
#[repr(C)]
#[derive(Debug)]
pub struct SameProgram<T> {
    program: AtomicU64,
    kind: AtomicU64,
    value: core::cell::UnsafeCell<MaybeUninit<T>>,
}

// SAFETY: its layout is not looked at by another program; that nothing in it is one process's own
// was promised to `new`; it drops nothing.
unsafe impl<T: 'static> Resident for SameProgram<T> {
    const TAG: u64 = u64::from_le_bytes(*b"program\0");
}

// SAFETY: it hands out a raw pointer only.
unsafe impl<T: Send> Sync for SameProgram<T> {}

impl<T: 'static> SameProgram<T> {
    /// A value to be moved into a region. It is not dropped with this.
    ///
    /// # Errors
    ///
    /// Those of stat(2) on /proc/self/exe: without it a program does not know itself.
    ///
    /// # Safety
    ///
    /// Nothing in it belongs to one process, as with any [`Resident`]: no address but those of
    /// memory of the region, no function pointer or vtable, no descriptor.
    pub unsafe fn new(value: T) -> Result<Self> {
        let value = core::cell::UnsafeCell::new(MaybeUninit::new(value));
        Ok(Self { program: AtomicU64::new(program()?), kind: AtomicU64::new(kind::<T>()), value })
    }

    /// The value, for the program that made it. Who uses it at a time, and who drops it, is the
    /// callers' to agree on.
    ///
    /// # Errors
    ///
    /// EPROTO if another program made it: another file, or the same one built or copied anew; or if
    /// the value is of another type, as far as a hash tells. Those of [`new`](Self::new).
    pub fn get(&self) -> Result<*mut T> {
        const OP: &str = "mshare::SameProgram::get";
        match (self.program.load(Ordering::Relaxed), program()?) {
            (made, runs) if made == runs => {
                match (self.kind.load(Ordering::Relaxed), kind::<T>()) {
                    (made, asked) if made == asked => {
                        Ok(ptr::from_ref(&self.value).cast_mut().cast())
                    }
                    (made, asked) => {
                        let name = core::any::type_name::<T>();
                        let numbers = format_args!("made of type {made:#x}, {name} is {asked:#x}");
                        Err(Error::with(OP, Errno::PROTO, numbers))
                    }
                }
            }
            (made, runs) => {
                let numbers = format_args!("made by program {made:#x}, this is {runs:#x}");
                Err(Error::with(OP, Errno::PROTO, numbers))
            }
        }
    }
}

/// A number for a type, the same as long as the program is.
fn kind<T: 'static>() -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    core::any::TypeId::of::<T>().hash(&mut hasher);
    hasher.finish()
}

/// A number for the file that this process executes, never 0.
fn program() -> Result<u64> {
    let stat = rustix::fs::stat("/proc/self/exe")
        .map_err(|errno| Error::new("mshare::SameProgram", errno))?;
    let words = [
        stat.st_dev,
        stat.st_ino,
        stat.st_size.cast_unsigned(),
        stat.st_mtime.cast_unsigned(),
        stat.st_mtime_nsec,
    ];
    let hash = words.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, word| {
        (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
    });
    Ok(hash.max(1))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn another_program_is_refused() {
        // SAFETY: a number.
        let value = unsafe { SameProgram::new(7_u64) }.unwrap();
        // SAFETY: made above, used here alone.
        assert_eq!(unsafe { value.get().unwrap().read() }, 7);
        // Another type, which looks the same from outside.
        let other = ptr::from_ref(&value).cast::<SameProgram<*const u64>>();
        // SAFETY: of the same layout, alive, and only its two words are looked at.
        let error = unsafe { (*other).get() }.unwrap_err();
        assert!(error.is_corrupt() && error.to_string().contains("*const u64"), "{error}");
        value.program.store(1, Ordering::Relaxed);
        assert!(value.get().unwrap_err().is_corrupt());
    }
}
