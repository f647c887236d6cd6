//! The survey: everything a hold needs to know before anybody waits. Read the guest, list the hooks, connect to the
//! databases, make the plan, judge what can be reached. `check` stops here; a hold goes on with what it found.

mod at_risk;
mod databases;
mod facts;
mod storage;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;

pub use self::databases::Instance;
use super::{
    Refusal, RefusalKind,
    admit::Caps,
    aside::{READ_LIMIT, TOUCH_LIMIT, in_a_thread},
    contents::Contents,
    plan::{self, Achieved, Facts, Filesystems, Inputs, Plan, Required, caller_freezes, problem},
};
use crate::{
    config::{GuestAgent, Settings},
    guest::{
        self, Dev, Guest,
        agent_channel::{self, AgentChannel, Owner},
        osinfo, platform, preflight,
        tasks::{self, Processes},
        transient,
    },
    proto::{self, Consistency, FreezeBy, Severity, StepKind, StepOutcome},
    step::hook::{self, Hook},
};

/// By then a daemon has taken the channel that is there and owned by nobody, or will not. It looks twice, 300 ms apart.
const TAKES: Duration = Duration::from_secs(2);
const DISCONNECT_LIMIT: Duration = Duration::from_secs(1);
/// A task blocked for the whole of these together, two seconds, would make a freeze wait for it. Looked at in between,
/// so that on a busy but healthy machine, where everybody moves, two looks are enough.
const BLOCKED_FOR: [Duration; 4] =
    [Duration::from_millis(30), Duration::from_millis(220), Duration::from_millis(750), Duration::from_secs(1)];

/// What does not change while the daemon runs.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// "/" but in tests
    pub root: PathBuf,
    pub instance: platform::Instance,
    pub platform: platform::Platform,
    /// the running kernel's release
    pub kernel: String,
    /// what was counted on disks that are in no snapshot: the one thing here that does change
    pub contents: Arc<Contents>,
}

impl Surroundings {
    pub fn read(root: &Path) -> Surroundings {
        Surroundings {
            root: root.to_owned(),
            instance: platform::Instance::read(root),
            platform: platform::Platform::read(root),
            kernel: osinfo::read(root).kernel_release.unwrap_or_default(),
            contents: Arc::default(),
        }
    }

    /// As the contract has it, with the disk below `/` as `coverage` has it.
    pub fn machine(&self, coverage: &[proto::Coverage]) -> proto::Machine {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let root = coverage.iter().find(|entry| entry.mounts.iter().any(|mount| mount == "/"));
        proto::Machine {
            boot_id: text(&self.instance.boot_id),
            machine_id: text(&self.instance.machine_id),
            product_uuid: text(&self.instance.product_uuid),
            instance_id: text(&self.instance.instance_id),
            platform: self.platform.to_string(),
            kernel: self.kernel.clone(),
            root_disk_bytes: root.and_then(|root| root.disks.iter().map(|d| d.size_bytes).max()).unwrap_or(0),
        }
    }
}

/// What was found.
pub struct Survey {
    pub guest: Guest,
    pub facts: BTreeMap<Dev, Facts>,
    pub plan: Plan,
    pub hooks: Vec<Hook>,
    pub databases: Vec<Instance>,
    /// hooks, databases, file systems: one step each, as planned
    pub steps: Vec<proto::Step>,
    pub problems: Vec<proto::Problem>,
    /// why a hold must not begin; the first is what its caller is told
    pub refusals: Vec<Refusal>,
    /// what the hold can claim if every step succeeds
    pub expected: Achieved,
    /// the caller freezes the file systems
    callers: bool,
    /// `[receipt] enabled`, it is no rehearsal, and we freeze: a receipt must not say `frozen` of what somebody else may do
    pub writes_receipts: bool,
    /// held, and no receipt is written there
    pub without_receipt: BTreeSet<Dev>,
    /// where everything lies that databases need
    parts: Vec<at_risk::DatabasePart>,
    /// servers that run here, held or not
    engines: Vec<guest::databases::RunningEngine>,
}

