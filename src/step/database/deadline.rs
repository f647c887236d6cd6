//! Every await of a session has an end.

use std::{io, time::Duration};

use tokio::time::Instant;

/// The end of a call's time. Every await of a session goes through one.
#[derive(Debug, Clone, Copy)]
pub(in crate::step) struct Deadline {
    at: Instant,
    limit: Duration,
}

/// Why an awaited answer did not come.
#[derive(Debug)]
pub(in crate::step) enum Failed<E> {
    /// the limit, as it was given to the whole call
    TimedOut(Duration),
    Refused(E),
}

impl Deadline {
    pub(in crate::step) fn after(limit: Duration) -> Deadline {
        Deadline { at: Instant::now() + limit, limit }
    }

    /// The earlier of this one and `limit` from now.
    pub(in crate::step) fn at_most(self, limit: Duration) -> Deadline {
        let sooner = Deadline::after(limit);
        if sooner.at < self.at { sooner } else { self }
    }

    pub(in crate::step) fn left(self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    pub(in crate::step) async fn run<T, E>(self, answer: impl Future<Output = Result<T, E>>) -> Result<T, Failed<E>> {
        match tokio::time::timeout_at(self.at, answer).await {
            Ok(answer) => answer.map_err(Failed::Refused),
            Err(_) => Err(Failed::TimedOut(self.limit)),
        }
    }
}

/// Looks at files (a socket's owner, a password) on a thread that may block.
pub(in crate::step) async fn look<T: Send + 'static>(
    deadline: Deadline,
    what: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Failed<io::Error>> {
    deadline
        .run(async { tokio::task::spawn_blocking(what).await.unwrap_or_else(|error| Err(io::Error::other(error))) })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_sooner_limit_does_not_extend_a_deadline() {
        let deadline = Deadline::after(Duration::from_secs(1));
        assert_eq!(deadline.at_most(Duration::from_secs(9)).left(), Duration::from_secs(1));
        assert_eq!(deadline.at_most(Duration::from_millis(9)).left(), Duration::from_millis(9));
        let late = deadline.run(std::future::pending::<Result<(), ()>>()).await;
        assert!(matches!(late, Err(Failed::TimedOut(limit)) if limit == Duration::from_secs(1)));
    }
}
