//! What a copy does not contain, as its receipt has it: which disks were left behind, what was on them, and what is found
//! in their place. Looking is bounded, confined to the copy, and follows no link out of it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{Host, Presented};
use crate::{
    guest::{self, Kind, mounts, superblock},
    hold::plan::problem,
    proto::{self, Severity},
    sys::view::{self, View},
};

/// More entries than these are not counted: it is full enough.
const MOST: u64 = 1000;
/// A fresh disk has no more than this, once what tools put there is left out.
const NEARLY_EMPTY: u64 = 2;
/// Put there by mkfs, by clouds and by us.
const EVERYWHERE: [&str; 4] = ["lost+found", ".holdstill", "dataloss_warning_readme.txt", ".trash-0"];
const MEMORY: [&str; 4] = ["tmpfs", "ramfs", "devtmpfs", "swap"];

/// How much lies in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counted {
    pub entries: u64,
    /// there are more
    pub more: bool,
}

/// What is now where the disk was mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Now {
    /// not looked at: this is not the restored machine
    Elsewhere,
    /// the same file system: the disk was not lost
    There,
    /// another file system, empty or nearly
    LookAlike { uuid: String },
    /// another file system, with something on it
    Another { uuid: String, counted: Counted },
    /// nothing is mounted there; what the directory itself has
    Bare(Counted),
    /// there is no such directory
    Missing,
    /// it cannot be looked at without risk
    Unknown,
}

/// A disk that is not in the copies.
#[derive(Debug)]
pub struct Left {
    pub mount: String,
    pub disk: String,
    pub uuid: String,
    /// "transient", "mixed", "durable", "unknown"
    pub durability: String,
    pub in_snapshot: String,
    /// bytes in use when the hold was prepared
    pub bytes: u64,
    /// 0: never counted
    pub files: u64,
    /// what was there: "MySQL tmpdir", "docker"
    pub what: Vec<String>,
    /// why its loss is accepted; empty: it is not
    pub accepted: String,
    /// what the copies have below its mount point
    pub beneath: Option<Counted>,
    pub now: Now,
}

impl Left {
    pub fn to_json(&self) -> Value {
        let count = |counted: &Counted| json!({"entries": counted.entries, "more": counted.more});
        let now = match &self.now {
            Now::Elsewhere => json!({"is": "not_looked_at"}),
            Now::There => json!({"is": "there"}),
            Now::LookAlike { uuid } => json!({"is": "look_alike", "uuid": uuid}),
            Now::Another { uuid, counted } => json!({"is": "another", "uuid": uuid, "found": count(counted)}),
            Now::Bare(counted) => json!({"is": "not_mounted", "found": count(counted)}),
            Now::Missing => json!({"is": "missing"}),
            Now::Unknown => json!({"is": "unknown"}),
        };
        json!({
            "mount": self.mount, "disk": self.disk, "uuid": self.uuid, "durability": self.durability,
            "in_snapshot": self.in_snapshot, "used_bytes": self.bytes, "files": self.files, "at_risk": self.what,
            "accepted": self.accepted, "beneath": self.beneath.as_ref().map(count), "now": now,
        })
    }

    /// "/mnt (vdb, transient): 1.2 GB, 340 files: MySQL tmpdir, docker root"
    pub fn line(&self) -> String {
        let not_cut = if self.in_snapshot == "no" { ", not in the snapshot" } else { "" };
        let mut amount = Vec::new();
        if self.bytes > 0 {
            amount.push(crate::hold::plan::bytes(self.bytes));
        }
        if self.files > 0 {
            amount.push(format!("{} files", self.files));
        }
        if amount.is_empty() {
            amount.push("not counted".into());
        }
        let what = if self.what.is_empty() { String::new() } else { format!(": {}", self.what.join(", ")) };
        format!("{} ({}, {}{not_cut}): {}{what}", self.mount, self.disk, self.durability, amount.join(", "))
    }

