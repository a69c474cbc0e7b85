//! Regions whose neighbours lie: bodies of fuzz targets, and of properties. What the bytes say is
//! done; errors are errors, nothing hangs, and nothing outside of the region is touched.

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use std::alloc::Layout;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use unmerged::mshare::{Advice, Object, Prot, Region, list_in};

const SIZE: usize = 1 << 20;
const REQUEST: usize = 72;
const REPLY: usize = 80;
/// Nothing takes so long.
const PATIENCE: Duration = Duration::from_secs(30);
const SOON: Duration = Duration::from_millis(3);

/// Numbers out of the bytes, zeros behind their end.
struct Script<'b>(&'b [u8]);

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn number(&mut self) -> u64 {
        match self.byte() % 8 {
            // Small ones, page numbers, our own process, and anything.
            0..=2 => self.byte().into(),
            3..=4 => u64::from(self.byte()) << 12,
            5 => std::process::id().into(),
            6 => u64::MAX - u64::from(self.byte()),
            _ => u64::from_le_bytes(std::array::from_fn(|_| self.byte())),
        }
    }

    fn is_over(&self) -> bool {
        self.0.is_empty()
    }
}

fn socket() -> OwnedFd {
    let (unix, packets) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    rustix::net::socket_with(unix, packets, SocketFlags::CLOEXEC, None).unwrap()
}

fn call(path: &Path) -> OwnedFd {
    let connection = socket();
    rustix::net::connect(&connection, &SocketAddrUnix::new(path).unwrap()).unwrap();
    let patience = rustix::net::sockopt::Timeout::Recv;
    rustix::net::sockopt::set_socket_timeout(&connection, patience, Some(PATIENCE)).unwrap();
    connection
}

fn send(connection: &OwnedFd, bytes: &[u8], fds: &[OwnedFd]) {
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(&fds)));
    let bytes = [rustix::io::IoSlice::new(bytes)];
    // Who hangs up may do so before it has heard all.
    let _ = rustix::net::sendmsg(connection, &bytes, &mut control, SendFlags::NOSIGNAL);
}

/// The answer; empty if the other side has hung up.
fn receive(connection: &OwnedFd) -> (Vec<u8>, Vec<OwnedFd>) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 256];
    let mut slices = [rustix::io::IoSliceMut::new(&mut bytes)];
    let begin = Instant::now();
    let flags = RecvFlags::CMSG_CLOEXEC;
    let len = rustix::net::recvmsg(connection, &mut slices, &mut control, flags)
        .map_or(0, |received| received.bytes);
    assert!(begin.elapsed() < PATIENCE, "no answer");
    let fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let fds = fds.flatten().collect();
    (bytes[..len].to_vec(), fds)
}

fn request(ask: u32, id: [u8; 16], numbers: [u64; 5]) -> Vec<u8> {
    let mut bytes = b"umshareQ\x04\0\0\0".to_vec();
    bytes.extend(ask.to_le_bytes());
    bytes.extend(id);
    bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    bytes
}

/// What a good client is given: reply and descriptors.
fn attached(dir: &TempDir) -> (Vec<u8>, Vec<OwnedFd>) {
    let client = call(&dir.path().join("region"));
    send(&client, &request(1, [0; 16], [63, 3, std::process::id().into(), 0, 0]), &[]);
    let (reply, fds) = receive(&client);
    assert_eq!((reply.len(), fds.len()), (REPLY, 4));
    (reply, fds)
}

fn create(dir: &TempDir) -> Region {
    let region = Region::builder("region").size(SIZE).directory(dir.path());
    region.room(SIZE / 2).create().unwrap()
}

/// A descriptor of some kind.
fn descriptor(kind: u8) -> OwnedFd {
    let memory = |size| {
        let file = rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&file, size).unwrap();
        file
    };
    match kind % 5 {
        0 => memory(u64::from(kind) << 12),
        1 => memory(0),
        2 => socket(),
        3 => std::fs::File::open("/proc/self/status").unwrap().into(),
        _ => std::fs::File::open("/").unwrap().into(),
    }
}

