//! To whom the parts of a layout are charged: to the user whose change made them.
//!
//! A layout has room for so many parts, which are for all. A user whose participants have not all
//! rights may make a few of them only. Slots say nothing about users: who leaves and comes again
//! has another one, and the next one in the slot is somebody else. So a part names a user.
//!
//! A part is the user's who changed it last. A change in the midst of a part makes another behind
//! it, which is the same user's, until the two become one again.

use super::layout::{self, Segment, pieces};
use crate::error::{Error, Result};
use core::ops::Range;
use rustix::io::Errno;

/// Who changes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Charge {
    pub(super) user: u32,
    pub(super) quota: usize,
}

impl Charge {
    fn owner(self) -> u64 {
        u64::from(self.user) + 1
    }

    fn count(self, layout: &[Segment]) -> usize {
        layout.iter().filter(|part| part.owner == self.owner()).count()
    }

    /// Whether this user may have what it makes of a layout. To have fewer is never refused.
    ///
    /// # Errors
    ///
    /// EDQUOT.
    pub(super) fn check(
        self,
        operation: &'static str,
        old: &[Segment],
        new: &[Segment],
    ) -> Result<()> {
        let (before, after) = (self.count(old), self.count(new));
        if after <= self.quota.max(before) {
            return Ok(());
        }
        let Self { user, quota } = self;
        let why = format_args!("{after} parts of user {user}, at most {quota}");
        Err(Error::with(operation, Errno::DQUOT, why))
    }
}

/// The layout with `range` as `new` says, whose segments cover it, charged to whoever changes it;
/// to nobody without a charge.
pub(super) fn replace(
    old: &[Segment],
    range: &Range<u64>,
    mut new: Vec<Segment>,
    charge: Option<Charge>,
) -> Vec<Segment> {
    let owner = charge.map_or(0, Charge::owner);
    let before = pieces(old, range.clone());
    for part in new.iter_mut().filter(|part| !before.contains(part)) {
        part.owner = owner;
    }
    let mut list = layout::replace(old, range, &new);
    let in_the_midst = old.iter().any(|part| part.offset < range.start && part.end() > range.end);
    if let Some(rest) = list.iter_mut().find(|part| in_the_midst && part.offset == range.end) {
        rest.owner = owner;
    }
    list
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::backing::{Backing, Huge, Kind};
    use super::super::holes;
    use super::*;
    use crate::sys::map::Access;
    use proptest::prelude::*;

    const P: u64 = 4096;
    const PAGES: u64 = 24;

    fn step() -> impl Strategy<Value = (Range<u64>, u8, u64, u32)> {
        (0..PAGES, 1..=PAGES, 0..6_u8, 0..3_u64, 0..3_u32).prop_map(|(at, len, what, id, user)| {
            (at * P..(at + len).min(PAGES) * P, what, id, user)
        })
    }

    /// What a change leaves of the parts of a range.
    fn changed(old: &[Segment], range: &Range<u64>, what: u8, id: u64, now: u64) -> Vec<Segment> {
        let plain = Segment::plain(range.clone());
        let here = pieces(old, range.clone());
        let each = |body: fn(Segment) -> Segment| here.iter().map(|part| body(*part)).collect();
        match what {
            0 => vec![Segment::hole(range.clone(), now)],
            1 => vec![plain],
            2 => {
                let backing = Backing::Object { id, kind: Kind::File };
                vec![Segment { backing, at: 0, ..plain }]
            }
            _ if here.iter().any(|part| part.backing == Backing::Hole) => here,
            3 => each(|part| Segment { access: Access::Read, ..part }),
            4 => each(|part| Segment { access: Access::Write, ..part }),
            _ => each(|part| Segment { huge: Huge::No, ..part }),
        }
    }

    proptest! {
        /// Whatever users do: who makes the list longer is charged for it.
        #[test]
        fn who_makes_parts_is_charged(steps in prop::collection::vec(step(), 0..40)) {
            let mut list = vec![Segment::hole(8 * P..20 * P, 0)];
            for (now, (range, what, id, user)) in steps.into_iter().enumerate() {
                let charge = Charge { user, quota: 0 };
                let new = changed(&list, &range, what, id, now as u64);
                let next = holes::merge(&replace(&list, &range, new, Some(charge)), now as u64);
                let (before, after) = (charge.count(&list), charge.count(&next));
                prop_assert!(next.len() + before <= list.len() + after, "{list:?} {next:?}");
                list = next;
            }
        }
    }
}
