//! Areas, their cells and words, and stripes of the caller's, on a live kernel.

mod common;

use common::{child, in_each_implementation, map, missing, refuse, role, stress, succeed};
use proptest::prelude::*;
use std::os::fd::AsRawFd;
use std::sync::Barrier;
use unmerged::percpu::{
    Area, AreaBuilder, Index, Integer, MappedArea, On, Ring, WhenFull, Word, gs,
};
use unmerged::sys::{cpus, features::features, rseq};

#[test]
fn strides_and_sizes_that_cannot_be() {
    let errno = |builder: AreaBuilder| builder.private().unwrap_err();
    for stride in [0, 8, 2048, 5000, 1 << 35] {
        let error = errno(AreaBuilder::new().stride(stride));
        assert!(error.is_invalid() && error.to_string().contains(&stride.to_string()), "{error}");
    }
    let error = errno(AreaBuilder::new().stride(1 << 34).cpu_ids(8192));
    assert_eq!(error.raw_os_error(), libc::EOVERFLOW);
    // 64 TiB each: there is no room for three in user space.
    let huge = AreaBuilder::new().stride(1 << 32).cpu_ids(8192);
    let three = [huge.private(), huge.private(), huge.private()];
    let error = three.into_iter().find_map(Result::err).unwrap();
    assert_eq!(error.raw_os_error(), libc::ENOMEM, "{error}");
    assert!(errno(AreaBuilder::new().cpu_ids(8193)).to_string().contains("8193"));

    let mapped = AreaBuilder::new().private().unwrap();
    let area = mapped.area();
    for bytes in [0, 4089, 5000, usize::MAX] {
        let error = area.alloc(bytes).unwrap_err();
        assert!(error.is_invalid() && error.to_string().contains(&bytes.to_string()), "{error}");
    }
    for (offset, bytes) in [(0, 8), (4, 8), (4096, 8), (4088, 16), (8, 0), (usize::MAX, 8)] {
        assert!(area.cell(offset, bytes).unwrap_err().is_invalid(), "{offset} {bytes}");
    }
    assert!(area.cell(8, 8).unwrap_err().is_not_found());
    let cell = area.alloc(4).unwrap();
    assert!(cell.counter().unwrap_err().is_invalid());
    assert!(cell.word::<u32>(2).unwrap_err().is_invalid());
    assert!(cell.word::<u32>(4).unwrap_err().is_invalid());
    assert!(cell.word::<u8>(3).is_ok());
    let beyond = features().cpus.end();
    let error = cell.on_cpu(beyond).unwrap_err();
    assert!(error.is_invalid() && error.to_string().contains(&beyond.to_string()), "{error}");
    assert!(cell.on_overflow(u32::MAX).unwrap_err().is_invalid());
}

/// Cells of all sizes, until there is no room; freed ones come back as zeroes.
#[test]
fn cells_of_any_size_are_zero_when_taken() {
    if !in_each_implementation("cells_of_any_size_are_zero_when_taken") {
        return;
    }
    for stride in [4096, 16384] {
        let mapped = AreaBuilder::new().stride(stride).private().unwrap();
        let area = mapped.area();
        for round in 0..3 {
            let mut cells = Vec::new();
            let mut taken = vec![false; stride];
            for bytes in [8, 1, 24, 500, 64, 1500, 9, 256].into_iter().cycle() {
                let Ok(cell) = area.alloc(bytes) else { break };
                assert_eq!((cell.size(), cell.offset() % 8), (bytes, 0));
                let range = cell.offset()..cell.offset() + bytes;
                assert!(taken[range.clone()].iter().all(|&taken| !taken), "{range:?} taken twice");
                taken[range].fill(true);
                for offset in 0..bytes {
                    let word = cell.word::<u8>(offset).unwrap();
                    assert!(word.values().all(|on| on.value == 0), "round {round}");
                    word.store(0xff).unwrap();
                }
                cells.push(cell);
            }
            assert!(cells.len() > 7);
            assert!(area.alloc(1500).unwrap_err().is_exhausted());
            for cell in cells {
                // SAFETY: nobody uses it any more.
                unsafe { area.free(cell) };
            }
        }
        assert!(area.alloc(stride - 8).is_ok());
    }
}