/// A server hears what the bytes say; after each it still serves good clients.
pub(crate) fn requests(bytes: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let region = create(&dir);
    let id = u128::from_be_bytes(region.id());
    let mut script = Script(bytes);
    let mut steps = 0;
    while !script.is_over() && steps < 12 {
        steps += 1;
        // Both listeners hear the same.
        let client = if script.byte() % 2 == 0 {
            call(&dir.path().join("region"))
        } else {
            let connection = socket();
            let name = format!("unmerged/mshare/{id:032x}/1");
            let address = SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap();
            rustix::net::connect(&connection, &address).unwrap();
            connection
        };
        let known = if script.byte() % 8 == 0 { [script.byte(); 16] } else { region.id() };
        let ask = u32::from(script.byte() % 13);
        let mut message = request(ask, known, std::array::from_fn(|_| script.number()));
        for _ in 0..script.byte() % 3 {
            let at = usize::from(script.byte()) % REQUEST;
            message[at] = script.byte();
        }
        if script.byte() % 16 == 0 {
            message.truncate(usize::from(script.byte()));
        }
        let fds: Vec<_> = (0..script.byte() % 6 / 2).map(|_| descriptor(script.byte())).collect();
        send(&client, &message, &fds);
        let (reply, _) = receive(&client);
        assert!(reply.is_empty() || reply.len() == REPLY);
    }
    // A request may have unmapped everything, or ended our own participation; it serves nevertheless.
    let again = Region::open_in(dir.path(), "region").unwrap();
    assert_eq!(again.base(), region.base());
    drop(again);
    let _ = region.sync();
    drop(region);
}

/// An opener hears what the bytes say, from a server that has real files of a region.
pub(crate) fn replies(bytes: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let region = create(&dir);
    let (good, mut fds) = attached(&dir);
    drop(region);
    let mut script = Script(bytes);
    let mut reply = good;
    for _ in 0..script.byte() % 5 {
        let at = usize::from(script.byte()) % REPLY;
        reply[at] = script.byte();
    }
    match script.byte() % 8 {
        0 => reply.truncate(usize::from(script.byte()) % (REPLY + 1)),
        1 => reply.extend([script.byte(); 9]),
        2 => drop(fds.pop()),
        3 => fds.push(descriptor(script.byte())),
        4 => fds[usize::from(script.byte()) % 4] = descriptor(script.byte()),
        5 => fds.swap(usize::from(script.byte()) % 4, usize::from(script.byte()) % 4),
        _ => {}
    }
    for _ in 0..script.byte() % 8 {
        scribble(&mut script, &fds);
    }
    let path = dir.path().join("region");
    let listener = socket();
    rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    rustix::net::listen(&listener, 8).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let connection = rustix::net::accept(&listener).unwrap();
            receive(&connection);
            send(&connection, &reply, &fds);
            // Nobody else is answered.
            let _ = std::fs::remove_file(&path);
        });
        match Region::open_in(dir.path(), "region") {
            Ok(region) => play(&region, &dir, &mut script),
            Err(error) => drop(error.to_string()),
        }
    });
}

/// Writes a word somewhere into the control page or the ledger.
fn scribble(script: &mut Script<'_>, fds: &[OwnedFd]) {
    let which = usize::from(script.byte() % 2);
    let offset = match script.byte() % 5 {
        // Headers, what the log goes by (lock, turns, acks, generation, serials), the first slots and
        // the words of the layout.
        0 => u64::from(script.byte()),
        1 => 512 + u64::from(script.byte()),
        4 => 256 + u64::from(script.byte()) % 64,
        2 => 512 + 65_536 + u64::from(script.byte()),
        _ => 512 + 65_536 + 8 * 6145 + u64::from(script.byte()),
    };
    let offset = if which == 0 { offset % 4096 } else { offset } & !7;
    let value = script.number();
    let Some(file) = fds.get(which) else { return };
    // SAFETY: bytes of ours, into a file; what is none, or too short, is left alone.
    unsafe {
        libc::pwrite(file.as_raw_fd(), (&raw const value).cast(), 8, offset.cast_signed());
    }
}

