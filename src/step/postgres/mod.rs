//! Holding a PostgreSQL server (12 and newer) whose files all lie on file systems that freeze together. Called by
//! [`super::database::Session`].
//!
//! No lock is taken: crash recovery from one frozen instant is what PostgreSQL is built for. What is added is that
//! nothing acknowledged is missing: the *marker*, one synchronous commit right before the freeze, flushes the log up to
//! itself, and with it every commit that was acknowledged with `synchronous_commit = off`. So the claim is `bounded`,
//! never `exact`: commits may still happen between the marker and the freeze.
//!
//! On a unix socket we connect as the server's own operating system user, so that `peer` authentication needs no
//! password. After the thaw the same backend of the same postmaster must answer, still in the same role.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    task::JoinHandle,
    time::Instant,
};
use tokio_postgres::{
    Client, Config, NoTls, Row,
    error::SqlState,
    types::{ToSql, Type},
};

use super::database::{
    Address, Deadline, Door, Error, Failed, Logs, Place, Proof, Target, coordinate, elsewhere, look, remark, unproven,
};
use crate::{
    proto::{self, Severity},
    sys::sockets,
};

/// The oldest major version that is held.
const OLDEST: u32 = 12;

/// How often open transactions are looked at while draining.
const DRAIN_POLL: Duration = Duration::from_millis(100);

/// What a checkpoint leaves of its limit, so that its cancellation is an answer and the session stays usable.
const CANCEL_ROOM: Duration = Duration::from_millis(500);

pub(super) struct Session {
    target: Target,
    client: Client,
    link: Link,
    user: String,
    version: String,
    major: u32,
    identity: Identity,
    fsync: bool,
    places: Vec<Place>,
    remarks: Vec<proto::Problem>,
    start: Vec<proto::Coordinate>,
    open_transactions: u32,
}

/// The connection below the client. Dropping it cuts it.
struct Link {
    /// moves bytes between client and socket; ends with either
    pump: JoinHandle<()>,
    socket: OwnedFd,
}

impl Drop for Link {
    fn drop(&mut self) {
        sockets::cut(&self.socket);
        self.pump.abort();
    }
}

/// What must be the same after the thaw as before the freeze.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Identity {
    backend: String,
    postmaster_started: String,
    in_recovery: bool,
    /// read at the barrier; `None` before
    timeline: Option<String>,
}

impl Session {
    pub(super) async fn connect(target: &Target, _logs: Logs, deadline: Deadline) -> Result<Session, Error> {
        let Opened { client, link, user, version } = open(target, deadline).await?;
        let major = version.split(|c: char| !c.is_ascii_digit()).next().and_then(|major| major.parse().ok());
        let problem = |why, hint: &str| Error { name: target.name.clone(), what: CONNECT, why, hint: hint.to_owned() };
        let Some(major) = major else {
            let why = format!("it says it is version `{version}`, which is no version");
            return Err(problem(why, "is this a PostgreSQL server? set `engine` or exclude it"));
        };
        if major < OLDEST {
            let why = format!("it is PostgreSQL {version}; held are versions {OLDEST} and newer");
            return Err(problem(why, "upgrade it, or write a hook that does what your version needs"));
        }
        let mut session = Session {
            target: target.clone(),
            client,
            link,
            user,
            version,
            major,
            identity: Identity {
                backend: String::new(),
                postmaster_started: String::new(),
                in_recovery: false,
                timeline: None,
            },
            fsync: true,
            places: Vec::new(),
            remarks: Vec::new(),
            start: Vec::new(),
            open_transactions: 0,
        };
        session.settle(deadline).await.map_err(|failed| session.error(CONNECT, failed))?;
        session.locate(deadline).await?;
        Ok(session)
    }

