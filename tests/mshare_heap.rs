//! Memory of a region, used by processes that were executed, forked and killed.

mod common;
#[path = "common/region.rs"]
mod regions;

use allocator_api2::alloc::Allocator;
use allocator_api2::boxed::Box as RegionBox;
use allocator_api2::vec::Vec as RegionVec;
use common::{say, wait_for_nudge};
use core::alloc::Layout;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use hashbrown::HashMap;
use regions::player;
use std::time::Instant;
use tempfile::TempDir;
use unmerged::mshare::{Heap, HeapStats, Region, SameProgram};

type Text = RegionVec<u8, Heap>;
/// Seeds are part of the type: every process hashes alike.
type Map = HashMap<u64, Text, foldhash::fast::FixedState, Heap>;

fn dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn create(dir: &TempDir, size: usize) -> Region {
    Region::builder("heap").size(size).directory(dir.path()).create().unwrap()
}

#[track_caller]
fn sound(heap: &Heap) -> HeapStats {
    let report = heap.check().unwrap();
    assert!(report.is_sound(), "{report}");
    report.stats
}

/// Moves a value into the region, and publishes it.
fn keep<T: 'static>(region: &Region, name: &str, value: T) {
    let heap = region.heap().unwrap();
    let place = heap.alloc(Layout::new::<SameProgram<T>>()).unwrap().cast::<SameProgram<T>>();
    // SAFETY: just allocated for one; the tests keep what has addresses of the heap only.
    unsafe { place.write(SameProgram::new(value).unwrap()) };
    assert_eq!(region.create_root(name, place).unwrap(), None);
}

/// The value that was published, which one process uses at a time.
fn kept<T: 'static>(region: &Region, name: &str) -> *mut T {
    let place = region.root::<SameProgram<T>>(name).unwrap().unwrap();
    // SAFETY: published by `keep`.
    unsafe { region.get(place.as_ptr()) }.unwrap().get().unwrap()
}

/// Takes the value out again.
fn unkeep<T: 'static>(region: &Region, name: &str) -> T {
    // SAFETY: made by this program, and not used after this.
    let value = unsafe { kept::<T>(region, name).read() };
    let place = region.remove_root::<SameProgram<T>>(name).unwrap().unwrap();
    // SAFETY: allocated by `keep`.
    unsafe { region.heap().unwrap().free(place.cast(), Layout::new::<SameProgram<T>>()) }.unwrap();
    value
}

fn text(heap: Heap, n: u64) -> Text {
    let mut text = Text::new_in(heap);
    text.extend_from_slice(format!("value {n} {}", "x".repeat(n as usize % 50)).as_bytes());
    text
}

/// The slots of a storm: each is a word that owns a block, or 0.
const SLOTS: usize = 2048;

/// One step of a storm: takes what is in a slot and frees it, or puts a new block there. A block
/// begins with its own address, its size, and the slot that it was made for.
fn storm(heap: Heap, slots: &[AtomicU64], random: &mut u64) {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    let slot = (*random >> 32) as usize % slots.len();
    let size = match *random % 64 {
        0 => 8192 + (*random >> 8) as usize % 60_000,
        1..8 => 1000 + (*random >> 8) as usize % 7000,
        _ => 24 + (*random >> 8) as usize % 500,
    };
    let taken = slots[slot].swap(0, Ordering::AcqRel);
    if let Some(block) = NonNull::new(core::ptr::with_exposed_provenance_mut::<u64>(taken as usize))
    {
        // SAFETY: the word owned it, and now we do.
        let words = unsafe { [block.read(), block.add(1).read(), block.add(2).read()] };
        assert_eq!((words[0], words[2]), (taken, slot as u64));
        let layout = Layout::from_size_align(words[1] as usize, 8).unwrap();
        // SAFETY: as above.
        unsafe { heap.free(block.cast(), layout) }.unwrap();
        return;
    }
    let layout = Layout::from_size_align(size, 8).unwrap();
    let block = heap.alloc(layout).unwrap().cast::<u64>();
    let address = block.as_ptr().expose_provenance() as u64;
    // SAFETY: ours, and long enough.
    unsafe {
        block.write(address);
        block.add(1).write(size as u64);
        block.add(2).write(slot as u64);
    }
    if slots[slot].compare_exchange(0, address, Ordering::AcqRel, Ordering::Relaxed).is_err() {
        // SAFETY: ours.
        unsafe { heap.free(block.cast(), layout) }.unwrap();
    }
}

/// The slots of a storm, in the region.
fn slots(region: &Region) -> &[AtomicU64] {
    let first = region.root::<AtomicU64>("slots").unwrap().unwrap();
    // SAFETY: so many were put there, zeroed, before they were published; atomics.
    unsafe { region.get_slice(first.as_ptr(), SLOTS) }.unwrap()
}

fn make_slots(region: &Region, heap: Heap) {
    let first = heap.alloc_zeroed(Layout::new::<[AtomicU64; SLOTS]>()).unwrap();
    region.set_root::<AtomicU64>("slots", first.cast()).unwrap();
}

