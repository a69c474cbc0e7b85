//! A monitor over a table with anything in it: header, owners, slots, size of the file.
#![no_main]

#[path = "../../tests/common/hostile.rs"]
mod hostile;

use arbitrary::Arbitrary;
use hostile::Hostile;
use libfuzzer_sys::fuzz_target;

#[derive(Debug, Arbitrary)]
struct Input {
    header: Vec<(u16, u8)>,
    owners: Vec<u8>,
    slots: Vec<u8>,
    committed: u8,
    size: i16,
}

fuzz_target!(|input: Input| {
    let Input { header, owners, slots, committed, size } = input;
    hostile::read(&Hostile { header, owners, slots, committed: committed.into(), size });
});
