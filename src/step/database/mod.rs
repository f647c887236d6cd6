//! One held session per database instance, whatever the engine.
//!
//! The driver calls, in this order: [`Session::connect`] and [`Session::soften`] while preparing (nobody waits),
//! [`Session::hold`] then [`Session::barrier`] while quiescing, [`Session::closed`] right after the last FIFREEZE,
//! **no SQL while frozen**, and after the thaw [`Session::prove_and_release`].
//!
//! What the engines share lives here: addresses, passwords, limits, and the shape of what is reported.

mod credentials;
mod deadline;
mod door;
pub mod roles;
mod secret;
mod target;
mod told;

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use self::credentials::Resolved;
pub(in crate::step) use self::{
    deadline::{Deadline, Failed, look},
    door::Door,
    told::{coordinate, elsewhere, remark, unproven},
};
pub use self::{
    secret::Secret,
    target::{Address, Busy, Engine, Given, NAME_LIMIT, Strategy, Target, is_there, may_be_in_a_name, same_instance},
};
use super::{mysql, postgres};
use crate::{proto, sys::sockets};

/// Why a database step failed, with the instance, what was tried, and the cure.
#[derive(Debug, thiserror::Error)]
#[error("{what} database {name}: {why}")]
pub struct Error {
    pub name: String,
    /// "connect to", "checkpoint", "hold" …: completes "failed to …", is followed by "database NAME"
    pub what: &'static str,
    pub why: String,
    /// the setting or grant that fixes it; may be empty
    pub hint: String,
}

/// When the caller copies the database's logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Logs {
    /// everything is copied while held
    #[default]
    WhileHeld,
    /// PostgreSQL's log after the thaw: it is held in backup mode
    AfterThaw,
}

/// A directory or file the server needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// "data", "wal", "redo", "binlog" … as `DataPath.purpose` tells it
    pub purpose: &'static str,
    pub path: PathBuf,
    /// copied after the thaw: must not lie where the data does, need not be held
    pub after_thaw: bool,
}

impl Place {
    pub fn new(purpose: &'static str, path: impl Into<PathBuf>) -> Place {
        Place { purpose, path: path.into(), after_thaw: false }
    }
}

/// A session that is held from before the freeze to after the thaw. Dropping it cuts the connection, and with it ends
/// every lock, whatever it was doing.
pub struct Session {
    engine: Held,
    /// about the files its settings are from
    remarks: Vec<proto::Problem>,
}

enum Held {
    Postgres(Box<postgres::Session>),
    Mysql(Box<mysql::Session>),
}

/// The same question to whichever engine it is.
macro_rules! ask {
    ($held:expr, $session:ident => $answer:expr) => {
        match $held {
            Held::Postgres($session) => $answer,
            Held::Mysql($session) => $answer,
        }
    };
}

impl Session {
    /// Connects, authenticates, neutralises timeouts, reads identity and durability settings.
    ///
    /// # Errors
    /// Not reachable, not permitted, not this engine, an engine or version we cannot hold; each with its cure.
    pub async fn connect(target: &Target, logs: Logs, limit: Duration) -> Result<Session, Error> {
        let deadline = Deadline::after(limit);
        let Resolved { target, from, remarks } = credentials::resolve(target, deadline).await?;
        let connected = match target.engine {
            Engine::Postgresql => {
                let session = postgres::Session::connect(&target, logs, deadline).await;
                session.map(|session| Held::Postgres(Box::new(session)))
            }
            Engine::Mysql => {
                let session = mysql::Session::connect(&target, deadline).await;
                session.map(|session| Held::Mysql(Box::new(session)))
            }
        };
        match connected {
            Ok(engine) => Ok(Session { engine, remarks }),
            Err(error) => Err(with_files(error, from.as_deref(), &remarks)),
        }
    }

    /// A duplicate of the connection's socket, for the warden to shut down when we are gone.
    ///
    /// # Errors
    /// dup(2) failed.
    pub fn socket(&self) -> io::Result<OwnedFd> {
        self.own_socket().try_clone()
    }

    /// Says which hold this is, before [`Session::soften`]: a backup is named after it.
    pub fn name(&mut self, hold_id: &str) {
        match &mut self.engine {
            Held::Postgres(session) => session.name(hold_id),
            Held::Mysql(_) => {}
        }
    }

    fn own_socket(&self) -> &OwnedFd {
        ask!(&self.engine, session => session.socket())
    }

    /// Slow work nobody waits for: CHECKPOINT, waiting for open write transactions (`drain`). A checkpoint that is not
    /// permitted or not finished in time, and transactions that stay open, are remarks, not errors.
    ///
    /// # Errors
    /// The server refused, or did not answer within `limit`.
    pub async fn soften(&mut self, limit: Duration) -> Result<(), Error> {
        let deadline = Deadline::after(limit);
        ask!(&mut self.engine, session => session.soften(deadline).await)
    }

    /// Takes the lock the engine needs, if any. On error everything it took is released again.
    ///
    /// # Errors
    /// The server refused or `limit` passed.
    pub async fn hold(&mut self, hold_id: &str, limit: Duration) -> Result<(), Error> {
        let deadline = Deadline::after(limit);
        ask!(&mut self.engine, session => session.hold(hold_id, deadline).await)
    }

