//! What lies on the disks that the snapshot will not contain: found while databases are asked, put together afterwards, and
//! judged by the policy.
//!
//! Only where there is such a disk at all; never while something is held. What does not answer in time is left out and said.

mod told;
mod wanted;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::task::JoinHandle;

pub(super) use self::wanted::to_count_at_start;
use self::{
    told::{broken_apart, fill, of_servers},
    wanted::{counts_writers, to_count, wanted},
};
use super::{Look, READ_LIMIT, Surroundings, Survey, TOUCH_LIMIT, in_a_thread};
use crate::{
    config::{Settings, Stance},
    guest::{
        Dev,
        risk::{self, Found, Level, Risk, Wanted, Writer},
        whereabouts::Whereabouts,
    },
    hold::plan::{display, policy, problem},
    proto::{self, InSnapshot, Severity},
};

/// A server's children are its own; nobody nests deeper.
const GENERATIONS: usize = 8;

/// Something a database needs, and where it lies.
pub(super) struct DatabasePart {
    pub database: String,
    pub purpose: &'static str,
    pub path: PathBuf,
    pub after_thaw: bool,
    /// an overlay's layers included
    pub devs: Vec<Dev>,
}

/// What is under way.
pub(super) struct Looking {
    found: Arc<Found>,
    paths: JoinHandle<Option<()>>,
    writers: JoinHandle<Option<BTreeMap<Dev, Vec<Writer>>>>,
    /// file systems whose top directory is looked into
    into: BTreeMap<Dev, PathBuf>,
}

impl Survey {
    /// `None`: there is nothing to look for.
    pub(super) fn begin_looking(
        &self,
        settings: &Settings,
        surroundings: &Surroundings,
        look: Look,
    ) -> Option<Looking> {
        if look == Look::WhileHeld {
            return None;
        }
        let wanted: Vec<Wanted> =
            self.plan.lost.iter().filter_map(|lost| wanted(&self.guest.superblocks[lost.superblock])).collect();
        if wanted.is_empty() {
            return None;
        }
        let into = wanted.iter().filter_map(|wanted| Some((wanted.dev, wanted.home.clone()?))).collect();
        let mut ours: Vec<(String, String, PathBuf)> = self
            .hooks
            .iter()
            .map(|hook| (format!("hook:{}", hook.name), format!("the hook {} is", hook.name), hook.path.clone()))
            .collect();
        ours.push(("holdstill".into(), "holdstill keeps its reports in".into(), settings.paths.state.clone()));
        let found = Arc::new(Found::default());
        let (root, filled) = (surroundings.root.clone(), Arc::clone(&found));
        let paths = tokio::spawn(in_a_thread(TOUCH_LIMIT, move || risk::look(&root, &wanted, &ours, &filled)));
        let (root, guest) = (surroundings.root.clone(), self.guest.clone());
        let writers = tokio::spawn(in_a_thread(READ_LIMIT, move || {
            let layer = |dev: Dev| guest.disks.layers(dev).first().copied();
            guest.writers(&root).by_dev(&root, &layer)
        }));
        Some(Looking { found, paths, writers, into })
    }

    /// Fills the coverage with what was found, and does what the policy wants.
    pub(super) async fn note_risks(
        &mut self,
        looking: Option<Looking>,
        settings: &Settings,
        surroundings: &Surroundings,
    ) {
        for lost in &self.plan.lost {
            let stance = policy::stance(&self.guest.superblocks[lost.superblock], &settings.transient);
            if let Some(Stance::Accept { because }) = stance {
                self.plan.coverage[lost.coverage].accepted.clone_from(because);
            }
        }
        let mut risks = self.of_databases();
        for lost in &self.plan.lost {
            let entry = &self.plan.coverage[lost.coverage];
            let superblock = &self.guest.superblocks[lost.superblock];
            risks.entry(superblock.dev).or_default().extend(broken_apart(
                lost,
                superblock,
                entry,
                self.facts.get(&superblock.dev).map_or(&[], |facts| &facts.legs),
            ));
        }
        if let Some(looking) = looking {
            self.add_found(looking, surroundings, &mut risks).await;
        }
        for lost in &self.plan.lost {
            let dev = self.guest.superblocks[lost.superblock].dev;
            let entry = &mut self.plan.coverage[lost.coverage];
            fill(entry, risks.remove(&dev).unwrap_or_default());
        }
        self.note_contents(surroundings);
        self.name_ours_outside();
        let judgement =
            policy::judge(&self.plan.lost, &self.guest.superblocks, &self.plan.coverage, &settings.transient);
        self.problems.extend(judgement.problems);
        self.refusals.extend(judgement.refusal);
    }

