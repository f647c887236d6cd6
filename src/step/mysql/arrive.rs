//! Arriving at a server: who it is, what it has, which way to hold it, and whether we may.

use super::{
    CONNECT, Choice, Cluster, Kind, Lock, May, Session, Tables, cluster, connect, coordinates, elsewhere,
    explain::explain,
    flavour::Server,
    flush::FLUSH,
    grants,
    link::{Link, Trouble, code, if_allowed},
    places, replicas,
    settings::Settings,
    strategy, tables,
};
use crate::{
    proto::Severity,
    step::database::{Deadline, Error, Strategy, Target},
};

/// There was nothing to end.
const NOT_IN_A_STAGE: u16 = 4146;

/// Asked before the server's own limit on statements can be lifted.
const WHO: &str = "SELECT /*+ MAX_EXECUTION_TIME(10000) */ VERSION(), @@version_comment, CURRENT_USER()";

const HOOK: &str = "its files are frozen all the same, as a crash would leave them; upgrade it, or write a hook that does \
                    what your version needs";

impl Session {
    /// # Errors
    /// Not reachable, not permitted, too old, in no state to be held now; each with its cure.
    pub(in crate::step) async fn connect(target: &Target, deadline: Deadline) -> Result<Session, Error> {
        let login = target.user.clone().unwrap_or_else(|| "root".to_owned());
        let mut link = connect::open(target, &login, deadline).await?;
        let failed = |failed| explain(target, &login, CONNECT, failed);
        let problem = |why, hint: String| Error { name: target.name.clone(), what: CONNECT, why, hint };
        let told = link.row(deadline, WHO).await;
        let [version, comment, user]: [String; 3] = told.map_err(failed)?;
        let Some(server) = Server::told(&version, &comment) else {
            return Err(problem(format!("its version, {version}, is none of MySQL or MariaDB"), HOOK.to_owned()));
        };
        if let Some(oldest) = server.too_old() {
            let why = format!("it is {} {version}; held are versions {oldest} and newer", server.name());
            return Err(problem(why, HOOK.to_owned()));
        }
        settle(&mut link, &server, deadline).await.map_err(failed)?;
        let settings = Settings::read(&mut link, &server, deadline).await.map_err(failed)?;
        let cluster = cluster::look(&mut link, &settings, deadline).await.map_err(failed)?;
        if let Some((why, hint)) = cluster.not_now {
            return Err(problem(why, hint.to_owned()));
        }
        let mut session = Session {
            target: target.clone(),
            link,
            second: None,
            user,
            places: places::named(&settings),
            cluster: cluster.cluster,
            server,
            settings,
            may: May::default(),
            thread: None,
            tables: Tables::default(),
            doubted: false,
            choice: Choice { kind: Kind::FreezeOnly, why: String::new() },
            remarks: Vec::new(),
            lowered: None,
            writers: None,
            prepared: None,
            flushed: true,
            provable: true,
            lock: Lock::Nothing,
            seen: false,
            start: Vec::new(),
        };
        session.look_around(deadline).await.map_err(|failed| session.error(CONNECT, failed))?;
        session.may_hold(deadline).await?;
        Ok(session)
    }

    /// Everything that decides how to hold and what to say about it.
    async fn look_around(&mut self, deadline: Deadline) -> Result<(), Trouble> {
        self.remarks.extend(elsewhere(&self.target.name, &self.link.socket));
        if !places::add_far(&mut self.places, &mut self.link, &self.server, deadline).await? {
            let hint = self.grant("PROCESS");
            self.say(Severity::Warning, "TABLESPACES_UNKNOWN", "tables with a DATA DIRECTORY may be missed", hint);
        }
        for (severity, code, message, hint) in self.settings.remarks(&self.server) {
            self.say(severity, code, message, hint);
        }
        self.find_replication(deadline).await?;
        self.find_tables(deadline).await?;
        if !self.server.is_mariadb() {
            self.find_evidence(deadline).await?;
        }
        self.count_transactions(deadline).await
    }

    async fn find_replication(&mut self, deadline: Deadline) -> Result<(), Trouble> {
        if self.cluster != Cluster::None {
            let message = "it is a member of a cluster: frozen, it answers nobody, and a long hold may expel it";
            let hint = match self.cluster {
                Cluster::Galera => "hold one node at a time, for less than evs.suspect_timeout",
                Cluster::Group => {
                    "hold one member at a time, for less than group_replication_member_expel_timeout + 5 s"
                }
                Cluster::None => "",
            };
            self.say(Severity::Warning, "CLUSTER_NODE", message, hint);
        }
        self.may.read_galera = self.cluster == Cluster::Galera;
        let channels = replicas::read(&mut self.link, &self.server, deadline).await?.unwrap_or_default();
        self.may.read_replicas = !channels.is_empty();
        for (severity, code, message, hint) in replicas::remarks(&channels, &self.settings) {
            self.say(severity, code, message, hint);
        }
        Ok(())
    }

