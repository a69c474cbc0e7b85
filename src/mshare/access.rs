//! Who may attach, and what it may do then: mode bits against the credentials of a peer.

use super::rights::Rights;
use crate::sys::socket::Peer;

/// Whose region it is, and what its mode says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Access {
    /// Permission bits, 0 to 0o666.
    pub(super) mode: u32,
    /// User who created it.
    pub(super) uid: u32,
    /// Group of the creator.
    pub(super) gid: u32,
    /// What those may do besides reading and writing that are neither the owner nor root.
    pub(super) others: Rights,
}

impl Access {
    /// What `peer` may do.
    ///
    /// As with a file: the first class that fits decides (owner, then group, then other),
    /// and root may always. `SO_PEERCRED` tells the effective group only, so a
    /// supplementary group does not count. Writing needs both bits. Only the owner and root may
    /// serve: nobody else would be believed.
    pub(super) fn rights(&self, peer: &Peer) -> Rights {
        let class = if peer.uid == 0 {
            0o6
        } else if peer.uid == self.uid {
            self.mode >> 6
        } else if peer.gid == self.gid {
            self.mode >> 3
        } else {
            self.mode
        };
        let trusted = peer.uid == 0 || peer.uid == self.uid;
        match class & 0o6 {
            0o6 if trusted => Rights::ALL,
            0o6 => Rights::READ | Rights::WRITE | self.others,
            0o4 => Rights::READ,
            _ => Rights::NONE,
        }
    }

    /// The mode of the socket file: a connection needs the bit to write, whatever it is for.
    pub(super) fn socket_mode(mode: u32) -> u32 {
        [0, 3, 6]
            .into_iter()
            .fold(0, |bits, shift| bits | if mode >> shift & 0o4 == 0 { 0 } else { 0o6 << shift })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn rights(mode: u32, uid: u32, gid: u32) -> Rights {
        let access = Access { mode, uid: 1000, gid: 100, others: Rights::MAP };
        access.rights(&Peer { pid: 7, uid, gid })
    }

    #[test]
    fn the_first_class_that_fits_decides() {
        let (all, none, read) = (Rights::ALL, Rights::NONE, Rights::READ);
        let some = Rights::READ | Rights::WRITE | Rights::MAP;
        for (mode, owner, group, other) in [
            (0o600, all, none, none),
            (0o660, all, some, none),
            (0o666, all, some, some),
            (0o606, all, none, some),
            (0o066, none, some, some),
            (0o644, all, read, read),
            (0o640, all, read, none),
            (0o222, none, none, none),
            (0o000, none, none, none),
        ] {
            assert_eq!(rights(mode, 1000, 100), owner, "{mode:o}");
            assert_eq!(rights(mode, 1000, 555), owner, "{mode:o}");
            assert_eq!(rights(mode, 1001, 100), group, "{mode:o}");
            assert_eq!(rights(mode, 1001, 555), other, "{mode:o}");
            assert_eq!(rights(mode, 0, 0), all, "{mode:o}");
        }
        // An unknown user, as another user namespace gives.
        assert_eq!(rights(0o600, u32::MAX, u32::MAX), none);
    }

    #[test]
    fn who_may_read_may_call() {
        for (mode, socket) in [(0o600, 0o600), (0o640, 0o660), (0o644, 0o666), (0o620, 0o600)] {
            assert_eq!(Access::socket_mode(mode), socket);
        }
    }
}
