//! What lies on a disk that a snapshot will not contain, told by name: "docker's root", "backup.service works there", "java
//! has 12 files open for writing". Called by the survey, only when there is such a disk at all.
//!
//! ```text
//!   mount table ─┐
//!   known roots ─┤                       ┌─ links and bind mounts that lead there
//!   unit files ──┼─▶ Walk: path → disk ──┼─ roots of container and machine runtimes
//!   cron tables ─┘                       └─ units and cron tables
//!   /proc/*/fdinfo ────▶ mount id → disk ──▶ who writes there
//! ```
//!
//! A path is followed here, link by link and against the mount table, and not by the kernel: what leads into a network or
//! FUSE file system, or an automounter's, is left alone, however dead it is. Local disks are touched, and may be as dead:
//! call from a thread with a limit.

mod cron;
mod paths;
mod reached;
mod roots;
mod top;
mod units;
mod writers;

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    sync::Mutex,
};

pub use self::{
    paths::{Place, Walk},
    writers::{Writer, Writers, written},
};
use super::{
    Dev,
    mounts::{self, Table},
};

/// How bad the loss is; the words of the contract's `RiskLevel`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Benign,
    NotEmpty,
    Written,
    State,
    Database,
    Needed,
}

/// One thing that will be missed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Risk {
    pub level: Level,
    /// "docker", "unit:backup.service", a path
    pub subject: String,
    /// where it lies; empty if that is not one place
    pub path: PathBuf,
    /// one sentence: what is there, and how that is known
    pub message: String,
}

/// How closely to look at a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Care {
    /// a disk: all that is there was put there to stay
    Everything,
    /// a disk with the system itself on it: every unit is there, and nobody has to be told
    System,
    /// in memory, where people put things: state that should not be there
    State,
    /// only what somebody else knows to be there: /run, /tmp, a container's own mounts
    Nothing,
}

/// A file system to look for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub dev: Dev,
    pub care: Care,
    /// the directory to look into, in our own mount namespace; `None`: not to be looked into
    pub home: Option<PathBuf>,
    /// as the kernel named the mount there
    pub mount_id: u64,
}

/// More of one kind on one file system are counted.
const MOST: usize = 16;

/// What was found so far, so that a disk that does not answer costs only what it would have said.
#[derive(Debug, Default)]
pub struct Found(Mutex<SoFar>);

#[derive(Debug, Default)]
struct SoFar {
    risks: BTreeMap<Dev, Vec<Risk>>,
    stage: Option<&'static str>,
    /// nobody waits for more
    over: bool,
}

impl Found {
    /// What was found, and what was being looked at when time ran out. Whoever still looks then stops.
    pub fn take(&self) -> (BTreeMap<Dev, Vec<Risk>>, Option<&'static str>) {
        let mut so_far = self.0.lock().expect("no holder panics");
        so_far.over = true;
        (std::mem::take(&mut so_far.risks), so_far.stage)
    }

    /// Goes on to `stage`, unless it is over.
    fn goes_on(&self, stage: &'static str) -> bool {
        let mut so_far = self.0.lock().expect("no holder panics");
        so_far.stage = Some(stage);
        !so_far.over
    }

    fn all_was_seen(&self) {
        self.0.lock().expect("no holder panics").stage = None;
    }

    fn is_over(&self) -> bool {
        self.0.lock().expect("no holder panics").over
    }

    fn add(&self, found: Vec<(Dev, Risk)>) {
        let mut counts: BTreeMap<Dev, usize> = BTreeMap::new();
        let mut shown = Vec::new();
        let mut more: BTreeMap<(Dev, Level), (usize, String)> = BTreeMap::new();
        for (dev, risk) in found {
            let count = counts.entry(dev).or_default();
            *count += 1;
            if *count <= MOST {
                shown.push((dev, risk));
            } else {
                more.entry((dev, risk.level)).or_insert_with(|| (0, kind(&risk.subject))).0 += 1;
            }
        }
        for ((dev, level), (count, kind)) in more {
            let message = format!("and {count} more {kind}");
            shown.push((dev, Risk { level, subject: message.clone(), path: PathBuf::new(), message }));
        }
        let mut held = self.0.lock().expect("no holder panics");
        for (dev, risk) in shown {
            held.risks.entry(dev).or_default().push(risk);
        }
    }
}

/// "units" of "unit:a.service".
fn kind(subject: &str) -> String {
    match subject.split_once(':') {
        Some(("unit", _)) => "units".into(),
        Some(("cron", _)) => "cron tables".into(),
        Some(_) | None => "directories".into(),
    }
}

