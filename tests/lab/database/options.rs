//! How a server is to be set up and started.

use std::path::{Path, PathBuf};

use crate::lab::Fs;

/// Settings under which a server acknowledges what is not on disk yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Durability {
    #[default]
    Full,
    Relaxed,
}

/// Where the server lives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Place {
    /// paths are for it what they are for everybody
    #[default]
    Beside,
    /// a root, a /run, and process numbers of its own; its socket is only reached through `/proc/PID/root`
    Container(Network),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    Shared,
    Own,
}

/// How it listens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Listens {
    /// on a socket, and nowhere else
    #[default]
    Socket,
    /// on a port of 127.0.0.1; PostgreSQL then has no socket, the others have one that nobody finds
    Port,
}

/// What a MySQL-like server writes to its binary log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Binlog {
    Off,
    #[default]
    Positions,
    /// `gtid_mode=ON`; MariaDB has GTIDs anyway
    Gtids,
}

/// How `root` gets into MySQL; MariaDB's always comes by `unix_socket`, as Debian sets it up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Root {
    #[default]
    NoPassword,
    AuthSocket,
}

/// A directory of the fact's that the server sees somewhere else.
#[derive(Debug, Clone)]
pub struct Bind {
    pub from: PathBuf,
    pub to: PathBuf,
}

#[derive(Clone)]
pub struct ServerOptions<'a> {
    /// the data directory: `data` on this file system
    pub data: Option<&'a Fs<'a>>,
    /// the log's directory, on a file system of its own: WAL; redo and binary log
    pub log: Option<&'a Fs<'a>>,
    /// a directory for tablespaces, on a file system of its own
    pub spaces: Option<&'a Fs<'a>>,
    pub durability: Durability,
    /// `name=value`, as in its configuration file; for initialising too where that is one program
    pub settings: Vec<String>,
    pub place: Place,
    pub listens: Listens,
    pub binlog: Binlog,
    pub root: Root,
    pub binds: Vec<Bind>,
}

impl<'a> ServerOptions<'a> {
    /// Data that exist already.
    pub fn existing() -> Self {
        ServerOptions {
            data: None,
            log: None,
            spaces: None,
            durability: Durability::default(),
            settings: Vec::new(),
            place: Place::default(),
            listens: Listens::default(),
            binlog: Binlog::default(),
            root: Root::default(),
            binds: Vec::new(),
        }
    }

    pub fn on(fs: &'a Fs<'a>) -> Self {
        ServerOptions { data: Some(fs), ..Self::existing() }
    }

    #[must_use]
    pub fn setting(mut self, setting: &str) -> Self {
        self.settings.push(setting.to_owned());
        self
    }

    /// The copy of a file system, where the server had the original.
    #[must_use]
    pub fn instead_of(mut self, original: &Fs, copy: &Fs) -> Self {
        self.binds.push(Bind { from: copy.mount.clone(), to: original.mount.clone() });
        self
    }

    /// What a path of the fact's is called by the server.
    pub fn inside(&self, outside: &Path) -> PathBuf {
        let moved = self.binds.iter().find_map(|b| Some((outside.strip_prefix(&b.from).ok()?, &b.to)));
        match moved {
            Some((rest, to)) if rest.as_os_str().is_empty() => to.clone(),
            Some((rest, to)) => to.join(rest),
            None => outside.to_owned(),
        }
    }
}
