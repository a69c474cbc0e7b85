//! Stacks and pools on a live kernel, in each implementation: what is put in comes out once.

mod common;

use common::{
    alarm, allowed as cpus, child, handle, in_each_implementation, in_each_implementation_with,
    pin, refuse, role, stress, succeed,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::collections::HashSet;
use std::mem::MaybeUninit;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use unmerged::percpu::{Counter, Node, Pool, PoolLimits, Pooled, Stack, stats};

/// A value that says who has it: the structure, or one user.
struct Item {
    value: u64,
    held: AtomicBool,
}

impl Item {
    fn new(value: u64) -> Self {
        Self { value, held: AtomicBool::new(true) }
    }

    /// It came out.
    fn take(&self) {
        assert!(!self.held.swap(true, Ordering::Relaxed), "{} came out twice", self.value);
    }

    /// It goes in.
    fn give(&self) {
        assert!(self.held.swap(false, Ordering::Relaxed), "{} goes in twice", self.value);
    }
}

/// xorshift64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// `handler` runs at SIGUSR1 and SIGALRM.
fn install(handler: extern "C" fn(libc::c_int)) {
    // SAFETY: the handlers of this file use atomics, stacks and pools in use.
    unsafe { handle(&[libc::SIGUSR1, libc::SIGALRM], handler) };
}

/// What happens between the operations of a storm.
fn inject(random: &mut Random, cpus: &[u32]) {
    match random.below(64) {
        0..8 => (0..random.below(400)).for_each(|_| std::hint::spin_loop()),
        8..16 => std::thread::yield_now(),
        // SAFETY: a signal to this thread, which has a handler for it.
        16..18 => drop(unsafe { libc::raise(libc::SIGUSR1) }),
        18 => alarm(10 + random.below(41) as i64),
        19 => drop(pin(cpus[random.below(cpus.len() as u64) as usize])),
        _ => {}
    }
}

const THREADS: u64 = 6;

/// `work` in [`THREADS`] threads again and again, and `sweep` in one more, until the time is over.
fn storm(
    usual: Duration,
    work: impl Fn(&mut Random, &dyn Fn(&mut Random)) + Sync,
    sweep: impl Fn() + Sync,
) {
    let (cpus, end) = (cpus(), Instant::now() + stress(usual));
    std::thread::scope(|scope| {
        let mut threads: Vec<_> = (0..THREADS)
            .map(|me| {
                let (cpus, work) = (&cpus, &work);
                scope.spawn(move || {
                    let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ me << 40 | 1);
                    // A thread may begin after the end.
                    loop {
                        (0..32).for_each(|_| work(&mut random, &|random| inject(random, cpus)));
                        if Instant::now() >= end {
                            break;
                        }
                    }
                })
            })
            .collect();
        threads.push(scope.spawn(|| {
            while Instant::now() < end {
                sweep();
                std::thread::sleep(Duration::from_micros(200));
            }
        }));
        // The end of a scope is not the end of its threads: a handler may still run in one.
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

static STACK: Stack<Item> = Stack::new();
static HANDLED: AtomicU64 = AtomicU64::new(0);

extern "C" fn pop_and_push(_: libc::c_int) {
    if let Some(node) = STACK.pop() {
        node.take();
        HANDLED.fetch_add(1, Ordering::Relaxed);
        node.give();
        STACK.push(node);
    }
}

const NODES: u64 = 100;

/// Fills the stack on every CPU, then storms; all nodes are there at the end, once each.
fn storm_on_the_stack(usual: Duration) {
    let cpus = cpus();
    for value in 1..=NODES {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                pin(cpus[value as usize % cpus.len()]);
                let node = Node::new(Item::new(value));
                node.give();
                STACK.push(node);
            });
        });
    }
    install(pop_and_push);
    let work = |random: &mut Random, inject: &dyn Fn(&mut Random)| {
        let node = STACK.pop();
        node.iter().for_each(|node| node.take());
        inject(random);
        if let Some(node) = node {
            node.give();
            STACK.push(node);
        }
        inject(random);
    };
    let sweep = || {
        let mut nodes = Vec::new();
        STACK.drain(|node| nodes.push(node)).unwrap();
        nodes.iter().for_each(|node| node.take());
        for node in nodes {
            node.give();
            STACK.push(node);
        }
    };
    storm(usual, work, sweep);
    assert!(HANDLED.load(Ordering::Relaxed) > 0);
    let mut values = Vec::new();
    STACK
        .drain(|node| {
            node.take();
            values.push(node.value);
        })
        .unwrap();
    values.sort_unstable();
    assert_eq!(values, (1..=NODES).collect::<Vec<_>>());
}

