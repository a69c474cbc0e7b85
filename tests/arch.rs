//! Conformance: the same tests on the native implementation and on the portable twin,
//! then what only one of them has.

mod common;

use common::missing;
use std::ptr;
use unmerged::arch::{
    self, Answer, At, ByCaller, Id, Indexed, NOT_STRIPED, Outcome, Striped, Structures, Words,
    portable,
};
use unmerged::sys::{features::features, gs, rseq};

/// A machine to run the contract on: an implementation, and how to know one's CPU.
macro_rules! conformance {
    ($name:ident, $imp:path, $area:expr, $ready:expr) => {
        mod $name {
            use super::*;
            use $imp as imp;

            #[test]
            fn load_add_store_adds_on_its_cpu_and_nowhere_else() {
                if !$ready(false) {
                    return;
                }
                let area = $area;
                let mut word = 5_u64;
                let at = ptr::from_mut(&mut word);
                let mut done = 0;
                while done < 3 {
                    // SAFETY: the area is known.
                    let cpu = unsafe { imp::cpu_id(area) };
                    // SAFETY: the area is registered; the word is on this stack.
                    let outcome = unsafe { imp::load_add_store_u64(area, cpu, at, u64::MAX) };
                    done += u32::from(outcome == Outcome::Done);
                }
                assert_eq!(word, 2);
                // SAFETY: as above.
                let elsewhere = unsafe { imp::load_add_store_u64(area, NOT_STRIPED, at, 1) };
                assert_eq!((elsewhere, word), (Outcome::Aborted, 2));
            }

            #[test]
            fn gs_add_needs_a_stripe() {
                if !$ready(true) {
                    return;
                }
                let (area, cpus) = ($area, features().cpus.end());
                let stripes = vec![0_u64; cpus as usize * 16];
                let base = stripes.as_ptr().expose_provenance();
                std::thread::spawn(move || {
                    assert!($ready(true));
                    assert_eq!(imp::striped_cpu(), NOT_STRIPED);
                    // SAFETY: not striped, so the window touches no memory.
                    let outcome = unsafe { imp::gs_load_add_store_u64(area, 8, 1) };
                    assert_eq!(outcome, Outcome::Aborted);
                    let mut done = 0;
                    while done < 1000 {
                        // SAFETY: base and stride name the stripes; the offset is the second
                        // word of each.
                        if unsafe { imp::gs_load_add_store_u64(area, 8, 3) } == Outcome::Done {
                            done += 1;
                        } else {
                            // SAFETY: %gs is free in this thread.
                            let _ = unsafe { imp::gs_restripe(area, base, 128, cpus) };
                        }
                    }
                    let striped = imp::striped_cpu();
                    assert!(striped < cpus);
                    // SAFETY: FSGSBASE works, or this is the twin.
                    assert_eq!(unsafe { imp::gs_base() }, base + striped as usize * 128);
                    // SAFETY: no CPU is below 0, so the window aborts.
                    let outcome = unsafe { imp::gs_restripe(area, base, 128, 0) };
                    assert_eq!((outcome, imp::striped_cpu()), (Outcome::Aborted, NOT_STRIPED));
                    // SAFETY: back to what a thread starts with.
                    unsafe { imp::set_gs_base(0) };
                })
                .join()
                .unwrap();
                let mut sum = 0;
                for i in 0..cpus as usize {
                    // SAFETY: the thread has ended; asm wrote these words behind Rust's back.
                    sum += unsafe { stripes.as_ptr().add(i * 16 + 1).read_volatile() };
                }
                assert_eq!(sum, 3000);
            }

            #[test]
            fn the_word_around_each_byte() {
                let bytes = [0x0403_0201_u32, 0x0807_0605];
                for i in 0..8 {
                    // SAFETY: inside the array.
                    let word = unsafe { imp::containing_u32(bytes.as_ptr().cast::<u8>().add(i)) };
                    assert_eq!(word, bytes[i / 4]);
                }
            }

            #[test]
            #[allow(clippy::undocumented_unsafe_blocks, reason = "one comment for all the windows")]
            fn the_menu_of_librseq() {
                if !$ready(false) {
                    return;
                }
                let mut words = [0_u64; 16];
                let at = words.as_mut_ptr();
                // SAFETY: inside the array, here and below.
                let word = |n: usize| unsafe { at.add(n) };
                let get = |n: usize| unsafe { word(n).read_volatile() };
                let run = |window: &dyn Fn(Id) -> Answer<(), ()>| loop {
                    let area = $area;
                    // SAFETY: the area is known.
                    let cpu = unsafe { imp::cpu_id(area) };
                    let here = Id { area, field: area + 4, cpu };
                    // The CPU that it is not on.
                    let elsewhere = Id { cpu: NOT_STRIPED, ..here };
                    assert_eq!(window(elsewhere), Answer::Aborted);
                    match window(here) {
                        Answer::Aborted => {}
                        answer => return answer,
                    }
                };
                let (done, refused) = (Answer::Done(()), Answer::Refused(()));
                // SAFETY of the windows: words of this stack, registered area.
                let store = |e, v| run(&|id| unsafe { imp::load_cbne_store(id, word(0), e, v) });
                assert_eq!((store(0, 5), store(0, 6), get(0)), (done, refused, 5));

                // The pop of a list whose links lie at 8: two nodes, words 2..4 and 4..6.
                let (first, second) =
                    (word(2).expose_provenance() as u64, word(4).expose_provenance() as u64);
                unsafe { word(3).write_volatile(second) };
                unsafe { word(1).write_volatile(first) };
                let pop = || {
                    run(&|id| unsafe {
                        imp::load_cbeq_store_add_load_store(id, word(1), 0, 8, word(6))
                    })
                };
                assert_eq!((pop(), get(6), get(1)), (done, first, second));
                assert_eq!((pop(), get(6), get(1)), (done, second, 0));
                assert_eq!((pop(), get(6)), (refused, second));

                // Word 7 points at 8, and 8 behind that is the address of word 10.
                unsafe { word(7).write_volatile(word(8).expose_provenance() as u64) };
                unsafe { word(9).write_volatile(word(10).expose_provenance() as u64) };
                let add =
                    |v| run(&|id| unsafe { imp::load_add_load_load_add_store(id, word(7), 8, v) });
                assert_eq!((add(3), add(u64::MAX), get(10)), (done, done, 2));

                let two = |e, early, v| {
                    run(&|id| unsafe {
                        imp::load_cbne_store_store(id, word(0), e, (word(11), early), v)
                    })
                };
                assert_eq!((two(6, 1, 1), get(11), get(0)), (refused, 0, 5));
                assert_eq!((two(5, 1, 7), get(11), get(0)), (done, 1, 7));

                let both = |e, also, v| {
                    run(&|id| unsafe {
                        imp::load_cbne_load_cbne_store(id, word(0), e, (word(11), also), v)
                    })
                };
                assert_eq!((both(7, 2, 9), both(8, 1, 9), get(0)), (refused, refused, 7));
                assert_eq!((both(7, 1, 8), get(0)), (done, 8));

                let (from, mut to) = ([1_u8, 2, 3, 4, 5, 6, 7], [0_u8; 8]);
                let (source, target) = (from.as_ptr(), to.as_mut_ptr());
                let copy = |e, len, v| {
                    run(&|id| unsafe {
                        imp::load_cbne_memcpy_store(id, word(0), e, (target, source, len), v)
                    })
                };
                assert_eq!((copy(9, 7, 1), unsafe { target.read_volatile() }), (refused, 0));
                assert_eq!((copy(8, 5, 1), copy(1, 0, 2), get(0)), (done, done, 2));
                assert_eq!(
                    unsafe { target.cast::<[u8; 8]>().read_volatile() },
                    [1, 2, 3, 4, 5, 0, 0, 0]
                );
            }

            #[test]
            fn threads_have_pointers_of_their_own() {
                let here = imp::thread_pointer();
                assert_ne!(std::thread::spawn(imp::thread_pointer).join().unwrap(), here);
            }
        }
    };
}

