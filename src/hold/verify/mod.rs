//! What a copy can prove by itself: reads the receipts of mounted copies, devices and images, and grades them. Never writes.
//!
//! ```text
//!   paths ─source─▶ places ─open─▶ receipt, raw superblock ─grade─▶ Presented ─together─▶ one hold? all of it?
//!                                        │ (told: every text made plain)         ─claims─▶ databases, level
//!                                        └──────────────────────────────────────── left ─▶ what was missing
//! ```
//!
//! | grade | what it takes |
//! |---|---|
//! | `proven` | either of the next two, and the caller's hold record says `unbroken` and names this file system |
//! | `cut-inside` | `frozen`, on journalled ext4 whose raw superblock shows no `needs_recovery`, and mount count and time as recorded |
//! | `consistent-with-hold` | `frozen` on any other file system, or on an ext4 that has been mounted since |
//! | `outside` | `frozen`, but the raw superblock shows that it was not cut while it was: crash-consistent at best |
//! | `released` `prepared` `aborted` `restored` | the copy was cut outside a hold: crash-consistent at best |
//! | `none` | no receipt |

pub mod claims;
mod grade;
pub mod left;
pub mod offline;
mod plain;
pub mod positions;
pub mod servers;
mod source;
mod subvolumes;
mod together;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

pub use self::{claims::Claimed, grade::Grade, left::Left, plain::text as plain_text, source::Refused};
use self::{offline::Identity, source::Place};
use super::{
    plan::problem,
    receipt::{Found, Sector},
};
use crate::{
    guest, json,
    proto::{self, Severity},
};

/// One presented file system.
#[derive(Debug)]
pub struct Presented {
    /// the directory, device or image
    pub root: PathBuf,
    pub partition: Option<u32>,
    /// the same for people
    pub name: String,
    pub found: Option<Found>,
    /// `receipt.json`, its texts harmless
    told: Value,
    pub grade: Grade,
    /// why not better, for people
    pub why: String,
    /// it is among what is graded: of a whole disk, or machine, what has no receipt and was not held is only named
    pub graded: bool,
    /// it has a receipt that cannot be believed
    unreadable: bool,
    /// what lies in the copy where something else was mounted, by that mount point
    beneath: Vec<(String, left::Counted)>,
    /// what the files of databases in it say of themselves, by step
    identities: Vec<(String, Identity)>,
}

impl Presented {
    fn hold_id(&self) -> Option<&str> {
        self.found.as_ref().map(|found| found.sector.hold_id.as_str())
    }
}

/// What the receipt at a mount point said before it was rewritten: its grade then, and why.
pub type Recall<'a> = dyn Fn(&str, &Sector) -> Option<(Grade, String)> + 'a;

/// Where this is asked.
#[derive(Clone, Copy)]
pub enum Host<'a> {
    /// on a machine that is not the copy: what is mounted here says nothing
    Elsewhere,
    /// the file systems of this machine are the copies; `recall` knows, by its mount point, what one that was rewritten here
    /// since said before
    Restored { recall: &'a Recall<'a> },
}

impl Host<'_> {
    pub fn is_restored(self) -> bool {
        matches!(self, Host::Restored { .. })
    }
}

/// What all presented copies prove together.
#[derive(Debug)]
pub struct Verification {
    pub grade: Grade,
    /// of one hold, all of them; empty otherwise
    pub hold_id: String,
    /// "application", "filesystem", "crash" or "none", and why not more
    pub level: &'static str,
    pub level_why: String,
    pub filesystems: Vec<Presented>,
    pub coverage: Vec<Value>,
    pub claims: Vec<Claimed>,
    pub left: Vec<Left>,
    /// positions of the databases found, as far as they were compared
    pub databases: Vec<positions::Compared>,
    pub problems: Vec<proto::Problem>,
    /// a held file system was not presented
    pub incomplete: bool,
}

