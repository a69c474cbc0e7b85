//! The thread's own words: the thread pointer, our rseq area, `striped_cpu`, and what the
//! caller's own striping needs.
//!
//! They live in one initial-exec TLS block defined in asm, because stable Rust can
//! neither choose the TLS model nor name a thread-local in an operand, and the fast path
//! must reach `striped_cpu` with one load (a constant, once the linker has relaxed it).
//! The block is small enough for the static TLS surplus of a library that is loaded at
//! run time.

use crate::abi::rseq::{CPU_ID, CPU_ID_UNINITIALIZED, Rseq};
use crate::arch::NOT_STRIPED;
use core::arch::{asm, global_asm};
use core::mem::size_of;

/// Name of the block. It carries the crate's version, so that two versions can be linked
/// into one program.
macro_rules! block {
    () => {
        concat!(
            "__unmerged_thread_",
            env!("CARGO_PKG_VERSION_MAJOR"),
            "_",
            env!("CARGO_PKG_VERSION_MINOR"),
            "_",
            env!("CARGO_PKG_VERSION_PATCH")
        )
    };
}
/// An instruction that loads the block's offset from the thread pointer into `{block}`.
macro_rules! load_block {
    () => {
        concat!(
            "mov {block}, qword ptr [rip + ",
            crate::arch::x86_64::thread::block!(),
            "@gottpoff]"
        )
    };
}
pub(super) use {block, load_block};

/// Offset of `striped_cpu` in the block: right behind our rseq area.
pub(super) const STRIPED_CPU: usize = size_of::<Rseq>();

// A thread starts unregistered (cpu_id -1, not 0, which would be a CPU) and not striped.
global_asm!(
    ".pushsection .tdata.unmerged, \"awT\", @progbits",
    ".balign 64",
    concat!(".globl ", block!()),
    concat!(".hidden ", block!()),
    concat!(".type ", block!(), ", @object"),
    concat!(".size ", block!(), ", 128"),
    concat!(block!(), ":"),
    ".long 0",              // rseq.cpu_id_start
    ".long {uninitialized}", // rseq.cpu_id
    ".zero 56",             // rseq.rseq_cs and the rest of the area
    ".long {not_striped}",  // striped_cpu
    ".long {not_striped}",  // callers_cpu
    ".zero 56",             // the caller's base, stride and number of CPUs
    ".popsection",
    uninitialized = const CPU_ID_UNINITIALIZED,
    not_striped = const NOT_STRIPED,
);
const _: () = assert!(STRIPED_CPU == 64);

/// Offset of `callers_cpu` in the block: the CPU that `%gs` points at in the caller's stripes.
pub(super) const CALLERS_CPU: usize = STRIPED_CPU + 4;
/// Offset of the caller's [`Striping`] in the block.
const CALLERS: usize = STRIPED_CPU + 8;

/// Stripes that the caller laid out, as this thread has them: all 0 if there are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Striping {
    /// Address of the stripe of CPU 0.
    pub base: usize,
    /// Bytes from one stripe to the next.
    pub stride: usize,
    /// Stripes that there are.
    pub cpus: usize,
}
const _: () = assert!(CALLERS + size_of::<Striping>() <= 128);

/// The caller's striping, a word of this thread. It is read and written by this thread only;
/// a signal handler between two of its words is the caller's business.
#[inline]
pub fn callers_striping() -> *mut Striping {
    let block = thread_pointer().wrapping_add_signed(own_area_offset());
    core::ptr::with_exposed_provenance_mut(block + CALLERS)
}

/// The CPU that `%gs` points at in the caller's stripes, or [`NOT_STRIPED`]; a word of this
/// thread, which windows write too.
#[inline]
pub fn callers_cpu() -> *mut u32 {
    let block = thread_pointer().wrapping_add_signed(own_area_offset());
    core::ptr::with_exposed_provenance_mut(block + CALLERS_CPU)
}

