//! The second writer of a slot: the sampler, which writes for owners that do not publish.
//!
//! # Protocol
//!
//! Two things must not happen: that sampler and owner write at the same time, and that the
//! sampler writes into a slot which has changed hands.
//!
//! - The sequence is a lock between writers: [`Life::write`] makes it odd by an exchange,
//!   and the exchange of the other fails.
//! - The slot that the sampler is about to write is announced, as a hazard pointer (Michael,
//!   "Hazard pointers: safe memory reclamation for lock-free objects", 2004). The sampler announces,
//!   then looks at the generation; who gives a slot back ends the life, then looks at the
//!   announcement. One of the two sees the other: either the sampler finds the life ended
//!   and writes nothing, or the slot goes to nobody before the sampler has left it.
//!
//! The announcement also tells an owner why the sequence is odd: if it is not the sampler,
//! it is the owner itself, in a publication that a signal handler interrupted.
//!
//! An owner waits for the sampler for as long as ten stores take, or until the sampler,
//! preempted between them, runs again. The sampler never waits for an owner.

use super::life::Life;
use super::process;
use super::record::{Record, Values};
use crate::sync::{AtomicU64, AtomicUsize, Ordering, fence, spin_loop};
use crate::sys::thread;

/// Looks at an announcement before the owner sleeps between them.
const SPINS: u32 = 100;
/// Sleeps of 50 microseconds before a publication gives up on a sampler that is stopped.
const SLEEPS: u32 = 400;

/// The slot that the sampler of this process is writing, by address; 0 for none.
static ANNOUNCED: AtomicUsize = AtomicUsize::new(0);
/// The process, by epoch, whose sampler that is. A child of fork may inherit an announcement,
/// and has no sampler.
static EPOCH: AtomicU64 = AtomicU64::new(0);

/// The protocol, over a borrowed word.
#[derive(Debug, Clone, Copy)]
struct Hazard<'a> {
    announced: &'a AtomicUsize,
}

impl Hazard<'_> {
    /// The sampler's write: nothing if the life has ended, or somebody has written since the
    /// sequence was taken.
    fn write(
        self,
        address: usize,
        life: Life<'_>,
        generation: u32,
        sequence: u32,
        values: &[u64],
    ) -> bool {
        // Release: who finds this one announced sees what was written to the one before.
        self.announced.store(address, Ordering::Release);
        // Pairs with the fence of `has_left`: the announcement before the look at the life.
        fence(Ordering::SeqCst);
        let written = life.generation.load(Ordering::Relaxed) == generation
            && life.write(sequence, 0, values);
        // What was written is there for who finds nothing announced.
        self.announced.store(0, Ordering::Release);
        written
    }

    /// After the end of a life: has the sampler left the slot?
    fn has_left(self, address: usize) -> bool {
        // Pairs with the fence of `write`: the end of the life before the look at the
        // announcement.
        fence(Ordering::SeqCst);
        self.announced.load(Ordering::Acquire) != address
    }

    /// Why the sequence is what it is.
    fn look(self, address: usize, life: Life<'_>) -> Look {
        let sequence = life.sequence.load(Ordering::Relaxed);
        if sequence & 1 == 0 {
            return Look::Quiet(sequence);
        }
        // Who sees the sampler's odd number sees its announcement; who then finds the
        // announcement gone sees the even number behind it.
        fence(Ordering::Acquire);
        if self.announced.load(Ordering::Acquire) == address
            || life.sequence.load(Ordering::Relaxed) != sequence
        {
            return Look::Sampled;
        }
        Look::Own
    }
}

/// What the owner of a slot finds before it writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// Nobody writes; the sequence.
    Quiet(u32),
    /// The sampler writes, or has just written.
    Sampled,
    /// The owner itself writes, under the handler that asks.
    Own,
}

fn hazard() -> Hazard<'static> {
    Hazard { announced: &ANNOUNCED }
}

fn address(record: &Record) -> usize {
    core::ptr::from_ref(record).addr()
}

/// Is there a sampler in this process that could write?
fn is_sampled() -> bool {
    EPOCH.load(Ordering::Relaxed) == process::epoch()
}

/// Makes this process's sampler the one; `false` if there is one already.
pub(super) fn claim(epoch: u64) -> bool {
    let before = EPOCH.load(Ordering::Relaxed);
    let (ok, lost) = (Ordering::AcqRel, Ordering::Relaxed);
    if before == epoch || EPOCH.compare_exchange(before, epoch, ok, lost).is_err() {
        return false;
    }
    // What was inherited is nobody's.
    ANNOUNCED.store(0, Ordering::Release);
    true
}

/// The sampler has ended, and announces no more.
pub(super) fn disclaim(epoch: u64) {
    let _ = EPOCH.compare_exchange(epoch, 0, Ordering::AcqRel, Ordering::Relaxed);
}

/// The sampler's write into a slot of the life `generation`; see [`Hazard::write`].
pub(super) fn write(record: &Record, generation: u32, sequence: u32, values: Values) -> bool {
    let words = values.to_words();
    hazard().write(address(record), record.life(), generation, sequence, &words)
}

/// For who has ended the life in a slot: until the sampler has left it.
pub(super) fn wait_until_left(record: &Record) {
    if hazard().has_left(address(record)) {
        return;
    }
    let mut spins = 0;
    while is_sampled() && !hazard().has_left(address(record)) {
        pause(&mut spins);
    }
}

/// For the owner: the sequence, once the sampler does not write; `None` if the owner itself
/// does, under the handler that asks, or if the sampler is stopped in the middle.
pub(super) fn quiet(record: &Record) -> Option<u32> {
    let mut spins = 0;
    while spins < SPINS + SLEEPS {
        match hazard().look(address(record), record.life()) {
            Look::Quiet(sequence) => return Some(sequence),
            Look::Sampled if is_sampled() => pause(&mut spins),
            Look::Sampled | Look::Own => return None,
        }
    }
    None
}

