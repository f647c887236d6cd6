//! Before a lock: what would it get stuck behind? Looked at while preparing, when nobody waits, and once more just before.
//!
//! MySQL's global lock first stops all writes and then waits for every running statement; a reader that needs the same
//! tables waits behind it, and if it fails those readers wait on. So there the guard must come before the lock. MariaDB's
//! backup stages wait for hardly anything: writes to tables without transactions, CREATE … SELECT, another backup.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use super::{
    HOLD, Session,
    link::{Trouble, code, if_allowed},
    statement::{Verb, only_reads, shown, uses_tables, verb},
    strategy::Kind,
    tables::Tables,
};
use crate::{
    proto::Severity,
    step::database::{Busy, Deadline, Error},
};

const POLL: Duration = Duration::from_millis(200);

/// A statement that has run for so long, in seconds, is not expected to end by itself soon.
const LONG: u64 = 2;

/// How long after KILL QUERY a statement may take to end.
const KILL_WAIT: Duration = Duration::from_secs(2);

/// Some room for what comes after.
const ROOM: Duration = Duration::from_secs(1);

/// It has ended meanwhile.
const NO_SUCH_THREAD: u16 = 1094;

/// A session as SHOW FULL PROCESSLIST tells it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Running {
    id: u64,
    user: String,
    command: String,
    seconds: u64,
    statement: String,
}

/// Somebody in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Obstacle {
    id: u64,
    /// it only reads: ending it loses nobody anything but the answer
    may_end: bool,
    shown: String,
}

/// What idle sessions have locked: process list id and what.
type Holders = BTreeMap<u64, &'static str>;

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
        let found = self.obstacles(deadline).await;
        found.map_err(|failed| self.error("look at the statements of", failed))
    }

    async fn obstacles(&mut self, deadline: Deadline) -> Result<Vec<Obstacle>, Trouble> {
        let kind = self.choice.kind;
        let ours = [Some(self.link.id), self.second.as_ref().map(|second| second.id)];
        let rows = self.link.named(deadline, "SHOW FULL PROCESSLIST").await?;
        let running: Vec<Running> = rows.iter().map(of_row).collect();
        let others = running.iter().filter(|running| !ours.iter().flatten().any(|id| u64::from(*id) == running.id));
        let holders = self.holders(kind, deadline).await?;
        let waits = Waits { kind, stages: self.server.has_stages(), tables: &self.tables };
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
                    let privilege = if self.server.has_instance_lock() { "CONNECTION_ADMIN" } else { "SUPER" };
                    let hint = self.grant(privilege);
                    self.say(Severity::Warning, "QUERY_NOT_ENDED", error.why, hint);
                }
            }
        }
        Ok(())
    }
}

fn of_row(row: &BTreeMap<String, String>) -> Running {
    let of = |name: &str| row.get(name).cloned().unwrap_or_default();
    Running {
        id: of("id").parse().unwrap_or(0),
        user: of("user"),
        command: of("command"),
        seconds: of("time").parse().unwrap_or(0),
        statement: of("info"),
    }
}

/// What a lock of this kind waits for.
struct Waits<'a> {
    kind: Kind,
    /// a MariaDB whose locks wait for no reader
    stages: bool,
    tables: &'a Tables,
}

