//! Waits of rings (io_uring) beside those of threads: none is missed, as many are woken as were asked
//! for, and what a ring has begun before the first thread is found after it.

mod common;
#[path = "common/processes.rs"]
mod processes;

use common::{asleep, child, missing, refuse, role, stress, succeed};
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{IoUring, opcode};
use processes::{alone, fork, shared, until, wait_for};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use unmerged::futex2::raw::{PRIVATE, SIZE_U32};
use unmerged::futex2::{
    Domain, Futex, Options, Private, RingOperation, RingWait, Scope, Shared, Word, has_ring_waits,
};

/// A ring, where they wait for futexes.
fn ring() -> Option<IoUring> {
    if !has_ring_waits() {
        missing("io-uring", "a wait of a thread");
        return None;
    }
    Some(IoUring::new(64).unwrap())
}

/// A word whose neighbours rest: on a stack they may not.
#[repr(align(8))]
struct Alone<T>(T);

fn entry(wait: &RingWait<'_>) -> Entry {
    match wait.operation() {
        RingOperation::Wait { address, value, mask, flags } => {
            opcode::FutexWait::new(address, value, mask, flags).build()
        }
        RingOperation::WaitV(halves) => {
            opcode::FutexWaitV::new(halves.as_ptr().cast(), halves.len() as u32).build()
        }
    }
}

fn push(ring: &mut IoUring, entry: Entry, number: u64) {
    // SAFETY: what the entries point to is kept until the completion.
    unsafe { ring.submission().push(&entry.user_data(number)) }.unwrap();
}

/// Submits it; the ring waits then, or has completed it.
fn submit(ring: &mut IoUring, wait: &RingWait<'_>, number: u64) {
    push(ring, entry(wait), number);
    ring.submit().unwrap();
}

/// The next completion, which must come: its number and its result.
fn next(ring: &mut IoUring) -> (u64, i32) {
    let far = Timespec::new().sec(30);
    let begin = Instant::now();
    loop {
        if let Some(completion) = ring.completion().next() {
            return (completion.user_data(), completion.result());
        }
        assert!(begin.elapsed() < Duration::from_secs(30), "the completion does not come");
        let arguments = SubmitArgs::new().timespec(&far);
        let _ = ring.submitter().submit_with_args(1, &arguments);
    }
}

/// What is there; a call first, at whose end completions are posted.
fn ready(ring: &mut IoUring) -> Vec<(u64, i32)> {
    ring.submit().unwrap();
    ring.completion().map(|completion| (completion.user_data(), completion.result())).collect()
}

/// Calls off what has this number.
fn cancel(ring: &mut IoUring, number: u64) {
    push(ring, opcode::AsyncCancel::new(number).build(), 1000);
    let mut results = [next(ring), next(ring)];
    results.sort_unstable();
    // The result of a cancellation is 0, or how many were found.
    assert_eq!(results[0], (number, -libc::ECANCELED));
    assert!(results[1].0 == 1000 && results[1].1 >= 0, "{results:?}");
}

/// Both orders of a wait and a wake, and completions that are no wakes.
fn orders<T: Word, S: Scope>(zero: T, one: T) {
    let Some(mut ring) = ring() else { return };
    let word = &Alone(Futex::<T, S>::new(zero)).0;
    // The ring waits, then a thread wakes.
    let wait = word.ring_wait(zero).unwrap();
    assert_eq!(wait.is_private(), S::PRIVATE);
    submit(&mut ring, &wait, 1);
    assert_eq!(ready(&mut ring), []);
    assert_eq!(word.wake(0), 0);
    word.store(one, Ordering::Release);
    assert_eq!(word.wake(5), 1);
    assert_eq!(word.wake(5), 0);
    let (number, result) = next(&mut ring);
    assert_eq!(number, 1);
    wait.complete(result).unwrap();
    // The wake comes before the ring compares.
    let wait = word.ring_wait(one).unwrap();
    word.store(zero, Ordering::Release);
    assert_eq!(word.wake(5), 0);
    submit(&mut ring, &wait, 2);
    let (number, result) = next(&mut ring);
    assert_eq!(number, 2);
    assert!(wait.complete(result).unwrap_err().is_would_block());
    // And before it is counted.
    assert!(word.ring_wait(one).unwrap_err().is_would_block());
}

