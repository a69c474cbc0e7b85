//! Every interruption of every window, on the machine.
//!
//! A call runs from its first instruction to its return. In front of each instruction the
//! thread is interrupted, moved or not, and something happens meanwhile: nothing, the same
//! operation in a signal handler or in another thread, on any CPU. In the neighbourhood of the
//! window a second interruption follows. Whatever happens, the stripes must be what the
//! finished operations leave when they are executed one after another, and an attempt that was
//! aborted must have done nothing.

use std::collections::BTreeMap;
use std::ops::Range;

use unmerged::arch::NOT_STRIPED;

use crate::cases::{CASES, Case, Shape};
use crate::machine::{Code, Result};
use crate::world::{CPUS, MAIN, Meanwhile, STEPS, Start, World, instructions, starts, trace};
use crate::{planted, rules};

/// How far the walk goes.
#[derive(Debug, Clone, Copy)]
struct Reach {
    /// Interruptions of one attempt.
    interruptions: u32,
    /// CPUs on which things happen.
    cpus: u32,
}

impl Reach {
    const FAR: Self = Self { interruptions: 2, cpus: CPUS };
    const NEAR: Self = Self { interruptions: 1, cpus: 2 };

    /// As far as time allows: an optimised build has it, another takes what one interruption
    /// on two CPUs shows, unless it is told to take its time. `gs_restripe` has two words to
    /// keep together, and it takes two interruptions to tear them apart.
    fn of(case: &Case) -> Self {
        let has_time =
            !cfg!(debug_assertions) || std::env::var_os("UNMERGED_STRESS_SECONDS").is_some();
        match case.shape {
            _ if has_time => Self::FAR,
            Shape::Restripe => Self { cpus: 2, ..Self::FAR },
            _ => Self::NEAR,
        }
    }

    /// What may happen to a thread on CPU `old`: at the first interruption in the
    /// neighbourhood of the window everything, elsewhere what is likeliest to tell.
    fn actions(self, everything: bool, old: u32) -> Vec<(Meanwhile, u32)> {
        let next = (old + 1) % self.cpus;
        if !everything {
            return vec![
                (Meanwhile::Nothing, next),
                (Meanwhile::Other(old), old),
                (Meanwhile::Handler(next), old),
            ];
        }
        let mut all = Vec::new();
        for cpu in 0..self.cpus {
            all.push((Meanwhile::Nothing, cpu));
            for on in 0..self.cpus {
                all.extend([(Meanwhile::Handler(on), cpu), (Meanwhile::Other(on), cpu)]);
            }
        }
        all
    }
}

impl World<'_> {
    /// Runs to the end of the attempt, interrupted `left` times more, at every place. Counts
    /// the ways that this takes.
    fn explore(mut self, reach: Reach, left: u32, near: &Range<u64>) -> Result<usize> {
        let mut ways = 0;
        for _ in 0..STEPS {
            let here = self.threads[0].context.ip;
            let is_near = near.contains(&here);
            let is_first = left == reach.interruptions;
            let mut actions = if left > 0 && (is_first || is_near) {
                reach.actions(is_first && is_near, self.threads[0].cpu)
            } else {
                Vec::new()
            };
            if self.shape() == Shape::Restripe {
                // Nothing that it writes is another thread's.
                actions.retain(|(meanwhile, _)| !matches!(meanwhile, Meanwhile::Other(_)));
            }
            for (meanwhile, cpu) in actions {
                let mut world = self.clone();
                let then = if is_near { left - 1 } else { 0 };
                ways += world
                    .interrupt(meanwhile, cpu)
                    .and_then(|()| world.explore(reach, then, near))
                    .map_err(|what| format!("at {here:#x}, {meanwhile:?}, CPU {cpu}: {what}"))?;
            }
            if self.threads[0].returned() {
                return self.judge().map(|()| ways + 1);
            }
            self.step(0)?;
        }
        Err("an attempt does not end".into())
    }
}

/// How many ways through the case were walked, or the first that is wrong.
fn holds(code: &Code, case: &Case, reach: Reach) -> Result<usize> {
    let (window, _) = trace(code, case)?;
    // The lea of the descriptor, and what stands between it and the window.
    let near = window.start - 32..window.end() + 1;
    let mut ways = 0;
    for start in starts(case.shape) {
        let mut world = World::new(code, case, *start);
        world.begin(0, MAIN, case);
        ways += world.explore(reach, reach.interruptions, &near)?;
    }
    if case.shape == Shape::Restripe {
        // A CPU without a stripe: there is nothing that %gs could point at.
        let mut world = World::new(code, case, Start { cpu: CPUS, striped: None });
        world.begin(0, MAIN, case);
        if world.run(0)?.done != 0 || world.striped(0) != NOT_STRIPED {
            return Err("striped for a CPU that has no stripe".into());
        }
    }
    Ok(ways)
}