/// 8191 sparse ids cost address space. What is resident goes with the CPUs that were used.
#[test]
fn ids_that_are_not_there_cost_no_memory() {
    if !in_each_implementation("ids_that_are_not_there_cost_no_memory") {
        return;
    }
    for stride in [4096, 65536] {
        let mapped = AreaBuilder::new().stride(stride).cpu_ids(8192).private().unwrap();
        assert!(mapped.reserved() >= 2 * 8192 * stride);
        let counter = mapped.area().alloc(8).unwrap().counter().unwrap();
        for _ in 0..100_000 {
            counter.add(1);
        }
        // The header, and a page for each CPU that this thread came by.
        let most = (2 + cpus::Ids::possible().iter().count()) * 4096;
        let resident = mapped.resident().unwrap();
        assert!((8192..=most).contains(&resident), "{resident} bytes");
        assert_eq!(counter.sum(), 100_000);
        assert_eq!(counter.per_cpu().map(|(_, n)| n).sum::<u64>(), 100_000);
    }
}

/// Threads on an area of every kind lose nothing.
#[test]
fn every_kind_of_area_counts() {
    if !in_each_implementation("every_kind_of_area_counts") {
        return;
    }
    for (stride, index, numa) in [
        (4096, Index::CpuId, false),
        (8192, Index::CpuId, true),
        (4096, Index::MmCid, false),
        (65536, Index::MmCid, true),
    ] {
        let builder = AreaBuilder::new().stride(stride).index(index).numa(numa);
        let mapped = match builder.private() {
            Ok(mapped) => mapped,
            Err(error) => {
                assert!(error.is_unsupported() && index == Index::MmCid, "{error}");
                assert!(rseq::size() < 28);
                missing("rseq-extended", "indexed by cpu_id");
                continue;
            }
        };
        let area = mapped.area();
        assert_eq!((area.stride(), area.index()), (stride, index));
        let cell = area.alloc(16).unwrap();
        let counter = cell.counter().unwrap();
        let word = cell.word::<u16>(8).unwrap();
        let start = Barrier::new(4);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    start.wait();
                    for _ in 0..20_000 {
                        counter.add(1);
                        word.fetch_add(1).unwrap();
                    }
                });
            }
        });
        assert_eq!(counter.sum(), 80_000);
        let words = word.values().map(|on| on.value).fold(0, u16::wrapping_add);
        assert_eq!(words, 80_000_u32 as u16);
    }
}

/// Node of the page at this address, or an errno below 0.
fn node_of(address: std::ptr::NonNull<u8>) -> i32 {
    let (page, mut status) = (address.as_ptr(), i32::MIN);
    let none = std::ptr::null::<u8>();
    // SAFETY: asks for the node of one page; moves none.
    let answer = unsafe {
        libc::syscall(libc::SYS_move_pages, 0, 1, &raw const page, none, &raw mut status, 0)
    };
    if answer == 0 { status } else { -1 }
}

/// Stripes lie on the node of their CPU, whoever touches them first.
#[test]
fn stripes_are_placed() {
    let nodes = unmerged::sys::numa::nodes();
    if nodes.len() < 2 {
        return missing("numa", "all stripes on one node");
    }
    for builder in [AreaBuilder::new(), AreaBuilder::new().stride(16384)] {
        let file = builder.numa(true).memory_file("placed").unwrap();
        for mapped in [builder.numa(true).private().unwrap(), file] {
            let cell = mapped.area().alloc(8).unwrap();
            for (node, cpus) in &nodes {
                for cpu in cpus.iter() {
                    let word = cell.on_cpu(cpu).unwrap();
                    // SAFETY: a word of the stripe, which nobody uses.
                    unsafe { word.cast::<u64>().write_volatile(1) };
                    assert_eq!(node_of(word), *node as i32, "CPU {cpu}");
                }
            }
        }
    }
}

