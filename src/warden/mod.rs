//! The processes beside the daemon, and the daemon's side of talking to them.
//!
//! ```text
//!   daemon ──socketpair──▶ warden ──socketpair──▶ guardian (one per file system): FIFREEZE, FITHAW
//!                            │  ▲                     │ a byte, after  FIFREEZE returned 0
//!                            │  └──── its return ──── sentinel (one per file system): blocked writing `released`
//!                            ├── all of them share the marker, a table mapped from tmpfs
//!                            └── for a moment, while preparing: a pacer per file system, which writes dirty files back
//! ```
//!
//! Who may let go, and when, is design.md's "Who may let go"; this module is that text in code.

pub mod client;
pub mod entry;
mod guardian;
mod hold;
mod jobs;
mod link;
pub mod marker;
mod pacer;
pub(crate) mod papers;
mod portion;
mod protocol;
mod pulse;
pub mod rcu;
pub mod run;
mod sentinel;
pub(crate) mod takeover;
pub(crate) mod target;
mod underway;
mod walk;

use std::{io, path::PathBuf, time::Duration};

use crate::guest::{Dev, MountPoint};

/// The hidden verb a warden is started with, by exec of this same program.
pub const VERB: &str = "warden";

/// One file system to guard, as planned. Its index in the list given to [`client::Warden::prepare`] names it from then on.
#[derive(Debug, Clone)]
pub struct Target {
    pub dev: Dev,
    /// for people: the mount point as the plan names it
    pub mount: PathBuf,
    pub open_at: MountPoint,
    /// Some: open through this process's root (the superblock is mounted only in its namespace)
    pub namespace: Option<i32>,
    pub uuid: String,
    /// FIFREEZE it; otherwise it is only synced ("flushed, not frozen")
    pub freeze: bool,
    pub receipt: Option<Receipt>,
}

/// What is written to `<fs root>/.holdstill/`. The warden's side treats all of it as opaque bytes.
#[derive(Debug, Clone)]
pub struct Receipt {
    /// `receipt.json`, already padded to its final size
    pub json: Vec<u8>,
    /// `state` in each of its states, each of the same size (a sector padded to 4096 bytes)
    pub prepared: Vec<u8>,
    pub frozen: Vec<u8>,
    pub released: Vec<u8>,
    pub aborted: Vec<u8>,
}

/// A target that is open, identified, and has its receipt in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// why there is no receipt although one was asked for (disk full); `None`: there is one, or none was wanted
    pub no_receipt: Option<String>,
}

/// Why a target cannot be held; found while preparing, so nothing waits.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    #[error("open {}: {source}", mount.display())]
    Open { mount: PathBuf, source: io::Error },
    #[error("open {}: it is no longer the file system that was planned (expected {expected}, found {found})", mount.display())]
    Vanished { mount: PathBuf, expected: Dev, found: String },
    #[error("open {}: it is frozen by somebody else", mount.display())]
    ForeignFreeze { mount: PathBuf },
    #[error("open {}: it did not answer within {limit:?}", mount.display())]
    Stuck { mount: PathBuf, limit: Duration },
    #[error("write a receipt below {}: {why}", mount.display())]
    Receipt { mount: PathBuf, why: String },
    #[error("guard {}: {source}", mount.display())]
    Guard { mount: PathBuf, source: io::Error },
}

/// Why not everything froze. Whatever did freeze is still frozen: the driver thaws.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    #[error("freeze {}: {source}", mount.display())]
    Freeze { index: usize, mount: PathBuf, source: io::Error },
    #[error("freeze {}: somebody else has frozen it", mount.display())]
    ForeignFreeze { index: usize, mount: PathBuf },
    #[error("write the receipt or flush {}: {source}", mount.display())]
    Flush { index: usize, mount: PathBuf, source: io::Error },
    #[error("flush {} within {limit:?}", mount.display())]
    FlushTooSlow { index: usize, mount: PathBuf, limit: Duration },
    /// the kernel has not finished these FIFREEZEs; nobody can cancel one; each thaws the moment it lands
    #[error("freeze {} within {limit:?}: the kernel has not finished", mounts_text(mounts))]
    TooSlow { indices: Vec<usize>, mounts: Vec<PathBuf>, limit: Duration },
    #[error("freeze: {0}")]
    Lost(#[from] Lost),
}

fn mounts_text(mounts: &[PathBuf]) -> String {
    mounts.iter().map(|m| m.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// How one file system's freeze ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thawed {
    /// we thawed it, and it had been frozen all the time
    Ours,
    /// its sentinel returned before we thawed: somebody else did; we left it alone
    Foreign,
    /// it was not frozen by us
    NeverFrozen,
    /// the kernel is still inside FIFREEZE or FITHAW; it is let go the moment that lands
    StillStuck,
}

/// Why a hold was let go without being asked to; a stronger reason replaces a weaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Reason {
    Deadline = 1,
    DaemonLost = 2,
    WardenLost = 3,
    TimeJumped = 4,
}

impl Reason {
    pub(crate) fn from_number(number: u32) -> Option<Reason> {
        [Reason::Deadline, Reason::DaemonLost, Reason::WardenLost, Reason::TimeJumped]
            .into_iter()
            .find(|&reason| reason as u32 == number)
    }
}

/// The warden does not answer, or is dead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the warden is lost")]
pub struct Lost;

/// What happened without being asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// somebody else thawed this one while it was held
    ForeignThaw { index: usize },
    /// a guardian or sentinel died or stopped answering; the file system's freeze has been taken over and thawed
    GuardianLost { index: usize },
    /// the armed deadline passed; everything has been thawed
    Deadline,
    /// the guest was suspended (the two clocks parted); everything has been thawed
    TimeJumped,
    /// the warden is dead or stopped (and was killed); the guardians thaw by themselves
    WardenLost,
}
