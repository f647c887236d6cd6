//! Configuration in three stages: fragments (one file each, unknown keys refused) → merged → [`Settings`] (validated, typed).

use std::{path::PathBuf, time::Duration};

use crate::{proto, step::database};

/// Everything the daemon runs by, validated.
#[derive(Debug, Clone)]
pub struct Settings {
    pub hold: Hold,
    pub listen: Listen,
    pub access: Access,
    pub filesystems: Filesystems,
    pub transient: Transient,
    pub hooks: Hooks,
    pub paths: Paths,
    pub receipt: Receipt,
    pub databases: Databases,
}

#[derive(Debug, Clone)]
pub struct Hold {
    pub max: Duration,
    pub quiesce: Duration,
    pub prepare: Duration,
    pub max_stall: Duration,
    pub require: proto::Consistency,
}

#[derive(Debug, Clone)]
pub struct Listen {
    pub unix: PathBuf,
    pub guest_agent: GuestAgent,
    pub relay: bool,
    pub vsock: Option<u32>,
    pub tcp: Option<Tcp>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestAgent {
    Auto,
    Off,
    Path(PathBuf),
}

#[derive(Debug, Clone)]
pub struct Tcp {
    pub address: std::net::SocketAddr,
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub client_ca: PathBuf,
    pub clients: Vec<TcpClient>,
}

#[derive(Debug, Clone)]
pub struct TcpClient {
    pub san: String,
    pub role: Role,
}

/// What a caller may do: look (read), or operate (everything).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Look,
    Operate,
}

#[derive(Debug, Clone, Default)]
pub struct Access {
    pub operate: Vec<Principal>,
    pub look: Vec<Principal>,
}

/// Who may ask, resolved to numbers when the configuration is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    User { name: String, uid: u32 },
    Group { name: String, gid: u32 },
}

#[derive(Debug, Clone)]
pub struct Filesystems {
    /// mount points or globs; empty: every local writable file system
    pub include: Vec<glob::Pattern>,
    pub exclude: Vec<glob::Pattern>,
    pub expedite_rcu: bool,
}

#[derive(Debug, Clone)]
pub struct Transient {
    pub policy: TransientPolicy,
    pub mounts: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransientPolicy {
    Warn,
    Refuse,
}

#[derive(Debug, Clone)]
pub struct Hooks {
    pub dir: PathBuf,
    pub timeout: Duration,
}

#[derive(Debug, Clone)]
pub struct Paths {
    pub run: PathBuf,
    pub state: PathBuf,
}

#[derive(Debug, Clone)]
pub struct Receipt {
    pub enabled: bool,
}

#[derive(Debug, Clone)]
pub struct Databases {
    pub discover: bool,
    pub configured: Vec<database::Target>,
}
