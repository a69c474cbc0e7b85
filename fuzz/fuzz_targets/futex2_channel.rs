//! A shared channel in memory that holds any bytes: errors and wrong items, nothing else.
#![no_main]

#[path = "../../tests/common/hostile_channel.rs"]
mod hostile_channel;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hostile_channel::run(bytes));
