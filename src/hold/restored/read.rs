//! What the disks say, and who this machine is. Blocks, and touches local file systems alone; the receipts may be
//! anybody's, so what is taken from them is short and printable.

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    os::{
        fd::AsFd,
        unix::fs::{FileExt, MetadataExt},
    },
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use nix::{
    fcntl::{OFlag, openat},
    sys::stat::Mode,
};
use serde_json::Value;

use super::judge::{Identity, Paper};
use crate::{
    guest::{self, Dev, Guest, Kind, platform},
    hold::receipt::{self, Found, Sector, State},
    sys::files,
};

/// More file systems than this are not asked: each is a thread, and a machine with more has bigger questions.
const AT_MOST: usize = 256;
/// Of a text that a receipt tells, in characters.
const LONGEST: usize = 200;
/// Of a list that a receipt tells.
const MANY: usize = 4096;

/// A local file system that may have a receipt.
#[derive(Debug, Clone)]
pub struct Place {
    pub root: PathBuf,
    pub mount_id: u64,
    pub read_only: bool,
    pub serials: BTreeSet<String>,
}

/// Who this machine is, and where its receipts may lie.
///
/// # Errors
/// The mounts cannot be read.
pub fn machine(root: &Path) -> io::Result<(Identity, Vec<Place>)> {
    let guest = guest::read(root)?;
    let mut places: Vec<Place> = guest
        .superblocks
        .iter()
        .filter(|s| s.kind == Kind::Freezable && s.below.is_none() && s.namespace.is_none())
        .filter_map(|s| {
            let at = s.open_at.as_ref()?;
            let whole = at.fs_root == Path::new("/") || s.fs_type == "btrfs";
            whole.then(|| Place {
                root: at.path.clone(),
                mount_id: at.mount_id,
                read_only: s.read_only,
                serials: serials(&guest, s.dev),
            })
        })
        .collect();
    places.sort_by(|a, b| a.root.cmp(&b.root));
    places.truncate(AT_MOST);
    let root_serials = places.iter().find(|place| place.root == Path::new("/")).map(|place| place.serials.clone());
    let instance = platform::Instance::read(root);
    let identity = Identity {
        boot_id: instance.boot_id.unwrap_or_default(),
        machine_id: instance.machine_id.unwrap_or_default(),
        product_uuid: instance.product_uuid.unwrap_or_default(),
        instance_id: instance.instance_id.map(|id| printable(&id)).unwrap_or_default(),
        root_serials: root_serials.unwrap_or_default(),
    };
    Ok((identity, places))
}

fn serials(guest: &Guest, superblock: Dev) -> BTreeSet<String> {
    let leaves = guest.disks.leaves(superblock);
    leaves.into_iter().filter_map(|dev| guest.disks.disk(dev)?.identity.serial.clone()).collect()
}

/// When this boot began, in seconds since 1970.
pub fn booted(root: &Path) -> i64 {
    let text = std::fs::read_to_string(root.join("proc/uptime")).unwrap_or_default();
    let up: i64 = text.split('.').next().and_then(|seconds| seconds.parse().ok()).unwrap_or_default();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX) - up
}

/// The receipt of one place; `None`: there is none, or it cannot be believed.
pub fn paper(place: &Place) -> Option<Paper> {
    match receipt::read(&place.root) {
        Ok(found) => Some(from(place, &found?)),
        Err(error) => {
            tracing::info!(mount = %place.root.display(), "the receipt there is not believed: {error}");
            None
        }
    }
}

fn from(place: &Place, found: &Found) -> Paper {
    let record = &found.record;
    let (report, filesystem) = (&record["report"], &record["filesystem"]);
    let machine = &report["machine"];
    let either = |name: &str| {
        let text = |value: &Value| value.as_str().map(printable).filter(|text| !text.is_empty());
        text(&machine[name]).or_else(|| text(&record[name])).unwrap_or_default()
    };
    let mount_then = filesystem["mount"].as_str().map(printable).unwrap_or_default();
    let sector = &found.sector;
    let uuid = sector.fs_uuid.as_str();
    let list = |value: &'_ Value| value.as_array().cloned().unwrap_or_default().into_iter().take(MANY);
    let at_place = |entry: &Value, place: &str| list(&entry["mounts"]).any(|mount| mount.as_str() == Some(place));
    let mine = |entry: &Value| {
        let same = !uuid.is_empty() && entry["uuid"].as_str() == Some(uuid);
        same || at_place(entry, &mount_then)
    };
    let serial = |disk: Value| disk["serial"].as_str().map(printable).filter(|serial| !serial.is_empty());
    let serials_of = |wanted: &dyn Fn(&Value) -> bool| -> BTreeSet<String> {
        list(&report["coverage"]).filter(wanted).flat_map(|entry| list(&entry["disks"])).filter_map(serial).collect()
    };
    let held = list(&report["steps"]).filter(|step| !matches!(step["outcome"].as_str(), Some("skipped") | None));
    let serials_then = serials_of(&mine);
    Paper {
        mount: place.root.display().to_string(),
        was: Identity {
            boot_id: printable(&sector.boot_id),
            machine_id: either("machine_id"),
            product_uuid: either("product_uuid").to_ascii_lowercase(),
            instance_id: either("instance_id"),
            root_serials: serials_of(&|entry| at_place(entry, "/")),
        },
        sector: Sector {
            hold_id: printable(&sector.hold_id),
            fs_uuid: printable(uuid),
            boot_id: printable(&sector.boot_id),
            ..sector.clone()
        },
        mount_then,
        serials_then,
        serials: place.serials.clone(),
        held: held.filter_map(|step| step["filesystem"]["uuid"].as_str().map(printable)).collect(),
        read_only: place.read_only,
    }
}

