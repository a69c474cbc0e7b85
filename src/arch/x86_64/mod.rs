//! x86-64: `%fs` holds the thread pointer, `%gs` is the application's.
//!
//! # Safety
//!
//! These files are inline asm over addresses that the caller vouches for. Every block
//! names its clobbers; none is `pure`, `nomem` or `readonly`, because two reads of a
//! per-CPU word are two reads.

mod gs;
mod ring;
mod rseq;
mod thread;

pub use gs::{gs_base, gs_load_u64, set_gs_base};
pub use ring::{ring_pad, ring_publish_parts, ring_publish_vectors, ring_publish_words};
pub use rseq::{gs_load_add_store_u64, gs_restripe, load_add_store_u64};
pub use thread::{
    containing_u32, cpu_id, own_area_offset, set_striped_cpu, striped_cpu, thread_pointer,
};
