//! vsock: the machine's own wire to its host, without a network. Only the host may ask: its CID is 2, and no one else can
//! have that one. Neighbours, nested guests and programs in this machine (CID 1) are turned away.
//!
//! The gRPC door takes [`Connections`]; the guest-agent channel takes the bare [`Listener`].

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};
use tokio_stream::Stream;
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};
use tonic::transport::server::Connected;
use tracing::warn;

use super::{Error, Rest};
use crate::door::access::Peer;

/// How often those turned away are mentioned, however many there are.
const MENTION: Duration = Duration::from_secs(60);

/// A bound port, and what the log should say about it.
#[derive(Debug)]
pub struct Bound {
    pub listener: Listener,
    /// why the host cannot reach it yet
    pub note: Option<String>,
}

/// Listens on `port` for the host. Needs a tokio runtime.
///
/// # Errors
/// This kernel has no vsock, or the port is taken: vsock(7).
pub fn bind(port: u32) -> Result<Bound, Error> {
    let socket = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port));
    let socket = socket.map_err(|source| Error::Vsock { port, source })?;
    let note = (!reachable(vsock::get_local_cid())).then(|| {
        format!(
            "vsock port {port}: the host cannot reach it until this machine has a vsock device (and its driver: \
             `modprobe vmw_vsock_virtio_transport`)"
        )
    });
    Ok(Bound { listener: Listener { socket, port, rest: Rest::default(), turned_away: TurnedAway::default() }, note })
}

/// Whether this machine has an address its host knows. Without a device of its own its CID is any, 1 (loopback) or 2
/// (it is a host itself); a port can be bound all the same, and is reached as soon as there is a device.
fn reachable(cid: io::Result<u32>) -> bool {
    cid.is_ok_and(|cid| cid > VMADDR_CID_HOST && cid != VMADDR_CID_ANY)
}

/// A listening port that yields the host's connections alone.
#[derive(Debug)]
pub struct Listener {
    socket: VsockListener,
    port: u32,
    rest: Rest,
    turned_away: TurnedAway,
}

impl Listener {
    /// The next connection of the host. A failure to accept is logged and rested on.
    pub async fn accept(&mut self) -> VsockStream {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<VsockStream> {
        loop {
            ready!(self.rest.poll(cx));
            match ready!(self.socket.poll_accept(cx)) {
                Ok((stream, from)) if from.cid() == VMADDR_CID_HOST => return Poll::Ready(stream),
                Ok((_, from)) => {
                    if let Some(count) = self.turned_away.one_more(Instant::now()) {
                        let (cid, port) = (from.cid(), self.port);
                        warn!(cid, port, count, "only the host (CID 2) may ask over vsock: turned away");
                    }
                }
                Err(e) => {
                    warn!(error = %e, port = self.port, "a vsock connection could not be accepted");
                    self.rest.begin();
                }
            }
        }
    }
}

/// Counts those turned away between two mentions, so that nobody can fill the log.
#[derive(Debug, Default)]
struct TurnedAway {
    count: u64,
    mentioned: Option<Instant>,
}

impl TurnedAway {
    /// How many there were since the last mention, if it is time for one.
    fn one_more(&mut self, now: Instant) -> Option<u64> {
        self.count += 1;
        if self.mentioned.is_some_and(|at| now < at + MENTION) {
            return None;
        }
        self.mentioned = Some(now);
        Some(std::mem::take(&mut self.count))
    }
}

/// The host's connections, without end, for [`crate::door::entrance`].
pub struct Connections(Listener);

impl From<Listener> for Connections {
    fn from(listener: Listener) -> Self {
        Connections(listener)
    }
}

impl Stream for Connections {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_accept(cx).map(|stream| Some(Ok(Connection(stream))))
    }
}

/// One connection of the host.
#[derive(Debug)]
pub struct Connection(VsockStream);

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        Peer::host()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;

    #[test]
    fn without_a_device_of_its_own_a_machine_cannot_be_reached() {
        for cid in [VMADDR_CID_ANY, 1, VMADDR_CID_HOST] {
            assert!(!reachable(Ok(cid)), "{cid}");
        }
        assert!(!reachable(Err(Errno::ENOENT.into())), "no /dev/vsock");
        assert!(reachable(Ok(3)));
    }

    #[test]
    fn a_port_that_cannot_be_had_is_said_with_what_to_do() {
        let error = |errno: Errno| Error::Vsock { port: 7411, source: errno.into() };
        assert!(error(Errno::EAFNOSUPPORT).to_string().starts_with("listen on vsock port 7411: Address family not"));
        assert!(error(Errno::EAFNOSUPPORT).hint().contains("`modprobe vsock`"));
        assert!(error(Errno::EADDRINUSE).hint().contains("choose another port"));
    }

    #[test]
    fn however_many_are_turned_away_the_log_hears_once_a_minute() {
        let mut turned_away = TurnedAway::default();
        let begun = Instant::now();
        assert_eq!(turned_away.one_more(begun), Some(1));
        for n in 1..1000 {
            assert_eq!(turned_away.one_more(begun + Duration::from_millis(59 * n)), None);
        }
        assert_eq!(turned_away.one_more(begun + MENTION), Some(1000));
    }
}
