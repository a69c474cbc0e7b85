//! The sequences on one word: seven of them, in four widths and two shapes. The third shape,
//! `ByCaller`, is `Striped` without the stop word, on another word of the thread.

use super::{Case, STOPPED, Shape, WORD, call};
use unmerged::arch::{Indexed, Striped, Words};

/// What the word holds before.
const OLD: u64 = 0x1122_3344_5566_77f0;
/// What it is changed with.
const V: u64 = 0xfedc_ba98_7654_32a5;

macro_rules! words {
    ($cases:ident, $imp:ident, $shape:expr, $at:ident, $int:ident) => {{
        const W: usize = size_of::<$int>();
        const MASK: u64 = u64::MAX >> (64 - 8 * W);
        let mut row = |name: &'static str, call, apply| {
            $cases.push(Case::new(
                name,
                $shape,
                call,
                |stripe, _| {
                    // Its neighbours, too, must stay.
                    stripe.put(WORD, 8, !0);
                    stripe.put(WORD, W, OLD);
                },
                apply,
            ));
        };
        macro_rules! name {
            ($operation:literal) => {
                concat!(stringify!($imp), "::", $operation, stringify!($int))
            };
        }
        row(name!("load_"), call!(|o| <$imp as Words<$int>>::load(o.$at())), |stripe, _| {
            stripe.get(WORD, W)
        });
        row(
            name!("store_"),
            call!(|o| <$imp as Words<$int>>::store(o.$at(), V as $int)),
            |stripe, _| {
                stripe.put(WORD, W, V);
                V & MASK
            },
        );
        row(
            name!("load_add_store_"),
            call!(|o| <$imp as Words<$int>>::load_add_store(o.$at(), V as $int)),
            |stripe, _| {
                let old = stripe.get(WORD, W);
                stripe.put(WORD, W, old.wrapping_add(V));
                old
            },
        );
        row(
            name!("load_store_"),
            call!(|o| <$imp as Words<$int>>::load_store(o.$at(), V as $int)),
            |stripe, _| {
                let old = stripe.get(WORD, W);
                stripe.put(WORD, W, V);
                old
            },
        );
        // Whoever comes second finds another value, and is refused.
        row(
            name!("load_cbne_store_"),
            call!(|o| <$imp as Words<$int>>::load_cbne_store(o.$at(), OLD as $int, V as $int)),
            |stripe, _| {
                let old = stripe.get(WORD, W);
                if old == OLD & MASK {
                    stripe.put(WORD, W, V);
                }
                old
            },
        );
        row(
            name!("load_and_store_"),
            call!(|o| <$imp as Words<$int>>::load_and_store(o.$at(), V as $int)),
            |stripe, _| {
                let old = stripe.get(WORD, W);
                stripe.put(WORD, W, old & V);
                old
            },
        );
        row(
            name!("load_or_store_"),
            call!(|o| <$imp as Words<$int>>::load_or_store(o.$at(), V as $int)),
            |stripe, _| {
                let old = stripe.get(WORD, W);
                stripe.put(WORD, W, old | V);
                old
            },
        );
    }};
}

macro_rules! shape {
    ($cases:ident, $imp:ident, $shape:expr, $at:ident) => {
        words!($cases, $imp, $shape, $at, u8);
        words!($cases, $imp, $shape, $at, u16);
        words!($cases, $imp, $shape, $at, u32);
        words!($cases, $imp, $shape, $at, u64);
        $cases.push(Case::new(
            concat!(stringify!($imp), "::store_u64/stopped"),
            $shape,
            call!(|o| <$imp as Words<u64>>::store(o.$at(), V)),
            |stripe, _| stripe.put(0, 8, 1),
            |_, _| STOPPED,
        ));
    };
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    shape!(cases, Indexed, Shape::Cpu, indexed);
    shape!(cases, Striped, Shape::Gs, striped);
    cases
}
