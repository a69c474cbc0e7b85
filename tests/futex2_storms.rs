//! Waiters of the shared locks are killed at random instructions: nobody else is left asleep, and no
//! wake that others need is lost. `ci/stress.sh` makes it thousands of kills.
//!
//! What holds an ordinary lock and dies, holds it for ever. So the killer kills while it holds the
//! lock itself: then a victim may be spinning, asleep, between its count and its sleep, woken and
//! not running yet, or between giving back and waking the next one; but it holds nothing.

mod common;
#[path = "common/processes.rs"]
mod processes;

use processes::{Dice, KILLS, Kills, alone, far, fork, is_over, kill, shared, until, wait_for};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};
use unmerged::futex2::lock::{AutoEvent, Condvar, Event, Mutex, Once, RwLock, Semaphore};
use unmerged::futex2::{Deadline, Shared};

const VICTIMS: usize = 3;
const SURVIVORS: usize = 2;

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
    /// Turns of each survivor.
    turns: [AtomicU64; SURVIVORS],
    /// How far the play is.
    act: AtomicU64,
    stop: AtomicU32,
    onces: [Once<Shared>; KILLS + 1],
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_micros(200))
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
    let stage: &'static Stage = shared();
    let kills = Kills::new(100);
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
    while !kills.are_over(killed) {
        let me = dice.next(VICTIMS as u64) as usize;
        let mut this = 0;
        round(stage, killed, &mut || {
            linger(&mut dice);
            kill(victims[me]);
            this += 1;
        });
        assert_eq!(this, 1);
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
    kills.check(killed);
    eprintln!("storm: {name}: {killed} killed, {turns:?} turns of survivors");
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
