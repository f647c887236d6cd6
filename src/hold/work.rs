//! What a hold does, phase by phase, and how it is undone. The driver runs these futures and may drop any of them at
//! any point: whatever was started is on the undo stack before it acts.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::{task::JoinHandle, time::Instant};

use super::{
    Refusal, RefusalKind, admit,
    plan::{Achieved, problem},
    record::Records,
    report::{Publisher, span},
    survey::{self, Surroundings, Survey, level_text},
    undo::UndoStack,
};
use crate::{
    config::Settings,
    failpoint,
    guest::{Dev, disks},
    proto::{self, Claim, Consistency, ReleaseReason, Severity, StepKind, StepOutcome},
    step::{
        database::{Proof, Session},
        filesystem::{Preflush, preflush},
        hook::{self, Hook},
    },
    sys::{process::Stop, sockets},
    warden::{
        self, FreezeError, Lost, PrepareError, Thawed,
        client::{BeginError, Warden},
        rcu,
    },
};

/// A target that does not let itself be opened or written within this is frozen by somebody, or its device is stuck.
const OPEN_LIMIT: Duration = Duration::from_secs(2);
/// After the thaw nobody waits on a disk any more, but a lock is still held: a database gets this long to prove.
const PROVE_LIMIT: Duration = Duration::from_secs(5);
/// A session that holds nothing is closed politely, within this.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);
const TESTIFY_LIMIT: Duration = Duration::from_secs(2);
/// The warden lets go this long after the driver should have given up by itself.
const ARM_SLACK: Duration = Duration::from_secs(1);

/// Why a hold ends.
#[derive(Debug, Clone)]
pub struct End {
    pub reason: ReleaseReason,
    pub refusal: Option<Refusal>,
    pub breaches: Vec<proto::Problem>,
    /// the target this is about, if one
    index: Option<usize>,
}

impl End {
    fn because(reason: ReleaseReason) -> End {
        End { reason, refusal: None, breaches: Vec::new(), index: None }
    }

    pub fn asked() -> End {
        End::because(ReleaseReason::Asked)
    }
    pub fn caller_gone() -> End {
        End::because(ReleaseReason::CallerGone).breach("CALLER_GONE", "the caller was gone, so nobody asked to let go")
    }
    pub fn shutdown() -> End {
        End::because(ReleaseReason::Shutdown).breach("SHUTDOWN", "the daemon was told to stop")
    }
    pub fn deadline() -> End {
        End::because(ReleaseReason::Deadline)
            .breach("DEADLINE", "nobody asked to let go before the deadline; what was captured after it is not held")
    }
    pub fn time_jumped() -> End {
        End::because(ReleaseReason::TimeJumped).breach("TIME_JUMPED", "the guest was suspended while held")
    }
    pub fn warden_lost() -> End {
        End::because(ReleaseReason::WardenLost).breach("WARDEN_LOST", "the warden was killed or stopped answering")
    }
    pub fn guardian_lost(index: usize) -> End {
        End { index: Some(index), ..End::because(ReleaseReason::StepFailed) }
            .breach("GUARDIAN_LOST", "a process that held a file system was killed or stopped answering")
    }
    pub fn foreign_thaw(index: usize) -> End {
        // the breach is added when letting go, with the file system's name
        End { index: Some(index), ..End::because(ReleaseReason::StepFailed) }
    }
    pub fn prepare_timeout(limit: Duration) -> End {
        let refusal = Refusal::new(
            RefusalKind::DeadlineExceeded,
            "PREPARE_TIMEOUT",
            format!("prepare within {}; nothing was made to wait", humantime::format_duration(limit)),
        )
        .hint("`holdstill status` named the step it was at; raise `prepare` in [hold] or --prepare");
        End { refusal: Some(refusal), ..End::because(ReleaseReason::Unspecified) }
    }
    pub fn quiesce_timeout(limit: Duration) -> End {
        End::failed(
            format!("hold everything within {}; all is let go", humantime::format_duration(limit)),
            "raise `quiesce` in [hold] or --quiesce, or make the slow step faster",
        )
    }
    /// Refused before anyone waited.
    pub fn refused(refusal: Refusal) -> End {
        End { refusal: Some(refusal), ..End::because(ReleaseReason::Unspecified) }
    }
    /// A step failed; whatever was started is undone.
    fn failed(message: impl Into<String>, hint: impl Into<String>) -> End {
        let refusal = Refusal::new(RefusalKind::Aborted, "STEP_FAILED", message).hint(hint);
        End { refusal: Some(refusal), ..End::because(ReleaseReason::StepFailed) }
    }