impl Verification {
    /// 0 held, 1 no receipt at all, 3 anything below.
    pub fn exit_code(&self, with_record: bool) -> u8 {
        if self.filesystems.iter().all(|f| f.grade == Grade::None) {
            return 1;
        }
        let all = self.graded().all(|f| f.grade.is_held());
        let proven = !with_record || self.grade == Grade::Proven;
        let behind = self.problems.iter().any(|p| p.code == positions::BEHIND);
        if all && !self.hold_id.is_empty() && !self.incomplete && proven && !behind { 0 } else { 3 }
    }

    pub fn to_json(&self) -> Value {
        let filesystems: Vec<Value> = self
            .filesystems
            .iter()
            .map(|f| {
                json!({
                    "root": f.root.to_string_lossy(),
                    "partition": f.partition,
                    "grade": f.grade.to_string(),
                    "state": f.found.as_ref().map(|x| x.sector.state.to_string()),
                    "hold_id": f.found.as_ref().map(|x| x.sector.hold_id.clone()),
                    "uuid": f.found.as_ref().map(|x| x.sector.fs_uuid.clone()),
                    "why": f.why,
                    "graded": f.graded,
                    "receipt": f.found.as_ref().map(|x| x.record.clone()),
                })
            })
            .collect();
        json!({
            "grade": self.grade.to_string(),
            "hold_id": self.hold_id,
            "level": self.level,
            "level_reason": self.level_why,
            "filesystems": filesystems,
            "coverage": self.coverage,
            "claims": self.claims.iter().map(Claimed::to_json).collect::<Vec<_>>(),
            "left_behind": self.left.iter().map(Left::to_json).collect::<Vec<_>>(),
            "databases": self.databases.iter().map(positions::Compared::to_json).collect::<Vec<_>>(),
            "problems": self.problems.iter().map(json::to_json).collect::<Vec<_>>(),
        })
    }

    /// What counts.
    pub fn graded(&self) -> impl Iterator<Item = &Presented> {
        self.filesystems.iter().filter(|f| f.graded)
    }

    /// The record of the first copy that has one, its texts harmless, and when its hold was prepared.
    pub fn told(&self) -> Option<(&Value, i64)> {
        self.filesystems.iter().find_map(|f| Some((&f.told, f.found.as_ref()?.sector.prepared)))
    }

    /// What was found out of the databases that run here, or lie in the copies.
    pub fn compared(&mut self, compared: Vec<positions::Compared>) {
        for one in compared {
            self.problems.extend(one.problem());
            match self.databases.iter_mut().find(|known| known.name == one.name) {
                Some(known) => *known = one,
                None => self.databases.push(one),
            }
        }
    }
}

/// Where receipts may lie on this machine: every mount point of a local, freezable file system.
///
/// # Errors
/// The mounts cannot be read.
pub fn mounted() -> std::io::Result<Vec<PathBuf>> {
    let guest = guest::read(Path::new("/"))?;
    let local = guest.superblocks.into_iter().filter(|s| s.kind == guest::Kind::Freezable && s.below.is_none());
    Ok(local.filter(|s| s.namespace.is_none()).filter_map(|s| s.open_at.map(|at| at.path)).collect())
}

/// Grades the copies in `paths` (directories, devices, images), against the caller's hold `record` if there is one.
///
/// # Errors
/// A path that must not be looked into, or cannot. Nothing was touched then.
pub fn verify(paths: &[PathBuf], record: Option<&proto::Report>, host: Host<'_>) -> Result<Verification, Refused> {
    let places = source::places(paths)?;
    let mut problems = Vec::new();
    let mut filesystems: Vec<Presented> =
        places.iter().map(|place| present(place, record, host, &mut problems)).collect();
    if filesystems.iter().any(|f| f.found.is_some()) {
        for fs in filesystems.iter_mut().filter(|f| f.found.is_none() && !f.unreadable) {
            fs.graded = fs.partition.is_none() && !host.is_restored();
        }
    }
    let hold_id = together::one_hold(&filesystems, &mut problems);
    let incomplete = together::missing(&filesystems, record, &mut problems);
    let mut grade = filesystems.iter().filter(|f| f.graded).map(|f| f.grade).min().unwrap_or(Grade::None);
    if grade == Grade::Proven && (incomplete || hold_id.is_empty()) {
        grade = Grade::ConsistentWithHold;
    }
    let told = filesystems.iter().find(|f| f.found.is_some()).map_or(Value::Null, |f| f.told.clone());
    let coverage = told["report"]["coverage"].as_array().cloned().unwrap_or_default();
    let held = grade.is_held() && !incomplete && !hold_id.is_empty();
    let claims = claims::of(&told["report"], record.filter(|record| record.id == hold_id), held);
    problems.extend(claims::problems(&claims));
    let level = claims::level(&told["report"], &claims, held, grade);
    let (level, level_why) = claims::at_most(level, record.filter(|record| record.id == hold_id));
    let left = left::behind(&told["report"], &filesystems, host);
    problems.extend(left.iter().filter_map(Left::problem));
    let mut databases = Vec::new();
    for (step, identity) in filesystems.iter().flat_map(|f| &f.identities) {
        let compared = positions::offline(&told["report"], step, identity);
        problems.extend(compared.problem());
        databases.push(compared);
    }
    Ok(Verification {
        grade,
        hold_id,
        level,
        level_why,
        filesystems,
        coverage,
        claims,
        left,
        databases,
        problems,
        incomplete,
    })
}

