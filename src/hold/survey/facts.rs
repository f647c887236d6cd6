//! What is known of each superblock beyond its mounts: its disks, whether they last, how much is on it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use super::{Look, READ_LIMIT, TOUCH_LIMIT, in_a_thread, storage::Storage};
use crate::{
    guest::{
        Dev, Guest, Kind, Superblock,
        cloud_init::Metadata,
        fstab,
        platform::Platform,
        space,
        space::Space,
        superblock,
        transient::{self, Configured, Found, Knowledge, Verdict},
    },
    hold::{
        plan::{Facts, Leaf},
        receipt,
    },
    proto,
};

/// What the plan needs to know of each superblock, and what is known of the storage as a whole. What touches a device runs
/// in a thread of its own with a limit: a dead disk costs its numbers, not the hold.
pub(super) async fn gather(
    guest: &mut Guest,
    root: &Path,
    configured: Configured<'_>,
    look: Look,
) -> (BTreeMap<Dev, Facts>, Storage) {
    let (touched, written) = tokio::join!(touch(guest, root), written_to(guest, root));
    for (dev, (raw, _)) in &touched {
        if let Some(raw) = raw.as_ref().filter(|raw| !raw.label.is_empty()) {
            guest.disks.learn_label(*dev, &raw.label);
        }
    }
    let guest = &*guest;
    let storage = storage(guest, root, configured, look).await;
    let mut all = BTreeMap::new();
    for superblock in &guest.superblocks {
        let dev = superblock.dev;
        let (raw, space) = touched.get(&dev).cloned().unwrap_or_default();
        let read = raw.as_ref().map_or_else(String::new, |raw| raw.uuid.clone());
        let mut facts = Facts {
            uuid: guest.disks.uuid(dev).map_or(read, str::to_owned),
            disk: disk_name(guest, superblock),
            ext: raw.and_then(|raw| raw.ext),
            used_bytes: space.used,
            size_bytes: space.size,
            receipt_room: receipt::Room { free: space.free, taken: space.of_file },
            leaves: leaves(guest, dev),
            open_for_writing: written.as_ref().is_none_or(|devs| devs.contains(&dev)),
            ..Facts::default()
        };
        if let Some(verdict) = storage.verdicts.get(&dev) {
            facts.durability = durability(verdict.durability);
            facts.evidence = evidence(verdict);
            facts.legs = verdict.legs.iter().map(ToString::to_string).collect();
            facts.evidence.extend(storage.of_platform(superblock, guest));
        }
        all.insert(dev, facts);
    }
    (all, storage)
}

fn durability(of: transient::Durability) -> proto::Durability {
    match of {
        transient::Durability::Unknown => proto::Durability::Unknown,
        transient::Durability::Durable => proto::Durability::Durable,
        transient::Durability::Transient => proto::Durability::Transient,
        transient::Durability::Mixed => proto::Durability::Mixed,
    }
}

fn weight(of: transient::Weight) -> proto::EvidenceWeight {
    match of {
        transient::Weight::Heuristic => proto::EvidenceWeight::Heuristic,
        transient::Weight::Metadata => proto::EvidenceWeight::Metadata,
        transient::Weight::Label => proto::EvidenceWeight::Label,
        transient::Weight::Identity => proto::EvidenceWeight::Identity,
        transient::Weight::Configuration => proto::EvidenceWeight::Configuration,
    }
}

fn evidence(verdict: &Verdict) -> Vec<proto::Evidence> {
    let one = |item: &transient::Evidence| proto::Evidence {
        source: item.source.into(),
        value: item.value.clone(),
        weight: weight(item.weight).into(),
        says: durability(item.says).into(),
    };
    verdict.evidence.iter().map(one).collect()
}

/// As good as can be told without touching a disk: what only a warning file says is known after the first survey. Blocks.
pub(super) fn verdicts_at_start(guest: &Guest, root: &Path, configured: Configured<'_>) -> BTreeMap<Dev, Verdict> {
    let (platform, metadata) = (Platform::read(root), Metadata::read(root));
    let knowledge = Knowledge { platform, metadata: &metadata, markers: &BTreeMap::new(), configured };
    transient::classify(&guest.superblocks, &guest.disks, &knowledge)
}

/// While something is held, no file of a disk is read: what fstab and warning files say is left out then.
async fn storage(guest: &Guest, root: &Path, configured: Configured<'_>, look: Look) -> Storage {
    let from = root.to_owned();
    let read = move || {
        let entries = match look {
            Look::Everything => fstab::read(&from),
            Look::WhileHeld => Vec::new(),
        };
        (Platform::read(&from), Metadata::read(&from), entries)
    };
    let read = in_a_thread(READ_LIMIT, read).await;
    let (platform, metadata, entries) = read.unwrap_or_else(|| (Platform::unknown(), Metadata::default(), Vec::new()));
    let markers = match look {
        Look::Everything => markers(guest, root, platform).await,
        Look::WhileHeld => BTreeMap::new(),
    };
    let knowledge = Knowledge { platform, metadata: &metadata, markers: &markers, configured };
    Storage::of(guest, &knowledge, entries)
}