    /// Nobody had been made to wait.
    pub fn is_refusal(&self) -> bool {
        self.reason == ReleaseReason::Unspecified
    }

    fn breach(mut self, code: &str, message: &str) -> End {
        self.breaches.push(problem(Severity::Refusal, code, "", message, "take a new snapshot"));
        self
    }
}

impl From<Lost> for End {
    fn from(_: Lost) -> End {
        End::warden_lost()
    }
}

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
    task: JoinHandle<Result<hook::Ran, hook::Error>>,
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
    databases: Vec<Held>,
    records: Records,
    /// step name per warden target
    names: Vec<String>,
    /// the block devices each target is mounted from
    devices: Vec<Vec<Dev>>,
    levels: Vec<Vec<usize>>,
    achieved: Achieved,
    /// all file systems froze
    frozen: bool,
}

impl<'a> Work<'a> {
    pub fn new(
        settings: Arc<Settings>,
        surroundings: Arc<Surroundings>,
        publisher: &'a Publisher,
        warden: Warden,
        id: String,
        spec: proto::HoldSpec,
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
            databases: Vec::new(),
            records: Records::default(),
            names: Vec::new(),
            devices: Vec::new(),
            levels: Vec::new(),
            achieved: Achieved::default(),
            frozen: false,
        }
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

    // ---- preparing: slow, cancellable, nobody waits -------------------------------------------------------------

    /// # Errors
    /// The [`End`] to release with.
    pub async fn prepare(&mut self, until: Instant) -> Result<(), End> {
        let survey = survey::survey(&self.settings, &self.surroundings, &self.spec).await.map_err(End::refused)?;
        let targets = self.adopt(survey)?;
        self.guard(targets).await?;
        self.soften(until).await?;
        for index in 0..self.hooks.len() {
            if self.hooks[index].prepare {
                self.push_hook(index)?;
                self.run_hook(index, hook::Phase::Prepare, until).await?;
            }
        }
        self.preflush(until).await
    }

    /// Takes over what the survey found; refuses what it refuses.
    fn adopt(&mut self, survey: Survey) -> Result<Vec<warden::Target>, End> {
        let Survey { guest, facts, plan, hooks, databases, steps, problems, refusals, expected } = survey;
        self.publisher.edit(|report| {
            report.steps = steps;
            report.coverage = plan.coverage;
            report.problems = problems;
            report.problems.extend(refusals.iter().map(survey::as_problem));
            report.set_consistency(Consistency::None);
        });
        self.undos.push(Undo::Sessions);
        for db in databases {
            let claim = if db.covered { db.session.describe().claim() } else { Claim::Uncovered };
            self.databases.push(Held {
                step: format!("db:{}", db.target.name),
                required: db.target.required && db.target.configured,
                covered: db.covered,
                session: Some(db.session),
                mid_statement: false,
                held: false,
                claim,
            });
        }
        if let Some(first) = refusals.into_iter().next() {
            return Err(End::refused(first.about(&self.id)));
        }
        self.hooks = hooks;
        self.levels = plan.levels;
        self.achieved = Achieved { claims: Vec::new(), required_hooks: 0, ..expected };
        let wanted = self.settings.receipt.enabled && !self.spec.rehearsal;
        self.records = Records::new(&self.id, &self.surroundings, wanted);
        let report = self.publisher.current().unwrap_or_default();
        let targets = plan.targets.iter().filter_map(|planned| {
            let superblock = &guest.superblocks[planned.superblock];
            let open_at = superblock.open_at.clone()?;
            let facts = facts.get(&superblock.dev).cloned().unwrap_or_default();
            self.names.push(
                report
                    .steps
                    .iter()
                    .find(|s| is_filesystem(s, superblock.dev))
                    .map_or_else(|| format!("fs:{}", open_at.path.display()), |s| s.name.clone()),
            );
            self.devices.push(guest.disks.members(superblock.dev));
            let receipt = planned.freeze.then(|| self.records.prepare(&report, superblock, &facts)).flatten();
            Some(warden::Target {
                dev: superblock.dev,
                mount: open_at.path.clone(),
                open_at,
                namespace: superblock.namespace,
                uuid: facts.uuid,
                freeze: planned.freeze,
                receipt,
            })
        });
        Ok(targets.collect())
    }

