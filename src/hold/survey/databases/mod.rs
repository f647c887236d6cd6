//! The databases of a hold: found and configured ones, connected to, and where their files are.
//!
//! ```text
//!   /proc ──▶ candidates ──▶ connect (all at once) ──▶ identity ──▶ coverage ──▶ an Instance, or why it is none
//!   config ──▶
//! ```
//!
//! What touches files of servers runs in threads with a limit: a data directory may lie on what no longer answers.

mod candidates;
mod coverage;
mod identity;
mod table_files;

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::join_all;

use self::{
    candidates::{Candidate, Unreachable},
    coverage::{Ground, Judged, Part},
    identity::{Answered, RootOf, Works},
};
use super::{DISCONNECT_LIMIT, READ_LIMIT, Surroundings, Survey, TOUCH_LIMIT, in_a_thread};
use crate::{
    config::Settings,
    guest::{Dev, Kind, Superblock, databases},
    hold::{Refusal, RefusalKind, plan::problem},
    proto::{self, Claim, Severity, StepKind, StepOutcome},
    step::database::{self, Address, Given, Logs, Session, Target},
};

/// A database that takes longer to let us in would make us wait later, too.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// More parts than this are counted as covered or not, and not listed.
const MOST_PATHS: usize = 64;

/// One database that can be held.
pub struct Instance {
    pub target: Target,
    pub session: Session,
    /// the server's process, if it is known
    pid: Option<i32>,
    /// every directory it needs is on a file system that is frozen
    pub covered: bool,
}

impl Survey {
    pub(super) async fn find_databases(
        &mut self,
        settings: &Settings,
        surroundings: &Surroundings,
        spec: &proto::HoldSpec,
    ) {
        let found = self.look_for_databases(settings, surroundings).await;
        let (candidates, unreachable) = self.candidates(settings, surroundings, &found).await;
        let mut told: BTreeSet<i32> = BTreeSet::new();
        let candidates = self.ready_ones(candidates, surroundings, &mut told).await;
        let logs = match spec.capture_mode() {
            proto::CaptureMode::LogsAfterThaw => Logs::AfterThaw,
            proto::CaptureMode::Unspecified | proto::CaptureMode::WhileHeld => Logs::WhileHeld,
        };
        let connections = join_all(candidates.iter().map(|c| Session::connect(&c.target, logs, CONNECT_LIMIT))).await;
        for (candidate, connection) in candidates.into_iter().zip(connections) {
            match connection {
                Ok(session) => {
                    let server = self.add_if_it_is_the_one(candidate, session, &found, surroundings).await;
                    told.extend(server);
                }
                Err(error) => {
                    told.extend(candidate.server);
                    self.cannot_hold(&candidate.target, &error);
                }
            }
        }
        let running = found.engines.iter().filter(|_| settings.databases.discover);
        for engine in running.filter(|engine| !told.contains(&engine.pid)) {
            self.not_held(engine, unreachable.iter().find(|u| u.pid == engine.pid));
        }
        self.mark_what_is_at_risk();
    }

    async fn look_for_databases(&mut self, settings: &Settings, surroundings: &Surroundings) -> databases::Found {
        // settings for one over TCP are of use only if its server is found
        if !settings.databases.discover && settings.databases.configured.is_empty() {
            return databases::Found::default();
        }
        let (root, processes) = (surroundings.root.clone(), self.guest.processes.clone());
        let found = in_a_thread(READ_LIMIT, move || databases::read(&root, &processes)).await;
        let Some(found) = found else {
            // nothing found is not nothing there
            self.expected.capped = true;
            self.unread("DISCOVERY_INCOMPLETE", "look for databases");
            return databases::Found::default();
        };
        found
    }

