//! What lies on the disks that the snapshot will not contain: found while databases are asked, put together afterwards, and
//! judged by the policy.
//!
//! Only where there is such a disk at all; never while something is held. What does not answer in time is left out and said.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::task::JoinHandle;

use super::{Look, READ_LIMIT, Surroundings, Survey, TOUCH_LIMIT, in_a_thread};
use crate::{
    config::{Settings, Stance},
    guest::{
        Dev, Guest, Kind, Superblock,
        risk::{self, Care, Found, Level, Risk, Wanted, Writer},
        transient,
        whereabouts::Whereabouts,
    },
    hold::{
        contents::Place,
        plan::{Lost, display, policy, problem},
    },
    proto::{self, Durability, InSnapshot, RiskLevel, Severity},
};

/// As the contract has it.
const MOST: usize = 64;
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

/// What to look for on a file system that will be missed; `None`: nothing that can be found without asking databases.
fn wanted(superblock: &Superblock) -> Option<Wanted> {
    let own = superblock.namespace.is_none();
    let is_root = own && superblock.mounts.iter().any(|mount| mount == Path::new("/"));
    let care = match superblock.kind {
        Kind::Freezable | Kind::FlushOnly | Kind::Unknown if is_root => Care::System,
        Kind::Freezable | Kind::FlushOnly | Kind::Unknown if own => Care::Everything,
        // its paths are another namespace's; who writes there is told all the same
        Kind::Freezable | Kind::FlushOnly | Kind::Unknown => Care::Nothing,
        Kind::Memory if own && !superblock.mounts.iter().all(|mount| is_for_memory(mount)) => Care::State,
        Kind::Memory | Kind::Remote | Kind::Stacked | Kind::Image | Kind::Pseudo => return None,
    };
    let mount = superblock.open_at.as_ref().filter(|_| superblock.below.is_none());
    let home = mount.filter(|_| matches!(care, Care::Everything | Care::System));
    Some(Wanted {
        dev: superblock.dev,
        care,
        mount_id: home.map(|mount| mount.mount_id).unwrap_or_default(),
        home: home.map(|mount| mount.path.clone()),
    })
}

/// A disk that can be looked into.
fn to_count(superblock: &Superblock, uuid: &str) -> Option<Place> {
    let home = wanted(superblock)?.home?;
    Some(Place { dev: superblock.dev, uuid: uuid.to_owned(), top: home })
}

/// Before anybody asks: disks that are transient, whatever the snapshot.
pub(super) fn to_count_at_start(guest: &Guest, root: &Path, configured: transient::Configured<'_>) -> Vec<Place> {
    let verdicts = super::facts::verdicts_at_start(guest, root, configured);
    let gone = |superblock: &&Superblock| {
        verdicts.get(&superblock.dev).is_some_and(|verdict| match verdict.durability {
            transient::Durability::Transient | transient::Durability::Mixed => true,
            transient::Durability::Unknown | transient::Durability::Durable => false,
        })
    };
    let uuid = |superblock: &Superblock| guest.disks.uuid(superblock.dev).unwrap_or_default().to_owned();
    guest.superblocks.iter().filter(gone).filter_map(|s| to_count(s, &uuid(s))).collect()
}

/// Where everybody has something in memory, and knows it.
fn is_for_memory(mount: &Path) -> bool {
    let usual = ["/run", "/dev", "/tmp", "/sys", "/proc", "/var/run", "/var/lock", "/var/tmp"];
    // secrets and shared memory of containers
    let runtimes = ["/var/lib/kubelet", "/var/lib/docker", "/var/lib/containers", "/var/lib/containerd"];
    usual.iter().chain(&runtimes).any(|above| mount.starts_with(above))
}

/// Who writes into memory is of no interest.
fn counts_writers(superblock: &Superblock) -> bool {
    match superblock.kind {
        Kind::Freezable | Kind::FlushOnly | Kind::Unknown => true,
        Kind::Memory | Kind::Remote | Kind::Stacked | Kind::Image | Kind::Pseudo => false,
    }
}

/// Something durable of which a part will be missed.
fn broken_apart(lost: &Lost, superblock: &Superblock, entry: &proto::Coverage, legs: &[String]) -> Option<Risk> {
    let mount = display(superblock);
    let needed = |message: String| {
        Some(Risk { level: Level::Needed, subject: mount.clone(), path: PathBuf::from(&mount), message })
    };
    if !lost.uncaptured.is_empty() {
        let left = lost.uncaptured.join(", ");
        return needed(format!(
            "{mount} lies on {left}, too, which the caller does not capture: the rest is worth nothing without"
        ));
    }
    match entry.durability() {
        Durability::Mixed => {
            let which = match legs {
                [] => "a disk that is".to_owned(),
                [one] => format!("{one}, which is"),
                several => format!("{}, which are", several.join(", ")),
            };
            needed(format!("{mount} needs {which} transient: the rest is worth nothing without"))
        }
        Durability::Unspecified | Durability::Unknown | Durability::Durable | Durability::Transient => None,
    }
}

/// Servers that nobody holds, by what they have open.
fn of_servers(writers: &[Writer], unheld: &BTreeMap<i32, (i32, String)>) -> Vec<Risk> {
    let mut files: BTreeMap<(i32, &str), u32> = BTreeMap::new();
    for writer in writers {
        if let Some((server, engine)) = unheld.get(&writer.pid) {
            *files.entry((*server, engine)).or_default() += writer.files;
        }
    }
    let risk = |((pid, engine), files): ((i32, &str), u32)| Risk {
        level: Level::Database,
        subject: format!("db:{engine}"),
        path: PathBuf::new(),
        message: format!(
            "{engine} (pid {pid}) has {files} {} open for writing",
            if files == 1 { "file" } else { "files" }
        ),
    };
    files.into_iter().map(risk).collect()
}

