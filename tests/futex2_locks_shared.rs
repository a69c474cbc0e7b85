//! The locks of futex2 between processes: storms in which processes are killed at any instruction,
//! and memory that holds anything.

mod common;

use common::{child, map, role, stress, succeed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Child, Command};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};
use unmerged::futex2::lock::{
    AutoEvent, Channel, Condvar, Event, Locked, Mutex, Once, RobustMutex, RwLock, Semaphore,
};
use unmerged::futex2::{Deadline, Shared};

const FD: &str = "UNMERGED_TEST_FD";
const PAGES: usize = 16 * 4096;
const CAPACITY: u32 = 8;
/// Where the channel begins.
const RING: usize = 8 * 4096;
/// Processes of a storm.
const PLAYERS: usize = 4;
/// Items that the senders of a storm number, for each.
const MOST_ITEMS: usize = 1 << 23;
/// Items that a sender sends in a row: they fill the channel, and then it runs empty.
const BURST: u64 = 64;

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

fn file(pages: usize) -> OwnedFd {
    // SAFETY: a fresh descriptor, which children inherit.
    let file = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"test".as_ptr(), 0)) };
    // SAFETY: our own file.
    assert_eq!(unsafe { libc::ftruncate(file.as_raw_fd(), pages as i64) }, 0);
    file
}

/// A child of fork that runs `body` until it is killed, or ends well if `body` returns.
fn fork(body: impl FnOnce()) -> libc::pid_t {
    // SAFETY: the child runs what is made for forked children, and ends.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: it dies with the test, should that fail.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            body();
            // SAFETY: ends the child.
            unsafe { libc::_exit(0) }
        }
        pid => pid,
    }
}

fn kill(pid: libc::pid_t) -> i32 {
    let mut status = 0;
    // SAFETY: our own child, not waited for yet.
    unsafe {
        libc::kill(pid, libc::SIGKILL);
        assert_eq!(libc::waitpid(pid, &raw mut status, 0), pid);
    }
    status
}

/// Kills players one after the other, after times that hit every instruction sooner or later, and
/// puts new ones in their places. `ended` is told of each that is gone; it answers whether all
/// went well.
fn storm(play: impl Fn(usize, u64), mut ended: impl FnMut(usize)) {
    let kills: u64 = if std::env::var("UNMERGED_STRESS_SECONDS").is_ok() { 10_000 } else { 100 };
    let end = Instant::now() + stress(Duration::from_secs(60));
    let mut players: Vec<_> = (0..PLAYERS).map(|me| fork(|| play(me, 0))).collect();
    let mut seed = 88_172_645_463_325_252_u64;
    for round in 1..=kills {
        if Instant::now() > end {
            break;
        }
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_nanos(seed % 2_000_000) {
            std::hint::spin_loop();
        }
        let me = (seed >> 32) as usize % PLAYERS;
        let status = kill(players[me]);
        assert!(libc::WIFSIGNALED(status), "a player ended by itself: {status:#x}");
        ended(me);
        players[me] = fork(|| play(me, round));
    }
    players.into_iter().for_each(|player| assert!(libc::WIFSIGNALED(kill(player))));
}

/// A player gives up, so that its parent sees it: nothing may take this long.
fn far() -> Deadline {
    Deadline::after(Duration::from_secs(20))
}

fn give_up(what: &str) -> ! {
    eprintln!("{what}");
    // SAFETY: ends the child.
    unsafe { libc::_exit(1) }
}