/// What a hold must reach.
pub fn required(settings: &Settings, spec: &proto::HoldSpec) -> Required {
    Required::of(settings.hold.require, spec)
}

/// How closely to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    Everything,
    /// something is held: no SQL then, and who waits for the hold is no sign of trouble
    WhileHeld,
}

/// Answers `check`: everything a freeze would do and refuse for. Touches nothing.
///
/// # Errors
/// Never for what a freeze would refuse, the spent budget included: that is in the answer. Only if the guest cannot be read
/// at all.
pub async fn check(
    settings: &Settings,
    surroundings: &Surroundings,
    spec: proto::HoldSpec,
    look: Look,
    spent: Option<Refusal>,
) -> Result<proto::CheckResponse, Refusal> {
    let mut report = proto::Report { label: spec.label.clone(), ..Default::default() };
    report.set_required(required(settings, &spec).level);
    report.set_freeze_by(freeze_by(&spec));
    let caps = Caps { max: settings.hold.max, quiesce: settings.hold.quiesce, prepare: settings.hold.prepare };
    caps.check(&spec)?;
    let mut survey = survey(settings, surroundings, &spec, look).await?;
    survey.refusals.extend(spent);
    let reachable = if survey.refusals.iter().any(|r| r.reason == "NOTHING_TO_HOLD") {
        Consistency::None
    } else {
        survey.expected.level()
    };
    report.set_consistency(reachable);
    report.steps = survey.steps;
    report.machine = Some(surroundings.machine(&survey.plan.coverage));
    report.coverage = survey.plan.coverage;
    report.problems = survey.problems;
    if look == Look::Everything {
        report.problems.extend(callers(settings, surroundings, &survey.hooks).await);
        report.problems.extend(super::reporters::problems(settings).await);
        report.problems.extend(super::restored::problems(settings).await);
    }
    report.problems.extend(survey.refusals.iter().map(as_problem));
    let would_refuse = !survey.refusals.is_empty();
    join_all(survey.databases.into_iter().map(|db| db.session.release(DISCONNECT_LIMIT))).await;
    Ok(proto::CheckResponse { plan: Some(report), would_refuse, reachable: reachable.into() })
}

/// Reads once what every hold reads, so that the first one does not wait until our own program has come from the disk.
/// Says and keeps nothing, but has what lies on transient disks counted. Blocks.
pub fn warm_up(settings: &Settings, surroundings: &Surroundings) {
    let root = &surroundings.root;
    if let Ok(guest) = guest::read(root) {
        surroundings.contents.want(at_risk::to_count_at_start(&guest, root, configured(settings)));
        let _ = guest::databases::read(root, &guest.processes);
        let _ = preflight::read(root, &guest);
    }
    let _ = crate::json::to_json(&proto::GetReportResponse { report: Some(proto::Report::default()) });
}

/// Who can ask for a hold; of no interest to a hold that somebody has asked for.
async fn callers(settings: &Settings, surroundings: &Surroundings, hooks: &[Hook]) -> Vec<proto::Problem> {
    let begun = tokio::time::Instant::now();
    let read = || {
        let root = surroundings.root.clone();
        in_a_thread(READ_LIMIT, move || (agent_channel::read(&root), platform::Platform::read(&root)))
    };
    let mut found = read().await;
    // a daemon that has just been started takes the channel a moment later
    let untaken = |channel: &AgentChannel| channel.device.is_some() && channel.owner == Owner::Nobody;
    while settings.listen.guest_agent == GuestAgent::Auto
        && found.as_ref().is_some_and(|(channel, _)| untaken(channel))
        && begun.elapsed() < TAKES
    {
        tokio::time::sleep(TAKES / 10).await;
        found = read().await;
    }
    match found {
        Some((mut channel, platform)) => {
            // ours run those themselves
            channel.hooks.retain(|script| hooks.iter().all(|hook| hook.path != *script));
            super::callers::problems(&settings.listen, &channel, platform)
        }
        None => {
            let message = format!("find out who can ask: /proc did not answer within {READ_LIMIT:?}");
            let hint = "see the kernel log for what is stuck";
            vec![problem(Severity::Warning, "CALLERS_UNKNOWN", "", &message, hint)]
        }
    }
}