/// Can this thread run native windows (with `%gs`)? A machine without says so.
fn native_ready(with_gs: bool) -> bool {
    let ready = rseq::ensure_registered() && (!with_gs || features().gs == gs::Claim::Free);
    if !ready {
        missing(if with_gs { "fsgsbase" } else { "rseq" }, "the portable twin alone");
    }
    ready
}

fn portable_ready(_: bool) -> bool {
    portable::set_cpu_id(0);
    true
}

conformance!(native, unmerged::arch, rseq::area(), native_ready);
conformance!(twin, unmerged::arch::portable, 0, portable_ready);

#[test]
fn the_twin_moves_when_told() {
    let mut words = [0_u64; 2];
    let at = words.as_mut_ptr();
    portable::set_cpu_id(1);
    // SAFETY: two words on this stack, a stride of 8.
    let striped = unsafe { portable::gs_restripe(0, at.expose_provenance(), 8, 2) };
    assert_eq!((striped, portable::striped_cpu()), (Outcome::Done, 1));
    // SAFETY: as above.
    assert_eq!(unsafe { portable::gs_load_add_store_u64(0, 0, 7) }, Outcome::Done);
    portable::set_cpu_id(0);
    // SAFETY: as above; now the stripe is another CPU's.
    assert_eq!(unsafe { portable::gs_load_add_store_u64(0, 0, 7) }, Outcome::Aborted);
    // SAFETY: reads what was written through pointers.
    assert_eq!(unsafe { [at.read(), at.add(1).read()] }, [0, 7]);
}

