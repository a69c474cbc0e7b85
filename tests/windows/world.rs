//! What the model knows: threads and memory of the [`machine`](crate::machine), the kernel
//! around them, and what finished operations must leave.

use unmerged::abi::rseq::Rseq;
use unmerged::arch::{self, NOT_STRIPED};

use crate::cases::{Answer, CASES, Case, Memory, Operands, RESTRIPE, STRIDE, Shape};
use crate::machine::{Code, Context, Ram, Region, Result, Thread, Window};

/// CPUs with a stripe. The machine has one more, which has none.
pub(crate) const CPUS: u32 = 3;

const STRIPES: usize = 0x5000_0000_0000;
/// Thread pointers of the two threads.
const POINTERS: [u64; 2] = [0x6000_0000_0000, 0x6100_0000_0000];
/// Where libc might have put the rseq area.
const AREA: isize = 0x100;
/// Bytes of each of a thread's words that are there: the rseq area, and `striped_cpu`.
const WORDS: usize = size_of::<Rseq>();

/// Who calls: each caller has a stack, operands and memory of its own.
pub(crate) const MAIN: usize = 0;
const HANDLER: usize = 1;
const OTHER: usize = 2;
const FRAMES: [u64; 3] = [0x7000_0000_0000, 0x7100_0000_0000, 0x7200_0000_0000];
const STACK: usize = 0x400;
const OWN: usize = STACK + 64;

/// More than any attempt takes.
pub(crate) const STEPS: usize = 5000;
/// Attempts after which an operation that nobody disturbs must be through: `%gs` may need one to
/// see that it points elsewhere.
const ATTEMPTS: usize = 2;

/// What happens while the thread is off its CPU.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Meanwhile {
    Nothing,
    /// The thread itself does an operation in a signal handler, on this CPU.
    Handler(u32),
    /// Another thread does an operation on this CPU.
    Other(u32),
}

/// An operation that was completed meanwhile.
#[derive(Debug, Clone, Copy)]
struct Event {
    frame: usize,
    cpu: u32,
    answer: Answer,
}

/// How the thread begins.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Start {
    pub(crate) cpu: u32,
    /// The CPU for which it is striped.
    pub(crate) striped: Option<u32>,
}

/// The thread under test, all around it, and what happened so far.
#[derive(Debug, Clone)]
pub(crate) struct World<'a> {
    code: &'a Code,
    case: &'a Case,
    /// What handlers and other threads do.
    rival: &'a Case,
    start: Start,
    ram: Ram,
    pub(crate) threads: [Thread; 2],
    /// CPUs that the thread was on.
    visited: Vec<u32>,
    events: Vec<Event>,
}

fn stripe(cpu: u32) -> usize {
    STRIPES + cpu as usize * STRIDE
}

fn own_memory(frame: usize) -> usize {
    FRAMES[frame] as usize + OWN
}

/// Offset of `striped_cpu` from the thread pointer: behind our own rseq area.
fn striped_cpu() -> isize {
    arch::own_area_offset() + size_of::<Rseq>() as isize
}

impl<'a> World<'a> {
    pub(crate) fn new(code: &'a Code, case: &'a Case, start: Start) -> Self {
        let gs = CASES.iter().find(|case| case.shape == Shape::Gs);
        let rival = if case.shape == Shape::Restripe { gs.unwrap_or(case) } else { case };
        let region = |address, len| Region { address, bytes: vec![0; len] };
        let mut regions = vec![region(STRIPES as u64, CPUS as usize * STRIDE)];
        for pointer in POINTERS {
            for offset in [AREA, striped_cpu()] {
                regions.push(region(pointer.wrapping_add_signed(offset as i64), WORDS));
            }
        }
        regions.extend(FRAMES.map(|frame| region(frame, OWN + STRIDE)));
        let thread = |fs| Thread { context: Context::default(), fs, gs: 0, cpu: 0, area: AREA };
        let mut world = Self {
            code,
            case,
            rival,
            start,
            ram: Ram { regions, stripes: 0, stride: STRIDE },
            threads: POINTERS.map(thread),
            visited: vec![start.cpu],
            events: Vec::new(),
        };
        for thread in 0..2 {
            world.set_striped(thread, NOT_STRIPED);
            world.place(thread, start.cpu);
        }
        if let Some(cpu) = start.striped {
            world.set_striped(0, cpu);
            world.threads[0].gs = stripe(cpu) as u64;
        }
        let (stripes, _) = prepared(rival, MAIN);
        for memory in stripes {
            assert!(world.ram.poke(memory.address as u64, &memory.bytes));
        }
        world
    }

    pub(crate) fn shape(&self) -> Shape {
        self.case.shape
    }

