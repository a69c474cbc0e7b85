//! Every instruction of every window, interrupted on the live kernel.
//!
//! A forked child makes one attempt after another; this thread traces it. For each instruction
//! of the window the child runs into a breakpoint there. The stop itself is a preemption; beyond
//! it the child may be moved to another CPU or get a signal. Then it goes on, as if there had been no
//! breakpoint, and must find itself at the abort address, with nothing done; right behind the
//! commit it must not, and the operation is done.
//!
//! A stop aborts the window, so an instruction of a loop is interrupted the first time that it
//! is passed; the model has the others.

use unmerged::arch::NOT_STRIPED;
use unmerged::sys::{features::features, gs, rseq};

use crate::cases::{Answer, CASES, Case, Memory, STRIDE, Shape};
use crate::common::missing;
use crate::machine::{Code, Result, Window};
use crate::tracer::{ATTEMPTS, Stop, Tracer, allowed, case, ensure, rows};
use crate::{image, planted, world};

/// What befalls the child at the breakpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// It is scheduled out, and goes on where it was.
    Preempted,
    /// It goes on somewhere else.
    Moved,
    /// It has a signal to handle first.
    Signalled,
}

/// Published contents only.
fn published(case: &Case, mut stripes: Vec<Memory>) -> Vec<Memory> {
    stripes.iter_mut().for_each(case.forget);
    stripes
}

/// One attempt of `case`, with `way` at the breakpoint `at`. `false` if something else
/// interrupted it before.
fn run(
    tracer: &mut Tracer,
    index: usize,
    window: &Window,
    at: u64,
    way: Way,
    cpus: [u32; 2],
) -> Result<bool> {
    let case = case(index).expect("a row");
    tracer.set_breakpoints(&[]);
    tracer.pin(cpus[0]);
    let (before, own) = tracer.prepare(index, case);
    tracer.expect_stage(0)?;
    tracer.set_breakpoints(&[at, window.abort]);
    match tracer.go_on(0) {
        Stop::Breakpoint(ip) if ip == at => {}
        // The machine has other things to do: the attempt was aborted on its own.
        Stop::Breakpoint(ip) if ip == window.abort => return tracer.finish(ip),
        stop => return Err(format!("{stop:?} instead of the breakpoint")),
    }
    tracer.set_breakpoints(&[window.abort]);
    tracer.set_ip(at);
    if way == Way::Moved {
        tracer.pin(cpus[1]);
    }
    let (inside, behind) = (window.contains(at), passed_commit(window, at));
    let stop = tracer.go_on(if way == Way::Signalled { libc::SIGUSR1 } else { 0 });
    let aborted = stop == Stop::Breakpoint(window.abort);
    if aborted {
        let found = published(case, tracer.stripes());
        ensure!(found == published(case, before.clone()), "aborted, but not undone");
        if case.shape == Shape::Restripe {
            ensure!(tracer.striped() == NOT_STRIPED, "aborted, but striped");
        }
        ensure!(!behind, "aborted behind the commit");
        // In front of the window, another CPU is noticed by the compare.
        let elsewhere = way == Way::Moved && case.shape != Shape::Restripe;
        if !inside && !elsewhere {
            return tracer.finish(window.abort);
        }
        tracer.set_breakpoints(&[]);
        tracer.set_ip(window.abort);
        tracer.expect_stage(0)?;
    } else {
        ensure!(stop == Stop::Stage, "{stop:?} instead of its end");
        ensure!(!inside, "the kernel did not abort it");
        tracer.set_breakpoints(&[]);
    }
    let done = tracer.shared().answer.done;
    ensure!(done == u64::from(!aborted), "aborted: {aborted}, but the answer is {done}");
    // The retry, if there must be one.
    tracer.expect_stage(0)?;
    // Where it was when it committed.
    let cpu = if way == Way::Moved && !behind { cpus[1] } else { cpus[0] };
    done_once(tracer, case, cpu, before, own)?;
    Ok(true)
}

/// Is this stop behind the window? In front of it, there is but one.
fn passed_commit(window: &Window, at: u64) -> bool {
    !window.contains(at) && (at >= window.end() || at < window.start - image::LONGEST as u64)
}

