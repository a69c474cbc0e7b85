//! Bytes of a region, which may go while they are read.

use crate::Result;
use std::io::Write;
use unmerged::mshare::{Content, Prot, Region};

const LINE: usize = 16;
const CHUNK: usize = 1 << 16;

/// Copies what can be read; the rest stays as it is. The kernel copies, so that a part that
/// somebody takes away meanwhile is an error and no signal.
fn copy(address: usize, into: &mut [u8]) -> bool {
    let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let start = std::ptr::without_provenance_mut(address);
    let remote = libc::iovec { iov_base: start, iov_len: into.len() };
    // SAFETY: the kernel checks both; the first is a buffer of ours.
    let read = unsafe {
        libc::process_vm_readv(libc::getpid(), &raw const local, 1, &raw const remote, 1, 0)
    };
    usize::try_from(read) == Ok(into.len())
}

pub(crate) fn dump(region: &Region, offset: usize, len: Option<usize>, raw: bool) -> Result<()> {
    let size = region.size();
    let end = len.map_or(Some(size), |len| offset.checked_add(len));
    let Some(end) = end.filter(|&end| offset <= end && end <= size) else {
        return Err(format!("there are {size} bytes").into());
    };
    let mut out = std::io::stdout().lock();
    let mut buffer = vec![0; CHUNK];
    let mut last: Option<Vec<u8>> = None;
    let mut starred = false;
    for part in region.parts()? {
        let (start, stop) = (part.range.start.max(offset), part.range.end.min(end));
        if start >= stop {
            continue;
        }
        let readable = part.content != Content::Nothing && part.prot != Prot::NONE;
        if !readable && !raw {
            writeln!(out, "{start:012x}  nothing to read until {stop:#x}")?;
            last = None;
            continue;
        }
        let mut at = start;
        while at < stop {
            let piece = &mut buffer[..CHUNK.min(stop - at)];
            piece.fill(0);
            if readable && !copy(region.base().addr().get() + at, piece) && !raw {
                writeln!(out, "{at:012x}  {} bytes cannot be read", piece.len())?;
                last = None;
            } else if raw {
                out.write_all(piece)?;
            } else {
                for (line, bytes) in piece.chunks(LINE).enumerate() {
                    // As hexdump does: a star for lines like the one before.
                    if last.as_deref() == Some(bytes) {
                        if !starred {
                            writeln!(out, "*")?;
                        }
                        starred = true;
                        continue;
                    }
                    starred = false;
                    last = Some(bytes.to_vec());
                    print(&mut out, at + line * LINE, bytes)?;
                }
            }
            at += piece.len();
        }
    }
    if !raw {
        writeln!(out, "{end:012x}")?;
    }
    Ok(())
}

fn print(out: &mut impl Write, at: usize, bytes: &[u8]) -> Result<()> {
    write!(out, "{at:012x}  ")?;
    for byte in bytes {
        write!(out, "{byte:02x} ")?;
    }
    let text: String = bytes
        .iter()
        .map(|&byte| if byte.is_ascii_graphic() || byte == b' ' { byte as char } else { '.' })
        .collect();
    writeln!(out, "{:1$} |{text}|", "", (LINE - bytes.len()) * 3)?;
    Ok(())
}
