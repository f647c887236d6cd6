//! Holding a PostgreSQL server (12 and newer). Called by [`super::database::Session`].
//!
//! No lock is taken: crash recovery from one frozen instant is what PostgreSQL is built for. What is added is that
//! nothing acknowledged is missing: the *marker*, one synchronous commit right before the freeze, flushes the log up to
//! itself, and with it every commit that was acknowledged with `synchronous_commit = off`. So the claim is `bounded`,
//! never `exact`: commits may still happen between the marker and the freeze. If the log is copied later than the data,
//! [`backup`] mode comes in addition. After the thaw the same backend of the same postmaster must answer, still in the
//! same role.
//!
//! | file | what it is about |
//! |---|---|
//! | [`connect`] [`explain`] | a login, statements with limits, and what went wrong with the cure |
//! | [`strategy`] | how it is held and why, decided before anything is done |
//! | [`identity`] [`settings`] [`places`] [`unlogged`] | which server it is, how durable, where its files are, what a restart empties |
//! | [`transactions`] [`backup`] [`position`] | what is open; start and stop of a backup; where the log stands |

mod backup;
mod connect;
mod explain;
mod identity;
mod places;
mod position;
mod settings;
mod strategy;
mod transactions;
mod unlogged;

use std::{os::fd::OwnedFd, path::Path, path::PathBuf, time::Duration};

use tokio_postgres::error::SqlState;

pub use self::identity::system_identifier_of;
use self::{
    backup::{Ended, Started},
    connect::{Login, Refused},
    explain::{BACKUP, CHECKPOINT, CONNECT, DRAIN, FLUSH, HOLD, explain},
    identity::Identity,
    places::{Hidden, Places},
    position::value,
    settings::Settings,
    strategy::Held,
    transactions::{Drained, Open, counted, span},
    unlogged::Unlogged,
};
use super::database::{
    Deadline, Error, Failed, LogPlace, Logs, Place, Proof, Target, coordinate, elsewhere, remark, unproven,
};
use crate::{
    proto::{self, Claim, Severity},
    sys::sockets,
};

/// The oldest major version that is held.
const OLDEST: u32 = 12;

/// What a checkpoint leaves of its limit, so that its cancellation is an answer and the session stays usable.
const CANCEL_ROOM: Duration = Duration::from_millis(500);

const NO_CHECKPOINT: &str = "no checkpoint could be made, so the copy has more to recover";

pub(super) struct Session {
    target: Target,
    login: Login,
    major: u32,
    identity: Identity,
    system_identifier: Option<u64>,
    settings: Settings,
    held: Held,
    hold_id: String,
    places: Places,
    unlogged: Unlogged,
    remarks: Vec<proto::Problem>,
    open: Open,
    backup: Option<Started>,
    start: Vec<proto::Coordinate>,
}

impl Session {
    pub(super) async fn connect(target: &Target, logs: Logs, deadline: Deadline) -> Result<Session, Error> {
        let config = connect::credentials(target);
        let login = connect::open(target, &config, deadline).await?;
        let problem = |why, hint: String| Error { name: target.name.clone(), what: CONNECT, why, hint };
        let failed = |failed| explain(target, &login.user, CONNECT, failed);
        let version = &login.version;
        let Some(major) = major(version) else {
            let why = format!("it says it is version `{version}`, which is no version");
            return Err(problem(why, "is this a PostgreSQL server? set `engine` or exclude it".to_owned()));
        };
        if major < OLDEST {
            let why = format!("it is PostgreSQL {version}; held are versions {OLDEST} and newer");
            return Err(problem(why, "upgrade it, or write a hook that does what your version needs".to_owned()));
        }
        Settings::of_session(&login, major, deadline).await.map_err(failed)?;
        let identity = Identity::read(&login, &Identity::default(), deadline).await.map_err(failed)?;
        let held = strategy::choose(&target.name, target.strategy, logs, identity.in_recovery)
            .map_err(|(why, cure)| problem(why.to_owned(), cure))?;
        if held == Held::BackupMode
            && let Some((why, cure)) =
                backup::why_not(&login, major, identity.in_recovery, deadline).await.map_err(failed)?
        {
            return Err(problem(why, cure));
        }
        let mut session = Session {
            target: target.clone(),
            major,
            system_identifier: identity::system_identifier(&login, deadline).await.map_err(failed)?,
            settings: Settings::read(&login, deadline).await.map_err(failed)?,
            unlogged: unlogged::find(&login, target, &config, deadline).await.map_err(failed)?,
            places: Places::default(),
            identity,
            login,
            held,
            hold_id: String::new(),
            remarks: Vec::new(),
            open: Open::default(),
            backup: None,
            start: Vec::new(),
        };
        session.locate(deadline).await?;
        session.look_around(logs, deadline).await.map_err(|failed| session.error(CONNECT, failed))?;
        Ok(session)
    }