/// Threads and rings on one word: so many are woken as were asked for, while there are so many.
fn together<T: Word, S: Scope>(zero: T) {
    let Some(mut ring) = ring() else { return };
    let word = &Alone(Futex::<T, S>::new(zero)).0;
    for n in 1..=5 {
        std::thread::scope(|scope| {
            let early = word.ring_wait(zero).unwrap();
            submit(&mut ring, &early, 1);
            let threads: Vec<_> =
                (0..2).map(|_| asleep(scope, move || word.wait(zero, None))).collect();
            let late = word.ring_wait(zero).unwrap();
            submit(&mut ring, &late, 2);
            let all = 4;
            assert_eq!(word.wake(n), all.min(n as usize));
            assert_eq!(word.wake_all(), all.saturating_sub(n as usize));
            let mut results = [next(&mut ring), next(&mut ring)];
            results.sort_unstable();
            assert_eq!(results.map(|(number, _)| number), [1, 2]);
            for (wait, (_, result)) in [early, late].into_iter().zip(results) {
                wait.complete(result).unwrap();
            }
            for thread in threads {
                thread.join().unwrap().unwrap();
            }
        });
    }
}

macro_rules! sizes {
    ($($private:ident $shared:ident: $value:ty),+) => { $(
        #[test]
        fn $private() {
            orders::<$value, Private>(0, <$value>::MAX);
            together::<$value, Private>(<$value>::MAX);
        }

        #[test]
        fn $shared() {
            orders::<$value, Shared>(0, <$value>::MAX);
            together::<$value, Shared>(<$value>::MAX);
        }
    )+ };
}

sizes!(private_u8 shared_u8: u8, private_u16 shared_u16: u16, private_u32 shared_u32: u32,
    private_u64 shared_u64: u64);

/// Each byte of 32 bits has its own waits; a neighbour's change ends them with "look again".
#[test]
fn lanes_and_neighbours() {
    let Some(mut ring) = ring() else { return };
    #[repr(align(4))]
    struct Lanes([Futex<u8>; 4]);
    let lanes = Lanes([const { Futex::new(7) }; 4]);
    let waits: Vec<_> = lanes.0.iter().map(|lane| lane.ring_wait(7).unwrap()).collect();
    for (number, wait) in waits.iter().enumerate() {
        submit(&mut ring, wait, number as u64);
    }
    for lane in [2, 0, 3, 1] {
        assert_eq!(lanes.0[lane].wake_all(), 1);
        assert_eq!(next(&mut ring), (lane as u64, 0));
    }
    drop(waits);
    let wait = lanes.0[1].ring_wait(7).unwrap();
    lanes.0[2].store(8, Ordering::Release);
    submit(&mut ring, &wait, 4);
    let (_, result) = next(&mut ring);
    assert!(wait.complete(result).unwrap_err().is_would_block());
    let again = lanes.0[1].ring_wait(7).unwrap();
    submit(&mut ring, &again, 5);
    assert_eq!(lanes.0[1].wake(1), 1);
    again.complete(next(&mut ring).1).unwrap();
}

#[test]
fn masks_and_overlapping_sizes() {
    let Some(mut ring) = ring() else { return };
    let word: Futex<u32> = Futex::new(0);
    let mask = |mask| Options::new().mask(mask);
    let wait = word.ring_wait_with(0, mask(1)).unwrap();
    submit(&mut ring, &wait, 1);
    assert_eq!(word.wake_with(9, mask(2)).unwrap(), 0);
    assert_eq!(word.wake_with(9, mask(3)).unwrap(), 1);
    wait.complete(next(&mut ring).1).unwrap();
    assert!(word.ring_wait_with(0, mask(0)).unwrap_err().is_invalid());
    let wide: Futex<u64> = Futex::new(0);
    assert!(wide.ring_wait_with(0, mask(1)).unwrap_err().is_invalid());
    let wait = wide.ring_wait_with(0, Options::new().overlapping()).unwrap();
    submit(&mut ring, &wait, 2);
    assert_eq!(wide.wake_with(1, Options::new().overlapping()).unwrap(), 1);
    wait.complete(next(&mut ring).1).unwrap();
}

/// A move wakes the rings of a private word, and takes those of a shared one along.
#[test]
fn moves() {
    fn of<S: Scope>(ring: &mut IoUring) {
        let (from, to) = (&Futex::<u32, S>::new(0), &Futex::<u32, S>::new(0));
        std::thread::scope(|scope| {
            let thread = asleep(scope, move || from.wait(0, None));
            let wait = from.ring_wait(0).unwrap();
            submit(ring, &wait, 1);
            assert_eq!(from.requeue(to, 1, 1).unwrap(), 2);
            assert_eq!(to.wake_all(), usize::from(!S::PRIVATE));
            wait.complete(next(ring).1).unwrap();
            thread.join().unwrap().unwrap();
        });
    }
    let Some(mut ring) = ring() else { return };
    of::<Private>(&mut ring);
    of::<Shared>(&mut ring);
}