#[test]
fn nodes_are_conserved() {
    if in_each_implementation("nodes_are_conserved") {
        storm_on_the_stack(Duration::from_millis(300));
    }
}

#[test]
fn nodes_are_conserved_when_fenced_by_affinity() {
    const TEST: &str = "nodes_are_conserved_when_fenced_by_affinity";
    if in_each_implementation_with(TEST, &[("UNMERGED_PERCPU_FENCE", "affinity")]) {
        storm_on_the_stack(Duration::from_millis(200));
    }
}

/// A filter refuses membarrier(2), from the start or after the first fence: drains go by affinity.
#[test]
fn drains_without_membarrier() {
    const TEST: &str = "drains_without_membarrier";
    if !in_each_implementation(TEST) {
        return;
    }
    let drain = || {
        let stack = Stack::new();
        let mut pushed = 0;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for cpu in cpus() {
                    pushed += u32::from(pin(cpu));
                    stack.push(Node::new(cpu));
                }
            });
        });
        let mut found = HashSet::new();
        stack.drain(|node| assert!(found.insert(**node))).unwrap();
        assert!(pushed > 0 && found.len() == pushed as usize);
    };
    drain();
    refuse(libc::SYS_membarrier, libc::EPERM);
    drain();
    // A new process looks for membarrier and has none.
    let mut command = child("nodes_are_conserved", &role().unwrap());
    command.env("UNMERGED_PERCPU", role().unwrap());
    succeed(command);
}

/// A child that is forked at any moment finds nothing twice, and a stack that works.
#[test]
fn a_stack_after_a_fork_in_a_storm() {
    if !in_each_implementation("a_stack_after_a_fork_in_a_storm") {
        return;
    }
    for value in 1..=NODES {
        let node = Node::new(Item::new(value));
        node.give();
        STACK.push(node);
    }
    let fork = || {
        after_fork(|| {
            let mut nodes = Vec::new();
            STACK.drain(|node| nodes.push(node)).unwrap();
            let values: HashSet<_> = nodes.iter().map(|node| node.value).collect();
            let once = values.len() == nodes.len();
            let free = nodes.iter().all(|node| !node.held.load(Ordering::Relaxed));
            let drained = nodes.len();
            nodes.into_iter().for_each(|node| STACK.push(node));
            let popped = std::iter::from_fn(|| STACK.pop()).count();
            let rest = STACK.drain(std::mem::forget).unwrap();
            once && free && drained as u64 <= NODES && popped + rest == drained
        });
    };
    let work = |_: &mut Random, _: &dyn Fn(&mut Random)| {
        if let Some(node) = STACK.pop() {
            node.take();
            node.give();
            STACK.push(node);
        }
    };
    storm(Duration::from_millis(300), work, fork);
}

/// Forks; `works` in the child, which must answer true in time.
fn after_fork(works: impl FnOnce() -> bool) {
    // SAFETY: the child allocates, which glibc's fork allows, and ends.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        // SAFETY: the default action of SIGALRM is to end the child: none hangs.
        unsafe {
            libc::signal(libc::SIGALRM, libc::SIG_DFL);
            libc::alarm(60);
        }
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(works));
        // SAFETY: ends the child.
        unsafe { libc::_exit(i32::from(!worked.unwrap_or(false))) };
    }
    let mut status = 0;
    // SAFETY: our own child.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0);
}

/// After librseq's list test: 100 nodes on each CPU, many threads, pop, yield, push.
#[test]
fn the_list_test_of_librseq() {
    if !in_each_implementation("the_list_test_of_librseq") {
        return;
    }
    let (stack, cpus) = (Stack::new(), cpus());
    let mut expected = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for &cpu in &cpus {
                pin(cpu);
                for value in 1..=100_u64 {
                    expected += value;
                    stack.push(Node::new(value));
                }
            }
        });
    });
    let start = Barrier::new(20);
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                start.wait();
                for _ in 0..1000 {
                    let node = stack.pop();
                    std::thread::yield_now();
                    node.into_iter().for_each(|node| stack.push(node));
                }
            });
        }
    });
    let (mut sum, mut count) = (0, 0);
    assert_eq!(
        stack
            .drain(|node| {
                sum += **node;
                count += 1;
            })
            .unwrap(),
        100 * cpus.len()
    );
    assert_eq!((sum, count), (expected, 100 * cpus.len()));
}

