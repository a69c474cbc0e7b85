//! One that uses a shared lock is killed at each step of its protocol, with others asleep behind it:
//! they go on.

mod common;
#[path = "common/processes.rs"]
mod processes;

use processes::{alone, far, fork, is_asleep, is_over, shared, until, wait_for};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use std::time::Duration;
use unmerged::futex2::lock::{
    AutoEvent, Condvar, Event, Mutex, Once, RawMutex, RawRwLock, RobustMutex, Semaphore,
};
use unmerged::futex2::{Deadline, Shared, step};

/// What the processes share; zeros at the beginning.
#[repr(C)]
struct Stage {
    mutex: Mutex<(), Shared>,
    changed: Condvar<Shared>,
    permits: Semaphore<Shared>,
    event: Event<Shared>,
    back: Event<Shared>,
    auto: AutoEvent<Shared>,
    robust: RobustMutex<()>,
    once: Once<Shared>,
    raw: RawMutex<Shared>,
    both: RawRwLock<Shared>,
    /// Process ids, or how often something was done.
    turns: [AtomicU64; 2],
    /// How far the play is.
    act: AtomicU64,
    stop: AtomicU32,
}

/// What a victim does until it dies.
type Part = fn(&Stage);

/// Plays `begin`; then a victim does its part, and is killed at the step after the first, the second
/// and so on; then survivors come and sleep behind it, and `end` lets them go. They must.
fn at_each_step(name: &str, begin: Part, victim: Part, survivors: &[Part], end: Part) {
    for steps in 0.. {
        assert!(steps < 40, "{name}: a part without end");
        let stage: &'static Stage = shared();
        begin(stage);
        let first = fork(|| {
            step::die_after(steps);
            victim(stage);
            true
        });
        until(name, || is_over(first) || is_asleep(first));
        let survivors: Vec<_> = survivors
            .iter()
            .map(|part| {
                fork(|| {
                    part(stage);
                    true
                })
            })
            .collect();
        until(name, || survivors.iter().all(|&pid| is_over(pid) || is_asleep(pid)));
        end(stage);
        until(name, || survivors.iter().all(|&pid| is_over(pid)));
        survivors.into_iter().for_each(|pid| assert_eq!(wait_for(pid), 0, "{name}, step {steps}"));
        let status = wait_for(first);
        if !libc::WIFSIGNALED(status) {
            assert_eq!(status, 0, "{name}, step {steps}");
            // One that gives up may be late before it sleeps.
            assert!(steps > 1 || name.contains("given up"), "{name} has no steps");
            eprintln!("{name}: {steps} steps");
            return;
        }
    }
}

fn lock(stage: &Stage) {
    stage.raw.try_lock_until(far()).unwrap();
    // SAFETY: it is held.
    unsafe { stage.raw.unlock() };
}
fn lock_fairly(stage: &Stage) {
    stage.raw.try_lock_until(far()).unwrap();
    // SAFETY: it is held.
    unsafe { stage.raw.unlock_fair() };
}
fn hold(stage: &Stage) {
    stage.raw.lock();
}
fn let_go(stage: &Stage) {
    // SAFETY: held since the beginning.
    unsafe { stage.raw.unlock() };
}
fn let_go_fairly(stage: &Stage) {
    // SAFETY: held since the beginning.
    unsafe { stage.raw.unlock_fair() };
}
/// Long enough for others to come and sleep; it is no harm if they do not.
const WHILE: Duration = Duration::from_millis(15);

fn give_up(stage: &Stage) {
    if stage.raw.try_lock_until(Deadline::after(WHILE)).is_ok() {
        let_go(stage);
    }
}
fn let_go_later(stage: &Stage) {
    std::thread::sleep(2 * WHILE);
    let_go(stage);
}

#[test]
fn steps_of_a_mutex() {
    if alone("steps_of_a_mutex") {
        at_each_step("mutex", hold, lock, &[lock, lock], let_go);
        at_each_step("mutex, fair", hold, lock_fairly, &[lock_fairly, lock], let_go_fairly);
        at_each_step("mutex, given up", hold, give_up, &[lock, lock], let_go_later);
    }
}

