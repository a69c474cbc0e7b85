//! The same in one process.

use crate::Result;
use crate::compressor::compress;
use crate::inputs::Text;
use crate::parent::Report;
use flate2::read::MultiGzDecoder;
use std::io::Read;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Compresses the files in this process; how long that took. Compares the output with that of
/// the pipeline, and the text with what its output is unpacked to.
///
/// # Errors
///
/// The first difference; a file cannot be read.
pub(crate) fn compare(files: &[PathBuf], block: usize, report: &Report) -> Result<Duration> {
    let start = Instant::now();
    let mut text = Text::new(files.iter().cloned());
    let (mut room, mut one, mut plain) = (vec![0; block], Vec::new(), Vec::new());
    loop {
        let len = text.read(&mut room)?;
        if len == 0 {
            break;
        }
        one.extend(compress(&room[..len])?);
        plain.extend_from_slice(&room[..len]);
    }
    if plain.is_empty() {
        one = compress(&[])?;
    }
    let time = start.elapsed();
    if one != report.output {
        let at = one.iter().zip(&report.output).take_while(|(one, all)| one == all).count();
        let (one, all) = (one.len(), report.output.len());
        return Err(format!("{one} bytes by one, {all} by all, different from {at} on").into());
    }
    let mut unpacked = Vec::new();
    MultiGzDecoder::new(&*report.output).read_to_end(&mut unpacked)?;
    if unpacked != plain {
        return Err("what was compressed is not what was read".into());
    }
    Ok(time)
}
