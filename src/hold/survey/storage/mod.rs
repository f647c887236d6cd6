//! What is known of the machine's storage as a whole, and what of it people should hear: a durable file system with a
//! transient part, attached volumes that a server's snapshot leaves out, disks that are perhaps transient, and what would
//! stop a restored copy from booting. Pure: what was read is put in.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use crate::{
    guest::{
        Dev, Guest, Kind, Superblock,
        disks::BlockGraph,
        fstab::Entry,
        platform::{Platform, known::Contains},
        transient::{self, Contents, Durability, Knowledge, Verdict, Weight},
    },
    hold::plan::{display, problem},
    proto::{self, InSnapshot, RiskLevel, Severity},
};

pub(super) struct Storage {
    platform: Platform,
    pub(super) verdicts: BTreeMap<Dev, Verdict>,
    /// what the machine boots from
    boot: BTreeSet<Dev>,
    contents: Option<Contents>,
    fstab: Vec<Listed>,
}

/// An entry of fstab that the boot needs.
struct Listed {
    entry: Entry,
    /// the file system that is mounted from it, if one is
    superblock: Option<Dev>,
    /// the disks below it
    disks: BTreeSet<Dev>,
    durability: Durability,
}

/// The copy has no such disk.
#[derive(Clone, Copy)]
enum Missing {
    Transient,
    NotInSnapshot,
    /// if nobody snapshots the volumes, too
    Perhaps,
}

impl Storage {
    pub(super) fn of(guest: &Guest, knowledge: &Knowledge<'_>, fstab: Vec<Entry>) -> Self {
        let (superblocks, graph) = (&guest.superblocks, &guest.disks);
        let verdicts = transient::classify(superblocks, graph, knowledge);
        let boot = transient::boot_disks(superblocks, graph);
        let needed = fstab.into_iter().filter(|entry| !entry.may_fail());
        let needed: Vec<_> = needed.map(|entry| (mounted_from(&entry, guest), entry.device(graph), entry)).collect();
        let unmounted: Vec<Dev> = needed.iter().filter(|(s, ..)| s.is_none()).filter_map(|(_, d, _)| *d).collect();
        let devices = transient::classify_devices(&unmounted, superblocks, graph, knowledge);
        let listed = |(superblock, device, entry): (Option<Dev>, Option<Dev>, Entry)| {
            let verdict = match superblock {
                Some(dev) => verdicts.get(&dev),
                None => device.and_then(|dev| devices.get(&dev)),
            };
            let durability = verdict.map_or(Durability::Unknown, |verdict| verdict.durability);
            let disks = superblock.or(device).map(|dev| disks(dev, graph)).unwrap_or_default();
            Listed { entry, superblock, disks, durability }
        };
        Self {
            platform: knowledge.platform,
            contents: transient::contents(knowledge.platform, &boot, graph),
            fstab: needed.into_iter().map(listed).collect(),
            verdicts,
            boot,
        }
    }

    /// What is known of the platform that is about this file system; it decides nothing.
    pub(super) fn of_platform(&self, superblock: &Superblock, guest: &Guest) -> Vec<proto::Evidence> {
        let unknown = self.verdicts.get(&superblock.dev).is_some_and(|v| v.durability == Durability::Unknown);
        let advice = self
            .platform
            .known()
            .advice
            .as_ref()
            .filter(|_| unknown && is_on_disk(superblock) && !disks(superblock.dev, &guest.disks).is_empty());
        let advice = advice.map(|advice| format!("{advice}; `mounts` in [transient] can say so"));
        let left_out = self.contents.filter(|_| self.is_left_out(superblock, guest)).map(|c| c.what.to_owned());
        let item = |value| {
            let mut evidence = proto::Evidence { source: "platform".into(), value, ..Default::default() };
            evidence.set_weight(proto::EvidenceWeight::Heuristic);
            evidence.set_says(proto::Durability::Unknown);
            evidence
        };
        advice.into_iter().chain(left_out).map(item).collect()
    }

    /// A server's snapshot, the usual kind here, does not contain all of it.
    fn is_left_out(&self, superblock: &Superblock, guest: &Guest) -> bool {
        let disks = disks(superblock.dev, &guest.disks);
        self.contents.is_some_and(|contents| contents.contains == Contains::BootDisk)
            && is_on_disk(superblock)
            // a root on the network has no boot disk to compare with
            && !self.boot.is_empty()
            && !disks.is_subset(&self.boot)
            && !is_config_drive(superblock.dev, guest)
    }

    pub(super) fn problems(&self, guest: &Guest, coverage: &[proto::Coverage]) -> Vec<proto::Problem> {
        let in_snapshot = in_snapshot(guest, coverage);
        let mut problems = self.mixed(guest, coverage);
        problems.extend(self.perhaps_transient(guest));
        problems.extend(self.boot_disk_only(guest, &in_snapshot));
        problems.extend(self.would_not_boot(guest, &in_snapshot));
        problems
    }

