//! Who may attach: mode bits against the credentials of a peer.

use crate::sys::socket::Peer;

/// Whose region it is, and what its mode says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Access {
    /// Permission bits, 0 to 0o666.
    pub(super) mode: u32,
    /// User who created it.
    pub(super) uid: u32,
    /// Group of the creator.
    pub(super) gid: u32,
}

impl Access {
    /// May `peer` attach for reading and writing?
    ///
    /// As with a file: the first class that fits decides (owner, then group, then other),
    /// and root may always. `SO_PEERCRED` tells the effective group only, so a
    /// supplementary group does not count. An attachment needs both bits, read and write,
    /// as long as there is no read-only one.
    pub(super) fn allows(&self, peer: &Peer) -> bool {
        const READ_WRITE: u32 = 0o6;
        let class = if peer.uid == 0 {
            return true;
        } else if peer.uid == self.uid {
            self.mode >> 6
        } else if peer.gid == self.gid {
            self.mode >> 3
        } else {
            self.mode
        };
        class & READ_WRITE == READ_WRITE
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn allows(mode: u32, uid: u32, gid: u32) -> bool {
        let access = Access { mode, uid: 1000, gid: 100 };
        access.allows(&Peer { pid: 7, uid, gid })
    }

    #[test]
    fn the_first_class_that_fits_decides() {
        for (mode, owner, group, other) in [
            (0o600, true, false, false),
            (0o660, true, true, false),
            (0o666, true, true, true),
            (0o606, true, false, true),
            (0o066, false, true, true),
            (0o000, false, false, false),
        ] {
            assert_eq!(allows(mode, 1000, 100), owner, "{mode:o}");
            assert_eq!(allows(mode, 1000, 555), owner, "{mode:o}");
            assert_eq!(allows(mode, 1001, 100), group, "{mode:o}");
            assert_eq!(allows(mode, 1001, 555), other, "{mode:o}");
            assert!(allows(mode, 0, 0), "{mode:o}");
        }
    }

    #[test]
    fn one_bit_of_two_is_not_enough() {
        for mode in [0o444, 0o222, 0o640, 0o604] {
            assert!(!allows(mode, 1001, 100), "{mode:o}");
            assert!(!allows(mode, 1001, 555), "{mode:o}");
        }
        // An unknown user, as another user namespace gives.
        assert!(!allows(0o600, u32::MAX, u32::MAX));
    }
}
