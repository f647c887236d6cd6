//! Holding a MariaDB server (10.4 and newer) with backup stages. Called by [`super::database::Session`].
//!
//! ```text
//!   BACKUP STAGE START ─▶ BLOCK_DDL ─▶ BLOCK_COMMIT ─▶ FLUSH LOCAL ENGINE LOGS ─▶ (freeze, thaw) ─▶ BACKUP STAGE END
//!                                      commits wait     relaxed commits on disk                      success is the proof
//! ```
//!
//! Why `exact` is proven: a session leaves BLOCK_COMMIT only by END or by ending, and END fails (error 4146) for a
//! session that is in no stage. So END succeeding on the session that entered BLOCK_COMMIT shows that no commit
//! happened in between. Independently the binary log's positions must be the same before and after. Without a binary
//! log there is no second witness: InnoDB's LSN moves with uncommitted writes and background work, `Com_commit` and
//! `Handler_commit` with attempts and with reads. Then END alone is the proof, and that is said.
//!
//! FLUSH ENGINE LOGS alone is not enough: seen on 10.11, InnoDB ignores it under `innodb_flush_log_at_trx_commit = 0`,
//! and a killed server had lost 84 of 200 acknowledged commits. So under relaxed settings the flush runs with that
//! setting at 1 for its duration, in one compound statement that puts it back by itself, whatever becomes of us; and
//! what it did is checked: InnoDB's flushed LSN must have reached what was current before.
//!
//! Letting go must not depend on the driver: `mysql_async` answers a dropped connection by first reading what is
//! still due, which may never come, while the lock lives on. So we hold a duplicate of its socket and cut that first.
//! A server busy with a statement notices when it ends, at the latest after `lock_wait_timeout`.

use std::{
    collections::BTreeMap,
    io,
    os::fd::OwnedFd,
    path::{Component, Path, PathBuf},
    time::Duration,
};

use mysql_async::{Conn, Opts, OptsBuilder, Row, prelude::Queryable};
use tokio::{sync::Mutex, task::JoinSet, time::Instant};

use super::database::{
    Address, Deadline, Door, Error, Failed, Place, Proof, Target, coordinate, elsewhere, look, remark, unproven,
};
use crate::{
    proto::{self, Severity},
    sys::sockets,
};

/// Backup stages came with this version.
const OLDEST: (u32, u32) = (10, 4);

/// Longest a stage waits for what is in its way, in whole seconds as the server counts; meanwhile some writers wait.
const STAGE_WAIT: u64 = 3;

/// How long BACKUP STAGE END may take before the connection is cut instead.
const END_WAIT: Duration = Duration::from_secs(1);

/// How often open transactions are looked at while draining. InnoDB answers from a copy it only renews when nobody has
/// looked for 100 ms (CACHE_MIN_IDLE_TIME_NS, storage/innobase/trx/trx0i_s.cc), so every look waits longer than that.
const DRAIN_POLL: Duration = Duration::from_millis(150);

pub(super) struct Session {
    target: Target,
    link: Link,
    user: String,
    version: String,
    /// what of SHOW GLOBAL VARIABLES this file reads; a missing one does not exist in this version
    variables: BTreeMap<String, String>,
    places: Vec<Place>,
    remarks: Vec<proto::Problem>,
    start: Vec<proto::Coordinate>,
    /// `None`: we may not know (PROCESS)
    open_transactions: Option<u32>,
    /// every acknowledged commit was written out at the barrier, or none had to be
    flushed: bool,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// nothing is locked
    None,
    /// some stage may have been entered: END, or cut
    Entered,
    /// BLOCK_COMMIT was answered with success
    Held,
}

/// The connection, and its socket from outside. Dropping it cuts the socket first, so that the driver, which would
/// rather read to the end of a pending answer, finds nothing more to read.
struct Link {
    conn: Option<Conn>,
    socket: OwnedFd,
    /// a statement was sent whose answer has not been read to its end: the protocol is out of step
    awaiting: bool,
}

impl Drop for Link {
    fn drop(&mut self) {
        sockets::cut(&self.socket);
    }
}

/// What went wrong with a statement.
type Trouble = Failed<mysql_async::Error>;