/// An area of one process cannot be another's, and what another process made is looked at
/// before it is believed.
#[test]
fn memory_files() {
    let refused = AreaBuilder::new().index(Index::MmCid).memory_file("area");
    assert!(refused.is_err_and(|error| error.is_invalid() || error.is_unsupported()));
    assert!(AreaBuilder::new().memory_file(&"x".repeat(250)).unwrap_err().is_invalid());

    let here = AreaBuilder::new().stride(8192).memory_file("area").unwrap();
    let cell = here.area().alloc(40).unwrap();
    let there = MappedArea::open(here.file().unwrap()).unwrap();
    let same = there.area().cell(cell.offset(), 40).unwrap();
    same.counter().unwrap().add(7);
    cell.counter().unwrap().add(5);
    assert_eq!(same.counter().unwrap().sum(), 12);
    same.word::<u8>(39).unwrap().swap(9).unwrap();
    assert_eq!(cell.word::<u8>(39).unwrap().values().map(|on| on.value).max(), Some(9));
    assert!(there.area().counter(5).is_ok());

    // Not sealed, no area in it, not a file at all.
    // SAFETY: plain system calls.
    let plain = unsafe { libc::memfd_create(c"plain".as_ptr(), libc::MFD_ALLOW_SEALING) };
    // SAFETY: our own descriptor.
    let plain = unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(plain) };
    assert!(MappedArea::open(&plain).unwrap_err().is_permission_denied());
    // SAFETY: our own file.
    unsafe { libc::ftruncate(plain.as_raw_fd(), 1 << 20) };
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;
    // SAFETY: as above.
    unsafe { libc::fcntl(plain.as_raw_fd(), libc::F_ADD_SEALS, seals) };
    let error = MappedArea::open(&plain).unwrap_err();
    assert!(error.is_corrupt(), "{error}");
    assert!(MappedArea::open(std::io::stdin()).is_err());
}

static WORD: Word<u64> = Word::new();

#[test]
fn a_cpu_is_stopped_while_its_word_is_taken() {
    if !in_each_implementation("a_cpu_is_stopped_while_its_word_is_taken") {
        return;
    }
    WORD.fetch_add(1).unwrap();
    let cpus = features().cpus.end();
    let error = WORD.with_exclusive(cpus, |old| old).unwrap_err();
    assert!(error.is_invalid() && error.to_string().contains(&cpus.to_string()), "{error}");
    // Inside, this thread's own operations go to the overflow word; and not twice.
    let error = WORD
        .with_exclusive(0, |old| {
            assert!(WORD.with_exclusive(0, |old| old).is_err());
            let on = WORD.fetch_add(5).unwrap();
            assert!(on.stripe.overflow || on.stripe.cpu != 0, "{on:?}");
            WORD.with_exclusive(0, |old| old).map(|_| old).unwrap_err();
            old
        })
        .err();
    assert!(error.is_none(), "{error:?}");
    assert_eq!(WORD.values().map(|on| on.value).sum::<u64>(), 6);
}

/// What one thread takes while others add is what they added.
#[test]
fn taken_and_left_is_what_was_added() {
    if !in_each_implementation("taken_and_left_is_what_was_added") {
        return;
    }
    let word: Word<u32> = Word::new();
    let end = std::time::Instant::now() + stress(std::time::Duration::from_millis(200));
    let (mut taken, added) = (0_u64, std::sync::atomic::AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut n = 0;
                while std::time::Instant::now() < end {
                    for _ in 0..1000 {
                        word.fetch_add(1).unwrap();
                    }
                    n += 1000;
                }
                added.fetch_add(n, std::sync::atomic::Ordering::Relaxed);
            });
        }
        while std::time::Instant::now() < end {
            for cpu in features().cpus.iter() {
                taken += u64::from(word.with_exclusive(cpu, |_| 0).unwrap());
            }
        }
    });
    let left: u64 = word.values().map(|on| u64::from(on.value)).sum();
    assert_eq!(taken + left, added.into_inner());
}

/// What one CPU's word and its overflow word are to do.
#[derive(Debug, Clone, Copy)]
enum Step {
    Load,
    Store(u64),
    Add(u64),
    Swap(u64),
    And(u64),
    Or(u64),
    Exchange(u64, u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        Just(Step::Load),
        any::<u64>().prop_map(Step::Store),
        any::<u64>().prop_map(Step::Add),
        any::<u64>().prop_map(Step::Swap),
        any::<u64>().prop_map(Step::And),
        any::<u64>().prop_map(Step::Or),
        (0..4_u64, 0..4_u64).prop_map(|(from, to)| Step::Exchange(from, to)),
    ];
    prop::collection::vec(step, 0..60)
}

