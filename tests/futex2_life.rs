//! What befalls a process: forks that a process id does not tell, filters that come late,
//! strangers on its words. No wake is lost, and none is counted that nobody noticed.

mod common;

use common::{asleep, child, missing, own_tid, refuse, role, succeed, until_asleep};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use unmerged::futex2::{
    Deadline, Domain, Futex, Implementation, Key, Options, Shared, implementation, waitv,
};

const LONG: Duration = Duration::from_secs(60);

fn after(ms: u64) -> Option<Deadline> {
    Some(Deadline::after(Duration::from_millis(ms)))
}

/// Ends this process, which was forked.
fn exit(good: bool) -> ! {
    // SAFETY: ends the process, without what its parent has to do at its end.
    unsafe { libc::_exit(i32::from(!good)) }
}

/// Forks; the child does this and ends; how it ended: 0 if it was good.
fn forked(run: impl FnOnce() -> bool) -> i32 {
    // SAFETY: the child uses nothing that another thread could have locked.
    let child = unsafe { libc::fork() };
    if child == 0 {
        exit(run());
    }
    let mut status = 0;
    // SAFETY: our own child.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    status
}

/// The first process of a pid namespace, with children in another one: both are number 1, and the
/// child leaves its parent's row alone.
#[test]
fn two_first_processes() {
    let unshare = |flags| {
        // SAFETY: changes where children are born.
        unsafe { libc::unshare(flags) == 0 }
    };
    let domain = Domain::create(4096).unwrap();
    // In a child, for it must have one thread.
    let can = forked(|| unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWPID));
    if can != 0 {
        return missing("user-namespaces", "nothing: there is one process of a number");
    }
    let first = |domain: Domain| {
        assert_eq!(std::process::id(), 1);
        let mut own = Domain::open(domain.file().unwrap()).ok();
        let also = forked(|| {
            let first = std::process::id() == 1;
            // Of the child's copy alone.
            drop(own.take());
            first
        });
        // With this row and that of the first process of all the others are as many as are left.
        let others: Vec<_> = (0..Domain::PROCESSES)
            .map_while(|_| Domain::open(domain.file().unwrap()).ok())
            .collect();
        also == 0 && own.is_some() && others.len() == Domain::PROCESSES - 2
    };
    let status = forked(|| {
        unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWPID)
            && forked(|| {
                // Where the children of the first process are born.
                unshare(libc::CLONE_NEWPID) && first(domain)
            }) == 0
    });
    assert_eq!(status, 0);
}

/// Who [`fork_in_a_handler`] has forked.
static FORKED: AtomicI32 = AtomicI32::new(-1);

extern "C" fn fork_now(_: libc::c_int) {
    // SAFETY: the child goes on with a wait, and ends.
    FORKED.store(unsafe { libc::fork() }, Ordering::SeqCst);
}

