//! Holding MySQL, Percona Server and MariaDB. Called by [`super::database::Session`].
//!
//! ```text
//!   connect ─▶ what is it, what has it, what may we       flavour · settings · places · cluster · tables
//!              ─▶ which way to hold                       strategy
//!   soften  ─▶ flush · drain · who is in the way?         flush · drain · guard
//!   hold    ─▶ take the lock, or less                     locks
//!   barrier ─▶ coordinates · flush, proven                coordinates · flush
//!              (freeze, thaw)
//!   prove   ─▶ end coordinates · still held? · let go     proof
//! ```
//!
//! Coordinates are read before the flush: whatever they name is then flushed, also where commits go on.

mod arrive;
mod cluster;
mod connect;
mod coordinates;
mod drain;
mod explain;
mod flavour;
mod flush;
mod grants;
mod guard;
mod link;
mod locks;
mod obstacle;
mod places;
mod prepare;
mod proof;
mod replicas;
mod rights;
mod settings;
mod statement;
mod strategy;
mod tables;

use std::os::fd::OwnedFd;

use self::{
    cluster::Cluster,
    coordinates::May,
    drain::Writer,
    explain::{CONNECT, HOLD, LOCK_WAIT_TIMEOUT, explain},
    flavour::Server,
    link::{Link, Trouble, code},
    locks::{END_WAIT, Lock},
    proof::Sight,
    settings::Settings,
    strategy::{Choice, Kind, Worth},
    tables::Tables,
};
use super::database::{Busy, Deadline, Error, LogPlace, Place, Target, elsewhere, remark};
use crate::proto::{self, Severity};

pub(super) struct Session {
    target: Target,
    link: Link,
    /// can end `link` when it answers to nobody
    second: Option<Link>,
    /// whom the server takes us for, `user@host`
    user: String,
    server: Server,
    settings: Settings,
    cluster: Cluster,
    may: May,
    /// names our thread in performance_schema, as SQL
    thread: Option<String>,
    tables: Tables,
    /// files say that there are more
    doubted: bool,
    places: Vec<Place>,
    choice: Choice,
    remarks: Vec<proto::Problem>,
    /// what lowered the claim, if anything did
    lowered: Option<proto::Problem>,
    /// open write transactions; `None`: we may not know
    writers: Option<Vec<Writer>>,
    /// `None`: we may not know
    prepared: Option<u32>,
    /// every acknowledged commit was written out at the barrier, or none had to be
    flushed: bool,
    /// after the thaw it can be shown that it was held
    provable: bool,
    lock: Lock,
    /// the lock was seen after it was taken
    seen: bool,
    start: Vec<proto::Coordinate>,
}

impl Session {
    /// # Errors
    /// What was in the way, or the server refused; nothing stays locked.
    pub(super) async fn hold(&mut self, hold_id: &str, deadline: Deadline) -> Result<(), Error> {
        loop {
            let kind = self.choice.kind;
            self.guard_once(deadline).await?;
            if self.choice.kind != kind {
                continue; // something is in the way: with less, or not at all
            }
            let Err(failed) = self.take(kind, hold_id, deadline).await else { break };
            let waited_in_vain = code(&failed) == Some(LOCK_WAIT_TIMEOUT);
            let mut error = self.error(HOLD, failed);
            self.let_go(Deadline::after(END_WAIT)).await;
            if !waited_in_vain || self.lock != Lock::Nothing {
                return Err(error);
            }
            self.explain_wait(kind, &mut error).await;
            let less = kind.less(&self.server).filter(|_| self.target.busy == Busy::Degrade);
            let Some(less) = less else { return Err(error) };
            self.degrade(less, &error.why);
        }
        Ok(())
    }

    /// Behind whom, and what follows from it.
    async fn explain_wait(&mut self, kind: Kind, error: &mut Error) {
        if let Some(who) = self.who_was_it(kind, Deadline::after(END_WAIT)).await {
            error.why = format!("{}, behind {who}", error.why);
        }
        if kind.needs_a_second_session(&self.server) {
            let message =
                "the lock failed behind a running statement: whoever needs the same tables waits until that ends";
            let hint = "end it; see \"Waiting for table flush\" in SHOW PROCESSLIST";
            self.say(Severity::Warning, "READERS_WAIT", message, hint);
            error.hint = format!("{}; {message}", error.hint);
        }
    }

    /// # Errors
    /// The server refused or did not answer; the caller releases.
    pub(super) async fn barrier(&mut self, _hold_id: &str, deadline: Deadline) -> Result<(), Error> {
        let (Lock::Taking(kind) | Lock::Held(kind)) = self.lock else {
            return Err(self.error(HOLD, Trouble::Refused(std::io::Error::other("it is not held").into())));
        };
        match self.sight(kind, deadline).await.map_err(|failed| self.error("look at the lock of", failed))? {
            Sight::Held => self.seen = kind != Kind::FreezeOnly,
            Sight::Unseen => {}
            Sight::Gone => {
                let gone = std::io::Error::other("the server does not show the lock it granted");
                return Err(self.error(HOLD, Trouble::Refused(gone.into())));
            }
        }
        let logical = self.position(deadline).await.map_err(|failed| self.error("read the position of", failed))?;
        self.provable = self.can_be_shown(kind, &logical);
        let flushed = flush::flush(&mut self.link, &self.server, deadline).await;
        self.flushed = flushed.map_err(|failed| self.error("flush", failed))?;
        let physical = coordinates::physical(&mut self.link, &self.server, self.may, deadline).await;
        let physical = physical.map_err(|failed| self.error("read the position of", failed))?;
        self.start = coordinates::identity(&self.settings).into_iter().chain(logical).chain(physical).collect();
        let counted = self.count_transactions(deadline).await;
        counted.map_err(|failed| self.error("read the transactions of", failed))?;
        self.count_prepared(deadline).await.map_err(|failed| self.error("read the transactions of", failed))?;
        self.say_what_lowers();
        Ok(())
    }