    /// Makes the session outlive the hold, and reads who and how durable the server is.
    async fn settle(&mut self, deadline: Deadline) -> Result<(), Failed<tokio_postgres::Error>> {
        let mut settings = String::from(
            "SET search_path = pg_catalog;
             SET synchronous_commit = local; -- a marker must not wait for a standby that is away
             SET default_transaction_read_only = off;
             SET idle_in_transaction_session_timeout = 0; SET statement_timeout = 0; SET lock_timeout = '2s';
             SET max_parallel_workers_per_gather = 0; SET client_min_messages = error;",
        );
        if self.major >= 14 {
            settings.push_str("SET idle_session_timeout = 0;");
        }
        if self.major >= 17 {
            settings.push_str("SET transaction_timeout = 0;");
        }
        deadline.run(self.client.batch_execute(&settings)).await?;

        self.identity = self.read_identity(deadline).await?;
        let row = self
            .row(
                deadline,
                "SELECT current_setting('fsync') AS fsync, current_setting('full_page_writes') AS full_page_writes,
                        current_setting('logging_collector') AS collector, current_setting('log_statement') AS statements,
                        current_setting('log_min_duration_statement') AS duration,
                        (SELECT reset_val FROM pg_settings WHERE name = 'synchronous_commit') AS synchronous",
            )
            .await?;
        self.fsync = text(&row, "fsync") == "on";
        let name = self.target.name.clone();
        let mut say = |severity, code, message: &str, hint: &str| {
            self.remarks.push(remark(&name, severity, code, message, hint));
        };
        if text(&row, "fsync") != "on" {
            say(
                Severity::Warning,
                "FSYNC_OFF",
                "fsync is off: the server asks for nothing to reach the disk, so nothing can be promised",
                "ALTER SYSTEM SET fsync = on; SELECT pg_reload_conf()",
            );
        }
        if text(&row, "full_page_writes") != "on" {
            say(
                Severity::Note,
                "FULL_PAGE_WRITES_OFF",
                "full_page_writes is off: a torn page could not be repaired",
                "",
            );
        }
        if text(&row, "synchronous") == "off" {
            say(
                Severity::Note,
                "RELAXED_DURABILITY",
                "synchronous_commit is off: commits acknowledged before the barrier are in the copy, later ones may not be",
                "",
            );
        }
        if text(&row, "collector") == "on" {
            let talkative = text(&row, "statements") != "none" || text(&row, "duration") != "-1";
            say(
                if talkative { Severity::Warning } else { Severity::Note },
                "LOG_ON_DISK",
                "logging_collector is on: sessions that log a lot wait while the disk of the log is frozen",
                "keep log_directory off the held disks, or log to syslog or stderr",
            );
        }
        if self.identity.in_recovery {
            self.remarks.push(remark(
                &name,
                Severity::Note,
                "STANDBY",
                "it is a standby: the copy holds what was replayed, and no marker can be written",
                "",
            ));
        }
        self.remarks.extend(elsewhere(&name, &self.link.socket));
        Ok(())
    }