    /// Lists the tables, and chooses by them.
    pub(super) async fn find_tables(&mut self, deadline: Deadline) -> Result<(), Trouble> {
        self.tables = tables::list(&mut self.link, &self.server, deadline).await?;
        if self.doubted {
            self.tables.doubt();
        }
        self.choose();
        Ok(())
    }

    pub(in crate::step) fn doubt_tables(&mut self) {
        self.doubted = true;
        self.tables.doubt();
        self.choose();
    }

    fn choose(&mut self) {
        self.choice = strategy::choose(
            &self.server,
            self.target.strategy,
            self.cluster,
            self.tables.count(),
            self.tables.lockable,
        );
        let only_for_that = self.choice.kind == Kind::GlobalLock && self.target.strategy == Strategy::Auto;
        if only_for_that && !self.tables.lockable && self.tables.unknown.is_none() && self.server.has_instance_lock() {
            let hint = self.grant("LOCK TABLES, SELECT");
            let message = "the account may not lock the tables without transactions one by one";
            self.say(Severity::Note, "TABLES_NOT_LOCKABLE", message, hint);
        }
        if let Some(why) = self.tables.unknown {
            let message = format!("which tables have no transactions is not known: {why}");
            let hint = if self.tables.need_a_grant() { self.grant("REFERENCES") } else { String::new() };
            // Backup stages hold all of them anyway: only the list is shorter.
            let severity = if self.choice.kind == Kind::BackupStages { Severity::Note } else { Severity::Warning };
            self.say(severity, "TABLES_UNKNOWN", message, hint);
        }
    }

    /// What proves a lock, and what tells all positions at one instant.
    async fn find_evidence(&mut self, deadline: Deadline) -> Result<(), Trouble> {
        const OURS: &str = "SELECT THREAD_ID FROM performance_schema.threads WHERE PROCESSLIST_ID = CONNECTION_ID()";
        self.thread = if self.server.knows_its_thread() {
            Some("PS_CURRENT_THREAD_ID()".to_owned())
        } else {
            let own = if_allowed(self.link.row(deadline, OURS).await)?;
            own.map(|[id]| id).filter(|id| !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit()))
        };
        if !self.server.has_instance_lock() {
            return Ok(());
        }
        let read = if_allowed(self.link.row::<2>(deadline, coordinates::LOG_STATUS).await)?;
        // Empty: performance_schema is switched off.
        self.may.read_log_status = read.as_ref().is_some_and(|[local, _]| !local.is_empty());
        const LOCKS: &str = "SELECT 1 FROM performance_schema.metadata_locks LIMIT 0";
        let locks = if_allowed(self.link.run(deadline, LOCKS).await)?;
        for (allowed, table, what) in [
            (read.is_some(), "log_status", "the positions of the logs are read one after the other"),
            (locks.is_some(), "metadata_locks", "the server's own record of the lock cannot be shown"),
        ] {
            if !allowed {
                let account = grants::account(&self.user);
                let hint = format!("GRANT SELECT ON performance_schema.{table} TO {account}");
                self.say(Severity::Note, "LESS_EVIDENCE", what, hint);
            }
        }
        Ok(())
    }

    /// Better to learn it now.
    async fn may_hold(&mut self, deadline: Deadline) -> Result<(), Error> {
        if self.choice.kind == Kind::TableLocks && !self.tables.lockable {
            return Err(Error {
                name: self.target.name.clone(),
                what: CONNECT,
                why: "its account may not lock the tables without transactions one by one".to_owned(),
                hint: self.grant("LOCK TABLES, SELECT"),
            });
        }
        self.try_rights(deadline).await.map_err(|failed| self.error(CONNECT, failed))
    }

    /// Whether we may end something is checked even where there is nothing to end.
    async fn try_rights(&mut self, deadline: Deadline) -> Result<(), Trouble> {
        let kind = self.choice.kind;
        if kind == Kind::BackupStages {
            return match self.link.run(deadline, "BACKUP STAGE END").await {
                Err(failed) if code(&failed) == Some(NOT_IN_A_STAGE) => Ok(()),
                answer => answer,
            };
        }
        if kind != Kind::FreezeOnly && self.server.has_instance_lock() {
            self.link.run(deadline, "UNLOCK INSTANCE").await?;
        }
        // RELOAD, which the global lock needs too. Freezing only, it is needed if the flush is.
        let needed = kind != Kind::FreezeOnly || self.settings.get("innodb_flush_log_at_trx_commit") == "0";
        let flushed = self.link.run(deadline, FLUSH).await;
        if needed { flushed } else { if_allowed(flushed).map(drop) }
    }
}

/// Makes the session outlive the hold.
pub(super) async fn settle(link: &mut Link, server: &Server, deadline: Deadline) -> Result<(), Trouble> {
    let unlimited = if server.is_mariadb() { "max_statement_time = 0" } else { "max_execution_time = 0" };
    let settle = format!(
        "SET SESSION wait_timeout = 86400, interactive_timeout = 86400, {unlimited}, lock_wait_timeout = 1, autocommit = 1, \
         sql_mode = '', time_zone = 'SYSTEM'"
    );
    link.run(deadline, &settle).await
}