fn present(
    place: &Place,
    record: Option<&proto::Report>,
    host: Host<'_>,
    problems: &mut Vec<proto::Problem>,
) -> Presented {
    let name = place.name();
    let nothing = |why: String| Presented {
        root: place.path.clone(),
        partition: place.partition,
        name: name.clone(),
        found: None,
        told: Value::Null,
        grade: Grade::None,
        why,
        graded: true,
        unreadable: false,
        beneath: Vec::new(),
        identities: Vec::new(),
    };
    let opened = match place.open() {
        Ok(opened) => opened,
        Err(why) => {
            let (code, hint) = match &place.kind {
                source::Kind::Nothing { hint, .. } => ("NO_FILE_SYSTEM", *hint),
                source::Kind::Directory | source::Kind::Raw { .. } => (
                    "NOT_MOUNTABLE",
                    "mount it yourself (ext4 ro,noload; XFS ro,norecovery,nouuid; btrfs ro,rescue=nologreplay) and give the directory",
                ),
            };
            // partitions without a file system are on every disk
            if place.partition.is_none() || !hint.is_empty() {
                problems.push(problem(Severity::Warning, code, &name, &format!("{name}: {why}"), hint));
            }
            return nothing(why);
        }
    };
    let found = match subvolumes::find(&opened) {
        Ok(Some(found)) => found,
        Ok(None) => return nothing("no receipt: it was never held, or its receipt did not fit".to_owned()),
        Err(error) => {
            let why = plain::text(&error.to_string());
            let message = format!("{name}: {why}");
            problems.push(problem(Severity::Refusal, "RECEIPT_UNREADABLE", &name, &message, ""));
            return Presented { unreadable: true, ..nothing(why) };
        }
    };
    let told = plain::value(&found.record);
    let (mut grade, mut why) =
        grade::grade(found.sector.state, opened.raw.as_ref(), opened.usage, &found.record["filesystem"]);
    if let Host::Restored { recall } = host
        && let Some(before) = recall(&name, &found.sector)
    {
        (grade, why) = before;
    }
    if let Some(record) = record.filter(|_| grade.is_held()) {
        match together::against(record, &found) {
            Ok(()) => (grade, why) = (Grade::Proven, "and the hold record says unbroken".to_owned()),
            Err(reason) => {
                let message = format!("{name}: the hold record does not prove it: {reason}");
                problems.push(problem(Severity::Warning, "RECORD_MISMATCH", &name, &message, ""));
            }
        }
    }
    let beneath = left::beneath(&told, &found.root);
    let identities = offline::identities(&told, &found.root);
    Presented { found: Some(found), told, grade, why, beneath, identities, ..nothing(String::new()) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        hold::receipt::{self, State},
        proto::{StepOutcome, Verdict, step::Detail},
    };

    fn copy(state: State, id: &str, uuid: &str, others: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join(receipt::DIRECTORY);
        fs::create_dir(&dir).unwrap();
        let sector = Sector { state, hold_id: id.into(), fs_uuid: uuid.into(), boot_id: "b".into(), prepared: 1 };
        fs::write(dir.join(receipt::STATE), sector.encode()).unwrap();
        let steps: Vec<Value> = others
            .iter()
            .map(|u| json!({"name": u, "outcome": "planned", "filesystem": {"uuid": u, "mount": format!("/{u}")}}))
            .collect();
        let record = json!({"hold_id": id, "filesystem": {}, "report": {"steps": steps, "coverage": []}});
        fs::write(dir.join(receipt::JSON), receipt::padded(&record, 8192).unwrap()).unwrap();
        root
    }

    fn graded(copies: &[&tempfile::TempDir], record: Option<&proto::Report>) -> Verification {
        let paths: Vec<PathBuf> = copies.iter().map(|c| c.path().to_owned()).collect();
        verify(&paths, record, Host::Elsewhere).expect("directories can be looked at")
    }

    #[test]
    fn only_a_frozen_copy_is_graded_as_held() {
        for (state, grade, code) in [
            (State::Frozen, Grade::ConsistentWithHold, 0),
            (State::Released, Grade::Released, 3),
            (State::Prepared, Grade::Prepared, 3),
            (State::Aborted, Grade::Aborted, 3),
            (State::Restored, Grade::Restored, 3),
        ] {
            let copy = copy(state, "a", "u1", &["u1"]);
            let verification = graded(&[&copy], None);
            assert_eq!((verification.grade, verification.exit_code(false)), (grade, code));
        }
        let none = tempfile::tempdir().unwrap();
        assert_eq!(graded(&[&none], None).exit_code(false), 1);
    }

    #[test]
    fn copies_of_different_holds_prove_nothing_together() {
        let (one, two) = (copy(State::Frozen, "a", "u1", &[]), copy(State::Frozen, "b", "u2", &[]));
        let verification = graded(&[&one, &two], None);
        assert_eq!(verification.exit_code(false), 3);
        assert!(verification.hold_id.is_empty());
    }

    #[test]
    fn a_held_file_system_that_is_not_presented_is_named() {
        let one = copy(State::Frozen, "a", "u1", &["u1", "u2"]);
        let verification = graded(&[&one], None);
        assert_eq!(verification.exit_code(false), 3);
        assert!(verification.problems.iter().any(|p| p.code == "FILESYSTEM_MISSING" && p.subject == "/u2"));
    }

    #[test]
    fn a_file_system_that_only_the_record_names_is_missed_too() {
        let one = copy(State::Frozen, "a", "u1", &["u1"]);
        let mut record = proto::Report { id: "a".into(), ..Default::default() };
        for uuid in ["u1", "u2"] {
            let fs = proto::Filesystem { uuid: uuid.into(), mount: format!("/{uuid}"), ..Default::default() };
            let mut step = proto::Step { detail: Some(Detail::Filesystem(fs)), ..Default::default() };
            step.set_outcome(StepOutcome::Undone);
            record.steps.push(step);
        }
        record.set_verdict(Verdict::Unbroken);
        let verification = graded(&[&one], Some(&record));
        assert_eq!(verification.exit_code(true), 3);
        assert!(verification.problems.iter().any(|p| p.code == "FILESYSTEM_MISSING" && p.subject == "/u2"));
    }

    #[test]
    fn the_callers_record_proves_only_an_unbroken_hold_of_this_file_system() {
        let one = copy(State::Frozen, "a", "u1", &["u1"]);
        let mut record = proto::Report { id: "a".into(), ..Default::default() };
        record.set_verdict(Verdict::Unbroken);
        let mut step = proto::Step {
            detail: Some(Detail::Filesystem(proto::Filesystem { uuid: "u1".into(), ..Default::default() })),
            ..Default::default()
        };
        step.set_outcome(StepOutcome::Undone);
        record.steps.push(step);
        let proven = graded(&[&one], Some(&record));
        assert_eq!((proven.grade, proven.exit_code(true)), (Grade::Proven, 0));
        record.set_verdict(Verdict::Broken);
        let broken = graded(&[&one], Some(&record));
        assert_eq!((broken.grade, broken.exit_code(true)), (Grade::ConsistentWithHold, 3));
    }
}
