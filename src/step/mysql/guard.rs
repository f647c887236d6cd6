//! Before a lock: what would it get stuck behind? Looked at while preparing, when nobody waits, and once more just before.
//!
//! MySQL's global lock first stops all writes and then waits for every running statement; a reader that needs the same
//! tables waits behind it, and if it fails those readers wait on. So there the guard must come before the lock. MariaDB's
//! backup stages wait for hardly anything: writes to tables without transactions, CREATE … SELECT, another backup.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    HOLD, Session,
    link::{Trouble, code, if_allowed},
    obstacle::{Holders, LONG, Obstacle, Running, Waits, of_row},
    strategy::Kind,
};
use crate::{
    proto::Severity,
    step::database::{Busy, Deadline, Error},
};

const POLL: Duration = Duration::from_millis(200);

/// How long after KILL QUERY a statement may take to end.
const KILL_WAIT: Duration = Duration::from_secs(2);

/// Some room for what comes after.
const ROOM: Duration = Duration::from_secs(1);

/// It has ended meanwhile.
const NO_SUCH_THREAD: u16 = 1094;

impl Session {
    /// Waits until nothing is in the way, for as long as `guard` allows.
    ///
    /// # Errors
    /// Something stayed in the way, and `busy` says to refuse then.
    pub(super) async fn guard(&mut self, deadline: Deadline) -> Result<(), Error> {
        let begun = Instant::now();
        let until = begun + self.target.guard.min(deadline.left().saturating_sub(ROOM));
        let mut found = self.look_for_obstacles(deadline).await?;
        while !found.is_empty() && Instant::now() < until {
            tokio::time::sleep(POLL).await;
            found = self.look_for_obstacles(deadline).await?;
        }
        if self.target.kill_queries && found.iter().any(|obstacle| obstacle.may_end) {
            self.end_queries(&found, deadline).await?;
            let until = Instant::now() + KILL_WAIT.min(deadline.left().saturating_sub(ROOM));
            while !found.is_empty() && Instant::now() < until {
                tokio::time::sleep(POLL).await;
                found = self.look_for_obstacles(deadline).await?;
            }
        }
        while !found.is_empty() {
            self.give_way(&found)?;
            found = self.look_for_obstacles(deadline).await?;
        }
        Ok(())
    }

    /// The last look: now it would be waited for with locks held.
    ///
    /// # Errors
    /// As [`Session::guard`].
    pub(super) async fn guard_once(&mut self, deadline: Deadline) -> Result<(), Error> {
        let found = self.look_for_obstacles(deadline).await?;
        if found.is_empty() { Ok(()) } else { self.give_way(&found) }
    }

    /// Holds with less, or refuses.
    fn give_way(&mut self, found: &[Obstacle]) -> Result<(), Error> {
        let (Some(first), more) = (found.first(), found.len() - 1) else { return Ok(()) };
        let why = if more == 0 { first.shown.clone() } else { format!("{}, and {more} more", first.shown) };
        let less = self.choice.kind.less(&self.server);
        match (self.target.busy, less) {
            (Busy::Degrade, Some(less)) => {
                self.degrade(less, &why);
                Ok(())
            }
            (Busy::Refuse, _) | (Busy::Degrade, None) => Err(Error {
                name: self.target.name.clone(),
                what: HOLD,
                why: format!("in the way of its lock is {why}"),
                hint: format!(
                    "wait for it, end it (KILL QUERY {}), raise `guard`, or let it be held with less (`busy`)",
                    first.id
                ),
            }),
        }
    }

    async fn look_for_obstacles(&mut self, deadline: Deadline) -> Result<Vec<Obstacle>, Error> {
        if self.choice.kind == Kind::FreezeOnly {
            return Ok(Vec::new());
        }
        if self.writers.is_none() {
            let hint = self.grant("PROCESS");
            let message =
                "what is in the way of its lock cannot be seen; the lock itself waits for no more than a few seconds";
            self.say(Severity::Warning, "GUARD_BLIND", message, hint);
            return Ok(Vec::new());
        }
        let found = self.obstacles(self.choice.kind, LONG, deadline).await;
        found.map_err(|failed| self.error("look at the statements of", failed))
    }

