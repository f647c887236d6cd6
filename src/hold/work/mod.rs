//! What a hold does, phase by phase, and how it is undone. The driver runs these futures and may drop any of them at
//! any point: whatever was started is on the undo stack before it acts.
//!
//! `prepare` (nobody waits) → `quiesce` (writers wait) → held → `release`; `hooks` are run from all three.

mod hooks;
mod prepare;
mod quiesce;
mod release;

use std::{sync::Arc, time::Duration};

use tokio::{task::JoinHandle, time::Instant};

use super::{
    admit, budget::Wait, plan::Achieved, record::Records, report::Publisher, survey::Surroundings, undo::UndoStack,
};
use crate::{
    config::Settings,
    guest::Dev,
    proto::{self, Claim},
    step::{
        database::{self, Session},
        hook::{self, Hook},
    },
    sys::{clock, process::Stop},
    warden::{Lost, client::Warden},
};

const STUCK_HINT: &str = "nobody can cancel a freeze inside the kernel: stop what blocks it (a btrfs scrub or balance: \
                          `btrfs scrub cancel`; a loop device: thaw the file system its file lies on)";

/// How what was started is undone. Pushed before the step acts.
enum Undo {
    /// close sessions that hold nothing
    Sessions,
    /// last word in the receipts, then guardians and sentinels end
    Guards,
    /// its `thaw`, after the phase that may still be running has ended
    Hook { index: usize, running: Option<RunningHook> },
    /// prove and release, all in parallel
    Databases,
    /// thaw
    Filesystems,
}

/// A hook's phase in progress, and how to end it early.
struct RunningHook {
    task: JoinHandle<Result<Option<hook::Ran>, hook::Error>>,
    stop: Stop,
}

/// One database, and how far it got.
struct Held {
    step: String,
    required: bool,
    covered: bool,
    session: Option<Session>,
    /// a statement was sent and its answer not read: only closing the socket is safe
    mid_statement: bool,
    held: bool,
    claim: Claim,
}

pub struct Work<'a> {
    settings: Arc<Settings>,
    surroundings: Arc<Surroundings>,
    publisher: &'a Publisher,
    warden: Warden,
    id: String,
    spec: proto::HoldSpec,
    undos: UndoStack<Undo>,
    hooks: Vec<Hook>,
    /// the phase for which the report was written where hooks read it
    reported: Option<hook::Phase>,
    databases: Vec<Held>,
    records: Records,
    /// step name per warden target
    names: Vec<String>,
    /// the superblock of each target
    devs: Vec<Dev>,
    /// the block devices each target is mounted from
    devices: Vec<Vec<Dev>>,
    levels: Vec<Vec<usize>>,
    achieved: Achieved,
    /// all of ours is held: databases, and the file systems, unless the caller freezes those
    all_held: bool,
    /// writers go on until then, whatever is ready
    not_before: Instant,
    /// CLOCK_MONOTONIC from which on writers may have waited
    stalled: Option<Duration>,
    /// writers go on again: file systems and databases are let go
    waited: Option<Wait>,
}

impl<'a> Work<'a> {
    pub fn new(
        settings: Arc<Settings>,
        surroundings: Arc<Surroundings>,
        publisher: &'a Publisher,
        warden: Warden,
        id: String,
        spec: proto::HoldSpec,
        not_before: Instant,
    ) -> Self {
        Work {
            settings,
            surroundings,
            publisher,
            warden,
            id,
            spec,
            undos: UndoStack::default(),
            hooks: Vec::new(),
            reported: None,
            databases: Vec::new(),
            records: Records::default(),
            names: Vec::new(),
            devs: Vec::new(),
            devices: Vec::new(),
            levels: Vec::new(),
            achieved: Achieved::default(),
            all_held: false,
            not_before,
            stalled: None,
            waited: None,
        }
    }

    /// What this hold cost writers; `None` if nobody was made to wait. To be asked when it is released.
    pub fn waited(&self) -> Option<Wait> {
        self.waited.or_else(|| self.wait_so_far())
    }

    fn wait_so_far(&self) -> Option<Wait> {
        let took = clock::monotonic().saturating_sub(self.stalled?);
        Some(Wait { until: clock::boottime(), took })
    }

    pub fn prepare_limit(&self) -> Duration {
        admit::duration(self.spec.prepare_timeout.as_ref(), self.settings.hold.prepare)
    }

    pub fn quiesce_limit(&self) -> Duration {
        admit::duration(self.spec.quiesce_timeout.as_ref(), self.settings.hold.quiesce)
    }

    pub fn max_hold(&self) -> Duration {
        admit::duration(self.spec.max_hold.as_ref(), self.settings.hold.max)
    }

    /// # Errors
    /// The warden is lost.
    pub async fn arm(&self, from_now: Duration) -> Result<(), Lost> {
        self.warden.arm(from_now).await
    }
}

/// Puts what a session says into its step. Where the files are only the survey knows.
fn tell(step: &mut proto::Step, mut database: proto::Database) {
    if let Some(proto::step::Detail::Database(before)) = step.detail.as_mut() {
        database.paths = std::mem::take(&mut before.paths);
    }
    step.detail = Some(proto::step::Detail::Database(database));
}

impl Held {
    /// What it is worth if it could not be held: the engine recovers from one instant, but not from data of one and a log
    /// of another.
    fn unheld(&self) -> Claim {
        match &self.session {
            Some(session) if session.in_backup_mode() => Claim::Uncovered,
            Some(_) | None => Claim::Recoverable,
        }
    }

    /// Runs statements on the session. Dropped in the middle, the session is never spoken to again.
    async fn statement<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut Session) -> Result<T, database::Error>,
    ) -> Result<T, database::Error> {
        let Some(session) = self.session.as_mut() else {
            return Err(database::Error {
                name: self.step.clone(),
                what: "use the session",
                why: "it is closed".into(),
                hint: String::new(),
            });
        };
        self.mid_statement = true;
        let result = work(session).await;
        self.mid_statement = false;
        result
    }
}
