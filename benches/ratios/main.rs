//! How fast, as ratios: each row has our arm and those of its peers, interleaved in one
//! run; the figure of an arm is the median of its rounds.
//!
//! `cargo bench --bench ratios [-- [PREFIX] [--json] [--rounds N]]`
//!
//! Without `--bench` (as `cargo test --bench ratios` calls it) every arm runs once, briefly, to
//! see that it works.

mod futex2;
mod futex2_locks;
mod harness;
mod mshare;
mod mshare_heap;
mod mshare_many;
mod mshare_tables;
mod peer;
mod percpu;
mod percpu_lock;
mod percpu_ring;
mod percpu_structures;
mod pthread;
mod task_shared;
mod task_shared_read;

use harness::Options;

fn main() {
    peer::play(&[
        (task_shared::SLEEPERS, task_shared::sleepers),
        (mshare::SERVER, mshare::serve),
        (mshare::SHARER, mshare::share),
        (mshare_many::HOLDER, mshare_many::hold),
        (mshare_many::TOUCHER, mshare_many::touch),
        (mshare_tables::TOUCHER, mshare_tables::touch),
        (futex2_locks::ECHO, futex2_locks::echo),
        (mshare_heap::READER, mshare_heap::read),
    ]);
    futex2::play();
    let options = Options::from_args();
    percpu::rows(&options);
    percpu_structures::rows(&options);
    percpu_lock::rows(&options);
    percpu_ring::rows(&options);
    task_shared::rows(&options);
    task_shared_read::rows(&options);
    futex2::rows(&options);
    futex2_locks::rows(&options);
    mshare::rows(&options);
    mshare_many::rows(&options);
    mshare_tables::rows(&options);
    mshare_heap::rows(&options);
}
