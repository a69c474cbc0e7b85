//! A machine that executes this process's own code in a memory of its own: registers, flags,
//! `%fs` and `%gs` of several threads on several CPUs, and what the kernel does to a window
//! that it interrupts. [`execute`](crate::execute) has the instructions.

use std::cell::RefCell;
use std::collections::BTreeMap;

use iced_x86::Instruction;
use unmerged::abi::rseq::{CPU_ID, CPU_ID_START, RSEQ_CS, SIGNATURE};

use crate::execute::{Flags, Step};
use crate::image;

/// What a run ends with if the code breaks a rule, or is beyond this machine.
pub(crate) type Result<T> = std::result::Result<T, String>;

/// Where a call returns to: an address of no code.
const RETURN: u64 = 0xdead_0000;

/// More than the instructions of a call and what it calls.
const REMAINDERS: usize = 4096;

/// The code: the image of this process, with bytes changed where a test spoils it.
#[derive(Debug, Default)]
pub(crate) struct Code {
    patches: BTreeMap<u64, u8>,
    /// The last instruction of each remainder, with its address.
    decoded: RefCell<Vec<(u64, Instruction)>>,
}

impl Code {
    pub(crate) fn patched(patches: impl IntoIterator<Item = (u64, u8)>) -> Self {
        Self { patches: patches.into_iter().collect(), decoded: RefCell::default() }
    }

    pub(crate) fn byte(&self, address: u64) -> Option<u8> {
        let own = || image::bytes::<1>(address).map(|[byte]| byte);
        self.patches.get(&address).copied().or_else(own)
    }

    pub(crate) fn instruction(&self, address: u64) -> Instruction {
        let mut decoded = self.decoded.borrow_mut();
        decoded.resize(REMAINDERS, (0, Instruction::default()));
        let slot = &mut decoded[address as usize % REMAINDERS];
        if slot.0 != address {
            *slot = (address, image::decode(address, |at| self.byte(at)));
        }
        slot.1
    }

    /// The descriptor at this address.
    pub(crate) fn window(&self, descriptor: u64) -> Result<Window> {
        let word = |n: u64| {
            let mut bytes = [0; 8];
            for (byte, at) in bytes.iter_mut().zip(descriptor + n * 8..) {
                *byte = self.byte(at).ok_or("rseq_cs leads out of the image")?;
            }
            Ok::<_, String>(u64::from_le_bytes(bytes))
        };
        if !descriptor.is_multiple_of(32) || word(0)? != 0 {
            return Err(format!("no descriptor at {descriptor:#x}"));
        }
        let window = Window { descriptor, start: word(1)?, length: word(2)?, abort: word(3)? };
        let mut signature = [0; 4];
        for (byte, at) in signature.iter_mut().zip(window.abort - 4..) {
            *byte = self.byte(at).ok_or("abort_ip leads out of the image")?;
        }
        if window.contains(window.abort) || signature != SIGNATURE.to_le_bytes() {
            return Err(format!("the kernel refuses the abort address of {window:x?}"));
        }
        Ok(window)
    }
}

/// A descriptor, read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) descriptor: u64,
    pub(crate) start: u64,
    pub(crate) length: u64,
    pub(crate) abort: u64,
}

impl Window {
    pub(crate) fn contains(&self, address: u64) -> bool {
        address.wrapping_sub(self.start) < self.length
    }

    pub(crate) fn end(&self) -> u64 {
        self.start + self.length
    }
}

/// Memory of the machine, apart from the image.
#[derive(Debug, Clone)]
pub(crate) struct Region {
    pub(crate) address: u64,
    pub(crate) bytes: Vec<u8>,
}

/// Memory and the rules about who may write it.
#[derive(Debug, Clone)]
pub(crate) struct Ram {
    pub(crate) regions: Vec<Region>,
    /// Index of the region that holds the stripes, which windows alone may write, each on its
    /// own CPU.
    pub(crate) stripes: usize,
    pub(crate) stride: usize,
}

