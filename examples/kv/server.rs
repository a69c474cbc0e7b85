//! A small part of the Redis protocol, one thread a connection.

use crate::store::{Failure, Store};
use std::io::{BufRead, BufReader, Read, Result, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

/// Longest argument, and most of them.
const LEN_MAX: usize = 64 << 20;
const ARGS_MAX: usize = 1 << 16;

pub(crate) fn serve(listener: &TcpListener, store: &Arc<Store>) -> Result<()> {
    loop {
        let (stream, _) = listener.accept()?;
        let store = Arc::clone(store);
        std::thread::spawn(move || {
            let _ = stream.set_nodelay(true);
            // A client that goes away is no error of ours.
            let _ = talk(&stream, &store);
        });
    }
}

fn talk(stream: &TcpStream, store: &Store) -> Result<()> {
    let mut input = BufReader::with_capacity(1 << 16, stream);
    let mut output = Vec::new();
    while let Some(args) = command(&mut input)? {
        if !args.is_empty() {
            answer(store, &args, &mut output)?;
        }
        // What was asked in one go is answered in one.
        if input.buffer().is_empty() {
            (&mut &*stream).write_all(&output)?;
            output.clear();
        }
    }
    Ok(())
}

fn bad<T>(why: &str) -> Result<T> {
    Err(std::io::Error::new(std::io::ErrorKind::InvalidData, why))
}

/// A line without its end; `None` at the end of the stream.
fn line(input: &mut impl BufRead) -> Result<Option<String>> {
    let mut text = String::new();
    let read = input.by_ref().take(1 << 16).read_line(&mut text)?;
    Ok((read > 0).then(|| text.trim_end().to_owned()))
}

/// The next command: an array of strings, or words on a line.
fn command(input: &mut impl BufRead) -> Result<Option<Vec<Vec<u8>>>> {
    let Some(first) = line(input)? else { return Ok(None) };
    let Some(count) = first.strip_prefix('*') else {
        return Ok(Some(first.split_whitespace().map(|word| word.as_bytes().to_vec()).collect()));
    };
    let count: usize = count.parse().unwrap_or(usize::MAX);
    if count > ARGS_MAX {
        return bad("too many arguments");
    }
    let mut args = Vec::with_capacity(count.min(64));
    for _ in 0..count {
        let Some(len) = line(input)? else { return Ok(None) };
        let len = len.strip_prefix('$').and_then(|len| len.parse().ok()).unwrap_or(usize::MAX);
        if len > LEN_MAX {
            return bad("an argument is too long");
        }
        let mut bytes = vec![0; len + 2];
        input.read_exact(&mut bytes)?;
        bytes.truncate(len);
        args.push(bytes);
    }
    Ok(Some(args))
}

fn bulk(output: &mut Vec<u8>, value: Option<&[u8]>) -> Result<()> {
    match value {
        Some(value) => {
            write!(output, "${}\r\n", value.len())?;
            output.extend_from_slice(value);
            output.extend_from_slice(b"\r\n");
        }
        None => output.extend_from_slice(b"$-1\r\n"),
    }
    Ok(())
}

fn answer(store: &Store, args: &[Vec<u8>], output: &mut Vec<u8>) -> Result<()> {
    let name = args[0].to_ascii_uppercase();
    let done = match (name.as_slice(), &args[1..]) {
        (b"PING", []) => return output.write_all(b"+PONG\r\n"),
        (b"PING" | b"ECHO", [text]) => return bulk(output, Some(text)),
        (b"GET", [key]) => match store.get(key, |value| bulk(output, value)) {
            Ok(written) => return written,
            Err(failure) => Err(failure),
        },
        (b"SET", [key, value]) => store.set(key, value).map(|()| "+OK".to_owned()),
        (b"DEL", keys @ [_, ..]) => count(keys, |key| store.remove(key)),
        (b"EXISTS", keys @ [_, ..]) => count(keys, |key| store.get(key, |value| value.is_some())),
        (b"INCR", [key]) => store.add(key, 1).map(|sum| format!(":{sum}")),
        (b"DECR", [key]) => store.add(key, -1).map(|sum| format!(":{sum}")),
        (b"DBSIZE", []) => Ok(format!(":{}", store.len())),
        // Which process answers.
        (b"CLIENT", _) => Ok(format!(":{}", std::process::id())),
        (b"COMMAND" | b"CONFIG", _) => Ok("*0".to_owned()),
        (name, _) => {
            let name = String::from_utf8_lossy(name);
            Ok(format!("-ERR unknown command or wrong number of arguments for '{name}'"))
        }
    };
    let line = done.unwrap_or_else(|failure| match failure {
        Failure::NoNumber => "-ERR value is not an integer or out of range".to_owned(),
        Failure::Stopped => "-ERR another process is stopped and keeps a lock".to_owned(),
        Failure::Region(error) => format!("-OOM {error}"),
    });
    write!(output, "{line}\r\n")
}

fn count(
    keys: &[Vec<u8>],
    mut does: impl FnMut(&[u8]) -> std::result::Result<bool, Failure>,
) -> std::result::Result<String, Failure> {
    let mut count = 0;
    for key in keys {
        count += u64::from(does(key)?);
    }
    Ok(format!(":{count}"))
}