    /// Finds every directory of the server.
    async fn locate(&mut self, deadline: Deadline) -> Result<(), Error> {
        let pid = sockets::server_pid(self.login.socket());
        self.places = places::find(&self.login, pid, deadline).await.map_err(|hidden| match hidden {
            Hidden::NotPermitted => Error {
                name: self.target.name.clone(),
                what: CONNECT,
                why: format!("its role {} may not know where the data lies", self.login.user),
                hint: format!("GRANT pg_monitor TO \"{}\"", self.login.user),
            },
            Hidden::Failed(failed) => self.error(CONNECT, failed),
        })?;
        let later = self.held == Held::BackupMode;
        for place in self.places.needed.iter_mut().filter(|place| place.purpose == "wal") {
            place.after_thaw = later;
        }
        Ok(())
    }

    /// Gathers what the operator should know.
    async fn look_around(&mut self, logs: Logs, deadline: Deadline) -> Result<(), Refused> {
        let mut remarks = self.settings.remarks(logs);
        if self.identity.in_recovery {
            remarks.extend(settings::standby(&self.login, &self.settings, deadline).await?);
        }
        for (severity, code, message, hint) in remarks {
            self.say(severity, code, message, hint);
        }
        if !transactions::visible(&self.login, deadline).await? {
            let user = &self.login.user;
            let message = format!("its role {user} does not see others' transactions: how many are open is not known");
            let hint = format!("GRANT pg_monitor TO \"{user}\"");
            self.say(Severity::Note, "TRANSACTIONS_HIDDEN", message, hint);
        }
        if !self.unlogged.tables.is_empty() {
            let count = counted(self.unlogged.tables.len(), "unlogged table");
            let message = format!("{count} will be empty in the copy, as after any crash");
            let hint = "ALTER TABLE … SET LOGGED, if that is not wanted";
            self.say(Severity::Note, "UNLOGGED_TABLES", message, hint);
        }
        if !self.unlogged.unknown.is_empty() {
            let names = self.unlogged.unknown.join(", ");
            let message =
                format!("unlogged tables are not known of these databases, which were not looked into: {names}");
            self.say(Severity::Note, "UNLOGGED_UNKNOWN", message, "");
        }
        self.remarks.extend(elsewhere(&self.target.name, self.login.socket()));
        Ok(())
    }

    pub(super) fn name(&mut self, hold_id: &str) {
        hold_id.clone_into(&mut self.hold_id);
    }

