//! Who is in the way of a lock: pure, from what the server shows of its sessions.

use std::collections::BTreeMap;

use super::{
    statement::{Verb, only_reads, shown, uses_tables, verb},
    strategy::Kind,
    tables::Tables,
};

/// A statement that has run for so long, in seconds, is not expected to end by itself soon.
pub(super) const LONG: u64 = 2;

/// A session as SHOW FULL PROCESSLIST tells it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Running {
    pub id: u64,
    pub user: String,
    pub command: String,
    pub seconds: u64,
    pub statement: String,
}

/// Somebody in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Obstacle {
    pub id: u64,
    /// it only reads: ending it loses nobody anything but the answer
    pub may_end: bool,
    pub shown: String,
}

/// What idle sessions have locked: process list id and what.
pub(super) type Holders = BTreeMap<u64, &'static str>;

pub(super) fn of_row(row: &BTreeMap<String, String>) -> Running {
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
pub(super) struct Waits<'a> {
    pub kind: Kind,
    /// seconds from which on a statement counts as long
    pub long: u64,
    /// a MariaDB whose locks wait for no reader
    pub stages: bool,
    pub tables: &'a Tables,
}

impl Waits<'_> {
    pub fn for_it(&self, running: &Running, holders: &Holders) -> Option<Obstacle> {
        let obstacle = |shown: String| {
            let may_end = only_reads(&running.statement);
            Some(Obstacle { id: running.id, may_end, shown })
        };
        let of = format!("of user {} for {} s", running.user, running.seconds);
        if running.command == "Sleep" {
            // Locks and sessions are listed one after the other: who had a lock then may just have ended its statement.
            if running.seconds == 0 {
                return None;
            }
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
        let long = running.seconds >= self.long && !applier;
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
        Waits { kind, long: LONG, stages, tables: &tables }.for_it(running, &Holders::new()).is_some()
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
        let waits = Waits { kind: Kind::GlobalLock, long: LONG, stages: false, tables: &tables };
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
        let waits = Waits { kind: Kind::GlobalLock, long: LONG, stages: false, tables: &tables };
        let found = waits.for_it(&running(34, LONG_SELECT), &Holders::new()).expect("in the way");
        assert_eq!(found.shown, "a statement of user app for 34 s: SELECT * FROM app.t WHERE a = ?");
        assert!(found.may_end);
    }
}
