//! A key-value store whose hash map lives in a region: several server processes answer from the same
//! map, over a small part of the Redis protocol, on one port. One that is killed is replaced by
//! another, which attaches and goes on.
//!
//! ```text
//! cargo run --release --example kv -- --port 7379 --processes 3
//! redis-benchmark -p 7379 -t set,get,incr -n 200000
//! cargo run --release --example kv -- --check --kills 10000
//! ```

mod server;
mod store;
mod storm;

use clap::Parser;
use rustix::net::{AddressFamily, SocketType, sockopt};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::Store;
use unmerged::mshare::Region;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Serves a map in shared memory by several processes.
#[derive(Parser)]
struct Args {
    /// Port on 127.0.0.1.
    #[arg(long, default_value_t = 7379)]
    port: u16,
    /// Server processes.
    #[arg(long, default_value_t = 3)]
    processes: usize,
    /// MiB of the region.
    #[arg(long, default_value_t = 1024)]
    mib: usize,
    /// Drives the servers itself, kills one after the other, and checks what is left.
    #[arg(long)]
    check: bool,
    /// How many, with `--check`.
    #[arg(long, default_value_t = 40)]
    kills: u64,
    /// Where the region has its name, instead of the user's runtime directory.
    #[arg(long)]
    directory: Option<PathBuf>,
    /// Make the region of this name, and serve.
    #[arg(long, hide = true)]
    create: Option<String>,
    /// Attach to the region of this name, and serve: what the processes are started with.
    #[arg(long, hide = true)]
    attach: Option<String>,
}

/// A socket on a port that others listen on too: the kernel shares out the connections.
fn listen(port: u16) -> Result<TcpListener> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
    sockopt::set_socket_reuseport(&socket, true)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))?;
    rustix::net::listen(&socket, 511)?;
    Ok(TcpListener::from(socket))
}

/// The processes, replaced when they end.
struct Servers {
    name: String,
    port: u16,
    directory: Option<PathBuf>,
    children: Vec<Child>,
}

impl Servers {
    fn new(name: String, args: &Args, directory: Option<&Path>) -> Self {
        let directory = directory.or(args.directory.as_deref()).map(Path::to_path_buf);
        Self { name, port: args.port, directory, children: Vec::new() }
    }

    fn start(&self, how: &str, mib: usize) -> Result<Child> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args([how, &self.name, "--port", &self.port.to_string()]);
        command.args(["--mib", &mib.to_string()]);
        if let Some(directory) = &self.directory {
            command.arg("--directory").arg(directory);
        }
        Ok(command.spawn()?)
    }

    /// So many in all.
    fn fill(&mut self, processes: usize) -> Result<()> {
        while self.children.len() < processes {
            self.children.push(self.start("--attach", 0)?);
        }
        Ok(())
    }

    /// Starts another for each that has ended; how many.
    fn replace(&mut self) -> Result<usize> {
        let mut ended = 0;
        for at in 0..self.children.len() {
            if self.children[at].try_wait()?.is_some() {
                self.children[at] = self.start("--attach", 0)?;
                ended += 1;
            }
        }
        Ok(ended)
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let directory = args.directory.as_deref();
    if let Some(name) = args.attach.as_ref().or(args.create.as_ref()) {
        // Not longer than who replaces us.
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        let region = match args.create {
            Some(_) => create(name, args.mib, directory)?,
            None => open(name, directory, true)?,
        };
        let store = Store::open(region)?;
        return Ok(server::serve(&listen(args.port)?, &Arc::new(store))?);
    }
    let name = format!("kv-{}", std::process::id());
    if args.check {
        return check(&name, &args);
    }
    let store = Store::open(create(&name, args.mib, directory)?)?;
    let mut servers = Servers::new(name, &args, None);
    servers.fill(args.processes)?;
    println!("{} processes answer on port {}", args.processes, args.port);
    loop {
        std::thread::sleep(Duration::from_millis(100));
        if servers.replace()? > 0 {
            let recovered = store.heap().recover()?;
            println!("one was replaced; {recovered} threads' memory was taken back");
        }
    }
}

fn create(name: &str, mib: usize, directory: Option<&Path>) -> unmerged::Result<Region> {
    let mut builder = Region::builder(name).size(mib << 20);
    if let Some(directory) = directory {
        builder = builder.directory(directory);
    }
    builder.create()
}

fn open(name: &str, directory: Option<&Path>, agent: bool) -> unmerged::Result<Region> {
    let mut opener = Region::opener(name).agent(agent);
    if let Some(directory) = directory {
        opener = opener.directory(directory);
    }
    opener.open()
}

/// In a directory of its own, so that nothing else is counted.
fn check(name: &str, args: &Args) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut servers = Servers::new(name.to_owned(), args, Some(directory.path()));
    let first = servers.start("--create", args.mib)?;
    servers.children.push(first);
    let begin = Instant::now();
    let region = loop {
        match open(name, Some(directory.path()), false) {
            Err(error) if error.is_not_found() && begin.elapsed() < Duration::from_secs(10) => {
                std::thread::sleep(Duration::from_millis(5));
            }
            opened => break opened?,
        }
    };
    servers.fill(args.processes.max(2))?;
    storm::run(Store::open(region)?, &mut servers, args.kills, directory.path())
}
