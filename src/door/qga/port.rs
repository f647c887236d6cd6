//! Where the channel is: a virtio-serial or ISA serial port, a unix socket, vsock. Opens it, serves it, and opens it
//! again when it vanished; never gives up a port because the host hung up.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::{FileTypeExt as _, OpenOptionsExt as _},
    },
    path::Path,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        termios::{self, BaudRate, FlushArg, SetArg},
    },
    unistd::isatty,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf, unix::AsyncFd},
    net::UnixStream,
};
use tokio_vsock::VsockStream;

use super::{
    agent::Agent,
    channel::{self, Line},
};
use crate::{
    config::GuestAgent,
    door::listen,
    guest::agent_channel::{self, AgentChannel, Owner},
    sys::packet,
};

/// How long a port that is missing, vanished or taken is left alone.
const RETRY: Duration = Duration::from_secs(5);
/// What a stock agent that is just starting gets to take what is its own.
const SECOND_LOOK: Duration = Duration::from_millis(300);

/// Serves the channel for as long as the daemon runs, or until it is clear that there is none for us.
pub async fn serve(at: GuestAgent, agent: &mut Agent, root: &Path) {
    match at {
        GuestAgent::Off => {}
        GuestAgent::Auto => auto(agent, root).await,
        GuestAgent::Path(path) if is_device(&path) => named(&path, agent).await,
        GuestAgent::Path(path) => unix_socket(&path, agent).await,
        GuestAgent::Vsock(port) => vsock(port, agent).await,
    }
}