    /// What to tell; `None`: it is there.
    pub(super) fn problem(&self) -> Option<proto::Problem> {
        let (line, mount) = (self.line(), &self.mount);
        let fresh = |uuid: &str| if uuid.is_empty() { String::new() } else { format!(" (UUID {uuid})") };
        let (code, message, hint) = match &self.now {
            Now::There => return None,
            Now::Elsewhere => {
                let beneath = self
                    .beneath
                    .filter(|counted| counted.entries > 0)
                    .map(|counted| format!("; below its mount point the copy itself has {}", amount(counted)));
                (
                    "LEFT_BEHIND",
                    format!("not in these copies: {line}{}", beneath.unwrap_or_default()),
                    "bring it from where it was, or from its own backup",
                )
            }
            Now::LookAlike { uuid } => (
                "LOOK_ALIKE",
                format!(
                    "{mount} looks right and is not: the data is not here, this is a fresh, empty disk{}; left behind: {line}",
                    fresh(uuid)
                ),
                "stop what uses it before it fills the empty disk, and bring the data back",
            ),
            Now::Another { uuid, counted } => (
                "LOOK_ALIKE",
                format!("{mount} is another disk{} with {}; left behind: {line}", fresh(uuid), amount(*counted)),
                "see whether services have begun anew there",
            ),
            Now::Bare(Counted { entries: 0, .. }) => (
                "LEFT_BEHIND",
                format!("nothing is mounted at {mount}; left behind: {line}"),
                "bring the data back before services start without it",
            ),
            Now::Bare(counted) => (
                "LEFT_BEHIND",
                format!(
                    "nothing is mounted at {mount}, and the directory itself has {}; left behind: {line}",
                    amount(*counted)
                ),
                "services may have begun anew on the disk below",
            ),
            Now::Missing => ("LEFT_BEHIND", format!("{mount} does not exist here; left behind: {line}"), ""),
            Now::Unknown => {
                ("LEFT_BEHIND", format!("left behind: {line}; what is at {mount} now cannot be looked at safely"), "")
            }
        };
        let severity = if self.accepted.is_empty() { Severity::Warning } else { Severity::Note };
        Some(problem(severity, code, mount, &message, hint))
    }
}

fn amount(counted: Counted) -> String {
    let more = if counted.more { "more than " } else { "" };
    let (n, entries) = (counted.entries, if counted.entries == 1 { "entry" } else { "entries" });
    format!("{more}{n} {entries}")
}

/// What the coverage of a receipt's `report` says was left behind.
pub(super) fn behind(report: &Value, filesystems: &[Presented], host: Host<'_>) -> Vec<Left> {
    let beneath =
        |mount: &str| filesystems.iter().flat_map(|f| &f.beneath).find(|(at, _)| at == mount).map(|(_, c)| *c);
    let mut left: Vec<Left> = entries(report)
        .map(|(mount, entry)| Left {
            beneath: beneath(&mount),
            now: match host {
                Host::Elsewhere => Now::Elsewhere,
                Host::Restored { .. } => now(Path::new(&mount), entry["uuid"].as_str().unwrap_or_default()),
            },
            ..left(mount, entry)
        })
        .collect();
    left.truncate(256);
    left
}

fn left(mount: String, entry: &Value) -> Left {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let contents = &entry["contents"];
    let risks: Vec<String> =
        entry["risks"].as_array().into_iter().flatten().map(|risk| text(&risk["subject"])).collect();
    let at_risk = entry["at_risk"].as_array().into_iter().flatten().map(text);
    let mut what: Vec<String> = if risks.is_empty() { at_risk.collect() } else { risks };
    what.retain(|what| !what.is_empty());
    what.dedup();
    what.truncate(16);
    Left {
        mount,
        disk: text(&entry["disk"]),
        uuid: text(&entry["uuid"]),
        durability: text(&entry["durability"]),
        in_snapshot: text(&entry["in_snapshot"]),
        bytes: contents["bytes"].as_u64().filter(|n| *n > 0).or(entry["used_bytes"].as_u64()).unwrap_or_default(),
        files: contents["files"].as_u64().unwrap_or_default(),
        what,
        accepted: text(&entry["accepted"]),
        beneath: None,
        now: Now::Elsewhere,
    }
}

