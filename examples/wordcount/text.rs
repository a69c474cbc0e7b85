//! What a word is, and how a file becomes text.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Is the byte part of a word? ASCII letters, digits, `_`, and every byte from 0x80 on: so a
/// word of any script in UTF-8 is whole, and text in Latin-1 is counted too.
#[inline]
pub(crate) const fn is_letter(byte: u8) -> bool {
    // No branch, so that a whole block is judged by a few vector instructions.
    (byte | 0x20).wrapping_sub(b'a') < 26
        || byte.wrapping_sub(b'0') < 10
        || byte == b'_'
        || byte >= 0x80
}

/// Bytes that are judged at once: as many as a word of the machine has bits.
const BLOCK: usize = 64;

/// The words of a text: the longest runs of letters.
///
/// Where a word ends is as good as random, so a loop over its bytes costs a wrong guess of the
/// processor for most words. Here a block becomes a word of bits, and a run of letters is a
/// run of ones, whose length is one instruction.
#[derive(Debug)]
pub(crate) struct Words<'t> {
    text: &'t [u8],
    /// Where the block begins.
    block: usize,
    /// The letters of the block that are in no word yet, from the lowest bit on.
    letters: u64,
}

/// Splits a text into its words.
pub(crate) fn words(text: &[u8]) -> Words<'_> {
    Words { text, block: 0, letters: letters_at(text, 0) }
}

impl<'t> Iterator for Words<'t> {
    type Item = &'t [u8];

    #[inline]
    fn next(&mut self) -> Option<&'t [u8]> {
        while self.letters == 0 {
            if self.block >= self.text.len() {
                return None;
            }
            self.advance();
        }
        let skipped = self.letters.trailing_zeros();
        let start = self.block + skipped as usize;
        let mut end = skipped + (self.letters >> skipped).trailing_ones();
        // Up to the end of the block: the word may go on in the next one.
        while end == u64::BITS {
            self.advance();
            end = self.letters.trailing_ones();
        }
        self.letters &= u64::MAX << end;
        Some(&self.text[start..self.block + end as usize])
    }
}

impl Words<'_> {
    #[inline]
    fn advance(&mut self) {
        self.block += BLOCK;
        self.letters = letters_at(self.text, self.block);
    }
}

/// The letters of the block that begins at `start`, one bit for each; behind the end of the
/// text there are none.
#[inline]
fn letters_at(text: &[u8], start: usize) -> u64 {
    let rest = text.get(start..).unwrap_or_default();
    match rest.first_chunk() {
        Some(block) => letters(block),
        None => {
            let mut block = [0; BLOCK];
            block[..rest.len()].copy_from_slice(rest);
            letters(&block)
        }
    }
}

#[inline]
fn letters(block: &[u8; BLOCK]) -> u64 {
    let flags = block.map(|byte| u8::from(is_letter(byte)));
    let (eights, _) = flags.as_chunks::<8>();
    eights.iter().rev().fold(0, |bits, &eight| {
        // Bit 0 of byte `n` goes to bit 56 + `n`: no two of the products meet.
        let gathered = u64::from_le_bytes(eight).wrapping_mul(0x0102_0408_1020_4080) >> 56;
        bits << 8 | gathered
    })
}

/// A file with a NUL byte is no text.
pub(crate) fn is_binary(content: &[u8]) -> bool {
    content.contains(&0)
}

/// Largest file that is counted: lengths and counts in a map have 32 bits.
const LARGEST: u64 = u32::MAX as u64;

/// Reads a whole file into `buffer`, which keeps its memory from file to file. It is read, not
/// mapped: of a file that shrinks meanwhile less is there, and that is no SIGBUS.
///
/// # Errors
///
/// Those of opening and reading; EFBIG for a file of 4 GiB or more.
pub(crate) fn read<'b>(path: &Path, size: u64, buffer: &'b mut Vec<u8>) -> io::Result<&'b [u8]> {
    let mut file = File::open(path)?;
    if size > LARGEST {
        return Err(io::Error::from_raw_os_error(libc::EFBIG));
    }
    let mut filled = 0;
    // Room for the size that was listed, and for one byte more, to see the end.
    let mut room = size as usize + 1;
    loop {
        if room > buffer.len() {
            buffer.try_reserve(room - buffer.len())?;
            buffer.resize(room, 0);
        }
        match file.read(&mut buffer[filled..]) {
            Ok(0) => return Ok(&buffer[..filled]),
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if filled as u64 > LARGEST {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        if filled == buffer.len() {
            room = 2 * filled;
        }
    }
}

/// The errno of an error; EIO where it has none.
pub(crate) fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(match error.kind() {
        io::ErrorKind::OutOfMemory => libc::ENOMEM,
        _ => libc::EIO,
    })
}
