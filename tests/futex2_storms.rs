//! Waiters of the shared locks are killed: at random instructions, by the thousand, and at each step
//! of the protocols. Nobody else is left asleep, and no wake that others need is lost.
//!
//! What holds an ordinary lock and dies, holds it for ever. So the killer kills while it holds the
//! lock itself: then a victim may be spinning, asleep, between its count and its sleep, woken and
//! not running yet, or between giving back and waking the next one; but it holds nothing.

mod common;

use common::{child, map, role, stress, succeed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};
use unmerged::futex2::lock::{
    AutoEvent, Condvar, Event, Mutex, Once, RawMutex, RawRwLock, RobustMutex, RwLock, Semaphore,
};
use unmerged::futex2::{Deadline, Shared, step};

/// Kills of a long storm.
const KILLS: usize = 10_000;
const VICTIMS: usize = 3;
const SURVIVORS: usize = 2;
const BYTES: usize = 16 * 4096;

/// What the processes share; zeros at the beginning.
#[repr(C)]
struct Stage {
    mutex: Mutex<(), Shared>,
    lock: RwLock<(), Shared>,
    changed: Condvar<Shared>,
    permits: Semaphore<Shared>,
    event: Event<Shared>,
    back: Event<Shared>,
    auto: AutoEvent<Shared>,
    robust: RobustMutex<()>,
    once: Once<Shared>,
    raw: RawMutex<Shared>,
    both: RawRwLock<Shared>,
    /// Turns of each survivor.
    turns: [AtomicU64; SURVIVORS],
    /// How far the play is.
    act: AtomicU64,
    stop: AtomicU32,
    onces: [Once<Shared>; KILLS + 1],
}

fn stage() -> &'static Stage {
    assert!(size_of::<Stage>() <= BYTES);
    // SAFETY: a fresh descriptor, which is closed again; the mapping stays.
    let file = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"test".as_ptr(), 0)) };
    // SAFETY: our own file.
    assert_eq!(unsafe { libc::ftruncate(file.as_raw_fd(), BYTES as i64) }, 0);
    // SAFETY: mapped for good, zeros.
    unsafe { map(&file, BYTES).cast::<Stage>().as_ref() }
}

/// Nothing may take this long.
fn far() -> Deadline {
    Deadline::after(Duration::from_secs(30))
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_micros(200))
}

/// Runs the test alone in a process of its own: it forks.
fn alone(test: &str) -> bool {
    if role().is_none() {
        succeed(child(test, "alone"));
        return false;
    }
    true
}

/// A child of fork; it ends well if `body` answers yes.
fn fork(body: impl FnOnce() -> bool) -> libc::pid_t {
    // SAFETY: the child runs what is made for forked children, and ends.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: it dies with the test, should that fail.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            let code = i32::from(!body());
            // SAFETY: ends the child.
            unsafe { libc::_exit(code) }
        }
        pid => pid,
    }
}

fn wait_for(pid: libc::pid_t) -> i32 {
    let mut status = 0;
    // SAFETY: our own child, not waited for yet.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    status
}

fn kill(pid: libc::pid_t) {
    // SAFETY: our own child, not waited for yet.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    let status = wait_for(pid);
    assert!(libc::WIFSIGNALED(status), "a victim gave up by itself: {status:#x}");
}

