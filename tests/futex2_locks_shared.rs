//! The locks of futex2 between processes: what a death leaves, other programs, children.

mod common;
#[path = "common/processes.rs"]
mod processes;

use common::{child, map};
use processes::{alone, far, file, fork, give_up, kill, storm, wait_for};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Child, Command};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;
use unmerged::futex2::lock::{
    AutoEvent, Channel, Condvar, Event, Locked, Mutex, Once, RobustMutex, RwLock, Semaphore,
};
use unmerged::futex2::{Deadline, Shared};

const FD: &str = "UNMERGED_TEST_FD";
const PAGES: usize = 16 * 4096;
const CAPACITY: u32 = 8;
/// Where the channel begins.
const RING: usize = 8 * 4096;
/// What the processes share; zeros at the beginning.
#[repr(C)]
struct Stage {
    mutex: Mutex<[u64; 2], Shared>,
    lock: RwLock<[u64; 2], Shared>,
    changed: Condvar<Shared>,
    permits: Semaphore<Shared>,
    event: Event<Shared>,
    auto: AutoEvent<Shared>,
    once: Once<Shared>,
    robust: RobustMutex<[u64; 2]>,
    /// How often each of several things was done, or a death told.
    done: [AtomicU64; 4],
}

fn stage(file: &OwnedFd) -> (&'static Stage, NonNull<u8>) {
    let base = map(file, PAGES);
    assert!(size_of::<Stage>() <= RING);
    // SAFETY: mapped for good, zeros or what this test wrote.
    (unsafe { base.cast::<Stage>().as_ref() }, base)
}

fn channel(base: NonNull<u8>) -> Channel<[u64; 2], Shared> {
    // SAFETY: the rest of the mapping, which is never unmapped.
    unsafe { Channel::attach(base.add(RING), PAGES - RING, CAPACITY) }.unwrap()
}

/// Holders, waiters and those who hand over are killed: the next one is told, finds the two numbers
/// at most one apart, and repairs them.
#[test]
fn robust_mutex_in_a_storm() {
    if !alone("robust_mutex_in_a_storm") {
        return;
    }
    let file = file(PAGES);
    let (stage, _) = stage(&file);
    let play = |_| {
        loop {
            let mut guard = match stage.robust.try_lock_until(far()) {
                Ok(Locked::Clean(guard)) => {
                    if guard[0] != guard[1] {
                        give_up("a torn value, and no death told");
                    }
                    guard
                }
                Ok(Locked::Orphaned(mut orphan)) => {
                    stage.done[0].fetch_add(1, SeqCst);
                    // SAFETY: no guard is leaked, and the holder's process is dead.
                    let both = unsafe { orphan.data() };
                    if both[0] != both[1] && both[0] != both[1] + 1 {
                        give_up("two holders");
                    }
                    both[1] = both[0];
                    // SAFETY: as above.
                    unsafe { orphan.make_consistent() }
                }
                Err(error) => give_up(&error.to_string()),
            };
            let at = guard.as_mut_ptr();
            // SAFETY: the guard's; volatile, so that a death may come between.
            unsafe { at.write_volatile(at.read() + 1) };
            std::hint::spin_loop();
            // SAFETY: as above.
            unsafe { at.add(1).write_volatile(at.add(1).read() + 1) };
        }
    };
    storm::<4>(play, |_| ());
    let locked = stage.robust.try_lock_until(far()).unwrap();
    // SAFETY: as above.
    let guard = unsafe { locked.or_repair(|both| both[1] = both[0]) };
    assert!(guard[0] == guard[1] && guard[0] > 0);
    let told = stage.done[0].load(SeqCst);
    eprintln!("storm: robust mutex: {} turns, {told} deaths told", guard[0]);
}

