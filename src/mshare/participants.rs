//! Who holds a region: one slot for each process.
//!
//! # Protocol
//!
//! The life of a slot is one word:
//!
//! | `life` | meaning | next |
//! |---|---|---|
//! | 0 | free | by compare-exchange, whoever takes it |
//! | serial (high half), process id | a participant | 0, by compare-exchange: the participant itself when it leaves, or one of those that found it dead |
//!
//! A serial is never used twice, so the word names one participant for good: it is its *token*.
//! Who finds a dead one compares with the token, so exactly one of them reaps it.
//!
//! `applied` is the generation up to which the participant follows, with the low half of its
//! serial in front: so nobody takes it for that of the next one in the slot. The next one clears
//! it besides, for some later serial has the same half.
//!
//! The other words of a slot are written after it is taken, and a participant that was declared
//! dead and is not may write them even later. So those by which somebody is judged have bits of
//! the serial too, and are written by compare-exchange once they are somebody's: `began`, or a
//! newcomer would be as old as the one before it, and so be taken for dead; `rights`; `agent`.
//!
//! A participant that comes while an operation is published must not be missed by both: it
//! takes its slot and then looks at the generation; an operation publishes its generation and
//! then looks at the slots; each with a sequentially consistent fence between. So the
//! operation waits for it, or it begins with the new layout.

use crate::sync::{AtomicU32, AtomicU64, Ordering, assert_layout, fence};

/// Most processes of a region.
pub(super) const PARTICIPANTS: usize = 1024;
/// Most of one user that is neither the owner nor root, if nothing else is said.
pub(super) const PER_USER: u32 = PARTICIPANTS as u32 / 8;

/// One participant.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Slot {
    life: AtomicU64,
    applied: AtomicU64,
    /// When its process began, in ticks since boot, or 0 if nobody could tell, in [`TICKS`] bits;
    /// above, the low bits of the serial.
    began: AtomicU64,
    /// Whose process it is, if it has not all rights, as the kernel told who served then; in the
    /// next 16 bits what it may do; above, the low bits of the serial.
    rights: AtomicU64,
    /// Objects that it is about to map, one by its threads and one by its agent: others keep
    /// their descriptors although no layout has them yet.
    bringing: [AtomicU64; 2],
    /// Which change it could not follow, and why, as an errno in the lowest 16 bits; 0 if it
    /// follows.
    trouble: AtomicU64,
    /// The thread that follows for it; 0 if nobody knows one. It goes when the process executes
    /// another program, which the process id and its beginning survive. The high half
    /// is the participant's serial, so that it is not the next one's.
    agent: AtomicU64,
}

assert_layout!(size_of::<Slot>() == 64);

/// A participant, for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) slot: usize,
    pub(super) life: u64,
}

impl Token {
    pub(super) fn pid(self) -> u32 {
        self.life as u32
    }

    fn serial(self) -> u64 {
        self.life >> 32
    }

    /// A word that says when this participant began.
    fn began(self, ticks: u64) -> u64 {
        self.serial() << TICKS | ticks & ((1 << TICKS) - 1)
    }

    /// A word that says what this participant may do, and whose it is.
    fn rights(self, rights: u32, uid: u32) -> u64 {
        self.serial() << 48 | u64::from(rights & 0xffff) << 32 | u64::from(uid)
    }

    /// As one word that is never 0: for a place where one participant is named.
    pub(super) fn word(self) -> u64 {
        (self.serial() << 16) | (self.slot as u64 + 1)
    }
}

const NUMBER: u64 = (1 << 48) - 1;
/// Bits of the ticks since boot: three centuries of them.
const TICKS: u32 = 40;

/// The algorithm, over borrowed words.
#[derive(Debug, Clone, Copy)]
pub(super) struct Participants<'a> {
    pub(super) slots: &'a [Slot],
    /// The last serial that was given out.
    pub(super) serials: &'a AtomicU64,
    /// A futex: moves when somebody follows or goes.
    pub(super) acks: &'a AtomicU32,
}