/// The entries of disks that a copy lacks, each with the mount point it is known by. Memory counts only if somebody's state
/// was in it.
fn entries(report: &Value) -> impl Iterator<Item = (String, &Value)> {
    report["coverage"].as_array().into_iter().flatten().filter_map(|entry| {
        let lost = matches!(entry["durability"].as_str(), Some("transient" | "mixed")) || entry["in_snapshot"] == "no";
        let disk = entry["disk"].as_str().unwrap_or_default();
        let memory = entry["type"].as_str().is_some_and(|t| MEMORY.contains(&t))
            || disk.split_once(':').is_some_and(|(kind, _)| MEMORY.contains(&kind));
        let missed = entry["risks"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|risk| matches!(risk["level"].as_str(), Some("state" | "database" | "needed")));
        let mount = entry["mounts"].as_array().and_then(|mounts| mounts.first()?.as_str()).unwrap_or(disk);
        (lost && (!memory || missed)).then(|| (mount.to_owned(), entry))
    })
}

/// Counts what this copy itself has below the mount points of the disks left behind.
pub(super) fn beneath(told: &Value, root: &Path) -> Vec<(String, Counted)> {
    let Ok(view) = View::below(root) else { return Vec::new() };
    let Ok(own) = view.open(Path::new("/")).and_then(|spot| spot.mount_id()) else { return Vec::new() };
    let mut found = Vec::new();
    for (mount, _) in entries(&told["report"]).take(64) {
        let Some(path) = below_root(told, Path::new(&mount)) else { continue };
        let Ok(spot) = view.open(&path) else { continue };
        // something is mounted over it: what is beneath cannot be seen
        if spot.kind().is_ok_and(|kind| kind == view::Kind::Directory) && spot.mount_id().is_ok_and(|id| id == own) {
            found.push((mount, count(&spot.path())));
        }
    }
    found
}

/// Where `path` of the machine lies in the file system of this receipt, if it was on that one.
pub(super) fn below_root(told: &Value, path: &Path) -> Option<PathBuf> {
    let own = Path::new(told["filesystem"]["mount"].as_str()?);
    let steps = told["report"]["steps"].as_array().into_iter().flatten();
    let mounts = steps.filter_map(|step| step["filesystem"]["mount"].as_str()).map(Path::new);
    let nearest = mounts.filter(|mount| path.starts_with(mount)).max_by_key(|mount| mount.components().count())?;
    let inside = path.strip_prefix(own).ok()?;
    (nearest == own && !inside.as_os_str().is_empty()).then(|| Path::new("/").join(inside))
}

/// Directory entries, two levels deep; what is on every file system is not counted.
fn count(dir: &Path) -> Counted {
    let mut counted = Counted::default();
    let mut left = vec![(dir.to_owned(), 0)];
    while let Some((dir, depth)) = left.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().to_lowercase();
            if depth == 0 && EVERYWHERE.contains(&name.as_str()) {
                continue;
            }
            if counted.entries == MOST {
                return Counted { more: true, ..counted };
            }
            counted.entries += 1;
            if depth < 2 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                left.push((entry.path(), depth + 1));
            }
        }
    }
    counted
}

/// What is mounted at `mount` on this machine.
fn now(mount: &Path, uuid: &str) -> Now {
    let Ok(lines) = mounts::read(Path::new("/")) else { return Now::Unknown };
    let table = mounts::Table::new(&lines);
    let Some(line) = table.covering(mount) else { return Now::Missing };
    let local =
        matches!(mounts::kind_of(&line.fs_type), Kind::Freezable | Kind::FlushOnly | Kind::Memory | Kind::Stacked);
    if !local || table.untouchable_above(line).is_some() {
        return Now::Unknown;
    }
    if line.mount_point != mount {
        return match fs::symlink_metadata(mount) {
            Ok(meta) if meta.is_dir() => Now::Bare(count(mount)),
            Ok(_) => Now::Unknown,
            Err(_) => Now::Missing,
        };
    }
    let found = uuid_of(line);
    if !uuid.is_empty() && found.eq_ignore_ascii_case(uuid) {
        return Now::There;
    }
    match count(mount) {
        counted if counted.entries <= NEARLY_EMPTY => Now::LookAlike { uuid: found },
        // without names to compare, something there is all that can be said
        counted => Now::Another { uuid: found, counted },
    }
}

