//! Running a hook: an executable in `hooks.d`, one argument (`freeze`, `thaw`, `prepare`), own process group, bounded
//! output, verdict from its exit status and nothing else.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::proto;

/// One usable hook, as found while preparing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// file name, e.g. "10-orders"; the step is "hook:10-orders"
    pub name: String,
    pub path: PathBuf,
    pub limit: Duration,
    pub required: bool,
    /// its settings ask for the `prepare` phase too
    pub prepare: bool,
}

/// What the hooks directory holds.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// in byte order of their names: the order of `freeze`
    pub hooks: Vec<Hook>,
    /// ignored by name, and said: "10-a~", "README.md" …
    pub ignored: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Prepare,
    Freeze,
    Thaw,
}

/// A hook that ran.
#[derive(Debug, Clone)]
pub struct Ran {
    pub took: Duration,
    pub run: proto::HookRun,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read the hooks directory {}: {source}", dir.display())]
    Directory { dir: PathBuf, source: io::Error },
    #[error("use the hook {}: {why}", path.display())]
    Unusable { path: PathBuf, why: String, hint: String },
    #[error("start the hook {name}: {source}")]
    Start { name: String, source: io::Error },
    #[error("run the hook {name}: it exited with status {code}")]
    Exit { name: String, code: i32, ran: Box<Ran> },
    #[error("run the hook {name}: it was killed by signal {signal}")]
    Killed { name: String, signal: i32, ran: Box<Ran> },
    #[error("run the hook {name}: it did not end within {limit:?} and was killed")]
    TimedOut { name: String, limit: Duration, ran: Box<Ran> },
}

/// Reads `dir`: what will run, in order. A missing directory is an empty listing.
///
/// # Errors
/// `Unusable` for any file that is neither a usable hook nor ignored by name: not executable, CRLF line ends, missing
/// interpreter, writable by others …; nothing is skipped silently.
pub fn list(_dir: &Path, _default_limit: Duration) -> Result<Listing, Error> {
    todo!()
}

/// Runs one phase of a hook in its own process group, within `hook.limit`, killing the whole group (TERM, then KILL)
/// at the limit. `environment` is added to a small defined one (PATH, HOME, LANG).
///
/// # Errors
/// Anything but exit status 0.
pub async fn run(_hook: &Hook, _phase: Phase, _environment: &BTreeMap<String, String>) -> Result<Ran, Error> {
    todo!()
}
