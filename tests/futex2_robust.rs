//! The robust mutex of futex2, and the deaths of threads that hold it.

mod common;
#[path = "common/locks.rs"]
mod locks;

use common::{child, missing, own_tid, role, succeed};
use locks::{LONG, Plain, ROUNDS, far, sleeps, soon, threads};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use unmerged::futex2::lock::{Locked, RobustMutex};
use unmerged::futex2::{Deadline, Private, Scope, Shared};

fn robust<S: Scope>() {
    let (mutex, plain) = (RobustMutex::<(), S>::new(()), Plain::new());
    threads(4, |me| {
        for round in 0..ROUNDS / 8 {
            let locked = match (round + me) % 3 {
                0 => mutex.try_lock_until(Deadline::after(LONG)),
                1 => mutex.try_lock().or_else(|error| {
                    assert!(error.is_would_block());
                    mutex.lock()
                }),
                _ => mutex.lock(),
            };
            let Locked::Clean(_guard) = locked.unwrap() else { panic!("nobody died") };
            // SAFETY: the lock is held.
            unsafe { plain.add_one() };
        }
    });
    assert_eq!(plain.check(), (ROUNDS / 8 * 4) as u64);
    let guard = mutex.lock().unwrap();
    assert_eq!(mutex.lock().unwrap_err().raw_os_error(), libc::EDEADLK);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            assert!(mutex.try_lock().unwrap_err().is_would_block());
            assert!(mutex.try_lock_until(soon()).unwrap_err().is_timed_out());
        });
    });
    drop(guard);
}

#[test]
fn robust_private() {
    robust::<Private>();
}

#[test]
fn robust_shared() {
    robust::<Shared>();
}

/// A thread that ends with the lock: the next one is told, repairs or gives up.
fn the_end_of_a_holder<S: Scope>() {
    let mutex = RobustMutex::<u32, S>::new(1);
    let end_with = |value| {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let Locked::Clean(mut guard) = mutex.lock().unwrap() else { panic!("who died?") };
                *guard = value;
                std::mem::forget(guard);
            });
        });
    };
    end_with(2);
    // A scope may end before the thread has.
    let locked = mutex.lock().unwrap();
    let Locked::Orphaned(mut orphan) = locked else { panic!("not told") };
    // SAFETY: the guard was forgotten, and nobody has a reference that it gave out.
    let guard = unsafe {
        assert_eq!(*orphan.data(), 2);
        *orphan.data() = 3;
        orphan.make_consistent()
    };
    assert_eq!(*guard, 3);
    drop(guard);
    assert!(!mutex.lock().unwrap().is_orphaned());
    // One that sleeps already.
    let (me, held) = (own_tid().cast_unsigned(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::mem::forget(mutex.lock().unwrap());
            held.store(true, Ordering::SeqCst);
            while !sleeps(me) {
                std::thread::yield_now();
            }
        });
        while !held.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        let deadline = far();
        let locked = mutex.try_lock_until(deadline).unwrap();
        assert!(!deadline.has_passed(), "left asleep: only the last look has found it");
        // SAFETY: as above.
        assert_eq!(unsafe { *locked.or_repair(|value| *value = 4) }, 4);
    });
    // Given up: nobody gets it any more, not even those who sleep.
    end_with(5);
    std::thread::scope(|scope| {
        let orphan = mutex.lock().unwrap();
        assert!(orphan.is_orphaned());
        let other = scope.spawn(|| mutex.lock().map(drop));
        std::thread::sleep(Duration::from_millis(2));
        drop(orphan);
        assert_eq!(other.join().unwrap().unwrap_err().raw_os_error(), libc::ENOTRECOVERABLE);
    });
    for error in [mutex.lock().map(drop), mutex.try_lock().map(drop)] {
        assert_eq!(error.unwrap_err().raw_os_error(), libc::ENOTRECOVERABLE);
    }
}

#[test]
fn the_end_of_a_holder_private() {
    the_end_of_a_holder::<Private>();
}

#[test]
fn the_end_of_a_holder_shared() {
    the_end_of_a_holder::<Shared>();
}

/// A holder that was killed, and that nobody has waited for: found by a wait that ends before the
/// first beat, too.
#[test]
fn a_zombie_is_found_by_a_short_wait() {
    if role().is_none() {
        return succeed(child("a_zombie_is_found_by_a_short_wait", "child"));
    }
    // SAFETY: new memory.
    let memory = unsafe {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let kind = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        libc::mmap(std::ptr::null_mut(), 4096, access, kind, -1, 0)
    };
    assert_ne!(memory, libc::MAP_FAILED);
    // SAFETY: zeros, mapped for good.
    let mutex = unsafe { &*memory.cast::<RobustMutex<u32>>() };
    // SAFETY: the child locks, and ends.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        std::mem::forget(mutex.lock());
        // SAFETY: ends the child.
        unsafe { libc::_exit(0) };
    }
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::uninit();
    let options = libc::WEXITED | libc::WNOWAIT;
    // SAFETY: our own child; it stays a zombie.
    unsafe { libc::waitid(libc::P_PID, pid.cast_unsigned(), info.as_mut_ptr(), options) };
    assert!(mutex.is_locked());
    let locked = mutex.try_lock_until(soon()).expect("the holder is dead");
    assert!(locked.is_orphaned());
    // SAFETY: the holder's process is dead.
    drop(unsafe { locked.or_repair(|value| *value = 1) });
    assert!(!mutex.is_locked());
    // SAFETY: our own child.
    assert_eq!(unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) }, pid);
}

/// A `/proc` of another namespace of process ids tells of other threads: it is not asked.
#[test]
fn another_namespace() {
    use unmerged::sys::task::is_proc_ours;
    if role().is_none() {
        return succeed(child("another_namespace", "child"));
    }
    assert!(is_proc_ours());
    // SAFETY: what is new is the namespaces of the children to come, and the credentials.
    if unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWPID) } != 0 {
        return missing("user-namespaces", "not tried");
    }
    // SAFETY: the child asks, locks and ends.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let mutex = RobustMutex::<u32>::new(1);
        let guard = mutex.lock();
        let code = i32::from(is_proc_ours()) | i32::from(guard.is_err()) << 1;
        // SAFETY: ends the child.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: our own child.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert_eq!(status, 0);
}

/// What its siblings have: unsized values, get_mut, into_inner, Default.
#[test]
fn robust_smoke() {
    let mut mutex = RobustMutex::<Vec<u32>, Private>::default();
    mutex.get_mut().push(1);
    assert!(!mutex.is_locked());
    let Locked::Clean(mut guard) = mutex.lock().unwrap() else { panic!("who died?") };
    guard.push(2);
    drop(guard);
    assert_eq!(mutex.into_inner(), [1, 2]);
    let unsized_: &RobustMutex<[u32]> = &RobustMutex::new([1, 2, 3]);
    let Locked::Clean(guard) = unsized_.lock().unwrap() else { panic!("who died?") };
    assert!(unsized_.is_locked() && guard[2] == 3);
}
