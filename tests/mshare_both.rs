//! A heap and mappings in one region: neither reaches into the other.

mod common;
#[path = "common/region.rs"]
mod regions;

use common::{Player, say};
use core::alloc::Layout;
use core::mem::MaybeUninit;
use regions::{ask, ready};
use std::io::BufRead;
use std::os::unix::fs::FileExt;
use tempfile::TempDir;
use unmerged::mshare::{Advice, Builder, Heap, Object, Prot, Region, Resident, Rights, list_in};

type Numbers = allocator_api2::vec::Vec<u64, Heap>;

/// A vector in the region, in the eyes of this program.
#[repr(transparent)]
struct Kept(MaybeUninit<Numbers>);
// SAFETY: made and read by one program; its addresses are in the region.
unsafe impl Resident for Kept {}

const MIB: usize = 1 << 20;
const PAGE: usize = 4096;

fn build(dir: &TempDir) -> Builder {
    Region::builder("region").size(32 * MIB).directory(dir.path())
}

/// Publishes some numbers from the heap.
fn publish(region: &Region) -> Heap {
    let heap = region.heap().unwrap();
    let mut numbers = Numbers::new_in(heap);
    numbers.extend(0..10_000);
    let place = heap.alloc(Layout::new::<Kept>()).unwrap().cast::<Kept>();
    // SAFETY: just allocated.
    unsafe { place.write(Kept(MaybeUninit::new(numbers))) };
    region.set_root("numbers", place).unwrap();
    heap
}

fn sum(region: &Region) -> u64 {
    let place = region.root::<Kept>("numbers").unwrap().unwrap();
    // SAFETY: published by this program, and not changed since.
    unsafe { (*place.as_ptr()).0.assume_init_ref() }.iter().sum()
}

const SUM: u64 = 9_999 * 10_000 / 2;

/// Not a test: the other process of those below.
#[test]
fn child() {
    if common::role().is_none() {
        return;
    }
    let region = Region::open("region").unwrap();
    say("ready");
    for line in std::io::stdin().lock().lines() {
        match line.unwrap().as_str() {
            "sum" => say(sum(&region)),
            "room" => {
                let at = region.base().as_ptr().wrapping_add(16 * MIB);
                // SAFETY: mapped by the parent, before it asked.
                say(unsafe { at.read_volatile() });
            }
            "heap" => say(region.heap().is_ok()),
            "grow" => {
                let place = region.root::<Kept>("numbers").unwrap().unwrap();
                region.heap().unwrap();
                // SAFETY: published by this program, and ours while the parent waits.
                let numbers = unsafe { (*place.as_ptr()).0.assume_init_mut() };
                numbers.extend(0..100_000);
                numbers.truncate(10_000);
                numbers.shrink_to_fit();
                say("done");
            }
            other => {
                let own: usize = other.strip_prefix("objects ").unwrap().parse().unwrap();
                objects(&region, own);
                say("done");
            }
        }
    }
    std::process::exit(0);
}

/// Maps, uses and unmaps objects in a part of its own.
fn objects(region: &Region, own: usize) {
    let start = own * MIB;
    for round in 0..25_u64 {
        let page = region.map(start..start + PAGE, Object::revocable()).unwrap();
        let word = page.cast::<u64>();
        // SAFETY: just mapped, and ours alone.
        unsafe {
            assert_eq!(word.read_volatile(), 0);
            word.write_volatile(round);
            assert_eq!(word.read_volatile(), round);
        }
        region.unmap(start..start + PAGE).unwrap();
    }
}