/// What the administrator says of mount points.
fn configured(settings: &Settings) -> transient::Configured<'_> {
    transient::Configured { transient: &settings.transient.mounts, durable: &settings.transient.durable }
}

/// A refusal as one line of a report.
pub fn as_problem(refusal: &Refusal) -> proto::Problem {
    problem(Severity::Refusal, refusal.reason, "", &refusal.message, &refusal.hint)
}

/// Looks at everything. Nothing waits, nothing is changed; database sessions are open afterwards.
///
/// # Errors
/// A request that names what is not there, or a guest that cannot be read.
pub async fn survey(
    settings: &Settings,
    surroundings: &Surroundings,
    spec: &proto::HoldSpec,
    look: Look,
) -> Result<Survey, Refusal> {
    let mut guest = read_guest(&surroundings.root).await?;
    let (facts, storage) = facts::gather(&mut guest, &surroundings.root, configured(settings), look).await;
    let plan = plan::plan(&Inputs {
        superblocks: &guest.superblocks,
        facts: &facts,
        lies_on: &guest.lies_on,
        filesystems: &settings.filesystems,
        spec,
    })?;
    let callers = caller_freezes(spec);
    let mut survey = Survey {
        problems: plan.problems.clone(),
        refusals: plan.refusals.clone(),
        expected: Achieved {
            filesystems: match (callers, plan.complete) {
                (true, _) => Filesystems::Callers,
                (false, true) => Filesystems::Complete,
                (false, false) => Filesystems::Incomplete,
            },
            ..Achieved::default()
        },
        steps: Vec::new(),
        hooks: Vec::new(),
        databases: Vec::new(),
        callers,
        writes_receipts: settings.receipt.enabled && !spec.rehearsal && !callers,
        without_receipt: BTreeSet::new(),
        parts: Vec::new(),
        engines: Vec::new(),
        guest,
        facts,
        plan,
    };
    survey.list_hooks(settings).await;
    // looks while databases are asked
    let looking = survey.begin_looking(settings, surroundings, look);
    match look {
        Look::Everything => survey.find_databases(settings, surroundings, spec).await,
        Look::WhileHeld => {
            let message = "databases were not asked: a hold is in progress, and while held no database is spoken to";
            survey.problems.push(problem(
                Severity::Note,
                "HOLD_IN_PROGRESS",
                "",
                message,
                "check again after the thaw",
            ));
        }
    }
    survey.note_risks(looking, settings, surroundings).await;
    let file_systems = std::mem::take(&mut survey.plan.steps);
    survey.steps.extend(file_systems);
    survey.preflight(settings, surroundings, spec, look).await;
    survey.note_surroundings(settings, surroundings);
    survey.judge(settings, spec);
    // after: none of this is why a level cannot be reached
    survey.problems.extend(storage.problems(&survey.guest, &survey.plan.coverage));
    Ok(survey)
}

