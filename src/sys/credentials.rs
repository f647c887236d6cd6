//! Connecting to a unix socket as another user, so that a server that asks the kernel who is there (PostgreSQL's
//! `peer`) sees the user it expects, and no password need be stored. Called by `step::postgres`.

use std::{
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{fs::OpenOptionsExt, net::UnixStream},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt},
        time::TimeVal,
    },
};

/// Longest path a `sockaddr_un` carries, without its terminating zero (unix(7)).
const LONGEST: usize = 107;

/// Connects to the unix socket `path` with effective ids `uid` and `gid` and no supplementary groups; the rest of this
/// process keeps its own. The stream is blocking.
///
/// The ids are changed by a thread made for it, with the raw system calls (glibc's wrappers would change every
/// thread), and only the effective ones: the real and saved ids stay, so that user cannot trace or signal us.
///
/// # Errors
/// connect(2), setresuid(2); `WouldBlock` when the server's backlog stayed full for `limit`.
pub fn connect_unix_as(path: &Path, uid: u32, gid: u32, limit: Duration) -> io::Result<UnixStream> {
    let path = path.to_owned();
    std::thread::Builder::new()
        .name("connect-as".to_owned())
        .spawn(move || {
            become_user(uid, gid)?;
            connect_unix(&path, limit)
        })?
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the connecting thread panicked")))
}

/// Connects to the unix socket `path`, however long the path, waiting at most `limit` for room in the server's backlog.
///
/// # Errors
/// connect(2); `WouldBlock` when the server's backlog stayed full for `limit`.
pub fn connect_unix(path: &Path, limit: Duration) -> io::Result<UnixStream> {
    let short = ShortPath::new(path)?;
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let wait = |d: Duration| TimeVal::new(d.as_secs().cast_signed(), i64::from(d.subsec_micros()));
    // Zero would mean for ever.
    setsockopt(&fd, sockopt::SendTimeout, &wait(limit.max(Duration::from_millis(1))))?;
    loop {
        match connect(fd.as_raw_fd(), &UnixAddr::new(short.as_path())?) {
            Ok(()) => break,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    setsockopt(&fd, sockopt::SendTimeout, &wait(Duration::ZERO))?;
    Ok(UnixStream::from(fd))
}

/// A path that fits a socket address: the one given, or one through a descriptor of its directory.
pub struct ShortPath {
    path: PathBuf,
    _directory: Option<OwnedFd>,
}

impl ShortPath {
    /// # Errors
    /// The directory of a path that is too long cannot be opened.
    pub fn new(path: &Path) -> io::Result<ShortPath> {
        if path.as_os_str().len() <= LONGEST {
            return Ok(ShortPath { path: path.to_owned(), _directory: None });
        }
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let directory =
            fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(directory)?;
        let path = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
        Ok(ShortPath { path, _directory: Some(directory.into()) })
    }

    /// Valid as long as `self` lives.
    pub fn as_path(&self) -> &Path {
        &self.path
    }
}

/// Changes the effective ids of the calling thread alone.
fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    if nix::unistd::geteuid().as_raw() == uid {
        return Ok(());
    }
    const KEEP: u32 = u32::MAX;
    // JUSTIFICATION: the safe wrappers change all threads of the process.
    // SAFETY: integers only; the empty list of groups is never read. The ids of this thread matter to nobody else:
    // it ends right after the connect.
    unsafe {
        Errno::result(libc::syscall(libc::SYS_setgroups, 0usize, std::ptr::null::<libc::gid_t>()))?;
        Errno::result(libc::syscall(libc::SYS_setresgid, KEEP, gid, KEEP))?;
        Errno::result(libc::syscall(libc::SYS_setresuid, KEEP, uid, KEEP))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::PermissionsExt, net::UnixListener};

    use nix::sys::socket::getsockopt;

    use super::*;

    /// As root somebody else, otherwise ourselves: both must be what the server sees.
    fn somebody() -> u32 {
        let own = nix::unistd::geteuid().as_raw();
        if own == 0 { 65534 } else { own }
    }

    fn directory() -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("a temporary directory");
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("made enterable");
        directory
    }

    fn listen(path: &Path) -> UnixListener {
        let listener = UnixListener::bind(ShortPath::new(path).expect("opens").as_path()).expect("it binds");
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).expect("open to all");
        listener
    }

    #[test]
    fn the_server_sees_the_other_user_and_this_thread_stays_itself() {
        let directory = directory();
        let path = directory.path().join("socket");
        let listener = listen(&path);
        let before = (nix::unistd::geteuid(), nix::unistd::getegid());
        let _client = connect_unix_as(&path, somebody(), somebody(), Duration::from_secs(5)).expect("it connects");
        let (accepted, _) = listener.accept().expect("somebody came");
        let peer = getsockopt(&accepted, sockopt::PeerCredentials).expect("the kernel knows who");
        assert_eq!(peer.uid(), somebody());
        assert_eq!((nix::unistd::geteuid(), nix::unistd::getegid()), before);
    }

    #[test]
    fn a_path_longer_than_an_address_still_connects() {
        let directory = directory();
        let deep = directory.path().join("d".repeat(90)).join("e".repeat(90));
        fs::create_dir_all(&deep).expect("created");
        let path = deep.join("socket");
        let listener = listen(&path);
        connect_unix_as(&path, somebody(), somebody(), Duration::from_secs(5)).expect("it connects");
        listener.accept().expect("somebody came");
    }

    #[test]
    fn a_server_that_never_accepts_is_given_up() {
        let directory = directory();
        let path = directory.path().join("socket");
        let listener = listen(&path);
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).expect("valid")).expect("backlog of one");
        let mut waiting = Vec::new();
        let error = loop {
            match connect_unix(&path, Duration::from_millis(100)) {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
            assert!(waiting.len() < 10, "the backlog never filled");
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn nobody_listening_is_an_error() {
        let directory = directory();
        let path = directory.path().join("socket");
        let missing = connect_unix(&path, Duration::from_secs(1)).expect_err("nothing is there");
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        drop(listen(&path));
        let stale = connect_unix(&path, Duration::from_secs(1)).expect_err("nobody listens");
        assert_eq!(stale.kind(), io::ErrorKind::ConnectionRefused);
    }
}
