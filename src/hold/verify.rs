//! What a copy can prove by itself: reads the receipts of mounted copies and grades them. Never writes.
//!
//! | grade | what it takes |
//! |---|---|
//! | `proven` | either of the next two, and the caller's hold record says `unbroken` and names this file system |
//! | `cut-inside` | `frozen`, on journalled ext4 whose raw superblock shows no `needs_recovery`, and mount count and time as recorded |
//! | `consistent-with-hold` | `frozen` on any other file system, or on an ext4 that has been mounted since |
//! | `released` `prepared` `aborted` | the copy was cut outside a hold: crash-consistent at best |
//! | `none` | no receipt |

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{
    plan::problem,
    receipt::{self, Found, State},
};
use crate::{
    guest::{self, superblock},
    json,
    proto::{self, Severity, StepOutcome, Verdict, step::Detail},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grade {
    None,
    Aborted,
    Prepared,
    Restored,
    Released,
    ConsistentWithHold,
    CutInside,
    Proven,
}

impl Grade {
    const ALL: [Grade; 8] = [
        Grade::None,
        Grade::Aborted,
        Grade::Prepared,
        Grade::Restored,
        Grade::Released,
        Grade::ConsistentWithHold,
        Grade::CutInside,
        Grade::Proven,
    ];

    /// By the word that is printed.
    pub fn named(word: &str) -> Option<Grade> {
        Grade::ALL.into_iter().find(|grade| grade.to_string() == word)
    }

    /// Was this copy cut while all was held, as far as it can tell?
    pub fn is_held(self) -> bool {
        self >= Grade::ConsistentWithHold
    }
}

impl fmt::Display for Grade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Grade::None => "none",
            Grade::Aborted => "aborted",
            Grade::Prepared => "prepared",
            Grade::Restored => "restored",
            Grade::Released => "released",
            Grade::ConsistentWithHold => "consistent-with-hold",
            Grade::CutInside => "cut-inside",
            Grade::Proven => "proven",
        })
    }
}

/// One presented file system.
#[derive(Debug)]
pub struct Presented {
    pub root: PathBuf,
    pub found: Option<Found>,
    pub grade: Grade,
    /// why not better, for people
    pub why: String,
}

