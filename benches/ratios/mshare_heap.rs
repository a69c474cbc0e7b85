//! The rows of memory from a region.

use crate::harness::{Options, Row, Target, by_all, each, pinned};
use crate::peer::Peer;
use core::alloc::Layout;
use hashbrown::HashMap;
use ipc_channel::ipc::{self, IpcOneShotServer, IpcReceiver, IpcSender};
use mmap_sync::synchronizer::Synchronizer;
use std::cell::{Cell, RefCell};
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::atomic::Ordering;
use std::time::Duration;
use unmerged::futex2::{Futex, Shared};
use unmerged::mshare::{Heap, Region, Resident};

/// The role of a process that is given a map and looks something up in it.
pub(crate) const READER: &str = "map-reader";

type Hasher = foldhash::fast::FixedState;
type Value = [u64; 4];
type Map = HashMap<u64, Value, Hasher, Heap>;
type Sent = std::collections::HashMap<u64, Value>;

/// Made and read by this program.
#[repr(transparent)]
struct Kept(MaybeUninit<Map>);

// SAFETY: one program makes and reads it, so its layout is the same; its addresses are in the region.
unsafe impl Resident for Kept {}

/// What the two processes say to each other in the region: how many maps were published, how many
/// were read, by which way, what was found, and the name of a server of `ipc-channel`.
#[repr(C)]
struct Desk {
    way: Futex<u32, Shared>,
    published: Futex<u32, Shared>,
    read: Futex<u32, Shared>,
    found: Futex<u64, Shared>,
    server: [u8; 256],
}

// SAFETY: shared futexes; the bytes are written before it is published.
unsafe impl Resident for Desk {}

/// Ways for a map to the other process.
const REGION: u32 = 0;
const CHANNEL: u32 = 1;
const FILE: u32 = 2;

/// Where `mmap-sync` keeps its files.
fn files(server: u32) -> String {
    format!("/dev/shm/bench-mmap-sync-{server}")
}

const KEY: u64 = 777;
const END: u32 = u32::MAX;

fn name(server: u32) -> String {
    format!("bench-heap-{server}")
}

fn desk(region: &Region) -> &Desk {
    let desk = region.root::<Desk>("desk").expect("of this type").expect("published");
    // SAFETY: written before it was published; futexes after that.
    unsafe { region.get(desk.as_ptr()) }.expect("inside")
}

fn next(word: &Futex<u32, Shared>, seen: u32) -> u32 {
    loop {
        match word.load(Ordering::Acquire) {
            now if now == seen => drop(word.wait(seen, None)),
            now => return now,
        }
    }
}

/// Reads what is published in the region, then what is sent.
pub(crate) fn read(until_released: &dyn Fn()) {
    let parent = std::os::unix::process::parent_id();
    let region = Region::open(&name(parent)).expect("the bench serves it");
    let desk = desk(&region);
    let len = desk.server.iter().position(|&byte| byte == 0).expect("a name ends");
    let server = String::from_utf8(desk.server[..len].to_vec()).expect("a name is text");
    let (maps, inbox) = ipc::channel::<Sent>().expect("a channel can be made");
    let hello: IpcSender<IpcSender<Sent>> = IpcSender::connect(server).expect("the bench listens");
    hello.send(maps).expect("the bench receives");
    std::thread::scope(|scope| {
        let region = &region;
        scope.spawn(move || {
            let mut seen = 0;
            let mut file = Synchronizer::new(files(parent).as_ref());
            loop {
                seen = next(&desk.published, seen);
                if seen == END {
                    return;
                }
                let found = match desk.way.load(Ordering::Relaxed) {
                    REGION => {
                        let map = region.root::<Kept>("map").expect("of this type").expect("set");
                        // SAFETY: published by this program, and not changed before we answer.
                        let map = unsafe { (*map.as_ptr()).0.assume_init_ref() };
                        map[&KEY][0]
                    }
                    CHANNEL => inbox.recv().expect("the bench sends")[&KEY][0],
                    _ => {
                        // SAFETY: written by the bench, as such a map; unchecked, which is faster.
                        let map = unsafe { file.read::<Sent>(false) }.expect("the bench writes");
                        map[&KEY][0]
                    }
                };
                desk.found.store(found, Ordering::Relaxed);
                desk.read.store(seen, Ordering::Release);
                desk.read.wake(1);
            }
        });
        until_released();
    });
}