/// In a domain the ring's wait is counted for all, and taken back.
#[test]
fn domains() {
    let Some(mut ring) = ring() else { return };
    let domain = Domain::create(4096).unwrap();
    let other = Domain::open(domain.file().unwrap()).unwrap();
    let word = domain.word::<u64>(8).unwrap();
    let wait = word.ring_wait_in(&domain, 0).unwrap();
    submit(&mut ring, &wait, 1);
    assert_eq!(domain.counted(word).unwrap(), 1);
    assert_eq!(other.word::<u64>(8).unwrap().wake_in(&other, 7).unwrap(), 1);
    wait.complete(next(&mut ring).1).unwrap();
    assert_eq!(domain.counted(word).unwrap(), 0);
    let stranger = Futex::new(0_u64);
    assert!(stranger.ring_wait_in(&domain, 0).unwrap_err().is_invalid());
}

/// Killed while its ring waits: the count is taken back, and the ring is gone with its wait.
#[test]
fn killed_while_its_ring_waits() {
    if !alone("killed_while_its_ring_waits") {
        return;
    }
    let Some(_) = ring() else { return };
    let domain = Domain::create(4096).unwrap();
    let armed: &AtomicU32 = shared();
    let victim = fork(|| {
        let own = Domain::open(domain.file().unwrap()).unwrap();
        let mut ring = IoUring::new(8).unwrap();
        let wait = own.word::<u8>(1).unwrap().ring_wait_in(&own, 0).unwrap();
        submit(&mut ring, &wait, 1);
        armed.store(1, Ordering::Release);
        std::thread::sleep(Duration::from_secs(60));
        false
    });
    until("the victim", || armed.load(Ordering::Acquire) == 1);
    let word = domain.word::<u8>(1).unwrap();
    assert_eq!(domain.counted(word).unwrap(), 1);
    processes::kill(victim);
    assert_eq!(domain.reap(), 1);
    assert_eq!(domain.counted(word).unwrap(), 0);
    // The kernel closes a ring of the dead in a worker of its own.
    until("its wait", || {
        std::thread::scope(|scope| {
            let waiter = asleep(scope, || word.wait_in(&domain, 0, None));
            let woken = word.wake_in(&domain, 1).unwrap();
            until("the waiter", || {
                let _ = word.wake_in(&domain, 1).unwrap();
                waiter.is_finished()
            });
            waiter.join().unwrap().unwrap();
            woken == 1
        })
    });
}

/// The pivot: a ring begins to wait while its process has one thread. Then there is a second one, and
/// private waits have another table. The private wake completes the ring's wait.
///
/// What the kernel does without the shared key is said: by the private key a wake does not find
/// what was begun before (Linux 6.16 to at least 6.18).
#[test]
fn begun_before_the_first_thread() {
    if !alone("begun_before_the_first_thread") {
        return;
    }
    let Some(_) = ring() else { return };
    let found: &AtomicU32 = shared();
    // libtest has threads; a child of fork has one.
    let pid = fork(|| {
        let mut ring = IoUring::new(8).unwrap();
        let word = &Alone(Futex::<u8>::new(0)).0;
        let (wide, plain) = (Futex::<u64>::new(0), Futex::<u32>::new(0));
        let waits = (word.ring_wait(0).unwrap(), wide.ring_wait(0).unwrap());
        submit(&mut ring, &waits.0, 1);
        submit(&mut ring, &waits.1, 2);
        // The same by the private key, as one would without this crate.
        let address = std::ptr::from_ref(&plain).cast::<u32>();
        let mask = u64::from(u32::MAX);
        let private = opcode::FutexWait::new(address, 0, mask, SIZE_U32 | PRIVATE).build();
        push(&mut ring, private, 3);
        ring.submit().unwrap();
        assert_eq!(ready(&mut ring), []);
        std::thread::spawn(|| {}).join().unwrap();
        let woken = unmerged::futex2::raw::wake(address.addr(), mask, 1, PRIVATE | SIZE_U32);
        found.store(1 + woken.unwrap() as u32, Ordering::Release);
        word.store(1, Ordering::Release);
        assert_eq!(word.wake(1), 1);
        wide.store(1 << 40, Ordering::Release);
        assert_eq!(wide.wake(1), 1);
        let mut results: Vec<_> = Vec::new();
        while results.len() < 2 {
            results.extend(Some(next(&mut ring)).filter(|&(number, _)| number != 3));
        }
        results.sort_unstable();
        waits.0.complete(results[0].1).unwrap();
        waits.1.complete(results[1].1).unwrap();
        true
    });
    assert_eq!(wait_for(pid), 0);
    let found = found.load(Ordering::Acquire) - 1;
    eprintln!("storm: by the private key a private wake finds {found} of 1");
}