/// What a child does; nothing in an ordinary run.
#[test]
fn child() {
    let Some(role) = common::role() else { return };
    let region = Region::open("heap").unwrap();
    let heap = region.heap().unwrap();
    match role.as_str() {
        "use the map" => {
            // SAFETY: the parent waits until we are done.
            let map = unsafe { &mut *kept::<Map>(&region, "map") };
            let entries = map.len() as u64;
            assert!((0..entries).all(|n| map[&n] == text(heap, n)));
            for n in 0..entries / 2 {
                map.remove(&n).unwrap();
            }
            for n in entries..entries * 2 {
                map.insert(n, text(heap, n));
            }
            map.get_mut(&entries).unwrap().extend_from_slice(&[b'!'; 10_000]);
            say("done");
        }
        "storm" => {
            let slots = slots(&region);
            say("ready");
            std::thread::scope(|scope| {
                for thread in 0..3 {
                    scope.spawn(move || {
                        let mut random = u64::from(std::process::id()) << 8 | thread | 1;
                        loop {
                            storm(heap, slots, &mut random);
                        }
                    });
                }
            });
        }
        "hold" => {
            let blocks: Vec<_> =
                (0..100).map(|_| heap.alloc(Layout::new::<[u64; 9]>()).unwrap()).collect();
            say(blocks.len());
            wait_for_nudge();
        }
        other => panic!("no such role: {other}"),
    }
}

#[test]
fn a_map_is_built_here_and_changed_there() {
    let entries = if cfg!(debug_assertions) { 5_000 } else { 50_000 };
    let entries = std::env::var("UNMERGED_STRESS_SECONDS").map_or(entries, |_| 1_000_000_u64);
    let dir = dir();
    let region = create(&dir, 2 << 30);
    let heap = region.heap().unwrap();
    let mut map = Map::with_hasher_in(foldhash::fast::FixedState::default(), heap);
    for n in 0..entries {
        map.insert(n, text(heap, n));
    }
    keep(&region, "map", map);
    let mut other = player(&dir, "use the map");
    other.wait_for("done");
    other.end();
    let mut map = unkeep::<Map>(&region, "map");
    assert_eq!(map.len() as u64, entries / 2 + entries);
    let grown = map.remove(&entries).unwrap();
    assert!(grown.len() > 10_000 && grown.ends_with(b"!!"));
    assert!(map.iter().all(|(&n, value)| *value == text(heap, n)));
    assert!(map.contains_key(&(entries / 2)) && !map.contains_key(&0));
    drop((map, grown));
    let stats = sound(&heap);
    assert_eq!((stats.blocks, stats.bytes), (0, 0));
    heap.trim().unwrap();
    assert_eq!(sound(&heap).taken, 0);
}

#[test]
fn vectors_and_boxes() {
    let dir = dir();
    let region = create(&dir, 64 << 20);
    let heap = region.heap().unwrap();
    let mut numbers = RegionVec::new_in(heap);
    for n in 0..300_000_u64 {
        numbers.push(n);
    }
    assert!(region.contains(numbers.as_ptr(), numbers.len() * 8));
    numbers.truncate(1000);
    numbers.shrink_to_fit();
    assert!(numbers.iter().copied().eq(0..1000));
    let boxed = RegionBox::new_in([7_u64; 100], heap);
    let nothing = RegionBox::new_in((), heap);
    assert_eq!(sound(&heap).blocks, 2);
    // Blocks of no bytes, and those that grow by zeros.
    let layout = Layout::from_size_align(0, 64).unwrap();
    assert!(heap.allocate(layout).unwrap().addr().get().is_multiple_of(64));
    let (small, large) = (Layout::new::<[u8; 100]>(), Layout::new::<[u8; 30_000]>());
    let block = heap.allocate_zeroed(small).unwrap().cast::<u8>();
    // SAFETY: allocated with that layout, and used no further.
    let block = unsafe { heap.grow_zeroed(block, small, large) }.unwrap();
    // SAFETY: zeroed above.
    assert!(unsafe { block.as_ref() }.iter().all(|&byte| byte == 0));
    // SAFETY: as above.
    unsafe { heap.deallocate(block.cast(), large) };
    drop((numbers, boxed, nothing));
    assert_eq!(sound(&heap).blocks, 0);
}

#[test]
fn alignment_up_to_many_pages() {
    let dir = dir();
    let region = create(&dir, 256 << 20);
    let heap = region.heap().unwrap();
    for power in 0..24 {
        for size in [1, 100, 5000, 100_000] {
            let layout = Layout::from_size_align(size, 1 << power).unwrap();
            let block = heap.alloc(layout).unwrap();
            assert!(block.addr().get().is_multiple_of(1 << power), "{layout:?}");
            assert!(region.contains(block.as_ptr(), size));
        }
    }
    assert_eq!(sound(&heap).blocks, 24 * 4);
}

