//! What is on which disk, and whether the snapshot has it: a pure model that both pictures are drawn from.

use super::timeline::text;
use crate::{
    client::words,
    proto::{self, Durability, InSnapshot},
};

/// The disks, largest first.
#[derive(Debug, Clone, PartialEq)]
pub struct Map {
    pub disks: Vec<Disk>,
    /// in memory and nearly empty, or too many
    pub left_out: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Disk {
    /// "/srv, /home (vdb1)"
    pub name: String,
    /// "ext4, 12 of 40 GB"
    pub about: String,
    /// of the largest, 0 to 1
    pub size: f64,
    /// of its size, 0 to 1
    pub used: f64,
    pub fate: Fate,
    /// "not in the snapshot, transient"
    pub fate_text: String,
    /// what would be missed there; may be empty
    pub missed: String,
}

/// What becomes of it, worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    InSnapshot,
    /// durable, and nobody said whether the snapshot has it
    NotTold,
    /// some of its disks are transient
    Mixed,
    /// it is lost when the machine stops
    Transient,
    NotInSnapshot,
}

/// More disks than this are counted.
const DISKS: usize = 64;
/// Below this a file system in memory holds sockets and pid files.
const WORTH_A_BAR: u64 = 1_000_000;

impl Map {
    pub fn of(report: &proto::Report) -> Map {
        let mut shown: Vec<&proto::Coverage> = report.coverage.iter().filter(|entry| worth(entry)).collect();
        shown.sort_by_key(|entry| std::cmp::Reverse(size(entry)));
        shown.truncate(DISKS);
        let largest = shown.first().map_or(1, |entry| size(entry).max(1));
        let disks: Vec<Disk> = shown.into_iter().map(|entry| disk(entry, largest)).collect();
        Map { left_out: report.coverage.len() - disks.len(), disks }
    }
}

fn worth(entry: &proto::Coverage) -> bool {
    let memory = entry.disk.contains(':');
    // /proc and the like have neither a size nor anything on them
    (!memory && size(entry) > 0)
        || entry.used_bytes >= WORTH_A_BAR
        || !entry.risks.is_empty()
        || !entry.at_risk.is_empty()
}

/// Older reports do not tell it: then what is in use is all that is known.
fn size(entry: &proto::Coverage) -> u64 {
    entry.size_bytes.max(entry.used_bytes)
}

fn disk(entry: &proto::Coverage, largest: u64) -> Disk {
    let mounts = entry.mounts.iter().take(4).cloned().collect::<Vec<_>>().join(", ");
    let name = if mounts.is_empty() { entry.disk.clone() } else { format!("{mounts} ({})", entry.disk) };
    let kind = if entry.r#type.is_empty() { String::new() } else { format!("{}, ", entry.r#type) };
    let about = match entry.size_bytes {
        0 => format!("{kind}{} used", words::bytes(entry.used_bytes)),
        whole => format!("{kind}{} of {} used", words::bytes(entry.used_bytes), words::bytes(whole)),
    };
    let missed = if entry.at_risk.is_empty() {
        entry.risks.iter().map(|risk| risk.subject.as_str()).take(8).collect::<Vec<_>>().join(", ")
    } else {
        entry.at_risk.iter().map(String::as_str).take(8).collect::<Vec<_>>().join(", ")
    };
    let fate = fate(entry);
    let lost = !matches!(fate, Fate::InSnapshot | Fate::NotTold);
    Disk {
        name: text(&name),
        about: text(&about),
        size: part(size(entry), largest),
        used: part(entry.used_bytes, size(entry)),
        fate,
        fate_text: fate_text(entry),
        missed: if lost { text(&missed) } else { String::new() },
    }
}

fn part(of: u64, whole: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "it is drawn")]
    let part = of as f64 / whole.max(1) as f64;
    part.clamp(0.0, 1.0)
}

fn fate(entry: &proto::Coverage) -> Fate {
    match (entry.in_snapshot(), entry.durability()) {
        (InSnapshot::No, _) => Fate::NotInSnapshot,
        (InSnapshot::Yes, Durability::Mixed) => Fate::Mixed,
        (InSnapshot::Yes, _) => Fate::InSnapshot,
        (InSnapshot::NotTold | InSnapshot::Unspecified, Durability::Transient) => Fate::Transient,
        (InSnapshot::NotTold | InSnapshot::Unspecified, Durability::Mixed) => Fate::Mixed,
        (
            InSnapshot::NotTold | InSnapshot::Unspecified,
            Durability::Durable | Durability::Unknown | Durability::Unspecified,
        ) => Fate::NotTold,
    }
}

fn fate_text(entry: &proto::Coverage) -> String {
    let told = match entry.in_snapshot() {
        InSnapshot::Yes => "in the snapshot",
        InSnapshot::No => "NOT in the snapshot",
        InSnapshot::NotTold | InSnapshot::Unspecified => "snapshot not told",
    };
    let lasts = match entry.durability() {
        Durability::Durable => ", durable",
        Durability::Transient => ", transient",
        Durability::Mixed => ", partly transient",
        Durability::Unknown | Durability::Unspecified => "",
    };
    format!("{told}{lasts}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::picture::samples;

    #[test]
    fn disks_are_drawn_by_size_and_told_by_what_becomes_of_them() {
        let map = Map::of(&samples::hold());
        let drawn: Vec<_> = map.disks.iter().map(|disk| (disk.name.as_str(), disk.fate)).collect();
        let expected =
            [("/srv (vdc)", Fate::InSnapshot), ("/ (vda1)", Fate::InSnapshot), ("/mnt (vdb)", Fate::NotInSnapshot)];
        assert_eq!((drawn, map.left_out), (expected.to_vec(), 1), "an empty tmpfs is no disk");
        assert!((map.disks[0].size - 1.0).abs() < 1e-9 && map.disks[2].size < 0.5);
        assert_eq!(map.disks[2].missed, "db:orders, docker");
        assert_eq!(map.disks[2].fate_text, "NOT in the snapshot, transient");
        assert!(map.disks[0].missed.is_empty());
    }

    #[test]
    fn sizes_that_make_no_sense_are_drawn_within_their_bounds() {
        let mut report = samples::hold();
        report.coverage[0].used_bytes = u64::MAX;
        report.coverage[1].size_bytes = 0;
        for disk in Map::of(&report).disks.iter().chain(&Map::of(&proto::Report::default()).disks) {
            assert!((0.0..=1.0).contains(&disk.size) && (0.0..=1.0).contains(&disk.used), "{disk:?}");
        }
    }
}
