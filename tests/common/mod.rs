//! What live tests share.

/// Says in one line that this kernel lacks a feature, and what was tested instead.
///
/// # Panics
///
/// If the environment's `UNMERGED_REQUIRE`, a list with commas, names the feature.
pub(crate) fn missing(feature: &str, instead: &str) {
    eprintln!("skip: {feature}: {instead}");
    let required = std::env::var("UNMERGED_REQUIRE").unwrap_or_default();
    assert!(required.split(',').all(|name| name != feature), "{feature} is required here");
}
