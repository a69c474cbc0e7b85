//! The sequences on lists and arrays, in two shapes.

use super::{Case, Memory, REFUSED, Shape, WORD, call};
use unmerged::arch::{Indexed, Striped, Structures};

/// Where the caller's node is in its own memory, and where its batch is.
const OWN: usize = 0x20;
/// Where the nodes of a list are in the stripe.
const NODES: [usize; 3] = [0x200, 0x210, 0x220];
/// Slots of the array behind [`WORD`].
const CAPACITY: usize = 12;

/// Slot `n` of the array.
const fn slot(n: u64) -> usize {
    WORD + 8 + n as usize * 8
}

/// Fills an array with `count` numbers.
fn fill(stripe: &mut Memory, count: u64) {
    stripe.put(WORD, 8, count);
    for n in 0..count {
        stripe.put(slot(n), 8, 0x1000 + n);
    }
}

/// What lies behind the count was never put there.
fn behind_the_count(stripe: &mut Memory) {
    for n in stripe.get(WORD, 8)..CAPACITY as u64 {
        stripe.put(slot(n), 8, 0);
    }
}

fn push(stripe: &mut Memory, values: impl Iterator<Item = u64>) -> u64 {
    let values: Vec<_> = values.collect();
    let count = stripe.get(WORD, 8);
    if count as usize + values.len() > CAPACITY {
        return REFUSED;
    }
    for (n, value) in (count..).zip(&values) {
        stripe.put(slot(n), 8, *value);
    }
    stripe.put(WORD, 8, count + values.len() as u64);
    REFUSED // of the two answers without a value one is as good as the other
}

fn batch(own: &Memory) -> impl Iterator<Item = u64> {
    (0..3).map(|n| own.get(OWN + n * 8, 8))
}

macro_rules! structures {
    ($($imp:ident, $shape:expr, $at:ident;)+) => {
        /// Both shapes of each.
        pub(super) const CASES: &[Case] = &[$(
            Case::new(
                concat!(stringify!($imp), "::list_push"),
                $shape,
                call!(|o| $imp::list_push(o.$at(), o.own::<u8>(OWN).addr())),
                |stripe, _| stripe.put(WORD, 8, 0x1234),
                |stripe, own| {
                    own.put(OWN, 8, stripe.get(WORD, 8));
                    stripe.put(WORD, 8, (own.address + OWN) as u64);
                    REFUSED
                },
            ),
            // Three nodes; then it is empty.
            Case::new(
                concat!(stringify!($imp), "::list_pop"),
                $shape,
                call!(|o| $imp::list_pop(o.$at())),
                |stripe, _| {
                    let mut next = 0;
                    for node in NODES {
                        stripe.put(node, 8, next);
                        next = (stripe.address + node) as u64;
                    }
                    stripe.put(WORD, 8, next);
                },
                |stripe, _| {
                    let node = stripe.get(WORD, 8);
                    if node == 0 {
                        return REFUSED;
                    }
                    let next = stripe.get(node as usize - stripe.address, 8);
                    stripe.put(WORD, 8, next);
                    node
                },
            ),
            Case::new(
                concat!(stringify!($imp), "::list_pop/empty"),
                $shape,
                call!(|o| $imp::list_pop(o.$at())),
                |_, _| {},
                |_, _| REFUSED,
            ),
            Case {
                forget: behind_the_count,
                ..Case::new(
                    concat!(stringify!($imp), "::array_push"),
                    $shape,
                    call!(|o| $imp::array_push(o.$at(), CAPACITY, 77)),
                    // Room for one: the second comer is refused.
                    |stripe, _| fill(stripe, CAPACITY as u64 - 1),
                    |stripe, _| push(stripe, [77].into_iter()),
                )
            },
            Case {
                forget: behind_the_count,
                ..Case::new(
                    concat!(stringify!($imp), "::array_pop"),
                    $shape,
                    call!(|o| $imp::array_pop(o.$at())),
                    |stripe, _| fill(stripe, 1),
                    |stripe, _| {
                        let count = stripe.get(WORD, 8);
                        if count == 0 {
                            return REFUSED;
                        }
                        stripe.put(WORD, 8, count - 1);
                        stripe.get(slot(count - 1), 8)
                    },
                )
            },
            Case {
                forget: behind_the_count,
                ..Case::new(
                    concat!(stringify!($imp), "::array_push_batch"),
                    $shape,
                    call!(|o| $imp::array_push_batch(o.$at(), CAPACITY, o.own(OWN), 3)),
                    |stripe, own| {
                        fill(stripe, 7);
                        (0..3).for_each(|n| own.put(OWN + n * 8, 8, 0x2000 + n as u64));
                    },
                    |stripe, own| push(stripe, batch(own)),
                )
            },
            // More than there is, the second time.
            Case {
                forget: behind_the_count,
                ..Case::new(
                    concat!(stringify!($imp), "::array_pop_batch"),
                    $shape,
                    call!(|o| $imp::array_pop_batch(o.$at(), o.own(OWN), 3)),
                    |stripe, _| fill(stripe, 10),
                    |stripe, own| {
                        let count = stripe.get(WORD, 8);
                        let n = count.min(3);
                        if n == 0 {
                            return REFUSED;
                        }
                        for i in 0..n {
                            own.put(OWN + i as usize * 8, 8, stripe.get(slot(count - n + i), 8));
                        }
                        stripe.put(WORD, 8, count - n);
                        n
                    },
                )
            },
        )+];
    };
}

structures! {
    Indexed, Shape::Cpu, indexed;
    Striped, Shape::Gs, striped;
}