impl Waits<'_> {
    fn for_it(&self, running: &Running, holders: &Holders) -> Option<Obstacle> {
        let obstacle = |shown: String| {
            let may_end = only_reads(&running.statement);
            Some(Obstacle { id: running.id, may_end, shown })
        };
        let of = format!("of user {} for {} s", running.user, running.seconds);
        if running.command == "Sleep" {
            let what = holders.get(&running.id)?;
            return obstacle(format!("{what}, kept by an idle session {of}"));
        }
        // What applies changes from elsewhere has a time of its own; of its statements only those on tables count.
        let ours = matches!(running.command.as_str(), "Query" | "Execute");
        let applier = running.user == "system user";
        if running.statement.is_empty() || !(ours || applier) {
            return None;
        }
        let statement = running.statement.as_str();
        let long = running.seconds >= LONG && !applier;
        let on_these = || self.tables.non_transactional.iter().any(|table| table.is_named_in(statement));
        let in_the_way = match (self.kind, verb(statement)) {
            (Kind::FreezeOnly, _) => false,
            (Kind::InstanceLock, verb) => matches!(verb, Verb::Ddl | Verb::CreateSelect),
            (Kind::BackupStages, verb) | (Kind::GlobalLock, verb) if self.stages => match verb {
                Verb::CreateSelect => true,
                Verb::Lock => statement.to_ascii_uppercase().contains("BACKUP"),
                Verb::Write => long && on_these(),
                Verb::Select | Verb::Ddl | Verb::Other => false,
            },
            (Kind::BackupStages | Kind::GlobalLock, Verb::Ddl | Verb::CreateSelect | Verb::Lock) => true,
            (Kind::BackupStages | Kind::GlobalLock, _) => long && uses_tables(statement),
            (Kind::TableLocks, Verb::Ddl | Verb::CreateSelect | Verb::Lock) => true,
            (Kind::TableLocks, _) => long && (on_these() || holders.contains_key(&running.id)),
        };
        if !in_the_way {
            return None;
        }
        obstacle(format!("a statement {of}: {}", shown(statement)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running(seconds: u64, statement: &str) -> Running {
        Running { id: 7, user: "app".to_owned(), command: "Query".to_owned(), seconds, statement: statement.to_owned() }
    }

    fn waits(kind: Kind, stages: bool, running: &Running) -> bool {
        let tables = Tables::of(&[("app", "log", "MyISAM")]);
        Waits { kind, stages, tables: &tables }.for_it(running, &Holders::new()).is_some()
    }

    const LONG_SELECT: &str = "SELECT * FROM app.t WHERE a = 'secret'";

    #[test]
    fn mysqls_global_lock_waits_for_every_long_statement_and_mariadbs_for_no_reader() {
        assert!(waits(Kind::GlobalLock, false, &running(30, LONG_SELECT)));
        assert!(!waits(Kind::GlobalLock, false, &running(1, LONG_SELECT)), "it ends soon");
        assert!(!waits(Kind::GlobalLock, false, &running(30, "SELECT SLEEP(60)")), "it uses no table");
        assert!(waits(Kind::GlobalLock, false, &running(0, "ALTER TABLE t ADD x int")));
        for kind in [Kind::GlobalLock, Kind::BackupStages] {
            assert!(!waits(kind, true, &running(30, LONG_SELECT)));
            assert!(!waits(kind, true, &running(30, "ALTER TABLE t ADD x int")));
            assert!(!waits(kind, true, &running(30, "INSERT INTO app.t SELECT * FROM u")));
            assert!(waits(kind, true, &running(30, "INSERT INTO app.log SELECT * FROM u")));
            assert!(waits(kind, true, &running(0, "CREATE TABLE x AS SELECT * FROM u")));
        }
    }

    #[test]
    fn the_instance_lock_waits_for_ddl_and_table_locks_for_these_tables() {
        assert!(waits(Kind::InstanceLock, false, &running(0, "OPTIMIZE TABLE t")));
        assert!(!waits(Kind::InstanceLock, false, &running(30, LONG_SELECT)));
        assert!(!waits(Kind::TableLocks, false, &running(30, LONG_SELECT)));
        assert!(waits(Kind::TableLocks, false, &running(30, "SELECT COUNT(*) FROM log")));
        assert!(waits(Kind::TableLocks, false, &running(0, "FLUSH TABLES")));
        for statement in [LONG_SELECT, "ALTER TABLE t ADD x int", "FLUSH TABLES"] {
            assert!(!waits(Kind::FreezeOnly, false, &running(30, statement)));
        }
    }

    #[test]
    fn an_idle_session_is_in_the_way_only_by_what_it_keeps_locked() {
        let idle = Running { command: "Sleep".to_owned(), ..running(9, "") };
        assert!(!waits(Kind::GlobalLock, false, &idle));
        let tables = Tables::default();
        let waits = Waits { kind: Kind::GlobalLock, stages: false, tables: &tables };
        let found = waits.for_it(&idle, &Holders::from([(7, "LOCK TABLES")])).expect("it keeps tables locked");
        assert_eq!(found.shown, "LOCK TABLES, kept by an idle session of user app for 9 s");
        assert!(!found.may_end);
    }

    #[test]
    fn the_server_s_own_threads_are_not_statements_in_the_way() {
        let dump = Running { command: "Binlog Dump GTID".to_owned(), ..running(999, "") };
        let daemon = Running { command: "Daemon".to_owned(), ..running(999, "Waiting on empty queue") };
        let applier = Running { user: "system user".to_owned(), ..running(999, "INSERT INTO t VALUES (1)") };
        for running in [dump, daemon, applier.clone()] {
            assert!(!waits(Kind::GlobalLock, false, &running), "{running:?}");
        }
        assert!(waits(
            Kind::GlobalLock,
            false,
            &Running { statement: "ALTER TABLE t ADD x int".to_owned(), ..applier }
        ));
    }

    #[test]
    fn who_is_in_the_way_is_told_without_their_data() {
        let tables = Tables::default();
        let waits = Waits { kind: Kind::GlobalLock, stages: false, tables: &tables };
        let found = waits.for_it(&running(34, LONG_SELECT), &Holders::new()).expect("in the way");
        assert_eq!(found.shown, "a statement of user app for 34 s: SELECT * FROM app.t WHERE a = ?");
        assert!(found.may_end);
    }
}