    pub(super) async fn soften(&mut self, deadline: Deadline) -> Result<(), Error> {
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

    pub(super) async fn hold(&mut self, _hold_id: &str, deadline: Deadline) -> Result<(), Error> {
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

    pub(super) async fn barrier(&mut self, hold_id: &str, deadline: Deadline) -> Result<(), Error> {
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

    pub(super) async fn prove_and_release(self, deadline: Deadline) -> Proof {
        let mut database = self.describe();
        let proven = self.end(deadline).await;
        let (name, in_backup) = (self.target.name.clone(), self.held == Held::BackupMode);
        self.login.leave(deadline).await;
        match proven {
            Ok(Ended { label, tablespaces, coordinates }) => {
                database.end = coordinates;
                (database.backup_label, database.tablespace_map) = (label, tablespaces);
                Proof { database, problem: None }
            }
            Err(why) if in_backup => without_label(&name, database, &why),
            Err(why) => unproven(&name, database, &why),
        }
    }

    /// Still the same session of the same server? Then the backup ends, if there is one, and the end is read.
    async fn end(&self, deadline: Deadline) -> Result<Ended, String> {
        let explain = |failed| self.error("prove", failed).why;
        let same = |now: &Identity| self.identity.changed(now).map_or(Ok(()), |why| Err(why.to_owned()));
        let mut now = Identity::read(&self.login, &self.identity, deadline).await.map_err(explain)?;
        // A promoted standby answers other questions; that it was promoted is all that matters.
        same(&now)?;
        if self.start.is_empty() {
            return Err("its barrier was never reached".to_owned());
        }
        let mut ended = match &self.backup {
            Some(started) => {
                let most = deadline.left().saturating_sub(backup::READ_ROOM);
                started.stop(&self.login, self.major, deadline.at_most(most), explain).await?
            }
            None => Ended::default(),
        };
        let position = position::read(&self.login, self.identity.in_recovery, deadline).await.map_err(explain)?;
        now.timeline = value(&position, "timeline").map(str::to_owned);
        same(&now)?;
        ended.coordinates.extend(position);
        Ok(ended)
    }

    /// Nothing is locked, and a backup that was started ends with its session: a connection that is gone has nothing left
    /// to confirm.
    pub(super) async fn release(self, deadline: Deadline) -> Result<(), Error> {
        self.login.leave(deadline).await;
        Ok(())
    }

    pub(super) fn describe(&self) -> proto::Database {
        proto::Database {
            engine: "postgresql".to_owned(),
            version: self.login.version.clone(),
            claim: self.held.claim(self.settings.fsync()).into(),
            start: self.start.clone(),
            open_transactions: self.open.writing,
            strategy: self.held.name().to_owned(),
            strategy_reason: self.held.reason().to_owned(),
            oldest_open_transaction: self.open.oldest.and_then(|age| age.try_into().ok()),
            prepared_transactions: self.open.prepared,
            settings: self.settings.listed(),
            lost_tables: self.unlogged.tables.clone(),
            ..proto::Database::default()
        }
    }

    pub(super) fn socket(&self) -> &OwnedFd {
        self.login.socket()
    }

    pub(super) fn places(&self) -> &[Place] {
        &self.places.needed
    }

    pub(super) fn log_places(&self) -> Vec<LogPlace> {
        let remark = |path: &PathBuf| {
            let (severity, code, message, hint) = self.settings.log_remark(path)?;
            let remark = remark(&self.target.name, severity, code, message, hint);
            Some(LogPlace { path: path.clone(), remark })
        };
        self.places.log.iter().filter_map(remark).collect()
    }

    pub(super) fn data_directory(&self) -> Option<&Path> {
        self.places.data()
    }

    pub(super) fn system_identifier(&self) -> Option<u64> {
        self.system_identifier
    }

    pub(super) fn in_backup_mode(&self) -> bool {
        self.held == Held::BackupMode
    }

    pub(super) fn remarks(&self) -> &[proto::Problem] {
        &self.remarks
    }

    fn say(&mut self, severity: Severity, code: &str, message: impl Into<String>, hint: impl Into<String>) {
        self.remarks.push(remark(&self.target.name, severity, code, message, hint));
    }

    fn error(&self, what: &'static str, failed: Refused) -> Error {
        explain(&self.target, &self.login.user, what, failed)
    }
}

/// The data was copied and its log was not: without the label they do not fit together, so there is nothing to restore.
fn without_label(name: &str, mut database: proto::Database, why: &str) -> Proof {
    database.set_claim(Claim::Uncovered);
    let message = format!("held in backup mode, but the backup did not end, so there is no label for its copy: {why}");
    let hint =
        "throw the copy of this database away and take another: with a log copied after the thaw it would be corrupt";
    Proof { database, problem: Some(remark(name, Severity::Warning, "DATABASE_NOT_PROVEN", message, hint)) }
}

/// "17" of "17.2 (Debian 17.2-1)" or "18beta1".
fn major(version: &str) -> Option<u32> {
    version.split(|c: char| !c.is_ascii_digit()).next().and_then(|major| major.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_told_by_their_first_number() {
        assert_eq!(major("17.2 (Debian 17.2-1)"), Some(17));
        assert_eq!(major("18beta1"), Some(18));
        assert_eq!(major("v9"), None);
    }
}
