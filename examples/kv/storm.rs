//! Kills servers under load, one after the other, and checks what is left: every acknowledged
//! change, and no memory, socket or participant too many.

use crate::store::Store;
use crate::{Result, Servers};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use unmerged::mshare::Region;

/// Nothing takes so long, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(30);
const CLIENTS: u64 = 4;
/// Keys that each client sets, again and again.
const KEYS: u64 = 100;

/// What a key may be: as it was acknowledged last, or as a request without an answer may have
/// left it since.
#[derive(Default)]
struct Known {
    sure: Option<String>,
    maybe: Vec<Option<String>>,
}

impl Known {
    fn allows(&self, found: Option<&str>) -> bool {
        self.sure.as_deref() == found || self.maybe.iter().any(|one| one.as_deref() == found)
    }
}

/// Numbers that look random.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

struct Client<'a> {
    port: u16,
    number: u64,
    connection: Option<BufReader<TcpStream>>,
    keys: HashMap<String, Known>,
    stop: &'a AtomicBool,
    answered: &'a AtomicU64,
}

impl Client<'_> {
    /// One request; `None` if its server was killed before it had answered.
    fn ask(&mut self, request: &str) -> Option<String> {
        let begin = Instant::now();
        while self.connection.is_none() {
            assert!(begin.elapsed() < PATIENCE, "nobody answers");
            match TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)) {
                Ok(stream) => {
                    stream.set_nodelay(true).ok()?;
                    stream.set_read_timeout(Some(PATIENCE)).ok()?;
                    self.connection = Some(BufReader::new(stream));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        let answer = self.connection.as_mut().and_then(|connection| {
            connection.get_mut().write_all(format!("{request}\r\n").as_bytes()).ok()?;
            let mut line = String::new();
            connection.read_line(&mut line).ok().filter(|_| line.ends_with('\n'))?;
            if line.starts_with('$') && line.trim_end() != "$-1" {
                let len: usize = line[1..].trim_end().parse().ok()?;
                let mut bytes = vec![0; len + 2];
                connection.read_exact(&mut bytes).ok()?;
                line = String::from_utf8(bytes).ok()?;
            }
            Some(line.trim_end().to_owned())
        });
        assert!(begin.elapsed() < PATIENCE, "{request} hangs");
        match &answer {
            Some(line) => {
                assert!(!line.starts_with('-'), "{request}: {line}");
                self.answered.fetch_add(1, Ordering::Relaxed);
            }
            None => self.connection = None,
        }
        answer
    }

    /// Changes a key to this, or away.
    fn change(&mut self, key: String, value: Option<String>) {
        let request = match &value {
            Some(value) => format!("SET {key} {value}"),
            None => format!("DEL {key}"),
        };
        let done = self.ask(&request).is_some();
        let known = self.keys.entry(key).or_default();
        if done {
            *known = Known { sure: value, maybe: Vec::new() };
        } else {
            known.maybe.push(value);
        }
    }

    fn look(&mut self, key: &str) {
        if let Some(found) = self.ask(&format!("GET {key}")) {
            let found = (found != "$-1").then_some(found);
            let known = self.keys.entry(key.to_owned()).or_default();
            assert!(known.allows(found.as_deref()), "{key} is {found:?}, lost in the storm");
            *known = Known { sure: found, maybe: Vec::new() };
        }
    }

    /// Until it is to stop; what each key may be, and the increments with and without an answer.
    fn run(mut self) -> (HashMap<String, Known>, u64, u64) {
        let mut random = Random(self.number + 1);
        let (mut sure, mut unsure, mut turn) = (0, 0, 0_u64);
        while !self.stop.load(Ordering::Relaxed) {
            turn += 1;
            let key = format!("{}:{}", self.number, random.below(KEYS));
            match turn % 4 {
                0 => match self.ask(&format!("INCR count:{}", self.number)) {
                    Some(_) => sure += 1,
                    None => unsure += 1,
                },
                1 => self.look(&key),
                _ if random.below(4) == 0 => self.change(key, None),
                // Blocks of many sizes.
                _ => {
                    let len = random.below(300) as usize;
                    self.change(key, Some(format!("{turn}{}", "x".repeat(len))));
                }
            }
        }
        (self.keys, sure, unsure)
    }
}

/// Polls until something is so.
fn until(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let begin = Instant::now();
    while !is_so()? {
        assert!(begin.elapsed() < PATIENCE, "{what}: waited for {PATIENCE:?}");
        std::thread::sleep(Duration::from_micros(300));
    }
    Ok(())
}

/// The processes that have the region, but us and one.
fn others(region: &Region, than: u32) -> Result<usize> {
    let participants = region.stats()?.participants;
    let is_other = |pid| pid != than && pid != std::process::id() && is_alive(pid);
    Ok(participants.iter().filter(|one| is_other(one.pid)).count())
}

fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

/// Open descriptors of this process.
fn descriptors() -> Result<usize> {
    Ok(std::fs::read_dir("/proc/self/fd")?.count())
}

/// Kills so many servers. The first one has made the region; we have it without serving it, so
/// each kill of the one that serves is a take-over by another.
pub(crate) fn run(store: Store, servers: &mut Servers, kills: u64, directory: &Path) -> Result<()> {
    let (stop, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    let begin = Instant::now();
    let count = servers.children.len();
    let epoch = store.region().stats()?.epoch;
    let mut random = Random(u64::from(std::process::id()));
    let mut most = 0;
    let mut open_before = 0;
    let mut done = Vec::new();
    std::thread::scope(|scope| -> Result<()> {
        let client = |number| {
            let port = servers.port;
            let (keys, stop, answered) = (HashMap::new(), &stop, &answered);
            let client = Client { port, number, connection: None, keys, stop, answered };
            scope.spawn(move || client.run())
        };
        let clients: Vec<_> = (0..CLIENTS).map(client).collect();
        for kill in 0..kills {
            let at = random.below(count as u64) as usize;
            // The region lives as long as one has it that can serve.
            let victim = servers.children[at].id();
            until("another server", || {
                servers.replace()?;
                Ok(others(store.region(), victim)? > 0)
            })?;
            std::thread::sleep(Duration::from_micros(random.below(3000)));
            servers.children[at].kill()?;
            servers.children[at].wait()?;
            servers.replace()?;
            if kill % 64 == 0 {
                most = most.max(store.region().stats()?.participants.len());
            }
            if kill == kills / 8 {
                open_before = descriptors()?;
            }
            if kill % 1000 == 999 {
                let answered = answered.load(Ordering::Relaxed);
                eprintln!(
                    "{} killed, {answered} requests answered, {:?}",
                    kill + 1,
                    begin.elapsed()
                );
            }
        }
        until("all servers", || {
            servers.replace()?;
            Ok(others(store.region(), 0)? == count)
        })?;
        std::thread::sleep(Duration::from_millis(50));
        stop.store(true, Ordering::Relaxed);
        done.extend(clients.into_iter().map(|client| client.join().expect("no panic")));
        Ok(())
    })?;
    let (answered, took) = (answered.into_inner(), begin.elapsed());
    println!("{kills} servers killed in {took:.1?}, {answered} requests answered");

    // Nothing that was acknowledged is lost, and nothing is there that nobody asked for.
    let text =
        |value: Option<&[u8]>| value.map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    let (mut keys, mut increments) = (0, 0);
    for (number, (known, sure, unsure)) in done.iter().enumerate() {
        let is = store.get(format!("count:{number}").as_bytes(), text)?.unwrap_or("0".into());
        let is: u64 = is.parse()?;
        assert!((*sure..=sure + unsure).contains(&is), "{sure} to {} became {is}", sure + unsure);
        increments += is;
        for (key, known) in known {
            let found = store.get(key.as_bytes(), text)?;
            assert!(known.allows(found.as_deref()), "{key} is {found:?}");
            keys += 1;
        }
    }
    println!("{keys} keys and {increments} increments: none lost, none doubled");

    // Whoever serves has found the dead.
    until("participants", || Ok(store.region().stats()?.participants.len() == count + 1))?;
    let stats = store.region().stats()?;
    println!(
        "{} processes have the region, at most {most} had; {} were reaped, {} took over",
        stats.participants.len(),
        stats.reaped,
        stats.epoch - epoch,
    );
    assert!(open_before == 0 || descriptors()? <= open_before + 8, "descriptors are left");
    for child in &mut servers.children {
        child.kill()?;
        child.wait()?;
    }
    let heap = store.heap();
    heap.recover()?;
    let lost = store.collect()?;
    let report = heap.check()?;
    let blocks = store.len() as usize + 1;
    println!("{lost} blocks of the killed were freed; heap: {report}");
    assert!(report.is_sound() && report.stats.blocks == blocks, "{blocks} blocks are known");
    // Each server had as many threads as clients, each with at most three blocks in hand.
    assert!(lost as u64 <= (kills + 3) * CLIENTS * 3, "{lost} blocks were lost");

    // The last one out takes everything away.
    let id = u128::from_be_bytes(store.region().id());
    drop(store);
    // SAFETY: nobody uses it any more.
    unsafe { heap.close() };
    let left: Vec<_> = std::fs::read_dir(directory)?.collect();
    assert!(left.is_empty(), "{left:?} is left");
    let sockets = std::fs::read_to_string("/proc/net/unix")?;
    assert!(!sockets.contains(&format!("{id:032x}")), "a socket is left");
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    assert!(!maps.contains("memfd:mshare"), "memory is left");
    println!("no name, socket, mapping or participant is left");
    Ok(())
}
