//! What the peers of a shared channel may do to it: die at any instruction of a send and of a
//! receive, and write anything.

mod common;
#[path = "common/hostile_channel.rs"]
mod hostile_channel;
#[path = "common/processes.rs"]
mod processes;

use common::{SetAtEnd, map, missing, stress};
use processes::{Dice, alone, far, file, give_up, shared, storm};
use proptest::prelude::*;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};
use unmerged::futex2::lock::{Channel, select};
use unmerged::futex2::{Deadline, Shared};

const CAPACITY: u32 = 16;

type Pairs = Channel<[u64; 2], Shared>;

fn pairs(capacity: u32) -> Pairs {
    let bytes = Pairs::bytes(capacity).next_multiple_of(4096);
    // SAFETY: a mapping of its own, for good.
    unsafe { Channel::attach(map(&file(bytes), bytes), bytes, capacity) }.unwrap()
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_micros(500))
}

/// What the child of a stepped test does between its two stops.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Act {
    Send,
    Receive,
}

/// Lets a child of fork do it, up to this instruction, and kills it; how many instructions it made,
/// and whether it was over. `None`: it cannot be traced.
fn die_at(channel: &Pairs, spare: &Pairs, act: Act, step: usize) -> Option<(usize, bool)> {
    // SAFETY: the child does plain calls, and is killed.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // So that this thread's number is known.
        spare.try_send([0, 0]).unwrap();
        spare.try_recv().unwrap();
        // SAFETY: asks to be traced by the parent, and to end with it.
        let traced = unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0)
        };
        if traced != 0 {
            // SAFETY: ends the child.
            unsafe { libc::_exit(77) };
        }
        // SAFETY: stops for the parent, which steps from here on.
        unsafe { libc::raise(libc::SIGSTOP) };
        match act {
            Act::Send => drop(channel.try_send([9, 9])),
            Act::Receive => drop(channel.try_recv()),
        }
        // SAFETY: tells that it is over.
        unsafe { libc::raise(libc::SIGUSR2) };
        // SAFETY: ends the child, should it come to that.
        unsafe { libc::_exit(0) };
    }
    let wait = || {
        let mut status = 0;
        // SAFETY: our own child.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        status
    };
    let status = wait();
    if libc::WIFEXITED(status) {
        assert_eq!(libc::WEXITSTATUS(status), 77);
        return None;
    }
    let (mut steps, mut over) = (0, false);
    while steps < step && !over {
        // SAFETY: a stopped child of ours.
        unsafe { libc::ptrace(libc::PTRACE_SINGLESTEP, pid, 0, 0) };
        let status = wait();
        assert!(libc::WIFSTOPPED(status), "{status:#x}");
        over = libc::WSTOPSIG(status) == libc::SIGUSR2;
        steps += 1;
    }
    // SAFETY: our own child.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    while libc::WIFSTOPPED(wait()) {}
    Some((steps, over))
}

/// A sender, or a receiver, ends at any of its instructions: an item that was sent is there once, or
/// gone with its receiver; one that was not sent is not there; and the others go on at once.
fn a_death_at_each_instruction(test: &str, act: Act) {
    if !alone(test) {
        return;
    }
    let [channel, spare] = [(); 2].map(|()| pairs(2));
    let held: &[u64] = if act == Act::Send { &[1] } else { &[1, 2] };
    let mut outcomes = [0; 2];
    let mut round = |step| {
        held.iter().for_each(|&item| channel.try_send([item, item]).unwrap());
        let (steps, over) = die_at(&channel, &spare, act, step)?;
        let left: Vec<[u64; 2]> = channel.try_iter().collect();
        let at = match (act, &left[..]) {
            (Act::Send, [[1, 1]]) | (Act::Receive, [[1, 1], [2, 2]]) => 0,
            (Act::Send, [[1, 1], [9, 9]]) | (Act::Receive, [[2, 2]]) => 1,
            _ => panic!("{act:?} to instruction {step}: {left:?}"),
        };
        outcomes[at] += 1;
        assert!(!over || at == 1);
        // All of its room is there, and it has an order.
        for item in [5, 6] {
            channel.try_send([item, item]).unwrap();
        }
        assert!(channel.try_send([7, 7]).unwrap_err().error.is_would_block());
        assert_eq!(channel.try_iter().collect::<Vec<_>>(), [[5, 5], [6, 6]]);
        Some(steps)
    };
    let Some(all) = round(usize::MAX) else {
        return missing("ptrace", "nobody dies at an instruction");
    };
    // Each of them, in an order that has them all over the place from the beginning on.
    let mut stride = (all * 5 / 8) | 1;
    while (2..=stride).any(|n| stride % n == 0 && all % n == 0) {
        stride += 2;
    }
    let end = Instant::now() + stress(Duration::from_millis(1000));
    let (mut rounds, mut step) = (0, 0);
    while rounds < all && Instant::now() < end {
        round(step);
        step = (step + stride) % all;
        rounds += 1;
    }
    assert!(outcomes.iter().all(|&n| n > 0), "{outcomes:?}");
    eprintln!("{act:?}: deaths at {rounds} of {all} instructions: {outcomes:?}");
}

