//! The fence of a waker is needed: without it wakes are lost, with it none is.
//!
//! A stress without cold stores does not show it: the store of the word leaves the store buffer
//! before the waiter is asleep. With stores to lines that are in no cache queued in front of it,
//! it does, after some hundred rounds of an optimised build:
//!
//! ```text
//! UNMERGED_REQUIRE=store-buffer cargo test --release --test futex2_fences
//! ```
//!
//! In other builds the code between the two accesses has so many stores of its own that nothing
//! is left in the buffer, and the test says so.

mod common;

use common::{allowed, child, missing, pin, role, stress, succeed};
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use unmerged::futex2::{Deadline, Fences, Futex, choose_fences, fences};

/// How long a waiter sleeps before it says that its wake was lost.
const LOST: Duration = Duration::from_millis(20);

/// Stores in front of the one that counts.
const COLD: usize = 32;

/// Lines to store to: more than a cache holds.
const LINES: usize = 1 << 20;

/// Stores to all of them and to nothing else, for a store buffer has few places: the code of a
/// debug build would fill it with its own.
fn store_to(places: &[*mut u64; COLD]) {
    // SAFETY: the places are atomics that live.
    unsafe {
        core::arch::asm!(
            "2:",
            "mov {at}, qword ptr [{place}]", // at = *place
            "mov qword ptr [{at}], {left}",  // *at = left
            "add {place}, 8",                // place += 1
            "dec {left}",                    // left -= 1
            "jnz 2b",                        // until left == 0
            place = inout(reg) places.as_ptr() => _,
            left = inout(reg) COLD => _,
            at = out(reg) _,
            options(nostack)
        );
    }
}

#[repr(align(64))]
struct Line(AtomicU64);

#[repr(align(128))]
#[derive(Default)]
struct Apart<T>(T);

/// Rounds of one waiter and one waker, until the time is over or a wake was lost; rounds and
/// lost wakes.
fn storm(span: Duration) -> (u32, u32) {
    let cold: Vec<Line> = (0..LINES).map(|n| Line(AtomicU64::new(n as u64))).collect();
    let word = Apart(Futex::<u32>::new(0));
    let ready = Apart(AtomicU32::new(0));
    let over = Apart(AtomicU32::new(0));
    let cpus = allowed();
    let (mut rounds, mut lost) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pin(cpus[1]);
            let mut random = 1_u64;
            for round in 1.. {
                while ready.0.load(Ordering::Acquire) != round {
                    if over.0.load(Ordering::Relaxed) != 0 {
                        return;
                    }
                    core::hint::spin_loop();
                }
                let mut places = [ptr::null_mut::<u64>(); COLD];
                for place in &mut places {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    *place = cold[(random >> 40) as usize % LINES].0.as_ptr();
                }
                store_to(&places);
                word.0.store(round, Ordering::Release);
                word.0.wake(1);
            }
        });
        pin(cpus[0]);
        let begin = Instant::now();
        // A wait that comes too late costs little, one that sleeps a lot: so it begins late, and
        // then earlier and earlier until it sleeps.
        let mut delay = 1000_u32;
        for round in 1.. {
            ready.0.store(round, Ordering::Release);
            for spin in 0..delay + (round.wrapping_mul(0x9e37_79b9) >> 27) {
                core::hint::black_box(spin);
            }
            let slept = word.0.wait(round - 1, Some(Deadline::after(LOST)));
            match slept {
                Ok(()) => delay += 60,
                // The word had changed: whoever changed it has also called a wake.
                Err(error) if error.is_timed_out() && word.0.load(Ordering::Acquire) == round => {
                    lost += 1;
                }
                Err(_) => delay = delay.saturating_sub(4),
            }
            while word.0.load(Ordering::Acquire) != round {
                core::hint::spin_loop();
            }
            rounds = round;
            if lost != 0 || begin.elapsed() > span {
                break;
            }
        }
        over.0.store(1, Ordering::Relaxed);
    });
    (rounds, lost)
}

#[test]
fn without_the_fence_wakes_are_lost() {
    const VARIABLE: &str = "UNMERGED_FUTEX2_FENCE";
    if allowed().len() < 2 {
        return missing("two-cpus", "nothing runs at the same time");
    }
    let Some(wanted) = role() else {
        for wanted in ["broken-for-tests", "symmetric", "membarrier"] {
            let mut command = child("without_the_fence_wakes_are_lost", wanted);
            command.env(VARIABLE, wanted);
            succeed(command);
        }
        return;
    };
    if wanted == "membarrier" && fences() != Fences::Membarrier {
        return missing("membarrier", "symmetric");
    }
    let broken = wanted == "broken-for-tests";
    // The first lost wake ends it.
    let span = match (cfg!(debug_assertions), broken) {
        (true, _) => Duration::from_millis(200),
        (false, true) => Duration::from_secs(20),
        (false, false) => Duration::from_secs(2),
    };
    let (rounds, lost) = storm(stress(span));
    eprintln!("{wanted}: {rounds} rounds, {lost} lost");
    if !broken {
        assert_eq!(lost, 0, "of {rounds} rounds");
    } else if lost == 0 {
        // Nor need an emulated processor have such a buffer.
        let why =
            if cfg!(debug_assertions) { "the build is not optimised" } else { "no store buffer?" };
        missing("store-buffer", &format!("no wake was lost without the fence: {why}"));
    }
}

/// The choice is made once.
#[test]
fn fences_are_chosen_once() {
    match role().as_deref() {
        None => {
            for way in ["membarrier", "symmetric", "used"] {
                succeed(child("fences_are_chosen_once", way));
            }
        }
        Some("membarrier") => match choose_fences(Fences::Membarrier) {
            Ok(()) => {
                assert_eq!(fences(), Fences::Membarrier);
                let error = choose_fences(Fences::Symmetric).unwrap_err();
                assert_eq!(error.raw_os_error(), libc::EBUSY);
            }
            Err(error) => {
                assert!(error.is_unsupported());
                missing("membarrier", "symmetric");
            }
        },
        Some("symmetric") => {
            choose_fences(Fences::Symmetric).unwrap();
            choose_fences(Fences::Symmetric).unwrap();
            assert_eq!(fences(), Fences::Symmetric);
        }
        Some(_) => {
            // A wake chooses nothing.
            assert_eq!(Futex::<u8>::new(0).wake(1), 0);
            let soon = Some(Deadline::after(Duration::from_millis(1)));
            assert!(Futex::<u8>::new(0).wait(0, soon).unwrap_err().is_timed_out());
            let error = choose_fences(Fences::Membarrier).unwrap_err();
            assert_eq!(error.raw_os_error(), libc::EBUSY);
            assert!(error.to_string().contains("in use"));
        }
    }
}
