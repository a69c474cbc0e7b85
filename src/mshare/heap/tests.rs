//! The heap in one process and its forked children: against a model, and over arbitrary
//! bytes.

use super::*;
use crate::mshare::region::Region;
use proptest::prelude::*;
use std::collections::BTreeMap;

mod killed;

/// The byte at this place of a block.
fn byte(block: NonNull<u8>, at: usize) -> u8 {
    let byte = block.as_ptr().wrapping_add(at);
    // SAFETY: in a block of the test's, which nobody else writes.
    unsafe { byte.read() }
}

/// Frees a block of the test's.
fn free(heap: &Heap, block: NonNull<u8>, layout: Layout) -> Result<()> {
    // SAFETY: the test uses it no more; that some are freed twice is what is tested.
    unsafe { heap.free(block, layout) }
}

/// Changes the size of a block of the test's.
fn resize(heap: &Heap, block: NonNull<u8>, layout: Layout, size: usize) -> Result<bool> {
    // SAFETY: the test uses it no further.
    unsafe { heap.resize(block, layout, size) }
}

struct Fixture {
    heap: Heap,
    region: Region,
    _temp: tempfile::TempDir,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        // SAFETY: each test has a region of its own, and its threads are joined.
        unsafe { self.heap.close() };
    }
}

fn fixture(size: usize) -> Fixture {
    let temp = tempfile::tempdir().unwrap();
    let region = Region::builder("heap").size(size).directory(temp.path()).create().unwrap();
    Fixture { heap: region.heap().unwrap(), region, _temp: temp }
}

fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).unwrap()
}

#[track_caller]
fn sound(heap: &Heap) -> HeapStats {
    let report = heap.check().unwrap();
    assert!(report.is_sound(), "{report}");
    report.stats
}

#[derive(Debug, Clone)]
enum Op {
    Alloc(usize, usize),
    Free(usize),
    Resize(usize, usize),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let size = prop_oneof![4 => 0..300_usize, 2 => 0..9000_usize, 1 => 0..200_000_usize];
    let resized = prop_oneof![4 => 0..300_usize, 1 => 0..200_000_usize];
    let op = prop_oneof![
        3 => (size, 0..15_u32).prop_map(|(size, align)| Op::Alloc(size, 1 << align)),
        2 => any::<usize>().prop_map(Op::Free),
        1 => (any::<usize>(), resized).prop_map(|(n, size)| Op::Resize(n, size)),
    ];
    prop::collection::vec(op, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Blocks are aligned, inside, apart from each other, keep what was written, and are counted; at
    /// the end nothing is left.
    #[test]
    fn agrees_with_a_map(ops in ops()) {
        let fixture = fixture(4 << 20);
        let heap = fixture.heap;
        let mut model = BTreeMap::<usize, (Layout, u8)>::new();
        for (n, op) in ops.into_iter().enumerate() {
            let stamp = n as u8;
            match op {
                Op::Alloc(size, align) => {
                    let layout = layout(size, align);
                    let Ok(block) = heap.alloc(layout) else { continue };
                    let address = block.addr().get();
                    prop_assert!(address.is_multiple_of(align));
                    if size == 0 {
                        continue;
                    }
                    prop_assert!(fixture.region.contains(block.as_ptr(), size));
                    prop_assert!(heap.capacity(block).unwrap() >= size);
                    let before = model.range(..=address).next_back();
                    prop_assert!(before.is_none_or(|(&at, (l, _))| at + l.size() <= address));
                    let behind = model.range(address..).next();
                    prop_assert!(behind.is_none_or(|(&at, _)| address + size <= at));
                    // SAFETY: just allocated.
                    unsafe { block.write_bytes(stamp, size) };
                    model.insert(address, (layout, stamp));
                }
                Op::Free(n) => {
                    let Some((&address, _)) = model.iter().nth(n % model.len().max(1)) else { continue };
                    let (layout, stamp) = model.remove(&address).unwrap();
                    let block = heap.pointer(address);
                    for at in [0, layout.size() / 2, layout.size() - 1] {
                        prop_assert_eq!(byte(block, at), stamp);
                    }
                    free(&heap, block, layout).unwrap();
                    prop_assert!(free(&heap, block, layout).unwrap_err().is_invalid());
                }
                Op::Resize(n, size) => {
                    let Some((&address, &(old, stamp))) = model.iter().nth(n % model.len().max(1))
                    else { continue };
                    let block = heap.pointer(address);
                    if size > 0 && resize(&heap, block, old, size).unwrap() {
                        // SAFETY: as long as that now.
                        unsafe { block.write_bytes(stamp, size) };
                        model.insert(address, (layout(size, old.align()), stamp));
                        let behind = model.range(address + 1..).next();
                        prop_assert!(behind.is_none_or(|(&at, _)| address + size <= at));
                    }
                }
            }
        }
        let stats = sound(&heap);
        prop_assert_eq!(stats.blocks, model.len());
        for (address, (layout, _)) in model {
            free(&heap, heap.pointer(address), layout).unwrap();
        }
        heap.trim().unwrap();
        let stats = sound(&heap);
        prop_assert_eq!((stats.blocks, stats.taken, stats.bytes), (0, 0, 0));
        prop_assert_eq!(stats.longest_free, stats.capacity);
    }

    /// Whatever is written over the heap's own words: what is given out lies inside, and every call
    /// returns.
    #[test]
    fn any_bytes_are_survived(
        lies in prop::collection::vec((any::<prop::sample::Index>(), lie()), 1..40),
        ops in ops(),
    ) {
        let fixture = fixture(1 << 20);
        survive(&fixture, &lies.iter().map(|(at, lie)| (at.index(1 << 16), *lie)).collect::<Vec<_>>(), &ops);
    }
}

/// Words that may mean something, and any others.
fn lie() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0..300_u64,
        Just(u64::MAX),
        (0..16_u64, 0..400_u64, 0..40_u64, 0..40_u64).prop_map(|(tag, middle, slot, class)| tag
            << 60
            | slot << 48
            | middle << 8
            | class),
    ]
}