    /// As at the barrier; only reads.
    ///
    /// # Errors
    /// The server refused or did not answer.
    pub(super) async fn now(&mut self, deadline: Deadline) -> Result<Vec<proto::Coordinate>, Error> {
        let logical = self.position(deadline).await.map_err(|failed| self.error("read the position of", failed))?;
        let physical = coordinates::physical(&mut self.link, &self.server, self.may, deadline).await;
        let physical = physical.map_err(|failed| self.error("read the position of", failed))?;
        let now: Vec<_> = coordinates::identity(&self.settings).into_iter().chain(logical).chain(physical).collect();
        Ok(coordinates::told(&now))
    }

    /// Where the server stands in committed work.
    async fn position(&mut self, deadline: Deadline) -> Result<Vec<proto::Coordinate>, Trouble> {
        coordinates::read(&mut self.link, &self.server, &self.settings, self.may, deadline).await
    }

    fn worth(&self) -> Worth {
        Worth {
            flushed: self.flushed,
            redo: self.settings.writes_redo(),
            tables: self.tables.count(),
            provable: self.provable,
        }
    }

    pub(super) async fn release(mut self, deadline: Deadline) -> Result<(), Error> {
        self.let_go(deadline.at_most(END_WAIT)).await;
        let released = self.lock == Lock::Nothing;
        let name = self.target.name.clone();
        self.close(deadline).await;
        if released {
            return Ok(());
        }
        Err(Error {
            name,
            what: "release",
            why: "it did not confirm that it let go; the connection was cut, which ends every lock too".to_owned(),
            hint: "if writers still wait, look for a session that holds a lock: SHOW PROCESSLIST".to_owned(),
        })
    }

    async fn close(self, deadline: Deadline) {
        self.link.close(deadline, END_WAIT).await;
        if let Some(second) = self.second {
            second.close(deadline, END_WAIT).await;
        }
    }

    pub(super) fn describe(&self) -> proto::Database {
        let (Lock::Taking(kind) | Lock::Held(kind)) = self.lock else { return self.described(self.choice.kind) };
        self.described(kind)
    }

    fn described(&self, kind: Kind) -> proto::Database {
        let writers = self.writers.as_deref().unwrap_or_default();
        let oldest = drain::oldest(writers).and_then(|age| age.try_into().ok());
        let shown = |tables: &[tables::Table]| tables.iter().take(MOST_TABLES).map(ToString::to_string).collect();
        proto::Database {
            engine: self.server.engine().to_owned(),
            version: self.server.full.clone(),
            claim: strategy::claim(kind, self.worth()).into(),
            start: coordinates::told(&self.start),
            end: Vec::new(),
            open_transactions: writers.len().try_into().unwrap_or(u32::MAX),
            oldest_open_transaction: oldest,
            prepared_transactions: self.prepared.unwrap_or(0),
            strategy: kind.name().to_owned(),
            strategy_reason: self.choice.why.clone(),
            settings: self.settings.told(),
            non_transactional_tables: shown(&self.tables.non_transactional),
            lost_tables: shown(&self.tables.lost),
            ..proto::Database::default()
        }
    }

    pub(super) fn socket(&self) -> &OwnedFd {
        &self.link.socket
    }

    pub(super) fn places(&self) -> &[Place] {
        &self.places
    }

    pub(super) fn log_places(&self) -> Vec<LogPlace> {
        let place = |(path, message, hint): (_, &str, &str)| {
            let remark = remark(&self.target.name, Severity::Warning, "STATEMENT_LOG", message, hint);
            LogPlace { path, remark }
        };
        self.settings.statement_log().into_iter().map(place).collect()
    }

    pub(super) fn remarks(&self) -> &[proto::Problem] {
        &self.remarks
    }

    /// Said once, however often it is found.
    fn say(&mut self, severity: Severity, code: &str, message: impl Into<String>, hint: impl Into<String>) {
        let said = remark(&self.target.name, severity, code, message, hint);
        if !self.remarks.contains(&said) {
            self.remarks.push(said);
        }
    }

    fn error(&self, what: &'static str, failed: Trouble) -> Error {
        explain(&self.target, &self.user, what, failed)
    }

    /// SQL that gives the account this privilege.
    fn grant(&self, privilege: &str) -> String {
        grants::grant(privilege, &grants::account(&self.user))
    }
}

/// As the contract has it.
const MOST_TABLES: usize = 64;