    /// Worse than being transient: the part that is in the snapshot looks whole.
    fn mixed(&self, guest: &Guest, coverage: &[proto::Coverage]) -> Vec<proto::Problem> {
        // where somebody looked at what is there, it is the worst of what was found
        let is_said = |superblock: &Superblock| {
            let risks = entry_of(superblock, coverage).into_iter().flat_map(|entry| &entry.risks);
            risks.into_iter().any(|risk| risk.level() == RiskLevel::Needed)
        };
        let mut said = BTreeSet::new();
        let mut problems = Vec::new();
        for superblock in guest.superblocks.iter().filter(|s| s.namespace.is_none()) {
            let Some(verdict) = self.verdicts.get(&superblock.dev) else { continue };
            let legs: Vec<String> = verdict.legs.iter().map(ToString::to_string).collect();
            if legs.is_empty()
                || is_said(superblock)
                || !said.insert((legs.clone(), disks(superblock.dev, &guest.disks)))
            {
                continue;
            }
            let mount = display(superblock);
            let are = if legs.len() == 1 { "is" } else { "are" };
            let message = format!(
                "{mount} needs {}, which {are} transient: without it what the snapshot has of {mount} may be worth nothing",
                listed(&legs)
            );
            let hint = "move that part to a durable disk; `holdstill check --json` has the evidence";
            problems.push(problem(Severity::Warning, "MIXED_DISKS", &mount, &message, hint));
        }
        problems
    }

    /// A heuristic decides nothing, so somebody has to be asked.
    fn perhaps_transient(&self, guest: &Guest) -> Option<proto::Problem> {
        let hinted = |superblock: &&Superblock| {
            let verdict = self.verdicts.get(&superblock.dev);
            let hint = |verdict: &Verdict| {
                let says = |e: &transient::Evidence| e.weight == Weight::Heuristic && e.says == Durability::Transient;
                verdict.durability == Durability::Unknown && verdict.evidence.iter().any(says)
            };
            is_ours(superblock) && verdict.is_some_and(hint)
        };
        let mounts: Vec<String> = guest.superblocks.iter().filter(hinted).map(display).collect();
        let first = mounts.first()?;
        let message = format!(
            "{} may be on a disk that goes with this server, and nothing here says so for certain",
            listed(&mounts)
        );
        let hint = format!("if it does, say so: `mounts = [{first:?}]` in [transient]");
        Some(problem(Severity::Note, "PERHAPS_TRANSIENT", first, &message, &hint))
    }

    fn boot_disk_only(&self, guest: &Guest, in_snapshot: &BTreeMap<Dev, InSnapshot>) -> Option<proto::Problem> {
        let left_out = |superblock: &&Superblock| {
            let lost = self.verdicts.get(&superblock.dev).is_some_and(|v| v.durability == Durability::Transient);
            let told = in_snapshot.get(&superblock.dev).is_some_and(|answer| *answer != InSnapshot::NotTold);
            is_ours(superblock) && !lost && !told && self.is_left_out(superblock, guest)
        };
        let mounts: Vec<String> = guest.superblocks.iter().filter(left_out).map(display).collect();
        let first = mounts.first()?;
        let are = if mounts.len() == 1 { "is" } else { "are" };
        let message = format!(
            "{} {are} not, or not wholly, on the disk this server boots from. On {}: {}",
            listed(&mounts),
            self.platform.title(),
            self.contents?.what
        );
        let hint = "snapshot the volumes, too, in the same hold; or say with --disk which disks are captured";
        Some(problem(Severity::Note, "BOOT_DISK_ONLY", first, &message, hint))
    }

    fn would_not_boot(&self, guest: &Guest, in_snapshot: &BTreeMap<Dev, InSnapshot>) -> Vec<proto::Problem> {
        let told = in_snapshot.values().any(|answer| *answer == InSnapshot::Yes);
        let of = |wanted| guest.superblocks.iter().filter(move |s| in_snapshot.get(&s.dev) == Some(&wanted));
        let captured: BTreeSet<Dev> = of(InSnapshot::Yes).flat_map(|s| disks(s.dev, &guest.disks)).collect();
        let mut problems = Vec::new();
        for Listed { entry, superblock, disks, durability } in &self.fstab {
            // what it boots from it has
            if disks.is_empty() || disks.is_subset(&self.boot) {
                continue;
            }
            let not_captured = match superblock.and_then(|dev| in_snapshot.get(&dev)) {
                Some(answer) => *answer == InSnapshot::No,
                None => told && !disks.is_subset(&captured),
            };
            let only_boot_disk = self.contents.is_some_and(|c| c.contains == Contains::BootDisk);
            let missing = match durability {
                Durability::Transient | Durability::Mixed => Missing::Transient,
                Durability::Unknown | Durability::Durable if not_captured => Missing::NotInSnapshot,
                Durability::Unknown | Durability::Durable if only_boot_disk && !told => Missing::Perhaps,
                Durability::Unknown | Durability::Durable => continue,
            };
            problems.push(would_not_boot(entry, missing));
        }
        problems
    }
}

