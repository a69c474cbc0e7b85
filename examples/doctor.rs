//! Shows what this machine offers, which implementation each module chose, and what would
//! make it better.
//!
//! `cargo run --example doctor`

/// What to do about a feature that is missing.
fn advice(name: &str) -> Option<&'static str> {
    Some(match name {
        "rseq" => {
            "per-CPU updates are atomic additions: allow rseq(2) in the seccomp filter, or use \
             Linux 4.18"
        }
        "fsgsbase" => {
            "per-CPU updates go without %gs: use Linux 5.9 without `nofsgsbase`, or see who else \
             owns %gs"
        }
        "membarrier-rseq" => "per-CPU data cannot be drained remotely: use Linux 5.10",
        "futex-waitv" => "64-bit waits go through a shadow word: use Linux 5.16",
        "io-uring" => "rings do not wait for futexes: use Linux 6.7, and allow io_uring_setup(2)",
        "memfd-noexec" => "memory files are not marked as never executable: use Linux 6.3",
        "schedstat" => "no run delay and no run count: the kernel needs CONFIG_SCHED_INFO",
        "pidfd" => "the end of a process cannot be waited for: use Linux 5.3",
        "seal-future-write" => "thread slots cannot be published read-only: use Linux 5.1",
        _ => return None,
    })
}

fn main() {
    let probe = unmerged::probe();
    println!("{probe}");
    for feature in probe.features().iter().filter(|feature| !feature.present) {
        if let Some(advice) = advice(feature.name) {
            println!("\n{}: {advice}", feature.name);
        }
    }
}
