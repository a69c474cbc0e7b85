//! A user of counters: what becomes of their windows in a file that somebody ships.

use unmerged::percpu::Counter;

static CALLS: Counter = Counter::new();
static BYTES: Counter = Counter::new();

/// Two windows, inlined one after the other.
#[unsafe(no_mangle)]
pub extern "C" fn count(bytes: u64) {
    CALLS.add(1);
    BYTES.add(bytes);
}

/// The same code again: a linker that folds functions may take them for one.
#[unsafe(no_mangle)]
pub extern "C" fn count_too(bytes: u64) {
    CALLS.add(1);
    BYTES.add(bytes);
}

/// What was counted: calls, then bytes.
pub fn counted() -> (u64, u64) {
    (CALLS.sum(), BYTES.sum())
}