/// A stripe of 64 words, all zero, on which the sequences of one shape are tried.
struct Bench<'a> {
    /// Where word `n` is, for a window at this moment.
    at: &'a dyn Fn(usize) -> At,
    words: *mut u64,
}

#[allow(clippy::undocumented_unsafe_blocks, reason = "one comment for all the windows")]
impl Bench<'_> {
    /// Runs a window until it is not aborted.
    fn run<D, R>(&self, window: impl Fn(At) -> Answer<D, R>, word: usize) -> Answer<D, R> {
        loop {
            match window((self.at)(word)) {
                Answer::Aborted => {}
                answer => return answer,
            }
        }
    }

    fn word(&self, n: usize) -> u64 {
        assert!(n < 64);
        // SAFETY: one of the 64 words, which asm writes behind Rust's back.
        unsafe { self.words.add(n).read_volatile() }
    }

    fn set(&self, n: usize, value: u64) {
        assert!(n < 64);
        // SAFETY: as above.
        unsafe { self.words.add(n).write_volatile(value) };
    }

    /// The seven sequences on one word of a width, and that its neighbours stay.
    fn words<S: Words<T>, T: Copy + PartialEq + std::fmt::Debug + TryFrom<u64>>(&self)
    where
        T::Error: std::fmt::Debug,
    {
        const GARBAGE: u64 = 0xa5a5_a5a5_a5a5_a5a5;
        let bits = size_of::<T>() * 8;
        let mask = u64::MAX >> (64 - bits);
        let v = |value: u64| T::try_from(value & mask).unwrap();
        self.set(1, GARBAGE);
        let now = |expected: u64| {
            assert_eq!(self.word(1), GARBAGE & !mask | expected & mask, "{bits} bits");
        };
        let old = |answer, expected: u64| match answer {
            Answer::Done((_, old)) => assert_eq!(old, v(expected), "{bits} bits"),
            other => panic!("{other:?}"),
        };
        // SAFETY of the windows: word 1 of the stripe.
        old(self.run(|at| unsafe { S::load(at) }, 1), GARBAGE);
        old(self.run(|at| unsafe { S::store(at, v(3)) }, 1), 3);
        now(3);
        old(self.run(|at| unsafe { S::load_add_store(at, v(u64::MAX)) }, 1), 3);
        now(2);
        old(self.run(|at| unsafe { S::load_add_store(at, v(u64::MAX - 1)) }, 1), 2);
        now(0);
        old(self.run(|at| unsafe { S::load_store(at, v(0x7766_5544_3322_11f0)) }, 1), 0);
        now(0x7766_5544_3322_11f0);
        old(self.run(|at| unsafe { S::load_and_store(at, v(!0xf)) }, 1), 0x7766_5544_3322_11f0);
        old(self.run(|at| unsafe { S::load_or_store(at, v(5)) }, 1), 0x7766_5544_3322_11f0);
        now(0x7766_5544_3322_11f5);
        let exchange = |from: u64, to: u64| {
            self.run(|at| unsafe { S::load_cbne_store(at, v(from), v(to)) }, 1)
        };
        match exchange(0x7766_5544_3322_1100, 9) {
            Answer::Refused((_, old)) => assert_eq!(old, v(0x7766_5544_3322_11f5)),
            other => panic!("{other:?}"),
        }
        now(0x7766_5544_3322_11f5);
        old(exchange(0x7766_5544_3322_11f5, 9), 0x7766_5544_3322_11f5);
        now(9);
        assert_eq!((self.word(0), self.word(2)), (0, 0));
    }

    /// The list and the array.
    fn structures<S: Structures>(&self) {
        let mut nodes = [0_u64; 3];
        let address: [usize; 3] = std::array::from_fn(|n| (&raw mut nodes[n]).expose_provenance());
        // SAFETY of the windows: word 3 of the stripe is the head, the nodes are on this stack.
        let pop = || self.run(|at| unsafe { S::list_pop(at) }, 3);
        assert_eq!(pop(), Answer::Refused(()));
        for node in address {
            assert_eq!(self.run(|at| unsafe { S::list_push(at, node) }, 3), Answer::Done(()));
        }
        assert_eq!(self.word(3), address[2] as u64);
        for node in address.into_iter().rev() {
            assert_eq!(pop(), Answer::Done(node));
        }
        assert_eq!((pop(), self.word(3)), (Answer::Refused(()), 0));

        // An array of 8 behind word 10.
        let (count, capacity) = (10, 8);
        let push = |v| self.run(|at| unsafe { S::array_push(at, capacity, v) }, count);
        let pop = || self.run(|at| unsafe { S::array_pop(at) }, count);
        let batch = |from: &[usize]| {
            let (first, n) = (from.as_ptr(), from.len());
            self.run(|at| unsafe { S::array_push_batch(at, capacity, first, n) }, count)
        };
        assert_eq!(pop(), Answer::Refused(()));
        assert_eq!(batch(&[1, 2, 3, 4, 5, 6, 7, 8, 9]), Answer::Refused(()));
        assert_eq!(batch(&[1, 2, 3]), Answer::Done(()));
        assert_eq!((push(4), push(5)), (Answer::Done(()), Answer::Done(())));
        assert_eq!(batch(&[6, 7, 8, 9]), Answer::Refused(()));
        assert_eq!((0..7).map(|n| self.word(count + n)).collect::<Vec<_>>(), [5, 1, 2, 3, 4, 5, 0]);
        assert_eq!(batch(&[6, 7, 8]), Answer::Done(()));
        assert_eq!((push(9), self.word(count + 9)), (Answer::Refused(()), 0));
        assert_eq!(pop(), Answer::Done(8));
        let mut out = [0_usize; 6];
        let to = out.as_mut_ptr();
        let take = |n| self.run(|at| unsafe { S::array_pop_batch(at, to, n) }, count);
        assert_eq!(take(5), Answer::Done(5));
        // SAFETY: asm wrote it through the pointer.
        assert_eq!(unsafe { to.cast::<[usize; 6]>().read_volatile() }, [3, 4, 5, 6, 7, 0]);
        assert_eq!(take(6), Answer::Done(2));
        assert_eq!((take(1), self.word(count)), (Answer::Refused(()), 0));
    }

    fn all<S: Structures>(&self) {
        self.words::<S, u8>();
        self.words::<S, u16>();
        self.words::<S, u32>();
        self.words::<S, u64>();
        self.structures::<S>();
    }

    /// A stop word that is not 0 keeps every kind of window out.
    fn stopped<S: Structures>(&self) {
        self.set(0, 1);
        // SAFETY: words of the stripe, which no window gets to.
        assert_eq!(self.run(|at| unsafe { <S as Words<u64>>::store(at, 1) }, 5), Answer::Stopped);
        assert_eq!(self.run(|at| unsafe { S::list_push(at, 8) }, 5), Answer::Stopped);
        assert_eq!(self.run(|at| unsafe { S::array_pop(at) }, 5), Answer::Stopped);
        assert_eq!(self.word(5), 0);
        self.set(0, 0);
    }
}

