//! Where a thread's numbers come from, with no privilege: its CPU clock, and the kernel's
//! `/proc/thread-self/schedstat` for what no clock tells.
//!
//! The clock goes first: asking it brings the scheduler's sums up to date, which between
//! ticks are up to one tick old.
//!
//! Both are there for the other threads of the process, too ([`Remote`]), at half the cost of
//! being woken to ask.

use super::descriptor::Kept;
use super::record::SchedStats;
use crate::error::{Context, Error, Result};
use crate::sys::thread;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags, open, openat, readlink};
use rustix::io::{Errno, pread};

const OP: &str = "task_shared::Slot::publish";
const PATH: &str = "/proc/thread-self/schedstat";
/// Nanoseconds after which the file of a thread that has not run is read again: the kernel adds
/// to the delay of a thread that waits when it moves it to another CPU.
const AGAIN: u64 = 1_000_000_000;

/// Two clocks of the calling thread, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Clocks {
    pub(super) monotonic: u64,
    pub(super) cpu: u64,
}

impl Clocks {
    /// Monotonic time first: a preemption between the two makes the time off the CPU look
    /// shorter, which the next look puts right, never longer.
    pub(super) fn now() -> Self {
        Self { monotonic: thread::monotonic(), cpu: thread::cpu_time() }
    }

    /// Time off the CPU since `start`, in nanoseconds. CLOCK_MONOTONIC may be slewed against
    /// the scheduler's clock; the difference is never taken for negative.
    pub(super) fn off_cpu_since(self, start: Self) -> u64 {
        let elapsed = self.monotonic.saturating_sub(start.monotonic);
        elapsed.saturating_sub(self.cpu.saturating_sub(start.cpu))
    }
}

/// What the kernel keeps of the waiting of the calling thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Schedstat {
    pub(super) run_delay: u64,
    pub(super) pcount: u64,
}

/// Opens the calling thread's file.
///
/// # Errors
///
/// EOPNOTSUPP if there is none: a kernel without CONFIG_SCHED_INFO, or no /proc. EMFILE,
/// ENFILE, EACCES.
pub(super) fn open_schedstat() -> Result<Kept> {
    match open(PATH, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::NOENT) => {
            Err(Error::because(OP, Errno::OPNOTSUPP, "there is no /proc/thread-self/schedstat"))
        }
        file => Kept::keep(file.op(OP)?).op(OP),
    }
}

/// Can the kernel tell what [`Remote::read`] asks for?
///
/// # Errors
///
/// EOPNOTSUPP as [`open_schedstat`] and [`read_schedstat`]; EMFILE, ENFILE, EACCES.
pub(super) fn check_schedstat() -> Result<()> {
    let file = open_schedstat()?;
    let read = read_schedstat(&file);
    file.close();
    read.map(drop)
}

/// Does /proc call the calling thread by the id that it knows itself by? It is otherwise of
/// another pid namespace.
pub(super) fn knows_us() -> bool {
    let link = readlink("/proc/thread-self", Vec::new());
    let ours = format!("/task/{}", thread::id());
    link.is_ok_and(|link| link.as_bytes().ends_with(ours.as_bytes()))
}

/// Reads it.
///
/// # Errors
///
/// EOPNOTSUPP if the kernel does not count (it says so by three zeros), EBADF or EBADMSG if
/// somebody closed the descriptor or put another file in its place.
pub(super) fn read_schedstat(file: &Kept) -> Result<Schedstat> {
    let mut text = [0_u8; 64];
    // SAFETY: to read from another file that has the number by now does no harm; the text is
    // checked.
    let file = unsafe { file.file() };
    let len = match pread(file, &mut text, 0) {
        // A pipe or a socket has the number now.
        Err(Errno::SPIPE) => 0,
        len => len.op(OP)?,
    };
    let Some([_, run_delay, pcount]) = parse(&text[..len]) else {
        return Err(Error::because(OP, Errno::BADMSG, "the kept descriptor is no schedstat"));
    };
    // A thread that asks has been given a CPU.
    if pcount == 0 {
        return Err(Error::because(OP, Errno::OPNOTSUPP, "this kernel keeps no run delay"));
    }
    Ok(Schedstat { run_delay, pcount })
}

/// Another thread of this process, as the sampler knows it.
///
/// A thread id may be given to a later thread, what was opened is not: so the files are
/// opened in the thread's directory, and answer with ESRCH once it is gone. The clock is asked
/// by id; a file that can be read after it says whose clock it was.
#[derive(Debug)]
pub(super) struct Remote {
    tid: u32,
    /// The schedstat, if it could be kept.
    file: Option<OwnedFd>,
    /// When it was read last, by CLOCK_MONOTONIC.
    looked: u64,
}

/// The directory of this process's threads.
///
/// # Errors
///
/// As open(2).
pub(super) fn open_tasks() -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open("/proc/self/task", flags, Mode::empty())
}