/// A handler forks during a wait in a domain. The child goes on with it, and when it ends takes nothing
/// from its parent's count.
#[test]
fn fork_in_a_handler() {
    if role().is_none() {
        return succeed(child("fork_in_a_handler", "alone"));
    }
    let domain = Domain::create(4096).unwrap();
    for shadowed in [false, true] {
        FORKED.store(-1, Ordering::SeqCst);
        let word = domain.word::<u64>(0).unwrap();
        let (thread, tid) = (AtomicU64::new(0), AtomicI32::new(0));
        // SAFETY: forks only.
        unsafe { common::handle_with(&[libc::SIGUSR1], libc::SA_RESTART, fork_now) };
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                // SAFETY: names this thread.
                thread.store(unsafe { libc::pthread_self() }, Ordering::SeqCst);
                tid.store(own_tid(), Ordering::SeqCst);
                // Beside a byte a domain's word for sequences is slept on.
                let byte = domain.word::<u8>(0).unwrap();
                let answer = loop {
                    let one = || word.wait_in(&domain, 0, Some(Deadline::after(LONG)));
                    let two = || {
                        let entries = [byte.waiter_in(&domain, 0)?];
                        waitv(&entries, Some(Deadline::after(LONG))).map(drop)
                    };
                    let answer = if shadowed { two() } else { one() };
                    // Whatever ends the wait.
                    if answer.is_err() || word.load(Ordering::SeqCst) != 0 {
                        break answer;
                    }
                };
                if FORKED.load(Ordering::SeqCst) == 0 {
                    exit(true);
                }
                answer
            });
            while domain.counted(word).unwrap() == 0 {
                std::thread::yield_now();
            }
            until_asleep(tid.load(Ordering::SeqCst));
            // SAFETY: the thread is not joined before the scope ends.
            let sent = unsafe { libc::pthread_kill(thread.load(Ordering::SeqCst), libc::SIGUSR1) };
            assert_eq!(sent, 0);
            while FORKED.load(Ordering::SeqCst) == -1 {
                std::thread::yield_now();
            }
            word.store(1, Ordering::SeqCst);
            let mut status = 0;
            // The child is another waiter of the words, which shares them.
            let waited = loop {
                let _ = word.wake_in(&domain, u32::MAX);
                let _ = domain.word::<u8>(0).unwrap().wake_in(&domain, u32::MAX);
                // SAFETY: our own child.
                let waited = unsafe {
                    libc::waitpid(FORKED.load(Ordering::SeqCst), &raw mut status, libc::WNOHANG)
                };
                // A wait of the child that is not counted is woken past the counts.
                let at = ptr::from_ref(word).addr();
                let _ = unmerged::futex2::raw::wake(at, u64::MAX, i32::MAX, 3);
                if waited != 0 {
                    break waited;
                }
                std::thread::sleep(Duration::from_millis(1));
            };
            assert_eq!((waited, status), (FORKED.load(Ordering::SeqCst), 0));
            let _ = waiter.join().unwrap();
        });
        assert_eq!(domain.counted(word).unwrap(), 0);
        word.store(0, Ordering::SeqCst);
    }
}

/// Waits until one of them has met the filter: it may be over before it sleeps.
fn notices_the_filter(word: &Futex<u64>) {
    for ms in 1.. {
        assert!(word.wait(0, after(ms)).unwrap_err().is_timed_out());
        if implementation() == Implementation::Shadow {
            return;
        }
        assert!(ms < 1000, "it goes on with what is refused");
    }
}

/// A filter that refuses futex_waitv(2) after the choice was made: waits go the other way.
#[test]
fn a_filter_that_comes_late() {
    if role().is_none() {
        return succeed(child("a_filter_that_comes_late", "alone"));
    }
    if implementation() != Implementation::Waitv {
        return missing("futex-waitv", "nothing to refuse");
    }
    let (words, byte) = ([const { Futex::<u64>::new(0) }; 2], Futex::<u8>::new(0));
    std::thread::scope(|scope| {
        // One sleeps in the kernel's vector already, for filters do not reach other threads.
        let before = asleep(scope, || words[0].wait(0, Some(Deadline::after(LONG))));
        refuse(libc::SYS_futex_waitv, libc::EPERM);
        notices_the_filter(&words[0]);
        let entries = [words[1].waiter(0), byte.waiter(0)];
        assert!(waitv(&entries, after(1)).unwrap_err().is_timed_out());
        words[0].store(1, Ordering::SeqCst);
        while words[0].wake(1) == 0 && !before.is_finished() {
            std::thread::yield_now();
        }
        before.join().unwrap().unwrap();
    });
}

/// A wake of a shared byte reaches its waiter beside a vector of another process that waits on the next
/// byte: of a process that has no vectors itself, and when sizes overlap.
#[test]
fn vectors_of_others() {
    if role().is_none() {
        for way in ["strict", "overlapping"] {
            succeed(child("vectors_of_others", way));
        }
        return;
    }
    if implementation() != Implementation::Waitv {
        return missing("futex-waitv", "no vector sleeps on shared bytes");
    }
    #[repr(C, align(4))]
    struct Bytes([Futex<u8, Shared>; 4]);
    let overlapping = role().as_deref() == Some("overlapping");
    let bytes = Bytes([const { Futex::new(0) }; 4]);
    std::thread::scope(|scope| {
        // Any wake of the 32 bits may end it for no reason.
        let wait = || waitv(&[bytes.0[1].waiter(0)], Some(Deadline::after(LONG)));
        let vector = asleep(scope, wait);
        let plain = asleep(scope, || bytes.0[0].wait(0, Some(Deadline::after(LONG))));
        let options = if overlapping {
            Options::new().overlapping()
        } else {
            // As in a process that has no vectors.
            refuse(libc::SYS_futex_waitv, libc::ENOSYS);
            notices_the_filter(&Futex::new(0));
            Options::new()
        };
        let begin = Instant::now();
        bytes.0[0].wake_with(1, options).unwrap();
        while !plain.is_finished() {
            assert!(begin.elapsed() < LONG / 2, "a vector has taken the wake");
            std::thread::yield_now();
        }
        plain.join().unwrap().unwrap();
        while !vector.is_finished() {
            bytes.0[1].wake(1);
        }
        vector.join().unwrap().unwrap();
    });
}