    /// Finds every directory of the server.
    async fn locate(&mut self, deadline: Deadline) -> Result<(), Error> {
        let data = match self.row(deadline, "SELECT current_setting('data_directory') AS data").await {
            Ok(row) => PathBuf::from(text(&row, "data")),
            Err(Failed::Refused(error)) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                return Err(Error {
                    name: self.target.name.clone(),
                    what: CONNECT,
                    why: format!("its role {} may not know where the data lies", self.user),
                    hint: format!("GRANT pg_monitor TO \"{}\"", self.user),
                });
            }
            Err(failed) => return Err(self.error(CONNECT, failed)),
        };
        let tablespaces = self
            .rows(
                deadline,
                "SELECT pg_tablespace_location(oid) AS place FROM pg_tablespace
                 WHERE pg_tablespace_location(oid) LIKE '/%' ORDER BY 1",
            )
            .await
            .map_err(|failed| self.error(CONNECT, failed))?;
        self.places = vec![Place::new("data", &data), Place::new("wal", data.join("pg_wal"))];
        self.places.extend(tablespaces.iter().map(|row| Place::new("tablespace", text(row, "place"))));
        Ok(())
    }

    pub(super) async fn soften(&mut self, deadline: Deadline) -> Result<(), Error> {
        let budget = deadline.left().saturating_sub(CANCEL_ROOM).max(Duration::from_millis(1));
        let set = format!("SET statement_timeout = {}", budget.as_millis().min(i32::MAX as u128));
        deadline.run(self.client.batch_execute(&set)).await.map_err(|failed| self.error(CHECKPOINT, failed))?;
        match deadline.run(self.client.batch_execute("CHECKPOINT")).await {
            Ok(()) => {}
            Err(Failed::Refused(error)) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                let hint = if self.major >= 15 {
                    format!("GRANT pg_checkpoint TO \"{}\"", self.user)
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
        deadline
            .run(self.client.batch_execute("SET statement_timeout = 0"))
            .await
            .map_err(|failed| self.error(CHECKPOINT, failed))?;
        if !self.target.drain.is_zero() && !self.identity.in_recovery {
            self.drain(deadline).await.map_err(|failed| self.error("drain", failed))?;
        }
        Ok(())
    }

    /// Waits for the write transactions that are open now; newer ones are not waited for, none is ended by us.
    async fn drain(&mut self, deadline: Deadline) -> Result<(), Failed<tokio_postgres::Error>> {
        const WRITERS: &str = "SELECT backend_xid::text AS xid FROM pg_stat_activity
                               WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()";
        let until = Instant::now() + self.target.drain.min(deadline.left().saturating_sub(CANCEL_ROOM));
        let writers = async || -> Result<Vec<String>, Failed<tokio_postgres::Error>> {
            Ok(self.rows(deadline, WRITERS).await?.iter().map(|row| text(row, "xid").to_owned()).collect())
        };
        let mut waited_for = writers().await?;
        while !waited_for.is_empty() && Instant::now() < until {
            tokio::time::sleep_until(until.min(Instant::now() + DRAIN_POLL)).await;
            let open = writers().await?;
            waited_for.retain(|xid| open.contains(xid));
        }
        if !waited_for.is_empty() {
            let message = format!("{} write transactions stayed open for all of `drain`", waited_for.len());
            self.say(Severity::Warning, "NOT_DRAINED", message, "the copy rolls them back; `drain` may be too short");
        }
        Ok(())
    }

    pub(super) async fn hold(&mut self, _hold_id: &str, deadline: Deadline) -> Result<(), Error> {
        let identity = self.read_identity(deadline).await.map_err(|failed| self.error(HOLD, failed))?;
        match self.identity.changed(&identity) {
            None => Ok(()),
            Some(why) => Err(Error {
                name: self.target.name.clone(),
                what: HOLD,
                why: why.to_owned(),
                hint: "try again when it has settled".to_owned(),
            }),
        }
    }

    pub(super) async fn barrier(&mut self, hold_id: &str, deadline: Deadline) -> Result<(), Error> {
        let start = self.start_coordinates(hold_id, deadline).await;
        let start = start.map_err(|failed| self.error(FLUSH, failed))?;
        // The marker's commit has waited for this; a server on which it has not cannot be believed.
        let lsn = |key| value(&start, key).and_then(|text| position_of(&text));
        if let (Some(marker), flushed) = (lsn("marker_lsn"), lsn("flush_lsn"))
            && flushed < Some(marker)
        {
            return Err(Error {
                name: self.target.name.clone(),
                what: FLUSH,
                why: "it confirmed a synchronous commit that is not in its log on disk".to_owned(),
                hint: "look at the server's log and disks".to_owned(),
            });
        }
        self.start = start;
        Ok(())
    }

    async fn start_coordinates(
        &mut self,
        hold_id: &str,
        deadline: Deadline,
    ) -> Result<Vec<proto::Coordinate>, Failed<tokio_postgres::Error>> {
        // In this order: what commits after the marker may be missing, so nothing slow comes after it.
        let about = self
            .row(
                deadline,
                "SELECT (SELECT system_identifier FROM pg_control_system())::text AS system_identifier,
                        (SELECT count(*) FROM pg_prepared_xacts)::text AS prepared,
                        (SELECT count(*) FROM pg_stat_activity
                         WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid())::text AS writers",
            )
            .await?;
        self.open_transactions = text(&about, "writers").parse().unwrap_or(0);
        let mut start = vec![
            coordinate("system_identifier", unsigned(text(&about, "system_identifier"))),
            coordinate("in_recovery", self.identity.in_recovery.to_string()),
            coordinate("prepared_transactions", text(&about, "prepared")),
        ];
        if !self.identity.in_recovery {
            let id: &(dyn ToSql + Sync) = &hold_id;
            let marker = "SELECT pg_logical_emit_message(true, 'holdstill', $1)::text";
            let row = deadline.run(self.client.query_typed_one(marker, &[(id, Type::TEXT)])).await?;
            start.push(coordinate("marker_lsn", row.get::<_, &str>(0)));
        }
        let position = self.position(deadline).await?;
        self.identity.timeline = value(&position, "timeline");
        start.extend(position);
        Ok(start)
    }

    /// Where the log stands, and from where recovery would begin.
    async fn position(&self, deadline: Deadline) -> Result<Vec<proto::Coordinate>, Failed<tokio_postgres::Error>> {
        let (keys, sql): (&[&str], &str) = if self.identity.in_recovery {
            (
                &["timeline", "receive_lsn", "replay_lsn", "min_recovery_end_lsn", "checkpoint_lsn", "redo_lsn"],
                "SELECT r.min_recovery_end_timeline::text AS timeline, pg_last_wal_receive_lsn()::text AS receive_lsn,
                        pg_last_wal_replay_lsn()::text AS replay_lsn,
                        r.min_recovery_end_lsn::text AS min_recovery_end_lsn,
                        c.checkpoint_lsn::text AS checkpoint_lsn, c.redo_lsn::text AS redo_lsn
                 FROM pg_control_checkpoint() c, pg_control_recovery() r",
            )
        } else {
            (
                &["timeline", "insert_lsn", "flush_lsn", "wal_file", "checkpoint_lsn", "redo_lsn"],
                "SELECT c.timeline_id::text AS timeline, pg_current_wal_insert_lsn()::text AS insert_lsn,
                        pg_current_wal_flush_lsn()::text AS flush_lsn,
                        pg_walfile_name(pg_current_wal_flush_lsn()) AS wal_file,
                        c.checkpoint_lsn::text AS checkpoint_lsn, c.redo_lsn::text AS redo_lsn
                 FROM pg_control_checkpoint() c",
            )
        };
        let row = self.row(deadline, sql).await?;
        Ok(keys
            .iter()
            .filter_map(|key| Some(coordinate(key, row.try_get::<_, Option<&str>>(*key).ok().flatten()?)))
            .collect())
    }

    async fn read_identity(&self, deadline: Deadline) -> Result<Identity, Failed<tokio_postgres::Error>> {
        let row = self
            .row(
                deadline,
                "SELECT pg_backend_pid()::text AS backend, pg_postmaster_start_time()::text AS started,
                        pg_is_in_recovery()::text AS recovery",
            )
            .await?;
        Ok(Identity {
            backend: text(&row, "backend").to_owned(),
            postmaster_started: text(&row, "started").to_owned(),
            in_recovery: text(&row, "recovery") == "true",
            timeline: self.identity.timeline.clone(),
        })
    }

    pub(super) async fn prove_and_release(self, deadline: Deadline) -> Proof {
        let name = self.target.name.clone();
        let mut database = self.describe();
        let proven = match self.end(deadline).await {
            Ok((identity, end)) => {
                database.end = end;
                match self.identity.changed(&identity) {
                    None if self.start.is_empty() => Err("its barrier was never reached".to_owned()),
                    None => Ok(()),
                    Some(why) => Err(why.to_owned()),
                }
            }
            Err(failed) => Err(self.error("prove", failed).why),
        };
        self.disconnect(deadline).await;
        match proven {
            Ok(()) => Proof { database, problem: None },
            Err(why) => unproven(&name, database, &why),
        }
    }

    async fn end(
        &self,
        deadline: Deadline,
    ) -> Result<(Identity, Vec<proto::Coordinate>), Failed<tokio_postgres::Error>> {
        let mut identity = self.read_identity(deadline).await?;
        let same_role = identity.in_recovery == self.identity.in_recovery;
        // A promoted standby answers other questions; that it was promoted is all that matters.
        let end = if same_role { self.position(deadline).await? } else { Vec::new() };
        if same_role && !self.start.is_empty() {
            identity.timeline = value(&end, "timeline");
        }
        Ok((identity, end))
    }

    pub(super) async fn release(self, deadline: Deadline) -> Result<(), Error> {
        self.disconnect(deadline).await;
        Ok(()) // nothing was locked: a connection that is gone has nothing left to confirm
    }

    /// Says goodbye, waits a moment for it to be sent, and cuts the connection.
    async fn disconnect(self, deadline: Deadline) {
        let Session { client, mut link, .. } = self;
        drop(client); // the pump says goodbye and ends
        let _ = deadline.at_most(Duration::from_secs(1)).run(&mut link.pump).await;
    }

    pub(super) fn describe(&self) -> proto::Database {
        let claim = if self.fsync { proto::Claim::Bounded } else { proto::Claim::Recoverable };
        proto::Database {
            engine: "postgresql".to_owned(),
            version: self.version.clone(),
            claim: claim.into(),
            start: self.start.clone(),
            end: Vec::new(),
            open_transactions: self.open_transactions,
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

    async fn row(&self, deadline: Deadline, sql: &str) -> Result<Row, Failed<tokio_postgres::Error>> {
        deadline.run(self.client.query_typed_one(sql, &[])).await
    }

    async fn rows(&self, deadline: Deadline, sql: &str) -> Result<Vec<Row>, Failed<tokio_postgres::Error>> {
        deadline.run(self.client.query_typed(sql, &[])).await
    }

    fn error(&self, what: &'static str, failed: Failed<tokio_postgres::Error>) -> Error {
        explain(&self.target, &self.user, what, failed)
    }
}

impl Identity {
    /// Why this is not the same session of the same server any more.
    fn changed(&self, now: &Identity) -> Option<&'static str> {
        if self.postmaster_started != now.postmaster_started {
            Some("the server was restarted")
        } else if self.backend != now.backend {
            Some("another session answered, so something stands between us and the server")
        } else if self.in_recovery != now.in_recovery {
            Some("the server changed between standby and primary")
        } else if self.timeline != now.timeline {
            Some("the server went over to another timeline")
        } else {
            None
        }
    }
}

const CONNECT: &str = "connect to";
const HOLD: &str = "hold";
const CHECKPOINT: &str = "checkpoint";
const FLUSH: &str = "flush";
const NO_CHECKPOINT: &str = "no checkpoint could be made, so the copy has more to recover";

/// A text column; what is NULL is empty. Every query here casts to text.
fn text<'a>(row: &'a Row, column: &str) -> &'a str {
    row.try_get::<_, Option<&str>>(column).ok().flatten().unwrap_or("")
}

