//! An opener of a region whose server answers anything.
#![no_main]

#[path = "../../tests/common/hostile_region.rs"]
#[allow(dead_code, reason = "each target uses its own part")]
mod hostile_region;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hostile_region::replies(bytes));