fn would_not_boot(entry: &Entry, missing: Missing) -> proto::Problem {
    let (severity, why) = match missing {
        Missing::Transient => (Severity::Warning, "is on a transient disk"),
        Missing::NotInSnapshot => (Severity::Warning, "is on a disk that is not in the snapshot"),
        Missing::Perhaps => (Severity::Note, "is on a volume that a snapshot of the server does not contain"),
    };
    let (spec, target) = (&entry.spec, entry.target.display());
    let options = "nofail,x-systemd.device-timeout=10s";
    let (what, then, options) = match (entry.is_swap(), entry.file()) {
        (true, None) => (
            format!("the swap {spec}"),
            "waits for it at every boot, 90 seconds by systemd's default, and goes on without swap",
            options,
        ),
        (true, Some(_)) => (format!("the swap file {spec}"), "goes on without swap, its unit failed", "nofail"),
        (false, None) => (target.to_string(), "stops in emergency mode", options),
        (false, Some(_)) => (format!("{spec}, mounted at {target},"), "stops in emergency mode", "nofail"),
    };
    let message = format!("{what} {why}, and its line in /etc/fstab has no `nofail`: a copy without that disk {then}");
    let whose = if entry.is_swap() { spec.clone() } else { target.to_string() };
    let hint = format!("add `{options}` to the options of {whose} in /etc/fstab");
    problem(severity, "FSTAB_WOULD_NOT_BOOT", &whose, &message, &hint)
}

/// The file system an entry is about: the one mounted from its device; of a file or directory the one that is on.
fn mounted_from(entry: &Entry, guest: &Guest) -> Option<Dev> {
    let own = || guest.superblocks.iter().filter(|s| s.namespace.is_none());
    if let Some(path) = entry.file() {
        let depth = |s: &Superblock| {
            s.mounts.iter().filter(|mount| path.starts_with(mount)).map(|mount| mount.components().count()).max()
        };
        return own().filter_map(|s| Some((depth(s)?, s.dev))).max().map(|(_, dev)| dev);
    }
    let device = entry.device(&guest.disks);
    own().find(|s| device.is_some_and(|device| guest.disks.members(s.dev).contains(&device))).map(|s| s.dev)
}

fn disks(dev: Dev, graph: &BlockGraph) -> BTreeSet<Dev> {
    graph.leaves(dev).into_iter().filter_map(|leaf| Some(graph.disk(leaf)?.dev)).collect()
}

/// Of our own mount namespace, where people look; what a container has of its own is not their mount.
fn is_ours(superblock: &Superblock) -> bool {
    superblock.namespace.is_none() && is_on_disk(superblock)
}

fn is_on_disk(superblock: &Superblock) -> bool {
    match superblock.kind {
        Kind::Freezable | Kind::FlushOnly | Kind::Unknown => true,
        Kind::Memory | Kind::Remote | Kind::Stacked | Kind::Image | Kind::Pseudo => false,
    }
}

/// What a cloud hands cloud-init its data on: made anew for every server.
fn is_config_drive(dev: Dev, guest: &Guest) -> bool {
    guest.disks.label(dev).is_some_and(|label| matches!(&*label.to_ascii_lowercase(), "config-2" | "cidata"))
}

fn in_snapshot(guest: &Guest, coverage: &[proto::Coverage]) -> BTreeMap<Dev, InSnapshot> {
    let of = |superblock: &Superblock| Some((superblock.dev, entry_of(superblock, coverage)?.in_snapshot()));
    guest.superblocks.iter().filter_map(of).collect()
}

fn entry_of<'a>(superblock: &Superblock, coverage: &'a [proto::Coverage]) -> Option<&'a proto::Coverage> {
    coverage.iter().find(|entry| {
        entry.mounts.iter().map(Path::new).eq(superblock.mounts.iter()) && entry.r#type == superblock.fs_type
    })
}

/// "a, b and c", at most five of them.
fn listed(names: &[String]) -> String {
    const MOST: usize = 5;
    match names {
        [] => String::new(),
        [one] => one.clone(),
        _ if names.len() > MOST => format!("{} and {} more", names[..MOST].join(", "), names.len() - MOST),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests;
