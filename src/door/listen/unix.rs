//! The unix socket: made so that only those allowed can connect, taken over only from a daemon that is gone.

use std::{
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown},
            net::UnixListener as StdListener,
        },
    },
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::{
        socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, connect, listen, socket},
        stat::{Mode, fchmod},
    },
    unistd::Group,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_stream::Stream;
use tonic::transport::server::Connected;
use tracing::warn;

use super::{Error, Rest};
use crate::{
    config::{Access, Role},
    door::access::Peer,
    sys::peer,
};

/// The group that may connect, if it exists.
const GROUP: &str = "holdstill";
/// How many connections those who may not operate can have together, so that they cannot keep the others out.
const GUESTS_MAX: usize = 64;

/// A bound socket, and what the log should say about it.
#[derive(Debug)]
pub struct Bound {
    pub socket: UnixSocket,
    /// who may connect, when that is not the usual
    pub note: Option<String>,
}

/// A listening socket, removed from its directory when dropped.
#[derive(Debug)]
pub struct UnixSocket {
    listener: StdListener,
    path: PathBuf,
    inode: u64,
}

/// Makes the socket at `path`: 0660 root:holdstill, or 0600 where there is no such group. Makes its directory if it
/// is missing; removes a socket nobody answers on.
///
/// # Errors
/// Somebody answers there, something else lies there, or the path cannot be bound: unix(7).
pub fn bind(path: &Path) -> Result<Bound, Error> {
    let failed = |source: io::Error| Error::Listen { path: path.to_owned(), source };
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(parent)
        .map_err(|source| Error::Directory { path: parent.to_owned(), source })?;
    // Two daemons starting at once must not each remove the other's fresh socket.
    let _alone = Flock::lock(fs::File::open(parent).map_err(failed)?, FlockArg::LockExclusive)
        .map_err(|(_, errno)| failed(errno.into()))?;
    clear(path)?;
    let listener = bound(path).map_err(|errno| failed(errno.into()))?;
    let note = open_to_group(path).map_err(failed)?;
    let inode = fs::symlink_metadata(path).map_err(failed)?.ino();
    Ok(Bound { socket: UnixSocket { listener, path: path.to_owned(), inode }, note })
}

/// A socket at `path` for root alone, 0600. Removes a socket nobody answers on.
///
/// # Errors
/// As for [`unix`].
pub fn private_unix(path: &Path) -> Result<UnixListener, Error> {
    let failed = |source: io::Error| Error::Listen { path: path.to_owned(), source };
    clear(path)?;
    let listener = bound(path).map_err(|errno| failed(errno.into()))?;
    UnixListener::from_std(listener).map_err(failed)
}

/// Removes what an earlier daemon left at `path`.
fn clear(path: &Path) -> Result<(), Error> {
    let failed = |source: io::Error| Error::Listen { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(e)),
        Ok(found) if !found.file_type().is_socket() => return Err(Error::NotASocket { path: path.to_owned() }),
        Ok(_) => {}
    }
    let probe = stream_socket().map_err(|errno| failed(errno.into()))?;
    match connect(probe.as_raw_fd(), &UnixAddr::new(path).map_err(|errno| failed(errno.into()))?) {
        // EAGAIN: its backlog is full, so it has one
        Ok(()) | Err(Errno::EAGAIN) => Err(Error::Answered { path: path.to_owned() }),
        Err(Errno::ECONNREFUSED) => fs::remove_file(path).map_err(failed),
        Err(errno) => Err(failed(errno.into())),
    }
}

fn stream_socket() -> nix::Result<OwnedFd> {
    socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)
}

/// Bound with 0600 from its first moment: the kernel gives the new inode the mode of the socket's own.
fn bound(path: &Path) -> nix::Result<StdListener> {
    let socket = stream_socket()?;
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    nix::sys::socket::bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&socket, Backlog::new(128)?)?;
    Ok(socket.into())
}

