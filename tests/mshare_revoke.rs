//! Pages that are taken away, whoever is against it, and where the file system cannot.

mod common;
#[path = "common/region.rs"]
mod regions;

use common::say;
use regions::{ask, lies, ready};
use rustix::fs::{SealFlags, fcntl_add_seals};
use rustix::io::Errno;
use std::io::BufRead;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use unmerged::mshare::{Content, Object, Prot, Region, Rights};

const PAGE: usize = 4096;
const SIZE: usize = 16 * PAGE;

fn create(dir: &TempDir) -> Region {
    Region::builder("region").size(SIZE).directory(dir.path()).create().unwrap()
}

fn write(region: &Region, page: usize, value: u64) {
    // SAFETY: inside; tests write what nobody else does.
    unsafe { region.base().as_ptr().add(page * PAGE).cast::<u64>().write_volatile(value) };
}

fn read(region: &Region, page: usize) -> u64 {
    // SAFETY: inside, and readable where the tests ask.
    unsafe { region.base().as_ptr().add(page * PAGE).cast::<u64>().read_volatile() }
}

/// The memory file of this process whose name begins so.
fn memory(name: &str) -> BorrowedFd<'static> {
    let start = format!("/memfd:{name}");
    let found = std::fs::read_dir("/proc/self/fd").unwrap().find_map(|entry| {
        let path = entry.unwrap().path();
        let link = std::fs::read_link(&path).ok()?;
        link.to_str()?.starts_with(&start).then_some(path)
    });
    let fd = found.unwrap().file_name().unwrap().to_str().unwrap().parse().unwrap();
    // SAFETY: open as long as the region is, which the tests hold.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// Not a test: another process, which does what it is told.
#[test]
fn child() {
    let Some(role) = common::role() else { return };
    if role == "cannot punch" {
        common::refuse(libc::SYS_fallocate, libc::EOPNOTSUPP);
        return without_holes();
    }
    let rights = if role == "writes" { Rights::READ | Rights::WRITE } else { Rights::ALL };
    let region = Region::opener("region").rights(rights).open().unwrap();
    say("ready");
    let result = |result: unmerged::Result<()>| match result {
        Ok(()) => "ok".to_owned(),
        Err(error) => error.raw_os_error().to_string(),
    };
    for line in std::io::stdin().lock().lines() {
        say(match line.unwrap().as_str() {
            "seal" => {
                let seals = SealFlags::FUTURE_WRITE | SealFlags::SHRINK;
                let sealed = fcntl_add_seals(memory("mshare-object:"), seals);
                sealed.map_or_else(|errno| errno.raw_os_error().to_string(), |()| "sealed".into())
            }
            "fail" => {
                common::refuse(libc::SYS_fallocate, libc::EIO);
                "ok".into()
            }
            "unmap" => result(region.unmap(PAGE..2 * PAGE)),
            "map" => result(region.map(2 * PAGE..3 * PAGE, Object::anonymous()).map(drop)),
            "object" => result(region.map(2 * PAGE..3 * PAGE, Object::revocable()).map(drop)),
            other => panic!("no such word: {other}"),
        });
    }
}

#[test]
fn a_writer_cannot_veto_it() {
    let dir = TempDir::new().unwrap();
    let region = create(&dir);
    region.map(4 * PAGE..8 * PAGE, Object::revocable()).unwrap();
    write(&region, 4, 7);
    write(&region, 7, 7);
    let mut other = ready(&dir, "writes");
    assert_eq!(ask(&mut other, "seal"), libc::EPERM.to_string());
    region.unmap(4 * PAGE..6 * PAGE).unwrap();
    assert_eq!(read(&region, 7), 7);
    // What is left of the object is looked at by each change.
    region.protect(0..PAGE, Prot::READ).unwrap();
    region.map(4 * PAGE..8 * PAGE, Object::anonymous()).unwrap();
    assert_eq!([4, 7].map(|page| read(&region, page)), [0, 0]);
    other.end();
}

/// What is committed is followed by all, also when the pages of what lay there cannot be taken.
#[test]
fn a_change_that_cannot_empty_is_made() {
    let dir = TempDir::new().unwrap();
    let region = create(&dir);
    let mut other = ready(&dir, "opens");
    write(&region, 1, 7);
    write(&region, 2, 7);
    assert_eq!(ask(&mut other, "fail"), "ok");
    for (word, page) in [("unmap", 1), ("map", 2)] {
        assert_eq!(ask(&mut other, word), libc::EIO.to_string());
        // Our thread was woken.
        let end = Instant::now() + Duration::from_secs(20);
        while lies(&region, page * PAGE) {
            assert!(Instant::now() < end, "{word}: nobody told us");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    // And nobody waits for the one that made it.
    region.protect(0..PAGE, Prot::READ).unwrap();
    region.map(PAGE..3 * PAGE, Object::anonymous()).unwrap();
    assert_eq!([1, 2].map(|page| read(&region, page)), [0, 0]);
    // An object does not take the place of what is still there.
    assert_eq!(ask(&mut other, "object"), libc::EIO.to_string());
    region.sync().unwrap();
    let parts = region.parts().unwrap();
    let is_hole = |part: &unmerged::mshare::Part| part.content == Content::Nothing;
    assert!(
        parts.iter().any(|part| is_hole(part) && part.range.contains(&(2 * PAGE))),
        "{parts:?}"
    );
    other.end();
}

#[test]
fn memory_below_an_object_is_zero_when_it_is_mapped() {
    let dir = TempDir::new().unwrap();
    // This process has other regions meanwhile.
    let region = Region::builder("below").size(SIZE).directory(dir.path()).create().unwrap();
    region.map(2 * PAGE..4 * PAGE, Object::revocable()).unwrap();
    write(&region, 3, 5);
    // As by one that had not followed yet, when the memory had been emptied.
    let late = rustix::io::pwrite(memory("mshare:below"), &[7; 8], 3 * PAGE as u64);
    assert_eq!(late, Ok::<_, Errno>(8));
    region.map(2 * PAGE..4 * PAGE, Object::anonymous()).unwrap();
    assert_eq!(read(&region, 3), 0);
}

/// In a file system without holes, memory begins with zeros nevertheless.
fn without_holes() {
    let dir = TempDir::new().unwrap();
    let region = create(&dir);
    for how in 0..3 {
        write(&region, 3, 7);
        match how {
            0 => {
                region.unmap(2 * PAGE..5 * PAGE).unwrap();
                region.map(2 * PAGE..5 * PAGE, Object::anonymous()).unwrap();
            }
            1 => drop(region.map(2 * PAGE..5 * PAGE, Object::anonymous()).unwrap()),
            _ => region.advise(2 * PAGE..5 * PAGE, unmerged::mshare::Advice::Remove).unwrap(),
        }
        assert_eq!(read(&region, 3), 0, "{how}");
    }
}

#[test]
fn zeros_without_holes() {
    common::succeed(common::child("child", "cannot punch"));
}
