//! The heap of a region whose words say anything.
#![no_main]

#[path = "../../tests/common/hostile_region.rs"]
#[allow(dead_code, reason = "each target uses its own part")]
mod hostile_region;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hostile_region::heap(bytes));
