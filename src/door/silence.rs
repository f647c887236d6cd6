//! A connection that ends when its other end falls silent, for doors where nobody tells us: a host that vanished closes
//! nothing, and a caller that is stopped keeps its socket open.
//!
//! [`super::entrance`] has an HTTP/2 ping sent every [`ASK`]; whoever is there answers by itself. What counts as silence is
//! this machine's *own* time awake, in wake-ups, because hypervisors pause the whole machine while they cut, and in some the
//! clock goes on counting. After such a pause a timer of the transport has expired before the answer that waits in the
//! socket is read; here the pause is one late wake-up, like any other.
//!
//! ```text
//!   bytes ──QUIET──▶ 1 ──WAKE──▶ 2 … ──WAKE──▶ WAKES_MAX: reads fail with TimedOut
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

/// How often the other end is asked for a sign of life.
pub const ASK: Duration = Duration::from_secs(2);
/// Longer than a question and its answer take; then it is worth counting.
const QUIET: Duration = Duration::from_secs(3);
const WAKE: Duration = Duration::from_millis(500);
/// With the numbers above: five seconds of silence.
const WAKES_MAX: u32 = 5;

/// A stream that fails once its other end has been silent for too long.
pub struct Heard<S> {
    stream: S,
    next: Pin<Box<Sleep>>,
    wakes: u32,
}

impl<S> Heard<S> {
    /// The silence counts from now on. Needs a tokio runtime.
    pub fn new(stream: S) -> Self {
        Heard { stream, next: Box::pin(sleep(QUIET)), wakes: 0 }
    }

    fn heard(&mut self) {
        self.wakes = 0;
        self.next.as_mut().reset(Instant::now() + QUIET);
    }

    /// Ready when the silence has lasted; called whenever the stream itself has nothing for us.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        while self.wakes < WAKES_MAX {
            ready!(self.next.as_mut().poll(cx));
            self.wakes += 1;
            // from now, not from when it was due: what was missed is not made up for
            self.next.as_mut().reset(Instant::now() + WAKE);
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

    /// The most a silent end may stay: one question goes unanswered, then the wake-ups.
    const PATIENCE: Duration = Duration::from_secs(5);

    fn pair() -> (Heard<DuplexStream>, DuplexStream) {
        let (ours, theirs) = duplex(64);
        (Heard::new(ours), theirs)
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
        for _ in 0..WAKES_MAX - 1 {
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