impl Participants<'_> {
    /// Takes a slot for process `pid`. `None` if all are taken.
    pub(super) fn join(&self, pid: u32, began: u64, rights: u32) -> Option<Token> {
        // Never 0 with a pid; 2^32 of them are more than there will be.
        let serial = self.serials.fetch_add(1, Ordering::Relaxed).wrapping_add(1) & 0xffff_ffff;
        let life = serial << 32 | u64::from(pid);
        let relaxed = Ordering::Relaxed;
        let slot = self.slots.iter().position(|slot| {
            slot.life.load(relaxed) == 0
                && slot.life.compare_exchange(0, life, relaxed, relaxed).is_ok()
        })?;
        let token = Token { slot, life };
        self.slots[slot].applied.store(0, relaxed);
        // Exchanges, as those of the one before in the slot: a late one comes before these, or fails.
        self.slots[slot].began.swap(token.began(began), relaxed);
        self.slots[slot].rights.swap(token.rights(rights, 0), relaxed);
        self.slots[slot].trouble.store(0, relaxed);
        self.slots[slot].agent.store(0, relaxed);
        self.slots[slot].bringing.iter().for_each(|word| word.store(0, relaxed));
        // Before the newcomer looks at the generation: see the protocol. And what the last one in
        // the slot did is done for us.
        fence(Ordering::SeqCst);
        Some(token)
    }

    /// Says when this participant's process began, if nobody could tell at its coming.
    pub(super) fn set_began(&self, token: Token, ticks: u64) {
        let Some(slot) = self.slots.get(token.slot) else { return };
        let (relaxed, unknown) = (Ordering::Relaxed, token.began(0));
        // Another's slot, by now, has another's word, or will have.
        let _ = slot.began.compare_exchange(unknown, token.began(ticks), relaxed, relaxed);
    }

    /// When its process began; 0 if nobody could tell, or has not yet.
    pub(super) fn began(&self, token: Token) -> u64 {
        let began = self.slots[token.slot].began.load(Ordering::Relaxed);
        let ticks = began & ((1 << TICKS) - 1);
        if began == token.began(ticks) { ticks } else { 0 }
    }

    /// What it may do: nothing, as long as nobody said so.
    pub(super) fn rights(&self, token: Token) -> u32 {
        self.told(token).map_or(0, |word| (word >> 32) as u32 & 0xffff)
    }

    /// Whose process it is: 0 as long as nobody said so.
    pub(super) fn uid(&self, token: Token) -> u32 {
        self.told(token).map_or(0, |word| word as u32)
    }

    /// Gives it more rights, if the slot is still its.
    pub(super) fn add_rights(&self, token: Token, rights: u32) {
        self.tell(token, token.rights(rights, 0));
    }

    /// Says whose process it is, if the slot is still its.
    pub(super) fn set_uid(&self, token: Token, uid: u32) {
        self.tell(token, token.rights(0, uid));
    }

    /// What is said of it in the slot, if the slot is its.
    fn told(&self, token: Token) -> Option<u64> {
        let word = self.slots[token.slot].rights.load(Ordering::Relaxed);
        (word >> 48 == token.serial() & 0xffff).then_some(word)
    }

    fn tell(&self, token: Token, bits: u64) {
        let (word, relaxed) = (&self.slots[token.slot].rights, Ordering::Relaxed);
        while let Some(seen) = self.told(token) {
            if word.compare_exchange(seen, seen | bits, relaxed, relaxed).is_ok() {
                break;
            }
        }
    }

    /// Frees the slot, if it is still this participant's; whether it was.
    pub(super) fn leave(&self, token: Token) -> bool {
        let (release, relaxed) = (Ordering::Release, Ordering::Relaxed);
        let slot = &self.slots[token.slot];
        let left = slot.life.compare_exchange(token.life, 0, release, relaxed).is_ok();
        if left {
            self.acks.fetch_add(1, Ordering::Release);
        }
        left
    }

    /// Is it still there?
    pub(super) fn is_present(&self, token: Token) -> bool {
        self.slots
            .get(token.slot)
            .is_some_and(|slot| slot.life.load(Ordering::Acquire) == token.life)
    }

    /// The participant that this word names, if it is still there.
    pub(super) fn named(&self, word: u64) -> Option<Token> {
        let slot = usize::try_from(word & 0xffff).ok()?.checked_sub(1)?;
        let life = self.slots.get(slot)?.life.load(Ordering::Acquire);
        let token = Token { slot, life };
        (life != 0 && token.word() == word).then_some(token)
    }

    /// The participant of this process.
    pub(super) fn of_process(&self, pid: u32) -> Option<Token> {
        self.present().into_iter().find(|token| token.pid() == pid)
    }

    /// All that are there.
    pub(super) fn present(&self) -> Vec<Token> {
        let lives = self.slots.iter().map(|slot| slot.life.load(Ordering::Acquire)).enumerate();
        lives.filter(|&(_, life)| life != 0).map(|(slot, life)| Token { slot, life }).collect()
    }

    /// How many are such.
    pub(super) fn count(&self, is_one: impl Fn(Token) -> bool) -> usize {
        self.present().iter().filter(|&&token| is_one(token)).count()
    }

    /// Says that this participant is about to map an object, as its `n`-th bringer: see
    /// [`bring`](super::bring). Nobody else has the object yet.
    pub(super) fn bring(&self, token: Token, n: usize, object: u64) {
        // Whoever gets the object gets it by a release after this.
        self.slots[token.slot].bringing[n].store(object, Ordering::Relaxed);
    }

    /// Says that it is not any more. What it has committed is seen by who sees this.
    pub(super) fn brought(&self, token: Token, n: usize) {
        self.slots[token.slot].bringing[n].store(0, Ordering::Release);
    }

    /// The objects that are on their way now. Look at the layout after this.
    pub(super) fn on_the_way(&self) -> Vec<u64> {
        self.present()
            .into_iter()
            .flat_map(|token| self.slots[token.slot].bringing.each_ref())
            .map(|word| word.load(Ordering::Acquire))
            .collect()
    }

    /// Says that this participant follows up to `generation`.
    pub(super) fn follow(&self, token: Token, generation: u64) {
        let applied = (token.serial() & 0xffff) << 48 | generation & NUMBER;
        let Some(slot) = self.slots.get(token.slot) else { return };
        slot.applied.store(applied, Ordering::Release);
        self.acks.fetch_add(1, Ordering::Release);
    }

    /// Up to where it follows.
    pub(super) fn followed(&self, token: Token) -> u64 {
        let applied = self.slots[token.slot].applied.load(Ordering::Acquire);
        if applied >> 48 == token.serial() & 0xffff { applied & NUMBER } else { 0 }
    }

    /// Says which thread follows for this participant; 0 for none.
    pub(super) fn set_agent(&self, token: Token, thread: u32) {
        let Some(slot) = self.slots.get(token.slot) else { return };
        slot.agent.store(token.serial() << 32 | u64::from(thread), Ordering::Relaxed);
    }

    /// The thread that follows for it, if it said so.
    pub(super) fn agent(&self, token: Token) -> Option<u32> {
        let agent = self.slots[token.slot].agent.load(Ordering::Relaxed);
        (agent >> 32 == token.serial() && agent as u32 != 0).then_some(agent as u32)
    }

    /// Says that this participant cannot follow `generation` for now, and why; with no errno, that
    /// it can.
    pub(super) fn set_trouble(&self, token: Token, generation: u64, errno: u16) {
        let Some(slot) = self.slots.get(token.slot) else { return };
        let trouble = if errno == 0 { 0 } else { (generation & NUMBER) << 16 | u64::from(errno) };
        // Who waits looks after the word that `follow` moves.
        slot.trouble.store(trouble, Ordering::Relaxed);
    }

    /// Why this participant said that it cannot follow `generation` or a later one. What it said of
    /// an earlier one says nothing: the change may be the cure.
    pub(super) fn trouble(&self, token: Token, generation: u64) -> Option<u16> {
        let trouble = self.slots[token.slot].trouble.load(Ordering::Relaxed);
        (trouble != 0 && trouble >> 16 >= generation & NUMBER).then_some(trouble as u16)
    }

    /// Those that do not follow up to `generation`, which the caller has published.
    pub(super) fn behind(&self, generation: u64) -> Vec<Token> {
        // After the caller's commit: see the protocol.
        fence(Ordering::SeqCst);
        let mut behind = self.present();
        behind.retain(|&token| self.followed(token) < generation & NUMBER);
        behind
    }
}

