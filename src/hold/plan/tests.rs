use std::path::PathBuf;

use glob::Pattern;

use super::*;
use crate::{guest::MountPoint, proto::InSnapshot};

fn superblock(minor: u32, mount: &str, fs_type: &str, kind: Kind) -> Superblock {
    Superblock {
        dev: Dev { major: 8, minor },
        fs_type: fs_type.into(),
        source: format!("/dev/sd{minor}"),
        options: "rw".into(),
        kind,
        read_only: false,
        open_at: Some(MountPoint { path: mount.into(), mount_id: u64::from(minor), fs_root: "/".into() }),
        mounts: vec![PathBuf::from(mount)],
        namespace: None,
        below: None,
    }
}

struct World {
    superblocks: Vec<Superblock>,
    facts: BTreeMap<Dev, Facts>,
    lies_on: Vec<(Dev, Dev)>,
    filesystems: config::Filesystems,
    spec: proto::HoldSpec,
}

impl World {
    fn new(superblocks: Vec<Superblock>) -> World {
        World {
            superblocks,
            facts: BTreeMap::new(),
            lies_on: Vec::new(),
            filesystems: config::Filesystems { include: vec![], exclude: vec![], expedite_rcu: true },
            spec: proto::HoldSpec::default(),
        }
    }

    fn transient(mut self, minor: u32) -> World {
        let facts = Facts {
            disk: format!("sd{minor}"),
            durability: Durability::Transient,
            evidence: vec![proto::Evidence { source: "config".into(), value: "mounts".into(), ..Default::default() }],
            used_bytes: 3 << 30,
            ..Facts::default()
        };
        self.facts.insert(Dev { major: 8, minor }, facts);
        self
    }

    fn plan(&self) -> Result<Plan, Refusal> {
        plan(&Inputs {
            superblocks: &self.superblocks,
            facts: &self.facts,
            lies_on: &self.lies_on,
            filesystems: &self.filesystems,
            spec: &self.spec,
        })
    }

    fn frozen(&self) -> Vec<String> {
        let plan = self.plan().expect("a plan");
        let frozen = plan.targets.iter().filter(|t| t.freeze);
        frozen.map(|t| display(&self.superblocks[t.superblock])).collect()
    }
}

#[test]
fn every_file_system_gets_an_outcome_and_a_reason() {
    let mut read_only = superblock(2, "/opt", "ext4", Kind::Freezable);
    read_only.read_only = true;
    let world = World::new(vec![
        superblock(1, "/", "ext4", Kind::Freezable),
        read_only,
        superblock(3, "/proc", "proc", Kind::Pseudo),
        superblock(4, "/net", "nfs4", Kind::Remote),
        superblock(5, "/boot/efi", "vfat", Kind::FlushOnly),
    ]);
    let plan = world.plan().unwrap();
    assert_eq!(plan.steps.len(), 5);
    assert!(plan.steps.iter().all(|s| s.outcome() != StepOutcome::Unspecified));
    assert!(plan.steps.iter().skip(1).all(|s| !s.reason.is_empty()));
    assert!(plan.complete, "an idle EFI partition lowers nothing");
}

#[test]
fn where_the_caller_freezes_everything_in_scope_is_written_back_and_nothing_is_claimed_or_missed() {
    let mut unreachable = superblock(2, "/srv", "ext4", Kind::Freezable);
    unreachable.open_at = None;
    let mut world = World::new(vec![
        superblock(1, "/", "ext4", Kind::Freezable),
        unreachable,
        superblock(5, "/boot/efi", "vfat", Kind::FlushOnly),
    ]);
    world.spec.set_freeze_by(proto::FreezeBy::Caller);
    let plan = world.plan().unwrap();
    assert!(plan.steps.iter().all(|s| s.outcome() == StepOutcome::Skipped && !s.required && !s.reason.is_empty()));
    assert_eq!(plan.targets.len(), 2, "written back while nobody waits");
    let codes: Vec<&str> = plan.problems.iter().map(|p| p.code.as_str()).collect();
    assert_eq!(codes, ["CALLER_FREEZES"], "what the caller cannot freeze is not known here");
    // whether there is anything to hold is the databases' and hooks' answer
    world.superblocks.clear();
    assert!(world.plan().unwrap().refusals.is_empty());
}

#[test]
fn a_flushed_file_system_lowers_the_level_if_it_is_open_for_writing() {
    let mut world =
        World::new(vec![superblock(1, "/", "ext4", Kind::Freezable), superblock(5, "/efi", "vfat", Kind::FlushOnly)]);
    world.facts.insert(Dev { major: 8, minor: 5 }, Facts { open_for_writing: true, ..Facts::default() });
    assert!(!world.plan().unwrap().complete);
}

#[test]
fn a_transient_disk_is_named_and_not_frozen_unless_something_durable_lies_on_it() {
    let mut world = World::new(vec![
        superblock(1, "/", "ext4", Kind::Freezable),
        superblock(2, "/mnt", "ext4", Kind::Freezable),
        superblock(3, "/srv", "ext4", Kind::Freezable),
    ])
    .transient(2);
    assert_eq!(world.frozen(), ["/", "/srv"]);
    let lost = world.plan().unwrap().lost;
    assert_eq!((lost.len(), lost[0].superblock, lost[0].named, lost[0].excluded), (1, 1, true, false));
    world.lies_on.push((Dev { major: 8, minor: 3 }, Dev { major: 8, minor: 2 }));
    assert_eq!(world.frozen(), ["/", "/mnt", "/srv"]);
    let plan = world.plan().unwrap();
    assert_eq!(plan.levels, vec![vec![2], vec![1], vec![0]], "inner, outer, then the root");
    let steps: Vec<&str> = plan.steps.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(steps, ["fs:/srv", "fs:/mnt", "fs:/"], "steps stand in the order they run");
}

