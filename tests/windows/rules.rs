//! What must hold of a descriptor and of the code that it describes, wherever they are read
//! from.

use iced_x86::{
    Code, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register,
};
use unmerged::abi::rseq::{RSEQ_CS, SIGNATURE};

use crate::image;

/// The longest window that can be meant: a loop that copies is not longer than one that does not.
const LONGEST: u64 = 256;
/// How far in front of a window its descriptor's address is loaded, at most.
const FAR: u64 = 64;
/// What the failure stubs are in.
pub(crate) const STUBS: &str = "__rseq_failure";

/// Code with addresses.
pub(crate) trait Text {
    fn byte(&self, address: u64) -> Option<u8>;
    /// Name of the executable section there.
    fn section(&self, address: u64) -> Option<&str>;
}

/// `struct rseq_cs`, with its own address.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Descriptor {
    pub(crate) address: u64,
    pub(crate) version: u32,
    pub(crate) flags: u32,
    pub(crate) start: u64,
    pub(crate) length: u64,
    pub(crate) abort: u64,
}

/// What a window is known by, wherever it was inlined: its instructions without their
/// registers, of each the mnemonic, the kinds of its operands, the size of the first, and the segment.
pub(crate) type Shape = Vec<(Mnemonic, Vec<OpKind>, usize, Register)>;

pub(crate) fn shape(window: &[Instruction]) -> Shape {
    let of = |one: &Instruction| {
        let is_memory = one.op_count() > 0 && one.op0_kind() == OpKind::Memory;
        let size = if is_memory { one.memory_size().size() } else { one.op0_register().size() };
        (one.mnemonic(), one.op_kinds().collect(), size, one.segment_prefix())
    };
    window.iter().map(of).collect()
}

/// The instructions of the window, or what is wrong with it.
pub(crate) fn check(text: &dyn Text, of: &Descriptor) -> Result<Vec<Instruction>, String> {
    let end = of.start.wrapping_add(of.length);
    let wrong = |what: &str| Err(format!("{of:x?}: {what}"));
    if (of.version, of.flags) != (0, 0) {
        return wrong("version and flags must be 0");
    }
    if of.length == 0 || of.length > LONGEST {
        return wrong("the length cannot be meant");
    }
    if text.section(of.start).is_none() {
        return wrong("the window is no code");
    }
    if text.section(of.abort).is_none() || (of.start..end).contains(&of.abort) {
        return wrong("the abort address must be code outside of the window");
    }
    let mut trap = vec![0x0f, 0xb9, 0x3d];
    trap.extend(SIGNATURE.to_le_bytes());
    let before: Vec<_> = (of.abort - 7..of.abort).map_while(|at| text.byte(at)).collect();
    if before != trap {
        return wrong("no signature, in a ud1, in front of the abort address");
    }
    let mut window = Vec::new();
    let mut at = of.start;
    while at < end {
        let instruction = image::decode(at, |at| text.byte(at));
        at = instruction.next_ip();
        window.push(instruction);
    }
    if at != end {
        return wrong("the window ends inside an instruction");
    }
    if !is_armed(text, of) {
        return wrong("the instruction in front of the window does not store its descriptor");
    }
    let fault = window.iter().find_map(|one| Some((one, fault(text, of, &window, one)?)));
    if let Some((instruction, fault)) = fault {
        return wrong(&format!("{:#x} {instruction}: {fault}", instruction.ip()));
    }
    if !commits(&window) {
        return wrong("the last instruction is no commit");
    }
    Ok(window)
}

/// Is the descriptor's address loaded, kept, and stored to `rseq_cs` right before the window?
fn is_armed(text: &dyn Text, of: &Descriptor) -> bool {
    // Instructions cannot be read backwards: every lea of this address that is found is tried.
    (of.start.saturating_sub(FAR)..of.start).any(|first| {
        let mut lea = image::decode(first, |at| text.byte(at));
        let loads = lea.code() == Code::Lea_r64_m
            && lea.is_ip_rel_memory_operand()
            && lea.ip_rel_memory_address() == of.address;
        if !loads {
            return false;
        }
        let holder = lea.op0_register();
        let mut info = InstructionInfoFactory::new();
        loop {
            if lea.next_ip() >= of.start {
                return false;
            }
            lea = image::decode(lea.next_ip(), |at| text.byte(at));
            if lea.next_ip() == of.start {
                break;
            }
            let straight = lea.flow_control() == FlowControl::Next;
            let used = info.info(&lea).used_registers();
            let kept = used.iter().all(|one| {
                one.register().full_register() != holder || one.access() == OpAccess::Read
            });
            if !straight || !kept {
                return false;
            }
        }
        lea.code() == Code::Mov_rm64_r64
            && lea.op0_kind() == OpKind::Memory
            && lea.op1_register() == holder
            && lea.segment_prefix() == Register::FS
            && lea.memory_displacement64() & 0xff == RSEQ_CS as u64
    })
}