    /// Everything acknowledged before this returns is on its way to disk; records start coordinates.
    ///
    /// # Errors
    /// The server refused or `limit` passed.
    pub async fn barrier(&mut self, hold_id: &str, limit: Duration) -> Result<(), Error> {
        let deadline = Deadline::after(limit);
        ask!(&mut self.engine, session => session.barrier(hold_id, deadline).await)
    }

    /// Who this is and where it stands now, in coordinates of the same names as the start's. Only reads.
    ///
    /// # Errors
    /// The server refused, or did not answer within `limit`.
    pub async fn position(&mut self, limit: Duration) -> Result<Vec<proto::Coordinate>, Error> {
        let deadline = Deadline::after(limit);
        ask!(&mut self.engine, session => session.now(deadline).await)
    }

    /// Has the server closed the connection? Looks at the socket only; sends nothing.
    pub fn closed(&self) -> bool {
        sockets::closed(self.own_socket())
    }

    /// After the thaw: proves on this session that it still holds, reads end coordinates, releases, disconnects.
    /// What could not be proven drops the claim to `recoverable` and says why; it never fails the release.
    pub async fn prove_and_release(self, limit: Duration) -> Proof {
        let deadline = Deadline::after(limit);
        ask!(self.engine, session => session.prove_and_release(deadline).await)
    }

    /// Releases without proof (the hold failed before or while freezing).
    ///
    /// # Errors
    /// The server did not confirm within `limit`; the connection is cut all the same.
    pub async fn release(self, limit: Duration) -> Result<(), Error> {
        let deadline = Deadline::after(limit);
        ask!(self.engine, session => session.release(deadline).await)
    }

    /// What is known so far, in the contract's shape: engine, version, expected claim, start coordinates.
    pub fn describe(&self) -> proto::Database {
        ask!(&self.engine, session => session.describe())
    }

    /// The server's process, if the socket told (SO_PEERCRED): its view resolves the paths below.
    pub fn server_pid(&self) -> Option<i32> {
        sockets::server_pid(self.own_socket())
    }

    /// Whether the connection is to a port, so that the kernel cannot say whose.
    pub fn is_over_tcp(&self) -> bool {
        sockets::addresses(self.own_socket()).is_some()
    }

    /// Everything that must be in the snapshot: data, WAL or redo, tablespaces …, as the server sees it. A path may be a
    /// symbolic link (`pg_wal` often is): resolve it in the server's view.
    pub fn places(&self) -> Vec<Place> {
        ask!(&self.engine, session => session.places().to_vec())
    }

    /// Files the server writes its log to, each with what to say if it lies on a file system that is frozen: a server
    /// that cannot write its log may stop answering.
    pub fn log_places(&self) -> Vec<LogPlace> {
        ask!(&self.engine, session => session.log_places())
    }

    /// What [`postgres::system_identifier_of`] must find in its data directory, if these are its files (PostgreSQL).
    pub fn system_identifier(&self) -> Option<u64> {
        match &self.engine {
            Held::Postgres(session) => session.system_identifier(),
            Held::Mysql(_) => None,
        }
    }

    /// Its log is copied after the thaw, so that its proof brings out what a restore cannot do without.
    pub fn in_backup_mode(&self) -> bool {
        match &self.engine {
            Held::Postgres(session) => session.in_backup_mode(),
            Held::Mysql(_) => false,
        }
    }

    /// Files of tables without transactions lie in its data directory (`*.MYD`, `*.CSV`, `*.ARZ`, other than the server's own). If it has told of no such table it does not tell us all, and it is held as if there were many.
    pub fn doubt_tables(&mut self) {
        match &mut self.engine {
            Held::Postgres(_) => {}
            Held::Mysql(session) => session.doubt_tables(),
        }
    }

    /// Things the operator should know (statement logging on a frozen disk, relaxed durability …).
    pub fn remarks(&self) -> Vec<proto::Problem> {
        let mut remarks = self.remarks.clone();
        remarks.extend(ask!(&self.engine, session => session.remarks().to_vec()));
        remarks
    }
}

/// A log of the server, and what it means if that log is frozen.
#[derive(Debug, Clone)]
pub struct LogPlace {
    /// as the server sees it
    pub path: PathBuf,
    /// said only if the path lies on a file system of the hold
    pub remark: proto::Problem,
}

/// Why a login failed may be in a file nobody here was told to read.
fn with_files(mut error: Error, from: Option<&Path>, remarks: &[proto::Problem]) -> Error {
    let mut add = |text: String| {
        let join = if error.hint.is_empty() { "" } else { "; " };
        error.hint = format!("{}{join}{text}", error.hint);
    };
    if let Some(path) = from {
        add(format!("the password was taken from {}", path.display()));
    }
    for said in remarks {
        add(said.message.clone());
    }
    error
}

/// How a session's hold ended.
#[derive(Debug, Clone)]
pub struct Proof {
    /// with claim, start and end coordinates
    pub database: proto::Database,
    /// why the claim is lower than expected, if it is
    pub problem: Option<proto::Problem>,
}