/// A holder of an ordinary shared lock dies: it is held for ever, and deadlines are the way out.
#[test]
fn what_a_dead_holder_leaves() {
    if !alone("what_a_dead_holder_leaves") {
        return;
    }
    let file = file(PAGES);
    let (stage, _) = stage(&file);
    stage.permits.release(1).unwrap();
    let holder = fork(|| {
        std::mem::forget(stage.mutex.lock());
        std::mem::forget(stage.lock.write());
        stage.permits.acquire();
        std::mem::forget(stage.robust.lock());
        stage.once.call_once(|| {
            stage.event.set();
            // SAFETY: waits to be killed.
            unsafe { libc::pause() };
        });
        false
    });
    stage.event.wait();
    assert!(stage.robust.try_lock().unwrap_err().is_would_block());
    // Killed, and not waited for: a zombie.
    // SAFETY: our own child.
    unsafe { libc::kill(holder, libc::SIGKILL) };
    let locked = stage.robust.try_lock_until(far()).unwrap();
    // SAFETY: the holder's process is dead.
    assert_eq!(unsafe { locked.or_repair(|_| {}) }[0], 0);
    kill(holder);
    let soon = || Deadline::after(Duration::from_millis(2));
    assert!(stage.mutex.try_lock_until(soon()).unwrap_err().is_timed_out());
    assert!(stage.lock.try_write_until(soon()).unwrap_err().is_timed_out());
    assert!(stage.lock.try_read_until(soon()).unwrap_err().is_timed_out());
    assert!(stage.permits.acquire_until(soon()).unwrap_err().is_timed_out());
    assert!(stage.once.call_once_until(soon(), || {}).unwrap_err().is_timed_out());
}

/// Another program, with the memory at another address: all of them, in turns.
#[test]
fn programs_meet() {
    const TEST: &str = "programs_meet";
    const ROUNDS: u64 = 200;
    fn turns(stage: &Stage, channel: &Channel<[u64; 2], Shared>, me: u64) {
        stage.once.call_once(|| stage.permits.release(1).unwrap());
        for round in 0..ROUNDS {
            let mut value = stage.mutex.lock();
            while value[0] % 2 != me {
                stage.changed.wait(&mut value);
            }
            value[0] += 1;
            drop(value);
            stage.changed.notify_all();
            stage.permits.acquire();
            let mut both = stage.lock.write();
            both[0] += 1;
            both[1] += 1;
            let both = unmerged::futex2::lock::RwLockWriteGuard::downgrade(both);
            assert_eq!(both[0], both[1]);
            drop(both);
            stage.permits.release(1).unwrap();
            if me == 0 {
                channel.send([round, 1]).unwrap();
                stage.auto.wait();
            } else {
                assert_eq!(channel.recv().unwrap(), [round, 1]);
                stage.auto.set();
            }
        }
    }
    if let Ok(fd) = std::env::var(FD) {
        // SAFETY: inherited from the parent for this very use.
        let file = unsafe { OwnedFd::from_raw_fd(fd.parse().unwrap()) };
        let (stage, base) = stage(&file);
        return turns(stage, &channel(base), 1);
    }
    let file = file(PAGES);
    let (stage, base) = stage(&file);
    let mut command: Command = child(TEST, "peer");
    let mut peer: Child = command.env(FD, file.as_raw_fd().to_string()).spawn().unwrap();
    turns(stage, &channel(base), 0);
    assert!(peer.wait().unwrap().success());
    assert_eq!((stage.mutex.lock()[0], stage.lock.read()[0]), (2 * ROUNDS, 2 * ROUNDS));
}

/// A forked child may use what the parent has, and a robust mutex of its parent's is not its own.
#[test]
fn forked_children() {
    if !alone("forked_children") {
        return;
    }
    let file = file(PAGES);
    let (stage, _) = stage(&file);
    static PRIVATE: Mutex<u32> = Mutex::new(0);
    static HELD: Mutex<u32> = Mutex::new(0);
    let held = HELD.lock();
    std::thread::scope(|scope| {
        // Waiters of the parent are none of the child's.
        scope.spawn(|| drop(HELD.lock()));
        std::thread::sleep(Duration::from_millis(5));
        let guard = stage.robust.lock().unwrap();
        let pid = fork(|| {
            *PRIVATE.lock() += 1;
            let soon = Deadline::after(Duration::from_millis(2));
            let foreign =
                stage.robust.try_lock_until(soon).is_err_and(|error| error.is_timed_out());
            let shut = HELD.try_lock_until(soon).is_err();
            foreign && shut
        });
        assert_eq!(wait_for(pid), 0, "a child took what is its parent's");
        drop(guard);
        drop(held);
    });
    assert_eq!(*PRIVATE.lock(), 0);
}