fn value(coordinates: &[proto::Coordinate], key: &str) -> Option<String> {
    coordinates.iter().find(|coordinate| coordinate.key == key).map(|coordinate| coordinate.value.clone())
}

/// A log position as a number: "16/B374D848" is 0x16B374D848.
fn position_of(lsn: &str) -> Option<u64> {
    let (high, low) = lsn.split_once('/')?;
    let [high, low] = [high, low].map(|half| u32::from_str_radix(half, 16).ok());
    Some(u64::from(high?) << 32 | u64::from(low?))
}

/// The system identifier is unsigned, but SQL has no such type: half of them print with a minus.
fn unsigned(identifier: &str) -> String {
    identifier.parse::<i64>().map_or_else(|_| identifier.to_owned(), |signed| signed.cast_unsigned().to_string())
}

struct Opened {
    client: Client,
    link: Link,
    user: String,
    version: String,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Connects and logs in.
async fn open(target: &Target, deadline: Deadline) -> Result<Opened, Error> {
    let mut config = Config::new();
    config.application_name("holdstill").dbname("postgres").ssl_mode(tokio_postgres::config::SslMode::Disable);
    if let Some(password) = &target.password {
        config.password(password.reveal());
    }
    let mut users = match (&target.user, &target.at) {
        (Some(user), _) => vec![user.clone()],
        (None, Address::Tcp { .. }) => vec!["postgres".to_owned()],
        (None, Address::Socket(_)) => {
            let found = target.clone();
            let owner = look(deadline, move || owner_name(&Door::find(&found)?)).await;
            owner.map_err(|failed| explain_io(target, "look at its socket", failed))?
        }
    }
    .into_iter();
    loop {
        let user = users.next().expect("there is always a user to try");
        config.user(&user);
        let (stream, socket) = dial(target, deadline).await?;
        match deadline.run(config.connect_raw(stream, NoTls)).await {
            Ok((client, connection)) => {
                let version = connection.parameter("server_version").unwrap_or_default().to_owned();
                let pump = tokio::spawn(async move {
                    let _ = connection.await; // its end shows as `closed`, its cause in the next statement
                });
                return Ok(Opened { client, link: Link { pump, socket }, user, version });
            }
            // The next user is only tried if the first was our guess, and only the server's own name for it was wrong.
            Err(Failed::Refused(error))
                if users.len() > 0 && error.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION) => {}
            Err(failed) => return Err(explain(target, &user, CONNECT, failed)),
        }
    }
}

