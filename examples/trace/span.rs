//! What is published: one record for a span, one for a thread's name.

use std::io::IoSlice;
use unmerged::percpu::Ring;

/// A record's fixed part; the name follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) process: u32,
    pub(crate) thread: u32,
    /// CLOCK_MONOTONIC in nanoseconds; 0 for a thread's name.
    pub(crate) begin: u64,
    pub(crate) end: u64,
}

/// Bytes of a header.
const SIZE: usize = 24;

impl Header {
    fn to_bytes(self) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        bytes[..4].copy_from_slice(&self.process.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.thread.to_ne_bytes());
        bytes[8..16].copy_from_slice(&self.begin.to_ne_bytes());
        bytes[16..].copy_from_slice(&self.end.to_ne_bytes());
        bytes
    }

    /// The header and the name in a record; `None` if it is none of ours.
    pub(crate) fn parse(record: &[u8]) -> Option<(Self, &[u8])> {
        let (header, name) = record.split_at_checked(SIZE)?;
        let half = |at| header.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
        let word = |at| header.get(at..at + 8)?.try_into().ok().map(u64::from_ne_bytes);
        let (process, thread) = (half(0)?, half(4)?);
        Some((Self { process, thread, begin: word(8)?, end: word(16)? }, name))
    }
}

/// CLOCK_MONOTONIC in nanoseconds.
pub(crate) fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// One thread's way to publish.
pub(crate) struct Tracer<'r> {
    ring: &'r Ring<'r>,
    process: u32,
    thread: u32,
}

impl<'r> Tracer<'r> {
    /// Tells the name of the calling thread.
    pub(crate) fn new(ring: &'r Ring<'r>, name: &str) -> Self {
        let thread = rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned();
        let tracer = Self { ring, process: std::process::id(), thread };
        tracer.publish(0, 0, name);
        tracer
    }

    /// A span from now until it is dropped.
    pub(crate) fn span<'t>(&'t self, name: &'t str) -> Span<'t> {
        Span { tracer: self, name, begin: now() }
    }

    fn publish(&self, begin: u64, end: u64, name: &str) {
        let header = Header { process: self.process, thread: self.thread, begin, end }.to_bytes();
        let name = &name.as_bytes()[..name.len().min(100)];
        // What there is no room for is counted by the ring.
        let _ = self.ring.publish_vectored(&[IoSlice::new(&header), IoSlice::new(name)]);
    }
}

pub(crate) struct Span<'t> {
    tracer: &'t Tracer<'t>,
    name: &'t str,
    begin: u64,
}

impl Drop for Span<'_> {
    fn drop(&mut self) {
        self.tracer.publish(self.begin, now(), self.name);
    }
}
