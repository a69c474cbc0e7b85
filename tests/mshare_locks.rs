//! The locks of futex2, and a domain, live in a region: two processes use each of them, and one is
//! killed with what it holds and while it waits.

mod common;
#[path = "common/processes.rs"]
mod processes;
#[path = "common/region.rs"]
mod regions;

use core::alloc::Layout;
use core::cell::UnsafeCell;
use core::ptr::NonNull;
use processes::{far, until};
use regions::{ask, ready};
use std::io::BufRead;
use std::sync::atomic::{AtomicU32, Ordering};
use tempfile::TempDir;
use unmerged::futex2::lock::{
    AutoEvent, Channel, Condvar, Event, Locked, Mutex, Once, RawMutex, RawRwLock, RobustMutex,
    RwLock, Semaphore,
};
use unmerged::futex2::{Counted, Domain, Futex, NumaFutex, Shared};
use unmerged::mshare::{Region, Resident};

/// One of each.
#[repr(C)]
struct Locks {
    mutex: Mutex<u64, Shared>,
    changed: Condvar<Shared>,
    rwlock: RwLock<[u64; 2], Shared>,
    robust: RobustMutex<[u64; 2], Shared>,
    permits: Semaphore<Shared>,
    event: Event<Shared>,
    auto: AutoEvent<Shared>,
    once: Once<Shared>,
    runs: AtomicU32,
    raw: RawMutex<Shared>,
    by_raw: UnsafeCell<u64>,
    raw_rwlock: RawRwLock<Shared>,
    by_raw_rwlock: UnsafeCell<u64>,
    word: Futex<u16, Shared>,
    node: NumaFutex<Shared>,
    counted: Futex<u32, Counted>,
    /// In the region, as this is.
    channel: NonNull<u8>,
    domain: NonNull<u8>,
}
// SAFETY: locks of shared memory and what they protect, atomics, and addresses in the region that
// are written before it is published; `repr(C)`, no Drop.
unsafe impl Resident for Locks {}
// Each by itself could be a root.
const _: () = {
    const fn is_resident<T: Resident>() {}
    is_resident::<Futex<u64, Counted>>();
    is_resident::<NumaFutex<Shared>>();
    is_resident::<RawMutex<Shared>>();
    is_resident::<RawRwLock<Shared>>();
};

type Orders = Channel<u64, Shared>;

const CAPACITY: u32 = 4;
const ROUNDS: u64 = 500;

impl Locks {
    /// Makes them in the region.
    fn create(region: &Region) -> &Locks {
        let bytes =
            |bytes, align| region.alloc(Layout::from_size_align(bytes, align).unwrap()).unwrap();
        let channel = bytes(Orders::bytes(CAPACITY), Orders::ALIGN);
        let domain = bytes(Domain::TABLE_BYTES, 128);
        let locks = bytes(size_of::<Locks>(), align_of::<Locks>()).cast::<Locks>();
        let new = Locks {
            mutex: Mutex::new(0),
            changed: Condvar::new(),
            rwlock: RwLock::new([0; 2]),
            robust: RobustMutex::new([0; 2]),
            permits: Semaphore::new(0),
            event: Event::new(false),
            auto: AutoEvent::new(false),
            once: Once::new(),
            runs: AtomicU32::new(0),
            raw: RawMutex::new(),
            by_raw: UnsafeCell::new(0),
            raw_rwlock: RawRwLock::new(),
            by_raw_rwlock: UnsafeCell::new(0),
            word: Futex::new(0),
            node: NumaFutex::new(0),
            counted: Futex::new(0),
            channel,
            domain,
        };
        // SAFETY: just allocated.
        unsafe { locks.write(new) };
        region.set_root("locks", locks).unwrap();
        Self::of(region)
    }

    /// Those that are there.
    fn of(region: &Region) -> &Locks {
        let locks = region.root::<Locks>("locks").unwrap().unwrap();
        // SAFETY: published by this program; mapped as long as the region is held.
        unsafe { &*locks.as_ptr() }
    }