/// Looks for everything but writers and databases. `found` fills while it looks; its stage is `None` when all was seen.
/// `ours`: what of holdstill's own may lie there, each with its subject and what it is.
pub fn look(root: &Path, wanted: &[Wanted], ours: &[(String, String, PathBuf)], found: &Found) {
    if !found.goes_on("the mount table") {
        return;
    }
    let Ok(lines) = mounts::read(root) else { return };
    let table = Table::new(&lines);
    let walk = Walk::new(root, &table);
    let aim = Aim { wanted: wanted.iter().map(|wanted| (wanted.dev, wanted)).collect() };
    let swaps = RefCell::default();
    let stages: [(&'static str, Stage<'_>); 7] = [
        ("the mount table", &|| reached::binds(&lines, &table, &aim)),
        ("holdstill's own files", &|| own(&walk, &aim, ours)),
        ("swap areas", &|| {
            let areas = swap_files(root, &walk, &aim);
            let risks = areas.iter().map(|(dev, path)| (*dev, swap_risk(path))).collect();
            swaps.replace(areas);
            risks
        }),
        ("the roots of container runtimes", &|| roots::roots(root, &walk, &aim)),
        ("links into it", &|| reached::links(root, &walk, &aim)),
        ("systemd's units", &|| units::units(root, &walk, &aim, found)),
        ("cron's tables", &|| cron::tables(root, &walk, &aim)),
    ];
    for (stage, work) in stages {
        if !found.goes_on(stage) {
            return;
        }
        found.add(work());
    }
    for wanted in wanted.iter().filter(|wanted| matches!(wanted.care, Care::Everything | Care::System)) {
        let Some(home) = wanted.home.as_ref().filter(|_| found.goes_on("its top directory")) else { continue };
        let swaps = swaps.borrow();
        let swaps: Vec<&Path> = swaps.iter().filter(|(dev, _)| *dev == wanted.dev).map(|(_, p)| p.as_path()).collect();
        found.add(vec![(wanted.dev, top::top(root, &table, wanted, home, &swaps))]);
    }
    found.all_was_seen();
}

type Stage<'a> = &'a dyn Fn() -> Vec<(Dev, Risk)>;

/// Hooks, and where reports are kept.
fn own(walk: &Walk<'_>, aim: &Aim<'_>, ours: &[(String, String, PathBuf)]) -> Vec<(Dev, Risk)> {
    let risk = |(subject, what, path): &(String, String, PathBuf)| {
        let place = walk.to(path).filter(|place| aim.at_state(place.dev))?;
        let message = format!("{what} {}", place.path.display());
        Some((place.dev, Risk { level: Level::State, subject: subject.clone(), path: place.path, message }))
    };
    ours.iter().filter_map(risk).collect()
}

/// The file systems in question.
struct Aim<'a> {
    wanted: BTreeMap<Dev, &'a Wanted>,
}

impl Aim<'_> {
    /// Whether state that lies there is to be told.
    fn at_state(&self, dev: Dev) -> bool {
        self.wanted.get(&dev).is_some_and(|wanted| match wanted.care {
            Care::Everything | Care::System | Care::State => true,
            Care::Nothing => false,
        })
    }

    /// The same, but not of what every system has on its own disk.
    fn at_units(&self, dev: Dev) -> bool {
        self.at_state(dev) && self.wanted[&dev].care != Care::System
    }
}

/// Active swap files (proc_swaps(5)); partitions are no file system's.
fn swap_files(root: &Path, walk: &Walk<'_>, aim: &Aim<'_>) -> Vec<(Dev, PathBuf)> {
    let text = fs::read_to_string(root.join("proc/swaps")).unwrap_or_default();
    let files = text.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let name = fields.next()?;
        (fields.next()? == "file").then(|| PathBuf::from(name.replace("\\040", " ")))
    });
    let places = files.filter_map(|file| walk.to(&file));
    places.filter(|place| aim.at_state(place.dev)).map(|place| (place.dev, place.path)).collect()
}

fn swap_risk(path: &Path) -> Risk {
    Risk {
        level: Level::Benign,
        subject: format!("swap:{}", path.display()),
        path: path.to_owned(),
        message: format!("{} is a swap file", path.display()),
    }
}

/// A regular file's text, if it is no longer than a configuration file may be.
fn text(path: &Path) -> Option<String> {
    const LONGEST: u64 = 256 << 10;
    let mut bytes = Vec::new();
    let file = fs::File::open(path).ok()?;
    // a FIFO was left out by whoever listed the directory; opened by name it could be one all the same
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    file.take(LONGEST).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Below `root`.
fn inside(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

#[cfg(test)]
mod tests;
