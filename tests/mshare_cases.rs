//! Every test that `tests/mshare-cases.md` names exists.

#[test]
fn the_table_names_tests_that_exist() {
    let sources = [
        ("mshare", include_str!("mshare.rs")),
        ("mshare_both", include_str!("mshare_both.rs")),
        ("mshare_heap", include_str!("mshare_heap.rs")),
        ("mshare_hostile", include_str!("mshare_hostile.rs")),
        ("mshare_killed", include_str!("mshare_killed.rs")),
        ("mshare_kv", include_str!("mshare_kv.rs")),
        ("mshare_life", include_str!("mshare_life.rs")),
        ("mshare_limits", include_str!("mshare_limits.rs")),
        ("mshare_map", include_str!("mshare_map.rs")),
        ("mshare_shell", include_str!("mshare_shell.rs")),
        ("mshare_strangers", include_str!("mshare_strangers.rs")),
        ("access.rs", include_str!("../src/mshare/access.rs")),
        ("directory.rs", include_str!("../src/mshare/directory.rs")),
        ("window.rs", include_str!("../src/mshare/window.rs")),
        ("heap/tests/killed.rs", include_str!("../src/mshare/heap/tests/killed.rs")),
    ];
    let table = include_str!("mshare-cases.md");
    let mut named = 0;
    for name in table.split('`') {
        let Some((file, test)) = name.split_once("::") else { continue };
        let source = match sources.iter().find(|(name, _)| *name == file) {
            Some((_, source)) => source,
            // What is no test, such as `Region::unmap`, or the form itself.
            None if file == "file" || file.starts_with(char::is_uppercase) => continue,
            None => panic!("{file} is no file of tests"),
        };
        assert!(source.contains(&format!("fn {test}(")), "{name} does not exist");
        named += 1;
    }
    assert!(named > 80, "{named}");
    // The rows of the patches are all there.
    for row in 1..=38 {
        assert!(table.contains(&format!("\n| {row} |")), "row {row}");
    }
}
