//! Regions from the shell, as `ipcs` and `ipcrm` do for the shared memory of System V.
//!
//! ```text
//! cargo run --example mshare -- create scratch --size 64M &
//! cargo run --example mshare -- list
//! cargo run --example mshare -- inspect scratch
//! cargo run --example mshare -- dump scratch --length 256
//! cargo run --example mshare -- unlink scratch
//! ```
//!
//! A region lives as long as one process has it: `create` and `attach` keep it until they get a
//! SIGINT or SIGTERM, or until their standard input ends. One in a file can come back.

mod dump;
mod show;

use clap::{Args, Parser, Subcommand};
use std::io::{ErrorKind, Read, Write};
use std::path::PathBuf;
use unmerged::mshare::{HugePages, Lifetime, Region, Rights, list, list_in, unlink, unlink_in};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Creates, lists, inspects, attaches, dumps and unlinks regions.
#[derive(Parser)]
struct Cli {
    /// Where names are, instead of the user's runtime directory.
    #[arg(long, global = true)]
    directory: Option<PathBuf>,
    /// For programs.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Makes a region and keeps it.
    Create(Create),
    /// The names that there are: who serves them, how large they are, who has them.
    List,
    /// What lies in a region, who has it, and what it costs.
    Inspect {
        /// The region.
        name: String,
        /// Looks whether the heap is sound, for which it has to be writable.
        #[arg(long)]
        heap: bool,
    },
    /// Has a region, and serves it if whoever does is gone.
    Attach {
        /// The region.
        name: String,
        /// For reading alone.
        #[arg(long)]
        read_only: bool,
    },
    /// Writes bytes of a region to the standard output.
    Dump {
        /// The region.
        name: String,
        /// Offset of the first byte.
        #[arg(long, default_value = "0", value_parser = bytes)]
        offset: usize,
        /// How many; all if it is not given.
        #[arg(long, value_parser = bytes)]
        length: Option<usize>,
        /// The bytes as they are, with zeros where nothing lies.
        #[arg(long)]
        raw: bool,
    },
    /// Removes a name; whoever has the region keeps it.
    Unlink {
        /// The region.
        name: String,
    },
}

#[derive(Args)]
struct Create {
    /// Its name.
    name: String,
    /// Bytes, also as 64K, 64M, 64G.
    #[arg(long, value_parser = bytes)]
    size: usize,
    /// Permission bits.
    #[arg(long, default_value = "600", value_parser = octal)]
    mode: u32,
    /// Address to lie at, in hexadecimal digits.
    #[arg(long, value_parser = hexadecimal)]
    base: Option<usize>,
    /// Bytes at its end that are for objects.
    #[arg(long, default_value = "0", value_parser = bytes)]
    room: usize,
    /// Nothing lies in it.
    #[arg(long)]
    empty: bool,
    /// In huge pages of 2M or 1G.
    #[arg(long, value_parser = huge)]
    huge: Option<HugePages>,
    /// In this file, from which it can come back.
    #[arg(long)]
    file: Option<PathBuf>,
    /// Ends with this process.
    #[arg(long)]
    bound: bool,
}

/// A number of bytes, with K, M, G or T behind it.
fn bytes(text: &str) -> std::result::Result<usize, String> {
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'K')) => (&text[..at], 10),
        Some((at, 'M')) => (&text[..at], 20),
        Some((at, 'G')) => (&text[..at], 30),
        Some((at, 'T')) => (&text[..at], 40),
        _ => (text, 0),
    };
    let number = match digits.strip_prefix("0x") {
        Some(digits) => usize::from_str_radix(digits, 16),
        None => digits.parse(),
    };
    let number = number.map_err(|error| error.to_string())?;
    number.checked_mul(1 << shift).ok_or_else(|| "too many bytes".to_owned())
}

fn octal(text: &str) -> std::result::Result<u32, String> {
    u32::from_str_radix(text, 8).map_err(|error| error.to_string())
}

fn hexadecimal(text: &str) -> std::result::Result<usize, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    usize::from_str_radix(digits, 16).map_err(|error| error.to_string())
}

fn huge(text: &str) -> std::result::Result<HugePages, String> {
    match text {
        "2M" => Ok(HugePages::M2),
        "1G" => Ok(HugePages::G1),
        other => Err(format!("{other} is neither 2M nor 1G")),
    }
}

fn main() {
    let cli = Cli::parse();
    if let Err(error) = run(&cli) {
        // Whoever reads has read enough.
        let io = error.downcast_ref::<std::io::Error>();
        if io.is_some_and(|error| error.kind() == ErrorKind::BrokenPipe) {
            return;
        }
        eprintln!("mshare: {error}");
        std::process::exit(1);
    }
}

fn run(cli: &Cli) -> Result<()> {
    let directory = cli.directory.as_deref();
    let open = |name: &str, rights: Option<Rights>| {
        let mut opener = Region::opener(name);
        if let Some(directory) = directory {
            opener = opener.directory(directory);
        }
        if let Some(rights) = rights {
            opener = opener.rights(rights);
        }
        opener.open()
    };
    match &cli.command {
        Command::Create(create) => {
            let mut builder =
                Region::builder(&create.name).size(create.size).mode(create.mode).room(create.room);
            if let Some(base) = create.base {
                builder = builder.base(base);
            }
            if let Some(directory) = directory {
                builder = builder.directory(directory);
            }
            if create.empty {
                builder = builder.empty();
            }
            if let Some(pages) = create.huge {
                builder = builder.huge_pages(pages);
            }
            if let Some(path) = &create.file {
                builder = builder.file(path);
            }
            if create.bound {
                builder = builder.lifetime(Lifetime::Creator);
            }
            keep(&builder.create()?)
        }
        Command::Attach { name, read_only } => {
            keep(&open(name, read_only.then_some(Rights::READ))?)
        }
        Command::List => {
            let found = directory.map_or_else(list, list_in)?;
            show::list(&found, cli.json)
        }
        Command::Inspect { name, heap } => {
            let rights = if *heap { None } else { Some(Rights::READ) };
            show::region(&open(name, rights)?, *heap, cli.json)
        }
        Command::Dump { name, offset, length, raw } => {
            dump::dump(&open(name, Some(Rights::READ))?, *offset, *length, *raw)
        }
        Command::Unlink { name } => {
            match directory {
                Some(directory) => unlink_in(directory, name)?,
                None => unlink(name)?,
            }
            Ok(())
        }
    }
}

/// Has the region until somebody ends it.
fn keep(region: &Region) -> Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([
        signal_hook::consts::SIGINT,
        signal_hook::consts::SIGTERM,
    ])?;
    let (name, size, base) = (region.name(), region.size(), region.base());
    let mut out = std::io::stdout();
    writeln!(out, "{name} {size} bytes at {base:p}, {}", region.rights())?;
    out.flush()?;
    let handle = signals.handle();
    std::thread::spawn(move || {
        // From a terminal that is closed, too.
        let mut bytes = [0; 512];
        while std::io::stdin().read(&mut bytes).is_ok_and(|read| read > 0) {}
        handle.close();
    });
    let _ = signals.forever().next();
    Ok(())
}