#[cfg(all(test, not(loom)))]
pub(super) mod tests {
    use super::*;

    pub(crate) fn slots(count: usize) -> Vec<Slot> {
        (0..count)
            .map(|_| Slot {
                life: AtomicU64::new(0),
                applied: AtomicU64::new(0),
                began: AtomicU64::new(0),
                rights: AtomicU64::new(0),
                bringing: [const { AtomicU64::new(0) }; 2],
                trouble: AtomicU64::new(0),
                agent: AtomicU64::new(0),
            })
            .collect()
    }

    #[test]
    fn slots_are_taken_once_and_given_back_once() {
        let (slots, serials, acks) = (slots(2), AtomicU64::new(0), AtomicU32::new(0));
        let all = Participants { slots: &slots, serials: &serials, acks: &acks };
        let (a, b) = (all.join(7, 1, 3).unwrap(), all.join(8, 2, 3).unwrap());
        assert_eq!(all.join(9, 3, 3), None);
        assert_eq!(all.named(a.word()), Some(a));
        assert_eq!(all.of_process(8), Some(b));
        let with = |rights| all.count(|token| all.rights(token) == rights);
        assert_eq!([3, 7].map(with), [2, 0]);
        all.follow(a, 5);
        assert_eq!(all.behind(5), [b]);
        assert!(all.leave(a) && !all.leave(a) && !all.is_present(a));
        // The next in the slot has followed nothing yet.
        let c = all.join(7, 1, 3).unwrap();
        assert_eq!((c.slot, all.followed(c)), (a.slot, 0));
        assert_eq!(all.named(a.word()), None);
        assert!(!all.leave(a) && all.is_present(c));
        all.set_trouble(c, 5, 24);
        assert_eq!([4, 5, 6].map(|n| all.trouble(c, n)), [Some(24), Some(24), None]);
        all.set_trouble(c, 5, 0);
        assert_eq!(all.trouble(c, 5), None);
        assert_eq!((all.began(a), all.began(c), all.rights(a), all.rights(c)), (0, 1, 0, 3));
        all.set_began(a, 5);
        all.set_began(c, 5);
        all.add_rights(a, 4);
        assert_eq!((all.began(c), all.rights(c)), (1, 3));
        all.add_rights(c, 4);
        all.set_uid(c, 1000);
        all.set_uid(a, 1001);
        assert_eq!((all.rights(c), all.uid(c)), (7, 1000));
        all.set_agent(a, 9);
        assert_eq!((all.agent(a), all.agent(c)), (Some(9), None));
        for lie in [0, 3, u64::MAX, 0xffff] {
            assert_eq!(all.named(lie), None);
        }
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::sync::model;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    struct Shared {
        slots: [Slot; 2],
        serials: AtomicU64,
        acks: AtomicU32,
        generation: AtomicU64,
        /// What a participant maps, without atomics.
        mapped: UnsafeCell<u64>,
    }

    impl Shared {
        fn all(&self) -> Participants<'_> {
            Participants { slots: &self.slots, serials: &self.serials, acks: &self.acks }
        }
    }