/// The operation was done once, on `cpu`.
fn done_once(
    tracer: &Tracer,
    case: &Case,
    cpu: u32,
    mut expected: Vec<Memory>,
    mut own: Memory,
) -> Result<()> {
    let value = (case.apply)(&mut expected[cpu as usize], &mut own);
    let shared = tracer.shared();
    let answer = Answer { done: 1, value };
    ensure!(shared.answer == answer, "{:?} instead of {answer:?}", shared.answer);
    let found = published(case, tracer.stripes());
    ensure!(found == published(case, expected), "not done once on CPU {cpu}");
    ensure!(tracer.own() == own, "the caller's memory is wrong");
    if case.shape == Shape::Restripe {
        let base = shared.operands.stripes + cpu as usize * STRIDE;
        let (striped, gs) = (shared.striped, shared.gs);
        ensure!((striped, gs) == (cpu, base), "striped for {striped}, GS base {gs:#x}");
    }
    Ok(())
}

/// Where to stop: the store that arms the window, each instruction of it that the case passes,
/// and the first behind it.
fn stops(code: &Code, case: &Case) -> Result<(Window, Vec<u64>)> {
    let (window, passed) = world::trace(code, case)?;
    let first = passed.iter().position(|&at| at == window.start).ok_or("no window")?;
    let rest = &passed[first..];
    let inside = rest.iter().position(|&at| !window.contains(at)).ok_or("no end")?;
    let mut stops = passed[first - 1..=first + inside].to_vec();
    let mut seen = Vec::new();
    stops.retain(|at| {
        let first = !seen.contains(at);
        seen.push(*at);
        first
    });
    Ok((window, stops))
}

/// A traced child, and the CPUs that it is moved between; says so where there is none.
fn start() -> Option<(Tracer, [u32; 2], bool)> {
    const INSTEAD: &str = "the model alone";
    if !rseq::ensure_registered() {
        missing("rseq", INSTEAD);
        return None;
    }
    let with_gs = features().gs == gs::Claim::Free;
    if !with_gs {
        missing("fsgsbase", "the windows without %gs");
    }
    let cpus = allowed();
    if cpus.len() < 2 {
        missing("two-cpus", "preemptions and signals");
    }
    let tracer = Tracer::start(features().cpus.end(), with_gs);
    if tracer.is_none() {
        missing("ptrace", INSTEAD);
    }
    Some((tracer?, [cpus[0], *cpus.last()?], with_gs))
}

/// All ways at all stops of a row; how many, or what is wrong.
fn holds(tracer: &mut Tracer, index: usize, cpus: [u32; 2]) -> Result<usize> {
    let code = Code::default();
    let (window, stops) = stops(&code, case(index).expect("a row"))?;
    let mut runs = 0;
    for at in stops {
        for way in [Way::Preempted, Way::Moved, Way::Signalled] {
            if way == Way::Moved && cpus[0] == cpus[1] {
                continue;
            }
            let place = at.wrapping_sub(window.start).cast_signed();
            let wrong = |what| format!("{way:?} at window {place:+}: {what}");
            let mut ran = false;
            for _ in 0..ATTEMPTS {
                ran = run(tracer, index, &window, at, way, cpus).map_err(wrong)?;
                if ran {
                    break;
                }
            }
            ensure!(ran, "{ATTEMPTS} attempts were disturbed");
            runs += 1;
        }
    }
    Ok(runs)
}

#[test]
fn every_instruction_on_the_live_kernel() {
    let Some((mut tracer, cpus, with_gs)) = start() else { return };
    for (index, case) in CASES.iter().enumerate() {
        if case.shape != Shape::Cpu && !with_gs {
            continue;
        }
        match holds(&mut tracer, index, cpus) {
            Ok(runs) => println!("{}: {runs} interruptions", case.name),
            Err(what) => panic!("{}: {what}", case.name),
        }
    }
    tracer.end();
}

/// Those that an abort alone shows to be wrong are found here too.
#[test]
fn planted_windows_on_the_live_kernel() {
    let Some((mut tracer, cpus, with_gs)) = start() else { return };
    for (index, case) in (0..).zip(rows()).skip(CASES.len()) {
        if index < CASES.len() + planted::RIGHT.len() {
            if case.shape == Shape::Cpu || with_gs {
                let found = holds(&mut tracer, index, cpus);
                assert!(found.is_ok(), "{}: {found:?}", case.name);
            }
        } else if ["counts_first", "publishes_twice", "ends_late"].contains(&case.name) {
            let found = holds(&mut tracer, index, cpus);
            assert!(found.is_err(), "{} was accepted", case.name);
            println!("{}: {}", case.name, found.unwrap_err());
            // It may have stopped anywhere.
            (tracer, ..) = start().expect("as before");
        }
    }
    tracer.end();
}
