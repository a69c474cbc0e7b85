//! x
mod current;
mod descriptor;
mod discover;
mod header;
mod life;
mod monitor;
mod owner;
mod process;
mod record;
mod source;
mod table;

pub use current::{Slot, current};
pub use monitor::{Monitor, Thread, Threads};
pub use record::SchedStats;
