//! Quiescing: writers wait from the first step here on, so everything has a limit.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use super::{STUCK_HINT, Undo, Work, tell};
use crate::{
    failpoint,
    hold::{
        end::End,
        plan::{caller_freezes, problem},
        report::span,
        survey,
    },
    proto::{self, Claim, Severity, StepKind, StepOutcome},
    step::{
        database::{self, Session},
        hook,
    },
    sys::clock,
    warden::{FreezeError, rcu},
};

/// The warden lets go this long after the driver should have given up by itself.
const ARM_SLACK: Duration = Duration::from_secs(1);

/// A FIFREEZE after the last flush takes milliseconds. One that takes longer than anyone may be stalled, and this, has
/// hit something the preflight did not see, or its guardian was stopped: then all is let go, long before the budget ends.
const FREEZE_SLACK: Duration = Duration::from_secs(1);

impl Work<'_> {
    /// # Errors
    /// The [`End`] to release with.
    pub async fn quiesce(&mut self, until: Instant) -> Result<(), End> {
        self.arm(until.saturating_duration_since(Instant::now()) + ARM_SLACK).await?;
        failpoint::reached("armed").await;
        self.stalled = Some(clock::monotonic());
        for index in 0..self.hooks.len() {
            if self.hooks[index].calls.prepare.is_none() {
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
        self.warden.marker().note_held();
        Ok(())
    }

    async fn hold_databases(&mut self, until: Instant) -> Result<(), End> {
        if self.databases.is_empty() {
            return Ok(());
        }
        self.undos.push(Undo::Databases);
        let id = self.id.clone();
        let begun = Instant::now();
        self.publisher.steps_begin(self.databases.iter().filter(|db| db.covered).map(|db| &db.step));
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
        // all wait for the slowest at the barrier
        let took = begun.elapsed();
        for db in &mut self.databases {
            let Some(session) = db.session.as_ref().filter(|_| db.held) else { continue };
            let described = session.describe();
            db.claim = described.claim();
            self.publisher.step(&db.step, |step| {
                step.set_outcome(StepOutcome::Done);
                step.took = span(took);
                tell(step, described);
            });
        }
        Ok(())
    }

    /// A required one fails the hold; any other lowers the level, loudly.
    pub(super) fn database_failed(&mut self, step: &str, required: bool, error: &database::Error) -> Result<(), End> {
        let mut claim = Claim::Recoverable;
        if let Some(db) = self.databases.iter_mut().find(|db| db.step == step) {
            claim = db.unheld();
            db.claim = claim;
        }
        self.publisher.step(step, |s| {
            s.set_outcome(StepOutcome::Failed);
            s.reason = error.to_string();
            s.hint.clone_from(&error.hint);
            if let Some(proto::step::Detail::Database(database)) = s.detail.as_mut() {
                database.set_claim(claim);
            }
        });
        if required {
            return Err(End::failed(error.to_string(), error.hint.clone()));
        }
        self.achieved.capped = true;
        let message = error.to_string();
        self.publisher.problem(problem(Severity::Warning, "DATABASE_NOT_HELD", step, &message, &error.hint));
        Ok(())
    }

    async fn freeze(&mut self, until: Instant) -> Result<(), End> {
        let report = self.publisher.current().unwrap_or_default();
        let receipts = self.records.update(&report);
        let left = until.saturating_duration_since(Instant::now());
        let ours = !caller_freezes(&self.spec);
        self.undos.push(Undo::Filesystems);
        if ours {
            self.note_tunable();
        }
        failpoint::reached("freezing").await;
        crate::telemetry::frozen(true);
        self.publisher.steps_begin(self.levels.iter().flatten().map(|index| &self.names[*index]));
        let froze = self
            .warden
            .freeze(
                self.levels.clone(),
                receipts,
                self.settings.filesystems.expedite_rcu && ours,
                left.min(self.settings.hold.max_stall),
                left.min(self.settings.hold.max_stall + FREEZE_SLACK),
            )
            .await
            .map_err(|error| freeze_failed(&error))?;
        self.all_held = true;
        failpoint::reached("frozen").await;
        for (index, took) in froze {
            self.publisher.step(&self.names[index], |step| {
                step.set_outcome(StepOutcome::Done);
                step.took = span(took);
            });
        }
        for (index, name) in self.names.iter().enumerate() {
            if ours && !self.levels.iter().any(|level| level.contains(&index)) {
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
        let level = self.achieved.level();
        self.publisher.edit(|r| r.set_consistency(level));
        if let Some((wanted, reached)) = self.achieved.lacks(survey::required(&self.settings, &self.spec)) {
            return Err(End::failed(
                format!("reach {wanted}: only {reached} was reached"),
                "the report's problems say what lowered it",
            ));
        }
        Ok(())
    }
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