/// The word of each stripe is a plain integer, whatever the width and the implementation.
fn like_an_integer<T: Integer + Into<u64> + TryFrom<u64>>(steps: &[Step])
where
    T::Error: std::fmt::Debug,
{
    let mask = u64::MAX >> (64 - 8 * size_of::<T>());
    let t = |value: u64| T::try_from(value & mask).unwrap();
    let word: Word<T> = Word::new();
    let mut model = std::collections::HashMap::new();
    for &step in steps {
        let mut check = |on: On<T>, next: &dyn Fn(u64) -> u64, answer: &dyn Fn(u64, u64) -> u64| {
            let old = *model.get(&on.stripe).unwrap_or(&0);
            let new = next(old) & mask;
            assert_eq!(on.value.into(), answer(old, new), "{step:?} on {:?}", on.stripe);
            model.insert(on.stripe, new);
        };
        let old = |old: u64, _: u64| old;
        match step {
            Step::Load => check(word.load().unwrap(), &|old| old, &old),
            Step::Store(v) => check(word.store(t(v)).unwrap(), &|_| v, &|_, new| new),
            Step::Add(v) => {
                check(word.fetch_add(t(v)).unwrap(), &|old| old.wrapping_add(v), &old);
            }
            Step::Swap(v) => check(word.swap(t(v)).unwrap(), &|_| v, &old),
            Step::And(v) => check(word.fetch_and(t(v)).unwrap(), &|old| old & v, &old),
            Step::Or(v) => check(word.fetch_or(t(v)).unwrap(), &|old| old | v, &old),
            Step::Exchange(from, to) => match word.compare_exchange(t(from), t(to)).unwrap() {
                Ok(on) => {
                    assert_eq!(on.value.into(), from);
                    check(on, &|_| to, &old);
                }
                Err(on) => {
                    assert_ne!(on.value.into(), from);
                    check(on, &|old| old, &old);
                }
            },
        }
    }
    for on in word.values() {
        assert_eq!(on.value.into(), *model.get(&on.stripe).unwrap_or(&0));
    }
}

#[test]
fn words_are_integers() {
    if !in_each_implementation("words_are_integers") {
        return;
    }
    proptest!(ProptestConfig { failure_persistence: None, cases: 200, ..Default::default() },
        |(steps in steps())| {
        like_an_integer::<u8>(&steps);
        like_an_integer::<u16>(&steps);
        like_an_integer::<u32>(&steps);
        like_an_integer::<u64>(&steps);
    });
}

/// An area of any stride in memory that the caller maps, at another address in each process.
#[test]
fn an_area_in_memory_of_the_callers() {
    if !in_each_implementation("an_area_in_memory_of_the_callers") {
        return;
    }
    const BYTES: usize = 10_000;
    let builder = AreaBuilder::new().stride(16384).cpu_ids(features().cpus.end() + 1).numa(true);
    let size = builder.size().unwrap();
    assert!(size > 2 * 16384 * (features().cpus.end() as usize + 1));
    let file = tempfile::tempfile().unwrap();
    file.set_len(size as u64 + 4096).unwrap();
    let (here, there) = (map(&file, size + 4096), map(&file, size + 4096));
    // SAFETY: mapped until the process ends, zero, and reached by areas alone; below, too.
    let create = |builder: AreaBuilder, memory, len| unsafe { builder.create_in(memory, len) };
    let error = create(builder, here, size - 1).unwrap_err();
    assert!(error.is_invalid() && error.to_string().contains(&size.to_string()), "{error}");
    // SAFETY: inside the mapping.
    assert!(create(builder, unsafe { here.add(8) }, size).unwrap_err().is_invalid());
    assert!(create(builder.index(Index::MmCid), here, size).unwrap_err().is_invalid());
    assert!(builder.stride(5000).size().unwrap_err().is_invalid());
    let area = create(builder, here, size).unwrap();
    assert_eq!((area.stride(), area.index()), (16384, Index::CpuId));
    let again = create(builder, there, size).unwrap_err();
    assert!(again.is_exists(), "{again}");

    // SAFETY: as above.
    let other: Area<'static> = unsafe { Area::open(there, size) }.unwrap();
    let cell = area.alloc(BYTES).unwrap();
    let same = other.cell(cell.offset(), BYTES).unwrap();
    let both = [cell.counters().unwrap(), same.counters().unwrap()];
    std::thread::scope(|scope| {
        for array in &both {
            scope.spawn(|| (0..10_000).for_each(|n| array.add(n % array.len(), 1)));
        }
    });
    let sum = |n: usize| both[n].sums().iter().sum::<u64>();
    assert_eq!((sum(0), sum(1)), (20_000, 20_000));
}

