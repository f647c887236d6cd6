//! The survey: everything a hold needs to know before anybody waits. Read the guest, list the hooks, connect to the
//! databases, make the plan, judge what can be reached. `check` stops here; a hold goes on with what it found.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::join_all;

use super::{
    Refusal, RefusalKind,
    admit::Caps,
    plan::{self, Achieved, Facts, Inputs, Leaf, Plan, problem},
};
use crate::{
    config::{GuestAgent, Settings},
    guest::{
        self, Dev, Guest, Kind, Superblock,
        agent_channel::{self, AgentChannel, Owner},
        databases, platform, preflight, superblock,
        tasks::{self, Processes},
        transient,
    },
    proto::{self, Claim, Consistency, Severity, StepKind, StepOutcome},
    step::{
        database::{self, Session, Target},
        hook::{self, Hook},
    },
};

/// By then a daemon has taken the channel that is there and owned by nobody, or will not. It looks twice, 300 ms apart.
const TAKES: Duration = Duration::from_secs(2);
/// Reading /proc and /sys takes milliseconds; beyond this something is badly stuck.
const READ_LIMIT: Duration = Duration::from_secs(10);
/// statfs and superblock reads touch devices, which may be dead: what has not answered by then is left out.
const TOUCH_LIMIT: Duration = Duration::from_secs(2);
/// A database that takes longer to let us in would make us wait later, too.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
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
}