/// To ask whether there is a word, over and over, takes no wake from who waits there.
#[test]
fn looks_take_no_wake() {
    #[repr(C, align(8))]
    struct Word(Futex<u8, Shared>, [u8; 7]);
    let (word, over) = (Word(Futex::new(0), [0; 7]), AtomicBool::new(false));
    let at = ptr::from_ref(&word.0).addr();
    let up = AtomicU32::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                Key::shared(at).unwrap();
            }
        });
        let waiter = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                word.0.wait(0, Some(Deadline::after(LONG))).unwrap();
                up.fetch_add(1, Ordering::SeqCst);
            }
        });
        let begin = Instant::now();
        while begin.elapsed() < common::stress(Duration::from_millis(300)) {
            let before = up.load(Ordering::SeqCst);
            if word.0.wake(1) == 0 {
                continue;
            }
            while up.load(Ordering::SeqCst) == before {
                assert!(begin.elapsed() < LONG / 2, "a wake was counted, and nobody woke");
                std::thread::yield_now();
            }
        }
        over.store(true, Ordering::Relaxed);
        while word.0.wake(1) == 0 && !waiter.is_finished() {
            std::thread::yield_now();
        }
    });
}

/// A wake that is counted ends a vector's wait, though it changed nothing: also where vectors sleep on
/// the word of the process.
#[test]
fn counted_wakes_are_noticed() {
    if role().is_none() {
        for way in ["waitv", "shadow"] {
            let mut command = child("counted_wakes_are_noticed", way);
            command.env("UNMERGED_FUTEX2", way);
            succeed(command);
        }
        return;
    }
    let (word, other, over) = (Futex::<u32>::new(0), Futex::<u32>::new(0), AtomicBool::new(false));
    let up = AtomicU32::new(0);
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let entries = [other.waiter(0), word.waiter(0)];
                waitv(&entries, Some(Deadline::after(LONG))).unwrap();
                up.fetch_add(1, Ordering::SeqCst);
            }
        });
        let begin = Instant::now();
        while begin.elapsed() < common::stress(Duration::from_millis(500)) {
            let before = up.load(Ordering::SeqCst);
            if word.wake(1) == 0 {
                continue;
            }
            while up.load(Ordering::SeqCst) == before {
                assert!(begin.elapsed() < LONG / 2, "a wake was counted, and nobody woke");
                std::thread::yield_now();
            }
        }
        over.store(true, Ordering::Relaxed);
        while word.wake(1) == 0 && !waiter.is_finished() {
            std::thread::yield_now();
        }
    });
}

/// Two words whose waiters are moved to and fro leave no count behind.
#[test]
fn moves_to_and_fro() {
    let domain = Domain::create(4096).unwrap();
    let (here, there) = (domain.word::<u32>(0).unwrap(), domain.word::<u32>(1024).unwrap());
    for _ in 0..3 {
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| here.wait_in(&domain, 0, Some(Deadline::after(LONG))));
            let mut moved = 0;
            while moved == 0 && !waiter.is_finished() {
                moved = here.requeue_in(&domain, None, there, 0, 1).unwrap();
                there.requeue_in(&domain, None, here, 0, 1).unwrap();
            }
            while !waiter.is_finished() {
                here.wake_in(&domain, 1).unwrap();
                there.wake_in(&domain, 1).unwrap();
            }
            waiter.join().unwrap().unwrap();
        });
    }
    assert_eq!((domain.counted(here).unwrap(), domain.counted(there).unwrap()), (0, 0));
}