/// Every `KEPT`-th block is freed late, as a program does.
const KEPT: usize = 64;

/// Allocates, writes, frees; of several sizes, some kept for a while.
#[derive(Default)]
struct Churn {
    held: RefCell<Vec<(NonNull<u8>, Layout)>>,
    turn: Cell<usize>,
}

// SAFETY: an arm runs on one thread; blocks are freed by any.
unsafe impl Send for Churn {}

impl Churn {
    fn step(&self, alloc: impl Fn(Layout) -> NonNull<u8>, free: impl Fn(NonNull<u8>, Layout)) {
        const SIZES: [usize; 8] = [24, 64, 40, 100, 16, 200, 700, 48];
        let turn = self.turn.get();
        self.turn.set(turn.wrapping_add(1));
        let layout = Layout::from_size_align(SIZES[turn % 8], 8).expect("a layout");
        let block = alloc(layout);
        // SAFETY: just allocated, 16 bytes at least.
        unsafe { block.cast::<u64>().write(7) };
        let mut held = self.held.borrow_mut();
        if held.len() < KEPT {
            return held.push((block, layout));
        }
        let (block, layout) = std::mem::replace(&mut held[turn * 7 % KEPT], (block, layout));
        free(block, layout);
    }
}

fn system_alloc(layout: Layout) -> NonNull<u8> {
    // SAFETY: not of size 0.
    let block = unsafe { std::alloc::alloc(layout) };
    // Or the compiler leaves out the pair.
    NonNull::new(std::hint::black_box(block)).expect("there is memory")
}

fn system_free(block: NonNull<u8>, layout: Layout) {
    // SAFETY: allocated with this layout.
    unsafe { std::alloc::dealloc(block.as_ptr(), layout) }
}

fn blocks(options: &Options) {
    let name = format!("{}-blocks", name(std::process::id()));
    let region = Region::builder(&name).size(1 << 30).create();
    let region = region.expect("the runtime directory can be written");
    let heap = region.heap().expect("the region is fresh");
    let alloc = |layout| std::hint::black_box(heap.alloc(layout).expect("there is room"));
    // SAFETY: each block once.
    let free = |block, layout| unsafe { heap.free(block, layout) }.expect("a block");
    let layout = Layout::new::<[u64; 6]>();
    pinned(0, || {
        Row::new("mshare/heap-pair", each(|| free(alloc(layout), layout)))
            .peer("malloc-free", Target::None, each(|| system_free(system_alloc(layout), layout)))
            .run(options);
    });
    pinned(0, || {
        let (ours, theirs) = (Churn::default(), Churn::default());
        Row::new("mshare/heap-churn", each(move || ours.step(alloc, free)))
            .peer("malloc-free", Target::None, each(move || theirs.step(system_alloc, system_free)))
            .run(options);
    });
    let large = Layout::new::<[u64; 8192]>();
    pinned(0, || {
        Row::new("mshare/heap-64k", each(|| free(alloc(large), large)))
            .peer("malloc-free", Target::None, each(|| system_free(system_alloc(large), large)))
            .run(options);
    });
    Row::new("mshare/heap-pair-2t", by_all(2, || free(alloc(layout), layout)))
        .peer("malloc-free", Target::None, by_all(2, || system_free(system_alloc(layout), layout)))
        .run(options);
}