#[test]
fn a_sender_dies_at_each_instruction() {
    a_death_at_each_instruction("a_sender_dies_at_each_instruction", Act::Send);
}

#[test]
fn a_receiver_dies_at_each_instruction() {
    a_death_at_each_instruction("a_receiver_dies_at_each_instruction", Act::Receive);
}

/// Items that the senders of a storm number, for each.
const MOST_ITEMS: usize = 1 << 23;
/// Items that a sender sends in a row: they fill the channel, and then it runs empty.
const BURST: u64 = 64;

/// Senders and receivers are killed. A sender notes what it is about to send, and what it has sent; a
/// receiver what it got. So of each item it is known that it was sent (once at the most, received
/// once at the most) or that its sender died with it in hand.
#[test]
fn channel_in_a_storm() {
    if !alone("channel_in_a_storm") {
        return;
    }
    let notes = file(MOST_ITEMS * 2);
    let channel = pairs(8);
    // For each sender, how many it began, and how many it finished.
    let counts: &[[AtomicU64; 2]; 2] = shared();
    // How often each item of each sender was received.
    let received = map(&notes, MOST_ITEMS * 2).cast::<AtomicU8>();
    let note =
        // SAFETY: in the mapping.
        |sender: usize, item: usize| unsafe { received.add(sender * MOST_ITEMS + item).as_ref() };
    let sent = |sender: usize| (&counts[sender][0], &counts[sender][1]);
    let receive = |[sender, item]: [u64; 2]| {
        if sender >= 2 || item >= MOST_ITEMS as u64 {
            give_up("an item that nobody sent");
        }
        if note(sender as usize, item as usize).fetch_add(1, SeqCst) != 0 {
            give_up("an item twice");
        }
    };
    let play = |me: usize| {
        loop {
            if me < 2 {
                let (begun, done) = sent(me);
                let item = begun.fetch_add(1, SeqCst);
                if item % BURST == 0 {
                    let begin = Instant::now();
                    while begin.elapsed() < Duration::from_micros(item % 1024) {
                        std::hint::spin_loop();
                    }
                }
                if item as usize >= MOST_ITEMS {
                    // SAFETY: waits to be killed.
                    unsafe { libc::pause() };
                    continue;
                }
                if let Err(error) = channel.send_until([me as u64, item], far()) {
                    give_up(&error.to_string());
                }
                done.fetch_add(1, SeqCst);
            } else {
                match channel.recv_until(far()) {
                    Ok(item) => receive(item),
                    // The senders may have sent all that they may.
                    Err(_)
                        if (0..2)
                            .all(|sender| sent(sender).0.load(SeqCst) as usize >= MOST_ITEMS) => {}
                    Err(error) => give_up(&error.to_string()),
                }
            }
        }
    };
    let (mut senders, mut receivers) = (2, 2);
    storm::<4>(play, |me| *(if me < 2 { &mut senders } else { &mut receivers }) += 1);
    while let Ok(item) = channel.recv_until(Deadline::after(Duration::from_millis(200))) {
        receive(item);
    }
    // Each death of a sender may have spared one item, or left it sent and not noted; each of a
    // receiver may have taken one along.
    let (mut begun, mut done, mut got) = (0, 0, 0);
    for sender in 0..2 {
        let (b, d) = sent(sender);
        let most = b.load(SeqCst).min(MOST_ITEMS as u64);
        begun += most;
        done += d.load(SeqCst);
        got +=
            (0..most).map(|item| u64::from(note(sender, item as usize).load(SeqCst))).sum::<u64>();
    }
    assert!(got <= begun && got + receivers >= done, "{begun} begun, {done} sent, {got} received");
    assert!(begun - done <= senders, "{begun} begun, {done} sent, {senders} senders");
    assert!(got > 0 && channel.is_empty());
    // It still works.
    channel.try_send([0, 0]).unwrap();
    assert_eq!(channel.try_recv().unwrap(), [0, 0]);
    eprintln!(
        "storm: channel: {begun} begun, {done} sent, {got} received; {senders} senders, {receivers} receivers"
    );
}

/// A channel whose last byte is the last one before a page that nobody may touch.
fn before_a_wall() -> (NonNull<u8>, Pairs) {
    const BYTES: usize = Pairs::bytes(CAPACITY);
    assert_eq!(BYTES % 128, 0);
    let base = map(&file(2 * 4096), 2 * 4096);
    // SAFETY: the second page of a new mapping.
    let wall = unsafe { libc::mprotect(base.add(4096).as_ptr().cast(), 4096, libc::PROT_NONE) };
    assert_eq!(wall, 0);
    // SAFETY: in the first page.
    let base = unsafe { base.add(4096 - BYTES) };
    // SAFETY: mapped for good, and nothing else is in there.
    (base, unsafe { Pairs::attach(base, BYTES, CAPACITY) }.unwrap())
}