/// What all presented copies prove together.
#[derive(Debug)]
pub struct Verification {
    pub grade: Grade,
    /// of one hold, all of them; empty otherwise
    pub hold_id: String,
    pub filesystems: Vec<Presented>,
    pub coverage: Vec<Value>,
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
        let all = self.filesystems.iter().all(|f| f.grade.is_held());
        let proven = !with_record || self.grade == Grade::Proven;
        if all && !self.hold_id.is_empty() && !self.incomplete && proven { 0 } else { 3 }
    }

    pub fn to_json(&self) -> Value {
        let filesystems: Vec<Value> = self
            .filesystems
            .iter()
            .map(|f| {
                json!({
                    "root": f.root,
                    "grade": f.grade.to_string(),
                    "state": f.found.as_ref().map(|x| x.sector.state.to_string()),
                    "hold_id": f.found.as_ref().map(|x| x.sector.hold_id.clone()),
                    "uuid": f.found.as_ref().map(|x| x.sector.fs_uuid.clone()),
                    "why": f.why,
                    "receipt": f.found.as_ref().map(|x| x.record.clone()),
                })
            })
            .collect();
        json!({
            "grade": self.grade.to_string(),
            "hold_id": self.hold_id,
            "filesystems": filesystems,
            "coverage": self.coverage,
            "problems": self.problems.iter().map(json::to_json).collect::<Vec<_>>(),
        })
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

/// Grades the copies mounted at `roots`, against the caller's hold `record` if there is one.
pub fn verify(roots: &[PathBuf], record: Option<&proto::Report>) -> Verification {
    let mut problems = Vec::new();
    let filesystems: Vec<Presented> = roots.iter().map(|root| present(root, record, &mut problems)).collect();
    let mut ids: Vec<&str> =
        filesystems.iter().filter_map(|f| f.found.as_ref()).map(|f| f.sector.hold_id.as_str()).collect();
    ids.sort_unstable();
    ids.dedup();
    let hold_id = match ids.as_slice() {
        [one] => (*one).to_owned(),
        [] => String::new(),
        several => {
            let message = format!("the copies are of different holds: {}", several.join(", "));
            problems.push(problem(Severity::Refusal, "NOT_ONE_HOLD", "", &message, "present copies of one snapshot"));
            String::new()
        }
    };
    let missing = missing(&filesystems, &mut problems);
    let mut grade = filesystems.iter().map(|f| f.grade).min().unwrap_or(Grade::None);
    if grade == Grade::Proven && (missing || hold_id.is_empty()) {
        grade = Grade::ConsistentWithHold;
    }
    let coverage = filesystems
        .iter()
        .find_map(|f| f.found.as_ref()?.record["report"]["coverage"].as_array().cloned())
        .unwrap_or_default();
    Verification { grade, hold_id, filesystems, coverage, problems, incomplete: missing }
}

fn present(root: &Path, record: Option<&proto::Report>, problems: &mut Vec<proto::Problem>) -> Presented {
    let subject = root.display().to_string();
    let found = match receipt::read(root) {
        Ok(Some(found)) => found,
        Ok(None) => {
            let why = "no receipt: it was never held, or its receipt did not fit".to_owned();
            return Presented { root: root.to_owned(), found: None, grade: Grade::None, why };
        }
        Err(error) => {
            let message = format!("{subject}: {error}");
            problems.push(problem(Severity::Refusal, "RECEIPT_UNREADABLE", &subject, &message, ""));
            return Presented { root: root.to_owned(), found: None, grade: Grade::None, why: error.to_string() };
        }
    };
    let (mut grade, mut why) = match found.sector.state {
        State::Prepared => (Grade::Prepared, "cut before all was held".to_owned()),
        State::Aborted => (Grade::Aborted, "cut after a hold that failed".to_owned()),
        State::Released => (Grade::Released, "cut after the hold was released".to_owned()),
        State::Restored => (Grade::Restored, RESTORED.to_owned()),
        State::Frozen => frozen(root, &found),
    };
    if let Some(record) = record.filter(|_| grade.is_held()) {
        match against(record, &found) {
            Ok(()) => (grade, why) = (Grade::Proven, "and the hold record says unbroken".to_owned()),
            Err(reason) => {
                let message = format!("{subject}: the hold record does not prove it: {reason}");
                problems.push(problem(Severity::Warning, "RECORD_MISMATCH", &subject, &message, ""));
            }
        }
    }
    Presented { root: root.to_owned(), found: Some(found), grade, why }
}

const RESTORED: &str =
    "a machine was started from a copy cut during that hold; what was written since is not part of it";

/// The state is `frozen`: does the journal say more?
fn frozen(root: &Path, found: &Found) -> (Grade, String) {
    let weak = |why: &str| (Grade::ConsistentWithHold, format!("frozen; {why}"));
    let recorded = &found.record["filesystem"];
    let Some(ext) = raw(root).and_then(|raw| raw.ext) else {
        return weak("this type keeps no mark of a clean freeze, so the last moment before it is not excluded");
    };
    if !ext.has_journal {
        return weak("an ext file system without a journal keeps no mark of a clean freeze");
    }
    if recorded["mount_count"] != json!(ext.mount_count) || recorded["mount_time"] != json!(ext.mount_time) {
        return weak("it has been mounted since, which rewrote the journal's mark (mount copies with ro,noload)");
    }
    if ext.needs_recovery {
        return weak("but its journal needs recovery: cut in the moment before its freeze was complete");
    }
    (Grade::CutInside, "frozen, and its journal was clean: cut while it was held".into())
}

/// The raw superblock below a mounted copy.
fn raw(root: &Path) -> Option<superblock::Raw> {
    let root = fs::canonicalize(root).ok()?;
    let lines = guest::mounts::parse_bytes(&fs::read("/proc/self/mountinfo").ok()?);
    let line = guest::mounts::covering(&lines, &root)?;
    let name = fs::read_link(format!("/sys/dev/block/{}", line.dev)).ok()?;
    superblock::read(&Path::new("/dev").join(name.file_name()?)).ok().flatten()
}

fn against(record: &proto::Report, found: &Found) -> Result<(), String> {
    if record.id != found.sector.hold_id {
        return Err(format!("it is of the hold {}, the receipt of {}", record.id, found.sector.hold_id));
    }
    if record.verdict() != Verdict::Unbroken {
        return Err("its verdict is not unbroken".into());
    }
    let named = record.steps.iter().filter(|s| s.outcome() != StepOutcome::Skipped).any(|s| match &s.detail {
        Some(Detail::Filesystem(fs)) => !fs.uuid.is_empty() && fs.uuid == found.sector.fs_uuid,
        Some(Detail::Database(_) | Detail::Hook(_)) | None => false,
    });
    if named { Ok(()) } else { Err("it does not name this file system's UUID".into()) }
}

/// Says which held file systems were not presented.
fn missing(filesystems: &[Presented], problems: &mut Vec<proto::Problem>) -> bool {
    let presented: Vec<&str> =
        filesystems.iter().filter_map(|f| f.found.as_ref()).map(|f| f.sector.fs_uuid.as_str()).collect();
    let Some(first) = filesystems.iter().find_map(|f| f.found.as_ref()) else { return false };
    let steps = first.record["report"]["steps"].as_array().cloned().unwrap_or_default();
    let mut any = false;
    for step in steps {
        let fs = &step["filesystem"];
        let held = fs.is_object() && !matches!(step["outcome"].as_str(), Some("skipped") | None);
        let uuid = fs["uuid"].as_str().unwrap_or_default();
        if held && !uuid.is_empty() && !presented.contains(&uuid) {
            any = true;
            let mount = fs["mount"].as_str().unwrap_or("?");
            let message = format!("{mount} (UUID {uuid}) was held together with these and is not presented");
            problems.push(problem(Severity::Warning, "FILESYSTEM_MISSING", mount, &message, "mount its copy, too"));
        }
    }
    any
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hold::receipt::Sector;

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

    fn roots(copies: &[&tempfile::TempDir]) -> Vec<PathBuf> {
        copies.iter().map(|c| c.path().to_owned()).collect()
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
            let verification = verify(&roots(&[&copy]), None);
            assert_eq!((verification.grade, verification.exit_code(false)), (grade, code));
        }
        let none = tempfile::tempdir().unwrap();
        assert_eq!(verify(&roots(&[&none]), None).exit_code(false), 1);
    }

    #[test]
    fn copies_of_different_holds_prove_nothing_together() {
        let (one, two) = (copy(State::Frozen, "a", "u1", &[]), copy(State::Frozen, "b", "u2", &[]));
        let verification = verify(&roots(&[&one, &two]), None);
        assert_eq!(verification.exit_code(false), 3);
        assert!(verification.hold_id.is_empty());
    }

    #[test]
    fn a_held_file_system_that_is_not_presented_is_named() {
        let one = copy(State::Frozen, "a", "u1", &["u1", "u2"]);
        let verification = verify(&roots(&[&one]), None);
        assert_eq!(verification.exit_code(false), 3);
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
        let proven = verify(&roots(&[&one]), Some(&record));
        assert_eq!((proven.grade, proven.exit_code(true)), (Grade::Proven, 0));
        record.set_verdict(Verdict::Broken);
        let broken = verify(&roots(&[&one]), Some(&record));
        assert_eq!((broken.grade, broken.exit_code(true)), (Grade::ConsistentWithHold, 3));
    }
}
