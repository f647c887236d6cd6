//! What the snapshot will not contain, as people read it. Pure text; may change between versions (`--json` may not).

use std::fmt::Write;

use super::show::bytes;
use crate::proto;

/// What the snapshot will not contain, and how much lies there. Small tmpfs that nobody needs share one line.
pub fn gaps(report: &proto::Report) -> String {
    /// Below this a tmpfs holds sockets and pid files.
    const WORTH_A_LINE: u64 = 1_000_000;
    let mut out = String::new();
    let mut small = Vec::new();
    for entry in &report.coverage {
        let memory = entry.disk.strip_prefix("tmpfs:").is_some();
        let gone = matches!(entry.durability(), proto::Durability::Transient | proto::Durability::Mixed);
        let what = match entry.in_snapshot() {
            proto::InSnapshot::No => "not in this snapshot",
            proto::InSnapshot::NotTold | proto::InSnapshot::Unspecified if memory => "not in this snapshot",
            proto::InSnapshot::NotTold | proto::InSnapshot::Unspecified if gone => "perhaps not in this snapshot",
            proto::InSnapshot::NotTold | proto::InSnapshot::Unspecified | proto::InSnapshot::Yes => continue,
        };
        let mounts = if entry.mounts.is_empty() { entry.disk.clone() } else { entry.mounts.join(", ") };
        if memory && entry.used_bytes < WORTH_A_LINE && entry.at_risk.is_empty() {
            small.push(mounts);
            continue;
        }
        let kind = if memory { "tmpfs" } else { &entry.disk };
        let _ = write!(out, "{what}: {mounts} ({kind}), {} used", bytes(entry.used_bytes));
        let _ = match entry.at_risk.is_empty() {
            true => writeln!(out),
            false => writeln!(out, "; it holds {}", entry.at_risk.join(", ")),
        };
    }
    if !small.is_empty() {
        let _ = writeln!(out, "not in this snapshot, in memory and nearly empty: {}", small.join(", "));
    }
    out
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
             perhaps not in this snapshot: /scratch (vdb), 12.0 kB used\n\
             not in this snapshot: /srv (vdc), 999 bytes used\n\
             not in this snapshot, in memory and nearly empty: /run\n"
        );
    }
}
