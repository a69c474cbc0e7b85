//! Unix sockets: one message, its descriptors (`SCM_RIGHTS`), and who is at the other
//! end (`SO_PEERCRED`).

use core::mem::MaybeUninit;
use core::time::Duration;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::io::{Errno, IoSlice, IoSliceMut, Result, fcntl_dupfd_cloexec};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    accept_with, bind, connect, listen, recvmsg, sendmsg, socket_with,
};
use std::path::Path;
use std::time::Instant;

/// Descriptors that one message may carry. A message with more is refused.
pub const MAX_FDS: usize = 4;

fn socket() -> Result<OwnedFd> {
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

/// `socket(AF_UNIX, SOCK_SEQPACKET)`, `bind(path)`, `listen`.
///
/// # Errors
///
/// EADDRINUSE if the path exists, ENOENT or EACCES for its directory, ENAMETOOLONG for a
/// path over 107 bytes.
pub fn serve(path: &Path) -> Result<OwnedFd> {
    let listener = socket()?;
    bind(&listener, &SocketAddrUnix::new(path)?)?;
    listen(&listener, 128)?;
    Ok(listener)
}

/// One end of a connection, for a conversation up to a deadline. A peer that says nothing
/// does not hold us longer, and neither do signals, each of which cuts a wait short.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    deadline: Instant,
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// `connect(path)`, for `patience` in all.
///
/// # Errors
///
/// ENOENT if there is no such path, ECONNREFUSED if nobody listens behind it, EAGAIN if its
/// queue stays full, EACCES without write permission on it, ENAMETOOLONG for a path over 107
/// bytes.
pub fn call(path: &Path, patience: Duration) -> Result<Connection> {
    let address = SocketAddrUnix::new(path)?;
    let connection = Connection { socket: socket()?, deadline: Instant::now() + patience };
    connection.patiently(Timeout::Send, || connect(&connection.socket, &address))?;
    Ok(connection)
}

/// `accept4(listener, SOCK_CLOEXEC)`, for `patience` in all.
///
/// # Errors
///
/// Those of accept4(2), among them EMFILE.
pub fn answer(listener: impl AsFd, patience: Duration) -> Result<Connection> {
    let socket = accept_with(listener, SocketFlags::CLOEXEC)?;
    Ok(Connection { socket, deadline: Instant::now() + patience })
}

impl Connection {
    /// When its time is over.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// `call`, again after each signal, with the time that is left.
    fn patiently<T>(&self, side: Timeout, mut call: impl FnMut() -> Result<T>) -> Result<T> {
        loop {
            // A timeout of 0 would be none.
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left < Duration::from_micros(1) {
                return Err(Errno::AGAIN);
            }
            set_socket_timeout(&self.socket, side, Some(left))?;
            match call() {
                Err(Errno::INTR) => {}
                done => return done,
            }
        }
    }

    /// `sendmsg` — one message with its descriptors.
    ///
    /// # Errors
    ///
    /// EPIPE if the other end is gone, EAGAIN at the deadline, EINVAL for more than
    /// [`MAX_FDS`] descriptors.
    pub fn send(&self, message: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        // The space may have room for one more than it was made for: alignment.
        if fds.len() > MAX_FDS {
            return Err(Errno::INVAL);
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(Errno::INVAL);
        }
        let message = [IoSlice::new(message)];
        self.patiently(Timeout::Send, || {
            sendmsg(&self.socket, &message, &mut control, SendFlags::NOSIGNAL).map(drop)
        })
    }

    /// `recvmsg(MSG_CMSG_CLOEXEC)` — one message into `buffer`; answers its length and its
    /// descriptors.
    ///
    /// # Errors
    ///
    /// ECONNRESET at the end of the connection, EAGAIN at the deadline, EMSGSIZE for a
    /// message or a set of descriptors that is larger than there is room for, EMFILE or ENFILE
    /// if there is no descriptor free; descriptors that did arrive are closed then.
    pub fn receive(&self, buffer: &mut [u8]) -> Result<(usize, Vec<OwnedFd>)> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut message = [IoSliceMut::new(buffer)];
        let received = self.patiently(Timeout::Recv, || {
            recvmsg(&self.socket, &mut message, &mut control, RecvFlags::CMSG_CLOEXEC)
        })?;
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            // Too many of them, or no room for them in our table? The kernel says the same of
            // both; a further descriptor tells.
            fcntl_dupfd_cloexec(&self.socket, 0)?;
            return Err(Errno::MSGSIZE);
        }
        if received.flags.contains(ReturnFlags::TRUNC) || fds.len() > MAX_FDS {
            return Err(Errno::MSGSIZE);
        }
        if received.bytes == 0 {
            return Err(Errno::CONNRESET);
        }
        Ok((received.bytes, fds))
    }
}

