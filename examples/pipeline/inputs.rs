//! Which files are compressed, and their text in blocks.

use crate::Result;
use ignore::WalkBuilder;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

/// The files given, and those in the directories given, in the order of their names.
///
/// # Errors
///
/// A path cannot be listed, or is neither a file nor a directory.
pub(crate) fn list(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        let meta = fs::metadata(path).map_err(|e| format!("{}: {e}", path.display()))?;
        if meta.is_file() {
            files.push(path.clone());
        } else if !meta.is_dir() {
            return Err(format!("{}: neither a file nor a directory", path.display()).into());
        } else {
            let mut walk = WalkBuilder::new(path);
            walk.standard_filters(false).sort_by_file_path(Path::cmp).filter_entry(|entry| {
                let cache = || entry.path().join("CACHEDIR.TAG").is_file();
                entry.depth() == 0 || entry.file_name() != ".git" && !cache()
            });
            for entry in walk.build() {
                let entry = entry?;
                if entry.file_type().is_some_and(|kind| kind.is_file()) {
                    files.push(entry.into_path());
                }
            }
        }
    }
    Ok(files)
}

/// The text of files, one after the other, in blocks that are full but for the last.
pub(crate) struct Text<I> {
    paths: I,
    file: Option<(PathBuf, File)>,
}

impl<I: Iterator<Item = PathBuf>> Text<I> {
    pub(crate) fn new(paths: I) -> Self {
        Self { paths, file: None }
    }

    /// Reads the next block; how much of it is text. 0: there is none.
    ///
    /// # Errors
    ///
    /// A file cannot be read.
    pub(crate) fn read(&mut self, block: &mut [u8]) -> Result<usize> {
        let mut len = 0;
        while len < block.len() {
            if self.file.is_none() {
                let Some(path) = self.paths.next() else { break };
                let file = File::open(&path).map_err(|e| format!("{}: {e}", path.display()))?;
                self.file = Some((path, file));
            }
            let Some((path, file)) = &mut self.file else { break };
            match file.read(&mut block[len..]) {
                Ok(0) => self.file = None,
                Ok(n) => len += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(format!("{}: {error}", path.display()).into()),
            }
        }
        Ok(len)
    }
}
