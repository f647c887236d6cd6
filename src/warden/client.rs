//! The daemon's side: start the warden, beat to it, tell it what to do, take over when it is dead.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::sync::mpsc;

use super::{Event, FreezeError, Lost, PrepareError, Prepared, Target, Thawed, marker::Marker};

/// A running warden. Cheap to clone; one task owns the socket.
#[derive(Clone)]
pub struct Warden {}

/// How long each file system's flush took; `Err` names why it could not be flushed.
pub type Flushed = Result<Duration, io::Error>;

impl Warden {
    /// Executes `/proc/self/exe warden` as a direct child and waits until it answers. `config` is what `rescue` must
    /// be given should the warden have to become one.
    ///
    /// # Errors
    /// It could not be started or did not answer within 5 s.
    pub async fn spawn(_run: &Path, _config: Option<PathBuf>) -> io::Result<(Warden, mpsc::UnboundedReceiver<Event>)> {
        todo!()
    }

    pub fn pid(&self) -> i32 {
        todo!()
    }

    /// The table shared with every process of ours; the driver records started hooks there.
    pub fn marker(&self) -> &Arc<Marker> {
        todo!()
    }

    /// A hold begins: beats start, the warden locks its memory, the marker names the hold.
    ///
    /// # Errors
    /// The warden is lost, or a file system of an earlier hold is still stuck in the kernel (its mount point is the message).
    pub async fn begin(&self, _hold_id: &str) -> Result<(), BeginError> {
        todo!()
    }

    /// Forks guardian and sentinel for each target; each opens, identifies, and writes its receipt as `prepared` within `limit`.
    ///
    /// # Errors
    /// Only a lost warden; each target's own failure is in its place in the list.
    pub async fn prepare(
        &self,
        _targets: Vec<Target>,
        _limit: Duration,
    ) -> Result<Vec<Result<Prepared, PrepareError>>, Lost> {
        todo!()
    }

    /// One round of `syncfs` on all targets, in parallel, each answer with its duration; those beyond `limit` are `TimedOut`.
    ///
    /// # Errors
    /// The warden is lost.
    pub async fn flush(&self, _limit: Duration) -> Result<Vec<Flushed>, Lost> {
        todo!()
    }

    /// Duplicates a database session's socket into the warden, which shuts it down at deadline + 2 s or when the daemon is lost.
    ///
    /// # Errors
    /// The warden is lost.
    pub async fn guard_socket(&self, _name: &str, _socket: OwnedFd) -> Result<(), Lost> {
        todo!()
    }

    /// Sets the deadline: everything is thawed `from_now` after this call, whoever lives. Called before the first step
    /// that makes anyone wait, again when all is held, and by `extend`.
    ///
    /// # Errors
    /// The warden is lost.
    pub async fn arm(&self, _from_now: Duration) -> Result<(), Lost> {
        todo!()
    }

    /// The last `syncfs`, receipts overwritten to `frozen` with `receipts` (new `receipt.json` per index), then FIFREEZE,
    /// level by level (`levels[0]` first: the innermost), all of one level in parallel, RCU expedited meanwhile if
    /// `expedite_rcu` and nothing speaks against it. Returns how long each FIFREEZE took.
    ///
    /// # Errors
    /// See [`FreezeError`]; whatever froze is still frozen and must be thawed with [`Warden::thaw`].
    pub async fn freeze(
        &self,
        _levels: Vec<Vec<usize>>,
        _receipts: Vec<(usize, Vec<u8>)>,
        _expedite_rcu: bool,
        _flush_limit: Duration,
        _freeze_limit: Duration,
    ) -> Result<Vec<(usize, Duration)>, FreezeError> {
        todo!()
    }

    /// Thaws everything of ours, outermost first; never fails, never waits for one that is stuck; works without a warden.
    pub async fn thaw(&self) -> Vec<Thawed> {
        todo!()
    }

    /// After the thaw (or instead of a freeze): final `receipt.json` and state (`released` or `aborted`) per index; each
    /// within `limit`. Without a warden this is done by the daemon itself.
    pub async fn testify(&self, _receipts: Vec<(usize, Vec<u8>)>, _aborted: bool, _limit: Duration) {
        todo!()
    }

    /// The hold is over: guardians and sentinels end, memory is unlocked, beats stop, the marker says idle.
    pub async fn end(&self) {
        todo!()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    #[error(transparent)]
    Lost(#[from] Lost),
    #[error("hold again: an earlier freeze of {} has not left the kernel yet", mount.display())]
    StillStuck { mount: PathBuf },
}
