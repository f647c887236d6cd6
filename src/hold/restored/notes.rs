//! What is remembered, so that nothing is said twice.
//!
//! ```text
//!   [paths] state/machine.json    who this machine was when its daemon ran last
//!   [paths] state/restored.json   what was noticed, on which machine, and what each receipt said before it was rewritten
//!   [paths] run/restored.json     what was noticed in this boot: for a restarted daemon, and for `verify`
//! ```
//!
//! A copy of the machine has copies of the first two. They name the machine they were written on, so a clone of a clone is
//! noticed anew; the third is on tmpfs, and in no copy.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::Path,
};

use serde_json::{Value, json};

use super::judge::{self, Identity, Known};
use crate::{hold::receipt::Sector, json, proto};

const MACHINE: &str = "machine.json";
pub(super) const RESTORED: &str = "restored.json";
/// A page of ours is never longer; what is may be anybody's.
const LONGEST: u64 = 1 << 20;
/// Copies of copies of copies: older notes are forgotten.
const KEPT: usize = 16;

/// What a receipt said when it was noticed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Testimony {
    pub mount: String,
    pub fs_uuid: String,
    pub hold_id: String,
    /// in the words of the receipt
    pub state: String,
    /// in the words of `verify`, as the copy was then
    pub grade: String,
    pub why: String,
    pub stays_frozen: bool,
}

/// Who this machine was when its daemon ran last.
pub fn last(state: &Path) -> Option<Identity> {
    identity(&read(&state.join(MACHINE))?)
}

/// # Errors
/// `state` cannot be written.
pub fn keep_machine(state: &Path, now: &Identity) -> io::Result<()> {
    write(&state.join(MACHINE), &machine(now))
}

/// What was noticed on this machine before, as it is now.
pub fn known(state: &Path, now: &Identity) -> Vec<Known> {
    let page = read(&state.join(RESTORED)).unwrap_or_default();
    let here = |note: &&Value| identity(&note["machine"]).is_some_and(|was| same(&was, now));
    let receipts = list(&page["notes"]).filter(here).flat_map(|note| list(&note["receipts"]));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    receipts
        .map(|receipt| Known {
            hold_id: text(&receipt["hold_id"]),
            fs_uuid: text(&receipt["uuid"]),
            stays_frozen: receipt["stays_frozen"] == true,
        })
        .collect()
}

/// # Errors
/// `state` cannot be written; then it will be said again at the next boot.
pub fn keep_noticed(state: &Path, now: &Identity, restored: &proto::Restored, said: &[Testimony]) -> io::Result<()> {
    let path = state.join(RESTORED);
    let mut notes: Vec<Value> = read(&path).map(|page| list(&page["notes"]).cloned().collect()).unwrap_or_default();
    // the same noticing, told with more
    notes.retain(|note| note["machine"]["boot_id"] != now.boot_id.as_str());
    notes.push(json!({
        "machine": machine(now),
        "restored": json::to_json(restored),
        "receipts": said.iter().map(receipt).collect::<Vec<_>>(),
    }));
    let surplus = notes.len().saturating_sub(KEPT);
    write(&path, &json!({"format": 1, "notes": &notes[surplus..]}))
}

/// What was noticed in this boot.
pub fn of_this_boot(run: &Path) -> Option<proto::Restored> {
    json::from_json(&read(&run.join(RESTORED))?["restored"]).ok()
}

/// # Errors
/// `run` cannot be written.
pub fn keep_for_this_boot(run: &Path, restored: &proto::Restored, said: &[Testimony]) -> io::Result<()> {
    let receipts: Vec<Value> = said.iter().map(receipt).collect();
    write(&run.join(RESTORED), &json!({"format": 1, "restored": json::to_json(restored), "receipts": receipts}))
}

/// What the receipt at `mount` said that `sector` was rewritten from, if that was done on this machine in this boot.
pub fn testimony(run: &Path, mount: &str, sector: &Sector) -> Option<(String, String)> {
    let page = read(&run.join(RESTORED))?;
    let mine = |receipt: &&Value| {
        receipt["mount"] == mount
            && receipt["hold_id"] == sector.hold_id.as_str()
            && receipt["uuid"] == sector.fs_uuid.as_str()
            && receipt["state"] == "frozen"
    };
    let found = list(&page["receipts"]).find(mine)?;
    Some((found["grade"].as_str()?.to_owned(), found["why"].as_str()?.to_owned()))
}

/// One of them may know less: cloud-init says its number later than firmware does, or not at all.
fn same(was: &Identity, now: &Identity) -> bool {
    match judge::comparable(was, now) {
        true => judge::moved(was, now).is_empty(),
        false => was.root_serials == now.root_serials,
    }
}