/// Does these operations between these lies, each a word and its place. What a fuzzer would call.
fn survive(fixture: &Fixture, lies: &[(usize, u64)], ops: &[Op]) {
    let heap = fixture.heap;
    let space = cache::with("test", heap.region.get(), |cache| cache.member.space).unwrap();
    let words = (space.first() - heap.region.get()) / 8;
    let mut blocks = Vec::new();
    let mut lies = lies.iter();
    for (n, op) in ops.iter().enumerate() {
        if n % 2 == 0
            && let Some(&(at, lie)) = lies.next()
        {
            // Half of them where the heap's state is dense. Not the lock, or each call takes 2 s.
            let at = if at % 2 == 0 { 8 + at % 504 } else { 8 + at % (words - 8) };
            let word = heap.pointer(heap.region.get() + at * 8).cast::<u64>();
            // SAFETY: a word of the heap's own.
            unsafe { word.write_volatile(lie) };
        }
        match *op {
            Op::Alloc(size, align) => {
                if let Ok(block) = heap.alloc(layout(size, align))
                    && size > 0
                {
                    assert!(fixture.region.contains(block.as_ptr(), size));
                    assert!(block.addr().get() >= space.first());
                    assert!(block.addr().get().is_multiple_of(align));
                    blocks.push((block, layout(size, align)));
                }
            }
            Op::Free(n) if !blocks.is_empty() => {
                let (block, layout) = blocks[n % blocks.len()];
                let _ = free(&heap, block, layout);
            }
            Op::Resize(n, size) if !blocks.is_empty() => {
                let (block, layout) = blocks[n % blocks.len()];
                if let Ok(true) = resize(&heap, block, layout, size)
                    && size > 0
                {
                    assert!(fixture.region.contains(block.as_ptr(), size));
                }
            }
            _ => {}
        }
    }
    let _ = heap.check().unwrap().to_string();
    let _ = heap.recover();
    let _ = heap.trim();
}

/// The same for the bytes of a fuzzer: 16 for each operation, with a lie in every other.
fn fuzz(data: &[u8]) {
    let fixture = fixture(1 << 20);
    let (words, _) = data.as_chunks::<8>();
    let words: Vec<_> = words.iter().map(|&word| u64::from_le_bytes(word)).collect();
    let (pairs, _) = words.as_chunks::<2>();
    let lies: Vec<_> = pairs.iter().map(|&[at, lie]| (at as usize, lie)).collect();
    let ops: Vec<_> = pairs
        .iter()
        .map(|&[op, size]| match op % 4 {
            0 | 1 => Op::Alloc(size as usize % (64 << (size >> 60)), 1 << ((op >> 8) % 14)),
            2 => Op::Free(size as usize),
            _ => Op::Resize((op >> 8) as usize, size as usize % (1 << 20)),
        })
        .collect();
    survive(&fixture, &lies, &ops);
}

#[test]
fn fuzz_inputs_are_replayed() {
    fuzz(&[]);
    fuzz(&[0xff; 1000]);
    let mut random = 1_u64;
    for len in [64, 640, 6400] {
        let next = |_| {
            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (random >> 56) as u8
        };
        fuzz(&(0..len).map(next).collect::<Vec<_>>());
    }
}

