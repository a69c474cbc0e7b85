//! What is traced: threads that read files, hash them, and sort their lines.

use crate::Result;
use crate::span::Tracer;
use foldhash::fast::FixedState;
use ignore::WalkBuilder;
use std::fs;
use std::hash::BuildHasher;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use unmerged::percpu::Ring;

/// The files given, and those in the directories given.
pub(crate) fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        for entry in WalkBuilder::new(path).sort_by_file_path(Path::cmp).build() {
            let entry = entry?;
            if entry.file_type().is_some_and(|kind| kind.is_file()) {
                files.push(entry.into_path());
            }
        }
    }
    if files.is_empty() { Err("no file".into()) } else { Ok(files) }
}

/// Each thread takes the next file until there is none.
pub(crate) fn work(ring: &Ring<'_>, files: &[PathBuf], threads: u32) -> Result<()> {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|n| {
                let next = &next;
                scope.spawn(move || {
                    let tracer = Tracer::new(ring, &format!("worker {n}"));
                    while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                        one(&tracer, file).map_err(|e| format!("{}: {e}", file.display()))?;
                    }
                    Ok::<_, String>(())
                })
            })
            .collect();
        for worker in workers {
            worker.join().map_err(|_| "a worker panicked")??;
        }
        Ok(())
    })
}

fn one(tracer: &Tracer<'_>, path: &Path) -> std::io::Result<()> {
    let name = path.display().to_string();
    let _file = tracer.span(&name);
    let bytes = {
        let _span = tracer.span("read");
        fs::read(path)?
    };
    {
        let _span = tracer.span("hash");
        black_box(FixedState::default().hash_one(&bytes));
    }
    let _span = tracer.span("sort");
    let mut lines: Vec<_> = bytes.split(|&byte| byte == b'\n').collect();
    lines.sort_unstable();
    black_box(lines);
    Ok(())
}