    fn shared() -> Arc<Shared> {
        let word = || AtomicU64::new(0).ready();
        let half = || AtomicU32::new(0).ready();
        let slot = || Slot {
            life: word(),
            applied: word(),
            began: word(),
            rights: word(),
            bringing: core::array::from_fn(|_| word()),
            trouble: word(),
            agent: word(),
        };
        Arc::new(Shared {
            slots: [slot(), slot()],
            serials: word(),
            acks: half(),
            generation: word(),
            mapped: UnsafeCell::new(0),
        })
    }

    /// An operation and a newcomer: one of them sees the other. Fails without the fence of
    /// `join` or that of `behind`.
    #[test]
    fn a_newcomer_is_not_missed() {
        model(|| {
            let shared = shared();
            let newcomer = thread::spawn({
                let shared = shared.clone();
                move || {
                    shared.all().join(7, 0, 0).unwrap();
                    shared.generation.load(Ordering::Relaxed)
                }
            });
            shared.generation.store(1, Ordering::Relaxed);
            let waits = !shared.all().behind(1).is_empty();
            assert!(waits || newcomer.join().unwrap() == 1);
        });
    }

    /// The same where the one before followed a later generation under a serial that looks the same.
    /// Fails when `join` does not clear what that one followed.
    #[test]
    fn a_newcomer_has_not_followed_before() {
        model(|| {
            let shared = shared();
            let second = shared.all().join(9, 0, 0).unwrap();
            let before = shared.all().join(6, 0, 0).unwrap();
            shared.all().follow(second, 5);
            shared.all().follow(before, 5);
            shared.all().leave(before);
            // 65535 have come and gone meanwhile.
            shared.serials.fetch_add((1 << 16) - 1, Ordering::Relaxed);
            let newcomer = thread::spawn({
                let shared = shared.clone();
                move || {
                    shared.all().join(7, 0, 0).unwrap();
                    shared.generation.load(Ordering::Relaxed)
                }
            });
            shared.generation.store(1, Ordering::Relaxed);
            let waits = !shared.all().behind(1).is_empty();
            assert!(waits || newcomer.join().unwrap() == 1);
        });
    }