#[test]
fn the_heap_ends_where_the_room_begins() {
    let dir = TempDir::new().unwrap();
    for room in [1, 32 * MIB, 33 * MIB] {
        assert!(build(&dir).room(room).create().unwrap_err().is_invalid());
    }
    let region = build(&dir).room(16 * MIB).create().unwrap();
    let first = region.alloc(Layout::new::<u64>()).unwrap();
    assert_eq!(first, region.base());
    let heap = publish(&region);
    let end = region.base().as_ptr().wrapping_add(16 * MIB);
    let capacity = heap.stats().unwrap().capacity;
    assert!(capacity < 16 * MIB && capacity > 15 * MIB, "{capacity}");
    // All of it, and none of the room.
    let mut blocks = Vec::new();
    while let Ok(block) = region.alloc(Layout::new::<[u8; 256 << 10]>()) {
        assert!(block.as_ptr().wrapping_add(256 << 10) <= end);
        blocks.push(block);
    }
    assert!(blocks.len() > 50, "{}", blocks.len());

    let mut other = ready(&dir, "open");
    let byte = region.map(16 * MIB..17 * MIB, Object::revocable()).unwrap();
    // SAFETY: just mapped, by us.
    unsafe { byte.write(9) };
    assert_eq!(ask(&mut other, "room"), "9");
    assert_eq!(ask(&mut other, "sum"), SUM.to_string());
    region.unmap(16 * MIB..17 * MIB).unwrap();

    for block in blocks {
        // SAFETY: of this heap, each once.
        unsafe { heap.free(block, Layout::new::<[u8; 256 << 10]>()) }.unwrap();
    }
    assert_eq!(ask(&mut other, "grow"), "done");
    assert_eq!(sum(&region), SUM);
    assert!(heap.check().unwrap().is_sound());
}

#[test]
fn nothing_is_mapped_into_a_heap() {
    let dir = TempDir::new().unwrap();
    let region = build(&dir).room(16 * MIB).create().unwrap();
    let heap = publish(&region);
    let inside = MIB..2 * MIB;
    let across = 16 * MIB - PAGE..16 * MIB + PAGE;
    for range in [inside.clone(), across.clone()] {
        for error in [
            region.map(range.clone(), Object::revocable()).unwrap_err(),
            region.map(range.clone(), Object::anonymous()).unwrap_err(),
            region.unmap(range.clone()).unwrap_err(),
            region.protect(range.clone(), Prot::READ).unwrap_err(),
        ] {
            let text = error.to_string();
            let says = text.contains("the heap lies in 0x0 to 0x1000000");
            let nothing = error.raw_os_error() == libc::ENOMEM;
            assert!(error.is_exists() && says || nothing, "{error}");
        }
    }
    assert!(region.advise(inside.clone(), Advice::Remove).unwrap_err().is_exists());
    // Advice that takes nothing away is for heaps too.
    for advice in [Advice::HugePage, Advice::Default, Advice::DontNeed, Advice::WillNeed] {
        region.advise(inside.clone(), advice).unwrap();
    }
    match region.advise(0..16 * MIB, Advice::Collapse) {
        Ok(()) => {}
        Err(error) if error.is_unsupported() => common::missing("collapse", "small pages"),
        Err(error) => panic!("{error}"),
    }
    assert_eq!(sum(&region), SUM);
    assert!(heap.check().unwrap().is_sound());
}

/// A word of the control page, which every writer can write, closes the region for nobody.
#[test]
fn a_heap_that_nobody_made() {
    let dir = TempDir::new().unwrap();
    let region = build(&dir).create().unwrap();
    let pages = (region.size() / PAGE) as u64;
    // Everything: see extent.rs.
    let word = region.base().as_ptr().wrapping_sub(PAGE).wrapping_add(64).cast::<u64>();
    // SAFETY: a word of the control page.
    unsafe { word.write_volatile(1 << 63 | pages << 33) };
    assert_eq!(region.heap_range(), Some(0..region.size()));
    let all = 0..region.size();
    region.unmap(all.clone()).unwrap();
    region.map(all.clone(), Object::anonymous()).unwrap();
    region.protect(0..PAGE, Prot::READ_WRITE).unwrap();
    region.advise(all, Advice::Remove).unwrap();
}

#[test]
fn an_object_that_is_there_ends_the_heap() {
    let dir = TempDir::new().unwrap();
    let region = build(&dir).create().unwrap();
    region.map(4 * MIB..5 * MIB, Object::revocable()).unwrap();
    let heap = region.heap().unwrap();
    let capacity = heap.stats().unwrap().capacity;
    assert!(capacity < 4 * MIB && capacity > 3 * MIB, "{capacity}");
    region.unmap(4 * MIB..5 * MIB).unwrap();
    // What lies behind it is still memory, which nobody hands out.
    region.protect(8 * MIB..9 * MIB, Prot::READ).unwrap();
    drop(region);

    let dir = TempDir::new().unwrap();
    let region = build(&dir).empty().create().unwrap();
    let error = region.heap().unwrap_err();
    assert!(error.is_invalid() && error.to_string().contains("0 bytes are left"), "{error}");
}