/// Short, and nothing in it that a terminal would obey: the disk may be anybody's.
fn printable(text: &str) -> String {
    text.chars().take(LONGEST).map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Lets the receipt at `place` say `restored` in place of `frozen`, and that this boot says so. In place and synced. Only
/// what is proven to be ours, and still says what was `judged`.
///
/// # Errors
/// The file system's; or that it is not what was judged, and then it is left alone.
pub fn rewrite(place: &Place, judged: &Paper, boot_id: &str) -> io::Result<()> {
    let changed = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let root = files::open_mount(&place.root, None)?;
    if files::mount_id(root.as_fd())? != place.mount_id {
        return Err(changed("something else is mounted there now"));
    }
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let directory = openat(&root, receipt::DIRECTORY, flags | OFlag::O_DIRECTORY, Mode::empty())?;
    let file = File::from(openat(&directory, receipt::STATE, flags | OFlag::O_RDWR, Mode::empty())?);
    let about = file.metadata()?;
    if !about.is_file() || about.nlink() != 1 {
        return Err(changed("it is not a plain file with a single name"));
    }
    let mut bytes = [0; receipt::SECTOR];
    file.read_exact_at(&mut bytes, 0)?;
    let sector = Sector::decode(&bytes).map_err(|error| changed(&error.to_string()))?;
    let same = printable(&sector.hold_id) == judged.sector.hold_id && sector.state == State::Frozen;
    if !same || sector.prepared != judged.sector.prepared || sector.boot_id == boot_id {
        return Err(changed("it has changed meanwhile"));
    }
    let now = Sector { state: State::Restored, boot_id: boot_id.to_owned(), ..sector };
    file.write_all_at(&now.encode()[..receipt::SECTOR], 0)?;
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    fn place(root: &Path) -> Place {
        let fd = files::open_mount(root, None).unwrap();
        let mount_id = files::mount_id(fd.as_fd()).unwrap();
        Place { root: root.to_owned(), mount_id, read_only: false, serials: ["now".to_owned()].into() }
    }

    fn receipt(state: State, record: &Value) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let sector = Sector { state, hold_id: "h".into(), fs_uuid: "u".into(), boot_id: "b1".into(), prepared: 7 };
        fs::create_dir(dir.path().join(receipt::DIRECTORY)).unwrap();
        fs::write(dir.path().join(receipt::DIRECTORY).join(receipt::STATE), sector.encode()).unwrap();
        fs::write(dir.path().join(receipt::DIRECTORY).join(receipt::JSON), record.to_string()).unwrap();
        dir
    }

    #[test]
    fn who_wrote_it_is_read_from_older_and_from_newer_receipts() {
        let old = json!({"machine_id": "m", "product_uuid": "AA", "filesystem": {"mount": "/srv"}, "report": {}});
        let new = json!({
            "machine_id": "m", "filesystem": {"mount": "/srv"},
            "report": {
                "machine": {"machine_id": "m", "product_uuid": "aa", "instance_id": "i-1\u{1b}[2J"},
                "coverage": [
                    {"mounts": ["/srv"], "disks": [{"serial": "vol-1"}]},
                    {"mounts": ["/"], "disks": [{"serial": "vol-0"}, {"serial": ""}]},
                ],
                "steps": [{"outcome": "planned", "filesystem": {"uuid": "u"}}, {"outcome": "skipped", "filesystem": {"uuid": "x"}}],
            },
        });
        let dir = receipt(State::Frozen, &old);
        let read = paper(&place(dir.path())).expect("a receipt");
        assert_eq!((read.was.machine_id.as_str(), read.was.product_uuid.as_str()), ("m", "aa"));
        assert!(read.serials_then.is_empty() && read.held.is_empty());
        let dir = receipt(State::Frozen, &new);
        let read = paper(&place(dir.path())).expect("a receipt");
        assert_eq!(read.was.instance_id, "i-1?[2J", "a terminal would have obeyed it");
        assert_eq!(read.serials_then, ["vol-1".to_owned()].into());
        assert_eq!((read.was.root_serials, read.held), (["vol-0".to_owned()].into(), ["u".to_owned()].into()));
    }

    #[test]
    fn a_receipt_that_says_frozen_comes_to_say_restored_and_nothing_else_does() {
        let dir = receipt(State::Frozen, &json!({}));
        let (at, judged) = (place(dir.path()), paper(&place(dir.path())).expect("a receipt"));
        rewrite(&at, &judged, "b2").expect("it is as it was judged");
        let found = receipt::read(dir.path()).unwrap().expect("still there");
        assert_eq!((found.sector.state, found.sector.boot_id.as_str()), (State::Restored, "b2"));
        assert_eq!((found.sector.hold_id.as_str(), found.sector.prepared), ("h", 7), "the testimony keeps its hold");
        assert!(rewrite(&at, &judged, "b2").is_err(), "it does not say frozen any more");

        let released = receipt(State::Released, &json!({}));
        assert!(rewrite(&place(released.path()), &judged, "b2").is_err());
        let linked = tempfile::tempdir().unwrap();
        let target = receipt(State::Frozen, &json!({}));
        std::os::unix::fs::symlink(target.path().join(receipt::DIRECTORY), linked.path().join(receipt::DIRECTORY))
            .unwrap();
        assert!(rewrite(&place(linked.path()), &judged, "b2").is_err(), "a link is never followed");
        assert_eq!(receipt::read(target.path()).unwrap().expect("untouched").sector.state, State::Frozen);
    }

    #[test]
    fn damaged_receipts_are_none() {
        let dir = receipt(State::Frozen, &json!({}));
        fs::write(dir.path().join(receipt::DIRECTORY).join(receipt::STATE), b"HOLDSTIL").unwrap();
        assert!(paper(&place(dir.path())).is_none());
    }
}
