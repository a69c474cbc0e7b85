//! The two messages of an attachment, as bytes.
//!
//! One request, one reply, each in one packet of fixed length, little-endian. A reply that
//! grants carries two descriptors: the control file, then the data file.
//!
//! | request | bytes | | reply | bytes |
//! |---|---|---|---|---|
//! | magic `umshareQ` | 0..8 | | magic `umshareR` | 0..8 |
//! | version | 8..12 | | version | 8..12 |
//! | operation (1 = attach) | 12..16 | | errno, 0 = granted | 12..16 |
//! | | | | size of the region in bytes | 16..24 |
//! | | | | base address | 24..32 |
//! | | | | random id | 32..48 |

use crate::error::{Error, Result};
use rustix::io::Errno;

/// Version of messages and of the control header: both sides must agree.
pub(super) const VERSION: u32 = 1;
/// Bytes of a request.
pub(super) const REQUEST_LEN: usize = 16;
/// Bytes of a reply.
pub(super) const REPLY_LEN: usize = 48;

const REQUEST_MAGIC: [u8; 8] = *b"umshareQ";
const REPLY_MAGIC: [u8; 8] = *b"umshareR";
const ATTACH: u32 = 1;

/// What every participant must agree on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    /// Bytes of the region.
    pub(super) size: u64,
    /// Its first address, in every process.
    pub(super) base: u64,
    /// Drawn at its creation.
    pub(super) id: [u8; 16],
}

/// The request to attach.
pub(super) fn encode_request() -> [u8; REQUEST_LEN] {
    let mut bytes = [0; REQUEST_LEN];
    bytes[..8].copy_from_slice(&REQUEST_MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[12..].copy_from_slice(&ATTACH.to_le_bytes());
    bytes
}

/// Is this a request to attach?
///
/// # Errors
///
/// EBADMSG for wrong length, magic or operation, EPROTO for another version.
pub(super) fn decode_request(bytes: &[u8]) -> core::result::Result<(), Errno> {
    let bytes: &[u8; REQUEST_LEN] = bytes.try_into().map_err(|_| Errno::BADMSG)?;
    if bytes[..8] != REQUEST_MAGIC {
        return Err(Errno::BADMSG);
    }
    if word(bytes, 8) != VERSION {
        return Err(Errno::PROTO);
    }
    if word(bytes, 12) != ATTACH {
        return Err(Errno::BADMSG);
    }
    Ok(())
}

/// The reply that grants a region, or says why not.
pub(super) fn encode_reply(answer: core::result::Result<&Shape, Errno>) -> [u8; REPLY_LEN] {
    let mut bytes = [0; REPLY_LEN];
    bytes[..8].copy_from_slice(&REPLY_MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    match answer {
        Ok(shape) => {
            bytes[16..24].copy_from_slice(&shape.size.to_le_bytes());
            bytes[24..32].copy_from_slice(&shape.base.to_le_bytes());
            bytes[32..].copy_from_slice(&shape.id);
        }
        Err(errno) => bytes[12..16].copy_from_slice(&errno.raw_os_error().to_le_bytes()),
    }
    bytes
}

/// The shape that was granted.
///
/// # Errors
///
/// EBADMSG for wrong length, magic or errno, EPROTO for another version, each with the
/// numbers; else the errno that the server gave.
pub(super) fn decode_reply(bytes: &[u8]) -> Result<Shape> {
    let bad = |numbers: core::fmt::Arguments<'_>| Error::with(super::OPEN, Errno::BADMSG, numbers);
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
            super::OPEN,
            Errno::PROTO,
            format_args!("the server speaks version {version}, this is version {VERSION}"),
        ));
    }
    match word(bytes, 12).cast_signed() {
        0 => Ok(Shape { size: double(bytes, 16), base: double(bytes, 24), id: id(bytes) }),
        errno @ 1..4096 => Err(Error::because(
            super::OPEN,
            Errno::from_raw_os_error(errno),
            "refused by the process that serves the region",
        )),
        errno => Err(bad(format_args!("reply with errno {errno}"))),
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

fn id(bytes: &[u8; REPLY_LEN]) -> [u8; 16] {
    let mut id = [0; 16];
    id.copy_from_slice(&bytes[32..]);
    id
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SHAPE: Shape = Shape { size: 1 << 30, base: 0x2000_4000_0000, id: *b"0123456789abcdef" };

    #[test]
    fn there_and_back() {
        assert_eq!(decode_request(&encode_request()), Ok(()));
        assert_eq!(decode_reply(&encode_reply(Ok(&SHAPE))).unwrap(), SHAPE);
        let refused = decode_reply(&encode_reply(Err(Errno::ACCESS))).unwrap_err();
        assert!(refused.is_permission_denied(), "{refused}");
    }

    #[test]
    fn truncated_oversized_or_of_another_version() {
        let request = encode_request();
        let reply = encode_reply(Ok(&SHAPE));
        for len in 0..REQUEST_LEN {
            assert_eq!(decode_request(&request[..len]), Err(Errno::BADMSG));
        }
        for len in 0..REPLY_LEN {
            assert!(decode_reply(&reply[..len]).unwrap_err().is_corrupt());
        }
        assert_eq!(decode_request(&[0; REQUEST_LEN + 1]), Err(Errno::BADMSG));
        let long = decode_reply(&[0; REPLY_LEN + 1]).unwrap_err();
        assert!(long.to_string().contains("49 bytes instead of 48"), "{long}");

        let mut other = request;
        other[8] = 9;
        assert_eq!(decode_request(&other), Err(Errno::PROTO));
        other = request;
        other[12] = 9;
        assert_eq!(decode_request(&other), Err(Errno::BADMSG));

        let mut other = reply;
        other[8] = 9;
        let error = decode_reply(&other).unwrap_err();
        assert_eq!(error.raw_os_error(), libc::EPROTO);
        assert!(error.to_string().contains("version 9"), "{error}");
        other = reply;
        other[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        let error = decode_reply(&other).unwrap_err();
        assert!(error.to_string().contains("errno -1"), "{error}");
    }

    proptest! {
        /// Any bytes are a message or an error of the protocol.
        #[test]
        fn garbage(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            prop_assert!(matches!(decode_request(&bytes), Err(Errno::BADMSG)));
            prop_assert!(decode_reply(&bytes).unwrap_err().is_corrupt());
        }
    }
}