/// Who was at the other end when the connection was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Process id in our pid namespace; 0 if it has none there.
    pub pid: u32,
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
}

/// `getsockopt(SO_PEERCRED)` — by libc, because `rustix` has no value for a pid of 0.
///
/// # Errors
///
/// ENOTCONN before a connection.
pub fn peer(connection: impl AsFd) -> Result<Peer> {
    let mut credentials = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes into `credentials`.
    let answer = unsafe {
        libc::getsockopt(
            connection.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut len,
        )
    };
    if answer != 0 || len as usize != size_of::<libc::ucred>() {
        return Err(Errno::NOTCONN);
    }
    let pid = u32::try_from(credentials.pid).unwrap_or(0);
    Ok(Peer { pid, uid: credentials.uid, gid: credentials.gid })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sys::memfd;
    use rustix::process::{getgid, getuid};

    const PATIENCE: Duration = Duration::from_secs(10);

    fn pair() -> (tempfile::TempDir, Connection, Connection) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = serve(&path).unwrap();
        let client = call(&path, PATIENCE).unwrap();
        let server = answer(&listener, PATIENCE).unwrap();
        (dir, client, server)
    }

    #[test]
    fn a_descriptor_arrives_closed_on_exec() {
        let (_dir, client, server) = pair();
        let file = memfd::create("unmerged.test", 12_288).unwrap();
        server.send(b"hello", &[file.as_fd()]).unwrap();
        let mut buffer = [0; 16];
        let (len, fds) = client.receive(&mut buffer).unwrap();
        assert_eq!((&buffer[..len], fds.len()), (&b"hello"[..], 1));
        assert_eq!(rustix::fs::fstat(&fds[0]).unwrap().st_size, 12_288);
        let flags = rustix::io::fcntl_getfd(&fds[0]).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }

    #[test]
    fn both_ends_know_each_other() {
        let (_dir, client, server) = pair();
        let me = Peer { pid: std::process::id(), uid: getuid().as_raw(), gid: getgid().as_raw() };
        assert_eq!(peer(&client), Ok(me));
        assert_eq!(peer(&server), Ok(me));
    }

    #[test]
    fn too_long_too_many_or_none() {
        let (_dir, client, server) = pair();
        server.send(&[1; 64], &[]).unwrap();
        assert_eq!(client.receive(&mut [0; 16]).unwrap_err(), Errno::MSGSIZE);
        let file = memfd::create("unmerged.test", 0).unwrap();
        let five = [file.as_fd(); MAX_FDS + 1];
        assert_eq!(server.send(b"x", &five), Err(Errno::INVAL));
        drop(server);
        assert_eq!(client.receive(&mut [0; 16]).unwrap_err(), Errno::CONNRESET);
        assert!(matches!(client.send(b"x", &[]), Err(Errno::PIPE | Errno::CONNRESET)));
    }

    /// A profiler's timer cannot make a wait last for ever.
    #[test]
    fn signals_do_not_prolong_a_wait() {
        extern "C" fn nothing(_: libc::c_int) {}
        let (_dir, client, _server) = pair();
        let stop = crate::sync::AtomicBool::new(false);
        // SAFETY: names this thread, which outlives the scope below.
        let id = unsafe { libc::pthread_self() };
        // SAFETY: a handler that does nothing.
        unsafe { libc::signal(libc::SIGURG, nothing as *const () as usize) };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(crate::sync::Ordering::Relaxed) {
                    // SAFETY: the thread waits for this one.
                    unsafe { libc::pthread_kill(id, libc::SIGURG) };
                    std::thread::sleep(Duration::from_millis(2));
                }
            });
            let hurried = Connection {
                socket: rustix::io::dup(&client).unwrap(),
                deadline: Instant::now() + Duration::from_millis(30),
            };
            assert_eq!(hurried.receive(&mut [0; 16]).unwrap_err(), Errno::AGAIN);
            stop.store(true, crate::sync::Ordering::Relaxed);
        });
    }

    #[test]
    fn a_silent_peer_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let _listener = serve(&path).unwrap();
        let client = call(&path, Duration::from_millis(300)).unwrap();
        assert_eq!(client.receive(&mut [0; 16]).unwrap_err(), Errno::AGAIN);
        assert_eq!(serve(&path).unwrap_err(), Errno::ADDRINUSE);
        assert_eq!(call(&dir.path().join("none"), PATIENCE).unwrap_err(), Errno::NOENT);
        let long = dir.path().join("x".repeat(120));
        assert_eq!(call(&long, PATIENCE).unwrap_err(), Errno::NAMETOOLONG);
    }
}