/// A map that is built, and another process that looks one key up in it. The arm that sends has
/// to copy the map first, because `ipc-channel` takes what it sends.
fn maps(options: &Options) {
    if !options.wants("mshare/share-map") {
        return;
    }
    let entries = if options.is_measured() { 1_000_000 } else { 1000 };
    let region = Region::builder(&name(std::process::id())).size(1 << 32).create();
    let region = region.expect("the runtime directory can be written");
    let heap = region.heap().expect("the region is fresh");
    let (server, server_name) = IpcOneShotServer::<IpcSender<Sent>>::new().expect("a socket");
    let mut bytes = [0; 256];
    bytes[..server_name.len()].copy_from_slice(server_name.as_bytes());
    let place = heap.alloc(Layout::new::<Desk>()).expect("there is room").cast::<Desk>();
    let [way, published, read] = [Futex::new(0), Futex::new(0), Futex::new(0)];
    let first = Desk { way, published, read, found: Futex::new(0), server: bytes };
    // SAFETY: just allocated.
    unsafe { place.write(first) };
    region.set_root("desk", place).expect("there is a root");
    let mut map = Map::with_capacity_and_hasher_in(entries, Hasher::default(), heap);
    let mut sent = Sent::new();
    for n in 0..entries as u64 {
        map.insert(n, [n * 3; 4]);
        sent.insert(n, [n * 3; 4]);
    }
    let kept = heap.alloc(Layout::new::<Kept>()).expect("there is room").cast::<Kept>();
    // SAFETY: just allocated.
    unsafe { kept.write(Kept(MaybeUninit::new(map))) };

    let peer = std::thread::scope(|scope| {
        let hello = scope.spawn(|| server.accept().expect("the peer connects"));
        let peer = Peer::start(READER);
        let (_, maps): (IpcReceiver<_>, _) = hello.join().expect("no panic");
        let desk = desk(&region);
        let turn = Cell::new(0);
        let ask = |way, send: &dyn Fn()| {
            desk.way.store(way, Ordering::Relaxed);
            let next_turn = turn.get() + 1;
            turn.set(next_turn);
            desk.published.store(next_turn, Ordering::Release);
            desk.published.wake(1);
            send();
            while next(&desk.read, next_turn - 1) != next_turn {}
            assert_eq!(desk.found.load(Ordering::Relaxed), KEY * 3);
        };
        let ask: &dyn Fn(u32, &dyn Fn()) = &ask;
        let (ask, region) = (&AssertSend(ask), &region);
        let maps = &maps;
        let sent = &sent;
        let kept = AssertSend(kept);
        let kept = &kept;
        let ours = each(move || {
            region.set_root("map", kept.0).expect("it is a root");
            (ask.0)(REGION, &|| {});
        });
        let theirs = each(move || {
            (ask.0)(CHANNEL, &|| maps.send(sent.clone()).expect("the peer receives"));
        });
        let file = RefCell::new(Synchronizer::new(files(std::process::id()).as_ref()));
        let by_file = each(move || {
            // The other has to find the whole of it.
            let mut file = file.borrow_mut();
            file.write(sent, Duration::from_secs(1)).expect("/dev/shm has room");
            (ask.0)(FILE, &|| {});
        });
        Row::new("mshare/share-map", ours)
            .peer("ipc-channel", Target::Faster(1000.0), theirs)
            .peer("mmap-sync", Target::Faster(1000.0), by_file)
            .run(options);
        for part in ["state", "data_0", "data_1"] {
            let _ = std::fs::remove_file(format!("{}_{part}", files(std::process::id())));
        }
        desk.published.store(END, Ordering::Release);
        desk.published.wake(1);
        peer
    });
    drop(peer);
}

/// Arms of a row take turns.
struct AssertSend<T>(T);
// SAFETY: as above.
unsafe impl<T> Sync for AssertSend<T> {}

pub(crate) fn rows(options: &Options) {
    blocks(options);
    maps(options);
}
