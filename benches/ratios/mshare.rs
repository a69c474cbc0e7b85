//! The mshare rows.

use crate::harness::{Options, Row, Target, each, pinned};
use crate::peer::Peer;
use std::os::fd::AsRawFd;
use std::ptr;
use unmerged::mshare::Region;

/// The role of a process that serves a region.
pub(crate) const SERVER: &str = "server";
const SIZE: usize = 1 << 26;

fn name(server: u32) -> String {
    format!("bench-{server}")
}

pub(crate) fn serve(until_released: &dyn Fn()) {
    let region = Region::builder(&name(std::process::id())).size(SIZE).create();
    let region = region.expect("the runtime directory can be written");
    // SAFETY: the first byte of the region, which nobody else writes.
    unsafe { region.base().write(7) };
    until_released();
}

/// From the name to the first byte, and back to nothing.
pub(crate) fn rows(options: &Options) {
    if !options.wants("mshare/attach") {
        return;
    }
    let server = Peer::start(SERVER);
    let name = name(server.pid());
    let ours = each(|| {
        let region = Region::open(&name).expect("the peer serves it");
        // SAFETY: mapped, and written before the peer was ready.
        assert_eq!(unsafe { region.base().read_volatile() }, 7);
    });
    let object = std::path::PathBuf::from(format!("/dev/shm/{name}"));
    std::fs::write(&object, [7]).expect("/dev/shm can be written");
    let theirs = each(|| {
        let file = std::fs::File::open(&object).expect("it was just written");
        let len = file.metadata().expect("it is a file").len() as usize;
        // SAFETY: a new mapping of that file, read within its length, then unmapped.
        unsafe {
            let (read, shared) = (libc::PROT_READ, libc::MAP_SHARED);
            let at = libc::mmap(ptr::null_mut(), len, read, shared, file.as_raw_fd(), 0);
            assert_eq!(at.cast::<u8>().read_volatile(), 7);
            libc::munmap(at, len);
        }
    });
    pinned(0, || {
        Row::new("mshare/attach", ours)
            .limit(100_000.0)
            .peer("shm-open-mmap", Target::None, theirs)
            .run(options);
    });
    let _ = std::fs::remove_file(object);
}
