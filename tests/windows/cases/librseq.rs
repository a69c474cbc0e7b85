//! librseq's menu.

use super::{Case, Memory, REFUSED, Shape, WORD, call};
use unmerged::arch;

/// Another word of the stripe, and what is read through it.
const OTHER: usize = 0x80;
const FAR: usize = 0x180;
/// Where the caller's own memory is used.
const OWN: usize = 0x30;

fn before(stripe: &mut Memory, own: &mut Memory) {
    stripe.put(WORD, 8, 5);
    stripe.put(OTHER, 8, 1);
    own.bytes[OWN..OWN + 100].iter_mut().zip(1..).for_each(|(byte, n)| *byte = n);
}

/// Exchanges 5 for 6, if nobody has; whether it did.
fn exchanged(stripe: &mut Memory) -> bool {
    let is = stripe.get(WORD, 8) == 5;
    if is {
        stripe.put(WORD, 8, 6);
    }
    is
}

pub(super) const CASES: &[Case] = &[
    Case::new(
        "load_cbne_store",
        Shape::Cpu,
        call!(|o| arch::load_cbne_store(o.id(), o.on_stripe(WORD), 5, 6)),
        before,
        |stripe, _| {
            exchanged(stripe);
            REFUSED
        },
    ),
    // The link is at 8 in a node.
    Case::new(
        "load_cbeq_store_add_load_store",
        Shape::Cpu,
        call!(|o| {
            let (word, load) = (o.on_stripe(WORD), o.own(OWN));
            arch::load_cbeq_store_add_load_store(o.id(), word, 0, 8, load)
        }),
        |stripe, _| {
            stripe.put(WORD, 8, (stripe.address + FAR) as u64);
            stripe.put(FAR + 8, 8, (stripe.address + FAR + 16) as u64);
        },
        |stripe, own| {
            let node = stripe.get(WORD, 8);
            if node != 0 {
                own.put(OWN, 8, node);
                stripe.put(WORD, 8, stripe.get(node as usize + 8 - stripe.address, 8));
            }
            REFUSED
        },
    ),
    Case::new(
        "load_cbeq_store_add_load_store/empty",
        Shape::Cpu,
        call!(|o| {
            let (word, load) = (o.on_stripe(WORD), o.own(OWN));
            arch::load_cbeq_store_add_load_store(o.id(), word, 0, 8, load)
        }),
        |_, _| {},
        |_, _| REFUSED,
    ),
    Case::new(
        "load_add_load_load_add_store",
        Shape::Cpu,
        call!(|o| arch::load_add_load_load_add_store(o.id(), o.on_stripe(WORD), 16, 3)),
        |stripe, _| {
            stripe.put(WORD, 8, (stripe.address + OTHER) as u64);
            stripe.put(OTHER + 16, 8, (stripe.address + FAR) as u64);
        },
        |stripe, _| {
            stripe.put(FAR, 8, stripe.get(FAR, 8) + 3);
            REFUSED
        },
    ),
    // The first store counts only if the second is made.
    Case {
        forget: |stripe| {
            if stripe.get(WORD, 8) == 5 {
                stripe.put(FAR, 8, 0);
            }
        },
        ..Case::new(
            "load_cbne_store_store",
            Shape::Cpu,
            call!(|o| {
                let first = (o.on_stripe(FAR), 9);
                arch::load_cbne_store_store(o.id(), o.on_stripe(WORD), 5, first, 6)
            }),
            before,
            |stripe, _| {
                if exchanged(stripe) {
                    stripe.put(FAR, 8, 9);
                }
                REFUSED
            },
        )
    },
    Case::new(
        "load_cbne_load_cbne_store",
        Shape::Cpu,
        call!(|o| {
            let other = (o.on_stripe::<u64>(OTHER).cast_const(), 1);
            arch::load_cbne_load_cbne_store(o.id(), o.on_stripe(WORD), 5, other, 6)
        }),
        before,
        |stripe, _| {
            exchanged(stripe);
            REFUSED
        },
    ),
    Case::new(
        "load_cbne_load_cbne_store/other",
        Shape::Cpu,
        call!(|o| {
            let other = (o.on_stripe::<u64>(OTHER).cast_const(), 2);
            arch::load_cbne_load_cbne_store(o.id(), o.on_stripe(WORD), 5, other, 6)
        }),
        before,
        |_, _| REFUSED,
    ),
    Case {
        forget: |stripe| {
            if stripe.get(WORD, 8) == 5 {
                stripe.bytes[FAR..FAR + 24].fill(0);
            }
        },
        ..Case::new(
            "load_cbne_memcpy_store",
            Shape::Cpu,
            call!(|o| {
                let copy = (o.on_stripe(FAR), o.own::<u8>(OWN).cast_const(), 19);
                arch::load_cbne_memcpy_store(o.id(), o.on_stripe(WORD), 5, copy, 6)
            }),
            before,
            |stripe, own| {
                if exchanged(stripe) {
                    stripe.bytes[FAR..FAR + 19].copy_from_slice(&own.bytes[OWN..OWN + 19]);
                }
                REFUSED
            },
        )
    },
];