/// Whether stripes of the caller's can be had here.
fn gs_ready() -> bool {
    let ready = features().gs == unmerged::sys::gs::Claim::Free && rseq::ensure_registered();
    if !ready {
        let error = gs::set(4096, 64).unwrap_err();
        assert_eq!(error.raw_os_error(), libc::EINVAL, "{error}");
        missing("fsgsbase", "no stripes of the caller's");
    }
    ready
}

/// The errors of the interface of 2014.
#[test]
fn gs_errors() {
    if !gs_ready() {
        return;
    }
    let errno = |base, stride| gs::set(base, stride).unwrap_err().raw_os_error();
    assert_eq!(errno(0, 64), libc::EINVAL); // as every thread has it that never called
    let end = (1_usize << 47) - 4096;
    std::thread::spawn(move || {
        assert_eq!(gs::get().unwrap_err().raw_os_error(), libc::ENOENT);
        assert_eq!(gs::clear().unwrap_err().raw_os_error(), libc::ENOENT);
        // SAFETY: without stripes nothing is touched.
        let error = unsafe { gs::fetch_add::<u64>(0, 1) }.unwrap_err();
        assert_eq!(error.raw_os_error(), libc::ENOENT);
        assert_eq!(errno(end, 64), libc::EPERM);
        assert_eq!(errno(usize::MAX, 64), libc::EPERM);
        assert_eq!(errno(4096, end), libc::EOVERFLOW);
        assert_eq!(
            errno(end - 64, 64),
            if features().cpus.end() > 1 { libc::EOVERFLOW } else { 0 }
        );
        assert_eq!(errno(4096, 0), libc::EINVAL);
        assert_eq!(errno(4096, 12), libc::EINVAL);
    })
    .join()
    .unwrap();
    // %gs of this thread is somebody else's.
    std::thread::spawn(|| {
        // SAFETY: FSGSBASE works, and nobody else uses %gs in this thread.
        unsafe { unmerged::arch::set_gs_base(0x1234_5000) };
        let error = gs::set(4096, 64).unwrap_err();
        assert_eq!(error.raw_os_error(), libc::EBUSY);
        assert!(error.to_string().contains("0x12345000"), "{error}");
        // SAFETY: as above.
        unsafe { unmerged::arch::set_gs_base(0) };
    })
    .join()
    .unwrap();
}

/// A limit on the size of files is an error, not the signal of the kernel.
#[test]
fn a_limit_on_files_is_an_error() {
    let test = "a_limit_on_files_is_an_error";
    if role().is_none() {
        return succeed(child(test, "limited"));
    }
    let limit = libc::rlimit { rlim_cur: 8192, rlim_max: 8192 };
    // SAFETY: the limit of this process, which ends with the test.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) }, 0);
    let error = AreaBuilder::new().memory_file("limited").unwrap_err();
    assert_eq!(error.raw_os_error(), libc::EFBIG, "{error}");
    let size = AreaBuilder::new().size().unwrap();
    assert!(error.to_string().contains(&size.to_string()), "{error}");
    let error = Ring::shared(4096, WhenFull::Refuse).unwrap_err();
    assert_eq!(error.raw_os_error(), libc::EFBIG, "{error}");
}

/// A new thread takes over what its creator has, or, where the GS base fits more than that,
/// nothing: never the stripes of another layout.
#[test]
fn gs_stripes_that_cannot_be_told_apart_are_not_inherited() {
    if !gs_ready() {
        return;
    }
    let stripes = vec![0_u64; 64 * features().cpus.end() as usize];
    let base = stripes.as_ptr().expose_provenance();
    let there = move |stride| {
        std::thread::spawn(move || match gs::get() {
            Ok((_, inherited)) => assert_eq!(inherited, stride),
            Err(error) => {
                assert_eq!(error.raw_os_error(), libc::ENOENT);
                assert!(error.to_string().contains("several"), "{error}");
                // SAFETY: without stripes nothing is touched.
                assert!(unsafe { gs::fetch_add::<u64>(0, 1) }.is_err());
                gs::clear().unwrap();
                gs::set(base, stride).unwrap();
                assert_eq!(gs::get().unwrap(), (base, stride));
            }
        })
        .join()
        .unwrap();
    };
    std::thread::spawn(move || {
        gs::set(base, 128).unwrap();
        gs::set(base, 512).unwrap();
        // SAFETY: the first word of every stripe is written by these operations alone.
        unsafe { gs::fetch_add::<u64>(0, 1) }.unwrap();
        there(512);
        gs::set(base, 128).unwrap();
        // SAFETY: as above.
        unsafe { gs::fetch_add::<u64>(0, 1) }.unwrap();
        there(128);
    })
    .join()
    .unwrap();
}

