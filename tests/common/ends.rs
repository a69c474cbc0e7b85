//! Channels of either scope, for tests that run in both.

use crate::common::map;
use crate::processes::file;
use std::time::Duration;
use unmerged::futex2::lock::Channel;
use unmerged::futex2::{Deadline, Private, Shared};

pub(crate) type Make<S> = fn(u32) -> Channel<u64, S>;

pub(crate) fn private(capacity: u32) -> Channel<u64, Private> {
    Channel::bounded(capacity).unwrap()
}

pub(crate) fn shared(capacity: u32) -> Channel<u64, Shared> {
    let bytes = Channel::<u64, Shared>::bytes(capacity);
    // SAFETY: a mapping of its own, for good.
    unsafe { Channel::attach(map(&file(bytes), bytes), bytes, capacity) }.unwrap()
}

pub(crate) fn soon() -> Deadline {
    Deadline::after(Duration::from_millis(5))
}
