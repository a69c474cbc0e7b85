//! Participants that are killed at every step of what they do, and one that is stopped.

use super::*;
use crate::mshare::heap::steps::die_at;

/// Runs `body` in a forked child; how that ended: by itself, or killed.
fn in_child(body: impl FnOnce()) -> bool {
    // SAFETY: the child does what the test says and ends without unwinding.
    let child = unsafe { libc::fork() };
    if child == 0 {
        body();
        // SAFETY: ends the child.
        unsafe { libc::_exit(0) };
    }
    let mut status = 0;
    // SAFETY: our own child.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert!(libc::WIFSIGNALED(status) || status == 0, "{status:#x}");
    libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL
}

/// Blocks of the test, at words of the region that the heap does not have: 0 for none.
struct Journal(NonNull<u64>);

impl Journal {
    fn word(&self, n: usize) -> NonNull<u64> {
        // SAFETY: the page in front of the heap.
        unsafe { self.0.add(n) }
    }
    fn set(&self, n: usize, value: u64) {
        // SAFETY: as above; one process at a time.
        unsafe { self.word(n).write_volatile(value) };
    }
    fn get(&self, n: usize) -> u64 {
        // SAFETY: as above.
        unsafe { self.word(n).read_volatile() }
    }
}

/// A child does this and is killed at its `n`-th step, for every `n` until it comes to its end. After
/// each, once the dead child's slot is recovered, the heap is sound, and has the blocks that the
/// journal names, and at most the one that was just being handed out or freed.
fn killed_at_every_step(body: impl Fn(&Heap, &Journal)) {
    for n in 1..100_000 {
        let temp = tempfile::tempdir().unwrap();
        let region = Region::builder("heap").size(1 << 20).directory(temp.path()).create().unwrap();
        let journal = Journal(region.alloc(layout(4096, 4096)).unwrap().cast());
        let heap = region.heap().unwrap();
        let fixture = Fixture { heap, region, _temp: temp };
        let keep = heap.alloc(layout(48, 16)).unwrap();
        let killed = in_child(|| {
            die_at(n);
            body(&heap, &journal);
        });
        heap.recover().unwrap();
        let stats = sound(&heap);
        let known = (0..512).filter(|&n| journal.get(n) != 0).count();
        let count = stats.blocks - 1;
        assert!(count == known || count == known + 1 || count + 1 == known, "{n}: {count} {known}");
        for n in 0..512 {
            if let Some(address) = core::num::NonZeroUsize::new(journal.get(n) as usize) {
                let block = heap.pointer(address.get());
                let _ = free(&heap, block, layout(1, 1));
            }
        }
        free(&heap, keep, layout(48, 16)).unwrap();
        heap.trim().unwrap();
        let left = sound(&heap);
        assert!(left.blocks <= 1 && left.blocks + known >= count, "{n}: {}", left.blocks);
        if left.blocks == 0 {
            assert_eq!((left.taken, left.longest_free), (0, left.capacity), "{n}");
        }
        drop(fixture);
        if !killed {
            assert!(n > 20, "steps were made");
            return;
        }
    }
    panic!("it does not end");
}

#[test]
fn killed_in_small_blocks() {
    killed_at_every_step(|heap, journal| {
        for n in 0..20 {
            let block = heap.alloc(layout(1000, 8)).unwrap();
            journal.set(n, block.addr().get() as u64);
        }
        // From full and from other slabs, up to the last of one.
        for n in 0..18 {
            let block = heap.pointer(journal.get(n) as usize);
            free(heap, block, layout(1000, 8)).unwrap();
            journal.set(n, 0);
        }
        let block = heap.alloc(layout(1000, 8)).unwrap();
        journal.set(30, block.addr().get() as u64);
    });
}

#[test]
fn killed_in_runs() {
    killed_at_every_step(|heap, journal| {
        for n in 0..3 {
            let block = heap.alloc(layout(20_000, 8)).unwrap();
            journal.set(n, block.addr().get() as u64);
        }
        for n in [1, 0] {
            let block = heap.pointer(journal.get(n) as usize);
            free(heap, block, layout(20_000, 8)).unwrap();
            journal.set(n, 0);
        }
        let block = heap.alloc(layout(10_000, 8)).unwrap();
        journal.set(4, block.addr().get() as u64);
        assert!(resize(heap, block, layout(10_000, 8), 30_000).unwrap());
        assert!(resize(heap, block, layout(30_000, 8), 5_000).unwrap());
    });
}

#[test]
fn killed_as_it_leaves() {
    killed_at_every_step(|heap, journal| {
        for n in 0..3 {
            let block = heap.alloc(layout(100 << n, 8)).unwrap();
            journal.set(n, block.addr().get() as u64);
        }
        free(heap, heap.pointer(journal.get(1) as usize), layout(200, 8)).unwrap();
        journal.set(1, 0);
        cache::with("test", heap.region.get(), |cache| cache.member.leave()).unwrap();
    });
}

/// The child that recovers another is killed too, at every step.
#[test]
fn killed_in_recovery() {
    for n in 1..10_000 {
        let fixture = fixture(1 << 20);
        let heap = fixture.heap;
        // Killed with a slab of each of two classes, a run that it keeps, and the lock.
        assert!(in_child(|| {
            let blocks = [20, 20, 3000].map(|size| heap.alloc(layout(size, 8)).unwrap());
            free(&heap, blocks[0], layout(20, 8)).unwrap();
            let run = heap.alloc(layout(9000, 8)).unwrap();
            free(&heap, run, layout(9000, 8)).unwrap();
            die_at(4);
            let _ = heap.alloc(layout(50_000, 8));
        }));
        let killed = in_child(|| {
            let _ = heap.capacity(NonNull::dangling());
            die_at(n);
            heap.recover().unwrap();
        });
        heap.recover().unwrap();
        let stats = sound(&heap);
        assert_eq!((stats.blocks, stats.participants, stats.in_hand), (2, 1, 0), "{n}");
        if !killed {
            assert!(n > 10);
            return;
        }
    }
    panic!("it does not end");
}

/// Who is stopped with the lock holds up runs, for a while, and no blocks that are in hand. Once it is
/// dead, the next one takes over.
#[test]
fn stopped_and_then_killed_with_the_lock() {
    let fixture = fixture(1 << 20);
    let heap = fixture.heap;
    let small = layout(100, 8);
    heap.alloc(small).unwrap();
    // SAFETY: the child takes the lock and stops.
    let child = unsafe { libc::fork() };
    if child == 0 {
        cache::with("test", heap.region.get(), |cache| {
            let _lock = cache.member.pages();
            // SAFETY: stops the child, which is killed then.
            unsafe { libc::raise(libc::SIGSTOP) };
        })
        .unwrap();
        // SAFETY: ends the child.
        unsafe { libc::_exit(1) };
    }
    let mut status = 0;
    // SAFETY: our own child.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, libc::WUNTRACED) }, child);
    assert!(libc::WIFSTOPPED(status));
    let error = heap.alloc(layout(100_000, 8)).unwrap_err();
    assert!(error.is_timed_out(), "{error}");
    let block = heap.alloc(small).unwrap();
    free(&heap, block, small).unwrap();
    // SAFETY: our own child.
    unsafe { libc::kill(child, libc::SIGKILL) };
    // Not waited for yet: a zombie is dead, too, once the signal has got there.
    let block = (0..50).find_map(|_| heap.alloc(layout(100_000, 8)).ok()).unwrap();
    free(&heap, block, layout(100_000, 8)).unwrap();
    // SAFETY: our own child.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(heap.recover().unwrap(), 1);
    assert_eq!(sound(&heap).blocks, 1);
}