/// Room for all, at one object a batch.
const ROOMY: PoolLimits = PoolLimits::new().per_cpu(15).batch(7).shared(7 * 1000);
static ROOM: Pool<Item> = Pool::with_limits(|| unreachable!(), ROOMY);

extern "C" fn get_and_put(_: libc::c_int) {
    if let Some(item) = ROOM.try_get() {
        item.take();
        HANDLED.fetch_add(1, Ordering::Relaxed);
        item.give();
        assert!(ROOM.try_put(item).is_ok());
    }
}

/// After param_test's arrays of pointers: objects come and go, none is made or lost.
fn storm_on_the_pool(usual: Duration) {
    for value in 1..=NODES {
        let item = Item::new(value);
        item.give();
        assert!(ROOM.try_put(Box::new(item)).is_ok());
    }
    install(get_and_put);
    let work = |random: &mut Random, inject: &dyn Fn(&mut Random)| {
        let mut mine: Vec<_> = (0..random.below(9))
            .filter_map(|_| ROOM.try_get().inspect(|item| item.take()))
            .collect();
        inject(random);
        while let Some(item) = mine.pop() {
            item.give();
            assert!(ROOM.try_put(item).is_ok());
        }
        inject(random);
    };
    let sweep = || {
        let mut items = Vec::new();
        ROOM.drain(|item| items.push(item)).unwrap();
        items.iter().for_each(|item| item.take());
        for item in items {
            item.give();
            assert!(ROOM.try_put(item).is_ok());
        }
    };
    storm(usual, work, sweep);
    assert!(HANDLED.load(Ordering::Relaxed) > 0);
    assert_eq!(ROOM.len() as u64, NODES);
    let mut values = Vec::new();
    ROOM.drain(|item| {
        item.take();
        values.push(item.value);
    })
    .unwrap();
    values.sort_unstable();
    assert_eq!(values, (1..=NODES).collect::<Vec<_>>());
}

#[test]
fn objects_are_conserved() {
    if in_each_implementation("objects_are_conserved") {
        storm_on_the_pool(Duration::from_millis(300));
    }
}

#[test]
fn objects_are_conserved_when_fenced_by_affinity() {
    const TEST: &str = "objects_are_conserved_when_fenced_by_affinity";
    if in_each_implementation_with(TEST, &[("UNMERGED_PERCPU_FENCE", "affinity")]) {
        storm_on_the_pool(Duration::from_millis(200));
    }
}

#[test]
fn a_pool_after_a_fork_in_a_storm() {
    if !in_each_implementation("a_pool_after_a_fork_in_a_storm") {
        return;
    }
    for value in 1..=NODES {
        let item = Item::new(value);
        item.give();
        assert!(ROOM.try_put(Box::new(item)).is_ok());
    }
    let fork = || {
        after_fork(|| {
            let mut items = Vec::new();
            ROOM.drain(|item| items.push(item)).unwrap();
            let values: HashSet<_> = items.iter().map(|item| item.value).collect();
            let once = values.len() == items.len();
            let free = items.iter().all(|item| !item.held.load(Ordering::Relaxed));
            let drained = items.len();
            items.into_iter().for_each(|item| assert!(ROOM.try_put(item).is_ok()));
            let got = std::iter::from_fn(|| ROOM.try_get().map(std::mem::forget)).count();
            let rest = ROOM.drain(std::mem::forget).unwrap();
            once && free && drained as u64 <= NODES && got + rest == drained
        });
    };
    let work = |random: &mut Random, _: &dyn Fn(&mut Random)| {
        let mine: Vec<_> = (0..random.below(9))
            .filter_map(|_| ROOM.try_get().inspect(|item| item.take()))
            .collect();
        for item in mine {
            item.give();
            assert!(ROOM.try_put(item).is_ok());
        }
    };
    storm(Duration::from_millis(300), work, fork);
}

static MADE: AtomicUsize = AtomicUsize::new(0);
static DROPPED: AtomicUsize = AtomicUsize::new(0);

/// An item that is counted.
struct Counted(Item);

impl Counted {
    fn make() -> Self {
        let n = MADE.fetch_add(1, Ordering::Relaxed);
        let item = Item::new(n as u64);
        item.give();
        Self(item)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        DROPPED.fetch_add(1, Ordering::Relaxed);
    }
}

