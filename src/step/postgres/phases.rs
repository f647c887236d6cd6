//! What a session does before the freeze: preparing, while nobody waits; then the barrier.

use std::time::Duration;

use tokio_postgres::error::SqlState;

use super::{
    super::database::{Deadline, Error, Failed, coordinate},
    Session,
    backup::{self, Started},
    connect::{Refused, text},
    explain::{BACKUP, CHECKPOINT, DRAIN, FLUSH, HOLD, LOOK},
    identity::Identity,
    position::{self, value},
    strategy::Held,
    transactions::{self, Drained, Open, counted, span},
};
use crate::proto::{self, Severity};

/// What a checkpoint leaves of its limit, so that its cancellation is an answer and the session stays usable.
const CANCEL_ROOM: Duration = Duration::from_millis(500);

const NO_CHECKPOINT: &str = "no checkpoint could be made, so the copy has more to recover";

impl Session {
    pub(in crate::step) async fn soften(&mut self, deadline: Deadline) -> Result<(), Error> {
        let what = if self.held == Held::BackupMode { BACKUP } else { CHECKPOINT };
        let budget = deadline.left().saturating_sub(CANCEL_ROOM).max(Duration::from_millis(1));
        let limit = |time: u128| format!("SET statement_timeout = {}", time.min(i32::MAX as u128));
        self.login.run(deadline, &limit(budget.as_millis())).await.map_err(|failed| self.error(what, failed))?;
        if self.held == Held::BackupMode {
            self.start_backup(budget, deadline).await?;
        } else {
            self.checkpoint(budget, deadline).await?;
        }
        self.login.run(deadline, &limit(0)).await.map_err(|failed| self.error(what, failed))?;
        if !self.target.drain.is_zero() && !self.identity.in_recovery {
            self.drain(deadline).await.map_err(|failed| self.error(DRAIN, failed))?;
        }
        Ok(())
    }

