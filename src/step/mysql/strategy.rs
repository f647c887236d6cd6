//! Which way to hold: decided from what was seen, before anything is locked. Pure; `check` shows the reason.
//!
//! ```text
//!   asked for by configuration ─▶ that
//!   member of a cluster        ─▶ freeze-only            a lock would make the other members wait
//!   MariaDB ≥ 10.4             ─▶ backup-stages          exact
//!   MariaDB < 10.4             ─▶ global-lock            exact
//!   MySQL: only InnoDB         ─▶ instance-lock          bounded    (5.7 has none: freeze-only)
//!          some other tables   ─▶ table-locks            bounded    (5.7: global-lock)
//!          many, or unknown    ─▶ global-lock            exact
//! ```

use super::{cluster::Cluster, flavour::Server};
use crate::{proto::Claim, step::database::Strategy};

/// More tables than this are not locked one by one: each has to be waited for.
pub(super) const FEW: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    BackupStages,
    InstanceLock,
    TableLocks,
    GlobalLock,
    FreezeOnly,
}

impl Kind {
    /// As `Database.strategy` tells it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::BackupStages => "backup-stages",
            Kind::InstanceLock => "instance-lock",
            Kind::TableLocks => "table-locks",
            Kind::GlobalLock => "global-lock",
            Kind::FreezeOnly => "freeze-only",
        }
    }

    /// No commit goes through while it is held.
    pub fn stops_commits(self) -> bool {
        match self {
            Kind::BackupStages | Kind::GlobalLock => true,
            Kind::InstanceLock | Kind::TableLocks | Kind::FreezeOnly => false,
        }
    }

    /// Tables without transactions are closed and nobody writes to them.
    pub fn quiets_tables(self) -> bool {
        match self {
            Kind::BackupStages | Kind::GlobalLock | Kind::TableLocks => true,
            Kind::InstanceLock | Kind::FreezeOnly => false,
        }
    }

    /// It may get stuck in a way that only ending its session from another one cures. Not on MariaDB, whose locks leave nothing
    /// behind when they fail: there KILL would end the flush that is to put a setting back (see [`super::flush`]).
    pub fn needs_a_second_session(self, server: &Server) -> bool {
        match self {
            Kind::GlobalLock | Kind::TableLocks => !server.is_mariadb(),
            Kind::BackupStages | Kind::InstanceLock | Kind::FreezeOnly => false,
        }
    }

    /// What holds less, when this one cannot be had now.
    pub fn less(self, server: &Server) -> Option<Kind> {
        match self {
            Kind::TableLocks | Kind::GlobalLock if server.has_instance_lock() => Some(Kind::InstanceLock),
            Kind::BackupStages | Kind::TableLocks | Kind::GlobalLock | Kind::InstanceLock => Some(Kind::FreezeOnly),
            Kind::FreezeOnly => None,
        }
    }
}

/// Tables without transactions, as far as they are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Count {
    Known(usize),
    /// the account cannot see all tables, or they could not be listed
    Unknown,
}