/// What a window must not do.
fn fault(
    text: &dyn Text,
    of: &Descriptor,
    window: &[Instruction],
    one: &Instruction,
) -> Option<&'static str> {
    if one.is_invalid() {
        return Some("no instruction");
    }
    match one.flow_control() {
        FlowControl::Next => {}
        FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch => {
            let target = one.near_branch_target();
            let inside = window.iter().any(|other| other.ip() == target);
            let end = target == of.start + of.length;
            let stub = target == of.abort || text.section(target) == Some(STUBS);
            if !inside && !end && !stub {
                return Some("jumps out of the window");
            }
        }
        _ => return Some("leaves the window"),
    }
    let mut info = InstructionInfoFactory::new();
    let info = info.info(one);
    // rbp is a register like any other where functions have no frame pointer.
    let is_stack = |register: Register| register.full_register() == Register::RSP;
    let stack = info.used_registers().iter().any(|used| is_stack(used.register()));
    stack.then_some("uses the stack")
}

/// Does it access memory in one of these ways?
fn accesses(one: &Instruction, ways: &[OpAccess]) -> bool {
    let mut info = InstructionInfoFactory::new();
    info.info(one).used_memory().iter().any(|used| ways.contains(&used.access()))
}

const STORES: &[OpAccess] = &[OpAccess::Write, OpAccess::ReadWrite];

/// Does a window store anything?
pub(crate) fn stores(window: &[Instruction]) -> bool {
    window.iter().any(|one| accesses(one, STORES))
}

/// The last instruction is a store to memory; if there is none in the window, a load.
fn commits(window: &[Instruction]) -> bool {
    let commit = if stores(window) { STORES } else { &[OpAccess::Read] };
    window.last().is_some_and(|last| accesses(last, commit))
}

