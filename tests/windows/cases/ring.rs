//! The windows of rings.

use super::{Case, Memory, REFUSED, Shape, call};
use std::io::IoSlice;
use unmerged::arch::{self, RING_DATA, RING_LIMIT, RING_PAD};

/// Units of the ring's data, less one.
const MASK: u64 = 31;
/// What a record adds to the head: itself, and its units.
const fn step(units: u64) -> u64 {
    1 << 32 | units
}

/// A ring with two records in it, of 10 units, and room for the rest.
fn before(stripe: &mut Memory, own: &mut Memory) {
    stripe.put(0, 8, 2 << 32 | 10);
    stripe.put(RING_LIMIT, 8, MASK + 1);
    own.bytes[..200].iter_mut().zip(1..).for_each(|(byte, n)| *byte = n);
}

/// What lies behind the head was never published.
fn behind_the_head(stripe: &mut Memory) {
    let head = stripe.get(0, 4) as usize;
    stripe.bytes[RING_DATA + head * 8..RING_DATA + (MASK as usize + 1) * 8].fill(0);
}

/// Publishes a record of this length and payload.
fn publish(stripe: &mut Memory, len: u64, payload: &[u8]) -> u64 {
    let (head, units) = (stripe.get(0, 8), 1 + payload.len().div_ceil(8) as u64);
    let low = head as u32;
    if (stripe.get(RING_LIMIT, 4) as u32).wrapping_sub(low) < units as u32
        || u64::from(low) + units - 1 > MASK
    {
        return REFUSED;
    }
    let at = RING_DATA + low as usize * 8;
    stripe.put(at, 8, len);
    stripe.bytes[at + 8..at + 8 + payload.len()].copy_from_slice(payload);
    stripe.put(0, 8, head + step(units));
    0
}

pub(super) const CASES: &[Case] = &[
    Case {
        forget: behind_the_head,
        ..Case::new(
            "ring_publish_words",
            Shape::Cpu,
            call!(|o| {
                let payload = [0x1111, 0x2222];
                let stripe = o.on_stripe(0);
                arch::ring_publish_words(o.area, o.cpu, stripe, MASK, step(3), 16, 16, payload)
            }),
            before,
            |stripe, _| {
                let payload = [0x1111_u64.to_le_bytes(), 0x2222_u64.to_le_bytes()].concat();
                publish(stripe, 16, &payload)
            },
        )
    },
    Case {
        forget: behind_the_head,
        ..Case::new(
            "ring_publish_vectors",
            Shape::Cpu,
            call!(|o| {
                let (stripe, payload) = (o.on_stripe(0), o.own::<u8>(0).cast_const());
                arch::ring_publish_vectors(o.area, o.cpu, stripe, MASK, step(5), 32, payload, 16)
            }),
            before,
            |stripe, own| publish(stripe, 32, &own.bytes[..32]),
        )
    },
    Case {
        forget: behind_the_head,
        ..Case::new(
            "ring_publish_parts",
            Shape::Cpu,
            call!(|o| {
                let part = |from, len| IoSlice::new(std::slice::from_raw_parts(o.own(from), len));
                let (stripe, parts) = (o.on_stripe(0), [part(0, 13), part(13, 0), part(13, 27)]);
                arch::ring_publish_parts(o.area, o.cpu, stripe, MASK, step(6), 40, &parts)
            }),
            before,
            |stripe, own| publish(stripe, 40, &own.bytes[..40]),
        )
    },
    // No room, and none in one piece.
    Case::new(
        "ring_publish_words/full",
        Shape::Cpu,
        call!(|o| {
            let stripe = o.on_stripe(0);
            arch::ring_publish_words(o.area, o.cpu, stripe, MASK, step(3), 16, 16, [1, 2])
        }),
        |stripe, own| {
            before(stripe, own);
            stripe.put(RING_LIMIT, 8, 12);
        },
        |_, _| REFUSED,
    ),
    Case::new(
        "ring_publish_words/end",
        Shape::Cpu,
        call!(|o| {
            let stripe = o.on_stripe(0);
            arch::ring_publish_words(o.area, o.cpu, stripe, MASK, step(3), 16, 16, [1, 2])
        }),
        |stripe, own| {
            before(stripe, own);
            stripe.put(0, 8, 2 << 32 | (MASK - 1));
            stripe.put(RING_LIMIT, 8, 2 * MASK);
        },
        |_, _| REFUSED,
    ),
    // Whoever pads has looked at the head before, and gives up if it is another one.
    Case {
        forget: behind_the_head,
        ..Case::new(
            "ring_pad",
            Shape::Cpu,
            call!(|o| {
                let stripe = o.on_stripe::<u8>(0);
                let head = stripe.cast::<u64>().read_volatile();
                let at = o.on_stripe(RING_DATA + head as u32 as usize * 8);
                arch::ring_pad(o.area, o.cpu, stripe, head, at, 2)
            }),
            before,
            |stripe, _| {
                let head = stripe.get(0, 8);
                stripe.put(RING_DATA + head as u32 as usize * 8, 8, RING_PAD);
                stripe.put(0, 8, head + 2);
                0
            },
        )
    },
];