    fn place(&mut self, thread: usize, cpu: u32) {
        self.threads[thread].place(&mut self.ram, cpu);
    }

    fn set_striped(&mut self, thread: usize, cpu: u32) {
        let word = self.threads[thread].fs.wrapping_add_signed(striped_cpu() as i64);
        assert!(self.ram.poke(word, &cpu.to_le_bytes()));
    }

    pub(crate) fn striped(&self, thread: usize) -> u32 {
        let word = self.threads[thread].fs.wrapping_add_signed(striped_cpu() as i64);
        self.ram.word(word) as u32
    }

    fn memory(&self, address: usize) -> Memory {
        let bytes = self.ram.peek(address as u64, STRIDE).unwrap();
        Memory { address, bytes: bytes.try_into().unwrap() }
    }

    /// Puts the thread in front of an attempt.
    pub(crate) fn begin(&mut self, thread: usize, frame: usize, case: &Case) {
        let operands = Operands {
            area: AREA,
            striped_cpu: striped_cpu(),
            cpu: self.threads[thread].cpu,
            cpus: CPUS,
            stripes: STRIPES,
            buffer: own_memory(frame),
        };
        // SAFETY: plain numbers without padding between them.
        let bytes: [u8; size_of::<Operands>()] = unsafe { std::mem::transmute(operands) };
        let at = FRAMES[frame] + STACK as u64;
        assert!(self.ram.poke(at, &bytes));
        let (_, own) = prepared(case, frame);
        assert!(self.ram.poke(own.address as u64, &own.bytes));
        let function = (case.call as *const ()).expose_provenance() as u64;
        self.threads[thread].call(&mut self.ram, function, at - 64, at);
    }

    pub(crate) fn step(&mut self, thread: usize) -> Result<()> {
        self.threads[thread].step(self.code, &mut self.ram)
    }

    fn answer(&self, thread: usize) -> Answer {
        let (done, value) = self.threads[thread].result();
        Answer { done, value }
    }

    pub(crate) fn run(&mut self, thread: usize) -> Result<Answer> {
        for _ in 0..STEPS {
            if self.threads[thread].returned() {
                return Ok(self.answer(thread));
            }
            self.step(thread)?;
        }
        Err("an attempt does not end".into())
    }

    /// An operation with its retries, undisturbed.
    fn complete(&mut self, thread: usize, frame: usize, case: &Case) -> Result<Answer> {
        for _ in 0..ATTEMPTS {
            self.begin(thread, frame, case);
            let answer = self.run(thread)?;
            if answer.done == 1 {
                return Ok(answer);
            }
            if case.shape == Shape::Gs {
                self.begin(thread, frame, &RESTRIPE);
                self.run(thread)?;
            }
        }
        Err(format!("{} is aborted again and again", case.name))
    }

    /// Wherever somebody may look, a thread that counts as striped is striped so.
    fn words_agree(&self) -> Result<()> {
        for thread in 0..2 {
            let (striped, gs) = (self.striped(thread), self.threads[thread].gs);
            if striped != NOT_STRIPED && (striped >= CPUS || gs != stripe(striped) as u64) {
                return Err(format!("striped for CPU {striped}, but the GS base is {gs:#x}"));
            }
        }
        Ok(())
    }

    pub(crate) fn interrupt(&mut self, meanwhile: Meanwhile, cpu: u32) -> Result<()> {
        self.threads[0].interrupt(self.code, &mut self.ram)?;
        self.words_agree()?;
        let (frame, on, answer) = match meanwhile {
            Meanwhile::Nothing => (MAIN, cpu, None),
            Meanwhile::Handler(on) => {
                let context = self.threads[0].context;
                self.place(0, on);
                let answer = self.complete(0, HANDLER, self.rival)?;
                self.threads[0].context = context;
                (HANDLER, on, Some(answer))
            }
            Meanwhile::Other(on) => {
                self.threads[1].interrupt(self.code, &mut self.ram)?;
                self.place(1, on);
                (OTHER, on, Some(self.complete(1, OTHER, self.rival)?))
            }
        };
        if let Some(answer) = answer {
            self.events.push(Event { frame, cpu: on, answer });
        }
        if self.threads[0].cpu != cpu {
            self.threads[0].interrupt(self.code, &mut self.ram)?;
            self.place(0, cpu);
        }
        self.visited.push(cpu);
        self.words_agree()
    }