    async fn guard(&mut self, targets: Vec<warden::Target>) -> Result<(), End> {
        self.undos.push(Undo::Guards);
        self.warden.begin(&self.id).await.map_err(|error| match error {
            BeginError::Lost(lost) => End::from(lost),
            BeginError::StillStuck { .. } => {
                let refusal = Refusal::new(RefusalKind::FailedPrecondition, "FREEZE_STUCK", error.to_string());
                End::refused(refusal.hint(STUCK_HINT).about(&self.id))
            }
        })?;
        let prepared = self.warden.prepare(targets, OPEN_LIMIT).await?;
        for (name, result) in self.names.iter().zip(prepared) {
            match result {
                Ok(warden::Prepared { no_receipt: None }) => {}
                Ok(warden::Prepared { no_receipt: Some(why) }) => {
                    let message = format!("{name}: held without a receipt ({why}): that copy cannot testify");
                    let hint = "free some space; a receipt needs 64 KiB";
                    self.publisher.problem(problem(Severity::Warning, "NO_RECEIPT", name, &message, hint));
                }
                Err(error) => return Err(End::refused(unprepared(&error).about(&self.id))),
            }
        }
        for db in &self.databases {
            let socket = db.session.as_ref().map(Session::socket);
            match socket {
                Some(Ok(socket)) => self.warden.guard_socket(&db.step, socket).await?,
                Some(Err(error)) => {
                    let message = format!("{}: duplicate its connection: {error}", db.step);
                    return Err(End::failed(message, "see the daemon's limit of open files"));
                }
                None => {}
            }
        }
        Ok(())
    }

    async fn soften(&mut self, until: Instant) -> Result<(), End> {
        let limit = until.saturating_duration_since(Instant::now());
        let work = self.databases.iter_mut().filter(|db| db.covered).map(async |db| {
            let begun = Instant::now();
            let result = db.statement(async |session| session.soften(limit).await).await;
            (db, result, begun.elapsed())
        });
        let mut lost = Vec::new();
        for (db, result, _) in join_all(work).await {
            if let Err(error) = result {
                lost.push((db.step.clone(), db.required, error));
            }
        }
        for (step, required, error) in lost {
            self.database_failed(&step, required, &error)?;
        }
        self.remark();
        Ok(())
    }

    /// What the sessions have noticed so far, said once.
    fn remark(&self) {
        for remark in self.databases.iter().filter_map(|db| db.session.as_ref()).flat_map(Session::remarks) {
            if self.publisher.current().is_some_and(|report| !report.problems.contains(&remark)) {
                self.publisher.problem(remark);
            }
        }
    }

    /// Writes dirty pages back before anyone waits, and notes how much that was.
    async fn preflush(&mut self, until: Instant) -> Result<(), End> {
        let before = disks::written(&self.surroundings.root);
        let result = self.flush_rounds(until).await;
        let after = disks::written(&self.surroundings.root);
        for (name, devices) in self.names.iter().zip(&self.devices) {
            let count = |written: &BTreeMap<Dev, u64>| devices.iter().filter_map(|dev| written.get(dev)).sum::<u64>();
            let flushed = count(&after).saturating_sub(count(&before));
            self.publisher.step(name, |step| {
                if let Some(proto::step::Detail::Filesystem(fs)) = step.detail.as_mut() {
                    fs.flushed_bytes = flushed;
                }
            });
        }
        result
    }