fn open_to_group(path: &Path) -> io::Result<Option<String>> {
    let Some(group) = Group::from_name(GROUP)? else {
        return Ok(Some(format!("{} is root's alone: there is no group `{GROUP}`", path.display())));
    };
    chown(path, None, Some(group.gid.as_raw()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
    Ok(None)
}

impl UnixSocket {
    /// Accepts from now on; whoever connects gets the role `access` gives them. Needs a tokio runtime.
    ///
    /// # Errors
    /// The runtime cannot watch the socket.
    pub fn connections(self, access: Arc<Access>) -> io::Result<Connections> {
        let listener = UnixListener::from_std(self.listener.try_clone()?)?;
        let guests = Arc::new(Semaphore::new(GUESTS_MAX));
        Ok(Connections { listener, _socket: self, access, guests, rest: Rest::default() })
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        // Only while it is still ours: another daemon may have been given the path meanwhile.
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The connections of one listener, without end: a failure to accept is logged and rested on.
pub struct Connections {
    listener: UnixListener,
    _socket: UnixSocket,
    access: Arc<Access>,
    guests: Arc<Semaphore>,
    rest: Rest,
}

impl Connections {
    /// The connection with the peer known, or none if it is to be closed.
    fn admitted(&self, stream: UnixStream) -> Option<Connection> {
        let found =
            peer::credentials(&stream).inspect_err(|e| warn!(error = %e, "caller unknown, turned away")).ok()?;
        let peer = Peer::of_process(&found, &self.access);
        let seat = match peer.role {
            Some(Role::Operate) => None,
            Some(Role::Look) | None => match Arc::clone(&self.guests).try_acquire_owned() {
                Ok(seat) => Some(seat),
                Err(_) => {
                    warn!(caller = %peer.caller, limit = GUESTS_MAX, "too many connections, turned away");
                    return None;
                }
            },
        };
        Some(Connection { stream, peer, _seat: seat })
    }
}

impl Stream for Connections {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            ready!(self.rest.poll(cx));
            match ready!(self.listener.poll_accept(cx)) {
                Ok((stream, _)) => {
                    if let Some(connection) = self.admitted(stream) {
                        return Poll::Ready(Some(Ok(connection)));
                    }
                }
                Err(e) => {
                    warn!(error = %e, "a connection could not be accepted");
                    self.rest.begin();
                }
            }
        }
    }
}

/// One connection and who is at its other end.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    peer: Peer,
    _seat: Option<OwnedSemaphorePermit>,
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream as StdStream;

    use tokio_stream::StreamExt as _;

    use super::*;
    use crate::config::Principal;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn the_socket_is_nobody_elses_from_its_first_moment() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er/holdstill.sock");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let _listener = bound(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn a_missing_directory_is_made_and_a_missing_group_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er/holdstill.sock");
        let bound = bind(&path).unwrap();
        match Group::from_name(GROUP).unwrap() {
            Some(_) => assert_eq!((mode(&path), bound.note), (0o660, None)),
            None => {
                assert_eq!(mode(&path), 0o600);
                assert!(bound.note.unwrap().contains("no group `holdstill`"));
            }
        }
        assert_eq!(mode(path.parent().unwrap()), 0o755);
    }

    #[test]
    fn a_running_daemon_is_never_pushed_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("holdstill.sock");
        let first = bind(&path).unwrap();
        assert!(matches!(bind(&path), Err(Error::Answered { .. })));
        // not even one too busy to accept
        let mut waiting = Vec::new();
        while let Ok(probe) = stream_socket().and_then(|s| {
            connect(s.as_raw_fd(), &UnixAddr::new(&path)?)?;
            Ok(s)
        }) {
            waiting.push(probe);
        }
        assert!(matches!(bind(&path), Err(Error::Answered { .. })));
        drop(first);
        assert!(!path.exists());
    }

    #[test]
    fn a_dead_daemons_socket_is_taken_over_and_anything_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("holdstill.sock");
        drop(StdListener::bind(&path).unwrap());
        assert!(path.exists());
        let ours = bind(&path).unwrap();
        StdStream::connect(&path).unwrap();
        drop(ours);

        fs::write(&path, "mine").unwrap();
        assert!(matches!(bind(&path), Err(Error::NotASocket { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    }

    #[test]
    fn a_path_that_is_no_longer_ours_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("holdstill.sock");
        let ours = bind(&path).unwrap();
        fs::rename(&path, dir.path().join("moved")).unwrap();
        let theirs = bind(&path).unwrap();
        drop(ours);
        assert!(path.exists());
        drop(theirs);
    }

    #[tokio::test]
    async fn a_connection_carries_who_connected() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("holdstill.sock");
        let uid = nix::unistd::getuid().as_raw();
        let access = Access { operate: vec![Principal::User { name: "me".into(), uid }], look: Vec::new() };
        let mut connections = bind(&path).unwrap().socket.connections(Arc::new(access)).unwrap();
        let _client = StdStream::connect(&path).unwrap();
        let peer = connections.next().await.unwrap().unwrap().connect_info();
        assert_eq!(peer.role, Some(Role::Operate));
        assert!(peer.caller.starts_with(&format!("uid {uid}")), "{}", peer.caller);
        assert!(peer.caller.ends_with(&format!(", pid {}", std::process::id())), "{}", peer.caller);
    }

    #[tokio::test]
    async fn those_who_may_only_look_get_64_connections_and_a_closed_one_makes_room() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("holdstill.sock");
        let mut connections = bind(&path).unwrap().socket.connections(Arc::default()).unwrap();
        let mut seated = Vec::new();
        let mut clients = Vec::new();
        for _ in 0..GUESTS_MAX {
            clients.push(StdStream::connect(&path).unwrap());
            seated.push(connections.next().await.unwrap().unwrap());
        }
        let mut turned_away = StdStream::connect(&path).unwrap();
        tokio::select! {
            biased;
            _ = connections.next() => panic!("the 65th was let in"),
            () = std::future::ready(()) => {}
        }
        assert_eq!(io::Read::read(&mut turned_away, &mut [0]).unwrap(), 0, "closed");

        seated.pop();
        let _next = StdStream::connect(&path).unwrap();
        assert!(connections.next().await.unwrap().is_ok());
    }
}