fn indexed_at(words: *mut u64) -> impl Fn(usize) -> At {
    move |n| {
        let area = rseq::area();
        // SAFETY: the area is known.
        let cpu = unsafe { arch::cpu_id(area) };
        let word = words.expose_provenance();
        At { area, field: area + 4, cpu, stop: word, word: word + n * 8 }
    }
}

#[test]
fn indexed_sequences() {
    if !native_ready(false) {
        return;
    }
    let mut words = [0_u64; 64];
    let words = words.as_mut_ptr();
    let bench = Bench { at: &indexed_at(words), words };
    bench.all::<Indexed>();
    bench.stopped::<Indexed>();
    // On another CPU's address nothing happens.
    let elsewhere = At { cpu: NOT_STRIPED, ..indexed_at(words)(5) };
    // SAFETY: a word of the stripe, which the window does not get to.
    assert_eq!(unsafe { <Indexed as Words<u32>>::store(elsewhere, 1) }, Answer::Aborted);
    assert_eq!(bench.word(5), 0);
}

#[test]
fn portable_sequences() {
    let mut words = [0_u64; 64];
    let words = words.as_mut_ptr();
    let start = words.expose_provenance();
    let at = |n| At { area: 0, field: 0, cpu: 7, stop: 0, word: start + n * 8 };
    Bench { at: &at, words }.all::<portable::Portable>();
}

