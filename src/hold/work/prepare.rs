//! Preparing: slow, cancellable, and nobody waits.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::time::Instant;

use super::{Held, STUCK_HINT, Undo, Work};
use crate::{
    failpoint,
    guest::{
        Dev,
        dirty::{self, OpenFile},
        disks,
        tasks::Processes,
    },
    hold::{
        Refusal, RefusalKind,
        aside::in_a_thread,
        end::End,
        plan::{Achieved, caller_freezes, problem},
        record::{Records, Told},
        survey::{self, Look, Survey},
    },
    proto::{self, Claim, Consistency, Severity},
    step::{
        database::Session,
        filesystem::{LITTLE, Preflush, portions, preflush},
        hook,
    },
    warden::{self, PrepareError, client::BeginError},
};

/// A target that does not let itself be opened or written within this may be frozen by somebody, and is looked at.
const OPEN_LIMIT: Duration = Duration::from_secs(2);

/// Being paced for longer than this is in the report.
const WORTH_SAYING: Duration = Duration::from_secs(1);

/// Finding what is open takes some microseconds for each descriptor of the guest; beyond this it is done without.
const FIND_LIMIT: Duration = Duration::from_secs(2);

/// So many open files are written back one by one on each file system, at most.
const MOST_FILES: usize = 4096;