#[test]
fn a_request_narrows_and_never_widens() {
    let mut world = World::new(vec![
        superblock(1, "/", "ext4", Kind::Freezable),
        superblock(2, "/srv/a", "ext4", Kind::Freezable),
        superblock(3, "/srv/b", "ext4", Kind::Freezable),
    ]);
    world.filesystems.include = vec![Pattern::new("/srv/*").unwrap()];
    assert_eq!(world.frozen(), ["/srv/a", "/srv/b"]);
    world.spec.include_mounts = vec!["/srv/b/".into()];
    assert_eq!(world.frozen(), ["/srv/b"]);
    world.spec.include_mounts = vec!["/".into()];
    assert_eq!(world.plan().unwrap_err().reason, "MOUNT_OUT_OF_SCOPE");
    world.spec.include_mounts = vec!["/srv".into()];
    let refusal = world.plan().unwrap_err();
    assert_eq!((refusal.kind, refusal.reason), (RefusalKind::NotFound, "MOUNT_NOT_FOUND"));
}

#[test]
fn asking_for_our_srv_does_not_hold_a_containers() {
    let mut theirs = superblock(2, "/srv", "ext4", Kind::Freezable);
    theirs.namespace = Some(77);
    let mut world = World::new(vec![superblock(1, "/srv", "ext4", Kind::Freezable), theirs]);
    world.filesystems.include = vec![Pattern::new("/srv").unwrap()];
    let plan = world.plan().unwrap();
    assert_eq!(plan.targets, [Planned { superblock: 0, freeze: true }]);
    world.superblocks.remove(0);
    assert_eq!(world.frozen(), ["/srv"], "named, and only there");
}

#[test]
fn nothing_to_hold_is_refused_not_a_success() {
    let world = World::new(vec![superblock(1, "/run", "tmpfs", Kind::Memory)]);
    assert_eq!(world.plan().unwrap().refusals[0].reason, "NOTHING_TO_HOLD");
}

#[test]
fn a_disk_selector_that_matches_nothing_refuses_and_one_that_matches_decides_what_is_frozen() {
    let mut world =
        World::new(vec![superblock(1, "/", "ext4", Kind::Freezable), superblock(2, "/data", "ext4", Kind::Freezable)]);
    for (minor, serial) in [(1, "root-1"), (2, "vol-2")] {
        let disk = proto::Disk { serial: serial.into(), ..Default::default() };
        let leaf = Leaf { names: vec![format!("sd{minor}")], disk };
        let facts = Facts { leaves: vec![leaf], ..Facts::default() };
        world.facts.insert(Dev { major: 8, minor }, facts);
    }
    let by = |s: &str| proto::DiskSelector { by: Some(proto::disk_selector::By::Serial(s.into())) };
    world.spec.scope = Some(proto::SnapshotScope { disks: vec![by("vol-2")] });
    assert_eq!(world.frozen(), ["/data"]);
    let plan = world.plan().unwrap();
    let told: Vec<_> = plan.coverage.iter().map(proto::Coverage::in_snapshot).collect();
    assert_eq!(told, [InSnapshot::No, InSnapshot::Yes]);
    world.spec.scope = Some(proto::SnapshotScope { disks: vec![by("vol-9")] });
    assert_eq!(world.plan().unwrap_err().reason, "DISK_NOT_FOUND");
}

#[test]
fn a_disk_the_caller_captures_is_frozen_and_not_missed_however_transient_it_is() {
    let mut world =
        World::new(vec![superblock(1, "/", "ext4", Kind::Freezable), superblock(2, "/mnt", "ext4", Kind::Freezable)])
            .transient(2);
    for minor in [1, 2] {
        let disk = proto::Disk { name: format!("sd{minor}"), ..Default::default() };
        let leaf = Leaf { names: vec![format!("sd{minor}")], disk };
        world.facts.entry(Dev { major: 8, minor }).or_default().leaves = vec![leaf];
    }
    let by = |name: &str| proto::DiskSelector { by: Some(proto::disk_selector::By::Device(name.into())) };
    world.spec.scope = Some(proto::SnapshotScope { disks: vec![by("sd1"), by("sd2")] });
    assert_eq!(world.frozen(), ["/", "/mnt"]);
    assert_eq!(world.plan().unwrap().lost, []);
    world.spec.scope = Some(proto::SnapshotScope { disks: vec![by("sd1")] });
    assert_eq!(world.frozen(), ["/"]);
    assert_eq!(world.plan().unwrap().lost.len(), 1);
}

#[test]
fn a_file_system_of_which_one_disk_is_not_captured_says_which() {
    let mut world = World::new(vec![superblock(1, "/data", "btrfs", Kind::Freezable)]);
    let leaf =
        |name: &str| Leaf { names: vec![name.into()], disk: proto::Disk { name: name.into(), ..Default::default() } };
    let facts = Facts { leaves: vec![leaf("vdb"), leaf("vdc")], ..Facts::default() };
    world.facts.insert(Dev { major: 8, minor: 1 }, facts);
    let by = |name: &str| proto::DiskSelector { by: Some(proto::disk_selector::By::Device(name.into())) };
    // named twice is not both
    world.spec.scope = Some(proto::SnapshotScope { disks: vec![by("vdb"), by("/dev/vdb")] });
    let plan = world.plan().unwrap();
    assert_eq!(plan.coverage[0].in_snapshot(), InSnapshot::No);
    assert_eq!(plan.lost[0].uncaptured, ["vdc"]);
}