    async fn add_found(&mut self, looking: Looking, surroundings: &Surroundings, risks: &mut BTreeMap<Dev, Vec<Risk>>) {
        let in_time = looking.paths.await.ok().flatten().is_some();
        let (found, stage) = looking.found.take();
        if let Some(stage) = stage.filter(|_| !in_time) {
            let message = format!(
                "what the snapshot will miss is not known in full: {stage} did not answer within {TOUCH_LIMIT:?}"
            );
            let hint = "see the kernel log for the disk that is stuck";
            self.problems.push(problem(Severity::Warning, "COVERAGE_INCOMPLETE", "", &message, hint));
        }
        for (dev, top) in &looking.into {
            // not looked into is not empty
            if !found.get(dev).is_some_and(|risks| risks.iter().any(|risk| risk.path == *top)) {
                let message = format!("what lies in {} could not be looked at in time", top.display());
                let risk =
                    Risk { level: Level::NotEmpty, subject: top.display().to_string(), path: top.clone(), message };
                risks.entry(*dev).or_default().push(risk);
            }
        }
        for (dev, found) in found {
            risks.entry(dev).or_default().extend(found);
        }
        let Some(writers) = looking.writers.await.ok().flatten() else {
            return self.unread("COVERAGE_INCOMPLETE", "find out who writes to disks that the snapshot will miss");
        };
        let (told, unheld) = self.servers();
        let root = &surroundings.root;
        for lost in &self.plan.lost {
            let superblock = &self.guest.superblocks[lost.superblock];
            let (Some(writers), true) = (writers.get(&superblock.dev), counts_writers(superblock)) else { continue };
            let known = risks.entry(superblock.dev).or_default();
            known.extend(of_servers(writers, &unheld));
            let spoken_for = |pid: i32| told.contains(&pid) || unheld.contains_key(&pid);
            // few: only of those that write there, a control group is read
            known.extend(risk::written(root, &self.guest.processes, writers, &spoken_for));
        }
        self.add_idle_servers(root, risks).await;
    }

    /// What was counted before this, and what is to be counted after it.
    fn note_contents(&mut self, surroundings: &Surroundings) {
        let mut places = Vec::new();
        for lost in &self.plan.lost {
            let superblock = &self.guest.superblocks[lost.superblock];
            let entry = &mut self.plan.coverage[lost.coverage];
            if let Some(place) = to_count(superblock, &entry.uuid) {
                entry.contents = surroundings.contents.known(&place);
                places.push(place);
            }
        }
        surroundings.contents.want(places);
    }

    /// Processes of databases that are held, and those of servers that are not, each with its server.
    fn servers(&self) -> (BTreeSet<i32>, BTreeMap<i32, (i32, String)>) {
        let held: BTreeSet<i32> = self.databases.iter().filter_map(|db| db.pid()).collect();
        let engines: BTreeMap<i32, String> = self.engines.iter().map(|e| (e.pid, e.engine.to_string())).collect();
        let (mut told, mut unheld) = (BTreeSet::new(), BTreeMap::new());
        for (pid, _) in self.guest.processes.iter() {
            let mut ancestor = pid;
            for _ in 0..GENERATIONS {
                if held.contains(&ancestor) {
                    told.insert(pid);
                    break;
                }
                if let Some(engine) = engines.get(&ancestor) {
                    unheld.insert(pid, (ancestor, engine.clone()));
                    break;
                }
                match self.guest.processes.get(ancestor) {
                    Some(process) => ancestor = process.parent,
                    None => break,
                }
            }
        }
        (told, unheld)
    }