#[test]
fn the_room_is_not_the_heaps_when_memory_lies_there() {
    let dir = TempDir::new().unwrap();
    let region = build(&dir).room(4 * MIB).create().unwrap();
    let start = region.size() - 4 * MIB;
    region.map(start..start + MIB, Object::anonymous()).unwrap();
    let capacity = region.heap().unwrap().stats().unwrap().capacity;
    assert!(capacity < start, "{capacity}");
    region.unmap(start..start + MIB).unwrap();
}

#[test]
fn who_may_use_a_heap() {
    let dir = TempDir::new().unwrap();
    let region = build(&dir).create().unwrap();
    // A process has one set of rights, so these are others.
    let with = |rights: &'static str| {
        let mut command = common::child("limited", rights);
        command.env("UNMERGED_RUNTIME_DIR", dir.path());
        let mut player = Player::start(command);
        player.wait_for("ready");
        player
    };
    let (mut reader, mut writer) = (with("read"), with("write"));
    assert_eq!(ask(&mut reader, "heap"), libc::EACCES.to_string());
    assert_eq!(ask(&mut writer, "heap"), libc::EPERM.to_string());
    publish(&region);
    assert_eq!(ask(&mut reader, "heap"), libc::EACCES.to_string());
    assert_eq!(ask(&mut writer, "heap"), "0");
    assert_eq!(ask(&mut reader, "sum"), SUM.to_string());
    assert_eq!(ask(&mut reader, "roots"), format!("{0} {0}", libc::EACCES));
}

/// Not a test: a participant with fewer rights.
#[test]
fn limited() {
    let Some(role) = common::role() else { return };
    let rights = if role == "read" { Rights::READ } else { Rights::READ | Rights::WRITE };
    let region = Region::opener("region").rights(rights).open().unwrap();
    let errno = |error: unmerged::Error| error.raw_os_error();
    say("ready");
    for line in std::io::stdin().lock().lines() {
        match line.unwrap().as_str() {
            "heap" => say(region.heap().map_or_else(errno, |_| 0)),
            "roots" => {
                let place = region.root::<Kept>("numbers").unwrap();
                let removed = region.remove_root::<Kept>("numbers").map_or_else(errno, |_| 0);
                let created = region.create_root("numbers", place.unwrap());
                say(format!("{removed} {}", created.map_or_else(errno, |_| 0)));
            }
            _ => say(sum(&region)),
        }
    }
    std::process::exit(0);
}

/// A heap keeps the region mapped, and nothing else: who has let go of the region serves it no
/// more, is waited for no more, and can open it again.
#[test]
fn a_heap_is_no_participant() {
    let dir = TempDir::new().unwrap();
    let region = build(&dir).room(16 * MIB).create().unwrap();
    let (heap, id) = (publish(&region), region.id());
    let mut other = ready(&dir, "open");
    drop(region);
    let block = heap.alloc(Layout::new::<[u64; 8]>()).unwrap();
    // SAFETY: just allocated.
    unsafe { block.cast::<u64>().write(5) };

    let region = Region::open_in(dir.path(), "region").unwrap();
    assert_eq!((region.id(), region.is_server()), (id, false));
    assert_eq!(region.stats().unwrap().participants.len(), 2);
    let byte = region.map(16 * MIB..17 * MIB, Object::revocable()).unwrap();
    // SAFETY: just mapped, by us.
    unsafe { byte.write(3) };
    assert_eq!(ask(&mut other, "room"), "3");
    // SAFETY: allocated above.
    unsafe { heap.free(block, Layout::new::<[u64; 8]>()) }.unwrap();
    other.end();
    drop(region);
    assert!(list_in(dir.path()).unwrap().is_empty());
    assert!(heap.check().unwrap().is_sound());
    // SAFETY: nobody uses it any more.
    unsafe { heap.close() };
    let region = build(&dir).create().unwrap();
    assert_ne!(region.id(), id);
}

