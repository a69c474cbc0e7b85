//! Messages and control memory of any bytes; `fuzz/` looks for worse ones.

#[path = "common/hostile_region.rs"]
mod hostile_region;

use proptest::prelude::*;

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..120)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) })]

    #[test]
    fn a_server_hears_anything(bytes in bytes()) {
        hostile_region::requests(&bytes);
    }

    #[test]
    fn an_opener_hears_anything(bytes in bytes()) {
        hostile_region::replies(&bytes);
    }

    #[test]
    fn the_heap_says_anything(bytes in bytes()) {
        hostile_region::heap(&bytes);
    }

    #[test]
    fn the_control_memory_says_anything(bytes in bytes()) {
        hostile_region::control(&bytes);
    }
}
