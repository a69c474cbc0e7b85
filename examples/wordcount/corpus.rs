//! Which files are counted.

use crate::Result;
use ignore::{DirEntry, WalkBuilder};
use std::fs;
use std::path::{Path, PathBuf};

/// A file, and its size when it was listed.
#[derive(Debug)]
pub(crate) struct Input {
    pub(crate) path: PathBuf,
    pub(crate) size: u64,
}

/// What was found under the paths.
#[derive(Debug, Default)]
pub(crate) struct Corpus {
    /// Largest first, so that no process is left alone with a large one at the end; files of
    /// one size in the order of their names.
    pub(crate) files: Vec<Input>,
    /// What could not be listed, and why.
    pub(crate) unreadable: Vec<String>,
}

impl Corpus {
    /// Lists the files given, and those in the directories given.
    ///
    /// A symbolic link is followed where it is one of `paths`, and nowhere else.
    ///
    /// # Errors
    ///
    /// A path that does not exist, or is neither a file nor a directory; no file at all.
    pub(crate) fn list(paths: &[PathBuf]) -> Result<Self> {
        let mut corpus = Self::default();
        for path in paths {
            let meta = fs::metadata(path).map_err(|e| format!("{}: {e}", path.display()))?;
            if meta.is_file() {
                corpus.files.push(Input { path: path.clone(), size: meta.len() });
            } else if meta.is_dir() {
                corpus.walk(path);
            } else {
                return Err(format!("{}: neither a file nor a directory", path.display()).into());
            }
        }
        if corpus.files.is_empty() {
            return Err("no file to count".into());
        }
        corpus.files.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.path.cmp(&b.path)));
        Ok(corpus)
    }

    fn walk(&mut self, root: &Path) {
        let mut walk = WalkBuilder::new(root);
        walk.standard_filters(false).sort_by_file_path(Path::cmp).filter_entry(is_wanted);
        for entry in walk.build() {
            match entry.and_then(|entry| Ok((entry.metadata()?, entry.into_path()))) {
                Ok((meta, path)) if meta.is_file() => {
                    self.files.push(Input { path, size: meta.len() });
                }
                Ok(_) => {} // A directory, a symbolic link, a socket.
                // The error of the file system has the path.
                Err(error) => self.unreadable.push(match error.io_error() {
                    Some(error) => error.to_string(),
                    None => error.to_string(),
                }),
            }
        }
    }

    /// Bytes, as they were listed.
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

/// Directories of git and caches (`CACHEDIR.TAG`, as cargo's `target` has it) are left out,
/// unless they are given.
fn is_wanted(entry: &DirEntry) -> bool {
    let is_dir = entry.file_type().is_some_and(|kind| kind.is_dir());
    !is_dir
        || entry.depth() == 0
        || entry.file_name() != ".git" && !entry.path().join("CACHEDIR.TAG").is_file()
}
