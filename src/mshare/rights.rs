//! What a participant may do.

use core::fmt;
use core::ops::BitOr;

/// What a participant may do in a region.
///
/// Reading and writing are enforced by the kernel: a participant without [`WRITE`](Self::WRITE)
/// has descriptors for reading only. The others are enforced by the server, unless a participant
/// has all of them: then it may write the control memory, and the server asks it for nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Rights(u32);

impl Rights {
    /// None.
    pub const NONE: Self = Self(0);
    /// To read. Every participant has it.
    pub const READ: Self = Self(1);
    /// To write.
    pub const WRITE: Self = Self(2);
    /// To map objects, and memory where there was none.
    pub const MAP: Self = Self(4);
    /// To unmap.
    pub const UNMAP: Self = Self(8);
    /// To change protections and advice.
    pub const PROTECT: Self = Self(16);
    /// To serve those who come.
    pub const SERVE: Self = Self(32);
    /// All of them.
    pub const ALL: Self = Self(63);

    /// Are all of `other` among these?
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Those that are in both.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub(super) const fn bits(self) -> u32 {
        self.0
    }

    /// The rights among these bits; others mean nothing.
    pub(super) const fn of_bits(bits: u64) -> Self {
        Self(bits as u32 & Self::ALL.0)
    }
}

impl BitOr for Rights {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = ["read", "write", "map", "unmap", "protect", "serve"];
        let mut first = true;
        for (bit, name) in names.into_iter().enumerate() {
            if self.0 >> bit & 1 == 1 {
                f.write_str(if first { "" } else { "+" })?;
                f.write_str(name)?;
                first = false;
            }
        }
        if first { f.write_str("none") } else { Ok(()) }
    }
}

impl fmt::Debug for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rights({self})")
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn sets() {
        let both = Rights::READ | Rights::MAP;
        assert!(both.contains(Rights::MAP) && !both.contains(Rights::WRITE));
        assert!(Rights::ALL.contains(both) && both.contains(Rights::NONE));
        assert_eq!(both.intersection(Rights::MAP | Rights::SERVE), Rights::MAP);
        assert_eq!(
            format!("{both} {} {:?}", Rights::NONE, Rights::SERVE),
            "read+map none Rights(serve)"
        );
        assert_eq!(Rights::of_bits(u64::MAX), Rights::ALL);
    }
}