/// Dropped before its completion, a wait is not counted, and still in the queue.
#[test]
fn dropped_early() {
    let Some(mut ring) = ring() else { return };
    let domain = Domain::create(4096).unwrap();
    let counted = domain.word::<u16>(2).unwrap();
    let wait = counted.ring_wait_in(&domain, 0).unwrap();
    submit(&mut ring, &wait, 1);
    drop(wait);
    assert_eq!(domain.counted(counted).unwrap(), 0);
    cancel(&mut ring, 1);
    // A wake that another waiter lets through may go to it.
    let word: Futex<u32> = Futex::new(0);
    let orphan = word.ring_wait(0).unwrap();
    submit(&mut ring, &orphan, 2);
    drop(orphan);
    let wait = word.ring_wait(0).unwrap();
    submit(&mut ring, &wait, 3);
    assert_eq!(word.wake(1), 1);
    assert_eq!(next(&mut ring), (2, 0));
    assert_eq!(word.wake(1), 1);
    assert_eq!(next(&mut ring), (3, 0));
    wait.complete(0).unwrap();
}

/// A wait is called off, by hand or by a linked timeout.
#[test]
fn called_off() {
    let Some(mut ring) = ring() else { return };
    let word = &Alone(Futex::<u16>::new(0)).0;
    let wait = word.ring_wait(0).unwrap();
    submit(&mut ring, &wait, 1);
    cancel(&mut ring, 1);
    // Of one wait, another submission.
    let soon = Timespec::new().nsec(1_000_000);
    push(&mut ring, entry(&wait).flags(Flags::IO_LINK), 2);
    push(&mut ring, opcode::LinkTimeout::new(&raw const soon).build(), 3);
    ring.submit().unwrap();
    let mut results = [next(&mut ring), next(&mut ring)];
    results.sort_unstable();
    assert_eq!(results[0], (2, -libc::ECANCELED));
    // Some kernels say how many waits it has called off.
    assert!(results[1].0 == 3 && [-libc::ETIME, 1].contains(&results[1].1), "{results:?}");
    let error = wait.complete(results[0].1).unwrap_err();
    assert_eq!(error.raw_os_error(), libc::ECANCELED);
    assert_eq!(word.wake(1), 0);
    // Before Linux 6.7.
    assert!(word.ring_wait(0).unwrap().complete(-libc::EINVAL).unwrap_err().is_invalid());
}

/// A sandbox that refuses rings is told of, and nothing else changes.
#[test]
fn rings_refused() {
    if !alone("rings_refused") {
        return;
    }
    refuse(libc::SYS_io_uring_setup, libc::EPERM);
    assert!(!has_ring_waits());
    assert!(!unmerged::probe().has("io-uring"));
    let word: Futex<u8> = Futex::new(0);
    assert_eq!(word.wake(1), 0);
}

/// A thread wakes a ring and a ring's thread wakes it: no wake is lost, with either pair of fences.
#[test]
fn to_and_fro() {
    fn of<T: Word, S: Scope>(value: impl Fn(u32) -> T + Copy + Send, end: Instant) -> u32 {
        let Some(mut ring) = ring() else { return 0 };
        let (ping, pong) = (&Alone(Futex::<T, S>::new(value(0))).0, &Futex::<u32>::new(0));
        let last = AtomicU32::new(u32::MAX);
        let mut rounds = 0;
        std::thread::scope(|scope| {
            let last = &last;
            scope.spawn(move || {
                for round in 1_u32.. {
                    let is_last = Instant::now() >= end;
                    if is_last {
                        last.store(round, Ordering::Release);
                    }
                    ping.store(value(round), Ordering::Release);
                    ping.wake(1);
                    pong.wait_while(round - 1, Some(processes::far())).unwrap();
                    if is_last {
                        return;
                    }
                }
            });
            while rounds != last.load(Ordering::Acquire) {
                let old = value(rounds);
                while ping.load(Ordering::Acquire) == old {
                    let Ok(wait) = ping.ring_wait(old) else { continue };
                    submit(&mut ring, &wait, u64::from(rounds));
                    let (number, result) = next(&mut ring);
                    assert_eq!(number, u64::from(rounds));
                    assert!(wait.complete(result).is_ok_and(|()| true) || result == -libc::EAGAIN);
                }
                rounds += 1;
                pong.store(rounds, Ordering::Release);
                pong.wake(1);
            }
        });
        rounds
    }
    if role().is_none() {
        for fences in ["symmetric", "membarrier"] {
            let mut command = child("to_and_fro", fences);
            command.env("UNMERGED_FUTEX2_FENCE", fences);
            succeed(command);
        }
        return;
    }
    let end = || Instant::now() + stress(Duration::from_millis(100));
    let rounds = [
        of::<u8, Private>(|round| round as u8, end()),
        of::<u16, Shared>(|round| round as u16, end()),
        of::<u32, Private>(|round| round, end()),
        of::<u64, Private>(|round| u64::from(round) << (round % 2 * 32), end()),
    ];
    eprintln!("storm: {rounds:?} rounds");
}