const TIGHT: PoolLimits = PoolLimits::new().per_cpu(7).batch(3).shared(12);
static TIGHT_POOL: Pool<Counted> = Pool::with_limits(Counted::make, TIGHT);

/// Objects that a pool of these limits keeps, at most.
fn most(per_cpu: usize, batch: usize, shared: usize) -> usize {
    let ids = Counter::new().per_cpu().map(|(cpu, _)| cpu as usize + 1).max().unwrap();
    shared.next_multiple_of(batch) + (per_cpu + batch) * ids
}

/// After TCMalloc's stress test: random operations by twice as many threads as CPUs, pinned
/// to one or not, with trims meanwhile or not.
#[test]
fn the_stress_matrix_of_tcmalloc() {
    if !in_each_implementation("the_stress_matrix_of_tcmalloc") {
        return;
    }
    let cpus = cpus();
    for (pinned, trims) in [(false, false), (false, true), (true, false), (true, true)] {
        let end = Instant::now() + stress(Duration::from_millis(100));
        std::thread::scope(|scope| {
            for me in 0..2 * cpus.len() as u64 {
                let cpus = &cpus;
                scope.spawn(move || {
                    if pinned {
                        pin(cpus[0]);
                    }
                    let mut random = Random(me + 77);
                    let mut mine = Vec::new();
                    while Instant::now() < end {
                        match random.below(10) {
                            0..3 => mine.push(Pooled::detach(TIGHT_POOL.get())),
                            3 => match TIGHT_POOL.try_get() {
                                Some(item) => mine.push(item),
                                None => continue,
                            },
                            4..7 => {
                                let Some(item) = mine.pop() else { continue };
                                item.0.give();
                                TIGHT_POOL.put(item);
                                continue;
                            }
                            7 => {
                                let Some(item) = mine.pop() else { continue };
                                item.0.give();
                                if let Err(item) = TIGHT_POOL.try_put(item) {
                                    item.0.take();
                                    mine.push(item);
                                }
                                continue;
                            }
                            8 if trims => {
                                TIGHT_POOL.trim().unwrap();
                                continue;
                            }
                            _ => {
                                let item = TIGHT_POOL.get();
                                item.0.take();
                                item.0.give();
                                continue;
                            }
                        }
                        mine.last().unwrap().0.take();
                        if mine.len() > 20 {
                            mine.clear();
                        }
                    }
                });
            }
        });
        let alive = || MADE.load(Ordering::Relaxed) - DROPPED.load(Ordering::Relaxed);
        assert_eq!(TIGHT_POOL.len(), alive());
        assert!(alive() <= most(7, 3, 12), "{} are kept", alive());
        let before = alive();
        assert_eq!((TIGHT_POOL.trim().unwrap(), alive(), TIGHT_POOL.len()), (before, 0, 0));
    }
}

/// After TCMalloc's unit test: an array on each CPU, filled and emptied.
#[test]
fn as_many_as_there_is_room_for() {
    if !in_each_implementation("as_many_as_there_is_room_for") {
        return;
    }
    for cpu in cpus() {
        pin(cpu);
        for (per_cpu, batch, shared) in [(1, 1, 0), (7, 3, 6), (63, 32, 64), (255, 255, 1)] {
            let limits = PoolLimits::new().per_cpu(per_cpu).batch(batch).shared(shared);
            let pool = Pool::with_limits(|| unreachable!(), limits);
            for _ in 0..2 {
                assert!(pool.is_empty() && pool.try_get().is_none());
                let mut kept = 0;
                while pool.try_put(Box::new(kept)).is_ok() {
                    kept += 1;
                    assert_eq!(pool.len(), kept);
                }
                let most = most(per_cpu, batch, shared);
                assert!(shared <= kept && kept <= most, "{shared} {kept} {most}");
                let mut seen: Vec<_> = std::iter::from_fn(|| pool.try_get()).collect();
                seen.sort_unstable();
                assert!(seen.iter().map(|value| **value).eq(0..kept), "{seen:?}");
            }
            pool.put(Box::new(5));
            let mut seen = Vec::new();
            assert_eq!(pool.drain(|value| seen.push(*value)).unwrap(), 1);
            assert_eq!(seen, [5]);
        }
    }
}

