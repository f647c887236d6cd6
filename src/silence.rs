//! A connection that ends when its other end falls silent, for wires where nobody tells us: a machine that vanished closes
//! nothing, and a program that is stopped keeps its socket open. Worn by the daemon's end of a connection with a far caller
//! ([`crate::door::entrance`]) and by the client's end of one with a guest.
//!
//! The daemon has an HTTP/2 ping sent every [`ASK`]; whoever is there answers by itself. So both ends hear something at least
//! that often. The client does not ask: vhost-device-vsock 0.3.0 loses the whole wire when something is sent to a guest that
//! is paused.
//!
//! What counts as silence is this process's *own* time awake, in wake-ups, because hypervisors pause the whole machine while
//! they cut, and in some the clock goes on counting. After such a pause a timer of the transport has expired before the
//! answer that waits in the socket is read; here the pause is one late wake-up, like any other.
//!
//! ```text
//!   bytes ──quiet──▶ 1 ──wake──▶ 2 … ──wake──▶ wakes_max: reads fail with TimedOut
//!     ▲                  bytes                │
//!     └───────────────────────────────────────┘
//! ```
//!
//! While answers come there is no wake-up but theirs, and while nobody is connected there is none at all.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};
use tonic::transport::server::Connected;

/// How often the daemon asks a far caller for a sign of life.
pub const ASK: Duration = Duration::from_secs(2);

/// How long an end may be silent.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// longer than a question and its answer take; then it is worth counting
    quiet: Duration,
    wake: Duration,
    wakes_max: u32,
}

/// With a caller: five seconds. Writers may be waiting.
pub const WITH_A_CALLER: Patience =
    Patience { quiet: Duration::from_secs(3), wake: Duration::from_millis(500), wakes_max: 5 };
/// With a guest: two minutes. It may be paused while its memory is saved.
pub const WITH_A_GUEST: Patience =
    Patience { quiet: Duration::from_secs(10), wake: Duration::from_secs(10), wakes_max: 12 };

/// A stream that fails once its other end has been silent for too long.
pub struct Heard<S> {
    stream: S,
    patience: Patience,
    next: Pin<Box<Sleep>>,
    wakes: u32,
}

impl<S> Heard<S> {
    /// The silence counts from now on. Needs a tokio runtime.
    pub fn new(stream: S, patience: Patience) -> Self {
        Heard { stream, patience, next: Box::pin(sleep(patience.quiet)), wakes: 0 }
    }

    fn heard(&mut self) {
        self.wakes = 0;
        let next = Instant::now() + self.patience.quiet;
        self.next.as_mut().reset(next);
    }

    /// Ready when the silence has lasted; called whenever the stream itself has nothing for us.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        while self.wakes < self.patience.wakes_max {
            ready!(self.next.as_mut().poll(cx));
            self.wakes += 1;
            // from now, not from when it was due: what was missed is not made up for
            let next = Instant::now() + self.patience.wake;
            self.next.as_mut().reset(next);
        }
        Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "the other end has fallen silent"))
    }
}

impl<S: Connected> Connected for Heard<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Heard<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
            Poll::Ready(result) => {
                self.heard();
                Poll::Ready(result)
            }
            Poll::Pending => self.poll_silence(cx).map(Err),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heard<S> {
    /// A stream too full to be written to is not read from either by those above: so the silence must be noticed here, too.
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.stream).poll_write(cx, buf) {
            Poll::Ready(result) => Poll::Ready(result),
            Poll::Pending => self.poll_silence(cx).map(Err),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
        time::advance,
    };

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    fn pair() -> (Heard<DuplexStream>, DuplexStream) {
        let (ours, theirs) = duplex(64);
        (Heard::new(ours, WITH_A_CALLER), theirs)
    }

    #[tokio::test(start_paused = true)]
    async fn five_seconds_of_silence_end_a_connection() {
        let (mut ours, _theirs) = pair();
        let begun = Instant::now();
        let error = ours.read_u8().await.unwrap_err();
        assert_eq!((error.kind(), begun.elapsed().as_secs()), (io::ErrorKind::TimedOut, PATIENCE.as_secs()));
        assert_eq!(ours.read_u8().await.unwrap_err().kind(), io::ErrorKind::TimedOut, "and it stays so");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_says_something_now_and_then_is_there() {
        let (mut ours, mut theirs) = pair();
        for said in 0..100 {
            tokio::time::sleep(Duration::from_millis(4900)).await;
            theirs.write_u8(said).await.unwrap();
            assert_eq!(ours.read_u8().await.unwrap(), said);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn paused_for_an_hour_with_an_answer_waiting_it_is_there() {
        let (ours, mut theirs) = pair();
        let reading = tokio::spawn(async move {
            let mut ours = ours;
            (ours.read_u8().await, ours)
        });
        tokio::task::yield_now().await;
        theirs.write_u8(7).await.unwrap();
        advance(Duration::from_secs(3600)).await;
        let (read, _) = reading.await.unwrap();
        assert_eq!(read.unwrap(), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_counts_as_one_moment_however_long_and_how_often() {
        let (mut ours, mut theirs) = pair();
        // all of it without a byte; each pause is one late wake-up, and the answer has the time of those left
        for _ in 0..WITH_A_CALLER.wakes_max - 1 {
            let mut cx = Context::from_waker(std::task::Waker::noop());
            let mut byte = [0];
            let mut buffer = ReadBuf::new(&mut byte);
            assert!(Pin::new(&mut ours).poll_read(&mut cx, &mut buffer).is_pending());
            advance(Duration::from_secs(3600)).await;
        }
        theirs.write_u8(7).await.unwrap();
        assert_eq!(ours.read_u8().await.unwrap(), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_reads_nothing_any_more_is_noticed_while_writing() {
        let (mut ours, _theirs) = pair();
        let begun = Instant::now();
        let error = ours.write_all(&[0; 65]).await.unwrap_err();
        assert_eq!((error.kind(), begun.elapsed().as_secs()), (io::ErrorKind::TimedOut, PATIENCE.as_secs()));
    }
}