#[test]
fn exhaustion_names_the_numbers() {
    let fixture = fixture(1 << 20);
    let heap = fixture.heap;
    for size in [16, 100, 1000, 8192, 8193, 100_000] {
        let blocks: Vec<_> = (0..100_000).map_while(|_| heap.alloc(layout(size, 1)).ok()).collect();
        let error = heap.alloc(layout(size, 1)).unwrap_err();
        assert!(
            error.is_exhausted() && error.to_string().contains(&format!("{size} bytes")),
            "{error}"
        );
        let used = blocks.len() * size * 10;
        assert!(used > sound(&heap).capacity * 6, "{size}: {}", blocks.len());
        for block in blocks {
            free(&heap, block, layout(size, 1)).unwrap();
        }
        assert_eq!(sound(&heap).blocks, 0);
    }
    assert!(heap.alloc(layout(1 << 40, 1)).unwrap_err().is_exhausted());
    assert!(heap.alloc(layout(1, 1 << 40)).unwrap_err().is_exhausted());
    assert!(heap.alloc(layout(isize::MAX as usize, 1)).unwrap_err().is_exhausted());
}

/// Who goes on with this one has still in hand what it kept.
#[test]
fn another_heap_is_closed() {
    let (fixture, other) = (fixture(1 << 20), fixture(1 << 20));
    let heap = fixture.heap;
    let three = layout(12_000, 8);
    for block in [heap.alloc(three).unwrap(), heap.alloc(three).unwrap()] {
        free(&heap, block, three).unwrap();
    }
    let kept = sound(&heap).in_hand;
    drop(other);
    let block = heap.alloc(three).unwrap();
    assert_eq!(sound(&heap).in_hand, kept - 12_288);
    free(&heap, block, three).unwrap();
}

/// What one thread keeps is had by another when nothing else is left, and taken once.
#[test]
fn what_a_thread_keeps_is_the_heaps() {
    let fixture = fixture(1 << 20);
    let heap = fixture.heap;
    let three = layout(12_000, 8);
    let all: Vec<_> = (0..100).map_while(|_| heap.alloc(three).ok()).collect();
    for &block in &all {
        free(&heap, block, three).unwrap();
        assert!(free(&heap, block, three).unwrap_err().is_invalid());
    }
    let kept = sound(&heap).in_hand;
    assert_eq!(kept, kept::KEPT * 12_288);
    let block = heap.alloc(three).unwrap();
    assert!(all.contains(&block) && sound(&heap).in_hand == kept - 12_288);
    free(&heap, block, three).unwrap();
    let count = all.len();
    std::thread::scope(|scope| {
        let other = scope.spawn(move || {
            let again: Vec<_> = (0..100).map_while(|_| heap.alloc(three).ok()).collect();
            assert_eq!(again.len(), count);
            again.into_iter().for_each(|block| free(&heap, block, three).unwrap());
        });
        other.join().unwrap();
    });
    assert_eq!(sound(&heap).blocks, 0);
    let block = heap.alloc(three).unwrap();
    assert_eq!(sound(&heap).blocks, 1);
    free(&heap, block, three).unwrap();
    // A run grows into what is kept behind it.
    heap.trim().unwrap();
    let [first, second] = [(); 2].map(|()| heap.alloc(three).unwrap());
    free(&heap, second, three).unwrap();
    assert!(second > first && resize(&heap, first, three, 24_000).unwrap());
    assert_eq!(sound(&heap).in_hand, 0);
}

#[test]
fn memory_is_given_back_and_zeroed() {
    let fixture = fixture(64 << 20);
    let heap = fixture.heap;
    let big = layout(32 << 20, 4096);
    let block = heap.alloc(big).unwrap();
    // SAFETY: just allocated.
    unsafe { block.write_bytes(7, big.size()) };
    free(&heap, block, big).unwrap();
    let again = heap.alloc_zeroed(layout((20 << 20) + 5, 1)).unwrap();
    assert_eq!(again, block);
    for at in [0, 4096, (20 << 20) + 4] {
        assert_eq!(byte(again, at), 0);
    }
    free(&heap, again, big).unwrap();
    let trimmed = heap.trim().unwrap();
    assert!(trimmed >= 12 << 20, "{trimmed}");
    let before = map::resident(block.as_ptr(), 32 << 20).unwrap();
    assert!(before < 1 << 20, "{before}");
    assert_eq!(heap.trim().unwrap(), 0);
}

#[test]
fn the_rest_of_a_region_is_the_heap() {
    let temp = tempfile::tempdir().unwrap();
    let region = Region::builder("heap").size(8 << 20).directory(temp.path()).create().unwrap();
    let first = region.alloc(layout(100, 1)).unwrap();
    let heap = region.heap_of(1 << 20).unwrap();
    assert_eq!(region.heap().unwrap(), heap);
    let second = region.alloc(layout(100, 1)).unwrap();
    assert!(second > first && heap.capacity(second).is_ok() && heap.capacity(first).is_err());
    assert!(sound(&heap).capacity < 1 << 20);
    // SAFETY: nothing of it is used any more.
    unsafe { heap.close() };
    let error = heap.alloc(layout(1, 1)).unwrap_err();
    assert_eq!(error.raw_os_error(), libc::ENXIO);
    let small = Region::builder("small").size(64 << 10).directory(temp.path()).create().unwrap();
    assert!(small.heap().unwrap_err().is_invalid());
}