/// Until `done`, with the CPU left to others.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let far = far();
    while !done() {
        assert!(!far.has_passed(), "{what}: somebody is left asleep");
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// Numbers without a pattern.
struct Dice(u64);

impl Dice {
    fn next(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % most
    }
}

/// Lets some time pass, up to a hundred microseconds, mostly less: soon all are asleep.
fn linger(dice: &mut Dice) {
    let (begin, span) = (Instant::now(), Duration::from_nanos(dice.next(100_000) >> dice.next(8)));
    while begin.elapsed() < span {
        std::hint::spin_loop();
    }
}

/// A round of the killer: calls what it is given while it holds what the others wait for.
type Round<'a> = dyn FnMut(&Stage, usize, &mut dyn FnMut()) + 'a;

/// Processes take turns without end. `turn` is one of a victim or of a survivor; it answers whether
/// it went well.
fn storm(
    name: &str,
    turn: impl Fn(&Stage, &mut Dice) -> bool,
    mut round: impl FnMut(&Stage, usize, &mut dyn FnMut()),
) {
    let stage = stage();
    let long = std::env::var("UNMERGED_STRESS_SECONDS").is_ok();
    let kills = if long { KILLS } else { 100 };
    let end = Instant::now() + stress(Duration::from_millis(1200));
    let mut dice = Dice(88_172_645_463_325_252);
    let victim = |seed: u64| {
        fork(|| {
            let mut dice = Dice(seed | 1);
            while turn(stage, &mut dice) {}
            false
        })
    };
    let survivors: Vec<_> = (0..SURVIVORS)
        .map(|me| {
            fork(|| {
                let mut dice = Dice(me as u64 + 1);
                while stage.stop.load(SeqCst) == 0 {
                    if !turn(stage, &mut dice) {
                        return false;
                    }
                    stage.turns[me].fetch_add(1, SeqCst);
                }
                true
            })
        })
        .collect();
    let mut victims: Vec<_> = (0..VICTIMS).map(|me| victim(me as u64 * 999)).collect();
    let mut killed = 0;
    while killed < kills && Instant::now() < end {
        let me = dice.next(VICTIMS as u64) as usize;
        let mut kills = 0;
        round(stage, killed, &mut || {
            linger(&mut dice);
            kill(victims[me]);
            kills += 1;
        });
        assert_eq!(kills, 1);
        killed += 1;
        victims[me] = victim(dice.next(u64::MAX));
    }
    // The survivors go on, with all victims gone at once, too.
    let after = |round: &mut Round<'_>| {
        let before: Vec<_> = stage.turns.iter().map(|turns| turns.load(SeqCst)).collect();
        let on = |(turns, before): (&AtomicU64, &u64)| turns.load(SeqCst) > *before + 1;
        until(name, || {
            round(stage, killed, &mut || ());
            stage.turns.iter().zip(&before).all(on)
        });
    };
    after(&mut round);
    round(stage, killed, &mut || victims.iter().for_each(|victim| kill(*victim)));
    after(&mut round);
    stage.stop.store(1, SeqCst);
    while !survivors.iter().all(|survivor| is_over(*survivor)) {
        round(stage, killed, &mut || ());
    }
    for survivor in survivors {
        assert_eq!(wait_for(survivor), 0, "{name}: a survivor gave up");
    }
    let turns: Vec<_> = stage.turns.iter().map(|turns| turns.load(SeqCst)).collect();
    eprintln!("{name}: {killed} killed, {turns:?} turns of survivors");
}

/// Whether a child has ended; it can still be waited for.
fn is_over(pid: libc::pid_t) -> bool {
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    let options = libc::WEXITED | libc::WNOWAIT | libc::WNOHANG;
    // SAFETY: our own child; a zeroed structure is one, and tells that nobody has ended.
    unsafe {
        assert_eq!(libc::waitid(libc::P_PID, pid.cast_unsigned(), info.as_mut_ptr(), options), 0);
        info.assume_init().si_pid() != 0
    }
}

#[test]
fn mutex_storm() {
    if alone("mutex_storm") {
        let turn = |stage: &Stage, dice: &mut Dice| {
            let guard = if dice.next(4) == 0 {
                stage.mutex.try_lock_until(soon())
            } else {
                stage.mutex.try_lock_until(far()).inspect_err(|_| stage.stop.store(9, SeqCst))
            };
            match guard {
                Ok(guard) if dice.next(3) == 0 => {
                    unmerged::futex2::lock::MutexGuard::unlock_fair(guard)
                }
                _ => {}
            }
            stage.stop.load(SeqCst) != 9
        };
        storm("mutex", turn, |stage, _, kill| {
            let guard = stage.mutex.try_lock_until(far()).unwrap();
            kill();
            drop(guard);
        });
    }
}

#[test]
fn rwlock_storm() {
    if alone("rwlock_storm") {
        let turn = |stage: &Stage, dice: &mut Dice| match dice.next(6) {
            0 => stage.lock.try_write_until(far()).is_ok(),
            1 => stage
                .lock
                .try_write_until(far())
                .map(unmerged::futex2::lock::RwLockWriteGuard::downgrade)
                .is_ok(),
            2 => {
                let _ = stage.lock.try_write_until(soon());
                true
            }
            3 => {
                let _ = stage.lock.try_read_until(soon());
                true
            }
            _ => stage.lock.try_read_until(far()).is_ok(),
        };
        storm("rwlock", turn, |stage, _, kill| {
            let guard = stage.lock.try_write_until(far()).unwrap();
            kill();
            drop(guard);
        });
    }
}

