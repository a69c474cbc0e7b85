//! From a name to the first value behind it: a region, and a service of iceoryx2 (its port, and
//! the first sample from its history), in turns. The peer that serves both is another process.
//!
//! `cargo run --release --manifest-path benches/iceoryx2/Cargo.toml`

use iceoryx2::port::update_connections::UpdateConnections;
use iceoryx2::prelude::*;
use std::error::Error;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use unmerged::mshare::Region;

type Result<T> = std::result::Result<T, Box<dyn Error>>;
type Service =
    iceoryx2::service::port_factory::publish_subscribe::PortFactory<ipc::Service, u64, ()>;

const ROUNDS: usize = 15;
const EACH: u32 = 20;

fn service(node: &Node<ipc::Service>, name: &str) -> Result<Service> {
    let service = node.service_builder(&name.try_into()?).publish_subscribe::<u64>();
    Ok(service.history_size(1).subscriber_max_buffer_size(1).open_or_create()?)
}

fn serve(name: &str) -> Result<()> {
    let region = Region::builder(name).size(1 << 26).create()?;
    // SAFETY: the first byte of the region, which nobody else writes.
    unsafe { region.base().write(7) };
    let node = NodeBuilder::new().create::<ipc::Service>()?;
    let publisher = service(&node, name)?.publisher_builder().create()?;
    publisher.loan_uninit()?.write_payload(7).send()?;
    println!("ready");
    let released = std::thread::spawn(|| drop(std::io::stdin().read(&mut [0])));
    while !released.is_finished() {
        // New subscribers get the history here, so a sleep would be measured too.
        publisher.update_connections()?;
    }
    Ok(())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn main() -> Result<()> {
    if let Some(name) = std::env::args().nth(1) {
        return serve(&name);
    }
    let name = format!("bench-ice-{}", std::process::id());
    let mut command = Command::new(std::env::current_exe()?);
    let mut peer = command.arg(&name).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(peer.stdout.as_mut().ok_or("piped")?).read_line(&mut line)?;
    let node = NodeBuilder::new().create::<ipc::Service>()?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let mut sum = Duration::ZERO;
        for _ in 0..EACH {
            let start = Instant::now();
            let region = Region::open(&name)?;
            // SAFETY: mapped, and written before the peer was ready.
            assert_eq!(unsafe { region.base().read_volatile() }, 7);
            sum += start.elapsed();
        }
        ours.push(sum / EACH);
        let mut sum = Duration::ZERO;
        for _ in 0..EACH {
            let start = Instant::now();
            let subscriber = service(&node, &name)?.subscriber_builder().create()?;
            let sample = loop {
                if let Some(sample) = subscriber.receive()? {
                    break sample;
                }
            };
            assert_eq!(*sample, 7);
            sum += start.elapsed();
        }
        theirs.push(sum / EACH);
    }
    let (ours, theirs) = (median(ours), median(theirs));
    let ratio = theirs.as_secs_f64() / ours.as_secs_f64();
    println!("mshare/attach {ours:?}, iceoryx2 {theirs:?}: {ratio:.1} times as fast");
    drop(peer.stdin.take());
    peer.wait()?;
    Ok(())
}