impl Work<'_> {
    /// # Errors
    /// The [`End`] to release with.
    pub async fn prepare(&mut self, until: Instant) -> Result<(), End> {
        let survey = survey::survey(&self.settings, &self.surroundings, &self.spec, Look::Everything)
            .await
            .map_err(End::refused)?;
        let targets = self.adopt(survey)?;
        self.guard(targets).await?;
        self.soften(until).await?;
        for index in 0..self.hooks.len() {
            if self.hooks[index].calls.prepare.is_some() {
                self.push_hook(index)?;
                self.run_hook(index, hook::Phase::Prepare, until).await?;
            }
        }
        self.pace().await;
        self.preflush(until).await
    }

    /// Writers get their time between two holds. Before the last write-back, so that what they dirty meanwhile is in it;
    /// what comes after makes them wait.
    async fn pace(&self) {
        let left = self.not_before.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        tracing::debug!(hold = %self.id, ?left, "paced: the last hold ended only just now");
        if left > WORTH_SAYING {
            let message = format!(
                "nobody is made to wait for another {}: writers go on for {} between two holds",
                text(left),
                text(self.settings.hold.interval)
            );
            let hint = "ask less often, or lower `interval` in [hold]";
            self.publisher.problem(problem(Severity::Note, "PACED", "", &message, hint));
        }
        failpoint::reached("paced").await;
        tokio::time::sleep_until(self.not_before).await;
    }

    /// Takes over what the survey found; refuses what it refuses.
    fn adopt(&mut self, survey: Survey) -> Result<Vec<warden::Target>, End> {
        let Survey {
            guest,
            facts,
            plan,
            hooks,
            databases,
            steps,
            problems,
            refusals,
            expected,
            writes_receipts,
            without_receipt,
            ..
        } = survey;
        self.publisher.edit(|report| {
            report.steps = steps;
            report.machine = Some(self.surroundings.machine(&plan.coverage));
            report.coverage = plan.coverage;
            report.problems = problems;
            report.problems.extend(refusals.iter().map(survey::as_problem));
            report.set_consistency(Consistency::None);
        });
        self.undos.push(Undo::Sessions);
        for mut db in databases {
            db.session.name(&self.id);
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
        // guardians then only write back: what the caller froze is neither frozen nor thawed by them
        let ours = !caller_freezes(&self.spec);
        self.levels = if ours { plan.levels } else { Vec::new() };
        self.achieved = Achieved { claims: Vec::new(), required_hooks: 0, ..expected };
        self.records = Records::new(&self.id, &self.surroundings, writes_receipts);
        let report = self.publisher.current().unwrap_or_default();
        let told = Told::new(&report);
        let targets: Vec<_> = plan
            .targets
            .iter()
            .filter_map(|planned| {
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
                self.devs.push(superblock.dev);
                self.devices.push(guest.disks.members(superblock.dev));
                let wanted = planned.freeze && !without_receipt.contains(&superblock.dev);
                let receipt =
                    wanted.then(|| self.records.prepare(self.names.len() - 1, &told, superblock, &facts)).flatten();
                Some(warden::Target {
                    dev: superblock.dev,
                    mount: open_at.path.clone(),
                    open_at,
                    namespace: superblock.namespace,
                    uuid: facts.uuid,
                    freeze: planned.freeze && ours,
                    receipt,
                })
            })
            .collect();
        let disks: BTreeSet<String> = plan
            .targets
            .iter()
            .flat_map(|planned| disks_of(&guest.disks, guest.superblocks[planned.superblock].dev))
            .collect();
        self.settle_hooks(disks.into_iter().collect())?;
        Ok(targets)
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
    pub(super) fn remark(&self) {
        for remark in self.databases.iter().filter_map(|db| db.session.as_ref()).flat_map(Session::remarks) {
            if self.publisher.current().is_some_and(|report| !report.problems.contains(&remark)) {
                self.publisher.problem(remark);
            }
        }
    }

    /// Writes dirty pages back before anyone waits, and notes how much that was.
    async fn preflush(&mut self, until: Instant) -> Result<(), End> {
        let before = disks::written(&self.surroundings.root);
        let paced = self.write_portions(until).await;
        failpoint::reached("paced").await;
        let result = match paced {
            Ok(()) => self.flush_rounds(until).await,
            Err(lost) => Err(lost),
        };
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

    /// What is dirty in files that can be found, in portions: whoever syncs meanwhile waits for one of them, not for all.
    async fn write_portions(&self, until: Instant) -> Result<(), End> {
        let begun = Instant::now();
        let dirty = dirty::bytes(&self.surroundings.root);
        let Some(limit) = portions(dirty, until.saturating_duration_since(begun)) else { return Ok(()) };
        let (root, wanted) = (self.surroundings.root.clone(), self.devs.iter().copied().collect());
        let find = move || dirty::open_files(&root, &Processes::read(&root), &wanted, MOST_FILES);
        let mut found = in_a_thread(FIND_LIMIT.min(limit), find).await.unwrap_or_default();
        let files = self.devs.iter().enumerate().filter_map(|(index, dev)| Some((index, found.remove(dev)?)));
        let files: BTreeMap<usize, Vec<OpenFile>> = files.collect();
        self.warden.pace(files, LITTLE, limit.saturating_sub(begun.elapsed())).await?;
        Ok(())
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
            let stall = text(predicted);
            if predicted > cap {
                let refusal = Refusal::new(
                    RefusalKind::FailedPrecondition,
                    "WOULD_STALL",
                    format!(
                        "hold: writers dirty pages faster than they are written back; they would wait about {stall}, \
                         more than max_stall = {}",
                        humantime::format_duration(cap)
                    ),
                )
                .hint("try when there is less writing, or raise `max_stall` in [hold]");
                return Err(End::refused(refusal.about(&self.id)));
            }
            let message = format!("pages are dirtied about as fast as they are written back: writers may wait {stall}");
            self.publisher.problem(problem(Severity::Note, "STALL_PREDICTED", "", &message, ""));
            return Ok(());
        }
    }
}

/// To the millisecond.
fn text(duration: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_millis(duration.as_millis().try_into().unwrap_or(u64::MAX)))
}

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

/// The names of the disks under a file system: those at the bottom, or what it is mounted from if they are not seen.
fn disks_of(disks: &disks::BlockGraph, superblock: Dev) -> Vec<String> {
    let names = |devs: Vec<Dev>| -> Vec<String> {
        devs.into_iter().filter_map(|dev| Some(disks.disk(dev)?.name.clone())).collect()
    };
    let bottom = names(disks.leaves(superblock));
    if bottom.is_empty() { names(disks.members(superblock)) } else { bottom }
}
