//! The one error type of the crate.

use core::fmt;
use rustix::io::Errno;

/// Result of the crate's operations.
pub type Result<T> = core::result::Result<T, Error>;

/// What went wrong: the operation, the errno that the interface's proposal (or the
/// kernel) gives for the case, and a message with the numbers in it.
///
/// Callers branch on the predicates or on [`raw_os_error`](Self::raw_os_error);
/// `Display` is for people.
///
/// ```
/// let error = unmerged::mshare::Region::open("no-such-region-surely").unwrap_err();
/// assert!(error.is_not_found());
/// assert_eq!(error.raw_os_error(), 2); // ENOENT
/// ```
pub struct Error {
    operation: &'static str,
    errno: Errno,
    detail: Detail,
}

/// The part of a message that goes beyond operation and errno. Only the cold
/// constructors allocate.
enum Detail {
    None,
    Fixed(&'static str),
    Numbers(String),
    /// Memory of so many bytes: where there is none, there is none for a message either.
    Bytes(usize),
    /// Something of so many bytes where at most so many can be. A signal handler may meet it,
    /// so it does not allocate.
    TooLarge {
        len: usize,
        most: usize,
    },
    /// More than can be of something that is counted. The same.
    TooMany {
        now: u32,
        more: u32,
        most: u32,
    },
    /// What two words hold, which cannot be. For signal handlers, too.
    Words(&'static str, [u64; 2]),
}

impl Error {
    /// `operation` failed with `errno`, and there is no more to say.
    #[inline]
    pub(crate) const fn new(operation: &'static str, errno: Errno) -> Self {
        Self { operation, errno, detail: Detail::None }
    }

    /// The same with a fixed explanation.
    #[cold]
    pub(crate) const fn because(
        operation: &'static str,
        errno: Errno,
        reason: &'static str,
    ) -> Self {
        Self { operation, errno, detail: Detail::Fixed(reason) }
    }

    /// The same with an explanation that names the numbers. Where no memory is left for it, as much
    /// of it as there is room for.
    #[cold]
    pub(crate) fn with(operation: &'static str, errno: Errno, numbers: fmt::Arguments<'_>) -> Self {
        let mut text = Frugal(String::new());
        let _ = fmt::write(&mut text, numbers);
        Self { operation, errno, detail: Detail::Numbers(text.0) }
    }

    /// EMSGSIZE with both numbers, without an allocation.
    #[cold]
    pub(crate) const fn too_large(operation: &'static str, len: usize, most: usize) -> Self {
        Self { operation, errno: Errno::MSGSIZE, detail: Detail::TooLarge { len, most } }
    }

    /// EOVERFLOW with the numbers, without an allocation.
    #[cold]
    pub(crate) const fn too_many(operation: &'static str, now: u32, more: u32, most: u32) -> Self {
        Self { operation, errno: Errno::OVERFLOW, detail: Detail::TooMany { now, more, most } }
    }

    /// EBADMSG with what two words hold, without an allocation.
    #[cold]
    pub(crate) const fn bad_words(
        operation: &'static str,
        reason: &'static str,
        words: [u64; 2],
    ) -> Self {
        Self { operation, errno: Errno::BADMSG, detail: Detail::Words(reason, words) }
    }

    /// The same, as what came of `operation`, in which another one failed.
    #[cold]
    pub(crate) fn within(self, operation: &'static str) -> Self {
        Self { operation, ..self }
    }

    /// The errno of the case, for instance 22 for EINVAL.
    pub const fn raw_os_error(&self) -> i32 {
        self.errno.raw_os_error()
    }

    /// The operation that failed, for instance `"mshare::Region::open"`.
    pub const fn operation(&self) -> &'static str {
        self.operation
    }

    /// This machine or kernel cannot do it, now or later (ENOSYS, EOPNOTSUPP).
    pub fn is_unsupported(&self) -> bool {
        matches!(self.errno, Errno::NOSYS | Errno::OPNOTSUPP)
    }

    /// An argument is wrong (EINVAL).
    pub fn is_invalid(&self) -> bool {
        self.errno == Errno::INVAL
    }

    /// A resource is used up (ENOMEM, ENOSPC, EMFILE, ENFILE, EOVERFLOW).
    pub fn is_exhausted(&self) -> bool {
        matches!(
            self.errno,
            Errno::NOMEM | Errno::NOSPC | Errno::MFILE | Errno::NFILE | Errno::OVERFLOW
        )
    }

    /// No such thing (ENOENT, ESRCH).
    pub fn is_not_found(&self) -> bool {
        matches!(self.errno, Errno::NOENT | Errno::SRCH)
    }

    /// It exists, or the address range is taken (EEXIST).
    pub fn is_exists(&self) -> bool {
        self.errno == Errno::EXIST
    }

    /// Not permitted (EPERM, EACCES).
    pub fn is_permission_denied(&self) -> bool {
        matches!(self.errno, Errno::PERM | Errno::ACCESS)
    }

    /// It cannot be done at once: a futex word did not hold the expected value, a lock is held, a
    /// channel is full or empty (EAGAIN).
    pub fn is_would_block(&self) -> bool {
        self.errno == Errno::AGAIN
    }

    /// The deadline passed (ETIMEDOUT).
    pub fn is_timed_out(&self) -> bool {
        self.errno == Errno::TIMEDOUT
    }

    /// A signal was handled, by which the wait was to be ended (EINTR).
    pub fn is_interrupted(&self) -> bool {
        self.errno == Errno::INTR
    }

    /// It would wait for what this very thread holds (EDEADLK).
    pub fn is_deadlock(&self) -> bool {
        self.errno == Errno::DEADLK
    }

    /// What a dead holder left has been given up (ENOTRECOVERABLE).
    pub fn is_unrecoverable(&self) -> bool {
        self.errno == Errno::NOTRECOVERABLE
    }

    /// The other side has closed it (EPIPE).
    pub fn is_closed(&self) -> bool {
        self.errno == Errno::PIPE
    }

    /// What the other side wrote is not what the protocol allows (EBADMSG, EPROTO).
    pub fn is_corrupt(&self) -> bool {
        matches!(self.errno, Errno::BADMSG | Errno::PROTO)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.operation)?;
        match &self.detail {
            Detail::None => {}
            Detail::Fixed(reason) => write!(f, "{reason}: ")?,
            Detail::Numbers(numbers) => write!(f, "{numbers}: ")?,
            Detail::Bytes(bytes) => write!(f, "{bytes} bytes: ")?,
            Detail::TooLarge { len, most } => write!(f, "{len} bytes of at most {most}: ")?,
            Detail::TooMany { now, more, most } => {
                write!(f, "{now} + {more} of at most {most}: ")?;
            }
            Detail::Words(reason, [one, two]) => write!(f, "{reason} {one:#x}, {two:#x}: ")?,
        }
        // std knows the words for an errno.
        std::io::Error::from(self.errno).fmt(f)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({self})")
    }
}

