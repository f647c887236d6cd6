//! The sockets the daemon listens on, and who is at the other end of each connection. Bound at start, handed to
//! [`super::entrance`].

pub mod unix;
pub mod vsock;

use std::{
    io,
    path::PathBuf,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use nix::errno::Errno;
use tokio::time::Sleep;

/// How long accepting rests after it failed (out of descriptors, out of memory).
const REST: Duration = Duration::from_millis(200);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("make the directory {path}: {source}")]
    Directory { path: PathBuf, source: io::Error },
    #[error("listen on {path}: a running daemon answers there")]
    Answered { path: PathBuf },
    #[error("listen on {path}: it exists and is not a socket")]
    NotASocket { path: PathBuf },
    #[error("listen on {path}: {source}")]
    Listen { path: PathBuf, source: io::Error },
    #[error("listen on vsock port {port}: {source}")]
    Vsock { port: u32, source: io::Error },
}

impl Error {
    /// What to do next; empty if there is nothing to say.
    pub fn hint(&self) -> &'static str {
        match self {
            Error::Vsock { source, .. } => match source.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EAFNOSUPPORT) => {
                    "this kernel has no vsock: `modprobe vsock`, or take `vsock` out of [listen]"
                }
                Some(Errno::EADDRINUSE) => {
                    "something else listens there (`ss --vsock -lp`): choose another port for `vsock` in [listen]"
                }
                _ => "take `vsock` out of [listen] to start without it",
            },
            Error::Answered { .. } => "stop it first, or set another `unix` in [listen]",
            Error::Directory { .. } | Error::NotASocket { .. } | Error::Listen { .. } => "",
        }
    }
}

/// The rest after a failure to accept.
#[derive(Debug, Default)]
struct Rest(Option<Pin<Box<Sleep>>>);

impl Rest {
    fn begin(&mut self) {
        self.0 = Some(Box::pin(tokio::time::sleep(REST)));
    }

    /// Ready when there is nothing to rest from.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(rest) = &mut self.0 {
            ready!(rest.as_mut().poll(cx));
            self.0 = None;
        }
        Poll::Ready(())
    }
}
