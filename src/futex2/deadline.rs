//! Absolute deadlines.

use crate::sys::futex::Clock;
use core::cmp::Ordering;
use core::fmt;
use core::ops::Add;
use core::time::Duration;
use rustix::time::{ClockId, Timespec, clock_gettime};
use std::time::{Instant, SystemTime};

/// A point on a clock, up to which a wait may last.
///
/// It is absolute, so a wait that is begun again keeps it. It is always a valid
/// `timespec`: the errors of a negative or malformed one cannot happen.
///
/// A wait never ends before it, and later by the time that the scheduler takes. The kernel may add
/// the thread's timer slack, 50 µs by default (`PR_SET_TIMERSLACK` of prctl(2)), where it sleeps by
/// futex(2): on words of up to 32 bits, and wherever a shadow word is slept on. futex_waitv(2) has
/// none.
///
/// Deadlines of one clock are ordered; those of two are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Deadline {
    clock: Clock,
    at: Duration,
}

/// The longest time that a `timespec` of the kernel holds.
const LAST: Duration = Duration::new(i64::MAX as u64, 999_999_999);

impl Deadline {
    /// One that does not come.
    pub(super) const FAR: Self = Self { clock: Clock::Monotonic, at: LAST };

    /// `at` on `CLOCK_MONOTONIC`, counted from its zero.
    pub fn monotonic(at: Duration) -> Self {
        Self { clock: Clock::Monotonic, at: at.min(LAST) }
    }

    /// `at` on `CLOCK_REALTIME`, counted from 1970. It moves when the clock is set; a wait that sleeps
    /// by beats, as those of the shared [locks](super::lock) do, finds out at the next one, up to 50
    /// milliseconds late.
    pub fn realtime(at: Duration) -> Self {
        Self { clock: Clock::Realtime, at: at.min(LAST) }
    }

    /// `span` from now, on `CLOCK_MONOTONIC`.
    pub fn after(span: Duration) -> Self {
        Self::monotonic(now(Clock::Monotonic).saturating_add(span))
    }

    /// The clock.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// The point on it, counted from its zero.
    pub fn at(&self) -> Duration {
        self.at
    }

    /// What is left until then.
    pub fn left(&self) -> Duration {
        self.at.saturating_sub(now(self.clock))
    }

    /// Has it passed?
    pub fn has_passed(&self) -> bool {
        now(self.clock) >= self.at
    }

    /// As the kernel takes it.
    pub(super) fn timespec(&self) -> Timespec {
        Timespec {
            tv_sec: i64::try_from(self.at.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(self.at.subsec_nanos()),
        }
    }

    /// The earlier of this one and `span` from now, on `CLOCK_MONOTONIC`.
    pub(super) fn or_sooner(deadline: Option<Self>, span: Duration) -> Self {
        match deadline {
            None => Self::after(span),
            Some(deadline) if deadline.clock == Clock::Monotonic => {
                Self { at: deadline.at.min(Self::after(span).at), ..deadline }
            }
            // As it is now: that clock may be set meanwhile.
            Some(deadline) => Self::after(deadline.left().min(span)),
        }
    }
}

/// `None` for two clocks.
impl PartialOrd for Deadline {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        (self.clock == other.clock).then(|| self.at.cmp(&other.at))
    }
}

/// Later by as much; at the end of the clock's range, no later.
impl Add<Duration> for Deadline {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self { at: self.at.saturating_add(span).min(LAST), ..self }
    }
}

/// The clock, and seconds from its zero: `monotonic 1234.567s`.
impl fmt::Display for Deadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let clock = match self.clock {
            Clock::Monotonic => "monotonic",
            Clock::Realtime => "realtime",
        };
        write!(f, "{clock} {}.{:03}s", self.at.as_secs(), self.at.subsec_millis())
    }
}

fn now(clock: Clock) -> Duration {
    let time = clock_gettime(match clock {
        Clock::Monotonic => ClockId::Monotonic,
        Clock::Realtime => ClockId::Realtime,
    });
    // Before 1970 a real-time clock is negative: then no deadline has passed.
    Duration::try_from(time).unwrap_or(Duration::ZERO)
}

/// std's `Instant` is on `CLOCK_MONOTONIC`, and does not tell where: right to within the time
/// between two looks at the clock.
impl From<Instant> for Deadline {
    fn from(at: Instant) -> Self {
        Self::after(at.saturating_duration_since(Instant::now()))
    }
}

/// On `CLOCK_REALTIME`; a time before 1970 has passed.
impl From<SystemTime> for Deadline {
    fn from(at: SystemTime) -> Self {
        Self::realtime(at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn points_on_clocks() {
        assert!(Deadline::monotonic(Duration::ZERO).has_passed());
        assert!(Deadline::realtime(Duration::from_secs(1)).has_passed());
        let far = Deadline::after(Duration::MAX);
        assert!(!far.has_passed());
        assert_eq!(far.timespec().tv_sec, i64::MAX);
        let soon = Deadline::or_sooner(Some(far), Duration::from_secs(1));
        assert!(soon.at() < far.at());
        let past = Deadline::monotonic(Duration::ZERO);
        assert_eq!(Deadline::or_sooner(Some(past), Duration::from_secs(1)), past);
        let real = Deadline::realtime(Duration::ZERO);
        assert_eq!(Deadline::or_sooner(Some(real), Duration::ZERO).clock(), Clock::Monotonic);
    }

    #[test]
    fn order_and_sums() {
        let (first, span) =
            (Deadline::monotonic(Duration::from_millis(1500)), Duration::from_secs(1));
        assert!(first < first + span && first + Duration::MAX == Deadline::FAR);
        assert_eq!((first + span).to_string(), "monotonic 2.500s");
        let other = Deadline::realtime(Duration::from_secs(1));
        assert_eq!(first.partial_cmp(&other), None);
        let soon = Deadline::or_sooner(Some(other + Duration::MAX), span);
        assert!(soon <= Deadline::after(span));
    }

    #[test]
    fn points_of_std() {
        assert!(Deadline::from(Instant::now()).has_passed());
        let hour = Duration::from_secs(3600);
        let (later, sooner) = (Deadline::from(Instant::now() + hour), Deadline::after(hour / 2));
        assert_eq!(later.clock(), Clock::Monotonic);
        assert!(later.at() > sooner.at());
        assert!(Deadline::from(SystemTime::UNIX_EPOCH - hour).has_passed());
        let day = Deadline::from(SystemTime::UNIX_EPOCH + 24 * hour);
        assert_eq!(day, Deadline::realtime(24 * hour));
    }
}