/// Worst first, each thing once, and not more than the contract allows.
fn fill(entry: &mut proto::Coverage, mut risks: Vec<Risk>) {
    risks.sort_by_key(|risk| std::cmp::Reverse(risk.level));
    let mut seen = BTreeSet::new();
    risks.retain(|risk| seen.insert((risk.subject.clone(), risk.path.clone())));
    risks.truncate(MOST);
    for risk in &risks {
        if risk.level >= Level::State && !entry.at_risk.contains(&risk.subject) {
            entry.at_risk.push(risk.subject.clone());
        }
    }
    let told = |risk: Risk| proto::Risk {
        level: match risk.level {
            Level::Benign => RiskLevel::Benign,
            Level::NotEmpty => RiskLevel::NotEmpty,
            Level::Written => RiskLevel::Written,
            Level::State => RiskLevel::State,
            Level::Database => RiskLevel::Database,
            Level::Needed => RiskLevel::Needed,
        }
        .into(),
        subject: risk.subject,
        path: risk.path.display().to_string(),
        message: risk.message,
    };
    entry.risks = risks.into_iter().map(told).collect();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock(kind: Kind, mounts: &[&str]) -> Superblock {
        Superblock {
            dev: Dev { major: 8, minor: 1 },
            fs_type: "ext4".into(),
            source: "/dev/sda1".into(),
            options: "rw".into(),
            kind,
            read_only: false,
            open_at: None,
            mounts: mounts.iter().map(PathBuf::from).collect(),
            namespace: None,
            below: None,
        }
    }

    fn care(kind: Kind, mounts: &[&str]) -> Option<Care> {
        wanted(&superblock(kind, mounts)).map(|wanted| wanted.care)
    }

    #[test]
    fn disks_are_looked_at_closely_memory_where_people_put_things_and_the_rest_not_at_all() {
        assert_eq!(care(Kind::Freezable, &["/mnt"]), Some(Care::Everything));
        assert_eq!(care(Kind::FlushOnly, &["/mnt"]), Some(Care::Everything));
        assert_eq!(care(Kind::Freezable, &["/", "/mnt"]), Some(Care::System));
        assert_eq!(care(Kind::Memory, &["/var/lib/mysql"]), Some(Care::State));
        for quiet in [&["/run"][..], &["/dev/shm"], &["/tmp", "/var/tmp"], &["/run/user/0"]] {
            assert_eq!(care(Kind::Memory, quiet), None, "{quiet:?}");
        }
        assert_eq!(care(Kind::Remote, &["/net"]), None);
        let theirs = Superblock { namespace: Some(7), ..superblock(Kind::Freezable, &["/mnt"]) };
        assert_eq!(wanted(&theirs).map(|wanted| wanted.care), Some(Care::Nothing));
    }

    fn risk(level: Level, subject: &str, path: &str) -> Risk {
        Risk { level, subject: subject.into(), path: path.into(), message: String::new() }
    }

    #[test]
    fn the_worst_stands_first_each_thing_once_and_only_state_and_worse_is_at_risk() {
        let mut entry = proto::Coverage::default();
        let mut risks = vec![
            risk(Level::Written, "process:java", ""),
            risk(Level::State, "docker", "/mnt/docker"),
            risk(Level::State, "docker", "/mnt/docker"),
            risk(Level::State, "docker", "/mnt/pools"),
            risk(Level::Needed, "db:orders", "/mnt/wal"),
        ];
        risks.extend((0..100).map(|n| risk(Level::NotEmpty, "many", &n.to_string())));
        fill(&mut entry, risks);
        assert_eq!(entry.at_risk, ["db:orders", "docker"]);
        let levels: Vec<RiskLevel> = entry.risks.iter().map(proto::Risk::level).collect();
        assert_eq!(levels[..4], [RiskLevel::Needed, RiskLevel::State, RiskLevel::State, RiskLevel::Written]);
        assert_eq!(entry.risks.len(), MOST);
    }

    #[test]
    fn a_volume_with_one_transient_leg_or_one_disk_left_out_is_worth_nothing_without() {
        let mut lost = Lost { superblock: 0, coverage: 0, excluded: false, named: false, uncaptured: Vec::new() };
        let mut entry = proto::Coverage::default();
        let legs = ["sdb (a leg of md0 (raid1))".to_owned()];
        let of = |lost: &Lost, entry: &proto::Coverage| {
            broken_apart(lost, &superblock(Kind::Freezable, &["/data"]), entry, &legs)
        };
        assert_eq!(of(&lost, &entry), None);
        entry.set_durability(Durability::Mixed);
        let mixed = of(&lost, &entry).expect("a risk");
        assert_eq!(mixed.level, Level::Needed);
        assert!(mixed.message.starts_with("/data needs sdb (a leg of md0 (raid1)), which is transient: "));
        entry.set_durability(Durability::Durable);
        lost.uncaptured.push("vdc".into());
        let message = of(&lost, &entry).map(|risk| risk.message).unwrap_or_default();
        assert_eq!(
            message,
            "/data lies on vdc, too, which the caller does not capture: the rest is worth nothing without"
        );
    }

    #[test]
    fn a_server_nobody_holds_is_told_by_all_its_processes_have_open() {
        let unheld = BTreeMap::from([(7, (7, "redis".to_owned())), (8, (7, "redis".to_owned()))]);
        let writers = [(7, 1), (8, 2), (9, 5)].map(|(pid, files)| Writer { pid, files });
        let risks = of_servers(&writers, &unheld);
        assert_eq!((risks.len(), risks[0].level), (1, Level::Database));
        assert_eq!(risks[0].message, "redis (pid 7) has 3 files open for writing");
    }
}