/// The word of the thread's control block that lies where `rseq_cs` would in an area at 0: libc's.
fn libcs_word() -> usize {
    let word: usize;
    // SAFETY: reads a word of this thread's control block.
    unsafe { std::arch::asm!("mov {}, qword ptr fs:[8]", out(reg) word) };
    word
}

/// An operation that is the first thing a process does with this crate, or that comes where rseq is
/// refused, is an error and leaves the thread's control block alone.
#[test]
fn gs_before_anything_else() {
    match role().as_deref() {
        None => {
            let test = "gs_before_anything_else";
            succeed(child(test, "first"));
            let mut refused = child(test, "refused");
            refused.env("GLIBC_TUNABLES", "glibc.pthread.rseq=0");
            return succeed(refused);
        }
        Some("refused") => refuse(libc::SYS_rseq, libc::ENOSYS),
        _ => {}
    }
    let before = libcs_word();
    for _ in 0..2 {
        // SAFETY: without stripes nothing is touched.
        let error = unsafe { gs::fetch_add::<u64>(8, 1) }.unwrap_err();
        assert!(matches!(error.raw_os_error(), libc::ENOENT | libc::EINVAL), "{error}");
        assert_eq!(libcs_word(), before);
    }
}

/// Threads that are created afterwards have the stripes of their creator; counters of the
/// crate go on beside; all widths; nothing is lost while threads move.
#[test]
fn gs_stripes_of_the_caller() {
    if !in_each_implementation("gs_stripes_of_the_caller") || !gs_ready() {
        return;
    }
    static HITS: unmerged::percpu::Counter = unmerged::percpu::Counter::new();
    const ADDS: u64 = 100_000;
    HITS.add(1);
    let ids = features().cpus.end() as usize;
    let stripes = vec![0_u64; ids * 16];
    let base = stripes.as_ptr().expose_provenance();
    std::thread::spawn(move || {
        gs::set(base, 128).unwrap();
        assert_eq!(gs::get().unwrap(), (base, 128));
        HITS.add(1);
        let add = || {
            for _ in 0..ADDS {
                // SAFETY: words of every stripe, written by these operations alone.
                unsafe {
                    gs::fetch_add::<u64>(8, 1).unwrap();
                    gs::fetch_add::<u8>(16, 1).unwrap();
                    gs::fetch_or::<u32>(20, 1).unwrap();
                }
                HITS.add(1);
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    assert_eq!(gs::get().unwrap(), (base, 128), "inherited");
                    add();
                });
            }
            add();
        });
        // Set anew, and ended: the counters strike back.
        gs::set(base, 64).unwrap();
        assert_eq!(gs::get().unwrap(), (base, 64));
        gs::clear().unwrap();
        HITS.add(1);
        assert_eq!(gs::get().unwrap_err().raw_os_error(), libc::ENOENT);
    })
    .join()
    .unwrap();
    // SAFETY: the threads have ended; asm wrote these words behind Rust's back.
    let word = |cpu: usize, n: usize| unsafe { stripes.as_ptr().add(cpu * 16 + n).read_volatile() };
    assert_eq!((0..ids).map(|cpu| word(cpu, 1)).sum::<u64>(), 4 * ADDS);
    let bytes = (0..ids).fold(0_u8, |sum, cpu| sum.wrapping_add(word(cpu, 2) as u8));
    assert_eq!(bytes, (4 * ADDS) as u8);
    assert!((0..ids).all(|cpu| word(cpu, 2) >> 33 == 0));
    assert_eq!(HITS.sum(), 4 * ADDS + 3);
}
