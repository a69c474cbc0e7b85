//! The messages between a participant and the one that serves, as bytes.
//!
//! One request, one reply, each in one packet of fixed length, little-endian.
//!
//! | request | bytes | | reply | bytes |
//! |---|---|---|---|---|
//! | magic `umshareQ` | 0..8 | | magic `umshareR` | 0..8 |
//! | version | 8..12 | | version | 8..12 |
//! | operation | 12..16 | | errno, 0 = granted | 12..16 |
//! | random id of the region, 0 to attach | 16..32 | | the same | 16..32 |
//! | five numbers | 32..72 | | size of the region in bytes | 32..40 |
//! | | | | base address | 40..48 |
//! | | | | kind of its memory | 48..56 |
//! | | | | three numbers | 56..80 |
//!
//! | operation | numbers | descriptors | answer | descriptors |
//! |---|---|---|---|---|
//! | 1 attach | rights wanted, rights needed, process id, agent, network namespace | | rights, slot, life | control, ledger, data, bell or line |
//! | 2 fetch | object | | kind | the object |
//! | 3 offer | object, kind | the object | | |
//! | 4 follow | slot, life, generation, errno, generation that fails | | | |
//! | 5 leave | slot, life | | | |
//! | 6 map | offset, length, kind, where in it, access | none or the object | generation, object | |
//! | 7 unmap | offset, length | | generation | |
//! | 8 protect | offset, length, access and advice | | generation | |
//! | 9 tell | | | participants, mode, user | |
//! | 10 listen | slot, life, thread | | | a [line](super::lines) |

use crate::error::{Error, Result};
use rustix::io::Errno;

/// Version of messages and of the control memory: both sides must agree.
pub(super) const VERSION: u32 = 4;
/// Bytes of a request.
pub(super) const REQUEST_LEN: usize = 72;
/// Bytes of a reply.
pub(super) const REPLY_LEN: usize = 80;

const REQUEST_MAGIC: [u8; 8] = *b"umshareQ";
const REPLY_MAGIC: [u8; 8] = *b"umshareR";

/// What every participant must agree on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    /// Bytes of the region.
    pub(super) size: u64,
    /// Its first address, in every process.
    pub(super) base: u64,
    /// Drawn at its creation.
    pub(super) id: [u8; 16],
    /// What its memory is.
    pub(super) memory: Memory,
}

/// What the memory of a region is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Memory {
    /// A sealed memory file.
    Ordinary,
    /// The same in huge pages of 2 MiB.
    Huge2M,
    /// The same in huge pages of 1 GiB.
    Huge1G,
    /// A file that stays.
    File,
}

impl Memory {
    const ALL: [Self; 4] = [Self::Ordinary, Self::Huge2M, Self::Huge1G, Self::File];

    pub(super) fn code(self) -> u64 {
        Self::ALL.iter().position(|memory| *memory == self).unwrap_or(0) as u64
    }

    pub(super) fn of_code(code: u64) -> Option<Self> {
        Self::ALL.get(usize::try_from(code).ok()?).copied()
    }

    /// Bytes of which sizes and offsets of the region's own memory are multiples.
    pub(super) fn grain(self) -> u64 {
        match self {
            Self::Ordinary | Self::File => 4096,
            Self::Huge2M => 2 << 20,
            Self::Huge1G => 1 << 30,
        }
    }
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    Attach,
    Fetch,
    Offer,
    Follow,
    Leave,
    Map,
    Unmap,
    Protect,
    Tell,
    Listen,
}

impl Ask {
    const ALL: [Self; 10] = [
        Self::Attach,
        Self::Fetch,
        Self::Offer,
        Self::Follow,
        Self::Leave,
        Self::Map,
        Self::Unmap,
        Self::Protect,
        Self::Tell,
        Self::Listen,
    ];
}

/// A request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) ask: Ask,
    pub(super) id: [u8; 16],
    pub(super) numbers: [u64; 5],
}

/// A reply that grants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) shape: Shape,
    pub(super) numbers: [u64; 3],
}