    /// Whom a lock that was waited for in vain got stuck behind, as far as it can be seen.
    pub(super) async fn who_was_it(&mut self, kind: Kind, deadline: Deadline) -> Option<String> {
        self.writers.as_ref()?;
        let found = self.obstacles(kind, 0, deadline).await.ok()?;
        found.into_iter().next().map(|obstacle| obstacle.shown)
    }

    /// The oldest first.
    async fn obstacles(&mut self, kind: Kind, long: u64, deadline: Deadline) -> Result<Vec<Obstacle>, Trouble> {
        let ours = [Some(self.link.id), self.second.as_ref().map(|second| second.id)];
        let rows = self.link.named(deadline, "SHOW FULL PROCESSLIST").await?;
        let mut running: Vec<Running> = rows.iter().map(of_row).collect();
        running.sort_by_key(|running| std::cmp::Reverse(running.seconds));
        let others = running.iter().filter(|running| !ours.iter().flatten().any(|id| u64::from(*id) == running.id));
        let holders = self.holders(kind, deadline).await?;
        let waits = Waits { kind, long, stages: self.server.has_stages(), tables: &self.tables };
        Ok(others.filter_map(|running| waits.for_it(running, &holders)).collect())
    }

    /// Idle sessions that keep a lock on what we want to lock: LOCK TABLES, or a transaction that wrote to such a table.
    async fn holders(&mut self, kind: Kind, deadline: Deadline) -> Result<Holders, Trouble> {
        let (lock, what) = match kind {
            Kind::GlobalLock => {
                ("l.OBJECT_TYPE = 'GLOBAL' AND l.LOCK_TYPE = 'INTENTION_EXCLUSIVE'".to_owned(), "LOCK TABLES")
            }
            Kind::TableLocks => {
                let named: Vec<String> =
                    self.tables.non_transactional.iter().map(super::tables::Table::literal).collect();
                let wanted = named.join(", ");
                let lock = format!(
                    "l.OBJECT_TYPE = 'TABLE' AND l.LOCK_TYPE NOT LIKE 'SHARED\\_READ%' AND l.LOCK_TYPE <> 'SHARED' \
                     AND l.LOCK_TYPE <> 'SHARED_HIGH_PRIO' AND (l.OBJECT_SCHEMA, l.OBJECT_NAME) IN ({wanted})"
                );
                (lock, "a lock on a table")
            }
            Kind::BackupStages | Kind::InstanceLock | Kind::FreezeOnly => return Ok(Holders::new()),
        };
        if self.server.is_mariadb() {
            return Ok(Holders::new());
        }
        let select = format!(
            "SELECT DISTINCT t.PROCESSLIST_ID FROM performance_schema.metadata_locks l \
             JOIN performance_schema.threads t ON t.THREAD_ID = l.OWNER_THREAD_ID \
             WHERE l.LOCK_STATUS = 'GRANTED' AND t.PROCESSLIST_ID <> CONNECTION_ID() AND {lock}"
        );
        let rows = if_allowed(self.link.table::<1>(deadline, &select).await)?.unwrap_or_default();
        Ok(rows.into_iter().filter_map(|[id]| Some((id.parse().ok()?, what))).collect())
    }

    /// Long SELECTs that are still what they were a moment ago.
    async fn end_queries(&mut self, found: &[Obstacle], deadline: Deadline) -> Result<(), Error> {
        let still = self.look_for_obstacles(deadline).await?;
        for obstacle in still.iter().filter(|now| now.may_end && found.iter().any(|then| then.id == now.id)) {
            match self.link.run(deadline, &format!("KILL QUERY {}", obstacle.id)).await {
                Ok(()) => {
                    let message = format!("ended, because it was in the way of the lock: {}", obstacle.shown);
                    self.say(Severity::Warning, "QUERY_ENDED", message, "");
                }
                Err(failed) if code(&failed) == Some(NO_SUCH_THREAD) => {}
                Err(failed) => {
                    let error = self.error("end a statement of", failed);
                    let hint = self.grant(self.server.privilege_to_kill());
                    self.say(Severity::Warning, "QUERY_NOT_ENDED", error.why, hint);
                }
            }
        }
        Ok(())
    }
}