    /// A newcomer is never as old as the one before it in the slot, who may write its own beginning
    /// late; nor does it get that one's rights. Fails when `began` or `rights` does not look
    /// whose the word is, or `set_began` or `add_rights` is a store.
    #[test]
    fn what_a_newcomer_is_judged_by_is_its_own() {
        model(|| {
            let shared = shared();
            let _second = shared.all().join(9, 1, 0).unwrap();
            let before = shared.all().join(6, 0, 1).unwrap();
            let newcomer = thread::spawn({
                let shared = shared.clone();
                move || {
                    shared.all().leave(before);
                    shared.all().join(7, 5, 2).unwrap()
                }
            });
            shared.all().set_began(before, 3);
            shared.all().add_rights(before, 4);
            if let Some(seen) = shared.all().of_process(7) {
                assert!([0, 5].contains(&shared.all().began(seen)));
                assert!([0, 2].contains(&shared.all().rights(seen)));
            }
            let token = newcomer.join().unwrap();
            assert_eq!((shared.all().began(token), shared.all().rights(token)), (5, 2));
        });
    }

    /// Two find one dead: one reaps it. Fails when the compare-exchange of `leave` is a load
    /// and a store.
    #[test]
    fn one_reaps() {
        model(|| {
            let shared = shared();
            let token = shared.all().join(7, 0, 0).unwrap();
            let other = thread::spawn({
                let shared = shared.clone();
                move || shared.all().leave(token)
            });
            let here = shared.all().leave(token);
            assert_ne!(here, other.join().unwrap());
        });
    }

    /// Two processes take two slots. Fails when the compare-exchange of `join` is a load and a
    /// store.
    #[test]
    fn a_slot_is_of_one_participant() {
        model(|| {
            let shared = shared();
            let other = thread::spawn({
                let shared = shared.clone();
                move || shared.all().join(7, 0, 0).unwrap().slot
            });
            let here = shared.all().join(8, 0, 0).unwrap().slot;
            assert_ne!(here, other.join().unwrap());
        });
    }

    /// What a participant did before it said that it follows is done for who waits. Fails when
    /// the release of `follow` or the acquire of `followed` is relaxed.
    #[test]
    fn who_follows_has_done_it() {
        model(|| {
            let shared = shared();
            let token = shared.all().join(7, 0, 0).unwrap();
            let other = thread::spawn({
                let shared = shared.clone();
                move || {
                    shared.mapped.with_mut(|mapped| unsafe { *mapped = 1 });
                    shared.all().follow(token, 1);
                }
            });
            if shared.all().followed(token) == 1 {
                assert_eq!(shared.mapped.with(|mapped| unsafe { *mapped }), 1);
            }
            other.join().unwrap();
        });
    }

    /// An object that somebody was offered is on its way, or in the layout that is looked at after
    /// that. Fails when the release of `brought` or the acquire of `on_the_way` is relaxed.
    #[test]
    fn an_object_is_on_its_way_or_there() {
        model(|| {
            let shared = shared();
            let token = shared.all().join(7, 0, 0).unwrap();
            let offered = Arc::new(AtomicU64::new(0).ready());
            let bringer = thread::spawn({
                let (shared, offered) = (shared.clone(), offered.clone());
                move || {
                    shared.all().bring(token, 0, 5);
                    offered.store(1, Ordering::Release);
                    // The commit of a layout that has it.
                    shared.generation.store(1, Ordering::Release);
                    shared.all().brought(token, 0);
                }
            });
            if offered.load(Ordering::Acquire) == 1 {
                let on_the_way = shared.all().on_the_way().contains(&5);
                assert!(on_the_way || shared.generation.load(Ordering::Acquire) == 1);
            }
            bringer.join().unwrap();
        });
    }

    /// What the last one in a slot did is done for the next one. Fails when the release of
    /// `leave` is relaxed, or without the fence of `join`.
    #[test]
    fn a_slot_is_handed_on() {
        model(|| {
            let shared = shared();
            let token = shared.all().join(7, 0, 0).unwrap();
            let second = shared.all().join(9, 0, 0).unwrap();
            let other = thread::spawn({
                let shared = shared.clone();
                move || {
                    shared.mapped.with_mut(|mapped| unsafe { *mapped = 1 });
                    shared.all().leave(token);
                }
            });
            if shared.all().join(8, 0, 0).is_some() {
                assert_eq!(shared.mapped.with(|mapped| unsafe { *mapped }), 1);
            }
            other.join().unwrap();
            assert!(shared.all().is_present(second));
        });
    }
}