/// A file of a thread, opened in the directory of [`open_tasks`].
fn open_of(tasks: impl AsFd, tid: u32, file: &str) -> rustix::io::Result<OwnedFd> {
    openat(tasks, format!("{tid}/{file}"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

impl Remote {
    /// Opens it; it keeps the descriptor if it may, and there is one.
    ///
    /// # Errors
    ///
    /// ENOENT or ESRCH if there is no such thread.
    pub(super) fn open(tasks: impl AsFd, tid: u32, keep: bool) -> rustix::io::Result<Self> {
        let file = match open_of(tasks, tid, "schedstat") {
            // To be opened each time; there may be one then.
            Err(Errno::MFILE | Errno::NFILE) => None,
            file => Some(file?).filter(|_| keep),
        };
        Ok(Self { tid, file, looked: 0 })
    }

    /// The thread's times and counts at the time `now`; `off_cpu` is 0. Where its clock says what
    /// it said in `last`, it has not run since, and the file is left alone: the clock costs a
    /// third of it.
    ///
    /// # Errors
    ///
    /// ESRCH or ENOENT once it is gone, EMFILE or ENFILE, EBADMSG for a text that is none.
    pub(super) fn read(
        &mut self,
        tasks: impl AsFd,
        last: SchedStats,
        now: u64,
    ) -> rustix::io::Result<SchedStats> {
        let sum_exec_runtime = thread::cpu_time_of(self.tid).map_err(|_| Errno::SRCH)?;
        // A clock that went back is another thread's.
        if sum_exec_runtime < last.sum_exec_runtime {
            return Err(Errno::SRCH);
        }
        if sum_exec_runtime == last.sum_exec_runtime && now.saturating_sub(self.looked) < AGAIN {
            return Ok(SchedStats { off_cpu: 0, ..last });
        }
        let [_, run_delay, pcount] = self.numbers(tasks)?;
        self.looked = now;
        Ok(SchedStats { sum_exec_runtime, run_delay, pcount, off_cpu: 0 })
    }

    /// What the file says.
    fn numbers(&self, tasks: impl AsFd) -> rustix::io::Result<[u64; 3]> {
        let mut text = [0_u8; 64];
        let len = match &self.file {
            Some(file) => pread(file, &mut text, 0)?,
            None => pread(open_of(tasks, self.tid, "schedstat")?, &mut text, 0)?,
        };
        parse(&text[..len]).ok_or(Errno::BADMSG)
    }
}

/// Name of a thread of this process, padded with zeros.
///
/// # Errors
///
/// ENOENT or ESRCH if there is no such thread.
pub(super) fn name_of(tasks: impl AsFd, tid: u32) -> rustix::io::Result<[u8; 16]> {
    let mut name = [0; 16];
    let len = pread(open_of(tasks, tid, "comm")?, &mut name, 0)?;
    // The newline, if it was not cut off.
    name[len.saturating_sub(1).min(15)..].fill(0);
    Ok(name)
}

/// Three decimal numbers and a newline.
fn parse(text: &[u8]) -> Option<[u64; 3]> {
    let text = core::str::from_utf8(text).ok()?.strip_suffix('\n')?;
    let mut numbers = text.split(' ').map(|word| word.parse().ok());
    let three = [numbers.next()??, numbers.next()??, numbers.next()??];
    numbers.next().is_none().then_some(three)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn three_numbers_and_nothing_else() {
        assert_eq!(parse(b"1 2 3\n"), Some([1, 2, 3]));
        assert_eq!(parse(b"18446744073709551615 0 0\n"), Some([u64::MAX, 0, 0]));
        for text in ["", "\n", "1 2 3", "1 2\n", "1 2 3 4\n", "1  2 3\n", "-1 2 3\n", "1 2 x\n"] {
            assert_eq!(parse(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(parse(&[0xff; 64]), None);
    }

    #[test]
    fn another_thread_of_this_process() {
        let tasks = open_tasks().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let named = std::thread::Builder::new().name("fifteen letters".into());
        let other = named.spawn(move || {
            tell.send(thread::id()).unwrap();
            let _ = wait.recv();
        });
        let tid = told.recv().unwrap();
        for keep in [true, false] {
            let Ok(mut remote) = Remote::open(&tasks, tid, keep) else {
                continue; // a kernel without schedstat
            };
            let none = SchedStats::default();
            let stats = remote.read(&tasks, none, AGAIN).unwrap();
            assert!(stats.sum_exec_runtime > 0 && stats.pcount > 0);
            // It sleeps by now, or soon; then nothing changes.
            let asleep = || {
                let first = thread::cpu_time_of(tid);
                std::thread::sleep(core::time::Duration::from_millis(2));
                first == thread::cpu_time_of(tid)
            };
            while !asleep() {}
            let stats = remote.read(&tasks, none, AGAIN).unwrap();
            let spoilt = SchedStats { pcount: 0, ..stats };
            assert_eq!(remote.read(&tasks, spoilt, 2 * AGAIN - 1), Ok(spoilt), "only the clock");
            assert_eq!(remote.read(&tasks, spoilt, 2 * AGAIN), Ok(stats), "the file again");
            let later = SchedStats { sum_exec_runtime: stats.sum_exec_runtime + 1, ..stats };
            assert_eq!(remote.read(&tasks, later, 0), Err(Errno::SRCH), "of another thread");
        }
        assert_eq!(&name_of(&tasks, tid).unwrap(), b"fifteen letters\0");
        let kept = Remote::open(&tasks, tid, true);
        drop(go);
        other.unwrap().join().unwrap();
        // Joined is a little before gone.
        if let Ok(mut kept) = kept {
            let end = loop {
                if let Err(errno) = kept.read(&tasks, SchedStats::default(), 0) {
                    break errno;
                }
            };
            assert_eq!((end, kept.numbers(&tasks)), (Errno::SRCH, Err(Errno::SRCH)));
        }
    }

    #[test]
    fn time_off_the_cpu_is_never_negative() {
        let at = |monotonic, cpu| Clocks { monotonic, cpu };
        assert_eq!(at(100, 30).off_cpu_since(at(10, 10)), 70);
        assert_eq!(at(100, 200).off_cpu_since(at(10, 10)), 0);
        assert_eq!(at(5, 10).off_cpu_since(at(10, 20)), 0);
    }
}
