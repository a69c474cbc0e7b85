//! A table that anybody may have written, and a reader of it that must come through.
//!
//! The tests and the fuzzer (`fuzz/`) share it.
#![allow(dead_code, reason = "each user takes its own part")]

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use std::os::fd::OwnedFd;
use std::time::Duration;
use unmerged::futex2::Deadline;
use unmerged::task_shared::Monitor;

/// The name that readers look for.
pub(crate) const NAME: &str = "unmerged.task_shared";
/// Byte of the first owner, and of the first slot.
pub(crate) const OWNERS: usize = 4096;
pub(crate) const SLOTS: usize = OWNERS + 65_536 * 64;
/// The seals that a reader asks for.
pub(crate) const SEALS: SealFlags = SealFlags::FUTURE_WRITE.union(SealFlags::SHRINK);

/// A header as the documentation describes it, of so many slots of 128 bytes, with one declared
/// word.
pub(crate) fn header(pid: u32, committed: u32) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    bytes[..8].copy_from_slice(b"tskshard");
    for (at, value) in [
        (8, 2),
        (12, pid),
        (16, 128),
        (20, 0),
        (24, committed),
        (28, OWNERS as u32),
        (32, SLOTS as u32),
        (36, 0),
        (40, 7),
        (44, 1),
        (1024 + 48, 1),
        (1024 + 52, 0),
    ] {
        bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    bytes[1024..1027].copy_from_slice(b"job");
    bytes
}

/// A memory file with these parts at their places.
pub(crate) fn file(parts: &[(usize, &[u8])], size: usize, seals: SealFlags) -> OwnedFd {
    let file = memfd_create(NAME, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&file, size as u64).unwrap();
    for (at, bytes) in parts {
        assert_eq!(rustix::io::pwrite(&file, bytes, *at as u64).unwrap(), bytes.len());
    }
    fcntl_add_seals(&file, seals).unwrap();
    file
}

/// What a fuzzer varies.
#[derive(Debug, Clone, Default)]
pub(crate) struct Hostile {
    /// Bytes of the header that are not as they should be.
    pub(crate) header: Vec<(u16, u8)>,
    /// Owners from the first on.
    pub(crate) owners: Vec<u8>,
    /// Slots from the first on.
    pub(crate) slots: Vec<u8>,
    /// Slots that the header says there are.
    pub(crate) committed: u16,
    /// Bytes that the file is too short or too long.
    pub(crate) size: i16,
}

/// Opens it; a table that is accepted is read in every way that there is.
pub(crate) fn read(hostile: &Hostile) {
    let mut header = header(1, hostile.committed.into());
    for &(at, value) in &hostile.header {
        header[usize::from(at) % 4096] = value;
    }
    let needed = SLOTS + usize::from(hostile.committed) * 128;
    let size = needed.saturating_add_signed(hostile.size.into());
    let owners = &hostile.owners[..hostile.owners.len().min(64 * 1000)];
    let slots = &hostile.slots[..hostile.slots.len().min(size.saturating_sub(SLOTS))];
    let parts = [(0, &header[..]), (OWNERS, owners), (SLOTS, slots)];
    match Monitor::from_fd(file(&parts, size, SEALS)) {
        Err(error) => assert!(error.is_corrupt() || error.is_not_found(), "{error}"),
        Ok(monitor) => walk(&monitor),
    }
}

/// Everything that a reader can ask, twice.
pub(crate) fn walk(monitor: &Monitor) {
    let mut counts = [0, 0];
    for count in &mut counts {
        for mut thread in monitor.threads() {
            *count += 1;
            let _ = (thread.tid(), thread.name().len(), thread.stats(), thread.user());
            let _ = (thread.cpu(), thread.node(), thread.updated(), thread.generation());
            let _ = (thread.is_alive(), thread.is_consistent(), thread.is_sampled());
            let bounds = thread.off_cpu_at(1 << 40);
            assert!(bounds.start() <= bounds.end());
            for field in monitor.fields() {
                assert!(thread.value(field).is_some_and(|value| !value.to_string().is_empty()));
            }
            assert!(thread.refresh(), "nobody changes the file");
            match monitor.thread(thread.handle()) {
                Ok(again) => assert_eq!(again.tid(), thread.tid()),
                Err(error) => assert_eq!(error.raw_os_error(), libc::ESTALE),
            }
            let _ = format!("{thread:?}");
        }
    }
    assert_eq!(counts[0], counts[1]);
    let _ = (monitor.is_running(), monitor.births(), monitor.deaths());
    let error = monitor.wait(Deadline::after(Duration::ZERO));
    assert!(error.is_err_and(|error| error.is_timed_out() || error.is_not_found()));
}