    /// Servers that are not held and have nothing open just now, by the directory they work in.
    async fn add_idle_servers(&self, root: &Path, risks: &mut BTreeMap<Dev, Vec<Risk>>) {
        let held: BTreeSet<i32> = self.databases.iter().filter_map(|db| db.pid()).collect();
        let idle: Vec<(i32, String, PathBuf)> = self
            .engines
            .iter()
            .filter(|engine| !held.contains(&engine.pid))
            .filter_map(|engine| Some((engine.pid, engine.engine.to_string(), engine.datadir.clone()?)))
            .collect();
        if idle.is_empty() {
            return;
        }
        let root = root.to_owned();
        let places = in_a_thread(TOUCH_LIMIT, move || {
            let place = |(pid, engine, path): (i32, String, PathBuf)| {
                let dev = Whereabouts::of(&root, Some(pid)).ok()?.find(&path).ok()?.dev;
                Some((dev, pid, engine, path))
            };
            idle.into_iter().filter_map(place).collect::<Vec<_>>()
        })
        .await;
        for (dev, pid, engine, path) in places.unwrap_or_default() {
            let known = risks.entry(dev).or_default();
            let subject = format!("db:{engine}");
            if !known.iter().any(|risk| risk.subject == subject) {
                let message = format!("{engine} (pid {pid}) works in {}", path.display());
                known.push(Risk { level: Level::Database, subject, path, message });
            }
        }
    }

    /// What of each database lies on a disk that will be missed, and what that means for the rest of it.
    fn of_databases(&self) -> BTreeMap<Dev, Vec<Risk>> {
        let lost: BTreeSet<Dev> = self.plan.lost.iter().map(|l| self.guest.superblocks[l.superblock].dev).collect();
        let mut risks: BTreeMap<Dev, Vec<Risk>> = BTreeMap::new();
        for part in &self.parts {
            // the data directory decides: what else lies elsewhere is worth nothing without it, and the reverse
            let data = self.parts.iter().find(|p| p.database == part.database && p.purpose == "data");
            let data_stays = data.is_some_and(|data| !data.devs.iter().any(|dev| lost.contains(dev)));
            for dev in part.devs.iter().filter(|dev| lost.contains(dev)) {
                let (what, path) = (part.purpose, part.path.display());
                let (level, message) = match data_stays && !part.after_thaw {
                    true => {
                        let message =
                            format!("{what} {path} of the database {} is there, and its data is not", part.database);
                        (Level::Needed, message)
                    }
                    false => (Level::Database, format!("{what} {path} of the database {}", part.database)),
                };
                let subject = format!("db:{}", part.database);
                risks.entry(*dev).or_default().push(Risk { level, subject, path: part.path.clone(), message });
            }
        }
        risks
    }

    /// A restored copy without its hooks cannot be held as this machine is.
    fn name_ours_outside(&mut self) {
        for lost in &self.plan.lost {
            let entry = &self.plan.coverage[lost.coverage];
            if entry.in_snapshot() != InSnapshot::No || lost.excluded {
                continue;
            }
            let ours: Vec<&proto::Risk> =
                entry.risks.iter().filter(|r| r.subject.starts_with("hook:") || r.subject == "holdstill").collect();
            if ours.is_empty() {
                continue;
            }
            let mount = display(&self.guest.superblocks[lost.superblock]);
            let what: Vec<&str> = ours.iter().take(4).map(|risk| risk.message.as_str()).collect();
            let more = ours.len() - what.len();
            let more = if more == 0 { String::new() } else { format!(", and {more} more of its hooks") };
            let message = format!("{mount} is not in the snapshot the caller takes: {}{more}", what.join(", "));
            // who captures data disks alone has the system's disk elsewhere
            let hooks = ours.iter().any(|risk| risk.subject.starts_with("hook:"));
            let severity = if mount != "/" && hooks { Severity::Warning } else { Severity::Note };
            let hint = "capture that disk, too, or keep a copy of them";
            self.problems.push(problem(severity, "OUTSIDE_SNAPSHOT", &mount, &message, hint));
        }
    }
}