    fn orders(&self) -> Orders {
        // SAFETY: allocated for it, and zeros or a channel.
        unsafe { Orders::attach(self.channel, Orders::bytes(CAPACITY), CAPACITY) }.unwrap()
    }

    /// A domain whose table is in the region and whose one word is `counted`.
    fn domain(&self) -> Domain {
        // SAFETY: allocated for it, and zeros or a domain.
        let domain = unsafe { Domain::attach(self.domain, Domain::TABLE_BYTES) }.unwrap();
        let word = NonNull::from(&self.counted);
        // SAFETY: an atomic word of the region, whose base is the same everywhere.
        unsafe { domain.covering(word.cast(), size_of::<u32>()) }.unwrap()
    }

    /// What both processes do at once.
    fn count(&self) {
        for _ in 0..ROUNDS {
            *self.mutex.lock() += 1;
            let mut both = self.rwlock.write();
            both[0] += 1;
            both[1] += 1;
            drop(both);
            let both = self.rwlock.read();
            assert_eq!(both[0], both[1]);
            drop(both);
            let Locked::Clean(mut both) = self.robust.lock().unwrap() else { panic!("who died?") };
            both[0] += 1;
            both[1] += 1;
            drop(both);
            self.raw.lock();
            // SAFETY: the lock is held.
            unsafe { *self.by_raw.get() += 1 };
            // SAFETY: as above.
            unsafe { self.raw.unlock() };
            self.raw_rwlock.write();
            // SAFETY: as above.
            unsafe { *self.by_raw_rwlock.get() += 1 };
            // SAFETY: as above.
            unsafe { self.raw_rwlock.unlock_write() };
            self.once.call_once(|| {
                self.runs.fetch_add(1, Ordering::Relaxed);
            });
        }
    }
}

/// Not a test: the other process of those below.
#[test]
fn child() {
    if common::role().is_none() {
        return;
    }
    let region = Region::open("region").unwrap();
    let locks = Locks::of(&region);
    common::say("ready");
    for line in std::io::stdin().lock().lines() {
        match line.unwrap().as_str() {
            "count" => locks.count(),
            "condition" => {
                let mut value = locks.mutex.lock();
                while *value != 0 {
                    locks.changed.wait_until(&mut value, far()).unwrap();
                }
            }
            "permit" => locks.permits.acquire_until(far()).unwrap(),
            "event" => locks.event.wait_until(far()).unwrap(),
            "auto" => locks.auto.wait_until(far()).unwrap(),
            "word" => assert_eq!(locks.word.wait_while(0, Some(far())).unwrap(), 7),
            "node" => {
                while locks.node.value().load(Ordering::Acquire) == 0 {
                    let slept = locks.node.wait(0, Some(far()));
                    assert!(slept.as_ref().err().is_none_or(|error| error.is_would_block()));
                }
            }
            "send" => (1..=100).for_each(|n| locks.orders().send_until(n, far()).unwrap()),
            "receive" => assert_eq!(locks.orders().recv_until(far()).unwrap(), 9),
            "hold" => {
                let Locked::Clean(mut both) = locks.robust.lock().unwrap() else { panic!() };
                both[0] = 1;
                common::say("held");
                common::wait_for_nudge();
            }
            "counted" => {
                let domain = locks.domain();
                locks.counted.wait_while_in(&domain, 0, Some(far())).unwrap();
            }
            other => panic!("{other}"),
        }
        common::say("done");
    }
}

/// A region with one of each lock, another process, and what to do with them.
fn with(run: impl FnOnce(&Locks, &mut common::Player)) {
    let dir = tempfile::tempdir().unwrap();
    let region = create(&dir);
    let locks = Locks::create(&region);
    let mut player = ready(&dir, "child");
    run(locks, &mut player);
}