impl Surroundings {
    pub fn read(root: &Path) -> Surroundings {
        Surroundings { root: root.to_owned(), instance: platform::Instance::read(root) }
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
}

/// One database that can be held.
pub struct Instance {
    pub target: Target,
    pub session: Session,
    /// the server's process, if it is known
    pid: Option<i32>,
    /// every directory it needs is on a file system that is frozen
    pub covered: bool,
}

/// The level a hold must reach: the stricter of configuration and request.
pub fn required(settings: &Settings, spec: &proto::HoldSpec) -> Consistency {
    settings.hold.require.max(spec.require())
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
    report.set_required(required(settings, &spec));
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
    report.coverage = survey.plan.coverage;
    report.problems = survey.problems;
    if look == Look::Everything {
        report.problems.extend(callers(settings, surroundings).await);
    }
    report.problems.extend(survey.refusals.iter().map(as_problem));
    let would_refuse = !survey.refusals.is_empty();
    join_all(survey.databases.into_iter().map(|db| db.session.release(DISCONNECT_LIMIT))).await;
    Ok(proto::CheckResponse { plan: Some(report), would_refuse, reachable: reachable.into() })
}

/// Reads once what every hold reads, so that the first one does not wait until our own program has come from the disk.
/// Says and keeps nothing. Blocks.
pub fn warm_up(root: &Path) {
    if let Ok(guest) = guest::read(root) {
        let _ = databases::read(root, &guest.processes);
        let _ = preflight::read(root, &guest);
    }
    let _ = crate::json::to_json(&proto::GetReportResponse { report: Some(proto::Report::default()) });
}

/// Who can ask for a hold; of no interest to a hold that somebody has asked for.
async fn callers(settings: &Settings, surroundings: &Surroundings) -> Vec<proto::Problem> {
    let begun = tokio::time::Instant::now();
    let read = || {
        let root = surroundings.root.clone();
        in_a_thread(READ_LIMIT, move || (agent_channel::read(&root), platform::Dmi::read(&root).platform()))
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
        Some((channel, platform)) => super::callers::problems(&settings.listen, &channel, platform),
        None => {
            let message = format!("find out who can ask: /proc did not answer within {READ_LIMIT:?}");
            let hint = "see the kernel log for what is stuck";
            vec![problem(Severity::Warning, "CALLERS_UNKNOWN", "", &message, hint)]
        }
    }
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
    let guest = read_guest(&surroundings.root).await?;
    let facts = gather(&guest, &surroundings.root, &settings.transient.mounts).await;
    let plan = plan::plan(&Inputs {
        superblocks: &guest.superblocks,
        facts: &facts,
        lies_on: &guest.lies_on,
        filesystems: &settings.filesystems,
        policy: settings.transient.policy,
        spec,
    })?;
    let mut survey = Survey {
        problems: plan.problems.clone(),
        refusals: plan.refusals.clone(),
        expected: Achieved { filesystems_complete: plan.complete, ..Achieved::default() },
        steps: Vec::new(),
        hooks: Vec::new(),
        databases: Vec::new(),
        guest,
        facts,
        plan,
    };
    survey.list_hooks(settings).await;
    match look {
        Look::Everything => survey.find_databases(settings, surroundings).await,
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
    let file_systems = std::mem::take(&mut survey.plan.steps);
    survey.steps.extend(file_systems);
    survey.preflight(settings, surroundings, spec, look).await;
    survey.note_surroundings(settings, surroundings);
    if spec.capture_mode() == proto::CaptureMode::LogsAfterThaw {
        let refusal = Refusal::new(
            RefusalKind::FailedPrecondition,
            "CAPTURE_MODE_UNSUPPORTED",
            "hold with logs captured after the thaw: this version only holds what is captured while held",
        );
        survey.refusals.push(refusal.hint("capture every disk while held, or leave --capture out"));
    }
    survey.judge(settings, spec);
    Ok(survey)
}

impl Survey {
    async fn list_hooks(&mut self, settings: &Settings) {
        let (dir, limit) = (settings.hooks.dir.clone(), settings.hooks.timeout);
        let listed = in_a_thread(READ_LIMIT, move || hook::list(&dir, limit)).await;
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
            let message = format!("{ignored} in {} is ignored by its name", settings.hooks.dir.display());
            self.problems.push(problem(Severity::Note, "HOOK_IGNORED", &subject, &message, ""));
        }
        for hook in &listing.hooks {
            let mut step = proto::Step { name: format!("hook:{}", hook.name), ..Default::default() };
            step.set_kind(StepKind::Hook);
            step.set_outcome(StepOutcome::Planned);
            step.required = hook.required;
            self.steps.push(step);
        }
        self.expected.required_hooks = listing.hooks.iter().filter(|h| h.required).count();
        self.hooks = listing.hooks;
    }

    async fn find_databases(&mut self, settings: &Settings, surroundings: &Surroundings) {
        let mut targets = settings.databases.configured.clone();
        let mut running = Vec::new();
        let mut listeners = Vec::new();
        if settings.databases.discover {
            let (root, processes) = (surroundings.root.clone(), self.guest.processes.clone());
            let found =
                in_a_thread(READ_LIMIT, move || databases::read(&root, &processes)).await.unwrap_or_else(|| {
                    // nothing found is not nothing there
                    self.expected.capped = true;
                    self.unread("DISCOVERY_INCOMPLETE", "look for databases");
                    databases::Found::default()
                });
            for socket in found.sockets {
                let Some(engine) = spoken(socket.engine) else { continue };
                let target = Target::discovered(engine, socket.path);
                if !targets.iter().any(|t| database::same_instance(t, &target)) {
                    targets.push(target.clone());
                }
                listeners.push((target, socket.pid));
            }
            running = found.engines;
        }
        let connections = join_all(targets.iter().map(|t| Session::connect(t, CONNECT_LIMIT))).await;
        for (target, connection) in targets.into_iter().zip(connections) {
            let session = match connection {
                Ok(session) => session,
                Err(error) => {
                    self.cannot_hold(&target, &error);
                    continue;
                }
            };
            let listener = listeners.iter().find(|(found, _)| database::same_instance(found, &target));
            let pid = server(session.server_pid(), listener.and_then(|(_, pid)| *pid), &running);
            // two sockets of one server: the first one, a configured one if there is any, holds it
            if pid.is_some_and(|pid| self.is_connected(pid)) {
                let _ = session.release(DISCONNECT_LIMIT).await;
            } else {
                self.add_database(target, session, pid, surroundings).await;
            }
        }
        for engine in running {
            if self.is_connected(engine.pid) {
                continue;
            }
            self.expected.capped = true;
            let subject = format!("db:{}", engine.engine);
            let message = format!(
                "{} runs (pid {}) and is not held: its files are as after a power cut",
                engine.engine, engine.pid
            );
            let hint = "configure it as a [[database]], or bring it to a consistent point with a hook";
            self.problems.push(problem(Severity::Warning, "DATABASE_NOT_HELD", &subject, &message, hint));
        }
    }

    /// Something could not be looked at in time; that is said, never taken for "there is nothing".
    fn unread(&mut self, code: &str, what: &str) {
        let message = format!("{what}: /proc did not answer within {READ_LIMIT:?}");
        self.problems.push(problem(Severity::Warning, code, "", &message, "see the kernel log for what is stuck"));
    }

    fn is_connected(&self, pid: i32) -> bool {
        self.databases.iter().any(|db| db.pid == Some(pid))
    }

    async fn add_database(&mut self, target: Target, session: Session, pid: Option<i32>, surroundings: &Surroundings) {
        let mut step = database_step(&target);
        step.set_outcome(StepOutcome::Planned);
        let mut described = session.describe();
        let outside = self.outside(&session, pid, surroundings).await;
        let covered = outside.is_empty();
        if !covered {
            described.set_claim(Claim::Uncovered);
            let message = format!("{}: {} is on no file system that is held", target.name, outside.join(", "));
            let hint = "bring that file system into scope, or move the files";
            self.problems.push(problem(Severity::Warning, "DATABASE_UNCOVERED", &step.name, &message, hint));
            step.reason = message;
        }
        self.problems.extend(session.remarks());
        self.expected.claims.push(described.claim());
        step.detail = Some(proto::step::Detail::Database(described));
        self.steps.push(step);
        self.databases.push(Instance { target, session, pid, covered });
    }

    fn cannot_hold(&mut self, target: &Target, error: &database::Error) {
        let mut step = database_step(target);
        step.set_outcome(StepOutcome::Failed);
        step.reason = error.to_string();
        step.hint.clone_from(&error.hint);
        if target.configured && target.required {
            let refusal = Refusal::new(RefusalKind::FailedPrecondition, "DATABASE_UNREACHABLE", error.to_string());
            self.refusals.push(refusal.hint(error.hint.clone()));
        } else {
            self.expected.capped = true;
            let message = error.to_string();
            self.problems.push(problem(Severity::Warning, "DATABASE_UNREACHABLE", &step.name, &message, &error.hint));
        }
        self.steps.push(step);
    }

    /// The database's directories that no frozen file system covers.
    async fn outside(&self, session: &Session, pid: Option<i32>, surroundings: &Surroundings) -> Vec<String> {
        let frozen = self.frozen();
        let (paths, root) = (session.data_paths(), surroundings.root.clone());
        let names: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
        let located =
            in_a_thread(TOUCH_LIMIT, move || paths.iter().map(|path| locate(&root, path, pid)).collect::<Vec<_>>())
                .await
                .unwrap_or_else(|| vec![None; names.len()]);
        names
            .into_iter()
            .zip(located)
            .filter(|(_, dev)| !dev.is_some_and(|dev| frozen.contains(&dev)))
            .map(|(name, _)| name)
            .collect()
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
        for mount in transient::unmatched(&self.guest.superblocks, &settings.transient.mounts) {
            let message = format!("{} in [transient] mounts is not a mount point", mount.display());
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
        let (reachable, required) = (self.expected.level(), required(settings, spec));
        if reachable < required && self.refusals.is_empty() {
            let why: Vec<&str> = self
                .problems
                .iter()
                .filter(|p| p.severity() == Severity::Warning)
                .map(|p| p.message.as_str())
                .collect();
            let why = if why.is_empty() {
                "nothing here holds an application: no database and no required hook was found".into()
            } else {
                why.join("; ")
            };
            self.refusals.push(
                Refusal::new(
                    RefusalKind::FailedPrecondition,
                    "LEVEL_UNREACHABLE",
                    format!(
                        "reach {} consistency: at most {} can be reached",
                        level_text(required),
                        level_text(reachable)
                    ),
                )
                .hint(why),
            );
        }
    }
}

/// Which process the server at the other end of a socket is. The kernel names the one that called listen(2), and under socket
/// activation (Debian's mariadb.socket) that is systemd, for every server it listens for: then it is whoever has the socket
/// open now, and never process 1.
fn server(peer: Option<i32>, listener: Option<i32>, running: &[databases::RunningEngine]) -> Option<i32> {
    let runs = |pid: &i32| running.iter().any(|engine| engine.pid == *pid);
    peer.filter(runs).or(listener).or(peer.filter(|pid| *pid != 1))
}

/// The protocol an engine speaks, if it is one we hold.
fn spoken(engine: databases::Engine) -> Option<database::Engine> {
    use databases::Engine;
    match engine {
        Engine::Postgresql => Some(database::Engine::Postgresql),
        Engine::Mysql | Engine::Mariadb => Some(database::Engine::Mysql),
        Engine::Redis
        | Engine::Valkey
        | Engine::Mongodb
        | Engine::Etcd
        | Engine::Clickhouse
        | Engine::Cassandra
        | Engine::Elasticsearch => None,
    }
}

/// "application", as people and the command line write it.
pub fn level_text(level: Consistency) -> &'static str {
    match level {
        Consistency::Unspecified | Consistency::None => "no",
        Consistency::Crash => "crash",
        Consistency::Filesystem => "filesystem",
        Consistency::Application => "application",
    }
}

fn database_step(target: &Target) -> proto::Step {
    let mut step = proto::Step { name: format!("db:{}", target.name), ..Default::default() };
    step.set_kind(StepKind::Database);
    step.required = target.required;
    step
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

/// What the plan needs to know of each superblock. What touches a device runs in a thread of its own with a limit: a
/// dead disk costs its numbers, not the hold.
async fn gather(guest: &Guest, root: &Path, transient_mounts: &[PathBuf]) -> BTreeMap<Dev, Facts> {
    let verdicts = transient::classify(&guest.superblocks, &guest.disks, transient_mounts);
    let touched = touch(guest, root).await;
    let written = written_to(guest, root).await;
    let mut all = BTreeMap::new();
    for superblock in &guest.superblocks {
        let dev = superblock.dev;
        let (raw, used_bytes) = touched.get(&dev).cloned().unwrap_or_default();
        let read = raw.as_ref().map_or_else(String::new, |raw| raw.uuid.clone());
        let mut facts = Facts {
            uuid: guest.disks.uuid(dev).map_or(read, str::to_owned),
            disk: disk_name(guest, superblock),
            ext: raw.and_then(|raw| raw.ext),
            used_bytes,
            leaves: leaves(guest, dev),
            open_for_writing: written.as_ref().is_none_or(|devs| devs.contains(&dev)),
            ..Facts::default()
        };
        if let Some(verdict) = verdicts.get(&dev) {
            facts.durability = match verdict.durability {
                transient::Durability::Unknown => proto::Durability::Unknown,
                transient::Durability::Durable => proto::Durability::Durable,
                transient::Durability::Transient => proto::Durability::Transient,
                transient::Durability::Mixed => proto::Durability::Mixed,
            };
            let evidence =
                |e: &transient::Evidence| proto::Evidence { source: e.source.into(), value: e.value.clone() };
            facts.evidence = verdict.evidence.iter().map(evidence).collect();
        }
        all.insert(dev, facts);
    }
    all
}

/// File systems that somebody has something open on for writing; asked only where a file system that cannot be frozen
/// makes it matter. `None`: could not be told, so it is taken for granted.
async fn written_to(guest: &Guest, root: &Path) -> Option<BTreeSet<Dev>> {
    if !guest.superblocks.iter().any(|s| s.kind == Kind::FlushOnly && !s.read_only) {
        return Some(BTreeSet::new());
    }
    let (root, processes) = (root.to_owned(), guest.processes.clone());
    in_a_thread(READ_LIMIT, move || tasks::open_for_writing(&root, &processes)).await
}

type Touched = BTreeMap<Dev, (Option<superblock::Raw>, u64)>;

/// The raw superblock and used bytes of each file system, as far as they answered in time.
async fn touch(guest: &Guest, root: &Path) -> Touched {
    let results: Arc<Mutex<Touched>> = Arc::default();
    let superblocks = guest.superblocks.clone();
    let devices: BTreeMap<Dev, PathBuf> = superblocks
        .iter()
        .filter(|s| s.kind == Kind::Freezable)
        .filter_map(|s| {
            let member = *guest.disks.members(s.dev).first()?;
            let name = &guest.disks.devices.get(&member)?.name;
            Some((s.dev, root.join("dev").join(name)))
        })
        .collect();
    let filled = Arc::clone(&results);
    let work = move || {
        for superblock in &superblocks {
            let raw = devices.get(&superblock.dev).and_then(|device| superblock::read(device).ok().flatten());
            let used = transient::used_bytes(superblock).ok().flatten().unwrap_or(0);
            filled.lock().expect("no holder panics").insert(superblock.dev, (raw, used));
        }
    };
    in_a_thread(TOUCH_LIMIT, work).await;
    let results = results.lock().expect("no holder panics");
    results.clone()
}

fn disk_name(guest: &Guest, superblock: &Superblock) -> String {
    if superblock.kind == Kind::Memory && superblock.dev.major == 0 {
        let mount = superblock.mounts.first().map_or_else(String::new, |m| m.display().to_string());
        return format!("{}:{mount}", superblock.fs_type);
    }
    let member = guest.disks.members(superblock.dev).first().copied();
    member
        .and_then(|dev| guest.disks.devices.get(&dev))
        .map_or_else(|| superblock.source.trim_start_matches("/dev/").to_owned(), |device| device.name.clone())
}

fn leaves(guest: &Guest, superblock: Dev) -> Vec<Leaf> {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    guest
        .disks
        .leaves(superblock)
        .into_iter()
        .filter_map(|dev| {
            let device = guest.disks.devices.get(&dev)?;
            let disk = guest.disks.disk(dev).unwrap_or(device);
            let mut names = vec![device.name.clone(), disk.name.clone()];
            names.dedup();
            Some(Leaf {
                names,
                serial: text(&disk.identity.serial),
                wwn: text(&disk.identity.wwid),
                pci_address: text(&disk.identity.pci),
                nguid: text(&disk.identity.nguid),
            })
        })
        .collect()
}

/// The superblock a path lies on, as `pid` sees it.
fn locate(root: &Path, path: &Path, pid: Option<i32>) -> Option<Dev> {
    let below = |base: PathBuf| base.join(path.strip_prefix("/").unwrap_or(path));
    let (seen, table) = match pid {
        Some(pid) => {
            let process = root.join("proc").join(pid.to_string());
            (below(process.join("root")), process.join("mountinfo"))
        }
        None => (below(root.to_owned()), root.join("proc/self/mountinfo")),
    };
    let id = mount_id(&seen).ok()?;
    let lines = guest::mounts::parse_bytes(&fs::read(table).ok()?);
    guest::mounts::by_mount_id(&lines, id).map(|line| line.dev)
}

fn mount_id(path: &Path) -> io::Result<u64> {
    use std::os::{fd::AsRawFd, unix::fs::OpenOptionsExt};
    let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_CLOEXEC).open(path)?;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
    info.lines()
        .find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
        .ok_or_else(|| io::Error::other("no mnt_id in fdinfo"))
}

/// Runs `work` where it may block, and waits for it at most `limit`.
pub(super) async fn in_a_thread<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    tokio::time::timeout(limit, tokio::task::spawn_blocking(work)).await.ok()?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_systemd_listens_for_is_the_process_that_has_the_socket() {
        let engine = |pid| databases::RunningEngine {
            engine: databases::Engine::Mariadb,
            pid,
            datadir: None,
            sockets: Vec::new(),
            elsewhere: false,
        };
        let running = [engine(225), engine(300)];
        assert_eq!(server(Some(300), Some(225), &running), Some(300), "in containers one path is two servers");
        assert_eq!(server(Some(1), Some(225), &running), Some(225));
        assert_eq!(server(Some(800), Some(225), &running), Some(225), "a user's own systemd listens");
        assert_eq!(server(Some(1), None, &running), None, "two of these are not one server");
        assert_eq!(server(Some(400), None, &[]), Some(400), "a binary of another name");
        assert_eq!(server(None, None, &running), None, "over TCP");
    }
}