/// A window in a buffer, right or with something planted in it.
#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: u64 = 0x1000;
    const DESCRIPTOR: u64 = 0x3000;

    struct Buffer(Vec<u8>);

    impl Text for Buffer {
        fn byte(&self, address: u64) -> Option<u8> {
            self.0.get(usize::try_from(address.checked_sub(WINDOW)?).ok()?).copied()
        }

        fn section(&self, address: u64) -> Option<&str> {
            self.byte(address).map(|_| ".text")
        }
    }

    const LEA: &[u8] = &[0x48, 0x8d, 0x05, 0xf9, 0x1f, 0x00, 0x00]; // lea rax, [DESCRIPTOR]
    const STORE: &[u8] = &[0x64, 0x48, 0x89, 0x47, 0x08]; // mov fs:[rdi + 8], rax
    const COMPARE: &[u8] = &[0x64, 0x39, 0x77, 0x04]; // cmp fs:[rdi + 4], esi
    const JUMP: &[u8] = &[0x75, 0x00]; // jne; its target is filled in
    const LOAD: &[u8] = &[0x48, 0x8b, 0x01]; // mov rax, [rcx]
    const COMMIT: &[u8] = &[0x48, 0x89, 0x01]; // mov [rcx], rax
    const TRAP: &[u8] = &[0x0f, 0xb9, 0x3d, 0x53, 0x30, 0x05, 0x53];
    const NOP: &[u8] = &[0x90];
    const RET: &[u8] = &[0xc3];

    /// What `check` says of this window between its store and its end.
    fn found(
        before: &[&[u8]],
        inside: &[&[u8]],
        spoil: impl Fn(&mut Descriptor),
    ) -> Option<String> {
        found_with(before, inside, TRAP, spoil)
    }

    fn found_with(
        before: &[&[u8]],
        inside: &[&[u8]],
        trap: &[u8],
        spoil: impl Fn(&mut Descriptor),
    ) -> Option<String> {
        let (mut bytes, inside) = (before.concat(), inside.concat());
        let start = WINDOW + bytes.len() as u64;
        bytes.extend(&inside);
        bytes.extend(RET);
        bytes.extend(trap);
        let abort = WINDOW + bytes.len() as u64;
        bytes.extend(RET);
        if let Some(jump) = bytes.windows(2).position(|pair| pair == JUMP) {
            bytes[jump + 1] = (abort - WINDOW) as u8 - jump as u8 - 2;
        }
        let mut descriptor = Descriptor {
            address: DESCRIPTOR,
            version: 0,
            flags: 0,
            start,
            length: inside.len() as u64,
            abort,
        };
        spoil(&mut descriptor);
        check(&Buffer(bytes), &descriptor).err()
    }

    const RIGHT: &[&[u8]] = &[COMPARE, JUMP, LOAD, COMMIT];

    #[test]
    fn right_windows_are_accepted() {
        for (before, inside) in [
            (&[LEA, STORE][..], RIGHT),
            (&[LEA, NOP, STORE], RIGHT),
            (&[LEA, STORE], &[COMPARE, JUMP, LOAD]),
        ] {
            assert_eq!(found(before, inside, |_| ()), None);
        }
    }

    #[test]
    fn wrong_windows_are_refused() {
        let armed = &[LEA, STORE][..];
        let call: &[u8] = &[0xe8, 0, 0, 0, 0];
        let syscall: &[u8] = &[0x0f, 0x05];
        let breakpoint: &[u8] = &[0xcc];
        let push: &[u8] = &[0x50];
        let spill: &[u8] = &[0x48, 0x89, 0x44, 0x24, 0xf8]; // mov [rsp - 8], rax
        let indirect: &[u8] = &[0xff, 0xe0]; // jmp rax
        let away: &[u8] = &[0x75, 0x70]; // jne, out of everything
        let backwards: &[u8] = &[0x75, 0xf0]; // jne, to in front of the window
        let clobber: &[u8] = &[0x48, 0x31, 0xc0]; // xor rax, rax
        let other: &[u8] = &[0x64, 0x48, 0x89, 0x5f, 0x08]; // mov fs:[rdi + 8], rbx
        let plain: &[u8] = &[0x48, 0x89, 0x47, 0x08]; // mov [rdi + 8], rax
        let elsewhere: &[u8] = &[0x48, 0x8d, 0x05, 0xf9, 0x2f, 0, 0]; // lea of something else
        for (before, inside, says) in [
            (&[LEA, STORE, NOP][..], RIGHT, "does not store"),
            (&[STORE], RIGHT, "does not store"),
            (&[LEA, other], RIGHT, "does not store"),
            (&[LEA, plain], RIGHT, "does not store"),
            (&[elsewhere, STORE], RIGHT, "does not store"),
            (&[LEA, clobber, STORE], RIGHT, "does not store"),
            (&[LEA, call, STORE], RIGHT, "does not store"),
            (armed, &[COMPARE, JUMP, call, LOAD, COMMIT], "leaves the window"),
            (armed, &[COMPARE, JUMP, syscall, COMMIT], "leaves the window"),
            (armed, &[COMPARE, JUMP, breakpoint, COMMIT], "leaves the window"),
            (armed, &[COMPARE, JUMP, RET, COMMIT], "leaves the window"),
            (armed, &[COMPARE, JUMP, indirect, COMMIT], "leaves the window"),
            (armed, &[COMPARE, JUMP, push, COMMIT], "uses the stack"),
            (armed, &[COMPARE, JUMP, spill, COMMIT], "uses the stack"),
            (armed, &[COMPARE, away, COMMIT], "jumps out"),
            (armed, &[COMPARE, backwards, COMMIT], "jumps out"),
            (armed, &[COMPARE, JUMP, COMMIT, LOAD], "no commit"),
            (armed, &[COMPARE, JUMP], "no commit"),
            (armed, &[&[0x06], COMMIT], "no instruction"),
        ] {
            let found = found(before, inside, |_| ()).unwrap_or_default();
            assert!(found.contains(says), "{found:?} should say {says:?}");
        }
    }

    #[test]
    fn wrong_descriptors_are_refused() {
        type Spoil = fn(&mut Descriptor);
        let spoils: [(Spoil, &str); 9] = [
            (|d| d.version = 1, "version"),
            (|d| d.flags = 1, "flags"),
            (|d| d.length = 0, "length"),
            (|d| d.length = 1 << 20, "length"),
            (|d| d.length -= 1, "inside an instruction"),
            (|d| d.length += 1, "leaves the window"),
            (|d| d.abort = d.start, "outside of the window"),
            (|d| d.abort += 1, "must be code"),
            (|d| d.start = 0, "no code"),
        ];
        for (spoil, says) in spoils {
            let found = found(&[LEA, STORE], RIGHT, spoil).unwrap_or_default();
            assert!(found.contains(says), "{found:?} should say {says:?}");
        }
        for at in 0..TRAP.len() {
            let mut trap = TRAP.to_vec();
            trap[at] ^= 1;
            let found = found_with(&[LEA, STORE], RIGHT, &trap, |_| ()).unwrap_or_default();
            assert!(found.contains("no signature"), "{found:?}");
        }
    }
}