/// What a participant may do that touches no memory itself.
fn play(region: &Region, dir: &TempDir, script: &mut Script<'_>) {
    const PAGE: usize = 4096;
    for _ in 0..4 {
        let at = usize::from(script.byte()) * PAGE;
        let range = at..at + PAGE * (1 + usize::from(script.byte() % 4));
        let _ = match script.byte() % 11 {
            0 => region.sync().map(drop),
            1 => region.map_within(range, Object::revocable(), SOON).map(drop),
            2 => region.map_within(range, Object::anonymous(), SOON).map(drop),
            3 => region.unmap_within(range, SOON).map(drop),
            4 => region.protect_within(range, Prot::READ, SOON).map(drop),
            5 => region.stats().map(drop),
            6 => region.parts().map(drop),
            7 => list_in(dir.path()).map(drop),
            8 => region.advise(range, Advice::DontNeed),
            9 => {
                let layout = Layout::from_size_align(range.end, 1 << (script.byte() % 13)).unwrap();
                region.alloc(layout).map(|bytes| {
                    assert!(region.contains(bytes.as_ptr(), layout.size()));
                })
            }
            _ => region.root::<u64>("root").map(drop),
        };
        let _ = (region.roots(), region.heap_range(), region.rights());
        let _ = region.set_root("root", region.base().cast::<u64>());
    }
}

/// Whoever may write the region writes what the bytes say over the words of its heap: what is given
/// out lies in the region all the same, aligned, and every call returns.
pub(crate) fn heap(bytes: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let region = Region::builder("region").size(SIZE).directory(dir.path()).create().unwrap();
    let heap = region.heap().unwrap();
    let start = region.heap_range().unwrap().start;
    let mut script = Script(bytes);
    let mut blocks = Vec::new();
    while !script.is_over() {
        for _ in 0..script.byte() % 4 {
            // Head and owners, slots, and the words behind them.
            let offset = match script.byte() % 4 {
                0 => usize::from(script.byte()) / 4 * 8,
                1 => 4096 + usize::from(script.byte()) * 8,
                2 => 4096 + (script.number() as usize) % (64 << 10),
                _ => script.number() as usize % (SIZE - start - 8),
            };
            let value = script.number();
            // SAFETY: a word of the region, which everybody may write.
            unsafe { region.base().add((start + offset) & !7).cast::<u64>().write_volatile(value) };
        }
        let size = usize::from(script.byte()) << (script.byte() % 12);
        let layout = Layout::from_size_align(size, 1 << (script.byte() % 14)).unwrap();
        match script.byte() % 8 {
            0 => drop(heap.recover()),
            1 => drop(heap.trim()),
            2 => drop(heap.check().map(|report| report.to_string())),
            3 => drop((heap.stats(), heap.blocks())),
            4 | 5 => {
                if let Ok(block) = heap.alloc(layout) {
                    let at = block.as_ptr();
                    assert!(size == 0 || region.contains(at, size), "{at:?} {size}");
                    assert!(block.addr().get().is_multiple_of(layout.align()));
                    blocks.push((block, layout));
                }
            }
            6 if !blocks.is_empty() => {
                let (block, layout) = blocks[size % blocks.len()];
                // SAFETY: its size is changed to no more than what it has, or refused.
                drop(unsafe { heap.resize(block, layout, size) });
            }
            _ => {
                if let Some((block, layout)) = blocks.pop() {
                    // SAFETY: allocated above with this layout.
                    drop(unsafe { heap.free(block, layout) });
                }
            }
        }
    }
    drop(region);
    // SAFETY: nobody uses it any more.
    unsafe { heap.close() };
}

/// A participant goes on while the control memory changes under it.
pub(crate) fn control(bytes: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let region = create(&dir);
    let (_, fds) = attached(&dir);
    let mut script = Script(bytes);
    let mut steps = 0;
    while !script.is_over() && steps < 6 {
        steps += 1;
        for _ in 0..1 + script.byte() % 4 {
            scribble(&mut script, &fds);
        }
        play(&region, &dir, &mut script);
    }
}