impl Survey {
    async fn list_hooks(&mut self, settings: &Settings) {
        let hooks = settings.hooks.clone();
        let listed = in_a_thread(READ_LIMIT, move || hook::list(&hooks.dir, hooks.timeout, &hooks.conventions)).await;
        let listing = match listed {
            Some(Ok(listing)) => listing,
            Some(Err(error)) => {
                let refusal = Refusal::new(RefusalKind::FailedPrecondition, "HOOK_UNUSABLE", error.to_string());
                self.refusals.push(refusal.hint(error.hint()));
                return;
            }
            None => {
                let why = format!("read {} within {READ_LIMIT:?}", settings.hooks.dir.display());
                self.refusals.push(Refusal::new(RefusalKind::FailedPrecondition, "HOOK_UNUSABLE", why));
                return;
            }
        };
        for ignored in listing.ignored {
            let subject = format!("hook:{ignored}");
            let message =
                format!("{ignored} in {} is ignored: its name, or not executable", settings.hooks.dir.display());
            self.problems.push(problem(Severity::Note, "HOOK_IGNORED", &subject, &message, ""));
        }
        for (name, what) in listing.notes {
            self.problems.push(problem(Severity::Note, "CONVENTION", &format!("hook:{name}"), &what, ""));
        }
        for hook in &listing.hooks {
            let mut step = proto::Step { name: format!("hook:{}", hook.name), ..Default::default() };
            step.set_kind(StepKind::Hook);
            step.set_outcome(StepOutcome::Planned);
            step.required = hook.required;
            self.steps.push(step);
        }
        self.expected.required_hooks = listing.hooks.iter().filter(|h| h.required && h.vouches_in().is_some()).count();
        self.hooks = listing.hooks;
    }

    /// Something could not be looked at in time; that is said, never taken for "there is nothing".
    fn unread(&mut self, code: &str, what: &str) {
        let message = format!("{what}: /proc did not answer within {READ_LIMIT:?}");
        self.problems.push(problem(Severity::Warning, code, "", &message, "see the kernel log for what is stuck"));
    }

    /// The superblocks the plan freezes.
    fn frozen(&self) -> Vec<Dev> {
        let frozen = self.plan.targets.iter().filter(|t| t.freeze);
        frozen.map(|t| self.guest.superblocks[t.superblock].dev).collect()
    }

    async fn preflight(
        &mut self,
        settings: &Settings,
        surroundings: &Surroundings,
        spec: &proto::HoldSpec,
        look: Look,
    ) {
        let max_hold = super::admit::duration(spec.max_hold.as_ref(), settings.hold.max);
        let quiesce = super::admit::duration(spec.quiesce_timeout.as_ref(), settings.hold.quiesce);
        let root = surroundings.root.clone();
        let guest = self.guest.clone();
        let targets = preflight::targets(&guest, &self.frozen());
        let blocked = match look {
            Look::Everything => blocked_throughout(&root, &guest.processes).await,
            Look::WhileHeld => Some(Vec::new()),
        };
        let Some(blocked) = blocked else { return self.unread("PREFLIGHT_INCOMPLETE", "look for blocked tasks") };
        let findings = in_a_thread(READ_LIMIT, move || {
            let facts = preflight::Facts { blocked, ..preflight::read(&root, &guest) };
            preflight::findings(&facts, max_hold + quiesce, &targets)
        })
        .await;
        let Some(findings) = findings else {
            return self.unread("PREFLIGHT_INCOMPLETE", "look for what is known to hang a freeze");
        };
        for finding in findings {
            let severity = match finding.severity {
                preflight::Severity::Note => Severity::Note,
                preflight::Severity::Warning => Severity::Warning,
                preflight::Severity::Refusal => {
                    let refusal = Refusal::new(RefusalKind::FailedPrecondition, finding.code, finding.message.clone());
                    self.refusals.push(refusal.hint(finding.hint.clone()));
                    continue;
                }
            };
            self.problems.push(problem(severity, finding.code, &finding.subject, &finding.message, &finding.hint));
        }
    }

