//! What a kernel must have: `UNMERGED_REQUIRE` names the features, `ci/kernels.sh` sets it.

mod common;

/// A feature that is missing is said, and what takes over; one that is required fails.
#[test]
fn what_is_missing_is_said() {
    let probe = unmerged::probe();
    let percpu = format!("percpu by {}", probe.percpu());
    let futex2 = format!("futex2 by {}", probe.futex2());
    for feature in probe.features().iter().filter(|feature| !feature.present) {
        let instead = match feature.name {
            "rseq" | "fsgsbase" => &percpu,
            "futex-waitv" => &futex2,
            "futex2" | "futex-numa" => "futex",
            "rseq-extended" | "rseq-v2" => "the fields of 4.18",
            "io-uring" => "a wait of a thread",
            "memfd-noexec" => "mode bits",
            "schedstat" => "EOPNOTSUPP",
            // What an administrator reserves is no feature of a kernel.
            "huge-pages" => continue,
            _ => "nothing",
        };
        common::missing(feature.name, instead);
    }
    assert!(probe.has("cpus"));
}
