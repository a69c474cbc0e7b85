//! What a root is found by, and what it is checked against: a name and a type.

use crate::shm::Resident;

/// Words of a name that are kept.
pub(super) const NAME: usize = 4;

/// A name, as roots keep it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Key {
    pub(super) hash: u64,
    pub(super) name: [u64; NAME],
}

impl Key {
    pub(super) fn of(name: &str) -> Self {
        let mut bytes = [0; NAME * 8];
        let len = name.len().min(bytes.len());
        bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
        let (words, _) = bytes.as_chunks();
        Self { hash: key(name), name: core::array::from_fn(|n| u64::from_le_bytes(words[n])) }
    }
}

/// Hash of a name (FNV-1a, 64 bits), never 0. Places are taken by this alone: a compare-exchange of
/// one word cannot be cut in halves by a kill, one of a name could. Two names of one hash are told
/// apart by their first bytes, and the second is refused.
fn key(name: &str) -> u64 {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    hash.max(1)
}

/// Size and alignment of a type, as one word that is never 0, and its tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind(u64, u64);

impl Kind {
    const SET: u64 = 1 << 63;

    /// Of `T`.
    pub(super) const fn of<T: Resident>() -> Self {
        let align = align_of::<T>().trailing_zeros() as u64;
        Self(Self::SET | (size_of::<T>() as u64) << 8 | align, T::TAG)
    }

    /// As it is kept.
    pub(super) const fn of_words(kind: u64, tag: u64) -> Self {
        Self(kind, tag)
    }

    /// The word without the tag.
    pub(super) const fn word(self) -> u64 {
        self.0
    }

    /// What the type says that it is; 0 for nothing.
    pub(super) const fn tag(self) -> u64 {
        self.1
    }

    /// Bytes of a value.
    pub(super) const fn size(self) -> u64 {
        (self.0 & !Self::SET) >> 8
    }

    /// Its alignment, as a power of two.
    pub(super) const fn align_log2(self) -> u64 {
        self.0 & 0xff
    }
}

#[cfg(test)]
impl From<u64> for Key {
    fn from(hash: u64) -> Self {
        // Models are short.
        Self { hash, name: [if cfg!(loom) { 0 } else { hash }; NAME] }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        assert_ne!(key("index"), key("indey"));
        assert_ne!(key(""), 0);
    }
}
