//! What the snapshot will not contain, as people read it. Pure text; may change between versions (`--json` may not).

use std::fmt::Write;

use super::words::{bytes, plural};
use crate::proto;

/// Below this a tmpfs holds sockets and pid files.
const WORTH_A_LINE: u64 = 1_000_000;
/// Things listed of one file system; of more there is a count.
const MOST_RISKS: usize = 6;
/// The largest directories that are named.
const MOST_DIRECTORIES: usize = 3;

/// What the snapshot will not contain: one line for each file system, the worst first, and beneath it what lies there. Small
/// tmpfs that nobody needs share one line.
pub fn gaps(report: &proto::Report) -> String {
    let mut out = String::new();
    let mut small = Vec::new();
    let mut missing: Vec<&proto::Coverage> =
        report.coverage.iter().filter(|entry| certainty(entry).is_some()).collect();
    missing.sort_by_key(|entry| std::cmp::Reverse(worst(entry)));
    for entry in missing {
        let mounts = if entry.mounts.is_empty() { entry.disk.clone() } else { entry.mounts.join(", ") };
        let nothing = entry.at_risk.is_empty() && worst(entry) <= proto::RiskLevel::Benign;
        if is_memory(entry) && entry.used_bytes < WORTH_A_LINE && nothing {
            small.push(mounts);
            continue;
        }
        let _ = write!(
            out,
            "{}: {mounts} ({}), {} used",
            certainty(entry).unwrap_or_default(),
            disk(entry),
            bytes(entry.used_bytes)
        );
        // with a header of one file system's own, an older daemon's reports
        if entry.risks.is_empty() && !entry.at_risk.is_empty() {
            let _ = write!(out, "; it holds {}", entry.at_risk.join(", "));
        }
        if !entry.accepted.is_empty() {
            let _ = write!(out, "; accepted: {}", entry.accepted);
        }
        out.push('\n');
        risks(&mut out, entry);
        if let Some(contents) = &entry.contents {
            counted(&mut out, contents);
        }
    }
    if !small.is_empty() {
        let _ = writeln!(out, "not in this snapshot, in memory and nearly empty: {}", small.join(", "));
    }
    out
}

/// How sure it is that an entry will be missed; `None`: it will not.
fn certainty(entry: &proto::Coverage) -> Option<&'static str> {
    match entry.in_snapshot() {
        proto::InSnapshot::Yes => None,
        proto::InSnapshot::No => Some("not in this snapshot"),
        proto::InSnapshot::NotTold | proto::InSnapshot::Unspecified if is_memory(entry) => Some("not in this snapshot"),
        proto::InSnapshot::NotTold | proto::InSnapshot::Unspecified => match entry.durability() {
            proto::Durability::Transient | proto::Durability::Mixed => Some("perhaps not in this snapshot"),
            proto::Durability::Unspecified | proto::Durability::Unknown | proto::Durability::Durable => None,
        },
    }
}

fn is_memory(entry: &proto::Coverage) -> bool {
    ["tmpfs:", "devtmpfs:", "ramfs:"].iter().any(|kind| entry.disk.starts_with(kind))
}

fn worst(entry: &proto::Coverage) -> proto::RiskLevel {
    entry.risks.iter().map(proto::Risk::level).max().unwrap_or_default()
}

/// "vdb, transient"
fn disk(entry: &proto::Coverage) -> String {
    if is_memory(entry) {
        return "tmpfs".to_owned();
    }
    let durability = match entry.durability() {
        proto::Durability::Transient => ", transient",
        proto::Durability::Mixed => ", partly transient",
        proto::Durability::Unspecified | proto::Durability::Unknown | proto::Durability::Durable => "",
    };
    format!("{}{durability}", entry.disk)
}

/// What lies there, the worst first, as the daemon sorted it.
fn risks(out: &mut String, entry: &proto::Coverage) {
    // that there is swap is of interest only if there is nothing else
    let least =
        if worst(entry) > proto::RiskLevel::Benign { proto::RiskLevel::NotEmpty } else { proto::RiskLevel::Benign };
    let listed: Vec<&proto::Risk> = entry.risks.iter().filter(|risk| risk.level() >= least).collect();
    for risk in listed.iter().take(MOST_RISKS) {
        let level = match risk.level() {
            proto::RiskLevel::Needed => "NEEDED BY WHAT IS KEPT",
            proto::RiskLevel::Database => "database",
            proto::RiskLevel::State => "state",
            proto::RiskLevel::Written => "in use",
            proto::RiskLevel::NotEmpty => "files",
            proto::RiskLevel::Benign | proto::RiskLevel::Unspecified => "of no interest",
        };
        let _ = writeln!(out, "  {level}: {}", risk.message);
    }
    match listed.len().saturating_sub(MOST_RISKS) {
        0 => {}
        more => {
            let _ = writeln!(out, "  and {more} more: --json lists them");
        }
    }
}

