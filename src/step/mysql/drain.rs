//! Write transactions that are open: they are not in the copy. Waiting for those open now is what `drain` asks for;
//! newer ones are not waited for, and none is ended by us.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    Session,
    link::{Link, Trouble, if_allowed},
};
use crate::{proto::Severity, step::database::Deadline};

/// How often open transactions are looked at while draining. InnoDB answers from a copy it only renews when nobody has
/// looked for 100 ms (CACHE_MIN_IDLE_TIME_NS, storage/innobase/trx/trx0i_s.cc), so every look waits longer than that.
const DRAIN_POLL: Duration = Duration::from_millis(150);

/// Some room for what comes after.
const ROOM: Duration = Duration::from_secs(1);

/// A transaction that has written something and is not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Writer {
    id: String,
    /// how long it has been open
    age: Duration,
}

/// The open transactions that have written something; `None`: we may not know.
///
/// # Errors
/// The connection failed.
pub(super) async fn writers(link: &mut Link, deadline: Deadline) -> Result<Option<Vec<Writer>>, Trouble> {
    const WRITERS: &str = "SELECT trx_id, GREATEST(TIMESTAMPDIFF(SECOND, trx_started, NOW()), 0) \
                           FROM information_schema.INNODB_TRX WHERE trx_rows_modified > 0";
    let rows = if_allowed(link.table(deadline, WRITERS).await)?;
    let writer = |[id, age]: [String; 2]| Writer { id, age: Duration::from_secs(age.parse().unwrap_or(0)) };
    Ok(rows.map(|rows| rows.into_iter().map(writer).collect()))
}

/// How long the oldest has been open.
pub(super) fn oldest(writers: &[Writer]) -> Option<Duration> {
    writers.iter().map(|writer| writer.age).max()
}

impl Session {
    pub(super) async fn drain(&mut self, deadline: Deadline) -> Result<(), Trouble> {
        let begun = Instant::now();
        let until = begun + self.target.drain.min(deadline.left().saturating_sub(ROOM));
        let mut waited_for: Option<Vec<Writer>> = None;
        let left = loop {
            tokio::time::sleep(DRAIN_POLL).await;
            let Some(open) = writers(&mut self.link, deadline).await? else {
                let hint = self.grant("PROCESS");
                self.say(Severity::Warning, "NOT_DRAINED", "`drain` needs to see other sessions' transactions", hint);
                return Ok(());
            };
            let left: Vec<Writer> = match waited_for {
                None => open,
                Some(then) => open.into_iter().filter(|now| then.iter().any(|then| then.id == now.id)).collect(),
            };
            if left.is_empty() || Instant::now() >= until {
                break left;
            }
            waited_for = Some(left);
        };
        if let Some(age) = oldest(&left) {
            let message = format!(
                "{} still open after waiting {}, the oldest for {}: what they wrote will be absent after a restore",
                transactions(left.len()),
                humantime::format_duration(whole(begun.elapsed())),
                humantime::format_duration(age),
            );
            self.say(Severity::Warning, "NOT_DRAINED", message, "end them, or raise `drain`");
        }
        Ok(())
    }

    /// Notes what is open at the barrier.
    pub(super) async fn count_transactions(&mut self, deadline: Deadline) -> Result<(), Trouble> {
        self.writers = writers(&mut self.link, deadline).await?;
        Ok(())
    }
}

fn transactions(count: usize) -> String {
    if count == 1 { "a write transaction is".to_owned() } else { format!("{count} write transactions are") }
}

/// To the tenth of a second.
fn whole(duration: Duration) -> Duration {
    Duration::from_millis(u64::try_from(duration.as_millis() / 100 * 100).unwrap_or(u64::MAX))
}