/// One stripe for all CPUs: a stride of 0 would do, but the kernel's word is what counts.
fn striped<S: Structures>(restripe: unsafe fn(isize, usize, usize, u32) -> Outcome, stops: bool) {
    if !native_ready(true) {
        return;
    }
    std::thread::spawn(move || {
        assert!(native_ready(true));
        let mut words = [0_u64; 64];
        let words = words.as_mut_ptr();
        let base = words.expose_provenance();
        let at = |n| {
            let area = rseq::area();
            // SAFETY: %gs is free in this thread; all CPUs have the same stripe here, as only
            // this thread uses it.
            let _ = unsafe { restripe(area, base, 0, features().cpus.end()) };
            At { area, field: 0, cpu: 0, stop: 0, word: n * 8 }
        };
        let bench = Bench { at: &at, words };
        bench.all::<S>();
        if stops {
            bench.stopped::<S>();
        }
        // SAFETY: back to what a thread starts with.
        unsafe { arch::set_gs_base(0) };
    })
    .join()
    .unwrap();
}

#[test]
fn striped_sequences() {
    striped::<Striped>(arch::gs_restripe, true);
}

#[test]
fn sequences_on_stripes_of_the_caller() {
    striped::<ByCaller>(arch::gs_restripe_callers, false);
}

/// Whoever points `%gs` somewhere ends the other striping, also if a handler has begun that one
/// since the caller looked.
#[test]
fn a_thread_has_one_striping() {
    if !native_ready(true) {
        return;
    }
    std::thread::spawn(|| {
        assert!(native_ready(true));
        let mut word = 0_u64;
        let base = (&raw mut word).expose_provenance();
        let (area, cpus) = (rseq::area(), features().cpus.end());
        let stripe = |restripe: unsafe fn(isize, usize, usize, u32) -> Outcome| {
            // SAFETY: %gs is free in this thread; a stripe for all CPUs, which no window is run on.
            let once = || unsafe { restripe(area, base, 0, cpus) };
            while once() != Outcome::Done {}
        };
        // SAFETY: a word of this thread.
        let words = || (arch::striped_cpu(), unsafe { arch::callers_cpu().read_volatile() });
        for _ in 0..2 {
            stripe(arch::gs_restripe);
            assert!(words().0 < cpus && words().1 == NOT_STRIPED);
            stripe(arch::gs_restripe_callers);
            assert!(words().0 == NOT_STRIPED && words().1 < cpus);
        }
        // SAFETY: back to what a thread starts with.
        unsafe { arch::set_gs_base(0) };
    })
    .join()
    .unwrap();
}
