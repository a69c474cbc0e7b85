//! A shared channel that somebody else writes into: the body of a fuzz target, and of a property.

use std::ptr::NonNull;
use std::time::{Duration, Instant};
use unmerged::futex2::Deadline;
use unmerged::futex2::lock::{Channel, select};

const CAPACITY: u32 = 3;
const BYTES: usize = Channel::<[u64; 2], unmerged::futex2::Shared>::bytes(CAPACITY);
/// What is around the channel, and must stay.
const BEYOND: u8 = 0xa5;

/// Each ten bytes write a word somewhere, and let the channel be used.
pub(crate) fn run(bytes: &[u8]) {
    let mut memory = vec![[0_u64; 16]; BYTES.div_ceil(128) + 2];
    let whole = size_of_val(&memory[..]);
    let start = memory.as_mut_ptr().cast::<u8>();
    let base = NonNull::new(start.wrapping_add(start.align_offset(128))).expect("it is memory");
    // All around it.
    let (before, behind) = (base.addr().get() - start.addr(), BYTES.next_multiple_of(8));
    // SAFETY: in the vector.
    unsafe {
        start.write_bytes(BEYOND, before);
        base.add(behind).write_bytes(BEYOND, whole - before - behind);
    }
    // SAFETY: in the vector, which outlives it, and has nothing else in these bytes.
    let channel = unsafe { Channel::<[u64; 2], _>::attach(base, BYTES, CAPACITY) };
    let channel = channel.expect("it is large enough");
    let begin = Instant::now();
    for line in bytes.chunks_exact(10) {
        let word = usize::from(line[0]) % (BYTES / 8);
        let number = u64::from_le_bytes(line[2..].try_into().expect("eight bytes"));
        // What words may hold, more often than not.
        let value = match line[1] >> 4 {
            0..4 => number,
            4..8 => number & 0xff,
            8..12 => number & 0xff | u64::from(line[1] & 3) << 62,
            // A claim of one that may live: of this thread, for one.
            12 => 2 << 62 | number & 0xff_ffff,
            13 => u64::MAX,
            _ => number & 0x0303_0303_0303_0303,
        };
        // SAFETY: inside of the channel.
        unsafe { base.cast::<u64>().add(word).write_volatile(value) };
        let soon = || Deadline::after(Duration::from_micros(200));
        match line[1] & 7 {
            0 => drop(channel.try_send([1, 2])),
            1 => drop(channel.try_recv()),
            2 => drop(channel.send_until([1, 2], soon())),
            3 => drop(channel.recv_until(soon())),
            4 => drop(select(&[&channel.receiving()], Some(soon()))),
            5 => drop(select(&[&channel.sending()], Some(soon()))),
            6 => drop(channel.try_iter().take(9).count()),
            _ => drop((channel.len(), channel.is_full(), channel.close())),
        }
    }
    // Each wait had a deadline; what is more is for a machine with much else to do.
    assert!(begin.elapsed() < Duration::from_secs(60));
    let around = (0..before).chain(before + behind..whole);
    // SAFETY: in the vector.
    assert!(around.into_iter().all(|at| unsafe { start.add(at).read_volatile() } == BEYOND));
}
