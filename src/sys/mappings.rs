//! `/proc/self/maps` and `/proc/self/pagemap`: what lies at an address.

use rustix::io::{Errno, Result};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};

/// A mapping of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Its first address.
    pub start: usize,
    /// The address behind its last.
    pub end: usize,
    /// It can be written.
    pub is_writable: bool,
    /// It was made with `MAP_SHARED`.
    pub is_shared: bool,
    /// Where it begins in its file.
    pub offset: u64,
    /// Major and minor number of the file's device.
    pub device: (u32, u32),
    /// The file; 0: none.
    pub inode: u64,
}

fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}

/// The mapping around an address.
///
/// # Errors
///
/// EFAULT if there is none, ENOENT without `/proc`.
pub fn around(address: usize) -> Result<Region> {
    let file = std::fs::File::open("/proc/self/maps").map_err(|error| errno(&error))?;
    for line in BufReader::new(file).split(b'\n') {
        let line = line.map_err(|error| errno(&error))?;
        if let Some(region) = parse(&String::from_utf8_lossy(&line))
            && (region.start..region.end).contains(&address)
        {
            return Ok(region);
        }
    }
    Err(Errno::FAULT)
}

/// A line: `start-end rwxp offset major:minor inode path`.
fn parse(line: &str) -> Option<Region> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let access = fields.next()?.as_bytes();
    let offset = u64::from_str_radix(fields.next()?, 16).ok()?;
    let (major, minor) = fields.next()?.split_once(':')?;
    let hex = |text| u32::from_str_radix(text, 16).ok();
    Some(Region {
        start: usize::from_str_radix(start, 16).ok()?,
        end: usize::from_str_radix(end, 16).ok()?,
        is_writable: *access.get(1)? == b'w',
        is_shared: *access.get(3)? == b's',
        offset,
        device: (hex(major)?, hex(minor)?),
        inode: fields.next()?.parse().ok()?,
    })
}

/// Bit 61 of an entry of `/proc/self/pagemap` — whether the page at an address is its file's own,
/// not a private copy. No for one that is not there.
///
/// # Errors
///
/// ENOENT without `/proc`, or what reading gives.
pub fn is_of_file(address: usize) -> Result<bool> {
    let mut entry = [0; 8];
    let look = || {
        let mut file = std::fs::File::open("/proc/self/pagemap")?;
        file.seek(SeekFrom::Start((address / super::map::PAGE * 8) as u64))?;
        file.read_exact(&mut entry)
    };
    let looked: std::io::Result<()> = { look }();
    looked.map_err(|error| errno(&error))?;
    Ok(u64::from_ne_bytes(entry) >> 61 & 1 != 0)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sys::map::{Access, Mapping, PAGE, Place};
    use crate::sys::memfd;

    #[test]
    fn lines() {
        let line = "7f00-7f80 r--s 00001000 fd:01 42    /a b";
        let region = parse(line).unwrap();
        assert_eq!((region.start, region.end, region.offset), (0x7f00, 0x7f80, 0x1000));
        assert_eq!((region.device, region.inode), ((0xfd, 1), 42));
        assert!(region.is_shared && !region.is_writable);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn a_memory_file() {
        let file = memfd::create("unmerged.test", 2 * PAGE as u64).unwrap();
        let map = Mapping::shared(&file, 2 * PAGE, Access::Write, Place::Anywhere).unwrap();
        let region = around(map.address() + PAGE).unwrap();
        assert!(region.is_shared && region.inode != 0 && region.start == map.address());
        // SAFETY: our own page.
        unsafe { map.start().write(1) };
        assert_eq!(is_of_file(map.address()), Ok(true));
        assert_eq!(around(1), Err(Errno::FAULT));
    }
}
