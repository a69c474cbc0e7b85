//! A key-value store whose hash map lives in a region: several server processes answer from the same
//! map, over a small part of the Redis protocol, on one port. One that is killed is replaced by
//! another, which attaches and goes on.
//!
//! ```text
//! cargo run --release --example kv -- --port 7379 --processes 3
//! redis-benchmark -p 7379 -t set,get,incr -n 200000
//! cargo run --release --example kv -- --check
//! ```

mod server;
mod store;

use clap::Parser;
use rustix::net::{AddressFamily, SocketType, sockopt};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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
    children: Vec<Child>,
}

impl Servers {
    fn start(&self) -> Result<Child> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--attach", &self.name, "--port", &self.port.to_string()]);
        Ok(command.spawn()?)
    }

    fn new(name: String, port: u16, processes: usize) -> Result<Self> {
        let mut servers = Self { name, port, children: Vec::new() };
        for _ in 0..processes {
            servers.children.push(servers.start()?);
        }
        Ok(servers)
    }

    /// Starts another for each that has ended; how many.
    fn replace(&mut self) -> Result<usize> {
        let mut ended = 0;
        for at in 0..self.children.len() {
            if self.children[at].try_wait()?.is_some() {
                self.children[at] = self.start()?;
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
    if let Some(name) = &args.attach {
        // Not longer than who replaces us.
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        let store = Store::open(Region::open(name)?)?;
        return Ok(server::serve(&listen(args.port)?, &Arc::new(store))?);
    }
    let name = format!("kv-{}", std::process::id());
    let region = Region::builder(&name).size(args.mib << 20).create()?;
    let store = Store::open(region)?;
    let mut servers = Servers::new(name, args.port, args.processes)?;
    if args.check {
        return check(&store, &mut servers);
    }
    println!("{} processes answer on port {}", args.processes, args.port);
    loop {
        std::thread::sleep(Duration::from_millis(100));
        if servers.replace()? > 0 {
            let recovered = store.heap().recover()?;
            println!("one was replaced; {recovered} threads' memory was taken back");
        }
    }
}

/// Counts up a key of its own until told to stop, over connections that may break: acknowledged
/// increments, and those of which it is not known whether they were made.
fn count_up(port: u16, key: usize, stop: &AtomicBool, total: &AtomicU64) -> (u64, u64) {
    let (mut sure, mut unsure) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        let Ok(stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        let _ = stream.set_nodelay(true);
        let mut answers = BufReader::new(&stream);
        while !stop.load(Ordering::Relaxed) {
            let asked = (&stream).write_all(format!("INCR key:{key}\r\n").as_bytes());
            let mut line = String::new();
            if asked.is_err() || !answers.read_line(&mut line).is_ok_and(|read| read > 0) {
                unsure += 1;
                break;
            }
            assert!(line.starts_with(':'), "{line}");
            sure += 1;
            total.fetch_add(1, Ordering::Relaxed);
        }
    }
    (sure, unsure)
}

fn check(store: &Store, servers: &mut Servers) -> Result<()> {
    const KILLS: usize = 20;
    let (stop, total, port) = (AtomicBool::new(false), AtomicU64::new(0), servers.port);
    let begin = Instant::now();
    let counts = std::thread::scope(|scope| -> Result<Vec<_>> {
        let clients: Vec<_> = (0..6)
            .map(|key| {
                scope.spawn({
                    let (stop, total) = (&stop, &total);
                    move || count_up(port, key, stop, total)
                })
            })
            .collect();
        for kill in 0..KILLS {
            std::thread::sleep(Duration::from_millis(50));
            let at = kill % servers.children.len();
            servers.children[at].kill()?;
            servers.children[at].wait()?;
            servers.replace()?;
        }
        std::thread::sleep(Duration::from_millis(50));
        stop.store(true, Ordering::Relaxed);
        Ok(clients.into_iter().map(|client| client.join().expect("no panic")).collect())
    })?;
    let rate = total.into_inner() as f64 / begin.elapsed().as_secs_f64();
    for (key, (sure, unsure)) in counts.iter().enumerate() {
        let is = store
            .get(format!("key:{key}").as_bytes(), |value| {
                value.map_or(0, |value| String::from_utf8_lossy(value).parse().unwrap_or(0))
            })
            .map_err(|failure| format!("{failure:?}"))?;
        println!("key:{key}: {is}, acknowledged {sure}, unknown {unsure}");
        assert!((*sure..=sure + unsure).contains(&is), "an increment is lost or doubled");
    }
    for child in &mut servers.children {
        child.kill()?;
        child.wait()?;
    }
    store.heap().recover()?;
    let report = store.heap().check()?;
    println!("{KILLS} servers killed, {rate:.0} requests a second; heap: {report}");
    // The table, a node a key, and what the killed had allocated and not linked, or not freed.
    assert!(report.is_sound() && report.leaked(1 + counts.len()) <= KILLS + 3);
    Ok(())
}
