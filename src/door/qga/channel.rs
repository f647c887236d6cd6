//! One connection: read, answer, write, in that order and one at a time. While an answer is on its way nothing more is
//! read, so a host that does not read its answers costs no memory: its requests wait on its own side.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite},
    time::{Instant, sleep_until},
};

use super::{agent::Agent, wire::Framer};

/// How much is read at once, in bytes.
const CHUNK: usize = 4096;
/// How many requests may come at once; then one every [`PACE`].
const BURST: u32 = 1000;
const PACE: Duration = Duration::from_millis(1);

/// The two directions of a connection to a host.
pub trait Line: AsyncRead + AsyncWrite + Unpin + Send {
    /// Did the other end hang up since this was last asked? What it had half sent will not be finished.
    fn hung_up(&mut self) -> bool {
        false
    }
}

/// Serves one connection until the other end is gone. A port that outlives its hosts never ends.
///
/// # Errors
/// Those of reading and writing.
pub async fn serve<L: Line>(line: &mut L, agent: &mut Agent) -> io::Result<()> {
    let mut framer = Framer::default();
    let mut pace = Pace::new(Instant::now());
    let mut chunk = [0; CHUNK];
    loop {
        let read = line.read(&mut chunk).await?;
        if line.hung_up() {
            framer.forget();
        }
        if read == 0 {
            return Ok(());
        }
        let mut rest = &chunk[..read];
        while !rest.is_empty() {
            let (taken, frame) = framer.take(rest);
            rest = &rest[taken..];
            if let Some(frame) = frame {
                sleep_until(pace.next(Instant::now())).await;
                agent.answer(frame, line).await?;
            }
        }
    }
}

/// Slows down who asks too often; never refuses.
struct Pace {
    /// when a full burst is there again
    full_at: Instant,
}

impl Pace {
    fn new(now: Instant) -> Pace {
        Pace { full_at: now }
    }

    /// When the next request may be answered.
    fn next(&mut self, now: Instant) -> Instant {
        self.full_at = self.full_at.max(now) + PACE;
        (self.full_at - PACE * BURST).max(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_free_and_then_one_request_a_millisecond() {
        let start = Instant::now() + Duration::from_secs(60);
        let mut pace = Pace::new(start);
        for _ in 0..BURST {
            assert_eq!(pace.next(start), start);
        }
        assert_eq!(pace.next(start), start + PACE);
        assert_eq!(pace.next(start), start + PACE * 2);
        let later = start + Duration::from_secs(2);
        assert_eq!(pace.next(later), later, "rest pays back");
    }
}
