//! What is done about what will be missed: said, refused, or accepted, as the configuration has it. Pure. Called by the survey
//! when it is known what lies there.

use super::{Lost, bytes, display, problem};
use crate::{
    config::{Stance, Transient, TransientPolicy},
    guest::{Kind, Superblock},
    hold::{Refusal, RefusalKind},
    proto::{self, Durability, RiskLevel, Severity},
};

/// Things named in one sentence; of more there is a count.
const MOST_NAMED: usize = 4;
/// File systems named in one refusal: it must fit an error's details.
const MOST_REFUSED: usize = 6;

/// What to tell, and why not to hold.
#[derive(Debug, Default, PartialEq)]
pub struct Judgement {
    pub problems: Vec<proto::Problem>,
    pub refusal: Option<Refusal>,
}

/// Judges every file system that is transient, wholly or in part; what is merely outside this snapshot is in the coverage.
pub fn judge(
    lost: &[Lost],
    superblocks: &[Superblock],
    coverage: &[proto::Coverage],
    settings: &Transient,
) -> Judgement {
    let mut judgement = Judgement::default();
    let mut refused: Vec<(RiskLevel, String)> = Vec::new();
    let mut said: Vec<(RiskLevel, proto::Problem)> = Vec::new();
    for lost in lost {
        let (superblock, entry) = (&superblocks[lost.superblock], &coverage[lost.coverage]);
        let worst = entry.risks.iter().map(proto::Risk::level).max().unwrap_or_default();
        if lost.excluded || !concerns(lost, superblock, entry, worst) {
            continue;
        }
        let sentence = sentence(superblock, entry);
        let stance = match stance(superblock, settings) {
            Some(stance) => stance,
            None if settings.policy == TransientPolicy::Refuse => &Stance::Refuse,
            None => &Stance::Warn,
        };
        let mount = display(superblock);
        let warn = |message: &str, hint| problem(Severity::Warning, "TRANSIENT_DATA", &mount, message, hint);
        match stance {
            // nobody can have meant this when they accepted the loss of what is there
            Stance::Accept { .. } if worst == RiskLevel::Needed && settings.policy == TransientPolicy::Refuse => {
                refused.push((worst, sentence));
            }
            Stance::Accept { .. } if worst == RiskLevel::Needed => {
                let message = format!("{sentence}; its loss is accepted, but not that of what needs it");
                said.push((worst, warn(&message, "move the part that lies there to a durable disk")));
            }
            Stance::Accept { because } => {
                let message = format!("{sentence}; accepted: {because}");
                said.push((worst, problem(Severity::Note, "TRANSIENT_DATA", &mount, &message, "")));
            }
            Stance::Refuse => refused.push((worst, sentence)),
            Stance::Warn => said.push((worst, warn(&sentence, HINT))),
        }
    }
    said.sort_by_key(|(worst, _)| std::cmp::Reverse(*worst));
    judgement.problems = said.into_iter().map(|(_, problem)| problem).collect();
    refused.sort_by_key(|(worst, _)| std::cmp::Reverse(*worst));
    let more = refused.len().saturating_sub(MOST_REFUSED);
    let mut sentences: Vec<String> = refused.into_iter().take(MOST_REFUSED).map(|(_, sentence)| sentence).collect();
    if more > 0 {
        sentences.push(format!("and {more} more file systems"));
    }
    if !sentences.is_empty() {
        let refusal = Refusal::new(RefusalKind::FailedPrecondition, "TRANSIENT_DATA", sentences.join("; "));
        judgement.refusal = Some(refusal.hint(
            "move it to a durable disk, or accept its loss in a [[transient.mount]], or set `policy = \"warn\"` in [transient]",
        ));
    }
    judgement
}

const HINT: &str = "move what must survive to a durable disk, copy it before the snapshot, or accept its loss in a [[transient.mount]]";

/// What the configuration says of this file system alone.
pub fn stance<'a>(superblock: &Superblock, settings: &'a Transient) -> Option<&'a Stance> {
    let is = |path: &std::path::PathBuf| superblock.namespace.is_none() && superblock.mounts.contains(path);
    settings.exceptions.iter().find(|exception| is(&exception.path)).map(|exception| &exception.stance)
}

