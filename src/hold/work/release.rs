//! Letting go: file systems first and unconditionally, then databases, hooks, receipts. Never fails.

use std::{sync::atomic::Ordering, time::Duration};

use futures_util::future::join_all;
use tokio::time::Instant;

use super::{Held, STUCK_HINT, Undo, Work, tell};
use crate::{
    failpoint,
    hold::{
        admit,
        end::End,
        plan::{self, problem},
        record,
        report::span,
        survey,
    },
    proto::{self, ReleaseReason, Severity, StepOutcome},
    step::database::Proof,
    sys::sockets,
    warden::Thawed,
};

/// After the thaw nobody waits on a disk any more, but a lock is still held: a database gets this long to prove.
const PROVE_LIMIT: Duration = Duration::from_secs(5);
/// Without the end of its backup a copy is worth nothing, and nobody waits for it but whoever asked to let go.
const STOP_LIMIT: Duration = Duration::from_secs(15);
/// A session that holds nothing is closed politely, within this.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);
const TESTIFY_LIMIT: Duration = Duration::from_secs(2);
const FLUSH_LIMIT: Duration = Duration::from_secs(5);

impl Work<'_> {
    /// Lets go of everything: file systems first and unconditionally, then databases, hooks, receipts. Never fails;
    /// what went wrong is in the report, and in `end`.
    pub async fn release(&mut self, end: &mut End) {
        if self.warden.marker().daemon_lost().load(Ordering::SeqCst) != 0 {
            end.blame_ourselves();
        }
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
                self.waited = self.wait_so_far();
                match plan::caller_freezes(&self.spec) {
                    false => crate::telemetry::frozen(false),
                    // at a deadline the caller's freeze may be there still
                    true => crate::telemetry::let_out(),
                }
                failpoint::reached("thawed").await;
                result
            }
            Undo::Databases => {
                self.prove(end).await;
                self.waited = self.wait_so_far();
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
        let held = self.levels.iter().flatten().copied();
        if self.all_held && end.reason == ReleaseReason::Asked && !self.warden.still_held(held) {
            let message = "not everything was held any more when the thaw was asked for";
            end.breaches.push(problem(Severity::Refusal, "RELEASED_EARLY", "", message, "take a new snapshot"));
        }
        let mut stuck = Vec::new();
        let begun = Instant::now();
        self.publisher.undos_begin(self.levels.iter().flatten().map(|index| &self.names[*index]));
        let ended = self.warden.thaw().await;
        // unbroken is what is proven for each one, not what is left when no breach was recognised
        let proven = |index: usize| match ended.get(index) {
            Some(Thawed::Ours | Thawed::Foreign | Thawed::StillStuck) => true,
            Some(Thawed::NeverFrozen) | None => false,
        };
        if self.all_held && !self.levels.iter().flatten().all(|index| proven(*index)) {
            let message = "not every file system is proven to have been frozen until the thaw";
            end.breaches.push(problem(Severity::Refusal, "NOT_PROVEN", "", message, "take a new snapshot"));
        }
        for (name, thawed) in self.names.iter().zip(ended.iter().copied()) {
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
                    if !self.all_held {
                        end.thawed_before_held(name, hint);
                    } else if !end.breaches.contains(&breach) {
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
        let all_held = self.all_held;
        self.publisher.undos_begin(self.databases.iter().filter(|db| db.covered).map(|db| &db.step));
        let work = self.databases.iter_mut().filter(|db| db.covered).map(async |db| {
            let begun = Instant::now();
            let proof = db.end(all_held).await;
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
                    tell(s, proof.database.clone());
                }
            });
            if let Some(problem) = proof.and_then(|p| p.problem) {
                self.publisher.problem(problem);
            }
        }
        if !all_held {
            return;
        }
        let before = self.achieved.level();
        self.achieved.claims = self.databases.iter().map(|db| db.claim).collect();
        let level = self.achieved.level();
        if level < before {
            self.publisher.edit(|r| r.set_consistency(level));
        }
        if let Some((wanted, proven)) = self.achieved.lacks(survey::required(&self.settings, &self.spec)) {
            let message = format!("{wanted} was required, and only {proven} is proven");
            end.breaches.push(problem(Severity::Refusal, "DATABASE_NOT_PROVEN", "", &message, "take a new snapshot"));
        }
    }

    /// The receipts' last word.
    async fn testify(&mut self, end: &End) {
        let report = self.publisher.current().unwrap_or_default();
        let held = self.all_held && admit::was_held(&report);
        let mut report = report;
        if held {
            report.set_reason(end.reason);
            report.breaches.clone_from(&end.breaches);
            report.set_verdict(end.verdict());
        } else {
            report.set_verdict(proto::Verdict::NeverHeld);
        }
        let receipts = self.records.update(&report);
        if !receipts.is_empty() {
            self.warden.testify(receipts, !self.all_held, TESTIFY_LIMIT).await;
            if report.steps.iter().any(record::has_label) {
                // the receipt on the log volume has the label, and that volume is copied next
                let _ = self.warden.flush(FLUSH_LIMIT).await;
            }
        }
    }
}

impl Held {
    /// After the thaw, or instead of a freeze.
    pub(super) async fn end(&mut self, all_held: bool) -> Option<Proof> {
        if self.mid_statement {
            self.cut();
        }
        let session = self.session.take()?;
        if !all_held || !self.held {
            let _ = session.release(CLOSE_LIMIT).await;
            return None;
        }
        let limit = if session.in_backup_mode() { STOP_LIMIT } else { PROVE_LIMIT };
        let proof = session.prove_and_release(limit).await;
        self.claim = proof.database.claim();
        Some(proof)
    }

    /// Shuts the socket down: whatever the server was doing for it ends, and every lock with it.
    pub(super) fn cut(&mut self) {
        if let Some(socket) = self.session.as_ref().and_then(|s| s.socket().ok()) {
            sockets::cut(&socket);
        }
    }
}