impl Count {
    pub fn none(self) -> bool {
        self == Count::Known(0)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Choice {
    pub kind: Kind,
    /// one sentence
    pub why: String,
}

/// `lockable`: the account may lock these tables one by one.
pub(super) fn choose(server: &Server, wanted: Strategy, cluster: Cluster, tables: Count, lockable: bool) -> Choice {
    let choice = |kind, why: &str| Choice { kind, why: why.to_owned() };
    match (wanted, cluster) {
        (Strategy::GlobalLock, _) => choice(Kind::GlobalLock, "`strategy` asks for it"),
        (Strategy::FreezeOnly, _) => choice(Kind::FreezeOnly, "`strategy` asks for it"),
        (Strategy::Auto | Strategy::TableLocks, Cluster::Galera) => choice(
            Kind::FreezeOnly,
            "it is a node of a Galera cluster, and a node that stops commits stops the cluster",
        ),
        (Strategy::Auto | Strategy::TableLocks, Cluster::Group) => choice(
            Kind::FreezeOnly,
            "it is a member of a replication group, and a member that stops commits throttles the group",
        ),
        (Strategy::TableLocks, Cluster::None) => table_locks(server, tables),
        (Strategy::Auto, Cluster::None) if server.has_stages() => {
            choice(Kind::BackupStages, "backup stages stop commits and wait for no reader")
        }
        (Strategy::Auto, Cluster::None) if server.is_mariadb() => {
            choice(Kind::GlobalLock, "MariaDB before 10.4 has no backup stages")
        }
        (Strategy::Auto, Cluster::None) => mysql(server, tables, lockable),
    }
}

fn mysql(server: &Server, tables: Count, lockable: bool) -> Choice {
    let (kind, why) = match tables {
        Count::Known(0) if server.has_instance_lock() => {
            (Kind::InstanceLock, "all tables are transactional: nobody but DDL needs to wait".to_owned())
        }
        Count::Known(0) => {
            let why = "all tables are transactional, and MySQL 5.7 has no instance lock: nothing needs to be locked";
            (Kind::FreezeOnly, why.to_owned())
        }
        Count::Known(few) if few <= FEW && server.has_instance_lock() && !lockable => {
            let why =
                format!("{few} tables without transactions need to be quiet, and the account may not lock them alone");
            (Kind::GlobalLock, why)
        }
        Count::Known(few) if few <= FEW && server.has_instance_lock() => {
            (Kind::TableLocks, format!("{few} tables without transactions are locked, all others go on"))
        }
        Count::Known(many) => (Kind::GlobalLock, format!("{many} tables without transactions need to be quiet")),
        Count::Unknown => {
            (Kind::GlobalLock, "which tables are without transactions is not known, so all are locked".to_owned())
        }
    };
    Choice { kind, why }
}

fn table_locks(server: &Server, tables: Count) -> Choice {
    let none = if server.has_instance_lock() { Kind::InstanceLock } else { Kind::FreezeOnly };
    let (kind, why) = match tables {
        Count::Known(0) => (none, "`strategy` asks for table locks, and there is no table to lock"),
        Count::Known(_) => (Kind::TableLocks, "`strategy` asks for it"),
        Count::Unknown => (none, "`strategy` asks for table locks, and the account cannot see which tables that means"),
    };
    Choice { kind, why: why.to_owned() }
}

/// What decides the claim besides how it is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Worth {
    /// every commit acknowledged before the barrier is written out, proven or by the server's settings
    pub flushed: bool,
    /// InnoDB writes its redo log
    pub redo: bool,
    pub tables: Count,
    /// that it was held can be shown afterwards
    pub provable: bool,
}

/// What a hold of this kind is worth if it is proven to have lasted. A lock that cannot be shown counts as none.
pub(super) fn claim(kind: Kind, worth: Worth) -> Claim {
    let tables_whole = worth.tables.none() || (kind.quiets_tables() && worth.provable);
    match () {
        () if !worth.flushed || !worth.redo || !tables_whole => Claim::Recoverable,
        () if kind.stops_commits() && worth.provable => Claim::Exact,
        () => Claim::Bounded,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSIONS: [&str; 6] = ["9.7.4", "8.0.36", "5.7.44", "11.8.6-MariaDB", "10.4.1-MariaDB", "10.3.39-MariaDB"];

    fn server(version: &str) -> Server {
        Server::told(version, "").expect("a version")
    }

    fn kind(version: &str, tables: Count) -> Kind {
        choose(&server(version), Strategy::Auto, Cluster::None, tables, true).kind
    }

    #[test]
    fn mysql_is_locked_as_little_as_its_tables_allow() {
        let (none, few, many) = (Count::Known(0), Count::Known(FEW), Count::Known(FEW + 1));
        assert_eq!(kind("9.7.4", none), Kind::InstanceLock);
        assert_eq!(kind("8.0.36", few), Kind::TableLocks);
        assert_eq!(kind("8.0.36", many), Kind::GlobalLock);
        assert_eq!(kind("8.0.36", Count::Unknown), Kind::GlobalLock, "not seen is not none");
        assert_eq!(kind("5.7.44", none), Kind::FreezeOnly);
        assert_eq!(kind("5.7.44", few), Kind::GlobalLock);
        let alone = choose(&server("8.0.36"), Strategy::Auto, Cluster::None, few, false);
        assert_eq!(alone.kind, Kind::GlobalLock, "what one may not lock alone is locked with all others");
    }

    #[test]
    fn mariadb_has_stages_and_before_them_the_global_lock() {
        for tables in [Count::Known(0), Count::Known(99), Count::Unknown] {
            assert_eq!(kind("11.8.6-MariaDB", tables), Kind::BackupStages);
            assert_eq!(kind("10.3.39-MariaDB", tables), Kind::GlobalLock);
        }
    }

    #[test]
    fn a_member_of_a_cluster_is_locked_only_if_somebody_asks_for_just_that() {
        for version in VERSIONS {
            for cluster in [Cluster::Galera, Cluster::Group] {
                for wanted in [Strategy::Auto, Strategy::TableLocks, Strategy::FreezeOnly] {
                    let choice = choose(&server(version), wanted, cluster, Count::Known(3), true);
                    assert_eq!(choice.kind, Kind::FreezeOnly, "{version} {wanted:?} {cluster:?}");
                }
                let asked = choose(&server(version), Strategy::GlobalLock, cluster, Count::Known(3), true);
                assert_eq!(asked.kind, Kind::GlobalLock);
            }
        }
    }

    #[test]
    fn what_is_asked_for_is_what_is_done() {
        for version in VERSIONS {
            let ask = |wanted, tables| choose(&server(version), wanted, Cluster::None, tables, true).kind;
            assert_eq!(ask(Strategy::GlobalLock, Count::Known(0)), Kind::GlobalLock);
            assert_eq!(ask(Strategy::FreezeOnly, Count::Known(99)), Kind::FreezeOnly);
            assert_eq!(ask(Strategy::TableLocks, Count::Known(99)), Kind::TableLocks);
            assert!(!ask(Strategy::TableLocks, Count::Unknown).quiets_tables(), "one cannot lock what one cannot see");
        }
    }

    #[test]
    fn whatever_is_chosen_there_is_less_until_nothing_is_locked() {
        for version in VERSIONS {
            let mut kind = Kind::GlobalLock;
            let mut seen = vec![kind];
            while let Some(less) = kind.less(&server(version)) {
                assert!(!seen.contains(&less));
                assert!(!less.stops_commits());
                seen.push(less);
                kind = less;
            }
            assert_eq!(kind, Kind::FreezeOnly);
        }
    }

    #[test]
    fn nothing_but_a_commit_lock_is_ever_exact_and_nothing_unflushed_is_ever_bounded() {
        let kinds = [Kind::BackupStages, Kind::InstanceLock, Kind::TableLocks, Kind::GlobalLock, Kind::FreezeOnly];
        for kind in kinds {
            for flushed in [false, true] {
                for redo in [false, true] {
                    for provable in [false, true] {
                        for tables in [Count::Known(0), Count::Known(1), Count::Unknown] {
                            let got = claim(kind, Worth { flushed, redo, tables, provable });
                            assert!(got != Claim::Exact || kind.stops_commits() && provable);
                            assert!(got == Claim::Recoverable || flushed && redo);
                            let quiet = kind.quiets_tables() && provable;
                            assert!(got == Claim::Recoverable || tables.none() || quiet);
                        }
                    }
                }
            }
        }
        let fine = Worth { flushed: true, redo: true, tables: Count::Known(0), provable: true };
        assert_eq!(claim(Kind::InstanceLock, fine), Claim::Bounded);
        assert_eq!(claim(Kind::FreezeOnly, fine), Claim::Bounded);
        assert_eq!(claim(Kind::GlobalLock, Worth { tables: Count::Unknown, ..fine }), Claim::Exact);
    }
}