    /// On a standby it is a restartpoint.
    async fn checkpoint(&mut self, budget: Duration, deadline: Deadline) -> Result<(), Error> {
        match self.login.run(deadline, "CHECKPOINT").await {
            Ok(()) => {}
            Err(Failed::Refused(error)) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                let hint = if self.major >= 15 {
                    format!("GRANT pg_checkpoint TO \"{}\"", self.login.user)
                } else {
                    "before version 15 only a superuser may: set `user` to one".to_owned()
                };
                self.say(Severity::Warning, "CHECKPOINT_NOT_PERMITTED", NO_CHECKPOINT, hint);
            }
            Err(Failed::Refused(error)) if error.code() == Some(&SqlState::QUERY_CANCELED) => {
                let message = format!("{NO_CHECKPOINT}: it did not end within {budget:?}");
                self.say(Severity::Warning, "CHECKPOINT_UNFINISHED", message, "give it more time with [hold] prepare");
            }
            Err(failed) => return Err(self.error(CHECKPOINT, failed)),
        }
        Ok(())
    }

    async fn start_backup(&mut self, budget: Duration, deadline: Deadline) -> Result<(), Error> {
        let started = backup::start(&self.login, self.major, &self.hold_id, deadline).await;
        self.backup = Some(started.map_err(|failed| match failed {
            Failed::Refused(error) if error.code() == Some(&SqlState::QUERY_CANCELED) => Error {
                name: self.target.name.clone(),
                what: BACKUP,
                why: format!("its checkpoint did not end within {budget:?}"),
                hint: "give it more time with [hold] prepare".to_owned(),
            },
            failed => self.error(BACKUP, failed),
        })?);
        Ok(())
    }

    async fn drain(&mut self, deadline: Deadline) -> Result<(), Refused> {
        let patience = self.target.drain.min(deadline.left().saturating_sub(CANCEL_ROOM));
        match transactions::drain(&self.login, patience, deadline).await? {
            Drained::Empty => {}
            Drained::Left { count, oldest } => {
                let message = format!(
                    "{} stayed open for all of `drain`, the oldest for {}: what they do will be absent after a restore",
                    counted(count, "write transaction"),
                    span(oldest)
                );
                self.say(Severity::Warning, "NOT_DRAINED", message, "end them, or give `drain` more time");
            }
        }
        Ok(())
    }

    pub(in crate::step) async fn hold(&mut self, _hold_id: &str, deadline: Deadline) -> Result<(), Error> {
        let now = Identity::read(&self.login, &self.identity, deadline).await;
        let now = now.map_err(|failed| self.error(HOLD, failed))?;
        let why = match self.identity.changed(&now) {
            Some(why) => why,
            None if self.held == Held::BackupMode && self.backup.is_none() => "no backup of it was started",
            None => return Ok(()),
        };
        let hint = "try again when it has settled".to_owned();
        Err(Error { name: self.target.name.clone(), what: HOLD, why: why.to_owned(), hint })
    }

    pub(in crate::step) async fn barrier(&mut self, hold_id: &str, deadline: Deadline) -> Result<(), Error> {
        let start = self.start_coordinates(hold_id, deadline).await;
        let start = start.map_err(|failed| self.error(FLUSH, failed))?;
        if !position::reached_marker(&start) {
            return Err(Error {
                name: self.target.name.clone(),
                what: FLUSH,
                why: "it confirmed a synchronous commit that is not in its log on disk".to_owned(),
                hint: "look at the server's log and disks".to_owned(),
            });
        }
        if self.open.prepared > 0 {
            let since = self.open.oldest_prepared.map(|age| format!(", the oldest for {}", span(age)));
            let message = format!(
                "{} waiting to be decided{}: in the copy they still wait, and keep their locks",
                counted(self.open.prepared as usize, "prepared transaction"),
                since.unwrap_or_default()
            );
            let hint =
                "SELECT gid, prepared, database FROM pg_prepared_xacts; then COMMIT PREPARED or ROLLBACK PREPARED";
            self.say(Severity::Note, "PREPARED_TRANSACTIONS", message, hint);
        }
        self.start = start;
        Ok(())
    }

    /// As at the barrier, but for the marker, which would be a write. Besides, when the server was started: `started`.
    pub(in crate::step) async fn now(&mut self, deadline: Deadline) -> Result<Vec<proto::Coordinate>, Error> {
        let mut now = vec![coordinate("in_recovery", self.identity.in_recovery.to_string())];
        now.extend(self.system_identifier.map(|id| coordinate("system_identifier", id.to_string())));
        let read = async {
            now.extend(position::read(&self.login, self.identity.in_recovery, deadline).await?);
            let sql = "SELECT floor(extract(epoch FROM pg_postmaster_start_time()))::bigint::text AS started";
            let row = self.login.row(deadline, sql).await?;
            now.push(coordinate("started", text(&row, "started")));
            Ok(now)
        };
        read.await.map_err(|failed| self.error(LOOK, failed))
    }

    async fn start_coordinates(
        &mut self,
        hold_id: &str,
        deadline: Deadline,
    ) -> Result<Vec<proto::Coordinate>, Refused> {
        // In this order: what commits after the marker may be missing, so nothing slow comes after it.
        self.open = Open::read(&self.login, deadline).await?;
        let mut start = vec![coordinate("in_recovery", self.identity.in_recovery.to_string())];
        start.extend(self.system_identifier.map(|id| coordinate("system_identifier", id.to_string())));
        start.extend(self.backup.as_ref().map(Started::coordinate));
        if self.held.marks(self.identity.in_recovery) {
            start.push(position::mark(&self.login, hold_id, deadline).await?);
        }
        let position = position::read(&self.login, self.identity.in_recovery, deadline).await?;
        self.identity.timeline = value(&position, "timeline").map(str::to_owned);
        start.extend(position);
        Ok(start)
    }
}