fn create(dir: &TempDir) -> Region {
    Region::builder("region").size(32 << 20).directory(dir.path()).create().unwrap()
}

#[test]
fn each_lock_excludes() {
    with(|locks, player| {
        player.tell("count");
        locks.count();
        assert_eq!(player.line(), "done");
        assert_eq!(*locks.mutex.lock(), 2 * ROUNDS);
        assert_eq!(*locks.rwlock.read(), [2 * ROUNDS; 2]);
        let Locked::Clean(both) = locks.robust.lock().unwrap() else { panic!("who died?") };
        assert_eq!(*both, [2 * ROUNDS; 2]);
        // SAFETY: the other process has done its part.
        assert_eq!(unsafe { *locks.by_raw.get() }, 2 * ROUNDS);
        // SAFETY: as above.
        assert_eq!(unsafe { *locks.by_raw_rwlock.get() }, 2 * ROUNDS);
        assert_eq!(locks.runs.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn each_wait_ends() {
    with(|locks, player| {
        *locks.mutex.lock() = 1;
        let pid = player.pid();
        let mut meet = |what: &str, wake: &dyn Fn()| {
            player.tell(what);
            common::until_idle(pid);
            wake();
            assert_eq!(player.line(), "done");
        };
        meet("condition", &|| {
            *locks.mutex.lock() = 0;
            locks.changed.notify_one();
        });
        meet("permit", &|| locks.permits.release(1).unwrap());
        assert_eq!(locks.permits.available(), 0);
        meet("event", &|| locks.event.set());
        assert!(locks.event.is_set());
        meet("auto", &|| locks.auto.set());
        assert!(!locks.auto.is_set());
        meet("word", &|| {
            locks.word.store(7, Ordering::Release);
            assert_eq!(locks.word.wake(1), 1);
        });
        meet("node", &|| {
            locks.node.value().store(1, Ordering::Release);
            assert_eq!(locks.node.wake(1).unwrap(), 1);
        });
        meet("send", &|| {
            let orders = locks.orders();
            let sum: u64 = (0..100).map(|_| orders.recv_until(far()).unwrap()).sum();
            assert_eq!(sum, 5050);
        });
        meet("receive", &|| locks.orders().send(9).unwrap());
    });
}

/// The holder of the robust mutex is killed: the next one is told, and makes it good.
#[test]
fn a_holder_is_killed() {
    with(|locks, player| {
        assert_eq!(ask(player, "hold"), "held");
        player.kill();
        let Locked::Orphaned(mut orphan) = locks.robust.try_lock_until(far()).unwrap() else {
            panic!("not told")
        };
        // SAFETY: the holder is dead.
        let both = unsafe { orphan.data() };
        assert_eq!(*both, [1, 0]);
        both[1] = 1;
        // SAFETY: as above.
        drop(unsafe { orphan.make_consistent() });
        assert!(!locks.robust.lock().unwrap().is_orphaned());
    });
}

/// A domain in the region: a waiter is counted and woken; a killed one is taken back.
#[test]
fn a_domain_in_the_region() {
    with(|locks, player| {
        let domain = locks.domain();
        assert_eq!(locks.counted.wake_in(&domain, 1).unwrap(), 0);
        let counted = || domain.counted(&locks.counted).unwrap();
        player.tell("counted");
        until("the waiter", || counted() == 1);
        locks.counted.store(1, Ordering::Release);
        assert!(locks.counted.wake_in(&domain, 1).unwrap() <= 1);
        assert_eq!(player.line(), "done");
        assert_eq!(counted(), 0);
        locks.counted.store(0, Ordering::Release);
        player.tell("counted");
        until("the waiter", || counted() == 1);
        player.kill();
        assert_eq!((counted(), domain.reap(), counted()), (1, 1, 0));
        assert_eq!(locks.counted.wake_in(&domain, 1).unwrap(), 0);
    });
}
