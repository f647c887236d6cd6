//! Looking at a connection from outside the library that owns it: finding its socket among our own descriptors, asking
//! the kernel whether the peer is still there, and cutting it. Called by `step::database` and its engines.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, Shutdown, SockaddrLike, SockaddrStorage, getpeername, getsockname, getsockopt, recv,
        shutdown, sockopt,
    },
};

/// The sockets this process has open, by inode.
#[derive(Debug, Default)]
pub struct Open(BTreeSet<u64>);

/// What the socket being looked for is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer<'a> {
    /// a listening unix socket; in the server's own view its directory may be called otherwise, its file is not
    Unix { path: &'a Path },
    /// a TCP port, anywhere
    Tcp { port: u16 },
}

/// The sockets open now; compare with [`connected_since`].
///
/// # Errors
/// /proc/self/fd cannot be read.
pub fn open() -> io::Result<Open> {
    Ok(Open(sockets()?.into_iter().map(|(_, inode)| inode).collect()))
}

/// How well a socket fits what is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    /// bound under the same file name, in a directory we know by another name
    Alike,
    Exact,
}

/// A duplicate of the one client socket that was not open at `before` and is connected to `peer`.
///
/// # Errors
/// None, or more than one, fits; /proc/self/fd cannot be read.
pub fn connected_since(before: &Open, peer: Peer<'_>) -> io::Result<OwnedFd> {
    let mut found = Vec::new();
    for (fd, inode) in sockets()? {
        if before.0.contains(&inode) {
            continue;
        }
        // Another thread may have closed it meanwhile, or opened something else under its number: duplicate, then look.
        // JUSTIFICATION: the descriptor belongs to a library that does not show it.
        // SAFETY: a duplicate of whatever `fd` names now, or an error; nothing is done to the original.
        let duplicate = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
        let Ok(duplicate) = Errno::result(duplicate) else { continue };
        // JUSTIFICATION: gives the duplicate its owner.
        // SAFETY: fcntl has just returned it to us; nobody else knows it.
        let duplicate = unsafe { OwnedFd::from_raw_fd(duplicate) };
        if inode_of(duplicate.as_raw_fd()) == Some(inode)
            && let Some(fit) = leads_to(duplicate.as_raw_fd(), peer)
        {
            found.push((fit, duplicate));
        }
    }
    let best = found.iter().map(|(fit, _)| *fit).max();
    let mut found: Vec<OwnedFd> =
        found.into_iter().filter(|(fit, _)| Some(*fit) == best).map(|(_, socket)| socket).collect();
    match (found.pop(), found.len()) {
        (Some(socket), 0) => Ok(socket),
        (None, _) => Err(io::Error::new(io::ErrorKind::NotFound, "the connection's socket was not found")),
        (Some(_), more) => Err(io::Error::other(format!("{} new sockets lead to the same server", more + 1))),
    }
}

/// One descriptor per socket, however many lead to it.
fn sockets() -> io::Result<Vec<(RawFd, u64)>> {
    let mut sockets = BTreeMap::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        // The listing's own descriptor is among them and gone by now.
        let Some(fd) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if let Some(inode) = inode_of(fd) {
            sockets.insert(inode, fd);
        }
    }
    Ok(sockets.into_iter().map(|(inode, fd)| (fd, inode)).collect())
}

fn inode_of(fd: RawFd) -> Option<u64> {
    let target = fs::read_link(PathBuf::from(format!("/proc/self/fd/{fd}"))).ok()?;
    target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

fn leads_to(socket: RawFd, peer: Peer<'_>) -> Option<Fit> {
    let own = getsockname::<SockaddrStorage>(socket).ok()?;
    let theirs = getpeername::<SockaddrStorage>(socket).ok()?;
    match peer {
        // A client's own end has no name; an accepted connection is the other way round; a socketpair has none at all.
        Peer::Unix { path } => {
            let (own, theirs) = (own.as_unix_addr()?, theirs.as_unix_addr()?.path()?);
            match own.path() {
                Some(_) => None,
                None if theirs == path => Some(Fit::Exact),
                None => (theirs.file_name() == path.file_name()).then_some(Fit::Alike),
            }
        }
        Peer::Tcp { port } => (address(&theirs)?.port() == port).then_some(Fit::Exact),
    }
}

fn address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    match storage.family()? {
        AddressFamily::Inet => storage.as_sockaddr_in().map(|a| SocketAddr::from((a.ip(), a.port()))),
        AddressFamily::Inet6 => storage.as_sockaddr_in6().map(|a| SocketAddr::from((a.ip(), a.port()))),
        _ => None,
    }
}

/// Ends the connection for every duplicate of this socket, here and in other processes. The server then releases what
/// the session held.
pub fn cut(socket: &OwnedFd) {
    // ENOTCONN: it has ended already.
    let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
}