/// What is to be kept of this machine, if anything: what is known now, and of the same machine what was known before.
pub fn learnt(last: Option<&Identity>, now: &Identity) -> Option<Identity> {
    let Some(last) = last.filter(|last| same(last, now)) else { return Some(now.clone()) };
    let filled = |now: &str, last: &str| if now.is_empty() { last.to_owned() } else { now.to_owned() };
    let all = Identity {
        boot_id: last.boot_id.clone(),
        machine_id: filled(&now.machine_id, &last.machine_id),
        product_uuid: filled(&now.product_uuid, &last.product_uuid),
        instance_id: filled(&now.instance_id, &last.instance_id),
        root_serials: if now.root_serials.is_empty() { last.root_serials.clone() } else { now.root_serials.clone() },
    };
    (all != *last).then(|| Identity { boot_id: now.boot_id.clone(), ..all })
}

fn machine(of: &Identity) -> Value {
    json!({
        "format": 1,
        "boot_id": of.boot_id,
        "machine_id": of.machine_id,
        "product_uuid": of.product_uuid,
        "instance_id": of.instance_id,
        "root_serials": of.root_serials,
    })
}

fn identity(page: &Value) -> Option<Identity> {
    let text = |name: &str| page[name].as_str().unwrap_or_default().to_owned();
    page.is_object().then(|| Identity {
        boot_id: text("boot_id"),
        machine_id: text("machine_id"),
        product_uuid: text("product_uuid"),
        instance_id: text("instance_id"),
        root_serials: list(&page["root_serials"]).filter_map(|s| s.as_str().map(str::to_owned)).collect(),
    })
}

fn receipt(said: &Testimony) -> Value {
    json!({
        "mount": said.mount, "uuid": said.fs_uuid, "hold_id": said.hold_id, "state": said.state,
        "grade": said.grade, "why": said.why, "stays_frozen": said.stays_frozen,
    })
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn read(path: &Path) -> Option<Value> {
    let mut text = Vec::new();
    File::open(path).ok()?.take(LONGEST).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Whole or not at all, and on the disk: what is noted as said must not be said again after a power cut.
fn write(path: &Path, page: &Value) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    writeln!(file, "{page}")?;
    file.sync_data()?;
    fs::rename(new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(stays_frozen: bool) -> Testimony {
        Testimony {
            mount: "/".into(),
            fs_uuid: "u".into(),
            hold_id: "h".into(),
            state: "frozen".into(),
            grade: "consistent-with-hold".into(),
            why: "it has been mounted since".into(),
            stays_frozen,
        }
    }

    #[test]
    fn what_was_noticed_is_known_on_that_machine_alone() {
        let dir = tempfile::tempdir().unwrap();
        let now = Identity { boot_id: "b2".into(), product_uuid: "p".into(), ..Identity::default() };
        assert!(known(dir.path(), &now).is_empty() && last(dir.path()).is_none());
        keep_machine(dir.path(), &now).unwrap();
        assert_eq!(last(dir.path()), Some(now.clone()));
        for _twice in 0..2 {
            keep_noticed(dir.path(), &now, &proto::Restored::default(), &[noted(false)]).unwrap();
        }
        let later = Identity { boot_id: "b3".into(), ..now.clone() };
        assert_eq!(known(dir.path(), &later).len(), 1, "one noticing is one note");
        let clone = Identity { product_uuid: "q".into(), ..later.clone() };
        assert!(known(dir.path(), &clone).is_empty());
        let more = Identity { instance_id: "i-1".into(), ..later.clone() };
        assert_eq!(known(dir.path(), &more).len(), 1, "cloud-init has spoken since");
        assert_eq!(learnt(Some(&now), &later), None, "another boot is nothing new");
        assert_eq!(learnt(Some(&now), &more), Some(more.clone()));
        assert_eq!(learnt(Some(&more), &later), None, "nothing is forgotten");
        assert_eq!(learnt(Some(&now), &clone), Some(clone.clone()));
    }

    #[test]
    fn the_testimony_of_this_boot_is_kept_and_a_damaged_note_is_none() {
        let run = tempfile::tempdir().unwrap();
        let restored = proto::Restored { hold_id: "h".into(), ..Default::default() };
        keep_for_this_boot(run.path(), &restored, &[noted(false)]).unwrap();
        assert_eq!(of_this_boot(run.path()), Some(restored));
        let sector = |uuid: &str| Sector {
            state: crate::hold::receipt::State::Restored,
            hold_id: "h".into(),
            fs_uuid: uuid.into(),
            boot_id: "b2".into(),
            prepared: 1,
        };
        let kept = testimony(run.path(), "/", &sector("u")).expect("it was noted");
        assert_eq!(kept.0, "consistent-with-hold");
        assert!(testimony(run.path(), "/", &sector("v")).is_none());
        assert!(testimony(run.path(), "/mnt/copy", &sector("u")).is_none(), "a copy of it, mounted elsewhere");
        fs::write(run.path().join(RESTORED), "{").unwrap();
        assert!(of_this_boot(run.path()).is_none());
    }
}
