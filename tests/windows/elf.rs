//! Every descriptor of an ELF file: that of this very test, and those that
//! `UNMERGED_ELF_FILES` names (`ci/elf.sh` builds crates in many ways and has them read).

use std::collections::{BTreeMap, HashMap};

use object::elf::R_X86_64_RELATIVE;
use object::read::elf::ElfFile64;
use object::{Endianness, Object, ObjectSection, RelocationFlags, SectionKind};

use crate::cases::CASES;
use crate::machine::Code;
use crate::rules::{self, Descriptor, Shape, Text};
use crate::world;

/// Files to read, separated by colons, and the operations that each must have a window of,
/// separated by commas.
const FILES: &str = "UNMERGED_ELF_FILES";
const OPERATIONS: &str = "UNMERGED_ELF_OPERATIONS";

const SECTION: &str = "__rseq_cs";
const SIZE: usize = 32;

/// A section of code.
struct Section<'a> {
    name: &'a str,
    address: u64,
    bytes: &'a [u8],
}

struct File<'a> {
    code: Vec<Section<'a>>,
    descriptors: Vec<Descriptor>,
}

impl<'a> File<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let wrong = |what: object::Error| what.to_string();
        let file = ElfFile64::<Endianness>::parse(bytes).map_err(wrong)?;
        let mut code = Vec::new();
        for section in file.sections() {
            if section.kind() == SectionKind::Text {
                let (name, bytes) =
                    (section.name().map_err(wrong)?, section.data().map_err(wrong)?);
                code.push(Section { name, address: section.address(), bytes });
            }
        }
        let section = file.section_by_name(SECTION).ok_or("no descriptors")?;
        if section.align() < SIZE as u64 || !section.address().is_multiple_of(SIZE as u64) {
            return Err(format!("{SECTION} is not aligned"));
        }
        if !section.size().is_multiple_of(SIZE as u64) {
            return Err(format!("{SECTION} has {} bytes", section.size()));
        }
        // The addresses of a file that can be loaded anywhere are in its relocations.
        let mut relocated = HashMap::new();
        for (at, relocation) in file.dynamic_relocations().into_iter().flatten() {
            if relocation.flags() == (RelocationFlags::Elf { r_type: R_X86_64_RELATIVE }) {
                relocated.insert(at, relocation.addend().cast_unsigned());
            }
        }
        let read = |(n, bytes): (usize, &[u8])| {
            let address = section.address() + (n * SIZE) as u64;
            let half = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            let word = |at: usize| {
                let own = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
                relocated.get(&(address + at as u64)).copied().unwrap_or(own)
            };
            Descriptor {
                address,
                version: half(0),
                flags: half(4),
                start: word(8),
                length: word(16),
                abort: word(24),
            }
        };
        let descriptors = section.data().map_err(wrong)?.chunks_exact(SIZE).enumerate().map(read);
        Ok(Self { code, descriptors: descriptors.collect() })
    }

    fn at(&self, address: u64) -> Option<(&Section<'a>, u8)> {
        self.code.iter().find_map(|section| {
            let offset = usize::try_from(address.checked_sub(section.address)?).ok()?;
            Some((section, *section.bytes.get(offset)?))
        })
    }
}

impl Text for File<'_> {
    fn byte(&self, address: u64) -> Option<u8> {
        self.at(address).map(|(_, byte)| byte)
    }

    fn section(&self, address: u64) -> Option<&str> {
        self.at(address).map(|(section, _)| section.name)
    }
}

/// What the windows of the table look like, and whose they are.
fn known() -> Vec<(Shape, &'static str)> {
    let code = Code::default();
    let shape = |case| {
        let (window, _) = world::trace(&code, case).expect("a window");
        let at = |at| code.instruction(at);
        rules::shape(&world::instructions(&code, &window).map(at).collect::<Vec<_>>())
    };
    let mut known = Vec::new();
    for case in CASES.iter() {
        let row = (shape(case), case.operation());
        if !known.contains(&row) {
            known.push(row);
        }
    }
    known
}