    /// What the configuration names and the guest does not have, and where we are that people may not expect.
    fn note_surroundings(&mut self, settings: &Settings, surroundings: &Surroundings) {
        let namespace = |of: &str| fs::read_link(surroundings.root.join("proc").join(of).join("ns/mnt")).ok();
        if let (Some(own), Some(first)) = (namespace("self"), namespace("1"))
            && own != first
        {
            let message = "the daemon is in a mount namespace of its own: paths are as it sees them";
            let hint = "remove PrivateTmp=, ProtectSystem= and the like from its unit";
            self.problems.push(problem(Severity::Note, "OWN_MOUNT_NAMESPACE", "", message, hint));
        }
        let exceptions: Vec<PathBuf> = settings.transient.exceptions.iter().map(|e| e.path.clone()).collect();
        let unmatched = |paths: &[PathBuf]| transient::unmatched(&self.guest.superblocks, paths);
        let mounts = unmatched(&settings.transient.mounts).into_iter().map(|mount| (mount, "[transient] mounts"));
        let durable = unmatched(&settings.transient.durable).into_iter().map(|mount| (mount, "[transient] durable"));
        let exceptions = unmatched(&exceptions).into_iter().map(|mount| (mount, "a [[transient.mount]]"));
        for (mount, place) in mounts.chain(durable).chain(exceptions) {
            let message = format!("{} in {place} is not a mount point", mount.display());
            let hint = "correct it, or remove it if that disk is gone";
            self.problems.push(problem(
                Severity::Warning,
                "MOUNT_NOT_FOUND",
                &mount.display().to_string(),
                &message,
                hint,
            ));
        }
    }

    fn judge(&mut self, settings: &Settings, spec: &proto::HoldSpec) {
        if self.callers && self.refusals.is_empty() && self.databases.is_empty() && self.hooks.is_empty() {
            let message = "hold: the caller freezes the file systems, and there is no database and no hook to hold";
            let refusal = Refusal::new(RefusalKind::FailedPrecondition, "NOTHING_TO_HOLD", message);
            self.refusals.push(refusal.hint("`holdstill check --caller-freezes` says what was found"));
        }
        if let Some((wanted, reachable)) = self.expected.lacks(required(settings, spec))
            && self.refusals.is_empty()
        {
            let why: Vec<&str> = self
                .problems
                .iter()
                .filter(|p| p.severity() == Severity::Warning)
                .map(|p| p.message.as_str())
                .collect();
            let why = if self.callers {
                "the caller freezes the file systems, so only databases and hooks can be proven here: leave --require out".into()
            } else if why.is_empty() {
                "nothing here holds an application: no database and no required hook was found".into()
            } else {
                why.join("; ")
            };
            self.refusals.push(
                Refusal::new(
                    RefusalKind::FailedPrecondition,
                    "LEVEL_UNREACHABLE",
                    format!("reach {wanted}: at most {reachable} can be reached"),
                )
                .hint(why),
            );
        }
    }
}

/// Never unsaid in a report.
pub fn freeze_by(spec: &proto::HoldSpec) -> FreezeBy {
    if caller_freezes(spec) { FreezeBy::Caller } else { FreezeBy::Agent }
}

/// Tasks in uninterruptible sleep that did not move for two seconds.
async fn blocked_throughout(root: &Path, processes: &Processes) -> Option<Vec<tasks::BlockedTask>> {
    let look = |processes: Option<Processes>| {
        let root = root.to_owned();
        in_a_thread(READ_LIMIT, move || {
            let processes = processes.unwrap_or_else(|| Processes::read(&root));
            tasks::blocked_tasks(&root, &processes)
        })
    };
    let mut blocked = look(Some(processes.clone())).await?;
    for pause in BLOCKED_FOR {
        if blocked.is_empty() {
            break;
        }
        tokio::time::sleep(pause).await;
        blocked = tasks::blocked_throughout(&blocked, &look(None).await?);
    }
    Some(blocked)
}

async fn read_guest(root: &Path) -> Result<Guest, Refusal> {
    let root = root.to_owned();
    let cannot = |why: String| {
        Refusal::new(RefusalKind::FailedPrecondition, "GUEST_UNREADABLE", format!("read the guest's mounts: {why}"))
    };
    match in_a_thread(READ_LIMIT, move || guest::read(&root)).await {
        Some(Ok(guest)) => Ok(guest),
        Some(Err(error)) => Err(cannot(error.to_string())),
        None => Err(cannot(format!("no answer within {READ_LIMIT:?}"))),
    }
}