/// What one CPU makes and another gives back comes round.
#[test]
fn memory_stays_bounded() {
    if !in_each_implementation("memory_stays_bounded") {
        return;
    }
    const IN_FLIGHT: usize = 16;
    const ROUNDS: usize = 20_000;
    let cpus = cpus();
    let (sender, receiver) = std::sync::mpsc::sync_channel(IN_FLIGHT);
    std::thread::scope(|scope| {
        let (first, last) = (cpus[0], cpus[cpus.len() - 1]);
        scope.spawn(move || {
            pin(first);
            for _ in 0..ROUNDS {
                let item = TIGHT_POOL.get();
                item.0.take();
                sender.send(item).unwrap();
            }
        });
        scope.spawn(move || {
            pin(last);
            for item in receiver {
                item.0.give();
                drop(item);
            }
        });
    });
    let made = MADE.load(Ordering::Relaxed);
    let (alive, most) = (made - DROPPED.load(Ordering::Relaxed), most(7, 3, 12));
    assert!(alive <= most, "{alive} kept of {made}");
    assert!(made <= most + IN_FLIGHT + 2 + ROUNDS / 10, "{made} made for {ROUNDS}");
    assert_eq!(TIGHT_POOL.len(), alive);
}

/// No memory can be mapped: what there is room for is kept, the rest comes back.
#[test]
fn without_memory_nothing_is_lost() {
    if !in_each_implementation("without_memory_nothing_is_lost") {
        return;
    }
    const OBJECTS: u64 = 200;
    pin(cpus()[0]);
    let (stack, pool) = (Stack::new(), Pool::<u64>::new(|| unreachable!()));
    let nodes: Vec<_> = (0..OBJECTS).map(Node::new).collect();
    let objects: Vec<_> = (0..OBJECTS).map(Box::new).collect();
    let mut back = Vec::with_capacity(OBJECTS as usize);
    let mut popped = Vec::with_capacity(OBJECTS as usize);

    // SAFETY: a limit of this process, which is put back below.
    let before = unsafe {
        let mut before = MaybeUninit::<libc::rlimit>::zeroed().assume_init();
        assert_eq!(libc::getrlimit(libc::RLIMIT_AS, &raw mut before), 0);
        let none = libc::rlimit { rlim_cur: 1, ..before };
        assert_eq!(libc::setrlimit(libc::RLIMIT_AS, &raw const none), 0);
        before
    };
    nodes.into_iter().for_each(|node| stack.push(node));
    back.extend(objects.into_iter().filter_map(|object| pool.try_put(object).err()));
    let kept = pool.len();
    (0..OBJECTS / 2).for_each(|_| popped.extend(stack.pop()));
    // SAFETY: as above.
    unsafe { assert_eq!(libc::setrlimit(libc::RLIMIT_AS, &raw const before), 0) };

    assert!(!back.is_empty(), "there was memory");
    assert_eq!(kept + back.len(), OBJECTS as usize);
    // There is memory again: all is found, on either side of it.
    let rest: Vec<_> = back.into_iter().filter_map(|object| pool.try_put(object).err()).collect();
    assert!(rest.is_empty());
    let objects: HashSet<_> = std::iter::from_fn(|| pool.try_get()).map(|value| *value).collect();
    assert_eq!(objects.len() as u64, OBJECTS);
    stack.push(Node::new(OBJECTS));
    stack.drain(|node| popped.push(node)).unwrap();
    let mut values: Vec<_> = popped.iter().map(|node| ***node).collect();
    values.sort_unstable();
    assert!(values.into_iter().eq(0..=OBJECTS));
}

#[test]
fn guards_give_back_or_do_not() {
    if !in_each_implementation("guards_give_back_or_do_not") {
        return;
    }
    pin(cpus()[0]);
    let made = AtomicUsize::new(0);
    let pool = Pool::new(|| vec![made.fetch_add(1, Ordering::Relaxed)]);
    let mut first = pool.get();
    first.push(7);
    assert_eq!(format!("{first:?} {pool:?}"), {
        let limits = "PoolLimits { per_cpu: 63, batch: 32, shared: 1024 }";
        format!("Pooled([0, 7]) Pool {{ len: 0, limits: {limits}, .. }}")
    });
    drop(first);
    assert_eq!(Pooled::into_inner(pool.get()), [0, 7]);
    assert_eq!(*Pooled::detach(pool.get()), [1]);
    assert!(pool.is_empty());
    // If the receiver of a drain panics, the rest goes back.
    (0..40).for_each(|n| pool.put(Box::new(vec![n])));
    let mut left: u32 = 5;
    let drained = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        pool.drain(|_| {
            left -= 1;
            assert!(left > 0, "enough");
        })
    }));
    assert!(drained.is_err());
    assert_eq!((pool.len(), pool.trim().unwrap(), pool.len()), (35, 35, 0));
}