/// Whom to log in as by default: what the system calls the owner of the socket, then what everybody calls him (in a
/// container, a uid has another name than here).
fn owner_name(door: &Door) -> io::Result<Vec<String>> {
    let (uid, _) = door.owner()?;
    let known = nix::unistd::User::from_uid(uid.into()).ok().flatten().map(|user| user.name);
    let mut names: Vec<String> = known.into_iter().filter(|name| name != "root").collect();
    if !names.iter().any(|name| name == "postgres") {
        names.push("postgres".to_owned());
    }
    Ok(names)
}

/// Opens the connection itself: on a unix socket as its owner, if we may be anybody.
async fn dial(target: &Target, deadline: Deadline) -> Result<(Box<dyn Stream>, OwnedFd), Error> {
    let opened: Result<(Box<dyn Stream>, OwnedFd), Failed<io::Error>> = match &target.at {
        Address::Socket(_) => {
            let (target, limit) = (target.clone(), deadline.left());
            let dialled = look(deadline, move || {
                let stream = Door::find(&target)?.connect_as_owner(limit)?;
                stream.set_nonblocking(true)?;
                Ok(stream)
            });
            dialled.await.and_then(|stream| {
                let socket = stream.as_fd().try_clone_to_owned().map_err(Failed::Refused)?;
                Ok((Box::new(UnixStream::from_std(stream).map_err(Failed::Refused)?) as Box<dyn Stream>, socket))
            })
        }
        Address::Tcp { host, port } => {
            deadline.run(TcpStream::connect((host.as_str(), *port))).await.and_then(|stream| {
                stream.set_nodelay(true).map_err(Failed::Refused)?;
                let socket = stream.as_fd().try_clone_to_owned().map_err(Failed::Refused)?;
                Ok((Box::new(stream) as Box<dyn Stream>, socket))
            })
        }
    };
    opened.map_err(|failed| explain_io(target, CONNECT, failed))
}