#[test]
fn threads_storm_and_nothing_is_lost() {
    let dir = dir();
    let region = create(&dir, 512 << 20);
    let heap = region.heap().unwrap();
    make_slots(&region, heap);
    let slots = slots(&region);
    let until = Instant::now() + common::stress(Duration::from_millis(300));
    std::thread::scope(|scope| {
        let work = |thread: u64| {
            let mut random = thread << 40 | 1;
            while Instant::now() < until {
                (0..100).for_each(|_| storm(heap, slots, &mut random));
            }
        };
        let threads = [1, 2, 3, 4].map(|thread| scope.spawn(move || work(thread)));
        // A scope does not wait for what threads do when they end.
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
    let live = slots.iter().filter(|slot| slot.load(Ordering::Relaxed) != 0).count();
    // Threads that have ended gave their slots back.
    let stats = sound(&heap);
    assert_eq!((stats.blocks, stats.participants), (live + 1, 1));
}

/// Processes of several threads are killed in the middle of it, one after the other. What they had
/// in hand comes back; what they had taken from a slot or not yet put there is lost by them, one
/// block a thread at most.
#[test]
fn killed_processes_leave_a_sound_heap() {
    let dir = dir();
    let region = create(&dir, 512 << 20);
    let heap = region.heap().unwrap();
    make_slots(&region, heap);
    let begin = Instant::now();
    let until = begin + common::stress(Duration::ZERO);
    let mut kills = 0;
    let mut random = 88_172_645_463_325_252;
    let mut next = player(&dir, "storm");
    // A hundred, or what an emulated machine has the time for.
    while kills < 100 && (kills < 8 || begin.elapsed() < Duration::from_secs(2))
        || Instant::now() < until
    {
        let mut victim = std::mem::replace(&mut next, player(&dir, "storm"));
        victim.wait_for("ready");
        for _ in 0..200 + kills * 37 % 1000 {
            storm(heap, slots(&region), &mut random);
        }
        victim.kill();
        kills += 1;
    }
    next.kill();
    let recovered = heap.recover().unwrap();
    let stats = sound(&heap);
    assert_eq!(stats.participants, 1, "{recovered}");
    let live = slots(&region).iter().filter(|slot| slot.load(Ordering::Relaxed) != 0).count() + 1;
    let lost = heap.check().unwrap().leaked(live);
    assert!(stats.blocks >= live && lost <= 3 * (kills + 1), "{} {live} {lost}", stats.blocks);
    // All that is left can be freed.
    for slot in slots(&region) {
        let block = slot.swap(0, Ordering::Relaxed) as usize;
        if let Some(block) = NonNull::new(core::ptr::with_exposed_provenance_mut(block)) {
            // SAFETY: the slot owned it. The layout is not looked at.
            unsafe { heap.free(block, Layout::new::<u64>()) }.unwrap();
        }
    }
    assert_eq!(sound(&heap).blocks, lost + 1);
}

#[test]
fn what_a_dead_process_had_in_hand_comes_back() {
    let dir = dir();
    let region = create(&dir, 64 << 20);
    let heap = region.heap().unwrap();
    let mut holder = player(&dir, "hold");
    assert_eq!(holder.line(), "100");
    assert_eq!(sound(&heap).participants, 2);
    assert_eq!(heap.recover().unwrap(), 0);
    holder.kill();
    assert!(heap.check().unwrap().problems.iter().all(|problem| problem.is_mendable()));
    assert_eq!(heap.recover().unwrap(), 1);
    // What it had allocated is still allocated, and can be told.
    let stats = sound(&heap);
    assert_eq!((stats.blocks, stats.participants, stats.in_hand), (100, 1, 0));
}

#[test]
fn a_forked_child_is_a_participant_of_its_own() {
    let dir = dir();
    let region = create(&dir, 64 << 20);
    let heap = region.heap().unwrap();
    let layout = Layout::new::<[u64; 4]>();
    let mine = heap.alloc(layout).unwrap();
    // SAFETY: the child allocates and frees in the region, and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let theirs: [_; 10] = core::array::from_fn(|_| heap.alloc(layout));
        let is_apart = theirs.iter().all(|block| block.as_ref().is_ok_and(|&block| block != mine));
        // SAFETY: the parent's block, which it leaves to us.
        let freed = unsafe { heap.free(mine, layout) }.is_ok();
        // SAFETY: ends the child.
        unsafe { libc::_exit(i32::from(!is_apart || !freed)) };
    }
    let mut status = 0;
    // SAFETY: our own child.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0);
    let more: [_; 64] = core::array::from_fn(|_| heap.alloc(layout).unwrap());
    heap.recover().unwrap();
    assert_eq!(sound(&heap).blocks, 10 + more.len());
}

#[test]
fn more_threads_than_slots() {
    let dir = dir();
    // 16 slots.
    let region = create(&dir, 1 << 20);
    let heap = region.heap().unwrap();
    let barrier = std::sync::Barrier::new(20);
    let refused = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let work = || {
            if let Err(error) = heap.alloc(Layout::new::<u64>()) {
                assert_eq!(error.raw_os_error(), libc::EAGAIN, "{error}");
                refused.fetch_add(1, Ordering::Relaxed);
            }
            barrier.wait();
        };
        let threads: [_; 20] = core::array::from_fn(|_| scope.spawn(work));
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
    assert_eq!(refused.into_inner(), 4);
    assert_eq!(sound(&heap).blocks, 16);
}