/// Takes the port if it is there, or when it comes; whoever owned it first keeps it until we are started again.
async fn auto(agent: &mut Agent, root: &Path) {
    let mut first = true;
    loop {
        let root = root.to_owned();
        let found = tokio::task::spawn_blocking(move || agent_channel::read(&root)).await;
        // a stock agent that was started a moment before us may not have opened it yet
        if std::mem::take(&mut first) && found.as_ref().is_ok_and(|found| found.stock.is_some()) {
            tokio::time::sleep(SECOND_LOOK).await;
            continue;
        }
        if let Ok(AgentChannel { device: Some(path), owner, .. }) = found {
            let taken = match owner {
                Owner::Other { pid, name } => Err(format!("{name} (pid {pid})")),
                Owner::Nobody | Owner::Us => match Port::open(&path) {
                    Ok(port) => Ok(Some(port)),
                    Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => Err("another agent".to_owned()),
                    Err(error) => {
                        tracing::debug!(%error, port = %path.display(), "could not open the guest-agent channel");
                        Ok(None)
                    }
                },
            };
            match taken {
                Ok(Some(port)) => device(port, &path, agent).await,
                Ok(None) => {}
                Err(who) => {
                    let port = path.display();
                    tracing::info!(%port, %who, "the guest-agent channel is somebody else's; `holdstill check` says what that means");
                    return;
                }
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Takes the port that was configured, whenever that is possible.
async fn named(path: &Path, agent: &mut Agent) {
    let mut said = None;
    loop {
        match Port::open(path) {
            Ok(port) => {
                said = None;
                device(port, path, agent).await;
            }
            Err(error) => {
                // once for each kind, not every five seconds
                if said.replace(error.kind()) != Some(error.kind()) {
                    tracing::warn!(%error, port = %path.display(), "could not open the guest-agent channel; trying again");
                }
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn device(mut port: Port, path: &Path, agent: &mut Agent) {
    tracing::info!(port = %path.display(), "the host can ask on the guest-agent channel");
    if let Err(error) = channel::serve(&mut port, agent).await {
        tracing::warn!(%error, port = %path.display(), "the guest-agent channel vanished; waiting for it");
    }
}

async fn unix_socket(path: &Path, agent: &mut Agent) {
    let listener = match listen::unix::private_unix(path) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "the guest-agent channel is not served");
            return;
        }
    };
    tracing::info!(socket = %path.display(), "a host can ask on the guest-agent channel");
    loop {
        match listener.accept().await {
            Ok((mut stream, _)) => end_of(channel::serve(&mut stream, agent).await),
            Err(error) => {
                tracing::warn!(%error, "a guest-agent connection could not be accepted");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

async fn vsock(port: u32, agent: &mut Agent) {
    let mut bound = match listen::vsock::bind(port) {
        Ok(bound) => bound,
        Err(error) => {
            tracing::error!(%error, hint = error.hint(), "the guest-agent channel is not served");
            return;
        }
    };
    tracing::info!(port, note = bound.note, "the host can ask on the guest-agent channel, by vsock");
    loop {
        end_of(channel::serve(&mut bound.listener.accept().await, agent).await);
    }
}

/// One client at a time, and its going means nothing.
fn end_of(served: io::Result<()>) {
    if let Err(error) = served {
        tracing::debug!(%error, "a guest-agent client is gone");
    }
}

impl Line for UnixStream {}
impl Line for VsockStream {}

fn is_device(path: &Path) -> bool {
    fs::metadata(path).map_or(path.starts_with("/dev"), |found| found.file_type().is_char_device())
}

/// A character device to the host. While no host is there it reads as ended and cannot be written; that is no end.
///
/// Readiness comes from an edge-triggered epoll of its own inside tokio's: a port without a host is "ready" for ever.
struct Port {
    file: File,
    edges: Epoll,
    /// the same epoll, for tokio to wait on
    changed: AsyncFd<OwnedFd>,
    hung_up: bool,
}

impl Port {
    fn open(path: &Path) -> io::Result<Port> {
        let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags.bits()).open(path)?;
        if isatty(&file)? {
            make_raw(&file)?;
        }
        let edges = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let events = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        edges.add(&file, EpollEvent::new(events, 0))?;
        let changed = packet::awaitable(edges.0.try_clone()?)?;
        Ok(Port { file, edges, changed, hung_up: false })
    }

    fn has_no_host(&self) -> bool {
        let mut asked = [PollFd::new(self.file.as_fd(), PollFlags::POLLOUT)];
        poll(&mut asked, PollTimeout::ZERO).is_ok()
            && asked[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
    }

    /// Ready once something changed at the port since it was last asked.
    fn poll_change(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut guard = ready!(self.changed.poll_read_ready(cx))?;
        let mut events = [EpollEvent::empty()];
        let changed = self.edges.wait(&mut events, EpollTimeout::ZERO)? > 0;
        if !changed {
            guard.clear_ready();
        }
        // either way: try again, and be woken by the next change
        Poll::Ready(Ok(()))
    }
}

/// As the stock agent has it: raw, 38400 baud, and nothing left of what came before us.
fn make_raw(file: &File) -> io::Result<()> {
    let mut settings = termios::tcgetattr(file)?;
    termios::cfmakeraw(&mut settings);
    termios::cfsetspeed(&mut settings, BaudRate::B38400)?;
    termios::tcsetattr(file, SetArg::TCSANOW, &settings)?;
    termios::tcflush(file, FlushArg::TCIOFLUSH)?;
    Ok(())
}

impl AsyncRead for Port {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let read = (&self.file).read(buffer.initialize_unfilled());
            match read {
                Ok(0) => self.hung_up = true,
                Ok(count) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Poll::Ready(Err(error)),
            }
            ready!(self.poll_change(cx))?;
        }
    }
}

impl AsyncWrite for Port {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            match (&self.file).write(bytes) {
                Ok(count) => return Poll::Ready(Ok(count)),
                // whoever asked is gone; the next to connect must not find somebody else's answer, or half of one
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && self.has_no_host() => {
                    return Poll::Ready(Ok(bytes.len()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Poll::Ready(Err(error)),
            }
            ready!(self.poll_change(cx))?;
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Line for Port {
    fn hung_up(&mut self) -> bool {
        std::mem::take(&mut self.hung_up)
    }
}
