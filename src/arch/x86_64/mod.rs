//! x86-64: `%fs` holds the thread pointer, `%gs` is the application's.
//!
//! # Safety
//!
//! These files are inline asm over addresses that the caller vouches for. Every block
//! names its clobbers; none is `pure`, `nomem` or `readonly`, because two reads of a
//! per-CPU word are two reads.

mod gs;
mod librseq;
mod ring;
mod rseq;
mod sequences;
mod thread;
mod window;

pub use gs::{gs_base, gs_load_u64, set_gs_base};
pub use librseq::{
    load_add_load_load_add_store, load_cbeq_store_add_load_store, load_cbne_load_cbne_store,
    load_cbne_memcpy_store, load_cbne_store, load_cbne_store_store,
};
pub use ring::{ring_pad, ring_publish_parts, ring_publish_vectors, ring_publish_words};
pub use rseq::{gs_load_add_store_u64, gs_restripe, gs_restripe_callers, load_add_store_u64};
pub use sequences::{ByCaller, Indexed, Striped};
pub use thread::{
    Striping, callers_cpu, callers_striping, containing_u32, cpu_id, fetch_add_alone,
    own_area_offset, set_striped_cpu, striped_cpu, thread_pointer,
};
