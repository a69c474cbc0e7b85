//! This process's own image: the bytes that the linker laid down and the loader relocated.

use std::ffi::c_void;
use std::ops::Range;
use std::sync::OnceLock;

use iced_x86::{Decoder, DecoderOptions, Instruction};

/// Longest instruction of the architecture.
pub(crate) const LONGEST: usize = 15;

/// Where the segments of the executable are mapped.
fn segments() -> &'static [Range<usize>] {
    static SEGMENTS: OnceLock<Vec<Range<usize>>> = OnceLock::new();
    SEGMENTS.get_or_init(|| {
        let mut found = Vec::new();
        // SAFETY: the callback gets what it expects: the vector, during the call.
        unsafe { libc::dl_iterate_phdr(Some(first_object), (&raw mut found).cast()) };
        found
    })
}

/// The first object that libc lists is the executable.
unsafe extern "C" fn first_object(
    info: *mut libc::dl_phdr_info,
    _: usize,
    found: *mut c_void,
) -> i32 {
    // SAFETY: libc hands over a valid entry and our own vector.
    let (info, found) = unsafe { (&*info, &mut *found.cast::<Vec<Range<usize>>>()) };
    for n in 0..usize::from(info.dlpi_phnum) {
        // SAFETY: libc gives the number of headers.
        let header = unsafe { &*info.dlpi_phdr.add(n) };
        if header.p_type == libc::PT_LOAD {
            let start = (info.dlpi_addr + header.p_vaddr) as usize;
            found.push(start..start + header.p_memsz as usize);
        }
    }
    1
}

/// `N` bytes of the image, if that is where they are.
pub(crate) fn bytes<const N: usize>(address: u64) -> Option<[u8; N]> {
    let at = address as usize;
    let end = at.checked_add(N)?;
    let inside = |segment: &&Range<usize>| segment.start <= at && end <= segment.end;
    segments().iter().find(inside)?;
    let pointer = std::ptr::with_exposed_provenance::<[u8; N]>(at);
    // SAFETY: mapped for the life of the process. Text and descriptors do not change; of data
    // that does, a stale or torn copy is as good as any.
    Some(unsafe { pointer.read_volatile() })
}

/// The instruction at `address`, whose bytes `byte` gives; invalid where there are none.
pub(crate) fn decode(address: u64, byte: impl Fn(u64) -> Option<u8>) -> Instruction {
    let bytes: Vec<u8> = (address..address + LONGEST as u64).map_while(byte).collect();
    Decoder::with_ip(64, &bytes, address, DecoderOptions::NONE).decode()
}