#[test]
fn a_heap_in_a_file_stays() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("memory.data");
    let make = || build(&dir).room(16 * MIB).file(&path).create().unwrap();
    let region = make();
    let heap = publish(&region);
    drop(region);
    // SAFETY: nobody uses it any more.
    unsafe { heap.close() };
    let region = make();
    assert_eq!(sum(&region), SUM);
    let heap = region.heap().unwrap();
    assert!(heap.check().unwrap().is_sound());
    assert!(region.map(MIB..2 * MIB, Object::anonymous()).unwrap_err().is_exists());
    region.map(16 * MIB..17 * MIB, Object::anonymous().no_replace()).unwrap();
}

/// All that had a file that comes back are gone, also those that cannot be seen from here: processes
/// of another namespace that were killed together, in the lock of the heap's pages.
#[test]
fn who_had_a_file_that_comes_back_is_gone() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("memory.data");
    let make = || build(&dir).file(&path).create().unwrap();
    let region = make();
    let heap = publish(&region);
    let start = region.heap_range().unwrap().start;
    drop(region);
    // SAFETY: nobody uses it any more.
    unsafe { heap.close() };
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    // Of process 1, with a namespace that is none, in slot 3, which has the lock.
    let owner = 1_u64 << 63 | 1 << 44 | 1 << 22 | 1;
    file.write_all_at(&owner.to_le_bytes(), (start + PAGE + 3 * 8) as u64).unwrap();
    file.write_all_at(&4_u32.to_le_bytes(), start as u64).unwrap();
    let region = make();
    let heap = region.heap().unwrap();
    let large = Layout::new::<[u8; MIB]>();
    let block = heap.alloc(large).unwrap();
    assert_eq!(heap.recover().unwrap(), 1);
    assert_eq!(heap.stats().unwrap().participants, 1);
    assert_eq!(sum(&region), SUM);
    // SAFETY: allocated above.
    unsafe { heap.free(block, large) }.unwrap();
    assert!(heap.check().unwrap().is_sound());
}

/// An object that one is about to map is not forgotten by those that follow others meanwhile.
#[test]
fn several_map_objects_at_once() {
    let dir = TempDir::new().unwrap();
    let region = build(&dir).create().unwrap();
    let mut players: Vec<_> = (0..3).map(|_| ready(&dir, "open")).collect();
    for (own, player) in players.iter_mut().enumerate() {
        player.tell(&format!("objects {}", own + 1));
    }
    objects(&region, 0);
    for player in &mut players {
        assert_eq!(player.line(), "done");
    }
    until_forgotten(&region);
}

/// Nobody keeps what lies nowhere.
fn until_forgotten(region: &Region) {
    for _ in 0..500 {
        region.sync().unwrap();
        if region.stats().unwrap().objects == 0 {
            return;
        }
        // The next change lets go of what was brought at the last.
        region.protect(20 * MIB..20 * MIB + PAGE, Prot::READ).unwrap();
        region.protect(20 * MIB..20 * MIB + PAGE, Prot::READ_WRITE).unwrap();
    }
    panic!("{} objects are kept", region.stats().unwrap().objects);
}

/// Some make the heap while others map: the heap is where no object is.
#[test]
fn a_heap_that_is_made_while_others_map() {
    for _ in 0..10 {
        let dir = TempDir::new().unwrap();
        let region = build(&dir).create().unwrap();
        let mut other = ready(&dir, "open");
        other.tell("heap");
        let mut mapped = Vec::new();
        for at in (1..16).rev() {
            let range = at * MIB..at * MIB + PAGE;
            match region.map(range, Object::revocable()) {
                Ok(page) => mapped.push(page),
                Err(error) => assert!(error.is_exists(), "{error}"),
            }
        }
        assert_eq!(other.line(), "true");
        let heap = region.heap().unwrap();
        while let Ok(block) = heap.alloc(Layout::new::<[u8; 64 << 10]>()) {
            // SAFETY: just allocated.
            unsafe { block.write_bytes(1, 64 << 10) };
        }
        for page in mapped {
            // SAFETY: mapped above, and nobody's but ours.
            assert_eq!(unsafe { page.read() }, 0);
        }
        other.end();
        drop(region);
        // SAFETY: nobody uses it any more.
        unsafe { heap.close() };
    }
}