#[test]
fn every_interruption_of_every_window() {
    let code = Code::default();
    for case in CASES.iter() {
        match holds(&code, case, Reach::of(case)) {
            Ok(ways) => println!("{}: {ways} ways", case.name),
            Err(what) => panic!("{}: {what}", case.name),
        }
    }
}

/// The rows of an operation, together, pass every instruction of its window.
#[test]
fn every_instruction_is_passed() {
    let code = Code::default();
    for case in CASES.iter().chain(planted::RIGHT) {
        let rows = CASES.iter().chain(planted::RIGHT);
        let rows = rows.filter(|row| row.operation() == case.operation());
        let mut left: Vec<String> = Vec::new();
        for (n, row) in rows.enumerate() {
            let (window, passed) = trace(&code, row).unwrap();
            let unpassed = |at: &u64| !passed.contains(at);
            let place = |at: u64| format!("{:#x} {}", at - window.start, code.instruction(at));
            let missed: Vec<_> = instructions(&code, &window).filter(unpassed).map(place).collect();
            if n == 0 {
                left = missed;
            } else {
                left.retain(|place| missed.contains(place));
            }
        }
        assert_eq!(left, [""; 0], "no row of {} passes these", case.operation());
    }
}

#[test]
fn planted_windows_are_judged_rightly() {
    let code = Code::default();
    for case in planted::RIGHT {
        let found = holds(&code, case, Reach::of(case));
        assert!(found.is_ok(), "{}: {found:?}", case.name);
    }
    for case in planted::WRONG {
        let found = rejected(&[(case, Code::default())]);
        println!("{}: {}", case.name, found.expect("it is wrong"));
    }
}

/// Why one of these rows is rejected, by the shortest walk that does.
fn rejected(rows: &[(&Case, Code)]) -> Option<String> {
    let farther = [Reach::NEAR, Reach { cpus: 2, ..Reach::FAR }, Reach::FAR];
    let wrong = |reach| rows.iter().find_map(|(case, code)| holds(code, case, reach).err());
    farther.into_iter().find_map(wrong)
}

const NOP: u8 = 0x90;

/// Each window of the table, spoilt in its bytes or its descriptor: what was done, and the
/// code.
fn spoilt(code: &Code, case: &Case) -> Vec<(&'static str, Code)> {
    let (window, passed) = trace(code, case).unwrap();
    let erase = |at: u64| (at..code.instruction(at).next_ip()).map(|at| (at, NOP));
    let all: Vec<u64> = instructions(code, &window).collect();
    let store = passed[passed.iter().position(|&at| at == window.start).unwrap() - 1];
    let to_abort = |at: &&u64| {
        let instruction = code.instruction(**at);
        instruction.is_jcc_short_or_near() && instruction.near_branch_target() == window.abort
    };
    let jump = *all.iter().find(to_abort).expect("a window that can abort");
    let descriptor = |start: u64, end: u64| {
        let words = [start, end - start].map(u64::to_le_bytes).concat();
        (window.descriptor + 8..).zip(words).collect::<Vec<_>>()
    };
    let last = *all.last().unwrap();
    let mut spoilt = vec![
        ("nothing compares the CPU", Code::patched(erase(jump))),
        ("nothing arms the window", Code::patched(erase(store))),
    ];
    // One load is right wherever the window ends.
    let listed = all.iter().map(|&at| code.instruction(at)).collect::<Vec<_>>();
    if !rules::stores(&listed) {
        return spoilt;
    }
    spoilt.extend([
        ("it begins late", Code::patched(descriptor(all[1], window.end()))),
        ("it ends before the commit", Code::patched(descriptor(window.start, last))),
        (
            "it ends behind the commit",
            Code::patched(descriptor(window.start, code.instruction(window.end()).next_ip())),
        ),
    ]);
    spoilt
}

/// Each fault is found on one of the ways through its window: not all come to the commit.
#[test]
fn spoilt_windows_are_rejected() {
    let code = Code::default();
    let mut faults: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for case in CASES.iter() {
        for (what, spoilt) in spoilt(&code, case) {
            faults.entry((case.operation(), what)).or_default().push((case, spoilt));
        }
    }
    for ((operation, what), rows) in faults {
        assert!(rejected(&rows).is_some(), "{operation}, where {what}, was accepted");
    }
}