impl Link {
    async fn rows(&mut self, deadline: Deadline, sql: &str) -> Result<Vec<Vec<Option<String>>>, Trouble> {
        let out_of_step = || Failed::Refused(io::Error::other("an earlier statement was never answered").into());
        let conn = self.conn.as_mut().filter(|_| !self.awaiting).ok_or_else(out_of_step)?;
        // Set before, cleared after: if this future is dropped while waiting, it stays set.
        self.awaiting = true;
        let answer = deadline.run(conn.query::<Row, _>(sql)).await;
        match &answer {
            Ok(_) | Err(Failed::Refused(mysql_async::Error::Server(_))) => self.awaiting = false,
            Err(Failed::Refused(_) | Failed::TimedOut(_)) => sockets::cut(&self.socket),
        }
        Ok(answer?
            .into_iter()
            .map(|row| row.unwrap_raw().into_iter().map(|value| value.and_then(shown)).collect())
            .collect())
    }

    async fn run(&mut self, deadline: Deadline, sql: &str) -> Result<(), Trouble> {
        self.rows(deadline, sql).await.map(drop)
    }

    /// One row of text columns; what is NULL is empty.
    async fn row<const N: usize>(&mut self, deadline: Deadline, sql: &str) -> Result<[String; N], Trouble> {
        let mut cells = self.rows(deadline, sql).await?.into_iter().next().unwrap_or_default().into_iter();
        Ok(std::array::from_fn(|_| cells.next().flatten().unwrap_or_default()))
    }

    /// Rows of name and value.
    async fn pairs(&mut self, deadline: Deadline, sql: &str) -> Result<BTreeMap<String, String>, Trouble> {
        let rows = self.rows(deadline, sql).await?;
        Ok(rows
            .into_iter()
            .filter_map(|row| {
                let mut cells = row.into_iter();
                Some((cells.next()??.to_ascii_lowercase(), cells.next()?.unwrap_or_default()))
            })
            .collect())
    }
}

