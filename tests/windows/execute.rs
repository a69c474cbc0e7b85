//! The instructions of the [`machine`](crate::machine): those that windows and the functions
//! around them are made of, in every build. Another one is an error that names it.

use iced_x86::{ConditionCode, Instruction, Mnemonic, OpKind, Register};
use unmerged::abi::rseq::{RSEQ_CS, Rseq};

use crate::machine::{Code, Ram, Result, Thread};

/// The arithmetic flags.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Flags {
    carry: bool,
    zero: bool,
    sign: bool,
    overflow: bool,
    parity: bool,
}

/// The low `width` bytes of a value.
fn low(value: u128, width: usize) -> u128 {
    if width >= 16 { value } else { value & ((1 << (width * 8)) - 1) }
}

fn extend(value: u128, width: usize) -> i128 {
    let shift = 128 - width as u32 * 8;
    (value as i128) << shift >> shift
}

/// One instruction, about to be executed.
pub(crate) struct Step<'a> {
    pub(crate) thread: &'a mut Thread,
    pub(crate) code: &'a Code,
    pub(crate) ram: &'a mut Ram,
    pub(crate) instruction: &'a Instruction,
}

impl Step<'_> {
    fn width(&self, operand: u32) -> usize {
        match self.instruction.op_kind(operand) {
            OpKind::Register => self.instruction.op_register(operand).size(),
            OpKind::Memory => self.instruction.memory_size().size(),
            OpKind::Immediate8 => 1,
            _ => 8,
        }
    }

    fn register(&self, register: Register) -> u128 {
        if register.is_xmm() {
            return self.thread.context.vector[register.number()];
        }
        let whole = self.thread.context.general[register.full_register().number()];
        let high = matches!(register, Register::AH | Register::BH | Register::CH | Register::DH);
        low(u128::from(if high { whole >> 8 } else { whole }), register.size())
    }

    fn set_register(&mut self, register: Register, value: u128) {
        if register.is_xmm() {
            self.thread.context.vector[register.number()] = value;
            return;
        }
        let whole = &mut self.thread.context.general[register.full_register().number()];
        let value = value as u64;
        *whole = match register {
            Register::AH | Register::BH | Register::CH | Register::DH => {
                *whole & !0xff00 | (value & 0xff) << 8
            }
            _ => match register.size() {
                1 => *whole & !0xff | value & 0xff,
                2 => *whole & !0xffff | value & 0xffff,
                // A write of 32 bits clears the rest.
                4 => value & 0xffff_ffff,
                _ => value,
            },
        };
    }

    /// Address of the memory operand; for `lea` without the base of its segment.
    fn address(&self, operand: u32, with_segment: bool) -> Result<u64> {
        let base = |register: Register| match register {
            Register::FS if with_segment => self.thread.fs,
            Register::GS if with_segment => self.thread.gs,
            _ if register.is_segment_register() => 0,
            _ => self.register(register) as u64,
        };
        let address = self.instruction.virtual_address(operand, 0, |r, _, _| Some(base(r)));
        address.ok_or_else(|| "an address of a kind that is not known".to_owned())
    }

    fn load(&self, address: u64, width: usize) -> Result<u128> {
        if let (Some(owner), here) = (self.owner(address, width), self.thread.cpu as usize)
            && owner != here
            && self.is_in_window()?
        {
            return Err(format!("a window reads the stripe of CPU {owner} on CPU {here}"));
        }
        let mut bytes = [0; 16];
        if let Some(found) = self.ram.peek(address, width) {
            bytes[..width].copy_from_slice(found);
        } else {
            for (byte, at) in bytes[..width].iter_mut().zip(address..) {
                let found = self.code.byte(at);
                *byte = found.ok_or_else(|| format!("reads {at:#x}, which is nothing"))?;
            }
        }
        Ok(u128::from_le_bytes(bytes))
    }

    fn store(&mut self, address: u64, value: u128, width: usize) -> Result<()> {
        self.may_store(address, width)?;
        let known = self.ram.poke(address, &value.to_le_bytes()[..width]);
        if known { Ok(()) } else { Err(format!("writes {address:#x}, which is nothing")) }
    }

    /// A stripe is written on its CPU, inside a window that is armed, and nowhere else. Of the
    /// rseq area, a thread writes `rseq_cs`.
    fn may_store(&self, address: u64, width: usize) -> Result<()> {
        let area = self.thread.area_word(0);
        let end = area + size_of::<Rseq>() as u64;
        if address < end && address + width as u64 > area && address != area + RSEQ_CS as u64 {
            return Err("writes a word of the rseq area that is the kernel's".into());
        }
        let Some(owner) = self.owner(address, width) else { return Ok(()) };
        let here = self.thread.cpu as usize;
        if owner != here {
            return Err(format!("writes the stripe of CPU {owner} on CPU {here}"));
        }
        if !self.is_in_window()? {
            return Err("writes a stripe outside of a window".into());
        }
        Ok(())
    }

    /// Whose stripe this is in.
    fn owner(&self, address: u64, width: usize) -> Option<usize> {
        let (region, offset) = self.ram.find(address, width)?;
        (region == self.ram.stripes).then_some(offset / self.ram.stride)
    }

    /// Is this instruction in the window that is armed?
    fn is_in_window(&self) -> Result<bool> {
        let armed = self.thread.armed(self.ram);
        Ok(armed != 0 && self.code.window(armed)?.contains(self.instruction.ip()))
    }

    fn read(&self, operand: u32) -> Result<u128> {
        let width = self.width(operand);
        match self.instruction.op_kind(operand) {
            OpKind::Register => Ok(self.register(self.instruction.op_register(operand))),
            OpKind::Memory => self.load(self.address(operand, true)?, width),
            OpKind::NearBranch64 => Ok(u128::from(self.instruction.near_branch_target())),
            _ => self
                .instruction
                .try_immediate(operand)
                .map(u128::from)
                .map_err(|_| "an operand of a kind that is not known".to_owned()),
        }
    }

    fn write(&mut self, operand: u32, value: u128) -> Result<()> {
        let width = self.width(operand);
        match self.instruction.op_kind(operand) {
            OpKind::Register => {
                let register = self.instruction.op_register(operand);
                self.set_register(register, value);
                Ok(())
            }
            _ => self.store(self.address(operand, true)?, low(value, width), width),
        }
    }

    fn set_result_flags(&mut self, value: u128, width: usize) {
        let flags = &mut self.thread.context.flags;
        flags.zero = low(value, width) == 0;
        flags.sign = extend(value, width) < 0;
        flags.parity = (value as u8).count_ones().is_multiple_of(2);
    }

    fn logic(&mut self, value: u128, width: usize) {
        self.set_result_flags(value, width);
        self.thread.context.flags.carry = false;
        self.thread.context.flags.overflow = false;
    }

    /// `a + b + carry`, with flags.
    fn add(&mut self, a: u128, b: u128, carry: bool, width: usize) -> u128 {
        let (a, b) = (low(a, width), low(b, width));
        let sum = a + b + u128::from(carry);
        self.set_result_flags(sum, width);
        let flags = &mut self.thread.context.flags;
        flags.carry = sum != low(sum, width);
        let signed = extend(a, width) + extend(b, width) + i128::from(carry);
        flags.overflow = signed != extend(sum, width);
        low(sum, width)
    }

    /// `a - b - borrow`, with flags.
    fn subtract(&mut self, a: u128, b: u128, borrow: bool, width: usize) -> u128 {
        let (a, b) = (low(a, width), low(b, width));
        let difference = a.wrapping_sub(b).wrapping_sub(u128::from(borrow));
        self.set_result_flags(difference, width);
        let flags = &mut self.thread.context.flags;
        flags.carry = a < b + u128::from(borrow);
        let signed = extend(a, width) - extend(b, width) - i128::from(borrow);
        flags.overflow = signed != extend(difference, width);
        low(difference, width)
    }

    fn condition(&self) -> Result<bool> {
        use ConditionCode as Is;
        let flags = self.thread.context.flags;
        Ok(match self.instruction.condition_code() {
            Is::o => flags.overflow,
            Is::no => !flags.overflow,
            Is::b => flags.carry,
            Is::ae => !flags.carry,
            Is::e => flags.zero,
            Is::ne => !flags.zero,
            Is::be => flags.carry || flags.zero,
            Is::a => !flags.carry && !flags.zero,
            Is::s => flags.sign,
            Is::ns => !flags.sign,
            Is::p => flags.parity,
            Is::np => !flags.parity,
            Is::l => flags.sign != flags.overflow,
            Is::ge => flags.sign == flags.overflow,
            Is::le => flags.zero || flags.sign != flags.overflow,
            Is::g => !flags.zero && flags.sign == flags.overflow,
            _ => return Err("a condition that is not known".into()),
        })
    }

    fn push(&mut self, value: u64) -> Result<()> {
        let top = self.thread.context.general[4].wrapping_sub(8);
        self.thread.context.general[4] = top;
        self.store(top, u128::from(value), 8)
    }

    fn pop(&mut self) -> Result<u64> {
        let top = self.thread.context.general[4];
        self.thread.context.general[4] = top.wrapping_add(8);
        Ok(self.load(top, 8)? as u64)
    }

    /// One round of a repeated string instruction: the processor takes interrupts between two.
    fn string(&mut self, width: usize) -> Result<bool> {
        let repeated = self.instruction.has_rep_prefix();
        let [count, to, from] = [1, 7, 6].map(|n: usize| self.thread.context.general[n]);
        if repeated && count == 0 {
            return Ok(true);
        }
        let value = self.load(from, width)?;
        self.store(to, value, width)?;
        self.thread.context.general[7] = to.wrapping_add(width as u64);
        self.thread.context.general[6] = from.wrapping_add(width as u64);
        if repeated {
            self.thread.context.general[1] = count - 1;
        }
        Ok(!repeated)
    }

    fn shift(&mut self) -> Result<()> {
        let width = self.width(0);
        let count = self.read(1)? as u32 & if width == 8 { 63 } else { 31 };
        if count == 0 {
            return Ok(());
        }
        let value = low(self.read(0)?, width);
        let bits = width as u32 * 8;
        let (result, carry) = match self.instruction.mnemonic() {
            Mnemonic::Shl => (value << count, count <= bits && value >> (bits - count) & 1 != 0),
            Mnemonic::Shr => (value >> count, value >> (count - 1) & 1 != 0),
            _ => {
                let signed = extend(value, width);
                ((signed >> count) as u128, signed >> (count - 1) & 1 != 0)
            }
        };
        self.set_result_flags(low(result, width), width);
        self.thread.context.flags.carry = carry;
        self.write(0, result)
    }

    fn multiply(&mut self) -> Result<()> {
        let width = self.width(0);
        let signed = self.instruction.mnemonic() == Mnemonic::Imul;
        let (a, b) = match self.instruction.op_count() {
            1 => (low(u128::from(self.thread.context.general[0]), width), self.read(0)?),
            2 => (self.read(0)?, self.read(1)?),
            _ => (self.read(1)?, self.read(2)?),
        };
        let (product, lost) = if signed {
            let product = extend(a, width) * extend(b, width);
            (product as u128, product != extend(product as u128, width))
        } else {
            (a * b, a * b != low(a * b, width))
        };
        self.set_result_flags(product, width);
        self.thread.context.flags.carry = lost;
        self.thread.context.flags.overflow = lost;
        if self.instruction.op_count() > 1 {
            return self.write(0, product);
        }
        if width < 4 {
            return Err("a narrow multiplication".into());
        }
        self.thread.context.general[0] = low(product, width) as u64;
        self.thread.context.general[2] = low(product >> (width * 8), width) as u64;
        Ok(())
    }

    /// `div`, which the compiler puts in front of a window, never in one.
    fn divide(&mut self) -> Result<()> {
        let (width, by) = (self.width(0), self.read(0)?);
        if width != 8 || by == 0 {
            return Err("a division that is not known".into());
        }
        let general = &mut self.thread.context.general;
        let value = u128::from(general[2]) << 64 | u128::from(general[0]);
        (general[0], general[2]) = ((value / by) as u64, (value % by) as u64);
        Ok(())
    }

    pub(crate) fn execute(mut self) -> Result<()> {
        use Mnemonic as M;
        let mut next = self.instruction.next_ip();
        let conditional = self.instruction.condition_code() != ConditionCode::None;
        let width = if self.instruction.op_count() > 0 { self.width(0) } else { 0 };
        match self.instruction.mnemonic() {
            M::Nop | M::Endbr64 => {}
            M::Mov
            | M::Movzx
            | M::Movups
            | M::Movaps
            | M::Movdqu
            | M::Movdqa
            | M::Movq
            | M::Movd => {
                let value = self.read(1)?;
                self.write(0, value)?;
            }
            M::Movsx | M::Movsxd => {
                let value = extend(self.read(1)?, self.width(1)) as u128;
                self.write(0, low(value, width))?;
            }
            M::Lea => {
                let address = self.address(1, false)?;
                self.write(0, u128::from(address))?;
            }
            M::Add | M::Adc | M::Inc => {
                let by = if self.instruction.op_count() > 1 { self.read(1)? } else { 1 };
                let flags = self.thread.context.flags;
                let carry = self.instruction.mnemonic() == M::Adc && flags.carry;
                let sum = self.add(self.read(0)?, by, carry, width);
                if self.instruction.mnemonic() == M::Inc {
                    self.thread.context.flags.carry = flags.carry;
                }
                self.write(0, sum)?;
            }
            M::Xadd => {
                let (old, by) = (self.read(0)?, self.read(1)?);
                let sum = self.add(old, by, false, width);
                self.write(1, old)?;
                self.write(0, sum)?;
            }
            M::Sub | M::Sbb | M::Cmp | M::Dec => {
                let by = if self.instruction.op_count() > 1 { self.read(1)? } else { 1 };
                let flags = self.thread.context.flags;
                let borrow = self.instruction.mnemonic() == M::Sbb && flags.carry;
                let difference = self.subtract(self.read(0)?, by, borrow, width);
                if self.instruction.mnemonic() == M::Dec {
                    self.thread.context.flags.carry = flags.carry;
                }
                if self.instruction.mnemonic() != M::Cmp {
                    self.write(0, difference)?;
                }
            }
            M::Cmpxchg => {
                let accumulator = low(u128::from(self.thread.context.general[0]), width);
                let found = self.read(0)?;
                self.subtract(accumulator, found, false, width);
                if self.thread.context.flags.zero {
                    let new = self.read(1)?;
                    self.write(0, new)?;
                } else {
                    let whole = [Register::AL, Register::AX, Register::EAX, Register::RAX];
                    self.set_register(whole[width.ilog2() as usize], found);
                }
            }
            M::Neg => {
                let value = self.read(0)?;
                let negated = self.subtract(0, value, false, width);
                self.write(0, negated)?;
            }
            M::Not => {
                let value = self.read(0)?;
                self.write(0, low(!value, width))?;
            }
            M::And | M::Or | M::Xor | M::Test | M::Xorps | M::Pxor => {
                let (a, b) = (self.read(0)?, self.read(1)?);
                let value = match self.instruction.mnemonic() {
                    M::And | M::Test => a & b,
                    M::Or => a | b,
                    _ => a ^ b,
                };
                if width < 16 {
                    self.logic(low(value, width), width);
                }
                if self.instruction.mnemonic() != M::Test {
                    self.write(0, low(value, width))?;
                }
            }
            M::Shl | M::Shr | M::Sar => self.shift()?,
            M::Imul | M::Mul => self.multiply()?,
            M::Div => self.divide()?,
            M::Xchg => {
                let (a, b) = (self.read(0)?, self.read(1)?);
                self.write(0, b)?;
                self.write(1, a)?;
            }
            M::Cdqe => {
                let value = extend(self.register(Register::EAX), 4);
                self.set_register(Register::RAX, value as u128);
            }
            M::Movsb | M::Movsw | M::Movsd | M::Movsq => {
                if !self.string(self.instruction.memory_size().size())? {
                    next = self.instruction.ip();
                }
            }
            M::Push => {
                let value = self.read(0)?;
                self.push(value as u64)?;
            }
            M::Pop => {
                let value = self.pop()?;
                self.write(0, u128::from(value))?;
            }
            M::Call => {
                let target = self.read(0)?;
                self.push(next)?;
                next = target as u64;
            }
            M::Ret => next = self.pop()?,
            M::Jmp => next = self.read(0)? as u64,
            M::Rdgsbase => self.write(0, u128::from(self.thread.gs))?,
            M::Wrgsbase => self.thread.gs = self.read(0)? as u64,
            _ if self.instruction.is_jcc_short_or_near() => {
                if self.condition()? {
                    next = self.instruction.near_branch_target();
                }
            }
            _ if conditional && self.instruction.op_count() == 1 => {
                let value = self.condition()?;
                self.write(0, u128::from(value))?;
            }
            _ if conditional => {
                // Not taken, a 32-bit one clears the upper half all the same.
                let value = self.read(u32::from(self.condition()?))?;
                self.write(0, value)?;
            }
            _ => return Err("an instruction that is not known".into()),
        }
        self.thread.context.ip = next;
        Ok(())
    }
}
