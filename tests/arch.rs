//! Conformance: the same tests on the native implementation and on the portable twin,
//! then what only one of them has.

mod common;

use common::missing;
use std::ptr;
use unmerged::abi::rseq::{RseqCs, SIGNATURE};
use unmerged::arch::{NOT_STRIPED, Outcome, portable};
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

// The linker names the ends of a section whose name is an identifier.
unsafe extern "C" {
    #[link_name = "__start___rseq_cs"]
    static FIRST: [RseqCs; 0];
    #[link_name = "__stop___rseq_cs"]
    static END: [RseqCs; 0];
}

/// All descriptors, as the linker left them in this very binary: each 32-aligned, of a short
/// window that begins right behind the store of `rseq_cs`, its abort address outside of the
/// window and right behind the signature.
#[test]
fn descriptors_of_this_binary() {
    let (first, end) = (&raw const FIRST, &raw const END);
    let (first, end) = (first.cast::<RseqCs>(), end.cast::<RseqCs>());
    assert!(first.is_aligned());
    let bytes = end.addr() - first.addr();
    assert_eq!(bytes % size_of::<RseqCs>(), 0);
    let count = bytes / size_of::<RseqCs>();
    assert!(count >= 3, "{count} descriptors for three sequences");
    for n in 0..count {
        // SAFETY: between the ends of the section, relocated before main.
        let descriptor = unsafe { &*first.add(n) };
        let window = descriptor.start_ip..descriptor.start_ip + descriptor.post_commit_offset;
        assert_eq!((descriptor.version, descriptor.flags), (0, 0));
        assert!((10..64).contains(&descriptor.post_commit_offset), "{descriptor:?}");
        assert!(!window.contains(&descriptor.abort_ip), "{descriptor:?}");
        let text = |address: u64| ptr::with_exposed_provenance::<u8>(address as usize);
        // SAFETY: the abort stub is text of this binary, the signature precedes it.
        let signature = unsafe { text(descriptor.abort_ip - 4).cast::<u32>().read_unaligned() };
        assert_eq!(signature, SIGNATURE);
        // mov qword ptr fs:[area + 8], s: prefix, REX, opcode, ModRM, perhaps SIB, and 8.
        // SAFETY: text of this binary in front of the window.
        let store: [u8; 5] = unsafe { text(descriptor.start_ip - 5).cast::<[u8; 5]>().read() };
        assert_eq!((store[0], store[2], store[4]), (0x64, 0x89, 8), "{store:x?}");
    }
}

/// What `gs_restripe` writes, as a model of a thread.
#[derive(Clone, Copy)]
struct Thread {
    base: u32,
    striped: u32,
}

/// Executes `gs_restripe` on CPU 2 from step `pc` on, with an interruption in front of
/// each step: none, or a signal handler that does an operation of its own on CPU 0, 1 or 2.
/// The window starts at step `first`; an interruption inside it aborts. Whether base and
/// `striped_cpu` always agreed when somebody relied on it.
fn restripe_holds(mut thread: Thread, pc: usize, first: usize) -> bool {
    [None, Some(0), Some(1), Some(2)].into_iter().all(|handler| {
        if let Some(cpu) = handler {
            if thread.striped == cpu && thread.base != cpu {
                return false; // the handler adds to the stripe of another CPU
            }
            thread = Thread { base: cpu, striped: cpu };
        }
        let aborted = handler.is_some() && first < pc && pc < 3;
        let mut next = thread;
        match pc {
            0 => next.striped = NOT_STRIPED,
            1 => next.base = 2,
            2 => next.striped = 2,
            _ => {}
        }
        let agree = thread.striped == NOT_STRIPED || thread.striped == thread.base;
        if pc == 3 || aborted { agree } else { restripe_holds(next, pc + 1, first) }
    })
}

/// `NOT_STRIPED` is written inside the window. In front of it, the model finds the stripe
/// of another CPU under a handler's operation.
#[test]
fn restripe_survives_every_interruption() {
    let start = Thread { base: 0, striped: 0 };
    assert!(restripe_holds(start, 0, 0));
    assert!(!restripe_holds(start, 0, 1));
}
