//! What may be a region's name.

use crate::error::{Error, Result};
use rustix::io::Errno;

/// Longest name in bytes.
const NAME_MAX: usize = 64;

/// Is this a name?
///
/// # Errors
///
/// EINVAL with the reason.
pub(super) fn check_name(operation: &'static str, name: &str) -> Result<()> {
    let invalid =
        |numbers: core::fmt::Arguments<'_>| Err(Error::with(operation, Errno::INVAL, numbers));
    if name.is_empty() || name.len() > NAME_MAX {
        return invalid(format_args!("name of {} bytes, not 1 to {NAME_MAX}", name.len()));
    }
    if name.starts_with('.') {
        return invalid(format_args!("name \"{name}\" begins with a dot"));
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    match name.bytes().position(|byte| !allowed(byte)) {
        Some(at) => invalid(format_args!(
            "name \"{}\" has a byte at {at} that is none of A-Z a-z 0-9 . _ -",
            name.escape_debug()
        )),
        None => Ok(()),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const TEST: &str = "test";

    #[test]
    fn names() {
        for name in ["a", "catalog", "A-1_b.c", &"x".repeat(64)] {
            check_name(TEST, name).unwrap();
        }
        for (name, reason) in [
            ("", "0 bytes"),
            (&*"x".repeat(65), "65 bytes"),
            (".hidden", "dot"),
            ("..", "dot"),
            ("a/b", "at 1"),
            ("a b", "at 1"),
            ("a\0", "at 1"),
            ("na\u{ef}ve", "at 2"),
            ("a\n", "at 1"),
        ] {
            let error = check_name(TEST, name).unwrap_err();
            assert!(error.is_invalid() && error.to_string().contains(reason), "{error}");
        }
    }
}
