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
//! | [`identity`] [`settings`] [`standby`] [`places`] [`unlogged`] | which server it is, how durable, how far behind, where its files are, what a restart empties |
//! | [`phases`] [`proof`] | what is done before the freeze, and after the thaw |
//! | [`transactions`] [`backup`] [`position`] | what is open; start and stop of a backup; where the log stands |

mod backup;
mod connect;
mod explain;
mod identity;
mod phases;
mod places;
mod position;
mod proof;
mod settings;
mod standby;
mod strategy;
mod transactions;
mod unlogged;

use std::{os::fd::OwnedFd, path::PathBuf};

pub use self::identity::system_identifier_of;
use self::{
    backup::Started,
    connect::{Login, Refused},
    explain::{CONNECT, explain},
    identity::Identity,
    places::{Hidden, Places},
    settings::Settings,
    strategy::Held,
    transactions::{Open, counted},
    unlogged::Unlogged,
};
use super::database::{Deadline, Error, LogPlace, Logs, Place, Target, elsewhere, remark};
use crate::{
    proto::{self, Severity},
    sys::sockets,
};

/// The oldest major version that is held.
const OLDEST: u32 = 12;

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
            remarks.extend(standby::remarks(&self.login, &self.settings, deadline).await?);
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
