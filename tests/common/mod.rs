//! What the live tests share.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::process::Command;

/// A kernel feature is missing: says so, with what took over. Where `UNMERGED_REQUIRE` (a
/// comma-separated list) names the feature, that is a failure.
pub(crate) fn missing(feature: &str, instead: &str) {
    // One write, so that lines of several threads stay whole.
    eprintln!("skip: {feature}: {instead}");
    let required = std::env::var("UNMERGED_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|name| name == feature), "{feature} is required here");
}

/// The environment variable that tells a test that it runs as a child, and as which.
const ROLE: &str = "UNMERGED_TEST_ROLE";

/// The role of this process: `None` in the one that libtest started.
pub(crate) fn role() -> Option<String> {
    std::env::var(ROLE).ok()
}

/// This test binary again, executing `test` alone, in `role`, with no implementation forced.
pub(crate) fn child(test: &str, role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]).env(ROLE, role);
    command.env_remove("UNMERGED_PERCPU").env_remove("UNMERGED_FUTEX2");
    command
}

/// Runs it to its end; its output is shown if it failed.
pub(crate) fn succeed(mut command: Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    // Its skips are ours.
    for line in String::from_utf8_lossy(&output.stderr).lines() {
        if line.contains("skip: ") {
            eprintln!("{line}");
        }
    }
}