/// The text protocol sends everything as bytes.
fn shown(value: mysql_async::Value) -> Option<String> {
    match value {
        mysql_async::Value::NULL => None,
        mysql_async::Value::Bytes(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
        other => Some(other.as_sql(true)),
    }
}

impl Session {
    pub(super) async fn connect(target: &Target, deadline: Deadline) -> Result<Session, Error> {
        let user = target.user.clone().unwrap_or_else(|| "root".to_owned());
        let mut link = open(target, &user, deadline).await?;
        let [version] =
            link.row(deadline, "SELECT VERSION()").await.map_err(|failed| explain(target, &user, CONNECT, failed))?;
        let problem = |why, hint: &str| Error { name: target.name.clone(), what: CONNECT, why, hint: hint.to_owned() };
        match mariadb_version(&version) {
            None => {
                return Err(problem(
                    format!("it is MySQL {version}; MySQL is not held by this version of holdstill, MariaDB is"),
                    "its files are frozen all the same, as a crash would leave them; a hook can lock it meanwhile",
                ));
            }
            Some(found) if found < OLDEST => {
                return Err(problem(
                    format!("it is MariaDB {version}; held are versions 10.4 and newer, which have backup stages"),
                    "upgrade it, or write a hook that does what your version needs",
                ));
            }
            Some(_) => {}
        }
        let mut session = Session {
            target: target.clone(),
            link,
            user,
            version,
            variables: BTreeMap::new(),
            places: Vec::new(),
            remarks: Vec::new(),
            start: Vec::new(),
            open_transactions: None,
            flushed: true,
            stage: Stage::None,
        };
        session.settle(deadline).await.map_err(|failed| session.error(CONNECT, failed))?;
        session.may_hold(deadline).await?;
        Ok(session)
    }

    /// Makes the session outlive the hold, and reads where and how durable the server is.
    async fn settle(&mut self, deadline: Deadline) -> Result<(), Trouble> {
        self.link
            .run(
                deadline,
                "SET SESSION wait_timeout = 86400, interactive_timeout = 86400, max_statement_time = 0, \
                 lock_wait_timeout = 1, autocommit = 1, sql_mode = ''",
            )
            .await?;
        self.variables = self.link.pairs(deadline, VARIABLES).await?;
        self.places = places(&self.variables);
        match self.far_tablespaces(deadline).await {
            Ok(directories) => {
                for directory in directories {
                    if !self.places.iter().any(|place| place.path == directory) {
                        self.places.push(Place::new("tablespace", directory));
                    }
                }
            }
            Err(Failed::Refused(mysql_async::Error::Server(error))) if error.code == ACCESS_DENIED => {
                let hint = format!("GRANT PROCESS ON *.* TO {}", self.account());
                self.say(Severity::Warning, "TABLESPACES_UNKNOWN", "tables with a DATA DIRECTORY may be missed", hint);
            }
            Err(failed) => return Err(failed),
        }
        self.count_transactions(deadline).await?;
        self.remark_on_settings();
        self.remarks.extend(elsewhere(&self.target.name, &self.link.socket));
        Ok(())
    }

    /// Ending a stage we are not in does nothing, but whether we *may* is checked first. Better to learn it now.
    async fn may_hold(&mut self, deadline: Deadline) -> Result<(), Error> {
        match self.link.run(deadline, "BACKUP STAGE END").await {
            Ok(()) => Ok(()),
            Err(Failed::Refused(mysql_async::Error::Server(error))) if error.code == NOT_IN_A_STAGE => Ok(()),
            Err(failed) => Err(self.error(CONNECT, failed)),
        }
    }

    /// Directories of InnoDB tables that lie outside the data directory.
    async fn far_tablespaces(&mut self, deadline: Deadline) -> Result<Vec<PathBuf>, Trouble> {
        const NEW: &str = "SELECT FILENAME FROM information_schema.INNODB_SYS_TABLESPACES WHERE FILENAME LIKE '/%'";
        const OLD: &str = "SELECT PATH FROM information_schema.INNODB_SYS_DATAFILES WHERE PATH LIKE '/%'";
        let rows = match self.link.rows(deadline, NEW).await {
            Err(Failed::Refused(mysql_async::Error::Server(error))) if error.code == NO_SUCH_COLUMN => {
                self.link.rows(deadline, OLD).await?
            }
            answer => answer?,
        };
        let files = rows.into_iter().flatten().flatten();
        let mut directories: Vec<PathBuf> =
            files.filter_map(|file| Path::new(&file).parent().map(Path::to_owned)).collect();
        directories.sort();
        directories.dedup();
        Ok(directories)
    }

    fn variable(&self, name: &str) -> &str {
        self.variables.get(name).map_or("", String::as_str)
    }

    fn is_on(&self, name: &str) -> bool {
        matches!(self.variable(name), "ON" | "1")
    }

    fn remark_on_settings(&mut self) {
        if self.is_on("general_log") {
            self.say(
                Severity::Warning,
                "STATEMENT_LOG",
                "general_log is on: while the disk of that log is frozen every statement waits, reads too",
                "SET GLOBAL general_log = OFF, or keep the log off the held disks",
            );
        } else if self.is_on("slow_query_log") && self.variable("long_query_time").parse() == Ok(0.0) {
            self.say(
                Severity::Warning,
                "STATEMENT_LOG",
                "the slow query log takes every statement: while its disk is frozen they all wait, reads too",
                "raise long_query_time, or keep the log off the held disks",
            );
        }
        if !self.is_on("log_bin") {
            self.say(
                Severity::Note,
                "NO_BINARY_LOG",
                "there is no binary log: that nothing was committed is proven by the backup stage alone, and the copy \
                 cannot be rolled forward",
                "",
            );
        }
        let relaxed = self.variable("innodb_flush_log_at_trx_commit") != "1"
            || (self.is_on("log_bin") && self.variable("sync_binlog") != "1");
        if relaxed {
            self.say(
                Severity::Note,
                "RELAXED_DURABILITY",
                "commits are acknowledged before they are on disk; the barrier writes them out",
                "",
            );
        }
        if self.is_on("wsrep_on") {
            self.say(
                Severity::Warning,
                "CLUSTER_NODE",
                "it is a Galera node: while held it leaves flow control and falls behind, and a long hold may expel it",
                "hold one node at a time, for less than evs.suspect_timeout",
            );
        }
    }

    pub(super) async fn soften(&mut self, deadline: Deadline) -> Result<(), Error> {
        // The same flush will be due inside the lock; now it costs nobody anything.
        let flushed = self.link.run(deadline, FLUSH).await;
        flushed.map_err(|failed| self.error("flush", failed))?;
        if !self.target.drain.is_zero() {
            self.drain(deadline).await.map_err(|failed| self.error("drain", failed))?;
        }
        Ok(())
    }

    /// Waits for the write transactions that are open now; newer ones are not waited for, none is ended by us.
    async fn drain(&mut self, deadline: Deadline) -> Result<(), Trouble> {
        let until = Instant::now() + self.target.drain.min(deadline.left().saturating_sub(END_WAIT));
        let mut waited_for = None;
        let waited_for = loop {
            tokio::time::sleep(DRAIN_POLL).await;
            let Some(open) = self.writers(deadline).await? else {
                let hint = format!("GRANT PROCESS ON *.* TO {}", self.account());
                self.say(Severity::Warning, "NOT_DRAINED", "`drain` needs to see other sessions' transactions", hint);
                return Ok(());
            };
            let left = waited_for.get_or_insert_with(|| open.clone());
            left.retain(|id| open.contains(id));
            if left.is_empty() || Instant::now() >= until {
                break std::mem::take(left);
            }
        };
        if !waited_for.is_empty() {
            let message = format!("{} write transactions stayed open for all of `drain`", waited_for.len());
            self.say(Severity::Warning, "NOT_DRAINED", message, "the copy rolls them back; `drain` may be too short");
        }
        Ok(())
    }

    /// The open transactions that have written something; `None`: we may not know.
    async fn writers(&mut self, deadline: Deadline) -> Result<Option<Vec<String>>, Trouble> {
        const WRITERS: &str = "SELECT trx_id FROM information_schema.INNODB_TRX WHERE trx_rows_modified > 0";
        match self.link.rows(deadline, WRITERS).await {
            Ok(rows) => Ok(Some(rows.into_iter().flatten().flatten().collect())),
            Err(Failed::Refused(mysql_async::Error::Server(error))) if error.code == ACCESS_DENIED => Ok(None),
            Err(failed) => Err(failed),
        }
    }

    async fn count_transactions(&mut self, deadline: Deadline) -> Result<(), Trouble> {
        let writers = self.writers(deadline).await?;
        self.open_transactions = writers.map(|ids| u32::try_from(ids.len()).unwrap_or(u32::MAX));
        Ok(())
    }

    pub(super) async fn hold(&mut self, hold_id: &str, deadline: Deadline) -> Result<(), Error> {
        match self.enter(hold_id, deadline).await {
            Ok(()) => Ok(()),
            Err(failed) => {
                let error = self.error(HOLD, failed);
                self.let_go(Deadline::after(END_WAIT)).await;
                Err(error)
            }
        }
    }

    async fn enter(&mut self, hold_id: &str, deadline: Deadline) -> Result<(), Trouble> {
        // Whole seconds; some room for the answer itself, so that the server gives up before we do.
        let wait = (deadline.left().as_millis() / 2000).clamp(1, u128::from(STAGE_WAIT));
        self.link.run(deadline, &format!("SET SESSION lock_wait_timeout = {wait}")).await?;
        let comment = comment(hold_id);
        for stage in ["START", "BLOCK_DDL", "BLOCK_COMMIT"] {
            self.stage = Stage::Entered;
            self.link.run(deadline, &format!("BACKUP STAGE {stage}{comment}")).await?;
        }
        self.stage = Stage::Held;
        Ok(())
    }

    /// Ends the stage, or cuts the connection, which ends it too.
    async fn let_go(&mut self, deadline: Deadline) {
        if self.stage == Stage::None {
            return;
        }
        match self.link.run(deadline, END).await {
            Ok(()) => self.stage = Stage::None,
            Err(Failed::Refused(mysql_async::Error::Server(error))) if error.code == NOT_IN_A_STAGE => {
                self.stage = Stage::None;
            }
            Err(_) => sockets::cut(&self.link.socket),
        }
    }

    pub(super) async fn barrier(&mut self, _hold_id: &str, deadline: Deadline) -> Result<(), Error> {
        self.flushed = self.flush(deadline).await.map_err(|failed| self.error("flush", failed))?;
        if !self.flushed {
            self.say(
                Severity::Warning,
                NOT_FLUSHED,
                "innodb_flush_log_at_trx_commit is 0 and the log could not be flushed: commits acknowledged lately may be missing",
                format!("GRANT SUPER ON *.* TO {}, or SET GLOBAL innodb_flush_log_at_trx_commit = 2", self.account()),
            );
        }
        let start = match self.coordinates(deadline).await {
            Ok(coordinates) => coordinates,
            Err(failed) => return Err(self.error("read the position of", failed)),
        };
        let [server, domain] = ["server_id", "gtid_domain_id"].map(|key| coordinate(key, self.variable(key)));
        self.start = [server, domain].into_iter().chain(start).collect();
        self.count_transactions(deadline).await.map_err(|failed| self.error("read the transactions of", failed))
    }

    /// Writes out what was acknowledged. Commits are blocked by now, so this is final. `false`: it had no effect.
    async fn flush(&mut self, deadline: Deadline) -> Result<bool, Trouble> {
        // 1 and 3 write and sync before acknowledging; without InnoDB there is no such variable.
        let setting = self.link.pairs(deadline, "SHOW GLOBAL VARIABLES LIKE 'innodb_flush_log_at_trx_commit'").await?;
        let setting = setting.into_values().next().unwrap_or_default();
        if !matches!(setting.as_str(), "0" | "2") {
            self.link.run(deadline, FLUSH).await?;
            return Ok(true);
        }
        let due = self.lsn(deadline, "Innodb_lsn_current").await?;
        match self.link.run(deadline, FLUSH_STRICTLY).await {
            Ok(()) => {}
            Err(Failed::Refused(mysql_async::Error::Server(error))) if error.code == ACCESS_DENIED => {
                self.link.run(deadline, FLUSH).await?;
            }
            Err(failed) => return Err(failed),
        }
        // With 2 each commit was written before it was acknowledged; the freeze itself brings that to disk.
        let done = self.lsn(deadline, "Innodb_lsn_flushed").await?;
        Ok(setting == "2" || (due.is_some() && done >= due))
    }

    async fn lsn(&mut self, deadline: Deadline, name: &str) -> Result<Option<u64>, Trouble> {
        let status = self.link.pairs(deadline, &format!("SHOW GLOBAL STATUS LIKE '{name}'")).await?;
        Ok(status.into_values().next().and_then(|value| value.parse().ok()))
    }

    /// Where the logs stand.
    async fn coordinates(&mut self, deadline: Deadline) -> Result<Vec<proto::Coordinate>, Trouble> {
        const GTIDS: [&str; 3] = ["gtid_binlog_pos", "gtid_current_pos", "gtid_slave_pos"];
        let values: [String; 3] = self
            .link
            .row(deadline, "SELECT @@GLOBAL.gtid_binlog_pos, @@GLOBAL.gtid_current_pos, @@GLOBAL.gtid_slave_pos")
            .await?;
        let mut found: Vec<_> = GTIDS.into_iter().zip(values).map(|(key, value)| coordinate(key, value)).collect();
        if self.is_on("log_bin") {
            match self.link.row(deadline, "SHOW MASTER STATUS").await {
                Ok([file, position]) => {
                    found.extend([coordinate("binlog_file", file), coordinate("binlog_position", position)]);
                }
                // BINLOG MONITOR is nice to have: the GTIDs say the same.
                Err(Failed::Refused(mysql_async::Error::Server(error))) if error.code == ACCESS_DENIED => {}
                Err(failed) => return Err(failed),
            }
        }
        let status = self.link.pairs(deadline, "SHOW GLOBAL STATUS LIKE 'Innodb\\_lsn\\_%'").await?;
        found.extend(status.into_iter().map(|(key, value)| coordinate(&key, value)));
        Ok(found)
    }

    pub(super) async fn prove_and_release(mut self, deadline: Deadline) -> Proof {
        let mut database = self.describe();
        let held = self.stage == Stage::Held && !self.start.is_empty();
        let flushed = self.flushed;
        let not_flushed = self.remarks.iter().find(|remark| remark.code == NOT_FLUSHED).cloned();
        // Read while still locked, else the next commit would blur it; but writers are waiting.
        let end = self.coordinates(deadline.at_most(END_WAIT)).await;
        let ended = self.link.run(deadline.at_most(END_WAIT), END).await;
        let name = self.target.name.clone();
        let why = match (held, ended) {
            (true, Ok(())) => None,
            (false, _) => Some("its barrier was never reached".to_owned()),
            (true, Err(failed)) => Some(self.error("prove", failed).why),
        };
        if why.is_none() {
            self.stage = Stage::None;
        }
        let cannot_read = match end {
            Ok(end) => {
                database.end = end;
                None
            }
            Err(failed) => Some(self.error("read the position of", failed).why),
        };
        self.disconnect(deadline).await;
        if let Some(why) = why.or(cannot_read) {
            return unproven(&name, database, &why);
        }
        match moved(&database.start, &database.end) {
            None => Proof { database, problem: not_flushed },
            Some(key) => {
                if flushed {
                    database.claim = proto::Claim::Bounded.into();
                }
                let message =
                    format!("the lock held, and yet {key} is not what it was: start and end only bracket the copy");
                let hint = "see who may write past BACKUP STAGE BLOCK_COMMIT";
                Proof { database, problem: Some(remark(&name, Severity::Warning, "DATABASE_MOVED", message, hint)) }
            }
        }
    }

    pub(super) async fn release(mut self, deadline: Deadline) -> Result<(), Error> {
        self.let_go(deadline.at_most(END_WAIT)).await;
        let released = self.stage == Stage::None;
        let name = self.target.name.clone();
        self.disconnect(deadline).await;
        if released {
            return Ok(());
        }
        Err(Error {
            name,
            what: "release",
            why: "it did not confirm the end of the backup stage; the connection was cut, which ends it too".to_owned(),
            hint: "if writers still wait, see SHOW PROCESSLIST for a session in a backup stage".to_owned(),
        })
    }

    /// Says goodbye if the session is in step, and cuts the connection.
    async fn disconnect(mut self, deadline: Deadline) {
        if let Some(conn) = self.link.conn.take().filter(|_| !self.link.awaiting) {
            let _ = deadline.at_most(END_WAIT).run(conn.disconnect()).await;
        }
    }

    pub(super) fn describe(&self) -> proto::Database {
        proto::Database {
            engine: "mariadb".to_owned(),
            version: self.version.clone(),
            claim: if self.flushed { proto::Claim::Exact } else { proto::Claim::Recoverable }.into(),
            start: self.start.clone(),
            end: Vec::new(),
            open_transactions: self.open_transactions.unwrap_or(0),
            ..proto::Database::default()
        }
    }

    pub(super) fn socket(&self) -> &OwnedFd {
        &self.link.socket
    }

    pub(super) fn places(&self) -> &[Place] {
        &self.places
    }

    pub(super) fn remarks(&self) -> &[proto::Problem] {
        &self.remarks
    }

    fn say(&mut self, severity: Severity, code: &str, message: impl Into<String>, hint: impl Into<String>) {
        self.remarks.push(remark(&self.target.name, severity, code, message, hint));
    }

    fn account(&self) -> String {
        account(&self.user)
    }

    fn error(&self, what: &'static str, failed: Trouble) -> Error {
        explain(&self.target, &self.user, what, failed)
    }
}

const CONNECT: &str = "connect to";
const HOLD: &str = "hold";
const FLUSH: &str = "FLUSH LOCAL ENGINE LOGS";
const END: &str = "BACKUP STAGE END";

/// The one problem known before the freeze that lowers the claim.
const NOT_FLUSHED: &str = "NOT_FLUSHED";

/// The flush as it is under strict settings; one statement, so that the server itself puts the setting back.
const FLUSH_STRICTLY: &str = "BEGIN NOT ATOMIC
    DECLARE was INT DEFAULT @@GLOBAL.innodb_flush_log_at_trx_commit;
    DECLARE EXIT HANDLER FOR SQLEXCEPTION BEGIN SET GLOBAL innodb_flush_log_at_trx_commit = was; RESIGNAL; END;
    SET GLOBAL innodb_flush_log_at_trx_commit = 1;
    FLUSH LOCAL ENGINE LOGS;
    SET GLOBAL innodb_flush_log_at_trx_commit = was;
END";

/// Server errors this file tells apart (mariadb.com/kb/en/mariadb-error-codes).
const ACCESS_DENIED: u16 = 1227;
const LOGIN_DENIED: [u16; 2] = [1045, 1698];
const NO_SUCH_COLUMN: u16 = 1054;
const LOCK_WAIT_TIMEOUT: u16 = 1205;
const TOO_MANY_CONNECTIONS: u16 = 1040;
const NOT_IN_A_STAGE: u16 = 4146;

const VARIABLES: &str = "SHOW GLOBAL VARIABLES WHERE Variable_name IN (
    'datadir', 'innodb_data_home_dir', 'innodb_data_file_path', 'innodb_log_group_home_dir', 'innodb_undo_directory',
    'log_bin', 'log_bin_basename', 'relay_log_basename', 'aria_log_dir_path', 'server_id', 'gtid_domain_id',
    'innodb_flush_log_at_trx_commit', 'sync_binlog', 'general_log', 'slow_query_log', 'long_query_time', 'wsrep_on')";