fn read(stage: &Stage) {
    stage.both.try_read_until(far()).unwrap();
    // SAFETY: it is held for reading.
    unsafe { stage.both.unlock_read() };
}
fn write(stage: &Stage) {
    stage.both.try_write_until(far()).unwrap();
    // SAFETY: it is held for writing.
    unsafe { stage.both.unlock_write() };
}
fn give_up_writing(stage: &Stage) {
    if stage.both.try_write_until(Deadline::after(WHILE)).is_ok() {
        let_go_written(stage);
    }
}
fn hold_written(stage: &Stage) {
    stage.both.write();
}
fn let_go_written(stage: &Stage) {
    // SAFETY: held since the beginning.
    unsafe { stage.both.unlock_write() };
}
fn hold_read(stage: &Stage) {
    stage.both.read();
}
fn let_go_written_later(stage: &Stage) {
    std::thread::sleep(2 * WHILE);
    let_go_written(stage);
}
fn let_go_read_later(stage: &Stage) {
    std::thread::sleep(2 * WHILE);
    let_go_read(stage);
}
fn let_go_read(stage: &Stage) {
    // SAFETY: held since the beginning.
    unsafe { stage.both.unlock_read() };
}

#[test]
fn steps_of_a_rwlock() {
    if alone("steps_of_a_rwlock") {
        let (begin, end): (Part, Part) = (hold_written, let_go_written);
        at_each_step("rwlock, a reader", begin, read, &[write, read], end);
        at_each_step("rwlock, a writer", begin, write, &[write, read], end);
        at_each_step("rwlock, a writer before readers", begin, write, &[read, read], end);
        at_each_step("rwlock, read", hold_read, write, &[read, write], let_go_read);
    }
}

#[test]
fn steps_of_a_writer_that_gives_up() {
    if alone("steps_of_a_writer_that_gives_up") {
        at_each_step(
            "rwlock, given up",
            hold_written,
            give_up_writing,
            &[write, read],
            let_go_written_later,
        );
        // The readers were held up by the writer alone.
        at_each_step(
            "rwlock, given up before readers",
            hold_read,
            give_up_writing,
            &[read, read],
            let_go_read_later,
        );
    }
}

fn wait(stage: &Stage) {
    let mut guard = stage.mutex.try_lock_until(far()).unwrap();
    while stage.act.load(SeqCst) == 0 {
        stage.changed.wait_until(&mut guard, far()).unwrap();
    }
}
/// Tells one, and all if it is not killed before.
fn tell(stage: &Stage) {
    drop(stage.mutex.try_lock_until(far()).map(|_guard| stage.act.store(1, SeqCst)));
    stage.changed.notify_one();
    stage.changed.notify_all();
}
fn tell_all(stage: &Stage) {
    drop(stage.mutex.try_lock_until(far()).map(|_guard| stage.act.store(1, SeqCst)));
    stage.changed.notify_all();
}
fn wait_and_tell(stage: &Stage) {
    wait(stage);
    tell_all(stage);
}

#[test]
fn steps_of_a_condvar() {
    if alone("steps_of_a_condvar") {
        at_each_step("condvar", |_| {}, wait_and_tell, &[wait, wait], tell_all);
        // Each notification counts for one who waits, and a dead one may have had the first.
        at_each_step("condvar, one by one", |_| {}, wait, &[wait, wait], tell);
        // The other way round: one that tells dies, the survivors were there before.
        notifier_dies("condvar, a notifier");
    }
}

/// One that tells all is killed at each step of it, with two asleep.
fn notifier_dies(name: &str) {
    for steps in 0.. {
        let stage: &'static Stage = shared();
        let survivors = [(); 2].map(|()| {
            fork(|| {
                wait(stage);
                true
            })
        });
        until(name, || survivors.iter().all(|&pid| is_asleep(pid)));
        let notifier = fork(|| {
            stage.mutex.try_lock_until(far()).map(|_guard| stage.act.store(1, SeqCst)).unwrap();
            step::die_after(steps);
            stage.changed.notify_all();
            true
        });
        let status = wait_for(notifier);
        until(name, || survivors.iter().all(|&pid| is_over(pid)));
        survivors.into_iter().for_each(|pid| assert_eq!(wait_for(pid), 0, "{name}, step {steps}"));
        if !libc::WIFSIGNALED(status) {
            assert!(steps > 1);
            return;
        }
    }
}