fn explain_io(target: &Target, what: &'static str, failed: Failed<io::Error>) -> Error {
    let hint = match &failed {
        Failed::TimedOut(_) => HANGS,
        Failed::Refused(_) => "does the server run, and is `socket` (or `host` and `port`) what it listens on?",
    };
    let why = match failed {
        Failed::TimedOut(limit) => format!("it did not answer within {limit:?}"),
        Failed::Refused(error) => format!("{}: {error}", place(&target.at)),
    };
    Error { name: target.name.clone(), what, why, hint: hint.to_owned() }
}

const HANGS: &str = "look at the server: it accepts connections but does not serve them";

fn place(at: &Address) -> String {
    match at {
        Address::Socket(path) => path.display().to_string(),
        Address::Tcp { host, port } => format!("{host} port {port}"),
    }
}

/// What the server or the driver said, with what would cure it.
fn explain(target: &Target, user: &str, what: &'static str, failed: Failed<tokio_postgres::Error>) -> Error {
    let name = &target.name;
    let error = match failed {
        Failed::TimedOut(limit) => {
            let why = format!("it did not answer within {limit:?}");
            return Error { name: name.clone(), what, why, hint: HANGS.to_owned() };
        }
        Failed::Refused(error) => error,
    };
    let Some(said) = error.as_db_error() else {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        let hint = match (&target.password_file, what) {
            (None, CONNECT) => format!("if it asks for a password, set `password_file` of database {name}"),
            (Some(_), _) | (None, _) => String::new(),
        };
        return Error { name: name.clone(), what, why: format!("{error}{cause}"), hint };
    };
    let code = said.code();
    let hint = if *code == SqlState::INVALID_PASSWORD {
        match &target.password_file {
            Some(path) => format!("put the password of role {user} into {} (`password_file`)", path.display()),
            None => format!("set `password_file` of database {name}, or allow `peer` for role {user} in pg_hba.conf"),
        }
    } else if *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION {
        format!("set `user` of database {name} to a role that may log in, or allow `{user}` in pg_hba.conf")
    } else if *code == SqlState::TOO_MANY_CONNECTIONS {
        "all connections are taken: raise max_connections, or log in as a superuser (some are reserved)".to_owned()
    } else if *code == SqlState::CANNOT_CONNECT_NOW {
        "try again when it has started".to_owned()
    } else if *code == SqlState::INSUFFICIENT_PRIVILEGE {
        format!("GRANT pg_monitor TO \"{user}\"")
    } else {
        String::new()
    };
    Error { name: name.clone(), what, why: format!("{} ({})", said.message(), code.code()), hint }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            backend: "17".to_owned(),
            postmaster_started: "2026-01-01".to_owned(),
            in_recovery: false,
            timeline: Some("1".to_owned()),
        }
    }

    #[test]
    fn the_same_session_of_the_same_server_has_not_changed() {
        assert_eq!(identity().changed(&identity()), None);
    }

    #[test]
    fn anything_else_has() {
        let why = |change: fn(&mut Identity)| {
            let mut now = identity();
            change(&mut now);
            identity().changed(&now).expect("it changed")
        };
        assert!(why(|now| now.backend = "18".to_owned()).contains("another session"));
        assert!(why(|now| now.postmaster_started = "2026-01-02".to_owned()).contains("restarted"));
        assert!(why(|now| now.in_recovery = true).contains("standby"));
        assert!(why(|now| now.timeline = Some("2".to_owned())).contains("timeline"));
    }

    #[test]
    fn log_positions_compare_as_numbers_not_as_text() {
        assert_eq!(position_of("16/B374D848"), Some(0x16_B374_D848));
        assert!(position_of("A/0") < position_of("10/0"));
        assert_eq!(position_of("16"), None);
    }

    #[test]
    fn half_of_all_system_identifiers_are_negative_in_sql() {
        assert_eq!(unsigned("7301234567890123456"), "7301234567890123456");
        assert_eq!(unsigned("-1"), "18446744073709551615");
    }
}