fn account(user: &str) -> String {
    format!("`{user}`@…")
}

/// Shows in SHOW PROCESSLIST who is holding. Nothing but what an id may contain goes into SQL.
fn comment(hold_id: &str) -> String {
    let id: String = hold_id.chars().filter(|c| c.is_ascii_alphanumeric() || "._-".contains(*c)).collect();
    format!(" /* holdstill {id} */")
}

/// (major, minor), or `None` for anything that does not call itself MariaDB.
fn mariadb_version(version: &str) -> Option<(u32, u32)> {
    if !version.to_ascii_lowercase().contains("mariadb") {
        return None;
    }
    // Old clients were told 5.5.5 first, or they would not talk to a version 10; some proxies still do.
    let version = version.strip_prefix("5.5.5-").unwrap_or(version);
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Every directory the settings name, as the server sees it.
fn places(variables: &BTreeMap<String, String>) -> Vec<Place> {
    let set = |name: &str| variables.get(name).map(String::as_str).filter(|value| !value.is_empty());
    let Some(data) = set("datadir").map(Path::new) else { return Vec::new() };
    let absolute = |path: &str| -> PathBuf {
        data.join(path).components().filter(|component| !matches!(component, Component::CurDir)).collect()
    };
    let mut places = vec![Place::new("data", absolute(""))];
    let mut add = |purpose, path: PathBuf| {
        if !places.iter().any(|place| place.path == path) {
            places.push(Place::new(purpose, path));
        }
    };
    for (purpose, name) in [
        ("data", "innodb_data_home_dir"),
        ("redo", "innodb_log_group_home_dir"),
        ("undo", "innodb_undo_directory"),
        ("aria log", "aria_log_dir_path"),
    ] {
        set(name).map(absolute).into_iter().for_each(|path| add(purpose, path));
    }
    for file in set("innodb_data_file_path").unwrap_or("").split(';').filter(|file| file.starts_with('/')) {
        let file = file.split(':').next().unwrap_or(file);
        Path::new(file).parent().map(Path::to_owned).into_iter().for_each(|path| add("data", path));
    }
    for (purpose, name) in [("binlog", "log_bin_basename"), ("relay log", "relay_log_basename")] {
        let directory = set(name).map(absolute).and_then(|base| base.parent().map(Path::to_owned));
        directory.into_iter().for_each(|path| add(purpose, path));
    }
    places
}

/// The first coordinate of committed data that differs. LSNs may: they move with uncommitted work.
fn moved(start: &[proto::Coordinate], end: &[proto::Coordinate]) -> Option<String> {
    let logical = |c: &&proto::Coordinate| {
        c.key.starts_with("gtid_") && c.key != "gtid_domain_id" || c.key.starts_with("binlog_")
    };
    let before: Vec<_> = start.iter().filter(logical).collect();
    let after: Vec<_> = end.iter().filter(logical).collect();
    if before.len() != after.len() {
        return Some("the set of coordinates".to_owned());
    }
    before.into_iter().zip(after).find(|(before, after)| before != after).map(|(before, _)| before.key.clone())
}

/// Connects and logs in, one at a time in this process: the driver shows nobody its socket, so it is found as the one
/// that was not there before.
async fn open(target: &Target, user: &str, deadline: Deadline) -> Result<Link, Error> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());
    let problem = |why, hint| Error { name: target.name.clone(), what: CONNECT, why, hint };
    let io_error = |what, failed| {
        explain(
            target,
            user,
            what,
            match failed {
                Failed::TimedOut(limit) => Failed::TimedOut(limit),
                Failed::Refused(error) => Failed::Refused(mysql_async::Error::from(error)),
            },
        )
    };
    let mut options = OptsBuilder::default()
        .user(Some(user))
        .prefer_socket(false) // else it would go on through a path that means another server in our view
        .max_allowed_packet(Some(16 << 20)) // set, so that it does not ask
        .wait_timeout(Some(86_400))
        .connect_attribute("program_name", "holdstill");
    if let Some(password) = &target.password {
        options = options.pass(Some(password.reveal()));
    }
    let (door, full) = match &target.at {
        Address::Socket(_) => {
            let target = target.clone();
            let door = look(deadline, move || Door::find(&target)).await;
            let door = door.map_err(|failed| io_error(CONNECT, failed))?;
            options = options.socket(Some(door.path().display().to_string()));
            let name = door.name().to_owned();
            (Some(door), name)
        }
        Address::Tcp { host, port } => {
            options = options.ip_or_hostname(host).tcp_port(*port);
            (None, PathBuf::new())
        }
    };
    let peer = match &target.at {
        Address::Socket(_) => sockets::Peer::Unix { path: &full },
        Address::Tcp { port, .. } => sockets::Peer::Tcp { port: *port },
    };

    let turn = deadline.run(async { Ok::<_, io::Error>(ONE_AT_A_TIME.lock().await) }).await;
    let _turn = turn.map_err(|failed| io_error(CONNECT, failed))?;
    let before = sockets::open().map_err(|error| io_error(CONNECT, Failed::Refused(error)))?;
    // Its own task, because the driver panics on some things a server may say; the set aborts it when dropped.
    let mut connecting = JoinSet::new();
    connecting.spawn(Conn::new(Opts::from(options)));
    let joined = deadline
        .run(async {
            match connecting.join_next().await {
                Some(Ok(answer)) => answer,
                Some(Err(_)) | None => Err(io::Error::other("the driver gave up on what the server said").into()),
            }
        })
        .await;
    drop(door);
    match joined {
        Ok(conn) => match sockets::connected_since(&before, peer) {
            Ok(socket) => Ok(Link { conn: Some(conn), socket, awaiting: false }),
            Err(error) => Err(problem(format!("its connection cannot be guarded: {error}"), "try again".to_owned())),
        },
        Err(failed) => {
            // Nothing is held yet, but a connection half open would linger in the driver.
            if let Ok(socket) = sockets::connected_since(&before, peer) {
                sockets::cut(&socket);
            }
            Err(explain(target, user, CONNECT, failed))
        }
    }
}

