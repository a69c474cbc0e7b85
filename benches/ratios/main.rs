//! How fast, as ratios: each row has our arm and those of its peers, interleaved in one
//! run; the figure of an arm is the median of its rounds.
//!
//! `cargo bench --bench ratios [-- [PREFIX] [--json] [--rounds N]]`
//!
//! Without `--bench` (as `cargo test --bench ratios` calls it) every arm runs once, briefly, to
//! see that it works.

mod futex2;
mod harness;
mod mshare;
mod peer;
mod percpu;
mod percpu_lock;
mod percpu_ring;
mod percpu_structures;
mod task_shared;

use harness::Options;

fn main() {
    peer::play(&[
        (task_shared::SLEEPERS, task_shared::sleepers),
        (mshare::SERVER, mshare::serve),
        (mshare::SHARER, mshare::share),
    ]);
    let options = Options::from_args();
    percpu::rows(&options);
    percpu_structures::rows(&options);
    percpu_lock::rows(&options);
    percpu_ring::rows(&options);
    task_shared::rows(&options);
    futex2::rows(&options);
    mshare::rows(&options);
}
