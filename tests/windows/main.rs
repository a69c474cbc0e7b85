//! The machine code of every rseq window, as it ships.
//!
//! `arch` says what a window does; the compiler and the linker decide what becomes of it. So
//! these tests read the bytes of the linked file and never the source:
//!
//! - [`elf`]: every descriptor of an ELF file, and the code that it describes, has the shape
//!   that the kernel and the contract ask for;
//! - [`model`]: the code is executed on a [`machine`] of our own and interrupted at every
//!   instruction, on every CPU, with everything that may happen meanwhile;
//! - [`ptrace`]: the same on the live kernel, at every instruction of every window.
//!
//! The windows are in the table of [`cases`]; one that is not there fails the walk. That the
//! checks can fail is shown by windows that were spoilt: byte by byte, and in [`planted`].

#[path = "../common/mod.rs"]
mod common;

mod cases;
mod elf;
mod execute;
mod image;
mod machine;
mod model;
mod planted;
mod ptrace;
mod rules;
mod tracer;
mod world;