/// `%fs:0` — address of this thread's control block.
#[inline]
pub fn thread_pointer() -> usize {
    let pointer: usize;
    // SAFETY: the x86-64 TLS ABI puts the block's own address at %fs:0.
    unsafe {
        asm!(
            "mov {pointer}, qword ptr fs:[0]", // pointer = the thread control block
            pointer = out(reg) pointer,
            options(nostack, preserves_flags)
        );
    }
    pointer
}

/// Offset of our own rseq area from the thread pointer, the same in every thread.
#[inline]
pub fn own_area_offset() -> isize {
    let offset: isize;
    // SAFETY: loads a link-time constant from the GOT.
    unsafe {
        asm!(
            load_block!(), // offset = &block - thread pointer
            block = out(reg) offset,
            options(nostack, preserves_flags)
        );
    }
    offset
}

/// The CPU that this thread's `%gs` points at, or [`NOT_STRIPED`].
#[inline]
pub fn striped_cpu() -> u32 {
    let cpu: u32;
    // SAFETY: reads a word of our own thread-local block.
    unsafe {
        asm!(
            load_block!(),                                  // block = offset of the block
            "mov {cpu:e}, dword ptr fs:[{block} + {word}]", // cpu = striped_cpu
            block = out(reg) _,
            cpu = out(reg) cpu,
            word = const STRIPED_CPU,
            options(nostack, preserves_flags)
        );
    }
    cpu
}

/// Writes `striped_cpu`.
///
/// # Safety
///
/// `cpu` must be [`NOT_STRIPED`], or the GS base must point at the stripe of `cpu`.
#[inline]
pub unsafe fn set_striped_cpu(cpu: u32) {
    // SAFETY: writes a word of our own thread-local block; the caller vouches for the value.
    unsafe {
        asm!(
            load_block!(),                                  // block = offset of the block
            "mov dword ptr fs:[{block} + {word}], {cpu:e}", // striped_cpu = cpu
            block = out(reg) _,
            cpu = in(reg) cpu,
            word = const STRIPED_CPU,
            options(nostack, preserves_flags)
        );
    }
}

/// `cpu_id` of the rseq area at `area` from the thread pointer.
///
/// # Safety
///
/// `area` must be the offset of an rseq area in every thread.
#[inline]
pub unsafe fn cpu_id(area: isize) -> u32 {
    let cpu: u32;
    // SAFETY: the caller vouches for the area; the kernel keeps the word readable.
    unsafe {
        asm!(
            "mov {cpu:e}, dword ptr fs:[{area} + {word}]", // cpu = area.cpu_id
            cpu = out(reg) cpu,
            area = in(reg) area,
            word = const CPU_ID,
            options(nostack, preserves_flags)
        );
    }
    cpu
}

/// The aligned 32-bit word around `byte`, in one load.
///
/// The load is asm because the bytes beside `byte` may belong to atomics of other sizes,
/// and Rust's memory model has no mixed-size race with a store.
///
/// # Safety
///
/// `byte` must be readable. An aligned word never crosses a page, so its neighbours are
/// readable too.
#[inline]
pub unsafe fn containing_u32(byte: *const u8) -> u32 {
    let word: u32;
    // SAFETY: the caller vouches for the byte; the aligned word lies in the same page.
    unsafe {
        asm!(
            "mov {word:e}, dword ptr [{address}]", // word = *(byte & !3)
            word = out(reg) word,
            address = in(reg) byte.wrapping_sub(byte.addr() & 3),
            options(nostack, preserves_flags)
        );
    }
    word
}

/// `*word += n` in one instruction without `lock`; the value before. Whole for the signal
/// handlers of this thread, not for other threads that write the word.
///
/// # Safety
///
/// `word` is readable, writable and aligned, and no other thread writes it meanwhile.
#[inline]
pub unsafe fn fetch_add_alone(word: *mut u32, n: u32) -> u32 {
    let before: u32;
    // SAFETY: the caller vouches for the word.
    unsafe {
        asm!(
            "xadd dword ptr [{word}], {n:e}", // before = *word; *word = before + n
            word = in(reg) word,
            n = inout(reg) n => before,
            options(nostack)
        );
    }
    before
}