/// Runs the test alone in a process of its own: it forks.
fn alone(test: &str) -> bool {
    if role().is_none() {
        succeed(child(test, "alone"));
        return false;
    }
    true
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
    let play = |_, _| {
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
                    let [one, two] = *orphan;
                    if one != two && one != two + 1 {
                        give_up("two holders");
                    }
                    orphan[1] = one;
                    unmerged::futex2::lock::Orphan::make_consistent(orphan)
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
    storm(play, |_| {});
    let guard = stage.robust.try_lock_until(far()).unwrap().or_repair(|both| both[1] = both[0]);
    assert!(guard[0] == guard[1] && guard[0] > 0);
    let told = stage.done[0].load(SeqCst);
    eprintln!("{} turns, {told} deaths told", guard[0]);
}

/// Senders and receivers are killed. A sender notes what it is about to send, and what it has sent; a
/// receiver what it got. So of each item it is known that it was sent (once at the most, received
/// once at the most) or that its sender died with it in hand.
#[test]
fn channel_in_a_storm() {
    if !alone("channel_in_a_storm") {
        return;
    }
    let (file, notes) = (file(PAGES), file(MOST_ITEMS * 2));
    let (stage, base) = stage(&file);
    let channel = channel(base);
    // How often each item of each sender was received.
    let received = map(&notes, MOST_ITEMS * 2).cast::<AtomicU8>();
    let note =
        // SAFETY: in the mapping.
        |sender: usize, item: usize| unsafe { received.add(sender * MOST_ITEMS + item).as_ref() };
    // How many a sender began, and how many it finished.
    let sent = |sender: usize| (&stage.done[2 * sender], &stage.done[2 * sender + 1]);
    let receive = |[sender, item]: [u64; 2]| {
        if sender >= 2 || item >= MOST_ITEMS as u64 {
            give_up("an item that nobody sent");
        }
        if note(sender as usize, item as usize).fetch_add(1, SeqCst) != 0 {
            give_up("an item twice");
        }
    };
    let play = |me: usize, _| {
        loop {
            if me < 2 {
                let (begun, done) = sent(me);
                let item = begun.fetch_add(1, SeqCst);
                if item % BURST == 0 {
                    let begin = Instant::now();
                    while begin.elapsed() < Duration::from_micros(item % 1024) {
                        std::hint::spin_loop();
                    }
                }
                if item as usize >= MOST_ITEMS {
                    // SAFETY: waits to be killed.
                    unsafe { libc::pause() };
                    continue;
                }
                if let Err(error) = channel.send_deadline([me as u64, item], far()) {
                    give_up(&error.to_string());
                }
                done.fetch_add(1, SeqCst);
            } else {
                match channel.recv_deadline(far()) {
                    Ok(item) => receive(item),
                    // The senders may have sent all that they may.
                    Err(_)
                        if (0..2)
                            .all(|sender| sent(sender).0.load(SeqCst) as usize >= MOST_ITEMS) => {}
                    Err(error) => give_up(&error.to_string()),
                }
            }
        }
    };
    let (mut senders, mut receivers) = (2, 2);
    storm(play, |me| *(if me < 2 { &mut senders } else { &mut receivers }) += 1);
    while let Ok(item) = channel.recv_deadline(Deadline::after(Duration::from_millis(200))) {
        receive(item);
    }
    // Each death of a sender may have spared one item, or left it sent and not noted; each of a
    // receiver may have taken one along.
    let (mut begun, mut done, mut got) = (0, 0, 0);
    for sender in 0..2 {
        let (b, d) = sent(sender);
        let most = b.load(SeqCst).min(MOST_ITEMS as u64);
        begun += most;
        done += d.load(SeqCst);
        got +=
            (0..most).map(|item| u64::from(note(sender, item as usize).load(SeqCst))).sum::<u64>();
    }
    assert!(got <= begun && got + receivers >= done, "{begun} begun, {done} sent, {got} received");
    assert!(begun - done <= senders, "{begun} begun, {done} sent, {senders} senders");
    assert!(got > 0 && channel.is_empty());
    // It still works.
    channel.try_send([0, 0]).unwrap();
    assert_eq!(channel.try_recv().unwrap(), [0, 0]);
    eprintln!(
        "{begun} begun, {done} sent, {got} received; {senders} senders, {receivers} receivers"
    );
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
    });
    stage.event.wait();
    assert!(stage.robust.try_lock().unwrap_err().is_would_block());
    // Killed, and not waited for: a zombie.
    // SAFETY: our own child.
    unsafe { libc::kill(holder, libc::SIGKILL) };
    assert!(stage.robust.try_lock_until(far()).unwrap().or_repair(|_| {})[0] == 0);
    assert_ne!(kill(holder), 0);
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

/// Any bytes at all: errors or wrong items, nothing out of bounds, no wait beyond its deadline.
#[test]
fn hostile_channels() {
    const BYTES: usize = Channel::<[u64; 2], Shared>::bytes(CAPACITY);
    let file = file(PAGES);
    let base = map(&file, PAGES);
    let mut seed = 7_u64;
    for _ in 0..200 {
        for word in 0..BYTES / 8 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let value = [0, 1, u64::MAX, seed, seed >> 33][(seed >> 60) as usize % 5];
            // SAFETY: in the mapping.
            unsafe { base.cast::<u64>().add(word).write_volatile(value) };
        }
        // SAFETY: mapped for good; what follows it is checked below.
        let channel =
            unsafe { Channel::<[u64; 2], Shared>::attach(base, BYTES, CAPACITY) }.unwrap();
        let soon = || Deadline::after(Duration::from_micros(500));
        let _ = (channel.try_send([1, 2]), channel.try_recv(), channel.len());
        let _ = (channel.send_deadline([1, 2], soon()), channel.recv_deadline(soon()));
        // SAFETY: in the mapping.
        let beyond = unsafe { base.add(BYTES).read() };
        assert_eq!(beyond, 0);
    }
    for (len, capacity) in [(BYTES - 1, CAPACITY), (PAGES, 0), (PAGES, 1 << 31)] {
        // SAFETY: as above.
        let refused = unsafe { Channel::<[u64; 2], Shared>::attach(base, len, capacity) };
        assert!(refused.unwrap_err().is_invalid());
    }
    // SAFETY: as above.
    let odd = unsafe { Channel::<u8, Shared>::attach(base.add(8), PAGES - 8, 8) };
    assert!(odd.unwrap_err().is_invalid());
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
            if !foreign || !shut {
                give_up("a child took what is its parent's");
            }
        });
        let mut status = 0;
        // SAFETY: our own child.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        assert_eq!(status, 0);
        drop(guard);
        drop(held);
    });
    assert_eq!(*PRIVATE.lock(), 0);
}