/// What the server or the driver said, with what would cure it.
fn explain(target: &Target, user: &str, what: &'static str, failed: Trouble) -> Error {
    let name = target.name.clone();
    let error = match failed {
        Failed::TimedOut(limit) => {
            return Error {
                name,
                what,
                why: format!("it did not answer within {limit:?}"),
                hint: "look at the server: SHOW PROCESSLIST".to_owned(),
            };
        }
        Failed::Refused(error) => error,
    };
    let (why, hint) = match error {
        mysql_async::Error::Server(said) => {
            let hint = if LOGIN_DENIED.contains(&said.code) {
                match &target.password_file {
                    Some(path) => format!("put the password of {user} into {} (`password_file`)", path.display()),
                    None => format!(
                        "set `user` and `password_file` of database {name}, or let {user} in by unix_socket: \
                         ALTER USER {user}@localhost IDENTIFIED VIA unix_socket"
                    ),
                }
            } else {
                match said.code {
                    ACCESS_DENIED => format!("GRANT RELOAD, PROCESS, BINLOG MONITOR ON *.* TO {}", account(user)),
                    LOCK_WAIT_TIMEOUT => {
                        "a long write to a non-transactional table, a DDL statement or another backup \
                                          is in the way: SHOW PROCESSLIST"
                            .to_owned()
                    }
                    TOO_MANY_CONNECTIONS => "all connections are taken: raise max_connections".to_owned(),
                    _ => String::new(),
                }
            };
            (format!("{} ({})", said.message, said.code), hint)
        }
        mysql_async::Error::Io(mysql_async::IoError::Io(error)) => {
            let place = match &target.at {
                Address::Socket(path) => path.display().to_string(),
                Address::Tcp { host, port } => format!("{host} port {port}"),
            };
            let hint = "does the server run, and is `socket` (or `host` and `port`) what it listens on?";
            (format!("{place}: {error}"), hint.to_owned())
        }
        other => (other.to_string(), String::new()),
    };
    Error { name, what, why, hint }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mariadb_is_told_from_mysql_by_its_version() {
        assert_eq!(mariadb_version("10.11.14-MariaDB-0+deb12u2"), Some((10, 11)));
        assert_eq!(mariadb_version("5.5.5-10.4.1-MariaDB"), Some((10, 4)));
        assert_eq!(mariadb_version("11.8.6-MariaDB-log"), Some((11, 8)));
        assert_eq!(mariadb_version("8.4.3"), None);
        assert_eq!(mariadb_version("9.7.4-1"), None);
    }

    #[test]
    fn every_directory_is_absolute_and_named_once() {
        let variables = [
            ("datadir", "/srv/db/"),
            ("innodb_data_home_dir", ""),
            ("innodb_data_file_path", "ibdata1:12M;/fast/ibdata2:12M:autoextend"),
            ("innodb_log_group_home_dir", "./"),
            ("innodb_undo_directory", "./undo"),
            ("aria_log_dir_path", "/srv/db/"),
            ("log_bin_basename", "/logs/bin"),
            ("relay_log_basename", ""),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let expected = ["/srv/db", "/srv/db/undo", "/fast", "/logs"].map(PathBuf::from);
        let paths: Vec<PathBuf> = places(&variables).into_iter().map(|place| place.path).collect();
        assert_eq!(paths, expected);
    }

    #[test]
    fn commits_move_the_binary_log_and_background_work_does_not() {
        let at =
            |gtid: &str, lsn: &str| vec![coordinate("gtid_binlog_pos", gtid), coordinate("innodb_lsn_current", lsn)];
        assert_eq!(moved(&at("0-1-5", "100"), &at("0-1-5", "900")), None);
        assert_eq!(moved(&at("0-1-5", "100"), &at("0-1-6", "100")), Some("gtid_binlog_pos".to_owned()));
        assert!(moved(&at("0-1-5", "100"), &[]).is_some(), "nothing read is not nothing moved");
    }

    #[test]
    fn a_hold_id_cannot_leave_its_comment() {
        assert_eq!(comment("nightly.1"), " /* holdstill nightly.1 */");
        assert_eq!(comment("*/ DROP"), " /* holdstill DROP */");
    }
}
