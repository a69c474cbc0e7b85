//! Models of the protocol.

use super::super::cell::model::{Counted, Modelled};
use super::*;
use crate::sync::{AtomicU32, model};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

struct Shared {
    state: Modelled<AtomicU32>,
    turn: Modelled<AtomicU32>,
    data: UnsafeCell<u32>,
}

impl Shared {
    fn words(&self) -> Words<'_, Modelled<AtomicU32>> {
        Words { state: &self.state, turn: &self.turn }
    }
    fn read(&self) {
        if !self.words().read_quickly() {
            self.words().read_slowly(None).unwrap();
        }
        // SAFETY: held for reading.
        self.data.with(|data| unsafe { *data });
        self.words().unlock_read();
    }
    fn try_read(&self) {
        if self.words().read_quickly() || self.words().read_freed() {
            // SAFETY: held for reading.
            self.data.with(|data| unsafe { *data });
            self.words().unlock_read();
        }
    }
    fn write(&self) {
        if !self.words().write_quickly() {
            self.words().write_slowly(None).unwrap();
        }
        // SAFETY: held for writing.
        self.data.with_mut(|data| unsafe { *data += 1 });
        self.words().unlock_write();
    }
    fn downgrade(&self) {
        if !self.words().try_write() {
            self.words().write_slowly(None).unwrap();
        }
        // SAFETY: held for writing.
        self.data.with_mut(|data| unsafe { *data += 1 });
        self.words().downgrade();
        // SAFETY: held for reading.
        self.data.with(|data| unsafe { *data });
        self.words().unlock_read();
    }
}

type Word = Modelled<AtomicU32>;

fn run(bodies: [fn(&Shared); 2], own: fn(&Shared)) {
    run_with(Word::new, bodies, own);
}

fn run_with(word: fn(u32) -> Word, bodies: [fn(&Shared); 2], own: fn(&Shared)) {
    model(move || {
        let data = UnsafeCell::new(0);
        let shared = Arc::new(Shared { state: word(0), turn: word(0), data });
        let others = bodies.map(|body| {
            let shared = shared.clone();
            thread::spawn(move || body(&shared))
        });
        own(&shared);
        others.into_iter().for_each(|other| other.join().unwrap());
        assert!(shared.words().try_write());
    });
}

#[test]
fn a_writer_and_readers() {
    run([Shared::read, Shared::write], Shared::read);
}

#[test]
fn writers_and_a_reader() {
    run([Shared::write, Shared::read], Shared::write);
}

#[test]
fn a_writer_turns_reader() {
    run([Shared::downgrade, Shared::read], Shared::write);
}

/// One that only tries takes it as soon as it is free, though it is others' turn.
#[test]
fn one_that_tries() {
    run([Shared::try_read, Shared::write], Shared::write);
    run([Shared::try_read, Shared::read], Shared::write);
}

/// Whoever is woken and finds it held is late: with hand-overs, to readers and to writers.
#[test]
fn hand_over() {
    run_with(|value| Word::new(value).impatient(), [Shared::read, Shared::write], Shared::write);
}

#[test]
fn hand_over_to_readers() {
    run_with(|value| Word::new(value).impatient(), [Shared::read, Shared::read], Shared::write);
}

/// Each wake counts a sleeper that is none of this lock's: those who sleep here are called still.
#[test]
fn sleepers_of_other_words_are_counted() {
    let word = |value| Word::new(value).counted(Counted::WithOthers);
    run_with(word, [Shared::read, Shared::write], Shared::write);
    run_with(word, [Shared::write, Shared::write], Shared::read);
}

/// No wake tells whom it has woken: some are woken in vain, and none is left asleep.
#[test]
fn sleepers_cannot_be_counted() {
    let word = |value| Word::new(value).counted(Counted::NotOwn);
    run_with(word, [Shared::read, Shared::write], Shared::write);
}

/// A wait for writing ends at its deadline or with the lock: whom it held up comes in.
#[test]
fn a_writer_gives_up() {
    let gives_up = |shared: &Shared| {
        let far = Deadline::monotonic(core::time::Duration::MAX);
        if shared.words().write_slowly(Some(far)).is_ok() {
            shared.words().unlock_write();
        }
    };
    for other in [Shared::read, Shared::write] {
        run([other, gives_up], |shared| {
            shared.words().read_slowly(None).unwrap();
            shared.turn.end_deadlines(1);
            shared.words().unlock_read();
        });
    }
}

/// The same with a reader, whose bits others find.
#[test]
fn a_reader_gives_up() {
    run_with(
        |value| Word::new(value).impatient(),
        [Shared::write, |shared| {
            let far = Deadline::monotonic(core::time::Duration::MAX);
            if shared.words().read_slowly(Some(far)).is_ok() {
                shared.words().unlock_read();
            }
        }],
        |shared| {
            shared.words().write_slowly(None).unwrap();
            shared.state.end_deadlines(1);
            shared.words().unlock_write();
        },
    );
}

/// Readers that were late have left, and their bits are still there: the writer is called, be it that a
/// wake counts others.
#[test]
fn late_readers_have_left() {
    for counted in [Counted::Exactly, Counted::WithOthers] {
        model(move || {
            let word = |value| Word::new(value).counted(counted);
            let state = word(WRITER | READERS | LATE_READERS);
            let shared = Arc::new(Shared { state, turn: word(0), data: UnsafeCell::new(0) });
            let other = shared.clone();
            let writer = thread::spawn(move || other.write());
            shared.words().unlock_write();
            writer.join().unwrap();
            assert!(shared.words().try_write());
        });
    }
}

/// It was handed to one that is dead: who sleeps takes it after a beat, be it to read or to write.
#[test]
fn handed_to_the_dead() {
    for bits in [HANDED, READERS, WRITERS, READERS | WRITERS] {
        for body in [Shared::read, Shared::write] {
            model(move || {
                let word = |value| Word::new(value).shared();
                let data = UnsafeCell::new(0);
                let shared = Arc::new(Shared { state: word(bits), turn: word(0), data });
                let other = shared.clone();
                let waiter = thread::spawn(move || body(&other));
                shared.state.end_naps(1);
                shared.turn.end_naps(1);
                waiter.join().unwrap();
                assert!(shared.words().try_write());
            });
        }
    }
}