/// The killer has the mutex: the others are anywhere in a wait, or after a notification.
#[test]
fn condvar_storm() {
    if alone("condvar_storm") {
        let turn = |stage: &Stage, dice: &mut Dice| {
            let Ok(mut guard) = stage.mutex.try_lock_until(far()) else { return false };
            let act = stage.act.load(SeqCst);
            if dice.next(4) == 0 {
                let _ = stage.changed.wait_until(&mut guard, soon());
            } else {
                let far = far();
                while stage.act.load(SeqCst) == act {
                    if stage.changed.wait_until(&mut guard, far).is_err() {
                        return false;
                    }
                }
            }
            drop(guard);
            match dice.next(3) {
                0 => stage.changed.notify_one(),
                1 => stage.changed.notify_all(),
                _ => {}
            }
            true
        };
        storm("condvar", turn, |stage, _, kill| {
            let guard = stage.mutex.try_lock_until(far()).unwrap();
            kill();
            stage.act.fetch_add(1, SeqCst);
            drop(guard);
            stage.changed.notify_all();
        });
    }
}

/// One permit, which the killer has.
#[test]
fn semaphore_storm() {
    if alone("semaphore_storm") {
        let turn = |stage: &Stage, dice: &mut Dice| {
            let wait = if dice.next(4) == 0 { soon() } else { far() };
            match stage.permits.acquire_until(wait) {
                Ok(()) => stage.permits.release(1).is_ok(),
                Err(_) => wait.at() < far().at() - Duration::from_secs(15),
            }
        };
        let mut first = true;
        storm("semaphore", turn, |stage, _, kill| {
            if !std::mem::take(&mut first) {
                stage.permits.acquire_until(far()).unwrap();
            }
            kill();
            stage.permits.release(1).unwrap();
        });
    }
}

/// The same with an event that resets itself.
#[test]
fn auto_event_storm() {
    if alone("auto_event_storm") {
        let turn = |stage: &Stage, _: &mut Dice| {
            stage.auto.wait_until(far()).map(|()| stage.auto.set()).is_ok()
        };
        let mut first = true;
        storm("auto event", turn, |stage, _, kill| {
            if !std::mem::take(&mut first) {
                stage.auto.wait_until(far()).unwrap();
            }
            kill();
            stage.auto.set();
        });
    }
}

/// Two events, one after the other. Who waits holds nothing at any time.
#[test]
fn event_storm() {
    if alone("event_storm") {
        let turn = |stage: &Stage, dice: &mut Dice| {
            if dice.next(4) == 0 {
                let _ = stage.event.wait_until(soon());
                return true;
            }
            stage.event.wait_until(far()).is_ok() && stage.back.wait_until(far()).is_ok()
        };
        storm("event", turn, |stage, _, kill| {
            stage.event.set();
            kill();
            stage.event.reset();
            stage.back.set();
            std::thread::yield_now();
            stage.back.reset();
        });
    }
}

/// The killer runs each of many; the others wait for it.
#[test]
fn once_storm() {
    if alone("once_storm") {
        let turn = |stage: &Stage, _: &mut Dice| {
            let act = stage.act.load(SeqCst) as usize;
            if act == 0 || stage.onces[act - 1].is_done() {
                std::thread::sleep(Duration::from_micros(20));
                return true;
            }
            let mut ran = false;
            stage.onces[act - 1].call_once_until(far(), || ran = true).is_ok() && !ran
        };
        storm("once", turn, |stage, act, kill| {
            let mut ran = false;
            stage.onces[act].call_once(|| {
                stage.act.store(act as u64 + 1, SeqCst);
                kill();
                ran = true;
            });
            if !ran {
                kill();
            }
        });
    }
}

/// What a victim does until it dies.
type Part = fn(&Stage);

/// Plays `begin`; then a victim does its part, and is killed at the step after the first, the second
/// and so on; then survivors come and sleep behind it, and `end` lets them go. They must.
fn at_each_step(name: &str, begin: Part, victim: Part, survivors: &[Part], end: Part) {
    for steps in 0.. {
        assert!(steps < 40, "{name}: a part without end");
        let stage = stage();
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

/// Whether a process sleeps in a futex, or in a pipe: not on its way.
fn is_asleep(pid: libc::pid_t) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S'))
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
        let stage = stage();
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
            |stage| drop(stage.robust.try_lock_until(far()).unwrap().or_repair(|()| {}));
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