/// Has the peer closed the connection? Sends nothing, consumes nothing, never waits.
pub fn closed(socket: &OwnedFd) -> bool {
    let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN | libc::POLLRDHUP, revents: 0 };
    // JUSTIFICATION: nix has no POLLRDHUP, the only sign of an end behind bytes nobody has read.
    // SAFETY: one entry, which lives here; a timeout of zero.
    match Errno::result(unsafe { libc::poll(&raw mut poll, 1, 0) }) {
        Ok(0) => false,
        Ok(_) => {
            let end = libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR | libc::POLLNVAL;
            poll.revents & end != 0 || peeked_end(socket.as_fd())
        }
        Err(Errno::EINTR) => peeked_end(socket.as_fd()),
        Err(_) => true,
    }
}

fn peeked_end(socket: BorrowedFd<'_>) -> bool {
    match recv(socket.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT) {
        Ok(bytes) => bytes == 0,
        Err(errno) => !matches!(errno, Errno::EAGAIN | Errno::EINTR),
    }
}

/// The process that listens at the other end of a unix socket, in our pid namespace; `None` for TCP, or when it lives
/// where we cannot see it.
pub fn server_pid(socket: &OwnedFd) -> Option<i32> {
    let own = getsockname::<SockaddrStorage>(socket.as_raw_fd()).ok()?;
    own.as_unix_addr()?;
    let peer = getsockopt(socket, sockopt::PeerCredentials).ok()?;
    (peer.pid() > 0).then(|| peer.pid())
}

/// Both ends of a TCP connection: (ours, the server's).
pub fn addresses(socket: &OwnedFd) -> Option<(IpAddr, IpAddr)> {
    let own = address(&getsockname(socket.as_raw_fd()).ok()?)?;
    let theirs = address(&getpeername(socket.as_raw_fd()).ok()?)?;
    Some((own.ip().to_canonical(), theirs.ip().to_canonical()))
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        net::{TcpListener, TcpStream},
        os::unix::net::{UnixListener, UnixStream},
    };

    use super::*;

    fn same(a: &impl AsRawFd, b: &impl AsRawFd) -> bool {
        inode_of(a.as_raw_fd()).is_some() && inode_of(a.as_raw_fd()) == inode_of(b.as_raw_fd())
    }

    #[test]
    fn a_librarys_unix_connection_is_found_among_others() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("found.sock");
        let listener = UnixListener::bind(&path).expect("it binds");
        let other = UnixListener::bind(directory.path().join("other.sock")).expect("it binds");
        let before = open().expect("listed");
        let peer = Peer::Unix { path: &path };
        let missing = connected_since(&before, peer);
        assert_eq!(missing.expect_err("none yet").kind(), io::ErrorKind::NotFound);
        let _noise = (UnixStream::pair().expect("a pair"), UnixStream::connect(directory.path().join("other.sock")));
        let client = UnixStream::connect(&path).expect("it connects");
        let _accepted = (listener.accept().expect("accepted"), other.accept().expect("accepted"));
        let found = connected_since(&before, peer).expect("exactly one");
        let alike = connected_since(&before, Peer::Unix { path: Path::new("/elsewhere/found.sock") });
        assert!(same(&alike.expect("a directory may have another name over there"), &client));
        assert!(same(&found, &client));
        assert_eq!(server_pid(&found), Some(std::process::id().cast_signed()));
        let _second = UnixStream::connect(&path).expect("it connects");
        assert!(connected_since(&before, peer).is_err(), "two fit: refuse to guess");
    }

    #[test]
    fn a_librarys_tcp_connection_is_found_from_its_clients_end() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("it binds");
        let port = listener.local_addr().expect("bound").port();
        let before = open().expect("listed");
        let client = TcpStream::connect(("127.0.0.1", port)).expect("it connects");
        let _accepted = listener.accept().expect("accepted");
        let found = connected_since(&before, Peer::Tcp { port }).expect("exactly one");
        assert!(same(&found, &client));
        assert_eq!(server_pid(&found), None);
        let (own, theirs) = addresses(&found).expect("TCP has both");
        assert!(own == theirs && own.is_loopback());
    }

    #[test]
    fn only_an_end_is_an_end() {
        let (near, mut far) = UnixStream::pair().expect("a pair");
        let near = OwnedFd::from(near);
        assert!(!closed(&near), "silence is not an end");
        far.write_all(b"a notice").expect("written");
        assert!(!closed(&near), "a notice is not an end");
        drop(far);
        assert!(closed(&near), "an end behind an unread notice is one");
    }

    #[test]
    fn cutting_a_duplicate_ends_the_original() {
        let (near, far) = UnixStream::pair().expect("a pair");
        let duplicate = near.as_fd().try_clone_to_owned().expect("duplicated");
        cut(&duplicate);
        assert!(closed(&OwnedFd::from(near)));
        assert!(closed(&OwnedFd::from(far)));
    }
}
