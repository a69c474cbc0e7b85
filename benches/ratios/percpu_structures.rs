//! The rows of stacks and pools.

use crate::harness::{Options, Row, Target, by_all, each, pin, pinned};
use crossbeam_queue::{ArrayQueue, SegQueue};
use std::cell::RefCell;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, Mutex};
use std::time::Instant;
use unmerged::percpu::{Node, Pool, Stack};

/// What is in the stacks and pools.
type Object = [u64; 8];

/// A list of them as each peer has it: of boxes, like ours.
#[allow(clippy::vec_box, reason = "the boxes change hands")]
type Boxes = Vec<Box<Object>>;

/// Objects that each has at first, on each CPU.
const OBJECTS: usize = 64;

static STACK: Stack<Object> = Stack::new();
static POOL: Pool<Object> = Pool::new(|| [0; 8]);
static MUTEX: Mutex<Boxes> = Mutex::new(Vec::new());
static QUEUE: SegQueue<Box<Object>> = SegQueue::new();

thread_local! {
    static LOCAL: RefCell<Boxes> = const { RefCell::new(Vec::new()) };
}

pub(crate) fn rows(options: &Options) {
    let bounded = ArrayQueue::<Box<Object>>::new(16 * OBJECTS);
    (0..8 * OBJECTS).for_each(|_| {
        QUEUE.push(Box::default());
        let _ = bounded.push(Box::default());
        MUTEX.lock().unwrap().push(Box::default());
    });
    let bounded = || {
        let object = bounded.pop().unwrap_or_default();
        used(&object);
        let _ = bounded.push(object);
    };
    pinned(0, || {
        Row::new("percpu/stack", each(stack))
            .peer("mutex", Target::Faster(4.0), each(mutex))
            .peer("crossbeam", Target::Faster(4.0), each(queue))
            .run(options);
    });
    pinned(0, || {
        Row::new("percpu/pool", each(pool))
            .peer("mutex", Target::None, each(mutex))
            .peer("crossbeam", Target::None, each(bounded))
            .peer("thread-local", Target::None, each(local))
            .run(options);
    });
    for (threads, name) in [(2, "percpu/stack-2t"), (4, "percpu/stack-4t"), (8, "percpu/stack-8t")]
    {
        Row::new(name, by_all(threads, stack))
            .peer("mutex", Target::None, by_all(threads, mutex))
            .peer("crossbeam", Target::None, by_all(threads, queue))
            .run(options);
    }
    for (threads, name) in [(2, "percpu/pool-2t"), (4, "percpu/pool-4t"), (8, "percpu/pool-8t")] {
        Row::new(name, by_all(threads, pool))
            .peer("mutex", Target::None, by_all(threads, mutex))
            .peer("crossbeam", Target::None, by_all(threads, bounded))
            .peer("thread-local", Target::None, by_all(threads, local))
            .run(options);
    }
    drain(options);
}

/// The compiler must take it for used; its address stays in a register.
fn used(object: &Object) {
    black_box(object);
}

fn stack() {
    let node = STACK.pop().unwrap_or_else(|| Node::new([0; 8]));
    used(&node);
    STACK.push(node);
}

fn pool() {
    used(&POOL.get());
}

fn mutex() {
    // Two operations: between them a user would use it.
    let object = MUTEX.lock().unwrap().pop().unwrap_or_default();
    used(&object);
    MUTEX.lock().unwrap().push(object);
}

fn queue() {
    let object = QUEUE.pop().unwrap_or_default();
    used(&object);
    QUEUE.push(object);
}

fn local() {
    let object = LOCAL.with_borrow_mut(|objects| objects.pop()).unwrap_or_default();
    used(&object);
    LOCAL.with_borrow_mut(|objects| objects.push(object));
}

/// What it costs to take the list of one CPU, on which a thread of this process runs or none does.
fn drain(options: &Options) {
    if !options.wants("percpu/drain") {
        return;
    }
    static LIST: Stack<u64> = Stack::new();
    let (ready, stop, busy) = (Barrier::new(2), AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // It pushes one node there whenever it is asked for one.
            pin(1);
            ready.wait();
            while !stop.load(Ordering::Relaxed) {
                if WANTED.swap(false, Ordering::Relaxed) {
                    LIST.push(Node::new(1));
                    THERE.store(true, Ordering::Release);
                }
                if busy.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                } else {
                    std::thread::sleep(std::time::Duration::from_micros(20));
                }
            }
        });
        ready.wait();
        let arm = |runs: bool| {
            let busy = &busy;
            move |n: u64| {
                busy.store(runs, Ordering::Relaxed);
                let mut spent = 0.0;
                for _ in 0..n {
                    WANTED.store(true, Ordering::Relaxed);
                    while !THERE.swap(false, Ordering::Acquire) {
                        std::hint::spin_loop();
                    }
                    if !runs {
                        // Until it sleeps.
                        std::thread::sleep(std::time::Duration::from_micros(5));
                    }
                    let begin = Instant::now();
                    let drained = LIST.drain(drop).expect("a CPU can be fenced");
                    spent += begin.elapsed().as_nanos() as f64;
                    assert_eq!(drained, 1);
                }
                spent
            }
        };
        pinned(0, || {
            Row::new("percpu/drain", Box::new(arm(true)))
                .peer("of-an-idle-cpu", Target::None, Box::new(arm(false)))
                .run(options);
        });
        stop.store(true, Ordering::Relaxed);
    });
}

/// A node is wanted; it is there.
static WANTED: AtomicBool = AtomicBool::new(false);
static THERE: AtomicBool = AtomicBool::new(false);
