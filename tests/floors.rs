//! Arrows point down only: a module may name modules of lower floors, and itself.
//!
//! The test reads the paths in `src/`. It also refuses a raw atomic outside of the loom
//! shim, which a model would not see.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The floors, lowest first. What a later line has may name what an earlier line has.
const FLOORS: [&[&str]; 6] = [
    &["abi", "sync", "error"],
    &["arch"],
    &["sys"],
    &["futex2", "shm"],
    &["percpu", "task_shared", "mshare"],
    &["lib", "probe"],
];

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|modules| modules.contains(&module))
}

/// The files of `src/`, by path relative to it.
fn sources() -> BTreeMap<PathBuf, String> {
    fn walk(dir: &Path, root: &Path, found: &mut BTreeMap<PathBuf, String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, root, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                found.insert(path.strip_prefix(root).unwrap().to_owned(), text);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = BTreeMap::new();
    walk(&root, &root, &mut found);
    found
}

/// The code of a file: without comments and without white space inside paths.
fn code(text: &str) -> String {
    let lines = text.lines().map(|line| line.split("//").next().unwrap_or(""));
    lines.collect::<Vec<_>>().join("\n")
}

/// The first segments of what is named behind each `prefix` (`crate::` or some `super::`):
/// `crate::a::b` has `a`, `crate::{a, b::{c, d}}` has `a` and `b`.
fn named(code: &str, prefix: &str) -> Vec<String> {
    let identifier = |text: &str| -> String {
        text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let mut found = Vec::new();
    for (at, _) in code.match_indices(prefix) {
        // `super::` of `super::super::` is not a path of its own.
        if code[..at].ends_with("::") {
            continue;
        }
        let rest = &code[at + prefix.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            found.push(identifier(rest));
            continue;
        };
        let mut depth = 0;
        let mut part = String::new();
        for c in group.chars() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => found.push(identifier(&std::mem::take(&mut part))),
                c => part.push(c),
            }
        }
        found.push(identifier(&part));
    }
    found
}

/// The floor's module that a file belongs to, and how many modules it is below the root.
fn place(path: &Path) -> (String, usize) {
    let parts: Vec<_> = path.iter().map(|part| part.to_str().unwrap()).collect();
    let module = parts[0].trim_end_matches(".rs").to_owned();
    let is_root = path == Path::new("lib.rs");
    let is_mod = parts.last() == Some(&"mod.rs");
    (module, if is_root { 0 } else { parts.len() - usize::from(is_mod) })
}

/// What breaks the rule in one file.
fn violations(path: &Path, text: &str) -> Vec<String> {
    let code = code(text);
    let (module, depth) = place(path);
    let Some(own) = floor(&module) else {
        return vec![format!("{}: `{module}` is on no floor", path.display())];
    };
    let mut found = Vec::new();
    for prefix in ["crate::".to_owned(), "super::".repeat(depth.max(1))] {
        for name in named(&code, &prefix) {
            match floor(&name) {
                Some(other) if other >= own && name != module => found.push(format!(
                    "{}: floor {own} names `{prefix}{name}` of floor {other}",
                    path.display()
                )),
                _ => {}
            }
        }
    }
    // Whatever the path is written like, it has this segment.
    if module != "sync" && code.contains("atomic::") {
        found.push(format!("{}: a raw atomic; take it from crate::sync", path.display()));
    }
    found
}

#[test]
fn arrows_point_down() {
    if !Path::new(env!("CARGO_MANIFEST_DIR")).exists() {
        // The binary was carried to another machine (ci/kernels.sh), the sources were not.
        return eprintln!("no sources here");
    }
    let sources = sources();
    assert!(sources.len() > 30, "only {} files read", sources.len());
    let found: Vec<_> = sources.iter().flat_map(|(path, text)| violations(path, text)).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn planted_arrows_are_caught() {
    for (path, text) in [
        ("sys/map.rs", "use crate::shm::View;"),
        ("arch/x86_64/gs.rs", "fn f() { crate::sys::rseq::area(); }"),
        ("shm/mod.rs", "use crate::{error::{Error, Result}, futex2::Futex};"),
        ("percpu/area.rs", "use crate::{\n    mshare,\n    sys,\n};"),
        ("mshare/mod.rs", "use super::percpu::Counter;"),
        ("mshare/region.rs", "use super::super::percpu::Counter;"),
        ("error.rs", "use super::sys;"),
        ("futex2/counts.rs", "use core::sync::atomic::AtomicU32;"),
        ("percpu/cell.rs", "use std::sync::{Arc, atomic::AtomicBool};"),
        ("attic/mod.rs", ""),
    ] {
        assert_eq!(violations(Path::new(path), text).len(), 1, "{path}: {text}");
    }
    for (path, text) in [
        ("sys/map.rs", "/// See [`crate::shm`].\nuse crate::error::Error; use super::cpus;"),
        ("percpu/area.rs", "use super::super::sys::map; use crate::percpu::STRIDE;"),
        ("lib.rs", "pub use crate::percpu::Counter;"),
    ] {
        assert_eq!(violations(Path::new(path), text), [""; 0], "{path}: {text}");
    }
}
