//! The parent: starts the processes, writes what they have done, and answers for their deaths.

use crate::Result;
use crate::compressor::compress;
use crate::job::{DONE, FILLED, FREE, Job, Message, TAKEN, state};
use core::sync::atomic::Ordering;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, getppid, pidfd_open, pidfd_send_signal,
    set_parent_process_death_signal,
};
use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use unmerged::futex2::lock::{Source, select};

/// Compressors that may die before the job is given up.
const DEATHS: u32 = 16;

/// What became of a job.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) blocks: u64,
    pub(crate) read: u64,
    pub(crate) written: u64,
    /// All that was written, if it is to be checked.
    pub(crate) output: Vec<u8>,
    /// The one that was killed in the middle of a block, as asked for.
    pub(crate) killed: Option<u32>,
    pub(crate) time: Duration,
}

/// In a child: has the kernel end us with the parent.
///
/// # Errors
///
/// It has ended already.
pub(crate) fn end_with(job: &Job<'_>) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid().map(Pid::as_raw_pid) != i32::try_from(job.parent()).ok() {
        return Err("the parent has ended".into());
    }
    Ok(())
}

/// A child, until it is reaped. None survives this.
struct Process {
    child: Child,
    handle: OwnedFd,
}

impl Process {
    /// Starts this program again; when it ends, there is news.
    fn start<'scope>(
        scope: &'scope std::thread::Scope<'scope, '_>,
        job: &'scope Job<'scope>,
        role: &str,
    ) -> Result<Self> {
        let child = Command::new(env::current_exe()?)
            .args(["--role", role, "--region", job.region.name()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let handle = pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
        // Before anything else fails: it is killed when this is dropped.
        let process = match handle {
            Ok(handle) => Self { child, handle },
            Err(error) => {
                let mut child = child;
                let _ = child.kill();
                let _ = child.wait();
                return Err(error.into());
            }
        };
        let (watched, news) = (process.handle.try_clone()?, job.news());
        std::thread::Builder::new().spawn_scoped(scope, move || {
            wait_for_end(&watched);
            news.set();
        })?;
        Ok(process)
    }

    /// How it ended, if it did.
    fn end(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sleeps until the process has ended; it is not reaped.
fn wait_for_end(process: impl AsFd) {
    let mut fds = [PollFd::new(&process, PollFlags::IN)];
    while poll(&mut fds, None) == Err(Errno::INTR) {}
}

/// Runs the job; what it wrote is kept if it is to be checked.
///
/// # Errors
///
/// Processes cannot be started, or die again and again; a file cannot be read, or the output
/// not written.
pub(crate) fn run(job: &Job<'_>, output: Option<&Path>, keep: bool) -> Result<Report> {
    let open = |path: &Path| File::create(path).map_err(|e| format!("{}: {e}", path.display()));
    let file = output.map(open).transpose()?.map(BufWriter::new);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let mut reader = Some(Process::start(scope, job, "reader")?);
        let mut workers = Vec::new();
        for seat in 0..job.blocks.len() / crate::job::BLOCKS {
            workers.push(Process::start(scope, job, &seat.to_string())?);
        }
        let mut writer = Writer::new(job, file, keep);
        let mut deaths = 0;
        while job.texts() != Some(writer.report.blocks) {
            // What has ended goes first: the blocks of the dead are the others' bread.
            let (done, work) = (job.done.receiving(), job.work.sending());
            let sources: &[&dyn Source] = if writer.again.is_empty() {
                &[job.news(), &done]
            } else {
                &[job.news(), &done, &work]
            };
            match select(sources, None)? {
                0 => drop(job.news().reset()),
                1 => {
                    if let Ok(message) = job.done.try_recv() {
                        writer.take(message)?;
                    }
                    continue;
                }
                _ => {
                    writer.offer_again();
                    continue;
                }
            }
            if let Some(seat) = job.halted() {
                job.clear_halted();
                let worker = workers.get(seat).ok_or("a seat that there is not")?;
                pidfd_send_signal(&worker.handle, Signal::KILL)?;
                writer.report.killed = Some(worker.child.id());
            }
            if let Some(process) = &mut reader
                && let Some(status) = process.end()?
            {
                if !status.success() {
                    return Err(format!("the reader ended: {status}").into());
                }
                reader = None;
            }
            for (seat, worker) in workers.iter_mut().enumerate() {
                if worker.end()?.is_some() {
                    deaths += 1;
                    if deaths > DEATHS {
                        return Err(format!("{deaths} compressors died").into());
                    }
                    writer.take_back(seat)?;
                    *worker = Process::start(scope, job, &seat.to_string())?;
                }
            }
        }
        job.end().set();
        let report = writer.finish(start)?;
        for mut process in workers.into_iter().chain(reader) {
            process.child.wait()?;
        }
        Ok(report)
    })
}

/// Writes blocks in the order of their texts.
struct Writer<'j, 'r> {
    job: &'j Job<'r>,
    file: Option<BufWriter<File>>,
    keep: bool,
    /// Done before their turn.
    waiting: BTreeMap<u64, u64>,
    /// To be sent to the compressors once more, as there is room.
    again: BTreeSet<Message>,
    report: Report,
}

impl<'j, 'r> Writer<'j, 'r> {
    fn new(job: &'j Job<'r>, file: Option<BufWriter<File>>, keep: bool) -> Self {
        let (waiting, again) = (BTreeMap::new(), BTreeSet::new());
        Self { job, file, keep, waiting, again, report: Report::default() }
    }

    fn take(&mut self, message: Message) -> Result<()> {
        // What was told twice was written in between, or waits already.
        if self.job.block(message, DONE).is_some() {
            self.waiting.insert(message[1], message[0]);
        }
        while let Some(block) = self.waiting.remove(&self.report.blocks) {
            self.write([block, self.report.blocks])?;
        }
        Ok(())
    }

    fn write(&mut self, message: Message) -> Result<()> {
        let [number, text] = message;
        let block = self.job.block(message, DONE).ok_or("a block that is not done")?;
        // SAFETY: done, so it is the writer's.
        let (_, packed) = unsafe { self.job.room(block) }?;
        let len = block.packed.load(Ordering::Relaxed) as usize;
        let packed = packed.get(..len).ok_or("a block that is too long")?;
        self.put(packed)?;
        self.report.read += u64::from(block.len.load(Ordering::Relaxed));
        self.report.blocks += 1;
        block.change(state(DONE, text), state(FREE, text));
        self.job.free.send([number, text])?;
        Ok(())
    }

    fn put(&mut self, packed: &[u8]) -> Result<()> {
        if let Some(file) = &mut self.file {
            file.write_all(packed)?;
        }
        if self.keep {
            self.report.output.extend_from_slice(packed);
        }
        self.report.written += packed.len() as u64;
        Ok(())
    }

    /// A compressor is dead: `job.rs` says what is to be done.
    fn take_back(&mut self, seat: usize) -> Result<()> {
        for (number, block) in self.job.blocks.iter().enumerate() {
            let (seen, number) = (block.state(), number as u64);
            let (what, text) = (seen & 0xff, seen >> 8);
            if what == DONE {
                self.take([number, text])?;
            }
            if what == TAKEN + seat as u64 && !block.change(seen, state(FILLED, text)) {
                return Err("a dead compressor goes on".into());
            }
            if what == FILLED || what == TAKEN + seat as u64 {
                self.again.insert([number, text]);
            }
        }
        Ok(())
    }

    /// Sends again what is to be, as far as there is room: who would make some may be dead.
    fn offer_again(&mut self) {
        while let Some(message) = self.again.pop_first() {
            let is_filled = self.job.block(message, FILLED).is_some();
            if is_filled && self.job.work.try_send(message).is_err() {
                self.again.insert(message);
                return;
            }
        }
    }

    fn finish(mut self, start: Instant) -> Result<Report> {
        if self.report.blocks == 0 {
            // An empty file is no gzip file; a member without text is one.
            self.put(&compress(&[])?)?;
        }
        if let Some(file) = &mut self.file {
            file.flush()?;
        }
        self.report.time = start.elapsed();
        io::stdout().flush()?;
        Ok(self.report)
    }
}