#[test]
fn limits_that_cannot_be() {
    let limits = PoolLimits::new();
    let refused: [&dyn Fn(); 5] = [
        &|| _ = limits.per_cpu(0),
        &|| _ = limits.per_cpu(256),
        &|| _ = limits.batch(0),
        &|| _ = limits.batch(64),
        &|| drop(Pool::<()>::with_limits(|| (), limits.batch(1).shared(50_001))),
    ];
    for limits in refused {
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(limits)).is_err());
    }
    assert_eq!(limits.per_cpu(7), limits.batch(7).per_cpu(7));
}

/// One step of a sequence: what, and on which of the CPUs.
#[derive(Debug, Clone, Copy)]
enum Step {
    Put,
    Take,
    Drain,
    GoTo(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => Just(Step::Put),
        8 => Just(Step::Take),
        1 => Just(Step::Drain),
        2 => any::<u8>().prop_map(Step::GoTo),
    ];
    vec(step, 0..200)
}

fn runner(cases: u32) -> TestRunner {
    TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() })
}

/// A stack is a `Vec` for each CPU.
#[test]
fn a_stack_does_as_its_model() {
    if !in_each_implementation("a_stack_does_as_its_model") {
        return;
    }
    let cpus = cpus();
    let portable = role().as_deref() == Some("portable");
    let result = runner(64).run(&steps(), |steps| {
        let (stack, mut lists, mut here, mut next) =
            (Stack::new(), vec![Vec::new(); cpus.len()], 0, 0);
        pin(cpus[0]);
        let fallbacks = stats().fallbacks;
        for step in steps {
            match step {
                Step::Put => {
                    stack.push(Node::new(next));
                    lists[here].push(next);
                    next += 1;
                }
                Step::Take => {
                    let value = stack.pop().map(|node| **node);
                    // Between the two lists of a CPU there is no order.
                    if portable || stats().fallbacks == fallbacks {
                        prop_assert_eq!(value, lists[here].pop());
                    } else {
                        prop_assert_eq!(value.is_some(), !lists[here].is_empty());
                        lists[here].retain(|&one: &u32| Some(one) != value);
                    }
                }
                Step::Drain => {
                    let mut drained = Vec::new();
                    stack.drain(|node| drained.push(**node)).unwrap();
                    let mut expected: Vec<_> = lists.iter_mut().flat_map(std::mem::take).collect();
                    drained.sort_unstable();
                    expected.sort_unstable();
                    prop_assert_eq!(drained, expected);
                }
                Step::GoTo(cpu) => {
                    here = usize::from(cpu) % cpus.len();
                    pin(cpus[here]);
                }
            }
        }
        Ok(())
    });
    result.unwrap();
}

/// A pool is a set, of which each CPU sees a part.
#[test]
fn a_pool_does_as_its_model() {
    if !in_each_implementation("a_pool_does_as_its_model") {
        return;
    }
    let cpus = cpus();
    let result = runner(64).run(&(steps(), 1..5_usize, 0..9_usize), |(steps, batch, shared)| {
        let limits = PoolLimits::new().per_cpu(4).batch(batch).shared(shared);
        let pool = Pool::with_limits(|| unreachable!(), limits);
        let (mut kept, mut next, mut moved) = (HashSet::new(), 0, false);
        pin(cpus[0]);
        for step in steps {
            match step {
                Step::Put => {
                    match pool.try_put(Box::new(next)) {
                        Ok(()) => prop_assert!(kept.insert(next)),
                        Err(back) => {
                            prop_assert_eq!(*back, next);
                            prop_assert!(kept.len() >= shared);
                        }
                    }
                    next += 1;
                }
                Step::Take => match pool.try_get() {
                    Some(value) => prop_assert!(kept.remove(&*value)),
                    None => prop_assert!(moved || kept.is_empty()),
                },
                Step::Drain => {
                    let mut drained = HashSet::new();
                    pool.drain(|value| assert!(drained.insert(*value))).unwrap();
                    prop_assert_eq!(&drained, &std::mem::take(&mut kept));
                }
                Step::GoTo(cpu) => {
                    pin(cpus[usize::from(cpu) % cpus.len()]);
                    moved = true;
                }
            }
            prop_assert_eq!(pool.len(), kept.len());
        }
        Ok(())
    });
    result.unwrap();
}