/// Short at first; then it sleeps, so that a sampler of lower priority gets the CPU.
fn pause(spins: &mut u32) {
    *spins += 1;
    if *spins < SPINS {
        spin_loop();
    } else {
        thread::sleep_us(50);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::task_shared::owner::{Label, Owner};

    #[test]
    fn an_ended_life_is_not_written() {
        let (record, owner) = (Record::new(), Owner::new());
        let begin = |values| record.begin(values, record.inline(), &owner, Label::default());
        begin(Values { tid: 1, ..Values::default() });
        let generation = record.read().unwrap().generation;
        let values = Values { tid: 1, updated: 5, ..Values::default() };
        let sequence = quiet(&record).unwrap();
        assert!(write(&record, generation, sequence, values));
        assert_eq!(record.read().unwrap().values.updated, 5);
        assert!(!write(&record, generation, sequence, values), "somebody has written since");
        record.end();
        wait_until_left(&record);
        assert!(!write(&record, generation, quiet(&record).unwrap(), values));
        assert_eq!(ANNOUNCED.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn whose_odd_number_it_is() {
        let announced = AtomicUsize::new(0);
        let hazard = Hazard { announced: &announced };
        let record = Record::new();
        assert_eq!(hazard.look(7, record.life()), Look::Quiet(0));
        record.life().sequence.store(1, Ordering::Relaxed);
        assert_eq!(hazard.look(7, record.life()), Look::Own);
        announced.store(8, Ordering::Relaxed);
        assert_eq!(hazard.look(7, record.life()), Look::Own);
        announced.store(7, Ordering::Relaxed);
        assert_eq!(hazard.look(7, record.life()), Look::Sampled);
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::sync::{AtomicU32, model, model_within};
    use loom::sync::Arc;
    use loom::thread;

    const SLOT: usize = 64;

    struct Shared {
        announced: AtomicUsize,
        generation: AtomicU32,
        sequence: AtomicU32,
        words: [AtomicU64; 2],
    }

    impl Shared {
        /// A slot in its first life, which has published 1.
        fn new() -> Arc<Self> {
            Arc::new(Self {
                announced: AtomicUsize::new(0).ready(),
                generation: AtomicU32::new(1).ready(),
                sequence: AtomicU32::new(0).ready(),
                words: [AtomicU64::new(1).ready(), AtomicU64::new(1).ready()],
            })
        }
        fn life(&self) -> Life<'_> {
            Life { generation: &self.generation, sequence: &self.sequence, words: &self.words }
        }
        fn hazard(&self) -> Hazard<'_> {
            Hazard { announced: &self.announced }
        }
        fn sample(&self) -> bool {
            match self.life().quiet() {
                Some(sequence) => self.hazard().write(SLOT, self.life(), 1, sequence, &[7, 7]),
                None => false,
            }
        }
        fn words(&self) -> [u64; 2] {
            core::array::from_fn(|n| self.words[n].load(Ordering::Relaxed))
        }
    }

    /// A slot changes hands under the sampler: the next life has its own words. Fails when
    /// either fence of the announcement is taken out, or its end is relaxed.
    #[test]
    fn the_next_life_is_not_written() {
        model(|| {
            let shared = Shared::new();
            let sampler = {
                let shared = shared.clone();
                thread::spawn(move || shared.sample())
            };
            shared.life().end();
            while !shared.hazard().has_left(SLOT) {
                spin_loop();
            }
            shared.life().begin(&[2, 2], || {});
            sampler.join().unwrap();
            assert_eq!(shared.words(), [2, 2]);
            assert_eq!(shared.sequence.load(Ordering::Relaxed) & 1, 0);
        });
    }

    /// The sampler has gone on to another slot, which tells as much as that it has none. Fails
    /// when the announcement is relaxed.
    #[test]
    fn the_sampler_has_gone_on() {
        model_within(3, || {
            let (shared, other) = (Shared::new(), Shared::new());
            let sampler = {
                let shared = shared.clone();
                thread::spawn(move || {
                    let sampled = shared.sample();
                    // The other slot, announced by the same word.
                    if let Some(sequence) = other.life().quiet() {
                        shared.hazard().write(SLOT + 1, other.life(), 1, sequence, &[8, 8]);
                    }
                    sampled
                })
            };
            shared.life().end();
            while !shared.hazard().has_left(SLOT) {
                spin_loop();
            }
            shared.life().begin(&[2, 2], || {});
            let sampled = sampler.join().unwrap();
            assert_eq!(shared.words(), [2, 2]);
            // The next life goes on from the sampler's number.
            assert_eq!(shared.sequence.load(Ordering::Relaxed), 2 * u32::from(sampled));
        });
    }

    /// Owner and sampler publish at once: what stays is of one of them, and the owner, who may
    /// try again, is last. Fails when the exchange of `Life::write` is relaxed.
    #[test]
    fn one_writer_at_a_time() {
        model(|| {
            let shared = Shared::new();
            let sampler = {
                let shared = shared.clone();
                thread::spawn(move || shared.sample())
            };
            loop {
                match shared.hazard().look(SLOT, shared.life()) {
                    Look::Quiet(sequence) => {
                        if shared.life().write(sequence, 0, &[3, 3]) {
                            break;
                        }
                    }
                    Look::Sampled => spin_loop(),
                    Look::Own => panic!("the owner does not write"),
                }
            }
            let sampled_last = sampler.join().unwrap() && shared.words() == [7, 7];
            assert!(sampled_last || shared.words() == [3, 3], "{:?}", shared.words());
        });
    }
}