    /// Rounds of writing back, until one more would gain nothing.
    async fn flush_rounds(&mut self, until: Instant) -> Result<(), End> {
        let begun = Instant::now();
        let budget = until.saturating_duration_since(begun);
        let mut rounds: Vec<Vec<Duration>> = vec![Vec::new(); self.names.len()];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            for (index, flushed) in self.warden.flush(left).await?.into_iter().enumerate() {
                match flushed {
                    Ok(took) => rounds[index].push(took),
                    Err(error) => {
                        let refusal = Refusal::new(
                            RefusalKind::FailedPrecondition,
                            "FLUSH_FAILED",
                            format!("write back {}: {error}", self.names[index]),
                        )
                        .hint("see the kernel log for errors of its device");
                        return Err(End::refused(refusal.about(&self.id)));
                    }
                }
            }
            let predicted = match preflush(&rounds, begun.elapsed(), budget) {
                Preflush::Continue => continue,
                Preflush::Converged => return Ok(()),
                Preflush::NotConverged { predicted_stall } => predicted_stall,
            };
            let cap = self.settings.hold.max_stall;
            let text =
                humantime::format_duration(Duration::from_millis(predicted.as_millis().try_into().unwrap_or(u64::MAX)));
            if predicted > cap {
                let refusal = Refusal::new(
                    RefusalKind::FailedPrecondition,
                    "WOULD_STALL",
                    format!(
                        "hold: writers dirty pages faster than they are written back; they would wait about {text}, \
                         more than max_stall = {}",
                        humantime::format_duration(cap)
                    ),
                )
                .hint("try when there is less writing, or raise `max_stall` in [hold]");
                return Err(End::refused(refusal.about(&self.id)));
            }
            let message = format!("pages are dirtied about as fast as they are written back: writers may wait {text}");
            self.publisher.problem(problem(Severity::Note, "STALL_PREDICTED", "", &message, ""));
            return Ok(());
        }
    }

    // ---- quiescing: writers wait from here on -------------------------------------------------------------------

    /// # Errors
    /// The [`End`] to release with.
    pub async fn quiesce(&mut self, until: Instant) -> Result<(), End> {
        self.arm(until.saturating_duration_since(Instant::now()) + ARM_SLACK).await?;
        failpoint::reached("armed").await;
        for index in 0..self.hooks.len() {
            if !self.hooks[index].prepare {
                self.push_hook(index)?;
            }
            self.run_hook(index, hook::Phase::Freeze, until).await?;
        }
        failpoint::reached("hook_frozen").await;
        self.hold_databases(until).await?;
        self.freeze(until).await?;
        self.look_at_databases()?;
        self.claim()?;
        self.arm(self.max_hold()).await?;
        Ok(())
    }

    async fn hold_databases(&mut self, until: Instant) -> Result<(), End> {
        if self.databases.is_empty() {
            return Ok(());
        }
        self.undos.push(Undo::Databases);
        let id = self.id.clone();
        for barrier in [false, true] {
            let limit = until.saturating_duration_since(Instant::now());
            let work = self.databases.iter_mut().filter(|db| db.covered && (db.held || !barrier)).map(async |db| {
                let result =
                    db.statement(async |session| {
                        if barrier { session.barrier(&id, limit).await } else { session.hold(&id, limit).await }
                    })
                    .await;
                db.held = result.is_ok();
                result.err().map(|error| (db.step.clone(), db.required, error))
            });
            let failures: Vec<_> = join_all(work).await.into_iter().flatten().collect();
            for (step, required, error) in failures {
                self.database_failed(&step, required, &error)?;
            }
            failpoint::reached(if barrier { "barrier" } else { "databases_held" }).await;
        }
        self.remark();
        for db in &mut self.databases {
            let Some(session) = db.session.as_ref().filter(|_| db.held) else { continue };
            let described = session.describe();
            db.claim = described.claim();
            self.publisher.step(&db.step, |step| {
                step.set_outcome(StepOutcome::Done);
                step.detail = Some(proto::step::Detail::Database(described));
            });
        }
        Ok(())
    }

    /// A required one fails the hold; any other lowers the level, loudly.
    fn database_failed(&mut self, step: &str, required: bool, error: &crate::step::database::Error) -> Result<(), End> {
        self.publisher.step(step, |s| {
            s.set_outcome(StepOutcome::Failed);
            s.reason = error.to_string();
            s.hint.clone_from(&error.hint);
        });
        if required {
            return Err(End::failed(error.to_string(), error.hint.clone()));
        }
        self.achieved.capped = true;
        let message = error.to_string();
        self.publisher.problem(problem(Severity::Warning, "DATABASE_NOT_HELD", step, &message, &error.hint));
        if let Some(db) = self.databases.iter_mut().find(|db| db.step == step) {
            db.claim = Claim::Recoverable;
        }
        Ok(())
    }

    async fn freeze(&mut self, until: Instant) -> Result<(), End> {
        let report = self.publisher.current().unwrap_or_default();
        let receipts = self.records.update(&report);
        let left = until.saturating_duration_since(Instant::now());
        self.undos.push(Undo::Filesystems);
        self.note_tunable();
        failpoint::reached("freezing").await;
        crate::telemetry::frozen(true);
        let froze = self
            .warden
            .freeze(
                self.levels.clone(),
                receipts,
                self.settings.filesystems.expedite_rcu,
                left.min(self.settings.hold.max_stall),
                left,
            )
            .await
            .map_err(|error| freeze_failed(&error))?;
        self.frozen = true;
        failpoint::reached("frozen").await;
        for (index, took) in froze {
            self.publisher.step(&self.names[index], |step| {
                step.set_outcome(StepOutcome::Done);
                step.took = span(took);
            });
        }
        for (index, name) in self.names.iter().enumerate() {
            if !self.levels.iter().any(|level| level.contains(&index)) {
                self.publisher.step(name, |step| step.set_outcome(StepOutcome::Done));
            }
        }
        Ok(())
    }

    /// The warden raises it just before the first FIFREEZE and restores it when the last one returned.
    fn note_tunable(&self) {
        if !self.settings.filesystems.expedite_rcu {
            return;
        }
        let why_not = rcu::why_not(&self.surroundings.root);
        self.publisher.step("tunable:rcu_expedited", |step| {
            step.set_kind(StepKind::Tunable);
            step.set_outcome(if why_not.is_some() { StepOutcome::Skipped } else { StepOutcome::Undone });
            step.reason = why_not.unwrap_or("set while file systems froze, and restored").into();
        });
    }

    /// Right after the last FIFREEZE: a session that ended before it did not hold through it.
    fn look_at_databases(&mut self) -> Result<(), End> {
        for db in &self.databases {
            if db.held && db.session.as_ref().is_none_or(Session::closed) {
                return Err(End::failed(
                    format!("hold {}: the server closed the connection before all was frozen", db.step),
                    "see the server's log",
                ));
            }
        }
        Ok(())
    }

    fn claim(&mut self) -> Result<(), End> {
        self.achieved.claims = self.databases.iter().map(|db| db.claim).collect();
        let (level, required) = (self.achieved.level(), survey::required(&self.settings, &self.spec));
        self.publisher.edit(|r| r.set_consistency(level));
        if level < required {
            return Err(End::failed(
                format!("reach {} consistency: only {} was reached", level_text(required), level_text(level)),
                "the report's problems say what lowered it",
            ));
        }
        Ok(())
    }

    // ---- hooks --------------------------------------------------------------------------------------------------

    fn push_hook(&mut self, index: usize) -> Result<(), End> {
        let hook = &self.hooks[index];
        self.undos.push(Undo::Hook { index, running: None });
        if let Err(error) = self.warden.marker().hook_started(&hook.name, &hook.path, hook.limit) {
            return Err(End::failed(format!("note the hook {} in the marker: {error}", hook.name), ""));
        }
        Ok(())
    }

    /// Runs one phase; its undo is on the stack already, and gets the running task, so that a dropped future leaves
    /// nothing unknown behind.
    async fn run_hook(&mut self, index: usize, phase: hook::Phase, until: Instant) -> Result<(), End> {
        let mut hook = self.hooks[index].clone();
        hook.limit = hook.limit.min(until.saturating_duration_since(Instant::now()));
        let name = format!("hook:{}", hook.name);
        let environment = self.environment(phase, None);
        let stop = Stop::new().map_err(|error| End::failed(format!("start {name}: {error}"), ""))?;
        let (task_hook, task_stop) = (hook.clone(), stop.clone());
        let task =
            tokio::spawn(async move { hook::run_unless(&task_hook, phase, &environment, Some(task_stop)).await });
        let running = self.undos.iter_mut().find_map(|undo| match undo {
            Undo::Hook { index: at, running } if *at == index => Some(running),
            Undo::Hook { .. } | Undo::Sessions | Undo::Guards | Undo::Databases | Undo::Filesystems => None,
        });
        let running = running.expect("pushed before it runs").insert(RunningHook { task, stop });
        let result = (&mut running.task).await.unwrap_or_else(|_| {
            Err(hook::Error::Start { name: hook.name.clone(), source: std::io::Error::other("its task panicked") })
        });
        if let Some(Undo::Hook { running, .. }) =
            self.undos.iter_mut().find(|undo| matches!(undo, Undo::Hook { index: at, .. } if *at == index))
        {
            *running = None;
        }
        let ran = match &result {
            Ok(ran) => Some(ran),
            Err(error) => error.ran(),
        };
        self.publisher.step(&name, |step| {
            if let Some(ran) = ran {
                let before = step.took.and_then(|t| Duration::try_from(t).ok()).unwrap_or_default();
                step.took = span(before + ran.took);
                step.detail = Some(proto::step::Detail::Hook(ran.run.clone()));
            }
            match &result {
                Ok(_) => step.set_outcome(StepOutcome::Done),
                Err(error) => {
                    step.set_outcome(StepOutcome::Failed);
                    step.reason = error.to_string();
                    step.hint = error.hint().into();
                }
            }
        });
        match result {
            Ok(_) => {
                if hook.required && phase == hook::Phase::Freeze {
                    self.achieved.required_hooks += 1;
                }
                Ok(())
            }
            Err(error) if hook.required => Err(End::failed(error.to_string(), error.hint())),
            Err(error) => {
                self.achieved.capped = true;
                let message = error.to_string();
                self.publisher.problem(problem(Severity::Warning, "HOOK_FAILED", &name, &message, error.hint()));
                Ok(())
            }
        }
    }

    /// What every hook is told.
    fn environment(&self, phase: hook::Phase, reason: Option<ReleaseReason>) -> BTreeMap<String, String> {
        // those of other mount namespaces are no paths to a hook
        let mounts: Vec<&str> =
            self.names.iter().filter_map(|n| n.strip_prefix("fs:")).filter(|n| !n.contains("@pid")).collect();
        let mut environment = BTreeMap::from([
            ("HOLDSTILL_ID".into(), self.id.clone()),
            ("HOLDSTILL_PHASE".into(), phase.as_str().into()),
            ("HOLDSTILL_LABEL".into(), self.spec.label.clone()),
            ("HOLDSTILL_REQUIRE".into(), level_text(survey::required(&self.settings, &self.spec)).into()),
            ("HOLDSTILL_MOUNTS".into(), mounts.join("\n")),
            ("HOLDSTILL_MAX_HOLD_SECONDS".into(), self.max_hold().as_secs().to_string()),
        ]);
        if let Some(reason) = reason {
            let reason = match reason {
                ReleaseReason::Unspecified => "refused".into(),
                ReleaseReason::Asked
                | ReleaseReason::CallerGone
                | ReleaseReason::Deadline
                | ReleaseReason::StepFailed
                | ReleaseReason::Shutdown
                | ReleaseReason::DaemonLost
                | ReleaseReason::WardenLost
                | ReleaseReason::TimeJumped => {
                    reason.as_str_name().trim_start_matches("RELEASE_REASON_").to_ascii_lowercase()
                }
            };
            environment.insert("HOLDSTILL_REASON".into(), reason);
        }
        environment
    }

    // ---- releasing ----------------------------------------------------------------------------------------------

    /// Lets go of everything: file systems first and unconditionally, then databases, hooks, receipts. Never fails;
    /// what went wrong is in the report, and in `end`.
    pub async fn release(&mut self, end: &mut End) {
        if let Some(name) = end.index.and_then(|index| self.names.get(index)) {
            for breach in &mut end.breaches {
                breach.subject.clone_from(name);
            }
        }
        let mut undos = std::mem::take(&mut self.undos);
        let failures = undos.unwind(async |undo| self.undo(undo, end).await).await;
        failpoint::reached("undone").await;
        if let Some(refusal) = end.refusal.as_mut().filter(|_| !failures.is_empty()) {
            refusal.message = format!("{}; and undoing it: {}", refusal.message, failures.join("; "));
        }
    }

    async fn undo(&mut self, undo: &mut Undo, end: &mut End) -> Result<(), String> {
        match undo {
            Undo::Filesystems => {
                let result = self.thaw(end).await;
                crate::telemetry::frozen(false);
                failpoint::reached("thawed").await;
                result
            }
            Undo::Databases => {
                self.prove(end).await;
                failpoint::reached("proven").await;
                Ok(())
            }
            Undo::Hook { index, running } => self.undo_hook(*index, running.take(), end).await,
            Undo::Guards => {
                self.testify(end).await;
                self.warden.end().await;
                Ok(())
            }
            Undo::Sessions => {
                let rest = self.databases.iter_mut().filter_map(|db| {
                    db.mid_statement.then(|| db.cut());
                    db.session.take()
                });
                join_all(rest.map(|session| session.release(CLOSE_LIMIT))).await;
                Ok(())
            }
        }
    }

    async fn thaw(&mut self, end: &mut End) -> Result<(), String> {
        let mut stuck = Vec::new();
        let begun = Instant::now();
        for (name, thawed) in self.names.iter().zip(self.warden.thaw().await) {
            let took = begun.elapsed();
            match thawed {
                Thawed::Ours => self.publisher.step(name, |step| {
                    step.set_outcome(StepOutcome::Undone);
                    step.undo_took = span(took);
                }),
                Thawed::NeverFrozen => {}
                Thawed::Foreign => {
                    let message = format!("{name} was thawed by somebody else while it was held");
                    let hint = "find out what else thaws file systems here; take a new snapshot";
                    self.publisher.step(name, |step| {
                        step.set_outcome(StepOutcome::Undone);
                        step.reason.clone_from(&message);
                    });
                    let breach = problem(Severity::Refusal, "FOREIGN_THAW", name, &message, hint);
                    if self.frozen && !end.breaches.contains(&breach) {
                        end.breaches.push(breach);
                    }
                }
                Thawed::StillStuck => {
                    let message = format!("{name}: the kernel has not finished freezing it; it thaws when it has");
                    self.publisher.step(name, |step| {
                        step.set_outcome(StepOutcome::UndoFailed);
                        step.reason.clone_from(&message);
                        step.hint = STUCK_HINT.into();
                    });
                    self.publisher.problem(problem(Severity::Warning, "FREEZE_STUCK", name, &message, STUCK_HINT));
                    stuck.push(message);
                }
            }
        }
        if stuck.is_empty() { Ok(()) } else { Err(stuck.join("; ")) }
    }

    /// Each on the session that held: did it hold to the end? Then its locks go.
    async fn prove(&mut self, end: &mut End) {
        let frozen = self.frozen;
        let work = self.databases.iter_mut().filter(|db| db.covered).map(async |db| {
            let begun = Instant::now();
            let proof = db.end(frozen).await;
            (db.step.clone(), proof, begun.elapsed())
        });
        let proofs = join_all(work).await;
        for (step, proof, took) in proofs {
            self.publisher.step(&step, |s| {
                s.undo_took = span(took);
                if s.outcome() == StepOutcome::Done {
                    s.set_outcome(StepOutcome::Undone);
                }
                if let Some(proof) = &proof {
                    s.detail = Some(proto::step::Detail::Database(proof.database.clone()));
                }
            });
            if let Some(problem) = proof.and_then(|p| p.problem) {
                self.publisher.problem(problem);
            }
        }
        if !frozen {
            return;
        }
        let before = self.achieved.level();
        self.achieved.claims = self.databases.iter().map(|db| db.claim).collect();
        let (level, required) = (self.achieved.level(), survey::required(&self.settings, &self.spec));
        if level < before {
            self.publisher.edit(|r| r.set_consistency(level));
        }
        if level < required {
            let message =
                format!("{} consistency was required, and only {} is proven", level_text(required), level_text(level));
            end.breaches.push(problem(Severity::Refusal, "DATABASE_NOT_PROVEN", "", &message, "take a new snapshot"));
        }
    }

    async fn undo_hook(&mut self, index: usize, running: Option<RunningHook>, end: &End) -> Result<(), String> {
        if let Some(running) = running {
            // its phase was cut off in the middle: it is ended first, and only then undone
            running.stop.tell();
            let _ = running.task.await;
        }
        let hook = self.hooks[index].clone();
        let name = format!("hook:{}", hook.name);
        let environment = self.environment(hook::Phase::Thaw, Some(end.reason));
        let result = hook::run(&hook, hook::Phase::Thaw, &environment).await;
        self.warden.marker().hook_undone(&hook.name);
        let took = match &result {
            Ok(ran) => Some(ran.took),
            Err(error) => error.ran().map(|ran| ran.took),
        };
        self.publisher.step(&name, |step| {
            step.undo_took = took.and_then(span);
            match &result {
                Ok(_) if step.outcome() == StepOutcome::Done => step.set_outcome(StepOutcome::Undone),
                Ok(_) => {}
                Err(error) => {
                    step.set_outcome(StepOutcome::UndoFailed);
                    step.reason = error.to_string();
                }
            }
        });
        result.map(|_| ()).map_err(|error| {
            let message = error.to_string();
            self.publisher.problem(problem(Severity::Warning, "UNDO_FAILED", &name, &message, error.hint()));
            message
        })
    }

    /// The receipts' last word.
    async fn testify(&mut self, end: &End) {
        let report = self.publisher.current().unwrap_or_default();
        let held = self.frozen && admit::was_held(&report);
        let mut report = report;
        if held {
            report.set_reason(end.reason);
            report.breaches.clone_from(&end.breaches);
            let unbroken = end.reason == ReleaseReason::Asked && end.breaches.is_empty();
            report.set_verdict(if unbroken { proto::Verdict::Unbroken } else { proto::Verdict::Broken });
        } else {
            report.set_verdict(proto::Verdict::NeverHeld);
        }
        let receipts = self.records.update(&report);
        if !receipts.is_empty() {
            self.warden.testify(receipts, !self.frozen, TESTIFY_LIMIT).await;
        }
    }
}