impl Ram {
    pub(crate) fn find(&self, address: u64, len: usize) -> Option<(usize, usize)> {
        // Plain, because an unoptimised build spends most of its time here.
        for (n, region) in self.regions.iter().enumerate() {
            let offset = address.wrapping_sub(region.address) as usize;
            let size = region.bytes.len();
            if offset < size && len <= size - offset {
                return Some((n, offset));
            }
        }
        None
    }

    pub(crate) fn peek(&self, address: u64, len: usize) -> Option<&[u8]> {
        let (region, offset) = self.find(address, len)?;
        Some(&self.regions[region].bytes[offset..offset + len])
    }

    /// Writes as the kernel or a test does: no rule applies. Whether the address is known.
    pub(crate) fn poke(&mut self, address: u64, bytes: &[u8]) -> bool {
        let Some((region, offset)) = self.find(address, bytes.len()) else { return false };
        self.regions[region].bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
        true
    }

    pub(crate) fn word(&self, address: u64) -> u64 {
        let bytes = self.peek(address, 8).expect("a word of the model");
        u64::from_le_bytes(bytes.try_into().unwrap())
    }
}

/// What a signal frame saves.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Context {
    pub(crate) general: [u64; 16],
    pub(crate) vector: [u128; 16],
    pub(crate) ip: u64,
    pub(crate) flags: Flags,
}

/// A thread: its context, and what a signal frame does not save.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Thread {
    pub(crate) context: Context,
    pub(crate) fs: u64,
    pub(crate) gs: u64,
    pub(crate) cpu: u32,
    /// Offset of the rseq area from `fs`.
    pub(crate) area: isize,
}

impl Thread {
    pub(crate) fn area_word(&self, offset: usize) -> u64 {
        self.fs.wrapping_add_signed(self.area as i64).wrapping_add(offset as u64)
    }

    /// Address of the descriptor that is armed, or 0.
    pub(crate) fn armed(&self, ram: &Ram) -> u64 {
        ram.word(self.area_word(RSEQ_CS))
    }

    /// The kernel lets it run on `cpu` from now on.
    pub(crate) fn place(&mut self, ram: &mut Ram, cpu: u32) {
        self.cpu = cpu;
        for offset in [CPU_ID_START, CPU_ID] {
            assert!(ram.poke(self.area_word(offset), &cpu.to_le_bytes()));
        }
    }

    /// The kernel preempts it or delivers a signal: a window that it is in is aborted.
    pub(crate) fn interrupt(&mut self, code: &Code, ram: &mut Ram) -> Result<()> {
        let armed = self.armed(ram);
        if armed != 0 {
            let window = code.window(armed)?;
            if window.contains(self.context.ip) {
                self.context.ip = window.abort;
            }
            assert!(ram.poke(self.area_word(RSEQ_CS), &[0; 8]));
        }
        Ok(())
    }

    /// Is about to execute the first instruction of `function`, with one argument.
    pub(crate) fn call(&mut self, ram: &mut Ram, function: u64, stack: u64, argument: u64) {
        self.context = Context::default();
        self.context.general[4] = stack - 8;
        self.context.general[7] = argument;
        self.context.ip = function;
        assert!(ram.poke(stack - 8, &RETURN.to_le_bytes()));
    }

    pub(crate) fn returned(&self) -> bool {
        self.context.ip == RETURN
    }

    /// The two registers that carry a return value.
    pub(crate) fn result(&self) -> (u64, u64) {
        (self.context.general[0], self.context.general[2])
    }

    /// Executes one instruction.
    pub(crate) fn step(&mut self, code: &Code, ram: &mut Ram) -> Result<()> {
        let ip = self.context.ip;
        let instruction = code.instruction(ip);
        if instruction.is_invalid() && code.byte(ip).is_none() {
            return Err(format!("goes to {ip:#x}, out of this program's own code"));
        }
        let step = Step { thread: self, code, ram, instruction: &instruction };
        step.execute().map_err(|what| format!("{:#x} {instruction}: {what}", instruction.ip()))
    }
}