/// Any bytes at all: errors or wrong items, nothing out of bounds, no wait beyond its deadline.
#[test]
fn hostile_channels() {
    let (base, channel) = before_a_wall();
    let mut dice = Dice(7);
    for _ in 0..200 {
        for word in 0..Pairs::bytes(CAPACITY) / 8 {
            let any = dice.next(u64::MAX);
            let value = [0, 1, u64::MAX, any << 16, any & 15][dice.next(5) as usize];
            // SAFETY: in the channel.
            unsafe { base.cast::<u64>().add(word).write_volatile(value) };
        }
        let _ = (channel.try_send([1, 2]), channel.try_recv(), channel.len());
        let _ = (channel.send_until([1, 2], soon()), channel.recv_until(soon()));
        let _ = select(&[&channel.receiving(), &channel.sending()], Some(soon()));
    }
    const PAGES: usize = 4 * 4096;
    const BYTES: usize = Pairs::bytes(CAPACITY);
    let base = map(&file(PAGES), PAGES);
    for (len, capacity) in [(BYTES - 1, CAPACITY), (PAGES, 0), (PAGES, 1 << 31)] {
        // SAFETY: it is refused.
        let refused = unsafe { Pairs::attach(base, len, capacity) };
        assert!(refused.unwrap_err().is_invalid());
    }
    // SAFETY: it is refused.
    let odd = unsafe { Channel::<u8, Shared>::attach(base.add(8), PAGES - 8, 8) };
    assert!(odd.unwrap_err().is_invalid());
}

/// A sender that was slow has put the tail far back: the next ones find the end again, in steps.
#[test]
fn a_tail_that_is_far_behind() {
    const CAPACITY: u32 = 20_000;
    let bytes = Pairs::bytes(CAPACITY);
    let base = map(&file(bytes), bytes);
    // SAFETY: a mapping of its own, for good.
    let channel = unsafe { Pairs::attach(base, bytes, CAPACITY) }.unwrap();
    for item in 0..15_000 {
        channel.try_send([item, item]).unwrap();
    }
    // SAFETY: the tail is the first word, and nobody else is there.
    unsafe { base.cast::<u64>().write_volatile(0) };
    let tries = (1..20).find(|_| match channel.try_send([15_000, 15_000]) {
        Ok(()) => true,
        Err(error) => {
            assert!(error.error.is_would_block());
            false
        }
    });
    assert!(tries.is_some_and(|tries| tries > 1), "{tries:?}");
    // SAFETY: as above.
    unsafe { base.cast::<u64>().write_volatile(0) };
    // One that waits does not give up.
    channel.send([15_001, 15_001]).unwrap();
    assert!(channel.try_iter().eq((0..=15_001).map(|item| [item, item])));
}

/// A peer writes claims of a thread that is dead all the time: nothing that has a deadline, or waits
/// for nothing, goes on without end.
#[test]
fn claims_without_end() {
    // The highest id that the kernel may give; without a time at which it began.
    const CLAIM: u64 = 2 << 62 | ((1 << 22) - 1);
    let (base, channel) = before_a_wall();
    let [begun, stop] = [const { AtomicBool::new(false) }; 2];
    let words = Pairs::bytes(CAPACITY) / 8;
    // The slots, of three words each, are last.
    let first = words - 3 * CAPACITY as usize;
    let (base, begun, stop) = (base.expose_provenance().get(), &begun, &stop);
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let finish = SetAtEnd(stop);
        // More than one, so that mostly one of them runs.
        for _ in 0..3 {
            scope.spawn(move || {
                let at =
                    |word: usize| std::ptr::with_exposed_provenance_mut::<u64>(base + 8 * word);
                while !stop.load(SeqCst) {
                    for slot in 0..CAPACITY as usize {
                        // SAFETY: in the channel.
                        unsafe { at(first + 3 * slot).write_volatile(CLAIM) };
                    }
                    begun.store(true, SeqCst);
                }
            });
        }
        while !begun.load(SeqCst) {
            std::thread::yield_now();
        }
        while begin.elapsed() < stress(Duration::from_millis(300)) {
            let _ = (channel.try_send([1, 2]), channel.try_recv());
            let _ = (channel.send_until([1, 2], soon()), channel.recv_until(soon()));
            let _ = select(&[&channel.receiving(), &channel.sending()], Some(soon()));
        }
        drop(finish);
    });
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

    /// Any bytes in the words, before and between: errors or wrong items, no crash and no hang.
    #[test]
    fn hostile_words(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        hostile_channel::run(&bytes);
    }
}