    /// Is this what the events leave, with the operation itself on `at.1` before event
    /// `at.0`, or without it?
    fn is_sequential(&self, at: Option<(usize, u32, Answer)>) -> bool {
        let (mut stripes, mut own) = prepared(self.rival, MAIN);
        let itself = |stripes: &mut [Memory], own: &mut Memory, cpu: u32| {
            (self.case.apply)(&mut stripes[cpu as usize], own)
        };
        for n in 0..=self.events.len() {
            if let Some((position, cpu, answer)) = at
                && position == n
                && itself(&mut stripes, &mut own, cpu) != answer.value
            {
                return false;
            }
            let Some(event) = self.events.get(n) else { break };
            let (_, mut theirs) = prepared(self.rival, event.frame);
            let value = (self.rival.apply)(&mut stripes[event.cpu as usize], &mut theirs);
            if value != event.answer.value {
                return false;
            }
        }
        let same = stripes.iter_mut().all(|expected| {
            let mut found = self.memory(expected.address);
            (self.rival.forget)(expected);
            (self.rival.forget)(&mut found);
            found == *expected
        });
        same && (at.is_none() || self.memory(own.address) == own)
    }

    /// The attempt is over: did it do what it says? If it was aborted, it is made again.
    pub(crate) fn judge(mut self) -> Result<()> {
        self.words_agree()?;
        let answer = self.answer(0);
        let what = |world: &Self, what: &str| Err(format!("{what}: {:?}", world.events));
        if answer.done == 1 {
            if self.case.shape == Shape::Restripe {
                let lost = self.striped(0) == NOT_STRIPED;
                return if lost { what(&self, "done, but not striped") } else { Ok(()) };
            }
            return self.done_once(answer);
        }
        if !self.is_sequential(None) {
            return what(&self, "an aborted attempt left something behind");
        }
        if self.case.shape == Shape::Restripe {
            let by_handler = self.events.iter().rev().find(|event| event.frame == HANDLER);
            let before = by_handler.map_or(self.start.striped, |event| Some(event.cpu));
            let striped = self.striped(0);
            if striped != NOT_STRIPED && Some(striped) != before {
                return what(&self, "an aborted attempt has striped the thread");
            }
        }
        if self.case.shape == Shape::Gs {
            self.begin(0, MAIN, &RESTRIPE);
            self.run(0)?;
        }
        let answer = self.complete(0, MAIN, self.case)?;
        if self.case.shape == Shape::Restripe {
            self.words_agree()?;
            let right = self.striped(0) == self.threads[0].cpu;
            return if right { Ok(()) } else { what(&self, "striped for another CPU") };
        }
        self.done_once(answer)
    }

    fn done_once(&self, answer: Answer) -> Result<()> {
        let orders =
            (0..=self.events.len()).flat_map(|n| self.visited.iter().map(move |c| (n, *c)));
        let found = orders.into_iter().any(|(n, cpu)| self.is_sequential(Some((n, cpu, answer))));
        if found { Ok(()) } else { Err(format!("not done once: {answer:?} {:?}", self.events)) }
    }
}

/// Stripes and a caller's memory before the first operation.
fn prepared(case: &Case, frame: usize) -> (Vec<Memory>, Memory) {
    let mut own = Memory::zero(0);
    let stripes = (0..CPUS).map(|cpu| {
        let mut memory = Memory::zero(stripe(cpu));
        own = Memory::zero(own_memory(frame));
        (case.prepare)(&mut memory, &mut own);
        memory
    });
    (stripes.collect(), own)
}

pub(crate) fn starts(shape: Shape) -> &'static [Start] {
    match shape {
        Shape::Cpu => &[Start { cpu: 0, striped: None }],
        Shape::Gs => &[Start { cpu: 0, striped: Some(0) }],
        Shape::Restripe => &[
            Start { cpu: 0, striped: None },
            Start { cpu: 0, striped: Some(1) },
            Start { cpu: 2, striped: Some(2) },
        ],
    }
}

/// Which window a call uses, and the instructions of one undisturbed attempt.
pub(crate) fn trace(code: &Code, case: &Case) -> Result<(Window, Vec<u64>)> {
    let mut world = World::new(code, case, starts(case.shape)[0]);
    world.begin(0, MAIN, case);
    let mut passed = Vec::new();
    while !world.threads[0].returned() {
        if passed.len() > STEPS {
            return Err("an attempt does not end".into());
        }
        passed.push(world.threads[0].context.ip);
        world.step(0)?;
    }
    let window = code.window(world.threads[0].armed(&world.ram))?;
    Ok((window, passed))
}

/// Addresses of a window's instructions.
pub(crate) fn instructions(code: &Code, window: &Window) -> impl Iterator<Item = u64> {
    let next =
        move |at: &u64| Some(code.instruction(*at).next_ip()).filter(|at| window.contains(*at));
    std::iter::successors(Some(window.start), next)
}