impl Request {
    pub(super) fn encode(&self) -> [u8; REQUEST_LEN] {
        let mut bytes = [0; REQUEST_LEN];
        bytes[..8].copy_from_slice(&REQUEST_MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        let ask = Ask::ALL.iter().position(|ask| *ask == self.ask).map_or(0, |at| at as u32 + 1);
        bytes[12..16].copy_from_slice(&ask.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.id);
        put(&mut bytes[32..], &self.numbers);
        bytes
    }

    /// # Errors
    ///
    /// EBADMSG for wrong length, magic or operation, EPROTO for another version.
    pub(super) fn decode(bytes: &[u8]) -> core::result::Result<Self, Errno> {
        let bytes: &[u8; REQUEST_LEN] = bytes.try_into().map_err(|_| Errno::BADMSG)?;
        // An older version had shorter ones, so only their length tells.
        if bytes[..8] != REQUEST_MAGIC {
            return Err(Errno::BADMSG);
        }
        if word(bytes, 8) != VERSION {
            return Err(Errno::PROTO);
        }
        let ask = usize::try_from(word(bytes, 12)).ok().and_then(|n| n.checked_sub(1));
        let ask = *ask.and_then(|n| Ask::ALL.get(n)).ok_or(Errno::BADMSG)?;
        let numbers = core::array::from_fn(|n| double(bytes, 32 + 8 * n));
        Ok(Self { ask, id: id(bytes), numbers })
    }
}

impl Reply {
    /// The reply that grants, or says why not.
    pub(super) fn encode(answer: core::result::Result<&Self, Errno>) -> [u8; REPLY_LEN] {
        let mut bytes = [0; REPLY_LEN];
        bytes[..8].copy_from_slice(&REPLY_MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        match answer {
            Ok(Self { shape, numbers }) => {
                bytes[16..32].copy_from_slice(&shape.id);
                put(&mut bytes[32..], &[shape.size, shape.base, shape.memory.code()]);
                put(&mut bytes[56..], numbers);
            }
            Err(errno) => bytes[12..16].copy_from_slice(&errno.raw_os_error().to_le_bytes()),
        }
        bytes
    }

    /// What was granted.
    ///
    /// # Errors
    ///
    /// EBADMSG for wrong length, magic, errno or kind of memory, EPROTO for another version,
    /// each with the numbers; else the errno that the server gave.
    pub(super) fn decode(operation: &'static str, bytes: &[u8]) -> Result<Self> {
        let bad =
            |numbers: core::fmt::Arguments<'_>| Error::with(operation, Errno::BADMSG, numbers);
        let Ok(bytes) = <&[u8; REPLY_LEN]>::try_from(bytes) else {
            let len = bytes.len();
            return Err(bad(format_args!("reply of {len} bytes instead of {REPLY_LEN}")));
        };
        if bytes[..8] != REPLY_MAGIC {
            let magic = bytes[..8].escape_ascii();
            return Err(bad(format_args!("reply begins with \"{magic}\"")));
        }
        let version = word(bytes, 8);
        if version != VERSION {
            return Err(Error::with(
                operation,
                Errno::PROTO,
                format_args!("the server speaks version {version}, this is version {VERSION}"),
            ));
        }
        match word(bytes, 12).cast_signed() {
            0 => {}
            errno @ 1..4096 => {
                return Err(Error::because(
                    operation,
                    Errno::from_raw_os_error(errno),
                    "refused by the process that serves the region",
                ));
            }
            errno => return Err(bad(format_args!("reply with errno {errno}"))),
        }
        let kind = double(bytes, 48);
        let Some(memory) = Memory::of_code(kind) else {
            return Err(bad(format_args!("reply with memory of kind {kind}")));
        };
        let shape =
            Shape { size: double(bytes, 32), base: double(bytes, 40), id: id(bytes), memory };
        Ok(Self { shape, numbers: core::array::from_fn(|n| double(bytes, 56 + 8 * n)) })
    }
}

fn put(bytes: &mut [u8], numbers: &[u64]) {
    for (bytes, number) in bytes.chunks_exact_mut(8).zip(numbers) {
        bytes.copy_from_slice(&number.to_le_bytes());
    }
}

fn word<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn double<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    let mut double = [0; 8];
    double.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(double)
}

fn id<const N: usize>(bytes: &[u8; N]) -> [u8; 16] {
    let mut id = [0; 16];
    id.copy_from_slice(&bytes[16..32]);
    id
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEST: &str = "test";
    const SHAPE: Shape = Shape {
        size: 1 << 30,
        base: 0x2000_4000_0000,
        id: *b"0123456789abcdef",
        memory: Memory::Huge2M,
    };

    #[test]
    fn there_and_back() {
        for ask in Ask::ALL {
            let request = Request { ask, id: [7; 16], numbers: [1, 2, 3, 4, u64::MAX] };
            assert_eq!(Request::decode(&request.encode()), Ok(request));
        }
        let reply = Reply { shape: SHAPE, numbers: [5, 6, 7] };
        assert_eq!(Reply::decode(TEST, &Reply::encode(Ok(&reply))).unwrap(), reply);
        let refused = Reply::decode(TEST, &Reply::encode(Err(Errno::ACCESS))).unwrap_err();
        assert!(refused.is_permission_denied(), "{refused}");
    }

    #[test]
    fn truncated_oversized_or_of_another_version() {
        let request = Request { ask: Ask::Attach, id: [0; 16], numbers: [0; 5] }.encode();
        let reply = Reply::encode(Ok(&Reply { shape: SHAPE, numbers: [0; 3] }));
        for len in 0..REQUEST_LEN {
            assert_eq!(Request::decode(&request[..len]), Err(Errno::BADMSG));
        }
        for len in 0..REPLY_LEN {
            assert!(Reply::decode(TEST, &reply[..len]).unwrap_err().is_corrupt());
        }
        assert_eq!(Request::decode(&[0; REQUEST_LEN + 1]), Err(Errno::BADMSG));
        let long = Reply::decode(TEST, &[0; REPLY_LEN + 1]).unwrap_err();
        assert!(long.to_string().contains("81 bytes instead of 80"), "{long}");

        let mut other = request;
        other[8] = 9;
        assert_eq!(Request::decode(&other), Err(Errno::PROTO));
        for ask in [0, 11, 255] {
            other = request;
            other[12] = ask;
            assert_eq!(Request::decode(&other), Err(Errno::BADMSG));
        }

        let mut other = reply;
        other[8] = 9;
        let error = Reply::decode(TEST, &other).unwrap_err();
        assert_eq!(error.raw_os_error(), libc::EPROTO);
        assert!(error.to_string().contains("version 9"), "{error}");
        for (at, says) in [(12, "errno -1"), (48, "memory of kind")] {
            other = reply;
            other[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
            let error = Reply::decode(TEST, &other).unwrap_err();
            assert!(error.is_corrupt() && error.to_string().contains(says), "{error}");
        }
    }

    proptest! {
        /// Any bytes are a message or an error of the protocol.
        #[test]
        fn garbage(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(matches!(Request::decode(&bytes), Err(Errno::BADMSG)));
            prop_assert!(Reply::decode(TEST, &bytes).unwrap_err().is_corrupt());
        }

        /// A message with some other bytes is what its bytes say, or an error.
        #[test]
        fn changed(
            changes in prop::collection::vec((8..REPLY_LEN, any::<u8>()), 1..6),
        ) {
            let mut request = Request { ask: Ask::Map, id: [1; 16], numbers: [9; 5] }.encode();
            let mut reply = Reply::encode(Ok(&Reply { shape: SHAPE, numbers: [9; 3] }));
            for (at, byte) in changes {
                reply[at] = byte;
                request[at % REQUEST_LEN] = byte;
            }
            if let Ok(read) = Request::decode(&request) {
                prop_assert_eq!(read.encode(), request);
            }
            if let Ok(read) = Reply::decode(TEST, &reply) {
                prop_assert_eq!(Reply::encode(Ok(&read)), reply);
            }
        }
    }
}