/// Transient, and with something that somebody will miss. Nobody expects memory to be in a snapshot, nor a container's own
/// disks, unless somebody's state is there, or the configuration names them.
fn concerns(lost: &Lost, superblock: &Superblock, entry: &proto::Coverage, worst: RiskLevel) -> bool {
    let least = match superblock.kind {
        Kind::Freezable | Kind::FlushOnly | Kind::Unknown if superblock.namespace.is_none() || lost.named => {
            RiskLevel::NotEmpty
        }
        Kind::Memory if lost.named => RiskLevel::NotEmpty,
        Kind::Freezable | Kind::FlushOnly | Kind::Unknown | Kind::Memory => RiskLevel::State,
        Kind::Remote | Kind::Stacked | Kind::Image | Kind::Pseudo => return false,
    };
    let transient = match entry.durability() {
        Durability::Transient | Durability::Mixed => true,
        Durability::Unspecified | Durability::Unknown | Durability::Durable => false,
    };
    transient && worst >= least
}

/// "/mnt (vdb, transient): the database orders, docker's root /mnt/docker and 3 more, 1.2 GiB in all, will not be in the
/// snapshot".
fn sentence(superblock: &Superblock, entry: &proto::Coverage) -> String {
    let what = match (superblock.kind, entry.durability()) {
        (Kind::Memory, _) => format!("{}, in memory", superblock.fs_type),
        (_, Durability::Mixed) => format!("{}, partly transient", entry.disk),
        (_, _) => format!("{}, transient", entry.disk),
    };
    let mut names: Vec<String> = Vec::new();
    let specific = entry.risks.iter().filter(|risk| risk.level() > RiskLevel::NotEmpty);
    for name in specific.map(words) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    if names.is_empty() {
        // nothing has a name: what lies at the top
        names.extend(
            entry.risks.iter().find(|risk| risk.level() == RiskLevel::NotEmpty).map(|risk| risk.message.clone()),
        );
    }
    let more = names.len().saturating_sub(MOST_NAMED);
    names.truncate(MOST_NAMED);
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    // zero is "nobody could say": no file system is that empty
    let size = if entry.used_bytes == 0 { String::new() } else { format!(", {} in all", bytes(entry.used_bytes)) };
    format!("{} ({what}): {}{more}{size}, will not be in the snapshot", display(superblock), names.join(", "))
}