/// Warning files at the roots of file systems, as far as those answered in time.
async fn markers(guest: &Guest, root: &Path, platform: Platform) -> BTreeMap<Dev, Found> {
    let results: Arc<Mutex<BTreeMap<Dev, Found>>> = Arc::default();
    let (filled, root, superblocks) = (Arc::clone(&results), root.to_owned(), guest.superblocks.clone());
    let work = move || {
        transient::find_markers(&root, &superblocks, platform, |dev, found| {
            filled.lock().expect("no holder panics").insert(dev, found);
        });
    };
    in_a_thread(TOUCH_LIMIT, work).await;
    let results = results.lock().expect("no holder panics");
    results.clone()
}

/// File systems that somebody has something open on for writing; asked only where a file system that cannot be frozen
/// makes it matter. `None`: could not be told, so it is taken for granted.
async fn written_to(guest: &Guest, root: &Path) -> Option<BTreeSet<Dev>> {
    if !guest.superblocks.iter().any(|s| s.kind == Kind::FlushOnly && !s.read_only) {
        return Some(BTreeSet::new());
    }
    let (root, guest) = (root.to_owned(), guest.clone());
    in_a_thread(READ_LIMIT, move || guest.writers(&root).devs(&root)).await
}

type Touched = BTreeMap<Dev, (Option<superblock::Raw>, Space)>;

/// The raw superblock and the space of each file system, as far as they answered in time.
async fn touch(guest: &Guest, root: &Path) -> Touched {
    let results: Arc<Mutex<Touched>> = Arc::default();
    let superblocks = guest.superblocks.clone();
    let devices: BTreeMap<Dev, PathBuf> = superblocks
        .iter()
        .filter(|s| s.kind == Kind::Freezable)
        .filter_map(|s| {
            let member = *guest.disks.members(s.dev).first()?;
            let name = &guest.disks.devices.get(&member)?.name;
            Some((s.dev, root.join("dev").join(name)))
        })
        .collect();
    let filled = Arc::clone(&results);
    let receipt = Path::new(receipt::DIRECTORY).join(receipt::JSON);
    let work = move || {
        for superblock in &superblocks {
            let raw = devices.get(&superblock.dev).and_then(|device| superblock::read(device).ok().flatten());
            let space = space::of(superblock, &receipt).ok().flatten().unwrap_or_default();
            filled.lock().expect("no holder panics").insert(superblock.dev, (raw, space));
        }
    };
    in_a_thread(TOUCH_LIMIT, work).await;
    let results = results.lock().expect("no holder panics");
    results.clone()
}

fn disk_name(guest: &Guest, superblock: &Superblock) -> String {
    if superblock.kind == Kind::Memory && superblock.dev.major == 0 {
        let mount = superblock.mounts.first().map_or_else(String::new, |m| m.display().to_string());
        return format!("{}:{mount}", superblock.fs_type);
    }
    let member = guest.disks.members(superblock.dev).first().copied();
    member
        .and_then(|dev| guest.disks.devices.get(&dev))
        .map_or_else(|| superblock.source.trim_start_matches("/dev/").to_owned(), |device| device.name.clone())
}

fn leaves(guest: &Guest, superblock: Dev) -> Vec<Leaf> {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let mut leaves = guest.disks.leaves(superblock);
    if !leaves.iter().any(|dev| guest.disks.devices.contains_key(dev)) {
        // a loop device over a file in memory: nothing further down can be named
        leaves = guest.disks.blocks_below(superblock).into_iter().collect();
    }
    leaves
        .into_iter()
        .filter_map(|dev| {
            let device = guest.disks.devices.get(&dev)?;
            let disk = guest.disks.disk(dev).unwrap_or(device);
            let mut names = vec![device.name.clone(), disk.name.clone()];
            names.dedup();
            let id = &disk.identity;
            let model = [&id.vendor, &id.model].into_iter().flatten().cloned().collect::<Vec<_>>().join(" ");
            Some(Leaf {
                names,
                disk: proto::Disk {
                    name: disk.name.clone(),
                    serial: text(&id.serial),
                    wwn: text(&id.wwid),
                    pci_address: text(&id.pci),
                    nguid: text(&id.nguid),
                    model,
                    size_bytes: disk.size_bytes,
                },
            })
        })
        .collect()
}