/// "340 files, 1.2 GB, counted 2026-11-21T15:00:00Z; largest /mnt/docker (900.0 MB), /mnt/db (200.0 MB)".
fn counted(out: &mut String, contents: &proto::Contents) {
    let least = if contents.complete { "" } else { "at least " };
    let files = usize::try_from(contents.files).unwrap_or(usize::MAX);
    let files = format!("{least}{} {}", contents.files, plural(files, "file", "files"));
    let _ = write!(out, "  {files}, {}", bytes(contents.bytes));
    if let Some(time) = contents.time {
        let _ = write!(out, ", counted {}", prost_types::Timestamp { nanos: 0, ..time });
    }
    let largest = contents.largest.iter().take(MOST_DIRECTORIES);
    let largest: Vec<String> = largest.map(|d| format!("{} ({})", d.path, bytes(d.bytes))).collect();
    if !largest.is_empty() {
        let _ = write!(out, "; largest {}", largest.join(", "));
    }
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_snapshot_lacks_is_named_with_how_much_lies_there() {
        let entry =
            |disk: &str, mount: &str, durability: proto::Durability, told: proto::InSnapshot, used| proto::Coverage {
                disk: disk.into(),
                mounts: vec![mount.into()],
                durability: durability.into(),
                in_snapshot: told.into(),
                used_bytes: used,
                ..Default::default()
            };
        use proto::{Durability as D, InSnapshot as S};
        let report = proto::Report {
            coverage: vec![
                entry("vda1", "/", D::Durable, S::NotTold, 5_000_000_000),
                entry("tmpfs:/mnt", "/mnt", D::Transient, S::NotTold, 1_234_567_890),
                entry("tmpfs:/run", "/run", D::Transient, S::NotTold, 4096),
                entry("vdb", "/scratch", D::Transient, S::NotTold, 12_000),
                entry("vdc", "/srv", D::Durable, S::No, 999),
            ],
            ..Default::default()
        };
        assert_eq!(
            gaps(&report),
            "not in this snapshot: /mnt (tmpfs), 1.2 GB used\n\
             perhaps not in this snapshot: /scratch (vdb, transient), 12.0 kB used\n\
             not in this snapshot: /srv (vdc), 999 bytes used\n\
             not in this snapshot, in memory and nearly empty: /run\n"
        );
    }

    #[test]
    fn the_worst_file_system_stands_first_and_long_lists_are_cut_with_a_count() {
        let risk = |level: proto::RiskLevel, message: &str| proto::Risk {
            level: level.into(),
            message: message.into(),
            ..Default::default()
        };
        let entry = |disk: &str, mount: &str, risks: Vec<proto::Risk>| proto::Coverage {
            disk: disk.into(),
            mounts: vec![mount.into()],
            durability: proto::Durability::Transient.into(),
            used_bytes: 5_000,
            risks,
            ..Default::default()
        };
        use proto::RiskLevel as L;
        let quiet = vec![risk(L::Benign, "nothing is in /empty that anybody would miss")];
        let mut busy = vec![risk(L::Needed, "wal /mnt/wal of the database orders is there, and its data is not")];
        busy.extend((0..7).map(|n| risk(L::State, &format!("unit {n}"))));
        busy.push(risk(L::Benign, "/mnt/swapfile is a swap file"));
        let mut busy = entry("vdc", "/mnt", busy);
        busy.accepted = "scratch only".into();
        busy.contents = Some(proto::Contents {
            time: Some(prost_types::Timestamp { seconds: 0, nanos: 5 }),
            files: 340,
            bytes: 1_200_000_000,
            complete: false,
            largest: vec![proto::Directory { path: "/mnt/docker".into(), bytes: 900_000_000, files: 300 }],
        });
        let report = proto::Report { coverage: vec![entry("vdb", "/empty", quiet), busy], ..Default::default() };
        assert_eq!(
            gaps(&report),
            "perhaps not in this snapshot: /mnt (vdc, transient), 5.0 kB used; accepted: scratch only\n\
             \x20 NEEDED BY WHAT IS KEPT: wal /mnt/wal of the database orders is there, and its data is not\n\
             \x20 state: unit 0\n  state: unit 1\n  state: unit 2\n  state: unit 3\n  state: unit 4\n\
             \x20 and 2 more: --json lists them\n\
             \x20 at least 340 files, 1.2 GB, counted 1970-01-01T00:00:00Z; largest /mnt/docker (900.0 MB)\n\
             perhaps not in this snapshot: /empty (vdb, transient), 5.0 kB used\n\
             \x20 of no interest: nothing is in /empty that anybody would miss\n"
        );
    }
}