fn uuid_of(line: &mounts::MountLine) -> String {
    let graph = guest::disks::read(Path::new("/"));
    let known = graph.uuid(line.dev).map(str::to_owned);
    let device = match line.dev.major {
        0 => PathBuf::from(&line.source),
        _ => fs::read_link(format!("/sys/dev/block/{}", line.dev))
            .ok()
            .and_then(|name| Some(Path::new("/dev").join(name.file_name()?)))
            .unwrap_or_default(),
    };
    let raw = device.starts_with("/dev").then(|| superblock::read(&device).ok().flatten()).flatten();
    raw.map(|raw| raw.uuid).or(known).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told() -> Value {
        json!({
            "filesystem": {"mount": "/"},
            "report": {
                "steps": [{"filesystem": {"mount": "/"}}, {"filesystem": {"mount": "/var"}}],
                "coverage": [
                    {"disk": "vda1", "mounts": ["/"], "durability": "durable", "in_snapshot": "yes", "type": "ext4"},
                    {"disk": "vdb", "mounts": ["/mnt", "/data"], "durability": "transient", "in_snapshot": "not_told",
                     "type": "ext4", "uuid": "u-b", "used_bytes": 1_300_000_000_u64,
                     "contents": {"files": 340, "bytes": 1_200_000_000_u64},
                     "risks": [{"level": "database", "subject": "MySQL tmpdir"}, {"level": "state", "subject": "docker root"}]},
                    {"disk": "vdc", "mounts": ["/var/lib/x"], "durability": "durable", "in_snapshot": "no", "type": "xfs"},
                    {"disk": "tmpfs:/run", "mounts": ["/run"], "durability": "transient", "in_snapshot": "no", "type": "tmpfs"},
                ],
            },
        })
    }

    #[test]
    fn what_is_lost_is_named_with_what_was_on_it() {
        let left = behind(&told()["report"], &[], Host::Elsewhere);
        let lines: Vec<String> = left.iter().map(Left::line).collect();
        assert_eq!(
            lines,
            [
                "/mnt (vdb, transient): 1.1 GiB, 340 files: MySQL tmpdir, docker root",
                "/var/lib/x (vdc, durable, not in the snapshot): not counted",
            ]
        );
        assert!(left[0].problem().is_some_and(|p| p.code == "LEFT_BEHIND" && p.subject == "/mnt"));
    }

    #[test]
    fn a_mount_point_is_looked_below_in_the_file_system_that_carries_it() {
        let told = told();
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("mnt/lost+found")).unwrap();
        fs::write(root.path().join("mnt/file1.txt"), "hidden").unwrap();
        assert_eq!(below_root(&told, Path::new("/mnt")), Some("/mnt".into()));
        assert_eq!(below_root(&told, Path::new("/var/lib/x")), None, "that is on /var");
        assert_eq!(beneath(&told, root.path()), [("/mnt".to_owned(), Counted { entries: 1, more: false })]);
    }

    #[test]
    fn a_receipt_leads_nobody_out_of_its_copy() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "").unwrap();
        let root = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), root.path().join("mnt")).unwrap();
        assert_eq!(beneath(&told(), root.path()), []);
    }

    #[test]
    fn an_older_receipt_and_nonsense_name_what_they_can() {
        let old = json!({"coverage": [{"disk": "vdb", "mounts": ["/mnt"], "durability": "transient", "at_risk": ["db:orders"]}]});
        let left = behind(&old, &[], Host::Elsewhere);
        assert_eq!(left[0].line(), "/mnt (vdb, transient): not counted: db:orders");
        for nonsense in [
            json!(null),
            json!({"coverage": 7}),
            json!({"coverage": [null, 1, {"mounts": "x", "durability": "mixed"}]}),
        ] {
            behind(&nonsense, &[], Host::Elsewhere);
        }
    }

    #[test]
    fn full_directories_are_not_counted_to_their_end() {
        let root = tempfile::tempdir().unwrap();
        for n in 0..1100 {
            fs::write(root.path().join(n.to_string()), "").unwrap();
        }
        assert_eq!(count(root.path()), Counted { entries: 1000, more: true });
    }

    #[test]
    fn nothing_there_is_said_as_it_is() {
        assert_eq!(now(Path::new("/no/such/place"), "u"), Now::Missing);
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(now(&dir.path().canonicalize().unwrap(), "u"), Now::Bare(Counted::default()));
    }
}