    /// Configured instances, then those that are only found.
    async fn candidates(
        &mut self,
        settings: &Settings,
        surroundings: &Surroundings,
        found: &databases::Found,
    ) -> (Vec<Candidate>, Vec<Unreachable>) {
        let (mut discovered, mut unreachable) = match settings.databases.discover {
            true => candidates::discovered(found),
            false => Default::default(),
        };
        let configured: Vec<Candidate> = settings
            .databases
            .configured
            .iter()
            .map(|target| candidates::named(target.clone(), &mut discovered))
            .collect();
        let engines = found.engines.clone();
        let asked = configured.clone();
        let sockets: Vec<Target> = discovered.iter().filter(|d| d.server.is_none()).map(|d| d.target.clone()).collect();
        let known = in_a_thread(TOUCH_LIMIT, move || {
            let server = |c: &Candidate| c.server.or_else(|| candidates::server_of(&c.target, &engines));
            // a path that listens and is not there is another mount namespace's
            let twice =
                |t: &Target| !database::is_there(t) || asked.iter().any(|c| database::same_instance(&c.target, t));
            let servers: Vec<Option<i32>> = asked.iter().map(server).collect();
            (servers, sockets.iter().map(twice).collect::<Vec<bool>>())
        })
        .await;
        let (servers, twice) = known.unwrap_or_default();
        let mut twice = twice.into_iter();
        discovered.retain(|d| match d.server {
            Some(pid) => !servers.contains(&Some(pid)),
            None => !twice.next().unwrap_or(false),
        });
        let mut all: Vec<Candidate> = configured;
        for (candidate, server) in all.iter_mut().zip(&servers) {
            candidate.server = candidate.server.or(*server);
        }
        self.find_listeners(&mut all, surroundings).await;
        unreachable.retain(|u| !servers.contains(&Some(u.pid)));
        all.extend(discovered);
        (all, unreachable)
    }

    /// A port of this machine that no known server has is somebody's: a server of another name, or what leads into a
    /// container.
    async fn find_listeners(&self, candidates: &mut [Candidate], surroundings: &Surroundings) {
        for candidate in candidates.iter_mut().filter(|c| c.server.is_none() && c.target.place == Given::Told) {
            let Address::Tcp { host, port } = &candidate.target.at else { continue };
            if candidates::is_here(host) {
                let (root, processes, port) = (surroundings.root.clone(), self.guest.processes.clone(), *port);
                let found = in_a_thread(READ_LIMIT, move || databases::listens_on(&root, &processes, port)).await;
                candidate.server = found.flatten();
            }
        }
    }

    /// Leaves out, and says, those that start or stop just now.
    async fn ready_ones(
        &mut self,
        candidates: Vec<Candidate>,
        surroundings: &Surroundings,
        told: &mut BTreeSet<i32>,
    ) -> Vec<Candidate> {
        let (root, asked) = (surroundings.root.clone(), candidates.clone());
        let states = in_a_thread(TOUCH_LIMIT, move || {
            let state = |candidate: &Candidate| match candidate.target.engine {
                database::Engine::Postgresql => identity::not_ready(&root, candidate.server?),
                database::Engine::Mysql => None,
            };
            asked.iter().map(state).collect::<Vec<_>>()
        })
        .await
        .unwrap_or_default();
        let mut ready = Vec::new();
        let mut states = states.into_iter();
        for candidate in candidates {
            match states.next().flatten() {
                None => ready.push(candidate),
                Some((why, cure)) => {
                    told.extend(candidate.server);
                    self.cannot_hold(&candidate.target, &failure(&candidate.target, why.to_owned(), cure));
                }
            }
        }
        ready
    }

