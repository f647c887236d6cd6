//! The words for what will be missed, and which of them a report has room for.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use crate::{
    guest::{
        Superblock,
        risk::{Level, Risk, Writer},
    },
    hold::plan::{Lost, display},
    proto::{self, Durability, RiskLevel},
};

/// As the contract has it.
const MOST: usize = 64;

/// Something durable of which a part will be missed.
pub(super) fn broken_apart(
    lost: &Lost,
    superblock: &Superblock,
    entry: &proto::Coverage,
    legs: &[String],
) -> Option<Risk> {
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
pub(super) fn of_servers(writers: &[Writer], unheld: &BTreeMap<i32, (i32, String)>) -> Vec<Risk> {
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
pub(super) fn fill(entry: &mut proto::Coverage, mut risks: Vec<Risk>) {
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
    use super::{super::wanted::tests::superblock, *};
    use crate::guest::Kind;

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