impl core::error::Error for Error {}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        let kind = Self::from(error.errno).kind();
        Self::new(kind, error)
    }
}

/// A text that ends where memory does.
struct Frugal(String);

impl fmt::Write for Frugal {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        self.0.try_reserve(more.len()).map_err(|_| fmt::Error)?;
        self.0.push_str(more);
        Ok(())
    }
}

/// Names the operation on the way up from the floor of system calls.
pub(crate) trait Context<T>: Sized {
    /// The same result, with a bare errno turned into an [`Error`] of `operation`.
    fn op(self, operation: &'static str) -> Result<T>;

    /// The same for an operation on so many bytes.
    fn op_on(self, operation: &'static str, bytes: usize) -> Result<T>;

    /// The same, with what an errno means there.
    fn op_where(
        self,
        operation: &'static str,
        meaning: impl FnOnce(Errno) -> &'static str,
    ) -> Result<T>;
}

impl<T> Context<T> for rustix::io::Result<T> {
    #[inline]
    fn op(self, operation: &'static str) -> Result<T> {
        self.map_err(|errno| Error::new(operation, errno))
    }

    #[inline]
    fn op_on(self, operation: &'static str, bytes: usize) -> Result<T> {
        self.map_err(|errno| Error { operation, errno, detail: Detail::Bytes(bytes) })
    }

    #[inline]
    fn op_where(
        self,
        operation: &'static str,
        meaning: impl FnOnce(Errno) -> &'static str,
    ) -> Result<T> {
        self.map_err(|errno| Error::because(operation, errno, meaning(errno)))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn message_names_operation_numbers_and_errno() {
        let error = Error::with("map", Errno::INVAL, format_args!("offset 5 + length 9 > 12"));
        assert_eq!(
            error.to_string(),
            "map: offset 5 + length 9 > 12: Invalid argument (os error 22)"
        );
        assert_eq!(error.raw_os_error(), libc::EINVAL);
        assert!(error.is_invalid() && !error.is_unsupported());
        let io = std::io::Error::from(error);
        assert_eq!(io.kind(), std::io::ErrorKind::InvalidInput);
    }

    #[test]
    fn unsupported_is_not_transient() {
        let error = Error::new("futex_waitv", Errno::NOSYS);
        assert!(error.is_unsupported() && !error.is_would_block() && !error.is_timed_out());
    }
}
