//! The shape of a process's slots, said before the first of them is taken.

use super::layout::{LARGEST, SMALLEST, Shape, is_size};
use super::process;
use super::schema::{Datum, Entry, MAX_FIELDS, NAME, UNIT, Word};
use crate::error::{Error, Result};
use rustix::io::Errno;

const OP: &str = "task_shared::configure";

/// How large the slots of this process are, and what the user's words in them mean.
///
/// ```
/// use unmerged::task_shared::{self, Config, Word};
///
/// const QUERIES: Word<u64> = Word::new(0, "queries", "1");
/// const LOAD: Word<f64> = Word::new(1, "load", "ratio");
///
/// task_shared::configure(&Config::new().word(QUERIES).word(LOAD))?;
/// let me = task_shared::current()?;
/// me.set(QUERIES, 12)?;
/// me.set(LOAD, 0.75)?;
/// assert_eq!(me.get(QUERIES)?, 12);
/// # Ok::<(), unmerged::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub(super) shape: Shape,
    pub(super) entries: Vec<Entry>,
}

impl Default for Config {
    fn default() -> Self {
        Self::new()
    }
}

impl Config {
    /// Slots of 128 bytes with 7 words of the user's, none of them declared.
    pub const fn new() -> Self {
        Self { shape: Shape { size: SMALLEST, rseq: false }, entries: Vec::new() }
    }

    /// Bytes of a slot: a multiple of 128, at most 1024. The first 72 are not the user's.
    #[must_use]
    pub const fn slot_size(mut self, bytes: usize) -> Self {
        self.shape.size = bytes;
        self
    }

    /// Room for an rseq area in each slot, its last 64 bytes, for
    /// [`Slot::register_rseq`](super::Slot::register_rseq). It takes slots of 256 bytes or
    /// more.
    #[must_use]
    pub const fn rseq(mut self) -> Self {
        self.shape.rseq = true;
        self
    }

    /// Declares a word to readers: its name, unit and type.
    #[must_use]
    pub fn word<T: Datum>(mut self, word: Word<T>) -> Self {
        self.entries.push(word.entry());
        self
    }

    /// Does it make sense?
    fn check(&self) -> Result<()> {
        let invalid = |message| Err(Error::with(OP, Errno::INVAL, message));
        let size = self.shape.size;
        if !is_size(size) {
            return invalid(format_args!(
                "slots of {size} bytes, not a multiple of {SMALLEST} up to {LARGEST}"
            ));
        }
        if self.shape.rseq && size < 2 * SMALLEST {
            return invalid(format_args!(
                "an rseq area takes slots of {} bytes, not {size}",
                2 * SMALLEST
            ));
        }
        let (declared, words) = (self.entries.len(), self.shape.words());
        if declared > MAX_FIELDS {
            return Err(Error::with(
                OP,
                Errno::NOSPC,
                format_args!("{declared} words are declared, at most {MAX_FIELDS} can be"),
            ));
        }
        for (n, &Entry { index, name, unit, .. }) in self.entries.iter().enumerate() {
            if index >= words {
                return Err(Error::with(
                    OP,
                    Errno::NOSPC,
                    format_args!("word {index} ({name}): slots of {size} bytes have {words} words"),
                ));
            }
            let (len, unit_len) = (name.len(), unit.len());
            if len == 0 || len > NAME || unit_len > UNIT {
                return invalid(format_args!(
                    "word {index}: a name of {len} bytes and a unit of {unit_len}, at most {NAME} and {UNIT}"
                ));
            }
            if name.chars().chain(unit.chars()).any(char::is_control) {
                return invalid(format_args!("word {index}: a control character in its name"));
            }
            if let Some(other) = self.entries[..n].iter().find(|other| other.index == index) {
                return invalid(format_args!("word {index} is {} and {name}", other.name));
            }
            if let Some(other) = self.entries[..n].iter().find(|other| other.name == name) {
                return invalid(format_args!(
                    "words {} and {index} have the same name, {name}",
                    other.index
                ));
            }
        }
        Ok(())
    }
}

/// Says what the slots of this process are like. Once, before the first
/// [`current`](super::current()); without it they are as [`Config::new`] has them.
///
/// A child of fork has the configuration of its parent, and may say another before its own
/// first slot.
///
/// # Errors
///
/// EBUSY if this process has slots already or was configured before, EINVAL for a size, a
/// name or a unit that cannot be, or a word or a name declared twice, ENOSPC if a word does not fit or
/// too many are declared, ENOMEM.
pub fn configure(config: &Config) -> Result<()> {
    config.check()?;
    process::configure(config)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn refused(config: Config, errno: i32, message: &str) {
        let error = config.check().unwrap_err();
        assert_eq!(error.raw_os_error(), errno, "{error}");
        assert!(error.to_string().contains(message), "{error}");
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_numbers() {
        let word = |index| Word::<u64>::new(index, "a", "1");
        for size in [0, 64, 127, 192, 1152, usize::MAX] {
            refused(Config::new().slot_size(size), libc::EINVAL, &size.to_string());
        }
        refused(Config::new().rseq(), libc::EINVAL, "256 bytes, not 128");
        refused(Config::new().slot_size(256).rseq().word(word(15)), libc::ENOSPC, "15 words");
        refused(Config::new().word(word(7)), libc::ENOSPC, "word 7 (a): slots of 128 bytes have 7");
        refused(Config::new().word(word(1)).word(word(1)), libc::EINVAL, "word 1 is a and a");
        let same = Config::new().word(word(0)).word(Word::<f64>::new(1, "a", "s"));
        refused(same, libc::EINVAL, "words 0 and 1 have the same name, a");
        refused(Config::new().word(Word::<u64>::new(0, "", "1")), libc::EINVAL, "0 bytes");
        let long = Word::<u64>::new(0, "thirty-three bytes are one more..", "1");
        refused(Config::new().word(long), libc::EINVAL, "33 bytes");
        let unit = Word::<u64>::new(0, "a", "seventeen bytes..");
        refused(Config::new().word(unit), libc::EINVAL, "unit of 17");
        refused(Config::new().word(Word::<u64>::new(0, "a\n", "")), libc::EINVAL, "control");
        let names: Vec<String> = (0..49).map(|n| format!("word {n}")).collect();
        let named = |config: Config, n: usize| {
            config.word(Word::<u64>::new(n, names[n].clone().leak(), "1"))
        };
        let many = (0..49).fold(Config::new().slot_size(1024), named);
        refused(many, libc::ENOSPC, "49 words");
        let most = (0..48).fold(Config::new().slot_size(512), named);
        most.check().unwrap();
    }
}
