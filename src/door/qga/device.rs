//! The port as a device: virtio-serial or ISA serial. Opened by `place`, read and written by `channel`.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
    path::Path,
    pin::Pin,
    task::{Context, Poll, ready},
};

use nix::{
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        termios::{self, BaudRate, FlushArg, SetArg},
    },
    unistd::isatty,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, unix::AsyncFd};

use super::channel::Line;
use crate::sys::packet;

/// A character device to the host. While no host is there it reads as ended and cannot be written; that is no end.
///
/// Readiness comes from an edge-triggered epoll of its own inside tokio's: a port without a host is "ready" for ever.
pub(super) struct Port {
    file: File,
    edges: Epoll,
    /// the same epoll, for tokio to wait on
    changed: AsyncFd<OwnedFd>,
    hung_up: bool,
}

impl Port {
    pub(super) fn open(path: &Path) -> io::Result<Port> {
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