    /// Adds the instance if the server that answered is the one that was meant, works on what it says, and is not held
    /// already. Answers its process.
    async fn add_if_it_is_the_one(
        &mut self,
        candidate: Candidate,
        session: Session,
        found: &databases::Found,
        surroundings: &Surroundings,
    ) -> Option<i32> {
        let Candidate { target, server: expected } = candidate;
        let peer = session.server_pid();
        let answered = identity::who_answered(peer, expected, &found.engines, &self.guest.processes);
        let pid = match answered {
            Answered::By(pid) => pid,
            Answered::ByAnother(pid) => {
                let why = format!("process {pid} answers at its socket, not the server found there");
                let error = failure(&target, why, "look which of the two it should be, and configure its socket");
                self.cannot_hold(&target, &error);
                let _ = session.release(DISCONNECT_LIMIT).await;
                return expected;
            }
        };
        // two sockets of one server: the first one, a configured one if there is any, holds it
        if pid.is_some_and(|pid| self.is_connected(pid)) {
            let _ = session.release(DISCONNECT_LIMIT).await;
            return pid;
        }
        if let (Some(pid), Some(data)) = (pid, session.places().into_iter().find(|place| place.purpose == "data")) {
            let (root, path) = (surroundings.root.clone(), data.path.clone());
            let told = session.system_identifier();
            let works = in_a_thread(TOUCH_LIMIT, move || identity::works_in(&root, pid, &path, told)).await;
            let another = match works {
                Some(Works::Elsewhere(directory)) => Some(format!("works in {}", directory.display())),
                Some(Works::OnOthersFiles) => Some("has files with another system identifier".to_owned()),
                Some(Works::There | Works::Unknown) | None => None,
            };
            if let Some(another) = another {
                let why = format!(
                    "the server that answers keeps its data in {}, but process {pid} {another}: it is another one",
                    data.path.display(),
                );
                let cure = "configure the server's own socket; through a proxy or pooler it cannot be told apart";
                self.cannot_hold(&target, &failure(&target, why, cure));
                let _ = session.release(DISCONNECT_LIMIT).await;
                return Some(pid);
            }
        }
        self.add_database(target, session, pid, surroundings).await;
        pid
    }

    fn is_connected(&self, pid: i32) -> bool {
        self.databases.iter().any(|db| db.pid == Some(pid))
    }

    async fn add_database(
        &mut self,
        target: Target,
        mut session: Session,
        pid: Option<i32>,
        surroundings: &Surroundings,
    ) {
        doubt_what_it_tells(&target, &mut session, pid, surroundings).await;
        let mut step = database_step(&target);
        step.set_outcome(StepOutcome::Planned);
        let mut described = session.describe();
        let mut judged = self.judge_parts(&session, pid, surroundings).await;
        judged.sort_by_key(|part| part.ground.held);
        described.paths = judged.iter().take(MOST_PATHS).map(Judged::told).collect();
        let outside = coverage::outside(&judged);
        let covered = outside.is_none();
        if let Some((why, hint)) = outside {
            described.set_claim(Claim::Uncovered);
            let message = format!("{}: {why}", target.name);
            self.problems.push(problem(Severity::Warning, "DATABASE_UNCOVERED", &step.name, &message, hint));
            step.reason = message;
        }
        self.problems.extend(session.remarks());
        if self.writes_receipts && matches!(described.engine.as_str(), "postgresql" | "mariadb") {
            self.leave_out_receipt(&step.name, &judged, pid, surroundings).await;
        }
        self.say_if_logs_freeze(&session, pid, surroundings).await;
        self.note_at_risk(&target.name, &judged);
        self.expected.claims.push(described.claim());
        step.detail = Some(proto::step::Detail::Database(described));
        self.steps.push(step);
        self.databases.push(Instance { target, session, pid, covered });
    }

    /// Everything the server needs, each with the file system it lies on.
    async fn judge_parts(&self, session: &Session, pid: Option<i32>, surroundings: &Surroundings) -> Vec<Judged> {
        let (places, root) = (session.places(), surroundings.root.clone());
        let lost = |why: String| {
            let part = |place: &database::Place| Part {
                purpose: place.purpose,
                path: place.path.clone(),
                after_thaw: place.after_thaw,
                at: Err(why.clone()),
            };
            session.places().iter().map(part).collect()
        };
        let parts: Vec<Part> = if pid.is_none() && session.is_over_tcp() {
            // its paths would be looked up in our own view, where they may mean another server's files
            lost("cannot be found: the server's process is not known on this machine".to_owned())
        } else {
            in_a_thread(TOUCH_LIMIT, move || coverage::parts(&root, pid, &places)).await.unwrap_or_else(|| {
                lost(format!("was not found within {TOUCH_LIMIT:?}: something there does not answer"))
            })
        };
        parts.into_iter().map(|part| Judged { ground: self.ground(&part), part }).collect()
    }

