//! How many of a region's places users may take that are neither the owner nor root.

use super::participants::{PARTICIPANTS, Participants, Token};
use super::rights::Rights;
use rustix::io::Errno;

/// May a user come once more that is neither the owner nor root? Those leave half of the slots to
/// the others, and each of them has some.
///
/// # Errors
///
/// EUSERS if all of them have their half, EDQUOT if this one has its part.
pub(super) fn has_room(
    participants: &Participants<'_>,
    uid: u32,
    most: usize,
) -> Result<(), Errno> {
    let all = Rights::ALL.bits();
    let is_other = |token: Token| participants.rights(token) & all != all;
    if participants.count(is_other) >= PARTICIPANTS / 2 {
        return Err(Errno::USERS);
    }
    let is_its = |token: Token| is_other(token) && participants.uid(token) == uid;
    if participants.count(is_its) < most { Ok(()) } else { Err(Errno::DQUOT) }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::mshare::participants::tests::slots;
    use crate::sync::{AtomicU32, AtomicU64};

    #[test]
    fn one_user_takes_some_and_all_others_half() {
        let (slots, serials, acks) = (slots(1024), AtomicU64::new(0), AtomicU32::new(0));
        let all = Participants { slots: &slots, serials: &serials, acks: &acks };
        let come = |uid: u32, rights: Rights| {
            let token = all.join(7, 0, rights.bits()).unwrap();
            all.set_uid(token, uid);
            token
        };
        let first: Vec<_> = (0..3).map(|_| come(1001, Rights::READ)).collect();
        assert_eq!(has_room(&all, 1001, 3), Err(Errno::DQUOT));
        assert_eq!((has_room(&all, 1001, 4), has_room(&all, 1002, 3)), (Ok(()), Ok(())));
        // Who takes its place, with all rights, is not one of that user's.
        all.leave(first[0]);
        assert_eq!(all.join(8, 0, Rights::ALL.bits()).unwrap().slot, first[0].slot);
        assert_eq!(has_room(&all, 1001, 3), Ok(()));
        assert_eq!(has_room(&all, 1002, 0), Err(Errno::DQUOT));
        for at in 0..510 {
            come(2000 + at, Rights::READ);
        }
        assert_eq!(has_room(&all, 1002, 3), Err(Errno::USERS));
    }
}
