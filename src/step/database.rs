//! One held session per database instance, whatever the engine.
//!
//! The driver calls, in this order: [`Session::connect`] and [`Session::soften`] while preparing (nobody waits),
//! [`Session::hold`] then [`Session::barrier`] while quiescing, [`Session::closed`] right after the last FIFREEZE,
//! **no SQL while frozen**, and after the thaw [`Session::prove_and_release`].

use std::{os::fd::OwnedFd, path::PathBuf, time::Duration};

use crate::proto;

/// An instance to hold: found on a default socket, or configured.
#[derive(Debug, Clone)]
pub struct Target {
    /// the `orders` of `db:orders`; discovered ones are named after engine and socket, e.g. "postgresql:5432"
    pub name: String,
    pub engine: Engine,
    pub at: Address,
    pub user: Option<String>,
    /// read while connecting; must be owned by root or us and closed to others
    pub password_file: Option<PathBuf>,
    /// configured, so that failing to reach it is an error, not a lower level
    pub configured: bool,
    pub required: bool,
    /// how long to wait, while preparing, for open write transactions to end
    pub drain: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Postgresql,
    /// MariaDB and MySQL speak the same protocol; which one it is shows after connecting
    Mysql,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// a unix socket file
    Socket(PathBuf),
    Tcp {
        host: String,
        port: u16,
    },
}

/// Why a database step failed, with the instance, what was tried, and the cure.
#[derive(Debug, thiserror::Error)]
#[error("{what} of {name}: {why}")]
pub struct Error {
    pub name: String,
    /// "connect to", "checkpoint" …: completes "failed to …"
    pub what: &'static str,
    pub why: String,
    /// the setting or grant that fixes it; may be empty
    pub hint: String,
}

/// A session that is held from before the freeze to after the thaw. Dropping it closes the connection, and with it
/// every lock.
pub struct Session {}

impl Session {
    /// Connects, authenticates, neutralises timeouts, reads identity and durability settings.
    ///
    /// # Errors
    /// Not reachable, not permitted, not this engine, an engine or version we cannot hold; each with its cure.
    pub async fn connect(_target: &Target, _limit: Duration) -> Result<Session, Error> {
        todo!()
    }

    /// A duplicate of the connection's socket, for the warden to shut down when we are gone.
    ///
    /// # Errors
    /// dup(2) failed.
    pub fn socket(&self) -> std::io::Result<OwnedFd> {
        todo!()
    }

    /// Slow work nobody waits for: CHECKPOINT, waiting for open write transactions (`drain`).
    ///
    /// # Errors
    /// The server refused or `limit` passed.
    pub async fn soften(&mut self, _limit: Duration) -> Result<(), Error> {
        todo!()
    }

    /// Takes the lock the engine needs, if any. On error everything it took is released again.
    ///
    /// # Errors
    /// The server refused or `limit` passed.
    pub async fn hold(&mut self, _hold_id: &str, _limit: Duration) -> Result<(), Error> {
        todo!()
    }

    /// Everything acknowledged before this returns is on its way to disk; records start coordinates.
    ///
    /// # Errors
    /// The server refused or `limit` passed.
    pub async fn barrier(&mut self, _hold_id: &str, _limit: Duration) -> Result<(), Error> {
        todo!()
    }

    /// Has the server closed the connection? Looks at the socket only; sends nothing.
    pub fn closed(&self) -> bool {
        todo!()
    }

    /// After the thaw: proves on this session that it still holds, reads end coordinates, releases, disconnects.
    /// What could not be proven drops the claim to `recoverable` and says why; it never fails the release.
    pub async fn prove_and_release(self, _limit: Duration) -> Proof {
        todo!()
    }

    /// Releases without proof (the hold failed before or while freezing).
    ///
    /// # Errors
    /// The server did not confirm within `limit`; the connection is closed all the same.
    pub async fn release(self, _limit: Duration) -> Result<(), Error> {
        todo!()
    }

    /// What is known so far, in the contract's shape: engine, version, expected claim, start coordinates.
    pub fn describe(&self) -> proto::Database {
        todo!()
    }

    /// The server's process, if the socket told (SO_PEERCRED): its view resolves the paths below.
    pub fn server_pid(&self) -> Option<i32> {
        todo!()
    }

    /// Every directory that must be in the snapshot: data, WAL or redo, tablespaces …, as the server sees them.
    pub fn data_paths(&self) -> Vec<PathBuf> {
        todo!()
    }

    /// Things the operator should know (statement logging on a frozen disk, relaxed durability …).
    pub fn remarks(&self) -> Vec<proto::Problem> {
        todo!()
    }
}

/// How a session's hold ended.
#[derive(Debug, Clone)]
pub struct Proof {
    /// with claim, start and end coordinates
    pub database: proto::Database,
    /// why the claim is lower than expected, if it is
    pub problem: Option<proto::Problem>,
}