    fn ground(&self, part: &Part) -> Ground {
        match &part.at {
            Err(_) => Ground { step: String::new(), held: false, reason: String::new() },
            Ok(dev) => self.ground_at(*dev),
        }
    }

    fn ground_at(&self, dev: Dev) -> Ground {
        let superblock = self.guest.superblocks.iter().find(|s| s.dev == dev);
        if superblock.is_some_and(|s| s.kind == Kind::Stacked) {
            return self.ground_below(dev);
        }
        let step = self.plan.steps.iter().find(|step| is_of(step, dev));
        Ground {
            step: step.map(|step| step.name.clone()).unwrap_or_default(),
            held: self.frozen().contains(&dev),
            reason: step.map(|step| step.reason.clone()).unwrap_or_default(),
        }
    }

    /// A container's overlay has no data of its own: its layers have. The upper one comes first, it takes the writes.
    fn ground_below(&self, overlay: Dev) -> Ground {
        let image = |dev: &Dev| self.guest.superblocks.iter().any(|s| s.dev == *dev && s.kind == Kind::Image);
        let layers: Vec<Dev> = self.guest.disks.layers(overlay).iter().copied().filter(|dev| !image(dev)).collect();
        let grounds: Vec<Ground> = layers
            .into_iter()
            .filter(|dev| *dev != overlay)
            .map(|dev| match self.guest.superblocks.iter().any(|s| s.dev == dev && s.kind == Kind::Stacked) {
                true => Ground { step: String::new(), held: false, reason: "is on an overlay over an overlay".into() },
                false => self.ground_at(dev),
            })
            .collect();
        let missing = grounds.iter().find(|ground| !ground.held).cloned();
        missing.or_else(|| grounds.into_iter().next()).unwrap_or_else(|| Ground {
            step: String::new(),
            held: false,
            reason: "is in a container's overlay whose layers cannot be found here".to_owned(),
        })
    }

    /// A receipt in a data directory, which is where it lies if that is the root of a file system, is in the way of others:
    /// `pg_basebackup` stops at a directory it may not read, MariaDB takes it for a database and `mariadb-dump` stops at that.
    /// So there is none, unless there already was.
    async fn leave_out_receipt(
        &mut self,
        step: &str,
        judged: &[Judged],
        pid: Option<i32>,
        surroundings: &Surroundings,
    ) {
        let Some(data) = judged.iter().find(|j| j.part.purpose == "data") else { return };
        let is_it = |s: &&Superblock| data.part.at == Ok(s.dev);
        let Some(superblock) = self.guest.superblocks.iter().find(is_it).cloned() else { return };
        let (root, path) = (surroundings.root.clone(), data.part.path.clone());
        let found = in_a_thread(TOUCH_LIMIT, move || identity::is_root(&root, pid, &path, &superblock)).await;
        if found == Some(Some(RootOf::WithoutReceipt)) {
            self.without_receipt.extend(data.part.at.clone());
            let message = "its data directory is the root of a file system, where a receipt would be in the way of \
                           pg_basebackup and mariadb-dump: none is written there, and that copy cannot testify";
            let hint = "move the data into a directory below, as its manual advises";
            self.problems.push(problem(Severity::Note, "RECEIPT_LEFT_OUT", step, message, hint));
        }
    }