/// How many windows of each operation the file has; or what is wrong with one of them.
fn windows(bytes: &[u8]) -> Result<BTreeMap<&'static str, usize>, String> {
    let file = File::read(bytes)?;
    let known = known();
    let (mut starts, mut counts) = (HashMap::new(), BTreeMap::new());
    for descriptor in &file.descriptors {
        let window = rules::check(&file, descriptor)?;
        if let Some(other) = starts.insert(descriptor.start, descriptor.address) {
            return Err(format!("{descriptor:x?} and the one at {other:x} are of one window"));
        }
        let shape = rules::shape(&window);
        let found: Vec<_> = known.iter().filter(|(known, _)| *known == shape).collect();
        if found.is_empty() {
            let text = window.iter().map(|one| format!("\n    {one}")).collect::<String>();
            return Err(format!("{descriptor:x?} is no window of the table:{text}"));
        }
        for (_, operation) in found {
            *counts.entry(*operation).or_insert(0) += 1;
        }
    }
    Ok(counts)
}

/// Every file has a right window of each operation that it must have.
fn check_files(files: &[String], operations: &[&str]) {
    for file in files {
        let bytes = std::fs::read(file).unwrap_or_else(|error| panic!("{file}: {error}"));
        let counts = windows(&bytes).unwrap_or_else(|what| panic!("{file}: {what}"));
        for operation in operations {
            assert!(counts.contains_key(operation), "{file}: no window of {operation}: {counts:?}");
        }
        let list: Vec<_> = counts.iter().map(|(name, count)| format!("{count} {name}")).collect();
        println!("{file}: {}", list.join(", "));
    }
}

#[test]
fn every_descriptor_of_this_binary() {
    let own = std::env::current_exe().unwrap().to_str().unwrap().to_owned();
    let operations: Vec<_> = CASES.iter().map(|case| case.operation()).collect();
    check_files(&[own], &operations);
}

#[test]
fn every_descriptor_of_the_files_that_are_named() {
    let Ok(files) = std::env::var(FILES) else { return };
    let files: Vec<_> = files.split(':').map(str::to_owned).collect();
    let operations = std::env::var(OPERATIONS).unwrap_or_default();
    check_files(&files, &operations.split(',').filter(|name| !name.is_empty()).collect::<Vec<_>>());
}

/// Where the file has the byte of this address.
fn place(bytes: &[u8], address: u64) -> usize {
    let file = ElfFile64::<Endianness>::parse(bytes).unwrap();
    let inside = |section: object::read::elf::ElfSection64<'_, '_, Endianness>| {
        let (start, len) = section.file_range()?;
        let offset = address.checked_sub(section.address())?;
        (section.address() != 0 && offset < len).then_some((start + offset) as usize)
    };
    file.sections().find_map(inside).unwrap()
}

/// This very binary, with one fault in it.
#[test]
fn faults_in_a_file_are_found() {
    let mut own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    assert!(windows(&own).is_ok());
    // A few of them: each time, the whole file is read again.
    for descriptor in File::read(&own).unwrap().descriptors.into_iter().take(3) {
        let nop = [0x90; 5];
        for (address, fault, says) in [
            (descriptor.address, &[1][..], "must be 0"),
            (descriptor.address + 4, &[1], "must be 0"),
            (descriptor.address + 16, &[descriptor.length as u8 - 1], "inside an instruction"),
            (descriptor.abort - 4, &[0], "no signature"),
            (descriptor.start - 5, &nop, "does not store"),
            (descriptor.start, &[0xcc], "leaves the window"),
        ] {
            let at = place(&own, address);
            let at = at..at + fault.len();
            let right = own[at.clone()].to_vec();
            own[at.clone()].copy_from_slice(fault);
            let found = windows(&own).unwrap_err();
            own[at].copy_from_slice(&right);
            assert!(found.contains(says), "{found} should say {says:?}");
        }
    }
}
