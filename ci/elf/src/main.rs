//! Counts in several threads, and checks the sums.

use uses_counters::{count, count_too, counted};

fn main() {
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for n in 0..50_000 {
                    if n % 2 == 0 { count(3) } else { count_too(3) }
                }
            });
        }
    });
    assert_eq!(counted(), (200_000, 600_000));
}
