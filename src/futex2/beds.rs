//! What each entry of a vector sleeps on: the table is in `vector.rs`.

use super::Waiter;

/// What an entry sleeps on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bed {
    /// The kernel's queue of the word, or of the 32 bits around it.
    Word,
    /// The sequence of its place.
    Sequence,
    /// The word of the process that listed vectors share.
    Listed,
    /// Nothing: it is looked at.
    Glance,
}

/// Finds beds for all, with `room` places in the kernel's vector.
pub(super) fn beds(waiters: &[Waiter<'_>], room: usize) -> Vec<Bed> {
    let bed = |waiter: &Waiter<'_>| match (waiter.place.bytes, waiter.seat.counts()) {
        (1 | 2, true) => (Bed::Sequence, 1),
        (8, _) => (Bed::Word, 2),
        _ => (Bed::Word, 1),
    };
    if waiters.iter().map(|waiter| bed(waiter).1).sum::<usize>() <= room {
        return waiters.iter().map(|waiter| bed(waiter).0).collect();
    }
    // One place for the word of the process.
    let mut room = room.saturating_sub(1);
    let place = |waiter: &Waiter<'_>| {
        let (bed, needs) = bed(waiter);
        if waiter.place.private {
            Bed::Listed
        } else if needs <= room {
            room -= needs;
            bed
        } else {
            Bed::Glance
        }
    };
    waiters.iter().map(place).collect()
}