impl Held {
    /// Runs statements on the session. Dropped in the middle, the session is never spoken to again.
    async fn statement<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut Session) -> Result<T, crate::step::database::Error>,
    ) -> Result<T, crate::step::database::Error> {
        let Some(session) = self.session.as_mut() else {
            return Err(crate::step::database::Error {
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

    /// After the thaw, or instead of a freeze.
    async fn end(&mut self, frozen: bool) -> Option<Proof> {
        if self.mid_statement {
            self.cut();
        }
        let session = self.session.take()?;
        if !frozen || !self.held {
            let _ = session.release(CLOSE_LIMIT).await;
            return None;
        }
        let proof = session.prove_and_release(PROVE_LIMIT).await;
        self.claim = proof.database.claim();
        Some(proof)
    }

    /// Shuts the socket down: whatever the server was doing for it ends, and every lock with it.
    fn cut(&mut self) {
        if let Some(socket) = self.session.as_ref().and_then(|s| s.socket().ok()) {
            sockets::cut(&socket);
        }
    }
}

const STUCK_HINT: &str = "nobody can cancel a freeze inside the kernel: stop what blocks it (a btrfs scrub or balance: \
                          `btrfs scrub cancel`; a loop device: thaw the file system its file lies on)";

fn is_filesystem(step: &proto::Step, dev: Dev) -> bool {
    match &step.detail {
        Some(proto::step::Detail::Filesystem(fs)) => fs.major == dev.major && fs.minor == dev.minor,
        Some(proto::step::Detail::Database(_) | proto::step::Detail::Hook(_)) | None => false,
    }
}

fn unprepared(error: &PrepareError) -> Refusal {
    let (reason, hint) = match error {
        PrepareError::ForeignFreeze { .. } => (
            "FOREIGN_FREEZE",
            "find who froze it (another backup agent? a script that died?); `fsfreeze -u` undoes it by hand",
        ),
        PrepareError::Stuck { .. } => ("FOREIGN_FREEZE", "its device does not answer: see the kernel log"),
        PrepareError::Receipt { .. } => ("RECEIPT_UNUSABLE", "remove it, or set `enabled = false` in [receipt]"),
        PrepareError::Vanished { .. } => ("MOUNT_CHANGED", "mounts changed meanwhile: try again"),
        PrepareError::Open { .. } => ("MOUNT_UNUSABLE", "exclude it in [filesystems] if it need not be held"),
        PrepareError::Guard { .. } => ("MOUNT_UNUSABLE", "see `ulimit -u` and the memory left"),
    };
    Refusal::new(RefusalKind::FailedPrecondition, reason, error.to_string()).hint(hint)
}

fn freeze_failed(error: &FreezeError) -> End {
    let hint = match error {
        FreezeError::Lost(_) => return End::warden_lost(),
        FreezeError::ForeignFreeze { .. } => "find who else freezes file systems here; it was left as it is",
        FreezeError::Freeze { .. } | FreezeError::Flush { .. } => "see the kernel log for errors of its device",
        FreezeError::FlushTooSlow { .. } => "writers dirty pages faster than the disk takes them: try again later",
        FreezeError::TooSlow { .. } => STUCK_HINT,
    };
    End::failed(error.to_string(), hint)
}
