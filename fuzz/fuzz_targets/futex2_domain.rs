//! A domain in memory that holds any bytes: errors and extra wakes, nothing else.
#![no_main]

#[path = "../../tests/common/hostile_domain.rs"]
mod hostile_domain;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hostile_domain::run(bytes));
