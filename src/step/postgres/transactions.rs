//! Write transactions that are open: waited for while preparing, counted at the barrier. None is ever ended by us.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    super::database::Deadline,
    connect::{Login, Refused, text},
};

/// How often open transactions are looked at while draining.
const POLL: Duration = Duration::from_millis(100);

/// Transactions that have written something. Autovacuum's are nobody's loss: it does its work again.
const WRITING: &str = "FROM pg_stat_activity
     WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() AND backend_type <> 'autovacuum worker'";

/// What is open at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Open {
    pub writing: u32,
    /// since the oldest of them began
    pub oldest: Option<Duration>,
    /// prepared for two-phase commit, in all databases
    pub prepared: u32,
    /// since the oldest of these was prepared
    pub oldest_prepared: Option<Duration>,
}

impl Open {
    pub(super) async fn read(login: &Login, deadline: Deadline) -> Result<Open, Refused> {
        let sql = format!(
            "SELECT w.count, w.oldest, p.count AS prepared, p.oldest AS oldest_prepared FROM
                (SELECT count(*)::text AS count, extract(epoch FROM clock_timestamp() - min(xact_start))::text AS oldest
                 {WRITING}) w,
                (SELECT count(*)::text AS count, extract(epoch FROM clock_timestamp() - min(prepared))::text AS oldest
                 FROM pg_prepared_xacts) p"
        );
        let row = login.row(deadline, &sql).await?;
        let count = |column| text(&row, column).parse().unwrap_or(0);
        Ok(Open {
            writing: count("count"),
            oldest: seconds(text(&row, "oldest")),
            prepared: count("prepared"),
            oldest_prepared: seconds(text(&row, "oldest_prepared")),
        })
    }
}

/// May this login see what others are doing? Without it every count is 0.
pub(super) async fn visible(login: &Login, deadline: Deadline) -> Result<bool, Refused> {
    let row = login.row(deadline, "SELECT pg_has_role('pg_read_all_stats', 'USAGE')::text AS visible").await?;
    Ok(text(&row, "visible") == "true")
}

/// The outcome of waiting.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Drained {
    Empty,
    /// so many of those waited for are still open, the oldest for so long
    Left {
        count: usize,
        oldest: Duration,
    },
}

/// Waits for the write transactions that are open now; newer ones are not waited for.
pub(super) async fn drain(login: &Login, patience: Duration, deadline: Deadline) -> Result<Drained, Refused> {
    let sql = format!(
        "SELECT backend_xid::text AS xid, extract(epoch FROM clock_timestamp() - xact_start)::text AS age {WRITING}"
    );
    let writers = async || -> Result<Vec<(String, Duration)>, Refused> {
        let rows = login.rows(deadline, &sql).await?;
        let age = |row| seconds(text(row, "age")).unwrap_or_default();
        Ok(rows.iter().map(|row| (text(row, "xid").to_owned(), age(row))).collect())
    };
    let until = Instant::now() + patience;
    let mut waited_for = writers().await?;
    while !waited_for.is_empty() && Instant::now() < until {
        tokio::time::sleep_until(until.min(Instant::now() + POLL)).await;
        let open = writers().await?;
        waited_for = open.into_iter().filter(|(xid, _)| waited_for.iter().any(|(was, _)| was == xid)).collect();
    }
    Ok(match waited_for.iter().map(|(_, age)| *age).max() {
        Some(oldest) => Drained::Left { count: waited_for.len(), oldest },
        None => Drained::Empty,
    })
}

/// SQL's seconds with their fraction; a clock that was set back does not make them negative.
fn seconds(text: &str) -> Option<Duration> {
    let seconds: f64 = text.parse().ok()?;
    Duration::try_from_secs_f64(seconds.max(0.0)).ok()
}

/// "2 write transactions", "1 write transaction".
pub(super) fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// "3m 20s", and to the millisecond below one second.
pub(super) fn span(time: Duration) -> humantime::FormattedDuration {
    let rough = if time < Duration::from_secs(1) {
        Duration::from_millis(time.as_millis().try_into().unwrap_or(u64::MAX))
    } else {
        Duration::from_secs(time.as_secs())
    };
    humantime::format_duration(rough)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_read_as_sql_prints_them() {
        assert_eq!(seconds("12.500000"), Some(Duration::from_millis(12_500)));
        assert_eq!(seconds("-3.1"), Some(Duration::ZERO), "the clock was set back");
        assert_eq!(seconds(""), None);
        assert_eq!(span(Duration::from_micros(200_500_700)).to_string(), "3m 20s");
        assert_eq!(span(Duration::from_micros(250_700)).to_string(), "250ms");
        assert_eq!((counted(1, "row"), counted(2, "row")), ("1 row".to_owned(), "2 rows".to_owned()));
    }
}