/// One thing in a few words.
fn words(risk: &proto::Risk) -> String {
    let subject = &risk.subject;
    match (subject.split_once(':'), risk.level()) {
        (Some(("db", name)), RiskLevel::Needed) => format!("a part that the database {name} needs ({})", risk.path),
        (Some(("db", name)), _) => format!("the database {name}"),
        (Some(("unit", name)), _) => format!("{name}'s {}", risk.path),
        (Some(("hook", name)), _) => format!("the hook {name}"),
        (Some(("process", name)), _) => format!("what {name} writes"),
        (_, RiskLevel::Needed) => risk.message.clone(),
        (None, _) if !subject.starts_with('/') && !risk.path.is_empty() => format!("{subject}'s {}", risk.path),
        (_, _) => subject.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::TransientMount, guest::Dev};

    fn superblock(mount: &str, kind: Kind) -> Superblock {
        Superblock {
            dev: Dev { major: 254, minor: 16 },
            fs_type: if kind == Kind::Memory { "tmpfs" } else { "ext4" }.into(),
            source: "/dev/vdb".into(),
            options: "rw".into(),
            kind,
            read_only: false,
            open_at: None,
            mounts: vec![mount.into()],
            namespace: None,
            below: None,
        }
    }

    fn risk(level: RiskLevel, subject: &str, path: &str, message: &str) -> proto::Risk {
        proto::Risk { level: level.into(), subject: subject.into(), path: path.into(), message: message.into() }
    }

    fn judged(kind: Kind, risks: &[proto::Risk], settings: &Transient) -> Judgement {
        let entry = proto::Coverage {
            disk: "vdb".into(),
            durability: Durability::Transient.into(),
            used_bytes: 1 << 30,
            risks: risks.to_vec(),
            ..Default::default()
        };
        let lost = Lost { superblock: 0, coverage: 0, excluded: false, named: false, uncaptured: Vec::new() };
        judge(&[lost], &[superblock("/mnt", kind)], &[entry], settings)
    }

    fn settings(policy: TransientPolicy, stance: Option<Stance>) -> Transient {
        let exceptions = stance.into_iter().map(|stance| TransientMount { path: "/mnt".into(), stance }).collect();
        Transient { policy, mounts: Vec::new(), durable: Vec::new(), exceptions }
    }

    fn full() -> Vec<proto::Risk> {
        vec![
            risk(RiskLevel::Database, "db:orders", "/mnt/db", ""),
            risk(RiskLevel::State, "docker", "/mnt/docker", ""),
            risk(RiskLevel::State, "unit:backup.service", "/mnt/backup", ""),
            risk(RiskLevel::State, "/var/lib/mysql", "/mnt/db", ""),
            risk(RiskLevel::Written, "process:java", "", ""),
            risk(RiskLevel::NotEmpty, "/mnt", "/mnt", "db, docker at the top of /mnt"),
        ]
    }

    #[test]
    fn the_worst_is_named_first_and_the_rest_is_counted() {
        let judgement = judged(Kind::Freezable, &full(), &settings(TransientPolicy::Warn, None));
        let expected = "/mnt (vdb, transient): the database orders, docker's /mnt/docker, backup.service's /mnt/backup, \
                        /var/lib/mysql and 1 more, 1.0 GiB in all, will not be in the snapshot";
        assert_eq!(judgement.problems[0].message, expected);
        assert_eq!((judgement.problems[0].severity(), judgement.refusal), (Severity::Warning, None));
        let judgement = judged(Kind::Freezable, &full(), &settings(TransientPolicy::Refuse, None));
        let refusal = judgement.refusal.expect("that is the policy");
        assert_eq!(
            (refusal.reason, refusal.message.as_str(), judgement.problems.len()),
            ("TRANSIENT_DATA", expected, 0)
        );
    }

    #[test]
    fn what_nobody_misses_is_neither_refused_nor_warned_about() {
        let refuse = settings(TransientPolicy::Refuse, None);
        let benign = [risk(RiskLevel::Benign, "swap:/mnt/swapfile", "/mnt/swapfile", "")];
        assert_eq!(judged(Kind::Freezable, &benign, &refuse), Judgement::default());
        assert_eq!(judged(Kind::Freezable, &[], &refuse), Judgement::default());
        let written = [risk(RiskLevel::Written, "process:java", "", "")];
        assert_eq!(judged(Kind::Memory, &written, &refuse), Judgement::default(), "nobody expects /run in a snapshot");
        assert!(judged(Kind::Memory, &full(), &refuse).refusal.is_some(), "but a database was put there");
    }

    #[test]
    fn an_accepted_loss_is_a_note_unless_something_durable_needs_what_is_there() {
        let accepted = || Some(Stance::Accept { because: "scratch only".into() });
        let refuse = settings(TransientPolicy::Refuse, accepted());
        let judgement = judged(Kind::Freezable, &full(), &refuse);
        assert_eq!((judgement.problems[0].severity(), &judgement.refusal), (Severity::Note, &None));
        assert!(judgement.problems[0].message.ends_with("; accepted: scratch only"), "{judgement:?}");
        let needed = [risk(RiskLevel::Needed, "db:orders", "/mnt/wal", "")];
        assert!(judged(Kind::Freezable, &needed, &refuse).refusal.is_some());
        let judgement = judged(Kind::Freezable, &needed, &settings(TransientPolicy::Warn, accepted()));
        assert_eq!(judgement.problems[0].severity(), Severity::Warning, "{judgement:?}");
        assert!(judgement.problems[0].message.contains("a part that the database orders needs (/mnt/wal)"));
    }

    #[test]
    fn a_mount_of_its_own_policy_goes_by_that() {
        let warn = settings(TransientPolicy::Refuse, Some(Stance::Warn));
        assert_eq!(judged(Kind::Freezable, &full(), &warn).problems.len(), 1);
        let refuse = settings(TransientPolicy::Warn, Some(Stance::Refuse));
        assert!(judged(Kind::Freezable, &full(), &refuse).refusal.is_some());
    }

    #[test]
    fn where_nothing_has_a_name_the_top_directory_is_told() {
        let risks = [risk(RiskLevel::NotEmpty, "/mnt", "/mnt", "data, logs at the top of /mnt")];
        let judgement = judged(Kind::Freezable, &risks, &settings(TransientPolicy::Warn, None));
        assert_eq!(
            judgement.problems[0].message,
            "/mnt (vdb, transient): data, logs at the top of /mnt, 1.0 GiB in all, will not be in the snapshot"
        );
    }
}