fn acquire(stage: &Stage) {
    stage.permits.acquire_until(far()).unwrap();
}
fn acquire_and_release(stage: &Stage) {
    acquire(stage);
    stage.permits.release(1).unwrap();
}
fn release_one_by_one(stage: &Stage) {
    (0..3).for_each(|_| stage.permits.release(1).unwrap());
}
fn release_at_once(stage: &Stage) {
    stage.permits.release(3).unwrap();
}

#[test]
fn steps_of_a_semaphore() {
    if alone("steps_of_a_semaphore") {
        let both: [Part; 2] = [acquire, acquire];
        // As many permits as there are, for a victim may die with one.
        at_each_step("semaphore", |_| {}, acquire_and_release, &both, release_one_by_one);
        at_each_step("semaphore, at once", |_| {}, acquire_and_release, &both, release_at_once);
    }
}

#[test]
fn steps_of_events() {
    if alone("steps_of_events") {
        let pass: Part = |stage| stage.event.wait_until(far()).unwrap();
        let set_too: Part = |stage| {
            stage.event.wait_until(far()).unwrap();
            stage.event.reset();
            stage.event.set();
        };
        at_each_step("event", |_| {}, set_too, &[pass, pass], |stage| stage.event.set());
        let one: Part = |stage| stage.auto.wait_until(far()).unwrap();
        let one_and_set: Part = |stage| {
            stage.auto.wait_until(far()).unwrap();
            stage.auto.set();
        };
        at_each_step(
            "auto event",
            |_| {},
            one_and_set,
            &[one],
            |stage| {
                // What a victim had taken is gone with it.
                let far = far();
                while stage.turns[0].load(SeqCst) == 0 && !far.has_passed() {
                    stage.auto.set();
                    std::thread::sleep(Duration::from_millis(1));
                    stage.turns[0].fetch_add(u64::from(!stage.auto.is_set()), SeqCst);
                }
                stage.auto.set();
            },
        );
    }
}

/// The one that runs is this process, or the victim, which has run it when it dies.
#[test]
fn steps_of_a_once() {
    if alone("steps_of_a_once") {
        let wait: Part = |stage| {
            until("once", || stage.act.load(SeqCst) == 1);
            let me = stage.stop.fetch_add(1, SeqCst) as usize;
            stage.turns[me].store(std::process::id().into(), SeqCst);
            stage.once.call_once_until(far(), || panic!("begun already")).unwrap();
        };
        let run: Part = |stage| {
            stage.once.call_once(|| {
                stage.act.store(1, SeqCst);
                // The survivors come and sleep.
                until("once", || {
                    stage
                        .turns
                        .iter()
                        .map(|pid| pid.load(SeqCst))
                        .all(|pid| pid != 0 && is_asleep(libc::pid_t::try_from(pid).unwrap()))
                });
            });
        };
        at_each_step("once", |_| {}, run, &[wait, wait], |_| {});
    }
}

#[test]
fn steps_of_a_robust_mutex() {
    if alone("steps_of_a_robust_mutex") {
        let lock: Part =
            // SAFETY: no guard is leaked, and nothing is in the lock.
            |stage| drop(unsafe { stage.robust.try_lock_until(far()).unwrap().or_repair(|()| {}) });
        // Held by one who gives it back at the end, or dies then, which is told to one.
        fn hold(stage: &Stage, forget: bool) {
            fork(|| {
                let guard = stage.robust.lock();
                stage.back.set();
                stage.event.wait();
                if forget {
                    std::mem::forget(guard);
                }
                true
            });
            stage.back.wait();
        }
        let end: Part = |stage| stage.event.set();
        at_each_step("robust mutex", |stage| hold(stage, false), lock, &[lock, lock], end);
        at_each_step("robust mutex, orphaned", |stage| hold(stage, true), lock, &[lock, lock], end);
    }
}
