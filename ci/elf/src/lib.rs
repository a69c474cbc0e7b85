//! A user of per-CPU memory: what becomes of its windows in a file that somebody ships.

use unmerged::percpu::{Counter, Node, Stack, Word};
use unmerged::task_shared;

static CALLS: Counter = Counter::new();
static BYTES: Counter = Counter::new();
static SPARE: Stack<u64> = Stack::new();
static NUMBERS: Word<u32> = Word::new();

/// Five windows, inlined one after the other.
#[unsafe(no_mangle)]
pub extern "C" fn count(bytes: u64) {
    CALLS.add(1);
    BYTES.add(bytes);
    let node = SPARE.pop().unwrap_or_else(|| Node::new(0));
    SPARE.push(node);
    let _ = NUMBERS.fetch_add(1);
}

/// Takes a slot, whose destructor runs at the end of the thread; 0, or an errno.
#[unsafe(no_mangle)]
pub extern "C" fn take_slot() -> i32 {
    task_shared::current().map_or_else(|error| error.raw_os_error(), |_| 0)
}

/// The same code again: a linker that folds functions may take them for one.
#[unsafe(no_mangle)]
pub extern "C" fn count_too(bytes: u64) {
    CALLS.add(1);
    BYTES.add(bytes);
    let node = SPARE.pop().unwrap_or_else(|| Node::new(0));
    SPARE.push(node);
    let _ = NUMBERS.fetch_add(1);
}

/// What was counted: calls, then bytes.
pub fn counted() -> (u64, u64) {
    let numbers = NUMBERS.values().map(|on| u64::from(on.value)).sum::<u64>();
    assert_eq!(numbers, CALLS.sum());
    (CALLS.sum(), BYTES.sum())
}