    /// A server whose log lies on a frozen disk may stop answering while it is frozen.
    async fn say_if_logs_freeze(&mut self, session: &Session, pid: Option<i32>, surroundings: &Surroundings) {
        let logs = session.log_places();
        if logs.is_empty() || (pid.is_none() && session.is_over_tcp()) {
            return;
        }
        let root = surroundings.root.clone();
        let places: Vec<database::Place> = logs
            .iter()
            .map(|log| database::Place { purpose: "log", path: log.path.clone(), after_thaw: false })
            .collect();
        let parts = in_a_thread(TOUCH_LIMIT, move || coverage::parts(&root, pid, &places)).await.unwrap_or_default();
        for log in logs {
            // where it is not known, better said once too often
            let part = parts.iter().find(|part| part.path == log.path);
            if part.is_none_or(|part| part.at.is_err() || self.ground(part).held) {
                self.problems.push(log.remark);
            }
        }
    }

    /// Remembers which disks a database has a part on, in the coverage of each.
    fn note_at_risk(&mut self, name: &str, judged: &[Judged]) {
        let mut devs: BTreeSet<Dev> = BTreeSet::new();
        for dev in judged.iter().filter_map(|j| j.part.at.as_ref().ok()) {
            devs.insert(*dev);
            devs.extend(self.guest.disks.layers(*dev));
        }
        // one entry per superblock that is no pseudo file system, in this order
        let listed = self.guest.superblocks.iter().filter(|s| s.kind != Kind::Pseudo);
        for (superblock, entry) in listed.zip(&mut self.plan.coverage) {
            if devs.contains(&superblock.dev) {
                entry.at_risk.push(name.to_owned());
            }
        }
    }

    /// Only what is transient or will not be copied is at risk.
    fn mark_what_is_at_risk(&mut self) {
        for entry in &mut self.plan.coverage {
            let gone = match entry.durability() {
                proto::Durability::Transient | proto::Durability::Mixed => true,
                proto::Durability::Unspecified | proto::Durability::Unknown | proto::Durability::Durable => false,
            };
            if !gone && entry.in_snapshot() != proto::InSnapshot::No {
                entry.at_risk.clear();
            }
        }
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

    /// A server that nothing was tried with.
    fn not_held(&mut self, engine: &databases::RunningEngine, unreachable: Option<&Unreachable>) {
        self.expected.capped = true;
        let subject = format!("db:{}", engine.engine);
        let container = engine.container.as_ref().map_or_else(String::new, |name| format!(" in container {name}"));
        let why = unreachable.map_or_else(String::new, |u| format!(", as {}", u.why));
        let message = format!(
            "{} runs (pid {}{container}) and is not held{why}: its files are as after a power cut",
            engine.engine, engine.pid
        );
        let usual = "configure it as a [[database]], or bring it to a consistent point with a hook";
        let hint = unreachable.map_or(usual, |u| u.cure.as_str());
        self.problems.push(problem(Severity::Warning, "DATABASE_NOT_HELD", &subject, &message, hint));
    }
}

/// A MySQL-like server that hides tables from us is held as if there were some.
async fn doubt_what_it_tells(target: &Target, session: &mut Session, pid: Option<i32>, surroundings: &Surroundings) {
    let data = session.places().into_iter().find(|place| place.purpose == "data");
    if let (database::Engine::Mysql, Some(pid), Some(data)) = (target.engine, pid, data) {
        let root = surroundings.root.clone();
        let seen = in_a_thread(TOUCH_LIMIT, move || table_files::are_there(&root, Some(pid), &data.path)).await;
        if seen == Some(true) {
            session.doubt_tables();
        }
    }
}

/// Whether a step is of this file system.
fn is_of(step: &proto::Step, dev: Dev) -> bool {
    match &step.detail {
        Some(proto::step::Detail::Filesystem(fs)) => fs.major == dev.major && fs.minor == dev.minor,
        Some(proto::step::Detail::Database(_) | proto::step::Detail::Hook(_)) | None => false,
    }
}

fn failure(target: &Target, why: String, hint: &str) -> database::Error {
    database::Error { name: target.name.clone(), what: "hold", why, hint: hint.to_owned() }
}

fn database_step(target: &Target) -> proto::Step {
    let mut step = proto::Step { name: format!("db:{}", target.name), ..Default::default() };
    step.set_kind(StepKind::Database);
    step.required = target.required;
    step
}
